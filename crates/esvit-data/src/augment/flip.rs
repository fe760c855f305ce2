//! Horizontal flip.

use crate::Image;
use crate::pixels::CHANNELS;

/// Flips the image left to right.
pub fn horizontal_flip(image: &mut Image) {
    for row in image.rows_mut() {
        row.as_chunks_mut::<CHANNELS>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_pixels_not_channels() {
        let mut image = Image::new(3, 2, (0..18).collect()).unwrap();
        horizontal_flip(&mut image);
        assert_eq!(image.pixels()[..9], [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        assert_eq!(image.pixel(0, 1), Some([15, 16, 17]));
    }
}
