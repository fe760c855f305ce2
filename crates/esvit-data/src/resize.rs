//! Antialiased resizing as in Pillow: the filter widens as the image shrinks. (PyTorch's
//! `interpolate` has another bicubic kernel, a = -0.75, and by default does not widen it.)

use esvit_kernels::resample::{Filter, Pixels, Side, resample};
use serde::{Deserialize, Serialize};

use crate::augment::CropBox;
use crate::pixels::CHANNELS;
use crate::{Image, ImageError};

/// Interpolation filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic convolution with a = -0.5.
    #[default]
    Bicubic,
}

/// Resizes `crop` to `size` x `size`; an error if it is empty or reaches outside the image. The
/// filter does not read pixels outside of the crop.
pub fn resized_crop(
    image: &Image,
    crop: CropBox,
    size: u32,
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    resized_crop_to(image, crop, [size; 2], interpolation)
}

/// Resizes `crop` to `[width, height]`, likewise.
pub fn resized_crop_to(
    image: &Image,
    crop: CropBox,
    [to_width, to_height]: [u32; 2],
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    let CropBox { left, top, width, height } = crop;
    image.check_part(left, top, width, height)?;
    let (across, down) = (whole(to_width), whole(to_height));
    resampled(part(image, crop), &across, &down, interpolation)
}

/// Preprocessing for evaluation: the shorter side is resized, then a center square is cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalTransform {
    /// Shorter side after resizing, in pixels; `crop` if it is smaller.
    pub resize: u32,
    /// Side of the square, in pixels.
    pub crop: u32,
    /// Interpolation filter.
    #[serde(default)]
    pub interpolation: Interpolation,
}

impl EvalTransform {
    /// The usual ratio of 256 to 224, with bicubic interpolation.
    pub fn new(crop: u32) -> Self {
        let resize = (f64::from(crop) * 256.0 / 224.0).round() as u32;
        Self { resize, crop, interpolation: Interpolation::Bicubic }
    }

    /// The center square of the resized image, `crop` x `crop` pixels.
    pub fn apply(&self, image: &Image) -> Result<Image, ImageError> {
        // Only the square is computed: of 1 x 5000 pixels, the whole would have a million rows.
        let [across, down] = self.sides(image.width(), image.height());
        resampled(part(image, all(image)), &across, &down, self.interpolation)
    }

    /// The part `[left, top, width, height]` of an image of `width` x `height` pixels, at least
    /// one each, that is resized to the square.
    pub fn square(&self, width: u32, height: u32) -> [f64; 4] {
        let [across, down] = self.sides(width, height);
        let along = |side: u32, to: &Side| {
            let scale = f64::from(side) / to.length as f64;
            let length = (to.window.len() as f64 * scale).min(f64::from(side));
            (to.window.start as f64 * scale, length)
        };
        let ((left, part_width), (top, part_height)) =
            (along(width, &across), along(height, &down));
        [left, top, part_width, part_height]
    }

    /// The sides of the resized image, with the square as their windows.
    fn sides(&self, width: u32, height: u32) -> [Side; 2] {
        let crop = self.crop as usize;
        let shorter = u64::from(self.resize.max(self.crop));
        [(width, height), (height, width)].map(|(side, other)| {
            // torchvision truncates the longer side.
            let length = match side <= other {
                true => shorter,
                false => shorter * u64::from(side) / u64::from(other),
            } as usize;
            let start = ((length - crop) as f64 / 2.0).round_ties_even() as usize;
            Side { length, window: start..start + crop }
        })
    }
}

/// Resizes the whole image to `width` x `height`, whatever its aspect ratio.
pub fn resize(
    image: &Image,
    width: u32,
    height: u32,
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    resampled(part(image, all(image)), &whole(width), &whole(height), interpolation)
}

fn whole(length: u32) -> Side {
    Side { length: length as usize, window: 0..length as usize }
}

fn all(image: &Image) -> CropBox {
    CropBox { left: 0, top: 0, width: image.width(), height: image.height() }
}

/// A part inside of an image, as the resizer reads it.
fn part(image: &Image, part: CropBox) -> Pixels<'_> {
    let stride = image.width() as usize * CHANNELS;
    let start = part.top as usize * stride + part.left as usize * CHANNELS;
    let bytes = &image.pixels()[start..];
    Pixels { bytes, stride, width: part.width as usize, height: part.height as usize }
}

/// The windows of a resized image; an error if they are empty.
fn resampled(
    from: Pixels<'_>,
    across: &Side,
    down: &Side,
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    let [width, height] = [across, down].map(|side| side.window.len() as u32);
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    let filter = match interpolation {
        Interpolation::Bilinear => Filter::BILINEAR,
        Interpolation::Bicubic => Filter::BICUBIC,
    };
    Image::new(width, height, resample(from, across, down, filter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::{F7_SIDE, f7, noise};

    #[test]
    fn bicubic_as_pillow() {
        let all = CropBox { left: 0, top: 0, width: F7_SIDE, height: F7_SIDE };
        let small = resized_crop(&f7(), all, 8, Interpolation::Bicubic).unwrap();
        assert_eq!(small.pixel(3, 3), Some([149, 132, 143]));
        let large = resized_crop(&f7(), all, 24, Interpolation::Bicubic).unwrap();
        assert_eq!(large.pixel(10, 11), Some([197, 91, 140]));
    }

    #[test]
    fn nothing_outside_the_crop_takes_part() {
        let image = noise(40, 30, 1);
        let crop = CropBox { left: 7, top: 3, width: 20, height: 11 };
        let cut = image.crop(7, 3, 20, 11).unwrap();
        let all = CropBox { left: 0, top: 0, ..crop };
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            assert_eq!(
                resized_crop(&image, crop, 16, interpolation).unwrap(),
                resized_crop(&cut, all, 16, interpolation).unwrap()
            );
        }
        assert!(
            resized_crop(&image, CropBox { left: 21, ..crop }, 16, Default::default()).is_err()
        );
        assert!(resized_crop(&image, crop, 0, Default::default()).is_err());
        // Sums beyond 32 bits lie outside too.
        for crop in [CropBox { width: u32::MAX, ..crop }, CropBox { height: u32::MAX - 1, ..crop }]
        {
            let error = resized_crop(&image, crop, 16, Default::default()).unwrap_err();
            assert!(matches!(error, ImageError::Outside { .. }), "{error}");
        }
    }

    #[test]
    fn width_and_height_are_not_confused() {
        let places = crate::augment::test_images::places(100, 50);
        let crop = CropBox { left: 20, top: 10, width: 40, height: 10 };
        let cut = resized_crop_to(&places, crop, [20, 10], Interpolation::Bilinear).unwrap();
        assert_eq!((cut.width(), cut.height()), (20, 10));
        // Two columns become one, rows stay.
        assert_eq!(cut.pixel(10, 4), Some([41, 14, 0]));
        let all = resize(&places, 50, 25, Interpolation::Bilinear).unwrap();
        assert_eq!((all.width(), all.height()), (50, 25));
        assert_eq!(all.pixel(30, 5), Some([61, 11, 0]));
    }

    #[test]
    fn evaluation_equals_resizing_everything_and_cutting() {
        for (width, height) in [(57, 40), (40, 57), (33, 33), (31, 97)] {
            let image = noise(width, height, 2);
            let transform =
                EvalTransform { resize: 24, crop: 20, interpolation: Interpolation::Bicubic };
            let shorter = width.min(height);
            let (wide, high) = (24 * width / shorter, 24 * height / shorter);
            let offset = |side: u32| (f64::from(side - 20) / 2.0).round_ties_even() as u32;
            let expected = resize(&image, wide, high, Interpolation::Bicubic)
                .unwrap()
                .crop(offset(wide), offset(high), 20, 20)
                .unwrap();
            let got = transform.apply(&image).unwrap();
            assert_eq!(got, expected, "{width}x{height}");
        }
    }

    #[test]
    fn evaluation_of_extreme_shapes() {
        assert_eq!(EvalTransform::new(224).resize, 256);
        assert_eq!(EvalTransform::new(64).resize, 73);
        assert_eq!(EvalTransform::new(64).crop, 64);
        let square = |resize| {
            let transform =
                EvalTransform { resize, crop: 32, interpolation: Interpolation::Bicubic };
            transform.square(128, 64)
        };
        assert_eq!(square(64), [48.0, 16.0, 32.0, 32.0]);
        assert_eq!(square(32), [32.0, 0.0, 64.0, 64.0]);
        assert_eq!(square(8), square(32));
        // The longer side is cut to whole pixels, half of what is left is rounded to the even number.
        let odd = EvalTransform { resize: 10, crop: 9, interpolation: Interpolation::Bicubic };
        assert_eq!(odd.square(20, 29), [0.0, 2.0 * (29.0 / 14.0), 18.0, 9.0 * (29.0 / 14.0)]);
        for (width, height) in [(1, 1), (1, 5000), (5000, 1)] {
            let square = EvalTransform::new(224).apply(&noise(width, height, 3)).unwrap();
            assert_eq!((square.width(), square.height()), (224, 224));
        }
        assert!(EvalTransform::new(0).apply(&noise(5, 5, 4)).is_err());
    }
}
