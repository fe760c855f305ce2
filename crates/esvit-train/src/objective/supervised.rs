//! Supervised training: a linear classifier on the view feature, against smoothed and mixed labels.

use esvit_nn::layers::Linear;
use esvit_nn::ops::{Activation, Precision};
use esvit_nn::params::Scope;
use esvit_nn::{Collective, Device, ForwardCtx, Params, Tensor};
use esvit_settings::{SettingError, check, settings};

use super::config::{HeadMemory, ObjectiveSettings, Setup};
use super::{Chunking, Loss, MicroBatch, Objective, Pass, StepInfo, Teacher};
use crate::mixup::{self, MixupConfig};

settings! {
    /// Settings of supervised training.
    pub struct SupervisedConfig {
        /// Label smoothing.
        pub label_smoothing: f64 = 0.1,
        /// Mixup and CutMix of images and labels.
        pub mixup: MixupConfig = MixupConfig { enabled: true, ..MixupConfig::default() },
    }
}

impl ObjectiveSettings for SupervisedConfig {
    fn describe(&self) -> String {
        "classification".into()
    }

    fn validate(&self) -> Result<(), SettingError> {
        let share = (0.0..1.0).contains(&self.label_smoothing);
        let need = "it must be at least 0 and below 1";
        check(share, "label_smoothing", self.label_smoothing, need)?;
        self.mixup.validate("mixup")
    }

    fn build(&self, scope: &mut Scope<'_>, setup: &Setup) -> Box<dyn Objective> {
        Box::new(Supervised::new(self, scope, setup))
    }

    fn chunking(&self) -> Chunking {
        Chunking::ByView
    }

    fn global_views(&self) -> u32 {
        1
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn memory(&self, _tokens: f64, width: f64, precision: Precision) -> HeadMemory {
        let size = precision.bytes() as f64;
        HeadMemory { saved: width * (size + 4.0), ..HeadMemory::default() }
    }
}

/// A linear classifier, `classifier.weight [classes, C]` and `classifier.bias [classes]`.
#[derive(Debug, Clone)]
pub struct ClassifierHead {
    linear: Linear,
    classes: usize,
}

impl ClassifierHead {
    /// Registers the classifier.
    pub fn new(scope: &mut Scope<'_>, width: usize, classes: usize) -> Self {
        Self { linear: Linear::new(&mut scope.head("classifier"), width, classes), classes }
    }

    /// Logits `[B, classes]` of view features `[B, C]`.
    pub fn forward(&self, params: &Params, features: Tensor, ctx: &ForwardCtx) -> Tensor {
        self.linear.forward(params, features, Activation::None, ctx)
    }
}

/// Supervised training of a run.
#[derive(Debug)]
pub struct Supervised {
    config: SupervisedConfig,
    head: ClassifierHead,
    seed: u64,
    /// Targets `[B, classes]` of every view of the micro-batch at hand.
    targets: Option<Vec<Tensor>>,
}

impl Supervised {
    /// Registers the classifier.
    pub fn new(config: &SupervisedConfig, scope: &mut Scope<'_>, setup: &Setup) -> Self {
        let head = ClassifierHead::new(scope, setup.width, setup.classes);
        Self { config: config.clone(), head, seed: setup.seed, targets: None }
    }

    /// The classifier.
    pub fn head(&self) -> &ClassifierHead {
        &self.head
    }
}

impl Objective for Supervised {
    fn chance_loss(&self) -> f64 {
        (self.head.classes as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::None
    }

    fn targets(
        &mut self,
        batch: &MicroBatch,
        _teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let Some(view) = batch.views.first() else { return };
        let smoothing = self.config.label_smoothing;
        let targets = one_hot(&batch.labels, self.head.classes, smoothing, &view.device());
        self.targets = Some(vec![targets; batch.views.len()]);
    }

    fn student_views(&mut self, batch: &MicroBatch, place: [u64; 2]) -> Vec<Tensor> {
        if !self.config.mixup.enabled {
            return batch.views.clone();
        }
        let (views, mixing) = mixup::mix(&batch.views, &self.config.mixup, self.seed, place);
        let targets = self.targets.take().into_iter().flatten().zip(mixing);
        let images = batch.images();
        let mixed = targets.map(|(targets, shares)| {
            Tensor::new(shares, [images, images], &targets.device()).matmul(targets)
        });
        self.targets = Some(mixed.collect());
        views
    }

    fn end_micro_batch(&mut self) {
        self.targets = None;
    }

    fn loss(&mut self, student: Pass<'_>, _at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, .. } = student;
        let share = views.at_hand.len() as f64 / views.total as f64;
        let logits = self.head.forward(params, features.view, ctx);
        let targets = self.targets.as_ref().expect("targets come first");
        let targets = match &targets[views.at_hand] {
            [targets] => targets.clone(),
            several => Tensor::cat(several.to_vec(), 0),
        };
        let loss = cross_entropy(logits, targets);
        Loss::single("class", if share == 1.0 { loss } else { loss * share })
    }
}

/// Targets `[B, classes]` with label smoothing: one-hot times `1 - smoothing`, plus
/// `smoothing / classes`.
pub fn one_hot(labels: &[u32], classes: usize, smoothing: f64, device: &Device) -> Tensor {
    let spread = smoothing / classes as f64;
    let mut values = vec![spread as f32; labels.len() * classes];
    for (row, &label) in values.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] = (1.0 - smoothing + spread) as f32;
    }
    Tensor::new(values, [labels.len(), classes], device)
}

/// Mean cross-entropy of logits `[B, classes]` against targets that sum to 1 per row.
pub fn cross_entropy(logits: Tensor, targets: Tensor) -> Tensor {
    let rows = logits.shape()[0] as f64;
    -(logits.log_softmax(1) * targets).sum() / rows
}
