//! RandAugment (Cubuk et al. 2019) as timm's `rand-m9-mstd0.5-inc1`: operations drawn from
//! fifteen, all of which grow stronger with the magnitude.

use esvit_kernels::pixels::blend;
use esvit_kernels::rng::Rng;
use esvit_settings::settings;

use super::geometry::{rotation, transform};
use super::histogram::{autocontrast, equalize};
use super::lookup::{apply_lut, lut};
use super::{brightness, contrast, saturation, solarize};
use crate::Image;
use crate::pixels::CHANNELS;

settings! {
    /// RandAugment: number, probability and strength of operations.
    pub struct RandAugment / PartialRandAugment {
        /// Operations per view, drawn with replacement; 0 turns RandAugment off.
        pub ops: u32 = 0,
        /// Probability that a drawn operation is applied.
        pub p: f64 = 0.5,
        /// Mean of the magnitude, on a scale of 0 to 10.
        pub magnitude: f64 = 9.0,
        /// Standard deviation of the magnitude.
        pub magnitude_std: f64 = 0.5,
    }
}

/// Largest magnitude.
const FULL: f64 = 10.0;

#[derive(Debug, Clone, Copy)]
enum Op {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Saturation,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

const OPS: [Op; 15] = [
    Op::AutoContrast,
    Op::Equalize,
    Op::Invert,
    Op::Rotate,
    Op::Posterize,
    Op::Solarize,
    Op::SolarizeAdd,
    Op::Saturation,
    Op::Contrast,
    Op::Brightness,
    Op::Sharpness,
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
];

impl RandAugment {
    /// Applies random operations; pixels from outside the image are `fill`.
    pub(super) fn apply(&self, image: &mut Image, fill: [u8; 3], rng: &mut Rng) {
        for _ in 0..self.ops {
            let op = OPS[rng.below(OPS.len() as u64) as usize];
            if rng.chance(self.p) {
                op.apply(image, self.level(rng), fill, rng);
            }
        }
    }

    /// A random magnitude, in 0..=1.
    fn level(&self, rng: &mut Rng) -> f64 {
        (self.magnitude + self.magnitude_std * rng.normal()).clamp(0.0, FULL) / FULL
    }
}

impl Op {
    /// `level` is the magnitude in 0..=1.
    fn apply(self, image: &mut Image, level: f64, fill: [u8; 3], rng: &mut Rng) {
        let mut random_sign = |amount: f64| if rng.chance(0.5) { -amount } else { amount };
        let mut enhancement = || (1.0 + random_sign(level * 0.9)).max(0.1);
        match self {
            Op::AutoContrast => autocontrast(image),
            Op::Equalize => equalize(image),
            Op::Invert => apply_lut(image, &lut(|value| 255 - value)),
            Op::Posterize => posterize(image, 4 - (level * 4.0) as u32),
            Op::Solarize => solarize(image, 256 - (level * 256.0) as u32),
            Op::SolarizeAdd => {
                let add = (level * 110.0) as u8;
                apply_lut(image, &lut(|v| if v < 128 { v.saturating_add(add) } else { v }));
            }
            Op::Saturation => saturation(image, enhancement()),
            Op::Contrast => contrast(image, enhancement()),
            Op::Brightness => brightness(image, enhancement()),
            Op::Sharpness => sharpness(image, enhancement() as f32),
            Op::Rotate => {
                let matrix = rotation(image, random_sign(level * 30.0));
                transform(image, matrix, fill);
            }
            Op::ShearX => {
                transform(image, [1.0, random_sign(level * 0.3), 0.0, 0.0, 1.0, 0.0], fill);
            }
            Op::ShearY => {
                transform(image, [1.0, 0.0, 0.0, random_sign(level * 0.3), 1.0, 0.0], fill);
            }
            Op::TranslateX => {
                let pixels = random_sign(level * 0.45) * f64::from(image.width());
                transform(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0], fill);
            }
            Op::TranslateY => {
                let pixels = random_sign(level * 0.45) * f64::from(image.height());
                transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels], fill);
            }
        }
    }
}

/// Clears all but the highest `bits` bits of every value.
fn posterize(image: &mut Image, bits: u32) {
    let mask = 0xFFu8.checked_shl(8u32.saturating_sub(bits)).unwrap_or(0);
    apply_lut(image, &lut(|value| value & mask));
}

/// Blends with the smoothed image: 0 is the image filtered by Pillow's `SMOOTH` kernel, 3 x 3
/// with 5 in the center and 1 around, over 13. Borders are not filtered.
fn sharpness(image: &mut Image, factor: f32) {
    let original = image.clone();
    let stride = original.stride();
    let from = original.pixels();
    for (y, row) in image.rows_mut().enumerate() {
        if y == 0 || y + 1 == original.height() as usize {
            continue;
        }
        let inner = CHANNELS..stride.saturating_sub(CHANNELS).max(CHANNELS);
        for (at, value) in (y * stride + CHANNELS..).zip(row.get_mut(inner).unwrap_or_default()) {
            let three = |middle: usize| {
                u32::from(from[middle - CHANNELS])
                    + u32::from(from[middle])
                    + u32::from(from[middle + CHANNELS])
            };
            let around = three(at - stride) + three(at) + three(at + stride);
            let smooth = (2 * (around + 4 * u32::from(from[at])) + 13) / 26;
            *value = blend(smooth as u8, from[at], factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::augment::test_draws::{assert_equally_often, assert_share};
    use crate::augment::test_images::{hashed, noise};

    #[test]
    fn every_operation_works_on_every_shape() {
        for (width, height) in [(1, 1), (1, 50), (50, 1), (2, 3), (37, 41)] {
            for op in OPS {
                for level in [0.0, 0.9, 1.0] {
                    let mut image = noise(width, height, 1);
                    op.apply(&mut image, level, [124, 116, 104], &mut Rng::new(1, [0; 3]));
                    assert_eq!((image.width(), image.height()), (width, height), "{op:?}");
                }
            }
        }
    }

    /// In 60..=187, so that `AutoContrast` and `Equalize` have something to do.
    fn narrow() -> Image {
        let mut image = hashed(40, 30);
        image.pixels_mut().iter_mut().for_each(|value| *value = 60 + *value / 2);
        image
    }

    /// Two pixels and the sum of all values, from Pillow 13.0.0 by timm's formulas; two results where
    /// the direction is random.
    #[test]
    #[rustfmt::skip]
    fn every_operation_as_pillow_and_timm() {
        type Seen = ([u8; 3], [u8; 3], u32);
        let fill = [124, 116, 104];
        let cases: [(Op, f64, &[Seen]); 18] = [
            (Op::AutoContrast, 0.9, &[([176, 92, 104], [14, 24, 62], 454_328)]),
            (Op::Equalize, 0.9, &[([208, 108, 126], [16, 23, 81], 524_170)]),
            (Op::Invert, 0.9, &[([107, 149, 143], [188, 183, 164], 474_843)]),
            (Op::Posterize, 0.9, &[([128, 0, 0], [0, 0, 0], 217_728)]),
            (Op::Posterize, 0.5, &[([128, 64, 64], [64, 64, 64], 331_968)]),
            (Op::Solarize, 0.9, &[([107, 149, 143], [188, 183, 164], 474_843)]),
            (Op::Solarize, 0.5, &[([107, 106, 112], [67, 72, 91], 341_758)]),
            (Op::SolarizeAdd, 0.9, &[([148, 205, 211], [166, 171, 190], 631_158)]),
            (Op::SolarizeAdd, 0.5, &[([148, 161, 167], [122, 127, 146], 547_602)]),
            (Op::Saturation, 0.9, &[([171, 95, 106], [62, 71, 105], 440_140), ([124, 116, 117], [71, 72, 76], 442_705)]),
            (Op::Contrast, 0.9, &[([167, 91, 102], [20, 29, 64], 438_703), ([128, 120, 121], [113, 114, 117], 444_042)]),
            (Op::Brightness, 0.9, &[([255, 191, 202], [121, 130, 164], 746_011), ([28, 20, 21], [12, 13, 17], 82_385)]),
            (Op::Sharpness, 0.9, &[([165, 87, 101], [67, 72, 91], 441_704), ([130, 124, 122], [67, 72, 91], 441_450)]),
            (Op::Rotate, 0.9, &[([164, 118, 160], fill, 437_346), ([118, 147, 164], fill, 437_923)]),
            (Op::ShearX, 0.9, &[([148, 105, 135], fill, 438_776), ([157, 75, 67], [97, 104, 85], 438_044)]),
            (Op::ShearY, 0.9, &[([70, 128, 136], fill, 436_459), ([45, 168, 165], [106, 173, 80], 435_895)]),
            (Op::TranslateX, 0.9, &[([64, 128, 173], fill, 430_343), (fill, [81, 186, 147], 427_847)]),
            (Op::TranslateY, 0.9, &[([87, 190, 69], fill, 429_345), (fill, [114, 172, 120], 429_574)]),
        ];
        for (op, level, expected) in cases {
            let mut counts = BTreeMap::new();
            for seed in 0..100 {
                let mut image = narrow();
                op.apply(&mut image, level, fill, &mut Rng::new(seed, [0; 3]));
                let sum = image.pixels().iter().map(|&value| u32::from(value)).sum();
                let seen = (image.pixel(5, 7).unwrap(), image.pixel(39, 29).unwrap(), sum);
                *counts.entry(seen).or_insert(0) += 1;
            }
            assert!(counts.keys().eq(&BTreeSet::from_iter(expected.iter().copied())), "{op:?} {level}: {counts:?}");
            assert_equally_often(&counts.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_operation_comes_equally_often() {
        let mut known = BTreeMap::new();
        for (which, op) in OPS.into_iter().enumerate() {
            for seed in 0..20 {
                let mut image = narrow();
                op.apply(&mut image, 0.5, [0; 3], &mut Rng::new(seed, [0; 3]));
                known.insert(image.pixels().to_vec(), which);
            }
        }
        let always = RandAugment { ops: 1, p: 1.0, magnitude: 5.0, magnitude_std: 0.0 };
        let mut counts = [0; OPS.len()];
        for i in 0..3000 {
            let mut image = narrow();
            always.apply(&mut image, [0; 3], &mut Rng::new(4, [i, 0, 0]));
            counts[known[image.pixels()]] += 1;
        }
        assert_equally_often(&counts);
    }

    #[test]
    fn an_operation_is_applied_as_often_as_asked() {
        for p in [0.0, 0.3, 1.0] {
            let once = RandAugment { ops: 1, p, ..RandAugment::default() };
            let changed = (0..1000).filter(|&i| {
                let mut image = narrow();
                once.apply(&mut image, [0; 3], &mut Rng::new(5, [i, 0, 0]));
                image != narrow()
            });
            assert_share(changed.count(), 1000, p);
        }
    }

    #[test]
    fn operations_follow_each_other() {
        let three = RandAugment { ops: 3, p: 0.7, ..RandAugment::default() };
        let one = RandAugment { ops: 1, ..three.clone() };
        for i in 0..20 {
            let (mut image, mut expected) = (narrow(), narrow());
            three.apply(&mut image, [9; 3], &mut Rng::new(6, [i, 0, 0]));
            let mut rng = Rng::new(6, [i, 0, 0]);
            (0..3).for_each(|_| one.apply(&mut expected, [9; 3], &mut rng));
            assert_eq!(image, expected);
        }
    }

    #[test]
    fn magnitudes_are_normal_and_cut_at_both_ends() {
        let levels = |magnitude, magnitude_std| -> Vec<f64> {
            let random = RandAugment { magnitude, magnitude_std, ..RandAugment::default() };
            (0..10_000).map(|i| random.level(&mut Rng::new(7, [i, 0, 0]))).collect()
        };
        let levels_of_five = levels(5.0, 0.5);
        for (deviations, share) in [(-2.0, 0.02275), (-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134)] {
            let below = levels_of_five.iter().filter(|&&x| x < 0.5 + 0.05 * deviations).count();
            assert_share(below, 10_000, share);
        }
        let full = levels(10.0, 2.0).into_iter().filter(|&level| level == 1.0).count();
        assert_share(full, 10_000, 0.5);
        assert!(levels(0.0, 9.0).iter().all(|level| (0.0..=1.0).contains(level)));
        assert_eq!(levels(9.0, 0.0)[0], 0.9);
    }

    #[test]
    fn spread_magnitudes_reach_the_operations() {
        let spread = RandAugment { ops: 1, p: 1.0, magnitude: 5.0, magnitude_std: 1.0 };
        let different: BTreeSet<Vec<u8>> = (0..200)
            .map(|i| {
                let mut image = narrow();
                spread.apply(&mut image, [0; 3], &mut Rng::new(8, [i, 0, 0]));
                image.pixels().to_vec()
            })
            .collect();
        // Without a spread there were 24: fifteen operations, nine of them in two directions.
        assert!(different.len() > 100, "{}", different.len());
    }

    #[test]
    fn posterize_keeps_the_high_bits() {
        for (bits, expected) in [(0, 0), (1, 0x80), (4, 0xB0), (8, 0xB7)] {
            let mut image = Image::filled(1, 1, [0xB7; 3]);
            posterize(&mut image, bits);
            assert_eq!(image.pixel(0, 0), Some([expected; 3]));
        }
    }

    #[test]
    fn sharpness_of_one_changes_nothing() {
        let mut image = noise(9, 8, 1);
        sharpness(&mut image, 1.0);
        assert_eq!(image, noise(9, 8, 1));
        sharpness(&mut image, 0.0);
        let spread =
            |p: &Image| p.pixels().windows(2).map(|w| u32::from(w[0].abs_diff(w[1]))).sum::<u32>();
        assert!(spread(&image) < spread(&noise(9, 8, 1)));
    }

    #[test]
    fn off_means_off() {
        let mut image = noise(9, 8, 1);
        RandAugment::default().apply(&mut image, [0; 3], &mut Rng::new(1, [0; 3]));
        assert_eq!(image, noise(9, 8, 1));
    }
}
