//! Measures correspondence over the images of a source.

use esvit_data::{Image, Preprocess};
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::{ForwardCtx, Tensor};
use rayon::prelude::*;

use super::score::{Scores, Summary};
use super::{CorrespondenceError, Grid, View, match_cells};
use crate::labeled::LabeledSet;
use esvit_model::PretrainedBackbone;
use esvit_model::features::{NotFinite, SkippedImage, first_not_finite};

/// Images per forward pass.
const BATCH: usize = 32;
/// RNG purpose of the views.
const VIEWS: u64 = u64::from_be_bytes(*b"cell-map");

/// How the two views of an image are made. The second is always color-jittered with probability 0.8
/// and turned gray.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Geometry {
    /// The center crop and its mirror image, as in the paper.
    Mirror,
    /// Two random crops, each mirrored with probability 0.5.
    Crops {
        /// Range of the area of a crop, as shares of the image.
        scale: [f64; 2],
    },
}

/// The evaluation protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    /// The two views.
    pub geometry: Geometry,
    /// Maximum number of pairs measured per image, most similar first.
    pub pairs: usize,
    /// Stage whose features are matched, from 0.
    pub stage: usize,
    /// Random seed of the views.
    pub seed: u64,
}

/// Results, and the images that were left out.
#[derive(Debug)]
pub struct CorrespondenceResults {
    /// Grid of the views.
    pub grid: Grid,
    /// Number of images measured.
    pub images: usize,
    /// Number of images whose two views do not overlap; they are not measured.
    pub disjoint: usize,
    /// One summary per network.
    pub networks: Vec<Summary>,
    /// Expected result of random matches.
    pub chance: Summary,
    /// Result of always choosing the right cell.
    pub best: Summary,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// Two views of an image, ready for a network.
struct ViewPair {
    /// Index in the source.
    index: usize,
    /// Normalized `[3, size, size]`.
    pixels: [Vec<f32>; 2],
    /// Position in the second view of each cell of the first.
    truth: Vec<Option<[f64; 2]>>,
}

/// Measures networks of one configuration on the images of a set. `done` is called with the number
/// of images processed in each batch.
///
/// # Errors
/// [`CorrespondenceError`] if there is no such stage, views are not a whole number of its cells, or
/// no image could be measured.
///
/// # Panics
/// If `networks` is empty.
pub fn measure(
    set: &LabeledSet,
    preprocess: &Preprocess,
    protocol: &Protocol,
    networks: &[&PretrainedBackbone],
    mut done: impl FnMut(usize),
) -> Result<CorrespondenceResults, CorrespondenceError> {
    let grid = Grid::new(&networks[0].config, protocol.stage, [preprocess.size(); 2])?;
    let mut scores: Vec<Vec<Scores>> = vec![Vec::new(); networks.len()];
    // Of random matches, and of always choosing the right cell.
    let mut references: Vec<(Scores, Scores)> = Vec::new();
    let (mut disjoint, mut left_out) = (0, Vec::new());
    for batch in set.images.chunks(BATCH) {
        let prepare = |index, image: &Image| prepare(image, index, preprocess, protocol, &grid);
        let (pairs, skipped) = set.prepare(batch, &preprocess.conversion(), prepare);
        let pairs = pairs.into_iter().map(|(_, pair)| pair);
        let (usable, apart): (Vec<ViewPair>, Vec<ViewPair>) =
            pairs.partition(|pair| pair.truth.iter().any(Option::is_some));
        disjoint += apart.len();
        left_out.extend(skipped);
        for (scores, network) in scores.iter_mut().zip(networks) {
            let size = preprocess.size();
            let found = network_scores(network, &usable, size, protocol, &grid);
            let name = |(index, value): (usize, f32)| NotFinite {
                image: set.source.name(index),
                value: value.to_string(),
            };
            scores.extend(found.map_err(name)?);
        }
        references.par_extend(usable.par_iter().filter_map(|ViewPair { truth, .. }| {
            let truth: Vec<[f64; 2]> = truth.iter().flatten().copied().collect();
            Some((Scores::random_chance(&truth, &grid)?, Scores::upper_bound(&truth, &grid)?))
        }));
        done(batch.len());
    }
    if references.is_empty() {
        return Err(match disjoint {
            0 => CorrespondenceError::Unreadable(set.images.len()),
            _ => CorrespondenceError::Disjoint,
        });
    }
    let (chance, best): (Vec<_>, Vec<_>) = references.into_iter().unzip();
    Ok(CorrespondenceResults {
        grid,
        images: chance.len(),
        disjoint,
        networks: scores.iter().map(|scores| Summary::from_scores(scores)).collect(),
        chance: Summary::from_scores(&chance),
        best: Summary::from_scores(&best),
        left_out,
    })
}

fn prepare(
    image: &Image,
    index: usize,
    preprocess: &Preprocess,
    Protocol { geometry, seed, .. }: &Protocol,
    grid: &Grid,
) -> Result<ViewPair, esvit_data::ImageError> {
    let mut rngs = [0, 1].map(|view| Rng::for_purpose(*seed, VIEWS, [index as u64, view, 0]));
    let evaluated;
    let (base, first, second) = match *geometry {
        Geometry::Mirror => {
            evaluated = preprocess.transform.apply(image)?;
            let whole = View::whole([evaluated.width(), evaluated.height()]);
            (&evaluated, whole.clone(), whole.mirrored())
        }
        Geometry::Crops { scale } => {
            let size = [image.width(), image.height()];
            let [first, second] = rngs.each_mut().map(|rng| View::random(size, scale, rng));
            (image, first, second)
        }
    };
    let [_, colors] = rngs;
    let second = second.with_color_jitter(1.0, colors);
    let size = [preprocess.size() as u32; 2];
    let pixels = [
        preprocess.normalize(&first.render(base, size)?),
        preprocess.normalize(&second.render(base, size)?),
    ];
    Ok(ViewPair { index, pixels, truth: first.truth(grid, &second, grid) })
}

/// Scores of a network on pairs of views of `size` pixels; index and value of the first image whose
/// features are not finite.
fn network_scores(
    network: &PretrainedBackbone,
    pairs: &[ViewPair],
    size: usize,
    protocol: &Protocol,
    grid: &Grid,
) -> Result<Vec<Scores>, (usize, f32)> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    // All first views, then all second views.
    let views = [0, 1].into_iter().flat_map(|view| pairs.iter().map(move |p| &p.pixels[view]));
    let pixels = views.flatten().copied().collect();
    let images = Tensor::new(pixels, [2 * pairs.len(), 3, size, size], &network.params.device());
    let PretrainedBackbone { network, params, .. } = network;
    let (values, width) = pool::run(|| {
        let features = network.stage_features(params, images, protocol.stage, &ForwardCtx::eval());
        let region = features.expect("the stage was checked").region;
        (region.to_vec::<f32>(), region.shape()[2])
    });
    let (firsts, seconds) = values.split_at(values.len() / 2);
    let map = grid.cells() * width;
    if let Some((view, value)) = first_not_finite(&values, map) {
        return Err((pairs[view % pairs.len()].index, value));
    }
    let maps = firsts.par_chunks(map).zip(seconds.par_chunks(map));
    let scores = pairs.par_iter().zip(maps).filter_map(|(pair, (first, second))| {
        match_cells(first, second, width).scores(&pair.truth, grid, protocol.pairs)
    });
    Ok(scores.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Images, backbone, noise};

    const GRID: Grid = Grid { rows: 4, columns: 4, cell: 4 };

    #[test]
    fn features_that_are_not_finite_are_refused() {
        let mut backbone = backbone(1);
        let set = Images::labeled((0..3).map(|i| (0, noise(30, 20, i))).collect()).set();
        backbone.preprocess.std = [0.0; 3];
        let protocol = Protocol { geometry: Geometry::Mirror, pairs: 3, stage: 0, seed: 1 };
        let preprocess = &backbone.preprocess;
        let found = measure(&set, preprocess, &protocol, &[&backbone], |_| ());
        let error = found.err().unwrap().to_string();
        assert!(error.contains("features of `0` hold NaN"), "{error}");
    }

    fn prepared(geometry: Geometry, seed: u64) -> ([Vec<f32>; 2], Vec<Option<[f64; 2]>>) {
        let preprocess = backbone(1).preprocess;
        let protocol = Protocol { geometry, pairs: 3, stage: 0, seed };
        let image = noise(30, 20, 7);
        let ViewPair { pixels, truth, .. } =
            prepare(&image, 2, &preprocess, &protocol, &GRID).unwrap();
        let levels = pixels.map(|values| {
            let channels = values.chunks(256).enumerate();
            let level = |(channel, values): (usize, &[f32])| {
                let [mean, std] = [preprocess.mean[channel], preprocess.std[channel]];
                values.iter().map(|v| (f64::from(*v) * std + mean) as f32).collect::<Vec<f32>>()
            };
            channels.flat_map(level).collect()
        });
        (levels, truth)
    }

    #[test]
    fn the_second_view_is_gray_and_the_first_is_the_image() {
        for geometry in [Geometry::Mirror, Geometry::Crops { scale: [0.5, 1.0] }] {
            let ([first, second], _) = prepared(geometry, 0);
            let spread = |levels: &[f32]| {
                let apart = |i: usize| (levels[i] - levels[256 + i]).abs();
                (0..256).map(apart).fold(0.0, f32::max)
            };
            assert!(spread(&first) > 0.1 && spread(&second) < 1e-5);
        }
    }

    #[test]
    fn views_follow_the_geometry_and_the_seed() {
        let (_, truth) = prepared(Geometry::Mirror, 0);
        let expected =
            |cell: usize| Some([14.0 - 4.0 * (cell % 4) as f64, 2.0 + 4.0 * (cell / 4) as f64]);
        assert_eq!(truth, (0..16).map(expected).collect::<Vec<_>>());
        let crops = Geometry::Crops { scale: [0.3, 0.6] };
        assert_eq!(prepared(crops, 1), prepared(crops, 1));
        assert_ne!(prepared(crops, 1).0, prepared(crops, 2).0);
    }

    /// Without a change of colors a network would find every cell of the mirror image; all images
    /// and networks are counted.
    #[test]
    fn every_image_and_network_is_measured() {
        let mut source =
            Images::labeled((0..40).map(|i| (0, noise(20, 20, i))).collect::<Vec<_>>());
        source.list[3].2 = None;
        let [one, two] = [backbone(1), backbone(2)];
        let protocol = Protocol { geometry: Geometry::Mirror, pairs: 5, stage: 0, seed: 0 };
        let set = source.set();
        let mut seen = 0;
        let networks = [&one, &two];
        let found = measure(&set, &one.preprocess, &protocol, &networks, |n| seen += n);
        let found = found.unwrap();
        assert_eq!((found.images, found.disjoint, seen, found.grid), (39, 0, 40, GRID));
        assert_eq!((found.left_out.len(), found.left_out[0].index), (1, 3));
        assert_eq!((found.chance.accuracy.mean, found.best.accuracy.mean), (1.0 / 16.0, 1.0));
        assert_eq!(found.networks.len(), 2);
        assert!(found.networks[0] != found.networks[1]);
        assert!(found.networks.iter().all(|n| n.accuracy.mean > found.chance.accuracy.mean));
        let alone = measure(&set, &one.preprocess, &protocol, &[&two], |_| ()).unwrap();
        assert_eq!(alone.networks[0], found.networks[1]);
    }
}
