use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use proptest::prelude::*;

struct Case {
    d: usize,
    z: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    teacher_z: Vec<f32>,
    teacher_v: Vec<f32>,
    teacher_g: Vec<f32>,
    center: Vec<f32>,
    pairs: Pairs,
}

const TEMPERATURES: [f32; 2] = [0.1, 0.05];

impl Case {
    fn new(rows: usize, teachers: usize, prototypes: usize, d: usize) -> Self {
        let mut rng = Rng::new(17, [rows as u64, prototypes as u64, d as u64]);
        let mut pairs = Pairs::new();
        for row in 0..rows {
            let count = row % 3;
            // Teachers that are half of all apart depend on each other.
            let teacher = |i: usize| (row * 5 + i * teachers.div_ceil(2)) % teachers;
            pairs.push((0..count).map(|i| (teacher(i), 0.1 + 0.3 * i as f32)));
        }
        let mut unit = |rows: usize| -> Vec<f32> {
            let mut values: Vec<f32> = (0..rows * d).map(|_| rng.normal() as f32).collect();
            for row in values.chunks_exact_mut(d) {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter_mut().for_each(|v| *v /= norm);
            }
            values
        };
        let (z, teacher_z) = (unit(rows), unit(teachers));
        let mut values = |n: usize, low: f64, high: f64| -> Vec<f32> {
            (0..n).map(|_| rng.uniform_in(low, high) as f32).collect()
        };
        Self {
            d,
            z,
            v: values(prototypes * d, -1.0, 1.0),
            g: values(prototypes, 0.5, 1.5),
            teacher_z,
            teacher_v: values(prototypes * d, -1.0, 1.0),
            teacher_g: values(prototypes, 0.5, 1.5),
            center: values(prototypes, -0.2, 0.2),
            pairs,
        }
    }

    fn sides(&self) -> [Side<'_>; 2] {
        [
            Side {
                z: &self.z,
                prototypes: Prototypes { v: &self.v, g: &self.g },
                temperature: TEMPERATURES[0],
            },
            Side {
                z: &self.teacher_z,
                prototypes: Prototypes { v: &self.teacher_v, g: &self.teacher_g },
                temperature: TEMPERATURES[1],
            },
        ]
    }

    fn logits(&self, z: &[f64], v: &[f64], g: &[f64]) -> Vec<Vec<f64>> {
        let rows = v.chunks_exact(self.d).zip(g).map(|(v, g)| {
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            v.iter().map(|v| v * g / norm).collect::<Vec<f64>>()
        });
        let rows: Vec<Vec<f64>> = rows.collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        z.chunks_exact(self.d).map(|z| rows.iter().map(|w| dot(z, w)).collect()).collect()
    }

    /// The loss by its definition, for the student's `z`, `v`, `g` in one vector.
    fn definition(&self, all: &[f64]) -> f64 {
        let (z, rest) = all.split_at(self.z.len());
        let (v, g) = rest.split_at(self.v.len());
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let log_softmax = |logits: Vec<f64>| -> Vec<f64> {
            let total = logits.iter().map(|s| s.exp()).sum::<f64>().ln();
            logits.into_iter().map(|s| s - total).collect()
        };
        let teachers: Vec<Vec<f64>> = self
            .logits(&wide(&self.teacher_z), &wide(&self.teacher_v), &wide(&self.teacher_g))
            .into_iter()
            .map(|logits| {
                let centered = logits.iter().zip(&self.center);
                let scaled =
                    centered.map(|(s, &c)| (s - f64::from(c)) / f64::from(TEMPERATURES[1]));
                log_softmax(scaled.collect()).into_iter().map(f64::exp).collect()
            })
            .collect();
        let students = self.logits(z, v, g).into_iter().enumerate().map(|(row, logits)| {
            let scaled = logits.iter().map(|s| s / f64::from(TEMPERATURES[0]));
            let logs = log_softmax(scaled.collect());
            let pair = |(teacher, weight): (usize, f32)| -> f64 {
                let cross = teachers[teacher].iter().zip(&logs).map(|(q, log)| -q * log);
                f64::from(weight) * cross.sum::<f64>()
            };
            self.pairs.of(row).map(pair).sum::<f64>()
        });
        students.sum()
    }

    fn check<T: Element>(&self, within: f64) {
        for max_rows in [1, 20, 1000] {
            self.check_in_parts::<T>(max_rows, within);
        }
    }

    fn check_in_parts<T: Element>(&self, max_rows: usize, within: f64) {
        let [student, teacher] = self.sides();
        let loss = |gradients| {
            let sides = [&student, &teacher];
            cross_entropy_in_parts::<T>(sides, &self.center, &self.pairs, gradients, max_rows)
        };
        let ((found, gradients), (again, none)) = (loss(true), loss(false));
        assert!(again == found && none.is_none());
        let all: Vec<f64> =
            [&self.z[..], &self.v, &self.g].concat().into_iter().map(f64::from).collect();
        let expected = self.definition(&all);
        assert!((f64::from(found) - expected).abs() < within * expected.abs().max(1.0));
        let gradients = gradients.unwrap();
        let gradients = [gradients.z, gradients.v, gradients.g].concat();
        for at in (0..all.len()).step_by(1 + all.len() / 25) {
            let moved = |h: f64| {
                let mut all = all.clone();
                all[at] += h;
                self.definition(&all)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let error = (f64::from(gradients[at]) - expected).abs();
            // Products of bf16 are rounded relative to their size.
            let relative = if size_of::<T>() == 2 { within } else { 0.0 };
            let bound = within * 30.0 + relative * expected.abs();
            assert!(error < bound, "{at}: {} {expected}", gradients[at]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn loss_and_gradients(
        rows in 1usize..110, teachers in 1usize..9, prototypes in 1usize..140, d in 1usize..20,
    ) {
        let case = Case::new(rows, teachers, prototypes, d);
        under_each(|_| {
            case.check::<f32>(1e-5);
            case.check::<Bf16>(0.02);
        });
    }
}

/// A value that is not a number, on either side, makes the loss one that is not.
#[test]
fn what_is_not_finite_is_seen() {
    under_each(|_| {
        for value in [f32::NAN, f32::INFINITY] {
            for of_teacher in [false, true] {
                let mut case = Case::new(6, 3, 70, 8);
                // Row 1 has a pair, with teacher row 2.
                let z = if of_teacher { &mut case.teacher_z[2 * 8] } else { &mut case.z[8] };
                *z = value;
                let [student, teacher] = case.sides();
                let (loss, _) =
                    cross_entropy::<f32>(&student, &teacher, &case.center, &case.pairs, false);
                assert!(loss.is_nan(), "{value} {of_teacher}");
            }
        }
    });
}

/// Several chunks in a group, and one that is not full.
#[test]
fn many_chunks() {
    let case = Case::new(5, 3, 17 * CHUNK + 7, 3);
    under_each(|_| case.check::<f32>(1e-5));
}

/// Prototypes far longer than 1 make logits whose exponentials would overflow.
#[test]
fn large_logits() {
    let mut case = Case::new(6, 3, 70, 8);
    case.g.iter_mut().for_each(|g| *g *= 60.0);
    let [student, teacher] = case.sides();
    let (loss, gradients) =
        cross_entropy::<f32>(&student, &teacher, &case.center, &case.pairs, true);
    assert!(loss.is_finite() && gradients.unwrap().z.iter().all(|v| v.is_finite()));
}
