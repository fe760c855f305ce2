//! What a step of the learner keeps, changes and leaves alone, on a tiny network.

#![allow(clippy::unwrap_used)]

#[path = "learner/checkpoint.rs"]
mod checkpoint;

use std::sync::Arc;

use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Role;
use esvit_nn::{BackboneConfig, Device, ForwardCtx, Network, ParamGradients, Params, Tensor};
use esvit_testing::{assert_alike, assert_close, fill, hashed_tensor, tiny_swin};
use esvit_train::learner::{LearnerSettings, StepSettings};
use esvit_train::mixup::MixupConfig;
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
    let backbone = BackboneConfig::Swin(SwinConfig {
        img_size: 16,
        embed_dim: 4,
        window_size: 2,
        ..tiny_swin()
    });
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
    let mut learner = Learner::new(network, kind, settings, &Device::Cpu);
    learner.student = fill(&specs, 100);
    learner.teacher = fill(&specs, 200);
    learner.centers.view = hashed_tensor(300, [6]) * 0.1;
    learner.centers.region = Some(hashed_tensor(301, [6]) * 0.1);
    learner
}

/// Two global and two local crops of `images` images.
fn crops(images: usize) -> Vec<Tensor> {
    let sizes = [16, 16, 8, 8].into_iter().zip(400..);
    sizes.map(|(size, stream)| hashed_tensor(stream, [images, 3, size, size]) * 1.7).collect()
}

/// Every number that a learner holds, as bits.
fn state(learner: &Learner) -> Vec<Vec<u32>> {
    let bits = |tensor: &Tensor| tensor.to_vec::<f32>().iter().map(|v| v.to_bits()).collect();
    let mut state: Vec<Vec<u32>> = [&learner.student, &learner.teacher]
        .into_iter()
        .flat_map(|params| params.values())
        .map(|value| bits(&value))
        .collect();
    state.push(bits(&learner.centers.view));
    state.extend(learner.centers.region.as_ref().map(bits));
    for index in 0..learner.network.specs().len() {
        state.extend(learner.optimizer.moments(index).iter().map(bits));
        state.push(vec![learner.optimizer.updates(index) as u32]);
    }
    state
}

/// The gradient of a parameter, which has one.
fn gradient(gradients: &ParamGradients, index: usize) -> Vec<f32> {
    gradients.get(index).unwrap().to_vec()
}

/// The moments of a parameter.
fn moments(optimizer: &Optimizer, index: usize) -> Vec<Vec<f32>> {
    optimizer.moments(index).iter().map(|moment| moment.to_vec()).collect()
}

/// Two micro-batches are one batch of twice the size.
#[test]
fn accumulation() {
    let whole = crops(4);
    let halves = [0, 2].map(|first| -> Vec<Tensor> {
        whole.iter().map(|crop| crop.clone().narrow(0, first, 2)).collect()
    });
    let whole = [whole];
    let new = || learner(OptimizerKind::Sgd, false, false);

    let mut centers = new().centers;
    let [by_half, at_once] =
        [&halves[..], &whole[..]].map(|batches| new().gradients(batches, &STEP, &mut centers));
    for (index, spec) in new().network.specs().iter().enumerate() {
        let [by_half, at_once] = [&by_half, &at_once].map(|g| gradient(&g.values, index));
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
    let check = |what: &str, a: &Tensor, b: &Tensor| {
        assert_alike(what, &a.to_vec::<f32>(), &b.to_vec::<f32>(), 2e-5);
    };
    check("center", &by_half.centers.view, &at_once.centers.view);
    let [region, expected] = [&by_half, &at_once].map(|l| l.centers.region.as_ref().unwrap());
    check("region center", region, expected);
    for (by_half, at_once) in
        [(&by_half.student, &at_once.student), (&by_half.teacher, &at_once.teacher)]
    {
        for ((spec, by_half), at_once) in by_half.iter().zip(at_once.values()) {
            check(&spec.name, &by_half, &at_once);
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
        for (index, spec) in specs.iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|g| gradient(g, index));
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
                let same = value.to_vec::<f32>() == before.0.values()[i].to_vec::<f32>();
                assert_eq!(same, stays, "{kind:?}, {}", spec.name);
                let [old, new] = [&before.1, &learner.optimizer];
                let updates = old.updates(i) + u64::from(!stays);
                assert_eq!(new.updates(i), updates, "{}", spec.name);
                if stays {
                    assert_eq!(moments(new, i), moments(old, i), "{}", spec.name);
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
                batch[crop].write(0, &[bad]);
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
        *params.flat_mut() = params.flat().clone() + by;
        params
    };
    let (student, old) = (shifted(&learner.student, 1.0), shifted(&learner.teacher, -2.0));
    let (mut new, mut unchanged) = (old.clone(), student.clone());
    let settings = UpdateSettings { lr: 0.1, weight_decay: 0.0, momentum: 0.75 };
    let none = ParamGradients::new(&specs, &Device::Cpu);
    let scales = vec![1.0; specs.len()];
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd, &specs, &Device::Cpu);
    optimizer.step(&mut unchanged, &mut new, &none, &scales, &settings);
    for (i, (spec, new)) in new.iter().enumerate() {
        let [old, student] = [&old, &student].map(|params| params.values()[i].clone());
        if spec.role == Role::Buffer {
            assert_eq!(new.to_vec::<f32>(), old.to_vec::<f32>(), "{}", spec.name);
        } else {
            let expected = (old * 0.75 + student * 0.25).to_vec::<f32>();
            assert_alike(&spec.name, &new.to_vec::<f32>(), &expected, 1e-6);
        }
    }

    // In a step, the student's frozen lengths stay, and both networks note their own statistics.
    learner.student = student.clone();
    learner.teacher = old.clone();
    learner.step(&[crops(2)], &STEP).unwrap();
    for (i, spec) in specs.iter().enumerate() {
        let [student, before, teacher, old] = [&learner.student, &student, &learner.teacher, &old]
            .map(|p| p.values()[i].to_vec::<f32>());
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

/// All values of the gradients of some micro-batches, one after the other.
fn all_gradients(learner: &Learner, batches: &[Vec<Tensor>], settings: &StepSettings) -> Vec<f32> {
    let mut centers = learner.centers.clone();
    let gradients = learner.gradients(batches, settings, &mut centers);
    let found = (0..learner.network.specs().len()).filter_map(|i| gradients.values.get(i));
    found.flat_map(|gradient| gradient.to_vec::<f32>()).collect()
}

/// A finite loss with an infinite gradient: a student that says the same of everything, at a
/// temperature near 0. And an infinite sum of finite losses, whose gradient is lost in the length
/// of what is normalized.
#[test]
fn loss_and_gradient_must_both_be_finite() {
    for infinite_gradient in [true, false] {
        let mut learner = learner(OptimizerKind::AdamW, true, false);
        learner.step(&[crops(2)], &STEP).unwrap();
        let mut settings = StepSettings { step: 1, health: true, ..STEP };
        let specs = learner.network.specs().clone();
        let mut set = |end: &str, factor: f64, summand: f64| {
            for (index, spec) in specs.iter().enumerate() {
                if spec.name.ends_with(end) {
                    let value = learner.student.value(index) * factor + summand;
                    learner.student.set(index, &value.to_vec::<f32>());
                }
            }
        };
        set("mlp.4.weight", 0.0, 0.0);
        if infinite_gradient {
            set("mlp.4.bias", 0.0, 0.0);
            learner.settings.student_temp = 1e-30;
        } else {
            // Logits of 1e37.
            set("weight_g", 0.0, 1e18);
            set("mlp.2.weight", 0.0, 0.0);
            set("mlp.2.bias", 0.0, 0.0);
            set("mlp.4.bias", 0.0, 5e18);
            set("weight_v", 1e19, 0.0);
            learner.settings.student_temp = 1e-19;
            settings.teacher_temp = 1e20;
        }
        let count = if infinite_gradient {
            2
        } else {
            // As many as it takes for the sum of their finite losses.
            let one = learner_like(&learner).step(&[crops(2)], &settings).unwrap().loss;
            assert!(one > 1e36, "{one}");
            (f32::MAX / one) as usize + 2
        };
        let before = state(&learner);
        let error = learner.step(&vec![crops(2); count], &settings).unwrap_err();
        assert_eq!(error.loss.is_finite(), infinite_gradient, "{error}");
        assert_eq!(error.grad_norm.is_finite(), !infinite_gradient, "{error}");
        assert!(state(&learner) == before, "{error}");
    }
}

/// The draws of dropped branches and of mixed images are those of seed, step and micro-batch:
/// the same crops twice give another gradient than once, unless nothing is drawn.
#[test]
fn draws_differ_by_micro_batch_step_and_seed() {
    let mixup = MixupConfig { enabled: true, ..MixupConfig::default() };
    for (drop_path, mixup, drawn) in
        [(0.5, None, true), (0.0, Some(mixup), true), (0.0, None, false)]
    {
        let mut learner = learner_with_drop_path(OptimizerKind::Sgd, false, false, drop_path);
        learner.settings.mixup = mixup;
        let once = all_gradients(&learner, &[crops(2)], &STEP);
        let twice = all_gradients(&learner, &[crops(2), crops(2)], &STEP);
        let later = all_gradients(&learner, &[crops(2)], &StepSettings { step: 1, ..STEP });
        assert!(once == all_gradients(&learner, &[crops(2)], &STEP), "the same again");
        learner.settings.seed = 1;
        let seeded = all_gradients(&learner, &[crops(2)], &STEP);
        let largest = once.iter().fold(0.0f32, |largest, value| value.abs().max(largest));
        for (what, other) in [("micro-batch", twice), ("step", later), ("seed", seeded)] {
            let far = once.iter().zip(&other).any(|(a, b)| (a - b).abs() > 1e-3 * largest);
            assert_eq!(far, drawn, "{what}, drop path {drop_path}, {mixup:?}");
        }
    }
}

/// Mixing changes what the student sees and nothing of the teacher's; switched off it is as none.
#[test]
fn only_the_students_images_are_mixed() {
    let mut learner = learner(OptimizerKind::Sgd, false, false);
    let settings = StepSettings { health: true, ..STEP };
    let mut result = |mixup: Option<MixupConfig>| {
        learner.settings.mixup = mixup;
        let mut learner = learner_like(&learner);
        let result = learner.step(&[crops(2)], &settings).unwrap();
        (result, learner.centers.view.to_vec::<f32>())
    };
    let off = MixupConfig::default();
    let (plain, center) = result(None);
    assert_eq!(result(Some(off)), (plain.clone(), center.clone()));
    let (mixed, center_of_mixed) = result(Some(MixupConfig { enabled: true, ..off }));
    assert_ne!(mixed.view_loss, plain.view_loss);
    assert_eq!((mixed.health, center_of_mixed), (plain.health, center));
}

/// A learner of the same state.
fn learner_like(learner: &Learner) -> Learner {
    Learner {
        network: learner.network.clone(),
        student: learner.student.clone(),
        teacher: learner.teacher.clone(),
        centers: learner.centers.clone(),
        optimizer: learner.optimizer.clone(),
        settings: learner.settings.clone(),
    }
}

/// One step by hand, from the gradients: clipping, the optimizer, the moving average and the
/// centers. What is compared are the changes, not the values.
#[test]
fn a_step_by_hand() {
    const LIMIT: f64 = 0.02;
    for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let mut learner = learner(kind, true, false);
        learner.settings.clip_grad = Some(LIMIT);
        learner.settings.center_momentum = 0.8;
        let before = learner_like(&learner);
        let mut centers = learner.centers.clone();
        let gradients = learner.gradients(&[crops(2)], &STEP, &mut centers).values;
        let result = learner.step(&[crops(2)], &STEP).unwrap();
        let mut squares = 0.0;
        for (i, spec) in before.network.specs().iter().enumerate() {
            let [old, new, old_teacher, new_teacher] =
                [&before.student, &learner.student, &before.teacher, &learner.teacher]
                    .map(|params| params.values()[i].to_vec::<f32>());
            let change = |new: &[f32], old: &[f32]| -> Vec<f32> {
                new.iter().zip(old).map(|(new, old)| new - old).collect()
            };
            let by_hand: Vec<f32> = match gradients.get(i) {
                None => {
                    assert!(spec.name.ends_with("weight_g"), "{}", spec.name);
                    vec![0.0; old.len()]
                }
                Some(gradient) => {
                    let gradient: Vec<f64> =
                        gradient.to_vec::<f32>().iter().map(|&g| g.into()).collect();
                    let square = gradient.iter().map(|g| g * g).sum::<f64>();
                    squares += square;
                    let scale = (LIMIT / (square.sqrt() + 1e-6)).min(1.0);
                    let matrix = spec.shape.len() > 1;
                    let decay = if matrix { STEP.weight_decay } else { 0.0 };
                    let entries = gradient.iter().zip(&old);
                    let entries = entries.map(|(gradient, &old)| {
                        let (gradient, old) = (scale * gradient, f64::from(old));
                        let step = match kind {
                            OptimizerKind::Sgd => gradient + decay * old,
                            _ => decay * old + gradient / (gradient.abs() + 1e-8),
                        };
                        (-STEP.lr * step) as f32
                    });
                    entries.collect()
                }
            };
            let found = change(&new, &old);
            if kind == OptimizerKind::Sgd {
                // Values of about 1 are rounded to 1e-7.
                let expected: Vec<f64> = by_hand.iter().map(|&v| v.into()).collect();
                assert_close(&spec.name, &found, &expected, 3e-7);
            } else {
                // Where a gradient is all rounding, so is its sign; the key's bias is one.
                let far = found.iter().zip(&by_hand).filter(|(a, b)| (*a - *b).abs() > 1e-3);
                let allowed = if spec.name.ends_with("qkv.bias") { old.len() / 3 } else { 0 };
                assert!(far.count() <= allowed, "{}: {found:?} {by_hand:?}", spec.name);
            }
            let expected: Vec<f64> = new
                .iter()
                .zip(&old_teacher)
                .map(|(&new, &old)| 0.5 * (f64::from(new) - f64::from(old)))
                .collect();
            assert_close(&spec.name, &change(&new_teacher, &old_teacher), &expected, 3e-7);
        }
        let norm = squares.sqrt() as f32;
        assert_alike("norm", &[result.grad_norm], &[norm], 1e-5);
        assert!(f64::from(norm) > 3.0 * LIMIT, "clipped");
        let [view, region] = [result.view_loss, result.region_loss.unwrap()];
        assert_alike("loss", &[result.loss], &[0.5 * view + 0.5 * region], 1e-6);
        assert_eq!(result.health, None);

        let teacher =
            before.network.forward(&before.teacher, &crops(2)[..2], &ForwardCtx::teacher());
        let logits = [teacher.view_logits, teacher.region.unwrap().logits].map(|l| l.matrix());
        let old = [&before.centers.view, before.centers.region.as_ref().unwrap()];
        let new = [&learner.centers.view, learner.centers.region.as_ref().unwrap()];
        for ((logits, old), new) in logits.into_iter().zip(old).zip(new) {
            let mean = logits.mean_dim(0).to_vec::<f32>();
            let expected: Vec<f64> = old
                .to_vec::<f32>()
                .iter()
                .zip(mean)
                .map(|(&old, mean)| 0.8 * f64::from(old) + 0.2 * f64::from(mean))
                .collect();
            assert_close("center", &new.to_vec::<f32>(), &expected, 1e-6);
        }
    }
}

/// The health of a step is that of its first micro-batch, before the center moves.
#[test]
fn health_of_a_step() {
    let mut learner = learner(OptimizerKind::Sgd, false, false);
    let batch = crops(2);
    let teacher = learner.network.forward(&learner.teacher, &batch[..2], &ForwardCtx::teacher());
    let expected = esvit_train::health::examine(&teacher, &learner.centers, STEP.teacher_temp);
    assert_eq!(expected.rows, 4);
    let settings = StepSettings { health: true, ..STEP };
    let other: Vec<Tensor> = crops(2).into_iter().map(|crop| crop * 0.5).collect();
    let result = learner.step(&[batch, other], &settings).unwrap();
    assert_eq!(result.health, Some(expected));
}

/// Half as many bits: loss and gradients are nearly the same, and not quite. Rounding grows where the
/// four channels of a patch differ little and are normalized, and with sharper distributions.
#[test]
fn bf16_is_near_f32() {
    let settings = StepSettings { health: true, teacher_temp: 0.2, ..STEP };
    let run = |precision: Precision, activation_checkpointing: bool| {
        let mut learner = learner(OptimizerKind::Sgd, false, false);
        learner.settings.student_temp = 0.5;
        learner.settings.precision = precision;
        learner.settings.activation_checkpointing = activation_checkpointing;
        let gradients = learner.gradients(&[crops(16)], &settings, &mut learner.centers.clone());
        let result = learner.step(&[crops(16)], &settings).unwrap();
        (gradients.values, result, learner)
    };
    let (expected, result, _) = run(Precision::F32, false);
    for activation_checkpointing in [false, true] {
        let (found, result_of_bf16, learner) = run(Precision::Bf16, activation_checkpointing);
        for (what, found, expected) in [
            ("loss", result_of_bf16.loss, result.loss),
            ("view", result_of_bf16.view_loss, result.view_loss),
            ("region", result_of_bf16.region_loss.unwrap(), result.region_loss.unwrap()),
            ("norm", result_of_bf16.grad_norm, result.grad_norm),
        ] {
            let tolerance = if what == "norm" { 0.1 } else { 0.03 };
            assert_alike(what, &[found], &[expected], tolerance);
            assert_ne!(found, expected, "{what}");
        }
        // The teacher's pass too.
        let [entropy, expected_entropy] =
            [&result_of_bf16, &result].map(|result| result.health.unwrap().teacher_entropy);
        assert!(entropy != expected_entropy && (entropy / expected_entropy - 1.0).abs() < 0.05);
        let mut errors = Vec::new();
        let specs = learner.network.specs();
        for (index, spec) in specs.iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|g| gradient(g, index));
            let length = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let error = length(&mut found.iter().zip(&expected).map(|(a, b)| a - b))
                / length(&mut expected.iter().copied());
            assert!(error < 0.5, "{}: {error}", spec.name);
            errors.push(error);
        }
        let different = errors.iter().filter(|error| **error > 0.0).count();
        assert!(different > 40, "{different} of {}", specs.len());
        errors.sort_by(f64::total_cmp);
        assert!(errors[errors.len() / 2] < 0.1, "{errors:?}");
    }
}
