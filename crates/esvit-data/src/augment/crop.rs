//! The rectangle of a random resized crop (Szegedy et al. 2015, details as in torchvision).

use esvit_kernels::rng::Rng;

/// Attempts before the fallback.
const MAX_ATTEMPTS: usize = 10;

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

impl CropBox {
    /// A random crop of an image of `width` x `height`: its area is uniform in `scale` (a share of
    /// the image's), its width : height log-uniform in `ratio`.
    ///
    /// If no attempt fits, the largest centered crop within `ratio`. Of a `scale` of 1 alone it is that one
    /// always: the whole image has no other place, but for rounding.
    pub fn random(
        width: u32,
        height: u32,
        scale: [f64; 2],
        ratio: [f64; 2],
        rng: &mut Rng,
    ) -> Self {
        let (wide, high) = (f64::from(width), f64::from(height));
        for _ in 0..MAX_ATTEMPTS {
            let area = wide * high * rng.uniform_in(scale[0], scale[1]);
            let aspect = rng.uniform_in(ratio[0].ln(), ratio[1].ln()).exp();
            let w = (area * aspect).sqrt().round();
            let h = (area / aspect).sqrt().round();
            if (1.0..=wide).contains(&w) && (1.0..=high).contains(&h) {
                let (w, h) = (w as u32, h as u32);
                let top = rng.below(u64::from(height - h) + 1) as u32;
                let left = rng.below(u64::from(width - w) + 1) as u32;
                if scale == [1.0; 2] {
                    break;
                }
                return Self { left, top, width: w, height: h };
            }
        }
        let aspect = wide / high;
        let (w, h) = if aspect < ratio[0] {
            (width, ((wide / ratio[0]).round() as u32).clamp(1, height))
        } else if aspect > ratio[1] {
            (((high * ratio[1]).round() as u32).clamp(1, width), height)
        } else {
            (width, height)
        };
        Self { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_draws::{assert_equally_often, assert_share, assert_uniform};
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_crop_lies_inside(w in 1u32..5000, h in 1u32..5000, low in 0.01f64..1.0, seed: u64) {
            let crop = CropBox::random(w, h, [low, 1.0], RATIO, &mut Rng::new(seed, [0; 3]));
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.left + crop.width <= w && crop.top + crop.height <= h);
        }
    }

    #[test]
    fn area_and_shape_keep_to_their_limits_and_fill_them() {
        let mut rng = Rng::new(1, [0; 3]);
        let crops: Vec<CropBox> =
            (0..2000).map(|_| CropBox::random(400, 300, [0.05, 0.4], RATIO, &mut rng)).collect();
        let areas = crops.iter().map(|c| f64::from(c.width * c.height) / 120_000.0);
        let shapes = crops.iter().map(|c| f64::from(c.width) / f64::from(c.height));
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)))
        };
        let (smallest, largest) = range(&mut areas.into_iter());
        assert!((0.045..0.06).contains(&smallest), "{smallest}");
        assert!((0.38..0.41).contains(&largest), "{largest}");
        let (tall, wide) = range(&mut shapes.into_iter());
        assert!((0.73..0.77).contains(&tall) && (1.29..1.36).contains(&wide), "{tall} {wide}");
    }

    fn crops(size: [u32; 2], scale: [f64; 2], ratio: [f64; 2], count: u64) -> Vec<CropBox> {
        let [width, height] = size;
        let draw = |i| CropBox::random(width, height, scale, ratio, &mut Rng::new(2, [i, 0, 0]));
        (0..count).map(draw).collect()
    }

    #[test]
    fn areas_are_uniform_and_shapes_log_uniform() {
        let crops = crops([4000, 3000], [0.05, 0.15], [0.5, 4.0], 10_000);
        let area = |c: &CropBox| f64::from(c.width) * f64::from(c.height) / 12e6;
        assert_uniform(crops.iter().map(|c| area(c).clamp(0.05, 0.15)), 0.05, 0.15);
        let shape = |c: &CropBox| (f64::from(c.width) / f64::from(c.height)).clamp(0.5, 4.0).log2();
        assert_uniform(crops.iter().map(shape), -1.0, 2.0);
    }

    /// The first and the last row and column too.
    #[test]
    fn all_places_are_equally_likely() {
        let mut counts = [0; 6 * 8];
        for crop in crops([10, 12], [0.2084; 2], [1.0; 2], 10_000) {
            assert_eq!((crop.width, crop.height), (5, 5));
            counts[(crop.top * 6 + crop.left) as usize] += 1;
        }
        assert_equally_often(&counts);
    }

    /// One try in 60 fits here, as integrating over area and shape gives.
    #[test]
    fn ten_tries_are_made() {
        let crops = crops([20_000, 10_000], [0.6, 1.0], RATIO, 40_000);
        let fallback = CropBox { left: 3333, top: 0, width: 13_333, height: 10_000 };
        let fitting = crops.iter().filter(|&&crop| crop != fallback).count();
        assert_share(fitting, crops.len(), 1.0 - (1.0f64 - 0.01502).powi(10));
    }

    #[test]
    fn what_fits_exactly_is_taken() {
        let crop = CropBox::random(90, 90, [1.0; 2], [1.0; 2], &mut Rng::new(1, [0; 3]));
        assert_eq!(crop, CropBox { left: 0, top: 0, width: 90, height: 90 });
        // One pixel is the least; what rounds to none is not taken.
        let crop = CropBox::random(9, 9, [0.004; 2], [1.0; 2], &mut Rng::new(1, [0; 3]));
        assert_eq!((crop.width, crop.height), (1, 1));
        let crop = CropBox::random(9, 9, [0.003; 2], [1.0; 2], &mut Rng::new(1, [0; 3]));
        assert_eq!((crop.width, crop.height), (9, 9));
    }

    /// Rounding would let some tries of these fit.
    #[test]
    fn the_whole_image_has_one_place() {
        for (size, ratio, expected) in [
            ([24, 24], RATIO, [0, 0, 24, 24]),
            ([25, 24], RATIO, [0, 0, 25, 24]),
            ([101, 100], [1.0; 2], [0, 0, 100, 100]),
            ([100, 103], [1.0; 2], [0, 1, 100, 100]),
            ([60, 20], RATIO, [16, 0, 27, 20]),
        ] {
            let [left, top, width, height] = expected;
            let expected = CropBox { left, top, width, height };
            assert!(crops(size, [1.0; 2], ratio, 200).into_iter().all(|crop| crop == expected));
        }
    }

    #[test]
    fn the_fallback_is_centered() {
        let crop = CropBox::random(1, 5000, [0.4, 1.0], RATIO, &mut Rng::new(1, [0; 3]));
        assert_eq!(crop, CropBox { left: 0, top: 2499, width: 1, height: 1 });
        let crop = CropBox::random(5000, 100, [0.4, 1.0], RATIO, &mut Rng::new(1, [0; 3]));
        assert_eq!(crop, CropBox { left: 2433, top: 0, width: 133, height: 100 });
    }
}
