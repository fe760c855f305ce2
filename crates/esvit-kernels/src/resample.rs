//! Antialiased resizing of 8-bit RGB images, bit for bit that of Pillow: the filter widens as the
//! image shrinks, rows are resized before columns, and each pass rounds to 8 bits.

use std::hint::black_box;
use std::ops::Range;

use crate::simd::dispatch;

/// Bytes per pixel.
const CHANNELS: usize = 3;

/// Fractional bits of a weight: what a sum of 8-bit values times weights of magnitude below 2 leaves
/// of 32 bits.
const FRACTION_BITS: u32 = 22;

/// Rows that are resized together: the lanes of the horizontal pass.
const ROWS: usize = 16;

/// Bytes of a row that are transposed together.
const TILE: usize = 32;

/// Bytes of a row that the vertical pass sums together.
const COLUMNS: usize = 32;

/// An interpolation kernel.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// It is zero at this distance and beyond, in pixels of the smaller image.
    support: f64,
    /// Its value at a distance of at least 0.
    weight: fn(f64) -> f64,
}

impl Filter {
    /// The triangle, Pillow's `BILINEAR`.
    pub const BILINEAR: Self = Self { support: 1.0, weight: |x| (1.0 - x).max(0.0) };

    /// Cubic convolution with a = -0.5, Pillow's `BICUBIC`.
    pub const BICUBIC: Self = Self {
        support: 2.0,
        weight: |x| match x {
            x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            _ => 0.0,
        },
    };
}

/// An image `[height, width, 3]`, or a part of one.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// All bytes from the first pixel to the last.
    pub bytes: &'a [u8],
    /// Bytes from the start of a row to that of the next.
    pub stride: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// One side of a resized image, of which only a window is computed.
#[derive(Debug, Clone)]
pub struct Side {
    /// The length of the whole side, in pixels.
    pub length: usize,
    /// What of it is computed.
    pub window: Range<usize>,
}

/// Resizes `from`: the window of columns `across` and rows `down`, `[down, across, 3]`.
///
/// # Panics
/// When a length is zero, a window reaches beyond its side, or `from` has too few bytes.
pub fn resample(from: Pixels<'_>, across: &Side, down: &Side, filter: Filter) -> Vec<u8> {
    let (columns, rows) =
        (Taps::new(from.width, across, filter), Taps::new(from.height, down, filter));
    let needed = rows.inputs();
    let row_len = columns.count() * CHANNELS;
    let mut wide = vec![0; needed.len() * row_len];
    if row_len == 0 {
        return wide;
    }
    let block = |bytes: usize| vec![[0; ROWS]; bytes.next_multiple_of(TILE)];
    let (mut block, mut resized) = (block(columns.inputs().len() * CHANNELS), block(row_len));
    for (i, out) in wide.chunks_mut(ROWS * row_len).enumerate() {
        let first = needed.start + i * ROWS;
        let last = first + out.len() / row_len - 1;
        // The lanes of a block that is not full repeat its last row.
        let rows = std::array::from_fn(|lane| {
            let start = (first + lane).min(last) * from.stride;
            let bytes = &from.bytes[start..start + from.width * CHANNELS];
            &bytes[columns.inputs().start * CHANNELS..columns.inputs().end * CHANNELS]
        });
        transpose(rows, &mut block);
        resize_rows(&block, &columns, &mut resized);
        transpose_back(&resized, out, row_len);
    }
    let mut out = vec![0; rows.count() * row_len];
    for (i, out) in out.chunks_exact_mut(row_len).enumerate() {
        let (first, weights) = rows.of(i);
        resize_column(&wide[(first - needed.start) * row_len..], weights, out);
    }
    out
}

/// The weights with which input pixels enter the output pixels of a side.
#[derive(Debug)]
struct Taps {
    /// First input and number of inputs of each output.
    inputs: Vec<(usize, usize)>,
    /// Weights of each output, as fixed-point numbers, padded to `stride`.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(from: usize, to: &Side, filter: Filter) -> Self {
        assert!(from > 0 && to.window.end <= to.length, "a window of a side");
        let scale = from as f64 / to.length as f64;
        let widening = scale.max(1.0);
        let support = filter.support * widening;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Self {
            inputs: Vec::with_capacity(to.window.len()),
            weights: vec![0; to.window.len() * stride],
            stride,
        };
        let mut weights = Vec::with_capacity(stride);
        for (output, fixed) in to.window.clone().zip(taps.weights.chunks_exact_mut(stride)) {
            let center = (output as f64 + 0.5) * scale;
            // Casts to an integer keep negative numbers at 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((first..end).map(|input| {
                let distance = (input as f64 - center + 0.5) * (1.0 / widening);
                (filter.weight)(distance.abs())
            }));
            let sum: f64 = weights.iter().sum();
            for (fixed, weight) in fixed.iter_mut().zip(&weights) {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                // Half away from zero.
                *fixed = (weight * f64::from(1 << FRACTION_BITS)).round() as i32;
            }
            taps.inputs.push((first, end - first));
        }
        taps
    }

    /// Number of outputs.
    fn count(&self) -> usize {
        self.inputs.len()
    }

    /// First input of an output, and the weights from there on.
    fn of(&self, output: usize) -> (usize, &[i32]) {
        let (first, count) = self.inputs[output];
        (first, &self.weights[output * self.stride..][..count])
    }

    /// The inputs that have a weight in any output.
    fn inputs(&self) -> Range<usize> {
        // Neither first nor last inputs decrease from output to output.
        match (self.inputs.first(), self.inputs.last()) {
            (Some(&(start, _)), Some(&(last, count))) => start..last + count,
            _ => 0..0,
        }
    }
}

/// A sum of weighted values as a value.
#[inline(always)]
fn rounded(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// What a sum starts from, so that it is rounded to the nearest value.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Transposes the 8 x 8 bytes of each lane: quarters change places, then theirs, then bytes.
#[inline(always)]
fn transpose_words<const N: usize>(words: &mut [[u64; N]; 8]) {
    const MASKS: [u64; 3] = [0x0000_0000_ffff_ffff, 0x0000_ffff_0000_ffff, 0x00ff_00ff_00ff_00ff];
    for (round, mask) in MASKS.into_iter().enumerate() {
        let distance = 4 >> round;
        for row in (0..8).filter(|row| row & distance == 0) {
            let (upper, lower) = words.split_at_mut(row + distance);
            for (a, b) in upper[row].iter_mut().zip(&mut lower[0]) {
                let change = (*a >> (distance * 8) ^ *b) & mask;
                *a ^= change << (distance * 8);
                *b ^= change;
            }
        }
    }
}

dispatch! {
    /// `block [bytes, ROWS]` from rows of at most as many bytes.
    fn transpose(rows: [&[u8]; ROWS], block: &mut [[u8; ROWS]]) {
        for (tile, columns) in block.chunks_exact_mut(TILE).enumerate() {
            for half in 0..ROWS / 8 {
                let mut words = [[0; TILE / 8]; 8];
                for (words, row) in words.iter_mut().zip(&rows[half * 8..]) {
                    let row = &row[tile * TILE..];
                    let bytes = row.first_chunk().copied().unwrap_or_else(|| {
                        let mut padded = [0; TILE];
                        padded[..row.len()].copy_from_slice(row);
                        padded
                    });
                    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                        *word = u64::from_le_bytes(*bytes);
                    }
                }
                transpose_words(&mut words);
                for (column, words) in words.iter().enumerate() {
                    for (group, word) in words.iter().enumerate() {
                        columns[group * 8 + column][half * 8..][..8]
                            .copy_from_slice(&word.to_le_bytes());
                    }
                }
            }
        }
    }

    /// The first rows of `block [bytes, ROWS]`, of `row_len` bytes each.
    fn transpose_back(block: &[[u8; ROWS]], out: &mut [u8], row_len: usize) {
        for (tile, columns) in block.chunks_exact(TILE).enumerate() {
            for (half, rows) in out.chunks_mut(8 * row_len).enumerate() {
                let mut words = [[0; TILE / 8]; 8];
                for (column, words) in words.iter_mut().enumerate() {
                    for (group, word) in words.iter_mut().enumerate() {
                        let values = &columns[group * 8 + column][half * 8..];
                        *word = u64::from_le_bytes(*values.first_chunk().expect("8 rows"));
                    }
                }
                transpose_words(&mut words);
                for (row, words) in rows.chunks_exact_mut(row_len).zip(&words) {
                    let row = &mut row[tile * TILE..];
                    let bytes = words.map(u64::to_le_bytes);
                    let bytes = bytes.as_flattened();
                    match row.first_chunk_mut::<TILE>() {
                        Some(row) => row.copy_from_slice(bytes),
                        None => row.copy_from_slice(&bytes[..row.len()]),
                    }
                }
            }
        }
    }

    /// The horizontal pass over a block `[inputs, 3, ROWS]`, to `out [outputs, 3, ROWS]`.
    fn resize_rows(block: &[[u8; ROWS]], columns: &Taps, out: &mut [[u8; ROWS]]) {
        let start = columns.inputs().start;
        let outputs = out.as_chunks_mut::<CHANNELS>().0;
        for (output, out) in outputs.iter_mut().enumerate().take(columns.count()) {
            let (first, weights) = columns.of(output);
            let inputs = &block[(first - start) * CHANNELS..][..weights.len() * CHANNELS];
            let mut sums = [[HALF; ROWS]; CHANNELS];
            for (pixels, &weight) in inputs.as_chunks::<CHANNELS>().0.iter().zip(weights) {
                let weight = black_box(weight);
                for (sums, values) in sums.iter_mut().zip(pixels) {
                    for (sum, &value) in sums.iter_mut().zip(values) {
                        *sum += i32::from(value) * weight;
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = rounded(sum);
                }
            }
        }
    }

    /// One row `out` of the vertical pass, of as many rows of its length as there are weights.
    fn resize_column(rows: &[u8], weights: &[i32], out: &mut [u8]) {
        let row_len = out.len();
        let (chunks, rest) = out.as_chunks_mut::<COLUMNS>();
        let mut column = 0;
        for chunk in chunks {
            let mut sums = [HALF; COLUMNS];
            for (row, &weight) in rows.chunks_exact(row_len).zip(weights) {
                let weight = black_box(weight);
                let values = row[column..].first_chunk::<COLUMNS>().expect("a chunk of every row");
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in chunk.iter_mut().zip(sums) {
                *out = rounded(sum);
            }
            column += COLUMNS;
        }
        for out in rest {
            let rows = rows.chunks_exact(row_len).zip(weights);
            let sum = rows.fold(HALF, |sum, (row, &weight)| sum + i32::from(row[column]) * weight);
            *out = rounded(sum);
            column += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn pixels(bytes: &[u8], width: usize) -> Pixels<'_> {
        let stride = width * CHANNELS;
        Pixels { bytes, stride, width, height: bytes.len() / stride }
    }

    fn whole(length: usize) -> Side {
        Side { length, window: 0..length }
    }

    fn formula(width: usize, height: usize) -> Vec<u8> {
        let value = |y, x, c| ((x * 37 + y * 101 + c * 59 + x * y * 7) % 256) as u8;
        let columns = |y| (0..width).flat_map(move |x| (0..CHANNELS).map(move |c| value(y, x, c)));
        (0..height).flat_map(columns).collect()
    }

    fn noise(width: usize, height: usize) -> Vec<u8> {
        let mut rng = Rng::new(width as u64, [height as u64; 3]);
        (0..width * height * CHANNELS).map(|_| (rng.uniform() * 256.0) as u8).collect()
    }

    /// Values of Pillow 13.0.
    #[test]
    fn as_pillow() {
        let down = (formula(13, 9), 13, [3, 2]);
        let up = (formula(3, 2), 3, [4, 3]);
        #[rustfmt::skip]
        let cases: [(_, _, &[u8]); 4] = [
            (&down, Filter::BILINEAR, &[
                128, 124, 121, 135, 114, 115, 134, 119, 128,
                135, 123, 133, 131, 114, 130, 120, 115, 144,
            ]),
            (&down, Filter::BICUBIC, &[
                127, 125, 121, 134, 112, 112, 135, 121, 127,
                135, 122, 133, 132, 114, 130, 118, 113, 145,
            ]),
            (&up, Filter::BILINEAR, &[
                0, 59, 118, 23, 82, 141, 51, 110, 169, 74, 133, 192,
                51, 110, 169, 76, 135, 114, 107, 166, 97, 132, 191, 122,
                101, 160, 219, 129, 188, 87, 162, 221, 24, 189, 248, 51,
            ]),
            (&up, Filter::BICUBIC, &[
                0, 50, 109, 14, 73, 143, 46, 105, 182, 68, 127, 203,
                50, 108, 173, 73, 132, 111, 109, 168, 90, 134, 193, 124,
                106, 165, 237, 132, 191, 79, 172, 231, 0, 199, 255, 44,
            ]),
        ];
        under_each(|isa| {
            for ((bytes, width, [across, down]), filter, expected) in cases {
                let from = pixels(bytes, *width);
                let found = resample(from, &whole(*across), &whole(*down), filter);
                assert_eq!(found, expected, "{isa:?} {width} {filter:?}");
            }
        });
    }

    /// One value in f64, without rounding in between.
    fn exact(from: Pixels<'_>, to: [usize; 2], [x, y, c]: [usize; 3], filter: Filter) -> f64 {
        let weights = |from: usize, to: usize, at: usize| {
            let scale = from as f64 / to as f64;
            let center = (at as f64 + 0.5) * scale - 0.5;
            let distance = move |i: usize| (i as f64 - center).abs() / scale.max(1.0);
            let all = move || (0..from).map(move |i| (i, (filter.weight)(distance(i))));
            let sum: f64 = all().map(|(_, weight)| weight).sum();
            all().map(move |(i, weight)| (i, weight / sum))
        };
        let row = |j: usize| -> f64 {
            weights(from.width, to[0], x)
                .map(|(i, weight)| {
                    f64::from(from.bytes[j * from.stride + i * CHANNELS + c]) * weight
                })
                .sum::<f64>()
                .clamp(0.0, 255.0)
        };
        weights(from.height, to[1], y).map(|(j, weight)| row(j) * weight).sum::<f64>()
    }

    proptest! {
        #[test]
        fn odd_sizes_are_near_the_exact_value(
            [width, height, to_width, to_height] in [1usize..80, 1usize..60, 1usize..50, 1usize..40],
            is_cubic: bool,
        ) {
            let filter = if is_cubic { Filter::BICUBIC } else { Filter::BILINEAR };
            let bytes = noise(width, height);
            let from = pixels(&bytes, width);
            let found = resample(from, &whole(to_width), &whole(to_height), filter);
            prop_assert_eq!(found.len(), to_width * to_height * CHANNELS);
            for (i, &value) in found.iter().enumerate() {
                let at = [i / CHANNELS % to_width, i / CHANNELS / to_width, i % CHANNELS];
                let exact = exact(from, [to_width, to_height], at, filter).clamp(0.0, 255.0);
                // The first pass rounds by at most half, which the second widens by its weights.
                prop_assert!((f64::from(value) - exact).abs() < 1.25, "{at:?} {value} {exact}");
            }
        }

        #[test]
        fn a_window_is_a_part_of_the_whole(
            [width, height] in [1usize..70, 1usize..70],
            [wide, high] in [1usize..90, 1usize..90],
            cuts in [0.0..1.0f64, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        ) {
            let bytes = noise(width, height);
            let from = pixels(&bytes, width);
            let window = |length: usize, a: f64, b: f64| {
                let [a, b] = [a, b].map(|cut| (cut * (length + 1) as f64) as usize);
                Side { length, window: a.min(b)..a.max(b) }
            };
            let (across, down) = (window(wide, cuts[0], cuts[1]), window(high, cuts[2], cuts[3]));
            let all = resample(from, &whole(wide), &whole(high), Filter::BICUBIC);
            let columns = across.window.start * CHANNELS..across.window.end * CHANNELS;
            let expected: Vec<u8> = all
                .chunks_exact(wide * CHANNELS)
                .take(down.window.end)
                .skip(down.window.start)
                .flat_map(|row| row[columns.clone()].to_vec())
                .collect();
            prop_assert_eq!(resample(from, &across, &down, Filter::BICUBIC), expected);
        }

        #[test]
        fn a_part_is_an_image(
            [left, top, width, height] in [0usize..9, 0usize..9, 1usize..40, 1usize..40],
            [wide, high] in [1usize..50, 1usize..50],
        ) {
            let (all_width, all_height) = (left + width + 2, top + height + 1);
            let bytes = noise(all_width, all_height);
            let stride = all_width * CHANNELS;
            let rows = bytes.chunks_exact(stride).skip(top).take(height);
            let cut: Vec<u8> =
                rows.flat_map(|row| row[left * CHANNELS..][..width * CHANNELS].to_vec()).collect();
            let start = top * stride + left * CHANNELS;
            let part = Pixels { bytes: &bytes[start..], stride, width, height };
            let (across, down) = (whole(wide), whole(high));
            prop_assert_eq!(
                resample(part, &across, &down, Filter::BILINEAR),
                resample(pixels(&cut, width), &across, &down, Filter::BILINEAR)
            );
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let bytes = noise(83, 37);
        let from = pixels(&bytes, 83);
        let mut first = None;
        under_each(|isa| {
            let found = resample(from, &whole(41), &whole(29), Filter::BICUBIC);
            assert_eq!(&found, first.get_or_insert(found.clone()), "{isa:?}");
        });
    }

    #[test]
    fn full_contrast_stays_in_range() {
        // Alternating columns of black and white overshoot most.
        let bytes: Vec<u8> =
            (0..50 * 50 * 3).map(|i| if i / 3 % 2 == 0 { 255 } else { 0 }).collect();
        for to in [1, 49, 51, 75, 100] {
            let found = resample(pixels(&bytes, 50), &whole(to), &whole(to), Filter::BICUBIC);
            assert_eq!(found.len(), to * to * 3);
        }
        let white = vec![255; 50 * 50 * 3];
        for to in [1, 7, 50, 99] {
            let found = resample(pixels(&white, 50), &whole(to), &whole(to), Filter::BICUBIC);
            assert!(found.iter().all(|&value| value == 255), "{to}");
        }
    }
}
