//! Batch norm over the rows of every channel: `xhat = (x - mean) * rstd`,
//! `rstd = 1 / sqrt(variance + eps)`, `y = xhat * gamma + beta`, alone or with ReLU.
//!
//! Backward, with means over rows: `dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat))`.

use std::ops::Range;

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::element::Element;
use crate::elementwise::{add, scale, update, update_by};
use crate::reduce::sum_in_order;
use crate::simd::{self, LANES, dispatch};

/// Evaluates an expression with what says of a value that the norm gives, and of the result of ReLU,
/// whether a gate is open.
macro_rules! with_gate {
    ($gate:expr, $is_open:ident => $call:expr) => {
        match $gate {
            Gate::Open => {
                let $is_open = |_: f32, _: f32| true;
                $call
            }
            Gate::Norm => {
                let $is_open = |y: f32, _: f32| y > 0.0;
                $call
            }
            Gate::Results(_) => {
                let $is_open = |_: f32, result: f32| result > 0.0;
                $call
            }
        }
    };
}

/// Mean and variance of every channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Means, `[C]`.
    pub mean: Vec<f32>,
    /// Biased variances (divided by the number of rows), `[C]`.
    pub variance: Vec<f32>,
}

/// Batch norm by given statistics: `y = (x - mean) * slope + beta`, `slope = rstd * gamma`.
#[derive(Debug, Clone)]
pub struct Normalization {
    mean: Vec<f32>,
    rstd: Vec<f32>,
    slope: Vec<f32>,
    beta: Vec<f32>,
}

/// What comes after a norm in evaluation.
#[derive(Debug, Clone, Copy)]
pub enum End<'a, T> {
    /// Nothing.
    Norm,
    /// `relu(y)`.
    Relu,
    /// `relu(y + shortcut)`, with as many values as `y` has.
    Shortcut(&'a [T]),
}

impl<T> End<'_, T> {
    /// That of some values of `y`.
    pub(crate) fn of(self, values: Range<usize>) -> Self {
        match self {
            Self::Shortcut(shortcut) => Self::Shortcut(&shortcut[values]),
            other => other,
        }
    }
}

/// Values of whole rows of `width` that one task takes.
fn task(width: usize) -> usize {
    TASK_VALUES.div_ceil(width) * width
}

/// NaN stays NaN.
fn relu(value: f32) -> f32 {
    if value < 0.0 { 0.0 } else { value }
}

fn normalized(x: f32, mean: f32, slope: f32, beta: f32) -> f32 {
    (x - mean) * slope + beta
}

impl Statistics {
    /// Statistics of the rows of `x [rows, C]`, `C = width`.
    ///
    /// # Panics
    /// When there are no whole rows.
    pub fn of<T: Element>(x: &[T], width: usize) -> Self {
        assert!(!x.is_empty() && x.len().is_multiple_of(width), "whole rows");
        let parts = x.par_chunks(task(width)).map(|x| (x.len(), Self::of_few(x, width)));
        // In order, so that the result does not depend on the number of threads.
        let parts: Vec<(usize, Self)> = parts.collect();
        let all = parts.into_iter().reduce(|(count, all), (more, part)| {
            (count + more, all.with(part, more as f32 / (count + more) as f32))
        });
        all.expect("a part").1
    }

    /// Those of few rows, which stay in the cache for a second pass: `E[x^2] - E[x]^2` would cancel.
    fn of_few<T: Element>(x: &[T], width: usize) -> Self {
        let rows = (x.len() / width) as f32;
        let [mut mean, mut variance] = [vec![0.0; width], vec![0.0; width]];
        x.chunks_exact(width).for_each(|row| add(row, &mut mean));
        scale(&mut mean, 1.0 / rows);
        for row in x.chunks_exact(width) {
            update_by(&mut variance, row, [&mean], |sum, x, [mean]| sum + (x - mean) * (x - mean));
        }
        scale(&mut variance, 1.0 / rows);
        Self { mean, variance }
    }

    /// Those of these rows and others, which are `share` of all (Chan et al., 1979).
    fn with(self, other: Self, share: f32) -> Self {
        let Self { mut mean, mut variance } = self;
        let from = [&mean[..], &other.mean, &other.variance];
        update(&mut variance, from, |own, [mean, other_mean, other]| {
            let distance = other_mean - mean;
            own + share * (other - own + (1.0 - share) * distance * distance)
        });
        update(&mut mean, [&other.mean[..]], |own, [other]| own + share * (other - own));
        Self { mean, variance }
    }
}

impl Normalization {
    /// By `statistics` of the batch or running ones, with `gamma`, `beta [C]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn new(statistics: &Statistics, [gamma, beta]: [&[f32]; 2], eps: f32) -> Self {
        let Statistics { mean, variance } = statistics;
        assert_eq!([mean.len(), variance.len(), beta.len()], [gamma.len(); 3], "channels");
        let rstd: Vec<f32> =
            variance.iter().map(|variance| 1.0 / (variance + eps).sqrt()).collect();
        let slope = rstd.iter().zip(gamma).map(|(rstd, gamma)| rstd * gamma).collect();
        Self { mean: mean.clone(), rstd, slope, beta: beta.to_vec() }
    }

    fn width(&self) -> usize {
        self.mean.len()
    }

    /// `y` of the rows `x [rows, C]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn forward<T: Element, U: Element>(&self, x: &[T], y: &mut [U]) {
        assert_eq!(x.len(), y.len(), "lengths");
        let task = task(self.width());
        y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
            for (y, x) in self.rows_of(y).zip(x.chunks_exact(self.width())) {
                update_by(y, x, self.affine(), |_, x, [mean, slope, beta]| {
                    normalized(x, mean, slope, beta)
                });
            }
        });
    }

    /// What [`normalized`] needs of every channel.
    fn affine(&self) -> [&[f32]; 3] {
        [&self.mean, &self.slope, &self.beta]
    }

    /// `relu(y)` of the rows `x [rows, C]`, in any element type; not in parallel.
    pub(crate) fn relu_rows<T: Element, U: Element>(&self, x: &[T], y: &mut [U]) {
        for (y, x) in self.rows_of(y).zip(x.chunks_exact(self.width())) {
            update_by(y, x, self.affine(), |_, x, [mean, slope, beta]| {
                relu(normalized(x, mean, slope, beta))
            });
        }
    }

    /// `relu(y)` of the rows `x [rows, C]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn relu<T: Element, U: Element>(&self, x: &[T], y: &mut [U]) {
        assert_eq!(x.len(), y.len(), "lengths");
        let task = task(self.width());
        let tasks = y.par_chunks_mut(task).zip(x.par_chunks(task));
        tasks.for_each(|(y, x)| self.relu_rows(x, y));
    }

    /// Stores some columns of `y`, and what comes after it, in rows `to [rows, C]`; they are computed of
    /// `x`, whose rows are `x_row` values apart. Not in parallel.
    pub(crate) fn finish<X: Element, T: Element>(
        &self,
        x: &[X],
        x_row: usize,
        columns: Range<usize>,
        end: End<'_, T>,
        to: &mut [T],
    ) {
        let affine = self.affine().map(|of| &of[columns.clone()]);
        let (row, first) = (self.width(), columns.start);
        match end {
            End::Norm => finish_rows(x, x_row, affine, |x| x, first, row, to),
            End::Relu => finish_rows(x, x_row, affine, relu, first, row, to),
            End::Shortcut(shortcut) => add_rows(x, x_row, affine, shortcut, first, row, to),
        }
    }

    /// `relu(y + shortcut)` of the rows `x [rows, C]`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn relu_with_shortcut<T: Element>(&self, x: &[T], shortcut: &[T], y: &mut [T]) {
        assert_eq!([x.len(), shortcut.len()], [y.len(); 2], "lengths");
        let (width, task) = (self.width(), task(self.width()));
        let from = x.par_chunks(task).zip(shortcut.par_chunks(task));
        y.par_chunks_mut(task).zip(from).for_each(|(y, (x, shortcut))| {
            self.finish(x, width, 0..width, End::Shortcut(shortcut), y);
        });
    }

    /// Gradients of `gamma` and `beta` from that of the output, `dy [rows, C]`, or with a ReLU after the
    /// norm from that of its result: the sums over rows of `dy * xhat` and of `dy`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn backward_affine<T: Element, D: Element>(
        &self,
        x: &[T],
        gate: Gate<'_, T>,
        dy: &[D],
    ) -> [Vec<f32>; 2] {
        assert_eq!(x.len(), dy.len(), "gradients");
        let (width, task) = (self.width(), task(self.width()));
        let channels = [&self.mean[..], &self.rstd, &self.slope, &self.beta];
        let tasks = x.par_chunks(task).zip(dy.par_chunks(task)).enumerate();
        let parts = tasks.map(|(at, (x, dy))| {
            let mut sums = [vec![0.0; width], vec![0.0; width]];
            let results = gate.of(at * task, x);
            with_gate!(gate, is_open => {
                add_gradients(x, results, dy, channels, is_open, &mut sums);
            });
            sums
        });
        sum_in_order(parts, [width; 2])
    }

    /// Makes the gradient of `x` of that of the output, `dy [rows, C]`, or of that of the result of ReLU, in
    /// its place. `of_affine` has the sums of [`Normalization::backward_affine`] over all `rows` that the
    /// statistics are of, or zeros for statistics that do not depend on `x`.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn backward_input<T: Element, D: Element>(
        &self,
        x: &[T],
        gate: Gate<'_, T>,
        of_affine: [&[f32]; 2],
        rows: usize,
        dy: &mut [D],
    ) {
        assert_eq!(x.len(), dy.len(), "gradients");
        let (channels, task) = (self.gradient_channels(of_affine, rows), task(self.width()));
        let tasks = dy.par_chunks_mut(task).zip(x.par_chunks(task)).enumerate();
        tasks.for_each(|(at, (dy, x))| {
            let results = gate.of(at * task, x);
            with_gate!(gate, is_open => {
                input_gradients(x, results, &channels, is_open, dy);
            });
        });
    }

    /// The same in `dx`. Behind a gate of results `dy` becomes the gradient of what goes into ReLU, which is
    /// that of a shortcut; else it stays as it is.
    ///
    /// # Panics
    /// When lengths do not match.
    pub fn backward_input_apart<T: Element, D: Element, O: Element>(
        &self,
        x: &[T],
        gate: Gate<'_, T>,
        of_affine: [&[f32]; 2],
        rows: usize,
        dy: &mut [D],
        dx: &mut [O],
    ) {
        assert_eq!([x.len(), dx.len()], [dy.len(); 2], "gradients");
        let (channels, task) = (self.gradient_channels(of_affine, rows), task(self.width()));
        let has_shortcut = matches!(gate, Gate::Results(_));
        let tasks = dy.par_chunks_mut(task).zip(x.par_chunks(task)).enumerate();
        tasks.zip(dx.par_chunks_mut(task)).for_each(|((at, (dy, x)), dx)| {
            let results = gate.of(at * task, x);
            with_gate!(gate, is_open => {
                gradients_apart(x, results, &channels, is_open, dy, dx);
            });
            if has_shortcut {
                close(results, dy);
            }
        });
    }

    fn gradient_channels(&self, [dgamma, dbeta]: [&[f32]; 2], rows: usize) -> GradientChannels {
        let width = self.width();
        assert_eq!([dgamma.len(), dbeta.len()], [width; 2], "gradients of channels");
        let mut blocks = vec![[[0.0; LANES]; 5]; width.div_ceil(LANES)];
        let share = 1.0 / rows as f32;
        for i in 0..width {
            let (slope, block) = (self.slope[i], &mut blocks[i / LANES]);
            let linear = slope * self.rstd[i] * dgamma[i] * share;
            let values = [self.mean[i], slope, self.beta[i], linear, slope * dbeta[i] * share];
            block.iter_mut().zip(values).for_each(|(of, value)| of[i % LANES] = value);
        }
        GradientChannels { width, blocks }
    }

    fn rows_of<'y, T>(&self, y: &'y mut [T]) -> std::slice::ChunksExactMut<'y, T> {
        y.chunks_exact_mut(self.width())
    }
}

/// Which gradients the ReLU after a norm lets through.
#[derive(Debug, Clone, Copy)]
pub enum Gate<'a, T> {
    /// All: there is none.
    Open,
    /// Where the norm gives values above 0.
    Norm,
    /// Where these results of ReLU, `[rows, C]`, are above 0: more than the norm goes into it.
    Results(&'a [T]),
}

impl<'a, T> Gate<'a, T> {
    /// The results from `first` on, of rows `x`, which stand in for what is not looked at.
    fn of(self, first: usize, x: &'a [T]) -> &'a [T] {
        match self {
            Self::Results(results) => &results[first..first + x.len()],
            Self::Open | Self::Norm => x,
        }
    }
}

dispatch! {
    /// `end(normalized(x))` of the first columns of rows, into those from `first` on.
    fn finish_rows<X: Element, T: Element>(
        x: &[X],
        x_row: usize,
        affine: [&[f32]; 3],
        end: impl Fn(f32) -> f32 + Copy,
        first: usize,
        row: usize,
        to: &mut [T],
    ) {
        let columns = affine[0].len();
        for (x, to) in x.chunks_exact(x_row).zip(to.chunks_exact_mut(row)) {
            let to = &mut to[first..first + columns];
            simd::update_by(to, x, affine, |_, x, [mean, slope, beta]| {
                end(normalized(x, mean, slope, beta))
            });
        }
    }

    /// `relu(normalized(x) + shortcut)` of the first columns of rows, into those from `first` on.
    fn add_rows<X: Element, T: Element>(
        x: &[X],
        x_row: usize,
        affine: [&[f32]; 3],
        shortcut: &[T],
        first: usize,
        row: usize,
        to: &mut [T],
    ) {
        let columns = affine[0].len();
        let [mean, slope, beta] = affine.map(|of| &of[..columns]);
        let to = to.chunks_exact_mut(row).zip(shortcut.chunks_exact(row));
        for (x, (to, shortcut)) in x.chunks_exact(x_row).zip(to) {
            let (x, own) = (&x[..columns], first..first + columns);
            let (to, shortcut) = (&mut to[own.clone()], &shortcut[own]);
            for i in 0..columns {
                let sum = normalized(x[i].to_f32(), mean[i], slope[i], beta[i]) + shortcut[i].to_f32();
                to[i] = T::from_f32(relu(sum));
            }
        }
    }

    /// Adds `dy * xhat` and `dy` of every row.
    fn add_gradients<T: Element, D: Element>(
        x: &[T],
        results: &[T],
        dy: &[D],
        channels: [&[f32]; 4],
        is_open: impl Fn(f32, f32) -> bool,
        sums: &mut [Vec<f32>; 2],
    ) {
        let [dgamma, dbeta] = sums;
        let width = dbeta.len();
        let dgamma = &mut dgamma[..width];
        let [mean, rstd, slope, beta] = channels.map(|of| &of[..width]);
        let rows = x.chunks_exact(width).zip(results.chunks_exact(width));
        for ((x, results), dy) in rows.zip(dy.chunks_exact(width)) {
            for i in 0..width {
                let x = x[i].to_f32();
                let y = normalized(x, mean[i], slope[i], beta[i]);
                let dy = if is_open(y, results[i].to_f32()) { dy[i].to_f32() } else { 0.0 };
                dbeta[i] += dy;
                dgamma[i] += (x - mean[i]) * rstd[i] * dy;
            }
        }
    }

    /// `dx` of every row in place of `dy`.
    fn input_gradients<T: Element, D: Element>(
        x: &[T],
        results: &[T],
        channels: &GradientChannels,
        is_open: impl Fn(f32, f32) -> bool,
        dy: &mut [D],
    ) {
        let width = channels.width;
        let rows = x.chunks_exact(width).zip(results.chunks_exact(width));
        for ((x, results), dy) in rows.zip(dy.chunks_exact_mut(width)) {
            let ((x, x_rest), (results, results_rest)) = (x.as_chunks(), results.as_chunks());
            let (dy, dy_rest) = dy.as_chunks_mut();
            for (((x, results), dy), channels) in x.iter().zip(results).zip(dy).zip(&channels.blocks) {
                let gradients = input_gradients_of_block(x, results, dy, channels, &is_open);
                dy.iter_mut().zip(gradients).for_each(|(to, value)| *to = D::from_f32(value));
            }
            let rest = x_rest.iter().zip(results_rest).zip(dy_rest).enumerate();
            for (at, ((x, result), dy)) in rest {
                let values = [x.to_f32(), result.to_f32(), dy.to_f32()];
                *dy = D::from_f32(input_gradient(values, channels.of_rest(at), &is_open));
            }
        }
    }

    /// `dx` of every row beside `dy`.
    fn gradients_apart<T: Element, D: Element, O: Element>(
        x: &[T],
        results: &[T],
        channels: &GradientChannels,
        is_open: impl Fn(f32, f32) -> bool,
        dy: &[D],
        dx: &mut [O],
    ) {
        let width = channels.width;
        let rows = x.chunks_exact(width).zip(results.chunks_exact(width));
        let gradients = dy.chunks_exact(width).zip(dx.chunks_exact_mut(width));
        for ((x, results), (dy, dx)) in rows.zip(gradients) {
            let ((x, x_rest), (results, results_rest)) = (x.as_chunks(), results.as_chunks());
            let ((dy, dy_rest), (dx, dx_rest)) = (dy.as_chunks(), dx.as_chunks_mut::<LANES>());
            let blocks = x.iter().zip(results).zip(dy).zip(&channels.blocks);
            for ((((x, results), dy), channels), dx) in blocks.zip(dx) {
                let gradients = input_gradients_of_block(x, results, dy, channels, &is_open);
                dx.iter_mut().zip(gradients).for_each(|(to, value)| *to = O::from_f32(value));
            }
            let rest = x_rest.iter().zip(results_rest).zip(dy_rest).zip(dx_rest).enumerate();
            for (at, (((x, result), dy), dx)) in rest {
                let values = [x.to_f32(), result.to_f32(), dy.to_f32()];
                *dx = O::from_f32(input_gradient(values, channels.of_rest(at), &is_open));
            }
        }
    }

    /// Leaves of `dy` what ReLU, with these results, lets through.
    fn close<T: Element, D: Element>(results: &[T], dy: &mut [D]) {
        simd::update(dy, [results], |dy, [result]| if result > 0.0 { dy } else { 0.0 });
    }
}

/// Those of a block of channels in a row.
#[inline(always)]
fn input_gradients_of_block<T: Element, D: Element>(
    x: &[T; LANES],
    results: &[T; LANES],
    dy: &[D; LANES],
    [mean, slope, beta, linear, constant]: &[[f32; LANES]; 5],
    is_open: &impl Fn(f32, f32) -> bool,
) -> [f32; LANES] {
    let mut gradients = [0.0; LANES];
    for i in 0..LANES {
        let values = [x[i].to_f32(), results[i].to_f32(), dy[i].to_f32()];
        let channel = [mean[i], slope[i], beta[i], linear[i], constant[i]];
        gradients[i] = input_gradient(values, channel, is_open);
    }
    gradients
}

/// The gradient of a value `x` of a channel, behind a ReLU of this `result` whose own gradient is `dy`.
#[inline(always)]
fn input_gradient(
    [x, result, dy]: [f32; 3],
    [mean, slope, beta, linear, constant]: [f32; 5],
    is_open: &impl Fn(f32, f32) -> bool,
) -> f32 {
    let own = if is_open(normalized(x, mean, slope, beta), result) { dy } else { 0.0 };
    own * slope - ((x - mean) * linear + constant)
}

/// What [`input_gradient`] needs of every channel, by blocks of [`LANES`] channels: mean, slope, beta, and what
/// depends on means over rows, `slope * rstd * mean(dy * xhat)` and `slope * mean(dy)`.
struct GradientChannels {
    width: usize,
    blocks: Vec<[[f32; LANES]; 5]>,
}

impl GradientChannels {
    /// Of a channel that comes after the whole blocks.
    #[inline(always)]
    fn of_rest(&self, at: usize) -> [f32; 5] {
        self.blocks[self.width / LANES].map(|of| of[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{self, Bf16};
    use crate::isa::tests::under_each;
    use crate::testing::{assert_near, normal, wide, xhat, xhat_backward};
    use proptest::prelude::*;

    /// Against the definition in f64, channel by channel.
    fn check(rows: usize, width: usize) {
        let what = |name| format!("{name}: {rows} x {width}");
        let (x, dy) = (normal(rows * width, 1), normal(rows * width, 2));
        let (gamma, beta) = (normal(width, 3), normal(width, 4));
        let eps = 0.1;
        let statistics = Statistics::of(&x, width);
        let norm = Normalization::new(&statistics, [&gamma, &beta], eps);
        let (mut y, mut dx) = (vec![f32::NAN; x.len()], dy.clone());
        norm.forward(&x, &mut y);
        let [dgamma, dbeta] = norm.backward_affine(&x, Gate::Open, &dy);
        let sums = [&dgamma[..], &dbeta];
        norm.backward_input(&x, Gate::Open, sums, rows, &mut dx);
        check_relu(&norm, &x, &y);
        let found = [statistics.mean, statistics.variance, dgamma, dbeta];

        let (x, dy, eps) = (wide(&x), wide(&dy), f64::from(eps));
        let [mut expected_y, mut expected_dx] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let mut expected = [0, 1, 2, 3].map(|_| vec![0.0; width]);
        let channels_of_few = [0, width / 2, width - 1];
        for c in 0..width {
            let column = |of: &[f64]| of.iter().skip(c).step_by(width).copied().collect::<Vec<_>>();
            let (x, dy) = (column(&x), column(&dy));
            let (z, n) = (xhat(&x, eps), rows as f64);
            let mean = x.iter().sum::<f64>() / n;
            expected[0][c] = mean;
            expected[1][c] = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            expected[2][c] = z.iter().zip(&dy).map(|(z, dy)| z * dy).sum();
            expected[3][c] = dy.iter().sum();
            let (gamma, beta) = (f64::from(gamma[c]), f64::from(beta[c]));
            for (row, z) in z.iter().enumerate() {
                expected_y[row * width + c] = z * gamma + beta;
            }
            // Differences of long columns are slow.
            if rows < 100 {
                let dxhat: Vec<f64> = dy.iter().map(|dy| dy * gamma).collect();
                for (row, d) in xhat_backward(&x, eps, &dxhat).into_iter().enumerate() {
                    expected_dx[row * width + c] = d;
                }
            } else if channels_of_few.contains(&c) {
                let (mean, variance) = (expected[0][c], expected[1][c]);
                for row in 0..rows {
                    let through =
                        (dy[row] - (expected[3][c] + z[row] * expected[2][c]) / n) * gamma;
                    expected_dx[row * width + c] = through / (variance + eps).sqrt();
                    assert!((z[row] * (variance + eps).sqrt() + mean - x[row]).abs() < 1e-9);
                }
            } else {
                for row in 0..rows {
                    expected_dx[row * width + c] = f64::from(dx[row * width + c]);
                }
            }
        }
        assert_near(&what("y"), &y, &expected_y, 1e-5);
        assert_near(&what("dx"), &dx, &expected_dx, 1e-5);
        let names = ["mean", "variance", "dgamma", "dbeta"];
        for ((name, found), expected) in names.into_iter().zip(found).zip(expected) {
            assert_near(&what(name), &found, &expected, 1e-5);
        }
    }

    /// ReLU of what the norm gives, with and without a shortcut, and what its gradients leave.
    fn check_relu(norm: &Normalization, x: &[f32], y: &[f32]) {
        let (shortcut, dy) = (normal(x.len(), 5), normal(x.len(), 6));
        let above = |value: f32| if value > 0.0 { value } else { 0.0 };
        let (mut found, mut rounded) = (vec![f32::NAN; x.len()], vec![Bf16::default(); x.len()]);
        norm.relu(x, &mut found);
        assert_eq!(found, y.iter().copied().map(above).collect::<Vec<_>>());
        norm.relu(x, &mut rounded);
        assert_eq!(rounded, found.iter().copied().map(Bf16::from_f32).collect::<Vec<_>>());

        norm.relu_with_shortcut(x, &shortcut, &mut found);
        let sums = y.iter().zip(&shortcut).map(|(y, shortcut)| above(y + shortcut));
        assert_eq!(found, sums.collect::<Vec<_>>());

        // Gradients by a gate are those of what it lets through.
        for (gate, y) in [(Gate::Norm, y), (Gate::Results(&found), &found)] {
            let own = y.iter().zip(&dy).map(|(&y, &dy)| if y > 0.0 { dy } else { 0.0 });
            let own: Vec<f32> = own.collect();
            let sums = norm.backward_affine(x, Gate::Open, &own);
            assert_eq!(norm.backward_affine(x, gate, &dy), sums);
            let sums = [&sums[0][..], &sums[1]];
            let (mut expected, mut in_place) = (own.clone(), dy.clone());
            norm.backward_input(x, Gate::Open, sums, 7, &mut expected);
            norm.backward_input(x, gate, sums, 7, &mut in_place);
            assert_eq!(in_place, expected);
            let (mut through, mut dx) = (dy.clone(), vec![f32::NAN; dy.len()]);
            norm.backward_input_apart(x, gate, sums, 7, &mut through, &mut dx);
            let left = if matches!(gate, Gate::Results(_)) { own } else { dy.clone() };
            assert_eq!((through, &dx), (left, &expected));
            // In bf16: what goes in is rounded before, and what comes out after.
            let mut stored = vec![Bf16::default(); dy.len()];
            norm.backward_input_apart(x, gate, sums, 7, &mut dy.clone(), &mut stored);
            assert_eq!(stored[..], element::rounded(&dx)[..]);
            let mut stored = element::rounded(&dy);
            let mut wide = element::widened(&stored);
            assert_eq!(
                norm.backward_affine(x, gate, &stored[..]),
                norm.backward_affine(x, gate, &wide[..])
            );
            norm.backward_input(x, gate, sums, 7, &mut stored[..]);
            norm.backward_input(x, gate, sums, 7, &mut wide[..]);
            assert_eq!(stored[..], element::rounded(&wide)[..]);
        }
    }

    /// Rows in bf16 give what their values give in f32.
    fn check_stored(rows: usize, width: usize) {
        let [x, shortcut] = [1, 2].map(|of| element::rounded(&normal(rows * width, of)));
        let [wide_x, wide_shortcut] = [&x, &shortcut].map(|of| element::widened(of));
        let statistics = Statistics::of(&x, width);
        assert_eq!(statistics, Statistics::of(&wide_x, width));
        let affine = [normal(width, 3), normal(width, 4)];
        let norm = Normalization::new(&statistics, [&affine[0], &affine[1]], 0.1);
        let [mut found, mut expected] =
            [Bf16::default(), Bf16::from_f32(1.0)].map(|of| vec![of; x.len()]);
        norm.forward(&x, &mut found);
        norm.forward(&wide_x, &mut expected);
        assert_eq!(found, expected);
        let mut wide = vec![0.0; x.len()];
        norm.relu_with_shortcut(&x, &shortcut, &mut found);
        norm.relu_with_shortcut(&wide_x, &wide_shortcut, &mut wide);
        assert_eq!(found[..], element::rounded(&wide)[..]);
        let wide = element::widened(&found);
        let dy = normal(x.len(), 5);
        let sums = norm.backward_affine(&x, Gate::Results(&found), &dy);
        assert_eq!(sums, norm.backward_affine(&wide_x, Gate::Results(&wide), &dy));
        let sums = [&sums[0][..], &sums[1]];
        let [mut own, mut own_wide] = [dy.clone(), dy];
        let [mut dx, mut wide_dx] = [vec![0.0; x.len()], vec![1.0; x.len()]];
        norm.backward_input_apart(&x, Gate::Results(&found), sums, rows, &mut own, &mut dx);
        let gate = Gate::Results(&wide[..]);
        norm.backward_input_apart(&wide_x, gate, sums, rows, &mut own_wide, &mut wide_dx);
        assert_eq!((own, dx), (own_wide, wide_dx));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn against_the_definition(rows in 2usize..20, width in 1usize..40) {
            under_each(|_| {
                check(rows, width);
                check_stored(rows, width);
            });
        }
    }

    /// More values than three tasks have.
    #[test]
    fn many_rows() {
        under_each(|_| {
            check(2500, 41);
            check_stored(2500, 41);
        });
    }

    /// Running statistics, which are not those of the rows.
    #[test]
    fn other_statistics() {
        let statistics = Statistics { mean: vec![1.0, -2.0], variance: vec![0.25, 3.0] };
        let norm = Normalization::new(&statistics, [&[2.0, 1.0], &[0.5, 0.0]], 1.0);
        let mut y = [0.0; 4];
        norm.forward(&[2.0, 0.0, 1.0, 2.0], &mut y);
        let expected = [2.0 / 1.25f64.sqrt() + 0.5, 1.0, 0.5, 2.0];
        assert_near("y", &y, &expected, 1e-6);
        let mut dy = [1.0, 1.0, 3.0, -2.0];
        let x = [2.0, 0.0, 1.0, 2.0];
        norm.backward_input(&x, Gate::Open, [&[0.0; 2]; 2], 2, &mut dy);
        let slope = 2.0 / 1.25f64.sqrt();
        assert_near("dx", &dy, &[slope, 0.5, 3.0 * slope, -1.0], 1e-6);
    }

    #[test]
    fn nan_stays_in_its_channel() {
        let mut x = normal(12, 1);
        x[4] = f32::NAN;
        let statistics = Statistics::of(&x, 3);
        assert!(statistics.mean[1].is_nan() && statistics.mean[0].is_finite());
        let norm = Normalization::new(&statistics, [&[1.0; 3], &[0.0; 3]], 1.0);
        norm.relu(&x.clone(), &mut x);
        assert!(x[1].is_nan() && x[0].is_finite());
    }
}
