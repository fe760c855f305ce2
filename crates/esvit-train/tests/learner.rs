//! What a step of the learner keeps, changes and leaves alone, on a tiny network.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Role;
use esvit_nn::weights::to_vec;
use esvit_nn::{Network, Params, SwinConfig};
use esvit_testing::{assert_alike, fill, hashed_tensor, tiny_swin};
use esvit_train::learner::{LearnerSettings, StepSettings};
use esvit_train::objective::{NamedWeights, Weights};
use esvit_train::optim::{ClipScope, Optimizer, OptimizerKind, UpdateSettings};
use esvit_train::{CropChunks, Learner};

const STEP: StepSettings = StepSettings {
    step: 0,
    lr: 0.1,
    weight_decay: 0.04,
    momentum: 0.5,
    teacher_temp: 0.04,
    freeze_last_layer: false,
    health: false,
};

/// Both tasks; student, teacher and centers differ from each other and from zero.
fn learner(kind: OptimizerKind, norm_last_layer: bool, use_bn_in_head: bool) -> Learner {
    learner_with_drop_path(kind, norm_last_layer, use_bn_in_head, 0.0)
}

fn learner_with_drop_path(
    kind: OptimizerKind,
    norm_last_layer: bool,
    use_bn_in_head: bool,
    drop_path: f64,
) -> Learner {
    let backbone = SwinConfig { img_size: 16, embed_dim: 4, window_size: 2, ..tiny_swin() };
    let head = HeadConfig {
        out_dim: 6,
        hidden_dim: 8,
        bottleneck_dim: 4,
        layers: 3,
        use_bn_in_head,
        norm_last_layer,
    };
    let settings = LearnerSettings {
        seed: 0,
        student_temp: 0.1,
        weights: Weights::Named(NamedWeights::Reference),
        center_momentum: 0.9,
        clip_grad: Some(3.0),
        clip_scope: ClipScope::Tensor,
        precision: Precision::F32,
        crop_chunks: CropChunks::All,
        activation_checkpointing: false,
        mixup: None,
    };
    let network = Arc::new(Network::new(&backbone, drop_path, &head, true));
    let specs = network.specs().clone();
    let mut learner = Learner::new(network, kind, settings, &Device::flex());
    learner.student = fill(&specs, 100);
    learner.teacher = fill(&specs, 200);
    learner.centers.view = hashed_tensor(300, [6]) * 0.1;
    learner.centers.region = Some(hashed_tensor(301, [6]) * 0.1);
    learner
}

/// Two global and two local crops of `images` images.
fn crops(images: usize) -> Vec<Tensor<4>> {
    let sizes = [16, 16, 8, 8].into_iter().zip(400..);
    sizes.map(|(size, stream)| hashed_tensor(stream, [images, 3, size, size]) * 1.7).collect()
}

/// Every number that a learner holds, as bits.
fn state(learner: &Learner) -> Vec<Vec<u32>> {
    let bits = |tensor: &Tensor<1>| to_vec(tensor).iter().map(|v| v.to_bits()).collect();
    let mut state: Vec<Vec<u32>> = [&learner.student, &learner.teacher]
        .into_iter()
        .flat_map(|params| params.values().iter().map(bits))
        .collect();
    state.push(bits(&learner.centers.view));
    state.extend(learner.centers.region.as_ref().map(bits));
    for moments in learner.optimizer.moments() {
        state.extend(moments.first.as_ref().map(bits));
        state.extend(moments.second.as_ref().map(bits));
        state.push(vec![moments.updates as u32]);
    }
    state
}

/// Two micro-batches are one batch of twice the size.
#[test]
fn accumulation() {
    let whole = crops(4);
    let halves = [0, 2].map(|first| -> Vec<Tensor<4>> {
        whole.iter().map(|crop| crop.clone().narrow(0, first, 2)).collect()
    });
    let whole = [whole];
    let new = || learner(OptimizerKind::Sgd, false, false);

    let mut centers = new().centers;
    let [by_half, at_once] =
        [&halves[..], &whole[..]].map(|batches| new().gradients(batches, &STEP, &mut centers));
    for ((spec, by_half), at_once) in
        new().network.specs().iter().zip(&by_half.values).zip(&at_once.values)
    {
        let [by_half, at_once] = [by_half, at_once].map(|g| to_vec(g.as_ref().unwrap()));
        assert_alike(&spec.name, &by_half, &at_once, 1e-5);
    }

    let [mut by_half, mut at_once] = [new(), new()];
    for step in 0..2 {
        let settings = StepSettings { step, ..STEP };
        let half = by_half.step(&halves, &settings).unwrap();
        let whole = at_once.step(&whole, &settings).unwrap();
        for [half, whole] in [
            [half.loss, whole.loss],
            [half.view_loss, whole.view_loss],
            [half.region_loss.unwrap(), whole.region_loss.unwrap()],
            [half.grad_norm, whole.grad_norm],
        ] {
            assert_alike("result", &[half], &[whole], 1e-5);
        }
    }
    let check = |what: &str, a: &Tensor<1>, b: &Tensor<1>| {
        assert_alike(what, &to_vec(a), &to_vec(b), 2e-5);
    };
    check("center", &by_half.centers.view, &at_once.centers.view);
    let [region, expected] = [&by_half, &at_once].map(|l| l.centers.region.as_ref().unwrap());
    check("region center", region, expected);
    for (by_half, at_once) in
        [(&by_half.student, &at_once.student), (&by_half.teacher, &at_once.teacher)]
    {
        for ((spec, by_half), at_once) in by_half.iter().zip(at_once.values()) {
            check(&spec.name, by_half, at_once);
        }
    }
}

/// Cutting the crops into passes, computing blocks again, or both, changes memory and time and
/// nothing else, dropped branches included.
#[test]
fn less_memory_gives_the_same_gradients() {
    let batch = [crops(3)];
    let gradients = |crop_chunks: CropChunks, activation_checkpointing: bool| {
        let mut learner = learner_with_drop_path(OptimizerKind::Sgd, false, false, 0.5);
        learner.settings.crop_chunks = crop_chunks;
        learner.settings.activation_checkpointing = activation_checkpointing;
        let mut centers = learner.centers.clone();
        learner.gradients(&batch, &STEP, &mut centers).values
    };
    let expected = gradients(CropChunks::All, false);
    let specs = learner(OptimizerKind::Sgd, false, false).network.specs().clone();
    for (crop_chunks, activation_checkpointing) in [
        (CropChunks::All, true),
        (CropChunks::Crops(2), false),
        (CropChunks::Crops(1), true),
        (CropChunks::Crops(3), false),
        (CropChunks::Pixels(1.0), false),
    ] {
        let found = gradients(crop_chunks, activation_checkpointing);
        for ((spec, found), expected) in specs.iter().zip(&found).zip(&expected) {
            let [found, expected] = [found, expected].map(|g| to_vec(g.as_ref().unwrap()));
            let what = format!("{}, {crop_chunks:?}", spec.name);
            assert_alike(&what, &found, &expected, 1e-5);
        }
    }
}

/// Neither the prototypes nor what the optimizer remembers of them change, at the first step and
/// after others; the rest does.
#[test]
fn frozen_last_layer() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Lars] {
        let mut learner = learner(kind, false, false);
        for freeze_last_layer in [true, false, true] {
            let before = (learner.student.clone(), learner.optimizer.clone());
            let settings = StepSettings { freeze_last_layer, ..STEP };
            learner.step(&[crops(2)], &settings).unwrap();
            let mut last_layers = 0;
            for (i, (spec, value)) in learner.student.iter().enumerate() {
                let last_layer = spec.name.contains("last_layer");
                last_layers += usize::from(last_layer);
                let stays = freeze_last_layer && last_layer;
                let same = to_vec(value) == to_vec(&before.0.values()[i]);
                assert_eq!(same, stays, "{kind:?}, {}", spec.name);
                let [old, new] =
                    [&before.1, &learner.optimizer].map(|optimizer| &optimizer.moments()[i]);
                assert_eq!(new.updates, old.updates + u64::from(!stays), "{}", spec.name);
                if stays {
                    let values = |t: &Option<Tensor<1>>| t.as_ref().map(to_vec);
                    assert_eq!(values(&new.first), values(&old.first), "{}", spec.name);
                    assert_eq!(values(&new.second), values(&old.second), "{}", spec.name);
                }
            }
            assert_eq!(last_layers, 4, "length and direction in both heads");
        }
    }
}

/// One bad pixel, in an image that the teacher sees or in one that it does not.
#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Lars] {
        let mut learner = learner(kind, false, true);
        learner.step(&[crops(2)], &STEP).unwrap();
        let before = state(&learner);
        for bad in [f32::NAN, f32::INFINITY] {
            for crop in [0, 3] {
                let mut batch = crops(2);
                let [images, channels, ..] = batch[crop].dims();
                batch[crop] = batch[crop]
                    .clone()
                    .slice_fill([0..images.min(1), 0..channels.min(1), 0..1, 0..1], bad);
                let settings = StepSettings { health: true, ..STEP };
                let error = learner.step(&[crops(2), batch], &settings).unwrap_err();
                assert!(!error.loss.is_finite() || !error.grad_norm.is_finite(), "{error}");
                assert!(state(&learner) == before, "{kind:?}, {bad} in crop {crop}");
            }
        }
        learner.step(&[crops(2)], &STEP).unwrap();
        assert!(state(&learner) != before);
    }
}

/// `weight_g` is averaged even where it is not trained; running statistics are each one's own.
#[test]
fn moving_average() {
    let mut learner = learner(OptimizerKind::Sgd, true, true);
    let specs = learner.network.specs().clone();
    let roles = |role: Role| specs.iter().filter(|spec| spec.role == role).count();
    assert_eq!((roles(Role::Frozen), roles(Role::Buffer)), (2, 8));

    let shifted = |params: &Params, by: f64| {
        let mut params = params.clone();
        params.values_mut().iter_mut().for_each(|value| *value = value.clone() + by);
        params
    };
    let (student, old) = (shifted(&learner.student, 1.0), shifted(&learner.teacher, -2.0));
    let (mut new, mut unchanged, count) = (old.clone(), student.clone(), specs.len());
    let settings = UpdateSettings { lr: 0.1, weight_decay: 0.0, momentum: 0.75 };
    let none = vec![None; count];
    Optimizer::new(OptimizerKind::Sgd, count).step(
        &mut unchanged,
        &mut new,
        none,
        &vec![1.0; count],
        &settings,
    );
    for (i, (spec, new)) in new.iter().enumerate() {
        let [old, student] = [&old, &student].map(|params| params.values()[i].clone());
        if spec.role == Role::Buffer {
            assert_eq!(to_vec(new), to_vec(&old), "{}", spec.name);
        } else {
            let expected = to_vec(&(old * 0.75 + student * 0.25));
            assert_alike(&spec.name, &to_vec(new), &expected, 1e-6);
        }
    }

    // In a step, the student's frozen lengths stay, and both networks note their own statistics.
    learner.student = student.clone();
    learner.teacher = old.clone();
    learner.step(&[crops(2)], &STEP).unwrap();
    for (i, spec) in specs.iter().enumerate() {
        let [student, before, teacher, old] =
            [&learner.student, &student, &learner.teacher, &old].map(|p| to_vec(&p.values()[i]));
        match spec.role {
            Role::Trained => {}
            Role::Frozen => {
                assert_eq!(student, before, "{}", spec.name);
                let expected: Vec<f32> =
                    old.iter().zip(&before).map(|(a, b)| 0.5 * (a + b)).collect();
                assert_alike(&spec.name, &teacher, &expected, 1e-6);
            }
            Role::Buffer => {
                assert_ne!(student, before, "{}", spec.name);
                assert_ne!(teacher, old, "{}", spec.name);
                assert_ne!(teacher, student, "{}", spec.name);
            }
        }
    }
}
