//! GEMM for AArch64 with NEON (4 lanes), which every such machine has.

use std::arch::aarch64::*;

use super::tile::{Tile, gemm};
use super::{Dims, KC, Lhs, Output, RhsPanel, bias_only, k_blocks};
use crate::element::{Bf16, Element};

/// Registers of NEON.
mod quad {
    pub(super) use std::arch::aarch64::{vaddq_f32 as add, vld1q_f32 as load, vst1q_f32 as store};
    pub(super) const LANES: usize = 4;

    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn zero() -> std::arch::aarch64::float32x4_t {
        std::arch::aarch64::vdupq_n_f32(0.0)
    }
}

gemm!(
    gemm_f32,
    "neon",
    f32,
    quad,
    KC,
    [(4, 6, [1, 2, 3, 4, 5])],
    // SAFETY: as said for the whole tile.
    |at| unsafe { vld1q_f32(at) },
    // SAFETY: as said for the whole tile.
    |at: *const f32| vdupq_n_f32(unsafe { *at }),
    |a, b, sum| vfmaq_f32(sum, a, b)
);

gemm!(
    gemm_bf16,
    "neon",
    Bf16,
    quad,
    KC,
    [(4, 4, [1, 2, 3])],
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened(unsafe { vld1q_u32(at.cast()) }),
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened(vdupq_n_u32(unsafe { at.cast::<u32>().read_unaligned() })),
    |a: [float32x4_t; 2], b: [float32x4_t; 2], sum| {
        vfmaq_f32(vfmaq_f32(sum, a[0], b[0]), a[1], b[1])
    }
);

/// Widens 4 bf16 pairs: their first values, then their second ones.
#[target_feature(enable = "neon")]
#[inline]
fn widened(values: uint32x4_t) -> [float32x4_t; 2] {
    let second = vandq_u32(values, vdupq_n_u32(0xffff_0000));
    [vreinterpretq_f32_u32(vshlq_n_u32::<16>(values)), vreinterpretq_f32_u32(second)]
}
