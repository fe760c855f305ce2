//! Random erasing (Zhong et al. 2017) in timm's "pixel" mode: a rectangle of normal noise.

use esvit_kernels::rng::Rng;
use esvit_settings::settings;

use super::CropBox;

/// Attempts to find a rectangle that fits.
const MAX_ATTEMPTS: usize = 10;

settings! {
    /// Random erasing: probability and ranges.
    pub struct Erase / PartialErase {
        /// Probability of erasing a rectangle; 0 turns erasing off.
        pub p: f64 = 0.0,
        /// Range of the area, as a share of the view's.
        pub area: [f64; 2] = [0.02, 1.0 / 3.0],
        /// Range of height : width, drawn log-uniformly.
        pub aspect: [f64; 2] = [0.3, 1.0 / 0.3],
    }
}

impl Erase {
    /// The rectangle to erase from a view of `size` x `size`, if any.
    pub(super) fn sample(&self, size: u32, rng: &mut Rng) -> Option<CropBox> {
        if !rng.chance(self.p) {
            return None;
        }
        let side = f64::from(size);
        for _ in 0..MAX_ATTEMPTS {
            let area = side * side * rng.uniform_in(self.area[0], self.area[1]);
            let aspect = rng.uniform_in(self.aspect[0].ln(), self.aspect[1].ln()).exp();
            let height = (area * aspect).sqrt().round();
            let width = (area / aspect).sqrt().round();
            if (1.0..side).contains(&height) && (1.0..side).contains(&width) {
                let (width, height) = (width as u32, height as u32);
                let top = rng.below(u64::from(size - height) + 1) as u32;
                let left = rng.below(u64::from(size - width) + 1) as u32;
                return Some(CropBox { left, top, width, height });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_draws::{assert_equally_often, assert_share, assert_uniform};

    #[test]
    fn rectangles_lie_inside_and_come_as_often_as_asked() {
        let erase = Erase { p: 0.25, ..Erase::default() };
        let boxes: Vec<CropBox> =
            (0..4000).filter_map(|i| erase.sample(96, &mut Rng::new(1, [i, 0, 0]))).collect();
        assert_share(boxes.len(), 4000, 0.25);
        for b in &boxes {
            assert!(b.left + b.width <= 96 && b.top + b.height <= 96);
            let share = f64::from(b.width * b.height) / (96.0 * 96.0);
            assert!((0.015..0.35).contains(&share), "{share}");
        }
        assert!(Erase::default().sample(96, &mut Rng::new(1, [0; 3])).is_none());
        assert!(Erase { p: 1.0, ..erase }.sample(1, &mut Rng::new(1, [0; 3])).is_none());
    }

    fn boxes(erase: &Erase, size: u32) -> Vec<CropBox> {
        (0..10_000).filter_map(|i| erase.sample(size, &mut Rng::new(2, [i, 0, 0]))).collect()
    }

    #[test]
    fn areas_are_uniform_and_shapes_log_uniform() {
        let erase = Erase { p: 1.0, area: [0.02, 0.2], aspect: [0.5, 4.0] };
        let boxes = boxes(&erase, 3000);
        let area = |b: &CropBox| f64::from(b.width) * f64::from(b.height) / 9e6;
        assert_uniform(boxes.iter().map(|b| area(b).clamp(0.02, 0.2)), 0.02, 0.2);
        let shape = |b: &CropBox| (f64::from(b.height) / f64::from(b.width)).clamp(0.5, 4.0).log2();
        assert_uniform(boxes.iter().map(shape), -1.0, 2.0);
    }

    #[test]
    fn all_places_are_equally_likely() {
        let erase = Erase { p: 1.0, area: [0.24; 2], aspect: [1.5; 2] };
        let mut counts = [0; 5 * 7];
        for b in boxes(&erase, 10) {
            assert_eq!((b.width, b.height), (4, 6));
            counts[(b.top * 7 + b.left) as usize] += 1;
        }
        assert_equally_often(&counts);
    }

    /// timm erases neither a whole side nor less than a pixel.
    #[test]
    fn what_does_not_fit_is_not_erased() {
        let square = |share: f64| Erase { p: 1.0, area: [share; 2], aspect: [1.0; 2] };
        for (share, side) in [(1.0, None), (0.81, Some(9)), (0.01, Some(1)), (0.002, None)] {
            let drawn = square(share).sample(10, &mut Rng::new(1, [0; 3]));
            assert_eq!(drawn.map(|b| b.width), side, "{share}");
        }
    }

    /// Every second try is too high, so nothing is erased once in 2^10.
    #[test]
    fn ten_tries_are_made() {
        let erase = Erase { p: 1.0, area: [0.25; 2], aspect: [2.0, 8.0] };
        let none = 40_000
            - (0..40_000).filter_map(|i| erase.sample(1000, &mut Rng::new(3, [i, 0, 0]))).count();
        assert_share(none, 40_000, 0.5f64.powi(10));
    }
}
