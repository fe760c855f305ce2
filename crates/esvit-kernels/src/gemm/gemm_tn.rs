//! GEMM with a transposed LHS, `C = A^T B`: the gradient of a weight, `dW = dY^T X`. K is the
//! number of rows of A and B.

use std::ops::Range;

use rayon::prelude::*;

use super::amx::TILE_K;
use super::pack::{pack_vnni, panel_width, transpose_rows};
use super::{Dims, LANES, Lhs, Output, RhsPanel};
use crate::TASK_VALUES;
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

    pub(crate) fn of_rows(self, rows: Range<usize>) -> Self {
        Self {
            values: &self.values[rows.start * self.row_stride..rows.end * self.row_stride],
            ..self
        }
    }
}

/// K rows that [`gemm_tn`] multiplies at a time.
pub(crate) fn chunk_rows<T: Element>() -> usize {
    if T::has_tiles() { CHUNK_K_OF_TILES } else { CHUNK_K }
}

/// Chunks that a part of the rows has at least.
const PART_CHUNKS: usize = 4;

/// Maximum number of parts, and of the values of all their outputs.
const MOST_PARTS: usize = 16;
const MOST_PART_VALUES: usize = 4 << 20;

/// `out [M, N] = a^T b` for `a [K, M]` and `b [K, N]`, and `sums [M]`, the column sums of `a`, unless there
/// are none: the gradients of the weight and the bias of a linear layer. With `add` both accumulate.
pub(crate) fn gemm_tn<T: Element>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: &mut [f32],
    sums: &mut [f32],
    add: bool,
) {
    assert_eq!(a.rows(), b.rows(), "rows of both operands");
    in_parts::<T>(a.rows(), [out, sums], add, |rows, [out, sums], add| {
        gemm_tn_of_part(a.of_rows(rows.clone()), b.of_rows(rows), out, sums, add);
    });
}

/// Sums over rows, of which `compute` adds those of some rows, a whole number of [`chunk_rows`] but for the
/// last; with `add` to what is there. Where there are many more rows than results, parts of them are summed
/// side by side and then added up in order: threads need not wait for each other after every chunk. The parts
/// depend on sizes alone, so that the sums do not depend on the number of threads.
pub(crate) fn in_parts<T: Element>(
    rows: usize,
    [out, sums]: [&mut [f32]; 2],
    add: bool,
    compute: impl Fn(Range<usize>, [&mut [f32]; 2], bool) + Sync,
) {
    let chunks = rows.div_ceil(chunk_rows::<T>());
    let most = MOST_PARTS.min(MOST_PART_VALUES / out.len().max(1));
    let parts = (chunks / PART_CHUNKS).min(most);
    if parts < 2 {
        return compute(0..rows, [out, sums], add);
    }
    let of_part = chunks.div_ceil(parts) * chunk_rows::<T>();
    let parts = (0..rows).into_par_iter().step_by(of_part).map(|start| {
        let mut own = [out.len(), sums.len()].map(Buffer::<f32>::scratch);
        let [own_out, own_sums] = &mut own;
        compute(start..(start + of_part).min(rows), [own_out, own_sums], false);
        own
    });
    let parts: Vec<[Buffer<f32>; 2]> = parts.collect();
    for (at, of_part) in parts.iter().enumerate() {
        for (to, from) in [&mut *out, &mut *sums].into_iter().zip(of_part) {
            let tasks = to.par_chunks_mut(TASK_VALUES).zip(from.par_chunks(TASK_VALUES));
            tasks.for_each(|(to, from)| match add || at > 0 {
                true => elementwise::add(from, to),
                false => to.copy_from_slice(from),
            });
        }
    }
}

/// [`gemm_tn`] of all rows one after the other: every output value is accumulated by one task at a time.
pub(crate) fn gemm_tn_of_part<T: Element>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: &mut [f32],
    sums: &mut [f32],
    add: bool,
) {
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
    let most = chunk_rows::<T>();
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

/// The same for the LHS, and adds the rows to `sums`, unless there are none. A panel `in_rows` is `[width,
/// stored]`.
fn pack_lhs_panels<T: Element>(
    matrix: Matrix<'_, T>,
    rows: Range<usize>,
    stored: usize,
    width: usize,
    out: &mut [T],
    sums: &mut [f32],
    in_rows: bool,
) {
    let pack = |at: usize, panel: &mut [T]| {
        let first = at * width;
        if in_rows {
            let mut steps = Buffer::scratch(panel.len());
            pack_panel(matrix, rows.clone(), stored, first, &mut steps);
            let step = panel.len() / stored * T::K_PACK;
            transpose_rows(&steps, step, stored / T::K_PACK, panel, stored);
        } else {
            pack_panel(matrix, rows.clone(), stored, first, panel);
        }
    };
    let panels = out.par_chunks_mut(width * stored).enumerate();
    if sums.is_empty() {
        return panels.for_each(|(at, panel)| pack(at, panel));
    }
    panels.zip(sums.par_chunks_mut(width)).for_each(|((at, panel), sums)| {
        pack(at, panel);
        let from = &matrix.values[rows.start * matrix.row_stride + at * width..];
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
