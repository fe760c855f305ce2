//! The plan of a run, its loader and its learner.

use std::fmt;
use std::sync::Arc;

use burn::tensor::Device;
use esvit_data::{Loader, LoaderConfig, LoaderError, Source};
use esvit_nn::Network;
use esvit_nn::ops::Precision;

use crate::Learner;
use crate::config::{Config, LR_BATCH};
use crate::learner::{LearnerSettings, StepSettings};
use crate::objective::TEACHER_CROPS;
use crate::schedule::{CosineSchedule, TemperatureSchedule};

/// The plan of a run: lengths and schedules.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Steps done before.
    pub first_step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// Images per step.
    pub global_batch: usize,
    /// Images in the source.
    pub images: usize,
    /// CPU threads.
    pub threads: usize,
    /// The type of GEMM operands and saved activations.
    pub precision: Precision,
    description: String,
    lr: CosineSchedule,
    weight_decay: CosineSchedule,
    momentum: CosineSchedule,
    teacher_temp: TemperatureSchedule,
    freeze_epochs: u64,
    log_every: u64,
}

impl Plan {
    pub(super) fn new(
        config: &Config,
        loader: &Loader,
        images: usize,
        learner: &Learner,
        first_step: u64,
    ) -> Self {
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = steps_per_epoch * config.train.epochs;
        let (optim, objective) = (&config.optim, &config.objective);
        let global_batch = config.global_batch();
        let lr = CosineSchedule {
            start: 0.0,
            base: optim.lr * global_batch as f64 / LR_BATCH,
            last: optim.min_lr,
            warmup_steps: (optim.warmup_epochs * steps_per_epoch as f64).round() as u64,
            total_steps,
        };
        Self {
            first_step,
            total_steps,
            steps_per_epoch,
            global_batch,
            images,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            precision: learner.settings.precision,
            description: describe(config, learner),
            lr,
            weight_decay: CosineSchedule::new(
                optim.weight_decay,
                optim.weight_decay_end,
                total_steps,
            ),
            momentum: CosineSchedule::new(optim.momentum_teacher, 1.0, total_steps),
            teacher_temp: TemperatureSchedule {
                warmup: objective.warmup_teacher_temp,
                last: objective.teacher_temp,
                warmup_epochs: objective.warmup_teacher_temp_epochs,
            },
            freeze_epochs: optim.freeze_last_layer,
            log_every: config.train.log_every,
        }
    }

    /// Whole epochs done after a number of steps.
    pub fn epochs_done(&self, steps: u64) -> u64 {
        steps / self.steps_per_epoch.max(1)
    }

    /// The scheduled values of a step.
    pub(super) fn settings(&self, step: u64) -> StepSettings {
        let epoch = self.epochs_done(step);
        StepSettings {
            step,
            lr: self.lr.at(step),
            weight_decay: self.weight_decay.at(step),
            momentum: self.momentum.at(step),
            teacher_temp: self.teacher_temp.at(epoch),
            freeze_last_layer: epoch < self.freeze_epochs,
            health: self.is_logged(step + 1),
        }
    }

    /// Whether metrics are logged after `done` steps.
    pub(super) fn is_logged(&self, done: u64) -> bool {
        done.is_multiple_of(self.log_every) || done == self.total_steps
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs = self.total_steps / self.steps_per_epoch.max(1);
        writeln!(f, "{}", self.description)?;
        write!(
            f,
            "{} images, {epochs} epochs of {} steps of {} images, {} threads, {}",
            self.images,
            self.steps_per_epoch,
            self.global_batch,
            self.threads,
            self.precision.name()
        )
    }
}

fn describe(config: &Config, learner: &Learner) -> String {
    let swin = learner.network.backbone().config();
    let tasks = if config.objective.region { "L_V + L_R" } else { "L_V" };
    let parameters = |is_head: bool| -> usize {
        let specs = learner.network.specs().iter();
        specs.filter(|spec| spec.name.starts_with("head") == is_head).map(|spec| spec.len()).sum()
    };
    let views = &config.views;
    let locals = views.local_sizes.iter().zip(&views.local_counts);
    let locals: String = locals
        .filter(|(_, count)| **count > 0)
        .map(|(size, count)| format!(" + {count} x {size} px"))
        .collect();
    format!(
        "{tasks}, Swin `{}` (window {}, {:.2} M parameters, heads {:.2} M, {} prototypes)\n\
         views {TEACHER_CROPS} x {} px{locals}",
        config.model.arch,
        swin.window_size,
        parameters(false) as f64 / 1e6,
        parameters(true) as f64 / 1e6,
        config.head.out_dim,
        views.global_size,
    )
}

/// The loader of a run: one batch per optimizer step.
pub(super) fn loader(config: &Config, source: Arc<dyn Source>) -> Result<Loader, LoaderError> {
    let data = &config.data;
    let settings = LoaderConfig {
        batch: config.global_batch(),
        repeat: data.repeat,
        workers: data.workers,
        prefetch: data.prefetch,
        seed: config.seed,
        max_broken: data.max_broken,
        cache_bytes: data.cache_mb << 20,
    };
    Loader::new(source, config.views.clone(), settings)
}

/// An initialized learner.
pub(super) fn learner(config: &Config, device: &Device) -> Learner {
    let objective = &config.objective;
    let network =
        Network::new(&config.model.swin(), config.model.drop_path, &config.head, objective.region);
    let settings = LearnerSettings {
        seed: config.seed,
        student_temp: objective.student_temp,
        weights: objective.weights,
        center_momentum: objective.center_momentum,
        clip_grad: config.optim.clip_grad,
        clip_scope: config.optim.clip_scope,
        precision: config.train.precision(),
        crop_chunks: config.crop_chunks(),
        activation_checkpointing: config.train.activation_checkpointing,
        mixup: objective.mixup.enabled.then_some(objective.mixup),
    };
    Learner::new(Arc::new(network), config.optim.name, settings, device)
}
