//! The rectangle of a random resized crop (Szegedy et al. 2015, details as in torchvision).

use esvit_kernels::rng::Rng;

/// Attempts before the fallback.
const TRIES: usize = 10;

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
    /// If no attempt fits, the largest centered crop within `ratio`.
    pub fn random(
        width: u32,
        height: u32,
        scale: [f64; 2],
        ratio: [f64; 2],
        rng: &mut Rng,
    ) -> Self {
        let (wide, high) = (f64::from(width), f64::from(height));
        for _ in 0..TRIES {
            let area = wide * high * rng.uniform_in(scale[0], scale[1]);
            let aspect = rng.uniform_in(ratio[0].ln(), ratio[1].ln()).exp();
            let w = (area * aspect).sqrt().round();
            let h = (area / aspect).sqrt().round();
            if (1.0..=wide).contains(&w) && (1.0..=high).contains(&h) {
                let (w, h) = (w as u32, h as u32);
                let top = rng.below(u64::from(height - h) + 1) as u32;
                let left = rng.below(u64::from(width - w) + 1) as u32;
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

    #[test]
    fn the_fallback_is_centered() {
        let crop = CropBox::random(1, 5000, [0.4, 1.0], RATIO, &mut Rng::new(1, [0; 3]));
        assert_eq!(crop, CropBox { left: 0, top: 2499, width: 1, height: 1 });
        let crop = CropBox::random(5000, 100, [0.4, 1.0], RATIO, &mut Rng::new(1, [0; 3]));
        assert_eq!(crop, CropBox { left: 2433, top: 0, width: 133, height: 100 });
    }
}
