//! Patch merging: four adjacent rows are concatenated to one of `4 C`, normalized and projected.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::gemm::{Lhs, Matrix, PackedRhs, layer_gradients};
use crate::layer_norm::{fold_beta_into_bias, folded_affine_backward, normalize};
use crate::profile;
use crate::rows::{Rows, SampleScales, block_rows, linear, slots, store};

pub use crate::layer_norm::Saved;

/// Index of a row outside the map: zeros.
pub const OUTSIDE: u32 = u32::MAX;

/// The parameters: layer norm over `4 C` and `weight [out, 4 C]`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Merge<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    pub weight: &'a [f32],
}

/// Gradients of the parameters, in the order of [`Merge`], and of the input.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Gradients {
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub weight: Vec<f32>,
}

impl Merge<'_> {
    /// Columns of the result; checks all lengths.
    fn outputs(&self) -> usize {
        let wide = self.gamma.len();
        assert!(wide.is_multiple_of(4) && self.beta.len() == wide, "normalization of four rows");
        assert!(self.weight.len().is_multiple_of(wide), "weight");
        self.weight.len() / wide
    }
}

/// Merges rows of `x [.., C]` into `y [rows, out]`: `indices` has the four rows of `x` of every row
/// of `y`, or [`OUTSIDE`]. With `save_for_backward`, also returns what [`backward`] needs.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element>(
    x: &[f32],
    merge: &Merge<'_>,
    indices: &[[u32; 4]],
    save_for_backward: bool,
) -> (Vec<f32>, Option<Saved<T>>) {
    let (wide, outputs, rows) = (merge.gamma.len(), merge.outputs(), indices.len());
    let (width, row) = (wide / 4, padded_row_len::<T>(wide));
    let weight = PackedRhs::<T>::from_transposed(merge.weight, wide, Some(merge.gamma));
    let weight = weight.with_bias(fold_beta_into_bias(merge.weight, merge.beta, None));
    let mut y = Buffer::<f32>::uninit(rows * outputs);
    let mut saved = save_for_backward.then(|| Saved::new(rows, rows, wide));
    let size = block_rows::<T>(rows, wide);
    let slots = slots(saved.as_mut().map(|saved| saved.pieces(size, wide)), rows.div_ceil(size));
    let tasks = indices.par_chunks(size).zip(y.par_chunks_mut(size * outputs)).zip(slots);
    profile::time("merge forward", rows * wide * outputs, || {
        tasks.for_each(|((indices, y), slot)| {
            let (mut own, count) = (None, indices.len());
            let (xhat, rstd) =
                slot.unwrap_or_else(|| own.insert(Saved::new(count, count, wide)).all());
            let mut gathered = vec![0.0; wide];
            let to = xhat.chunks_exact_mut(row).zip(rstd);
            for (indices, (xhat, rstd)) in indices.iter().zip(to) {
                for (to, &from) in gathered.chunks_exact_mut(width).zip(indices) {
                    match from {
                        OUTSIDE => to.fill(0.0),
                        from => to.copy_from_slice(&x[from as usize * width..][..width]),
                    }
                }
                *rstd = normalize(&gathered, merge.eps, xhat);
            }
            linear(Lhs::from_rows(xhat, row), count, &weight, y, outputs);
        })
    });
    (y.into_vec(), saved)
}

/// Gradients from that of the output, `dy [rows, out]`, for an input of `inputs` rows, each of
/// which `indices` has once. `saved` comes from [`forward`] with the same arguments.
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    saved: Saved<T>,
    merge: &Merge<'_>,
    indices: &[[u32; 4]],
    dy: &[f32],
    inputs: usize,
) -> Gradients {
    let (wide, outputs, count) = (merge.gamma.len(), merge.outputs(), indices.len());
    let (width, row, out_row) = (wide / 4, padded_row_len::<T>(wide), padded_row_len::<T>(outputs));
    let Saved { xhat, rstd } = saved;
    assert_eq!(rstd.len(), count, "saved rows");
    let weight = PackedRhs::<T>::from_rows(merge.weight, wide, Some(merge.gamma));
    let mut gradients = Buffer::<T>::scratch_rows(count, outputs);
    let mut gathered = Buffer::<f32>::scratch(count * wide);
    gathered.fill(0.0);
    let size = block_rows::<T>(count, wide);
    let macs = count * wide * outputs;
    profile::time("merge backward, rows", macs, || {
        let mut rows = Rows::new(&mut gathered, wide, &SampleScales::NONE);
        (rows.all().cut(size).into_par_iter())
            .zip(dy.par_chunks(size * outputs))
            .zip(gradients.par_chunks_mut(size * out_row))
            .zip(xhat.par_chunks(size * row).zip(rstd.par_chunks(size)))
            .for_each(|(((mut block, dy), gradients), (xhat, rstd))| {
                store(dy, outputs, outputs, gradients, out_row);
                let lhs = Lhs::from_rows(gradients, out_row);
                block.add_input_gradients(lhs, &weight, xhat, rstd);
            });
    });
    // Every row is written, since the neighborhoods cover the maps.
    let mut x = Buffer::<f32>::scratch(inputs * width);
    for (from, &to) in gathered.chunks_exact(width).zip(indices.as_flattened()) {
        if to != OUTSIDE {
            x[to as usize * width..][..width].copy_from_slice(from);
        }
    }
    let (dy, input) = (Matrix::new(&gradients, outputs), Matrix::new(&xhat, wide));
    let (mut weight, sums) = layer_gradients("merge backward, weights", dy, input);
    let (gamma, beta) =
        folded_affine_backward(&mut weight, merge.weight, merge.gamma, merge.beta, &sums);
    Gradients { x: x.into_vec(), gamma, beta, weight }
}

#[cfg(test)]
mod tests;
