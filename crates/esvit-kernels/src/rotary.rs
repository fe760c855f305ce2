//! Rotary positions: pairs of channels of queries and keys are turned by the angles of their token.

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::simd::dispatch;

/// The angles of the tokens of an image, by which points of a head's channels are turned.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// Tokens of an image.
    pub tokens: usize,
    /// Cosines, `[tokens, d / 2]` for heads of `d` channels.
    pub cosines: &'a [f32],
    /// Sines, `[tokens, d / 2]`.
    pub sines: &'a [f32],
}

/// Turns queries and keys of rows `[images * tokens, 3 C]` of queries, keys and values: channels
/// `i` and `d / 2 + i` of a head, `(x, y)`, become `(x cos - y sin, y cos + x sin)`.
///
/// # Panics
/// When lengths do not match.
pub fn turn(qkv: &mut [f32], width: usize, angles: &Angles<'_>) {
    turn_by(qkv, width, angles, 1.0);
}

/// The inverse of [`turn`], which is its transpose: the gradient of its input from that of its output.
///
/// # Panics
/// When lengths do not match.
pub fn turn_back(qkv: &mut [f32], width: usize, angles: &Angles<'_>) {
    turn_by(qkv, width, angles, -1.0);
}

fn turn_by(qkv: &mut [f32], width: usize, angles: &Angles<'_>, sign: f32) {
    let Angles { tokens, cosines, sines } = *angles;
    let (half, turned) = (cosines.len() / tokens, width / 3 * 2);
    assert_eq!(cosines.len(), sines.len(), "a sine for every cosine");
    assert_eq!(qkv.len() % (tokens * width), 0, "rows of whole images");
    assert_eq!(turned % (4 * half), 0, "heads of queries and keys");
    let rows = (TASK_VALUES / width).max(1);
    qkv.par_chunks_mut(rows * width).enumerate().for_each(|(task, part)| {
        for (at, row) in part.chunks_exact_mut(width).enumerate() {
            let token = (task * rows + at) % tokens;
            let own = token * half..(token + 1) * half;
            turn_row(&mut row[..turned], &cosines[own.clone()], &sines[own], sign);
        }
    });
}

dispatch! {
    /// Turns all heads of a row.
    fn turn_row(row: &mut [f32], cosines: &[f32], sines: &[f32], sign: f32) {
        for head in row.chunks_exact_mut(2 * cosines.len()) {
            let (first, second) = head.split_at_mut(cosines.len());
            let points = first.iter_mut().zip(second);
            for ((x, y), (cosine, sine)) in points.zip(cosines.iter().zip(sines)) {
                let sine = sign * sine;
                (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::testing::{assert_near, dot, normal, wide};
    use proptest::prelude::*;

    /// Against the definition, and turned back.
    fn check(images: usize, tokens: usize, heads: usize, half: usize) {
        let (channels, width) = (2 * half * heads, 6 * half * heads);
        let qkv = normal(images * tokens * width, 1);
        let angles: Vec<f64> = wide(&normal(tokens * half, 2));
        let of = |function: fn(f64) -> f64| -> Vec<f32> {
            angles.iter().map(|&angle| function(angle) as f32).collect()
        };
        let (cosines, sines) = (of(f64::cos), of(f64::sin));
        let table = Angles { tokens, cosines: &cosines, sines: &sines };
        let mut expected = wide(&qkv);
        for (at, row) in expected.chunks_exact_mut(width).enumerate() {
            for head in row[..2 * channels].chunks_exact_mut(2 * half) {
                for point in 0..half {
                    let (sine, cosine) = angles[at % tokens * half + point].sin_cos();
                    let [x, y] = [head[point], head[half + point]];
                    head[point] = x * cosine - y * sine;
                    head[half + point] = y * cosine + x * sine;
                }
            }
        }
        let gradient = normal(qkv.len(), 3);
        under_each(|_| {
            let mut found = qkv.clone();
            turn(&mut found, width, &table);
            assert_near("turned", &found, &expected, 1e-6);
            let mut back = gradient.clone();
            turn_back(&mut back, width, &table);
            // The transpose.
            let [left, right] = [dot(&expected, &wide(&gradient)), dot(&wide(&qkv), &wide(&back))];
            assert!((left - right).abs() < 1e-4 * (1.0 + qkv.len() as f64), "{left} {right}");
            turn_back(&mut found, width, &table);
            assert_near("turned back", &found, &wide(&qkv), 1e-6);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn against_the_definition(
            images in 1usize..4, tokens in 1usize..9, heads in 1usize..4, half in 1usize..40,
        ) {
            check(images, tokens, heads, half);
        }
    }

    /// Several tasks, which begin in the middle of an image.
    #[test]
    fn many_rows() {
        check(3, 201, 2, 32);
    }
}
