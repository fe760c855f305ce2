//! Distillation: what teacher and student see, losses by hand, prototypes and the cache. A vision transformer
//! teaches a Swin.

use std::sync::Arc;

use esvit_data::{Image, InMemory, Policy, ViewsConfig};
use esvit_nn::backbone::vit::VitConfig;
use esvit_nn::resize;
use esvit_testing::{Pair, tiny_vit};
use esvit_train::Config;
use esvit_train::memory::with_images;
use esvit_train::objective::distill::{
    Distill, DistillConfig, DistillLoss, DistillSettings, TeacherNetwork,
};
use esvit_train::objective::{ObjectiveConfig, ObjectiveSettings, Teacher};

use super::*;

const MEAN: [f64; 3] = [0.5, 0.4, 0.3];
const STD: [f64; 3] = [0.25, 0.2, 0.5];

/// A class token, a register and patches of 4 pixels: maps of twice as many tokens a side as the student's.
fn shape() -> BackboneConfig {
    let vit = VitConfig { img_size: 16, patch_size: 4, embed_dim: 6, ..tiny_vit() };
    BackboneConfig::Vit(VitConfig { register_tokens: 1, ..vit })
}

/// A teacher that sees images of `size` pixels, normalized in its own way.
fn teacher(size: usize, stream: u32) -> Arc<TeacherNetwork> {
    let config = shape();
    let (_, specs) = config.build(0.0);
    let path = "teacher.safetensors".into();
    Arc::new(TeacherNetwork::new(path, config, fill(&specs, stream), size, [MEAN, STD]))
}

/// Views of the sizes of [`crops`].
fn views() -> ViewsConfig {
    ViewsConfig {
        global_size: 16,
        local_sizes: vec![8],
        local_counts: vec![2],
        ..ViewsConfig::default()
    }
}

fn settings(loss: DistillLoss) -> DistillSettings {
    DistillSettings {
        loss,
        student_temp: 0.5,
        teacher_temp: 0.25,
        prototypes: 10,
        ..DistillSettings::default()
    }
}

const LOSSES: [DistillLoss; 3] = [DistillLoss::Cosine, DistillLoss::Mse, DistillLoss::Prototypes];

fn distilled(
    settings: DistillSettings,
    teacher: &Arc<TeacherNetwork>,
    views: &ViewsConfig,
) -> Learner {
    let mut config = DistillConfig::from(settings);
    config.attach(teacher.clone(), views).unwrap();
    let (network, objective) = Network::new(&tiny_backbone(), 0.0, |scope, width| {
        Distill::new(&config, scope, &Setup { width, blocks: 2, ..Setup::default() })
    });
    let specs = network.specs().clone();
    let (objective, kind) = (Box::new(objective), OptimizerKind::Sgd);
    let mut learner = Learner::new(network, objective, kind, SETTINGS, &Device::Cpu);
    learner.student = fill(&specs, 100);
    learner
}

/// Rows in f64.
fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    let [_, width] = tensor.dims();
    let values = tensor.to_vec::<f32>();
    values.chunks_exact(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

/// The student's rows through a projection.
fn projected(learner: &Learner, head: &str, features: &Tensor) -> Vec<Vec<f64>> {
    let value = |name: &str| -> Vec<f32> {
        let name = format!("{head}.mlp.{name}");
        learner.student.iter().find(|(spec, _)| spec.name == name).unwrap().1.to_vec()
    };
    let (weight, bias) = (value("weight"), value("bias"));
    let row = |row: Vec<f64>| -> Vec<f64> {
        let outputs = weight.chunks_exact(row.len()).zip(&bias).map(|(weight, &bias)| {
            let products = weight.iter().zip(&row).map(|(w, x)| f64::from(*w) * x);
            products.sum::<f64>() + f64::from(bias)
        });
        outputs.collect()
    };
    rows(features).into_iter().map(row).collect()
}

fn unit(row: &[f64]) -> Vec<f64> {
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    row.iter().map(|v| v / norm).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The distance of two rows by its definition.
fn distance(loss: DistillLoss, p: &[f64], t: &[f64], prototypes: &[Vec<f64>]) -> f64 {
    let width = t.len() as f64;
    match loss {
        DistillLoss::Cosine => 1.0 - dot(&unit(p), &unit(t)),
        DistillLoss::Mse => {
            let mean = t.iter().sum::<f64>() / width;
            let variance = t.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / width;
            let pairs = p.iter().zip(t);
            pairs.map(|(p, t)| (p - (t - mean) / (variance + 1e-6).sqrt()).powi(2)).sum::<f64>()
                / width
        }
        DistillLoss::Prototypes => {
            let shares = |row: &[f64], temperature: f64| -> Vec<f64> {
                let row = unit(row);
                let logits = prototypes.iter().map(|k| (dot(k, &row) / temperature).exp());
                let logits: Vec<f64> = logits.collect();
                let sum: f64 = logits.iter().sum();
                logits.into_iter().map(|l| l / sum).collect()
            };
            let pairs = shares(t, 0.25).into_iter().zip(shares(p, 0.5));
            pairs.map(|(q, p)| -q * p.ln()).sum()
        }
    }
}

/// Both parts of the loss of `batch` images, given what the teacher sees. Its maps have twice as many tokens a
/// side as the student's.
fn by_hand(learner: &Learner, loss: DistillLoss, seen: &[Tensor], batch: usize) -> [f64; 2] {
    let Teacher::Frozen(teacher) = learner.objective.teacher(&STEP) else { panic!("frozen") };
    let ctx = ForwardCtx::eval();
    let of_teacher = teacher.network.features(&teacher.params, seen, &ctx);
    let of_student = learner.network.features(&learner.student, &crops(batch), &ctx);
    let prototypes: Vec<Vec<Vec<f64>>> =
        learner.objective.state().iter().map(|state| rows(&state.value)).collect();
    let of_task = |task: usize| prototypes.get(task).map_or(&[][..], Vec::as_slice);

    let targets = rows(&of_teacher.view);
    let views = projected(learner, "head", &of_student.view);
    let count = views.len() / batch;
    let pairs = views.iter().zip(&targets);
    let view = pairs.map(|(p, t)| distance(loss, p, t, of_task(0))).sum::<f64>();

    let [students, teachers] =
        [projected(learner, "head_dense", &of_student.region), rows(&of_teacher.region)];
    let (mut region, mut own, mut others) = (0.0, 0, 0);
    for side in [2, 2, 1, 1] {
        for _ in 0..batch {
            for token in 0..side * side {
                let (row, column) = (token / side, token % side);
                let corner = others + 2 * row * 2 * side + 2 * column;
                let four = [corner, corner + 1, corner + 2 * side, corner + 2 * side + 1];
                let mean: Vec<f64> = (0..teachers[0].len())
                    .map(|c| four.iter().map(|&at| teachers[at][c]).sum::<f64>() / 4.0)
                    .collect();
                let far = distance(loss, &students[own + token], &mean, of_task(1));
                region += far / (side * side) as f64;
            }
            own += side * side;
            others += 4 * side * side;
        }
    }
    [view, region].map(|sum| sum / (batch * count) as f64)
}

/// Views from the student's normalization to the teacher's.
fn renormalized(crops: &[Tensor]) -> Vec<Tensor> {
    let views = views();
    let anew = |crop: &Tensor| {
        let [_, _, height, width] = crop.dims();
        let values = crop.to_vec::<f32>().into_iter().enumerate().map(|(i, value)| {
            let c = i / (height * width) % 3;
            ((f64::from(value) * views.std[c] + views.mean[c] - MEAN[c]) / STD[c]) as f32
        });
        Tensor::new(values.collect(), crop.shape(), &Device::Cpu)
    };
    crops.iter().map(anew).collect()
}

#[test]
fn losses_by_hand() {
    for loss in LOSSES {
        for chunks in [CropChunks::All, CropChunks::Crops(1), CropChunks::Crops(3)] {
            let mut learner = distilled(settings(loss), &teacher(16, 500), &views());
            learner.settings.crop_chunks = chunks;
            let expected = by_hand(&learner, loss, &renormalized(&crops(3)), 3);
            let unlike = by_hand(&learner, loss, &crops(3), 3);
            assert!((expected[0] / unlike[0] - 1.0).abs() > 1e-4, "normalization counts");
            let result = learner.step([batch(3)], &STEP).unwrap();
            let found = [part(&result, "view"), part(&result, "region"), result.loss];
            let [view, region] = expected;
            let expected = [view, region, 0.5 * (view + region)];
            assert_close(&format!("{loss:?}, {chunks:?}"), &found, &expected, 2e-5);
        }
        let mut alone = DistillSettings { region: false, ..settings(loss) };
        let mut learner = distilled(alone.clone(), &teacher(16, 500), &views());
        assert!(learner.network.specs().iter().all(|spec| !spec.name.starts_with("head_dense")));
        let result = learner.step([batch(3)], &STEP).unwrap();
        assert_eq!((result.parts.len(), result.loss), (1, part(&result, "view")));
        alone.region = true;
        let chance = distilled(alone, &teacher(16, 500), &views()).objective.chance_loss();
        let expected = if loss == DistillLoss::Prototypes { 10f64.ln() } else { 1.0 };
        assert!((chance - expected).abs() < 1e-12, "{chance}");
    }
}

/// A teacher for larger images sees all views larger, in whole patches.
#[test]
fn views_at_the_teachers_size() {
    let larger = |size: usize| -> Vec<Tensor> {
        let sides = [size, size, size / 2, size / 2];
        let crops = renormalized(&crops(2));
        crops.into_iter().zip(sides).map(|(crop, side)| resize::images(crop, [side; 2])).collect()
    };
    for (size, given, expected) in [(32, None, 32), (16, Some(24), 24), (40, Some(33), 32)] {
        let settings = DistillSettings { teacher_size: given, ..settings(DistillLoss::Cosine) };
        let mut learner = distilled(settings, &teacher(size, 500), &views());
        let seen = learner.objective.teacher_input(&batch(2));
        let expected = larger(expected);
        for (seen, expected) in seen.iter().zip(&expected) {
            assert_eq!(seen.shape(), expected.shape(), "{size}, {given:?}");
            assert_alike("view", &seen.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-5);
        }
    }
    let mut config = DistillConfig::from(DistillSettings {
        teacher_size: Some(1 << 20),
        ..DistillSettings::default()
    });
    let error = config.attach(teacher(16, 500), &views()).unwrap_err().to_string();
    assert!(error.starts_with("`objective.teacher_size`"), "{error}");
}

/// Views that are normalized as the teacher's, at its size, reach it as they are.
#[test]
fn views_that_need_nothing_are_not_touched() {
    let views = ViewsConfig { mean: MEAN, std: STD, ..views() };
    let mut learner = distilled(settings(DistillLoss::Cosine), &teacher(16, 500), &views);
    let seen = learner.objective.teacher_input(&batch(2));
    for (seen, crop) in seen.iter().zip(crops(2)) {
        assert_eq!(seen.to_vec::<f32>(), crop.to_vec::<f32>());
    }
}

/// The student learns and the teacher stays; nothing of the teacher is the learner's.
#[test]
fn the_teacher_stays() {
    let teacher = teacher(16, 500);
    let before = teacher.frozen.params.flat().to_vec::<f32>();
    for loss in LOSSES {
        let mut learner = distilled(settings(loss), &teacher, &views());
        let student = learner.student.flat().to_vec::<f32>();
        let first = learner.step([batch(4)], &STEP).unwrap().loss;
        for step in 1..20 {
            learner.step([batch(4)], &StepInfo { step, lr: 0.02, ..STEP }).unwrap();
        }
        let last = learner.step([batch(4)], &StepInfo { step: 20, ..STEP }).unwrap().loss;
        assert!(last < first || loss == DistillLoss::Prototypes, "{loss:?}: {first} {last}");
        assert_ne!(learner.student.flat().to_vec::<f32>(), student);
        assert!(learner.teacher.is_none());
        assert_eq!(teacher.frozen.params.flat().to_vec::<f32>(), before);
    }
}

/// The latest features of the teacher are the prototypes, however the step is cut and shared.
#[test]
fn prototypes_follow_the_steps() {
    let new = || distilled(settings(DistillLoss::Prototypes), &teacher(16, 500), &views());
    let prototypes = |learner: &Learner| -> Vec<Vec<f32>> {
        learner.objective.state().iter().map(|state| state.value.to_vec()).collect()
    };
    let names: Vec<_> = new().objective.state().iter().map(|state| state.name).collect();
    assert_eq!(names, ["prototypes", "prototypes_dense"]);
    let whole = crops(4);
    let halves: Vec<MicroBatch> = [0, 2]
        .map(|first| {
            let half = whole.iter().map(|crop| crop.clone().narrow(0, first, 2));
            MicroBatch::unlabeled(half.collect())
        })
        .into();
    let start = prototypes(&new());
    let mut at_once = new();
    at_once.step([MicroBatch::unlabeled(whole.clone())], &STEP).unwrap();
    let expected = prototypes(&at_once);
    // Four images; what was there before comes after them.
    assert_eq!(expected[0][4 * 6..], start[0][..6 * 6]);
    assert_ne!(expected[0][..4 * 6], start[0][..4 * 6]);
    let mut in_parts = new();
    in_parts.step(halves.clone(), &STEP).unwrap();
    let shared = Pair::run(|collective| {
        let mut learner = new();
        let own = halves[collective.rank()].clone();
        learner.collective = collective;
        learner.step([own], &STEP).unwrap();
        prototypes(&learner)
    });
    for found in [prototypes(&in_parts), shared[0].clone(), shared[1].clone()] {
        for (found, expected) in found.iter().zip(&expected) {
            assert_alike("prototypes", found, expected, 1e-5);
        }
    }
    // A step that fails leaves them as they are.
    let mut failed = new();
    let mut bad = batch(2);
    bad.views[3].write(0, &[f32::NAN]);
    failed.step([bad], &STEP).unwrap_err();
    assert_eq!(prototypes(&failed), start);
    failed.step([MicroBatch::unlabeled(whole)], &STEP).unwrap();
    assert_eq!(prototypes(&failed), expected);
}

/// With one view an image that is always the same, features are computed once, as far as the cache holds
/// them, and nothing else changes.
#[test]
fn cached_features_are_those_that_are_computed() {
    let views = ViewsConfig {
        global_size: 16,
        global_count: 1,
        global_scale: [1.0; 2],
        local_sizes: vec![],
        local_counts: vec![],
        flip: 0.0,
        ..ViewsConfig::for_policy(Policy::Basic)
    };
    let all = hashed_tensor(400, [5, 3, 16, 16]);
    let batch = |images: &[u64]| {
        let rows: Vec<i32> = images.iter().map(|&image| image as i32).collect();
        let views = vec![all.clone().index_select(0, rows)];
        MicroBatch { samples: images.to_vec(), ..MicroBatch::unlabeled(views) }
    };
    let order = [[0u64, 1], [2, 1], [3, 3], [1, 4], [4, 2]];
    for loss in LOSSES {
        let losses = |cache_mb: usize| -> (Vec<u32>, Vec<usize>) {
            let settings = DistillSettings { cache_mb, ..settings(loss) };
            let mut learner = distilled(settings, &teacher(16, 500), &views);
            let step = |(step, images): (u64, &[u64; 2])| {
                let seen = learner.objective.teacher_input(&batch(images));
                let count = seen.first().map_or(0, |view| view.shape()[0]);
                let at = StepInfo { step, ..STEP };
                (learner.step([batch(images)], &at).unwrap().loss.to_bits(), count)
            };
            (0..).zip(&order).map(step).unzip()
        };
        let (computed, all) = losses(0);
        assert_eq!(all, [2; 5]);
        let (cached, missing) = losses(1);
        assert_eq!(missing, [2, 1, 2, 1, 0]);
        assert_eq!(cached, computed, "{loss:?}");
    }
    let mut config = DistillConfig::from(DistillSettings { cache_mb: 1, ..settings(LOSSES[0]) });
    config.attach(teacher(16, 500), &views).unwrap();
    let remarks = config.remarks(5);
    // 17 rows of 6 values an image.
    assert!(remarks[1].contains("features of 5 images are cached, in 1 MiB"), "{remarks:?}");
    // An estimate of memory counts as much of a cache as they fill.
    config.settings.cache_mb = 7;
    let run = Config { objective: ObjectiveConfig::Distill(config.clone()), ..Config::default() };
    let mut five = InMemory::new(Vec::new());
    for name in ["a", "b", "c", "d", "e"] {
        five.push(name, None, Image::new(1, 1, vec![0; 3]).unwrap());
    }
    let ObjectiveConfig::Distill(judged) = with_images(&run, &five).objective else {
        panic!("another objective")
    };
    assert_eq!(judged.settings.cache_mb, 1);
    config.settings.cache_mb = 0;
    assert!(config.remarks(5)[1].contains("computed every time"));
    config.attach(teacher(16, 500), &super::distill::views()).unwrap();
    assert_eq!(config.remarks(5).len(), 1);
}

/// The hash tells teachers apart by their values and by how their images are normalized.
#[test]
fn what_is_recorded_of_a_teacher() {
    let record = teacher(16, 500).record();
    assert_eq!(record, teacher(32, 500).record());
    assert_eq!((record.path.as_str(), record.tensors.len()), ("teacher.safetensors", 16));
    assert_ne!(record, teacher(16, 501).record());
    let config = shape();
    let (_, specs) = config.build(0.0);
    let path = "teacher.safetensors".into();
    let other = TeacherNetwork::new(path, config, fill(&specs, 500), 16, [MEAN, MEAN]);
    assert_ne!(record, other.record());
}

#[test]
fn nothing_is_learned_without_a_teacher() {
    let config = DistillConfig::default();
    let error = config.check_ready().unwrap_err().to_string();
    assert!(error.starts_with("`teacher` is none: distillation learns from a teacher"), "{error}");
    assert!(error.contains("`--teacher PATH`"), "{error}");
    let mut attached = config;
    attached.attach(teacher(16, 500), &views()).unwrap();
    assert!(attached.check_ready().is_ok());
}
