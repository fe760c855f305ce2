//! The machine's limit: how fast products run when nothing stands in their way.

use std::time::Instant;

use rayon::prelude::*;

use crate::element::Element;
use crate::gemm::{Extent, Left, Out, Strip};
use crate::profile;

/// Rows, inner values and columns of a product whose operands stay in the first two caches.
const SHAPE: [usize; 3] = [48, 192, 64];

/// Products of a round.
const REPEATS: usize = 2000;

/// Multiply-accumulates a second, on all threads, of products of `T` whose operands lie in the
/// caches, laid out as the kernels want them: the best of `rounds` rounds.
pub fn gemm_rate<T: Element>(rounds: usize) -> f64 {
    profile::unrecorded(|| (0..rounds.max(1)).map(|_| one_round::<T>()).fold(0.0, f64::max))
}

fn one_round<T: Element>() -> f64 {
    let [rows, inner, columns] = SHAPE;
    let began = Instant::now();
    (0..rayon::current_num_threads()).into_par_iter().for_each(|_| {
        let left = vec![T::from_f32(1.0); rows * inner];
        let right = vec![T::from_f32(0.5); inner * columns];
        let mut out = vec![0.0; rows * columns];
        for _ in 0..REPEATS {
            let strip =
                Strip { values: &right[..], step: columns * T::PAIR, width: columns, bias: None };
            let extent = Extent { rows, steps: inner / T::PAIR };
            let mut out = Out { values: &mut out[..], row: columns };
            T::gemm(Left::rows(&left, inner), strip, extent, &mut out, false);
        }
        std::hint::black_box(&out);
    });
    let macs = rayon::current_num_threads() * REPEATS * rows * inner * columns;
    macs as f64 / began.elapsed().as_secs_f64()
}
