//! Token rows of a residual branch, in blocks that one task takes from norm to residual, and the
//! GEMM epilogues on them.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::elementwise::{add, scale_into};
use crate::gemm::{Dims, LANES, Lhs, Output, PackedRhs};
use crate::layer_norm::{normalize, normalize_backward};
use crate::simd::{dispatch, update};

/// Maximum bytes of the widest row buffer of a block, so that it stays in L2.
const BLOCK_BYTES: usize = 384 << 10;

/// Minimum and maximum rows of a block: at least a few tiles for every panel of weights.
const BLOCK_ROWS: Range<usize> = 48..192;

/// How many times as large a block may be for products of tiles, which wait for weights sooner.
/// Processors that have them have 2 MiB of L2.
const LARGER_FOR_TILES: usize = 2;

/// Rows of a block of accumulators of products of tiles: fewer are packed and padded.
const ROWS_OF_TILES: usize = 32;

/// Rows that go through the GEMMs of a backward pass together: bounds the memory of intermediate
/// gradients.
pub(crate) const BAND_ROWS: usize = 6144;

/// The number of blocks is a multiple of this, so that 2 or 4 threads get equal shares.
pub(crate) const BLOCK_SHARES: usize = 4;

/// Rows of a block whose widest buffer has `widest` values a row.
pub(crate) fn fitting_rows<T: Element>(widest: usize) -> usize {
    let times = if T::has_tiles() { LARGER_FOR_TILES } else { 1 };
    let fitting = times * BLOCK_BYTES / (widest * size_of::<T>()).max(1);
    fitting.clamp(times * BLOCK_ROWS.start, times * BLOCK_ROWS.end)
}

/// Rows of every block but the last when `total` rows are split into blocks. Depends on sizes only,
/// not on the number of threads.
pub(crate) fn block_rows<T: Element>(total: usize, widest: usize) -> usize {
    let count = total.div_ceil(fitting_rows::<T>(widest));
    let rows = total.div_ceil(count.next_multiple_of(BLOCK_SHARES).max(BLOCK_SHARES)).max(1);
    if T::has_tiles() { rows.next_multiple_of(ROWS_OF_TILES) } else { rows }
}

/// One piece of a buffer for each of `count` tasks; none if there is no buffer.
pub(crate) fn slots<P>(pieces: Option<impl Iterator<Item = P>>, count: usize) -> Vec<Option<P>> {
    match pieces {
        Some(pieces) => pieces.map(Some).collect(),
        None => (0..count).map(|_| None).collect(),
    }
}

/// The images of a batch of token rows and a scale for the residual branch of each: stochastic
/// depth (drop path).
#[derive(Debug, Clone, Copy)]
pub struct SampleScales<'a> {
    /// Rows (tokens) of every image; empty for one image of all rows.
    pub seq_lens: &'a [usize],
    /// The scale of every image, or 1 for all. Where it is 0 the branch is not computed.
    pub scales: Option<&'a [f32]>,
}

impl SampleScales<'_> {
    /// Nothing dropped, nothing scaled.
    pub const NONE: SampleScales<'static> = SampleScales { seq_lens: &[], scales: None };

    /// Scale of an image.
    pub(crate) fn scale(&self, image: usize) -> f32 {
        self.scales.map_or(1.0, |scales| scales[image])
    }
}

/// The rows of all images that are not dropped, in the order in which the branch is computed.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    rows: Vec<&'a mut [f32]>,
    /// Scale of every row.
    scales: Option<Vec<f32>>,
    total: usize,
}

/// A contiguous run of those rows: what one task works on.
#[derive(Debug)]
pub(crate) struct Block<'r, 'a> {
    rows: &'r mut [&'a mut [f32]],
    scales: Option<&'r [f32]>,
}

impl<'a> Rows<'a> {
    /// The rows of `x`, `width` values each, in their order.
    pub(crate) fn new(x: &'a mut [f32], width: usize, sample_scales: &SampleScales<'_>) -> Self {
        let all = [x.len() / width];
        let whole = sample_scales.seq_lens.is_empty() && sample_scales.scales.is_none();
        let images = if whole { &all } else { sample_scales.seq_lens };
        Self::in_order(x, width, sample_scales, images.iter().map(|&tokens| (tokens, None)))
    }

    /// The rows of `x`, `width` values each. `images` has for every image its number of rows and
    /// optionally their order: the index of the row that comes first, second and so on.
    ///
    /// # Panics
    /// When an order names a row twice, or the images do not have all rows.
    pub(crate) fn in_order<'o>(
        x: &'a mut [f32],
        width: usize,
        sample_scales: &SampleScales<'_>,
        images: impl Iterator<Item = (usize, Option<&'o [u32]>)>,
    ) -> Self {
        let total = x.len() / width;
        let mut rows = Vec::with_capacity(total);
        let mut scales = sample_scales.scales.map(|_| Vec::with_capacity(total));
        let mut left = x.chunks_exact_mut(width);
        let mut image_rows = Vec::new();
        let mut count = 0;
        for (image, (tokens, order)) in images.enumerate() {
            count += 1;
            let scale = sample_scales.scale(image);
            let of_image = left.by_ref().take(tokens);
            if scale == 0.0 {
                of_image.for_each(drop);
                continue;
            }
            match order {
                None => rows.extend(of_image),
                Some(order) => {
                    image_rows.clear();
                    image_rows.extend(of_image.map(Some));
                    rows.extend(order.iter().map(|&token| {
                        image_rows[token as usize].take().expect("a token has one place")
                    }));
                }
            }
            if let Some(scales) = &mut scales {
                scales.resize(rows.len(), scale);
            }
        }
        assert!(left.next().is_none(), "rows of all images");
        assert!(
            sample_scales.scales.is_none_or(|scales| scales.len() == count),
            "a scale for every image"
        );
        Self { rows, scales, total }
    }

    /// Number of rows that are not dropped.
    pub(crate) fn kept(&self) -> usize {
        self.rows.len()
    }

    /// Number of rows including dropped ones.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// All of them as one block.
    pub(crate) fn all(&mut self) -> Block<'_, 'a> {
        Block { rows: &mut self.rows, scales: self.scales.as_deref() }
    }
}

impl<'r, 'a> Block<'r, 'a> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Reborrows the rows.
    pub(crate) fn reborrow(&mut self) -> Block<'_, 'a> {
        Block { rows: self.rows, scales: self.scales }
    }

    /// Splits off the first `count` rows.
    pub(crate) fn split_off(&mut self, count: usize) -> Self {
        let count = count.min(self.rows.len());
        let (rows, rest) = std::mem::take(&mut self.rows).split_at_mut(count);
        let scales = self.scales.map(|scales| {
            let (scales, rest) = scales.split_at(count);
            self.scales = Some(rest);
            scales
        });
        self.rows = rest;
        Self { rows, scales }
    }

    /// Splits into blocks of `size` rows.
    pub(crate) fn cut(mut self, size: usize) -> Vec<Self> {
        let mut blocks = Vec::new();
        while self.len() > 0 {
            blocks.push(self.split_off(size));
        }
        blocks
    }

    /// Layer norm without affine: stores `xhat` and `rstd` of the rows.
    pub(crate) fn normalize<T: Element>(&self, eps: f32, xhat: &mut [T], rstd: &mut [f32]) {
        let Some(width) = self.rows.first().map(|row| row.len()) else { return };
        let to = xhat.chunks_exact_mut(padded_row_len::<T>(width)).zip(rstd);
        for (row, (xhat, rstd)) in self.rows.iter().zip(to) {
            *rstd = normalize(row, eps, xhat);
        }
    }

    /// Stores the rows times their scales: the gradient of the branch from that of the output.
    pub(crate) fn scaled<T: Element>(&self, to: &mut [T]) {
        let Some(width) = self.rows.first().map(|row| row.len()) else { return };
        for (at, (from, to)) in
            self.rows.iter().zip(to.chunks_exact_mut(padded_row_len::<T>(width))).enumerate()
        {
            scale_into(from, self.scales.map_or(1.0, |scales| scales[at]), to);
        }
    }

    /// Residual: `rows += scale * (lhs * rhs + bias)`.
    pub(crate) fn add_linear<T: Element>(&mut self, lhs: Lhs<'_, T>, rhs: &PackedRhs<T>) {
        for_each_panel(lhs, self.len(), rhs, |first, columns, tile, padded| {
            add_scaled(tile, padded, self.scales, columns, self.rows, first);
        });
    }

    /// Backward of norm and linear layer, added to the rows: `rows += norm_backward(lhs * weight)`,
    /// for the gradient `lhs` of the layer's output.
    pub(crate) fn add_input_gradients<T: Element>(
        &mut self,
        lhs: Lhs<'_, T>,
        weight: &PackedRhs<T>,
        xhat: &[T],
        rstd: &[f32],
    ) {
        let width = weight.n();
        let mut gradients = Buffer::<f32>::uninit(self.len() * width);
        linear(lhs, self.len(), weight, &mut gradients, width);
        let xhat = xhat.chunks_exact(padded_row_len::<T>(width)).zip(rstd);
        let rows = self.rows.iter_mut().zip(gradients.chunks_exact_mut(width));
        for ((row, gradient), (xhat, &rstd)) in rows.zip(xhat) {
            normalize_backward(xhat, rstd, gradient);
            add(gradient, row);
        }
    }
}

/// Results of some rows and a panel of an RHS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelTile<'a> {
    /// The first of the rows.
    pub(crate) row: usize,
    /// The first of the columns, and how many of them count.
    pub(crate) column: usize,
    pub(crate) columns: usize,
    /// `[rows, width]`, of which `width` is padded to whole registers.
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
}

impl PanelTile<'_> {
    /// The row after the last.
    pub(crate) fn end_row(&self) -> usize {
        self.row + self.values.len() / self.width
    }
}

/// GEMM of `rows` rows with every panel of an RHS. `each` gets the panel's first column, its number
/// of columns, the result `[rows, width]` and `width`, which is padded to whole registers.
pub(crate) fn for_each_panel<T: Element>(
    lhs: Lhs<'_, T>,
    rows: usize,
    rhs: &PackedRhs<T>,
    mut each: impl FnMut(usize, usize, &[f32], usize),
) {
    for_each_tile(lhs, rows, rows, rhs, |tile| {
        each(tile.column, tile.columns, tile.values, tile.width);
    });
}

/// The same for at most `most` rows at a time, all rows of a panel before the next one.
pub(crate) fn for_each_tile<T: Element>(
    lhs: Lhs<'_, T>,
    rows: usize,
    most: usize,
    rhs: &PackedRhs<T>,
    mut each: impl FnMut(PanelTile<'_>),
) {
    if rows == 0 {
        return;
    }
    let mut tile = Buffer::<f32>::uninit(most.min(rows) * crate::gemm::NR);
    for (column, panel) in rhs.panels() {
        let (width, columns) = (panel.width, panel.width.min(rhs.n() - column));
        for row in (0..rows).step_by(most) {
            let dims = Dims { m: most.min(rows - row), k_steps: rhs.k_steps() };
            let lhs = Lhs { values: &lhs.values[row * lhs.row_stride..], ..lhs };
            let values = &mut tile[..dims.m * width];
            T::gemm(lhs, panel, dims, &mut Output { values, row_stride: width }, false);
            each(PanelTile { row, column, columns, values, width });
        }
    }
}

/// Linear layer: `to = lhs * rhs + bias`, into rows `to_row` values apart.
pub(crate) fn linear<T: Element, U: Element>(
    lhs: Lhs<'_, T>,
    rows: usize,
    rhs: &PackedRhs<T>,
    to: &mut [U],
    to_row: usize,
) {
    if rows == 0 {
        return;
    }
    if rhs.n().is_multiple_of(LANES)
        && let Some(to) = U::as_f32_mut(to)
    {
        return rhs.gemm(lhs, rows, to, to_row, false);
    }
    for_each_panel(lhs, rows, rhs, |first, columns, tile, padded| {
        store(tile, padded, columns, &mut to[first..], to_row);
    });
}

/// The same, added to rows of `to` that have no padding.
pub(crate) fn add_linear<T: Element, U: Element>(
    lhs: Lhs<'_, T>,
    rows: usize,
    rhs: &PackedRhs<T>,
    to: &mut [U],
) {
    if rows == 0 {
        return;
    }
    if rhs.n().is_multiple_of(LANES)
        && let Some(to) = U::as_f32_mut(to)
    {
        return rhs.gemm(lhs, rows, to, rhs.n(), true);
    }
    for_each_panel(lhs, rows, rhs, |first, columns, tile, padded| {
        add_tile(tile, padded, columns, &mut to[first..], rhs.n());
    });
}

dispatch! {
    /// Adds a panel's result `[rows, width]` to the first `columns` columns of `to`, whose rows are `to_row`
    /// values apart.
    pub(crate) fn add_tile<T: Element>(
        tile: &[f32],
        width: usize,
        columns: usize,
        to: &mut [T],
        to_row: usize,
    ) {
        for (tile, to) in tile.chunks_exact(width).zip(to.chunks_mut(to_row)) {
            update(&mut to[..columns], [tile], |to, [value]| to + value);
        }
    }

    /// Stores a panel's result `[rows, width]` in the first `columns` columns of `to`, whose rows
    /// are `to_row` values apart.
    pub(crate) fn store<I: Element, T: Element>(
        tile: &[I],
        width: usize,
        columns: usize,
        to: &mut [T],
        to_row: usize,
    ) {
        for (tile, to) in tile.chunks_exact(width).zip(to.chunks_mut(to_row)) {
            update(&mut to[..columns], [tile], |_, [value]| value);
        }
    }

    /// Adds a panel's result `[rows, width]`, times the scale of its row, to `columns` columns of
    /// `to` from `first` on.
    fn add_scaled(
        tile: &[f32],
        width: usize,
        scales: Option<&[f32]>,
        columns: usize,
        to: &mut [&mut [f32]],
        first: usize,
    ) {
        for (row, (tile, to)) in tile.chunks_exact(width).zip(to).enumerate() {
            let scale = match scales {
                Some(scales) => scales[row],
                None => 1.0,
            };
            update(&mut to[first..first + columns], [tile], |to, [value]| to + value * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Rows of dropped images are left out, the others come once, in the given order.
        #[test]
        fn rows_of_images(sizes in proptest::collection::vec(0usize..40, 0..9), drop in 1usize..5) {
            let total: usize = sizes.iter().sum();
            let mut x: Vec<f32> = (0..total).flat_map(|row| [row as f32; 3]).collect();
            let scales: Vec<f32> =
                (0..sizes.len()).map(|image| if image % drop == 0 { 0.0 } else { 0.5 }).collect();
            let orders: Vec<Vec<u32>> =
                sizes.iter().map(|&size| (0..size as u32).rev().collect()).collect();
            let sample_scales = SampleScales { seq_lens: &sizes, scales: Some(&scales) };
            let mut expected = Vec::new();
            let mut start = 0;
            for (&size, &scale) in sizes.iter().zip(&scales) {
                if scale != 0.0 {
                    expected.extend((start..start + size).rev().map(|row| [row as f32; 3]));
                }
                start += size;
            }
            let images = sizes.iter().zip(&orders).map(|(&size, order)| (size, Some(&order[..])));
            let mut rows = Rows::in_order(&mut x, 3, &sample_scales, images);
            prop_assert_eq!((rows.kept(), rows.total()), (expected.len(), total));
            let mut found = Vec::new();
            for block in rows.all().cut(7) {
                prop_assert!(block.len() > 0 && block.len() <= 7);
                prop_assert_eq!(block.scales.unwrap(), &vec![0.5; block.len()][..]);
                found.extend(block.rows.iter().map(|row| [row[0], row[1], row[2]]));
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    #[should_panic(expected = "a token has one place")]
    fn a_row_cannot_come_twice() {
        Rows::in_order(&mut [0.0; 2], 1, &SampleScales::NONE, [(2, Some(&[1, 1][..]))].into_iter());
    }

    /// At least four blocks of about equal size.
    #[test]
    fn sizes_of_blocks() {
        for total in 1..3000 {
            let rows = block_rows::<f32>(total, 1000);
            assert!(rows <= fitting_rows::<f32>(1000) && rows <= total.div_ceil(4));
        }
        assert_eq!(block_rows::<f32>(0, 8), 1);
    }
}
