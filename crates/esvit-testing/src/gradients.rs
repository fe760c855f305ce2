//! Gradients by finite differences.

use esvit_nn::{Device, Tape, Tensor};

use crate::hashed;

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
pub fn check_gradients(what: &str, inputs: &[Vec<f32>], function: impl Fn(&[Tensor]) -> Tensor) {
    let device = Device::Cpu;
    let tensors = |inputs: &[Vec<f32>]| -> Vec<Tensor> {
        inputs.iter().map(|values| Tensor::from_vec(values.clone(), &device)).collect()
    };
    let tape = Tape::new();
    let tracked: Vec<Tensor> = tensors(inputs).into_iter().map(|input| tape.watch(input)).collect();
    let output = function(&tracked);
    let projection = hashed(PROJECTION, output.shape()[0]);
    let projected = output * Tensor::from_vec(projection.clone(), &device);
    let gradients = tape.backward(&projected.sum());

    // The sum is in f64, so that only the function's own rounding counts.
    let projected = |inputs: &[Vec<f32>]| -> f64 {
        let output = function(&tensors(inputs)).to_vec::<f32>();
        output.iter().zip(&projection).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let mut inputs = inputs.to_vec();
    for number in 0..inputs.len() {
        let gradient = gradients.of(&tracked[number]);
        let gradient = gradient.unwrap_or_else(|| panic!("{what}: input {number}")).to_vec::<f32>();
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
