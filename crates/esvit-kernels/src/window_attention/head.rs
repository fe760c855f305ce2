//! One head in one window: its matrices, and the products between them.

use std::ops::Range;

use super::Windows;
use super::softmax::{softmax, softmax_gradient};
use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len};
use crate::gemm::{Dims, LANES, Lhs, NR, Output, RhsPanel, pack_vnni, transpose_rows};

/// The most slots that ask at a time. Their weights stay in the second-level cache, and the n x n
/// matrix of a large window never exists.
pub(super) const QUERIES: usize = 64;

/// Matrices of one head in one window. Only slots with a token ask (`m` of them), some at a time;
/// all `n` are keys.
pub(super) struct Head<T: Element> {
    pub(super) d: usize,
    heads: usize,
    n: usize,
    /// Stored length of a row of a head.
    row: usize,
    /// `d` filled up to registers.
    pub(super) width: usize,
    /// `n` filled up to registers.
    lanes: usize,
    window: usize,
    /// Slots with a token, and those without.
    pub(super) query_slots: Vec<usize>,
    pub(super) padded_slots: Vec<usize>,
    /// `[m, row]`, `[n, row]`, `[n, row]`, `[m, row]`.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    dcontext: Buffer<T>,
    /// Keys and values as rhs operands, `[d, lanes]` and `[n, width]`.
    k_t: Buffer<T>,
    k_packed: Buffer<T>,
    v_t: Buffer<T>,
    v_packed: Buffer<T>,
    /// Of the queries at hand: weights of the attention, `[QUERIES, lanes]`, and in the stored type.
    p: Buffer<f32>,
    p_stored: Buffer<T>,
    /// Gradient of the weights, then of the logits, and in the stored type.
    ds: Buffer<f32>,
    ds_stored: Buffer<T>,
    /// A transposed lhs operand, `[QUERIES, lanes]` in pairs of rows.
    p_t: Buffer<T>,
    /// Rows of the queries at hand as a rhs operand, `[QUERIES, width]`.
    q_packed: Buffer<T>,
    /// What comes out for the queries at hand, `[QUERIES, width]`.
    pub(super) out: Buffer<f32>,
    pub(super) dq: Buffer<f32>,
    /// Sums over all queries, `[n, width]`.
    pub(super) dk: Buffer<f32>,
    pub(super) dv: Buffer<f32>,
}

impl<T: Element> Head<T> {
    /// Room for the forward pass and, `with_gradients`, for the backward pass.
    pub(super) fn new(windows: &Windows<'_>, with_gradients: bool) -> Self {
        let (n, d, lanes) = (windows.slots, windows.head_width(), windows.lanes());
        let (row, width) = (padded_row_len::<T>(d), d.next_multiple_of(LANES));
        let pairs = n.next_multiple_of(T::K_PACK);
        let block = n.min(QUERIES).next_multiple_of(T::K_PACK);
        // Zeros where nothing is written: they stand in operands.
        let stored = Buffer::<T>::zeroed;
        let sums = Buffer::<f32>::zeroed;
        let back = |len| if with_gradients { len } else { 0 };
        Self {
            d,
            heads: windows.heads,
            n,
            row,
            width,
            lanes,
            window: usize::MAX,
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

    /// Takes up a window of an image.
    pub(super) fn set_window(&mut self, windows: &Windows<'_>, window: usize) {
        if window != self.window {
            self.window = window;
            [self.query_slots, self.padded_slots] = windows.slots_of(window);
        }
    }

    /// The queries, as many at a time as there is room for, in nearly equal parts; without a query one
    /// empty part, from which all gradients are zero.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let m = self.query_slots.len();
        let size = m.div_ceil(m.div_ceil(QUERIES).max(1)).max(1);
        (0..m.max(1)).step_by(size).map(move |start| start..(start + size).min(m))
    }

    /// Gathers queries, keys and values from the rows of the window's tokens.
    pub(super) fn load(&mut self, qkv: &[T], padding: &[T], head: usize) {
        let (d, row, width, n) = (self.d, self.row, self.d * self.heads, self.n);
        let rows = qkv.chunks_exact(padded_row_len::<T>(3 * width));
        for (at, (&slot, from)) in self.query_slots.iter().zip(rows).enumerate() {
            let from = &from[head * d..];
            copy(&from[..d], &mut self.q[at * row..][..row]);
            copy(&from[width..][..d], &mut self.k[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.v[slot * row..][..row]);
        }
        for &slot in &self.padded_slots {
            let from = &padding[head * d..];
            copy(&from[width..][..d], &mut self.k[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.v[slot * row..][..row]);
        }
        transpose_rows(&self.k, row, n, &mut self.k_t, self.lanes * T::K_PACK);
    }

    /// The weights of the attention of some queries.
    pub(super) fn compute_weights(
        &mut self,
        position_bias: Option<&[f32]>,
        mask: Option<&[f32]>,
        queries: &Range<usize>,
        head: usize,
    ) {
        let (n, lanes) = (self.n, self.lanes);
        let lhs = Lhs::from_rows(&self.q[queries.start * self.row..], self.row);
        let dims = Dims { m: queries.len(), k_steps: self.row / T::K_PACK };
        gemm(lhs, &self.k_t, lanes, dims, &mut self.p, false);
        let position_bias =
            position_bias.map(|position_bias| &position_bias[head * n * lanes..][..n * lanes]);
        let mask = mask.map(|mask| &mask[self.window * n * n..]);
        let (scale, queries) = (self.scale(), &self.query_slots[queries.clone()]);
        softmax(&mut self.p, scale, position_bias, mask, queries, n, &mut self.p_stored);
    }

    fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }

    /// Sums of values by weight, for the queries at hand.
    pub(super) fn apply_weights(&mut self, queries: &Range<usize>) {
        let (n, width) = (self.n, self.width);
        let down = width * T::K_PACK;
        let lay = queries.start == 0;
        let values = vnni_packed(&self.v, self.row, [n, self.d], &mut self.v_packed, down, lay);
        let weights = Lhs::from_rows(&self.p_stored, self.lanes);
        let dims = Dims { m: queries.len(), k_steps: n.div_ceil(T::K_PACK) };
        gemm(weights, values, width, dims, &mut self.out, false);
    }

    /// Gathers the gradient of what came out from the rows of the window's tokens.
    pub(super) fn load_gradient(&mut self, dcontext: &[T], head: usize) {
        let (d, width) = (self.d, self.d * self.heads);
        let rows = dcontext.chunks_exact(padded_row_len::<T>(width));
        for (from, to) in rows.zip(self.dcontext.chunks_exact_mut(self.row)) {
            copy(&from[head * d..][..d], to);
        }
        let turned = self.lanes * T::K_PACK;
        transpose_rows(&self.v, self.row, self.n, &mut self.v_t, turned);
    }

    /// Gradients of some queries, whose weights are at hand; what they add to those of keys, values
    /// and position_bias.
    pub(super) fn backward(
        &mut self,
        queries: &Range<usize>,
        head: usize,
        dposition_bias: Option<&mut [f32]>,
    ) {
        let (n, d, m, row) = (self.n, self.d, queries.len(), self.row);
        let (width, lanes, scale) = (self.width, self.lanes, self.scale());
        let (down, turned) = (width * T::K_PACK, lanes * T::K_PACK);
        let over_queries = Dims { m: n, k_steps: m.div_ceil(T::K_PACK) };
        let add = queries.start > 0;
        let q = &self.q[queries.start * row..queries.end * row];
        let dcontext = &self.dcontext[queries.start * row..queries.end * row];
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let weights = vnni_packed(&self.p_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let gradients = vnni_packed(dcontext, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(weights, lanes);
        gemm(lhs, gradients, width, over_queries, &mut self.dv, add);
        let over_width = Dims { m, k_steps: row / T::K_PACK };
        let gradients = Lhs::from_rows(dcontext, row);
        gemm(gradients, &self.v_t, lanes, over_width, &mut self.ds, false);
        let dposition_bias = dposition_bias
            .map(|dposition_bias| &mut dposition_bias[head * n * lanes..][..n * lanes]);
        let of = &self.query_slots[queries.clone()];
        let (dlogits, dstored) = (&mut self.ds, &mut self.ds_stored);
        softmax_gradient(&self.p, dlogits, dposition_bias, of, n, scale, dstored);
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = vnni_packed(&self.k, row, [n, d], &mut self.k_packed, down, !add);
        let lhs = Lhs::from_rows(&self.ds_stored, lanes);
        let over_keys = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(lhs, keys, width, over_keys, &mut self.dq, false);
        let dlogits = vnni_packed(&self.ds_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let queries = vnni_packed(q, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(dlogits, lanes);
        gemm(lhs, queries, width, over_queries, &mut self.dk, add);
    }
}

/// Copies a row of a head; the usual width without a call.
#[inline(always)]
fn copy<T: Element>(from: &[T], to: &mut [T]) {
    match (from.as_array::<32>(), to.first_chunk_mut::<32>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to[..from.len()].copy_from_slice(from),
    }
}

/// Rows in pairs, steps `step` values apart: laid out in `to`, unless they lie like that already or
/// `lay` says that it has been done.
fn vnni_packed<'a, T: Element>(
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

/// `out [rows, columns]`, or what is added to it, for a rhs operand `[steps, columns]`, panel by
/// panel.
fn gemm<T: Element>(
    lhs: Lhs<'_, T>,
    rhs: &[T],
    columns: usize,
    dims: Dims,
    out: &mut [f32],
    add: bool,
) {
    for first in (0..columns).step_by(NR) {
        let width = NR.min(columns - first);
        let (values, step) = (&rhs[first * T::K_PACK..], columns * T::K_PACK);
        let panel = RhsPanel { values, k_stride: step, width, bias: None };
        let mut out = Output { values: &mut out[first..], row_stride: columns };
        T::gemm(lhs, panel, dims, &mut out, add);
    }
}
