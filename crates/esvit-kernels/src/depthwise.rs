//! Depthwise convolution over token maps, channels last: stride 1, zero padding ("same"), one
//! square filter per channel.

use rayon::prelude::*;

use crate::batch_norm::{End, Normalization};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::elementwise::update;
use crate::reduce::sum_in_order;
use crate::simd::{LANES, dispatch};

/// Shape of feature maps `[images, height, width, C]` and of the filters.
#[derive(Debug, Clone, Copy)]
pub struct FeatureMaps {
    /// Height and width.
    pub size: [usize; 2],
    /// Channels, C.
    pub channels: usize,
    /// Side of the square filters, odd.
    pub kernel_size: usize,
}

impl FeatureMaps {
    fn row(&self) -> usize {
        self.size[1] * self.channels
    }

    fn image(&self) -> usize {
        self.size[0] * self.row()
    }

    /// # Panics
    /// When lengths do not match.
    fn check<I>(&self, x: &[I], weight: &[f32]) {
        assert!(self.kernel_size % 2 == 1, "an odd kernel_size");
        assert!(self.image() > 0 && x.len().is_multiple_of(self.image()), "whole maps");
        assert_eq!(weight.len(), self.kernel_size * self.kernel_size * self.channels, "weight");
    }

    /// Taps of the filter: row and column offset, and the tap's weights in `weight [kernel_size^2,
    /// C]`.
    fn taps(&self) -> impl Iterator<Item = (isize, isize, std::ops::Range<usize>)> + use<> {
        let Self { kernel_size, channels, .. } = *self;
        let half = (kernel_size / 2) as isize;
        (0..kernel_size * kernel_size).map(move |tap| {
            let [down, right] = [tap / kernel_size, tap % kernel_size].map(|at| at as isize - half);
            (down, right, tap * channels..(tap + 1) * channels)
        })
    }

    /// Line `at` of the results, counted over all images.
    fn convolve_line<I: Element>(&self, x: &[I], weight: &[f32], at: usize, y: &mut [f32]) {
        let ([height, width], channels) = (self.size, self.channels);
        let (image, at) = (&x[at / height * self.image()..][..self.image()], at % height);
        let lines: Vec<_> = self
            .taps()
            .filter_map(|(down, right, tap)| {
                let from = at.checked_add_signed(down).filter(|&from| from < height)?;
                Some((&image[from * self.row()..][..self.row()], right, &weight[tap]))
            })
            .collect();
        let mut taps = Vec::with_capacity(lines.len());
        for (column, y) in y.chunks_exact_mut(channels).enumerate() {
            taps.clear();
            taps.extend(lines.iter().filter_map(|&(line, right, weight)| {
                let from = column.checked_add_signed(right).filter(|&from| from < width)?;
                Some((&line[from * channels..][..channels], weight))
            }));
            sum_of_taps(&taps, y);
        }
    }

    /// The part of output row `row` whose input at offset (`down`, `right`) lies in the map: first
    /// output column, index of its input pixel, number of columns. None if there is none.
    fn overlap(&self, row: usize, down: isize, right: isize) -> Option<[usize; 3]> {
        let [height, width] = self.size;
        let from = row.checked_add_signed(down).filter(|&from| from < height)?;
        let columns = width.checked_sub(right.unsigned_abs()).filter(|&columns| columns > 0)?;
        let (out, input) = if right < 0 { (right.unsigned_abs(), 0) } else { (0, right as usize) };
        Some([out, from * width + input, columns])
    }
}

/// `y = conv(x, weight)` for `weight [kernel_size^2, C]`, taps row-major.
///
/// # Panics
/// When lengths do not match.
pub fn forward(maps: &FeatureMaps, x: &[f32], weight: &[f32], y: &mut [f32]) {
    maps.check(x, weight);
    assert_eq!(x.len(), y.len(), "output");
    let lines = y.par_chunks_mut(maps.row()).enumerate();
    lines.for_each(|(at, y)| maps.convolve_line(x, weight, at, y));
}

/// `norm(conv(x, weight))`, as in evaluation: results are normalized while they are in L1.
///
/// # Panics
/// When lengths do not match.
pub fn forward_normalized<I: Element, O: Element>(
    maps: &FeatureMaps,
    x: &[I],
    weight: &[f32],
    norm: &Normalization,
) -> Buffer<O> {
    maps.check(x, weight);
    let (row, channels) = (maps.row(), maps.channels);
    let mut y = Buffer::<O>::uninit(x.len());
    y.par_chunks_mut(row).enumerate().for_each(|(at, y)| {
        let mut line = Buffer::<f32>::uninit(row);
        maps.convolve_line(x, weight, at, &mut line);
        norm.finish(&line, channels, 0..channels, End::Norm, y);
    });
    y
}

dispatch! {
    /// The sum of products of values and weights over taps, channel by channel.
    fn sum_of_taps<I: Element>(taps: &[(&[I], &[f32])], y: &mut [f32]) {
        let whole = y.len() / LANES * LANES;
        let (chunks, rest) = y.as_chunks_mut::<LANES>();
        for (at, chunk) in chunks.iter_mut().enumerate() {
            let mut sums = [0f32; LANES];
            for (x, weight) in taps {
                let (x, weight) = (x.as_chunks::<LANES>().0, weight.as_chunks::<LANES>().0);
                for lane in 0..LANES {
                    sums[lane] += x[at][lane].to_f32() * weight[at][lane];
                }
            }
            *chunk = sums;
        }
        for (at, y) in (whole..).zip(rest) {
            *y = taps.iter().fold(0.0, |sum, (x, weight)| sum + x[at].to_f32() * weight[at]);
        }
    }
}

/// Gradients from that of the output, `dy`: of `x` into `dx`, and returns that of `weight`.
///
/// # Panics
/// When lengths do not match.
pub fn backward(
    maps: &FeatureMaps,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) -> Vec<f32> {
    maps.check(x, weight);
    assert_eq!((x.len(), x.len()), (dy.len(), dx.len()), "gradients");
    // dx = conv(dy, filter rotated by 180 degrees).
    let flipped: Vec<f32> = weight.chunks_exact(maps.channels).rev().flatten().copied().collect();
    forward(maps, dy, &flipped, dx);
    let (row, channels, image) = (maps.row(), maps.channels, maps.image());
    let parts = x.par_chunks(image).zip(dy.par_chunks(image)).map(|(x, dy)| {
        let mut dw = vec![0.0; weight.len()];
        for (at, dy) in dy.chunks_exact(row).enumerate() {
            for (down, right, tap) in maps.taps() {
                let Some([out, input, columns]) = maps.overlap(at, down, right) else {
                    continue;
                };
                let dy = &dy[out * channels..][..columns * channels];
                let x = &x[input * channels..][..columns * channels];
                for (dy, x) in dy.chunks_exact(channels).zip(x.chunks_exact(channels)) {
                    update(&mut dw[tap.clone()], [x, dy], |dw, [x, dy]| dw + x * dy);
                }
            }
        }
        [dw]
    });
    let [dw] = sum_in_order(parts, [weight.len()]);
    dw
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_norm::Statistics;
    use crate::element::{Bf16, rounded, widened};
    use crate::isa::tests::under_each;
    use crate::testing::normal as values;
    use proptest::prelude::*;

    /// Every product of an input, a weight and an output that meet: `(x, weight, y)` places.
    fn meetings(maps: &FeatureMaps, images: usize) -> Vec<[usize; 3]> {
        let ([height, width], channels) = (maps.size, maps.channels);
        let half = maps.kernel_size / 2;
        let mut found = Vec::new();
        for image in 0..images {
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                for (down, right) in
                    (0..maps.kernel_size).flat_map(|d| (0..maps.kernel_size).map(move |r| (d, r)))
                {
                    let (from_y, from_x) = (y + down, x + right);
                    let inside = (half..height + half).contains(&from_y)
                        && (half..width + half).contains(&from_x);
                    if !inside {
                        continue;
                    }
                    let place = |y: usize, x: usize| ((image * height + y) * width + x) * channels;
                    for c in 0..channels {
                        found.push([
                            place(from_y - half, from_x - half) + c,
                            (down * maps.kernel_size + right) * channels + c,
                            place(y, x) + c,
                        ]);
                    }
                }
            }
        }
        found
    }

    proptest! {
        #[test]
        fn forward_and_backward(
            images in 1usize..3, height in 1usize..6, width in 1usize..6, channels in 1usize..20,
            half in 0usize..3,
        ) {
            let maps = FeatureMaps { size: [height, width], channels, kernel_size: 2 * half + 1 };
            let n = images * height * width * channels;
            let (x, dy) = (values(n, 1), values(n, 2));
            let weight = values(maps.kernel_size * maps.kernel_size * channels, 3);
            let (mut y, mut dx, mut dw) =
                (vec![0f64; n], vec![0f64; n], vec![0f64; weight.len()]);
            for [from, tap, to] in meetings(&maps, images) {
                y[to] += f64::from(x[from]) * f64::from(weight[tap]);
                dx[from] += f64::from(dy[to]) * f64::from(weight[tap]);
                dw[tap] += f64::from(dy[to]) * f64::from(x[from]);
            }
            under_each(|_| {
                let (mut found, mut found_dx) = (vec![7.0; n], vec![7.0; n]);
                forward(&maps, &x, &weight, &mut found);
                let found_dw = backward(&maps, &x, &weight, &dy, &mut found_dx);
                // The norm by hand.
                let of_channel = |seed, least: f32| -> Vec<f32> {
                    values(channels, seed).iter().map(|v| v.abs() + least).collect()
                };
                let [mean, variance] = [of_channel(4, 0.0), of_channel(5, 0.5)];
                let [gamma, beta] = [of_channel(6, 0.1), of_channel(7, 0.0)];
                let norm = {
                    let statistics = Statistics { mean: mean.clone(), variance: variance.clone() };
                    Normalization::new(&statistics, [&gamma, &beta], 1e-5)
                };
                let normalized = forward_normalized::<f32, f32>(&maps, &x, &weight, &norm);
                for (at, (found, y)) in normalized.iter().zip(&found).enumerate() {
                    let of = |values: &[f32]| values[at % channels];
                    let rstd = 1.0 / (of(&variance) + 1e-5).sqrt();
                    let expected = (y - of(&mean)) * rstd * of(&gamma) + of(&beta);
                    assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
                }
                let stored = forward_normalized::<f32, Bf16>(&maps, &x, &weight, &norm);
                assert!(stored[..] == rounded(&normalized)[..], "in bf16");
                let of = rounded(&x);
                let of_stored = forward_normalized::<Bf16, f32>(&maps, &of, &weight, &norm);
                let wide = widened(&of);
                let of_wide = forward_normalized::<f32, f32>(&maps, &wide, &weight, &norm);
                assert!(of_stored[..] == of_wide[..], "of bf16");
                for (found, expected) in [(&found, &y), (&found_dx, &dx), (&found_dw, &dw)] {
                    for (found, expected) in found.iter().zip(expected) {
                        assert!((f64::from(*found) - expected).abs() < 1e-4);
                    }
                }
            });
        }
    }
}
