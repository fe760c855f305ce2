//! The network's input for one image of any shape, and the mapping of pixels to it.

use esvit_data::{EvalTransform, Image, Preprocess, resize};

use super::AttentionError;

/// Maximum number of input pixels: every token of every head has a row of weights.
pub(super) const MAX_PIXELS: u64 = 1 << 22;

/// Which part of an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The center square, as in evaluations.
    Center,
    /// The whole image, with its aspect ratio.
    Whole,
}

/// An image as input of the network; its sides are multiples of the patch size.
#[derive(Debug, Clone)]
pub struct InputImage {
    /// For display.
    pub image: Image,
    /// Normalized pixels `[3, height, width]`.
    pub pixels: Vec<f32>,
    /// The part of the original image that is used, `[left, top, width, height]` in its pixels.
    part: [f64; 4],
}

impl InputImage {
    /// Prepares `image` with its shorter side (of the center square: each side) resized to `size`
    /// pixels, cropped or rounded to whole patches.
    ///
    /// # Errors
    /// [`AttentionError::Size`] if that is less than a patch or too large.
    pub fn new(
        image: &Image,
        preprocess: &Preprocess,
        framing: Framing,
        size: usize,
        patch: usize,
    ) -> Result<Self, AttentionError> {
        check([size as u64; 2], patch)?;
        let transform = &preprocess.transform;
        let (image, part) = match framing {
            // The center square, cropped to whole patches.
            Framing::Center => {
                let crop = f64::from(transform.crop.max(1));
                let resize = (f64::from(transform.resize) * size as f64 / crop).round() as u32;
                let transform = EvalTransform { crop: size as u32, resize, ..*transform };
                let [left, top, width, height] = transform.square(image.width(), image.height());
                let side = (size - size % patch) as u32;
                let kept = f64::from(side) / size as f64;
                let square = transform.apply(image)?.crop(0, 0, side, side)?;
                (square, [left, top, width * kept, height * kept])
            }
            // The whole image, its sides rounded to whole patches.
            Framing::Whole => {
                let sides = [image.width(), image.height()].map(f64::from);
                let scale = size as f64 / sides[0].min(sides[1]);
                let patches = |side: f64| (side * scale / patch as f64).round().max(1.0) as u64;
                let rounded = sides.map(|side| patches(side).saturating_mul(patch as u64));
                check(rounded, patch)?;
                let [width, height] = rounded.map(|side| side as u32);
                let image = resize(image, width, height, transform.interpolation)?;
                (image, [0.0, 0.0, sides[0], sides[1]])
            }
        };
        Ok(Self { pixels: preprocess.normalize(&image), image, part })
    }

    /// Height and width in pixels.
    pub fn size(&self) -> [usize; 2] {
        [self.image.height() as usize, self.image.width() as usize]
    }

    /// Input coordinates `[x, y]` of the center of a pixel of the original image.
    ///
    /// # Errors
    /// [`AttentionError::Outside`] if the pixel is outside the input.
    pub fn map_pixel(&self, [x, y]: [u32; 2]) -> Result<[f64; 2], AttentionError> {
        let [left, top, width, height] = self.part;
        let [shown_height, shown_width] = self.size().map(|side| side as f64);
        let place = [
            (f64::from(x) + 0.5 - left) / width * shown_width,
            (f64::from(y) + 0.5 - top) / height * shown_height,
        ];
        let inside = |place: f64, side: f64| (0.0..side).contains(&place);
        if inside(place[0], shown_width) && inside(place[1], shown_height) {
            return Ok(place);
        }
        // First and last pixel whose center is inside.
        let ends = |start: f64, length: f64| {
            [(start - 0.5).ceil() as u32, ((start + length - 0.5).ceil() - 1.0).max(0.0) as u32]
        };
        Err(AttentionError::Outside { x, y, columns: ends(left, width), rows: ends(top, height) })
    }

    /// Center of the input, `[x, y]`.
    pub fn center(&self) -> [f64; 2] {
        let [height, width] = self.size();
        [width as f64 / 2.0, height as f64 / 2.0]
    }
}

/// Checks the size of the input.
fn check([width, height]: [u64; 2], patch: usize) -> Result<(), AttentionError> {
    if width.min(height) < patch as u64 || width.saturating_mul(height) > MAX_PIXELS {
        return Err(AttentionError::Size { width, height, patch });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::ViewsConfig;

    fn input(width: u32, height: u32, framing: Framing, size: usize) -> InputImage {
        let pixels = (0..width * height).flat_map(|i| {
            [(i % width * 255 / width.max(2)) as u8, (i / width * 255 / height.max(2)) as u8, 0]
        });
        let image = Image::new(width, height, pixels.collect()).unwrap();
        let preprocess = Preprocess::new(32, 40, &ViewsConfig::default());
        InputImage::new(&image, &preprocess, framing, size, 4).unwrap()
    }

    #[test]
    fn pixels_are_found_again_in_the_center() {
        // 100 x 50 becomes 80 x 40, of which the middle 32 x 32 are shown.
        let input = input(100, 50, Framing::Center, 32);
        assert_eq!(input.size(), [32, 32]);
        let [x, y] = input.map_pixel([50, 25]).unwrap();
        assert!((x - 16.4).abs() < 1e-9 && (y - 16.4).abs() < 1e-9, "{x} {y}");
        // What is there is what was there.
        let red = input.image.pixel(x as u32, y as u32).unwrap()[0];
        assert!(red.abs_diff(127) <= 3, "{red}");
        assert!(input.map_pixel([30, 5]).is_ok() && input.map_pixel([69, 44]).is_ok());
        for outside in [[29, 25], [70, 25], [50, 4], [50, 45], [1000, 25]] {
            let error = input.map_pixel(outside).unwrap_err().to_string();
            assert!(error.contains("columns 30 to 69, rows 5 to 44"), "{error}");
        }
    }

    #[test]
    fn the_whole_image_keeps_its_aspect_and_has_whole_patches() {
        let input = input(100, 50, Framing::Whole, 34);
        assert_eq!(input.size(), [36, 68]);
        assert!(input.map_pixel([0, 0]).is_ok() && input.map_pixel([99, 49]).is_ok());
        assert!(input.map_pixel([100, 0]).is_err());
    }

    #[test]
    fn odd_sizes_are_cut_to_whole_patches() {
        let input = input(64, 64, Framing::Center, 35);
        assert_eq!(input.size(), [32, 32]);
        assert_eq!(input.pixels.len(), 3 * 32 * 32);
    }

    #[test]
    fn sizes_that_cannot_be_used_are_refused() {
        let line = Image::new(1, 5000, vec![9; 15000]).unwrap();
        let preprocess = Preprocess::new(32, 0, &ViewsConfig::default());
        let with = |framing, size| InputImage::new(&line, &preprocess, framing, size, 4);
        assert!(with(Framing::Center, 32).is_ok());
        assert!(matches!(with(Framing::Center, 3), Err(AttentionError::Size { .. })));
        assert!(matches!(with(Framing::Center, 0), Err(AttentionError::Size { .. })));
        assert!(matches!(with(Framing::Whole, 224), Err(AttentionError::Size { .. })));
        assert!(matches!(with(Framing::Center, 1 << 40), Err(AttentionError::Size { .. })));
    }
}
