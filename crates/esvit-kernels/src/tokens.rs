//! Small passes over tokens: patchify, L2 normalization, global average pooling.

use rayon::prelude::*;

use crate::elementwise::{self, scale_into};
use crate::simd::{dispatch, sum, sum_pairs, update};
use crate::{TASK_VALUES, buffer};

/// Smallest norm that a row is divided by.
const MIN_NORM: f32 = 1e-12;

/// Shape of a batch of images: number, channels, height and width.
pub type Nchw = [usize; 4];

/// Non-overlapping patches of `images [B, C, H, W]` as rows `[B h w, C p p]` of maps of
/// `h = H / p` by `w = W / p`; pixels beyond the last whole patch are left out.
pub fn patchify(images: &[f32], sizes: Nchw, patch: usize) -> Vec<f32> {
    let [count, channels, height, width] = sizes;
    let one = patched_values(sizes, patch);
    let mut rows = buffer::uninit(count * one);
    rows.par_chunks_mut(one.max(1)).zip(images.par_chunks(channels * height * width)).for_each(
        |(rows, image)| {
            for_each_line(sizes, patch, |at, from| {
                rows[at..at + patch].copy_from_slice(&image[from..from + patch]);
            });
        },
    );
    rows
}

/// Gradient of the images from that of the [`patchify`].
pub fn patchify_backward(rows: &[f32], sizes: Nchw, patch: usize) -> Vec<f32> {
    let mut images = vec![0.0; sizes.iter().product()];
    let [_, channels, height, width] = sizes;
    let one = patched_values(sizes, patch);
    images.par_chunks_mut(channels * height * width).zip(rows.par_chunks(one.max(1))).for_each(
        |(image, rows)| {
            for_each_line(sizes, patch, |at, to| {
                image[to..to + patch].copy_from_slice(&rows[at..at + patch]);
            });
        },
    );
    images
}

/// Values of all whole patches of an image.
fn patched_values([_, channels, height, width]: Nchw, patch: usize) -> usize {
    (height / patch) * (width / patch) * channels * patch * patch
}

/// Calls `visit(row offset, image offset)` for every line of `patch` pixels of every patch of an
/// image.
fn for_each_line(
    [_, channels, height, width]: Nchw,
    patch: usize,
    mut visit: impl FnMut(usize, usize),
) {
    let mut at = 0;
    for row in 0..height / patch {
        for column in 0..width / patch {
            for channel in 0..channels {
                for line in 0..patch {
                    let y = row * patch + line;
                    visit(at, (channel * height + y) * width + column * patch);
                    at += patch;
                }
            }
        }
    }
}

/// L2-normalizes the rows of `x [rows, C]` in place, `x / max(|x|, 1e-12)`. Returns the divisors
/// `[rows]`.
pub fn l2_normalize(x: &mut [f32], width: usize) -> Vec<f32> {
    let mut norms = vec![0.0; x.len() / width];
    let task = TASK_VALUES.div_ceil(width);
    x.par_chunks_mut(task * width).zip(norms.par_chunks_mut(task)).for_each(|(x, norms)| {
        for (row, norm) in x.chunks_exact_mut(width).zip(norms) {
            *norm = l2_normalize_row(row);
        }
    });
    norms
}

/// Turns the gradient of the output `y` of [`l2_normalize`] in place into that of its input:
/// `dx = (dy - y * <y, dy>) / |x|`.
pub fn l2_normalize_backward(y: &[f32], norms: &[f32], width: usize, gradient: &mut [f32]) {
    let task = TASK_VALUES.div_ceil(width);
    gradient
        .par_chunks_mut(task * width)
        .zip(y.par_chunks(task * width).zip(norms.par_chunks(task)))
        .for_each(|(gradient, (y, norms))| {
            let rows = gradient.chunks_exact_mut(width).zip(y.chunks_exact(width));
            for ((gradient, y), &norm) in rows.zip(norms) {
                l2_normalize_row_backward(y, norm, gradient);
            }
        });
}

dispatch! {
    fn l2_normalize_row(row: &mut [f32]) -> f32 {
        let norm = sum(row, |value| value * value).sqrt();
        // Not `max`, which would replace NaN.
        let norm = if norm < MIN_NORM { MIN_NORM } else { norm };
        for value in row {
            *value /= norm;
        }
        norm
    }

    fn l2_normalize_row_backward(y: &[f32], norm: f32, gradient: &mut [f32]) {
        let y = &y[..gradient.len()];
        // A clamped divisor is constant.
        let along = if norm > MIN_NORM {
            sum_pairs(y, gradient, |y, gradient| y * gradient)
        } else {
            0.0
        };
        update(gradient, [y], |gradient, [y]| (gradient - y * along) / norm);
    }
}

/// Global average pooling: the mean row of every image of `x [rows, C]`; `seq_lens` has the number
/// of rows of each.
pub fn global_average_pool(x: &[f32], width: usize, seq_lens: &[usize]) -> Vec<f32> {
    let mut means = vec![0.0; seq_lens.len() * width];
    let mut rest = x;
    for (&tokens, mean) in seq_lens.iter().zip(means.chunks_exact_mut(width)) {
        let (image, tail) = rest.split_at(tokens * width);
        rest = tail;
        for row in image.chunks_exact(width) {
            let share = 1.0 / tokens as f32;
            elementwise::update(mean, [row], |mean, [value]| mean + value * share);
        }
    }
    means
}

/// Gradient of the rows `[rows, C]` from that of [`global_average_pool`]'s output, `[images, C]`.
pub fn global_average_pool_backward(
    gradient: &[f32],
    width: usize,
    seq_lens: &[usize],
) -> Vec<f32> {
    let total: usize = seq_lens.iter().sum();
    let mut rows = buffer::uninit(total * width);
    let mut rest = &mut rows[..];
    for (&tokens, mean) in seq_lens.iter().zip(gradient.chunks_exact(width)) {
        let (image, tail) = rest.split_at_mut(tokens * width);
        rest = tail;
        for row in image.chunks_exact_mut(width) {
            scale_into(mean, 1.0 / tokens as f32, row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_near, dot, normal, wide};

    /// Every pixel of a whole patch has one place; those beyond have none, and no gradient.
    #[test]
    fn patches_of_images() {
        for (sizes, patch) in
            [([2, 3, 9, 14], 4), ([1, 1, 4, 4], 4), ([3, 2, 5, 6], 1), ([2, 1, 3, 3], 4)]
        {
            let [count, channels, height, width] = sizes;
            let images = normal(sizes.iter().product(), 1);
            let mut expected = Vec::new();
            let mut places = Vec::new();
            for image in 0..count {
                for (row, column) in (0..height / patch)
                    .flat_map(|row| (0..width / patch).map(move |column| (row, column)))
                {
                    for channel in 0..channels {
                        for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                            let line = (image * channels + channel) * height + row * patch + y;
                            let at = line * width + column * patch + x;
                            expected.push(images[at]);
                            places.push(at);
                        }
                    }
                }
            }
            assert_eq!(patchify(&images, sizes, patch), expected);
            let mut back = vec![0.0; images.len()];
            places.iter().zip(&expected).for_each(|(&at, &value)| back[at] = value);
            assert_eq!(patchify_backward(&expected, sizes, patch), back);
        }
    }

    /// Against the definition in f64, for sizes below and above one task; one row is too short to be
    /// divided by its norm.
    #[test]
    fn normalized_rows() {
        for (rows, width) in [(4, 1), (5, 33), (1300, 60)] {
            let mut x = normal(rows * width, 1);
            let tiny = 2 * width..3 * width;
            x[tiny.clone()].iter_mut().for_each(|x| *x *= 1e-20);
            let dy = normal(x.len(), 2);
            let (x64, dy64) = (wide(&x), wide(&dy));
            let norm = |row: &[f64]| dot(row, row).sqrt().max(1e-12);
            let norms: Vec<f64> = x64.chunks_exact(width).map(norm).collect();
            let y64: Vec<f64> = x64.iter().enumerate().map(|(i, x)| x / norms[i / width]).collect();
            let gradient = |at: usize| {
                let (row, dy) = (&y64[at / width * width..][..width], &dy64[at / width * width..]);
                let along = if at / width == 2 { 0.0 } else { dot(row, dy) };
                (dy[at % width] - row[at % width] * along) / norms[at / width]
            };
            let dx64: Vec<f64> = (0..x.len()).map(gradient).collect();
            under_each(|_| {
                let (mut y, mut dx) = (x.clone(), dy.clone());
                let found = l2_normalize(&mut y, width);
                l2_normalize_backward(&y, &found, width, &mut dx);
                assert_near("norms", &found, &norms, 1e-6);
                assert_near("y", &y, &y64, 1e-6);
                // The gradient of the short row is as large as its divisor is small.
                assert_near("dx of the short row", &dx[tiny.clone()], &dx64[tiny.clone()], 1e-6);
                for (dx, dx64) in
                    [(&dx[..tiny.start], &dx64[..tiny.start]), (&dx[tiny.end..], &dx64[tiny.end..])]
                {
                    assert_near("dx", dx, dx64, 1e-5);
                }
            });
        }
    }

    #[test]
    fn nan_is_not_clamped() {
        let mut x = [f32::NAN, 1.0, 3.0, 4.0];
        let norms = l2_normalize(&mut x, 2);
        assert!(norms[0].is_nan() && x[..2].iter().all(|x| x.is_nan()));
        assert_eq!((norms[1], &x[2..]), (5.0, &[0.6, 0.8][..]));
    }

    #[test]
    fn means_of_images() {
        let (width, seq_lens) = (37, [1, 4, 20, 3]);
        let x = normal(28 * width, 1);
        let dy = normal(4 * width, 2);
        let (mut means, mut dx) = (Vec::new(), Vec::new());
        let mut first = 0;
        for (image, &n) in seq_lens.iter().enumerate() {
            let rows = &x[first * width..(first + n) * width];
            first += n;
            let column = |c: usize| rows.iter().skip(c).step_by(width).map(|&x| f64::from(x));
            means.extend((0..width).map(|c| column(c).sum::<f64>() / n as f64));
            let dy = &dy[image * width..][..width];
            let row = dy.iter().map(|&dy| f64::from(dy) / n as f64).collect::<Vec<f64>>();
            dx.extend(std::iter::repeat_n(row, n).flatten());
        }
        under_each(|_| {
            assert_near("means", &global_average_pool(&x, width, &seq_lens), &means, 1e-6);
            let found = global_average_pool_backward(&dy, width, &seq_lens);
            assert_near("gradient", &found, &dx, 1e-6);
        });
    }
}
