//! Small passes over tokens: patches of pictures, unit length, means.

use rayon::prelude::*;

use crate::simd::{dispatch, sum, sum_pairs};
use crate::{TASK_VALUES, buffer};

/// Smallest length that a row is divided by.
const SMALLEST_LENGTH: f32 = 1e-12;

/// Sizes of a batch of pictures: number, channels, height and width.
pub type Pictures = [usize; 4];

/// Non-overlapping patches of `pictures [B, C, H, W]` as rows `[B h w, C p p]` of maps of
/// `h = H / p` by `w = W / p`; pixels beyond the last whole patch are left out.
pub fn patches(pictures: &[f32], sizes: Pictures, patch: usize) -> Vec<f32> {
    let mut rows = buffer::uninit(patch_count(sizes, patch) * patch_values(sizes, patch));
    let [_, channels, height, width] = sizes;
    let one = (height / patch) * (width / patch) * patch_values(sizes, patch);
    rows.par_chunks_mut(one.max(1)).zip(pictures.par_chunks(channels * height * width)).for_each(
        |(rows, picture)| {
            each_line(sizes, patch, |at, from| {
                rows[at..at + patch].copy_from_slice(&picture[from..from + patch]);
            });
        },
    );
    rows
}

/// Gradient of the pictures from that of the [`patches`].
pub fn patches_backward(rows: &[f32], sizes: Pictures, patch: usize) -> Vec<f32> {
    let mut pictures = vec![0.0; sizes.iter().product()];
    let [_, channels, height, width] = sizes;
    let one = (height / patch) * (width / patch) * patch_values(sizes, patch);
    pictures.par_chunks_mut(channels * height * width).zip(rows.par_chunks(one.max(1))).for_each(
        |(picture, rows)| {
            each_line(sizes, patch, |at, to| {
                picture[to..to + patch].copy_from_slice(&rows[at..at + patch]);
            });
        },
    );
    pictures
}

fn patch_count([pictures, _, height, width]: Pictures, patch: usize) -> usize {
    pictures * (height / patch) * (width / patch)
}

fn patch_values([_, channels, ..]: Pictures, patch: usize) -> usize {
    channels * patch * patch
}

/// Visits every line of every patch of a picture: its place among the rows and in the picture.
fn each_line(
    [_, channels, height, width]: Pictures,
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

/// Rows of `x [rows, C]` divided by their lengths, in place; a length below 1e-12 counts as 1e-12.
/// Returns the lengths.
pub fn unit_rows(x: &mut [f32], width: usize) -> Vec<f32> {
    let mut lengths = vec![0.0; x.len() / width];
    let task = TASK_VALUES.div_ceil(width);
    x.par_chunks_mut(task * width).zip(lengths.par_chunks_mut(task)).for_each(|(x, lengths)| {
        for (row, length) in x.chunks_exact_mut(width).zip(lengths) {
            *length = unit_row(row);
        }
    });
    lengths
}

/// Turns the gradient of [`unit_rows`]' result `y`, in place, into that of its input.
pub fn unit_rows_backward(y: &[f32], lengths: &[f32], width: usize, gradient: &mut [f32]) {
    let task = TASK_VALUES.div_ceil(width);
    gradient
        .par_chunks_mut(task * width)
        .zip(y.par_chunks(task * width).zip(lengths.par_chunks(task)))
        .for_each(|(gradient, (y, lengths))| {
            let rows = gradient.chunks_exact_mut(width).zip(y.chunks_exact(width));
            for ((gradient, y), &length) in rows.zip(lengths) {
                unit_row_backward(y, length, gradient);
            }
        });
}

dispatch! {
    fn unit_row(row: &mut [f32]) -> f32 {
        let length = sum(row, |value| value * value).sqrt();
        // A length that is not a number must not be replaced.
        let length = if length < SMALLEST_LENGTH { SMALLEST_LENGTH } else { length };
        for value in row {
            *value /= length;
        }
        length
    }
}

dispatch! {
    fn unit_row_backward(y: &[f32], length: f32, gradient: &mut [f32]) {
        let y = &y[..gradient.len()];
        // Below the smallest length the divisor is constant.
        let along = if length > SMALLEST_LENGTH {
            sum_pairs(y, gradient, |y, gradient| y * gradient)
        } else {
            0.0
        };
        for i in 0..gradient.len() {
            gradient[i] = (gradient[i] - y[i] * along) / length;
        }
    }
}

/// The mean row of every image of `x [rows, C]`; `images` lists the rows of each.
pub fn image_means(x: &[f32], width: usize, images: &[usize]) -> Vec<f32> {
    let mut means = vec![0.0; images.len() * width];
    let mut rest = x;
    for (&tokens, mean) in images.iter().zip(means.chunks_exact_mut(width)) {
        let (image, tail) = rest.split_at(tokens * width);
        rest = tail;
        for row in image.chunks_exact(width) {
            add_scaled(row, 1.0 / tokens as f32, mean);
        }
    }
    means
}

/// Gradient of the rows from that of the [`image_means`].
pub fn image_means_backward(gradient: &[f32], width: usize, images: &[usize]) -> Vec<f32> {
    let total: usize = images.iter().sum();
    let mut rows = buffer::uninit(total * width);
    let mut rest = &mut rows[..];
    for (&tokens, mean) in images.iter().zip(gradient.chunks_exact(width)) {
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
