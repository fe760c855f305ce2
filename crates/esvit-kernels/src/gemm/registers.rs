//! Products of registers alone, by the instructions that a GEMM takes and without memory: the
//! machine's own limit.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;

use super::amx;
#[cfg(target_arch = "aarch64")]
use super::bfmmla::bfmmla;
#[cfg(target_arch = "x86_64")]
use super::x86::pairs;
use crate::isa::{self, Isa};

/// A loop that multiplies registers full of ones and adds the products to accumulators, of which there
/// are enough that none is waited for.
#[derive(Debug, Clone, Copy)]
pub struct RegisterLoop {
    /// Takes the number of turns and returns the sum of all accumulators. Its instructions are those
    /// of the set in use.
    run: unsafe fn(usize) -> f32,
    /// Multiply-accumulates of a turn.
    macs: usize,
}

impl RegisterLoop {
    /// By the instructions of GEMM in f32.
    pub(super) fn of_f32() -> Self {
        match isa::vectors() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Self { run: f32_avx512, macs: 24 * 16 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { run: f32_avx2, macs: 12 * 8 },
            #[cfg(target_arch = "x86_64")]
            _ => Self { run: f32_sse2, macs: 12 * 4 },
            #[cfg(target_arch = "aarch64")]
            _ => Self { run: f32_neon, macs: 24 * 4 },
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => Self { run: f32_portable, macs: 16 },
        }
    }

    /// By the instructions of GEMM in bf16, which where none multiply it are those of f32.
    pub(super) fn of_bf16() -> Self {
        match isa::current() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Self { run: amx::registers::<amx::Instructions>, macs: amx::REGISTER_MACS },
            Isa::AmxEmulated => {
                Self { run: amx::registers::<amx::Emulation>, macs: amx::REGISTER_MACS }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Self { run: bf16_avx512, macs: 24 * 32 },
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => Self { run: bf16_neon, macs: 24 * 16 },
            _ => Self::of_f32(),
        }
    }

    /// Multiply-accumulates of a turn.
    pub(crate) fn macs(&self) -> usize {
        self.macs
    }

    /// Takes so many turns and returns the sum of all accumulators, which every multiply-accumulate
    /// raises by one.
    pub(crate) fn run(&self, turns: usize) -> f32 {
        // SAFETY: the machine has the instruction set that was in use when the loop was chosen.
        unsafe { (self.run)(turns) }
    }
}

/// Defines a loop over `$chains` registers of accumulators. `$zero` is a register of zeros,
/// `$splat(1.0)` one of ones, `$fma(sum, ones)` the sum of `sum` times one and one, or of `sum` and
/// products of ones.
///
/// What the compiler does not see it cannot compute beforehand: zeros and ones are hidden from it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! chains {
    ($name:ident, $feature:literal, $chains:literal, $zero:expr, $splat:expr, $fma:expr) => {
        /// # Safety
        /// The machine has the features.
        #[target_feature(enable = $feature)]
        unsafe fn $name(turns: usize) -> f32 {
            let mut sums = black_box([$zero; $chains]);
            let ones = $splat(black_box(1.0f32));
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = $fma(*sum, ones);
                }
            }
            let sums = black_box(sums);
            let values = size_of_val(&sums) / size_of::<f32>();
            // SAFETY: a register has as many values of f32 as fit its size, and the array no gaps.
            unsafe { std::slice::from_raw_parts(sums.as_ptr().cast::<f32>(), values) }.iter().sum()
        }
    };
}

#[cfg(target_arch = "x86_64")]
chains!(f32_avx512, "avx512f", 24, _mm512_setzero_ps(), _mm512_set1_ps, |sum, ones| {
    _mm512_fmadd_ps(sum, ones, ones)
});

#[cfg(target_arch = "x86_64")]
chains!(
    bf16_avx512,
    "avx512f,avx512bf16",
    24,
    _mm512_setzero_ps(),
    // A pair: both halves of 4 bytes are the upper half of an f32.
    |one: f32| pairs(_mm512_set1_epi32((one.to_bits() | one.to_bits() >> 16) as i32)),
    |sum, ones| _mm512_dpbf16_ps(sum, ones, ones)
);

#[cfg(target_arch = "x86_64")]
chains!(f32_avx2, "avx2,fma", 12, _mm256_setzero_ps(), _mm256_set1_ps, |sum, ones| {
    _mm256_fmadd_ps(sum, ones, ones)
});

#[cfg(target_arch = "x86_64")]
chains!(f32_sse2, "sse2", 12, _mm_setzero_ps(), _mm_set1_ps, |sum, ones| _mm_add_ps(
    _mm_mul_ps(sum, ones),
    ones
));

#[cfg(target_arch = "aarch64")]
chains!(f32_neon, "neon", 24, vdupq_n_f32(0.0), vdupq_n_f32, |sum, ones| vfmaq_f32(
    ones, sum, ones
));

#[cfg(target_arch = "aarch64")]
chains!(
    bf16_neon,
    "neon,bf16",
    24,
    vdupq_n_f32(0.0),
    |one: f32| vdupq_n_u16((one.to_bits() >> 16) as u16),
    |sum, ones| bfmmla(sum, ones, ones)
);

/// # Safety
/// It is safe.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn f32_portable(turns: usize) -> f32 {
    let mut sums = black_box([0f32; 16]);
    let one = black_box(1.0f32);
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = *sum * one + one;
        }
    }
    black_box(sums).iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;

    #[test]
    fn loops_do_what_they_count() {
        under_each(|isa| {
            for registers in [RegisterLoop::of_f32(), RegisterLoop::of_bf16()] {
                for turns in [0, 1, 3] {
                    let expected = (turns * registers.macs()) as f32;
                    assert_eq!(registers.run(turns), expected, "{isa:?}");
                }
            }
            let [f32, bf16] = [RegisterLoop::of_f32(), RegisterLoop::of_bf16()].map(|of| of.macs());
            assert_eq!(bf16 > f32, isa::has_bf16(), "{isa:?}");
        });
    }
}
