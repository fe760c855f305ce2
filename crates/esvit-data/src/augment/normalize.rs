//! Normalization of 8-bit pixels, and back.

use esvit_kernels::images;

use crate::Image;
use crate::pixels::CHANNELS;

/// `(value / 255 - mean) / std` by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// Factor of an 8-bit value.
    pub scale: [f32; CHANNELS],
    /// What is added to the product.
    pub shift: [f32; CHANNELS],
}

impl Default for Normalization {
    /// Values from 0 to 1.
    fn default() -> Self {
        Self::new([0.0; 3], [1.0; 3])
    }
}

/// A slice whose length does not fit an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an image of {width}x{height} has {need} values, but the slice holds {got}")]
pub struct SliceLength {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Number of values of the image.
    pub need: usize,
    /// Number of values of the slice.
    pub got: usize,
}

impl Normalization {
    /// Mean and standard deviation of red, green and blue, for values in 0..=1.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Self {
        Self {
            scale: std.map(|std| (1.0 / (255.0 * std)) as f32),
            shift: std::array::from_fn(|c| (-mean[c] / std[c]) as f32),
        }
    }

    /// Writes normalized values `[3, height, width]` into `out`, which must have that length.
    pub fn write(&self, image: &Image, out: &mut [f32]) -> Result<(), SliceLength> {
        check_length(image.width(), image.height(), out.len())?;
        images::normalize(image.pixels(), self.scale, self.shift, out);
        Ok(())
    }

    /// Converts normalized values `[3, height, width]` to an image, clamped to 8 bits.
    pub fn denormalize(
        &self,
        values: &[f32],
        width: u32,
        height: u32,
    ) -> Result<Image, SliceLength> {
        let pixels = check_length(width, height, values.len())?;
        let mut image = Image::filled(width, height, [0; 3]);
        for (channel, plane) in values.chunks_exact(pixels).enumerate() {
            for (value, pixel) in plane.iter().zip(image.pixels_mut().as_chunks_mut().0) {
                let pixel: &mut [u8; CHANNELS] = pixel;
                pixel[channel] = self.byte(*value, channel);
            }
        }
        Ok(image)
    }

    /// The 8-bit value of a normalized value.
    pub(super) fn byte(&self, value: f32, channel: usize) -> u8 {
        ((value - self.shift[channel]) / self.scale[channel]).round() as u8
    }
}

/// The number of pixels; an error unless `got` values are an image's.
fn check_length(width: u32, height: u32, got: usize) -> Result<usize, SliceLength> {
    let pixels = width as usize * height as usize;
    let need = pixels.saturating_mul(CHANNELS);
    if need == got && got > 0 { Ok(pixels) } else { Err(SliceLength { width, height, need, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::noise;

    const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
    const STD: [f64; 3] = [0.229, 0.224, 0.225];

    #[test]
    fn planes_of_normalized_values_and_back() {
        let image = noise(5, 3, 1);
        let normalization = Normalization::new(MEAN, STD);
        let mut values = vec![0.0; 45];
        normalization.write(&image, &mut values).unwrap();
        let expected = (f64::from(image.pixel(3, 2).unwrap()[1]) / 255.0 - MEAN[1]) / STD[1];
        assert!((f64::from(values[15 + 13]) - expected).abs() < 1e-6);
        assert_eq!(normalization.denormalize(&values, 5, 3).unwrap(), image);
    }

    #[test]
    fn every_value_comes_back_and_what_8_bits_cannot_show_is_cut() {
        let normalization = Normalization::new(MEAN, STD);
        let all = (0..=255).flat_map(|value: u8| [value, 255 - value, value / 2]).collect();
        let all = Image::new(16, 16, all).unwrap();
        let mut values = vec![0.0; 3 * 256];
        normalization.write(&all, &mut values).unwrap();
        assert_eq!(normalization.denormalize(&values, 16, 16).unwrap(), all);
        let cut = normalization.denormalize(&[-9.0, 9.0, f32::NAN], 1, 1).unwrap();
        assert_eq!(cut.pixel(0, 0), Some([0, 255, 0]));
        // Half a gray level below 100 in green.
        let half = ((99.51 / 255.0 - MEAN[1]) / STD[1]) as f32;
        assert_eq!(normalization.byte(half, 1), 100);
    }

    #[test]
    fn the_length_is_checked() {
        let normalization = Normalization::new(MEAN, STD);
        let error = normalization.write(&noise(5, 3, 1), &mut [0.0; 44]).unwrap_err();
        assert_eq!((error.need, error.got), (45, 44));
        assert!(normalization.denormalize(&[], 0, 3).is_err());
    }
}
