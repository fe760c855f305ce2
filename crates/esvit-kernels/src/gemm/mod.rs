//! The matrix product that all others are made of: rows times a panel of at most [`NR`]
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

pub(crate) use gemm_tn::{Matrix, gemm_tn};
pub(crate) use pack::{PackedRhs, convert, pack_vnni, transpose_rows};

use crate::element::{Bf16, Element};
use crate::isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::profile;

/// Most columns of a panel.
pub(crate) const NR: usize = 64;

/// Columns of a panel are a multiple of this: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Inner steps after which the next rows are taken, so that the part of the panel in use
/// (256 bytes a step) stays in the first-level cache.
const KC: usize = 96;

/// The same where a tile takes so long for its sums that a panel from the second-level cache keeps
/// up, and sums that leave the registers less often are worth more.
#[cfg(target_arch = "x86_64")]
const LONG_KC: usize = 256;

/// An LHS operand `[m, k]`: the `K_PACK` values of row `i` in step `s` stand at
/// `i * row + s * step`.
#[derive(Debug, Clone, Copy)]
pub struct Lhs<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a, T: Element> Lhs<'a, T> {
    /// Rows of a row-major matrix whose rows are `row` values apart.
    pub(crate) fn from_rows(values: &'a [T], row_stride: usize) -> Self {
        Self { values, row_stride, k_stride: T::K_PACK }
    }

    /// The transpose of a matrix of [`pack_vnni`]d rows, `[steps, columns, K_PACK]`.
    pub(crate) fn from_transposed(values: &'a [T], columns: usize) -> Self {
        Self { values, row_stride: T::K_PACK, k_stride: columns * T::K_PACK }
    }
}

/// A panel of an RHS operand `[k, width]`: step `s` stands at `s * step` and lists the columns,
/// `K_PACK` values of the inner dimension for each.
#[derive(Debug, Clone, Copy)]
pub struct RhsPanel<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) k_stride: usize,
    pub(crate) width: usize,
    /// What the sums of every column begin with; zero without it.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Where a product goes: row `i` stands at `i * row`.
#[derive(Debug)]
pub struct Output<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) row_stride: usize,
}

/// A product of `rows` rows over `steps` inner steps.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    pub(crate) m: usize,
    pub(crate) k_steps: usize,
}

/// Types that can be multiplied: the dispatch by instruction set. It seals [`Element`].
pub trait Gemm: Sized {
    /// `out = lhs panel + bias`, or `out += lhs panel + bias` when `add` is set.
    fn gemm(
        lhs: Lhs<'_, Self>,
        panel: RhsPanel<'_, Self>,
        dims: Dims,
        out: &mut Output<'_>,
        add: bool,
    );
}

/// The bounds that every kernel relies on.
fn check<T: Element>(lhs: &Lhs<'_, T>, panel: &RhsPanel<'_, T>, dims: Dims, out: &Output<'_>) {
    let Dims { m, k_steps } = dims;
    assert!(panel.width.is_multiple_of(LANES) && panel.width <= NR, "width of a panel");
    assert!(panel.bias.is_none_or(|bias| bias.len() >= panel.width), "bias of a panel");
    if m == 0 {
        return;
    }
    assert!((m - 1) * out.row_stride + panel.width <= out.values.len(), "rows of a product");
    if k_steps == 0 {
        return;
    }
    let last = (m - 1) * lhs.row_stride + (k_steps - 1) * lhs.k_stride;
    assert!(last + T::K_PACK <= lhs.values.len(), "lhs operand");
    let last = (k_steps - 1) * panel.k_stride;
    assert!(last + panel.width * T::K_PACK <= panel.values.len(), "rhs operand");
}

impl Gemm for f32 {
    fn gemm(
        lhs: Lhs<'_, f32>,
        panel: RhsPanel<'_, f32>,
        dims: Dims,
        out: &mut Output<'_>,
        add: bool,
    ) {
        check(&lhs, &panel, dims, out);
        profile::gemm(|| match isa::current() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512, and `check` has checked the bounds.
            Isa::Avx512 | Isa::Avx512Bf16 => unsafe {
                x86::gemm_f32_avx512(lhs, panel, dims, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX2 and FMA, and `check` has checked the bounds.
            Isa::Avx2 => unsafe { x86::gemm_f32_avx2(lhs, panel, dims, out, add) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: every machine of this kind has NEON, and `check` has checked the bounds.
            _ => unsafe { neon::gemm_f32(lhs, panel, dims, out, add) },
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm(lhs, panel, dims, out, add),
        });
    }
}

impl Gemm for Bf16 {
    fn gemm(
        lhs: Lhs<'_, Bf16>,
        panel: RhsPanel<'_, Bf16>,
        dims: Dims,
        out: &mut Output<'_>,
        add: bool,
    ) {
        check(&lhs, &panel, dims, out);
        profile::gemm(|| match isa::current() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512 with BF16, and `check` has checked the bounds.
            Isa::Avx512Bf16 => unsafe {
                x86::gemm_bf16_avx512(lhs, panel, dims, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512, and `check` has checked the bounds.
            Isa::Avx512 => unsafe {
                x86::gemm_bf16_widened_avx512(lhs, panel, dims, out, add);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX2 and FMA, and `check` has checked the bounds.
            Isa::Avx2 => unsafe { x86::gemm_bf16_avx2(lhs, panel, dims, out, add) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: every machine of this kind has NEON, and `check` has checked the bounds.
            _ => unsafe { neon::gemm_bf16(lhs, panel, dims, out, add) },
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm(lhs, panel, dims, out, add),
        });
    }
}

/// A product without inner steps: the bias alone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn bias_only<T>(panel: &RhsPanel<'_, T>, m: usize, out: &mut Output<'_>, add: bool) {
    for row in 0..m {
        for (column, out) in
            out.values[row * out.row_stride..][..panel.width].iter_mut().enumerate()
        {
            let bias = panel.bias.map_or(0.0, |bias| bias[column]);
            *out = if add { *out + bias } else { bias };
        }
    }
}

/// Cuts `steps` into nearly equal blocks of at most `most`.
#[inline(always)]
fn k_blocks(k_steps: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = k_steps.div_ceil(most).max(1);
    let block = k_steps.div_ceil(count).max(1);
    (0..k_steps).step_by(block).map(move |start| start..(start + block).min(k_steps))
}

#[cfg(test)]
mod tests;
