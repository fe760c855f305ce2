//! RandAugment (Cubuk et al. 2019) as timm's `rand-m9-mstd0.5-inc1`: operations drawn from
//! fifteen, all of which grow stronger with the magnitude.

use esvit_kernels::rng::Rng;
use esvit_settings::settings;

use super::geometry::{rotation, transform};
use super::histogram::{autocontrast, equalize};
use super::lookup::{apply, blend, table};
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
                let magnitude = self.magnitude + self.magnitude_std * rng.normal();
                op.apply(image, magnitude.clamp(0.0, FULL) / FULL, fill, rng);
            }
        }
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
            Op::Invert => apply(image, &table(|value| 255 - value)),
            Op::Posterize => posterize(image, 4 - (level * 4.0) as u32),
            Op::Solarize => solarize(image, 256 - (level * 256.0) as u32),
            Op::SolarizeAdd => {
                let add = (level * 110.0) as u8;
                apply(image, &table(|v| if v < 128 { v.saturating_add(add) } else { v }));
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
                transform(image, [1.0, random_sign(level * 0.3) as f32, 0.0, 0.0, 1.0, 0.0], fill);
            }
            Op::ShearY => {
                transform(image, [1.0, 0.0, 0.0, random_sign(level * 0.3) as f32, 1.0, 0.0], fill);
            }
            Op::TranslateX => {
                let pixels = random_sign(level * 0.45) as f32 * image.width() as f32;
                transform(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0], fill);
            }
            Op::TranslateY => {
                let pixels = random_sign(level * 0.45) as f32 * image.height() as f32;
                transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels], fill);
            }
        }
    }
}

/// Clears all but the highest `bits` bits of every value.
fn posterize(image: &mut Image, bits: u32) {
    let mask = 0xFFu8.checked_shl(8u32.saturating_sub(bits)).unwrap_or(0);
    apply(image, &table(|value| value & mask));
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
    use super::*;
    use crate::augment::test_images::noise;

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

    #[test]
    fn every_operation_changes_a_image_at_full_level() {
        // A narrow range, so that `AutoContrast` and `Equalize` have something to do.
        let mut image = noise(40, 40, 2);
        image.pixels_mut().iter_mut().for_each(|value| *value = 60 + *value / 2);
        for op in OPS {
            let mut changed = image.clone();
            op.apply(&mut changed, 1.0, [0; 3], &mut Rng::new(3, [0; 3]));
            assert_ne!(changed, image, "{op:?}");
        }
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
