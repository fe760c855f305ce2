//! BYOL: both views of an image predict a slow network's projection of the other view. There are no
//! negatives: the predictor and the slow network keep outputs from becoming all the same.
//!
//! Source: Grill et al., "Bootstrap Your Own Latent" (NeurIPS 2020), section 3.1. The official target
//! starts from values of its own; here it starts as a copy, which its authors found to be as good.

use esvit_nn::layers::Affine;
use esvit_nn::ops::Precision;
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Tensor};
use esvit_settings::{SettingError, settings};

use super::config::{check_share, check_widths, saved_bytes};
use super::infonce::{self, EMBEDDING_STD, POSITIVE_SIMILARITY, unit_rows};
use super::pairs::{by_view, others, rows_of_view, share, sum_over_pairs};
use super::{
    BatchStatistics, Chunking, Collapse, EmaTiming, GLOBAL_VIEWS, HeadMemory, Health, Loss,
    MicroBatch, Objective, ObjectiveSettings, Pass, Setup, StepInfo, Teacher, Views,
};
use crate::schedule::CosineSchedule;

settings! {
    /// Settings of BYOL. The heads normalize by all images of a step, however it is cut into
    /// micro-batches; these go through the backbone twice.
    pub struct ByolConfig {
        /// EMA momentum of the target network at the start; it grows to 1.
        pub momentum_teacher: f64 = 0.99,
        /// Width of the hidden layers.
        pub hidden_dim: usize = 4096,
        /// Width of projections and predictions.
        pub out_dim: usize = 256,
    }
}

impl ObjectiveSettings for ByolConfig {
    fn describe(&self) -> String {
        "BYOL".into()
    }

    fn validate(&self) -> Result<(), SettingError> {
        check_widths([("hidden_dim", self.hidden_dim), ("out_dim", self.out_dim)])?;
        check_share("momentum_teacher", self.momentum_teacher)
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Byol::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByImage
    }

    fn global_views(&self) -> u32 {
        2
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let [hidden, out] = [self.hidden_dim, self.out_dim].map(|width| width as f64);
        let saved = (width + 6.0 * hidden + 3.0 * out) * saved_bytes(precision);
        HeadMemory { saved, ..HeadMemory::default() }
    }

    fn collapse(&self, signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
        infonce::collapse(signal)
    }
}

/// The objective of a run.
#[derive(Debug)]
pub struct Byol {
    /// Its settings.
    pub config: ByolConfig,
    /// The projector, of both networks.
    pub projector: Projection,
    /// The predictor, of the student alone.
    pub predictor: Projection,
    /// The target network's projections for each global view, `[B, D]`.
    targets: Vec<Tensor>,
    health: Option<Health>,
}

impl Byol {
    /// Registers projector and predictor.
    pub fn new(config: &ByolConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let sizes = [config.hidden_dim, config.out_dim];
        Self {
            config: config.clone(),
            projector: mlp(&mut scope.head("projector"), setup.width, sizes),
            predictor: mlp(&mut scope.student_head("predictor"), config.out_dim, sizes),
            targets: Vec::new(),
            health: None,
        }
    }

    /// EMA momentum of the target network: it grows to 1.
    pub fn momentum(&self, at: &StepInfo) -> f64 {
        CosineSchedule::new(self.config.momentum_teacher, 1.0, at.run.total_steps).at(at.step)
    }
}

/// A linear layer, batch normalization, ReLU, and a linear layer without bias.
fn mlp(scope: &mut Scope<'_>, inputs: usize, [hidden, outputs]: [usize; 2]) -> Projection {
    Projection::new(inputs, Start::Scaled(1.0))
        .linear(&mut scope.at("0"), hidden)
        .norm(&mut scope.at("1"), Affine::Full)
        .relu()
        .linear_without_bias(&mut scope.at("3"), outputs)
}

impl Objective for Byol {
    /// Predictions are orthogonal to their targets.
    fn chance_loss(&self) -> f64 {
        4.0
    }

    fn teacher(&self, at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::AfterStep, momentum: self.momentum(at) }
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

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.health = None;
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
        let found = self.projector.forward(params, features.view, &[batch; GLOBAL_VIEWS], ctx);
        self.targets = by_view(&found, batch);
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let runs = vec![batch; views.at_hand.len()];
        let projections = self.projector.forward(params, features.view, &runs, ctx);
        let predictions = self.predictor.forward(params, projections, &runs, ctx);
        if at.health && self.health.is_none() {
            let other = others(views.at_hand.start).next().expect("there are two global views");
            self.health = Some(health(&predictions, &self.targets[other], batch));
        }
        loss(&predictions, &self.targets, &views)
    }

    fn end_micro_batch(&mut self) {
        self.targets.clear();
    }

    fn schedule(&self, at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.momentum(at))]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// The loss of predictions of views, `[views * B, D]`, against the target network's projections `[B, D]`
/// of every global view: squared distances of unit rows, summed over the width and over both directions,
/// in the mean over images.
pub fn loss(predictions: &Tensor, targets: &[Tensor], views: &Views) -> Loss {
    let batch = predictions.shape()[0] / views.at_hand.len();
    let weight = share(views.total) / batch as f64;
    let predictions = unit_rows(predictions.clone());
    let sum = sum_over_pairs(&predictions, views, weight, |rows, other| {
        let targets = unit_rows(targets[other].clone().detach());
        (rows - targets).square().sum()
    });
    Loss::single("distance", sum)
}

/// Health of predictions, of which the first `batch` have these targets.
fn health(predictions: &Tensor, targets: &Tensor, batch: usize) -> Health {
    let predictions = predictions.clone().detach();
    let rows = unit_rows(rows_of_view(&predictions, 0, batch));
    let products = (rows * unit_rows(targets.clone().detach())).sum_dim(1);
    let similarity = f64::from(products.mean().item());
    let mut health = infonce::health(&predictions, None);
    let std = health.signal(EMBEDDING_STD).unwrap_or_default();
    health.signals.push((POSITIVE_SIMILARITY, similarity));
    health.summary = format!("similarity {similarity:.2} to the target, embedding std {std:.2}");
    health
}
