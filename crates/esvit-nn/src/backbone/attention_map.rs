//! Attention weights of a block, for figures and statistics.

use std::ops::Range;

use super::AttentionLayout;
use crate::ops::Segment;
use crate::tensor::Tensor;

/// Attention of a block: queries and keys, from which all of the weights follow or some of them.
#[derive(Debug, Clone)]
pub struct AttentionMap {
    /// What queries and keys are.
    pub layout: AttentionLayout,
    /// `[B * groups, heads, queries, depth]`, scaled: within an image, groups in order.
    queries: Tensor,
    /// `[B * groups, heads, keys, depth]`.
    keys: Tensor,
    /// `[1, heads, queries, keys]`.
    bias: Option<Tensor>,
}

impl AttentionMap {
    /// Of queries and keys, each `[B * groups, tokens, C]`, whose products are multiplied by `scale`.
    pub(super) fn new(
        layout: AttentionLayout,
        [queries, keys]: [Tensor; 2],
        heads: usize,
        scale: f64,
    ) -> Self {
        let queries = by_head(queries, heads) * scale;
        Self { layout, queries, keys: by_head(keys, heads), bias: None }
    }

    /// Of whole images of one size: `qkv [tokens of all images, 3 C]`.
    pub(super) fn whole(segment: Segment, qkv: Tensor, heads: usize) -> Self {
        let columns = qkv.shape()[1];
        let qkv = qkv.reshape([segment.images, segment.tokens(), columns]);
        let layout = AttentionLayout::whole(segment);
        Self::new(layout, queries_and_keys(&qkv), heads, scale(columns / 3, heads))
    }

    /// The same with a bias of every query and key, `[1, heads, queries, keys]`.
    #[must_use]
    pub(super) fn with_bias(self, bias: Option<Tensor>) -> Self {
        Self { bias, ..self }
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.queries.shape()[1]
    }

    /// The weights, `[B * groups, heads, queries, keys]`: within an image, groups in order.
    pub fn weights(&self) -> Tensor {
        self.part(0..self.heads(), 0..self.layout.queries())
    }

    /// The weights of some heads and of some queries of every group, in the same order.
    ///
    /// # Panics
    /// When there are no such heads or queries.
    pub fn part(&self, heads: Range<usize>, queries: Range<usize>) -> Tensor {
        let of_heads = |x: &Tensor| narrowed(x.clone(), 1, &heads);
        let own = narrowed(of_heads(&self.queries), 2, &queries);
        let mut logits = own.matmul(of_heads(&self.keys).transpose());
        if let Some(bias) = &self.bias {
            logits = logits + narrowed(of_heads(bias), 2, &queries);
        }
        if let Some((mask, rows)) = self.layout.mask() {
            let [groups, heads, count, keys] = logits.dims();
            let of_image = mask.len() / rows / keys;
            let mask = Tensor::new(mask, [1, of_image, 1, rows, keys], &logits.device());
            let mask = if rows == 1 { mask } else { narrowed(mask, 3, &queries) };
            let by_image = logits.reshape([groups / of_image, of_image, heads, count, keys]);
            logits = (by_image + mask).reshape([groups, heads, count, keys]);
        }
        logits.softmax(3)
    }

    /// Ranges of all queries of a group, so that [`AttentionMap::part`] has at most `most` weights of
    /// `heads` heads, or those of one query. Windows are not cut.
    pub fn slices(&self, heads: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
        let (groups, queries) = (self.queries.shape()[0], self.layout.queries());
        let of_query = groups * heads * self.layout.keys();
        let rows = match self.layout.window() {
            Some(_) => queries,
            None => (most / of_query.max(1)).clamp(1, queries),
        };
        (0..queries).step_by(rows).map(move |start| start..queries.min(start + rows))
    }
}

/// Queries and keys, each `[n, tokens, C]`, of `qkv [n, tokens, 3 C]`.
pub(super) fn queries_and_keys(qkv: &Tensor) -> [Tensor; 2] {
    let width = qkv.shape()[2] / 3;
    [0, 1].map(|part| qkv.clone().narrow(2, part * width, width))
}

/// What products of queries and keys are multiplied by, as a rule: that of the width of a head.
pub(super) fn scale(width: usize, heads: usize) -> f64 {
    ((width / heads) as f64).powf(-0.5)
}

/// Heads apart: `[n, heads, tokens, depth]` of `[n, tokens, heads * depth]`.
fn by_head(x: Tensor, heads: usize) -> Tensor {
    let [n, tokens, width] = x.dims();
    x.reshape([n, tokens, heads, width / heads]).permute(&[0, 2, 1, 3])
}

/// A range of an axis.
fn narrowed(x: Tensor, axis: usize, range: &Range<usize>) -> Tensor {
    if range.len() == x.shape()[axis] { x } else { x.narrow(axis, range.start, range.len()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::Device;
    use crate::ops::{Border, NeighborMap, Neighbors, WindowMap};
    use esvit_testing::hashed;

    /// Two heads of three values each.
    const HEADS: usize = 2;
    const WIDTH: usize = 6;

    fn tensor<const D: usize>(stream: u32, shape: [usize; D]) -> Tensor {
        Tensor::new(hashed(stream, shape.iter().product()), shape, &Device::Cpu)
    }

    fn map(layout: AttentionLayout, groups: usize) -> AttentionMap {
        let (queries, keys) = (layout.queries(), layout.keys());
        let tokens =
            [(1, queries), (2, keys)].map(|(stream, count)| tensor(stream, [groups, count, WIDTH]));
        let bias = tensor(3, [1, HEADS, queries, keys]);
        AttentionMap::new(layout, tokens, HEADS, 0.7).with_bias(Some(bias))
    }

    /// Two images of two windows in plain loops: products, bias, mask and softmax.
    #[test]
    fn weights_by_their_definition() {
        let windows = Arc::new(WindowMap::new([2, 4], 2, 1));
        let mask = windows.mask.clone().unwrap();
        let map = map(AttentionLayout::Windows(windows), 4);
        let [queries, keys] = [1, 2].map(|stream| tensor(stream, [4, 4, WIDTH]).to_vec::<f32>());
        let bias = tensor(3, [1, HEADS, 4, 4]).to_vec::<f32>();
        let found = map.weights();
        assert_eq!(found.dims(), [4, HEADS, 4, 4]);
        for (row, weights) in found.to_vec::<f32>().chunks_exact(4).enumerate() {
            let (group, head, query) = (row / 8, row / 4 % 2, row % 4);
            let exponentials = [0, 1, 2, 3].map(|key: usize| {
                let channel = |tokens: &[f32], token: usize, at: usize| {
                    f64::from(tokens[(group * 4 + token) * WIDTH + 3 * head + at])
                };
                let product: f64 =
                    (0..3).map(|at| channel(&queries, query, at) * channel(&keys, key, at)).sum();
                let added = bias[(head * 4 + query) * 4 + key];
                let hidden = mask[((group % 2) * 4 + query) * 4 + key];
                (0.7 * product + f64::from(added) + f64::from(hidden)).exp()
            });
            let sum: f64 = exponentials.iter().sum();
            for (found, expected) in weights.iter().zip(exponentials) {
                let difference = f64::from(*found) - expected / sum;
                assert!(difference.abs() < 1e-6, "{row}: {found}");
            }
        }
    }

    /// Some of the weights are the same bits, with masks by query and by window, too.
    #[test]
    fn parts_are_those_of_all() {
        let neighbors = |border| Arc::new(NeighborMap::new([3, 5], 2, Neighbors::All, border));
        let layouts = [
            (AttentionLayout::Whole { map: [3, 4], prefix: 1 }, 2),
            (AttentionLayout::Reduced { map: [4, 4], prefix: 1, ratio: 2 }, 1),
            (AttentionLayout::Windows(Arc::new(WindowMap::new([4, 6], 2, 1))), 12),
            (AttentionLayout::Neighbors { windows: neighbors(Border::Closed), prefix: 1 }, 6),
            (AttentionLayout::Neighbors { windows: neighbors(Border::Sliding), prefix: 0 }, 12),
        ];
        for (layout, groups) in layouts {
            let what = format!("{layout:?}");
            let map = map(layout, groups);
            assert_eq!(map.heads(), HEADS);
            let expected = map.weights().narrow(1, 1, 1).narrow(2, 1, 2).to_vec::<f32>();
            let found = map.part(1..2, 1..3);
            assert_eq!(found.dims(), [groups, 1, 2, map.layout.keys()], "{what}");
            assert_eq!(found.to_vec::<f32>(), expected, "{what}");
        }
    }

    /// Two images of 13 tokens with two heads have 52 weights a query. Windows have one slice.
    #[test]
    fn slices_hold_few_weights() {
        let map = map(AttentionLayout::Whole { map: [3, 4], prefix: 1 }, 2);
        let slices = |heads, most| map.slices(heads, most).collect::<Vec<_>>();
        assert_eq!(slices(HEADS, 5 * 52), [0..5, 5..10, 10..13]);
        assert_eq!(slices(1, 5 * 52 + 25), [0..10, 10..13]);
        assert_eq!(slices(HEADS, 51).len(), 13);
        let all = |queries: usize| Vec::from_iter(std::iter::once(0..queries));
        assert_eq!(slices(HEADS, 1 << 20), all(13));
        let windows = AttentionLayout::Windows(Arc::new(WindowMap::new([4, 4], 4, 0)));
        assert_eq!(self::map(windows, 1).slices(HEADS, 1).collect::<Vec<_>>(), all(16));
    }
}
