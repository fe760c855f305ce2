//! Gaussian blur, approximated by three box blurs in each direction.
//!
//! Pillow's `GaussianBlur`: boxes of fractional radius (Gwosdek et al. 2011, "Theoretical
//! foundations of Gaussian convolution by extended box filtering"), every pass rounded to 8 bits,
//! borders replicated, rows before columns.

use esvit_kernels::pixels::box_blur_row;

use crate::Image;
use crate::pixels::CHANNELS;

const PASSES: usize = 3;

/// Gaussian blur with a standard deviation of `radius` pixels; a no-op at 0 or below.
pub fn gaussian_blur(image: &mut Image, radius: f64) {
    if radius.is_nan() || radius <= 0.0 {
        return;
    }
    // Weights in units of 2^-24 cannot represent a wider box.
    let radius = radius.min(1e4) as f32;
    let box_blur = BoxBlur::for_gaussian(radius);
    let (width, height) = (image.width() as usize, image.height() as usize);
    // Only columns are blurred, since that vectorizes; for rows the image is transposed.
    let mut transposed = vec![0; image.pixels().len()];
    let mut spare = vec![0; image.pixels().len()];
    transpose(image.pixels(), &mut transposed, width, height);
    box_blur.columns(&mut transposed, &mut spare, height, width);
    transpose(&transposed, image.pixels_mut(), height, width);
    box_blur.columns(image.pixels_mut(), &mut spare, width, height);
}

/// A box of `2 * radius + 1` pixels of weight `whole` with one of weight `part` on each side;
/// weights are in units of 2^-24.
struct BoxBlur {
    radius: usize,
    whole: u32,
    part: u32,
}

impl BoxBlur {
    fn for_gaussian(sigma: f32) -> Self {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let l = ((length - 1.0) / 2.0).floor();
        let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (l + 1.0) * (l + 1.0)));
        let radius = l as u32;
        let whole = ((1 << 24) as f32 / ((l + a) * 2.0 + 1.0)) as u32;
        let part = ((1 << 24) - (radius * 2 + 1) * whole) / 2;
        Self { radius: radius as usize, whole, part }
    }

    /// Blurs along columns, [`PASSES`] times; `spare` has the length of `pixels`.
    fn columns(&self, pixels: &mut [u8], spare: &mut [u8], width: usize, height: usize) {
        let mut sums = vec![0; width * CHANNELS];
        for pass in 0..PASSES {
            if pass % 2 == 0 {
                self.pass(pixels, spare, &mut sums, height);
            } else {
                self.pass(spare, pixels, &mut sums, height);
            }
        }
        pixels.copy_from_slice(spare);
    }

    fn pass(&self, from: &[u8], to: &mut [u8], sums: &mut [u32], height: usize) {
        let stride = sums.len();
        let row = |y: isize| {
            let y = y.clamp(0, height as isize - 1) as usize;
            &from[y * stride..][..stride]
        };
        let radius = self.radius as isize;
        sums.fill(0);
        for y in -radius..=radius {
            for (sum, &value) in sums.iter_mut().zip(row(y)) {
                *sum += u32::from(value);
            }
        }
        for (y, out) in (0isize..).zip(to.chunks_exact_mut(stride)) {
            let (before, after) = (row(y - radius - 1), row(y + radius + 1));
            let rows = [row(y - radius), before, after];
            box_blur_row(rows, [self.whole, self.part], sums, out);
        }
    }
}

/// Transposes an image of `width` x `height`.
fn transpose(from: &[u8], to: &mut [u8], width: usize, height: usize) {
    let from = from.as_chunks::<CHANNELS>().0;
    let to = to.as_chunks_mut::<CHANNELS>().0;
    for (x, column) in to.chunks_exact_mut(height).enumerate() {
        for (pixel, row) in column.iter_mut().zip(from.chunks_exact(width)) {
            *pixel = row[x];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::{f7_after, noise};
    use proptest::prelude::*;

    #[test]
    fn as_pillow() {
        assert_eq!(f7_after(|p| gaussian_blur(p, 1.0)), [103, 118, 139]);
        assert_eq!(f7_after(|p| gaussian_blur(p, 0.1)), [51, 227, 180]);
        assert_eq!(f7_after(|p| gaussian_blur(p, 2.0)), [117, 110, 132]);
    }

    #[test]
    fn no_radius_no_change() {
        for radius in [0.0, -1.0, f64::NAN] {
            let mut image = noise(5, 4, 1);
            gaussian_blur(&mut image, radius);
            assert_eq!(image, noise(5, 4, 1));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn one_color_stays_and_values_keep_their_range(
            w in 1u32..40, h in 1u32..40, radius in 0.0f64..30.0, seed: u64
        ) {
            let mut flat = Image::filled(w, h, [9, 200, 255]);
            gaussian_blur(&mut flat, radius);
            prop_assert_eq!(&flat, &Image::filled(w, h, [9, 200, 255]));

            let mut image = noise(w, h, seed);
            let range = |p: &Image| (*p.pixels().iter().min().unwrap(), *p.pixels().iter().max().unwrap());
            let before = range(&image);
            gaussian_blur(&mut image, radius);
            let after = range(&image);
            prop_assert!(before.0 <= after.0 && after.1 <= before.1);
        }
    }

    #[test]
    fn extreme_shapes_and_radii() {
        for (w, h) in [(1, 1), (1, 5000), (5000, 1)] {
            let mut image = noise(w, h, 2);
            gaussian_blur(&mut image, 2.0);
        }
        let mut image = noise(7, 5, 3);
        gaussian_blur(&mut image, f64::INFINITY);
        // So wide a box sees the repeated corners only.
        let center = image.pixel(3, 2).unwrap();
        let spread = |p: &[u8]| p.iter().zip(center).map(|(a, b)| a.abs_diff(b)).max();
        assert!(image.pixels().chunks(3).all(|pixel| spread(pixel) <= Some(1)));
    }
}
