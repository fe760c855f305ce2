//! GEMM of f32 by three products of bf16.
//!
//! Each operand is split into the bf16 nearest to it, its high part, and the bf16 nearest to what is
//! left, its low part. Of the four products of parts, that of both low ones is left out: it is within
//! 2^-16 of the whole, as is what the low parts themselves round off. So each product of two values is
//! off by at most 3 * 2^-16 of its size, where one in bf16 is by 2^-7; the sums are those of the bf16
//! kernel in f32.
//!
//! Operands are split a cache block at a time, so that their parts stay in L2 for the three products.
//! What is closer to zero than 2^-110 or beyond 3.38e38 has no parts that are.

use std::cell::RefCell;
use std::ops::Range;

use super::{Dims, Gemm, Lhs, NR, Output, RhsPanel, bias_only, check};
use crate::element::{Bf16, Bf16x3, Element};
use crate::simd::dispatch;

/// Values of a K step of bf16.
const PAIR: usize = Bf16::K_PACK;

/// K values of a cache block, an even number.
const KC: usize = 256;

/// Rows of a cache block.
const MC: usize = 96;

/// What is missing of a last pair of K steps.
static ZEROS: [f32; NR] = [0.0; NR];

/// The parts of an operand, each as the bf16 kernel takes it.
struct Parts {
    high: Vec<Bf16>,
    low: Vec<Bf16>,
}

impl Parts {
    const fn new() -> Self {
        Self { high: Vec::new(), low: Vec::new() }
    }

    /// Room for so many values.
    fn resize(&mut self, len: usize) {
        self.high.resize(len, Bf16(0));
        self.low.resize(len, Bf16(0));
    }

    /// Rows of so many values of both.
    fn rows(&mut self, len: usize) -> impl Iterator<Item = (&mut [Bf16], &mut [Bf16])> {
        self.high.chunks_exact_mut(len).zip(self.low.chunks_exact_mut(len))
    }

    /// Takes rows of an LHS, `[rows, steps]`, each padded with zeros to whole pairs.
    fn take_rows(&mut self, lhs: &Lhs<'_, Bf16x3>, rows: &Range<usize>, steps: &Range<usize>) {
        let len = steps.len().next_multiple_of(PAIR);
        self.resize(rows.len() * len);
        for (row, (high, low)) in rows.clone().zip(self.rows(len)) {
            let from = &lhs.values[row * lhs.row_stride + steps.start * lhs.k_stride..];
            let from: &[f32] = bytemuck::cast_slice(from);
            if lhs.k_stride == 1 {
                split(&from[..steps.len()], high, low);
            } else {
                let parts = high.iter_mut().zip(&mut *low);
                for (step, (high, low)) in (0..steps.len()).zip(parts) {
                    (*high, *low) = parts_of(from[step * lhs.k_stride]);
                }
            }
            high[steps.len()..].fill(Bf16(0));
            low[steps.len()..].fill(Bf16(0));
        }
    }

    /// Takes K steps of a panel, `[pairs, width, PAIR]`.
    fn take_panel(&mut self, panel: &RhsPanel<'_, Bf16x3>, steps: &Range<usize>) {
        let (width, len) = (panel.width, panel.width * PAIR);
        self.resize(steps.len().div_ceil(PAIR) * len);
        for (step, (high, low)) in steps.clone().step_by(PAIR).zip(self.rows(len)) {
            let row = |step: usize| -> &[f32] {
                bytemuck::cast_slice(&panel.values[step * panel.k_stride..][..width])
            };
            let second = if step + 1 < steps.end { row(step + 1) } else { &ZEROS[..width] };
            let (high, low) = (high.as_chunks_mut::<PAIR>().0, low.as_chunks_mut::<PAIR>().0);
            split_pairs(row(step), second, high, low);
        }
    }
}

thread_local! {
    static PARTS: RefCell<[Parts; 2]> = const { RefCell::new([Parts::new(), Parts::new()]) };
}

/// # Safety
/// The machine has the instruction set in use.
pub(super) unsafe fn gemm(
    lhs: Lhs<'_, Bf16x3>,
    panel: RhsPanel<'_, Bf16x3>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Dims { m, k_steps } = dims;
    if k_steps == 0 {
        return bias_only(&panel, m, out, add);
    }
    PARTS.with_borrow_mut(|[lhs_parts, rhs_parts]| {
        for first in (0..k_steps).step_by(KC) {
            let steps = first..(first + KC).min(k_steps);
            rhs_parts.take_panel(&panel, &steps);
            for first in (0..m).step_by(MC) {
                let rows = first..(first + MC).min(m);
                lhs_parts.take_rows(&lhs, &rows, &steps);
                let bias = panel.bias.filter(|_| steps.start == 0);
                let row_stride = out.row_stride;
                let values = &mut out.values[rows.start * row_stride..];
                let dims = Dims { m: rows.len(), k_steps: steps.len().div_ceil(PAIR) };
                let part = Part { width: panel.width, bias, dims, row_stride };
                let add = add || steps.start > 0;
                // SAFETY: the caller says that the machine has the instruction set.
                unsafe {
                    // The small ones first.
                    part.multiply(&lhs_parts.low, &rhs_parts.high, values, add);
                    let part = Part { bias: None, ..part };
                    part.multiply(&lhs_parts.high, &rhs_parts.low, values, true);
                    part.multiply(&lhs_parts.high, &rhs_parts.high, values, true);
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
    unsafe fn multiply(&self, lhs: &[Bf16], rhs: &[Bf16], values: &mut [f32], add: bool) {
        let &Self { width, bias, dims, row_stride } = self;
        let lhs = Lhs::from_rows(lhs, dims.k_steps * PAIR);
        let panel = RhsPanel { values: rhs, k_stride: width * PAIR, width, bias };
        let mut out = Output { values, row_stride };
        check(&lhs, &panel, dims, &out);
        let kernel = Bf16::kernel();
        // SAFETY: the caller's; `check` has checked the bounds.
        unsafe { kernel(lhs, panel, dims, &mut out, add) };
    }
}

/// The same in f32, where nothing multiplies bf16.
///
/// # Safety
/// The machine has the instruction set in use, and the operands reach as far as `check` demands.
pub(super) unsafe fn gemm_in_f32(
    lhs: Lhs<'_, Bf16x3>,
    panel: RhsPanel<'_, Bf16x3>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    let Lhs { values, row_stride, k_stride } = lhs;
    let lhs = Lhs { values: bytemuck::cast_slice(values), row_stride, k_stride };
    let RhsPanel { values, k_stride, width, bias } = panel;
    let panel = RhsPanel { values: bytemuck::cast_slice(values), k_stride, width, bias };
    let kernel = f32::kernel();
    // SAFETY: the caller's, since both types have the same layout.
    unsafe { kernel(lhs, panel, dims, out, add) };
}

/// The high and the low part of a value.
#[inline(always)]
fn parts_of(value: f32) -> (Bf16, Bf16) {
    let high = Bf16::from_f32(value);
    (high, Bf16::from_f32(value - high.to_f32()))
}

dispatch! {
    /// Splits a row.
    fn split(from: &[f32], high: &mut [Bf16], low: &mut [Bf16]) {
        for ((&value, high), low) in from.iter().zip(high).zip(low) {
            (*high, *low) = parts_of(value);
        }
    }

    /// Splits two rows of a panel, which become pairs.
    fn split_pairs(
        first: &[f32],
        second: &[f32],
        high: &mut [[Bf16; 2]],
        low: &mut [[Bf16; 2]],
    ) {
        for (((&first, &second), high), low) in first.iter().zip(second).zip(high).zip(low) {
            let ((first, first_rest), (second, second_rest)) = (parts_of(first), parts_of(second));
            *high = [first, second];
            *low = [first_rest, second_rest];
        }
    }
}

#[cfg(test)]
mod tests;
