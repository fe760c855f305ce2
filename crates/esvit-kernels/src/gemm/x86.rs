//! GEMM for x86-64: AVX-512 (with and without BF16) and AVX2. Tiles of MR rows by 1 to 4 registers
//! of columns, as large as 32 (16 with AVX2) registers allow.

use std::arch::x86_64::*;

use super::tile::{Tile, gemm};
use super::{Dims, KC, LONG_KC, Lhs, Output, RhsPanel, bias_only, k_blocks};
use crate::element::{Bf16, Element};

/// Registers of AVX-512.
mod zmm {
    pub(super) use std::arch::x86_64::{
        _mm512_add_ps as add, _mm512_fmadd_ps as fma, _mm512_loadu_ps as load,
        _mm512_set1_epi32 as splat_bits, _mm512_set1_ps as splat, _mm512_setzero_ps as zero,
        _mm512_storeu_ps as store,
    };
    pub(super) const LANES: usize = 16;
}

/// Registers of AVX2.
mod ymm {
    pub(super) use std::arch::x86_64::{
        _mm256_add_ps as add, _mm256_fmadd_ps as fma, _mm256_loadu_ps as load,
        _mm256_set1_epi32 as splat_bits, _mm256_set1_ps as splat, _mm256_setzero_ps as zero,
        _mm256_storeu_ps as store,
    };
    pub(super) const LANES: usize = 8;
}

gemm!(
    gemm_f32_avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,fma",
    f32,
    zmm,
    LONG_KC,
    [
        (4, 6, [1, 2, 3, 4, 5]),
        (3, 8, [1, 2, 3, 4, 5, 6, 7]),
        (2, 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (1, 14, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    ],
    // SAFETY: as said for the whole tile.
    |at| unsafe { zmm::load(at) },
    // SAFETY: as said for the whole tile.
    |at: *const f32| zmm::splat(unsafe { *at }),
    zmm::fma
);

gemm!(
    gemm_bf16_avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma",
    Bf16,
    zmm,
    KC,
    [
        (4, 6, [1, 2, 3, 4, 5]),
        (3, 8, [1, 2, 3, 4, 5, 6, 7]),
        (2, 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (1, 14, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    ],
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| pairs(unsafe { _mm512_loadu_si512(at.cast()) }),
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| pairs(zmm::splat_bits(unsafe { at.cast::<i32>().read_unaligned() })),
    |a, b, sum| _mm512_dpbf16_ps(sum, a, b)
);

gemm!(
    gemm_bf16_widened_avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,fma",
    Bf16,
    zmm,
    KC,
    [(2, 8, [1, 2, 3, 4, 5, 6, 7]), (1, 8, [1, 2, 3, 4, 5, 6, 7])],
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened512(unsafe { _mm512_loadu_si512(at.cast()) }),
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened512(zmm::splat_bits(unsafe { at.cast::<i32>().read_unaligned() })),
    |a: [__m512; 2], b: [__m512; 2], sum| zmm::fma(a[1], b[1], zmm::fma(a[0], b[0], sum))
);

gemm!(
    gemm_f32_avx2,
    "avx2,fma",
    f32,
    ymm,
    KC,
    [(2, 6, [1, 2, 3, 4, 5])],
    // SAFETY: as said for the whole tile.
    |at| unsafe { ymm::load(at) },
    // SAFETY: as said for the whole tile.
    |at: *const f32| ymm::splat(unsafe { *at }),
    ymm::fma
);

gemm!(
    gemm_bf16_avx2,
    "avx2,fma",
    Bf16,
    ymm,
    KC,
    [(2, 4, [1, 2, 3])],
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened256(unsafe { _mm256_loadu_si256(at.cast()) }),
    // SAFETY: as said for the whole tile.
    |at: *const Bf16| widened256(ymm::splat_bits(unsafe { at.cast::<i32>().read_unaligned() })),
    |a: [__m256; 2], b: [__m256; 2], sum| ymm::fma(a[1], b[1], ymm::fma(a[0], b[0], sum))
);

/// 16 bf16 pairs as the operand type of `vdpbf16ps`.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn pairs(values: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits without invalid values.
    unsafe { std::mem::transmute(values) }
}

/// Widens 16 bf16 pairs: their first values, then their second ones.
#[target_feature(enable = "avx512f")]
#[inline]
fn widened512(values: __m512i) -> [__m512; 2] {
    let second = _mm512_and_si512(values, _mm512_set1_epi32(-65_536));
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(values)), _mm512_castsi512_ps(second)]
}

/// Widens 8 bf16 pairs: their first values, then their second ones.
#[target_feature(enable = "avx2")]
#[inline]
fn widened256(values: __m256i) -> [__m256; 2] {
    let second = _mm256_and_si256(values, _mm256_set1_epi32(-65_536));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(values)), _mm256_castsi256_ps(second)]
}

/// Transposes a 16 x 16 block of 32-bit values; rows are `row` and `to_row` values apart.
///
/// # Safety
/// The machine has AVX-512; 16 rows of 16 values lie at `from`, and there is room for as many at
/// `to`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose16_avx512(from: *const u32, row: usize, to: *mut u32, to_row: usize) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (i, value) in rows.iter_mut().enumerate() {
        // SAFETY: row `i` of 16.
        *value = unsafe { _mm512_loadu_si512(from.add(i * row).cast()) };
    }
    // Pairs of values, then pairs of pairs, change places inside each 128-bit lane.
    let mut twos = rows;
    for i in (0..16).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut fours = twos;
    for i in (0..16).step_by(4) {
        for half in 0..2 {
            let (a, b) = (twos[i + half], twos[i + 2 + half]);
            fours[i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // Then the 128-bit lanes: `fours[4 g + c]` holds columns c, c + 4, c + 8, c + 12 of rows
    // 4 g .. 4 g + 4.
    for c in 0..4 {
        let [a, b, c4, d] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let ab_even = _mm512_shuffle_i32x4::<0x88>(a, b);
        let ab_odd = _mm512_shuffle_i32x4::<0xdd>(a, b);
        let cd_even = _mm512_shuffle_i32x4::<0x88>(c4, d);
        let cd_odd = _mm512_shuffle_i32x4::<0xdd>(c4, d);
        let columns = [
            (c, _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even)),
            (c + 4, _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd)),
            (c + 8, _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even)),
            (c + 12, _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd)),
        ];
        for (column, value) in columns {
            // SAFETY: row `column` of 16 of the transpose.
            unsafe { _mm512_storeu_si512(to.add(column * to_row).cast(), value) };
        }
    }
}

/// Transposes an 8 x 8 block of 32-bit values; rows are `row` and `to_row` values apart.
///
/// # Safety
/// The machine has AVX2; 8 rows of 8 values lie at `from`, and there is room for as many at `to`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose8_avx2(from: *const f32, row: usize, to: *mut f32, to_row: usize) {
    let mut rows = [_mm256_setzero_ps(); 8];
    for (i, value) in rows.iter_mut().enumerate() {
        // SAFETY: row `i` of 8.
        *value = unsafe { _mm256_loadu_ps(from.add(i * row)) };
    }
    // Pairs of values, then pairs of pairs, change places inside each 128-bit lane.
    let mut twos = rows;
    for i in (0..8).step_by(2) {
        twos[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        twos[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut fours = twos;
    for i in (0..8).step_by(4) {
        for half in 0..2 {
            let (a, b) = (twos[i + half], twos[i + 2 + half]);
            fours[i + 2 * half] = _mm256_shuffle_ps::<0x44>(a, b);
            fours[i + 2 * half + 1] = _mm256_shuffle_ps::<0xee>(a, b);
        }
    }
    // Then the lanes: `fours[c]` and `fours[4 + c]` hold columns c and c + 4 of rows 0..4 and 4..8.
    for c in 0..4 {
        let (low, high) = (fours[c], fours[4 + c]);
        let first = _mm256_permute2f128_ps::<0x20>(low, high);
        let second = _mm256_permute2f128_ps::<0x31>(low, high);
        // SAFETY: rows `c` and `c + 4` of 8 of the transpose.
        unsafe {
            _mm256_storeu_ps(to.add(c * to_row), first);
            _mm256_storeu_ps(to.add((c + 4) * to_row), second);
        }
    }
}
