//! EsViT: the view task L_V of DINO and the region task L_R, towards an EMA teacher.
//!
//! Both are cross-entropies of the student to the teacher's distributions over prototypes; they
//! differ in which rows are paired. This module lists the pairs, and
//! [`ops::prototype_cross_entropy`] sums over them.

mod centers;
mod config;
mod health;
mod region;
mod view;

pub use centers::Centers;
pub use config::{EsvitConfig, NamedWeights, Weights};
pub use health::{CONSTANT, UNIFORM, examine};

use esvit_kernels::profile;
use esvit_nn::esvit_heads::{EsvitHeads, Predictions};
use esvit_nn::ops::{self, Precision, TeacherRows};
use esvit_nn::params::{ParamId, Params, Scope};
use esvit_nn::{Collective, Tensor};

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
    /// The teacher's predictions for the micro-batch at hand.
    teacher: Option<Predictions>,
    /// What the student's images of that micro-batch are mixed of.
    mixing: Option<Vec<Vec<f32>>>,
    health: Option<Health>,
}

impl Esvit {
    /// Registers the heads; centers are zero.
    pub fn new(config: &EsvitConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let heads = EsvitHeads::new(scope, setup.width, &config.head, config.region);
        let centers = Centers::zeros(heads.prototypes(), heads.has_region(), &setup.device);
        Self {
            config: config.clone(),
            heads,
            centers,
            precision: setup.precision,
            seed: setup.seed,
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
}

impl Objective for Esvit {
    fn chance_loss(&self) -> f64 {
        let (view, region) = self.config.weights.factors(self.heads.has_region());
        let region = if self.heads.has_region() { region } else { 0.0 };
        (view + region) * (self.heads.prototypes() as f64).ln()
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
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
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
        let student = self.heads.forward(params, features, batch, ctx);
        let settings = LossSettings {
            student_temp: self.config.student_temp,
            teacher_temp: self.teacher_temp(at),
            weights: self.config.weights,
            precision: self.precision,
        };
        let teacher = self.teacher.as_ref().expect("targets come first");
        loss(&student, teacher, &views, &self.centers, &settings, self.mixing.as_deref())
    }

    fn end_micro_batch(&mut self) {
        (self.teacher, self.mixing) = (None, None);
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
        (Some(student), Some(teacher), Some(center)) => Some(ops::prototype_cross_entropy(
            student.logits.clone(),
            teacher.logits.clone(),
            center.clone(),
            profile::time("region matches", 0, || {
                region::pairs(student, teacher, batch, first_crop, pair_count)
            }),
            temperatures,
            precision,
        )),
        _ => None,
    };

    let (view_weight, region_weight) = settings.weights.factors(region.is_some());
    let mut parts = vec![LossPart { name: "view", value: view, weight: view_weight }];
    parts.extend(region.map(|value| LossPart { name: "region", value, weight: region_weight }));
    Loss { parts }
}
