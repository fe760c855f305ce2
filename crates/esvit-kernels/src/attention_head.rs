//! One head of attention, a block of queries at a time: its matrices and their products.
//!
//! `S = scale Q K^T + B`, `P = softmax(S)`, `O = P V`. The backward pass computes P again, and sums
//! the gradients of keys and values over blocks.

use std::array::from_fn;

use crate::buffer::Buffer;
use crate::element::{Element, padded_row_len, same};
use crate::elementwise::update;
use crate::gemm::{Dims, LANES, Lhs, gemm, transpose_rows};
use crate::window_attention::{QUERIES, softmax, softmax_backward, vnni_packed};

/// Matrices of a head for a block of queries and all of their keys.
pub(crate) struct Head<T: Element> {
    scale: f32,
    /// Width of a head; padded to [`padded_row_len`], and to whole registers.
    d: usize,
    row: usize,
    width: usize,
    /// Keys, and keys padded to whole registers.
    n: usize,
    lanes: usize,
    /// Queries of the block.
    m: usize,
    /// Whether it is the first block for these keys.
    is_first: bool,
    /// Q and dO `[QUERIES, row]`, K and V `[n, row]`.
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
    dcontext: Buffer<T>,
    /// K and V as RHS operands: transposed `[d, lanes]`, and packed `[n, width]`.
    k_t: Buffer<T>,
    k_packed: Buffer<T>,
    v_t: Buffer<T>,
    v_packed: Buffer<T>,
    /// S, then P, `[QUERIES, lanes]`, and P in the element type.
    p: Buffer<f32>,
    p_stored: Buffer<T>,
    /// dP, then dS, and scale * dS in the element type.
    ds: Buffer<f32>,
    ds_stored: Buffer<T>,
    /// P, then dS, packed as a transposed LHS, `[QUERIES, lanes]`.
    p_t: Buffer<T>,
    /// dO, then Q, packed as an RHS, `[QUERIES, width]`.
    q_packed: Buffer<T>,
    /// O and dQ of the block, `[QUERIES, width]`.
    out: Buffer<f32>,
    dq: Buffer<f32>,
    /// Summed over blocks, `[n, width]`.
    dk: Buffer<f32>,
    dv: Buffer<f32>,
}

impl<T: Element> Head<T> {
    /// Buffers for blocks of up to `m` queries, at most [`QUERIES`], and up to `n` keys, all `d` wide;
    /// for the backward pass `with_gradients`.
    pub(crate) fn new([m, n, d]: [usize; 3], scale: f32, with_gradients: bool) -> Self {
        let (row, width) = (padded_row_len::<T>(d), d.next_multiple_of(LANES));
        let (lanes, pairs) = (n.next_multiple_of(LANES), n.next_multiple_of(T::K_PACK));
        let block = m.min(QUERIES).next_multiple_of(T::K_PACK);
        // Zeros, since the padding of operands is never written.
        let stored = Buffer::<T>::zeroed;
        let sums = Buffer::<f32>::zeroed;
        let back = |len| if with_gradients { len } else { 0 };
        Self {
            scale,
            d,
            row,
            width,
            n,
            lanes,
            m: 0,
            is_first: true,
            q: stored(block * row),
            k: stored(n * row),
            v: stored(n * row),
            dcontext: stored(back(block * row)),
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

    /// Takes keys and values, each `d` wide.
    pub(crate) fn load_keys<'r, S: Element>(
        &mut self,
        rows: impl ExactSizeIterator<Item = [&'r [S]; 2]>,
    ) {
        let (d, row, n) = (self.d, self.row, rows.len());
        if n != self.n {
            // Padding may be where keys were, and these may have been no numbers.
            self.k_t.fill(T::default());
            self.v_t.fill(T::default());
        }
        (self.n, self.lanes, self.is_first) = (n, n.next_multiple_of(LANES), true);
        let to = self.k.chunks_exact_mut(row).zip(self.v.chunks_exact_mut(row));
        for ([key, value], (k, v)) in rows.zip(to) {
            convert(key, &mut k[..d]);
            convert(value, &mut v[..d]);
        }
        let step = self.lanes * T::K_PACK;
        transpose_rows(&self.k, row, n, &mut self.k_t, step);
        if !self.v_t.is_empty() {
            transpose_rows(&self.v, row, n, &mut self.v_t, step);
        }
    }

    /// Takes a block of queries.
    pub(crate) fn load_queries<'r, S: Element>(
        &mut self,
        rows: impl ExactSizeIterator<Item = &'r [S]>,
    ) {
        self.m = rows.len();
        load(rows, &mut self.q, self.row);
    }

    /// Takes the gradients of what the block gives.
    pub(crate) fn load_gradient<'r>(&mut self, rows: impl Iterator<Item = &'r [f32]>) {
        load(rows, &mut self.dcontext, self.row);
    }

    /// `P = softmax(scale Q K^T + B)`. The rows of a bias have as many values as [`Head::ds`], and those
    /// beyond the keys hide them; also given is the row of every query.
    pub(crate) fn compute_weights(&mut self, bias: Option<(&[f32], &[usize])>) {
        let (m, n, lanes) = (self.m, self.n, self.lanes);
        let dims = Dims { m, k_steps: self.row / T::K_PACK };
        gemm(Lhs::from_rows(&self.q, self.row), &self.k_t, lanes, dims, &mut self.p, false);
        let all: [usize; QUERIES] = from_fn(|query| query);
        let rows = bias.map_or(&all[..m], |(_, rows)| rows);
        let bias = bias.map(|(bias, _)| bias);
        softmax(&mut self.p, self.scale, bias, None, rows, n, &mut self.p_stored);
    }

    /// `O = P V`.
    pub(crate) fn apply_weights(&mut self) {
        let Self { d, row, width, n, lanes, m, .. } = *self;
        let down = width * T::K_PACK;
        let values = vnni_packed(&self.v, row, [n, d], &mut self.v_packed, down, self.is_first);
        let dims = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(Lhs::from_rows(&self.p_stored, lanes), values, width, dims, &mut self.out, false);
        self.is_first = false;
    }

    /// Backward of the block, whose P is computed: dQ, and sums of dK and dV over the blocks. dS is added
    /// to a gradient of the bias, given with the row of every query.
    pub(crate) fn backward(&mut self, dbias: Option<(&mut [f32], &[usize])>) {
        let Self { scale, d, row, width, n, lanes, m, is_first, .. } = *self;
        let (down, turned, is_added) = (width * T::K_PACK, lanes * T::K_PACK, !is_first);
        let over_queries = Dims { m: n, k_steps: m.div_ceil(T::K_PACK) };
        let dcontext = &self.dcontext[..m * row];
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let p = vnni_packed(&self.p_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let gradients = vnni_packed(dcontext, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(p, lanes);
        gemm(lhs, gradients, width, over_queries, &mut self.dv, is_added);
        let dims = Dims { m, k_steps: row / T::K_PACK };
        gemm(Lhs::from_rows(dcontext, row), &self.v_t, lanes, dims, &mut self.ds, false);
        let all: [usize; QUERIES] = from_fn(|query| query);
        let (dbias, rows) = dbias.map_or((None, &all[..m]), |(dbias, rows)| (Some(dbias), rows));
        let (ds, ds_stored) = (&mut self.ds, &mut self.ds_stored);
        softmax_backward(&self.p, ds, dbias, rows, n, scale, ds_stored);
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = vnni_packed(&self.k, row, [n, d], &mut self.k_packed, down, is_first);
        let dims = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(Lhs::from_rows(&self.ds_stored, lanes), keys, width, dims, &mut self.dq, false);
        let ds = vnni_packed(&self.ds_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let queries = vnni_packed(&self.q[..m * row], row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(ds, lanes);
        gemm(lhs, queries, width, over_queries, &mut self.dk, is_added);
        self.is_first = false;
    }

    /// What the block's queries get, `d` values each.
    pub(crate) fn out(&self) -> impl Iterator<Item = &[f32]> {
        self.out.chunks_exact(self.width).take(self.m).map(|row| &row[..self.d])
    }

    /// Gradients of the block's queries.
    pub(crate) fn dq(&self) -> impl Iterator<Item = &[f32]> {
        self.dq.chunks_exact(self.width).take(self.m).map(|row| &row[..self.d])
    }

    /// dS of the block's queries, keys padded to whole registers.
    pub(crate) fn ds(&self) -> impl Iterator<Item = &[f32]> {
        self.ds.chunks_exact(self.lanes).take(self.m)
    }

    /// Gradients of every key and of its value.
    pub(crate) fn dk_and_dv(&self) -> impl Iterator<Item = [&[f32]; 2]> {
        let rows = self.dk.chunks_exact(self.width).zip(self.dv.chunks_exact(self.width));
        rows.take(self.n).map(|(dk, dv)| [&dk[..self.d], &dv[..self.d]])
    }
}

/// Stores rows in the element type, `row` values apart.
fn load<'r, S: Element, T: Element>(from: impl Iterator<Item = &'r [S]>, to: &mut [T], row: usize) {
    for (from, to) in from.zip(to.chunks_exact_mut(row)) {
        convert(from, &mut to[..from.len()]);
    }
}

/// The same values in another type, or in the same one.
pub(crate) fn convert<S: Element, T: Element>(from: &[S], to: &mut [T]) {
    match same(from) {
        Some(from) => to.copy_from_slice(from),
        None => update(to, [from], |_, [value]| value),
    }
}
