//! What a step of the learner keeps, changes and leaves alone, on a tiny network.

#![allow(clippy::unwrap_used)]

#[path = "learner/checkpoint.rs"]
mod checkpoint;

#[path = "learner/collective.rs"]
mod collective;

#[path = "learner/compared.rs"]
mod compared;

#[path = "learner/dinov2.rs"]
mod dinov2;

#[path = "learner/distill.rs"]
mod distill;

#[path = "learner/igpt.rs"]
mod igpt;

#[path = "learner/layers.rs"]
mod layers;

#[path = "learner/masked_patch.rs"]
mod masked_patch;

#[path = "learner/region.rs"]
mod region;

#[path = "learner/supervised.rs"]
mod supervised;

#[path = "learner/teacher.rs"]
mod teacher;

use std::any::Any;
use std::cell::Cell;

use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::esvit_heads::Predictions;
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::params::Role;
use esvit_nn::{BackboneConfig, Device, ForwardCtx, Network, ParamGradients, Params, Tensor};
use esvit_testing::{assert_alike, assert_close, fill, hashed_tensor, tiny_resnet, tiny_swin};
use esvit_train::learner::{LearnerSettings, StepResult};
use esvit_train::mixup::MixupConfig;
use esvit_train::objective::esvit::{Centers, Esvit, EsvitConfig, examine};
use esvit_train::objective::{MicroBatch, Setup, StepInfo};
use esvit_train::optim::{self, ClipScope, Optimizer, OptimizerKind, UpdateSettings};
use esvit_train::span::{RunLength, Span};
use esvit_train::{CropChunks, Learner};

/// A step at the start of a long run: the teacher's momentum is that of the settings.
const STEP: StepInfo = StepInfo {
    step: 0,
    epoch: 0,
    run: RunLength { total_steps: u64::MAX, steps_per_epoch: u64::MAX },
    lr: 0.1,
    weight_decay: 0.04,
    health: false,
};
const TEACHER_TEMP: f64 = 0.04;
/// Of the teacher.
const MOMENTUM: f64 = 0.5;

/// Both tasks; student, teacher and centers differ from each other and from zero.
fn learner(kind: OptimizerKind, norm_last_layer: bool, use_bn_in_head: bool) -> Learner {
    learner_with_drop_path(kind, norm_last_layer, use_bn_in_head, 0.0)
}

fn tiny_backbone() -> BackboneConfig {
    let swin = SwinConfig { img_size: 16, embed_dim: 4, window_size: 2, ..tiny_swin() };
    BackboneConfig::Swin(swin)
}

/// A network with the heads of EsViT.
fn network(
    backbone: &BackboneConfig,
    drop_path: f64,
    config: &EsvitConfig,
    seed: u64,
) -> (Network, Esvit) {
    Network::new(backbone, drop_path, |scope, width| {
        let setup = Setup {
            width,
            blocks: backbone.blocks(),
            masking: backbone.masking(),
            classes: 0,
            images: 0,
            seed,
            precision: Precision::F32,
            device: Device::Cpu,
            ..Setup::default()
        };
        Esvit::new(config, scope, &setup)
    })
}

fn head(norm_last_layer: bool, use_bn_in_head: bool) -> HeadConfig {
    HeadConfig {
        out_dim: 6,
        hidden_dim: 8,
        bottleneck_dim: 4,
        layers: 3,
        use_bn_in_head,
        norm_last_layer,
    }
}

const SETTINGS: LearnerSettings = LearnerSettings {
    seed: 0,
    clip_grad: Some(3.0),
    clip_scope: ClipScope::Tensor,
    precision: Precision::F32,
    crop_chunks: CropChunks::All,
    activation_checkpointing: false,
    layer_decay: 1.0,
    freeze_backbone: Span::NONE,
};

fn learner_with_drop_path(
    kind: OptimizerKind,
    norm_last_layer: bool,
    use_bn_in_head: bool,
    drop_path: f64,
) -> Learner {
    let config = EsvitConfig {
        teacher_temp: TEACHER_TEMP,
        momentum_teacher: MOMENTUM,
        freeze_last_layer: Span::NONE,
        head: head(norm_last_layer, use_bn_in_head),
        ..EsvitConfig::default()
    };
    let (network, mut objective) = network(&tiny_backbone(), drop_path, &config, SETTINGS.seed);
    let specs = network.specs().clone();
    objective.centers.view = hashed_tensor(300, [6]) * 0.1;
    objective.centers.region = Some(hashed_tensor(301, [6]) * 0.1);
    let mut learner = Learner::new(network, Box::new(objective), kind, SETTINGS, &Device::Cpu);
    learner.student = fill(&specs, 100);
    learner.teacher = Some(fill(&specs, 200));
    learner
}

fn esvit(learner: &Learner) -> &Esvit {
    let objective: &dyn Any = &*learner.objective;
    objective.downcast_ref().unwrap()
}

fn esvit_mut(learner: &mut Learner) -> &mut Esvit {
    let objective: &mut dyn Any = &mut *learner.objective;
    objective.downcast_mut().unwrap()
}

fn centers(learner: &Learner) -> &Centers {
    &esvit(learner).centers
}

fn teacher_of(learner: &Learner) -> &Params {
    learner.teacher.as_ref().unwrap()
}

/// A learner of the same state and settings.
fn learner_like(learner: &Learner) -> Learner {
    let Esvit { config, centers, precision, .. } = esvit(learner);
    let (_, mut objective) = network(&tiny_backbone(), 0.0, config, learner.settings.seed);
    (objective.centers, objective.precision) = (centers.clone(), *precision);
    let mut like = Learner::new(
        learner.network.clone(),
        Box::new(objective),
        learner.optimizer.kind(),
        learner.settings.clone(),
        &Device::Cpu,
    );
    like.student = learner.student.clone();
    like.teacher = learner.teacher.clone();
    like.optimizer = learner.optimizer.clone();
    like
}

/// What the networks with these parameters say of crops in training, without drop path.
fn predictions(learner: &Learner, params: &Params, crops: &[Tensor]) -> Predictions {
    let ctx = ForwardCtx::teacher();
    let features = learner.network.features(params, crops, &ctx);
    esvit(learner).heads.forward(params, features, crops[0].shape()[0], &ctx)
}

/// A part of the loss, which the step has.
fn part(result: &StepResult, name: &str) -> f32 {
    result.part(name).unwrap()
}

/// [`crops`] without labels.
fn batch(images: usize) -> MicroBatch {
    MicroBatch::unlabeled(crops(images))
}

/// Two global and two local crops of `images` images.
fn crops(images: usize) -> Vec<Tensor> {
    let sizes = [16, 16, 8, 8].into_iter().zip(400..);
    sizes.map(|(size, stream)| hashed_tensor(stream, [images, 3, size, size]) * 1.7).collect()
}

/// Every number that a learner holds, as bits.
fn state(learner: &Learner) -> Vec<Vec<u32>> {
    let bits = |tensor: &Tensor| tensor.to_vec::<f32>().iter().map(|v| v.to_bits()).collect();
    let mut state: Vec<Vec<u32>> = std::iter::once(&learner.student)
        .chain(&learner.teacher)
        .flat_map(|params| params.values())
        .map(|value| bits(&value))
        .collect();
    state.extend(learner.objective.state().iter().map(|state| bits(&state.value)));
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
    let halves = [0, 2].map(|first| {
        let half = whole.iter().map(|crop| crop.clone().narrow(0, first, 2));
        MicroBatch::unlabeled(half.collect())
    });
    let whole = [MicroBatch::unlabeled(whole)];
    let new = || learner(OptimizerKind::Sgd, false, false);

    let [by_half, at_once] =
        [&halves[..], &whole[..]].map(|batches| new().gradients(batches.to_vec(), &STEP));
    for (index, spec) in new().network.specs().iter().enumerate() {
        let [by_half, at_once] = [&by_half, &at_once].map(|g| gradient(&g.values, index));
        assert_alike(&spec.name, &by_half, &at_once, 1e-5);
    }

    let [mut by_half, mut at_once] = [new(), new()];
    for step in 0..2 {
        let at = StepInfo { step, ..STEP };
        let half = by_half.step(halves.clone(), &at).unwrap();
        let whole = at_once.step(whole.clone(), &at).unwrap();
        assert_eq!([half.parts.len(), whole.parts.len()], [2; 2]);
        for [half, whole] in [
            [half.loss, whole.loss],
            [part(&half, "view"), part(&whole, "view")],
            [part(&half, "region"), part(&whole, "region")],
            [half.grad_norm, whole.grad_norm],
        ] {
            assert_alike("result", &[half], &[whole], 1e-5);
        }
    }
    let check = |what: &str, a: &Tensor, b: &Tensor| {
        assert_alike(what, &a.to_vec::<f32>(), &b.to_vec::<f32>(), 2e-5);
    };
    check("center", &centers(&by_half).view, &centers(&at_once).view);
    let [region, expected] = [&by_half, &at_once].map(|l| centers(l).region.as_ref().unwrap());
    check("region center", region, expected);
    for (by_half, at_once) in
        [(&by_half.student, &at_once.student), (teacher_of(&by_half), teacher_of(&at_once))]
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
    let batch = [batch(3)];
    let gradients = |crop_chunks: CropChunks, activation_checkpointing: bool| {
        let mut learner = learner_with_drop_path(OptimizerKind::Sgd, false, false, 0.5);
        learner.settings.crop_chunks = crop_chunks;
        learner.settings.activation_checkpointing = activation_checkpointing;
        learner.gradients(batch.clone(), &STEP).values
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
        esvit_mut(&mut learner).config.freeze_last_layer = Span::Epochs(2.0);
        for epoch in [1, 2, 0] {
            let freeze_last_layer = epoch < 2;
            let before = (learner.student.clone(), learner.optimizer.clone());
            learner.step([batch(2)], &StepInfo { epoch, ..STEP }).unwrap();
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
        learner.step([batch(2)], &STEP).unwrap();
        let before = state(&learner);
        for bad in [f32::NAN, f32::INFINITY] {
            for crop in [0, 3] {
                let mut bad_batch = batch(2);
                bad_batch.views[crop].write(0, &[bad]);
                let at = StepInfo { health: true, ..STEP };
                let error = learner.step([batch(2), bad_batch], &at).unwrap_err();
                assert!(!error.loss.is_finite() || !error.grad_norm.is_finite(), "{error}");
                assert!(state(&learner) == before, "{kind:?}, {bad} in crop {crop}");
            }
        }
        learner.step([batch(2)], &STEP).unwrap();
        assert!(state(&learner) != before);
    }
}

/// It is asked after every block of the teacher's pass, and once before the student's.
#[test]
fn a_step_stops_within_the_pass_of_a_teacher() {
    let asks = |last: usize| {
        let mut learner = learner(OptimizerKind::AdamW, true, false);
        let before = state(&learner);
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() == last
        };
        let mut gradients = learner.begin(1, &STEP);
        let is_added = learner.add(&mut gradients, &batch(2), &STEP, &stop);
        learner.abandon(gradients);
        assert!(state(&learner) == before);
        (is_added, asked.get())
    };
    let blocks = learner(OptimizerKind::AdamW, true, false).network.backbone().blocks();
    assert!(blocks > 1);
    for last in 1..=blocks + 1 {
        assert_eq!(asks(last), (false, last));
    }
    assert_eq!(asks(usize::MAX), (true, blocks + 1));
}

/// What a step that failed has noted does not count in the next one: neither the teacher's logits
/// for the centers nor its health. Nor does what gradients alone have noted.
#[test]
fn what_a_failed_step_has_noted_is_forgotten() {
    let mut learner = learner(OptimizerKind::Sgd, false, false);
    let mut alone = learner_like(&learner);
    let mut bad = batch(2);
    // The teacher sees nothing of it, so that its logits are finite.
    bad.views[3].write(0, &[f32::NAN]);
    bad.views[0] = bad.views[0].clone() * -2.0;
    learner.step([bad.clone(), bad], &StepInfo { health: true, ..STEP }).unwrap_err();
    let other = crops(2).into_iter().map(|crop| crop * 0.5).collect();
    learner.gradients([MicroBatch::unlabeled(other)], &STEP);
    let [found, expected] =
        [&mut learner, &mut alone].map(|learner| learner.step([batch(2)], &STEP).unwrap());
    assert_eq!(found, expected);
    assert!(state(&learner) == state(&alone));
}

/// Running statistics of a backbone move with every micro-batch, from where the one before has left
/// them, and however crops are cut into passes.
#[test]
fn running_statistics_move_with_every_pass() {
    let backbone = BackboneConfig::ResNet(tiny_resnet());
    let new = |crop_chunks: CropChunks| {
        let config = EsvitConfig { head: head(false, false), ..EsvitConfig::default() };
        let (network, objective) = network(&backbone, 0.0, &config, SETTINGS.seed);
        let (settings, device) = (LearnerSettings { crop_chunks, ..SETTINGS }, Device::Cpu);
        let mut learner =
            Learner::new(network, Box::new(objective), OptimizerKind::Sgd, settings, &device);
        learner.student = fill(learner.network.specs(), 100);
        learner
    };
    let statistics = |learner: &Learner| -> Vec<f32> {
        let buffers = learner.student.iter().filter(|(spec, _)| spec.role == Role::Buffer);
        buffers.flat_map(|(_, value)| value.to_vec::<f32>()).collect()
    };
    // Nothing is learned in between.
    let at = StepInfo { lr: 0.0, ..STEP };
    let other =
        || MicroBatch::unlabeled(crops(2).into_iter().map(|crop| crop * 0.5).collect::<Vec<_>>());
    let mut both = new(CropChunks::All);
    both.step([batch(2), other()], &at).unwrap();
    let mut each = new(CropChunks::All);
    each.step([batch(2)], &at).unwrap();
    let first = statistics(&each);
    each.step([other()], &at).unwrap();
    assert_alike("micro-batches", &statistics(&both), &statistics(&each), 1e-6);
    assert_ne!(statistics(&both), first);
    // Global and local crops in a pass each: the same statistics, and gradients.
    let mut cut = new(CropChunks::Sizes(1.0));
    cut.step([batch(2)], &at).unwrap();
    assert_alike("crops", &statistics(&cut), &first, 1e-6);
    let [found, expected] = [CropChunks::Sizes(1.0), CropChunks::All]
        .map(|crop_chunks| new(crop_chunks).gradients([batch(2)], &STEP).values);
    for (index, spec) in cut.network.specs().iter().enumerate() {
        if spec.role == Role::Trained {
            let [found, expected] = [&found, &expected].map(|values| gradient(values, index));
            assert_alike(&spec.name, &found, &expected, 1e-4);
        }
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
    let (student, old) = (shifted(&learner.student, 1.0), shifted(teacher_of(&learner), -2.0));
    let (mut new, mut unchanged) = (old.clone(), student.clone());
    let lrs = vec![0.1; specs.len()];
    let settings = UpdateSettings { lrs: &lrs, weight_decay: 0.0 };
    let none = ParamGradients::new(&specs, &Device::Cpu);
    let scales = Tensor::from_vec(vec![1.0f64; specs.len()], &Device::Cpu);
    let mut optimizer = Optimizer::new(OptimizerKind::Sgd, &specs, &Device::Cpu);
    optimizer.step(&mut unchanged, Some((&mut new, 0.75)), &none, &scales, &settings);
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
    learner.teacher = Some(old.clone());
    learner.step([batch(2)], &STEP).unwrap();
    for (i, spec) in specs.iter().enumerate() {
        let [student, before, teacher, old] =
            [&learner.student, &student, teacher_of(&learner), &old]
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
fn all_gradients(learner: &Learner, batches: &[MicroBatch], at: &StepInfo) -> Vec<f32> {
    let gradients = learner_like(learner).gradients(batches.to_vec(), at);
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
        learner.step([batch(2)], &STEP).unwrap();
        let at = StepInfo { step: 1, health: true, ..STEP };
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
            esvit_mut(&mut learner).config.student_temp = 1e-30;
        } else {
            // Logits of 1e37.
            set("weight_g", 0.0, 1e18);
            set("mlp.2.weight", 0.0, 0.0);
            set("mlp.2.bias", 0.0, 0.0);
            set("mlp.4.bias", 0.0, 5e18);
            set("weight_v", 1e19, 0.0);
            let config = &mut esvit_mut(&mut learner).config;
            (config.student_temp, config.teacher_temp) = (1e-19, 1e20);
        }
        let count = if infinite_gradient {
            2
        } else {
            // As many as it takes for the sum of their finite losses.
            let one = learner_like(&learner).step([batch(2)], &at).unwrap().loss;
            assert!(one > 1e36, "{one}");
            (f32::MAX / one) as usize + 2
        };
        let before = state(&learner);
        let error = learner.step(vec![batch(2); count], &at).unwrap_err();
        assert_eq!(error.loss.is_finite(), infinite_gradient, "{error}");
        assert_eq!(error.grad_norm.is_finite(), !infinite_gradient, "{error}");
        assert!(state(&learner) == before, "{error}");
    }
}

/// The draws of dropped branches and of mixed images are those of seed, step and micro-batch:
/// the same crops twice give another gradient than once, unless nothing is drawn.
#[test]
fn draws_differ_by_micro_batch_step_and_seed() {
    let off = MixupConfig::default();
    let on = MixupConfig { enabled: true, ..off };
    for (drop_path, mixup, drawn) in [(0.5, off, true), (0.0, on, true), (0.0, off, false)] {
        let mut learner = learner_with_drop_path(OptimizerKind::Sgd, false, false, drop_path);
        esvit_mut(&mut learner).config.mixup = mixup;
        let once = all_gradients(&learner, &[batch(2)], &STEP);
        let twice = all_gradients(&learner, &[batch(2), batch(2)], &STEP);
        let later = all_gradients(&learner, &[batch(2)], &StepInfo { step: 1, ..STEP });
        assert!(once == all_gradients(&learner, &[batch(2)], &STEP), "the same again");
        learner.settings.seed = 1;
        let seeded = all_gradients(&learner, &[batch(2)], &STEP);
        let largest = once.iter().fold(0.0f32, |largest, value| value.abs().max(largest));
        for (what, other) in [("micro-batch", twice), ("step", later), ("seed", seeded)] {
            let far = once.iter().zip(&other).any(|(a, b)| (a - b).abs() > 1e-3 * largest);
            assert_eq!(far, drawn, "{what}, drop path {drop_path}, {mixup:?}");
        }
    }
}

/// Mixing changes what the student sees and nothing of the teacher's; switched off, the rest of its
/// settings do not count.
#[test]
fn only_the_students_images_are_mixed() {
    let mut learner = learner(OptimizerKind::Sgd, false, false);
    let at = StepInfo { health: true, ..STEP };
    let mut result = |mixup: MixupConfig| {
        esvit_mut(&mut learner).config.mixup = mixup;
        let mut learner = learner_like(&learner);
        let result = learner.step([batch(2)], &at).unwrap();
        (result, centers(&learner).view.to_vec::<f32>())
    };
    let off = MixupConfig::default();
    let (plain, center) = result(MixupConfig { views: 0, ..off });
    assert_eq!(result(off), (plain.clone(), center.clone()));
    let (mixed, center_of_mixed) = result(MixupConfig { enabled: true, ..off });
    assert_ne!(part(&mixed, "view"), part(&plain, "view"));
    assert_eq!((mixed.health, center_of_mixed), (plain.health, center));
}

/// One step by hand, from the gradients: clipping, the optimizer, the moving average and the
/// centers. What is compared are the changes, not the values.
#[test]
fn a_step_by_hand() {
    const LIMIT: f64 = 0.02;
    for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let mut learner = learner(kind, true, false);
        learner.settings.clip_grad = Some(LIMIT);
        esvit_mut(&mut learner).config.center_momentum = 0.8;
        let before = learner_like(&learner);
        let gradients = learner.gradients([batch(2)], &STEP).values;
        assert!(state(&learner) == state(&before), "gradients alone change nothing");
        let result = learner.step([batch(2)], &STEP).unwrap();
        let mut squares = 0.0;
        for (i, spec) in before.network.specs().iter().enumerate() {
            let [old, new, old_teacher, new_teacher] =
                [&before.student, &learner.student, teacher_of(&before), teacher_of(&learner)]
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
        let [view, region] = ["view", "region"].map(|name| part(&result, name));
        assert_alike("loss", &[result.loss], &[0.5 * view + 0.5 * region], 1e-6);
        assert_eq!(result.health, None);

        let teacher = predictions(&before, teacher_of(&before), &crops(2)[..2]);
        let logits = [teacher.view_logits, teacher.region.unwrap().logits].map(|l| l.matrix());
        let [old, new] = [&before, &learner]
            .map(|learner| [&centers(learner).view, centers(learner).region.as_ref().unwrap()]);
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
    let teacher = predictions(&learner, teacher_of(&learner), &crops(2)[..2]);
    let expected = examine(&teacher, centers(&learner), TEACHER_TEMP);
    assert_eq!(expected.signal("rows"), Some(4.0));
    let other = crops(2).into_iter().map(|crop| crop * 0.5).collect();
    let batches = [batch(2), MicroBatch::unlabeled(other)];
    let result = learner.step(batches.clone(), &StepInfo { health: true, ..STEP }).unwrap();
    assert_eq!(result.health, Some(expected));
    // A step that does not ask for it has not that of an earlier one.
    assert_eq!(learner.step(batches.clone(), &STEP).unwrap().health, None);
}

/// Half as many bits: loss and gradients are nearly the same, and not quite. Rounding grows where the
/// four channels of a patch differ little and are normalized, and with sharper distributions.
#[test]
fn bf16_is_near_f32() {
    let at = StepInfo { health: true, ..STEP };
    let run = |precision: Precision, activation_checkpointing: bool| {
        let mut learner = learner(OptimizerKind::Sgd, false, false);
        let objective = esvit_mut(&mut learner);
        (objective.config.student_temp, objective.config.teacher_temp) = (0.5, 0.2);
        objective.precision = precision;
        learner.settings.precision = precision;
        learner.settings.activation_checkpointing = activation_checkpointing;
        let gradients = learner.gradients([batch(16)], &at);
        let result = learner.step([batch(16)], &at).unwrap();
        (gradients.values, result, learner)
    };
    let (expected, result, _) = run(Precision::F32, false);
    for activation_checkpointing in [false, true] {
        let (found, result_of_bf16, learner) = run(Precision::Bf16, activation_checkpointing);
        for (what, found, expected) in [
            ("loss", result_of_bf16.loss, result.loss),
            ("view", part(&result_of_bf16, "view"), part(&result, "view")),
            ("region", part(&result_of_bf16, "region"), part(&result, "region")),
            ("norm", result_of_bf16.grad_norm, result.grad_norm),
        ] {
            let tolerance = if what == "norm" { 0.1 } else { 0.03 };
            assert_alike(what, &[found], &[expected], tolerance);
            assert_ne!(found, expected, "{what}");
        }
        // The teacher's pass too.
        let [entropy, expected_entropy] = [&result_of_bf16, &result]
            .map(|result| result.health.as_ref().unwrap().signal("teacher_entropy").unwrap());
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

/// A step reads its loss and the norm of its gradient back, once, however many micro-batches, chunks
/// and parameters there are; on a device every other read would wait for all work before it.
/// Once there are gradients, nothing holds the parameters any more, which the update would copy then.
#[test]
fn an_update_is_in_place() {
    for mixup in [false, true] {
        let mut learner = learner(OptimizerKind::AdamW, false, false);
        esvit_mut(&mut learner).config.mixup.enabled = mixup;
        learner.gradients([batch(2), batch(2)], &STEP);
        assert!(!learner.student.flat().is_shared() && !teacher_of(&learner).flat().is_shared());
    }
}

#[test]
fn a_step_reads_from_the_device_once() {
    use esvit_nn::tensor::host_reads;
    for (region, mixup) in [(true, false), (false, true)] {
        let mut learner = learner(OptimizerKind::AdamW, region, false);
        esvit_mut(&mut learner).config.mixup.enabled = mixup;
        learner.settings.crop_chunks = CropChunks::Crops(1);
        for micro_batches in [1, 3] {
            let batches = vec![MicroBatch::unlabeled(crops(2)); micro_batches];
            let before = host_reads();
            learner.step(batches.clone(), &STEP).unwrap();
            assert_eq!(host_reads() - before, 1, "{micro_batches}, region {region}");
        }
    }
}
