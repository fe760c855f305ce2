//! Activations of the form `act(x) = x * gate(x)`, so that kernels are generic over the gate.

use crate::element::Element;
use crate::simd::{dispatch, exp, update};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Identity.
    None,
    /// GELU, exact: `x * cdf(x)` with the cdf of the standard normal distribution.
    Gelu,
    /// QuickGELU, `x * sigmoid(1.702 x)`.
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

dispatch! {
    /// Stores `act(x)` for the first `columns` values of each row of `x [rows, width]`, in rows
    /// `to_row` values apart.
    pub(crate) fn activate<I: Element, T: Element, G: Gate>(
        gate: G,
        x: &[I],
        width: usize,
        columns: usize,
        active: &mut [T],
        to_row: usize,
    ) {
        for (x, active) in x.chunks_exact(width).zip(active.chunks_mut(to_row)) {
            update(&mut active[..columns], [x], |_, [x]| x * gate.gate(x));
        }
    }
}

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
    use crate::isa::tests::under_each;
    use crate::testing::cdf as defined_cdf;

    dispatch! {
        fn gates<G: Gate>(gate: G, x: &[f32], to: &mut [[f32; 3]]) {
            for (x, to) in x.iter().zip(to) {
                let (value, derivative) = gate.gate_and_derivative(*x);
                *to = [gate.gate(*x), value, derivative];
            }
        }
    }

    /// The gate and its derivative by the definition, for arguments up to `most`.
    fn check<G: Gate>(gate: G, most: f32, definition: impl Fn(f64) -> [f64; 2]) {
        let x: Vec<f32> = (-6000..=6000).map(|i| i as f32 / 6000.0 * most).collect();
        let expected: Vec<[f64; 2]> = x.iter().map(|&x| definition(f64::from(x))).collect();
        under_each(|isa| {
            let mut found = vec![[f32::NAN; 3]; x.len()];
            gates(gate, &x, &mut found);
            for ((x, [alone, value, derivative]), expected) in x.iter().zip(found).zip(&expected) {
                assert_eq!(alone, value, "{x}");
                let errors = [f64::from(value) - expected[0], f64::from(derivative) - expected[1]];
                assert!(errors.iter().all(|e| e.abs() < 3e-7), "{isa:?} {x}: {errors:?}");
            }
        });
    }

    #[test]
    fn gelu() {
        let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        check(NormalCdf, 6.0, |x| [defined_cdf(x), density(x)]);
    }

    #[test]
    fn quick_gelu() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-1.702 * x).exp());
        check(ScaledSigmoid, 60.0, |x| [sigmoid(x), 1.702 * sigmoid(x) * (1.0 - sigmoid(x))]);
    }

    #[test]
    fn identity() {
        check(IdentityGate, 10.0, |_| [1.0, 0.0]);
    }

    #[test]
    fn each_activation_has_its_gate() {
        let gates = [Activation::None, Activation::Gelu, Activation::QuickGelu]
            .map(|activation| with_gate!(activation, gate => gate.gate(1.0)));
        let expected = [1.0, 0.841_344_7, 0.845_796];
        assert!(gates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{gates:?}");
    }

    #[test]
    fn nan_stays_nan() {
        assert!(NormalCdf.gate_and_derivative(f32::NAN).0.is_nan());
        assert!(ScaledSigmoid.gate_and_derivative(f32::NAN).0.is_nan());
        assert!((cdf(f32::INFINITY) - 1.0).abs() < 1e-7 && cdf(f32::NEG_INFINITY).abs() < 1e-7);
    }
}
