//! Linear layer, `y = act(x) W^T + bias`.

use rayon::prelude::*;

use crate::activation::{Activation, Gate, activate, with_gate};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len, same};
use crate::gemm::{Lhs, Matrix, PackedRhs, layer_gradients};
use crate::profile;
use crate::rows::{block_rows, linear, slots, store};
use crate::simd::dispatch;

/// What the backward pass needs: the input before its activation.
#[derive(Debug, Clone)]
pub struct Saved<T: Element> {
    input: Buffer<T>,
}

/// Gradients of the layer.
#[derive(Debug)]
pub struct Gradients {
    /// Of the input, if asked for.
    pub x: Option<Vec<f32>>,
    /// Of the weight.
    pub weight: Vec<f32>,
    /// Of the bias.
    pub bias: Vec<f32>,
}

/// Weight and bias of a layer as a packed GEMM operand of the forward pass.
#[derive(Debug)]
pub struct PackedLayer<T: Element>(PackedRhs<T>);

/// Packs `weight [out, in]`, and `bias [out]` if there is one.
///
/// # Panics
/// When lengths do not match.
pub fn pack<T: Element>(weight: &[f32], inputs: usize, bias: Option<&[f32]>) -> PackedLayer<T> {
    let outputs = weight.len() / inputs;
    assert_eq!(weight.len(), outputs * inputs, "whole rows of weights");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "bias");
    let packed = PackedRhs::from_transposed(weight, inputs, None);
    PackedLayer(match bias {
        Some(bias) => packed.with_bias(bias.to_vec()),
        None => packed,
    })
}

/// The layer on `x [rows, in]` with `weight [out, in]` and `bias [out]`: returns `y [rows, out]`
/// and, with `save_for_backward`, what [`backward`] needs.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element>(
    x: &[f32],
    inputs: usize,
    activation: Activation,
    weight: &[f32],
    bias: Option<&[f32]>,
    save_for_backward: bool,
) -> (Vec<f32>, Option<Saved<T>>) {
    let packed = pack::<T>(weight, inputs, bias);
    let (y, saved) = forward_packed(x, inputs, activation, &packed, save_for_backward);
    (y.into_vec(), saved)
}

/// The same with packed weights. Rows come in f32 or in the type of operands, results in any type.
///
/// # Panics
/// When lengths do not match.
pub fn forward_packed<T: Element, I: Element, O: Element>(
    x: &[I],
    inputs: usize,
    activation: Activation,
    PackedLayer(packed): &PackedLayer<T>,
    save_for_backward: bool,
) -> (Buffer<O>, Option<Saved<T>>) {
    let (count, outputs) = (x.len() / inputs, packed.n());
    assert_eq!(x.len(), count * inputs, "whole rows");
    assert_eq!(packed.k_steps(), inputs.div_ceil(T::K_PACK), "inputs of the layer");
    let row = padded_row_len::<T>(inputs);
    let mut y = Buffer::<O>::uninit(count * outputs);
    let mut input = Buffer::<T>::rows(if save_for_backward { count } else { 0 }, inputs);
    let size = block_rows::<T>(count, inputs.max(outputs));
    let blocks = x.par_chunks(size * inputs).zip(y.par_chunks_mut(size * outputs));
    let pieces = save_for_backward.then(|| input.chunks_mut(size * row));
    let slots = slots(pieces, count.div_ceil(size));
    profile::time("linear forward", count * inputs * outputs, || {
        blocks.zip(slots).for_each(|((x, y), saved)| {
            let count = x.len() / inputs;
            if let Some(saved) = saved {
                store(x, inputs, inputs, saved, row);
            }
            // Rows that are operands as they lie.
            if activation == Activation::None
                && row == inputs
                && let Some(x) = same(x)
            {
                return linear(Lhs::from_rows(x, row), count, packed, y, outputs);
            }
            let mut lhs = Buffer::<T>::rows(count, inputs);
            with_gate!(activation, gate => activate(gate, x, inputs, inputs, &mut lhs, row));
            linear(Lhs::from_rows(&lhs, row), count, packed, y, outputs);
        })
    });
    (y, save_for_backward.then_some(Saved { input }))
}

/// Gradients from that of the output, `dy [rows, out]`; that of the input only with `input`.
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    saved: Saved<T>,
    inputs: usize,
    activation: Activation,
    weight: &[f32],
    dy: &[f32],
    input: bool,
) -> Gradients {
    let outputs = weight.len() / inputs;
    let (count, row, out_row) =
        (dy.len() / outputs, padded_row_len::<T>(inputs), padded_row_len::<T>(outputs));
    let mut active = saved.input;
    assert_eq!(active.len(), count * row, "saved rows");
    let packed = input.then(|| PackedRhs::<T>::from_rows(weight, inputs, None));
    let mut gradients = Buffer::<T>::scratch_rows(count, outputs);
    let mut dx = Buffer::<f32>::scratch(if input { count * inputs } else { 0 });
    let size = block_rows::<T>(count, inputs.max(outputs));
    let dx_blocks = slots(input.then(|| dx.chunks_mut(size * inputs)), count.div_ceil(size));
    let tasks = (dy.par_chunks(size * outputs))
        .zip(gradients.par_chunks_mut(size * out_row))
        .zip(active.par_chunks_mut(size * row))
        .zip(dx_blocks);
    let macs = if input { count * inputs * outputs } else { 0 };
    profile::time("linear backward, rows", macs, || {
        tasks.for_each(|(((dy, gradients), active), dx)| {
            let dx = dx.unwrap_or_default();
            store(dy, outputs, outputs, gradients, out_row);
            if let Some(packed) = &packed {
                let lhs = Lhs::from_rows(gradients, out_row);
                linear(lhs, dy.len() / outputs, packed, dx, inputs);
            }
            if activation != Activation::None {
                // Without `dx` there are no rows of it, but `act(x)` is still needed.
                let mut dx = dx.chunks_exact_mut(inputs);
                for active in active.chunks_exact_mut(row) {
                    let (active, dx) = (&mut active[..inputs], dx.next().unwrap_or_default());
                    with_gate!(activation, gate => activate_backward(gate, active, dx));
                }
            }
        })
    });
    let (dy, x) = (Matrix::new(&gradients, outputs), Matrix::new(&active, inputs));
    let (weight, bias) = layer_gradients("linear backward, weights", dy, x);
    Gradients { x: input.then(|| dx.into_vec()), weight, bias }
}

dispatch! {
    /// Replaces `x` in `active` by `act(x)`, and multiplies its gradient, if any, by `act'(x)`.
    fn activate_backward<T: Element, G: Gate>(gate: G, active: &mut [T], gradient: &mut [f32]) {
        let n = gradient.len();
        for i in 0..n.min(active.len()) {
            let x = active[i].to_f32();
            let (factor, derivative) = gate.gate_and_derivative(x);
            active[i] = T::from_f32(x * factor);
            gradient[i] *= factor + x * derivative;
        }
        for value in &mut active[n..] {
            let x = value.to_f32();
            *value = T::from_f32(x * gate.gate(x));
        }
    }
}

#[cfg(test)]
mod tests;
