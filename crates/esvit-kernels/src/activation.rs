//! Activations of the form `act(x) = x * gate(x)`, so that kernels are generic over the gate.

use crate::simd::exp;

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Identity.
    None,
    /// GELU, exact: `x * cdf(x)` with the cdf of the standard normal distribution.
    Gelu,
    /// QuickGELU, `x * sigmoid(1.702 x)`. Groundwork: no model of this workspace uses it yet.
    QuickGelu,
}

/// The gate of an activation.
pub(crate) trait Gate: Copy {
    /// `gate(x)`.
    fn gate(self, x: f32) -> f32;
    /// `gate(x)` and its derivative: `act'(x) = gate(x) + x * gate'(x)`.
    fn gate_and_derivative(self, x: f32) -> (f32, f32);
}

/// The gate of [`Activation::None`].
#[derive(Clone, Copy)]
pub(crate) struct IdentityGate;

impl Gate for IdentityGate {
    #[inline(always)]
    fn gate(self, _: f32) -> f32 {
        1.0
    }

    #[inline(always)]
    fn gate_and_derivative(self, _: f32) -> (f32, f32) {
        (1.0, 0.0)
    }
}

/// The gate of [`Activation::Gelu`].
#[derive(Clone, Copy)]
pub(crate) struct NormalCdf;

impl Gate for NormalCdf {
    #[inline(always)]
    fn gate(self, x: f32) -> f32 {
        cdf(x)
    }

    #[inline(always)]
    fn gate_and_derivative(self, x: f32) -> (f32, f32) {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        (cdf(x), exp(-0.5 * x * x) * INV_SQRT_TAU)
    }
}

/// The gate of [`Activation::QuickGelu`].
#[derive(Clone, Copy)]
pub(crate) struct ScaledSigmoid;

impl ScaledSigmoid {
    const SCALE: f32 = 1.702;
}

impl Gate for ScaledSigmoid {
    #[inline(always)]
    fn gate(self, x: f32) -> f32 {
        let x = -Self::SCALE * x;
        // `exp` takes x up to 88; beyond 80 the gate is 0 to within rounding. NaN stays NaN.
        1.0 / (1.0 + exp(if x > 80.0 { 80.0 } else { x }))
    }

    #[inline(always)]
    fn gate_and_derivative(self, x: f32) -> (f32, f32) {
        let gate = self.gate(x);
        (gate, Self::SCALE * gate * (1.0 - gate))
    }
}

/// Evaluates an expression with the gate of an activation, monomorphized for each.
macro_rules! with_gate {
    ($activation:expr, $gate:ident => $call:expr) => {
        match $activation {
            $crate::activation::Activation::None => {
                let $gate = $crate::activation::IdentityGate;
                $call
            }
            $crate::activation::Activation::Gelu => {
                let $gate = $crate::activation::NormalCdf;
                $call
            }
            $crate::activation::Activation::QuickGelu => {
                let $gate = $crate::activation::ScaledSigmoid;
                $call
            }
        }
    };
}
pub(crate) use with_gate;

/// Coefficients of the numerator (odd powers) and denominator (even powers), highest first, of the
/// rational approximation of erf on [-4, 4] that Eigen and XLA use too.
const NUMERATOR: [f32; 7] = [
    -2.726_142e-10,
    2.770_681_4e-8,
    -2.101_024e-6,
    -5.692_506_5e-5,
    -7.349_906_4e-4,
    -2.954_6e-3,
    -1.609_603_3e-2,
];
const DENOMINATOR: [f32; 5] =
    [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];

/// cdf of the standard normal distribution, `(1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
fn cdf(x: f32) -> f32 {
    let z = x * std::f32::consts::FRAC_1_SQRT_2;
    // Beyond 4 erf is 1 to within rounding. NaN stays NaN.
    let z = if z > 4.0 { 4.0 } else { z };
    let z = if z < -4.0 { -4.0 } else { z };
    let square = z * z;
    let polynomial = |coefficients: &[f32]| {
        let mut sum = coefficients[0];
        for &coefficient in &coefficients[1..] {
            sum = square.mul_add(sum, coefficient);
        }
        sum
    };
    let erf = z * polynomial(&NUMERATOR) / polynomial(&DENOMINATOR);
    erf.mul_add(0.5, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `0.5 (1 + erf(x / sqrt 2))` by the series of the error function, in f64.
    fn series(x: f64) -> f64 {
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
            let (found_cdf, found_density) = NormalCdf.gate_and_derivative(x);
            let (y, derivative) = (x * found_cdf, found_cdf + x * found_density);
            let x = f64::from(x);
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(y) - x * series(x)).abs() < 1e-6, "{x}");
            assert!((f64::from(derivative) - series(x) - x * density).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn quick_values_and_derivatives() {
        for x in (-6000..6000).map(|i| i as f32 / 100.0) {
            let (gate, derivative) = ScaledSigmoid.gate_and_derivative(x);
            let x = f64::from(x);
            let expected = 1.0 / (1.0 + (-1.702 * x).exp());
            assert!((f64::from(gate) - expected).abs() < 1e-6, "{x}: {gate} {expected}");
            let expected = 1.702 * expected * (1.0 - expected);
            assert!(
                (f64::from(derivative) - expected).abs() < 1e-6,
                "{x}: {derivative} {expected}"
            );
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        assert!(NormalCdf.gate_and_derivative(f32::NAN).0.is_nan());
        assert!(ScaledSigmoid.gate_and_derivative(f32::NAN).0.is_nan());
        assert!((cdf(f32::INFINITY) - 1.0).abs() < 1e-7 && cdf(f32::NEG_INFINITY).abs() < 1e-7);
    }
}
