//! GEMM of f32 by products of bf16, for tiles.
//!
//! Each operand is split into the bf16 nearest to it, its high part, and the bf16 nearest to what is
//! left, its low part, which together are within 2^-17 of it. A pair of K values of bf16 is here the two
//! parts of one value of the LHS; the pair of the RHS is one of its parts, twice. So two products of
//! pairs are all four products of parts, of which that of both low ones would not be needed. The sums are
//! those of the bf16 kernel in f32.
//!
//! Operands are split a cache block at a time, so that their parts stay in L2 for both products. What is
//! closer to zero than 2^-110 or beyond 3.38e38 has no parts that are.

use std::cell::RefCell;
use std::ops::Range;

use super::{Dims, Gemm, Lhs, Output, RhsPanel, bias_only, check};
use crate::element::{Bf16, Bf16x3, Element};
use crate::simd::dispatch;

/// K values of a cache block.
const KC: usize = 128;

/// Rows of a cache block.
const MC: usize = 384;

/// The parts of a value, or one of them twice: as a K step of bf16.
type Pair = [Bf16; Bf16::K_PACK];

/// Operands of a cache block.
struct Block {
    /// `[rows, steps]`, high and low part of each value.
    lhs: Vec<Pair>,
    /// `[steps, width]`, twice the high part, and twice the low part.
    high: Vec<Pair>,
    low: Vec<Pair>,
}

impl Block {
    fn take_rows(&mut self, lhs: &Lhs<'_, Bf16x3>, rows: &Range<usize>, steps: &Range<usize>) {
        self.lhs.resize(rows.len() * steps.len(), Pair::default());
        for (row, to) in rows.clone().zip(self.lhs.chunks_exact_mut(steps.len())) {
            let from = &lhs.values[row * lhs.row_stride + steps.start * lhs.k_stride..];
            let from: &[f32] = bytemuck::cast_slice(from);
            if lhs.k_stride == 1 {
                split(from, to);
            } else {
                for (step, to) in to.iter_mut().enumerate() {
                    *to = parts_of(from[step * lhs.k_stride]);
                }
            }
        }
    }

    fn take_panel(&mut self, panel: &RhsPanel<'_, Bf16x3>, steps: &Range<usize>) {
        let width = panel.width;
        for part in [&mut self.high, &mut self.low] {
            part.resize(steps.len() * width, Pair::default());
        }
        let to = self.high.chunks_exact_mut(width).zip(self.low.chunks_exact_mut(width));
        for (step, (high, low)) in steps.clone().zip(to) {
            let from = &panel.values[step * panel.k_stride..][..width];
            split_twice(bytemuck::cast_slice(from), high, low);
        }
    }
}

thread_local! {
    static BLOCK: RefCell<Block> = const {
        RefCell::new(Block { lhs: Vec::new(), high: Vec::new(), low: Vec::new() })
    };
}

/// # Safety
/// The machine has the instruction set in use.
pub(super) unsafe fn gemm(
    lhs: &Lhs<'_, Bf16x3>,
    panel: &RhsPanel<'_, Bf16x3>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Dims { m, k_steps } = dims;
    if k_steps == 0 {
        return bias_only(panel, m, out, add);
    }
    BLOCK.with_borrow_mut(|block| {
        for first in (0..k_steps).step_by(KC) {
            let steps = first..(first + KC).min(k_steps);
            block.take_panel(panel, &steps);
            for first in (0..m).step_by(MC) {
                let rows = first..(first + MC).min(m);
                block.take_rows(lhs, &rows, &steps);
                let bias = panel.bias.filter(|_| steps.start == 0);
                let row_stride = out.row_stride;
                let values = &mut out.values[rows.start * row_stride..];
                let dims = Dims { m: rows.len(), k_steps: steps.len() };
                let part = Part { width: panel.width, bias, dims, row_stride };
                let add = add || steps.start > 0;
                // SAFETY: the caller says that the machine has the instruction set.
                unsafe {
                    // The small ones first.
                    part.multiply(&block.lhs, &block.low, values, add);
                    let part = Part { bias: None, ..part };
                    part.multiply(&block.lhs, &block.high, values, true);
                }
            }
        }
    });
}

/// A cache block.
struct Part<'a> {
    width: usize,
    bias: Option<&'a [f32]>,
    dims: Dims,
    row_stride: usize,
}

impl Part<'_> {
    /// # Safety
    /// The machine has the instruction set in use.
    unsafe fn multiply(&self, lhs: &[Pair], rhs: &[Pair], values: &mut [f32], add: bool) {
        let &Self { width, bias, dims, row_stride } = self;
        let lhs = Lhs::from_rows(lhs.as_flattened(), dims.k_steps * Bf16::K_PACK);
        let rhs = rhs.as_flattened();
        let panel = RhsPanel { values: rhs, k_stride: width * Bf16::K_PACK, width, bias };
        let mut out = Output { values, row_stride };
        check(&lhs, &panel, dims, &out);
        let kernel = Bf16::kernel();
        // SAFETY: the caller's; `check` has checked the bounds.
        unsafe { kernel(&lhs, &panel, dims, &mut out, add) };
    }
}

/// The same in f32, where there are no tiles.
///
/// # Safety
/// The machine has the instruction set in use, and the operands reach as far as `check` demands.
pub(super) unsafe fn gemm_in_f32(
    lhs: &Lhs<'_, Bf16x3>,
    panel: &RhsPanel<'_, Bf16x3>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Lhs { values, row_stride, k_stride } = *lhs;
    let lhs = Lhs { values: bytemuck::cast_slice(values), row_stride, k_stride };
    let RhsPanel { values, k_stride, width, bias } = *panel;
    let panel = RhsPanel { values: bytemuck::cast_slice(values), k_stride, width, bias };
    let kernel = f32::kernel();
    // SAFETY: the caller's, since both types have the same layout.
    unsafe { kernel(&lhs, &panel, dims, out, add) };
}

/// The high and the low part of a value.
#[inline(always)]
fn parts_of(value: f32) -> Pair {
    let high = Bf16::from_f32(value);
    [high, Bf16::from_f32(value - high.to_f32())]
}

dispatch! {
    /// The parts of each value.
    fn split(from: &[f32], to: &mut [Pair]) {
        for (&value, to) in from.iter().zip(to) {
            *to = parts_of(value);
        }
    }

    /// Each part of each value twice.
    fn split_twice(from: &[f32], high: &mut [Pair], low: &mut [Pair]) {
        for ((&value, high), low) in from.iter().zip(high).zip(low) {
            let parts = parts_of(value);
            *high = [parts[0]; 2];
            *low = [parts[1]; 2];
        }
    }
}

#[cfg(test)]
mod tests;
