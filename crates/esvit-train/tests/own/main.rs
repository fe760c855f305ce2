//! A backbone and an objective that the program does not have: each is a page.

#![allow(clippy::unwrap_used)]

mod backbone;
mod objective;

use esvit_kernels::rng::Rng;
use esvit_nn::ops::Precision;
use esvit_nn::{Device, Network, Tensor};
use esvit_train::checkpoint::{self, Checkpoint, Metadata};
use esvit_train::learner::LearnerSettings;
use esvit_train::objective::{MicroBatch, Objective, StepInfo};
use esvit_train::optim::{ClipScope, OptimizerKind};
use esvit_train::span::{RunLength, Span};
use esvit_train::{Config, CropChunks, Learner};

const IMAGES: usize = 8;
const STEPS: u64 = 30;

/// Views of `IMAGES` images, each a wave of its own with other noise in every view and step.
fn batch(step: u64, sides: &[usize]) -> MicroBatch {
    let views = sides.iter().enumerate().map(|(view, &side)| {
        let mut rng = Rng::new(step, [view as u64, 0, 0]);
        let value = |i: usize| {
            let (image, pixel) = (i / (3 * side * side), i % (side * side));
            let (row, column) = (pixel / side, pixel % side);
            let angle = image as f64 * 0.4;
            let wave = (angle.cos() * row as f64 + angle.sin() * column as f64) * (1.0 + angle);
            (wave.sin() + 0.3 * rng.normal()) as f32
        };
        let values = (0..IMAGES * 3 * side * side).map(value).collect();
        Tensor::new(values, [IMAGES, 3, side, side], &Device::Cpu)
    });
    MicroBatch::unlabeled(views.collect())
}

fn at(step: u64) -> StepInfo {
    let run = RunLength { total_steps: STEPS, steps_per_epoch: STEPS };
    StepInfo { step, epoch: 1, run, lr: 3e-4, weight_decay: 0.0, health: true }
}

fn learner(network: Network, objective: Box<dyn Objective>) -> Learner {
    let settings = LearnerSettings {
        seed: 1,
        clip_grad: Some(3.0),
        clip_scope: ClipScope::Global,
        precision: Precision::F32,
        crop_chunks: CropChunks::All,
        activation_checkpointing: false,
        layer_decay: 1.0,
        freeze_backbone: Span::NONE,
    };
    Learner::new(network, objective, OptimizerKind::AdamW, settings, &Device::Cpu)
}

/// Trains; a checkpoint of the middle, restored, ends with the same bits. Returns the learner and the
/// means of the first and the last losses.
fn trained(new: impl Fn() -> Learner, sides: &[usize]) -> (Learner, [f32; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let mut learner = new();
    let mut losses = Vec::new();
    for step in 0..STEPS {
        if step == STEPS / 2 {
            checkpoint::save(&path, &learner, Metadata::new(step, 0, &Config::default(), None))
                .unwrap();
        }
        losses.push(learner.step([batch(step, sides)], &at(step)).unwrap().loss);
    }
    let mut resumed = new();
    Checkpoint::open(&path).unwrap().restore(&mut resumed).unwrap();
    for step in STEPS / 2..STEPS {
        let loss = resumed.step([batch(step, sides)], &at(step)).unwrap().loss;
        assert_eq!(loss.to_bits(), losses[step as usize].to_bits(), "step {step}");
    }
    // What a teacher has no use for is not stored.
    let values = |learner: &Learner| -> Vec<f32> {
        let used = learner.evaluated().iter().filter(|(spec, _)| !spec.part.is_student_only());
        used.flat_map(|(_, value)| value.to_vec::<f32>()).collect()
    };
    assert!(values(&resumed) == values(&learner));
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let means = [mean(&losses[..5]), mean(&losses[losses.len() - 5..])];
    (learner, means)
}
