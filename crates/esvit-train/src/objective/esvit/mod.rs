//! EsViT: the view task L_V of DINO and the region task L_R, towards an EMA teacher.
//!
//! Both are cross-entropies of the student to the teacher's distributions over prototypes; they
//! differ in which rows are paired. `view.rs` and [`super::regions`] list the pairs, and [`loss()`] sums over
//! them by [`prototype_cross_entropy`](esvit_nn::ops::prototype_cross_entropy).
//!
//! The paper's variants of the region task are settings of it, [`RegionConfig`]. Beside both tasks there
//! may be the terms of DINOv2: masked patch prediction (`patches.rs`), KoLeo (`koleo.rs`), and targets that
//! are balanced by Sinkhorn's iteration.

mod centers;
mod config;
mod health;
mod koleo;
mod loss;
mod masks;
mod patches;
mod tokens;
mod view;

pub use centers::Centers;
pub(crate) use centers::follow_means;
pub use config::{
    Centering, EsvitConfig, NamedWeights, PatchesConfig, RegionConfig, RegionLoss, Weights,
};
pub use health::{CONSTANT, UNIFORM, examine};
pub use koleo::koleo;
pub use loss::{LossSettings, loss};
pub use masks::Masks;
pub use patches::Patches;

use std::ops::Range;

use esvit_kernels::profile;
use esvit_nn::backbone::{RowFeatures, TokenMask};
use esvit_nn::esvit_heads::{EsvitHeads, Predictions};
use esvit_nn::forward_ctx::StepPart;
use esvit_nn::ops::Precision;
use esvit_nn::params::{ParamId, ParamSpec, Params, Scope};
use esvit_nn::{Collective, Tensor};

use self::patches::HeadPass;
use super::pairs::rows_of_view;
use super::sinkhorn::balancing_center;
use super::{
    EmaTiming, GLOBAL_VIEWS, Health, Loss, LossPart, MicroBatch, Objective, Pass, Setup,
    StateTensor, StepInfo, Teacher,
};
use crate::mixup;
use crate::schedule::{CosineSchedule, TemperatureSchedule};
use crate::span::Span;

const CENTER: &str = "center";
const CENTER_GRID: &str = "center_grid";
const CENTER_PATCH: &str = "center_patch";

/// The objective of a run.
#[derive(Debug)]
pub struct Esvit {
    /// Its settings.
    pub config: EsvitConfig,
    /// The heads of both tasks.
    pub heads: EsvitHeads,
    /// The centers of the teacher's logits.
    pub centers: Centers,
    /// Masked patch prediction, if it is trained.
    pub patches: Option<Patches>,
    /// Factor of the learning rate of the patch embedding.
    pub patch_embed_lr: f64,
    /// The type of GEMM operands.
    pub precision: Precision,
    seed: u64,
    /// The numbers of the images of the micro-batch at hand.
    samples: Vec<u64>,
    /// The teacher's predictions for that micro-batch.
    teacher: Option<Predictions>,
    /// What balances those for views, if that is not the running mean.
    balance: Option<Tensor>,
    /// What the student's images of that micro-batch are mixed of.
    mixing: Option<Vec<Vec<f32>>>,
    health: Option<Health>,
}

impl Esvit {
    /// Registers the heads; centers are zero.
    pub fn new(config: &EsvitConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let heads = EsvitHeads::new(scope, setup.width, &config.head, config.region.enabled);
        let centers = Centers::zeros(heads.prototypes(), heads.has_region(), &setup.device);
        let patches = config.patches.is_on().then(|| Patches::new(scope, config, setup));
        Self {
            config: config.clone(),
            heads,
            centers,
            patches,
            patch_embed_lr: 1.0,
            precision: setup.precision,
            seed: setup.seed,
            samples: Vec::new(),
            teacher: None,
            balance: None,
            mixing: None,
            health: None,
        }
    }

    /// Centers of the targets of the micro-batch at hand.
    fn centers_at_hand(&self) -> Centers {
        let view = self.balance.as_ref().unwrap_or(&self.centers.view);
        Centers::new(view.clone(), self.centers.region.clone())
    }

    /// Temperature and number of iterations, if targets are balanced by Sinkhorn's.
    fn balanced(&self, at: &StepInfo) -> Option<(f64, usize)> {
        let is_balanced = self.config.centering == Centering::Sinkhorn;
        is_balanced.then(|| (self.teacher_temp(at), self.config.sinkhorn_iterations))
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
        let patches = self.patches.as_ref().map_or(0.0, Patches::weight);
        (view + patches) * over_prototypes + region * of_region
    }

    fn compares_images(&self) -> bool {
        self.config.compares_images()
    }

    fn compares_regions(&self) -> bool {
        self.config.compares_regions()
    }

    fn lr_scale(&self, spec: &ParamSpec) -> f64 {
        if spec.name.starts_with("patch_embed.") { self.patch_embed_lr } else { 1.0 }
    }

    fn teacher(&self, at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::AfterStep, momentum: self.momentum(at) }
    }

    fn frozen(&self, at: &StepInfo) -> Vec<ParamId> {
        if !at.is_within(self.config.freeze_last_layer) {
            return Vec::new();
        }
        let of_patches = self.patches.iter().flat_map(Patches::last_layer);
        self.heads.last_layers().into_iter().chain(of_patches).collect()
    }

    fn begin_step(&mut self, _student: &mut Params, _at: &StepInfo) {
        self.centers.forget();
        self.patches.iter_mut().for_each(Patches::forget);
        self.health = None;
    }

    fn begin_micro_batch(&mut self, batch: &MicroBatch, at: &StepInfo, part: &StepPart) {
        self.patches.iter_mut().for_each(|patches| patches.begin(batch, at.step, part));
    }

    fn token_mask(
        &self,
        params: &Params,
        views: Range<usize>,
        images: Range<usize>,
    ) -> Option<TokenMask> {
        self.patches.as_ref()?.token_mask(params, views, images)
    }

    fn targets(
        &mut self,
        micro_batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        at: &StepInfo,
        collective: &dyn Collective,
    ) {
        let Pass { params, features, ctx, batch, .. } = teacher.expect("an EMA teacher");
        // Patches are predicted whether or not they take part in the region task.
        let region = features.region.clone();
        self.samples = micro_batch.numbers();
        let features = self.with_some_tokens(features, 0, at);
        let teacher = self.heads.forward(params, features, batch, ctx);
        profile::time("centers", 0, || self.centers.observe(&teacher));
        let balanced = self.balanced(at);
        self.balance = balanced.map(|(temperature, iterations)| {
            let logits = teacher.view_logits.matrix();
            balancing_center(logits, temperature, iterations, collective)
        });
        if let Some(patches) = &mut self.patches {
            let pass = HeadPass { params, view_head: self.heads.view_head(), ctx };
            patches.observe(pass, &region, balanced, collective);
        }
        if at.health && self.health.is_none() {
            let temperature = self.teacher_temp(at);
            let mut health = examine(&teacher, &self.centers_at_hand(), temperature);
            if let Some(patches) = &self.patches {
                health.signals.extend(patches.signals(temperature));
            }
            self.health = Some(health);
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

    fn loss(&mut self, student: Pass<'_>, at: &StepInfo, collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        let (of_views, of_regions) = (features.view.clone(), features.region.clone());
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
        let (centers, mixing) = (self.centers_at_hand(), self.mixing.as_deref());
        let mut loss = loss(&student, teacher, &views, &centers, &settings, mixing);
        if let Some(patches) = &self.patches {
            let pass = HeadPass { params, view_head: self.heads.view_head(), ctx };
            let temperatures = [settings.student_temp, settings.teacher_temp];
            let value = patches.loss(pass, &of_regions, &views, temperatures, self.precision);
            loss.parts.push(LossPart { name: "patch", value, weight: patches.weight() });
        }
        if self.config.koleo > 0.0 {
            // Images are compared, so that all views are at hand.
            let of_view = |view| koleo(rows_of_view(&of_views, view, batch), collective);
            let value = (0..GLOBAL_VIEWS).map(of_view).reduce(|sum, value| sum + value);
            let value = value.expect("there are global views");
            loss.parts.push(LossPart { name: "koleo", value, weight: self.config.koleo });
        }
        loss
    }

    fn end_micro_batch(&mut self) {
        (self.teacher, self.balance, self.mixing) = (None, None, None);
        self.samples.clear();
        self.patches.iter_mut().for_each(Patches::end);
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        let momentum = self.config.center_momentum;
        self.centers.update(momentum, collective);
        self.patches.iter_mut().for_each(|patches| patches.commit(momentum, collective));
    }

    fn state(&self) -> Vec<StateTensor> {
        let centers = [
            (CENTER, Some(&self.centers.view)),
            (CENTER_GRID, self.centers.region.as_ref()),
            (CENTER_PATCH, self.patches.as_ref().map(|patches| &patches.center)),
        ];
        let centers = centers.into_iter().filter_map(|(name, value)| {
            let value = value?.clone();
            Some(StateTensor { name, shape: vec![1, value.numel()], value })
        });
        centers.collect()
    }

    fn set_state(&mut self, name: &str, value: Tensor) {
        match name {
            CENTER => self.centers.view = value,
            CENTER_PATCH => {
                if let Some(patches) = &mut self.patches {
                    patches.center = value;
                }
            }
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
