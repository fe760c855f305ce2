//! Random erasing (Zhong et al. 2017) in timm's "pixel" mode: a rectangle of normal noise.

use esvit_kernels::rng::Rng;
use esvit_settings::settings;

use super::CropBox;

/// Attempts to find a rectangle that fits.
const TRIES: usize = 10;

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
    pub(super) fn draw(&self, size: u32, rng: &mut Rng) -> Option<CropBox> {
        if !rng.chance(self.p) {
            return None;
        }
        let side = f64::from(size);
        for _ in 0..TRIES {
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

    #[test]
    fn rectangles_lie_inside_and_come_as_often_as_asked() {
        let erase = Erase { p: 0.25, ..Erase::default() };
        let boxes: Vec<CropBox> =
            (0..4000).filter_map(|i| erase.draw(96, &mut Rng::new(1, [i, 0, 0]))).collect();
        assert!((900..1100).contains(&boxes.len()), "{}", boxes.len());
        for b in &boxes {
            assert!(b.left + b.width <= 96 && b.top + b.height <= 96);
            let share = f64::from(b.width * b.height) / (96.0 * 96.0);
            assert!((0.015..0.35).contains(&share), "{share}");
        }
        assert!(Erase::default().draw(96, &mut Rng::new(1, [0; 3])).is_none());
        assert!(Erase { p: 1.0, ..erase }.draw(1, &mut Rng::new(1, [0; 3])).is_none());
    }
}
