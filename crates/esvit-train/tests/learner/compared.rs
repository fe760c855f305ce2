//! Objectives beside EsViT's in the loop: micro-batches are one batch and processes are one run, even
//! where images are compared with each other.

use esvit_nn::params::ParamId;
use esvit_nn::weights;
use esvit_train::checkpoint::Checkpoint;
use esvit_train::objective::byol::{ByolConfig, ByolRegionConfig, ByolRegionLoss};
use esvit_train::objective::densecl::DenseClConfig;
use esvit_train::objective::moby::MobyConfig;
use esvit_train::objective::mocov2::MocoV2Config;
use esvit_train::objective::mocov3::MocoV3Config;
use esvit_train::objective::simclr::SimClrConfig;
use esvit_train::objective::swav::SwavConfig;
use esvit_train::objective::{
    Chunking, EmaTiming, FEATURE_STD, ObjectiveConfig, Teacher, feature_std,
};

use super::collective::{apart, together};
use super::*;

/// A learner of this objective; student and teacher differ.
pub(super) fn of(objective: &ObjectiveConfig, backbone: &BackboneConfig) -> Learner {
    let (network, objective) = Network::new(backbone, 0.5, |scope, width| {
        let blocks = backbone.blocks();
        let masking = backbone.masking();
        let setup = Setup { width, blocks, masking, images: 4, seed: 3, ..Setup::default() };
        objective.settings().build(scope, &setup)
    });
    let specs = network.specs().clone();
    let kind = OptimizerKind::Sgd;
    // Small steps, since rounding grows with each.
    let clip_scope = ClipScope::Global;
    let settings = LearnerSettings { clip_grad: Some(0.05), clip_scope, ..SETTINGS };
    let mut learner = Learner::new(network, objective, kind, settings, &Device::Cpu);
    learner.student = fill(&specs, 100);
    if learner.teacher.is_some() {
        learner.teacher = Some(fill(&specs, 200));
    }
    learner
}

const HIDDEN: usize = 8;
const OUT: usize = 6;
const QUEUE: usize = 10;

fn mocov2() -> Learner {
    let config = MocoV2Config {
        queue_length: QUEUE,
        momentum_teacher: MOMENTUM,
        out_dim: OUT,
        ..MocoV2Config::default()
    };
    of(&ObjectiveConfig::MocoV2(config), &tiny_backbone())
}

fn mocov3() -> Learner {
    let config = MocoV3Config {
        momentum_teacher: MOMENTUM,
        hidden_dim: HIDDEN,
        out_dim: OUT,
        ..MocoV3Config::default()
    };
    of(&ObjectiveConfig::MocoV3(config), &tiny_backbone())
}

fn moby() -> Learner {
    let config = MobyConfig {
        queue_length: QUEUE,
        momentum_teacher: MOMENTUM,
        hidden_dim: HIDDEN,
        out_dim: OUT,
        ..MobyConfig::default()
    };
    of(&ObjectiveConfig::Moby(config), &tiny_backbone())
}

fn simclr() -> Learner {
    let config = SimClrConfig { temperature: 0.5, out_dim: OUT, ..SimClrConfig::default() };
    of(&ObjectiveConfig::SimClr(config), &tiny_backbone())
}

fn byol() -> Learner {
    byol_with(ByolRegionLoss::None)
}

fn byol_with(loss: ByolRegionLoss) -> Learner {
    let config = ByolConfig {
        momentum_teacher: MOMENTUM,
        hidden_dim: HIDDEN,
        out_dim: OUT,
        region: ByolRegionConfig { loss, head: head(false, false) },
    };
    of(&ObjectiveConfig::Byol(config), &tiny_backbone())
}

fn byol_mse() -> Learner {
    byol_with(ByolRegionLoss::Mse)
}

fn byol_softmax() -> Learner {
    byol_with(ByolRegionLoss::Softmax)
}

fn swav() -> Learner {
    let config = SwavConfig {
        prototypes: 7,
        queue_length: 8,
        queue_start: Span::NONE,
        freeze_prototypes: Span::Steps(1),
        hidden_dim: HIDDEN,
        out_dim: OUT,
        ..SwavConfig::default()
    };
    of(&ObjectiveConfig::Swav(config), &tiny_backbone())
}

fn densecl() -> Learner {
    let config = DenseClConfig {
        queue_length: QUEUE,
        momentum_teacher: MOMENTUM,
        hidden_dim: HIDDEN,
        out_dim: OUT,
        ..DenseClConfig::default()
    };
    of(&ObjectiveConfig::DenseCl(config), &tiny_backbone())
}

type Named = (&'static str, fn() -> Learner);

const ALL: [Named; 9] = [
    ("mocov2", mocov2),
    ("mocov3", mocov3),
    ("moby", moby),
    ("simclr", simclr),
    ("byol", byol),
    ("byol", byol_mse),
    ("byol", byol_softmax),
    ("swav", swav),
    ("densecl", densecl),
];

/// Two images each, of as many in one.
fn micro_batches(count: usize) -> Vec<MicroBatch> {
    let whole = crops(2 * count);
    let one = |first: usize| {
        let views = whole.iter().map(|crop| crop.clone().narrow(0, first, 2)).collect();
        numbered(first, views)
    };
    (0..count).map(|index| one(2 * index)).collect()
}

/// A micro-batch of images that are numbered from `first`.
fn numbered(first: usize, views: Vec<Tensor>) -> MicroBatch {
    let batch = MicroBatch::unlabeled(views);
    let samples = (first as u64..).take(batch.images()).collect();
    MicroBatch { samples, ..batch }
}

/// Halves of four images in one micro-batch.
pub(super) fn halves() -> ([MicroBatch; 2], [MicroBatch; 1]) {
    (micro_batches(2).try_into().unwrap(), [numbered(0, crops(4))])
}

/// Within a share of the largest entry; what is all rounding is not compared.
pub(super) fn alike(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let is_rounding = |values: &[f32]| values.iter().all(|value| value.abs() < 2e-6);
    if is_rounding(expected) {
        assert!(is_rounding(found), "{what}");
    } else {
        assert_alike(what, found, expected, tolerance);
    }
}

/// Two micro-batches are one batch of twice the size, dropped branches, queues and running statistics
/// included: also where images are compared, or heads normalize by all of them.
#[test]
fn micro_batches_are_one_batch() {
    for (name, new) in ALL {
        let (halves, whole) = halves();
        let [by_half, at_once] =
            [&halves[..], &whole[..]].map(|batches| new().gradients(batches.to_vec(), &STEP));
        for (index, spec) in new().network.specs().iter().enumerate() {
            if spec.role != Role::Trained {
                continue;
            }
            let what = format!("{name}, {}", spec.name);
            let found = [&by_half, &at_once].map(|gradients| gradients.values.get(index));
            match found {
                [Some(found), Some(expected)] => {
                    alike(&what, &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-4);
                }
                [None, None] => {}
                found => panic!("{what}: {found:?}"),
            }
        }
        let [mut by_half, mut at_once] = [new(), new()];
        for step in 0..3 {
            let at = StepInfo { step, health: true, ..STEP };
            let found = by_half.step(halves.clone(), &at).unwrap();
            let expected = at_once.step(whole.clone(), &at).unwrap();
            let numbers = |result: &StepResult| {
                let parts = result.parts.iter().map(|part| part.1);
                parts.chain([result.loss, result.grad_norm]).collect::<Vec<f32>>()
            };
            alike(name, &numbers(&found), &numbers(&expected), 1e-4);
            // Health is that of all images of the step, too.
            let [found, expected] = [found, expected].map(|result| result.health.unwrap());
            for (signal, of_whole) in expected.signals {
                let of_halves = found.signal(signal).unwrap();
                let is_near = (of_halves - of_whole).abs() <= 1e-3 * of_whole.abs().max(0.1);
                assert!(is_near, "{name}, {signal}: {of_halves} instead of {of_whole}");
            }
        }
        let values = |learner: &Learner| -> Vec<Vec<f32>> {
            let networks = std::iter::once(&learner.student).chain(&learner.teacher);
            let networks = networks.flat_map(|params| params.values());
            let state = learner.objective.state().into_iter().map(|state| state.value);
            networks.chain(state).map(|value| value.to_vec()).collect()
        };
        for (found, expected) in values(&by_half).iter().zip(&values(&at_once)) {
            alike(name, found, expected, 2e-4);
        }
    }
}

/// Two learners, each with a micro-batch or two, are one with all of them.
#[test]
fn processes_are_one_run() {
    for ((name, new), count) in ALL.into_iter().flat_map(|named| [2, 4].map(|n| (named, n))) {
        let steps = vec![micro_batches(count); 3];
        let expected = together(new, &steps);
        let [first, second] = apart(new, &steps);
        assert!(first.state == second.state, "{name}: both have the same bits");
        assert_eq!(first.state.len(), expected.state.len());
        for (found, expected) in first.state.iter().zip(&expected.state) {
            let values = |bits: &[u32]| -> Vec<f32> {
                bits.iter().map(|&bits| f32::from_bits(bits)).collect()
            };
            alike(name, &values(found), &values(expected), 2e-4);
        }
        let [found, expected] = [first.result, expected.result].map(Result::unwrap);
        alike(name, &[found.loss, found.grad_norm], &[expected.loss, expected.grad_norm], 1e-4);
    }
}

/// A step that is not ended leaves everything as it was, prototypes of unit length included; and so does
/// one that is stopped between the micro-batches.
#[test]
fn a_step_that_is_not_ended_changes_nothing() {
    for (name, new) in ALL {
        let mut learner = new();
        let (halves, _) = halves();
        learner.step(halves.clone(), &STEP).unwrap();
        let before = state(&learner);
        let mut bad = halves.clone();
        for view in &mut bad[1].views {
            view.write(0, &[f32::NAN]);
        }
        let at = StepInfo { step: 1, ..STEP };
        learner.step(bad, &at).unwrap_err();
        assert!(state(&learner) == before, "{name}");
        let mut gradients = learner.begin(2, &at);
        assert!(learner.add(&mut gradients, &halves[0], &at, &|| false), "{name}");
        assert!(!learner.add(&mut gradients, &halves[1], &at, &|| true), "{name}");
        learner.abandon(gradients);
        assert!(state(&learner) == before, "{name}");
        // The next one is as if there had been none.
        let mut other = new();
        other.step(halves.clone(), &STEP).unwrap();
        for learner in [&mut learner, &mut other] {
            learner.step(halves.clone(), &at).unwrap();
        }
        assert!(state(&learner) == state(&other), "{name}");
    }
}

/// Queues, centers and places in them are others after every step.
#[test]
fn what_an_objective_holds_follows_each_step() {
    for (name, new) in ALL {
        let mut learner = new();
        let (halves, _) = halves();
        let held = |learner: &Learner| -> Vec<(&'static str, Vec<f32>)> {
            let state = learner.objective.state().into_iter();
            state.map(|state| (state.name, state.value.to_vec())).collect()
        };
        for step in 0..2 {
            let before = held(&learner);
            learner.step(halves.clone(), &StepInfo { step, ..STEP }).unwrap();
            for ((held, before), (_, after)) in before.iter().zip(held(&learner)) {
                assert!(*before != after, "{name}: {held} after step {step}");
            }
        }
    }
}

/// The passes that each lets be cut, and the teacher that it has.
#[test]
fn how_each_goes_through_the_loop() {
    for (name, new) in ALL {
        let learner = new();
        let config = ObjectiveConfig::named(name).unwrap();
        let compares = config.settings().chunking() == Chunking::ByImage;
        assert_eq!(learner.objective.compares_images(), compares, "{name}");
        assert_eq!(compares, !["mocov2", "densecl"].contains(&name));
        assert_eq!(config.settings().global_views(), 2);
        let expected = match name {
            "simclr" | "swav" => None,
            "byol" => Some(EmaTiming::AfterStep),
            _ => Some(EmaTiming::BeforeForward),
        };
        let timing = match learner.objective.teacher(&STEP) {
            Teacher::Ema { timing, .. } => Some(timing),
            _ => None,
        };
        assert_eq!((timing, learner.teacher.is_some()), (expected, expected.is_some()), "{name}");
        let [found, student] =
            [learner.evaluated(), &learner.student].map(|p| p.flat().to_vec::<f32>());
        assert!(found == student, "{name}: the student is evaluated");
        // MoCo-v2's keys are those of the second view, and its queries those of all others.
        let is_one_sided = ["mocov2", "densecl"].contains(&name);
        let seen = if is_one_sided { 1..2 } else { 0..2 };
        assert_eq!(learner.objective.teacher_views(), seen, "{name}");
        let mut objective = learner.objective;
        let views = objective.student_views(&batch(2), [0, 0]);
        let all = crops(2);
        let expected: Vec<&Tensor> = match name {
            "simclr" => all[..2].iter().collect(),
            _ if is_one_sided => all[..1].iter().chain(&all[2..]).collect(),
            _ => all.iter().collect(),
        };
        let values = |views: Vec<&Tensor>| -> Vec<Vec<f32>> {
            views.into_iter().map(|view| view.to_vec()).collect()
        };
        assert!(values(views.iter().collect()) == values(expected), "{name}");
    }
}

/// Where views may go through in several passes, their losses add up.
#[test]
fn passes_of_some_views() {
    for (name, new) in [("mocov2", mocov2 as fn() -> Learner), ("densecl", densecl)] {
        let (_, whole) = halves();
        let expected = new().gradients(whole.clone(), &STEP).values;
        let loss = new().step(whole.clone(), &STEP).unwrap().loss;
        for crop_chunks in [CropChunks::Crops(1), CropChunks::Crops(2)] {
            let cut = || {
                let mut learner = new();
                learner.settings.crop_chunks = crop_chunks;
                learner
            };
            let found = cut().gradients(whole.clone(), &STEP).values;
            for (index, spec) in new().network.specs().iter().enumerate() {
                let [found, expected] = [&found, &expected].map(|gradients| gradients.get(index));
                let Some((found, expected)) = found.zip(expected) else { continue };
                let what = format!("{name}, {}", spec.name);
                alike(&what, &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-4);
            }
            let result = cut().step(whole.clone(), &STEP).unwrap();
            assert_alike(name, &[result.loss], &[loss], 1e-5);
        }
    }
}

/// Views have what cells leave.
#[test]
fn weights_of_views_and_cells() {
    let config = DenseClConfig {
        queue_length: QUEUE,
        loss_lambda: 0.25,
        hidden_dim: HIDDEN,
        out_dim: OUT,
        ..DenseClConfig::default()
    };
    let mut learner = of(&ObjectiveConfig::DenseCl(config), &tiny_backbone());
    let (_, whole) = halves();
    let result = learner.step(whole, &STEP).unwrap();
    let [single, dense] = ["single", "dense"].map(|name| f64::from(part(&result, name)));
    assert!((single - dense).abs() > 1e-3, "{single} {dense}");
    assert_close("loss", &[result.loss], &[0.75 * single + 0.25 * dense], 1e-5);
}

/// The projection of patches stays, with its moments; the norm behind it learns. With the setting off
/// both learn.
#[test]
fn a_patch_embedding_that_stays_random() {
    for is_fixed in [true, false] {
        let config = MocoV3Config {
            freeze_patch_embed: is_fixed,
            hidden_dim: HIDDEN,
            out_dim: OUT,
            ..MocoV3Config::default()
        };
        let config = ObjectiveConfig::MocoV3(config);
        let new = || of(&config, &tiny_backbone());
        let (_, whole) = halves();
        let all = new().gradients(whole.clone(), &STEP);
        let norm = optim::clip(&all.values, None, ClipScope::Global).0.item();
        let mut learner = new();
        let before = learner.student.clone();
        let result = learner.step(whole, &STEP).unwrap();
        assert_eq!(result.grad_norm < norm, is_fixed, "its gradient counts for nothing");
        for (index, (spec, value)) in learner.student.iter().enumerate() {
            if !spec.name.starts_with("patch_embed.") {
                continue;
            }
            let stays = is_fixed && spec.name.starts_with("patch_embed.proj.");
            let same = value.to_vec::<f32>() == before.value(index).to_vec::<f32>();
            assert_eq!(same, stays, "{}", spec.name);
            assert_eq!(learner.optimizer.updates(index), u64::from(!stays), "{}", spec.name);
        }
    }
}

/// The student's prototypes, by their place.
fn prototypes(learner: &Learner) -> (usize, Vec<f32>) {
    let mut parameters = learner.student.iter().enumerate();
    let (index, (_, value)) =
        parameters.find(|(_, (spec, _))| spec.name == "prototypes.weight").unwrap();
    (index, value.to_vec())
}

/// They have unit length in every step, and learn after the first.
#[test]
fn prototypes_have_unit_length_and_are_frozen_at_first() {
    let mut learner = swav();
    let lengths = |values: &[f32]| -> Vec<f32> {
        values.chunks_exact(OUT).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt()).collect()
    };
    let (index, start) = prototypes(&learner);
    assert!(lengths(&start).iter().all(|length| (length - 1.0).abs() > 1e-3));
    let (_, whole) = halves();
    for step in 0..3 {
        let at = StepInfo { step, ..STEP };
        let frozen = learner.objective.frozen(&at).into_iter().map(ParamId::index);
        assert_eq!(frozen.collect::<Vec<_>>(), if step == 0 { vec![index] } else { vec![] });
        learner.step(whole.clone(), &at).unwrap();
        let after = lengths(&prototypes(&learner).1);
        let is_unit = after.iter().all(|length| (length - 1.0).abs() < 1e-6);
        assert_eq!(is_unit, step == 0, "the optimizer has moved them since");
        assert_eq!(learner.optimizer.updates(index), step);
    }
}

/// A residual network normalizes each view by itself in MoCo-v3: another second view changes nothing of
/// what the first gives, and the running statistics move with both.
#[test]
fn batch_statistics_of_every_view() {
    let backbone = BackboneConfig::ResNet(tiny_resnet());
    let config = MocoV3Config { hidden_dim: HIDDEN, out_dim: OUT, ..MocoV3Config::default() };
    let learner = of(&ObjectiveConfig::MocoV3(config), &backbone);
    assert!(learner.network.has_batch_norm());
    let views: Vec<Tensor> = (0..2).map(|i| hashed_tensor(400 + i, [4, 3, 32, 32])).collect();
    let features = |views: &[Tensor], by_crop: bool| {
        let ctx = ForwardCtx::teacher();
        let features = match by_crop {
            true => learner.network.features_by_crop(&learner.student, views, &ctx),
            false => learner.network.features(&learner.student, views, &ctx),
        };
        (features.view.narrow(0, 0, 4).to_vec::<f32>(), ctx.into_statistics().len())
    };
    let other = [views[0].clone(), views[1].clone() * -0.5];
    let (found, count) = features(&views, true);
    assert!(count > 0);
    assert_alike("another second view", &features(&other, true).0, &found, 1e-5);
    assert_alike("alone", &features(&views[..1], false).0, &found, 1e-5);
    let together = features(&views, false).0;
    let differs = together.iter().zip(&found).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(differs, "statistics of both are others");
    // In the loop.
    let loss = |views: &[Tensor]| {
        let mut learner = of(
            &ObjectiveConfig::MocoV3(MocoV3Config {
                hidden_dim: HIDDEN,
                out_dim: OUT,
                ..MocoV3Config::default()
            }),
            &backbone,
        );
        let before = learner.student.clone();
        let result = learner.step([MicroBatch::unlabeled(views.to_vec())], &STEP).unwrap();
        let moved = learner.student.iter().zip(before.values()).filter(|((spec, now), before)| {
            spec.role == Role::Buffer && now.to_vec::<f32>() != before.to_vec::<f32>()
        });
        (result.loss, moved.count())
    };
    let (found, moved) = loss(&views);
    assert!(found.is_finite() && moved > 10);
}

/// A frozen backbone stays to the bit with every objective, however a step is cut; heads learn.
#[test]
fn frozen_backbones_stay() {
    let at = StepInfo { run: RunLength { total_steps: 10, steps_per_epoch: 5 }, ..STEP };
    let (halves, whole) = halves();
    for (name, new) in ALL {
        for batches in [&halves[..], &whole] {
            let mut learner = new();
            learner.settings.freeze_backbone = Span::Steps(at.step + 1);
            let networks = |learner: &Learner| -> Vec<Params> {
                [&learner.student].into_iter().chain(&learner.teacher).cloned().collect()
            };
            let before = networks(&learner);
            learner.step(batches.to_vec(), &at).unwrap();
            let mut moved = 0;
            for (old, new) in before.iter().zip(networks(&learner)) {
                for (index, spec) in learner.network.specs().iter().enumerate() {
                    let stays =
                        old.value(index).to_vec::<f32>() == new.value(index).to_vec::<f32>();
                    assert!(stays || !spec.part.is_backbone(), "{name}: {}", spec.name);
                    moved += usize::from(!stays);
                }
            }
            assert!(moved > 0, "{name}");
        }
    }
}

/// MoBY's own checkpoint has projectors and predictor beside its encoders: the student begins as the one
/// that learned, the teacher as the one that followed it.
#[test]
fn a_learner_begins_from_both_networks_of_an_official_checkpoint() {
    let trained = moby();
    let named = |params: &Params, key: &str| -> Vec<weights::Entry> {
        let place = |(name, tensor): weights::Entry| match name.split_once('.') {
            Some(("projector", rest)) => Some((format!("projector{key}.{rest}"), tensor)),
            Some(("predictor", _)) => key.is_empty().then_some((name, tensor)),
            _ => Some((format!("encoder{key}.{name}"), tensor)),
        };
        weights::entries("", params).into_iter().filter_map(place).collect()
    };
    let mut entries = named(&trained.student, "");
    entries.extend(named(teacher_of(&trained), "_k"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moby.safetensors");
    let mut bytes = Vec::new();
    esvit_weights::write_safetensors(&mut bytes, &entries, &Default::default()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let file = Checkpoint::open(&path).unwrap();

    let mut begun = moby();
    let specs = begun.network.specs().clone();
    let old = fill(&specs, 300);
    (begun.student, begun.teacher) = (old.clone(), Some(old.clone()));
    let loaded = file.initialize(&mut begun, None).unwrap();
    assert_eq!(loaded.found, ["backbone", "projector", "predictor"]);
    assert!(loaded.new.is_empty(), "{:?}", loaded.new);
    for (index, spec) in specs.iter().enumerate() {
        let [of_student, of_teacher, expected, followed, before] =
            [&begun.student, teacher_of(&begun), &trained.student, teacher_of(&trained), &old]
                .map(|params| params.value(index).to_vec::<f32>());
        assert_eq!(of_student, expected, "{}", spec.name);
        let followed = if spec.part.is_student_only() { before } else { followed };
        assert_eq!(of_teacher, followed, "{}", spec.name);
    }
    // A network that is named is that of both.
    file.initialize(&mut begun, Some("encoder_k")).unwrap();
    let at = specs.iter().position(|spec| spec.name == "norm.weight").unwrap();
    let [of_student, followed] =
        [&begun.student, teacher_of(&trained)].map(|params| params.value(at).to_vec::<f32>());
    assert_eq!(of_student, followed);
}

/// The spread of what is evaluated is a sign of health, unless there are too few images to tell.
#[test]
fn spread_of_features() {
    for make in [mocov2, mocov3, moby, simclr, byol, swav, densecl] {
        let mut learner = make();
        let at = StepInfo { health: true, ..STEP };
        let spread = |learner: &mut Learner, images: usize| {
            let batch = MicroBatch::unlabeled(crops(images));
            learner.step([batch], &at).unwrap().health.unwrap().signal(FEATURE_STD)
        };
        let found = spread(&mut learner, 4).unwrap();
        let ctx = ForwardCtx::eval();
        let backbone = learner.network.backbone();
        let features = backbone.forward(learner.evaluated(), crops(4)[0].clone(), &ctx);
        let expected = feature_std(features.view);
        assert!((found - expected).abs() < 1e-6 && found > 0.0, "{found} {expected}");
        assert_eq!(spread(&mut learner, 3), None);
    }
}
