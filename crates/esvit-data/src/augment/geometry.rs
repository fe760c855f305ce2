//! Affine transforms.

use crate::Picture;
use crate::picture::CHANNELS;

/// Maps a place in the result to the place in the picture that is shown there:
/// `(a x + b y + c, d x + e y + f)`.
pub(super) type Affine = [f32; 6];

/// Turns by `degrees` about the centre.
pub(super) fn rotation(picture: &Picture, degrees: f64) -> Affine {
    let (sin, cos) = (degrees.to_radians() as f32).sin_cos();
    let (x, y) = (picture.width() as f32 / 2.0, picture.height() as f32 / 2.0);
    [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
}

/// The transformed picture, of the same size, by bicubic interpolation (a = -0.5). What comes
/// from outside the picture is `fill`.
pub(super) fn transform(picture: &mut Picture, [a, b, c, d, e, f]: Affine, fill: [u8; 3]) {
    let (width, height) = (picture.width() as f32, picture.height() as f32);
    let mut result = Picture::filled(picture.width(), picture.height(), fill);
    for (row, y) in result.rows_mut().zip(0u32..) {
        let y = y as f32 + 0.5;
        for (pixel, x) in row.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(0u32..) {
            let x = x as f32 + 0.5;
            let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
            if (0.0..width).contains(&from_x) && (0.0..height).contains(&from_y) {
                *pixel = sample(picture, from_x - 0.5, from_y - 0.5);
            }
        }
    }
    *picture = result;
}

/// The colour at (`x`, `y`), where whole numbers are the centres of pixels. Borders are repeated.
fn sample(picture: &Picture, x: f32, y: f32) -> [u8; 3] {
    let pixels = picture.pixels().as_chunks::<CHANNELS>().0;
    let stride = picture.width() as usize;
    let taps = |at: f32, limit: u32| -> [usize; 4] {
        let first = at.floor() as i64 - 1;
        std::array::from_fn(|i| (first + i as i64).clamp(0, i64::from(limit) - 1) as usize)
    };
    let (columns, rows) = (taps(x, picture.width()), taps(y, picture.height()));
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

/// Cubic convolution with a = -0.5 at four neighbours, `t` beyond the second.
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
    use crate::augment::test_pictures::noise;

    #[test]
    fn whole_shifts_are_exact_and_filled() {
        let mut picture = noise(7, 5, 1);
        transform(&mut picture, [1.0, 0.0, 2.0, 0.0, 1.0, -1.0], [1, 2, 3]);
        assert_eq!(picture.pixel(0, 1), noise(7, 5, 1).pixel(2, 0));
        assert_eq!(picture.pixel(5, 1), Some([1, 2, 3]));
        assert_eq!(picture.pixel(0, 0), Some([1, 2, 3]));
    }

    #[test]
    fn a_quarter_turn_moves_the_corners() {
        let original = noise(8, 8, 2);
        let mut picture = original.clone();
        let quarter = rotation(&picture, 90.0);
        transform(&mut picture, quarter, [0; 3]);
        assert_eq!(picture.pixel(2, 1), original.pixel(1, 5));
        for _ in 0..3 {
            transform(&mut picture, quarter, [0; 3]);
        }
        assert_eq!(picture.pixel(3, 4), original.pixel(3, 4));
    }

    #[test]
    fn one_colour_stays() {
        let mut picture = Picture::filled(31, 17, [9, 99, 199]);
        let turn = rotation(&picture, 17.0);
        transform(&mut picture, turn, [9, 99, 199]);
        assert_eq!(picture, Picture::filled(31, 17, [9, 99, 199]));
    }
}
