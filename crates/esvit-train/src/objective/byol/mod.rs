//! BYOL: both views of an image predict a slow network's projection of the other view. There are no
//! negatives: the predictor and the slow network keep outputs from becoming all the same.
//!
//! Source: Grill et al., "Bootstrap Your Own Latent" (NeurIPS 2020), section 3.1. The official target
//! starts from values of its own; here it starts as a copy, which its authors found to be as good.

mod config;
pub mod region;

use esvit_nn::layers::Affine;
use esvit_nn::params::{Params, Scope};
use esvit_nn::projection::{Projection, Start};
use esvit_nn::{Collective, Tensor};

pub use config::{ByolConfig, ByolRegionConfig, ByolRegionLoss};

use super::infonce::{self, EMBEDDING_STD, POSITIVE_SIMILARITY, unit_rows};
use super::pairs::{by_view, others, rows_of_view, share, sum_over_pairs};
use super::{
    BatchStatistics, EmaTiming, GLOBAL_VIEWS, Health, Loss, LossPart, MicroBatch, Objective, Pass,
    Setup, StateTensor, StepInfo, Teacher, Views,
};
use crate::schedule::CosineSchedule;
use region::RegionTerm;

/// The objective of a run.
#[derive(Debug)]
pub struct Byol {
    /// Its settings.
    pub config: ByolConfig,
    /// The projector, of both networks.
    pub projector: Projection,
    /// The predictor, of the student alone.
    pub predictor: Projection,
    /// EsViT's region term, if there is one.
    pub region: Option<RegionTerm>,
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
            region: RegionTerm::new(config, scope, setup),
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
        4.0 + self.region.as_ref().map_or(0.0, RegionTerm::chance_loss)
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

    fn compares_regions(&self) -> bool {
        self.region.is_some()
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.health = None;
        if let Some(region) = &mut self.region {
            region.begin_step();
        }
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let teacher = teacher.expect("an EMA teacher");
        if let Some(region) = &mut self.region {
            region.targets(&teacher);
        }
        let Pass { params, features, ctx, batch, .. } = teacher;
        let found = self.projector.forward(params, features.view, &[batch; GLOBAL_VIEWS], ctx);
        self.targets = by_view(&found, batch);
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let of_region = self.region.as_ref().map(|region| region.loss(&student));
        let Pass { params, features, ctx, views, batch } = student;
        let runs = vec![batch; views.at_hand.len()];
        let projections = self.projector.forward(params, features.view, &runs, ctx);
        let predictions = self.predictor.forward(params, projections, &runs, ctx);
        if at.health && self.health.is_none() {
            let other = others(views.at_hand.start).next().expect("there are two global views");
            self.health = Some(health(&predictions, &self.targets[other], batch));
        }
        let mut loss = loss(&predictions, &self.targets, &views);
        let part = |value| LossPart { name: "region", value, weight: 1.0 };
        loss.parts.extend(of_region.map(part));
        loss
    }

    fn end_micro_batch(&mut self) {
        self.targets.clear();
        if let Some(region) = &mut self.region {
            region.end_micro_batch();
        }
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        if let Some(region) = &mut self.region {
            region.commit(collective);
        }
    }

    fn state(&self) -> Vec<StateTensor> {
        self.region.iter().filter_map(RegionTerm::state).collect()
    }

    fn set_state(&mut self, _name: &str, value: Tensor) {
        if let Some(region) = &mut self.region {
            region.set_center(value);
        }
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
