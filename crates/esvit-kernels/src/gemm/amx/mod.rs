//! GEMM of bf16 by products of tiles, for AMX.
//!
//! A block of 32 x 32 sums is accumulated in four tile registers along K: for every two tiles of the
//! LHS and two of the RHS that are loaded there are four products. Tiles are loaded from where the
//! operands lie: 16 rows of the LHS, 16 K steps of a panel in VNNI layout. K is split into cache
//! blocks of [`KC`] tiles, of which a panel stays in L1 while rows of the LHS pass from L2, each once.
//! M is split into blocks of [`MC`] rows, of which tiles are packed at a time.
//!
//! What is no whole tile goes through buffers of the thread and is padded there with zeros: the last
//! K steps, the last rows, and an LHS that does not lie in rows. So nothing beyond an operand is read
//! or written.
//!
//! Every output value is accumulated in the order of K, by blocks that depend on K alone: what else
//! is computed beside it does not change it.

mod emulation;
#[cfg(target_arch = "x86_64")]
mod instructions;
mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use super::{Dims, Lhs, NR, Output, RhsPanel, bias_only, k_blocks};
use crate::element::{Bf16, Element};
pub(super) use emulation::Emulation;
#[cfg(target_arch = "x86_64")]
pub(super) use instructions::Instructions;
use tiles::{OPERANDS, ROW_BYTES, SIDE, TileUnit};

/// K values of a tile of an operand.
pub(super) const TILE_K: usize = SIDE * PAIR;

/// Values of a K step.
const PAIR: usize = Bf16::K_PACK;

/// Tiles of a cache block along K: 256 values, so that a panel (32 KiB) and 32 rows of the LHS (16 KiB)
/// fit L1.
const KC: usize = 8;

/// Rows of a cache block, as many as the operations multiply at a time.
const MC: usize = 384;

/// Rows and columns of a block of accumulators.
const BLOCK: usize = 2 * SIDE;

/// A value on a cache line of its own.
#[repr(C, align(64))]
struct Aligned<T>(T);

/// A padded tile of the LHS.
type LhsTile = Aligned<[[Bf16; TILE_K]; SIDE]>;

/// Padded tiles of a thread.
struct Scratch {
    /// Of the LHS, all along K of the first 16 rows of a cache block, then of the next ones. Those
    /// that lie in the LHS are left out.
    lhs: Vec<LhsTile>,
    /// The last K steps of a panel, `[SIDE, width, PAIR]`.
    rhs: Aligned<[Bf16; SIDE * NR * PAIR]>,
    /// Output of the last rows.
    out: Aligned<[[f32; BLOCK]; SIDE]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            lhs: Vec::new(),
            rhs: Aligned([Bf16(0); _]),
            out: Aligned([[0.0; _]; _]),
        })
    };
}

/// Tiles of an operand along K.
#[derive(Clone, Copy)]
struct Strip {
    /// The first whole tile, bytes between its rows, and from tile to tile.
    first: *const u8,
    stride: usize,
    step: usize,
    /// The tile of the last K steps, padded, and bytes between its rows.
    last: *const u8,
    last_stride: usize,
}

impl Strip {
    fn last(&self) -> (*const u8, usize) {
        (self.last, self.last_stride)
    }
}

/// A block of up to 2 x 2 tiles of accumulators.
struct Block {
    lhs: [Strip; 2],
    rhs: [Strip; 2],
    /// Whole tiles along K, and whether a padded one follows.
    whole: usize,
    is_padded: bool,
    /// What accumulators start from, for each row of tiles the address and bytes between rows; zeros
    /// if there is none. The second tile of a row lies beside the first.
    start: Option<[(*const u8, usize); 2]>,
    /// Where they are stored.
    out: [(*mut u8, usize); 2],
}

impl Block {
    /// Computes `ROWS` x `COLUMNS` tiles of it.
    ///
    /// # Safety
    /// All tiles may be read, and those of `out` written.
    #[inline(always)]
    unsafe fn compute<U: TileUnit, const ROWS: usize, const COLUMNS: usize>(&self, unit: &mut U) {
        let beside = |(first, stride): (*const u8, usize)| (first.wrapping_add(ROW_BYTES), stride);
        match self.start {
            None => {
                unit.zero::<0>();
                if COLUMNS > 1 {
                    unit.zero::<1>();
                }
                if ROWS > 1 {
                    unit.zero::<2>();
                }
                if ROWS > 1 && COLUMNS > 1 {
                    unit.zero::<3>();
                }
            }
            // SAFETY: as said for the block.
            Some([upper, lower]) => unsafe {
                load::<U, 0>(unit, upper);
                if COLUMNS > 1 {
                    load::<U, 1>(unit, beside(upper));
                }
                if ROWS > 1 {
                    load::<U, 2>(unit, lower);
                }
                if ROWS > 1 && COLUMNS > 1 {
                    load::<U, 3>(unit, beside(lower));
                }
            },
        }
        let [mut lhs, mut rhs] =
            [self.lhs, self.rhs].map(|of| of.map(|strip| (strip.first, strip.stride)));
        for _ in 0..self.whole {
            // SAFETY: as said for the block.
            unsafe { multiply::<U, ROWS, COLUMNS>(unit, lhs, rhs) };
            for ((first, _), strip) in lhs.iter_mut().zip(&self.lhs) {
                *first = first.wrapping_add(strip.step);
            }
            for ((first, _), strip) in rhs.iter_mut().zip(&self.rhs) {
                *first = first.wrapping_add(strip.step);
            }
        }
        if self.is_padded {
            let [lhs, rhs] = [self.lhs, self.rhs].map(|of| of.map(|strip| strip.last()));
            // SAFETY: as said for the block.
            unsafe { multiply::<U, ROWS, COLUMNS>(unit, lhs, rhs) };
        }
        let [(upper, upper_stride), (lower, lower_stride)] = self.out;
        // SAFETY: as said for the block.
        unsafe {
            unit.store::<0>(upper, upper_stride);
            if COLUMNS > 1 {
                unit.store::<1>(upper.wrapping_add(ROW_BYTES), upper_stride);
            }
            if ROWS > 1 {
                unit.store::<2>(lower, lower_stride);
            }
            if ROWS > 1 && COLUMNS > 1 {
                unit.store::<3>(lower.wrapping_add(ROW_BYTES), lower_stride);
            }
        }
    }
}

/// # Safety
/// As of [`TileUnit::load`].
#[inline(always)]
unsafe fn load<U: TileUnit, const TILE: usize>(unit: &mut U, (first, stride): (*const u8, usize)) {
    // SAFETY: the caller says so.
    unsafe { unit.load::<TILE>(first, stride) };
}

/// Adds the products of two tiles of the LHS (4, 5) and two of the RHS (6, 7) to the accumulators (0
/// to 3).
///
/// # Safety
/// The tiles may be read.
#[inline(always)]
unsafe fn multiply<U: TileUnit, const ROWS: usize, const COLUMNS: usize>(
    unit: &mut U,
    lhs: [(*const u8, usize); 2],
    rhs: [(*const u8, usize); 2],
) {
    // SAFETY: the caller says that the tiles may be read.
    unsafe {
        load::<U, 4>(unit, lhs[0]);
        load::<U, 6>(unit, rhs[0]);
        unit.multiply::<0, 4, 6>();
        if COLUMNS > 1 {
            load::<U, 7>(unit, rhs[1]);
            unit.multiply::<1, 4, 7>();
        }
        if ROWS > 1 {
            load::<U, 5>(unit, lhs[1]);
            unit.multiply::<2, 5, 6>();
        }
        if ROWS > 1 && COLUMNS > 1 {
            unit.multiply::<3, 5, 7>();
        }
    }
}

/// Tiles of accumulators of [`registers`].
const SUMS: usize = 4;

/// Multiply-accumulates of a turn of [`registers`].
pub(super) const REGISTER_MACS: usize = SUMS * SIDE * SIDE * TILE_K;

/// Multiplies tiles of ones, four products a turn, and returns the sum of all accumulators.
///
/// # Safety
/// The machine has what the unit needs.
pub(super) unsafe fn registers<U: TileUnit>(turns: usize) -> f32 {
    let ones = Aligned([[Bf16::from_f32(1.0); TILE_K]; SIDE]);
    let mut sums = Aligned([[[0f32; SIDE]; SIDE]; SUMS]);
    let mut operands: [Range<usize>; OPERANDS] = std::array::from_fn(|_| 0..0);
    operands[0] = addresses(&ones.0);
    operands[1] = addresses(&sums.0);
    // SAFETY: the caller says that the machine has what the unit needs; all tiles are whole.
    unsafe {
        let mut unit = U::new(operands);
        unit.zero::<0>();
        unit.zero::<1>();
        unit.zero::<2>();
        unit.zero::<3>();
        let first = ones.0.as_ptr().cast();
        unit.load::<4>(first, ROW_BYTES);
        unit.load::<5>(first, ROW_BYTES);
        unit.load::<6>(first, ROW_BYTES);
        unit.load::<7>(first, ROW_BYTES);
        for _ in 0..turns {
            unit.multiply::<0, 4, 6>();
            unit.multiply::<1, 4, 7>();
            unit.multiply::<2, 5, 6>();
            unit.multiply::<3, 5, 7>();
        }
        let [a, b, c, d] = &mut sums.0;
        unit.store::<0>(a.as_mut_ptr().cast(), ROW_BYTES);
        unit.store::<1>(b.as_mut_ptr().cast(), ROW_BYTES);
        unit.store::<2>(c.as_mut_ptr().cast(), ROW_BYTES);
        unit.store::<3>(d.as_mut_ptr().cast(), ROW_BYTES);
    }
    sums.0.as_flattened().as_flattened().iter().sum()
}

/// GEMM by a unit.
///
/// # Safety
/// The machine has what the unit needs, and the operands reach as far as `check` demands.
pub(super) unsafe fn gemm<U: TileUnit>(
    lhs: &Lhs<'_, Bf16>,
    panel: &RhsPanel<'_, Bf16>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Dims { m, k_steps } = dims;
    // Accumulators start from the bias or from what is there.
    if k_steps == 0 || (add && panel.bias.is_some()) {
        bias_only(panel, m, out, add);
    }
    if m == 0 || k_steps == 0 {
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.lhs.resize_with(KC * MC / SIDE, || Aligned([[Bf16(0); _]; _]));
        let operands = [
            addresses(lhs.values),
            addresses(panel.values),
            addresses(panel.bias.unwrap_or_default()),
            addresses(out.values),
            addresses(&scratch.lhs),
            addresses(&scratch.rhs.0),
            addresses(&scratch.out.0),
        ];
        // SAFETY: the caller says that the machine has what the unit needs.
        let mut unit = unsafe { U::new(operands) };
        for tiles in k_blocks(k_steps.div_ceil(SIDE), KC) {
            let steps = tiles.start * SIDE..(tiles.end * SIDE).min(k_steps);
            pack_last_steps(panel, &steps, &mut scratch.rhs.0);
            for first in (0..m).step_by(MC) {
                let rows = first..(first + MC).min(m);
                pack_lhs(lhs, &rows, &steps, &mut scratch.lhs);
                let part = Part { lhs, panel, rows, steps: steps.clone(), add };
                // SAFETY: rows and steps lie within what `check` has checked, and the tiles that do
                // not are packed.
                unsafe { part.compute(&mut unit, out, scratch) };
            }
        }
    });
}

/// A cache block.
struct Part<'a> {
    lhs: &'a Lhs<'a, Bf16>,
    panel: &'a RhsPanel<'a, Bf16>,
    rows: Range<usize>,
    steps: Range<usize>,
    add: bool,
}

impl Part<'_> {
    /// # Safety
    /// Rows and steps lie within operands as `check` has checked, and the tiles that do not lie
    /// within are packed.
    unsafe fn compute<U: TileUnit>(
        &self,
        unit: &mut U,
        out: &mut Output<'_>,
        scratch: &mut Scratch,
    ) {
        let Scratch { lhs: lhs_tiles, rhs: last_steps, out: last_rows } = scratch;
        let last_rows = &mut last_rows.0;
        let is_continued = self.add || self.steps.start > 0;
        for row in self.rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(self.rows.end - row);
            let second = if count > SIDE { row + SIDE } else { row };
            let lhs = [row, second].map(|row| self.lhs_strip(row, lhs_tiles));
            // Rows of the last row of tiles, if these are not all there.
            let rest = count % SIDE;
            let of_rest = row + count - rest..row + count;
            for column in (0..self.panel.width).step_by(BLOCK) {
                let columns = BLOCK.min(self.panel.width - column);
                if rest > 0 && is_continued {
                    for (row, to) in of_rest.clone().zip(&mut *last_rows) {
                        let from = &out.values[row * out.row_stride + column..];
                        to[..columns].copy_from_slice(&from[..columns]);
                    }
                }
                let (stride, values) = (out.row_stride, out.values.as_mut_ptr());
                let places = [row, second].map(|row| {
                    if row + SIDE <= self.rows.end {
                        let place = values.wrapping_add(row * stride + column);
                        (place.cast::<u8>(), stride * size_of::<f32>())
                    } else {
                        (last_rows.as_mut_ptr().cast::<u8>(), BLOCK * size_of::<f32>())
                    }
                });
                let start = match self.panel.bias {
                    _ if is_continued => {
                        Some(places.map(|(first, stride)| (first.cast_const(), stride)))
                    }
                    Some(bias) => Some([(bias[column..].as_ptr().cast::<u8>(), 0); 2]),
                    None => None,
                };
                let last_column = column + columns - SIDE;
                let block = Block {
                    lhs,
                    rhs: [column, last_column].map(|at| self.rhs_strip(at, &last_steps.0)),
                    whole: self.steps.len() / SIDE,
                    is_padded: !self.steps.len().is_multiple_of(SIDE),
                    start,
                    out: places,
                };
                // SAFETY: strips and places have 16 whole rows each, `columns` of the panel and of
                // the output, and whole tiles along K or a padded one.
                unsafe {
                    match (count > SIDE, columns > SIDE) {
                        (true, true) => block.compute::<U, 2, 2>(unit),
                        (true, false) => block.compute::<U, 2, 1>(unit),
                        (false, true) => block.compute::<U, 1, 2>(unit),
                        (false, false) => block.compute::<U, 1, 1>(unit),
                    }
                }
                if rest > 0 {
                    for (row, from) in of_rest.clone().zip(&*last_rows) {
                        let to = &mut out.values[row * out.row_stride + column..];
                        to[..columns].copy_from_slice(&from[..columns]);
                    }
                }
            }
        }
    }

    /// The tiles of 16 rows of the LHS from `row` on.
    fn lhs_strip(&self, row: usize, packed: &[LhsTile]) -> Strip {
        let along = self.steps.len().div_ceil(SIDE);
        let packed = &packed[(row - self.rows.start) / SIDE * along..][..along];
        let last = packed[along - 1].0.as_ptr().cast();
        if lies_in_rows(self.lhs) && row + SIDE <= self.rows.end {
            let first = &self.lhs.values[row * self.lhs.row_stride + self.steps.start * PAIR..];
            Strip {
                first: first.as_ptr().cast(),
                stride: self.lhs.row_stride * size_of::<Bf16>(),
                step: ROW_BYTES,
                last,
                last_stride: ROW_BYTES,
            }
        } else {
            Strip {
                first: packed.as_ptr().cast(),
                stride: ROW_BYTES,
                step: size_of::<LhsTile>(),
                last,
                last_stride: ROW_BYTES,
            }
        }
    }

    /// The tiles of 16 columns of the panel from `column` on.
    fn rhs_strip(&self, column: usize, last_steps: &[Bf16]) -> Strip {
        let stride = self.panel.k_stride * size_of::<Bf16>();
        let first = &self.panel.values[self.steps.start * self.panel.k_stride + column * PAIR..];
        Strip {
            first: first.as_ptr().cast(),
            stride,
            step: SIDE * stride,
            last: last_steps[column * PAIR..].as_ptr().cast(),
            last_stride: self.panel.width * PAIR * size_of::<Bf16>(),
        }
    }
}

fn addresses<T>(values: &[T]) -> Range<usize> {
    let Range { start, end } = values.as_ptr_range();
    start.addr()..end.addr()
}

fn lies_in_rows(lhs: &Lhs<'_, Bf16>) -> bool {
    lhs.k_stride == PAIR
}

/// Packs the K steps of a panel that fill no tile.
fn pack_last_steps(panel: &RhsPanel<'_, Bf16>, steps: &Range<usize>, to: &mut [Bf16]) {
    let rest = steps.len() % SIDE;
    if rest == 0 {
        return;
    }
    let row = panel.width * PAIR;
    to[rest * row..SIDE * row].fill(Bf16::default());
    for (step, to) in (steps.end - rest..steps.end).zip(to.chunks_exact_mut(row)) {
        to.copy_from_slice(&panel.values[step * panel.k_stride..][..row]);
    }
}

/// Packs the tiles of the LHS that cannot be loaded from where they lie.
fn pack_lhs(lhs: &Lhs<'_, Bf16>, rows: &Range<usize>, steps: &Range<usize>, to: &mut [LhsTile]) {
    let along = steps.len().div_ceil(SIDE);
    let whole = steps.len() / SIDE;
    if lies_in_rows(lhs) && rows.len().is_multiple_of(SIDE) && whole == along {
        return;
    }
    for (row, tiles) in rows.clone().step_by(SIDE).zip(to.chunks_exact_mut(along)) {
        let there = if lies_in_rows(lhs) && row + SIDE <= rows.end { whole } else { 0 };
        for (at, Aligned(tile)) in tiles.iter_mut().enumerate().skip(there) {
            let first = steps.start + at * SIDE;
            pack_tile(lhs, row..rows.end, first..steps.end.min(first + SIDE), tile);
        }
    }
}

/// Packs a tile of the first of these rows and all of these K steps.
fn pack_tile(
    lhs: &Lhs<'_, Bf16>,
    rows: Range<usize>,
    steps: Range<usize>,
    tile: &mut [[Bf16; TILE_K]; SIDE],
) {
    let (count, depth) = (rows.len().min(SIDE), steps.len() * PAIR);
    for (row, to) in rows.zip(&mut *tile) {
        let from = &lhs.values[row * lhs.row_stride + steps.start * lhs.k_stride..];
        if lies_in_rows(lhs) {
            to[..depth].copy_from_slice(&from[..depth]);
        } else {
            for (step, to) in to.chunks_exact_mut(PAIR).take(steps.len()).enumerate() {
                to.copy_from_slice(&from[step * lhs.k_stride..][..PAIR]);
            }
        }
        to[depth..].fill(Bf16::default());
    }
    tile[count..].fill([Bf16::default(); TILE_K]);
}

#[cfg(test)]
mod tests;
