//! The operations on tiles that GEMM is written over. AMX has an instruction for each.

use std::ops::Range;

/// Rows of a tile. As an LHS operand these are rows of the LHS and its columns are K steps (pairs of
/// bf16), as an RHS operand its rows are K steps and its columns are columns of the RHS, as an
/// accumulator its columns are f32.
pub(super) const SIDE: usize = 16;

/// Bytes of a row of a tile: [`SIDE`] columns of 4 bytes.
pub(super) const ROW_BYTES: usize = 64;

/// Tile registers.
pub(super) const TILES: usize = 8;

/// Ranges of addresses that the operands of a GEMM have.
pub(in crate::gemm) const OPERANDS: usize = 7;

/// Eight registers, each with a tile of [`SIDE`] rows of [`ROW_BYTES`]. It belongs to one thread.
///
/// `first` is the address of a tile's first row, `stride` the bytes from one row to the next.
pub(in crate::gemm) trait TileUnit {
    /// A unit for operands within these ranges of addresses. What the registers hold is arbitrary.
    ///
    /// # Safety
    /// The machine has the instructions, if the unit is one, and lets the process use them.
    unsafe fn new(operands: [Range<usize>; OPERANDS]) -> Self;

    /// Sets a tile to zeros.
    fn zero<const TILE: usize>(&mut self);

    /// Loads a tile.
    ///
    /// # Safety
    /// All rows may be read.
    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize);

    /// Stores a tile.
    ///
    /// # Safety
    /// All rows may be written.
    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize);

    /// `sums += lhs * rhs`, for a tile of f32 and two of bf16 pairs.
    ///
    /// In every place the products of the first values of the pairs are summed along K, and those of
    /// the second ones; then both sums are added to one another and to what is there. Each addition
    /// rounds to nearest; what is denormal counts as zero.
    fn multiply<const SUMS: usize, const LHS: usize, const RHS: usize>(&mut self);
}
