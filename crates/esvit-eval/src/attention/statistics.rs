//! Attention statistics over many images: all blocks, heads, windows and queries.

use std::ops::Range;

use esvit_kernels::pool;
use esvit_nn::backbone::{AttentionLayout, AttentionMap, Key, NoAttention, Stage};
use esvit_nn::{Backbone, Params, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::measure::{entropy, jensen_shannon};
use super::{AttentionError, BlockPosition, MOST_WEIGHTS};
use crate::labeled::LabeledSet;
use crate::probe::MeanStd;
use esvit_model::PretrainedBackbone;
use esvit_model::features::{Features, SkippedImage};

/// Images processed at a time, which bounds the memory for attention weights.
const BATCH: usize = 4;

/// Attention statistics of one block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockStatistics {
    /// Position of the block.
    #[serde(flatten)]
    pub position: BlockPosition,
    /// Height and width of its token map.
    pub map: [usize; 2],
    /// Window size in tokens; `None` where all tokens see each other.
    pub window: Option<usize>,
    /// Cyclic shift of the windows in tokens.
    pub shift: Option<usize>,
    /// Mean entropy of the heads, in bits.
    pub entropy: f64,
    /// Entropy of uniform attention in bits: mean over queries of the log2 of the number of visible
    /// keys, including padding and tokens before those of the map.
    pub largest_entropy: f64,
    /// Mean entropy divided by the largest; `None` if every query has one key only.
    pub share: Option<f64>,
    /// Mean Jensen-Shannon divergence of pairs of heads for the same query, in bits (0 equal, 1
    /// disjoint), over pairs, queries and images. `None` for one head.
    pub diversity: Option<f64>,
    /// Mean share of the attention to padding.
    pub padding_mass: f64,
    /// Mean share of the attention to tokens before those of the map.
    pub prefix_mass: f64,
    /// Heads by index.
    pub heads: Vec<HeadStatistics>,
}

/// Attention statistics of one head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadStatistics {
    /// Index of the head.
    pub head: usize,
    /// Mean entropy over queries and images, in bits.
    pub entropy: f64,
    /// Standard deviation over images of the per-image mean; `None` for one image.
    pub entropy_std: Option<f64>,
    /// Mean entropy divided by the largest; `None` if every query has one key only.
    pub share: Option<f64>,
}

/// Statistics, and the images that were left out.
#[derive(Debug)]
pub struct AttentionStatistics {
    /// One entry per block; empty if no image could be read.
    pub blocks: Vec<BlockStatistics>,
    /// Number of images measured.
    pub images: usize,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// Attention statistics over the images of a set, preprocessed as in evaluations.
/// Queries are all tokens of the map; padding tokens are no queries, since their outputs are
/// dropped. `done` is called with the number of images processed in each batch.
///
/// # Errors
/// [`AttentionError`] if the network has none, or it is not finite.
pub fn statistics(
    backbone: &PretrainedBackbone,
    set: &LabeledSet,
    done: impl FnMut(usize),
) -> Result<AttentionStatistics, AttentionError> {
    let PretrainedBackbone { network, params, preprocess, .. } = backbone;
    let size = preprocess.size();
    let device = params.device();
    let mut layouts: Vec<Layout> = Vec::new();
    let mut refused = None;
    let forward = |pixels: Vec<f32>, _| {
        let mut rows = Vec::new();
        for pixels in pixels.chunks(BATCH * 3 * size * size) {
            let count = pixels.len() / (3 * size * size);
            let images = Tensor::new(pixels.to_vec(), [count, 3, size, size], &device);
            match pool::run(|| measure(&**network, params, images, count)) {
                Ok((found, measured)) => {
                    layouts = found;
                    rows.extend(measured);
                }
                Err(error) => refused = Some(error),
            }
        }
        rows
    };
    let Features { rows, images, left_out } = set.features(preprocess, forward, done)?;
    if let Some(error) = refused {
        return Err(error.into());
    }
    let rows: Vec<&[f32]> = rows.values.chunks_exact(rows.width.max(1)).collect();
    let blocks = blocks(&network.stages(), &layouts, &rows);
    Ok(AttentionStatistics { blocks, images: images.len(), left_out })
}

/// Keys and number of heads of a block, the same for all images.
type Layout = (AttentionLayout, usize);

/// See [`BlockStatistics::largest_entropy`].
fn largest_entropy(layout: &AttentionLayout) -> f64 {
    let logs = (0..layout.tokens()).map(|token| {
        let visible = layout.visible(layout.query(token));
        (visible.into_iter().filter(|&key| key).count() as f64).log2()
    });
    logs.sum::<f64>() / layout.tokens() as f64
}

/// Layouts of all blocks, and the values of all blocks for each of `count` images.
fn measure(
    network: &dyn Backbone,
    params: &Params,
    images: Tensor,
    count: usize,
) -> Result<(Vec<Layout>, Vec<f32>), NoAttention> {
    let mut layouts = Vec::new();
    let mut rows = vec![Vec::new(); count];
    let blocks = 0..network.blocks();
    network.attention(params, images, blocks, &mut |_, map: AttentionMap| {
        let (heads, layout) = (map.heads(), &map.layout);
        let mut sums = vec![Sums::new(heads); count];
        for queries in map.slices(heads, MOST_WEIGHTS) {
            let weights = map.part(0..heads, queries.clone()).to_vec::<f32>();
            let of_image = weights.len() / count;
            sums.par_iter_mut()
                .zip(weights.par_chunks_exact(of_image))
                .for_each(|(sums, weights)| sums.add(weights, &queries, layout));
        }
        rows.iter_mut().zip(&sums).for_each(|(row, sums)| row.extend(sums.means(layout)));
        layouts.push((map.layout, heads));
    })?;
    Ok((layouts, rows.concat()))
}

/// Sums over the queries of one image.
#[derive(Debug, Clone)]
struct Sums {
    /// By head.
    entropies: Vec<f64>,
    /// Of all pairs of heads.
    divergence: f64,
    /// Attention of all heads to padding, and to tokens before those of the map.
    padding: f64,
    prefix: f64,
}

impl Sums {
    fn new(heads: usize) -> Self {
        Self { entropies: vec![0.0; heads], divergence: 0.0, padding: 0.0, prefix: 0.0 }
    }

    /// Adds some queries of every group, given their weights `[groups, heads, queries, keys]`.
    fn add(&mut self, weights: &[f32], queries: &Range<usize>, layout: &AttentionLayout) {
        let (heads, count) = (self.entropies.len(), layout.keys());
        let mut query_attention = vec![0.0; heads];
        let mut keys = (usize::MAX, Vec::new());
        let places = (0..layout.tokens()).map(|token| layout.query(token));
        for [group, query] in places.filter(|[_, query]| queries.contains(query)) {
            if keys.0 != group {
                keys = (group, layout.group_keys(group));
            }
            let row = |head: usize| {
                let row = (group * heads + head) * queries.len() + query - queries.start;
                &weights[row * count..][..count]
            };
            for (head, own) in query_attention.iter_mut().enumerate() {
                *own = entropy(row(head));
                self.entropies[head] += *own;
                for (&weight, key) in row(head).iter().zip(&keys.1) {
                    match key {
                        Key::Cell(_) | Key::Square(_) => {}
                        Key::Padding => self.padding += f64::from(weight),
                        Key::Prefix(_) => self.prefix += f64::from(weight),
                    }
                }
            }
            for first in 0..heads {
                for second in first + 1..heads {
                    let pair = [query_attention[first], query_attention[second]];
                    self.divergence += jensen_shannon([row(first), row(second)], pair);
                }
            }
        }
    }

    /// Entropy of each head, diversity, and attention to padding and to tokens before those of the map:
    /// means over all queries.
    fn means(&self, layout: &AttentionLayout) -> impl Iterator<Item = f32> {
        let (heads, tokens) = (self.entropies.len(), layout.tokens() as f64);
        let pairs = (heads * (heads - 1) / 2).max(1) as f64;
        let entropies = self.entropies.iter().map(move |sum| sum / tokens);
        let beside = [self.padding, self.prefix].map(|mass| mass / tokens / heads as f64);
        let others = [self.divergence / tokens / pairs, beside[0], beside[1]];
        entropies.chain(others).map(|value| value as f32)
    }
}

/// Statistics of all blocks from the values of all images.
fn blocks(stages: &[Stage], layouts: &[Layout], rows: &[&[f32]]) -> Vec<BlockStatistics> {
    let mut at = 0;
    let mut blocks = Vec::new();
    for (block, &(ref layout, count)) in layouts.iter().enumerate() {
        let largest_entropy = largest_entropy(layout);
        let column = |number: usize| {
            let values: Vec<f64> = rows.iter().map(|row| f64::from(row[at + number])).collect();
            MeanStd::of(&values)
        };
        let share = |entropy: f64| (largest_entropy > 0.0).then(|| entropy / largest_entropy);
        let heads: Vec<HeadStatistics> = (0..count)
            .map(|head| {
                let MeanStd { mean, std } = column(head);
                HeadStatistics { head, entropy: mean, entropy_std: std, share: share(mean) }
            })
            .collect();
        let entropy = heads.iter().map(|head| head.entropy).sum::<f64>() / heads.len() as f64;
        blocks.push(BlockStatistics {
            position: BlockPosition::of(stages, block).expect("a block of the network"),
            map: layout.map(),
            window: layout.window().map(|[side, _]| side),
            shift: layout.window().map(|[_, shift]| shift),
            entropy,
            largest_entropy,
            share: share(entropy),
            diversity: (count > 1).then(|| column(count).mean),
            padding_mass: column(count + 1).mean,
            prefix_mass: column(count + 2).mean,
            heads,
        });
        // The entropy of each head, diversity, padding, prefix.
        at += count + 3;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    use esvit_data::{Image, InMemory, Preprocess, ViewsConfig};
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_nn::ops::{Border, NeighborMap, Neighbors, WindowMap};
    use esvit_testing::{tiny_swin, untrained};

    /// The means of one image's weights, `[groups, heads, queries, keys]`.
    fn image_statistics(weights: &[f32], heads: usize, layout: &AttentionLayout) -> Vec<f32> {
        let mut sums = Sums::new(heads);
        sums.add(weights, &(0..layout.queries()), layout);
        sums.means(layout).collect()
    }

    fn measured(img_size: usize, crop: u32, images: u32) -> AttentionStatistics {
        let config = SwinConfig {
            img_size,
            embed_dim: 16,
            depths: vec![2, 1],
            num_heads: vec![1, 4],
            ..tiny_swin()
        };
        let mut backbone = untrained(&config, 3, 0);
        backbone.preprocess = Preprocess::new(crop, 0, &ViewsConfig::default());
        let mut source = InMemory::new(Vec::new());
        for number in 0..images {
            let pixels = (0..40u32 * 40 * 3)
                .map(|i| ((i + 7919 * number).wrapping_mul(2_654_435_761) >> 24) as u8);
            source.push(number.to_string(), None, Image::new(40, 40, pixels.collect()).unwrap());
        }
        statistics(&backbone, &LabeledSet::all(Arc::new(source)), |_| ()).unwrap()
    }

    /// All windows and queries take part: the number for a shifted block is the mean over queries
    /// that see 16, 8 and 4 keys.
    #[test]
    fn the_largest_entropy_is_that_of_the_visible_keys() {
        let blocks = measured(32, 32, 3).blocks;
        let maps: Vec<_> =
            blocks.iter().map(|b| (b.map, b.window.unwrap(), b.shift.unwrap())).collect();
        assert_eq!(maps, [([8, 8], 4, 0), ([8, 8], 4, 2), ([4, 4], 4, 0)]);
        let largest: Vec<f64> = blocks.iter().map(|b| b.largest_entropy).collect();
        // Of 64 tokens 16 are in the middle window, 32 at an edge and 16 in a corner.
        assert_eq!(largest, [4.0, (16.0 * 4.0 + 32.0 * 3.0 + 16.0 * 2.0) / 64.0, 4.0]);
        for block in &blocks {
            let share = block.share.unwrap();
            // Untrained heads look nearly everywhere.
            assert!(share > 0.9 && share <= 1.0 + 1e-6, "{block:?}");
            assert_eq!(block.padding_mass, 0.0);
            assert!(block.heads.iter().all(|head| head.entropy_std.unwrap() >= 0.0));
        }
        assert_eq!(blocks[0].diversity, None);
        assert!((0.0..0.1).contains(&blocks[2].diversity.unwrap()));
    }

    #[test]
    fn padding_takes_part() {
        // Maps of 6 and 3 in windows of 4.
        let blocks = measured(32, 24, 1).blocks;
        assert_eq!(blocks[2].map, [3, 3]);
        assert_eq!(blocks[2].largest_entropy, 4.0);
        assert!((blocks[2].padding_mass - 7.0 / 16.0).abs() < 0.1, "{:?}", blocks[2]);
        assert_eq!(blocks[0].heads[0].entropy_std, None);
    }

    #[test]
    fn the_number_of_images_together_does_not_matter() {
        let (one, five) = (measured(32, 32, 1), measured(32, 32, 5));
        assert_eq!((one.images, five.images), (1, 5));
        assert_eq!(measured(32, 32, 5).blocks, five.blocks);
        assert!(measured(32, 32, 0).blocks.is_empty());
    }

    #[test]
    fn means_over_queries_by_hand() {
        // One window of two tokens: a map of 1 x 2 in windows of 2, half of it padding.
        let windows = AttentionLayout::Windows(Arc::new(WindowMap::new([1, 2], 2, 0)));
        let even = [0.25; 4];
        let sure = [1.0, 0.0, 0.0, 0.0];
        let unused = [9.0; 4];
        // Queries 0 and 1 are tokens, 2 and 3 padding, which counts as no query.
        let head = |a: [f32; 4], b: [f32; 4]| [a, b, unused, unused].concat();
        let weights = [head(even, even), head(sure, even)].concat();
        let found = image_statistics(&weights, 2, &windows);
        let divergence = super::super::jensen_shannon([&even, &sure], [2.0, 0.0]) / 2.0;
        assert_eq!(found, [2.0, 1.0, divergence as f32, 0.375, 0.0]);
    }

    /// The first of three tokens is before those of the map: it is a key and no query.
    #[test]
    fn tokens_before_the_map_are_keys_alone() {
        let layout = AttentionLayout::Whole { map: [1, 2], prefix: 1 };
        let weights = [[9.0; 3], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]].concat();
        assert_eq!(image_statistics(&weights, 1, &layout), [0.5, 0.0, 0.0, 0.75]);
        assert!((largest_entropy(&layout) - 3f64.log2()).abs() < 1e-12);
    }

    /// Queries may be added a few at a time.
    #[test]
    fn some_queries_after_others() {
        let layout = AttentionLayout::Whole { map: [1, 2], prefix: 1 };
        let [first, second] = [[[9.0; 3], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.25; 3]; 3]];
        let all = [first, second].concat().concat();
        let mut sums = Sums::new(2);
        for queries in [0..2, 2..3] {
            let weights = [&first[queries.clone()], &second[queries.clone()]].concat().concat();
            sums.add(&weights, &queries, &layout);
        }
        let found: Vec<f32> = sums.means(&layout).collect();
        assert_eq!(found, image_statistics(&all, 2, &layout));
        assert!(found.iter().all(|value| *value >= 0.0) && found[0] == 0.5, "{found:?}");
    }

    /// Ten tokens attend to the two squares of a coarser map.
    #[test]
    fn keys_of_a_coarser_map() {
        let layout = AttentionLayout::Reduced { map: [2, 3], prefix: 0, ratio: 1 };
        assert_eq!(largest_entropy(&layout), 6f64.log2());
        let layout = AttentionLayout::Reduced { map: [2, 5], prefix: 0, ratio: 2 };
        let weights = [[0.5, 0.5], [1.0, 0.0]].map(|row| [row; 5].concat()).concat();
        assert_eq!(image_statistics(&weights, 1, &layout), [0.5, 0.0, 0.0, 0.0]);
        assert_eq!(largest_entropy(&layout), 1.0);
    }

    /// Two windows of a token that see each other and one token before the map: one query a group, ten keys.
    #[test]
    fn windows_may_have_more_keys_than_queries() {
        let windows = NeighborMap::new([1, 2], 1, Neighbors::All, Border::Closed);
        let layout = AttentionLayout::Neighbors { windows: Arc::new(windows), prefix: 1 };
        let mut weights = vec![0.0; 2 * 10];
        // The token before the map, the window itself, that on the right.
        (weights[0], weights[1 + 4], weights[1 + 5]) = (0.5, 0.25, 0.25);
        // The window on the left, the window itself.
        (weights[10 + 1 + 3], weights[10 + 1 + 4]) = (0.5, 0.5);
        assert_eq!(image_statistics(&weights, 1, &layout), [1.25, 0.0, 0.0, 0.25]);
        assert!((largest_entropy(&layout) - 3f64.log2()).abs() < 1e-12);
    }

    /// Three heads make three pairs.
    #[test]
    fn diversity_is_a_mean_over_pairs_of_heads() {
        let windows = AttentionLayout::Windows(Arc::new(WindowMap::new([2, 2], 2, 0)));
        let [even, first, last] = [[0.25; 4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
        let weights = [even, first, last].map(|row| [row; 4].concat()).concat();
        let found = image_statistics(&weights, 3, &windows);
        let apart = super::super::jensen_shannon([&even, &first], [2.0, 0.0]);
        let diversity = ((2.0 * apart + 1.0) / 3.0) as f32;
        assert_eq!(found, [2.0, 0.0, 0.0, diversity, 0.0, 0.0]);
    }

    #[test]
    fn deviations_are_those_of_a_sample() {
        assert_eq!(MeanStd::of(&[1.0, 3.0]), MeanStd { mean: 2.0, std: Some(2f64.sqrt()) });
        assert_eq!(MeanStd::of(&[5.0]), MeanStd { mean: 5.0, std: None });
    }
}
