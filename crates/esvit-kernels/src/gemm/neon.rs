//! GEMM for AArch64 with NEON (4 lanes), which every such machine has.

use std::arch::aarch64::*;

use super::tile::{Tile, gemm, tile};
use super::{Dims, KC, Lhs, Output, RhsPanel, bias_only, k_blocks};
use crate::element::Bf16;

gemm!(gemm_f32, "neon", f32, 1, 4, KC, tile_f32, [(4, 6, [1, 2, 3, 4, 5])]);
gemm!(gemm_bf16, "neon", Bf16, 2, 4, KC, tile_bf16, [(4, 4, [1, 2, 3])]);

tile!(
    tile_f32,
    "neon",
    f32,
    1,
    4,
    vdupq_n_f32(0.0),
    |at| vld1q_f32(at),
    |a, b| vaddq_f32(a, b),
    |at, value| vst1q_f32(at, value),
    // SAFETY: as said for the whole tile.
    |at: *const f32| unsafe { vld1q_f32(at) },
    // SAFETY: as said for the whole tile.
    |at: *const f32| vdupq_n_f32(unsafe { *at }),
    |a, b, sum| vfmaq_f32(sum, a, b)
);

tile!(
    tile_bf16,
    "neon",
    Bf16,
    2,
    4,
    vdupq_n_f32(0.0),
    |at| vld1q_f32(at),
    |a, b| vaddq_f32(a, b),
    |at, value| vst1q_f32(at, value),
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
