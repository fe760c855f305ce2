//! Augmented views of an image with known geometry.

use esvit_data::augment::{ColorJitter, CropBox, grayscale, horizontal_flip, jitter};
use esvit_data::{Image, ImageError, Interpolation, resized_crop_to};
use esvit_kernels::rng::Rng;

use super::Grid;

/// Range of the aspect ratio of random crops, as in training.
pub const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// A crop of an image, optionally mirrored and recolored. It can be rendered in any size.
#[derive(Debug, Clone)]
pub struct View {
    /// The crop.
    pub crop: CropBox,
    /// Whether it is mirrored horizontally.
    pub mirrored: bool,
    /// Color augmentation: DINO's color jitter, then grayscale with this probability.
    colors: Option<(f64, Rng)>,
}

impl View {
    /// The whole image of `[width, height]` pixels.
    pub fn whole([width, height]: [u32; 2]) -> Self {
        let crop = CropBox { left: 0, top: 0, width, height };
        Self { crop, mirrored: false, colors: None }
    }

    /// A random crop of an image of `[width, height]` pixels with an area within `scale` (shares of
    /// the image), mirrored with probability 0.5.
    pub fn random([width, height]: [u32; 2], scale: [f64; 2], rng: &mut Rng) -> Self {
        let crop = CropBox::random(width, height, scale, RATIO, rng);
        Self { crop, mirrored: rng.chance(0.5), colors: None }
    }

    /// The same view of another crop.
    #[must_use]
    pub fn with_crop(self, crop: CropBox) -> Self {
        Self { crop, ..self }
    }

    /// The view mirrored horizontally.
    #[must_use]
    pub fn mirrored(self) -> Self {
        Self { mirrored: !self.mirrored, ..self }
    }

    /// The view with color jitter (0.4, 0.4, 0.2, 0.1, with probability 0.8), then grayscale with
    /// probability `grayscale`.
    #[must_use]
    pub fn with_color_jitter(self, grayscale: f64, rng: Rng) -> Self {
        Self { colors: Some((grayscale, rng)), ..self }
    }

    /// Renders the view of `image` with `[width, height]` pixels.
    ///
    /// # Errors
    /// [`ImageError`] if the crop is not inside the image, or the size is 0.
    pub fn render(&self, image: &Image, size: [u32; 2]) -> Result<Image, ImageError> {
        let CropBox { left, top, width, height } = self.crop;
        let mut shown = if [width, height] == size {
            image.crop(left, top, width, height)?
        } else {
            resized_crop_to(image, self.crop, size, Interpolation::Bicubic)?
        };
        if self.mirrored {
            horizontal_flip(&mut shown);
        }
        if let Some((p, rng)) = &self.colors {
            let mut rng = rng.clone();
            jitter(&mut shown, &ColorJitter::default(), &mut rng);
            if rng.chance(*p) {
                grayscale(&mut shown);
            }
        }
        Ok(shown)
    }

    /// Maps a point of the view (shares of its sides) to pixels of the image.
    pub fn to_image(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let x = if self.mirrored { 1.0 - x } else { x };
        let CropBox { left, top, width, height } = self.crop;
        [f64::from(left) + x * f64::from(width), f64::from(top) + y * f64::from(height)]
    }

    /// Maps a point of the image (in pixels) to shares of the view's sides; outside 0 to 1 if not
    /// visible.
    pub fn from_image(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let CropBox { left, top, width, height } = self.crop;
        let x = (x - f64::from(left)) / f64::from(width);
        let y = (y - f64::from(top)) / f64::from(height);
        [if self.mirrored { 1.0 - x } else { x }, y]
    }

    /// Ground truth: for each cell of this view, the position of its center in `other`, a view of
    /// the same image, in pixels; `None` if it is outside.
    pub fn truth(&self, grid: &Grid, other: &Self, others: &Grid) -> Vec<Option<[f64; 2]>> {
        let ([width, height], [to_width, to_height]) = (grid.size(), others.size());
        let place = |cell| {
            let [x, y] = grid.center(cell);
            let [x, y] = other.from_image(self.to_image([x / width, y / height]));
            let place = [x * to_width, y * to_height];
            others.cell_at(place).map(|_| place)
        };
        (0..grid.cells()).map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image whose colors say where a pixel is.
    fn atlas(width: u32, height: u32) -> Image {
        let color = |x: u32, y: u32| [x * 255 / (width - 1), y * 255 / (height - 1), 0];
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let bytes = pixels.flat_map(|(x, y)| color(x, y)).map(|value| value as u8).collect();
        Image::new(width, height, bytes).unwrap()
    }

    /// The true place must show the color of the cell's center.
    #[test]
    fn the_true_place_shows_the_same_color() {
        let image = atlas(300, 200);
        let size = [128, 128];
        let grid = Grid { rows: 16, columns: 16, cell: 8 };
        let (mut seen, mut unseen) = (0, 0);
        for seed in 0..20 {
            let [first, second] = [0, 1].map(|view| {
                View::random([300, 200], [0.2, 1.0], &mut Rng::new(seed, [view, 0, 0]))
            });
            let [a, b] = [&first, &second].map(|view| view.render(&image, size).unwrap());
            for (cell, truth) in first.truth(&grid, &second, &grid).into_iter().enumerate() {
                let Some([x, y]) = truth else {
                    unseen += 1;
                    continue;
                };
                seen += 1;
                let [cx, cy] = grid.center(cell);
                let expected = a.pixel(cx as u32, cy as u32).unwrap();
                let found = b.pixel(x as u32, y as u32).unwrap();
                let near = expected.iter().zip(found).all(|(a, b)| a.abs_diff(b) <= 4);
                assert!(near, "seed {seed}, cell {cell}: {expected:?} {found:?}");
            }
        }
        assert!(seen > 1000 && unseen > 100, "{seen} {unseen}");
    }

    /// What is not seen is not said to be: no pixel of the second view shows its color.
    #[test]
    fn cells_outside_the_other_view_have_no_true_place() {
        let grid = Grid { rows: 4, columns: 4, cell: 8 };
        let whole = View::whole([64, 64]);
        let right =
            View { crop: CropBox { left: 32, top: 0, width: 32, height: 64 }, ..whole.clone() };
        let truth = whole.truth(&grid, &right, &grid);
        let seen: Vec<bool> = truth[..4].iter().map(Option::is_some).collect();
        assert_eq!(seen, [false, false, true, true]);
        assert_eq!(truth[2], Some([8.0, 4.0]));
        assert_eq!(whole.truth(&grid, &right.mirrored(), &grid)[2], Some([24.0, 4.0]));
    }

    #[test]
    fn colors_are_the_same_at_every_size_and_may_be_gray() {
        let image = Image::new(40, 40, [200, 90, 10].repeat(1600)).unwrap();
        let view = View::whole([40, 40]).with_color_jitter(1.0, Rng::new(5, [0; 3]));
        let [small, large] = [40, 80].map(|side| view.render(&image, [side; 2]).unwrap());
        assert_eq!(small.pixel(0, 0), large.pixel(79, 79));
        let [r, g, b] = small.pixel(1, 1).unwrap();
        assert!(r == g && g == b);
        let colored = View::whole([40, 40]).with_color_jitter(0.0, Rng::new(5, [0; 3]));
        let [r, g, _] = colored.render(&image, [40; 2]).unwrap().pixel(1, 1).unwrap();
        assert_ne!(r, g);
    }

    #[test]
    fn half_of_the_random_views_are_mirrored() {
        let mirrored =
            |seed: &u64| View::random([30, 20], [0.3, 1.0], &mut Rng::new(*seed, [0; 3])).mirrored;
        let count = (0..200).filter(mirrored).count();
        assert!((70..=130).contains(&count), "{count}");
    }

    #[test]
    fn places_go_to_the_image_and_back() {
        let crop = CropBox { left: 10, top: 5, width: 20, height: 40 };
        let view = View::whole([50, 60]).with_crop(crop);
        assert_eq!(view.to_image([0.25, 0.5]), [15.0, 25.0]);
        let mirrored = view.clone().mirrored();
        assert_eq!(mirrored.to_image([0.25, 0.5]), [25.0, 25.0]);
        for view in [view, mirrored] {
            assert_eq!(view.from_image(view.to_image([0.25, 0.75])), [0.25, 0.75]);
        }
    }
}
