//! Fine-tuning: backbone and linear classifier on its view feature, trained end to end on labeled
//! images. From random initialization it is the supervised baseline for pre-training.

mod data;
mod learner;
mod measure;
mod save;
mod settings;

use esvit_kernels::pool;
use esvit_nn::Params;
use esvit_nn::ops::Precision;
use esvit_train::input::network_input;
use esvit_train::learner::NotFinite;
use esvit_train::objective::{MicroBatch, StepInfo};
use esvit_train::span::RunLength;
use serde::Serialize;

pub use data::{Batch, Batches};
use esvit_settings::SettingError;
pub use learner::learner;
pub use measure::evaluate;
pub use save::save;
pub use settings::Settings;

use crate::labeled::remarks::one_class;
use crate::labeled::{LabeledSet, LabeledTask};
use crate::probe::ClassAccuracy;
use esvit_model::PretrainedBackbone;
use esvit_model::features::SkippedImage;

/// Fine-tuning failed.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneError {
    /// A setting is invalid.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// There are no training or query images, none can be read, or all are of one class.
    #[error("{0}")]
    Images(String),
    /// The loss, its gradient or the features of an image are not finite.
    #[error("{0}")]
    NotFinite(String),
}

fn not_finite(error: &NotFinite, step: u64, settings: &Settings) -> FinetuneError {
    let NotFinite { loss, grad_norm } = error;
    let Settings { lr, precision, .. } = settings;
    let remedy = if *precision == Precision::F32 { "" } else { ", or take `--precision f32`" };
    FinetuneError::NotFinite(format!(
        "in step {step} the loss is {loss} and the norm of its gradient {grad_norm}\n\
         hint: lower `--lr`, which is {lr}{remedy}"
    ))
}

/// Progress events.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Total number of steps.
        steps: u64,
        /// Batch size of the step.
        images: usize,
        /// Its loss.
        loss: f32,
        /// Learning rate before layer-wise decay.
        lr: f64,
    },
    /// An epoch is done and the network evaluated.
    Epoch(&'a EpochResult),
    /// Images could not be read.
    SkippedImage(&'a [SkippedImage]),
}

/// Results of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EpochResult {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Mean training loss, against the mixed and smoothed targets.
    pub loss: f64,
    /// Learning rate of the last step, before layer-wise decay.
    pub lr: f64,
    /// Accuracy on the query images.
    #[serde(flatten)]
    pub accuracy: ClassAccuracy,
}

/// A fine-tuned network and its training history.
#[derive(Debug)]
pub struct Finetuned {
    /// Parameters of backbone and classifier after the last epoch.
    pub params: Params,
    /// Number of steps done.
    pub steps: u64,
    /// Results of all epochs, at least one.
    pub epochs: Vec<EpochResult>,
    /// Numbers of training and of query images, without those that could not be read.
    pub images: (usize, usize),
}

impl Finetuned {
    /// The last epoch, to which `params` belongs.
    pub fn last(&self) -> &EpochResult {
        &self.epochs[self.epochs.len() - 1]
    }

    /// The epoch with the highest top-1, the first of equals. It is selected on the query images
    /// themselves, so its accuracy is biased upwards.
    pub fn best(&self) -> &EpochResult {
        self.epochs.iter().fold(&self.epochs[0], |best, other| {
            if other.accuracy.top1 > best.accuracy.top1 { other } else { best }
        })
    }
}

/// Trains the network of `backbone` (from its weights or from scratch) with a classifier on the
/// training images of `task`, and evaluates it on the query images after each epoch.
///
/// # Errors
/// [`FinetuneError`] if a setting is invalid, a set is empty or unreadable, there is only one
/// class, or the loss is not finite.
pub fn finetune(
    backbone: &PretrainedBackbone,
    task: &LabeledTask,
    settings: &Settings,
    mut observer: impl FnMut(&Event<'_>),
) -> Result<Finetuned, FinetuneError> {
    settings.validate()?;
    check(task)?;
    let preprocess = &backbone.preprocess;
    let (mut learner, head) = learner(backbone, task.classes.len(), settings);
    let views = settings.views(preprocess);
    let normalization = views.normalization();
    let mut batches = Batches::new(&task.train, views, settings.batch_size, settings.seed)
        .converted(preprocess.conversion());
    let schedule = settings.schedule(batches.per_epoch(), batches.size);
    let (mut step, steps) = (0, schedule.total_steps);
    let run = RunLength { total_steps: steps, steps_per_epoch: batches.per_epoch() };
    let (mut epochs, mut queries) = (Vec::new(), 0);
    for epoch in 0..settings.epochs {
        let (mut loss_sum, mut images_seen, mut lr) = (0.0, 0, 0.0);
        for images in batches.order(epoch).chunks(batches.size) {
            let batch = batches.load(epoch, images);
            if !batch.left_out.is_empty() {
                observer(&Event::SkippedImage(&batch.left_out));
            }
            lr = schedule.at(step);
            let images = batch.labels.len();
            if images > 0 {
                let at = StepInfo {
                    step,
                    epoch,
                    run,
                    lr,
                    weight_decay: settings.weight_decay,
                    health: false,
                };
                let device = learner.device();
                let views = vec![network_input(&batch.crops, 0..images, &normalization, &device)];
                let batch = MicroBatch { views, labels: batch.labels, samples: Vec::new() };
                let result = pool::run(|| learner.step([batch], &at));
                let loss = result.map_err(|error| not_finite(&error, step + 1, settings))?.loss;
                loss_sum += f64::from(loss) * images as f64;
                images_seen += images;
                observer(&Event::Step { step: step + 1, steps, images, loss, lr });
            }
            step += 1;
        }
        if images_seen == 0 {
            return Err(unreadable("training", &task.train));
        }
        let (network, student) = (learner.network.backbone(), &learner.student);
        let (accuracy, left_out) = evaluate(network, &head, student, preprocess, &task.queries)
            .map_err(|error| FinetuneError::NotFinite(error.to_string()))?;
        queries = task.queries.images.len() - left_out.len();
        if epoch == 0 && !left_out.is_empty() {
            observer(&Event::SkippedImage(&left_out));
        }
        let accuracy = accuracy.ok_or_else(|| unreadable("query", &task.queries))?;
        let loss = loss_sum / images_seen as f64;
        let result = EpochResult { epoch: epoch + 1, loss, lr, accuracy };
        observer(&Event::Epoch(&result));
        epochs.push(result);
    }
    let images = (task.train.images.len() - batches.left_out(), queries);
    Ok(Finetuned { params: learner.student, steps: step, epochs, images })
}

fn unreadable(set: &str, images: &LabeledSet) -> FinetuneError {
    FinetuneError::Images(format!("none of the {} {set} images can be read", images.images.len()))
}

/// Checks that both sets have images and training images have at least two classes.
fn check(task: &LabeledTask) -> Result<(), FinetuneError> {
    for (set, option, images) in
        [("training", "train", &task.train.images), ("query", "val", &task.queries.images)]
    {
        if images.is_empty() {
            return Err(FinetuneError::Images(format!(
                "there are no {set} images\nhint: name a folder of them with `--{option}`"
            )));
        }
    }
    match one_class(&task.train, &task.classes) {
        Some(reason) => Err(FinetuneError::Images(reason)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
