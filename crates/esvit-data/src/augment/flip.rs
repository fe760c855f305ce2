//! Mirroring.

use crate::Picture;
use crate::picture::CHANNELS;

/// Mirrors the picture left to right.
pub fn horizontal_flip(picture: &mut Picture) {
    for row in picture.rows_mut() {
        row.as_chunks_mut::<CHANNELS>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_pixels_not_channels() {
        let mut picture = Picture::new(3, 2, (0..18).collect()).unwrap();
        horizontal_flip(&mut picture);
        assert_eq!(picture.pixels()[..9], [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        assert_eq!(picture.pixel(0, 1), Some([15, 16, 17]));
    }
}
