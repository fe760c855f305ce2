//! Portable GEMM in plain Rust, and the reference for the other paths.

use super::{Dims, LANES, Lhs, Output, RhsPanel};
use crate::element::Element;

/// Rows of a tile: every loaded value of the RHS is used for this many rows.
const MR: usize = 4;

pub(super) fn gemm<T: Element>(
    lhs: &Lhs<'_, T>,
    panel: &RhsPanel<'_, T>,
    dims: Dims,
    out: &mut Output<'_>,
    add: bool,
) {
    for start in (0..dims.m).step_by(MR) {
        let rows = MR.min(dims.m - start);
        for column in (0..panel.width).step_by(LANES) {
            let bias = match panel.bias {
                Some(bias) => std::array::from_fn(|lane| bias[column + lane]),
                None => [0f32; LANES],
            };
            let mut sums = [bias; MR];
            for step in 0..dims.k_steps {
                let at = step * panel.k_stride + column * T::K_PACK;
                let rhs = &panel.values[at..at + LANES * T::K_PACK];
                for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                    let at = (start + i) * lhs.row_stride + step * lhs.k_stride;
                    let lhs = &lhs.values[at..at + T::K_PACK];
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for (pair, value) in lhs.iter().enumerate() {
                            *sum += value.to_f32() * rhs[lane * T::K_PACK + pair].to_f32();
                        }
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows) {
                let row = &mut out.values[(start + i) * out.row_stride + column..][..LANES];
                for (value, sum) in row.iter_mut().zip(sums) {
                    *value = if add { *value + sum } else { *sum };
                }
            }
        }
    }
}
