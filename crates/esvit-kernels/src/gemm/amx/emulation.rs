//! Tiles in memory, with the operations in plain Rust and the same results to the bit. Every row that
//! is loaded or stored must lie within an operand.

use std::ops::Range;

use super::tiles::{OPERANDS, ROW_BYTES, SIDE, TILES, TileUnit};
use crate::element::{Bf16, Element};
use crate::simd::dispatch;

/// A tile's values of 4 bytes: f32, or pairs of bf16.
type Tile = [u32; SIDE * SIDE];

/// AMX with BF16 in plain Rust.
#[derive(Debug)]
pub(in crate::gemm) struct Emulation {
    tiles: [Tile; TILES],
    operands: [Range<usize>; OPERANDS],
}

impl Emulation {
    /// The addresses of a tile's rows.
    ///
    /// # Panics
    /// When one does not lie within an operand.
    fn rows(&self, first: usize, stride: usize) -> impl Iterator<Item = usize> + use<> {
        let rows = (0..SIDE).map(move |row| first + row * stride);
        for row in rows.clone() {
            let is_within = |of: &Range<usize>| of.start <= row && row + ROW_BYTES <= of.end;
            assert!(self.operands.iter().any(is_within), "a row of a tile outside of all operands");
        }
        rows
    }
}

impl TileUnit for Emulation {
    unsafe fn new(operands: [Range<usize>; OPERANDS]) -> Self {
        Self { tiles: [[0; _]; _], operands }
    }

    fn zero<const TILE: usize>(&mut self) {
        self.tiles[TILE].fill(0);
    }

    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize) {
        let rows = self.rows(first.addr(), stride);
        for (row, to) in rows.zip(self.tiles[TILE].chunks_exact_mut(SIDE)) {
            let from = first.with_addr(row).cast::<[u32; SIDE]>();
            // SAFETY: the row lies within an operand, and the caller says that it may be read.
            to.copy_from_slice(&unsafe { from.read_unaligned() });
        }
    }

    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize) {
        let rows = self.rows(first.addr(), stride);
        for (row, from) in rows.zip(self.tiles[TILE].as_chunks::<SIDE>().0) {
            let to = first.with_addr(row).cast::<[u32; SIDE]>();
            // SAFETY: the row lies within an operand, and the caller says that it may be written.
            unsafe { to.write_unaligned(*from) };
        }
    }

    fn multiply<const SUMS: usize, const LHS: usize, const RHS: usize>(&mut self) {
        let (lhs, rhs) = (self.tiles[LHS], self.tiles[RHS]);
        add_product(&mut self.tiles[SUMS], &lhs, &rhs);
    }
}

dispatch! {
    /// `sums += lhs * rhs`, as [`TileUnit::multiply`] says.
    fn add_product(sums: &mut Tile, lhs: &Tile, rhs: &Tile) {
        let rows = sums.as_chunks_mut::<SIDE>().0.iter_mut().zip(lhs.as_chunks::<SIDE>().0);
        for (sums, lhs) in rows {
            let (mut firsts, mut seconds) = ([0f32; SIDE], [0f32; SIDE]);
            for (&pair, rhs) in lhs.iter().zip(rhs.as_chunks::<SIDE>().0) {
                let [first, second] = values(pair);
                for column in 0..SIDE {
                    let [a, b] = values(rhs[column]);
                    firsts[column] = flushed(first.mul_add(a, firsts[column]));
                    seconds[column] = flushed(second.mul_add(b, seconds[column]));
                }
            }
            for column in 0..SIDE {
                let sum = flushed(firsts[column] + seconds[column]);
                let before = flushed(f32::from_bits(sums[column]));
                sums[column] = flushed(before + sum).to_bits();
            }
        }
    }
}

/// The values of a pair.
#[inline(always)]
fn values(pair: u32) -> [f32; 2] {
    bytemuck::cast::<u32, [Bf16; 2]>(pair).map(|value| flushed(value.to_f32()))
}

/// Zero for a denormal value.
#[inline(always)]
fn flushed(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(value) } else { value }
}
