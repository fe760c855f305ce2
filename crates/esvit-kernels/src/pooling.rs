//! Max pooling over token maps, channels last.

use rayon::prelude::*;

use crate::buffer::{self, Buffer};
use crate::element::Element;
use crate::elementwise::update;
use crate::maps::{Filter, Maps};
use crate::simd::dispatch;

/// The largest values under a filter at every position, of the maps of `x [rows, C]`: `y [positions,
/// C]`, and the place under the filter, row-major, that each came from. What lies beyond a map
/// counts for nothing, NaN as the largest; of equal values the first is taken.
///
/// # Panics
/// When lengths do not match, the filter has more than 256 places, or the margin is as wide as it.
pub fn max_pool<T: Element>(x: &[T], maps: &[Maps], filter: &Filter) -> (Buffer<T>, Vec<u8>) {
    assert!(filter.side * filter.side <= 256, "a place is a byte");
    assert!(filter.padding < filter.side, "every position meets the map");
    let channels = filter.channels;
    let mut y = Buffer::<T>::uninit(filter.positions_of_all(maps) * channels);
    let mut places = vec![0; y.len()];
    let (mut x, mut y_rest, mut places_rest) = (x, &mut y[..], &mut places[..]);
    for maps in maps {
        let [down, across] = filter.positions(maps.size);
        let image = maps.tokens() * channels;
        let (own, others) = x.split_at(maps.images * image);
        x = others;
        let len = maps.images * down * across * channels;
        let (y, others) = std::mem::take(&mut y_rest).split_at_mut(len);
        y_rest = others;
        let (places, others) = std::mem::take(&mut places_rest).split_at_mut(len);
        places_rest = others;
        let line = (across * channels).max(1);
        y.par_chunks_mut(line).zip(places.par_chunks_mut(line)).enumerate().for_each(
            |(at, (y, places))| {
                let x = &own[at / down * image..][..image];
                let positions = y.chunks_exact_mut(channels).zip(places.chunks_exact_mut(channels));
                for (column, (y, places)) in positions.enumerate() {
                    let mut is_first = true;
                    filter.runs(maps.size, [at % down, column], |to, from, len| {
                        let values = x[from..from + len].chunks_exact(channels);
                        for (tap, values) in (to / channels..).zip(values) {
                            if std::mem::take(&mut is_first) {
                                y.copy_from_slice(values);
                                places.fill(tap as u8);
                            } else {
                                take_larger(values, tap as u8, y, places);
                            }
                        }
                    });
                }
            },
        );
    }
    assert!(x.is_empty(), "rows of all maps");
    (y, places)
}

/// The largest values alone, as [`max_pool`] gives them, of maps in any element type.
///
/// # Panics
/// When lengths do not match, or the margin is as wide as the filter.
pub fn largest<T: Element>(mut x: &[T], maps: &[Maps], filter: &Filter) -> Buffer<T> {
    assert!(filter.padding < filter.side, "every position meets the map");
    let channels = filter.channels;
    let mut y = Buffer::<T>::uninit(filter.positions_of_all(maps) * channels);
    let mut rest = &mut y[..];
    for maps in maps {
        let [down, across] = filter.positions(maps.size);
        let image = maps.tokens() * channels;
        let (own, others) = x.split_at(maps.images * image);
        x = others;
        let len = maps.images * down * across * channels;
        let (to, others) = std::mem::take(&mut rest).split_at_mut(len);
        rest = others;
        let lines = to.par_chunks_mut((across * channels).max(1)).enumerate();
        lines.for_each(|(at, line)| {
            let x = &own[at / down * image..][..image];
            for (column, y) in line.chunks_exact_mut(channels).enumerate() {
                let mut is_first = true;
                filter.runs(maps.size, [at % down, column], |_, from, len| {
                    for values in x[from..from + len].chunks_exact(channels) {
                        if std::mem::take(&mut is_first) {
                            y.copy_from_slice(values);
                        } else {
                            update(y, [values], |y, [x]| if x > y || x.is_nan() { x } else { y });
                        }
                    }
                });
            }
        });
    }
    assert!(x.is_empty(), "rows of all maps");
    y
}

dispatch! {
    /// Replaces what is smaller, and its place.
    fn take_larger<T: Element>(values: &[T], tap: u8, largest: &mut [T], places: &mut [u8]) {
        for ((largest, place), &value) in largest.iter_mut().zip(places).zip(values) {
            if value.to_f32() > largest.to_f32() || value.to_f32().is_nan() {
                *largest = value;
                *place = tap;
            }
        }
    }
}

/// The gradient of the input from that of the output, `dy [positions, C]`, and the places that
/// [`max_pool`] gave.
///
/// # Panics
/// When lengths do not match.
pub fn max_pool_backward(dy: &[f32], places: &[u8], maps: &[Maps], filter: &Filter) -> Vec<f32> {
    assert_eq!(dy.len(), places.len(), "a place for every value");
    let channels = filter.channels;
    let rows: usize = maps.iter().map(|maps| maps.images * maps.tokens()).sum();
    let mut dx = buffer::uninit(rows * channels);
    let (mut dy, mut places, mut rest) = (dy, places, &mut dx[..]);
    for maps in maps {
        let ([down, across], [_, width]) = (filter.positions(maps.size), maps.size);
        let (image, of_image) = (maps.tokens() * channels, down * across * channels);
        let (own, others) = dy.split_at(maps.images * of_image);
        dy = others;
        let (own_places, others) = places.split_at(maps.images * of_image);
        places = others;
        let (to, others) = std::mem::take(&mut rest).split_at_mut(maps.images * image);
        rest = others;
        let gradients = own.par_chunks(of_image.max(1)).zip(own_places.par_chunks(of_image.max(1)));
        to.par_chunks_mut(image.max(1)).zip(gradients).for_each(|(dx, (dy, places))| {
            dx.fill(0.0);
            let positions = dy.chunks_exact(channels).zip(places.chunks_exact(channels));
            for (position, (dy, places)) in positions.enumerate() {
                let corner = [position / across, position % across].map(|at| at * filter.stride);
                for (channel, (dy, &tap)) in dy.iter().zip(places).enumerate() {
                    let (down, right) = (tap as usize / filter.side, tap as usize % filter.side);
                    let (y, x) = (corner[0] + down, corner[1] + right);
                    let token = (y - filter.padding) * width + x - filter.padding;
                    dx[token * channels + channel] += dy;
                }
            }
        });
    }
    assert!(dy.is_empty(), "positions of all maps");
    dx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{rounded, widened};
    use crate::isa::tests::under_each;
    use crate::maps::tests::meetings;
    use crate::testing::{assert_near, normal, wide};
    use proptest::prelude::*;

    /// Against the definition: of all values that meet a channel at a position, the first largest.
    fn check(maps: &[Maps], filter: &Filter) {
        let channels = filter.channels;
        let rows: usize = maps.iter().map(|maps| maps.images * maps.tokens()).sum();
        // Whole numbers, so that some are equal.
        let x: Vec<f32> = normal(rows * channels, 1).iter().map(|x| (2.0 * x).round()).collect();
        let positions: usize = maps.iter().map(|m| m.images * filter.output(m).tokens()).sum();
        let dy = normal(positions * channels, 2);
        let mut best: Vec<Option<usize>> = vec![None; dy.len()];
        let (mut row, mut first) = (0, 0);
        for maps in maps {
            for [from, tap, position] in meetings(maps, filter) {
                let (from, channel) = (row * channels + from, tap % channels);
                let best = &mut best[(first + position) * channels + channel];
                if best.is_none_or(|best| x[from] > x[best]) {
                    *best = Some(from);
                }
            }
            row += maps.images * maps.tokens();
            first += maps.images * filter.output(maps).tokens();
        }
        let best: Vec<usize> = best.into_iter().map(|best| best.unwrap()).collect();
        let expected: Vec<f32> = best.iter().map(|&best| x[best]).collect();
        let mut expected_dx = vec![0.0; x.len()];
        best.iter().zip(wide(&dy)).for_each(|(&best, dy)| expected_dx[best] += dy);
        under_each(|_| {
            let (y, places) = max_pool(&x, maps, filter);
            assert_eq!(y[..], expected, "{maps:?} {filter:?}");
            let (stored, of_stored) = max_pool(&rounded(&x), maps, filter);
            assert_eq!(stored[..], rounded(&expected)[..]);
            let (_, of_rounded) = max_pool(&widened(&rounded(&x)), maps, filter);
            assert_eq!(of_stored, of_rounded);
            assert_eq!(largest(&x, maps, filter)[..], expected, "{maps:?} {filter:?}");
            assert_eq!(largest(&rounded(&x), maps, filter)[..], rounded(&expected)[..]);
            let dx = max_pool_backward(&dy, &places, maps, filter);
            assert_near("dx", &dx, &expected_dx, 1e-6);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn against_the_definition(
            images in 1usize..3, height in 1usize..8, width in 1usize..8, channels in 1usize..20,
            side in 1usize..4, stride in 1usize..3,
        ) {
            let filter = Filter { channels, side, stride, padding: side / 2 };
            let maps = [
                Maps { images, size: [height.max(side), width.max(side)] },
                Maps { images: 1, size: [side, side] },
            ];
            check(&maps, &filter);
        }
    }

    #[test]
    fn nan_is_the_largest() {
        let filter = Filter { channels: 1, side: 2, stride: 2, padding: 0 };
        let maps = [Maps { images: 1, size: [2, 4] }];
        let x = [1.0, f32::NAN, 3.0, f32::NEG_INFINITY, 2.0, 5.0, 4.0, 3.0];
        let (y, places) = max_pool(&x, &maps, &filter);
        assert!(y[0].is_nan() && y[1] == 4.0);
        let alone = largest(&x, &maps, &filter);
        assert!(alone[0].is_nan() && alone[1] == 4.0);
        assert_eq!(places, [1, 2]);
        // Nothing but negative infinity.
        assert_eq!(largest(&[f32::NEG_INFINITY; 8], &maps, &filter)[..], [f32::NEG_INFINITY; 2]);
        let (y, places) = max_pool(&[f32::NEG_INFINITY; 8], &maps, &filter);
        assert_eq!((&y[..], places), (&[f32::NEG_INFINITY; 2][..], vec![0, 0]));
    }
}
