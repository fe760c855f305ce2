//! GEMM of bf16 by `bfmmla`, the product of small matrices that AArch64 with BF16 has.
//!
//! One instruction multiplies two rows by two columns over four K values and adds the products to 2 x 2
//! sums. Both operands are packed for it, a cache block at a time: a [`Block`] has four K values of eight
//! lines, which are rows of the LHS or columns of a panel, so that a register holds those of two lines.
//! 8 x 8 sums are accumulated in 16 registers along K: for every block of the LHS and of the panel there
//! are 8 loads and 16 products.
//!
//! K values that fill no block are padded with zeros; sums of rows that are missing are not stored. Every
//! output value is accumulated in the order of K, by cache blocks that K alone decides: what else is
//! computed beside it does not change it.
//!
//! Of the four products that an instruction adds to a sum, the first two are added to one another and then
//! to the sum, and so are the last two. Whatever the rounding mode, these additions round to odd: what is no
//! f32 becomes that of its two neighbors whose last bit is set. What is denormal counts as zero (Arm
//! Architecture Reference Manual, `BFDotAdd` with FPCR.EBF = 0, as operating systems leave it).

#[cfg(test)]
mod emulation;
#[cfg(target_arch = "aarch64")]
mod instructions;

use std::cell::RefCell;
use std::ops::Range;

use super::{Dims, Lhs, Output, RhsPanel, bias_only, k_blocks};
use crate::element::{Bf16, Element};
#[cfg(target_arch = "aarch64")]
pub(super) use instructions::{Instructions, bfmmla};

/// Values of a K step.
const PAIR: usize = Bf16::K_PACK;

/// K values of an instruction.
const QUAD: usize = 2 * PAIR;

/// Lines of a block, rows and columns of a tile of sums.
const SIDE: usize = 8;

/// Blocks of a cache block along K: 256 values, of which a panel of 64 columns takes 32 KiB, half of L1.
const KC: usize = 64;

/// What is missing of a last pair of K steps.
static ZEROS: [[Bf16; PAIR]; SIDE] = [[Bf16(0); PAIR]; SIDE];

/// Four K values of eight lines: a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block([[Bf16; QUAD]; SIDE]);

impl Block {
    const ZERO: Self = Self([[Bf16(0); QUAD]; SIDE]);
}

/// Sums of products of eight rows with eight columns.
type Sums = [[f32; SIDE]; SIDE];

/// What multiplies blocks.
pub(super) trait BlockUnit {
    /// The products of all lines of the LHS with all of the RHS, summed along K. Of the LHS the first
    /// `row_pairs` pairs of lines count; sums of others are arbitrary.
    ///
    /// # Safety
    /// The machine has the instructions, if the unit is made of such.
    unsafe fn multiply(lhs: &[Block], rhs: &[Block], row_pairs: usize) -> Sums;
}

/// Packed operands of a thread: of eight rows the blocks along K, of a panel those of the first eight
/// columns, then of the next ones.
struct Packed {
    rows: Vec<Block>,
    columns: Vec<Block>,
}

thread_local! {
    static PACKED: RefCell<Packed> =
        const { RefCell::new(Packed { rows: Vec::new(), columns: Vec::new() }) };
}

/// # Safety
/// The machine has what the unit is made of.
pub(super) unsafe fn gemm<U: BlockUnit>(
    lhs: &Lhs<'_, Bf16>,
    panel: &RhsPanel<'_, Bf16>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Dims { m, k_steps } = dims;
    if m == 0 || k_steps == 0 {
        return bias_only(panel, m, out, add);
    }
    PACKED.with_borrow_mut(|Packed { rows, columns }| {
        for blocks in k_blocks(k_steps.div_ceil(QUAD / PAIR), KC) {
            let steps = blocks.start * QUAD / PAIR..k_steps.min(blocks.end * QUAD / PAIR);
            let add = add || blocks.start > 0;
            let bias = panel.bias.filter(|_| blocks.start == 0);
            pack_panel(panel, &steps, columns);
            rows.resize(blocks.len(), Block::ZERO);
            for row in (0..m).step_by(SIDE) {
                let count = SIDE.min(m - row);
                pack_rows(lhs, row..row + count, &steps, rows);
                for (group, columns) in columns.chunks_exact(blocks.len()).enumerate() {
                    // SAFETY: the caller says that the machine has the instructions.
                    let sums = unsafe { U::multiply(rows, columns, count.div_ceil(2)) };
                    let column = group * SIDE;
                    let bias = bias.map(|bias| &bias[column..]);
                    let to = &mut out.values[row * out.row_stride + column..];
                    store(&sums[..count], bias, to, out.row_stride, add);
                }
            }
        }
    });
}

/// Packs K steps of a panel.
fn pack_panel(panel: &RhsPanel<'_, Bf16>, steps: &Range<usize>, to: &mut Vec<Block>) {
    let along = steps.len().div_ceil(QUAD / PAIR);
    to.resize(panel.width / SIDE * along, Block::ZERO);
    for (group, to) in to.chunks_exact_mut(along).enumerate() {
        let from = &panel.values[steps.start * panel.k_stride + group * SIDE * PAIR..];
        pack_steps(from, panel.k_stride, steps.len(), SIDE, to);
    }
}

/// Packs K steps of up to eight rows of an LHS, which lies in rows or is transposed.
fn pack_rows(lhs: &Lhs<'_, Bf16>, rows: Range<usize>, steps: &Range<usize>, to: &mut [Block]) {
    let count = rows.len();
    let from = &lhs.values[rows.start * lhs.row_stride + steps.start * lhs.k_stride..];
    if lhs.k_stride != PAIR {
        assert_eq!(lhs.row_stride, PAIR, "an LHS in rows, or a transposed one");
        return pack_steps(from, lhs.k_stride, steps.len(), count, to);
    }
    for line in 0..count {
        let row = &from[line * lhs.row_stride..][..steps.len() * PAIR];
        let (quads, rest) = row.as_chunks::<QUAD>();
        for (Block(block), quad) in to.iter_mut().zip(quads) {
            block[line] = *quad;
        }
        if let &[first, second] = rest {
            to[quads.len()].0[line] = [first, second, Bf16(0), Bf16(0)];
        }
    }
}

/// Packs `count` lines whose pairs lie beside each other in every K step, as in VNNI layout.
#[inline]
fn pack_steps(from: &[Bf16], k_stride: usize, steps: usize, count: usize, to: &mut [Block]) {
    let pairs = |step: usize| from[step * k_stride..][..count * PAIR].as_chunks::<PAIR>().0;
    for (at, Block(block)) in to.iter_mut().enumerate() {
        let step = at * QUAD / PAIR;
        let second = if step + 1 < steps { pairs(step + 1) } else { &ZEROS[..count] };
        for ((line, first), second) in block.iter_mut().zip(pairs(step)).zip(second) {
            *line = [first[0], first[1], second[0], second[1]];
        }
    }
}

/// Stores rows of sums with the bias of their columns, or adds them.
#[inline]
fn store(sums: &[[f32; SIDE]], bias: Option<&[f32]>, to: &mut [f32], row_stride: usize, add: bool) {
    let bias: [f32; SIDE] = bias.map_or([0.0; SIDE], |bias| std::array::from_fn(|at| bias[at]));
    for (row, sums) in sums.iter().enumerate() {
        let to = &mut to[row * row_stride..][..SIDE];
        for ((to, sum), bias) in to.iter_mut().zip(sums).zip(&bias) {
            let sum = sum + bias;
            *to = if add { *to + sum } else { sum };
        }
    }
}

#[cfg(test)]
mod tests;
