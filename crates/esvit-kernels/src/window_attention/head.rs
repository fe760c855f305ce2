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
    pub(super) queries: Vec<usize>,
    pub(super) padded: Vec<usize>,
    /// `[m, row]`, `[n, row]`, `[n, row]`, `[m, row]`.
    query_rows: Buffer<T>,
    key_rows: Buffer<T>,
    value_rows: Buffer<T>,
    gradient_rows: Buffer<T>,
    /// Keys and values as rhs operands, `[d, lanes]` and `[n, width]`.
    keys_across: Buffer<T>,
    keys_down: Buffer<T>,
    values_across: Buffer<T>,
    values_down: Buffer<T>,
    /// Of the queries at hand: weights of the attention, `[QUERIES, lanes]`, and in the stored type.
    weights: Buffer<f32>,
    stored: Buffer<T>,
    /// Gradient of the weights, then of the logits, and in the stored type.
    dlogits: Buffer<f32>,
    dstored: Buffer<T>,
    /// A transposed lhs operand, `[QUERIES, lanes]` in pairs of rows.
    turned: Buffer<T>,
    /// Rows of the queries at hand as a rhs operand, `[QUERIES, width]`.
    down: Buffer<T>,
    /// What comes out for the queries at hand, `[QUERIES, width]`.
    pub(super) out: Buffer<f32>,
    pub(super) dqueries: Buffer<f32>,
    /// Sums over all queries, `[n, width]`.
    pub(super) dkeys: Buffer<f32>,
    pub(super) dvalues: Buffer<f32>,
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
            queries: Vec::new(),
            padded: Vec::new(),
            query_rows: stored(n * row),
            key_rows: stored(n * row),
            value_rows: stored(n * row),
            gradient_rows: stored(back(n * row)),
            keys_across: stored(row * lanes),
            keys_down: stored(back(pairs * width)),
            values_across: stored(back(row * lanes)),
            values_down: stored(pairs * width),
            weights: sums(block * lanes),
            stored: stored(block * lanes),
            dlogits: sums(back(block * lanes)),
            dstored: stored(back(block * lanes)),
            turned: stored(back(block * lanes)),
            down: stored(back(block * width)),
            out: sums(block * width),
            dqueries: sums(back(block * width)),
            dkeys: sums(back(n * width)),
            dvalues: sums(back(n * width)),
        }
    }

    /// Takes up a window of an image.
    pub(super) fn set_window(&mut self, windows: &Windows<'_>, window: usize) {
        if window != self.window {
            self.window = window;
            [self.queries, self.padded] = windows.slots_of(window);
        }
    }

    /// The queries, as many at a time as there is room for, in nearly equal parts; without a query one
    /// empty part, from which all gradients are zero.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let m = self.queries.len();
        let size = m.div_ceil(m.div_ceil(QUERIES).max(1)).max(1);
        (0..m.max(1)).step_by(size).map(move |start| start..(start + size).min(m))
    }

    /// Gathers queries, keys and values from the rows of the window's tokens.
    pub(super) fn load(&mut self, qkv: &[T], padding: &[T], head: usize) {
        let (d, row, width, n) = (self.d, self.row, self.d * self.heads, self.n);
        let rows = qkv.chunks_exact(padded_row_len::<T>(3 * width));
        for (at, (&slot, from)) in self.queries.iter().zip(rows).enumerate() {
            let from = &from[head * d..];
            copy(&from[..d], &mut self.query_rows[at * row..][..row]);
            copy(&from[width..][..d], &mut self.key_rows[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.value_rows[slot * row..][..row]);
        }
        for &slot in &self.padded {
            let from = &padding[head * d..];
            copy(&from[width..][..d], &mut self.key_rows[slot * row..][..row]);
            copy(&from[2 * width..][..d], &mut self.value_rows[slot * row..][..row]);
        }
        transpose_rows(&self.key_rows, row, n, &mut self.keys_across, self.lanes * T::K_PACK);
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
        let lhs = Lhs::from_rows(&self.query_rows[queries.start * self.row..], self.row);
        let dims = Dims { m: queries.len(), k_steps: self.row / T::K_PACK };
        gemm(lhs, &self.keys_across, lanes, dims, &mut self.weights, false);
        let position_bias =
            position_bias.map(|position_bias| &position_bias[head * n * lanes..][..n * lanes]);
        let mask = mask.map(|mask| &mask[self.window * n * n..]);
        let (scale, queries) = (self.scale(), &self.queries[queries.clone()]);
        softmax(&mut self.weights, scale, position_bias, mask, queries, n, &mut self.stored);
    }

    fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }

    /// Sums of values by weight, for the queries at hand.
    pub(super) fn apply_weights(&mut self, queries: &Range<usize>) {
        let (n, width) = (self.n, self.width);
        let down = width * T::K_PACK;
        let lay = queries.start == 0;
        let values =
            vnni_packed(&self.value_rows, self.row, [n, self.d], &mut self.values_down, down, lay);
        let weights = Lhs::from_rows(&self.stored, self.lanes);
        let dims = Dims { m: queries.len(), k_steps: n.div_ceil(T::K_PACK) };
        gemm(weights, values, width, dims, &mut self.out, false);
    }

    /// Gathers the gradient of what came out from the rows of the window's tokens.
    pub(super) fn load_gradient(&mut self, dcontext: &[T], head: usize) {
        let (d, width) = (self.d, self.d * self.heads);
        let rows = dcontext.chunks_exact(padded_row_len::<T>(width));
        for (from, to) in rows.zip(self.gradient_rows.chunks_exact_mut(self.row)) {
            copy(&from[head * d..][..d], to);
        }
        let turned = self.lanes * T::K_PACK;
        transpose_rows(&self.value_rows, self.row, self.n, &mut self.values_across, turned);
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
        let query_rows = &self.query_rows[queries.start * row..queries.end * row];
        let gradient_rows = &self.gradient_rows[queries.start * row..queries.end * row];
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let weights = vnni_packed(&self.stored, lanes, [m, lanes], &mut self.turned, turned, true);
        let gradients = vnni_packed(gradient_rows, row, [m, d], &mut self.down, down, true);
        let lhs = Lhs::from_transposed(weights, lanes);
        gemm(lhs, gradients, width, over_queries, &mut self.dvalues, add);
        let over_width = Dims { m: m, k_steps: row / T::K_PACK };
        let gradients = Lhs::from_rows(gradient_rows, row);
        gemm(gradients, &self.values_across, lanes, over_width, &mut self.dlogits, false);
        let dposition_bias = dposition_bias
            .map(|dposition_bias| &mut dposition_bias[head * n * lanes..][..n * lanes]);
        let of = &self.queries[queries.clone()];
        let (dlogits, dstored) = (&mut self.dlogits, &mut self.dstored);
        softmax_gradient(&self.weights, dlogits, dposition_bias, of, n, scale, dstored);
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = vnni_packed(&self.key_rows, row, [n, d], &mut self.keys_down, down, !add);
        let lhs = Lhs::from_rows(&self.dstored, lanes);
        let over_keys = Dims { m: m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(lhs, keys, width, over_keys, &mut self.dqueries, false);
        let dlogits = vnni_packed(&self.dstored, lanes, [m, lanes], &mut self.turned, turned, true);
        let queries = vnni_packed(query_rows, row, [m, d], &mut self.down, down, true);
        let lhs = Lhs::from_transposed(dlogits, lanes);
        gemm(lhs, queries, width, over_queries, &mut self.dkeys, add);
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
