//! Small passes over tokens: patchify, L2 normalization, global average pooling.

use rayon::prelude::*;

use crate::simd::{dispatch, sum, sum_pairs};
use crate::{TASK_VALUES, buffer};

/// Smallest norm that a row is divided by.
const MIN_NORM: f32 = 1e-12;

/// Shape of a batch of images: number, channels, height and width.
pub type Nchw = [usize; 4];

/// Non-overlapping patches of `images [B, C, H, W]` as rows `[B h w, C p p]` of maps of
/// `h = H / p` by `w = W / p`; pixels beyond the last whole patch are left out.
pub fn patchify(images: &[f32], sizes: Nchw, patch: usize) -> Vec<f32> {
    let mut rows = buffer::uninit(patch_count(sizes, patch) * patch_values(sizes, patch));
    let [_, channels, height, width] = sizes;
    let one = (height / patch) * (width / patch) * patch_values(sizes, patch);
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
    let one = (height / patch) * (width / patch) * patch_values(sizes, patch);
    images.par_chunks_mut(channels * height * width).zip(rows.par_chunks(one.max(1))).for_each(
        |(image, rows)| {
            for_each_line(sizes, patch, |at, to| {
                image[to..to + patch].copy_from_slice(&rows[at..at + patch]);
            });
        },
    );
    images
}

fn patch_count([images, _, height, width]: Nchw, patch: usize) -> usize {
    images * (height / patch) * (width / patch)
}

fn patch_values([_, channels, ..]: Nchw, patch: usize) -> usize {
    channels * patch * patch
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
}

dispatch! {
    fn l2_normalize_row_backward(y: &[f32], norm: f32, gradient: &mut [f32]) {
        let y = &y[..gradient.len()];
        // A clamped divisor is constant.
        let along = if norm > MIN_NORM {
            sum_pairs(y, gradient, |y, gradient| y * gradient)
        } else {
            0.0
        };
        for i in 0..gradient.len() {
            gradient[i] = (gradient[i] - y[i] * along) / norm;
        }
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
            add_scaled(row, 1.0 / tokens as f32, mean);
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
            scale_to(mean, 1.0 / tokens as f32, row);
        }
    }
    rows
}

dispatch! {
    fn scale_to(from: &[f32], scale: f32, to: &mut [f32]) {
        let to = &mut to[..from.len()];
        for i in 0..from.len() {
            to[i] = from[i] * scale;
        }
    }
}

dispatch! {
    fn add_scaled(from: &[f32], scale: f32, to: &mut [f32]) {
        let to = &mut to[..from.len()];
        for i in 0..from.len() {
            to[i] += from[i] * scale;
        }
    }
}
