//! Objectives and optimizers against values of the official code, hand formulas and finite
//! differences.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use esvit_nn::Params;
use esvit_nn::esvit_heads::{Predictions, RegionPredictions};
use esvit_nn::ops::{self, MatchGroup, Precision, PrototypeLogits};
use esvit_nn::params::{Init, ParamList, Registry};
use esvit_nn::{Device, ParamGradients, Solo, Tape, Tensor};
use esvit_testing::{assert_close, check_gradients, hash, hashed, hashed_tensor, hashed_times};
use esvit_train::objective::esvit::{
    self, Centers, LossSettings, NamedWeights, RegionLoss, Weights,
};
use esvit_train::objective::regions::Matching;
use esvit_train::objective::{Loss, Views};
use esvit_train::optim::{self, ClipScope, Optimizer, OptimizerKind, UpdateSettings};
use esvit_train::schedule::TemperatureSchedule;

const CENTER_MOMENTUM: f64 = 0.9;

fn settings(epoch: u64) -> LossSettings {
    let teacher = TemperatureSchedule { warmup: 0.04, last: 0.07, length: 30 };
    LossSettings {
        student_temp: 0.1,
        teacher_temp: teacher.at(epoch),
        weights: Weights::Named(NamedWeights::Reference),
        matching: Matching::Argmax,
        region_loss: RegionLoss::CrossEntropy,
        precision: Precision::F32,
    }
}

/// Two images, two global crops of 4 tokens and two local ones of 2, 5 prototypes.
struct Case {
    tape: Tape,
    student_view: Tensor,
    student_region: Tensor,
    student_features: Tensor,
    teacher: Predictions,
}

impl Case {
    fn new() -> Self {
        let tape = Tape::new();
        let region = RegionPredictions {
            logits: PrototypeLogits::from_matrix(hashed_tensor(4, [16, 5])),
            features: hashed_tensor(6, [16, 3]),
            tokens: vec![4; 2],
        };
        Self {
            student_view: tape.watch(hashed_tensor(1, [8, 5])),
            student_region: tape.watch(hashed_tensor(3, [24, 5])),
            student_features: tape.watch(hashed_tensor(5, [24, 3])),
            teacher: predictions(hashed_tensor(2, [4, 5]), Some(region)),
            tape,
        }
    }

    fn student(&self) -> Predictions {
        let region = RegionPredictions {
            logits: PrototypeLogits::from_matrix(self.student_region.clone()),
            features: self.student_features.clone(),
            tokens: vec![4, 4, 2, 2],
        };
        predictions(self.student_view.clone(), Some(region))
    }
}

fn predictions(view_logits: Tensor, region: Option<RegionPredictions>) -> Predictions {
    // The objective does not look at view features.
    let view_features = Tensor::zeros([1, 1], &Device::Cpu);
    Predictions { view_features, view_logits: PrototypeLogits::from_matrix(view_logits), region }
}

/// The weighted sum.
fn scalar(loss: &Loss) -> [f32; 1] {
    [loss.total().item()]
}

/// The loss of all four views in the first epoch.
fn loss_of(student: &Predictions, teacher: &Predictions, centers: &Centers) -> Loss {
    esvit::loss(student, teacher, &Views::all(4), centers, &settings(0), None)
}

/// Loss, gradients and centers of both tasks together.
#[test]
fn view_and_region_task() {
    let case = Case::new();
    let (student, teacher) = (case.student(), &case.teacher);
    let mut centers = Centers::zeros(5, true, &Device::Cpu);

    let loss = loss_of(&student, teacher, &centers);
    assert_close("loss", &scalar(&loss), &[8.402898], 5e-6);
    let parts: Vec<_> = loss.parts.iter().map(|part| (part.name, part.weight)).collect();
    assert_eq!(parts, [("view", 0.5), ("region", 0.5)]);
    let [view, region] = ["view", "region"].map(|part| loss.part(part).unwrap().item());
    assert_close("half of each task", &[0.5 * (view + region)], &[8.402898], 5e-6);

    let gradients = case.tape.backward(&loss.total());
    let row = |tensor: &Tensor| gradients.of(tensor).unwrap().to_vec::<f32>()[..5].to_vec();
    let expected = [0.026771, -0.198348, 0.382144, -0.211137, 0.00057];
    assert_close("view gradient", &row(&case.student_view), &expected, 2e-6);
    let expected = [0.022819, 0.000011, 0.033959, -0.025978, -0.030812];
    assert_close("region gradient", &row(&case.student_region), &expected, 2e-6);
    assert!(gradients.of(&case.student_features).is_none(), "no gradient through the match");

    centers.observe(teacher);
    centers.update(CENTER_MOMENTUM, &Solo);
    let expected = [-0.018811, 0.064982, 0.003913, 0.030025, -0.01128];
    assert_close("center", &centers.view.to_vec::<f32>(), &expected, 1e-6);
    let expected = [-0.007342, 0.005995, -0.001919, -0.018885, -0.008416];
    assert_close(
        "region center",
        &centers.region.as_ref().unwrap().to_vec::<f32>(),
        &expected,
        1e-6,
    );

    let student = Case::new().student();
    let loss = esvit::loss(&student, teacher, &Views::all(4), &centers, &settings(29), None);
    assert_close("second loss", &scalar(&loss), &[8.382052], 5e-6);
}

/// The view task alone, plain and with every crop mixed of 0.3 of itself and 0.7 of the other.
#[test]
fn view_task() {
    let case = Case::new();
    let student = predictions(case.student_view.clone(), None);
    let teacher = predictions(case.teacher.view_logits.z.clone(), None);
    let centers = Centers::zeros(5, false, &Device::Cpu);
    let loss = |mixing: Option<&[Vec<f32>]>| {
        let views = Views::all(4);
        scalar(&esvit::loss(&student, &teacher, &views, &centers, &settings(0), mixing))
    };
    assert_close("loss", &loss(None), &[8.798439], 5e-6);
    let mixing = vec![0.3f32, 0.7, 0.7, 0.3];
    assert_close("mixed loss", &loss(Some(&vec![mixing; 4])), &[7.523733], 5e-6);
}

/// With two sizes of local crops, with one of a single token, and without any.
#[test]
fn gradients_of_the_objective() {
    const BATCH: usize = 2;
    const PROTOTYPES: usize = 5;
    for tokens in [vec![4, 4, 2, 2, 3], vec![4, 4, 1], vec![4, 4]] {
        let rows = BATCH * tokens.iter().sum::<usize>();
        let views = BATCH * tokens.len();
        let region = RegionPredictions {
            logits: PrototypeLogits::from_matrix(hashed_tensor(4, [BATCH * 8, PROTOTYPES])),
            features: hashed_tensor(6, [BATCH * 8, 3]),
            tokens: vec![4; 2],
        };
        let teacher = predictions(hashed_tensor(2, [2 * BATCH, PROTOTYPES]), Some(region));
        let center = |stream| hashed_tensor(stream, [PROTOTYPES]) * 0.1;
        let centers = Centers::new(center(8), Some(center(9)));
        // Ten times the logits: a step then is small compared with the student's temperature.
        let inputs = [1, 3].map(|stream| {
            hashed_times(stream, if stream == 1 { views } else { rows } * PROTOTYPES, 10.0)
        });
        let what = format!("objective, tokens {tokens:?}");
        check_gradients(&what, &inputs, |v| {
            let region = RegionPredictions {
                logits: PrototypeLogits::from_matrix(
                    v[1].clone().reshape([rows, PROTOTYPES]) * 0.1,
                ),
                features: hashed_tensor(5, [rows, 3]),
                tokens: tokens.clone(),
            };
            let student =
                predictions(v[0].clone().reshape([views, PROTOTYPES]) * 0.1, Some(region));
            let views = Views::all(tokens.len());
            esvit::loss(&student, &teacher, &views, &centers, &settings(0), None).total()
        });
    }
}

fn fused(student: &Tensor, teacher: &Tensor, groups: &[MatchGroup]) -> Vec<i32> {
    ops::best_matches(student, teacher, groups, 1).to_vec()
}

fn composed(student: &Tensor, teacher: &Tensor, groups: &[MatchGroup]) -> Vec<i32> {
    let groups = groups.iter().map(|group| (group.queries.clone(), group.keys.clone()));
    let groups: Vec<_> = groups.collect();
    let found = esvit_testing::composed::best_matches(student.clone(), teacher.clone(), &groups);
    found.into_iter().map(|row| row as i32).collect()
}

/// Where a group asks, in its column; -1 elsewhere.
#[test]
fn matches_stand_in_their_columns() {
    let [queries, keys] = [[5, 3], [6, 3]].map(|shape| hashed_tensor(shape[0] as u32, shape));
    let group = |queries, keys, column| MatchGroup { queries, keys, column };
    let groups = [group(1..3, 0..2, 1), group(4..5, 3..6, 0), group(0..2, 2..6, 0)];
    let found = ops::best_matches(&queries, &keys, &groups, 2);
    assert_eq!(found.dims(), [5, 2]);
    let mut expected = vec![-1; 10];
    let mut by_group = composed(&queries, &keys, &groups).into_iter();
    for group in &groups {
        for (row, key) in group.queries.clone().zip(&mut by_group) {
            expected[row * 2 + group.column] = key;
        }
    }
    assert_eq!(found.to_vec::<i32>(), expected);
}

/// Equal teacher tokens: the first is the match, wherever the product of the matrices computes
/// them.
#[test]
fn the_first_of_equal_matches_wins() {
    const WIDTH: usize = 96;
    for [batch, student_tokens, teacher_tokens] in
        [[1, 1, 4], [2, 9, 49], [3, 49, 49], [1, 36, 196]]
    {
        // Tokens repeat after the first third.
        let distinct = teacher_tokens / 3;
        let rows = (0..batch * teacher_tokens).flat_map(|row| {
            let (image, token) = (row / teacher_tokens, row % teacher_tokens % distinct);
            let row: Vec<f64> =
                (0..WIDTH).map(|i| hash(1, (image * distinct + token) * WIDTH + i)).collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.into_iter().map(move |v| (v / norm) as f32)
        });
        let teacher: Tensor =
            Tensor::new(rows.collect(), [batch * teacher_tokens, WIDTH], &Device::Cpu);
        let student = hashed_tensor(2, [batch * student_tokens, WIDTH]);
        let groups: Vec<MatchGroup> = (0..batch)
            .map(|image| {
                let of = image * student_tokens..(image + 1) * student_tokens;
                let keys = image * teacher_tokens..(image + 1) * teacher_tokens;
                MatchGroup { queries: of, keys, column: 0 }
            })
            .collect();
        for find in [fused, composed] {
            for row in find(&student, &teacher, &groups) {
                let index = row as usize % teacher_tokens;
                assert!(index < distinct, "{index} of {distinct} distinct ones");
            }
        }
    }

    // The whole loss: with equal teacher features, all rows learn from token 0.
    let mut case = Case::new();
    let student = case.student();
    let region = case.teacher.region.as_mut().unwrap();
    let first = region.features.clone().narrow(0, 0, 1);
    region.features = Tensor::cat(vec![first; 16], 0);
    let centers = Centers::zeros(5, true, &Device::Cpu);
    let tied = loss_of(&student, &case.teacher, &centers);
    let region = case.teacher.region.as_mut().unwrap();
    let first = region.logits.z.clone().reshape([4, 4, 5]).narrow(1, 0, 1);
    let repeated = Tensor::cat(vec![first; 4], 1).reshape([16, 5]);
    region.logits = PrototypeLogits::from_matrix(repeated);
    let of_first = loss_of(&student, &case.teacher, &centers);
    assert_eq!(scalar(&tied), scalar(&of_first));
}

/// A matrix, a vector, and a bias of two dimensions, which is not decayed.
fn parameters() -> Params {
    let mut registry = Registry::default();
    registry.root().param("w", &[2, 3], Init::Zeros);
    registry.root().param("b", &[3], Init::Zeros);
    registry.root().at("c").param("bias", &[1, 2], Init::Zeros);
    let mut stream = 10;
    Params::from_fn(&registry.finish(), &Device::Cpu, |spec| {
        stream += 1;
        hashed(stream, spec.len())
    })
}

fn gradients(
    list: &Arc<ParamList>,
    values: impl IntoIterator<Item = Option<Tensor>>,
) -> ParamGradients {
    let mut gradients = ParamGradients::new(list, &Device::Cpu);
    for (index, value) in values.into_iter().enumerate() {
        if let Some(value) = value {
            gradients.add(index, value);
        }
    }
    gradients
}

/// Factors of gradients.
fn scales(scales: &[f64]) -> Tensor {
    Tensor::from_vec(scales.to_vec(), &Device::Cpu)
}

const LR: f64 = 0.5;
const DECAY: f64 = 0.04;
const EMA: f64 = 0.75;
const UPDATE: UpdateSettings<'_> = UpdateSettings { lrs: &[LR; 3], weight_decay: DECAY };

/// The matrix is adapted and decayed, the vector neither.
#[test]
fn lars() {
    let mut params = parameters();
    let mut optimizer = Optimizer::new(OptimizerKind::Lars, params.specs(), &Device::Cpu);
    let found = [Some(hashed_tensor(13, [6])), Some(hashed_tensor(14, [3])), None];
    let gradients = gradients(params.specs(), found);
    let mut teacher = params.clone();
    optimizer.step(&mut params, Some((&mut teacher, EMA)), &gradients, &scales(&[1.0; 3]), &UPDATE);
    let expected = [-0.853116, 0.76792, -0.878982, 0.037363, -0.958242, -0.747526];
    assert_close("matrix", &params.values()[0].to_vec::<f32>(), &expected, 1e-6);
    let expected = [0.60172, -1.364341, -0.996615];
    assert_close("vector", &params.values()[1].to_vec::<f32>(), &expected, 1e-6);
    assert_eq!(params.values()[2].to_vec::<f32>(), hashed(13, 2), "no gradient, no change");
    assert_eq!(optimizer.updates(2), 0);
}

/// Three steps by the textbook, in f64.
#[test]
fn sgd_and_adamw() {
    for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let mut params = parameters();
        let mut teacher = parameters();
        let mut optimizer = Optimizer::new(kind, params.specs(), &Device::Cpu);
        let mut by_hand: Vec<Vec<[f64; 3]>> = params
            .values()
            .iter()
            .map(|value| value.to_vec::<f32>().iter().map(|&v| [v.into(), 0.0, 0.0]).collect())
            .collect();
        for step in 1..=3 {
            let stream = |parameter: usize| (20 * step + parameter) as u32;
            let before = teacher.clone();
            // The scale undoes what the gradients were multiplied by.
            let found = [6, 3, 2].into_iter().enumerate();
            let found = found.map(|(p, len)| Some(hashed_tensor(stream(p), [len]) * 4.0));
            let gradients = gradients(params.specs(), found);
            let follower = Some((&mut teacher, EMA));
            optimizer.step(&mut params, follower, &gradients, &scales(&[0.25; 3]), &UPDATE);
            for ((before, after), value) in
                before.values().iter().zip(teacher.values()).zip(params.values())
            {
                let expected = before.clone() * EMA + value.clone() * 0.25;
                assert_eq!(after.to_vec::<f32>(), expected.to_vec::<f32>());
            }
            for (parameter, entries) in by_hand.iter_mut().enumerate() {
                let decay = if parameter == 0 { DECAY } else { 0.0 };
                for (i, [value, first, second]) in entries.iter_mut().enumerate() {
                    let gradient = hash(stream(parameter), i);
                    if kind == OptimizerKind::Sgd {
                        *first = 0.9 * *first + gradient + decay * *value;
                        *value -= LR * *first;
                    } else {
                        *value -= LR * decay * *value;
                        *first = 0.9 * *first + 0.1 * gradient;
                        *second = 0.999 * *second + 0.001 * gradient * gradient;
                        let mean = *first / (1.0 - 0.9f64.powi(step as i32));
                        let square = *second / (1.0 - 0.999f64.powi(step as i32));
                        *value -= LR * mean / (square.sqrt() + 1e-8);
                    }
                }
            }
        }
        for (found, expected) in params.values().iter().zip(&by_hand) {
            let expected: Vec<f64> = expected.iter().map(|entry| entry[0]).collect();
            assert_close(&format!("{kind:?}"), &found.to_vec::<f32>(), &expected, 3e-6);
        }
    }
}

#[test]
fn clipping_by_tensor_and_by_all() {
    let mut registry = Registry::default();
    for name in ["a", "b", "c"] {
        registry.root().param(name, &[2], Init::Zeros);
    }
    let vector = |values: [f32; 2]| Some(Tensor::from_vec(values.to_vec(), &Device::Cpu));
    let found = [vector([3.0, -4.0]), None, vector([0.3, 0.4])];
    let gradients = gradients(&registry.finish(), found);
    let total = 25.25f64.sqrt();
    for (limit, scope, scales) in [
        (Some(3.0), ClipScope::Tensor, [3.0 / 5.0, 1.0]),
        (Some(3.0), ClipScope::Global, [3.0 / total; 2]),
        (Some(5.01), ClipScope::Tensor, [1.0; 2]),
        (Some(5.01), ClipScope::Global, [5.01 / total; 2]),
        (None, ClipScope::Global, [1.0; 2]),
    ] {
        let (norm, found) = optim::clip(&gradients, limit, scope);
        assert_close("norm before", &[norm.item()], &[total], 1e-6);
        let found = found.to_vec::<f64>();
        for (place, scale) in [0, 2].into_iter().zip(scales) {
            let what = format!("{limit:?}, {scope:?}");
            assert_close(&what, &[found[place] as f32], &[scale], 1e-6);
        }
    }
}
