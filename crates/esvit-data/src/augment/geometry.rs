//! Affine transforms by Pillow's arithmetic, in whose hands RandAugment's settings were found.

use crate::Image;
use crate::pixels::CHANNELS;

/// Maps coordinates in the result to coordinates in the image:
/// `(a x + b y + c, d x + e y + f)`.
pub(super) type Affine = [f64; 6];

/// Rotation by `degrees` about the center.
pub(super) fn rotation(image: &Image, degrees: f64) -> Affine {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (x, y) = (f64::from(image.width()) / 2.0, f64::from(image.height()) / 2.0);
    [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
}

/// The transformed image, of the same size, by bicubic interpolation. What comes from outside
/// the image is `fill`.
pub(super) fn transform(image: &mut Image, [a, b, c, d, e, f]: Affine, fill: [u8; 3]) {
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    let mut result = Image::filled(image.width(), image.height(), fill);
    for (row, y) in result.rows_mut().zip(0u32..) {
        let y = f64::from(y) + 0.5;
        for (pixel, x) in row.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(0u32..) {
            let x = f64::from(x) + 0.5;
            let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
            if (0.0..width).contains(&from_x) && (0.0..height).contains(&from_y) {
                *pixel = sample(image, from_x - 0.5, from_y - 0.5);
            }
        }
    }
    *image = result;
}

/// The color at (`x`, `y`), where whole numbers are the centers of pixels. Borders are repeated.
fn sample(image: &Image, x: f64, y: f64) -> [u8; 3] {
    let pixels = image.pixels().as_chunks::<CHANNELS>().0;
    let stride = image.width() as usize;
    let taps = |at: f64, limit: u32| -> [usize; 4] {
        let first = at.floor() as i64 - 1;
        std::array::from_fn(|i| (first + i as i64).clamp(0, i64::from(limit) - 1) as usize)
    };
    let (columns, rows) = (taps(x, image.width()), taps(y, image.height()));
    std::array::from_fn(|channel| {
        let along = rows.map(|row| {
            let values = columns.map(|column| f64::from(pixels[row * stride + column][channel]));
            cubic(values, x - x.floor())
        });
        // A float's conversion to u8 saturates, and truncates as Pillow does.
        cubic(along, y - y.floor()) as u8
    })
}

/// Cubic convolution through four neighbors, `t` beyond the second. Pillow transforms with a = -1
/// and resizes with a = -0.5.
fn cubic([p, q, r, s]: [f64; 4], t: f64) -> f64 {
    q + t * (r - p + t * (2.0 * (p - q) + r - s + t * (q - p - r + s)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::noise;

    #[test]
    fn whole_shifts_are_exact_and_filled() {
        let mut image = noise(7, 5, 1);
        transform(&mut image, [1.0, 0.0, 2.0, 0.0, 1.0, -1.0], [1, 2, 3]);
        assert_eq!(image.pixel(0, 1), noise(7, 5, 1).pixel(2, 0));
        assert_eq!(image.pixel(5, 1), Some([1, 2, 3]));
        assert_eq!(image.pixel(0, 0), Some([1, 2, 3]));
    }

    #[test]
    fn a_quarter_turn_moves_the_corners() {
        let original = noise(8, 8, 2);
        let mut image = original.clone();
        let quarter = rotation(&image, 90.0);
        transform(&mut image, quarter, [0; 3]);
        // The cosine of a quarter turn is not quite zero, and results are truncated.
        let near = |a: Option<[u8; 3]>, b: Option<[u8; 3]>| {
            a.unwrap().iter().zip(b.unwrap()).all(|(a, b)| a.abs_diff(b) <= 1)
        };
        assert!(near(image.pixel(2, 1), original.pixel(1, 5)));
        for _ in 0..3 {
            transform(&mut image, quarter, [0; 3]);
        }
        assert!(near(image.pixel(3, 4), original.pixel(3, 4)));
    }

    /// Pillow 13.0.0.
    #[test]
    fn an_edge_overshoots_as_pillows() {
        let edge = [[0; 3], [0; 3], [120; 3], [240; 3], [240; 3], [240; 3]].concat();
        let mut image = Image::new(6, 1, edge).unwrap();
        transform(&mut image, [1.0, 0.0, 0.5, 0.0, 1.0, 0.0], [7; 3]);
        let red: Vec<u8> = image.pixels().iter().step_by(3).copied().collect();
        assert_eq!(red, [0, 45, 195, 255, 240, 7]);
    }

    #[test]
    fn one_color_stays() {
        let mut image = Image::filled(31, 17, [9, 99, 199]);
        let matrix = rotation(&image, 17.0);
        transform(&mut image, matrix, [9, 99, 199]);
        assert_eq!(image, Image::filled(31, 17, [9, 99, 199]));
    }
}
