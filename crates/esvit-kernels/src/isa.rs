//! Run-time choice of the instruction set.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set, from the least to the most capable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// The target's baseline; on AArch64 that includes NEON.
    Baseline,
    /// x86-64 with AVX2 and FMA: 8 lanes.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
    /// AVX-512 with BF16: dot products of bf16 pairs (`vdpbf16ps`).
    Avx512Bf16,
}

impl Isa {
    /// All, from the least to the most capable.
    pub const ALL: [Self; 4] = [Self::Baseline, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }
}

/// The instruction set in use, or [`UNKNOWN`] before the first call of [`current`].
static IN_USE: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = u8::MAX;

/// The best instruction set that the machine has.
pub fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return match is_x86_feature_detected!("avx512bf16") {
            _ if !has_avx512 => Isa::Avx2,
            false => Isa::Avx512,
            true => Isa::Avx512Bf16,
        };
    }
    Isa::Baseline
}

/// The instruction set in use: the best that the machine has within the [`limit`].
#[inline]
pub fn current() -> Isa {
    match IN_USE.load(Ordering::Relaxed) {
        0 => Isa::Baseline,
        1 => Isa::Avx2,
        2 => Isa::Avx512,
        3 => Isa::Avx512Bf16,
        _ => {
            limit(Isa::Avx512Bf16);
            current()
        }
    }
}

/// Limits all kernels of the process to an instruction set, for tests and comparisons. Results of
/// different instruction sets differ by rounding, so call it at the start of a program.
pub fn limit(isa: Isa) {
    IN_USE.store(detected().min(isa) as u8, Ordering::Relaxed);
}

/// Whether the hardware multiplies bf16 pairs, so that bf16 GEMM is faster than f32.
pub fn has_bf16() -> bool {
    current() >= Isa::Avx512Bf16
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Mutex, Once, PoisonError};

    /// Runs a test under every instruction set that the machine has, and says once which these are.
    /// `ESVIT_REQUIRE_ISA=avx2` makes it a failure that the machine has not that one.
    pub(crate) fn under_each(mut test: impl FnMut(Isa)) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            let names = |has: bool| {
                let all = Isa::ALL.into_iter().filter(|&isa| (isa <= detected()) == has);
                all.map(Isa::name).collect::<Vec<&str>>().join(", ")
            };
            // Not `eprintln`, which a test that passes does not show.
            let said = format!("kernels run under: {}; not under: {}\n", names(true), names(false));
            std::io::stderr().write_all(said.as_bytes()).expect("an open stderr");
        });
        if let Ok(required) = std::env::var("ESVIT_REQUIRE_ISA") {
            let isa = Isa::ALL.into_iter().find(|isa| isa.name() == required);
            let isa = isa.unwrap_or_else(|| panic!("ESVIT_REQUIRE_ISA={required}: no such one"));
            assert!(isa <= detected(), "ESVIT_REQUIRE_ISA={required}, but the machine has it not");
        }
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for isa in Isa::ALL.into_iter().filter(|&isa| isa <= detected()) {
            limit(isa);
            test(isa);
        }
        limit(Isa::Avx512Bf16);
    }

    #[test]
    fn limits_are_kept() {
        under_each(|isa| {
            assert_eq!(current(), isa);
            assert_eq!(has_bf16(), isa == Isa::Avx512Bf16);
        });
    }
}
