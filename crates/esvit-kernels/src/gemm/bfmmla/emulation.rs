//! The instruction in plain Rust, with the same results to the bit, but for sums that are not finite.

use super::{Block, BlockUnit, PAIR, QUAD, SIDE, Sums};
use crate::element::{Bf16, Element};

/// NEON with BF16 in plain Rust.
#[derive(Debug)]
pub(super) struct Emulation;

impl BlockUnit for Emulation {
    unsafe fn multiply(lhs: &[Block], rhs: &[Block], row_pairs: usize) -> Sums {
        let mut out = [[f32::NAN; SIDE]; SIDE];
        for (row, out) in out.iter_mut().enumerate().take(2 * row_pairs) {
            for (column, out) in out.iter_mut().enumerate() {
                let blocks = lhs.iter().zip(rhs);
                *out = blocks.fold(0.0, |sum, (Block(lhs), Block(rhs))| {
                    let cut = |[a, b, c, d]: [Bf16; QUAD]| [[a, b], [c, d]];
                    let pairs = cut(lhs[row]).into_iter().zip(cut(rhs[column]));
                    pairs.fold(sum, |sum, (a, b)| add_products(sum, a, b))
                });
            }
        }
        out
    }
}

/// `sum + (a[0] b[0] + a[1] b[1])`.
fn add_products(sum: f32, a: [Bf16; PAIR], b: [Bf16; PAIR]) -> f32 {
    let product = |at: usize| {
        let [a, b] = [a, b].map(|pair| flushed(pair[at].to_f32()));
        // Of 8 bits by 8: exact unless it is denormal.
        flushed(a * b)
    };
    added(sum, added(product(0), product(1)))
}

/// The sum, rounded to odd.
fn added(a: f32, b: f32) -> f32 {
    let [a, b] = [a, b].map(|value| f64::from(flushed(value)));
    // The nearest f64, and what it is off by (Knuth's two-sum). Rounded to odd, it has more than two bits
    // beyond f32, so that rounding it once more is rounding once.
    let nearest = a + b;
    let of_b = nearest - a;
    let rest = (a - (nearest - of_b)) + (b - of_b);
    let bits = nearest.to_bits();
    let sum = match rest != 0.0 && bits & 1 == 0 {
        true if (rest > 0.0) == (nearest > 0.0) => f64::from_bits(bits + 1),
        true => f64::from_bits(bits - 1),
        false => nearest,
    };
    if sum.abs() < f64::from(f32::MIN_POSITIVE) {
        return 0.0f32.copysign(sum as f32);
    }
    let rounded = sum as f32;
    if f64::from(rounded) == sum {
        return rounded;
    }
    let is_beyond = f64::from(rounded).abs() > sum.abs();
    let toward_zero = rounded.to_bits() - u32::from(is_beyond);
    f32::from_bits(toward_zero | 1)
}

/// Zero for a denormal value.
fn flushed(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(value) } else { value }
}
