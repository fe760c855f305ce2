//! The Gaussian error linear unit, `x * cdf(x)` with the normal distribution's cdf.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::simd::{dispatch, exp};

/// Replaces every value by its activation.
pub fn forward(values: &mut [f32]) {
    values.par_chunks_mut(TASK_VALUES).for_each(forward_task);
}

/// Multiplies every gradient of an output, in place, by the derivative at `x`.
///
/// # Panics
/// When the lengths differ.
pub fn backward(x: &[f32], gradients: &mut [f32]) {
    assert_eq!(x.len(), gradients.len(), "inputs and gradients");
    gradients
        .par_chunks_mut(TASK_VALUES)
        .zip(x.par_chunks(TASK_VALUES))
        .for_each(|(gradients, x)| backward_task(x, gradients));
}

dispatch! {
    fn forward_task(values: &mut [f32]) {
        for value in values {
            *value *= cdf_and_density(*value).0;
        }
    }
}

dispatch! {
    fn backward_task(x: &[f32], gradients: &mut [f32]) {
        for (gradient, &x) in gradients.iter_mut().zip(x) {
            let (cdf, density) = cdf_and_density(x);
            *gradient *= cdf + x * density;
        }
    }
}

/// The normal distribution's cdf and density. The error function is Abramowitz and Stegun's
/// 7.1.26, within 1.5e-7.
#[inline(always)]
fn cdf_and_density(x: f32) -> (f32, f32) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let tail = exp(-z * z);
    let mut series = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        series = t.mul_add(series, coefficient);
    }
    series *= t;
    let half = 0.5 * series * tail;
    (if x >= 0.0 { 1.0 - half } else { half }, tail * INV_SQRT_TAU)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `0.5 (1 + erf(x / sqrt 2))` by the series of the error function, in f64.
    fn cdf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / (2 * n + 1) as f64;
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
    }

    #[test]
    fn values_and_derivatives() {
        let x: Vec<f32> = (-6000..6000).map(|i| i as f32 / 1000.0).collect();
        let mut y = x.clone();
        forward(&mut y);
        let mut derivatives = vec![1.0; x.len()];
        backward(&x, &mut derivatives);
        for ((&x, y), derivative) in x.iter().zip(y).zip(derivatives) {
            let x = f64::from(x);
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(y) - x * cdf(x)).abs() < 1e-6, "{x}");
            assert!((f64::from(derivative) - cdf(x) - x * density).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let mut values = [f32::NAN, f32::INFINITY, 1.0];
        forward(&mut values);
        assert!(values[0].is_nan());
        assert_eq!(values[1], f32::INFINITY);
    }
}
