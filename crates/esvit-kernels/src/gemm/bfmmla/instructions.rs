//! Blocks in the registers of the processor.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Block, BlockUnit, SIDE, Sums};

/// Pairs of lines of a block: each is a register.
const PAIRS: usize = SIDE / 2;

/// NEON with BF16.
#[derive(Debug)]
pub(in crate::gemm) struct Instructions;

impl BlockUnit for Instructions {
    unsafe fn multiply(lhs: &[Block], rhs: &[Block], row_pairs: usize) -> Sums {
        // SAFETY: the caller says that the machine has the instructions.
        unsafe {
            match row_pairs {
                1 => product::<1>(lhs, rhs),
                2 => product::<2>(lhs, rhs),
                3 => product::<3>(lhs, rhs),
                _ => product::<PAIRS>(lhs, rhs),
            }
        }
    }
}

#[target_feature(enable = "neon,bf16")]
fn product<const ROW_PAIRS: usize>(lhs: &[Block], rhs: &[Block]) -> Sums {
    let mut tile = [[vdupq_n_f32(0.0); PAIRS]; ROW_PAIRS];
    for (lhs, rhs) in lhs.iter().zip(rhs) {
        let (rows, columns) = (registers::<ROW_PAIRS>(lhs), registers::<PAIRS>(rhs));
        for (sums, rows) in tile.iter_mut().zip(rows) {
            for (sums, columns) in sums.iter_mut().zip(columns) {
                *sums = bfmmla(*sums, rows, columns);
            }
        }
    }
    let mut out = [[0.0; SIDE]; SIDE];
    for (row_pair, sums) in tile.iter().enumerate() {
        for (column_pair, sums) in sums.iter().enumerate() {
            let at_row = [vget_low_f32(*sums), vget_high_f32(*sums)];
            for (row, sums) in at_row.into_iter().enumerate() {
                let to = &mut out[2 * row_pair + row][2 * column_pair..][..2];
                // SAFETY: room for two values.
                unsafe { vst1_f32(to.as_mut_ptr(), sums) };
            }
        }
    }
    out
}

/// The first `N` pairs of lines.
#[target_feature(enable = "neon")]
#[inline]
fn registers<const N: usize>(Block(lines): &Block) -> [uint16x8_t; N] {
    let mut registers = [vdupq_n_u16(0); N];
    for (pair, register) in registers.iter_mut().enumerate() {
        let pair = &lines[2 * pair..][..2];
        // SAFETY: two lines of four values of 16 bits.
        *register = unsafe { vld1q_u16(pair.as_ptr().cast()) };
    }
    registers
}

/// Adds products to sums of [row 0 by columns 0 and 1, row 1 by both]. `rows` are four values of row 0,
/// then of row 1, and so are `columns`. The standard library's function for it is not stable yet.
#[target_feature(enable = "neon,bf16")]
#[inline]
pub(in crate::gemm) fn bfmmla(
    mut sums: float32x4_t,
    rows: uint16x8_t,
    columns: uint16x8_t,
) -> float32x4_t {
    // SAFETY: the function's features are those of the instruction, which takes registers alone.
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {rows:v}.8h, {columns:v}.8h",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
