//! GEMM, `C = A B`, for f32 and bf16 operands with f32 accumulation, and for f32 by tiles of bf16
//! (`bf16x3.rs`).
//!
//! All GEMMs are calls of [`Gemm::gemm`]: `M` rows of the LHS times one packed panel of at most
//! [`NR`] columns of the RHS. K is split into cache blocks of [`KC`] steps; within a block, tiles
//! of MR rows by the panel's columns are accumulated in registers (`tile.rs`). bf16 operands are
//! packed in pairs along K (VNNI layout), [`Element::K_PACK`] values a step. A matrix unit (AMX) loads
//! tiles of that layout as they lie (`amx/`); AArch64's products of small matrices take two pairs of two
//! rows or columns, which are packed from it (`bfmmla/`).

mod amx;
mod bf16x3;
#[cfg(any(target_arch = "aarch64", test))]
mod bfmmla;
mod gemm_tn;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
#[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "NEON is always there"))]
mod portable;
mod registers;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use gemm_tn::{Matrix, chunk_rows, gemm_tn, gemm_tn_of_part, in_parts, layer_gradients};
pub(crate) use pack::{PackedRhs, convert, pack_vnni, transpose_rows};
use registers::RegisterLoop;

use crate::element::{Bf16, Bf16x3, Element};
use crate::isa::{self, Isa};
use crate::profile;

/// Maximum width of an RHS panel: four AVX-512 registers of f32.
pub(crate) const NR: usize = 64;

/// The width of a panel is a multiple of this: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// K steps of a cache block: `KC` steps of a panel (256 bytes each) stay in L1 while all rows of
/// the LHS pass.
const KC: usize = 96;

/// `KC` of f32 on AVX-512, where a tile computes slowly enough for a panel to stream from L2, and
/// storing accumulators less often gains more.
#[cfg(target_arch = "x86_64")]
const LONG_KC: usize = 256;

/// LHS operand `[M, K]`: the `K_PACK` values of row `i` at K step `s` start at
/// `i * row_stride + s * k_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Lhs<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a, T: Element> Lhs<'a, T> {
    /// A row-major matrix.
    pub(crate) fn from_rows(values: &'a [T], row_stride: usize) -> Self {
        Self { values, row_stride, k_stride: T::K_PACK }
    }

    /// The transpose of a matrix `[K, columns]` in VNNI layout, `[K steps, columns, K_PACK]`, as
    /// [`pack_vnni`] makes it.
    pub(crate) fn from_transposed(values: &'a [T], columns: usize) -> Self {
        Self { values, row_stride: T::K_PACK, k_stride: columns * T::K_PACK }
    }
}

/// A panel `[K, width]` of an RHS operand in VNNI layout: K step `s` starts at `s * k_stride` and
/// has `K_PACK` values for each column.
#[derive(Debug, Clone, Copy)]
pub struct RhsPanel<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) k_stride: usize,
    pub(crate) width: usize,
    /// Initial accumulator of every column; zero if none.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Output `[M, panel width]`: row `i` starts at `i * row_stride`.
#[derive(Debug)]
pub struct Output<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) row_stride: usize,
}

/// `M` and the number of K steps, `K / K_PACK` rounded up.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    pub(crate) m: usize,
    pub(crate) k_steps: usize,
}

/// A GEMM for one instruction set, with the arguments of [`Gemm::gemm`].
///
/// # Safety
/// The machine has the instruction set, and the operands reach as far as `check` demands.
pub(crate) type Kernel<T> = unsafe fn(&Lhs<'_, T>, &RhsPanel<'_, T>, Dims, &mut Output<'_>, bool);

/// GEMM by element type, dispatched by instruction set. Seals [`Element`].
pub trait Gemm: Sized {
    /// The GEMM for the instruction set in use.
    fn kernel() -> Kernel<Self>;

    /// Products of registers alone, by the instructions of the GEMM in use.
    fn registers() -> RegisterLoop;

    /// Whether the GEMM in use wants rows of the LHS, to load tiles from or to split: a transposed LHS is
    /// better turned beforehand than for every panel.
    fn loads_rows() -> bool {
        false
    }

    /// Whether the GEMM in use multiplies tiles, beside which all else takes long: operations then fetch
    /// operands less often.
    fn has_tiles() -> bool {
        false
    }

    /// `out = lhs * panel + bias`, or `out += lhs * panel + bias` with `add`.
    fn gemm(
        lhs: Lhs<'_, Self>,
        panel: RhsPanel<'_, Self>,
        dims: Dims,
        out: &mut Output<'_>,
        add: bool,
    ) where
        Self: Element,
    {
        check(&lhs, &panel, dims, out);
        let kernel = Self::kernel();
        // SAFETY: the machine has what is in use, and `check` has checked the bounds.
        profile::gemm(|| unsafe { kernel(&lhs, &panel, dims, out, add) });
    }
}

impl Gemm for f32 {
    fn kernel() -> Kernel<f32> {
        match isa::vectors() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => x86::gemm_f32_avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::gemm_f32_avx2,
            #[cfg(target_arch = "aarch64")]
            _ => neon::gemm_f32,
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm::<f32>,
        }
    }

    fn registers() -> RegisterLoop {
        RegisterLoop::of_f32()
    }
}

impl Gemm for Bf16 {
    fn kernel() -> Kernel<Bf16> {
        match isa::current() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::gemm::<amx::Instructions>,
            Isa::AmxEmulated => amx::gemm::<amx::Emulation>,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => x86::gemm_bf16_avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::gemm_bf16_widened_avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::gemm_bf16_avx2,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => bfmmla::gemm::<bfmmla::Instructions>,
            #[cfg(target_arch = "aarch64")]
            _ => neon::gemm_bf16,
            #[cfg(not(target_arch = "aarch64"))]
            _ => portable::gemm::<Bf16>,
        }
    }

    fn registers() -> RegisterLoop {
        RegisterLoop::of_bf16()
    }

    fn loads_rows() -> bool {
        Self::has_tiles()
    }

    fn has_tiles() -> bool {
        isa::current().has_tiles()
    }
}

impl Gemm for Bf16x3 {
    fn kernel() -> Kernel<Bf16x3> {
        if Self::has_tiles() { bf16x3::gemm } else { bf16x3::gemm_in_f32 }
    }

    fn registers() -> RegisterLoop {
        if Self::has_tiles() { RegisterLoop::of_bf16() } else { RegisterLoop::of_f32() }
    }

    fn loads_rows() -> bool {
        Self::has_tiles()
    }

    fn has_tiles() -> bool {
        isa::current().has_tiles()
    }
}

/// GEMM with an RHS `[K steps, columns, K_PACK]` in VNNI layout, panel by panel, into `out [M,
/// columns]`, or added to it. `columns` is a multiple of [`LANES`].
pub(crate) fn gemm<T: Element>(
    lhs: Lhs<'_, T>,
    rhs: &[T],
    columns: usize,
    dims: Dims,
    out: &mut [f32],
    add: bool,
) {
    let turned = pack::turned(&lhs, dims);
    let lhs = turned.as_ref().map_or(lhs, |(rows, row)| Lhs::from_rows(rows, *row));
    for first in (0..columns).step_by(NR) {
        let width = NR.min(columns - first);
        let (values, k_stride) = (&rhs[first * T::K_PACK..], columns * T::K_PACK);
        let panel = RhsPanel { values, k_stride, width, bias: None };
        T::gemm(
            lhs,
            panel,
            dims,
            &mut Output { values: &mut out[first..], row_stride: columns },
            add,
        );
    }
}

/// Checks the bounds that every kernel relies on.
fn check<T: Element>(lhs: &Lhs<'_, T>, panel: &RhsPanel<'_, T>, dims: Dims, out: &Output<'_>) {
    let Dims { m, k_steps } = dims;
    assert!(panel.width.is_multiple_of(LANES) && panel.width <= NR, "width of a panel");
    assert!(panel.bias.is_none_or(|bias| bias.len() >= panel.width), "bias of a panel");
    if m == 0 {
        return;
    }
    assert!((m - 1) * out.row_stride + panel.width <= out.values.len(), "output");
    if k_steps == 0 {
        return;
    }
    let last = (m - 1) * lhs.row_stride + (k_steps - 1) * lhs.k_stride;
    assert!(last + T::K_PACK <= lhs.values.len(), "LHS operand");
    let last = (k_steps - 1) * panel.k_stride;
    assert!(last + panel.width * T::K_PACK <= panel.values.len(), "RHS operand");
}

/// GEMM with K = 0: the bias alone.
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

/// Splits K into nearly equal blocks of at most `most` steps.
#[inline(always)]
fn k_blocks(k_steps: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = k_steps.div_ceil(most).max(1);
    let block = k_steps.div_ceil(count).max(1);
    (0..k_steps).step_by(block).map(move |start| start..(start + block).min(k_steps))
}

#[cfg(test)]
mod tests;
