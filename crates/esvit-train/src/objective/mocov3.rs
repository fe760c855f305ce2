//! MoCo-v3: the queries of both views of an image are to find the keys of the other view among those of
//! all images of the batch. There is no queue; a predictor on the side of the queries and, for vision
//! transformers, a patch embedding that stays random make it stable.
//!
//! Source: Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (ICCV
//! 2021), algorithm 1.

use esvit_nn::layers::Affine;
use esvit_nn::ops::Precision;
use esvit_nn::params::{ParamSpec, Params, Part, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Tensor};
use esvit_settings::{SettingError, check, settings};

use super::config::{check_share, check_temperature, check_widths, saved_bytes};
use super::infonce::{self, Contrast, among, normalized};
use super::pairs::{by_view, first_pair, share, sum_over_pairs};
use super::{
    BatchStatistics, Chunking, Collapse, EmaTiming, GLOBAL_VIEWS, HeadMemory, Health, Loss,
    MicroBatch, Objective, ObjectiveSettings, Pass, Setup, StepInfo, Teacher, Views,
};
use crate::schedule::CosineSchedule;

settings! {
    /// Settings of MoCo-v3. Images of a step are compared with all others of it, however it is cut into
    /// micro-batches; these go through the backbone twice.
    pub struct MocoV3Config {
        /// Temperature of the softmax over keys: 0.2 for vision transformers, 1 for ResNet-50.
        pub temperature: f64 = 0.2,
        /// EMA momentum of the key's encoder at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.99,
        /// Linear layers of the projector: 3 for vision transformers, 2 for ResNet-50.
        pub projector_layers: usize = 3,
        /// Ends the predictor with batch normalization, as for vision transformers; that of ResNet-50
        /// has none.
        pub predictor_norm: bool = true,
        /// Leaves the patch embedding of a transformer as it starts, which prevents dips of its
        /// accuracy.
        pub freeze_patch_embed: bool = true,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 4096,
        /// Width of queries and keys.
        pub out_dim: usize = 256,
    }
}

impl ObjectiveSettings for MocoV3Config {
    fn describe(&self) -> String {
        "MoCo-v3, among the images of a batch".into()
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        let layers = self.projector_layers;
        check((1..=16).contains(&layers), "projector_layers", layers, "it must be from 1 to 16")?;
        check_temperature("temperature", self.temperature)?;
        check_share("momentum_teacher", self.momentum_teacher)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(MocoV3::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let layers = self.projector_layers as f64 + 1.0;
        // Inputs of layers, norms and ReLUs.
        let saved = (width + layers * 3.0 * hidden + 4.0 * out) * saved_bytes(precision);
        HeadMemory { saved, ..HeadMemory::default() }
    }

    fn less_memory(&self) -> Option<&'static str> {
        Some("narrower heads (`objective.hidden_dim`)")
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}

/// The objective of a run.
#[derive(Debug)]
pub struct MocoV3 {
    /// Its settings.
    pub config: MocoV3Config,
    /// The projector `head`, of both networks.
    pub projector: Projection,
    /// The predictor, of the student alone.
    pub predictor: Projection,
    /// Images of a step.
    images: usize,
    /// Keys of all processes for each global view, `[N, D]`.
    keys: Vec<Tensor>,
    health: Option<Health>,
}

impl MocoV3 {
    /// Registers projector and predictor.
    pub fn new(config: &MocoV3Config, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        Self {
            config: config.clone(),
            projector: projector(scope, setup.width, config),
            predictor: predictor(scope, config),
            images: setup.images,
            keys: Vec::new(),
            health: None,
        }
    }

    /// EMA momentum of the key's encoder: it grows to 1.
    pub fn momentum(&self, at: &StepInfo) -> f64 {
        CosineSchedule::new(self.config.momentum_teacher, 1.0, at.run.total_steps).at(at.step)
    }
}

/// `head`: linear layers without bias, each with batch normalization, ReLU between them; the last norm
/// learns nothing. Numbers are those in the official sequence.
fn projector(scope: &mut Scope<'_>, width: usize, config: &MocoV3Config) -> Projection {
    let mut head = scope.head("head");
    let mut layers = Projection::new(width, Start::Uniform);
    for layer in 1..config.projector_layers {
        let at = 3 * (layer - 1);
        layers = layers
            .linear_without_bias(&mut head.at(at), config.hidden_dim)
            .norm(&mut head.at(at + 1), Affine::Full)
            .relu();
    }
    let at = 3 * (config.projector_layers - 1);
    layers
        .linear_without_bias(&mut head.at(at), config.out_dim)
        .norm(&mut head.at(at + 1), Affine::Off)
}

/// `predictor`: two layers likewise.
fn predictor(scope: &mut Scope<'_>, config: &MocoV3Config) -> Projection {
    let mut predictor = scope.student_head("predictor");
    let layers = Projection::new(config.out_dim, Start::Uniform)
        .linear_without_bias(&mut predictor.at("0"), config.hidden_dim)
        .norm(&mut predictor.at("1"), Affine::Full)
        .relu()
        .linear_without_bias(&mut predictor.at("3"), config.out_dim);
    match config.predictor_norm {
        true => layers.norm(&mut predictor.at("4"), Affine::Off),
        false => layers,
    }
}

impl Objective for MocoV3 {
    /// All keys are as near: twice `2 T ln N`.
    fn chance_loss(&self) -> f64 {
        4.0 * self.config.temperature * (self.images.max(1) as f64).ln()
    }

    fn teacher(&self, at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::BeforeForward, momentum: self.momentum(at) }
    }

    fn batch_statistics(&self) -> BatchStatistics {
        BatchStatistics::PerView
    }

    fn evaluates_student(&self) -> bool {
        true
    }

    fn compares_images(&self) -> bool {
        true
    }

    fn is_fixed(&self, spec: &ParamSpec) -> bool {
        // Not the norm behind it.
        let is_patches = spec.name.starts_with("patch_embed.proj.");
        self.config.freeze_patch_embed && spec.part == Part::Embedding && is_patches
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.health = None;
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
        let keys = self.projector.forward(params, features.view, &[batch; GLOBAL_VIEWS], ctx);
        let keys = normalized(keys);
        let keys = by_view(&keys, batch).into_iter();
        self.keys = keys.map(|keys| collective.all_gather(keys)).collect();
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let runs = vec![batch; views.at_hand.len()];
        let projections = self.projector.forward(params, features.view, &runs, ctx);
        let queries = normalized(self.predictor.forward(params, projections, &runs, ctx));
        // Keys of this process's images.
        let own = collective.rank() * batch;
        if at.health && self.health.is_none() {
            let (rows, other) = first_pair(&queries, &views);
            let contrast = Contrast::among(&rows, &self.keys[other], own);
            self.health = Some(infonce::health(&queries, Some(contrast)));
        }
        loss(&queries, &self.keys, own, &views, self.config.temperature)
    }

    fn end_micro_batch(&mut self) {
        self.keys.clear();
    }

    fn schedule(&self, at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.momentum(at))]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// The loss of queries of views, `[views * B, D]`, against keys of every global view, `[N, D]`, of which
/// this process's begin at `own`; all of unit length. It is `2 T` times the cross-entropy, summed over
/// both directions.
pub fn loss(
    queries: &Tensor,
    keys: &[Tensor],
    own: usize,
    views: &Views,
    temperature: f64,
) -> Loss {
    let weight = 2.0 * temperature * share(views.total);
    let sum = sum_over_pairs(queries, views, weight, |rows, other| {
        among(&rows, &keys[other], own, temperature)
    });
    Loss::single("contrast", sum)
}
