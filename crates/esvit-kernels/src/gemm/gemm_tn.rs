//! Products over rows: `a^T b` for two matrices with the same rows, the gradient of a weight.

use rayon::prelude::*;

use super::pack::{interleave, strip_width};
use super::{Extent, LANES, Left, Out, Strip};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::simd::dispatch;

/// Rows that are laid out and multiplied at a time, so that they stay in the caches between.
const CHUNK_ROWS: usize = 1536;

/// Most columns of `a` of one task.
const TASK_COLUMNS: usize = 96;

/// The first `columns` values of rows that are `row` values apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) columns: usize,
    pub(crate) row: usize,
}

impl<'a, T: Element> Columns<'a, T> {
    /// All of a matrix whose rows are stored at the length of [`crate::element::row_len`].
    pub(crate) fn new(values: &'a [T], columns: usize) -> Self {
        Self { values, columns, row: crate::element::row_len::<T>(columns) }
    }

    fn rows(&self) -> usize {
        self.values.len().checked_div(self.row).unwrap_or(0)
    }
}

/// `out [a's columns, b's columns] = a^T b`; the sums of `a`'s columns go into `sums`. With `add`
/// both are added to what is there.
///
/// Sums over rows are taken in the same order for any number of threads.
pub(crate) fn gemm_tn<T: Element>(
    a: Columns<'_, T>,
    b: Columns<'_, T>,
    out: &mut [f32],
    mut sums: Option<&mut [f32]>,
    add: bool,
) {
    assert_eq!(a.rows(), b.rows(), "rows of both operands");
    assert_eq!(out.len(), a.columns * b.columns, "output");
    let rows = a.rows();
    if !add {
        if let Some(sums) = sums.as_deref_mut() {
            sums.fill(0.0);
        }
        if rows == 0 {
            out.fill(0.0);
        }
    }
    let task = a.columns.div_ceil(8).next_multiple_of(LANES).min(TASK_COLUMNS);
    let width = strip_width(b.columns);
    let stored = rows.min(CHUNK_ROWS).next_multiple_of(T::PAIR);
    let mut panels = Buffer::brief(stored * a.columns.next_multiple_of(LANES));
    let mut strips = Buffer::brief(stored * b.columns.next_multiple_of(LANES));
    for start in (0..rows).step_by(CHUNK_ROWS) {
        let chunk = start..(start + CHUNK_ROWS).min(rows);
        let steps = chunk.len().div_ceil(T::PAIR);
        let stored = steps * T::PAIR;
        let panels = &mut panels[..stored * a.columns.next_multiple_of(LANES)];
        let strips = &mut strips[..stored * b.columns.next_multiple_of(LANES)];
        rayon::join(
            || lay_out(a, chunk.clone(), task, panels, sums.as_deref_mut()),
            || lay_out(b, chunk.clone(), width, strips, None),
        );
        out.par_chunks_mut(task * b.columns).zip(panels.par_chunks(task * stored)).for_each(
            |(out, panel)| {
                let columns = panel.len() / stored;
                let left = Left::transposed(panel, columns);
                let extent = Extent { rows: out.len() / b.columns, steps };
                let add = add || start > 0;
                for (at, strip) in strips.chunks(width * stored).enumerate() {
                    let columns = strip.len() / stored;
                    let step = columns * T::PAIR;
                    let strip = Strip { values: strip, step, width: columns, bias: None };
                    let first = at * width;
                    if first + columns <= b.columns {
                        let mut out = Out { values: &mut out[first..], row: b.columns };
                        T::gemm(left, strip, extent, &mut out, add);
                    } else {
                        gemm_ragged(left, strip, extent, out, first, b.columns, add);
                    }
                }
            },
        );
    }
}

/// A product with a strip that reaches beyond the last column of `out`.
fn gemm_ragged<T: Element>(
    left: Left<'_, T>,
    strip: Strip<'_, T>,
    extent: Extent,
    out: &mut [f32],
    first: usize,
    columns: usize,
    add: bool,
) {
    let mut tile = vec![0.0; extent.rows * strip.width];
    let mut padded = Out { values: &mut tile, row: strip.width };
    T::gemm(left, strip, extent, &mut padded, false);
    for (out, tile) in out.chunks_exact_mut(columns).zip(tile.chunks_exact(strip.width)) {
        for (out, tile) in out[first..].iter_mut().zip(tile) {
            *out = if add { *out + tile } else { *tile };
        }
    }
}

/// Cuts some rows of a matrix into strips of `width` columns, each `[steps, width, PAIR]`, filled
/// up with zeros to whole registers, and adds the rows to `sums`.
fn lay_out<T: Element>(
    matrix: Columns<'_, T>,
    rows: std::ops::Range<usize>,
    width: usize,
    out: &mut [T],
    sums: Option<&mut [f32]>,
) {
    let stored = rows.len().next_multiple_of(T::PAIR);
    let from = &matrix.values[rows.start * matrix.row..];
    let pack = |at: usize, strip: &mut [T], sums: Option<&mut [f32]>| {
        let first = at * width;
        let padded = strip.len() / stored;
        let columns = padded.min(matrix.columns - first);
        if columns < padded {
            strip.fill(T::default());
        }
        let from = &from[first..];
        interleave(from, matrix.row, rows.len(), columns, strip, padded * T::PAIR);
        if let Some(sums) = sums {
            for row in 0..rows.len() {
                accumulate(&from[row * matrix.row..][..columns], sums);
            }
        }
    };
    match sums {
        Some(sums) => out
            .par_chunks_mut(width * stored)
            .zip(sums.par_chunks_mut(width))
            .enumerate()
            .for_each(|(at, (strip, sums))| pack(at, strip, Some(sums))),
        None => out
            .par_chunks_mut(width * stored)
            .enumerate()
            .for_each(|(at, strip)| pack(at, strip, None)),
    }
}

dispatch! {
    fn accumulate<T: Element>(row: &[T], sums: &mut [f32]) {
        let n = row.len();
        let sums = &mut sums[..n];
        for i in 0..n {
            sums[i] += row[i].to_f32();
        }
    }
}
