//! The MLP branch of a transformer block, `x + scale * fc2(act(fc1(norm(x))))`.
//!
//! A task takes some rows through the whole branch, so that only saved activations leave the
//! caches. gamma and beta of the norm are folded into weight and bias of `fc1`.

use rayon::prelude::*;

use crate::activation::{Activation, Gate, activate, with_gate};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len, recomputes};
use crate::gemm::{Lhs, Matrix, NR, PackedRhs, gemm_tn};
use crate::layer_norm::{self, fold_beta_into_bias, folded_affine_backward};
use crate::profile;
use crate::rows::{
    BAND_ROWS, Rows, SampleScales, block_rows, for_each_panel, linear, slots, store,
};
use crate::simd::{dispatch, prefetch};

/// The parameters: layer norm over `C`, `fc1 [hidden, C]` and `fc2 [C, hidden]`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Mlp<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    pub fc1_weight: &'a [f32],
    pub fc1_bias: &'a [f32],
    pub activation: Activation,
    pub fc2_weight: &'a [f32],
    pub fc2_bias: &'a [f32],
}

/// Gradients of the parameters, in the order of [`Mlp`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Gradients {
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub fc1_weight: Vec<f32>,
    pub fc1_bias: Vec<f32>,
    pub fc2_weight: Vec<f32>,
    pub fc2_bias: Vec<f32>,
}

/// The weights as packed GEMM operands of the forward pass.
#[derive(Debug)]
pub struct PackedWeights<T: Element> {
    /// LayerNorm folded in: weight * gamma, bias + weight * beta.
    fc1: PackedRhs<T>,
    fc2: PackedRhs<T>,
}

/// Saved activations of the rows that were not dropped: those of the norm, and the pre-activation
/// `hidden [rows, hidden]` unless it is computed again.
#[derive(Debug, Clone)]
pub struct Saved<T: Element> {
    norm: layer_norm::Saved<T>,
    hidden: Option<Buffer<T>>,
}

/// Values that [`forward`] saves of a row of `width` values.
pub fn saved_values<T: Element>(width: usize, hidden: usize) -> usize {
    if recomputes::<T>() { width } else { width + hidden }
}

impl Mlp<'_> {
    /// Packs the weights for [`forward`]; valid as long as the parameters do not change.
    pub fn pack_weights<T: Element>(&self) -> PackedWeights<T> {
        let fc2 = PackedRhs::from_transposed(self.fc2_weight, self.hidden(), None);
        PackedWeights { fc1: self.pack_fc1(), fc2: fc2.with_bias(self.fc2_bias.to_vec()) }
    }

    /// The weight of `fc1` with the norm's gamma and beta.
    fn pack_fc1<T: Element>(&self) -> PackedRhs<T> {
        let bias = fold_beta_into_bias(self.fc1_weight, self.beta, Some(self.fc1_bias));
        PackedRhs::from_transposed(self.fc1_weight, self.width(), Some(self.gamma)).with_bias(bias)
    }

    fn width(&self) -> usize {
        self.gamma.len()
    }

    fn hidden(&self) -> usize {
        self.fc1_bias.len()
    }

    /// The rows of `x` that are not dropped; checks all lengths.
    fn rows<'a>(&self, x: &'a mut [f32], sample_scales: &SampleScales<'_>) -> Rows<'a> {
        let (width, hidden) = (self.width(), self.hidden());
        assert!(x.len().is_multiple_of(width), "whole rows");
        assert_eq!((self.beta.len(), self.fc2_bias.len()), (width, width), "vectors");
        assert_eq!(self.fc1_weight.len(), hidden * width, "fc1");
        assert_eq!(self.fc2_weight.len(), hidden * width, "fc2");
        Rows::new(x, width, sample_scales)
    }
}

impl<T: Element> Saved<T> {
    fn new(rows: &Rows<'_>, width: usize, hidden: usize) -> Self {
        let (kept, total) = (rows.kept(), rows.total());
        Self {
            norm: layer_norm::Saved::new(kept, total, width),
            hidden: (!recomputes::<T>()).then(|| Buffer::kept_rows(kept, total, hidden)),
        }
    }
}

/// Adds the branch to `x [rows, C]` in place, times the scale of each image. `packed` are the
/// weights of `mlp`. With `save_for_backward`, returns what [`backward`] needs.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element>(
    x: &mut [f32],
    mlp: &Mlp<'_>,
    packed: &PackedWeights<T>,
    sample_scales: &SampleScales<'_>,
    save_for_backward: bool,
) -> Option<Saved<T>> {
    let mut rows = mlp.rows(x, sample_scales);
    let (width, hidden) = (mlp.width(), mlp.hidden());
    let (row, hidden_row) = (padded_row_len::<T>(width), padded_row_len::<T>(hidden));
    let PackedWeights { fc1, fc2 } = packed;
    assert_eq!((fc1.n(), fc2.n()), (hidden, width), "packed weights of other sizes");

    let mut saved = save_for_backward.then(|| Saved::<T>::new(&rows, width, hidden));
    let macs = 2 * rows.kept() * width * hidden;
    let size = block_rows::<T>(rows.kept(), hidden.max(width));
    let blocks = rows.all().cut(size);
    let (norm, saved_hidden) =
        saved.as_mut().map(|saved| (&mut saved.norm, &mut saved.hidden)).unzip();
    let norms = slots(norm.map(|norm| norm.pieces(size, width)), blocks.len());
    let saved_hidden = saved_hidden.and_then(Option::as_deref_mut);
    let hiddens = saved_hidden.map(|hidden| hidden.chunks_mut(size * hidden_row));
    let hiddens = slots(hiddens, blocks.len());
    profile::time("mlp forward", macs, || {
        let tasks = blocks.into_par_iter().zip(norms).zip(hiddens);
        tasks.for_each(|((mut block, norm), mut saved_hidden)| {
            let (mut own, count) = (None, block.len());
            let (xhat, rstd) = norm
                .unwrap_or_else(|| own.insert(layer_norm::Saved::new(count, count, width)).all());
            block.normalize(mlp.eps, xhat, rstd);
            let mut active = Buffer::<T>::rows(count, hidden);
            for_each_panel(
                Lhs::from_rows(xhat, row),
                count,
                fc1,
                |first, columns, tile, padded| {
                    if let Some(saved) = saved_hidden.as_deref_mut() {
                        store(tile, padded, columns, &mut saved[first..], hidden_row);
                    }
                    let active = &mut active[first..];
                    with_gate!(mlp.activation, gate => {
                        activate(gate, tile, padded, columns, active, hidden_row)
                    });
                    if let Some(saved) = saved_hidden.as_deref() {
                        prefetch(&saved[first + columns..], hidden_row, NR);
                    }
                },
            );
            block.add_linear(Lhs::from_rows(&active, hidden_row), fc2);
        })
    });
    saved
}

/// Turns the gradient of the output, `gradient [rows, C]`, in place into that of the input, and
/// returns those of the parameters. `saved` comes from [`forward`] with the same arguments.
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    saved: Saved<T>,
    mlp: &Mlp<'_>,
    sample_scales: &SampleScales<'_>,
    gradient: &mut [f32],
) -> Gradients {
    let mut rows = mlp.rows(gradient, sample_scales);
    let (width, hidden) = (mlp.width(), mlp.hidden());
    let (row, hidden_row) = (padded_row_len::<T>(width), padded_row_len::<T>(hidden));
    let Saved { norm: layer_norm::Saved { xhat, rstd }, hidden: mut saved_hidden } = saved;
    assert_eq!(rstd.len(), rows.kept(), "saved rows");
    let fc2 = PackedRhs::<T>::from_rows(mlp.fc2_weight, hidden, None);
    let fc1 = PackedRhs::<T>::from_rows(mlp.fc1_weight, width, Some(mlp.gamma));
    let forward_again = saved_hidden.is_none().then(|| mlp.pack_fc1::<T>());

    let mut fc2_weight = Buffer::<f32>::scratch(mlp.fc2_weight.len());
    let mut fc2_bias = vec![0.0; width];
    let mut fc1_weight = Buffer::<f32>::scratch(mlp.fc1_weight.len());
    let mut fc1_bias = vec![0.0; hidden];
    let size = block_rows::<T>(rows.kept(), hidden.max(width));
    // Bands of equally many blocks; one empty band if there are no rows, which zeroes the
    // gradients.
    let blocks = rows.kept().div_ceil(size);
    let bands = blocks.div_ceil(BAND_ROWS / size).max(1);
    let band_rows = blocks.div_ceil(bands).max(1) * size;
    let room = rows.total().min(BAND_ROWS);
    let mut rows = rows.all();
    for at in 0..bands {
        let band = rows.split_off(band_rows);
        let (start, kept) = (at * band_rows, band.len());
        let mut own;
        let active = match &mut saved_hidden {
            Some(hidden) => &mut hidden[start * hidden_row..][..kept * hidden_row],
            None => {
                own = Buffer::<T>::scratch_kept_rows(kept, room, hidden);
                &mut own[..]
            }
        };
        let xhat = &xhat[start * row..][..kept * row];
        let rstd = &rstd[start..][..kept];
        let mut dbranch = Buffer::<T>::scratch_kept_rows(kept, room, width);
        let mut dhidden = Buffer::<T>::scratch_kept_rows(kept, room, hidden);
        let tasks = (band.cut(size).into_par_iter())
            .zip(dbranch.par_chunks_mut(size * row))
            .zip(dhidden.par_chunks_mut(size * hidden_row))
            .zip(active.par_chunks_mut(size * hidden_row))
            .zip(xhat.par_chunks(size * row).zip(rstd.par_chunks(size)));
        let macs = kept * width * hidden;
        let products = if forward_again.is_some() { 3 } else { 2 };
        profile::time("mlp backward, rows", products * macs, || {
            tasks.for_each(|((((mut block, dbranch), dhidden), active), (xhat, rstd))| {
                let count = block.len();
                block.scaled(dbranch);
                match &forward_again {
                    Some(fc1) => linear(Lhs::from_rows(xhat, row), count, fc1, active, hidden_row),
                    None => prefetch(active, hidden_row, NR),
                }
                let branch = Lhs::from_rows(dbranch, row);
                for_each_panel(branch, count, &fc2, |first, columns, tile, padded| {
                    let (active, dhidden) = (&mut active[first..], &mut dhidden[first..]);
                    with_gate!(mlp.activation, gate => {
                        activate_backward(
                            gate, tile, padded, columns, active, dhidden, hidden_row,
                        )
                    });
                    // Prefetches the columns of the next panel.
                    prefetch(&active[columns..], hidden_row, NR);
                    prefetch(&dhidden[columns..], hidden_row, NR);
                });
                let lhs = Lhs::from_rows(dhidden, hidden_row);
                block.add_input_gradients(lhs, &fc1, xhat, rstd);
            })
        });
        let add = at > 0;
        let [branch, inputs] = [&dbranch, xhat].map(|rows| Matrix::new(rows, width));
        let [actives, hiddens] = [&*active, &dhidden].map(|rows| Matrix::new(rows, hidden));
        profile::time("mlp backward, weights", macs, || {
            gemm_tn(branch, actives, &mut fc2_weight, &mut fc2_bias, add);
        });
        profile::time("mlp backward, weights", macs, || {
            gemm_tn(hiddens, inputs, &mut fc1_weight, &mut fc1_bias, add);
        });
    }
    let (gamma, beta) =
        folded_affine_backward(&mut fc1_weight, mlp.fc1_weight, mlp.gamma, mlp.beta, &fc1_bias);
    let (fc1_weight, fc2_weight) = (fc1_weight.into_vec(), fc2_weight.into_vec());
    Gradients { gamma, beta, fc1_weight, fc1_bias, fc2_weight, fc2_bias }
}

dispatch! {
    /// Backward of the activation for a panel: `dhidden = dactive * act'(x)`, and replaces the
    /// pre-activation `x` by `act(x)`, which the gradient of `fc2`'s weight needs.
    fn activate_backward<T: Element, G: Gate>(
        gate: G,
        tile: &[f32],
        width: usize,
        columns: usize,
        active: &mut [T],
        dhidden: &mut [T],
        to_row: usize,
    ) {
        let rows = active.chunks_mut(to_row).zip(dhidden.chunks_mut(to_row));
        for (tile, (active, dhidden)) in tile.chunks_exact(width).zip(rows) {
            let (tile, active) = (&tile[..columns], &mut active[..columns]);
            let dhidden = &mut dhidden[..columns];
            for i in 0..columns {
                let x = active[i].to_f32();
                let (factor, derivative) = gate.gate_and_derivative(x);
                active[i] = T::from_f32(x * factor);
                dhidden[i] = T::from_f32(tile[i] * (factor + x * derivative));
            }
        }
    }
}

#[cfg(test)]
mod tests;
