//! Rows of tokens cut into blocks, each worked on by one task from the normalisation to the
//! residual, and the rows of images that drop-path leaves out.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::layer_norm::{normalise, normalise_backward};
use crate::product::{Extent, Left, Out, Packed};
use crate::simd::dispatch;

/// Bytes that the widest row buffer of a block should not exceed, so that it stays in the
/// second-level cache.
const BLOCK_BYTES: usize = 384 << 10;

/// Blocks have about this many rows at least, so that a strip of weights serves several tiles.
const BLOCK_ROWS: Range<usize> = 48..192;

/// Rows that go through several products one after the other, so that what passes between these
/// takes little memory.
const BAND_ROWS: usize = 6144;

/// The number of blocks is a multiple of this, so that a few threads get equal shares.
const BLOCK_SHARES: usize = 4;

/// Consecutive rows, some of which are kept.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// All rows of the block.
    pub(crate) rows: Range<usize>,
    /// Positions of the kept rows within the block.
    pub(crate) kept: Vec<u32>,
    /// Position of the first kept row among the kept rows of all blocks.
    pub(crate) first_kept: usize,
}

/// All rows in blocks. What a block holds depends on sizes alone, never on threads.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) blocks: Vec<Block>,
    pub(crate) kept: usize,
    pub(crate) total: usize,
    scales: Option<Vec<f32>>,
}

impl Rows {
    /// Blocks of `total` rows whose widest buffer has `widest` values of type `T`. With `scales`
    /// (one a row) rows of scale 0 are left out.
    pub(crate) fn new<T: Element>(total: usize, widest: usize, scales: Option<Vec<f32>>) -> Self {
        let fitting = BLOCK_BYTES / (widest * size_of::<T>()).max(1);
        let rows = fitting.clamp(BLOCK_ROWS.start, BLOCK_ROWS.end);
        let count = total.div_ceil(rows).next_multiple_of(BLOCK_SHARES).max(BLOCK_SHARES);
        let rows = total.div_ceil(count).max(1);
        let mut first_kept = 0;
        let blocks = (0..total)
            .step_by(rows)
            .map(|start| {
                let rows = start..(start + rows).min(total);
                let is_kept = |&at: &u32| {
                    scales.as_ref().is_none_or(|scales| scales[start + at as usize] != 0.0)
                };
                let kept: Vec<u32> = (0..rows.len() as u32).filter(is_kept).collect();
                let block = Block { rows, first_kept, kept };
                first_kept += block.kept.len();
                block
            })
            .collect();
        Self { blocks, kept: first_kept, total, scales }
    }

    /// The blocks in bands of equally many, of some thousand rows.
    pub(crate) fn bands(&self) -> std::slice::Chunks<'_, Block> {
        let bands = self.total.div_ceil(BAND_ROWS).max(1);
        self.blocks.chunks(self.blocks.len().div_ceil(bands).max(1))
    }

    /// What the branch of every kept row of a block is multiplied by.
    pub(crate) fn scales_of(&self, block: &Block) -> Option<Vec<f32>> {
        let scales = self.scales.as_ref()?;
        Some(block.kept.iter().map(|&at| scales[block.rows.start + at as usize]).collect())
    }

    /// The kept ones of a block's rows, times their scales, in the stored type.
    pub(crate) fn scaled<T: Element>(
        &self,
        block: &Block,
        rows: &[f32],
        width: usize,
        to: &mut [T],
    ) {
        let scales = self.scales_of(block);
        let rows = block.kept_rows(rows, width).zip(to.chunks_exact_mut(row_len::<T>(width)));
        for (at, (from, to)) in rows.enumerate() {
            scale_row(from, scales.as_ref().map_or(1.0, |scales| scales[at]), to);
        }
    }

    /// A matrix over all rows, `width` values each, cut into the blocks.
    pub(crate) fn split<'a, U>(&self, values: &'a mut [U], width: usize) -> Vec<&'a mut [U]> {
        split(&self.blocks, values, width)
    }

    /// A matrix over the kept rows, cut into the blocks.
    pub(crate) fn split_kept<'a, U>(&self, values: &'a mut [U], width: usize) -> Vec<&'a mut [U]> {
        split_kept(&self.blocks, values, width)
    }
}

impl Block {
    /// The kept rows of a matrix over the kept rows of all blocks.
    pub(crate) fn kept_of<'a, U>(&self, values: &'a [U], width: usize) -> &'a [U] {
        &values[self.first_kept * width..][..self.kept.len() * width]
    }

    /// The kept ones of the block's rows.
    pub(crate) fn kept_rows<'a>(
        &self,
        rows: &'a [f32],
        width: usize,
    ) -> impl Iterator<Item = &'a [f32]> {
        self.kept.iter().map(move |&at| &rows[at as usize * width..][..width])
    }

    /// Normalises the kept ones of the block's rows.
    pub(crate) fn normalise<T: Element>(
        &self,
        rows: &[f32],
        eps: f32,
        normalised: &mut [T],
        inverse: &mut [f32],
    ) {
        let width = rows.len() / self.rows.len();
        let to = normalised.chunks_exact_mut(row_len::<T>(width)).zip(inverse);
        for (row, (normalised, inverse)) in self.kept_rows(rows, width).zip(to) {
            *inverse = normalise(row, eps, normalised);
        }
    }
}

/// Which images there are, and by what the branch of each is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct DropPath<'a> {
    /// Rows (tokens) of every image; none means one image of all rows.
    pub images: &'a [usize],
    /// The scale of every image. The branch is not computed where it is 0.
    pub scales: Option<&'a [f32]>,
}

impl DropPath<'_> {
    /// Nothing dropped, nothing scaled.
    pub const NONE: DropPath<'static> = DropPath { images: &[], scales: None };

    pub(crate) fn rows<T: Element>(&self, total: usize, widest: usize) -> Rows {
        let scales = self.scales.map(|scales| {
            assert_eq!(scales.len(), self.images.len(), "a scale for every image");
            let rows: Vec<f32> = (self.images.iter().zip(scales))
                .flat_map(|(&tokens, &scale)| std::iter::repeat_n(scale, tokens))
                .collect();
            assert_eq!(rows.len(), total, "rows of all images");
            rows
        });
        Rows::new::<T>(total, widest, scales)
    }
}

/// A matrix over all rows of some blocks, cut into these.
pub(crate) fn split<'a, U>(
    blocks: &[Block],
    values: &'a mut [U],
    width: usize,
) -> Vec<&'a mut [U]> {
    cut(values, blocks.iter().map(|block| block.rows.len() * width))
}

/// A matrix over the kept rows of some blocks, cut into these.
pub(crate) fn split_kept<'a, U>(
    blocks: &[Block],
    values: &'a mut [U],
    width: usize,
) -> Vec<&'a mut [U]> {
    cut(values, blocks.iter().map(|block| block.kept.len() * width))
}

/// How many rows of some blocks there are, and how many of them are kept.
pub(crate) fn count(blocks: &[Block]) -> [usize; 2] {
    blocks
        .iter()
        .fold([0; 2], |[all, kept], block| [all + block.rows.len(), kept + block.kept.len()])
}

fn cut<U>(mut values: &mut [U], sizes: impl Iterator<Item = usize>) -> Vec<&mut [U]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = values.split_at_mut(size);
        pieces.push(piece);
        values = rest;
    }
    pieces
}

/// Multiplies `rows` rows with every strip of an operand; `each` gets the first column, the
/// number of columns, the product `[rows, width]` and its width, which is padded to registers.
pub(crate) fn each_strip<T: Element>(
    left: Left<'_, T>,
    rows: usize,
    packed: &Packed<T>,
    mut each: impl FnMut(usize, usize, &mut [f32], usize),
) {
    if rows == 0 {
        return;
    }
    let mut product = Buffer::<f32>::stale(rows * crate::product::STRIP);
    let extent = Extent { rows, steps: packed.steps() };
    for (first, strip) in packed.strips() {
        let columns = strip.width.min(packed.columns() - first);
        let product = &mut product[..rows * strip.width];
        T::multiply(left, strip, extent, &mut Out { values: product, row: strip.width }, false);
        each(first, columns, product, strip.width);
    }
}

/// Gradients of a linear layer's results, `left` for every kept row of a block, go through its
/// `weight` and the normalisation before it, and are added to `to`, which holds all rows of the
/// block.
pub(crate) fn add_input_gradients<T: Element>(
    block: &Block,
    left: Left<'_, T>,
    weight: &Packed<T>,
    (normalised, inverse): (&[T], &[f32]),
    to: &mut [f32],
) {
    let (count, width) = (block.kept.len(), weight.columns());
    let mut gradients = Buffer::<f32>::stale(count * width);
    each_strip(left, count, weight, |first, columns, product, padded| {
        store(product, padded, None, columns, &mut gradients[first..], width);
    });
    let normalised = block.kept_of(normalised, row_len::<T>(width));
    let rows = normalised.chunks_exact(row_len::<T>(width)).zip(block.kept_of(inverse, 1));
    let gradients = gradients.chunks_exact_mut(width).zip(&block.kept);
    for ((normalised, &inverse), (gradient, &target)) in rows.zip(gradients) {
        normalise_backward(normalised, inverse, gradient);
        add_row(gradient, &mut to[target as usize * width..][..width]);
    }
}

dispatch! {
    fn add_row(from: &[f32], to: &mut [f32]) {
        let to = &mut to[..from.len()];
        for i in 0..from.len() {
            to[i] += from[i];
        }
    }
}

dispatch! {
    fn scale_row<T: Element>(from: &[f32], scale: f32, to: &mut [T]) {
        let to = &mut to[..from.len()];
        for i in 0..from.len() {
            to[i] = T::from_f32(from[i] * scale);
        }
    }
}

dispatch! {
    /// Stores a product `[rows, width]` plus a bias into columns of `to`, whose rows are `to_row`
    /// values apart.
    pub(crate) fn store<T: Element>(
        product: &[f32],
        width: usize,
        bias: Option<&[f32]>,
        columns: usize,
        to: &mut [T],
        to_row: usize,
    ) {
        for (product, to) in product.chunks_exact(width).zip(to.chunks_mut(to_row)) {
            let (product, to) = (&product[..columns], &mut to[..columns]);
            match bias {
                Some(bias) => {
                    let bias = &bias[..columns];
                    for i in 0..columns {
                        to[i] = T::from_f32(product[i] + bias[i]);
                    }
                }
                None => {
                    for i in 0..columns {
                        to[i] = T::from_f32(product[i]);
                    }
                }
            }
        }
    }
}

dispatch! {
    /// Adds a product `[rows, width]` plus a bias, times the scale of its row, to columns of the
    /// rows `targets` of `to`.
    pub(crate) fn add_residual(
        product: &[f32],
        width: usize,
        bias: &[f32],
        scales: Option<&[f32]>,
        targets: &[u32],
        to: &mut [f32],
        to_row: usize,
    ) {
        let columns = bias.len();
        for (row, (product, &target)) in product.chunks_exact(width).zip(targets).enumerate() {
            let scale = match scales {
                Some(scales) => scales[row],
                None => 1.0,
            };
            let to = &mut to[target as usize * to_row..][..columns];
            let product = &product[..columns];
            for i in 0..columns {
                to[i] += (product[i] + bias[i]) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Blocks cover all rows in order, and kept rows are those with a scale.
        #[test]
        fn blocks_cover_the_rows(total in 0usize..2000, widest in 1usize..9000, drop in 0usize..5) {
            let scales: Vec<f32> =
                (0..total).map(|row| if drop > 0 && row % drop == 0 { 0.0 } else { 1.5 }).collect();
            let rows = Rows::new::<f32>(total, widest, Some(scales.clone()));
            let mut next = 0;
            let mut kept = 0;
            for block in &rows.blocks {
                prop_assert_eq!(block.rows.start, next);
                prop_assert_eq!(block.first_kept, kept);
                next = block.rows.end;
                kept += block.kept.len();
                for row in block.rows.clone() {
                    let at = (row - block.rows.start) as u32;
                    prop_assert_eq!(block.kept.contains(&at), scales[row] != 0.0);
                }
            }
            prop_assert_eq!((next, kept), (total, rows.kept));
        }
    }
}
