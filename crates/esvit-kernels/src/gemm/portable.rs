//! The product in plain Rust: the portable path, and what the others are tested against.

use super::{Extent, LANES, Left, Out, Strip};
use crate::element::Element;

/// Rows that are multiplied at a time, so that a value that was read serves several times.
const ROWS: usize = 4;

pub(super) fn gemm<T: Element>(
    left: Left<'_, T>,
    strip: Strip<'_, T>,
    extent: Extent,
    out: &mut Out<'_>,
    add: bool,
) {
    for start in (0..extent.rows).step_by(ROWS) {
        let rows = ROWS.min(extent.rows - start);
        for column in (0..strip.width).step_by(LANES) {
            let bias = match strip.bias {
                Some(bias) => std::array::from_fn(|lane| bias[column + lane]),
                None => [0f32; LANES],
            };
            let mut sums = [bias; ROWS];
            for step in 0..extent.steps {
                let at = step * strip.step + column * T::PAIR;
                let right = &strip.values[at..at + LANES * T::PAIR];
                for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                    let at = (start + i) * left.row + step * left.step;
                    let left = &left.values[at..at + T::PAIR];
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for (pair, value) in left.iter().enumerate() {
                            *sum += value.to_f32() * right[lane * T::PAIR + pair].to_f32();
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows) {
                let row = &mut out.values[(start + i) * out.row + column..][..LANES];
                for (value, sum) in row.iter_mut().zip(sums) {
                    *value = if add { *value + sum } else { *sum };
                }
            }
        }
    }
}
