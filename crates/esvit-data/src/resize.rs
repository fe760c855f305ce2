//! Antialiased resizing as in Pillow: the filter widens as the image shrinks. (PyTorch's
//! `interpolate` has another bicubic kernel, a = -0.75, and by default does not widen it.)

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
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
    let empty = ImageError::Empty { width: to_width, height: to_height };
    if to_width == 0 || to_height == 0 {
        return Err(empty);
    }
    let all = [0.0, 0.0, f64::from(width), f64::from(height)];
    cropped_view(image.pixels(), image.width(), image.height(), crop)
        .and_then(|part| resample(&part, all, to_width, to_height, interpolation))
        .ok_or(empty)
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
        full_view(image.pixels(), width, height)
            .and_then(|whole| resample(&whole, part, crop, crop, self.interpolation))
            .ok_or(empty)
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
pub fn resize(
    image: &Image,
    width: u32,
    height: u32,
    interpolation: Interpolation,
) -> Result<Image, ImageError> {
    let empty = ImageError::Empty { width, height };
    let all = [0.0, 0.0, f64::from(image.width()), f64::from(image.height())];
    full_view(image.pixels(), image.width(), image.height())
        .and_then(|whole| resample(&whole, all, width, height, interpolation))
        .ok_or(empty)
}

/// What the resizer reads. Its code is generic and large, so it is called with one type of pixel and
/// one of image only: every further combination would be compiled again.
type CroppedView<'a> = TypedCroppedImage<'a, TypedImageRef<'a, U8x3>>;

/// The part `crop` of an image of `width` x `height` RGB pixels.
fn cropped_view(pixels: &[u8], width: u32, height: u32, crop: CropBox) -> Option<CroppedView<'_>> {
    let whole = TypedImageRef::from_buffer(width, height, pixels).ok()?;
    TypedCroppedImage::new(whole, crop.left, crop.top, crop.width, crop.height).ok()
}

fn full_view(pixels: &[u8], width: u32, height: u32) -> Option<CroppedView<'_>> {
    cropped_view(pixels, width, height, CropBox { left: 0, top: 0, width, height })
}

/// Resizes the part `[left, top, width, height]`. The filter may read beyond the part.
///
/// Rows are resized before columns, as in Pillow. The library has the other order, and the 8-bit
/// rounding in between differs by up to 9 gray levels on noise, so it is called twice.
fn resample(
    from: &CroppedView<'_>,
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

    let mut resize = |from: &CroppedView<'_>, width: u32, height: u32, [x, y, w, h]: [f64; 4]| {
        let mut pixels = vec![0; width as usize * height as usize * CHANNELS];
        let mut to = TypedImage::from_buffer(width, height, &mut pixels).ok()?;
        resizer.resize_typed::<U8x3>(from, &mut to, &options.crop(x, y, w, h)).ok()?;
        Some(pixels)
    };
    let from_height = from.height();
    let all_rows = f64::from(from_height);
    let rows = resize(from, width, from_height, [left, 0.0, part_width, all_rows])?;
    let rows = full_view(&rows, width, from_height)?;
    let pixels = resize(&rows, width, height, [0.0, top, f64::from(width), part_height])?;
    Image::new(width, height, pixels).ok()
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
        near(cut.pixel(10, 4), [41, 14, 0]);
        let all = resize(&places, 50, 25, Interpolation::Bilinear).unwrap();
        assert_eq!((all.width(), all.height()), (50, 25));
        near(all.pixel(30, 5), [61, 11, 0]);
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
            let worst = got.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b));
            assert!(worst.max() <= Some(1), "{width}x{height}");
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
