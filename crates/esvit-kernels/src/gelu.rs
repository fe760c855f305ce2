//! The Gaussian error linear unit, `x * cdf(x)` with the normal distribution's cdf.

use crate::simd::exp;

/// The normal distribution's cdf and density. The error function is Abramowitz and Stegun's
/// 7.1.26, within 1.5e-7.
#[inline(always)]
pub(crate) fn cdf_and_density(x: f32) -> (f32, f32) {
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
        for x in (-6000..6000).map(|i| i as f32 / 1000.0) {
            let (found_cdf, found_density) = cdf_and_density(x);
            let (y, derivative) = (x * found_cdf, found_cdf + x * found_density);
            let x = f64::from(x);
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(y) - x * cdf(x)).abs() < 1e-6, "{x}");
            assert!((f64::from(derivative) - cdf(x) - x * density).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        assert!(cdf_and_density(f32::NAN).0.is_nan());
        assert_eq!(cdf_and_density(f32::INFINITY).0, 1.0);
    }
}
