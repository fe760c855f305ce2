//! Multi-head attention of the tokens of an image to other tokens, such as those of a coarser map:
//! `O = softmax(scale Q K^T) V` for every head.
//!
//! A task takes some queries of an image through all heads, so that what it writes is its own. As
//! in [`crate::window_attention`], the weights are computed again in the backward pass.
//!
//! Causal attention is that of tokens to themselves and to those before them. A task then has the keys
//! up to its last query alone, and later ones than a query's own place are hidden from it.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use crate::attention_head::{Head, convert};
use crate::buffer::{self, Buffer};
use crate::element::Element;
use crate::elementwise::add;
use crate::gemm::LANES;
use crate::profile;
use crate::window_attention::{MASK_VALUE, QUERIES};

/// Queries of a task: keys and values are laid out once for them, and their gradients are summed
/// over them first.
const TASK_QUERIES: usize = 8 * QUERIES;
/// The same of causal attention, where smaller tasks have fewer keys that nobody sees.
const CAUSAL_TASK_QUERIES: usize = 2 * QUERIES;

/// Which tokens attend to which.
#[derive(Debug, Clone, Copy)]
pub struct CrossAttention<'a> {
    /// Number of queries and of keys of every image.
    pub images: &'a [[usize; 2]],
    /// Width of a token, C.
    pub width: usize,
    /// Attention heads; they divide C.
    pub heads: usize,
    /// Whether queries are the tokens that keys are of, and see no later ones than themselves.
    pub is_causal: bool,
}

/// What hides later tokens from the queries of a task.
struct Hidden {
    /// Added to the logits, `[queries, lanes]`: keys padded to whole registers.
    values: Vec<f32>,
    /// The row of every query.
    rows: Vec<usize>,
}

impl Hidden {
    /// Of `queries` that are the last ones of as many tokens as there are `keys`.
    fn new(queries: usize, keys: usize) -> Self {
        let lanes = keys.next_multiple_of(LANES);
        let mut values = vec![MASK_VALUE; queries * lanes];
        for (query, row) in values.chunks_exact_mut(lanes).enumerate() {
            row[..keys - queries + query + 1].fill(0.0);
        }
        Self { values, rows: (0..queries).collect() }
    }

    /// The part of a block, as [`Head::compute_weights`] takes it.
    fn of_block(&self, block: usize) -> (&[f32], &[usize]) {
        let rows = &self.rows[block * QUERIES..];
        (&self.values, &rows[..rows.len().min(QUERIES)])
    }
}

impl CrossAttention<'_> {
    /// Multiply-accumulates of one of the two products.
    fn macs(&self) -> usize {
        let pairs = |&[queries, keys]: &[usize; 2]| match self.is_causal {
            true => queries * (keys + 1) / 2,
            false => queries * keys,
        };
        self.images.iter().map(pairs).sum::<usize>() * self.width
    }

    /// Values of the queries of a task.
    fn task(&self) -> usize {
        self.width * if self.is_causal { CAUSAL_TASK_QUERIES } else { TASK_QUERIES }
    }

    /// The keys and values of an image that the queries of its task of this number see.
    fn seen<'v, S>(&self, kv: &'v [S], task: usize) -> &'v [S] {
        match self.is_causal {
            true => &kv[..kv.len().min((task + 1) * 2 * self.task())],
            false => kv,
        }
    }

    /// What hides keys from the queries `q` of a task, if something does.
    fn hidden<S>(&self, q: &[S], kv: &[S]) -> Option<Hidden> {
        let (queries, keys) = (q.len() / self.width, kv.len() / 2 / self.width);
        self.is_causal.then(|| Hidden::new(queries, keys))
    }

    /// # Panics
    /// When lengths do not match.
    fn check<S>(&self, q: &[S], kv: &[S]) {
        assert!(self.width.is_multiple_of(self.heads), "heads divide the width");
        let [queries, keys]: [usize; 2] =
            from_fn(|of| self.images.iter().map(|image| image[of]).sum());
        assert_eq!(q.len(), queries * self.width, "queries");
        assert_eq!(kv.len(), keys * 2 * self.width, "keys and values");
        assert!(self.images.iter().all(|[_, keys]| *keys > 0), "an image without keys");
        let is_own = |&[queries, keys]: &[usize; 2]| queries == keys;
        assert!(!self.is_causal || self.images.iter().all(is_own), "keys of other tokens");
    }

    /// Columns of a head.
    fn columns(&self, head: usize) -> Range<usize> {
        let d = self.width / self.heads;
        head * d..(head + 1) * d
    }

    /// Buffers for the heads of an image with keys and values `kv`.
    fn head<T: Element, S>(&self, kv: &[S], with_gradients: bool) -> Head<T> {
        let (n, d) = (kv.len() / 2 / self.width, self.width / self.heads);
        Head::new([QUERIES, n, d], (d as f32).powf(-0.5), with_gradients)
    }

    /// Keys and values of a head.
    fn keys<'v, S>(
        &self,
        kv: &'v [S],
        own: &Range<usize>,
    ) -> impl ExactSizeIterator<Item = [&'v [S]; 2]> {
        let (width, own) = (self.width, own.clone());
        kv.chunks_exact(2 * width).map(move |row| [&row[own.clone()], &row[width..][own.clone()]])
    }

    /// The rows of every image, by its queries or, doubled, by its keys.
    fn split<'v, S>(&self, mut values: &'v [S], of: usize) -> Vec<&'v [S]> {
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
/// all images one after the other: `[queries, C]`, in the type of these.
///
/// # Panics
/// When lengths do not match, or an image has no keys.
pub fn forward<T: Element, S: Element>(
    q: &[S],
    kv: &[S],
    attention: &CrossAttention<'_>,
) -> Buffer<S> {
    attention.check(q, kv);
    let (width, size) = (attention.width, attention.task());
    let mut context = Buffer::<S>::uninit(q.len());
    let mut rest = &mut context[..];
    let mut tasks = Vec::new();
    for (q, kv) in attention.split(q, 0).into_iter().zip(attention.split(kv, 1)) {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(q.len());
        rest = others;
        let parts = q.chunks(size).zip(own.chunks_mut(size)).enumerate();
        tasks.extend(parts.map(|(task, (q, own))| (q, attention.seen(kv, task), own)));
    }
    profile::time("cross-attention forward", 2 * attention.macs(), || {
        tasks.into_par_iter().for_each(|(q, kv, context)| {
            let mut part = attention.head::<T, S>(kv, false);
            let hidden = attention.hidden(q, kv);
            for head in 0..attention.heads {
                let own = attention.columns(head);
                part.load_keys(attention.keys(kv, &own));
                let blocks = q.chunks(QUERIES * width).zip(context.chunks_mut(QUERIES * width));
                for (block, (q, context)) in blocks.enumerate() {
                    part.load_queries(q.chunks_exact(width).map(|row| &row[own.clone()]));
                    part.compute_weights(hidden.as_ref().map(|hidden| hidden.of_block(block)));
                    part.apply_weights();
                    for (from, to) in part.out().zip(context.chunks_exact_mut(width)) {
                        convert(from, &mut to[own.clone()]);
                    }
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
    let (width, size) = (attention.width, attention.task());
    let mut dq = buffer::uninit(q.len());
    let mut rest = &mut dq[..];
    let mut tasks = Vec::new();
    let images = attention.split(q, 0).into_iter().zip(attention.split(dcontext, 0));
    for (image, ((q, dcontext), kv)) in images.zip(attention.split(kv, 1)).enumerate() {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(q.len());
        rest = others;
        let parts = q.chunks(size).zip(dcontext.chunks(size)).zip(own.chunks_mut(size));
        tasks.extend(
            parts.enumerate().map(|(task, ((q, dcontext), dq))| {
                (image, attention.seen(kv, task), q, dcontext, dq)
            }),
        );
    }
    // Q K^T again, and the products of dV, dP, dQ and dK.
    let parts: Vec<(usize, Buffer<f32>)> =
        profile::time("cross-attention backward", 5 * attention.macs(), || {
            let tasks = tasks.into_par_iter().map(|(image, kv, q, dcontext, dq)| {
                let mut part = attention.head::<T, f32>(kv, true);
                let mut dkv = Buffer::<f32>::scratch(kv.len());
                let hidden = attention.hidden(q, kv);
                for head in 0..attention.heads {
                    let own = attention.columns(head);
                    part.load_keys(attention.keys(kv, &own));
                    let blocks = q.chunks(QUERIES * width).zip(dcontext.chunks(QUERIES * width));
                    let blocks = blocks.zip(dq.chunks_mut(QUERIES * width));
                    for (block, ((q, dcontext), dq)) in blocks.enumerate() {
                        part.load_queries(q.chunks_exact(width).map(|row| &row[own.clone()]));
                        let rows = dcontext.chunks_exact(width);
                        part.load_gradient(rows.map(|row| &row[own.clone()]));
                        let hidden = hidden.as_ref().map(|hidden| hidden.of_block(block));
                        part.compute_weights(hidden);
                        part.backward(None);
                        for (from, to) in part.dq().zip(dq.chunks_exact_mut(width)) {
                            to[own.clone()].copy_from_slice(from);
                        }
                    }
                    for ([dk, dv], to) in part.dk_and_dv().zip(dkv.chunks_exact_mut(2 * width)) {
                        to[own.clone()].copy_from_slice(dk);
                        to[width..][own.clone()].copy_from_slice(dv);
                    }
                }
                (image, dkv)
            });
            tasks.collect()
        });
    let mut dkv = buffer::zeroed(kv.len());
    let mut starts = vec![0];
    starts.extend(attention.images.iter().scan(0, |end, [_, keys]| {
        *end += keys * 2 * width;
        Some(*end)
    }));
    // In order of the tasks, whoever ran them.
    for (image, part) in parts {
        // Later keys than a task's have no gradient from it.
        add(&part[..], &mut dkv[starts[image]..][..part.len()]);
    }
    [dq, dkv]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{self, Bf16, widened};
    use crate::isa::tests::under_each;
    use crate::testing::{assert_gradient, assert_near, dot, normal, rounded, wide};
    use proptest::prelude::*;

    /// A head's part of row `row` of values `width` wide.
    fn part(values: &[f64], width: usize, row: usize, first: usize, d: usize) -> &[f64] {
        &values[row * width + first..][..d]
    }

    /// Output and gradients of queries, keys and values in f64.
    fn definition([q, kv, dcontext]: [&[f64]; 3], attention: &CrossAttention<'_>) -> [Vec<f64>; 3] {
        let CrossAttention { width, heads, is_causal, .. } = *attention;
        let d = width / heads;
        let scale = (d as f64).powf(-0.5);
        let [mut context, mut dq, mut dkv] = [q.len(), q.len(), kv.len()].map(|len| vec![0.0; len]);
        let (mut query, mut key) = (0, 0);
        for &[queries, keys] in attention.images {
            for pair in 0..heads * queries {
                let keys = if is_causal { pair % queries + 1 } else { keys };
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
        let attention = CrossAttention { images, width: heads * d, heads, is_causal: false };
        check_attention::<T>(&attention, within);
    }

    fn check_attention<T: Element>(attention: &CrossAttention<'_>, within: f64) {
        let CrossAttention { images, heads, is_causal, .. } = *attention;
        let d = attention.width / heads;
        let [queries, keys]: [usize; 2] = from_fn(|of| images.iter().map(|image| image[of]).sum());
        let q = normal(queries * attention.width, 1);
        let kv = normal(keys * 2 * attention.width, 2);
        let dcontext = normal(q.len(), 3);
        let values = [&q, &kv, &dcontext].map(|values| rounded::<T>(values));
        let [context, dq, dkv] = definition(values.each_ref().map(Vec::as_slice), attention);
        let near = |name: &str, found: &[f32], expected: &[f64]| {
            let kind = if is_causal { ", causal" } else { "" };
            let what = format!("{name}: {} {images:?}, {heads} heads of {d}{kind}", T::NAME);
            assert_near(&what, found, expected, within);
        };
        near("context", &forward::<T, f32>(&q, &kv, attention), &context);
        // What is stored in bf16 is the same, rounded.
        let stored = [&q, &kv].map(|values| element::rounded(values));
        let [wide_q, wide_kv] = stored.each_ref().map(|values| widened(values));
        let expected = element::rounded(&forward::<T, f32>(&wide_q, &wide_kv, attention));
        assert!(forward::<T, Bf16>(&stored[0], &stored[1], attention)[..] == expected[..]);
        let found = backward::<T>(&q, &kv, attention, &dcontext);
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

    /// Tokens that see those before them: a block, a task and several tasks of them, and whole ones.
    #[test]
    fn causal() {
        for (tokens, heads, d) in [
            (1, 1, 3),
            (QUERIES - 3, 2, 5),
            (CAUSAL_TASK_QUERIES, 2, 16),
            (2 * CAUSAL_TASK_QUERIES + QUERIES + 7, 2, 9),
        ] {
            let images = [[tokens; 2], [3, 3], [tokens; 2]];
            let attention =
                CrossAttention { images: &images, width: heads * d, heads, is_causal: true };
            under_each(|_| {
                check_attention::<f32>(&attention, 5e-6);
                check_attention::<Bf16>(&attention, 0.02);
            });
        }
    }

    /// What a token gets does not depend on later ones, to the bit, whatever these are.
    #[test]
    fn nothing_comes_from_later_tokens() {
        let (tokens, width) = (CAUSAL_TASK_QUERIES + 9, 6);
        let images = [[tokens; 2]];
        let attention = CrossAttention { images: &images, width, heads: 2, is_causal: true };
        let (q, mut kv) = (normal(tokens * width, 1), normal(tokens * 2 * width, 2));
        under_each(|_| {
            let before = forward::<f32, f32>(&q, &kv, &attention);
            kv[(tokens - 4) * 2 * width..].fill(7.5);
            let after = forward::<f32, f32>(&q, &kv, &attention);
            assert_eq!(before[..(tokens - 4) * width], after[..(tokens - 4) * width]);
            kv.copy_from_slice(&normal(tokens * 2 * width, 2));
        });
    }

    #[test]
    #[should_panic(expected = "keys of other tokens")]
    fn causal_attention_is_to_the_same_tokens() {
        let attention = CrossAttention { images: &[[1, 2]], width: 2, heads: 1, is_causal: true };
        forward::<f32, f32>(&[0.0; 2], &[0.0; 8], &attention);
    }

    /// The definition itself.
    #[test]
    fn the_definition_has_its_gradients() {
        for (images, is_causal) in [([[4, 3], [2, 5]], false), ([[5, 5], [3, 3]], true)] {
            let attention = CrossAttention { images: &images, width: 6, heads: 2, is_causal };
            let [queries, keys]: [usize; 2] =
                from_fn(|of| images.iter().map(|image| image[of]).sum());
            let (q, kv) = (wide(&normal(queries * 6, 1)), wide(&normal(keys * 12, 2)));
            let dcontext = wide(&normal(queries * 6, 3));
            let [_, dq, dkv] = definition([&q, &kv, &dcontext], &attention);
            let loss = |q: &[f64], kv: &[f64]| {
                let [context, ..] = definition([q, kv, &dcontext], &attention);
                dot(&context, &dcontext)
            };
            assert_gradient(|q| loss(q, &kv), &q, &dq);
            assert_gradient(|kv| loss(&q, kv), &kv, &dkv);
        }
    }
}
