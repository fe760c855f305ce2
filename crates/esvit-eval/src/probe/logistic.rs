//! L2-regularized logistic regression by L-BFGS.
//!
//! The objective is `mean loss + l2 / 2 |weight|^2`, without a penalty on the bias. It is convex,
//! so the starting point does not matter; penalties are tried from the strongest down, each
//! warm-started from the previous solution.

use std::cell::RefCell;

use argmin::core::{CostFunction, Error, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use esvit_kernels::activation::Activation;
use esvit_kernels::linear::{backward, forward};
use rayon::prelude::*;

use super::sweep::Sweep;
use super::{LastBlocks, LinearClassifier, Result, Setting, Subset, check_positive, loss};

/// Rows per chunk of the gradient.
const CHUNK: usize = 4096;
/// L-BFGS history size.
const MEMORY: usize = 10;
/// Convergence: root mean square of the gradient.
const GRADIENT_TOLERANCE: f64 = 1e-5;
/// Convergence: change of the objective, about the resolution of its f32 sums.
const OBJECTIVE_TOLERANCE: f64 = 1e-10;
/// Maximum evaluations per iteration.
const EVALUATIONS_PER_STEP: usize = 4;

/// Logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct Logistic {
    /// L2 penalties to try.
    pub l2s: Vec<f64>,
    /// Maximum number of iterations.
    pub max_iterations: usize,
}

/// Default L2 penalties: two per decade from 1e-7 to 10.
pub fn logistic_l2s() -> Vec<f64> {
    (-14..=2).map(|half_decades| 10f64.powf(f64::from(half_decades) / 2.0)).collect()
}

impl Default for Logistic {
    fn default() -> Self {
        Self { l2s: logistic_l2s(), max_iterations: 1000 }
    }
}

impl Logistic {
    pub(super) fn check(&self) -> Result<()> {
        check_positive("the strength of the penalty", &self.l2s)
    }

    pub(super) fn sweep(
        &self,
        fit: &Subset<'_>,
        validation: &Subset<'_>,
        blocks: &[LastBlocks],
        mut sweep: Sweep,
    ) -> Result<Sweep> {
        let mut l2s = self.l2s.clone();
        l2s.sort_by(|a, b| b.total_cmp(a));
        for &blocks in blocks {
            let problem = Problem::new(fit, blocks.first);
            let mut point = problem.zeros();
            for &l2 in &l2s {
                point = problem.minimize(point, l2, self.max_iterations);
                let setting = Setting { blocks, lr: None, l2: Some(l2) };
                sweep.add(setting, &problem.classifier(&point), validation);
            }
        }
        Ok(sweep)
    }

    pub(super) fn fit(&self, setting: &Setting, data: &Subset<'_>) -> LinearClassifier {
        let problem = Problem::new(data, setting.blocks.first);
        let l2 = setting.l2.unwrap_or(0.0);
        problem.classifier(&problem.minimize(problem.zeros(), l2, self.max_iterations))
    }
}

/// A fitting problem.
struct Problem<'a> {
    data: &'a Subset<'a>,
    first: usize,
    columns: usize,
    outputs: usize,
    /// `[rows, columns]`, centered and divided by `scale`. With a free bias and the penalty
    /// rescaled, the solution is the same and takes fewer iterations.
    x: Vec<f32>,
    /// Column means.
    mean: Vec<f64>,
    /// Root mean square of the centered values.
    scale: f64,
}

impl<'a> Problem<'a> {
    fn new(data: &'a Subset<'a>, first: usize) -> Self {
        let columns = data.examples.width - first;
        let mut x = data.gather(&data.examples.values, &data.rows, first);
        let mut mean = vec![0.0; columns];
        for row in x.chunks_exact(columns) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x));
        }
        mean.iter_mut().for_each(|mean| *mean /= data.len() as f64);
        let pairs = x.chunks_exact(columns).flat_map(|row| row.iter().zip(&mean));
        let squares: f64 = pairs.map(|(x, mean)| (f64::from(*x) - mean).powi(2)).sum();
        let scale = match (squares / x.len() as f64).sqrt() {
            scale if scale > 0.0 => scale,
            _ => 1.0,
        };
        x.par_chunks_exact_mut(columns).for_each(|row| {
            for (x, mean) in row.iter_mut().zip(&mean) {
                *x = ((f64::from(*x) - mean) / scale) as f32;
            }
        });
        let outputs = data.examples.targets.outputs();
        Self { data, first, columns, outputs, x, mean, scale }
    }

    /// A point is the weight `[outputs, columns]` followed by the bias `[outputs]`.
    fn zeros(&self) -> Vec<f64> {
        vec![0.0; self.outputs * (self.columns + 1)]
    }

    fn classifier(&self, point: &[f64]) -> LinearClassifier {
        let (weight, bias) = point.split_at(self.outputs * self.columns);
        let shifted = |(bias, weight): (&f64, &[f64])| {
            let of_mean: f64 = weight.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum();
            (bias - of_mean / self.scale) as f32
        };
        let bias = bias.iter().zip(weight.chunks_exact(self.columns)).map(shifted).collect();
        let weight = weight.iter().map(|weight| (weight / self.scale) as f32).collect();
        LinearClassifier { first: self.first, weight, bias }
    }

    /// The objective and its gradient.
    fn evaluate(&self, point: &[f64], l2: f64) -> (f64, Vec<f64>) {
        let l2 = l2 / (self.scale * self.scale);
        let weights = self.outputs * self.columns;
        let narrow: Vec<f32> = point.iter().map(|&value| value as f32).collect();
        let (weight, bias) = narrow.split_at(weights);
        let mut gradient = vec![0.0; point.len()];
        let mut cost = 0.0;
        let chunks = self.x.chunks(CHUNK * self.columns).zip(self.data.rows.chunks(CHUNK));
        for (x, rows) in chunks {
            let share = rows.len() as f64 / self.data.len() as f64;
            let act = Activation::None;
            let (mut logits, kept) = forward::<f32>(x, self.columns, act, weight, Some(bias), true);
            cost +=
                share * loss::replace_by_gradient(&mut logits, &self.data.examples.targets, rows);
            let Some(kept) = kept else { continue };
            let part = backward(kept, self.columns, act, weight, &logits, false);
            let values = part.weight.iter().chain(&part.bias);
            gradient.iter_mut().zip(values).for_each(|(sum, v)| *sum += share * f64::from(*v));
        }
        let penalty: f64 = point[..weights].iter().map(|value| value * value).sum();
        let penalized = gradient[..weights].iter_mut().zip(point);
        penalized.for_each(|(gradient, value)| *gradient += l2 * value);
        (cost + l2 / 2.0 * penalty, gradient)
    }

    /// The best point found from `start`.
    fn minimize(&self, start: Vec<f64>, l2: f64, max_iterations: usize) -> Vec<f64> {
        let objective = Objective {
            problem: self,
            l2,
            evaluations_left: RefCell::new(EVALUATIONS_PER_STEP * max_iterations),
            last: RefCell::default(),
            best: RefCell::new((f64::INFINITY, start.clone())),
        };
        let search = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY)
            .with_tolerance_grad(GRADIENT_TOLERANCE * (start.len() as f64).sqrt())
            .and_then(|search| search.with_tolerance_cost(OBJECTIVE_TOLERANCE));
        if let Ok(search) = search {
            let steps = max_iterations as u64;
            let run = Executor::new(&objective, search)
                .configure(|state| state.param(start).max_iters(steps))
                .timer(false);
            // A line search that finds no better point is an error in argmin, but means that f32
            // precision is reached; the best point is kept.
            let _ = run.run();
        }
        objective.best.into_inner().1
    }
}

/// A point with its objective and gradient.
#[derive(Default)]
struct Evaluated {
    point: Vec<f64>,
    cost: f64,
    gradient: Vec<f64>,
}

/// The objective with a one-entry cache: the solver asks for value and gradient of the same point
/// in turn.
struct Objective<'a> {
    problem: &'a Problem<'a>,
    l2: f64,
    evaluations_left: RefCell<usize>,
    last: RefCell<Evaluated>,
    best: RefCell<(f64, Vec<f64>)>,
}

impl Objective<'_> {
    fn at<T>(&self, point: &[f64], answer: impl Fn(&Evaluated) -> T) -> Result<T, Error> {
        let mut last = self.last.borrow_mut();
        if last.point != point {
            let mut left = self.evaluations_left.borrow_mut();
            *left = left.checked_sub(1).ok_or_else(|| Error::msg("too many evaluations"))?;
            let (cost, gradient) = self.problem.evaluate(point, self.l2);
            if !cost.is_finite() {
                return Err(Error::msg("the objective is not finite"));
            }
            let mut best = self.best.borrow_mut();
            if cost < best.0 {
                *best = (cost, point.to_vec());
            }
            *last = Evaluated { point: point.to_vec(), cost, gradient };
        }
        Ok(answer(&last))
    }
}

impl CostFunction for &Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, point: &Vec<f64>) -> Result<f64, Error> {
        self.at(point, |evaluated| evaluated.cost)
    }
}

impl Gradient for &Objective<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, point: &Vec<f64>) -> Result<Vec<f64>, Error> {
        self.at(point, |evaluated| evaluated.gradient.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::clusters;

    /// At the solution the gradient is 0, whatever the strength and the scale of the features.
    #[test]
    fn the_gradient_of_the_solution_is_0() {
        for scale in [0.1, 30.0] {
            let mut examples = clusters(120, 6, 3, 1.0, 1);
            examples.values.iter_mut().for_each(|value| *value *= scale);
            let subset = Subset::all(&examples);
            let problem = Problem::new(&subset, 2);
            for l2 in [1e-4, 1e-2, 1.0] {
                let point = problem.minimize(problem.zeros(), l2, 1000);
                let (_, gradient) = problem.evaluate(&point, l2);
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                assert!(length < 1e-3, "scale {scale}, l2 {l2}: {length}");
            }
        }
    }

    /// Two classes on one feature, solved by Newton's method on the difference of the weights.
    #[test]
    fn two_classes_on_one_feature() {
        let x = [-2.0f32, -1.0, -0.5, 0.5, 1.0, 2.0];
        let of = vec![0, 0, 1, 0, 1, 1];
        let targets = super::super::Targets::Classes { of: of.clone(), count: 2 };
        let examples = super::super::Examples { values: x.to_vec(), width: 1, targets };
        let subset = Subset::all(&examples);
        let l2 = 0.1;
        let problem = Problem::new(&subset, 0);
        let classifier = problem.classifier(&problem.minimize(problem.zeros(), l2, 1000));
        // With weights -w / 2 and w / 2 the penalty is l2 / 4 w^2, and by symmetry no bias.
        let mut w = 0.0f64;
        for _ in 0..50 {
            let (mut slope, mut curvature) = (l2 / 2.0 * w, l2 / 2.0);
            for (&x, &class) in x.iter().zip(&of) {
                let x = f64::from(x);
                let p = 1.0 / (1.0 + (-w * x).exp());
                slope += (p - f64::from(class)) * x / 6.0;
                curvature += p * (1.0 - p) * x * x / 6.0;
            }
            w -= slope / curvature;
        }
        let found = f64::from(classifier.weight[1] - classifier.weight[0]);
        assert!((found - w).abs() < 1e-3, "{found} {w}");
        assert!((classifier.bias[1] - classifier.bias[0]).abs() < 1e-3);
    }

    /// At the solution the gradient on the features as they are is 0, far from the origin and for
    /// more rows than are worked on at a time.
    #[test]
    fn the_classifier_of_shifted_features_and_of_many_rows_is_the_solution() {
        for (rows, shift) in [(120, 5.0), (CHUNK + 900, 0.0)] {
            let mut examples = clusters(rows, 5, 3, 1.0, 1);
            examples.values.iter_mut().for_each(|value| *value += shift);
            // The last rows are unlike the first.
            examples.values.iter_mut().skip(5 * CHUNK).for_each(|value| *value *= 3.0);
            let subset = Subset::all(&examples);
            let problem = Problem::new(&subset, 0);
            let l2 = 0.01;
            let classifier = problem.classifier(&problem.minimize(problem.zeros(), l2, 1000));
            let mut logits = classifier.logits(&subset);
            loss::replace_by_gradient(&mut logits, &examples.targets, &subset.rows);
            for output in 0..3 {
                let of_row = |row: usize| f64::from(logits[row * 3 + output]);
                let bias: f64 = (0..rows).map(of_row).sum();
                assert!(bias.abs() < 1e-4, "{rows}: {bias}");
                for column in 0..5 {
                    let value = |row: usize| f64::from(examples.values[row * 5 + column]);
                    let slope: f64 = (0..rows).map(|row| of_row(row) * value(row)).sum();
                    let slope = slope + l2 * f64::from(classifier.weight[output * 5 + column]);
                    assert!(slope.abs() < 1e-3, "{rows}: {slope}");
                }
            }
        }
    }

    #[test]
    fn strengths_are_two_a_decade() {
        let l2s = logistic_l2s();
        assert_eq!((l2s.len(), l2s[0], l2s[16]), (17, 1e-7, 10.0));
        assert!((l2s[1] - 3.162_277_66e-7).abs() < 1e-14);
    }
}
