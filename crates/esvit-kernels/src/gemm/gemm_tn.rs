//! GEMM with a transposed LHS, `C = A^T B`: the gradient of a weight, `dW = dY^T X`. K is the
//! number of rows of A and B.

use std::ops::Range;

use rayon::prelude::*;

use super::amx::TILE_K;
use super::pack::{pack_vnni, panel_width, transpose_rows};
use super::{Dims, LANES, Lhs, Output, RhsPanel};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::elementwise;
use crate::profile;

/// K rows that are packed and multiplied at a time, so that the packed operands stay in the caches.
const CHUNK_K: usize = 1536;

/// The same for products of tiles, which wait for operands sooner.
const CHUNK_K_OF_TILES: usize = 768;

/// Maximum number of output rows (columns of A) of a task.
const TASK_M: usize = 96;

/// A row-major matrix view: the first `columns` values of rows `row_stride` values apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// A whole matrix whose rows are stored at [`crate::element::padded_row_len`].
    pub(crate) fn new(values: &'a [T], columns: usize) -> Self {
        Self { values, columns, row_stride: crate::element::padded_row_len::<T>(columns) }
    }

    fn rows(&self) -> usize {
        self.values.len().checked_div(self.row_stride).unwrap_or(0)
    }
}

/// `out [M, N] = a^T b` for `a [K, M]` and `b [K, N]`, and `sums [M]`, the column sums of `a`: the
/// gradients of the weight and the bias of a linear layer. With `add` both accumulate.
///
/// Every output value is accumulated by one task, in the order of rows.
pub(crate) fn gemm_tn<T: Element>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: &mut [f32],
    sums: &mut [f32],
    add: bool,
) {
    assert_eq!(a.rows(), b.rows(), "rows of both operands");
    assert_eq!(out.len(), a.columns * b.columns, "output");
    let rows = a.rows();
    if !add {
        sums.fill(0.0);
        if rows == 0 {
            out.fill(0.0);
        }
    }
    let task = a.columns.div_ceil(8).next_multiple_of(LANES).min(TASK_M);
    let width = panel_width(b.columns);
    let in_rows = T::loads_rows();
    let k_multiple = if in_rows { TILE_K } else { T::K_PACK };
    let most = if T::has_tiles() { CHUNK_K_OF_TILES } else { CHUNK_K };
    let stored = rows.min(most).next_multiple_of(k_multiple);
    let mut lhs_panels = Buffer::scratch(stored * a.columns.next_multiple_of(LANES));
    let mut rhs_panels = Buffer::scratch(stored * b.columns.next_multiple_of(LANES));
    for start in (0..rows).step_by(most) {
        let chunk = start..(start + most).min(rows);
        let stored = chunk.len().next_multiple_of(k_multiple);
        let k_steps = stored / T::K_PACK;
        let lhs_panels = &mut lhs_panels[..stored * a.columns.next_multiple_of(LANES)];
        let rhs_panels = &mut rhs_panels[..stored * b.columns.next_multiple_of(LANES)];
        rayon::join(
            || pack_lhs_panels(a, chunk.clone(), stored, task, lhs_panels, sums, in_rows),
            || pack_panels(b, chunk.clone(), stored, width, rhs_panels),
        );
        out.par_chunks_mut(task * b.columns).zip(lhs_panels.par_chunks(task * stored)).for_each(
            |(out, panel)| {
                let lhs = if in_rows {
                    Lhs::from_rows(panel, stored)
                } else {
                    Lhs::from_transposed(panel, panel.len() / stored)
                };
                let dims = Dims { m: out.len() / b.columns, k_steps };
                let add = add || start > 0;
                for (at, panel) in rhs_panels.chunks(width * stored).enumerate() {
                    let columns = panel.len() / stored;
                    let k_stride = columns * T::K_PACK;
                    let panel = RhsPanel { values: panel, k_stride, width: columns, bias: None };
                    let first = at * width;
                    if first + columns <= b.columns {
                        let mut out = Output { values: &mut out[first..], row_stride: b.columns };
                        T::gemm(lhs, panel, dims, &mut out, add);
                    } else {
                        gemm_ragged_panel(lhs, panel, dims, out, first, b.columns, add);
                    }
                }
            },
        );
    }
}

/// Gradients of weight `[out, in]` and bias `[out]` of a linear layer, from those of its output,
/// `dy [rows, out]`, and its input, `x [rows, in]`: the `phase` of a profile.
pub(crate) fn layer_gradients<T: Element>(
    phase: &'static str,
    dy: Matrix<'_, T>,
    x: Matrix<'_, T>,
) -> (Vec<f32>, Vec<f32>) {
    let mut weight = Buffer::<f32>::scratch(dy.columns * x.columns);
    let mut bias = vec![0.0; dy.columns];
    profile::time(phase, dy.rows() * weight.len(), || {
        gemm_tn(dy, x, &mut weight, &mut bias, false);
    });
    (weight.into_vec(), bias)
}

/// GEMM with a panel wider than the remaining columns of `out [M, columns]`, from `first` on.
fn gemm_ragged_panel<T: Element>(
    lhs: Lhs<'_, T>,
    panel: RhsPanel<'_, T>,
    dims: Dims,
    out: &mut [f32],
    first: usize,
    columns: usize,
    add: bool,
) {
    let mut tile = vec![0.0; dims.m * panel.width];
    let mut padded = Output { values: &mut tile, row_stride: panel.width };
    T::gemm(lhs, panel, dims, &mut padded, false);
    for (out, tile) in out.chunks_exact_mut(columns).zip(tile.chunks_exact(panel.width)) {
        for (out, tile) in out[first..].iter_mut().zip(tile) {
            *out = if add { *out + tile } else { *tile };
        }
    }
}

/// Packs rows of a matrix into panels of `width` columns in VNNI layout, `[K steps, width,
/// K_PACK]`, padded with zeros to whole registers and to `stored` rows.
fn pack_panels<T: Element>(
    matrix: Matrix<'_, T>,
    rows: Range<usize>,
    stored: usize,
    width: usize,
    out: &mut [T],
) {
    out.par_chunks_mut(width * stored).enumerate().for_each(|(at, panel)| {
        pack_panel(matrix, rows.clone(), stored, at * width, panel);
    });
}

/// The same for the LHS, and adds the rows to `sums`. A panel `in_rows` is `[width, stored]`.
fn pack_lhs_panels<T: Element>(
    matrix: Matrix<'_, T>,
    rows: Range<usize>,
    stored: usize,
    width: usize,
    out: &mut [T],
    sums: &mut [f32],
    in_rows: bool,
) {
    let panels = out.par_chunks_mut(width * stored).zip(sums.par_chunks_mut(width));
    panels.enumerate().for_each(|(at, (panel, sums))| {
        let first = at * width;
        if in_rows {
            let mut steps = Buffer::scratch(panel.len());
            pack_panel(matrix, rows.clone(), stored, first, &mut steps);
            let step = panel.len() / stored * T::K_PACK;
            transpose_rows(&steps, step, stored / T::K_PACK, panel, stored);
        } else {
            pack_panel(matrix, rows.clone(), stored, first, panel);
        }
        let from = &matrix.values[rows.start * matrix.row_stride + first..];
        for row in 0..rows.len() {
            elementwise::add(&from[row * matrix.row_stride..][..sums.len()], sums);
        }
    });
}

/// Packs one panel, of the columns from `first` on.
fn pack_panel<T: Element>(
    matrix: Matrix<'_, T>,
    rows: Range<usize>,
    stored: usize,
    first: usize,
    panel: &mut [T],
) {
    let padded = panel.len() / stored;
    let columns = padded.min(matrix.columns - first);
    if columns < padded || rows.len().next_multiple_of(T::K_PACK) < stored {
        panel.fill(T::default());
    }
    let from = &matrix.values[rows.start * matrix.row_stride + first..];
    pack_vnni(from, matrix.row_stride, rows.len(), columns, panel, padded * T::K_PACK);
}
