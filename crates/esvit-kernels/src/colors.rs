//! The nearest color of a palette for every pixel: color quantization.

use rayon::prelude::*;

use crate::simd::dispatch;
use crate::{TASK_VALUES, profile};

/// Channels of a color.
const CHANNELS: usize = 3;

/// Index into `palette [colors, 3]` of the color that is nearest to each of `pixels [n, 3]`, by the square of
/// the distance; of equally near ones the first, and 0 for a pixel that is no number.
///
/// # Panics
/// When lengths are no multiples of 3, or there is no color.
pub fn nearest(pixels: &[f32], palette: &[f32]) -> Vec<i32> {
    let (pixels, rest) = pixels.as_chunks::<CHANNELS>();
    let (palette, beyond) = palette.as_chunks::<CHANNELS>();
    assert!(rest.is_empty() && beyond.is_empty(), "values of whole colors");
    assert!(!palette.is_empty(), "a palette has a color");
    // A channel at a time, so that the loop over colors vectorizes.
    let planes: [Vec<f32>; CHANNELS] =
        std::array::from_fn(|channel| palette.iter().map(|color| color[channel]).collect());
    let task = TASK_VALUES.div_ceil(palette.len());
    let mut found = vec![0; pixels.len()];
    profile::time("nearest colors", CHANNELS * pixels.len() * palette.len(), || {
        let tasks = found.par_chunks_mut(task).zip(pixels.par_chunks(task));
        tasks.for_each(|(found, pixels)| {
            let mut distances = vec![0.0; palette.len()];
            for (found, pixel) in found.iter_mut().zip(pixels) {
                let least = square_distances(*pixel, &planes, &mut distances);
                let place = distances.iter().position(|&distance| distance == least);
                *found = place.unwrap_or(0) as i32;
            }
        });
    });
    found
}

dispatch! {
    /// The squares of the distances to all colors, and the least of them.
    fn square_distances(
        pixel: [f32; CHANNELS],
        planes: &[Vec<f32>; CHANNELS],
        distances: &mut [f32],
    ) -> f32 {
        let colors = distances.len();
        let [red, green, blue] = [&planes[0][..colors], &planes[1][..colors], &planes[2][..colors]];
        for i in 0..colors {
            let [r, g, b] = [pixel[0] - red[i], pixel[1] - green[i], pixel[2] - blue[i]];
            distances[i] = r * r + g * g + b * b;
        }
        distances.iter().fold(f32::INFINITY, |least, &d| if d < least { d } else { least })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::normal;

    /// By the definition, in plain loops; more pixels than a task has.
    #[test]
    fn the_first_of_the_nearest() {
        for (count, colors) in [(1, 1), (7, 3), (5, 16), (1000, 37), (300, 512)] {
            let (pixels, mut palette) = (normal(3 * count, 1), normal(3 * colors, 2));
            // The last color twice.
            let last = palette[3 * (colors - 1)..].to_vec();
            palette.extend(last);
            let square = |pixel: usize, color: usize| -> f32 {
                (0..3).map(|c| (pixels[3 * pixel + c] - palette[3 * color + c]).powi(2)).sum()
            };
            let expected = (0..count).map(|pixel| {
                let mut best = 0;
                for color in 1..=colors {
                    if square(pixel, color) < square(pixel, best) {
                        best = color;
                    }
                }
                assert!(best < colors, "the first of the two");
                best as i32
            });
            let expected: Vec<i32> = expected.collect();
            under_each(|_| assert_eq!(nearest(&pixels, &palette), expected));
        }
    }

    /// Every color is its own nearest one, and equally near ones are taken in order.
    #[test]
    fn colors_of_the_palette() {
        let palette = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 0.5, 0.0, -0.5];
        under_each(|_| {
            assert_eq!(nearest(&palette, &palette), [0, 1, 2]);
            assert_eq!(nearest(&[0.0; 3], &palette[..6]), [0]);
            assert_eq!(nearest(&[f32::NAN, 0.0, 0.0, 0.9, 0.9, 0.9], &palette), [0, 1]);
            assert!(nearest(&[], &palette).is_empty());
        });
    }

    #[test]
    #[should_panic(expected = "a palette has a color")]
    fn a_palette_has_a_color() {
        nearest(&[0.0; 3], &[]);
    }
}
