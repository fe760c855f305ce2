//! Maps with a margin, on which the values under a line of a filter lie one after the other.

use std::ops::Range;

use rayon::prelude::*;

use super::{Operand, PackedFilters};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::gemm::{Dims, Lhs, NR, Output, RhsPanel};
use crate::maps::{Filter, Maps};
use crate::rows::{BLOCK_SHARES, PanelTile, fitting_rows};
use crate::simd::dispatch;

/// Rows that lie together must be for products of tiles to read overlapping ones: with fewer, gathering them
/// costs less than loading filters more often.
const LEAST_TILE_ROWS: usize = 48;

/// Positions that a line of a map must have for other products to do so: two tiles of six rows.
const LEAST_POSITIONS: usize = 12;

/// Values of a line of a filter in the LHS of products of tiles, where it has fewer: one row of a tile.
const NARROW_LINE: usize = 32;

/// Rows that products of tiles make at a time before what follows them: at most 16 KiB of a panel's results,
/// which stay in L1.
pub(super) const TILE_ROWS: usize = 64;

/// Rows of a tile.
const TILE_SIDE: usize = 16;

/// Values of a line of a filter in the rows under it, and in the packed filters, padded with zeros.
pub(super) fn line_values<T: Element>(filter: &Filter) -> usize {
    let values = filter.side * filter.channels;
    if suit(filter) && T::has_tiles() { values.max(NARROW_LINE) } else { values }
}

/// Whether most values come under several places of a filter, so that maps with a margin pay.
pub(super) fn suit(filter: &Filter) -> bool {
    filter.side > filter.stride
}

/// Maps of one size with their margin.
pub(super) struct PaddedMaps<'a, T: Element> {
    values: Buffer<T>,
    filter: &'a Filter,
    images: usize,
    /// Lines and pixels of a line of a map with its margin.
    size: [usize; 2],
    /// Positions down and across a map.
    positions: [usize; 2],
}

impl<'a, T: Element> PaddedMaps<'a, T> {
    pub(super) fn new<I: Element>(
        operand: &Operand<'_, T, I>,
        maps: &Maps,
        filter: &'a Filter,
    ) -> Self {
        let ([height, width], margin) = (maps.size, filter.padding);
        let size = maps.size.map(|side| side + 2 * margin);
        let [lines, line] = [size[0], size[1] * filter.channels];
        // A narrow line at the end is read as far as one that is not, and the last tile as if it were whole.
        let beyond = NARROW_LINE + TILE_SIDE * filter.stride * filter.channels;
        let mut values = Buffer::<T>::scratch(maps.images * lines * line + beyond);
        let (all, end) = values.split_at_mut(maps.images * lines * line);
        end.fill(T::default());
        all.par_chunks_mut(line.max(1)).enumerate().for_each(|(at, to)| {
            let (image, row) = (at / lines, at % lines);
            let Some(row) = row.checked_sub(margin).filter(|row| *row < height) else {
                return to.fill(T::default());
            };
            let (left, rest) = to.split_at_mut(margin * filter.channels);
            let (own, right) = rest.split_at_mut(width * filter.channels);
            left.fill(T::default());
            right.fill(T::default());
            operand.put((image * height + row) * width * filter.channels, own);
        });
        let positions = filter.positions(maps.size);
        Self { values, filter, images: maps.images, size, positions }
    }

    /// The values under the filter at the positions from `first` on, counted over all images: a row of
    /// `rows` for each, padded, its lines of `line` values.
    pub(super) fn gather(&self, first: usize, line: usize, rows: &mut [T]) {
        let Filter { channels, side, stride, .. } = *self.filter;
        let (pitch, [down, across]) = (self.size[1] * channels, self.positions);
        let row = padded_row_len::<T>(side * line);
        for (position, row) in (first..).zip(rows.chunks_exact_mut(row)) {
            let (image, place) = (position / (down * across), position % (down * across));
            let top = image * self.size[0] + place / across * stride;
            let from = &self.values[top * pitch + place % across * stride * channels..];
            if line > side * channels {
                gather_narrow(from, pitch, side * channels, row);
            } else {
                for (from, to) in from.chunks(pitch).zip(row.chunks_exact_mut(line).take(side)) {
                    to.copy_from_slice(&from[..line]);
                }
            }
        }
    }

    /// Whether GEMM is to read overlapping rows from where they are, for one line of the filter after
    /// another: the next position begins a step later, K steps end with the line (or meet zeros where tiles
    /// read beyond a narrow one), and rows that lie together are enough for filters to be worth loading.
    pub(super) fn overlap(&self) -> bool {
        let ([_, pitch], [down, across]) = (self.size, self.positions);
        let is_single = self.filter.stride == 1;
        let is_enough = match T::has_tiles() {
            true if is_single => down.saturating_sub(1) * pitch + across >= LEAST_TILE_ROWS,
            true => across >= LEAST_TILE_ROWS,
            false => is_single && across >= LEAST_POSITIONS,
        };
        is_enough && line_values::<T>(self.filter).is_multiple_of(T::K_PACK)
    }

    /// Multiplies such rows with all filters. `finish` gets results of positions, the place of these in
    /// `y [positions, out]`, and their part of it.
    pub(super) fn convolve<O: Element>(
        &self,
        filters: &PackedFilters<T>,
        y: &mut [O],
        finish: impl Fn(PanelTile<'_>, usize, &mut [O]) + Sync,
    ) {
        let [down, across] = self.positions;
        let line = across * filters.rhs.n();
        let (images, lines) = self.task();
        y.par_chunks_mut((images * down * line).max(1)).enumerate().for_each(|(task, y)| {
            let (first, count) = (task * images, y.len() / (down * line));
            y.par_chunks_mut((count * lines * line).max(1)).enumerate().for_each(|(part, y)| {
                let start = part * lines;
                let lines = start..start + y.len() / (count * line);
                let from = (first * down + start) * line;
                self.multiply(first..first + count, lines, filters, |tile, at| {
                    let own =
                        at * line..at * line + tile.values.len() / tile.width * filters.rhs.n();
                    finish(tile, from + own.start, &mut y[own]);
                });
            });
        });
    }

    /// Images that a task takes, or lines of positions of one image. Depends on sizes only.
    fn task(&self) -> (usize, usize) {
        let [down, _] = self.positions;
        let fitting = (fitting_rows::<T>(self.filter.channels) / self.size[1]).max(1);
        let share = self.images.div_ceil(BLOCK_SHARES).max(1);
        let images = (fitting / down).clamp(1, share);
        let parts = down.div_ceil(fitting).max(BLOCK_SHARES.div_ceil(self.images.max(1)));
        (images, if images > 1 { down } else { down.div_ceil(parts) })
    }

    /// Results of some lines of positions of some images. `each` gets those of a line and its number.
    fn multiply(
        &self,
        images: Range<usize>,
        lines: Range<usize>,
        filters: &PackedFilters<T>,
        mut each: impl FnMut(PanelTile<'_>, usize),
    ) {
        let ([height, pitch], [_, across]) = (self.size, self.positions);
        let Filter { channels, side, stride, .. } = *self.filter;
        let k_steps = line_values::<T>(self.filter) / T::K_PACK;
        // Tiles are whole rows anyway: they compute what begins in the margin or beyond, too, and drop it.
        let (together, whole) = match T::has_tiles() {
            true if stride == 1 => ((TILE_ROWS / pitch).max(1), TILE_SIDE),
            true => (1, TILE_SIDE),
            false => (1, 1),
        };
        let rows = |lines: usize| ((lines - 1) * pitch + across).next_multiple_of(whole);
        let mut tile = Buffer::<f32>::uninit(rows(together) * NR);
        for (column, panel) in filters.rhs.panels() {
            let (width, columns) = (panel.width, panel.width.min(filters.rhs.n() - column));
            for (number, image) in images.clone().enumerate() {
                for first in lines.clone().step_by(together) {
                    let count = together.min(lines.end - first);
                    let dims = Dims { m: rows(count), k_steps };
                    for row in 0..side {
                        let values = &panel.values[row * k_steps * panel.k_stride..];
                        let bias = panel.bias.filter(|_| row == 0);
                        let panel = RhsPanel { values, bias, ..panel };
                        let from = (image * height + first * stride + row) * pitch * channels;
                        let lhs = Lhs::from_rows(&self.values[from..], stride * channels);
                        let mut out = Output { values: &mut tile, row_stride: width };
                        T::gemm(lhs, panel, dims, &mut out, row > 0);
                    }
                    for line in 0..count {
                        let values = &tile[line * pitch * width..][..across * width];
                        let at = number * lines.len() + first - lines.start + line;
                        each(PanelTile { row: 0, column, columns, values, width }, at);
                    }
                }
            }
        }
    }
}

dispatch! {
    /// The first `count` values of lines `pitch` values apart, each to one of [`NARROW_LINE`].
    fn gather_narrow<T: Element>(from: &[T], pitch: usize, count: usize, row: &mut [T]) {
        let (lines, _) = row.as_chunks_mut::<NARROW_LINE>();
        for (line, to) in lines.iter_mut().enumerate() {
            let from = &from[line * pitch..][..NARROW_LINE];
            for (at, (to, from)) in to.iter_mut().zip(from).enumerate() {
                *to = if at < count { *from } else { T::default() };
            }
        }
    }
}
