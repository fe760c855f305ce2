//! Color operations: brightness, contrast, saturation, hue, grayscale, and color jitter.
//!
//! The arithmetic is Pillow's on 8-bit pixels (`ImageEnhance`, `convert("L")`,
//! `convert("HSV")`), which torchvision's `ColorJitter` uses.

use esvit_kernels::pixels::{self, blend};
use esvit_kernels::rng::Rng;
use esvit_settings::settings;

use super::lookup::{apply_lut, lut};
use crate::Image;

settings! {
    /// Color jitter: probability and ranges.
    pub struct ColorJitter / PartialColorJitter {
        /// Probability of jittering at all.
        pub p: f64 = 0.8,
        /// The brightness factor is uniform in `1 - brightness ..= 1 + brightness`, at least 0.
        pub brightness: f64 = 0.4,
        /// Whether that factor less 1, as a share of white, is added to values in place of
        /// multiplying them, as in BYOL and SimCLR v1.
        pub additive_brightness: bool = false,
        /// The same for contrast.
        pub contrast: f64 = 0.4,
        /// The same for saturation.
        pub saturation: f64 = 0.2,
        /// The hue shift is uniform in `-hue ..= hue`; 0.5 is half a turn.
        pub hue: f64 = 0.1,
    }
}

/// With probability `p`, changes brightness, contrast, saturation and hue by random amounts in
/// random order.
pub fn jitter(image: &mut Image, strength: &ColorJitter, rng: &mut Rng) {
    if !rng.chance(strength.p) {
        return;
    }
    let (order, amounts) = strength.sample(rng);
    for which in order {
        if which == BRIGHTNESS && strength.additive_brightness {
            add_brightness(image, amounts[which] - 1.0);
        } else {
            JITTER_OPS[which](image, amounts[which]);
        }
    }
}

const BRIGHTNESS: usize = 0;
const JITTER_OPS: [fn(&mut Image, f64); 4] = [brightness, contrast, saturation, hue];

impl ColorJitter {
    /// In which order [`JITTER_OPS`] are applied, and the amount of each.
    fn sample(&self, rng: &mut Rng) -> ([usize; 4], [f64; 4]) {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let strengths = [self.brightness, self.contrast, self.saturation];
        let [b, c, s] = strengths.map(|x| rng.uniform_in((1.0 - x).max(0.0), 1.0 + x));
        (order, [b, c, s, rng.uniform_in(-self.hue, self.hue)])
    }
}

/// Multiplies values by `factor`: 0 is black, 1 the identity.
pub fn brightness(image: &mut Image, factor: f64) {
    let factor = factor as f32;
    apply_lut(image, &lut(|value| blend(0, value, factor)));
}

/// Adds `share` of white to all values: -1 is black, 0 the identity, 1 white (TensorFlow's
/// `adjust_brightness`, rounded to 8 bits).
pub fn add_brightness(image: &mut Image, share: f64) {
    let added = (255.0 * share) as f32;
    // The cast truncates and saturates.
    apply_lut(image, &lut(|value| (f32::from(value) + added + 0.5) as u8));
}

/// Blends with the mean luminance of the image: 0 is uniform gray, 1 the identity.
pub fn contrast(image: &mut Image, factor: f64) {
    let factor = factor as f32;
    let count = u64::from(image.width()) * u64::from(image.height());
    let sum = pixels::luminance_sum(image.pixels().as_chunks().0);
    // Rounded, as in Pillow.
    let mean = ((2 * sum + count) / (2 * count)) as u8;
    apply_lut(image, &lut(|value| blend(mean, value, factor)));
}

/// Blends every pixel with its luminance: 0 is a gray image, 1 the identity.
pub fn saturation(image: &mut Image, factor: f64) {
    pixels::saturation(image.pixels_mut().as_chunks_mut().0, factor as f32);
}

/// Replaces every pixel by its luminance.
pub fn grayscale(image: &mut Image) {
    pixels::grayscale(image.pixels_mut().as_chunks_mut().0);
}

/// Shifts the hue by `shift` turns, in 8 bits with wrap-around.
pub fn hue(image: &mut Image, shift: f64) {
    pixels::shift_hue(image.pixels_mut().as_chunks_mut().0, (shift * 255.0) as i32 as u8);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::augment::test_draws::{assert_equally_often, assert_share, assert_uniform};
    use crate::augment::test_images::{f7, f7_after, noise};

    #[test]
    fn as_pillow() {
        assert_eq!(f7_after(|p| brightness(p, 1.3)), [66, 255, 233]);
        assert_eq!(f7_after(|p| contrast(p, 0.7)), [74, 199, 164]);
        assert_eq!(f7_after(|p| saturation(p, 1.2)), [27, 241, 181]);
        assert_eq!(f7_after(|p| hue(p, 0.07)), [51, 211, 230]);
        assert_eq!(f7_after(grayscale), [171; 3]);
    }

    #[test]
    fn brightness_that_is_added() {
        let added = |share: f64| {
            let mut image = Image::new(1, 1, vec![0, 100, 254]).unwrap();
            add_brightness(&mut image, share);
            image.pixel(0, 0).unwrap()
        };
        assert_eq!(added(0.0), [0, 100, 254]);
        assert_eq!(added(0.1), [26, 126, 255], "25.5, rounded up");
        assert_eq!(added(-0.1), [0, 75, 229], "74.5 and 228.5");
        assert_eq!((added(1.0), added(-1.0)), ([255; 3], [0; 3]));
    }

    /// Gray of one level, which contrast, saturation and hue leave as it is.
    #[test]
    fn jitter_adds_brightness_if_asked() {
        let strength = |additive_brightness: bool| ColorJitter {
            p: 1.0,
            brightness: 0.4,
            additive_brightness,
            ..ColorJitter::default()
        };
        let levels = |additive: bool, level: u8| {
            (0..10_000).map(move |i| {
                let mut image = Image::filled(2, 2, [level; 3]);
                jitter(&mut image, &strength(additive), &mut Rng::new(4, [i, 0, 0]));
                f64::from(image.pixel(0, 0).unwrap()[0])
            })
        };
        assert_uniform(levels(true, 120), 120.0 - 102.0, 120.0 + 102.0);
        assert_uniform(levels(false, 120), 71.0, 168.0);
        // All other random numbers stay.
        let colorful = |additive_brightness: bool| {
            let mut image = Image::filled(2, 2, [120, 60, 10]);
            let jittered = ColorJitter { brightness: 0.0, ..strength(additive_brightness) };
            jitter(&mut image, &jittered, &mut Rng::new(5, [0; 3]));
            image
        };
        assert_eq!(colorful(true), colorful(false));
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        for op in [brightness, contrast, saturation] {
            let mut image = f7();
            op(&mut image, 1.0);
            assert_eq!(image, f7());
        }
    }

    #[test]
    fn gray_has_no_hue() {
        let mut image = noise(13, 7, 1);
        grayscale(&mut image);
        let gray = image.clone();
        hue(&mut image, 0.3);
        assert_eq!(image, gray);
        saturation(&mut image, 1.7);
        assert_eq!(image, gray);
    }

    #[test]
    fn a_full_turn_comes_back_but_for_rounding() {
        let mut image = Image::filled(2, 2, [200, 40, 90]);
        hue(&mut image, 0.5);
        assert_ne!(image.pixel(0, 0), Some([200, 40, 90]));
        hue(&mut image, 0.5);
        // Two steps of the 8-bit hue short: 2 * 127 of 256.
        assert_eq!(image.pixel(0, 0), Some([200, 40, 100]));
    }

    #[test]
    fn amounts_are_uniform_around_no_change_and_never_negative() {
        let strength = ColorJitter {
            p: 1.0,
            brightness: 0.1,
            additive_brightness: false,
            contrast: 0.2,
            saturation: 3.0,
            hue: 0.05,
        };
        let drawn: Vec<[f64; 4]> =
            (0..10_000).map(|i| strength.sample(&mut Rng::new(1, [i, 0, 0])).1).collect();
        let limits = [(0.9, 1.1), (0.8, 1.2), (0.0, 4.0), (-0.05, 0.05)];
        for (which, (low, high)) in limits.into_iter().enumerate() {
            assert_uniform(drawn.iter().map(|amounts| amounts[which]), low, high);
        }
    }

    #[test]
    fn all_orders_are_equally_likely() {
        let mut orders = BTreeMap::new();
        for i in 0..10_000 {
            let (order, _) = ColorJitter::default().sample(&mut Rng::new(1, [i, 0, 0]));
            *orders.entry(order).or_insert(0) += 1;
        }
        assert_eq!(orders.len(), 24);
        assert_equally_often(&orders.into_values().collect::<Vec<_>>());
    }

    #[test]
    fn jitter_applies_each_amount_to_its_operation_in_the_drawn_order() {
        for i in 0..50 {
            let mut rng = Rng::new(3, [i, 0, 0]);
            let (mut image, mut expected) = (f7(), f7());
            jitter(&mut image, &ColorJitter { p: 1.0, ..Default::default() }, &mut rng.clone());
            rng.chance(1.0);
            let (order, [b, c, s, h]) = ColorJitter::default().sample(&mut rng);
            for which in order {
                match which {
                    0 => brightness(&mut expected, b),
                    1 => contrast(&mut expected, c),
                    2 => saturation(&mut expected, s),
                    _ => hue(&mut expected, h),
                }
            }
            assert_eq!(image, expected);
        }
    }

    #[test]
    fn jitter_comes_as_often_as_asked() {
        let changed = (0..1000).filter(|&i| {
            let mut image = Image::filled(3, 3, [250, 128, 7]);
            jitter(&mut image, &ColorJitter::default(), &mut Rng::new(2, [i, 0, 0]));
            image.pixel(0, 0) != Some([250, 128, 7])
        });
        assert_share(changed.count(), 1000, 0.8);
    }
}
