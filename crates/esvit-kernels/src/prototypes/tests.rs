use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use crate::testing::{add_outer, assert_gradient, assert_near, dot, times, times_transposed, wide};
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

    /// `W` by the definition, `[K, D]`.
    fn weights(&self, v: &[f64], g: &[f64]) -> Vec<f64> {
        let rows = v.chunks_exact(self.d).zip(g);
        rows.flat_map(|(v, g)| v.iter().map(move |value| value * g / dot(v, v).sqrt())).collect()
    }

    /// `softmax((z W^T - center) / temperature)` of every row.
    fn softmax(
        &self,
        z: &[f64],
        w: &[f64],
        center: Option<&[f32]>,
        temperature: f32,
    ) -> Vec<Vec<f64>> {
        let of_row = |z: &[f64]| {
            let mut values = times(w, z);
            for (k, value) in values.iter_mut().enumerate() {
                let center = center.map_or(0.0, |center| f64::from(center[k]));
                *value = (*value - center) / f64::from(temperature);
            }
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            values.iter_mut().for_each(|value| *value = (*value - largest).exp());
            let sum: f64 = values.iter().sum();
            values.into_iter().map(|value| value / sum).collect()
        };
        z.chunks_exact(self.d).map(of_row).collect()
    }

    /// Target of every student row, a sum of distributions by weight.
    fn targets(&self) -> Vec<Vec<f64>> {
        let w = self.weights(&wide(&self.teacher_v), &wide(&self.teacher_g));
        let z = wide(&self.teacher_z);
        let teachers = self.softmax(&z, &w, Some(&self.center), TEMPERATURES[1]);
        let of_row = |row| {
            let mut target = vec![0.0; self.g.len()];
            for (teacher, weight) in self.pairs.of(row) {
                let teacher = target.iter_mut().zip(&teachers[teacher]);
                teacher.for_each(|(target, q)| *target += f64::from(weight) * q);
            }
            target
        };
        (0..self.pairs.rows()).map(of_row).collect()
    }

    fn split<'a>(&self, all: &'a [f64]) -> [&'a [f64]; 3] {
        let (z, rest) = all.split_at(self.z.len());
        let (v, g) = rest.split_at(self.v.len());
        [z, v, g]
    }

    /// The loss by its definition, for the student's `z`, `v`, `g` in one vector.
    fn loss(&self, all: &[f64]) -> f64 {
        let [z, v, g] = self.split(all);
        let students = self.softmax(z, &self.weights(v, g), None, TEMPERATURES[0]);
        let rows = students.iter().zip(self.targets());
        rows.map(|(p, t)| -p.iter().zip(t).map(|(p, t)| t * p.ln()).sum::<f64>()).sum()
    }

    /// Its gradient.
    fn gradient(&self, all: &[f64]) -> Vec<f64> {
        let [z, v, g] = self.split(all);
        let w = self.weights(v, g);
        let (mut dz, mut dw) = (Vec::new(), vec![0.0; w.len()]);
        let students = self.softmax(z, &w, None, TEMPERATURES[0]);
        for ((p, t), z) in students.iter().zip(self.targets()).zip(z.chunks_exact(self.d)) {
            let mass: f64 = t.iter().sum();
            let dlogits = p.iter().zip(t).map(|(p, t)| (mass * p - t) / f64::from(TEMPERATURES[0]));
            let dlogits: Vec<f64> = dlogits.collect();
            dz.extend(times_transposed(&w, &dlogits));
            add_outer(&mut dw, &dlogits, z, self.d);
        }
        let (mut dv, mut dg) = (Vec::new(), Vec::new());
        for ((v, g), dw) in v.chunks_exact(self.d).zip(g).zip(dw.chunks_exact(self.d)) {
            let norm = dot(v, v).sqrt();
            let along = dot(v, dw) / norm;
            dg.push(along);
            dv.extend(v.iter().zip(dw).map(|(v, dw)| g / norm * (dw - v / norm * along)));
        }
        [dz, dv, dg].concat()
    }

    fn all(&self) -> Vec<f64> {
        wide(&[&self.z[..], &self.v, &self.g].concat())
    }

    fn check<T: Element>(&self, within: f64) {
        let (all, [student, teacher]) = (self.all(), self.sides());
        let (expected_loss, expected) = (self.loss(&all), self.gradient(&all));
        let limits = [(1, 30, 0), (20, 50, 4 << 10), (20, 1000, 64 << 10), (1000, 1000, 1 << 30)];
        for (part_rows, rows, saved_bytes) in limits {
            let limits = Limits { part_rows, rows, saved_bytes };
            let what = |name| format!("{name}: {} {limits:?}", T::NAME);
            let loss = |gradients| {
                let sides = [&student, &teacher];
                cross_entropy_within::<T>(sides, &self.center, &self.pairs, gradients, limits)
            };
            let ((found, gradients), (again, none)) = (loss(true), loss(false));
            assert!(again == found && none.is_none());
            assert_near(&what("loss"), &[found], &[expected_loss], within);
            let Gradients { z, v, g } = gradients.unwrap();
            let names = ["dz", "dv", "dg"].into_iter().zip(self.split(&expected));
            for ((name, expected), found) in names.zip([z, v, g]) {
                assert_near(&what(name), &found, expected, within);
            }
        }
    }

    fn check_all(&self) {
        under_each(|_| {
            self.check::<f32>(2e-5);
            // The temperature makes the rounding of logits ten times as large.
            self.check::<Bf16>(0.06);
        });
    }
}

#[test]
fn gradients_of_the_definition() {
    let case = Case::new(7, 3, 6, 4);
    assert_gradient(|all| case.loss(all), &case.all(), &case.gradient(&case.all()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    // The loss over one prototype is 0, and all of it is rounding.
    #[test]
    fn loss_and_gradients(
        rows in 1usize..110, teachers in 1usize..9, prototypes in 2usize..140, d in 2usize..20,
    ) {
        Case::new(rows, teachers, prototypes, d).check_all();
    }
}

/// More rows of both sides than the logits of a chunk are computed of at a time.
#[test]
fn several_blocks_of_rows() {
    Case::new(250, 120, 70, 5).check_all();
}

/// The logits of a few rows, in several chunks.
#[test]
fn logits_by_the_definition() {
    for prototypes in [1, 70, 3 * CHUNK * CHUNKS + 7] {
        let case = Case::new(3, 2, prototypes, 5);
        let w = case.weights(&wide(&case.v), &wide(&case.g));
        let expected: Vec<f64> = wide(&case.z).chunks_exact(5).flat_map(|z| times(&w, z)).collect();
        under_each(|_| {
            let prototypes = Prototypes { v: &case.v, g: &case.g };
            assert_near("logits", &logits(&case.z, &prototypes), &expected, 1e-6);
        });
    }
}

/// NaN and infinity, on either side, make the loss NaN.
#[test]
fn non_finite_values_propagate() {
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
    case.check_all();
}

/// Logits whose exponentials overflow.
#[test]
fn large_logits() {
    let mut case = Case::new(6, 3, 70, 8);
    case.g.iter_mut().chain(&mut case.teacher_g).for_each(|g| *g *= 20.0);
    under_each(|_| {
        case.check::<f32>(1e-4);
        let [student, teacher] = case.sides();
        let (loss, gradients) =
            cross_entropy::<Bf16>(&student, &teacher, &case.center, &case.pairs, true);
        assert!(loss.is_finite() && gradients.unwrap().z.iter().all(|v| v.is_finite()));
    });
}
