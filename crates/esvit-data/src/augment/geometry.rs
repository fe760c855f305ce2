//! Affine transforms.

use crate::Image;
use crate::pixels::CHANNELS;

/// Maps coordinates in the result to coordinates in the image:
/// `(a x + b y + c, d x + e y + f)`.
pub(super) type Affine = [f32; 6];

/// Rotation by `degrees` about the center.
pub(super) fn rotation(image: &Image, degrees: f64) -> Affine {
    let (sin, cos) = (degrees.to_radians() as f32).sin_cos();
    let (x, y) = (image.width() as f32 / 2.0, image.height() as f32 / 2.0);
    [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
}

/// Transforms an image in place by bicubic interpolation (a = -0.5). Pixels from outside the
/// image are `fill`.
pub(super) fn transform(image: &mut Image, [a, b, c, d, e, f]: Affine, fill: [u8; 3]) {
    let (width, height) = (image.width() as f32, image.height() as f32);
    let mut result = Image::filled(image.width(), image.height(), fill);
    for (row, y) in result.rows_mut().zip(0u32..) {
        let y = y as f32 + 0.5;
        for (pixel, x) in row.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(0u32..) {
            let x = x as f32 + 0.5;
            let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
            if (0.0..width).contains(&from_x) && (0.0..height).contains(&from_y) {
                *pixel = sample(image, from_x - 0.5, from_y - 0.5);
            }
        }
    }
    *image = result;
}

/// The color at (`x`, `y`), with pixel centers at integers and borders replicated.
fn sample(image: &Image, x: f32, y: f32) -> [u8; 3] {
    let pixels = image.pixels().as_chunks::<CHANNELS>().0;
    let stride = image.width() as usize;
    let taps = |at: f32, limit: u32| -> [usize; 4] {
        let first = at.floor() as i64 - 1;
        std::array::from_fn(|i| (first + i as i64).clamp(0, i64::from(limit) - 1) as usize)
    };
    let (columns, rows) = (taps(x, image.width()), taps(y, image.height()));
    let (along, down) = (weights(x - x.floor()), weights(y - y.floor()));
    let mut sum = [0.0; CHANNELS];
    for (row, weight) in rows.iter().zip(down) {
        for (column, along) in columns.iter().zip(along) {
            let pixel = pixels[row * stride + column];
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += weight * along * f32::from(value);
            }
        }
    }
    sum.map(|value| value.round() as u8)
}

/// Weights of cubic convolution (a = -0.5) for four neighbors, `t` after the second.
fn weights(t: f32) -> [f32; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [
        -0.5 * t3 + t2 - 0.5 * t,
        1.5 * t3 - 2.5 * t2 + 1.0,
        -1.5 * t3 + 2.0 * t2 + 0.5 * t,
        0.5 * t3 - 0.5 * t2,
    ]
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
        assert_eq!(image.pixel(2, 1), original.pixel(1, 5));
        for _ in 0..3 {
            transform(&mut image, quarter, [0; 3]);
        }
        assert_eq!(image.pixel(3, 4), original.pixel(3, 4));
    }

    #[test]
    fn one_color_stays() {
        let mut image = Image::filled(31, 17, [9, 99, 199]);
        let turn = rotation(&image, 17.0);
        transform(&mut image, turn, [9, 99, 199]);
        assert_eq!(image, Image::filled(31, 17, [9, 99, 199]));
    }
}
