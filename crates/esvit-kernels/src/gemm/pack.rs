//! Packing of GEMM operands.

use rayon::prelude::*;

use super::amx::TILE_K;
use super::{Dims, LANES, Lhs, NR, Output, RhsPanel};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::isa;
use crate::profile;
use crate::simd::{dispatch, update};

/// Panel width for an RHS of `columns` columns: panels of equal width suit widths that are
/// multiples of 96 best.
pub(crate) fn panel_width(columns: usize) -> usize {
    let padded = columns.next_multiple_of(LANES);
    match padded {
        0..=NR => padded,
        _ if padded.is_multiple_of(NR) => NR,
        _ if padded.is_multiple_of(48) => 48,
        _ => NR,
    }
}

/// An RHS operand `[K, N]` packed into panels in VNNI layout: panels from left to right, each
/// `[K steps, width, K_PACK]`, padded with zeros to whole registers and K steps.
#[derive(Debug)]
pub(crate) struct PackedRhs<T: Element> {
    values: Buffer<T>,
    k: usize,
    n: usize,
    panel_width: usize,
    /// `[N]`, padded to whole registers.
    bias: Option<Vec<f32>>,
}

impl<T: Element> PackedRhs<T> {
    fn new(k: usize, n: usize) -> Self {
        let (row, padded) = (padded_row_len::<T>(k), n.next_multiple_of(LANES));
        let mut values = Buffer::uninit(row * padded);
        if row > k || padded > n {
            values.fill(T::default());
        }
        Self { values, k, n, panel_width: panel_width(n), bias: None }
    }

    /// Adds a bias `[N]` to every GEMM with this operand.
    pub(crate) fn with_bias(mut self, mut bias: Vec<f32>) -> Self {
        assert_eq!(bias.len(), self.n, "bias of every column");
        bias.resize(self.n.next_multiple_of(LANES), 0.0);
        self.bias = Some(bias);
        self
    }

    /// K steps of a GEMM with this operand.
    pub(crate) fn k_steps(&self) -> usize {
        self.k.div_ceil(T::K_PACK)
    }

    /// Columns, N.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Packs the transpose of `weight [N, K]`, its columns times `scale [K]`: `y = x weight^T`.
    pub(crate) fn from_transposed(weight: &[f32], k: usize, scale: Option<&[f32]>) -> Self {
        profile::time("packing", 0, || Self::pack_transposed(weight, k, scale))
    }

    fn pack_transposed(weight: &[f32], k: usize, scale: Option<&[f32]>) -> Self {
        let n = weight.len() / k.max(1);
        let mut packed = Self::new(k, n);
        let (width, row) = (packed.panel_width, padded_row_len::<T>(k));
        packed
            .values
            .par_chunks_mut((width * row).max(1))
            .zip(weight.par_chunks((width * k).max(1)))
            .for_each(|(panel, weight)| {
                let width = panel.len() / row;
                let mut rows = Buffer::<T>::rows(LANES, k);
                for (group, weight) in weight.chunks(LANES * k).enumerate() {
                    let count = weight.len() / k;
                    for (to, from) in rows.chunks_exact_mut(row).zip(weight.chunks_exact(k)) {
                        convert(from, scale, to);
                    }
                    let at = group * LANES * T::K_PACK;
                    transpose_rows(&rows, row, count, &mut panel[at..], width * T::K_PACK);
                }
            });
        packed
    }

    /// Packs `weight [K, N]`, its columns times `scale [N]`: `dx = dy weight`.
    pub(crate) fn from_rows(weight: &[f32], n: usize, scale: Option<&[f32]>) -> Self {
        profile::time("packing", 0, || Self::pack_rows(weight, n, scale))
    }

    fn pack_rows(weight: &[f32], n: usize, scale: Option<&[f32]>) -> Self {
        let k = weight.len() / n.max(1);
        let mut packed = Self::new(k, n);
        let (width, row) = (packed.panel_width, padded_row_len::<T>(k));
        let zeros = [0.0; NR];
        packed.values.par_chunks_mut((width * row).max(1)).enumerate().for_each(|(at, panel)| {
            let width = panel.len() / row;
            let first = at * packed.panel_width;
            let used = first..(first + width).min(n);
            let scale = scale.map(|scale| &scale[used.clone()]);
            for (step, to) in panel.chunks_exact_mut(width * T::K_PACK).enumerate() {
                let row = |pair: usize| {
                    let at = step * T::K_PACK + pair;
                    (at < k).then(|| &weight[at * n..][used.clone()])
                };
                if let Some(first) = row(0) {
                    let second = if T::K_PACK == 2 { row(1) } else { None };
                    convert_vnni(first, second.unwrap_or(&zeros[..first.len()]), scale, to);
                }
            }
        });
        packed
    }

    /// GEMM of `m` rows with all panels, into rows of `out` that are `row_stride` values apart and
    /// padded to whole registers; added to them with `add`.
    pub(crate) fn gemm(
        &self,
        lhs: Lhs<'_, T>,
        m: usize,
        out: &mut [f32],
        row_stride: usize,
        add: bool,
    ) {
        let dims = Dims { m, k_steps: self.k_steps() };
        for (first, panel) in self.panels() {
            T::gemm(lhs, panel, dims, &mut Output { values: &mut out[first..], row_stride }, add);
        }
    }

    /// The panels from left to right, each with its first column.
    pub(crate) fn panels(&self) -> impl Iterator<Item = (usize, RhsPanel<'_, T>)> {
        let row = padded_row_len::<T>(self.k);
        (0..self.n).step_by(self.panel_width.max(1)).map(move |first| {
            let width = self.panel_width.min(self.n.next_multiple_of(LANES) - first);
            let values = &self.values[first * row..(first + width) * row];
            let bias = self.bias.as_ref().map(|bias| &bias[first..first + width]);
            (first, RhsPanel { values, k_stride: width * T::K_PACK, width, bias })
        })
    }
}

dispatch! {
    /// Stores a row in the element type, each value times its scale.
    pub(crate) fn convert<T: Element>(from: &[f32], scale: Option<&[f32]>, to: &mut [T]) {
        let to = &mut to[..from.len()];
        match scale {
            Some(scale) => update(to, [from, scale], |_, [value, scale]| value * scale),
            None => update(to, [from], |_, [value]| value),
        }
    }

    /// Stores one K step of a panel: the values of one row (f32) or of two rows interleaved (bf16),
    /// each times the scale of its column.
    fn convert_vnni<T: Element>(
        first: &[f32],
        second: &[f32],
        scale: Option<&[f32]>,
        to: &mut [T],
    ) {
        let n = first.len();
        let (second, to) = (&second[..n], &mut to[..n * T::K_PACK]);
        let ones = [1.0; NR];
        let scale = &scale.unwrap_or(&ones)[..n];
        if T::K_PACK == 1 {
            for i in 0..n {
                to[i] = T::from_f32(first[i] * scale[i]);
            }
        } else {
            let (to, _) = to.as_chunks_mut::<2>();
            for i in 0..n {
                to[i] = [first[i], second[i]].map(|value| T::from_f32(value * scale[i]));
            }
        }
    }

    /// Packs a row-major matrix into VNNI layout: K step `s` of `to` (`step` values apart) gets the
    /// first `columns` values of rows `K_PACK s .. K_PACK (s + 1)` of `from` (`row` values apart),
    /// interleaved. A missing last row counts as zeros.
    pub(crate) fn pack_vnni<T: Element>(
        from: &[T],
        row: usize,
        rows: usize,
        columns: usize,
        to: &mut [T],
        step: usize,
    ) {
        for (at, to) in to.chunks_mut(step.max(1)).enumerate().take(rows.div_ceil(T::K_PACK)) {
            let to = &mut to[..columns * T::K_PACK];
            let first = &from[at * T::K_PACK * row..][..columns];
            if T::K_PACK == 1 {
                to.copy_from_slice(first);
            } else if at * T::K_PACK + 1 < rows {
                let second = &from[(at * T::K_PACK + 1) * row..][..columns];
                let to = &mut to.as_chunks_mut::<2>().0[..columns];
                for i in 0..columns {
                    to[i] = [first[i], second[i]];
                }
            } else {
                for (to, &value) in to.chunks_exact_mut(T::K_PACK).zip(first) {
                    to.fill(T::default());
                    to[0] = value;
                }
            }
        }
    }
}

/// The rows of an LHS [`Lhs::from_transposed`], and how many values apart they are, where the GEMM in
/// use wants rows.
pub(super) fn turned<T: Element>(lhs: &Lhs<'_, T>, dims: Dims) -> Option<(Buffer<T>, usize)> {
    let Dims { m, k_steps } = dims;
    let columns = lhs.k_stride / T::K_PACK;
    let is_transposed = lhs.row_stride == T::K_PACK && m <= columns;
    let is_whole = lhs.values.len() >= k_steps * lhs.k_stride;
    if !T::loads_rows() || lhs.k_stride == T::K_PACK || !is_transposed || !is_whole {
        return None;
    }
    let row = (k_steps * T::K_PACK).next_multiple_of(TILE_K);
    let mut rows = Buffer::scratch(columns * row);
    transpose_rows(lhs.values, lhs.k_stride, k_steps, &mut rows, row);
    Some((rows, row))
}

/// Transposes `count` rows (`row` values apart) into VNNI layout: values `K_PACK s ..` of row `i`
/// go to `to[s * step + i * K_PACK ..]`. Of a VNNI layout it makes rows again.
pub(crate) fn transpose_rows<T: Element>(
    from: &[T],
    row: usize,
    count: usize,
    to: &mut [T],
    step: usize,
) {
    let steps = row / T::K_PACK;
    assert!(count * T::K_PACK <= step, "columns of a step");
    assert!(count == 0 || (count - 1) * row + steps * T::K_PACK <= from.len(), "rows");
    assert!(steps == 0 || (steps - 1) * step + count * T::K_PACK <= to.len(), "steps");
    // Blocks of `side` x `side` groups of 4 bytes are transposed in registers.
    let side = match isa::vectors() {
        _ if cfg!(not(target_arch = "x86_64")) || size_of::<T>() * T::K_PACK != 4 => usize::MAX,
        isa::Isa::Baseline => usize::MAX,
        isa::Isa::Avx2 => 8,
        _ => 16,
    };
    let (whole_rows, whole_steps) = (count / side * side, steps / side * side);
    #[cfg(target_arch = "x86_64")]
    for first in (0..whole_rows).step_by(side) {
        for at in (0..whole_steps).step_by(side) {
            // SAFETY: the machine has AVX2 if `side` is 8 and AVX-512 if it is 16; `side` rows of
            // `side` groups of 4 bytes from (first, at) lie in `from` and their transpose in `to`,
            // as asserted above.
            unsafe {
                let from = from.as_ptr().add(first * row + at * T::K_PACK);
                let to = to.as_mut_ptr().add(at * step + first * T::K_PACK);
                let (row, step) = (row / T::K_PACK, step / T::K_PACK);
                if side == 8 {
                    super::x86::transpose8_avx2(from.cast(), row, to.cast(), step);
                } else {
                    super::x86::transpose16_avx512(from.cast(), row, to.cast(), step);
                }
            }
        }
    }
    for i in 0..count {
        let from = &from[i * row..];
        let start = if i < whole_rows { whole_steps } else { 0 };
        for s in start..steps {
            let to = &mut to[s * step + i * T::K_PACK..][..T::K_PACK];
            to.copy_from_slice(&from[s * T::K_PACK..][..T::K_PACK]);
        }
    }
}
