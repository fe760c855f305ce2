//! Which regions of the global views are masked: blocks of them, in some of the views.
//!
//! Source: blocks, Bao et al., "BEiT: BERT Pre-Training of Image Transformers" (ICLR 2022), algorithm 1;
//! shares of masked regions that are spread over the views of a step, Oquab et al., "DINOv2" (2023), by
//! its code; what blocks leave of a share is masked one by one, as in DINOv3's.
//!
//! Masks depend on the seed, the step and the place of view and image in it, and so neither on how a step
//! is cut nor on threads and processes.

use std::ops::Range;

use esvit_kernels::rng::Rng;
use esvit_nn::forward_ctx::StepPart;

use super::config::PatchesConfig;
use crate::objective::GLOBAL_VIEWS;

/// RNG purpose of the views that have masked regions.
const VIEWS_PURPOSE: u64 = 0x3A5B;
/// RNG purpose of the masked regions of a view.
const REGIONS_PURPOSE: u64 = 0x3A5D;

/// Attempts to place a block before there is none any more.
const ATTEMPTS: usize = 10;
/// Regions that a block is to have at least.
const LEAST_BLOCK: f64 = 4.0;
/// Least ratio of a block's sides; the largest is its inverse.
const LEAST_ASPECT: f64 = 0.3;

/// The masked regions of the global views of some images.
#[derive(Debug, Clone, PartialEq)]
pub struct Masks {
    /// View-major: of every view and image its regions, row-major, if some are masked.
    masks: Vec<Option<Vec<bool>>>,
    /// Number of images.
    images: usize,
    /// Regions of a view.
    regions: usize,
}

impl Masks {
    /// The masks of the images of `part`, whose global views are maps of `[height, width]` regions.
    pub fn draw(
        config: &PatchesConfig,
        [seed, step]: [u64; 2],
        part: &StepPart,
        map: [usize; 2],
    ) -> Self {
        let regions = map[0] * map[1];
        let shares = shares(config, [seed, step], GLOBAL_VIEWS * part.step_images);
        let mask = |slot: usize| {
            let count = (regions as f64 * shares[slot]?) as usize;
            let mut rng = Rng::for_purpose(seed, REGIONS_PURPOSE, [step, slot as u64, 1]);
            Some(blocks(&mut rng, map, count.clamp(1, regions)))
        };
        let slots = (0..GLOBAL_VIEWS)
            .flat_map(|view| part.images.clone().map(move |image| view * part.step_images + image));
        let masks = slots.map(mask).collect();
        Self { masks, images: part.images.len(), regions }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The regions of a view of an image, row-major: true where masked. None without a masked one.
    pub fn of(&self, view: usize, image: usize) -> Option<&[bool]> {
        if view >= GLOBAL_VIEWS {
            return None;
        }
        self.masks[view * self.images + image].as_deref()
    }

    /// Number of masked regions of some views.
    pub fn count(&self, views: Range<usize>) -> usize {
        let masks = views.flat_map(|view| (0..self.images).map(move |image| self.of(view, image)));
        masks.flatten().map(masked).sum()
    }

    /// Of every masked region of some global views, view-major, its row among the region rows of these
    /// views, and its weight: all views of all images count alike, and in each all masked regions.
    pub fn rows(&self, views: Range<usize>) -> (Vec<i32>, Vec<f32>) {
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        let views = views.start..views.end.min(GLOBAL_VIEWS);
        for view in views.clone() {
            for image in 0..self.images {
                let Some(mask) = self.of(view, image) else { continue };
                let first = ((view - views.start) * self.images + image) * self.regions;
                let hidden = (0..self.regions).filter(|&region| mask[region]);
                rows.extend(hidden.map(|region| (first + region) as i32));
                let weight = 1.0 / (GLOBAL_VIEWS * self.images * masked(mask)) as f64;
                weights.resize(rows.len(), weight as f32);
            }
        }
        (rows, weights)
    }
}

fn masked(mask: &[bool]) -> usize {
    mask.iter().filter(|&&is_masked| is_masked).count()
}

/// The share of masked regions of each of `views` views of a step, by its place: a part of the views has
/// some, and their shares cover the range evenly, one in each of as many equal parts.
fn shares(config: &PatchesConfig, [seed, step]: [u64; 2], views: usize) -> Vec<Option<f64>> {
    let masked = (views as f64 * config.mask_probability) as usize;
    let [least, most] = config.mask_ratio;
    let mut order: Vec<usize> = (0..views).collect();
    Rng::for_purpose(seed, VIEWS_PURPOSE, [step, 0, 0]).shuffle(&mut order);
    let mut shares = vec![None; views];
    for (part, &view) in order[..masked].iter().enumerate() {
        let within = Rng::for_purpose(seed, REGIONS_PURPOSE, [step, view as u64, 0]).uniform();
        shares[view] = Some(least + (most - least) * (part as f64 + within) / masked as f64);
    }
    shares
}

/// A mask of `count` of the regions of a map `[height, width]`, row-major: rectangles as long as one fits
/// into what is left of the count, then single regions.
fn blocks(rng: &mut Rng, map: [usize; 2], count: usize) -> Vec<bool> {
    let mut mask = vec![false; map[0] * map[1]];
    let mut left = count;
    while left > 0 {
        match add_block(rng, &mut mask, map, left) {
            0 => break,
            added => left -= added,
        }
    }
    if left > 0 {
        let mut free: Vec<usize> = (0..mask.len()).filter(|&region| !mask[region]).collect();
        rng.shuffle(&mut free);
        free.into_iter().take(left).for_each(|region| mask[region] = true);
    }
    mask
}

/// Masks a rectangle of at most `most` regions that are not masked yet, and at least one; returns their
/// number, 0 if no attempt has found one. It is smaller than the map on both axes.
fn add_block(rng: &mut Rng, mask: &mut [bool], [height, width]: [usize; 2], most: usize) -> usize {
    let largest = -LEAST_ASPECT.ln();
    for _ in 0..ATTEMPTS {
        let area = rng.uniform_in(LEAST_BLOCK, most as f64);
        let aspect = rng.uniform_in(-largest, largest).exp();
        let [rows, columns] =
            [area * aspect, area / aspect].map(|side| side.sqrt().round() as usize);
        if rows >= height || columns >= width {
            continue;
        }
        let top = rng.below((height - rows + 1) as u64) as usize;
        let left = rng.below((width - columns + 1) as u64) as usize;
        let block = || {
            let row = move |y: usize| (left..left + columns).map(move |x| y * width + x);
            (top..top + rows).flat_map(row)
        };
        let added = block().filter(|&region| !mask[region]).count();
        if (1..=most).contains(&added) {
            block().for_each(|region| mask[region] = true);
            return added;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PatchesConfig {
        PatchesConfig { weight: 1.0, ..PatchesConfig::default() }
    }

    /// By the same rule written in another language, with its own Philox.
    #[test]
    fn the_same_masks_in_every_release() {
        let mut rng = Rng::for_purpose(3, REGIONS_PURPOSE, [5, 7, 1]);
        let mask = blocks(&mut rng, [6, 8], 17);
        let found: Vec<usize> = (0..48).filter(|&region| mask[region]).collect();
        assert_eq!(found, BLOCKS);
        let found = shares(&config(), [3, 5], 8);
        for (found, expected) in found.iter().zip(SHARES) {
            let is_close = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() < 1e-12,
                (None, None) => true,
                _ => false,
            };
            assert!(is_close, "{found:?} instead of {expected:?}");
        }
    }

    /// A block of 4 x 4 regions, and one that stood for itself.
    const BLOCKS: [usize; 17] =
        [10, 11, 12, 13, 16, 18, 19, 20, 21, 26, 27, 28, 29, 34, 35, 36, 37];
    const SHARES: [Option<f64>; 8] = [
        None,
        Some(0.28184799107862785),
        None,
        Some(0.15595961656548765),
        None,
        Some(0.301414558115379),
        Some(0.4569648872507742),
        None,
    ];

    /// As many as asked for, whatever the map; most of them beside another one where there is room for blocks.
    #[test]
    fn masks_have_their_count() {
        for map in [[1, 1], [1, 7], [2, 2], [4, 4], [14, 14], [7, 16]] {
            let regions = map[0] * map[1];
            for count in [1, regions / 3 + 1, regions / 2 + 1, regions] {
                let count = count.min(regions);
                for seed in 0..20 {
                    let mask = blocks(&mut Rng::new(seed, [0; 3]), map, count);
                    assert_eq!((mask.len(), masked(&mask)), (regions, count), "{map:?}");
                }
            }
        }
        let mut alone = 0;
        for seed in 0..50 {
            let mask = blocks(&mut Rng::new(seed, [1; 3]), [14, 14], 60);
            let has = |y: i32, x: i32| {
                (0..14).contains(&y) && (0..14).contains(&x) && mask[(14 * y + x) as usize]
            };
            for (y, x) in (0..14).flat_map(|y| (0..14).map(move |x| (y, x))) {
                let beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)];
                alone += usize::from(has(y, x) && !beside.iter().any(|&(y, x)| has(y, x)));
            }
        }
        assert!(alone < 50 * 60 / 20, "{alone} of {}", 50 * 60);
    }

    /// Half of the views, one in each part of the range; other views and other shares in the next step.
    #[test]
    fn shares_cover_their_range() {
        let at = |step: u64| shares(&config(), [1, step], 32);
        let found = at(4);
        let mut given: Vec<f64> = found.iter().copied().flatten().collect();
        given.sort_by(f64::total_cmp);
        assert_eq!(given.len(), 16);
        for (part, share) in given.iter().enumerate() {
            let [low, high] = [part, part + 1].map(|part| 0.1 + 0.4 * part as f64 / 16.0);
            assert!((low..high).contains(share), "{share} in part {part}");
        }
        assert_eq!(at(4), found);
        let [now, next] = [found, at(5)];
        let is_other = |(a, b): (&Option<f64>, &Option<f64>)| a.is_some() != b.is_some();
        assert!(now.iter().zip(&next).filter(|pair| is_other(*pair)).count() > 4);
        let all = PatchesConfig { mask_probability: 1.0, mask_ratio: [0.3; 2], ..config() };
        assert_eq!(shares(&all, [1, 4], 5), [Some(0.3); 5]);
        let few = PatchesConfig { mask_probability: 0.1, ..config() };
        assert_eq!(shares(&few, [1, 4], 9), [None; 9]);
    }

    /// However the images of a step are cut, and rows with their weights.
    #[test]
    fn masks_by_place_and_their_rows() {
        let part = |images: Range<usize>| StepPart { first_view: 0, images, step_images: 6 };
        let draw = |images: Range<usize>| Masks::draw(&config(), [2, 3], &part(images), [4, 5]);
        let whole = draw(0..6);
        for images in [0..2, 2..3, 3..6] {
            let found = draw(images.clone());
            assert_eq!(found.images(), images.len());
            for view in 0..GLOBAL_VIEWS {
                for (own, image) in images.clone().enumerate() {
                    assert_eq!(found.of(view, own), whole.of(view, image));
                }
            }
        }
        assert_eq!(whole.of(GLOBAL_VIEWS, 0), None, "local views have none");
        let (mut expected, mut views) = (Vec::new(), 0);
        for (slot, mask) in whole.masks.iter().enumerate() {
            views += usize::from(mask.is_some());
            let own = mask.iter().flatten().enumerate().filter(|(_, masked)| **masked);
            expected.extend(own.map(|(region, _)| (slot * 20 + region) as i32));
        }
        assert_eq!(views, 6, "half of twelve");
        let (rows, weights) = whole.rows(0..5);
        assert_eq!((&rows, rows.len()), (&expected, whole.count(0..5)));
        // Half of the views, each with the same weight in all.
        assert!((weights.iter().sum::<f32>() - 0.5).abs() < 1e-6);
        let (second, of_second) = whole.rows(1..2);
        let before = whole.count(0..1);
        assert_eq!(second, rows[before..].iter().map(|row| row - 120).collect::<Vec<i32>>());
        assert_eq!(of_second, weights[before..]);
        assert_eq!(whole.rows(2..4), (Vec::new(), Vec::new()));
    }
}
