//! EsViT: the view task L_V of DINO and the region task L_R, towards an EMA teacher.
//!
//! Both are cross-entropies of the student to the teacher's distributions over prototypes; they
//! differ in which rows are paired. This module and [`super::regions`] list the pairs, and
//! [`ops::prototype_cross_entropy`] sums over them.
//!
//! The paper's variants of the region task are settings of it, [`RegionConfig`].

mod centers;
mod config;
mod health;
mod tokens;
mod view;

pub use centers::Centers;
pub(crate) use centers::follow_means;
pub use config::{EsvitConfig, NamedWeights, RegionConfig, RegionLoss, Weights};
pub use health::{CONSTANT, UNIFORM, examine};

use esvit_kernels::profile;
use esvit_nn::backbone::RowFeatures;
use esvit_nn::esvit_heads::{EsvitHeads, Predictions, RegionPredictions};
use esvit_nn::ops::{self, Precision, TeacherRows};
use esvit_nn::params::{ParamId, Params, Scope};
use esvit_nn::{Collective, Tensor};

use super::regions::{self, Matching, Regions};
use super::{
    EmaTiming, GLOBAL_VIEWS, Health, Loss, LossPart, MicroBatch, Objective, Pass, Setup,
    StateTensor, StepInfo, Teacher, Views,
};
use crate::mixup;
use crate::schedule::{CosineSchedule, TemperatureSchedule};
use crate::span::Span;

const CENTER: &str = "center";
const CENTER_GRID: &str = "center_grid";

/// The objective of a run.
#[derive(Debug)]
pub struct Esvit {
    /// Its settings.
    pub config: EsvitConfig,
    /// The heads of both tasks.
    pub heads: EsvitHeads,
    /// The centers of the teacher's logits.
    pub centers: Centers,
    /// The type of GEMM operands.
    pub precision: Precision,
    seed: u64,
    /// The numbers of the images of the micro-batch at hand.
    samples: Vec<u64>,
    /// The teacher's predictions for that micro-batch.
    teacher: Option<Predictions>,
    /// What the student's images of that micro-batch are mixed of.
    mixing: Option<Vec<Vec<f32>>>,
    health: Option<Health>,
}

impl Esvit {
    /// Registers the heads; centers are zero.
    pub fn new(config: &EsvitConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let heads = EsvitHeads::new(scope, setup.width, &config.head, config.region.enabled);
        let centers = Centers::zeros(heads.prototypes(), heads.has_region(), &setup.device);
        Self {
            config: config.clone(),
            heads,
            centers,
            precision: setup.precision,
            seed: setup.seed,
            samples: Vec::new(),
            teacher: None,
            mixing: None,
            health: None,
        }
    }

    /// The teacher's temperature in a step: constant within an epoch, as in the official code, if its
    /// warm-up is given in whole epochs.
    pub fn teacher_temp(&self, at: &StepInfo) -> f64 {
        let EsvitConfig { warmup_teacher_temp, teacher_temp, teacher_temp_warmup, .. } =
            self.config;
        let (length, place) = match teacher_temp_warmup {
            Span::Epochs(epochs) if epochs.fract() == 0.0 => (epochs as u64, at.epoch),
            span => (span.steps(at.run), at.step),
        };
        TemperatureSchedule { warmup: warmup_teacher_temp, last: teacher_temp, length }.at(place)
    }

    /// EMA momentum of the teacher: it grows to 1.
    pub fn momentum(&self, at: &StepInfo) -> f64 {
        CosineSchedule::new(self.config.momentum_teacher, 1.0, at.run.total_steps).at(at.step)
    }

    /// The features of views from `first` on, with the tokens that take part in the region task.
    fn with_some_tokens(&self, features: RowFeatures, first: usize, at: &StepInfo) -> RowFeatures {
        let RegionConfig { enabled, tokens, .. } = self.config.region;
        if !enabled || tokens == 0 {
            return features;
        }
        tokens::sampled(features, tokens, (self.seed, at.step), first, &self.samples)
    }
}

impl Objective for Esvit {
    fn chance_loss(&self) -> f64 {
        let (view, region) = self.config.weights.factors(self.heads.has_region());
        let region = if self.heads.has_region() { region } else { 0.0 };
        let over_prototypes = (self.heads.prototypes() as f64).ln();
        let of_region = match self.config.region.loss {
            RegionLoss::CrossEntropy => over_prototypes,
            // Rows in directions that have nothing in common.
            RegionLoss::Mse => 2.0,
        };
        view * over_prototypes + region * of_region
    }

    fn teacher(&self, at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::AfterStep, momentum: self.momentum(at) }
    }

    fn frozen(&self, at: &StepInfo) -> Vec<ParamId> {
        let is_frozen = at.is_within(self.config.freeze_last_layer);
        if is_frozen { self.heads.last_layers() } else { Vec::new() }
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.centers.forget();
        self.health = None;
    }

    fn targets(
        &mut self,
        micro_batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
        self.samples = micro_batch.numbers();
        let features = self.with_some_tokens(features, 0, at);
        let teacher = self.heads.forward(params, features, batch, ctx);
        profile::time("centers", 0, || self.centers.observe(&teacher));
        if at.health && self.health.is_none() {
            let temperature = self.teacher_temp(at);
            self.health = Some(examine(&teacher, &self.centers, temperature));
        }
        self.teacher = Some(teacher);
    }

    fn student_views(&mut self, batch: &MicroBatch, place: [u64; 2]) -> Vec<Tensor> {
        if !self.config.mixup.enabled {
            return batch.views.clone();
        }
        let (views, mixing) = mixup::mix(&batch.views, &self.config.mixup, self.seed, place);
        self.mixing = Some(mixing);
        views
    }

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let features = self.with_some_tokens(features, views.at_hand.start, at);
        let student = self.heads.forward(params, features, batch, ctx);
        let settings = LossSettings {
            student_temp: self.config.student_temp,
            teacher_temp: self.teacher_temp(at),
            weights: self.config.weights,
            matching: self.config.region.r#match,
            region_loss: self.config.region.loss,
            precision: self.precision,
        };
        let teacher = self.teacher.as_ref().expect("targets come first");
        loss(&student, teacher, &views, &self.centers, &settings, self.mixing.as_deref())
    }

    fn end_micro_batch(&mut self) {
        (self.teacher, self.mixing) = (None, None);
        self.samples.clear();
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        self.centers.update(self.config.center_momentum, collective);
    }

    fn state(&self) -> Vec<StateTensor> {
        let centers =
            [(CENTER, Some(&self.centers.view)), (CENTER_GRID, self.centers.region.as_ref())];
        let centers = centers.into_iter().filter_map(|(name, value)| {
            let value = value?.clone();
            Some(StateTensor { name, shape: vec![1, value.numel()], value })
        });
        centers.collect()
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        match name {
            CENTER => self.centers.view = value,
            _ => self.centers.region = Some(value),
        }
    }

    fn schedule(&self, at: &StepInfo) -> Vec<(&'static str, f64)> {
        vec![("momentum", self.momentum(at)), ("teacher_temp", self.teacher_temp(at))]
    }

    fn health(&self) -> Option<Health> {
        self.health.clone()
    }
}

/// Temperatures and weights of one evaluation of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSettings {
    /// The student's temperature.
    pub student_temp: f64,
    /// The teacher's temperature in this epoch.
    pub teacher_temp: f64,
    /// Weights of the tasks.
    pub weights: Weights,
    /// What a region learns from.
    pub matching: Matching,
    /// How far a region is from that.
    pub region_loss: RegionLoss,
    /// The type of GEMM operands.
    pub precision: Precision,
}

/// The loss of the student on some views against the teacher on the global ones, in the parts
/// `view` and, with the region task, `region`.
///
/// `mixing` has the matrices `[B, B]` of [`crate::mixup::mix`] for all views; None without mixup.
/// View task only.
pub fn loss(
    student: &Predictions,
    teacher: &Predictions,
    views: &Views,
    centers: &Centers,
    settings: &LossSettings,
    mixing: Option<&[Vec<f32>]>,
) -> Loss {
    let batch = teacher.view_logits.rows() / GLOBAL_VIEWS;
    // Every teacher view is paired with every other view.
    let pair_count = (GLOBAL_VIEWS * (views.total - 1)) as f64;
    let first_crop = views.at_hand.start;
    let temperatures = [settings.student_temp, settings.teacher_temp];
    let precision = settings.precision;

    let weight = (1.0 / (batch as f64 * pair_count)) as f32;
    let view = view::pairs(batch, views.at_hand.clone(), mixing, weight);
    let view = ops::prototype_cross_entropy(
        student.view_logits.clone(),
        teacher.view_logits.clone(),
        centers.view.clone(),
        TeacherRows::new(&view, &centers.view.device()),
        temperatures,
        precision,
    );

    let region = match (&student.region, &teacher.region, &centers.region) {
        (Some(student), Some(teacher), Some(center)) => {
            let pairs = profile::time("region matches", 0, || {
                let [of_student, of_teacher] = [student, teacher].map(matched);
                let matching = settings.matching;
                regions::pairs(&of_student, &of_teacher, batch, first_crop, pair_count, matching)
            });
            let (student, teacher) = (student.logits.clone(), teacher.logits.clone());
            Some(match settings.region_loss {
                RegionLoss::CrossEntropy => ops::prototype_cross_entropy(
                    student,
                    teacher,
                    center.clone(),
                    pairs,
                    temperatures,
                    precision,
                ),
                RegionLoss::Mse => ops::paired_distance(student.z, teacher.z, pairs),
            })
        }
        _ => None,
    };

    let (view_weight, region_weight) = settings.weights.factors(region.is_some());
    let mut parts = vec![LossPart { name: "view", value: view, weight: view_weight }];
    parts.extend(region.map(|value| LossPart { name: "region", value, weight: region_weight }));
    Loss { parts }
}

/// What regions are matched by.
fn matched(predictions: &RegionPredictions) -> Regions {
    Regions { features: predictions.features.clone(), tokens: predictions.tokens.clone() }
}
