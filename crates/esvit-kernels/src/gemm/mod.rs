//! The matrix product that all others are made of: rows times a strip of at most [`STRIP`]
//! columns, for every instruction set.

mod gemm_tn;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
#[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "NEON is always there"))]
mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use gemm_tn::{Columns, gemm_tn};
pub(crate) use pack::{Packed, convert, interleave, transpose_rows};

use crate::element::{Bf16, Element};
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::profile;

/// Most columns of a strip.
pub(crate) const STRIP: usize = 64;

/// Columns of a strip are a multiple of this: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Inner steps after which the next rows are taken, so that the part of the strip in use
/// (256 bytes a step) stays in the first-level cache.
const BLOCK_STEPS: usize = 96;

/// The same where a tile takes so long for its sums that a strip from the second-level cache keeps
/// up, and sums that leave the registers less often are worth more.
#[cfg(target_arch = "x86_64")]
const LONG_BLOCK_STEPS: usize = 256;

/// A left operand `[m, k]`: the `PAIR` values of row `i` in step `s` stand at
/// `i * row + s * step`.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) row: usize,
    pub(crate) step: usize,
}

impl<'a, T: Element> Left<'a, T> {
    /// Rows of a row-major matrix whose rows are `row` values apart.
    pub(crate) fn rows(values: &'a [T], row: usize) -> Self {
        Self { values, row, step: T::PAIR }
    }

    /// The transpose of a matrix of [`interleave`]d rows, `[steps, columns, PAIR]`.
    pub(crate) fn transposed(values: &'a [T], columns: usize) -> Self {
        Self { values, row: T::PAIR, step: columns * T::PAIR }
    }
}

/// A strip of a right operand `[k, width]`: step `s` stands at `s * step` and lists the columns,
/// `PAIR` values of the inner dimension for each.
#[derive(Debug, Clone, Copy)]
pub struct Strip<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) step: usize,
    pub(crate) width: usize,
    /// What the sums of every column begin with; zero without it.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Where a product goes: row `i` stands at `i * row`.
#[derive(Debug)]
pub struct Out<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) row: usize,
}

/// A product of `rows` rows over `steps` inner steps.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub(crate) rows: usize,
    pub(crate) steps: usize,
}

/// Types that can be multiplied: the dispatch by instruction set. It seals [`Element`].
pub trait Gemm: Sized {
    /// `out = left strip + bias`, or `out += left strip + bias` when `add` is set.
    fn gemm(
        left: Left<'_, Self>,
        strip: Strip<'_, Self>,
        extent: Extent,
        out: &mut Out<'_>,
        add: bool,
    );
}

/// The bounds that every kernel relies on.
fn check<T: Element>(left: &Left<'_, T>, strip: &Strip<'_, T>, extent: Extent, out: &Out<'_>) {
    let Extent { rows, steps } = extent;
    assert!(strip.width.is_multiple_of(LANES) && strip.width <= STRIP, "width of a strip");
    assert!(strip.bias.is_none_or(|bias| bias.len() >= strip.width), "bias of a strip");
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * out.row + strip.width <= out.values.len(), "rows of a product");
    if steps == 0 {
        return;
    }
    let last = (rows - 1) * left.row + (steps - 1) * left.step;
    assert!(last + T::PAIR <= left.values.len(), "left operand");
    let last = (steps - 1) * strip.step;
    assert!(last + strip.width * T::PAIR <= strip.values.len(), "right operand");
}

impl Gemm for f32 {
    fn gemm(
        left: Left<'_, f32>,
        strip: Strip<'_, f32>,
        extent: Extent,
        out: &mut Out<'_>,
        add: bool,
    ) {
        check(&left, &strip, extent, out);
        profile::gemm(|| match isa::current() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512, and `check` has checked the bounds.
            Isa::Avx512 | Isa::Avx512Bf16 => unsafe {
                x86::gemm_f32_avx512(left, strip, extent, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX2 and FMA, and `check` has checked the bounds.
            Isa::Avx2 => unsafe { x86::gemm_f32_avx2(left, strip, extent, out, add) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: every machine of this kind has NEON, and `check` has checked the bounds.
            _ => unsafe { neon::gemm_f32(left, strip, extent, out, add) },
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm(left, strip, extent, out, add),
        });
    }
}

impl Gemm for Bf16 {
    fn gemm(
        left: Left<'_, Bf16>,
        strip: Strip<'_, Bf16>,
        extent: Extent,
        out: &mut Out<'_>,
        add: bool,
    ) {
        check(&left, &strip, extent, out);
        profile::gemm(|| match isa::current() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512 with BF16, and `check` has checked the bounds.
            Isa::Avx512Bf16 => unsafe {
                x86::gemm_bf16_avx512(left, strip, extent, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512, and `check` has checked the bounds.
            Isa::Avx512 => unsafe {
                x86::gemm_bf16_widened_avx512(left, strip, extent, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX2 and FMA, and `check` has checked the bounds.
            Isa::Avx2 => unsafe { x86::gemm_bf16_avx2(left, strip, extent, out, add) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: every machine of this kind has NEON, and `check` has checked the bounds.
            _ => unsafe { neon::gemm_bf16(left, strip, extent, out, add) },
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm(left, strip, extent, out, add),
        });
    }
}

/// A product without inner steps: the bias alone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn without_steps<T>(strip: &Strip<'_, T>, rows: usize, out: &mut Out<'_>, add: bool) {
    for row in 0..rows {
        for (column, out) in out.values[row * out.row..][..strip.width].iter_mut().enumerate() {
            let bias = strip.bias.map_or(0.0, |bias| bias[column]);
            *out = if add { *out + bias } else { bias };
        }
    }
}

/// Cuts `steps` into nearly equal blocks of at most `most`.
#[inline(always)]
fn blocks(steps: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = steps.div_ceil(most).max(1);
    let block = steps.div_ceil(count).max(1);
    (0..steps).step_by(block).map(move |start| start..(start + block).min(steps))
}

#[cfg(test)]
mod tests;
