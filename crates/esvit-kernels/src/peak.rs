//! Peak throughput of the machine: of GEMM, and of registers alone.

use std::time::Instant;

use rayon::prelude::*;

use crate::element::Element;
use crate::gemm::{Dims, Lhs, Output, RhsPanel};
use crate::profile;

/// M, K and N of a GEMM whose operands stay in L1 and L2.
const SHAPE: [usize; 3] = [48, 192, 64];

/// GEMM calls of a round.
const REPEATS: usize = 2000;

/// Multiply-accumulates of a round of products of registers, on each thread.
const REGISTER_MACS: usize = 1 << 28;

/// Multiply-accumulates a second, on all threads, of GEMM in `T` with packed operands in the
/// caches: the best of `rounds` rounds.
pub fn gemm_rate<T: Element>(rounds: usize) -> f64 {
    profile::unrecorded(|| (0..rounds.max(1)).map(|_| one_round::<T>()).fold(0.0, f64::max))
}

/// Multiply-accumulates a second, on all threads, of the instructions that GEMM in `T` takes, on
/// registers alone: what no GEMM exceeds. The best of `rounds` rounds.
pub fn register_rate<T: Element>(rounds: usize) -> f64 {
    let registers = T::registers();
    let turns = REGISTER_MACS / registers.macs();
    let threads = rayon::current_num_threads();
    let one_round = |_| {
        let began = Instant::now();
        (0..threads).into_par_iter().for_each(|_| {
            std::hint::black_box(registers.run(turns));
        });
        (threads * turns * registers.macs()) as f64 / began.elapsed().as_secs_f64()
    };
    (0..rounds.max(1)).map(one_round).fold(0.0, f64::max)
}

fn one_round<T: Element>() -> f64 {
    let [m, k, n] = SHAPE;
    let began = Instant::now();
    (0..rayon::current_num_threads()).into_par_iter().for_each(|_| {
        let lhs = vec![T::from_f32(1.0); m * k];
        let rhs = vec![T::from_f32(0.5); k * n];
        let mut out = vec![0.0; m * n];
        for _ in 0..REPEATS {
            let panel =
                RhsPanel { values: &rhs[..], k_stride: n * T::K_PACK, width: n, bias: None };
            let dims = Dims { m, k_steps: k / T::K_PACK };
            let mut out = Output { values: &mut out[..], row_stride: n };
            T::gemm(Lhs::from_rows(&lhs, k), panel, dims, &mut out, false);
        }
        std::hint::black_box(&out);
    });
    let macs = rayon::current_num_threads() * REPEATS * m * k * n;
    macs as f64 / began.elapsed().as_secs_f64()
}
