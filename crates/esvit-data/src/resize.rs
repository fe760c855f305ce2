//! Antialiased resizing as in Pillow: the filter widens as the image shrinks. (PyTorch's
//! `interpolate` has another bicubic kernel, a = -0.75, and by default does not widen it.)

use fast_image_resize::images::{CroppedImage, Image as Buffer, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

use crate::augment::CropBox;
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
    let outside = || ImageError::Outside {
        left,
        top,
        crop_width: width,
        crop_height: height,
        width: image.width(),
        height: image.height(),
    };
    if width == 0 || height == 0 || to_width == 0 || to_height == 0 {
        return Err(ImageError::Empty {
            width: width.min(to_width),
            height: height.min(to_height),
        });
    }
    let whole = view(image).ok_or_else(outside)?;
    let part = CroppedImage::new(&whole, left, top, width, height).map_err(|_| outside())?;
    let all = [0.0, 0.0, f64::from(width), f64::from(height)];
    resample(&part, all, to_width, to_height, interpolation).ok_or_else(outside)
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
        let crop = self.crop;
        let (width, height) = (image.width(), image.height());
        let empty = ImageError::Empty { width: crop, height: crop };
        if crop == 0 {
            return Err(empty);
        }
        // Only the square is computed. The filter reads its surroundings, so that the result equals
        // that of the whole image, which for 1 x 5000 pixels would have a million rows.
        let part = self.square(width, height);
        let whole = view(image).ok_or(ImageError::Empty { width, height })?;
        resample(&whole, part, crop, crop, self.interpolation).ok_or(empty)
    }

    /// The part `[left, top, width, height]` of an image of `width` x `height` pixels, at least
    /// one each, that is resized to the square.
    pub fn square(&self, width: u32, height: u32) -> [f64; 4] {
        let shorter = u64::from(self.resize.max(self.crop));
        // torchvision truncates the longer side.
        let scaled = |side: u32, other: u32| match side <= other {
            true => shorter,
            false => shorter * u64::from(side) / u64::from(other),
        };
        let (wide, high) = (scaled(width, height), scaled(height, width));
        let offset = |side: u64| ((side - u64::from(self.crop)) as f64 / 2.0).round_ties_even();
        let (fx, fy) = (f64::from(width) / wide as f64, f64::from(height) / high as f64);
        let crop_side = f64::from(self.crop);
        [
            offset(wide) * fx,
            offset(high) * fy,
            (crop_side * fx).min(f64::from(width)),
            (crop_side * fy).min(f64::from(height)),
        ]
    }
}

/// Resizes the whole image to `width` x `height`, whatever its aspect ratio.
pub fn resized(
    image: &Image,
    width: u32,
    height: u32,
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    let empty = ImageError::Empty { width, height };
    let all = [0.0, 0.0, f64::from(image.width()), f64::from(image.height())];
    let whole = view(image).ok_or(ImageError::Empty { width, height })?;
    resample(&whole, all, width, height, interpolation).ok_or(empty)
}

/// Resizes for the contact sheet.
pub(crate) fn resize_to(image: &Image, width: u32, height: u32) -> Option<Image> {
    resized(image, width, height, Interpolation::Bicubic).ok()
}

fn view(image: &Image) -> Option<ImageRef<'_>> {
    ImageRef::new(image.width(), image.height(), image.pixels(), PixelType::U8x3).ok()
}

/// Resizes the part `[left, top, width, height]`. The filter may read beyond the part.
///
/// Rows are resized before columns, as in Pillow. The library has the other order, and the 8-bit
/// rounding in between differs by up to 9 gray levels on noise, so it is called twice.
fn resample(
    from: &impl IntoImageView,
    [left, top, part_width, part_height]: [f64; 4],
    width: u32,
    height: u32,
    interpolation: Interpolation,
) -> Option<Image> {
    let filter = match interpolation {
        Interpolation::Bilinear => FilterType::Bilinear,
        // The cubic convolution with a = -0.5 is the Catmull-Rom spline.
        Interpolation::Bicubic => FilterType::CatmullRom,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let mut resizer = Resizer::new();

    let mut rows = Buffer::new(width, from.height(), PixelType::U8x3);
    let all_rows = f64::from(from.height());
    resizer.resize(from, &mut rows, &options.crop(left, 0.0, part_width, all_rows)).ok()?;
    let mut result = Buffer::new(width, height, PixelType::U8x3);
    let columns = options.crop(0.0, top, f64::from(width), part_height);
    resizer.resize(&rows, &mut result, &columns).ok()?;
    Image::new(width, height, result.into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::{F7_SIDE, f7, noise};

    fn near(got: Option<[u8; 3]>, expected: [u8; 3]) {
        let got = got.unwrap();
        assert!(got.iter().zip(expected).all(|(g, e)| g.abs_diff(e) <= 1), "{got:?} {expected:?}");
    }

    #[test]
    fn bicubic_as_pillow() {
        let all = CropBox { left: 0, top: 0, width: F7_SIDE, height: F7_SIDE };
        let small = resized_crop(&f7(), all, 8, Interpolation::Bicubic).unwrap();
        near(small.pixel(3, 3), [149, 132, 143]);
        let large = resized_crop(&f7(), all, 24, Interpolation::Bicubic).unwrap();
        near(large.pixel(10, 11), [197, 91, 140]);
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
            let expected = resize_to(&image, wide, high)
                .unwrap()
                .crop(offset(wide), offset(high), 20, 20)
                .unwrap();
            let got = transform.apply(&image).unwrap();
            let worst = got.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b));
            assert!(worst.max() <= Some(1), "{width}x{height}");
        }
    }

    #[test]
    fn evaluation_of_extreme_shapes() {
        assert_eq!(EvalTransform::new(224).resize, 256);
        assert_eq!(EvalTransform::new(64).resize, 73);
        for (width, height) in [(1, 1), (1, 5000), (5000, 1)] {
            let square = EvalTransform::new(224).apply(&noise(width, height, 3)).unwrap();
            assert_eq!((square.width(), square.height()), (224, 224));
        }
        assert!(EvalTransform::new(0).apply(&noise(5, 5, 4)).is_err());
    }
}
