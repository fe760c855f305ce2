//! One head in one window: its matrices and GEMMs.

use std::ops::Range;

use super::WindowAttention;
use super::softmax::{softmax, softmax_backward};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::gemm::{Dims, LANES, Lhs, gemm, pack_vnni, transpose_rows};

/// Maximum queries of a block: their attention weights stay in L2, and the `n x n` matrix of a
/// large window is never materialized.
pub(crate) const QUERIES: usize = 64;

/// Matrices of one head in one window. Queries are the `m` real tokens, in blocks; keys and values
/// include the padding, `n` in all.
pub(super) struct Head<'a, T: Element> {
    of: &'a WindowAttention<'a, T>,
    window: usize,
    head: usize,
    pub(super) d: usize,
    n: usize,
    /// `d` padded to [`padded_row_len`].
    row: usize,
    /// `d` padded to whole registers.
    pub(super) width: usize,
    /// `n` padded to whole registers.
    lanes: usize,
    /// Slots with a token, and padding.
    pub(super) query_slots: Vec<usize>,
    pub(super) padded_slots: Vec<usize>,
    /// Q `[m, row]`, K and V `[n, row]`, dO `[m, row]`.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    dcontext: Buffer<T>,
    /// K and V as RHS operands: transposed `[d, lanes]`, and packed `[n, width]`.
    k_t: Buffer<T>,
    k_packed: Buffer<T>,
    v_t: Buffer<T>,
    v_packed: Buffer<T>,
    /// Of the current block of queries: S, then P, `[QUERIES, lanes]`, and P in the element type.
    p: Buffer<f32>,
    p_stored: Buffer<T>,
    /// dP, then dS, and scale * dS in the element type.
    ds: Buffer<f32>,
    ds_stored: Buffer<T>,
    /// P, then dS, packed as a transposed LHS, `[QUERIES, lanes]`.
    p_t: Buffer<T>,
    /// dO, then Q, packed as an RHS, `[QUERIES, width]`.
    q_packed: Buffer<T>,
    /// O and dQ of the current block of queries, `[QUERIES, width]`.
    pub(super) out: Buffer<f32>,
    pub(super) dq: Buffer<f32>,
    /// Accumulated over blocks of queries, `[n, width]`.
    pub(super) dk: Buffer<f32>,
    pub(super) dv: Buffer<f32>,
}

impl<'a, T: Element> Head<'a, T> {
    /// Buffers for forward and, `with_gradients`, for backward.
    pub(super) fn new(of: &'a WindowAttention<'a, T>, with_gradients: bool) -> Self {
        let windows = &of.shape;
        let (n, d, lanes) = (windows.slots, windows.head_width(), windows.lanes());
        let (row, width) = (padded_row_len::<T>(d), d.next_multiple_of(LANES));
        let pairs = n.next_multiple_of(T::K_PACK);
        let block = n.min(QUERIES).next_multiple_of(T::K_PACK);
        // Zeros, since the padding of operands is never written.
        let stored = Buffer::<T>::zeroed;
        let sums = Buffer::<f32>::zeroed;
        let back = |len| if with_gradients { len } else { 0 };
        Self {
            of,
            window: usize::MAX,
            head: 0,
            d,
            n,
            row,
            width,
            lanes,
            query_slots: Vec::new(),
            padded_slots: Vec::new(),
            q: stored(n * row),
            k: stored(n * row),
            v: stored(n * row),
            dcontext: stored(back(n * row)),
            k_t: stored(row * lanes),
            k_packed: stored(back(pairs * width)),
            v_t: stored(back(row * lanes)),
            v_packed: stored(pairs * width),
            p: sums(block * lanes),
            p_stored: stored(block * lanes),
            ds: sums(back(block * lanes)),
            ds_stored: stored(back(block * lanes)),
            p_t: stored(back(block * lanes)),
            q_packed: stored(back(block * width)),
            out: sums(block * width),
            dq: sums(back(block * width)),
            dk: sums(back(n * width)),
            dv: sums(back(n * width)),
        }
    }

    /// Nearly equal blocks of at most [`QUERIES`] queries; one empty block if there are none, which
    /// zeroes the gradients.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<'a, T> {
        let m = self.query_slots.len();
        let size = m.div_ceil(m.div_ceil(QUERIES).max(1)).max(1);
        (0..m.max(1)).step_by(size).map(move |start| start..(start + size).min(m))
    }

    /// Gathers Q, K and V of a head in a window of an image from the rows of the window's tokens.
    pub(super) fn load(&mut self, window: usize, head: usize, qkv: &[T]) {
        if window != self.window {
            [self.query_slots, self.padded_slots] = self.of.shape.slots_of(window);
        }
        (self.window, self.head) = (window, head);
        let (d, row, width, n) = (self.d, self.row, self.of.shape.width, self.n);
        let rows = qkv.chunks_exact(padded_row_len::<T>(3 * width));
        for (at, (&slot, from)) in self.query_slots.iter().zip(rows).enumerate() {
            let from = &from[head * d..];
            copy(&from[..d], &mut self.q[at * row..][..row]);
            copy(&from[width..][..d], &mut self.k[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.v[slot * row..][..row]);
        }
        for &slot in &self.padded_slots {
            let from = &self.of.padding[head * d..];
            copy(&from[width..][..d], &mut self.k[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.v[slot * row..][..row]);
        }
        transpose_rows(&self.k, row, n, &mut self.k_t, self.lanes * T::K_PACK);
    }

    /// `P = softmax(scale Q K^T + B + mask)` for a block of queries.
    pub(super) fn compute_weights(&mut self, queries: &Range<usize>) {
        let (n, lanes) = (self.n, self.lanes);
        let lhs = Lhs::from_rows(&self.q[queries.start * self.row..], self.row);
        let dims = Dims { m: queries.len(), k_steps: self.row / T::K_PACK };
        gemm(lhs, &self.k_t, lanes, dims, &mut self.p, false);
        let position_bias = self.of.position_bias.as_ref();
        let position_bias = position_bias.map(|bias| &bias[self.head * n * lanes..][..n * lanes]);
        let mask = self.of.shape.mask.map(|mask| &mask[self.window * n * n..]);
        let (scale, queries) = (self.scale(), &self.query_slots[queries.clone()]);
        softmax(&mut self.p, scale, position_bias, mask, queries, n, &mut self.p_stored);
    }

    fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }

    /// `O = P V` for a block of queries.
    pub(super) fn apply_weights(&mut self, queries: &Range<usize>) {
        let (n, width) = (self.n, self.width);
        let down = width * T::K_PACK;
        let lay = queries.start == 0;
        let values = vnni_packed(&self.v, self.row, [n, self.d], &mut self.v_packed, down, lay);
        let weights = Lhs::from_rows(&self.p_stored, self.lanes);
        let dims = Dims { m: queries.len(), k_steps: n.div_ceil(T::K_PACK) };
        gemm(weights, values, width, dims, &mut self.out, false);
    }

    /// Gathers dO of a head from the rows of the window's tokens.
    pub(super) fn load_gradient(&mut self, dcontext: &[T]) {
        let rows = dcontext.chunks_exact(padded_row_len::<T>(self.of.shape.width));
        for (from, to) in rows.zip(self.dcontext.chunks_exact_mut(self.row)) {
            copy(&from[self.head * self.d..][..self.d], to);
        }
        let turned = self.lanes * T::K_PACK;
        transpose_rows(&self.v, self.row, self.n, &mut self.v_t, turned);
    }

    /// Backward of a block of queries, whose P is computed: stores dQ, accumulates dK, dV and the
    /// gradient of the position bias.
    pub(super) fn backward(&mut self, queries: &Range<usize>, dposition_bias: &mut [f32]) {
        let (n, d, m, row) = (self.n, self.d, queries.len(), self.row);
        let (width, lanes, scale) = (self.width, self.lanes, self.scale());
        let (down, turned) = (width * T::K_PACK, lanes * T::K_PACK);
        let over_queries = Dims { m: n, k_steps: m.div_ceil(T::K_PACK) };
        let add = queries.start > 0;
        let q = &self.q[queries.start * row..queries.end * row];
        let dcontext = &self.dcontext[queries.start * row..queries.end * row];
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let p = vnni_packed(&self.p_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let gradients = vnni_packed(dcontext, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(p, lanes);
        gemm(lhs, gradients, width, over_queries, &mut self.dv, add);
        let over_width = Dims { m, k_steps: row / T::K_PACK };
        let gradients = Lhs::from_rows(dcontext, row);
        gemm(gradients, &self.v_t, lanes, over_width, &mut self.ds, false);
        let dposition_bias = dposition_bias.chunks_exact_mut(n * lanes).nth(self.head);
        let of = &self.query_slots[queries.clone()];
        let (ds, ds_stored) = (&mut self.ds, &mut self.ds_stored);
        softmax_backward(&self.p, ds, dposition_bias, of, n, scale, ds_stored);
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = vnni_packed(&self.k, row, [n, d], &mut self.k_packed, down, !add);
        let lhs = Lhs::from_rows(&self.ds_stored, lanes);
        let over_keys = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(lhs, keys, width, over_keys, &mut self.dq, false);
        let ds = vnni_packed(&self.ds_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let queries = vnni_packed(q, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(ds, lanes);
        gemm(lhs, queries, width, over_queries, &mut self.dk, add);
    }
}

/// Copies a row of a head; the usual head width without a call of `memcpy`.
#[inline(always)]
fn copy<T: Element>(from: &[T], to: &mut [T]) {
    match (from.as_array::<32>(), to.first_chunk_mut::<32>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to[..from.len()].copy_from_slice(from),
    }
}

/// Rows in pairs, steps `step` values apart: laid out in `to`, unless they lie like that already or
/// `lay` says that it has been done.
pub(crate) fn vnni_packed<'a, T: Element>(
    rows: &'a [T],
    row: usize,
    [count, columns]: [usize; 2],
    to: &'a mut [T],
    step: usize,
    lay: bool,
) -> &'a [T] {
    if T::K_PACK == 1 && row == step {
        return rows;
    }
    if lay {
        pack_vnni(rows, row, count, columns, to, step);
    }
    to
}
