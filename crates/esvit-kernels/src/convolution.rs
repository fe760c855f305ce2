//! Convolution over token maps, channels last, as a product of matrices: the values under a filter
//! are a row (im2col), and GEMM multiplies rows with all filters.
//!
//! Rows are made a block at a time, so that they stay in the caches; the backward pass makes them
//! again, since they are as many times larger than the maps as a filter has places. Where maps are their
//! own rows, or rows overlap in memory (`lines.rs`), none are made. Batch norm and ReLU before a convolution are
//! part of it, so that what they give is never stored, and so are in evaluation those after it.

mod lines;

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::batch_norm::{End, Normalization};
use crate::buffer::{self, Buffer};
use crate::element::{Bf16, Element, padded_row_len, same};
use crate::elementwise::{add, update};
use crate::gemm::{Lhs, Matrix, PackedRhs, chunk_rows, gemm_tn, gemm_tn_of_part, in_parts};
use crate::maps::{Filter, Maps};
use crate::profile;
use crate::rows::{
    BLOCK_SHARES, PanelTile, add_linear, add_tile, block_rows, for_each_tile, linear, store,
};
use lines::{PaddedMaps, TILE_ROWS, line_values};

/// Values of the rows under the filter of the images that go through the backward pass together, unless one
/// image has more.
const BAND_VALUES: usize = 1 << 23;

/// Phases of a profile.
const FORWARD: &str = "convolution forward";
const BACKWARD_ROWS: &str = "convolution backward, rows";

/// Filters as a packed GEMM operand of the forward pass.
#[derive(Debug)]
pub struct PackedFilters<T: Element> {
    rhs: PackedRhs<T>,
    /// Values of a line of a filter, padded.
    line: usize,
}

/// The gradient of a convolution's output, `[positions, out]`.
#[derive(Debug, Clone, Copy)]
pub enum OutputGradient<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16.
    Bf16(&'a [Bf16]),
}

impl<'a> OutputGradient<'a> {
    fn len(self) -> usize {
        match self {
            Self::F32(dy) => dy.len(),
            Self::Bf16(dy) => dy.len(),
        }
    }

    fn of(self, values: Range<usize>) -> Self {
        match self {
            Self::F32(dy) => Self::F32(&dy[values]),
            Self::Bf16(dy) => Self::Bf16(&dy[values]),
        }
    }

    /// The rows of `outputs` values as operands, if they are stored as such.
    fn rows<T: Element>(self, outputs: usize) -> Option<&'a [T]> {
        let values = match self {
            Self::F32(dy) => same(dy),
            Self::Bf16(dy) => same(dy),
        };
        values.filter(|_| padded_row_len::<T>(outputs) == outputs)
    }

    /// Converts rows of `outputs` values, from `first` on, to operands.
    fn put<T: Element>(self, first: usize, outputs: usize, rows: &mut [T]) {
        let row = padded_row_len::<T>(outputs);
        match self.of(first * outputs..(first + rows.len() / row) * outputs) {
            Self::F32(dy) => store(dy, outputs, outputs, rows, row),
            Self::Bf16(dy) => store(dy, outputs, outputs, rows, row),
        }
    }
}

/// Where the gradient of a convolution's input goes, of as many values as the input has.
#[derive(Debug)]
pub enum InputGradient<'a, O> {
    /// Nowhere.
    Unwanted,
    /// There.
    Stored(&'a mut [O]),
    /// To what is there.
    Added(&'a mut [O]),
}

impl<O> InputGradient<'_, O> {
    /// Of some values.
    fn of(&mut self, values: Range<usize>) -> InputGradient<'_, O> {
        match self {
            Self::Unwanted => InputGradient::Unwanted,
            Self::Stored(dx) => InputGradient::Stored(&mut dx[values]),
            Self::Added(dx) => InputGradient::Added(&mut dx[values]),
        }
    }
}

/// Gradients of a convolution.
#[derive(Debug)]
pub struct Gradients {
    /// Of the filters.
    pub weight: Vec<f32>,
    /// Of the bias; empty unless wanted.
    pub bias: Vec<f32>,
}

/// Packs `weight [out, C, side, side]` and `bias [out]` for [`forward`].
///
/// # Panics
/// When lengths do not match.
pub fn pack<T: Element>(filter: &Filter, weight: &[f32], bias: Option<&[f32]>) -> PackedFilters<T> {
    assert!(weight.len().is_multiple_of(filter.values()), "whole filters");
    let (own, line) = (filter.side * filter.channels, line_values::<T>(filter));
    let ordered = channels_last(filter, weight);
    let mut weight = Cow::from(ordered.as_deref().unwrap_or(weight));
    if line > own {
        let lines = weight.chunks_exact(own);
        let zeros = std::iter::repeat_n(&0.0, line - own);
        weight = lines.flat_map(|line| line.iter().chain(zeros.clone())).copied().collect();
    }
    let rhs = PackedRhs::from_transposed(&weight, filter.side * line, None);
    let rhs = if let Some(bias) = bias { rhs.with_bias(bias.to_vec()) } else { rhs };
    PackedFilters { rhs, line }
}

/// Filters with the channel as their last axis, `[out, side, side, C]`; None where they are that already.
fn channels_last(filter: &Filter, weight: &[f32]) -> Option<Buffer<f32>> {
    let (channels, taps) = (filter.channels, filter.side * filter.side);
    if taps == 1 || channels == 1 {
        return None;
    }
    let mut ordered = Buffer::<f32>::scratch(weight.len());
    let filters = ordered.par_chunks_mut(filter.values()).zip(weight.par_chunks(filter.values()));
    filters.for_each(|(to, from)| {
        for (tap, to) in to.chunks_exact_mut(channels).enumerate() {
            to.iter_mut().zip(from[tap..].iter().step_by(taps)).for_each(|(to, from)| *to = *from);
        }
    });
    Some(ordered)
}

/// The inverse of [`channels_last`].
fn channels_first(filter: &Filter, weight: Vec<f32>) -> Vec<f32> {
    let (channels, taps) = (filter.channels, filter.side * filter.side);
    if taps == 1 || channels == 1 {
        return weight;
    }
    let mut ordered = buffer::uninit(weight.len());
    let filters = ordered.par_chunks_mut(filter.values()).zip(weight.par_chunks(filter.values()));
    filters.for_each(|(to, from)| {
        for (channel, to) in to.chunks_exact_mut(taps).enumerate() {
            let from = from[channel..].iter().step_by(channels);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    });
    buffer::recycle(weight);
    ordered
}

/// Maps of one size, in elements `I`, as operands.
enum Operand<'a, T, I> {
    /// As they are stored.
    Stored(&'a [T]),
    /// To be converted when they come under the filter: their values, or `relu(norm(..))` of them.
    Unconverted(&'a [I], Option<&'a Normalization>),
}

impl<'a, T: Element, I: Element> Operand<'a, T, I> {
    fn new(x: &'a [I], norm: Option<&'a Normalization>) -> Self {
        match same(x) {
            Some(stored) if norm.is_none() => Self::Stored(stored),
            _ => Self::Unconverted(x, norm),
        }
    }

    /// The values of whole pixels from `from` on.
    fn put(&self, from: usize, to: &mut [T]) {
        let own = from..from + to.len();
        match self {
            Self::Stored(values) => to.copy_from_slice(&values[own]),
            Self::Unconverted(x, Some(norm)) => norm.relu_rows(&x[own], to),
            Self::Unconverted(x, None) => update(to, [&x[own]], |_, [value]| value),
        }
    }

    /// The rows of `count` positions from `first` on, where they are the maps' own.
    fn rows(&self, filter: &Filter, first: usize, count: usize) -> Option<&[T]> {
        let width = filter.channels;
        match self {
            Self::Stored(values)
                if filter.is_pointwise() && padded_row_len::<T>(width) == width =>
            {
                Some(&values[first * width..(first + count) * width])
            }
            _ => None,
        }
    }

    /// The values under the filter at the positions from `first` on, counted over all images: a row of
    /// `rows` for each, padded.
    fn gather(&self, maps: &Maps, filter: &Filter, first: usize, rows: &mut [T]) {
        let [down, across] = filter.positions(maps.size);
        let image = maps.tokens() * filter.channels;
        for (at, row) in rows.chunks_exact_mut(padded_row_len::<T>(filter.values())).enumerate() {
            let (position, of_image) = (first + at, down * across);
            let start = position / of_image * image;
            let place = position % of_image;
            if filter.padding > 0 {
                row.fill(T::default());
            }
            filter.runs(maps.size, [place / across, place % across], |to, from, len| {
                self.put(start + from, &mut row[to..to + len]);
            });
        }
    }
}

/// Adds the gradients of the rows of an image, of [`Filter::values`] each, to that of its map.
fn scatter(rows: &[f32], size: [usize; 2], filter: &Filter, dx: &mut [f32]) {
    let [_, across] = filter.positions(size);
    for (position, row) in rows.chunks_exact(filter.values()).enumerate() {
        filter.runs(size, [position / across, position % across], |from, to, len| {
            add(&row[from..from + len], &mut dx[to..to + len]);
        });
    }
}

/// Convolves the maps of `x [rows, C]`, those of all images of the first size, then of the next:
/// `y [positions, out]` in the same order. With `norms`, one for each size, they are normalized and go
/// through ReLU first. `x` and the results are in any element types.
///
/// # Panics
/// When lengths do not match.
pub fn forward<T: Element, I: Element, O: Element>(
    x: &[I],
    maps: &[Maps],
    filter: &Filter,
    norms: Option<&[Normalization]>,
    packed: &PackedFilters<T>,
) -> Buffer<O> {
    let mut y = Buffer::<O>::uninit(filter.positions_of_all(maps) * packed.rhs.n());
    Convolution { maps, filter, packed, phase: FORWARD }.store(x, norms, &mut y, false);
    y
}

/// The same with the norm after it and `end`, which are computed while the results are in the caches,
/// as in evaluation.
///
/// # Panics
/// When lengths do not match.
pub fn forward_normalized<T: Element, I: Element, O: Element>(
    x: &[I],
    maps: &[Maps],
    filter: &Filter,
    packed: &PackedFilters<T>,
    norm: &Normalization,
    end: End<'_, O>,
) -> Buffer<O> {
    let mut y = Buffer::<O>::uninit(filter.positions_of_all(maps) * packed.rhs.n());
    if let End::Shortcut(shortcut) = end {
        assert_eq!(shortcut.len(), y.len(), "a shortcut as long as the results");
    }
    let outputs = packed.rhs.n();
    let finish = |tile: PanelTile<'_>, from, y: &mut [O]| {
        let PanelTile { column, columns, values, width, .. } = tile;
        let end = end.of(from..from + y.len());
        norm.finish(values, width, column..column + columns, end, y);
    };
    let multiply = |lhs: Lhs<'_, T>, count, from, y: &mut [O]| {
        let most = if T::has_tiles() { TILE_ROWS } else { count };
        for_each_tile(lhs, count, most, &packed.rhs, |tile| {
            let own = tile.row * outputs..tile.end_row() * outputs;
            finish(tile, from + own.start, &mut y[own]);
        });
    };
    let operand = |_, x| Operand::new(x, None);
    let convolution = Convolution { maps, filter, packed, phase: FORWARD };
    convolution.compute(x, &mut y, operand, multiply, finish);
    y
}

/// What is convolved with what.
struct Convolution<'a, T: Element> {
    maps: &'a [Maps],
    filter: &'a Filter,
    packed: &'a PackedFilters<T>,
    /// The phase of a profile that it counts for.
    phase: &'static str,
}

impl<T: Element> Convolution<'_, T> {
    /// Stores the results in `y`, or with `adds` adds them.
    fn store<I: Element, O: Element>(
        &self,
        x: &[I],
        norms: Option<&[Normalization]>,
        y: &mut [O],
        adds: bool,
    ) {
        let (rhs, outputs) = (&self.packed.rhs, self.packed.rhs.n());
        let operand = |number: usize, x| Operand::new(x, norms.map(|norms| &norms[number]));
        let multiply = |lhs: Lhs<'_, T>, count, _, y: &mut [O]| match adds {
            true => add_linear(lhs, count, rhs, y),
            false => linear(lhs, count, rhs, y, outputs),
        };
        let finish = |tile: PanelTile<'_>, _, y: &mut [O]| {
            let PanelTile { values, width, columns, column, .. } = tile;
            match adds {
                true => add_tile(values, width, columns, &mut y[column..], outputs),
                false => store(values, width, columns, &mut y[column..], outputs),
            }
        };
        self.compute(x, y, operand, multiply, finish);
    }

    /// Multiplies what lies under the filter at all positions with all filters. `multiply` gets the rows of
    /// a block of positions, their number, the place of the first in `y [positions, out]`, and these of `y`;
    /// or `finish` results of some positions and a panel of filters, that place, and these of `y`.
    fn compute<'x, I: Element, O: Element>(
        &self,
        mut x: &'x [I],
        mut y: &mut [O],
        operand: impl Fn(usize, &'x [I]) -> Operand<'x, T, I>,
        multiply: impl Fn(Lhs<'_, T>, usize, usize, &mut [O]) + Sync,
        finish: impl Fn(PanelTile<'_>, usize, &mut [O]) + Sync,
    ) {
        let Self { maps, filter, packed, phase } = *self;
        let (columns, outputs) = (filter.side * packed.line, packed.rhs.n());
        let row = padded_row_len::<T>(columns);
        let mut done = 0;
        profile::time(phase, y.len() * filter.values(), || {
            for (number, maps) in maps.iter().enumerate() {
                let count = maps.images * filter.output(maps).tokens();
                let (own, others) = x.split_at(maps.images * maps.tokens() * filter.channels);
                x = others;
                let (to, others) = std::mem::take(&mut y).split_at_mut(count * outputs);
                y = others;
                let (operand, start) = (operand(number, own), done);
                done += to.len();
                let padded = lines::suit(filter).then(|| PaddedMaps::new(&operand, maps, filter));
                if let Some(padded) = &padded
                    && padded.overlap()
                {
                    padded.convolve(packed, to, |tile, from, y| finish(tile, start + from, y));
                    continue;
                }
                let size = block_rows::<T>(count, columns.max(outputs));
                to.par_chunks_mut(size * outputs).enumerate().for_each(|(at, y)| {
                    let (first, count) = (at * size, y.len() / outputs);
                    let from = start + first * outputs;
                    if let Some(rows) = operand.rows(filter, first, count) {
                        return multiply(Lhs::from_rows(rows, row), count, from, y);
                    }
                    let mut rows = Buffer::<T>::rows(count, columns);
                    match &padded {
                        Some(padded) => padded.gather(first, packed.line, &mut rows),
                        None => operand.gather(maps, filter, first, &mut rows),
                    }
                    multiply(Lhs::from_rows(&rows, row), count, from, y);
                });
            }
        });
        assert!(x.is_empty(), "rows of all maps");
    }
}

/// Gradients from that of the output for the arguments of [`forward`] and `weight [out, C, side, side]`, that
/// of the bias only with `bias`. With `norms` that of the input is the gradient of what they and ReLU make of it.
///
/// # Panics
/// When lengths do not match.
#[allow(clippy::too_many_arguments)]
pub fn backward<T: Element, I: Element, O: Element>(
    x: &[I],
    maps: &[Maps],
    filter: &Filter,
    norms: Option<&[Normalization]>,
    weight: &[f32],
    dy: OutputGradient<'_>,
    mut dx: InputGradient<'_, O>,
    bias: bool,
) -> Gradients {
    let columns = filter.values();
    let outputs = weight.len() / columns;
    let is_wanted = !matches!(dx, InputGradient::Unwanted);
    let packed = is_wanted.then(|| InputFilters::<T>::new(filter, weight));
    let mut dweight = buffer::zeroed(weight.len());
    let mut dbias = vec![0.0; if bias { outputs } else { 0 }];
    let (mut first_row, mut first_position) = (0, 0);
    for (number, maps) in maps.iter().enumerate() {
        let (tokens, positions) = (maps.tokens(), filter.output(maps).tokens());
        // Bands of whole images depend on sizes alone, not on the number of threads.
        let most = (BAND_VALUES / (positions * columns).max(1)).max(1);
        for start in (0..maps.images).step_by(most) {
            let images = most.min(maps.images - start);
            let (end_row, end_position) =
                (first_row + images * tokens, first_position + images * positions);
            let own = first_row * filter.channels..end_row * filter.channels;
            let dx = dx.of(own.clone());
            let band = Band {
                x: &x[own],
                norm: norms.map(|norms| &norms[number]),
                maps: Maps { images, ..*maps },
                filter,
                dy: dy.of(first_position * outputs..end_position * outputs),
                outputs,
            };
            band.backward(packed.as_ref(), [&mut dweight, &mut dbias], dx);
            (first_row, first_position) = (end_row, end_position);
        }
    }
    assert_eq!(
        [x.len(), dy.len()],
        [first_row * filter.channels, first_position * outputs],
        "rows of all maps"
    );
    let weight = channels_first(filter, dweight);
    Gradients { weight, bias: dbias }
}

/// Filters as a packed GEMM operand of the gradient of the input.
enum InputFilters<T: Element> {
    /// That of the values under the filter at every position, which are added up.
    Rows(PackedRhs<T>),
    /// With a stride of 1 it is a convolution itself, of the output's gradient with filters turned by half a
    /// turn, whose inputs are outputs.
    Turned(Filter, PackedFilters<T>),
}

impl<T: Element> InputFilters<T> {
    fn new(filter: &Filter, weight: &[f32]) -> Self {
        let &Filter { channels, side, stride, padding } = filter;
        if side == 1 || stride > 1 || padding >= side {
            let ordered = channels_last(filter, weight);
            let weight = ordered.as_deref().unwrap_or(weight);
            return Self::Rows(PackedRhs::from_rows(weight, filter.values(), None));
        }
        let (taps, outputs) = (side * side, weight.len() / filter.values());
        let filter = Filter { channels: outputs, side, stride, padding: side - 1 - padding };
        let mut turned = Buffer::<f32>::scratch(weight.len());
        turned.par_chunks_mut(filter.values()).enumerate().for_each(|(channel, to)| {
            for (output, to) in to.chunks_exact_mut(taps).enumerate() {
                let from = &weight[(output * channels + channel) * taps..][..taps];
                to.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
            }
        });
        Self::Turned(filter, pack(&filter, &turned, None))
    }
}

/// Images that go through the backward pass together.
struct Band<'a, I: Element> {
    x: &'a [I],
    norm: Option<&'a Normalization>,
    maps: Maps,
    filter: &'a Filter,
    dy: OutputGradient<'a>,
    outputs: usize,
}

impl<I: Element> Band<'_, I> {
    /// Adds the gradients of filters, channels last, and bias to `sums`; `packed` has the filters where that of
    /// the input is wanted.
    fn backward<T: Element, O: Element>(
        &self,
        packed: Option<&InputFilters<T>>,
        sums: [&mut [f32]; 2],
        dx: InputGradient<'_, O>,
    ) {
        let (outputs, count) = (self.outputs, self.positions());
        let mut converted = None;
        let dy = self.dy.rows(outputs).unwrap_or_else(|| {
            let (row, size) = (padded_row_len::<T>(outputs), block_rows::<T>(count, outputs));
            let rows = converted.insert(Buffer::<T>::scratch_rows(count, outputs));
            rows.par_chunks_mut(size * row).enumerate().for_each(|(at, rows)| {
                self.dy.put(at * size, outputs, rows);
            });
            rows
        });
        self.add_filter_gradients(Matrix::new(dy, outputs), sums);
        let (dx, adds) = match dx {
            InputGradient::Unwanted => return,
            InputGradient::Stored(dx) => (dx, false),
            InputGradient::Added(dx) => (dx, true),
        };
        match packed.expect("filters for a gradient that is wanted") {
            InputFilters::Turned(turned, packed) => {
                self.convolve_gradients(turned, packed, dy, dx, adds);
            }
            InputFilters::Rows(packed) => self.add_rows(dy, packed, dx, adds),
        }
    }

    fn positions(&self) -> usize {
        self.filter.positions_of_all(&[self.maps])
    }

    /// Adds `dy^T rows`, of the rows under the filter, some at a time, so that they stay in the caches.
    fn add_filter_gradients<T: Element>(
        &self,
        dy: Matrix<'_, T>,
        [dweight, dbias]: [&mut [f32]; 2],
    ) {
        let Self { x, norm, maps, filter, outputs, .. } = self;
        let (columns, count) = (filter.values(), self.positions());
        profile::time("convolution backward, weights", count * columns * outputs, || {
            let operand = Operand::<T, I>::new(x, *norm);
            if let Some(rows) = operand.rows(filter, 0, count) {
                return gemm_tn(dy, Matrix::new(rows, columns), dweight, dbias, true);
            }
            let padded = lines::suit(filter).then(|| PaddedMaps::new(&operand, maps, filter));
            let (most, row) = (chunk_rows::<T>(), padded_row_len::<T>(columns));
            in_parts::<T>(count, [dweight, dbias], true, |part, [dweight, dbias], add| {
                let mut rows = Buffer::<T>::scratch_rows(most.min(part.len()), columns);
                for first in part.clone().step_by(most) {
                    let chunk = first..(first + most).min(part.end);
                    let rows = &mut rows[..chunk.len() * row];
                    let size = chunk.len().div_ceil(BLOCK_SHARES);
                    rows.par_chunks_mut(size * row).enumerate().for_each(|(at, rows)| {
                        let first = first + at * size;
                        match &padded {
                            Some(padded) => {
                                padded.gather(first, filter.side * filter.channels, rows);
                            }
                            None => operand.gather(maps, filter, first, rows),
                        }
                    });
                    let (dy, add) = (dy.of_rows(chunk), add || first > part.start);
                    gemm_tn_of_part(dy, Matrix::new(rows, columns), dweight, dbias, add);
                }
            });
        });
    }

    /// The gradient of the input by rows under the filter, added up where they overlap.
    fn add_rows<T: Element, O: Element>(
        &self,
        dy: &[T],
        packed: &PackedRhs<T>,
        dx: &mut [O],
        adds: bool,
    ) {
        let Self { maps, filter, outputs, .. } = self;
        let (columns, count) = (filter.values(), self.positions());
        let (row, size) = (padded_row_len::<T>(*outputs), block_rows::<T>(count, columns));
        profile::time(BACKWARD_ROWS, count * columns * outputs, || {
            if filter.is_pointwise() {
                return multiply_rows(dy, row, size, packed, dx, adds);
            }
            let mut drows = Buffer::<f32>::scratch(count * columns);
            multiply_rows(dy, row, size, packed, &mut drows, false);
            let image = (maps.tokens() * filter.channels).max(1);
            let rows = drows.par_chunks((count / maps.images * columns).max(1));
            dx.par_chunks_mut(image).zip(rows).for_each(|(dx, drows)| {
                if !adds {
                    dx.fill(O::default());
                }
                if let Some(dx) = O::as_f32_mut(dx) {
                    return scatter(drows, maps.size, filter, dx);
                }
                let mut sums = Buffer::<f32>::zeroed(dx.len());
                scatter(drows, maps.size, filter, &mut sums);
                update(dx, [&sums[..]], |dx, [value]| dx + value);
            });
        });
    }

    /// The gradient of the input by filters that are turned, of that of the output, which `rows` has as
    /// padded operands.
    fn convolve_gradients<T: Element, O: Element>(
        &self,
        turned: &Filter,
        packed: &PackedFilters<T>,
        rows: &[T],
        dx: &mut [O],
        adds: bool,
    ) {
        let maps = [self.filter.output(&self.maps)];
        let convolution = Convolution { maps: &maps, filter: turned, packed, phase: BACKWARD_ROWS };
        match self.dy {
            _ if rows.len() == self.dy.len() => convolution.store(rows, None, dx, adds),
            OutputGradient::F32(dy) => convolution.store(dy, None, dx, adds),
            OutputGradient::Bf16(dy) => convolution.store(dy, None, dx, adds),
        }
    }
}

/// Multiplies rows, `row` values apart, `size` at a time with all columns; with `adds` adds the results.
fn multiply_rows<T: Element, O: Element>(
    rows: &[T],
    row: usize,
    size: usize,
    packed: &PackedRhs<T>,
    to: &mut [O],
    adds: bool,
) {
    let columns = packed.n();
    let blocks = to.par_chunks_mut(size * columns).zip(rows.par_chunks(size * row));
    blocks.for_each(|(to, rows)| {
        let (lhs, count) = (Lhs::from_rows(rows, row), to.len() / columns);
        if adds {
            add_linear(lhs, count, packed, to)
        } else {
            linear(lhs, count, packed, to, columns)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_norm::Statistics;
    use crate::element::{self, Bf16};
    use crate::isa::tests::under_each;
    use crate::maps::tests::meetings;
    use crate::testing::{assert_near, assert_near_for, normal, rounded, wide};
    use proptest::prelude::*;

    /// Output and gradients of input, filters (channels last) and bias in f64.
    fn definition(
        [x, weight, bias, dy]: [&[f64]; 4],
        maps: &[Maps],
        filter: &Filter,
    ) -> [Vec<f64>; 4] {
        let (columns, outputs) = (filter.values(), bias.len());
        let mut y: Vec<f64> = bias.iter().copied().cycle().take(dy.len()).collect();
        let (mut dx, mut dweight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        let (mut row, mut position) = (0, 0);
        for maps in maps {
            for [from, tap, to] in meetings(maps, filter) {
                for output in 0..outputs {
                    let from = row * filter.channels + from;
                    let (to, at) = ((position + to) * outputs + output, output * columns + tap);
                    y[to] += x[from] * weight[at];
                    dx[from] += dy[to] * weight[at];
                    dweight[at] += dy[to] * x[from];
                }
            }
            row += maps.images * maps.tokens();
            position += maps.images * filter.output(maps).tokens();
        }
        let dbias = (0..outputs).map(|o| dy.iter().skip(o).step_by(outputs).sum()).collect();
        [y, dx, dweight, dbias]
    }

    /// Compares output and gradients with the definition.
    fn check<T: Element>(maps: &[Maps], filter: &Filter, outputs: usize, within: f64) {
        check_with_norms::<T>(maps, filter, outputs);
        let tokens: usize = maps.iter().map(|maps| maps.images * maps.tokens()).sum();
        let positions = maps.iter().map(|maps| maps.images * filter.output(maps).tokens());
        let positions: usize = positions.sum();
        let x = normal(tokens * filter.channels, 1);
        let weight = normal(filter.values() * outputs, 2);
        let (bias, dy) = (normal(outputs, 3), normal(positions * outputs, 4));
        let last = |weight: &[f32]| {
            channels_last(filter, weight).map_or(weight.to_vec(), Buffer::into_vec)
        };
        let ordered = last(&weight);
        assert_eq!(channels_first(filter, ordered.clone()), weight);
        let values = [rounded::<T>(&x), rounded::<T>(&ordered), wide(&bias), rounded::<T>(&dy)];
        let expected = definition(values.each_ref().map(Vec::as_slice), maps, filter);
        let sizes = values.map(|v| v.into_iter().map(f64::abs).collect::<Vec<_>>());
        let sizes = definition(sizes.each_ref().map(Vec::as_slice), maps, filter);
        let near = |i: usize, name: &str, found: &[f32]| {
            let what = format!("{name}: {} {maps:?} {filter:?}", T::NAME);
            assert_near_for(&what, found, &expected[i], &sizes[i], within);
        };

        let packed = pack::<T>(filter, &weight, Some(&bias));
        near(0, "y", &forward::<T, f32, f32>(&x, maps, filter, None, &packed));
        let packed = pack::<T>(filter, &weight, None);
        let without = forward::<T, f32, f32>(&x, maps, filter, None, &packed);
        let added = without.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b);
        near(0, "without bias", &added.collect::<Vec<f32>>());
        let dy = OutputGradient::F32(&dy);
        let gradients =
            |dx, bias| backward::<T, _, _>(&x, maps, filter, None, &weight, dy, dx, bias);
        let mut dx = vec![f32::NAN; x.len()];
        let found = gradients(InputGradient::Stored(&mut dx), true);
        let without = gradients(InputGradient::<f32>::Unwanted, false);
        assert_eq!(found.weight, without.weight);
        assert!(without.bias.is_empty());
        let before = normal(x.len(), 5);
        let mut sum = before.clone();
        gradients(InputGradient::Added(&mut sum), false);
        let added = before.iter().zip(&dx).map(|(before, dx)| before + dx);
        let added: Vec<f64> = added.map(f64::from).collect();
        assert_near(&format!("added: {} {maps:?} {filter:?}", T::NAME), &sum, &added, 1e-5);
        near(1, "dx", &dx);
        near(2, "dweight", &last(&found.weight));
        near(3, "dbias", &found.bias);
    }

    /// A norm and ReLU before the convolution give what they give apart from it, every size its own.
    fn check_with_norms<T: Element>(maps: &[Maps], filter: &Filter, outputs: usize) {
        let channels = filter.channels;
        let of_size = |seed: u64| {
            let [mean, gamma, beta] = [0, 1, 2].map(|of| normal(channels, 10 * seed + of));
            let variance = gamma.iter().map(|value| value * value).collect();
            Normalization::new(&Statistics { mean, variance }, [&gamma, &beta], 0.1)
        };
        let norms: Vec<Normalization> = (1..=maps.len() as u64).map(of_size).collect();
        let values = |maps: &Maps| maps.images * maps.tokens() * channels;
        let x = normal(maps.iter().map(values).sum(), 1);
        let mut first = 0;
        let mut apart = vec![0.0; x.len()];
        for (norm, maps) in norms.iter().zip(maps) {
            let own = first..first + values(maps);
            norm.relu(&x[own.clone()], &mut apart[own.clone()]);
            first = own.end;
        }
        let weight = normal(filter.values() * outputs, 2);
        let packed = pack::<T>(filter, &weight, None);
        let y = forward::<T, f32, f32>(&x, maps, filter, Some(&norms), &packed);
        assert!(y[..] == forward::<T, f32, f32>(&apart, maps, filter, None, &packed)[..]);
        check_stored(&x, maps, filter, &norms, &weight);
        check_ends::<T, f32>(&apart, maps, filter, &packed, &y);
        check_ends::<T, Bf16>(&apart, maps, filter, &packed, &y);
        let dy = normal(y.len(), 4);
        let gradients = |x: &[f32], norms| {
            let (mut dx, dy) = (vec![f32::NAN; x.len()], OutputGradient::F32(&dy));
            let to = InputGradient::Stored(&mut dx[..]);
            let found = backward::<T, _, _>(x, maps, filter, norms, &weight, dy, to, false);
            (dx, found.weight)
        };
        assert_eq!(gradients(&x, Some(&norms)), gradients(&apart, None));
    }

    /// Maps in bf16 give what their values give in f32, with and without a norm before the convolution, and
    /// results in bf16 are those in f32, rounded.
    fn check_stored(
        x: &[f32],
        maps: &[Maps],
        filter: &Filter,
        norms: &[Normalization],
        weight: &[f32],
    ) {
        let x = element::rounded(x);
        let wide = element::widened(&x);
        let packed = pack::<Bf16>(filter, weight, None);
        for norms in [None, Some(norms)] {
            let expected = forward::<Bf16, f32, f32>(&wide, maps, filter, norms, &packed);
            let found = forward::<Bf16, Bf16, f32>(&x, maps, filter, norms, &packed);
            assert!(found[..] == expected[..]);
            let found = forward::<Bf16, Bf16, Bf16>(&x, maps, filter, norms, &packed);
            assert!(found[..] == element::rounded(&expected)[..]);
            let dy = normal(expected.len(), 4);
            let (wide_dy, dy) = (OutputGradient::F32(&dy), element::rounded(&dy));
            let dy = OutputGradient::Bf16(&dy[..]);
            let mut wide_dx = vec![f32::NAN; x.len()];
            let to = InputGradient::Stored(&mut wide_dx[..]);
            let of_wide =
                backward::<Bf16, _, _>(&wide, maps, filter, norms, weight, wide_dy, to, true);
            let mut dx = vec![f32::NAN; x.len()];
            let to = InputGradient::Stored(&mut dx[..]);
            let found = backward::<Bf16, _, _>(&x, maps, filter, norms, weight, dy, to, true);
            assert_eq!((&found.weight, &found.bias), (&of_wide.weight, &of_wide.bias));
            assert_eq!(dx, wide_dx);
            let mut stored = vec![Bf16::from_f32(f32::NAN); x.len()];
            let to = InputGradient::Stored(&mut stored[..]);
            backward::<Bf16, _, _>(&x, maps, filter, norms, weight, dy, to, true);
            assert_eq!(stored[..], element::rounded(&dx)[..]);
        }
    }

    /// The norm after a convolution that gives `y`, with what may end it, gives what they give apart, of maps
    /// in f32 and of stored ones.
    fn check_ends<T: Element, O: Element>(
        x: &[f32],
        maps: &[Maps],
        filter: &Filter,
        packed: &PackedFilters<T>,
        y: &[f32],
    ) {
        let outputs = packed.rhs.n();
        let stored = |values: &[f32]| values.iter().map(|&v| O::from_f32(v)).collect::<Vec<O>>();
        let [mean, gamma, beta] = [0, 1, 2].map(|of| normal(outputs, 100 + of));
        let variance = gamma.iter().map(|value| value * value).collect();
        let norm = &Normalization::new(&Statistics { mean, variance }, [&gamma, &beta], 0.1);
        let shortcut = stored(&normal(y.len(), 103));
        let mut normed = vec![0.0; y.len()];
        norm.forward(y, &mut normed);
        let found = |end| forward_normalized::<T, f32, O>(x, maps, filter, packed, norm, end);
        assert_eq!(found(End::Norm)[..], stored(&normed));
        let above_zero = |value: f32| if value < 0.0 { 0.0 } else { value };
        let relu = stored(&normed.iter().copied().map(above_zero).collect::<Vec<f32>>());
        assert_eq!(found(End::Relu)[..], relu);
        let sums = normed.iter().zip(&shortcut).map(|(a, b)| above_zero(a + b.to_f32()));
        let sums = stored(&sums.collect::<Vec<f32>>());
        assert_eq!(found(End::Shortcut(&shortcut))[..], sums);
        let operands: Vec<T> = x.iter().map(|&value| T::from_f32(value)).collect();
        let found = forward_normalized(&operands, maps, filter, packed, norm, End::<O>::Relu);
        assert_eq!(found[..], relu);
    }

    fn check_all(maps: &[Maps], filter: &Filter, outputs: usize) {
        check::<f32>(maps, filter, outputs, 1e-6);
        check::<Bf16>(maps, filter, outputs, 4e-3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn against_the_definition(
            images in 1usize..3, height in 1usize..8, width in 1usize..8, channels in 1usize..7,
            outputs in 1usize..20, side in 1usize..4, stride in 1usize..3, padding in 0usize..3,
        ) {
            let filter = Filter { channels, side, stride, padding: padding.min(side / 2) };
            // Two sizes in one pass.
            let maps = [
                Maps { images, size: [height.max(side), width.max(side)] },
                Maps { images: 1, size: [side, side + 1] },
            ];
            under_each(|_| check_all(&maps, &filter, outputs));
        }
    }

    /// A filter that is larger than the map, and several blocks of positions.
    #[test]
    fn large_filters_and_many_positions() {
        let stem = Filter { channels: 3, side: 7, stride: 2, padding: 3 };
        let maps = [Maps { images: 2, size: [3, 41] }, Maps { images: 3, size: [20, 9] }];
        under_each(|_| check_all(&maps, &stem, 17));
        // Several panels; tasks of several images and of some lines of one.
        let inner = Filter { channels: 6, side: 3, stride: 1, padding: 1 };
        let maps = [Maps { images: 9, size: [5, 13] }, Maps { images: 2, size: [41, 30] }];
        under_each(|_| check_all(&maps, &inner, 70));
        // Lines of positions that products of tiles take from where they lie, with steps of two pixels: of
        // narrow lines, of wide ones, and of ones that a K step would reach beyond.
        let wide = [Maps { images: 1, size: [4, 101] }, Maps { images: 2, size: [1, 95] }];
        under_each(|_| check_all(&wide, &stem, 9));
        for channels in [12, 13] {
            let strided = Filter { channels, side: 3, stride: 2, padding: 1 };
            under_each(|_| check_all(&wide, &strided, 5));
        }
        // Several parts of the sums over positions, of several chunks.
        let narrow = Filter { channels: 1, side: 2, stride: 1, padding: 0 };
        let maps = [Maps { images: 2, size: [81, 81] }];
        under_each(|_| check_all(&maps, &narrow, 2));
    }
}
