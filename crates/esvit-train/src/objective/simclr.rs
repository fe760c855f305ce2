//! SimCLR: the two views of an image are to find each other among those of all other images of the batch
//! (NT-Xent). There is no teacher: all embeddings of a step are the student's, and all get a gradient.
//!
//! Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML
//! 2020), algorithm 1; Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners"
//! (NeurIPS 2020), whose head has three layers.

use esvit_nn::layers::Affine;
use esvit_nn::ops::Precision;
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, ForwardCtx, Tensor};
use esvit_settings::{SettingError, check, settings};

use super::config::{check_temperature, check_widths, saved_bytes};
use super::infonce::{self, Contrast, hiding, own_columns, unit_rows};
use super::pairs::rows_of_view;
use super::{
    Chunking, Collapse, GLOBAL_VIEWS, HeadMemory, Health, Loss, MicroBatch, Objective,
    ObjectiveSettings, Pass, Setup, StepInfo, Teacher,
};

settings! {
    /// Settings of SimCLR. Images of a step are compared with all others of it, however it is cut into
    /// micro-batches; these go through the backbone twice.
    pub struct SimClrConfig {
        /// Temperature of the softmax over views: 0.1 on ImageNet, 0.5 on CIFAR-10.
        pub temperature: f64 = 0.1,
        /// Layers of the head: 2 in the first version, 3 in the second. Hidden ones are as wide as the
        /// features.
        pub head_layers: usize = 3,
        /// Width of the embeddings.
        pub out_dim: usize = 128,
    }
}

impl ObjectiveSettings for SimClrConfig {
    fn describe(&self) -> String {
        format!("SimCLR with a head of {} layers", self.head_layers)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("out_dim", self.out_dim)])?;
        let layers = self.head_layers;
        check((1..=16).contains(&layers), "head_layers", layers, "it must be from 1 to 16")?;
        check_temperature("temperature", self.temperature)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(SimClr::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let layers = self.head_layers as f64;
        let saved = (layers * 3.0 * width + 3.0 * self.out_dim as f64) * saved_bytes(precision);
        HeadMemory { saved, ..HeadMemory::default() }
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}

/// Standard deviation of the weights at the start.
const WEIGHT_STD: f64 = 0.01;

/// Entropy of the softmax of the first views over the second ones, in nats.
const CONTRAST_ENTROPY: &str = "contrast_entropy";

/// The objective of a run.
#[derive(Debug)]
pub struct SimClr {
    /// Its settings.
    pub config: SimClrConfig,
    /// The head `head_contrastive`.
    pub head: Head,
    /// Images of a step.
    images: usize,
    health: Option<Health>,
}

/// The projection head, layer by layer: features for fine-tuning may be those of any of them.
#[derive(Debug, Clone)]
pub struct Head {
    layers: Vec<Projection>,
}

impl Head {
    /// Registers `nl_0`, `nl_1`, ... Every layer is a linear one without bias and batch normalization,
    /// which has a shift where a ReLU follows: all but the last.
    pub fn new(scope: &mut Scope<'_>, width: usize, layers: usize, outputs: usize) -> Self {
        let layer = |index: usize| {
            let is_last = index + 1 == layers;
            let (outputs, affine) =
                if is_last { (outputs, Affine::Gain) } else { (width, Affine::Full) };
            let mut scope = scope.at(format_args!("nl_{index}"));
            let layer = Projection::new(width, Start::Normal(WEIGHT_STD))
                .linear_without_bias(&mut scope.at("dense"), outputs)
                .norm(&mut scope.at("batch_normalization"), affine);
            if is_last { layer } else { layer.relu() }
        };
        Self { layers: (0..layers).map(layer).collect() }
    }

    /// The results of all layers for features `[rows, C]`, whose rows are normalized together.
    pub fn forward(&self, params: &Params, features: Tensor, ctx: &ForwardCtx) -> Vec<Tensor> {
        let rows = [features.shape()[0]];
        let mut results: Vec<Tensor> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let input = results.last().unwrap_or(&features).clone();
            results.push(layer.forward(params, input, &rows, ctx));
        }
        results
    }
}

impl SimClr {
    /// Registers the head.
    pub fn new(config: &SimClrConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let mut own = scope.head("head_contrastive");
        let head = Head::new(&mut own, setup.width, config.head_layers, config.out_dim);
        Self { config: config.clone(), head, images: setup.images, health: None }
    }
}

impl Objective for SimClr {
    /// All other views are as near, to both views.
    fn chance_loss(&self) -> f64 {
        2.0 * (2.0 * self.images.max(1) as f64 - 1.0).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::None
    }

    fn compares_images(&self) -> bool {
        true
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.health = None;
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        _teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
    }

    fn student_views(&mut self, batch: &MicroBatch, _place: [u64; 2]) -> Vec<Tensor> {
        batch.views[..GLOBAL_VIEWS].to_vec()
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, .. } = student;
        let hidden = self.head.forward(params, features.view, ctx).pop();
        let hidden = hidden.expect("a head has a layer");
        let NtXent { loss, logits_ab } = nt_xent(&hidden, self.config.temperature, collective);
        if at.health && self.health.is_none() {
            self.health = Some(health(&hidden, logits_ab, collective));
        }
        Loss::single("contrast", loss)
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// A loss of embeddings.
#[derive(Debug, Clone)]
pub struct NtXent {
    /// The loss, `[1]`.
    pub loss: Tensor,
    /// Logits of first views over the second ones of all processes, `[B, N]`.
    pub logits_ab: Tensor,
}

/// The normalized, temperature-scaled cross-entropy of embeddings `[2 B, D]`, those of all first views
/// and then those of the second ones: for every view, its partner among the views of all processes but
/// itself. It is the sum of the means of both sides, so twice the mean over all views.
pub fn nt_xent(hidden: &Tensor, temperature: f64, collective: &dyn Collective) -> NtXent {
    let unit = unit_rows(hidden.clone());
    let batch = unit.shape()[0] / GLOBAL_VIEWS;
    let [a, b] = [0, 1].map(|view| rows_of_view(&unit, view, batch));
    let [all_a, all_b] = [&a, &b].map(|rows| collective.all_gather_grad(rows.clone()));
    let first = collective.rank() * batch;
    let own = own_columns(first, batch);
    let not_itself = hiding(&own, all_a.shape()[0], &hidden.device());
    let logits = |rows: &Tensor, others: &Tensor| {
        rows.clone().matmul(others.clone().transpose()) / temperature
    };
    let side = |rows: &Tensor, same: &Tensor, other: Tensor| {
        let same = logits(rows, same) + not_itself.clone();
        -Tensor::cat(vec![other, same], 1).log_softmax(1).pick(&own).mean()
    };
    let logits_ab = logits(&a, &all_b);
    let loss = side(&a, &all_a, logits_ab.clone()) + side(&b, &all_b, logits(&b, &all_a));
    NtXent { loss, logits_ab: logits_ab.detach() }
}

/// Mean entropy of the softmax of rows, in nats.
pub fn entropy(logits: &Tensor) -> f64 {
    let log = logits.clone().log_softmax(1);
    -f64::from((log.clone().exp() * log).sum_dim(1).mean().item())
}

fn health(hidden: &Tensor, logits_ab: Tensor, collective: &dyn Collective) -> Health {
    let unit = unit_rows(hidden.clone().detach());
    let batch = unit.shape()[0] / GLOBAL_VIEWS;
    let [a, b] = [0, 1].map(|view| rows_of_view(&unit, view, batch));
    let all_b = collective.all_gather(b);
    let contrast = Contrast::among(&a, &all_b, collective.rank() * batch);
    let mut health = infonce::health(&unit, Some(contrast));
    health.signals.push((CONTRAST_ENTROPY, entropy(&logits_ab)));
    health
}
