//! The region task and its variants, and BYOL's region terms, by loops over views, images and tokens in
//! f64, with gradients by differences.

use std::ops::Range;

use esvit_nn::esvit_heads::{Predictions, RegionPredictions};
use esvit_nn::ops::{Precision, PrototypeLogits};
use esvit_train::objective::byol::region;
use esvit_train::objective::esvit::{
    self, Centers, LossSettings, NamedWeights, RegionLoss, Weights,
};
use esvit_train::objective::regions::{
    self, Matching, Regions, TRANSPORT_EPSILON, TRANSPORT_ITERATIONS,
};

use super::*;

const IMAGES: usize = 2;
const CHANNELS: usize = 3;
/// Tokens of the views: two global ones and two local ones of other sizes.
const TOKENS: [usize; 4] = [4, 4, 2, 3];
/// Regions of all views, of the global ones.
const ROWS: usize = IMAGES * 13;
const GLOBAL_ROWS: usize = IMAGES * 8;

fn rows_by(stream: u32, count: usize, width: usize) -> Rows {
    rows(&numbers(stream, count * width), width)
}

fn regions_by(stream: u32, tokens: &[usize]) -> Regions {
    let count = IMAGES * tokens.iter().sum::<usize>();
    Regions { features: hashed_tensor(stream, [count, CHANNELS]), tokens: tokens.to_vec() }
}

/// The row of a token.
fn row(view: usize, image: usize, token: usize) -> usize {
    let before: usize = TOKENS[..view].iter().sum();
    IMAGES * before + image * TOKENS[view] + token
}

/// How much each of `keys` counts for each of `queries`, by their cosine similarity.
fn shares(queries: &Rows, keys: &Rows, matching: Matching) -> Rows {
    let cosines = losses::scores(queries, &unit(keys));
    match matching {
        Matching::Sinkhorn => losses::sinkhorn(&cosines, TRANSPORT_EPSILON, TRANSPORT_ITERATIONS),
        Matching::Argmax => cosines
            .iter()
            .map(|of_query| {
                let best = of_query.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let first = of_query.iter().position(|&cosine| cosine == best).unwrap();
                (0..of_query.len()).map(|key| f64::from(key == first)).collect()
            })
            .collect(),
    }
}

/// The mean over pairs of views, images and tokens of `distance`, of a row of the student's to one of the
/// teacher's, weighted by shares. Features are those of streams 5 and 6.
fn mean_over_regions(matching: Matching, distance: &dyn Fn(usize, usize) -> f64) -> f64 {
    let [queries, keys] = [(5, ROWS), (6, GLOBAL_ROWS)].map(|(s, n)| rows_by(s, n, CHANNELS));
    let pairs = pairs(TOKENS.len());
    let mut sum = 0.0;
    for &(view, other) in &pairs {
        for image in 0..IMAGES {
            let own: Vec<usize> = (0..TOKENS[view]).map(|token| row(view, image, token)).collect();
            let among: Vec<usize> =
                (0..TOKENS[other]).map(|token| row(other, image, token)).collect();
            let pick = |rows: &Rows, of: &[usize]| -> Rows {
                of.iter().map(|&row| rows[row].clone()).collect()
            };
            let shares = shares(&pick(&queries, &own), &pick(&keys, &among), matching);
            for (own, shares) in own.iter().zip(&shares) {
                for (other, share) in among.iter().zip(shares) {
                    sum += share * distance(*own, *other) / TOKENS[view] as f64;
                }
            }
        }
    }
    sum / (pairs.len() * IMAGES) as f64
}

/// `-sum softmax((teacher - center) / temperature) log softmax(student / temperature)`.
fn cross_entropy(student: &[f64], teacher: &[f64], center: &[f64], temperatures: [f64; 2]) -> f64 {
    let log_softmax = |logits: Vec<f64>| -> Vec<f64> {
        let sum = logits.iter().map(|logit| logit.exp()).sum::<f64>();
        logits.iter().map(|logit| logit - sum.ln()).collect()
    };
    let [of_student, of_teacher] = temperatures;
    let student = log_softmax(student.iter().map(|logit| logit / of_student).collect());
    let centered = teacher.iter().zip(center).map(|(logit, center)| (logit - center) / of_teacher);
    let targets = log_softmax(centered.collect());
    -student.iter().zip(targets).map(|(student, target)| target.exp() * student).sum::<f64>()
}

fn square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

const PROTOTYPES: usize = 5;
const TEMPERATURES: [f64; 2] = [0.5, 0.3];

fn predictions(view: u32, region: Tensor, features: Tensor, tokens: &[usize]) -> Predictions {
    Predictions {
        // The loss does not look at them.
        view_features: Tensor::zeros([1, 1], &Device::Cpu),
        view_logits: PrototypeLogits::from_matrix(hashed_tensor(
            view,
            [IMAGES * tokens.len(), PROTOTYPES],
        )),
        region: Some(RegionPredictions {
            logits: PrototypeLogits::from_matrix(region),
            features,
            tokens: tokens.to_vec(),
        }),
    }
}

/// Each way of matching with each loss; features have no gradient by the match.
#[test]
fn variants_of_the_region_task() {
    for matching in [Matching::Argmax, Matching::Sinkhorn] {
        for region_loss in [RegionLoss::CrossEntropy, RegionLoss::Mse] {
            let what = format!("{matching:?}, {region_loss:?}");
            let settings = LossSettings {
                student_temp: TEMPERATURES[0],
                teacher_temp: TEMPERATURES[1],
                weights: Weights::Named(NamedWeights::Paper),
                matching,
                region_loss,
                precision: Precision::F32,
            };
            let tape = Tape::new();
            let leaf = tape.watch(hashed_tensor(3, [ROWS, PROTOTYPES]));
            let features = tape.watch(regions_by(5, &TOKENS).features);
            let student = predictions(1, leaf.clone(), features.clone(), &TOKENS);
            let of_teacher = hashed_tensor(4, [GLOBAL_ROWS, PROTOTYPES]);
            let keys = regions_by(6, &TOKENS[..2]).features;
            let teacher = predictions(2, of_teacher, keys, &TOKENS[..2]);
            let center = hashed_tensor(9, [PROTOTYPES]);
            let centers = Centers::new(hashed_tensor(8, [PROTOTYPES]), Some(center));
            let views = Views::all(TOKENS.len());
            let loss = esvit::loss(&student, &teacher, &views, &centers, &settings, None);
            let region = loss.part("region").unwrap().clone();

            let targets = rows_by(4, GLOBAL_ROWS, PROTOTYPES);
            let center = numbers(9, PROTOTYPES);
            let definition = |values: &[f64]| {
                let rows = rows(values, PROTOTYPES);
                mean_over_regions(matching, &|own, other| match region_loss {
                    RegionLoss::CrossEntropy => {
                        cross_entropy(&rows[own], &targets[other], &center, TEMPERATURES)
                    }
                    RegionLoss::Mse => square(&rows[own], &targets[other]),
                })
            };
            let values = numbers(3, ROWS * PROTOTYPES);
            assert_close(&what, &[region.item()], &[definition(&values)], 1e-5);
            let gradients = tape.backward(&region);
            let found = gradients.of(&leaf).unwrap().to_vec::<f32>();
            assert_close(&what, &found, &gradient(&values, definition), 1e-5);
            assert!(gradients.of(&features).is_none(), "{what}: no gradient through the match");
        }
    }
}

/// Views in two passes are those of one, whichever way tokens are matched.
#[test]
fn passes_match_the_same_regions() {
    let (student, teacher) = (regions_by(5, &TOKENS), regions_by(6, &TOKENS[..2]));
    for matching in [Matching::Argmax, Matching::Sinkhorn] {
        let pairs = |views: Range<usize>| {
            let first = row(views.start, 0, 0);
            let tokens = TOKENS[views.clone()].to_vec();
            let count = IMAGES * tokens.iter().sum::<usize>();
            let features = student.features.clone().narrow(0, first, count);
            let own = Regions { features, tokens };
            let found = regions::pairs(&own, &teacher, IMAGES, views.start, 6.0, matching);
            let rows = found.rows.to_vec::<i32>();
            let weights = found.weights.to_vec::<f32>();
            rows.into_iter().zip(weights).collect::<Vec<(i32, f32)>>()
        };
        let all = pairs(0..4);
        assert_eq!([pairs(0..1), pairs(1..4)].concat(), all, "{matching:?}");
        let of_all: f64 =
            all.iter().filter(|(row, _)| *row >= 0).map(|(_, weight)| f64::from(*weight)).sum();
        assert!((of_all - 1.0).abs() < 1e-5, "{matching:?}: {of_all}, a mean of means");
    }
}

/// Two tokens that are both most similar to the same one: the argmax takes that one twice, the transport
/// sends the other one elsewhere.
#[test]
fn a_transport_uses_all_tokens() {
    let of = |values: Vec<f32>, tokens: usize| Regions {
        features: Tensor::new(values, [tokens, 2], &Device::Cpu),
        tokens: vec![2; tokens / 2],
    };
    // One image with two global views, of which the second one learns from the first.
    let student = of(vec![1.0, 0.0, 1.0, 0.4], 2);
    let teacher = of(vec![1.0, 0.1, 0.0, 1.0, 9.0, 9.0, 9.0, 9.0], 4);
    let weights = |matching| {
        let found = regions::pairs(&student, &teacher, 1, 1, 1.0, matching);
        (found.rows.to_vec::<i32>(), found.weights.to_vec::<f32>())
    };
    let (rows, _) = weights(Matching::Argmax);
    assert_eq!(rows, [0, -1, 0, -1]);
    let (rows, shares) = weights(Matching::Sinkhorn);
    assert_eq!(rows, [0, 1, -1, -1, 0, 1, -1, -1]);
    // Of one half.
    let [first, second] = [&shares[..2], &shares[4..6]].map(<[f32]>::to_vec);
    assert!(first[0] > 0.49 && second[1] > 0.43, "{first:?} {second:?}");
    assert!((first[0] + first[1] - 0.5).abs() < 1e-6 && (second[0] + second[1] - 0.5).abs() < 1e-6);
}

/// BYOL's two region terms, over the same pairs.
#[test]
fn region_terms_of_byol() {
    let (student, target) = (regions_by(5, &TOKENS), regions_by(6, &TOKENS[..2]));
    let pairs = || region::matched(&student, &target, IMAGES, &Views::all(TOKENS.len()));
    let targets = rows_by(4, GLOBAL_ROWS, PROTOTYPES);
    let of_target = || hashed_tensor(4, [GLOBAL_ROWS, PROTOTYPES]);
    let center = numbers(9, PROTOTYPES);
    let values = numbers(3, ROWS * PROTOTYPES);
    let check = |what: &str, loss: &dyn Fn(Tensor) -> Tensor, definition: &dyn Fn(&Rows) -> f64| {
        let tape = Tape::new();
        let leaf = tape.watch(hashed_tensor(3, [ROWS, PROTOTYPES]));
        let definition = |values: &[f64]| definition(&rows(values, PROTOTYPES));
        let found = loss(leaf.clone());
        assert_close(what, &[found.item()], &[definition(&values)], 3e-5);
        let found = tape.backward(&found).of(&leaf).unwrap().to_vec::<f32>();
        assert_close(what, &found, &gradient(&values, definition), 3e-5);
    };
    // The sum over both directions, as for views.
    let unit_targets = unit(&targets);
    check("MSE", &|rows| region::mse(rows, of_target(), pairs()), &|rows| {
        let rows = unit(rows);
        let distance = |own: usize, other: usize| square(&rows[own], &unit_targets[other]);
        2.0 * mean_over_regions(Matching::Argmax, &distance)
    });
    let softmax = |rows| {
        let [student, target] = [rows, of_target()].map(PrototypeLogits::from_matrix);
        let center = hashed_tensor(9, [PROTOTYPES]);
        region::softmax(student, target, center, pairs(), Precision::F32)
    };
    check("softmax", &softmax, &|rows| {
        mean_over_regions(Matching::Argmax, &|own, other| {
            cross_entropy(&rows[own], &targets[other], &center, [0.1, 0.04])
        })
    });
}
