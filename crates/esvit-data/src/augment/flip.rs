//! Flips and turns by right angles.

use crate::Image;
use crate::pixels::CHANNELS;

/// Flips the image left to right.
pub fn horizontal_flip(image: &mut Image) {
    for row in image.rows_mut() {
        row.as_chunks_mut::<CHANNELS>().0.reverse();
    }
}

/// Flips the image top to bottom.
pub fn vertical_flip(image: &mut Image) {
    let stride = image.stride();
    let (mut top, mut bottom) = (0, image.height() as usize);
    let pixels = image.pixels_mut();
    while top + 1 < bottom {
        bottom -= 1;
        let (upper, lower) = pixels.split_at_mut(bottom * stride);
        upper[top * stride..(top + 1) * stride].swap_with_slice(&mut lower[..stride]);
        top += 1;
    }
}

/// Turns a square image counterclockwise by a number of right angles.
///
/// # Panics
/// When the image is no square.
pub fn rotate90(image: &mut Image, quarters: u32) {
    let side = image.width() as usize;
    assert_eq!(image.width(), image.height(), "a view is a square");
    let from = image.pixels().as_chunks::<CHANNELS>().0.to_vec();
    let to = image.pixels_mut().as_chunks_mut::<CHANNELS>().0;
    for (y, row) in to.chunks_exact_mut(side).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            let last = side - 1;
            // Where the pixel comes from.
            let (x, y) = match quarters % 4 {
                0 => (x, y),
                1 => (last - y, x),
                2 => (last - x, last - y),
                _ => (y, last - x),
            };
            *pixel = from[y * side + x];
        }
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

    /// Each pixel of 3 x 3 by its number.
    fn square() -> Image {
        Image::new(3, 3, (0..9).flat_map(|value| [value, 100, 200]).collect()).unwrap()
    }

    fn numbers(image: &Image) -> Vec<u8> {
        assert!(image.pixels().chunks(3).all(|pixel| pixel[1..] == [100, 200]));
        image.pixels().iter().step_by(3).copied().collect()
    }

    #[test]
    fn top_becomes_bottom() {
        let mut image = square();
        vertical_flip(&mut image);
        assert_eq!(numbers(&image), [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        let mut even = Image::new(1, 4, (0..12).collect()).unwrap();
        vertical_flip(&mut even);
        assert_eq!(even.pixels(), [9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]);
    }

    #[test]
    fn turns_are_counterclockwise() {
        let turned = |quarters| {
            let mut image = square();
            rotate90(&mut image, quarters);
            numbers(&image)
        };
        assert_eq!(turned(1), [2, 5, 8, 1, 4, 7, 0, 3, 6]);
        assert_eq!(turned(2), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(turned(3), [6, 3, 0, 7, 4, 1, 8, 5, 2]);
        assert_eq!(turned(4), numbers(&square()));
    }
}
