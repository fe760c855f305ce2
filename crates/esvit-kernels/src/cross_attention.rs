//! Multi-head attention of the tokens of an image to other tokens, such as those of a coarser map:
//! `O = softmax(scale Q K^T) V` for every head.
//!
//! A task takes some queries of an image through all heads, so that what it writes is its own. As
//! in [`crate::window_attention`], the weights are computed again in the backward pass.

use std::array::from_fn;

use rayon::prelude::*;

use crate::buffer::{self, Buffer};
use crate::element::{Element, padded_row_len};
use crate::elementwise::{add, update};
use crate::gemm::{Dims, LANES, Lhs, gemm, transpose_rows};
use crate::profile;
use crate::window_attention::{QUERIES, softmax, softmax_backward, vnni_packed};

/// Queries of a task: keys and values are laid out once for them, and their gradients are summed
/// over them first.
const TASK_QUERIES: usize = 8 * QUERIES;

/// Which tokens attend to which.
#[derive(Debug, Clone, Copy)]
pub struct CrossAttention<'a> {
    /// Number of queries and of keys of every image.
    pub images: &'a [[usize; 2]],
    /// Width of a token, C.
    pub width: usize,
    /// Attention heads; they divide C.
    pub heads: usize,
}

impl CrossAttention<'_> {
    /// Multiply-accumulates of one of the two products.
    fn macs(&self) -> usize {
        self.images.iter().map(|[queries, keys]| queries * keys * self.width).sum()
    }

    /// # Panics
    /// When lengths do not match.
    fn check(&self, q: &[f32], kv: &[f32]) {
        assert!(self.width.is_multiple_of(self.heads), "heads divide the width");
        let [queries, keys]: [usize; 2] =
            from_fn(|of| self.images.iter().map(|image| image[of]).sum());
        assert_eq!(q.len(), queries * self.width, "queries");
        assert_eq!(kv.len(), keys * 2 * self.width, "keys and values");
        assert!(self.images.iter().all(|[_, keys]| *keys > 0), "an image without keys");
    }

    /// The rows of every image, by its queries or, doubled, by its keys.
    fn split<'v>(&self, mut values: &'v [f32], of: usize) -> Vec<&'v [f32]> {
        let row = self.width * (of + 1);
        let parts = self.images.iter().map(|image| {
            let (own, rest) = values.split_at(image[of] * row);
            values = rest;
            own
        });
        parts.collect()
    }
}

/// Attention of `q [queries, C]` to `kv [keys, 2 C]`, keys before values in a row, with the rows of
/// all images one after the other: `[queries, C]`.
///
/// # Panics
/// When lengths do not match, or an image has no keys.
pub fn forward<T: Element>(q: &[f32], kv: &[f32], attention: &CrossAttention<'_>) -> Vec<f32> {
    attention.check(q, kv);
    let (width, size) = (attention.width, TASK_QUERIES * attention.width);
    let mut context = buffer::uninit(q.len());
    let mut rest = &mut context[..];
    let mut tasks = Vec::new();
    for (q, kv) in attention.split(q, 0).into_iter().zip(attention.split(kv, 1)) {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(q.len());
        rest = others;
        tasks.extend(q.chunks(size).zip(own.chunks_mut(size)).map(|(q, own)| (q, kv, own)));
    }
    profile::time("cross-attention forward", 2 * attention.macs(), || {
        tasks.into_par_iter().for_each(|(q, kv, context)| {
            let mut part = Head::<T>::new(attention, kv, false);
            for head in 0..attention.heads {
                part.load_keys(kv, head);
                let blocks = q.chunks(QUERIES * width).zip(context.chunks_mut(QUERIES * width));
                for (block, (q, context)) in blocks.enumerate() {
                    part.load_queries(q);
                    part.compute_weights();
                    part.apply_weights(block == 0);
                    part.put(&part.out, context);
                }
            }
        });
    });
    context
}

/// Gradients of `q` and `kv` from that of the output, `dcontext [queries, C]`, for the arguments of
/// [`forward`].
///
/// # Panics
/// When lengths do not match.
pub fn backward<T: Element>(
    q: &[f32],
    kv: &[f32],
    attention: &CrossAttention<'_>,
    dcontext: &[f32],
) -> [Vec<f32>; 2] {
    attention.check(q, kv);
    assert_eq!(q.len(), dcontext.len(), "gradient of the output");
    let (width, size) = (attention.width, TASK_QUERIES * attention.width);
    let mut dq = buffer::uninit(q.len());
    let mut rest = &mut dq[..];
    let mut tasks = Vec::new();
    let images = attention.split(q, 0).into_iter().zip(attention.split(dcontext, 0));
    for (image, ((q, dcontext), kv)) in images.zip(attention.split(kv, 1)).enumerate() {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(q.len());
        rest = others;
        let parts = q.chunks(size).zip(dcontext.chunks(size)).zip(own.chunks_mut(size));
        tasks.extend(parts.map(|((q, dcontext), dq)| (image, kv, q, dcontext, dq)));
    }
    // Q K^T again, and the products of dV, dP, dQ and dK.
    let parts: Vec<(usize, Buffer<f32>)> =
        profile::time("cross-attention backward", 5 * attention.macs(), || {
            let tasks = tasks.into_par_iter().map(|(image, kv, q, dcontext, dq)| {
                let mut part = Head::<T>::new(attention, kv, true);
                let mut dkv = Buffer::<f32>::scratch(kv.len());
                for head in 0..attention.heads {
                    part.load_keys(kv, head);
                    let blocks = q.chunks(QUERIES * width).zip(dcontext.chunks(QUERIES * width));
                    let blocks = blocks.zip(dq.chunks_mut(QUERIES * width));
                    for (block, ((q, dcontext), dq)) in blocks.enumerate() {
                        part.load_queries(q);
                        part.load_gradient(dcontext);
                        part.compute_weights();
                        part.backward(block == 0);
                        part.put(&part.dq, dq);
                    }
                    part.put_keys(&mut dkv);
                }
                (image, dkv)
            });
            tasks.collect()
        });
    let mut dkv = vec![0.0; kv.len()];
    let mut starts = vec![0];
    starts.extend(attention.images.iter().scan(0, |end, [_, keys]| {
        *end += keys * 2 * width;
        Some(*end)
    }));
    // In order of the tasks, whoever ran them.
    for (image, part) in parts {
        add(&part[..], &mut dkv[starts[image]..starts[image + 1]]);
    }
    [dq, dkv]
}

/// Matrices of one head for a block of queries of an image.
struct Head<T: Element> {
    head: usize,
    /// Width of a token and of a head; the latter padded to [`padded_row_len`], and to whole
    /// registers.
    token: usize,
    d: usize,
    row: usize,
    width: usize,
    /// Keys, and keys padded to whole registers.
    n: usize,
    lanes: usize,
    /// Queries of the block.
    m: usize,
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
    /// Buffers for an image with keys and values `kv`; for the backward pass `with_gradients`.
    fn new(attention: &CrossAttention<'_>, kv: &[f32], with_gradients: bool) -> Self {
        let token = attention.width;
        let (n, d) = (kv.len() / 2 / token, token / attention.heads);
        let (row, width) = (padded_row_len::<T>(d), d.next_multiple_of(LANES));
        let (lanes, pairs) = (n.next_multiple_of(LANES), n.next_multiple_of(T::K_PACK));
        // Zeros, since the padding of operands is never written.
        let stored = Buffer::<T>::zeroed;
        let sums = Buffer::<f32>::zeroed;
        let back = |len| if with_gradients { len } else { 0 };
        Self {
            head: 0,
            token,
            d,
            row,
            width,
            n,
            lanes,
            m: 0,
            q: stored(QUERIES * row),
            k: stored(n * row),
            v: stored(n * row),
            dcontext: stored(back(QUERIES * row)),
            k_t: stored(row * lanes),
            k_packed: stored(back(pairs * width)),
            v_t: stored(back(row * lanes)),
            v_packed: stored(pairs * width),
            p: sums(QUERIES * lanes),
            p_stored: stored(QUERIES * lanes),
            ds: sums(back(QUERIES * lanes)),
            ds_stored: stored(back(QUERIES * lanes)),
            p_t: stored(back(QUERIES * lanes)),
            q_packed: stored(back(QUERIES * width)),
            out: sums(QUERIES * width),
            dq: sums(back(QUERIES * width)),
            dk: sums(back(n * width)),
            dv: sums(back(n * width)),
        }
    }

    fn scale(&self) -> f32 {
        (self.d as f32).powf(-0.5)
    }

    /// Takes keys and values of a head from the rows of an image.
    fn load_keys(&mut self, kv: &[f32], head: usize) {
        let Self { token, d, row, n, lanes, .. } = *self;
        self.head = head;
        for (at, from) in kv.chunks_exact(2 * token).enumerate() {
            let from = &from[head * d..];
            update(&mut self.k[at * row..][..d], [&from[..d]], |_, [value]| value);
            update(&mut self.v[at * row..][..d], [&from[token..][..d]], |_, [value]| value);
        }
        transpose_rows(&self.k, row, n, &mut self.k_t, lanes * T::K_PACK);
        if !self.v_t.is_empty() {
            transpose_rows(&self.v, row, n, &mut self.v_t, lanes * T::K_PACK);
        }
    }

    /// Takes a block of queries of the head.
    fn load_queries(&mut self, q: &[f32]) {
        self.m = q.len() / self.token;
        let (d, row, first) = (self.d, self.row, self.head * self.d);
        for (from, to) in q.chunks_exact(self.token).zip(self.q.chunks_exact_mut(row)) {
            update(&mut to[..d], [&from[first..][..d]], |_, [value]| value);
        }
    }

    /// Takes the gradients of what the block gives.
    fn load_gradient(&mut self, dcontext: &[f32]) {
        let (d, row, first) = (self.d, self.row, self.head * self.d);
        let rows = dcontext.chunks_exact(self.token).zip(self.dcontext.chunks_exact_mut(row));
        for (from, to) in rows {
            update(&mut to[..d], [&from[first..][..d]], |_, [value]| value);
        }
    }

    /// `P = softmax(scale Q K^T)`.
    fn compute_weights(&mut self) {
        let queries: [usize; QUERIES] = from_fn(|query| query);
        let dims = Dims { m: self.m, k_steps: self.row / T::K_PACK };
        gemm(Lhs::from_rows(&self.q, self.row), &self.k_t, self.lanes, dims, &mut self.p, false);
        let (scale, queries) = (self.scale(), &queries[..self.m]);
        softmax(&mut self.p, scale, None, None, queries, self.n, &mut self.p_stored);
    }

    /// `O = P V`; the values are laid out for the head's first block.
    fn apply_weights(&mut self, is_first: bool) {
        let Self { d, row, width, n, lanes, m, .. } = *self;
        let down = width * T::K_PACK;
        let values = vnni_packed(&self.v, row, [n, d], &mut self.v_packed, down, is_first);
        let dims = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(Lhs::from_rows(&self.p_stored, lanes), values, width, dims, &mut self.out, false);
    }

    /// Backward of the block, whose P is computed: dQ, and sums of dK and dV over the blocks.
    fn backward(&mut self, is_first: bool) {
        let Self { d, row, width, n, lanes, m, .. } = *self;
        let (down, turned) = (width * T::K_PACK, lanes * T::K_PACK);
        let (scale, is_added) = (self.scale(), !is_first);
        let over_queries = Dims { m: n, k_steps: m.div_ceil(T::K_PACK) };
        let dcontext = &self.dcontext[..m * row];
        // With O = P V: dV = P^T dO and dP = dO V^T.
        let p = vnni_packed(&self.p_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let gradients = vnni_packed(dcontext, row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(p, lanes);
        gemm(lhs, gradients, width, over_queries, &mut self.dv, is_added);
        let dims = Dims { m, k_steps: row / T::K_PACK };
        gemm(Lhs::from_rows(dcontext, row), &self.v_t, lanes, dims, &mut self.ds, false);
        let queries: [usize; QUERIES] = from_fn(|query| query);
        let (ds, ds_stored) = (&mut self.ds, &mut self.ds_stored);
        softmax_backward(&self.p, ds, None, &queries[..m], n, scale, ds_stored);
        // With S = scale Q K^T: dQ = scale dS K and dK = scale dS^T Q.
        let keys = vnni_packed(&self.k, row, [n, d], &mut self.k_packed, down, is_first);
        let dims = Dims { m, k_steps: n.div_ceil(T::K_PACK) };
        gemm(Lhs::from_rows(&self.ds_stored, lanes), keys, width, dims, &mut self.dq, false);
        let ds = vnni_packed(&self.ds_stored, lanes, [m, lanes], &mut self.p_t, turned, true);
        let queries = vnni_packed(&self.q[..m * row], row, [m, d], &mut self.q_packed, down, true);
        let lhs = Lhs::from_transposed(ds, lanes);
        gemm(lhs, queries, width, over_queries, &mut self.dk, is_added);
    }

    /// Stores the block's rows of `from` in the head's columns.
    fn put(&self, from: &[f32], to: &mut [f32]) {
        let first = self.head * self.d;
        for (from, to) in from.chunks_exact(self.width).zip(to.chunks_exact_mut(self.token)) {
            to[first..first + self.d].copy_from_slice(&from[..self.d]);
        }
    }

    /// Stores dK and dV in the head's columns.
    fn put_keys(&self, dkv: &mut [f32]) {
        let (first, token) = (self.head * self.d, self.token);
        let gradients = self.dk.chunks_exact(self.width).zip(self.dv.chunks_exact(self.width));
        for ((dk, dv), to) in gradients.zip(dkv.chunks_exact_mut(2 * token)) {
            to[first..first + self.d].copy_from_slice(&dk[..self.d]);
            to[token + first..token + first + self.d].copy_from_slice(&dv[..self.d]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Bf16;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_gradient, assert_near, dot, normal, rounded, wide};
    use proptest::prelude::*;

    /// A head's part of row `row` of values `width` wide.
    fn part(values: &[f64], width: usize, row: usize, first: usize, d: usize) -> &[f64] {
        &values[row * width + first..][..d]
    }

    /// Output and gradients of queries, keys and values in f64.
    fn definition([q, kv, dcontext]: [&[f64]; 3], attention: &CrossAttention<'_>) -> [Vec<f64>; 3] {
        let CrossAttention { width, heads, .. } = *attention;
        let d = width / heads;
        let scale = (d as f64).powf(-0.5);
        let [mut context, mut dq, mut dkv] = [q.len(), q.len(), kv.len()].map(|len| vec![0.0; len]);
        let (mut query, mut key) = (0, 0);
        for &[queries, keys] in attention.images {
            for pair in 0..heads * queries {
                let (query, first) = (query + pair % queries, pair / queries * d);
                let of_query = part(q, width, query, first, d);
                let row = |at: usize| part(kv, 2 * width, key + at, first, d);
                let value = |at: usize| part(kv, 2 * width, key + at, width + first, d);
                let exps: Vec<f64> =
                    (0..keys).map(|at| (dot(of_query, row(at)) * scale).exp()).collect();
                let sum: f64 = exps.iter().sum();
                let d_out = part(dcontext, width, query, first, d);
                let dp: Vec<f64> = (0..keys).map(|at| dot(d_out, value(at))).collect();
                let mean: f64 = (0..keys).map(|at| exps[at] / sum * dp[at]).sum();
                for at in 0..keys {
                    let p = exps[at] / sum;
                    let ds = scale * p * (dp[at] - mean);
                    for i in 0..d {
                        context[query * width + first + i] += p * value(at)[i];
                        dq[query * width + first + i] += ds * row(at)[i];
                        dkv[(key + at) * 2 * width + first + i] += ds * of_query[i];
                        dkv[((key + at) * 2 + 1) * width + first + i] += p * d_out[i];
                    }
                }
            }
            (query, key) = (query + queries, key + keys);
        }
        [context, dq, dkv]
    }

    fn check<T: Element>(images: &[[usize; 2]], heads: usize, d: usize, within: f64) {
        let attention = CrossAttention { images, width: heads * d, heads };
        let [queries, keys]: [usize; 2] = from_fn(|of| images.iter().map(|image| image[of]).sum());
        let q = normal(queries * attention.width, 1);
        let kv = normal(keys * 2 * attention.width, 2);
        let dcontext = normal(q.len(), 3);
        let values = [&q, &kv, &dcontext].map(|values| rounded::<T>(values));
        let [context, dq, dkv] = definition(values.each_ref().map(Vec::as_slice), &attention);
        let near = |name: &str, found: &[f32], expected: &[f64]| {
            let what = format!("{name}: {} {images:?}, {heads} heads of {d}", T::NAME);
            assert_near(&what, found, expected, within);
        };
        near("context", &forward::<T>(&q, &kv, &attention), &context);
        let found = backward::<T>(&q, &kv, &attention, &dcontext);
        near("dq", &found[0], &dq);
        // Gradients of keys and values have different sizes.
        let half = |values: &[f64], of: usize| -> Vec<f64> {
            let rows = values.chunks_exact(2 * attention.width);
            rows.flat_map(|row| row[of * attention.width..][..attention.width].to_vec()).collect()
        };
        for (of, name) in ["dk", "dv"].into_iter().enumerate() {
            let found: Vec<f32> = half(&wide(&found[1]), of).iter().map(|&v| v as f32).collect();
            near(name, &found, &half(&dkv, of));
        }
    }

    fn check_all(images: &[[usize; 2]], heads: usize, d: usize) {
        check::<f32>(images, heads, d, 5e-6);
        check::<Bf16>(images, heads, d, 0.02);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn against_the_definition(
            queries in 1usize..80, keys in 1usize..40, heads in 1usize..4, d in 1usize..20,
        ) {
            under_each(|_| check_all(&[[queries, keys], [3, 1], [keys, queries]], heads, d));
        }
    }

    /// Several tasks and blocks for the queries of an image, and the usual width of a head.
    #[test]
    fn many_queries() {
        under_each(|_| check_all(&[[TASK_QUERIES + 70, 49], [50, 50]], 2, 64));
    }

    /// The definition itself.
    #[test]
    fn the_definition_has_its_gradients() {
        let attention = CrossAttention { images: &[[4, 3], [2, 5]], width: 6, heads: 2 };
        let (q, kv) = (wide(&normal(36, 1)), wide(&normal(96, 2)));
        let dcontext = wide(&normal(36, 3));
        let [_, dq, dkv] = definition([&q, &kv, &dcontext], &attention);
        let loss = |q: &[f64], kv: &[f64]| {
            let [context, ..] = definition([q, kv, &dcontext], &attention);
            dot(&context, &dcontext)
        };
        assert_gradient(|q| loss(q, &kv), &q, &dq);
        assert_gradient(|kv| loss(&q, kv), &kv, &dkv);
    }
}
