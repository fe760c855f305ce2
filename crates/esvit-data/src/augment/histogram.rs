//! Operations on the histogram of each channel, as in Pillow's `ImageOps`.

use super::lookup::lut;
use crate::Image;
use crate::pixels::CHANNELS;

type Counts = [u32; 256];

/// Stretches every channel to 0..=255.
pub(super) fn autocontrast(image: &mut Image) {
    map_channels(image, |counts| {
        let low = counts.iter().position(|&count| count > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        if high <= low {
            return lut(|value| value);
        }
        let scale = 255.0 / (high - low) as f64;
        // The cast saturates, and truncates as Pillow does.
        lut(|value| (f64::from(value) * scale - low as f64 * scale) as u8)
    });
}

/// Equalizes the histogram of every channel.
pub(super) fn equalize(image: &mut Image) {
    map_channels(image, |counts| {
        let total: u32 = counts.iter().sum();
        let last = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        let step = (total - last) / 255;
        if step == 0 {
            return lut(|value| value);
        }
        let mut cumulative = step / 2;
        let mut result = [0; 256];
        for (entry, count) in result.iter_mut().zip(counts) {
            *entry = (cumulative / step).min(255) as u8;
            cumulative += count;
        }
        result
    });
}

fn map_channels(image: &mut Image, make: impl Fn(&Counts) -> [u8; 256]) {
    let mut counts = [[0; 256]; CHANNELS];
    for pixel in image.pixels().as_chunks::<CHANNELS>().0 {
        for (counts, &value) in counts.iter_mut().zip(pixel) {
            counts[value as usize] += 1;
        }
    }
    let tables = counts.map(|counts| make(&counts));
    for pixel in image.pixels_mut().as_chunks_mut::<CHANNELS>().0 {
        for (lut, value) in tables.iter().zip(pixel) {
            *value = lut[*value as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::hashed;

    fn gray(values: &[u8]) -> Image {
        let pixels = values.iter().flat_map(|&value| [value; 3]).collect();
        Image::new(values.len() as u32, 1, pixels).unwrap()
    }

    #[test]
    fn autocontrast_reaches_both_ends() {
        let mut image = gray(&[50, 100, 150]);
        autocontrast(&mut image);
        assert_eq!(image, gray(&[0, 127, 255]));
        let mut flat = gray(&[77, 77]);
        autocontrast(&mut flat);
        assert_eq!(flat, gray(&[77, 77]));
    }

    #[test]
    fn equalize_spreads_a_narrow_range() {
        let values: Vec<u8> = (0..4096).map(|i| 100 + (i % 32) as u8).collect();
        let mut image = gray(&values);
        equalize(&mut image);
        assert_eq!(image.pixel(0, 0), Some([0; 3]));
        assert!(image.pixel(31, 0).unwrap()[0] >= 250);
        let mut flat = gray(&[77; 300]);
        equalize(&mut flat);
        assert_eq!(flat, gray(&[77; 300]));
    }

    /// Pillow 13.0.0: `ImageOps.autocontrast`, `ImageOps.equalize`.
    #[test]
    fn as_pillow() {
        let gamma = |value: u8| (u32::from(value) * u32::from(value) / 300) as u8 + 20;
        let mut image = hashed(40, 30);
        image.pixels_mut().iter_mut().for_each(|value| *value = gamma(*value));
        let mut stretched = image.clone();
        autocontrast(&mut stretched);
        equalize(&mut image);
        let sum = |image: &Image| image.pixels().iter().map(|&v| u32::from(v)).sum::<u32>();
        assert_eq!((stretched.pixel(5, 7), sum(&stretched)), (Some([122, 33, 42]), 303_295));
        assert_eq!((image.pixel(5, 7), sum(&image)), (Some([208, 108, 126]), 522_029));
    }
}
