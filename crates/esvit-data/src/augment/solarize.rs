//! Solarization.

use crate::Image;

/// Inverts every value of at least `threshold` (Pillow's `ImageOps.solarize`). A threshold above
/// 255 inverts nothing.
pub fn solarize(image: &mut Image, threshold: u32) {
    let Ok(threshold) = u8::try_from(threshold) else { return };
    for value in image.pixels_mut() {
        *value = if *value < threshold { *value } else { 255 - *value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::{f7, f7_after};

    #[test]
    fn as_pillow() {
        assert_eq!(f7_after(|p| solarize(p, 128)), [51, 25, 75]);
        assert_eq!(f7_after(|p| solarize(p, 0)), [204, 25, 75]);
        let mut image = f7();
        solarize(&mut image, 256);
        assert_eq!(image, f7());
    }

    #[test]
    fn the_threshold_itself_is_inverted() {
        let mut image = Image::new(1, 1, vec![127, 128, 129]).unwrap();
        solarize(&mut image, 128);
        assert_eq!(image.pixel(0, 0), Some([127, 127, 126]));
        let mut white = Image::filled(1, 1, [255; 3]);
        solarize(&mut white, 255);
        assert_eq!(white.pixel(0, 0), Some([0; 3]));
    }
}
