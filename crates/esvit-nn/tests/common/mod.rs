//! What several test files need: numbers that a hash makes, and gradients by finite differences.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use esvit_nn::params::{ParamSpec, Params, Role, tensor, vector};
use esvit_nn::weights::to_vec;

/// A number in `[-1, 1)` for index `i` of a stream. The values of the official code that the tests
/// hold were computed from these inputs and parameters.
pub(crate) fn hash(stream: u32, i: usize) -> f64 {
    let mut x = (i as u32)
        .wrapping_mul(2_654_435_761)
        .wrapping_add(stream.wrapping_mul(40_503))
        .wrapping_add(12_345);
    for _ in 0..2 {
        x = (x ^ x >> 16).wrapping_mul(0x45d_9f3b);
    }
    f64::from(x ^ x >> 16) / 4_294_967_296.0 * 2.0 - 1.0
}

/// The first `len` numbers of a stream.
pub(crate) fn hashed(stream: u32, len: usize) -> Vec<f32> {
    hashed_times(stream, len, 1.0)
}

/// The first `len` numbers of a stream, scaled.
pub(crate) fn hashed_times(stream: u32, len: usize, scale: f64) -> Vec<f32> {
    (0..len).map(|i| (hash(stream, i) * scale) as f32).collect()
}

/// A tensor of the numbers of a stream.
pub(crate) fn hashed_tensor<const D: usize>(stream: u32, shape: [usize; D]) -> Tensor<D> {
    tensor(hashed(stream, shape.iter().product()), shape, &Device::flex())
}

/// Parameters filled from the hash, number `p` in the list (buffers not counted) from stream
/// `first_stream + p`: scaled to keep the variance of what passes through.
pub(crate) fn fill(specs: &Arc<[ParamSpec]>, first_stream: u32) -> Params {
    let mut stream = first_stream;
    Params::from_fn(specs, &Device::flex(), |spec| {
        if spec.role == Role::Buffer {
            return spec.initial_values(0);
        }
        let (name, len) = (&spec.name, spec.len());
        let values = if name.ends_with("weight_g") {
            vec![1.0; len]
        } else if name.contains("bias_table") {
            hashed_times(stream, len, 0.5)
        } else if spec.shape.len() == 1 {
            let center = if name.ends_with("weight") { 1.0 } else { 0.0 };
            (0..len).map(|i| (hash(stream, i) * 0.1 + center) as f32).collect()
        } else {
            let fan_in: usize = spec.shape[1..].iter().product();
            hashed_times(stream, len, (3.0 / fan_in as f64).sqrt())
        };
        stream += 1;
        values
    })
}

/// Fails unless `found` is within `tolerance` of `expected`.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(difference <= tolerance, "{what}[{i}]: {found} instead of {expected}");
    }
}

/// Fails unless two lists differ by at most `tolerance` of the largest entry of the second.
pub(crate) fn assert_alike(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let expected: Vec<f64> = expected.iter().map(|&value| value.into()).collect();
    let largest = expected.iter().fold(1e-30, |largest, value| value.abs().max(largest));
    assert_close(what, found, &expected, tolerance * largest);
}

/// Stream of the numbers that outputs are projected with.
const PROJECTION: u32 = 7_000;
/// Entries of an input that are moved one by one, at most.
const MOVED_ENTRIES: usize = 48;
/// Allowed difference, as a share of the largest entry of the gradient.
const TOLERANCE: f64 = 1e-3;
/// Width of the steps, for functions that vary over distances of about 1. The four-point formula is
/// wrong by `STEP^4 / 30` fifth derivatives, here 2e-9 of them: enough for those of a network,
/// which come to thousands. The outputs' rounding adds about `1e-7 / STEP` for every unit of them,
/// here 7e-6, in a network some ten times as much.
const STEP: f32 = 0.015;

/// Compares gradients with finite differences: those of the sum of the outputs of `function`, each
/// times a fixed random number, with respect to `inputs`.
pub(crate) fn check_gradients(
    what: &str,
    inputs: &[Vec<f32>],
    function: impl Fn(&[Tensor<1>]) -> Tensor<1>,
) {
    let device = Device::flex();
    let tensors = |inputs: &[Vec<f32>]| -> Vec<Tensor<1>> {
        inputs.iter().map(|values| vector(values.clone(), &device)).collect()
    };
    let tracked: Vec<Tensor<1>> =
        tensors(inputs).into_iter().map(|input| input.autodiff().require_grad()).collect();
    let output = function(&tracked);
    let projection = hashed(PROJECTION, output.dims()[0]);
    let gradients = (output * vector(projection.clone(), &device).autodiff()).sum().backward();

    // The sum is in f64, so that only the function's own rounding counts.
    let projected = |inputs: &[Vec<f32>]| -> f64 {
        let output = to_vec(&function(&tensors(inputs)));
        output.iter().zip(&projection).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let mut inputs = inputs.to_vec();
    for number in 0..inputs.len() {
        let gradient = tracked[number].grad(&gradients);
        let gradient = to_vec(&gradient.unwrap_or_else(|| panic!("{what}: input {number}")));
        let largest = gradient.iter().fold(0.0, |largest: f64, g| f64::from(g.abs()).max(largest));
        // An odd stride meets every column of a matrix with an even number of them.
        let stride = (inputs[number].len() / MOVED_ENTRIES) | 1;
        for entry in (0..inputs[number].len()).step_by(stride) {
            let start = inputs[number][entry];
            let mut at = |steps: f32| {
                inputs[number][entry] = start + steps * STEP;
                projected(&inputs)
            };
            let slope = 8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0));
            let expected = slope / (12.0 * f64::from(STEP));
            inputs[number][entry] = start;
            let found = f64::from(gradient[entry]);
            assert!(
                (found - expected).abs() <= TOLERANCE * largest.max(0.1),
                "{what}: input {number}, entry {entry}: {found} instead of {expected} \
                 (largest {largest})",
            );
        }
    }
}
