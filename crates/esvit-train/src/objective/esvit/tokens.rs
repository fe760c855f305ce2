//! A random subset of an image's tokens for the region task, whose cost grows with their number squared.

use esvit_kernels::rng::Rng;
use esvit_nn::backbone::RowFeatures;
use esvit_nn::ops::Segment;

/// RNG purpose of the subsets.
const TOKENS_PURPOSE: u64 = 0x70CE;

/// `count` of `tokens` tokens, in ascending order, or all if there are no more: those of a view of an image
/// in a step. They depend on nothing else, so not on how a step is cut into passes and processes.
pub(super) fn subset(
    seed: u64,
    [step, sample, view]: [u64; 3],
    tokens: usize,
    count: usize,
) -> Vec<usize> {
    Rng::for_purpose(seed, TOKENS_PURPOSE, [step, sample, view]).subset(tokens, count)
}

/// Features with `count` tokens of every image of every view at most: [`subset`] for views from `first` on,
/// of the images `samples`.
pub(super) fn sampled(
    features: RowFeatures,
    count: usize,
    (seed, step): (u64, u64),
    first: usize,
    samples: &[u64],
) -> RowFeatures {
    let per_view = features.tokens_per_view(samples.len());
    let (mut rows, mut start) = (Vec::new(), 0);
    for (view, tokens) in (first as u64..).zip(per_view) {
        for &sample in samples {
            let subset = subset(seed, [step, sample, view], tokens, count);
            rows.extend(subset.into_iter().map(|token| (start + token) as i32));
            start += tokens;
        }
    }
    let RowFeatures { view, region, segments } = features;
    let reduced = |segment: Segment| Segment::new(segment.images, [1, segment.tokens().min(count)]);
    let segments = segments.into_iter().map(reduced).collect();
    RowFeatures { view, region: region.index_select(0, rows), segments }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::{Device, Tensor};

    #[test]
    fn the_same_numbers_in_every_release() {
        // By Philox 4x64-10 written in another language.
        assert_eq!(subset(3, [5, 7, 1], 16, 4), [4, 5, 8, 9]);
        let all_but_one = subset(3, [5, 7, 1], 16, 15);
        assert_eq!((all_but_one.len(), all_but_one.contains(&13)), (15, false));
    }

    /// Every part of the place has draws of its own; with as many as there are, all take part.
    #[test]
    fn subsets_by_place() {
        let of = |seed, place| subset(seed, place, 49, 12);
        let first = of(3, [5, 7, 1]);
        assert_eq!(of(3, [5, 7, 1]), first);
        for other in [of(4, [5, 7, 1]), of(3, [6, 7, 1]), of(3, [5, 8, 1]), of(3, [5, 7, 2])] {
            assert_ne!(other, first);
            assert_eq!(other.len(), 12);
            assert!(other.windows(2).all(|pair| pair[0] < pair[1]), "{other:?}");
        }
        for count in [9, 10, 1000] {
            assert_eq!(subset(3, [5, 7, 1], 9, count), (0..9).collect::<Vec<_>>());
        }
    }

    /// Two views of four tokens and one of two, of two images, by the rows that each token has.
    #[test]
    fn rows_of_the_subsets() {
        let tensor = |values: Vec<f32>, rows| Tensor::new(values, [rows, 1], &Device::Cpu);
        let features = RowFeatures {
            view: tensor((0..6).map(|row| row as f32).collect(), 6),
            region: tensor((0..20).map(|row| row as f32).collect(), 20),
            segments: vec![Segment::new(4, [2, 2]), Segment::new(2, [1, 2])],
        };
        let (samples, first) = ([70, 9], 3);
        let found = sampled(features.clone(), 3, (1, 2), first, &samples);
        let mut expected = Vec::new();
        for (view, start, tokens) in [(3, 0, 4), (4, 8, 4), (5, 16, 2)] {
            for (image, &sample) in samples.iter().enumerate() {
                for token in subset(1, [2, sample, view], tokens, 3) {
                    expected.push((start + image * tokens + token) as f32);
                }
            }
        }
        assert_eq!(found.region.to_vec::<f32>(), expected);
        assert_eq!(found.tokens_per_view(2), [3, 3, 2]);
        assert_eq!(found.view.to_vec::<f32>(), features.view.to_vec::<f32>());
        let all = sampled(features.clone(), 4, (1, 2), first, &samples);
        assert_eq!(all.region.to_vec::<f32>(), features.region.to_vec::<f32>());
    }
}
