//! Run-time choice of the instruction set.

mod amx;
mod vendor;

use std::cmp;
use std::sync::atomic::{AtomicU8, Ordering};

pub use amx::{Amx, amx};
pub use vendor::{Vendor, vendor};

/// An instruction set. It is less than another one that includes it; sets of different processors are
/// neither less nor greater. An emulation stands last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// AArch64 with BF16: products of 2 x 4 by 4 x 2 matrices of bf16 (`bfmmla`).
    NeonBf16,
    /// AVX-512 with BF16 and AMX with BF16, Intel's matrix unit: products of bf16 tiles (`tdpbf16ps`).
    Amx,
    /// What the machine has without AMX, and AMX in plain Rust: slow, for tests. Never chosen by
    /// itself.
    AmxEmulated,
}

impl Isa {
    /// All that processors have, each after those that it includes.
    pub const ALL: [Self; 6] =
        [Self::Baseline, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx, Self::NeonBf16];

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::NeonBf16 => "neon-bf16",
            Self::Amx => "amx",
            Self::AmxEmulated => "amx-emulated",
        }
    }

    /// Whether it multiplies bf16. An emulation answers as what it stands for.
    pub fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::NeonBf16) || self.has_tiles()
    }

    /// Whether bf16 is multiplied in tiles.
    pub fn has_tiles(self) -> bool {
        matches!(self, Self::Amx | Self::AmxEmulated)
    }
}

impl PartialOrd for Isa {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        let is_x86 = |isa| matches!(isa, Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx);
        let is_arm = |isa| matches!(isa, Self::NeonBf16);
        let are_apart = is_x86(*self) && is_arm(*other) || is_arm(*self) && is_x86(*other);
        if are_apart {
            return None;
        }
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

/// What is in use: the number of an instruction set, [`EMULATED`] and that of the vector
/// instructions beside an emulation, or [`UNKNOWN`] before the first call of [`current`].
static IN_USE: AtomicU8 = AtomicU8::new(UNKNOWN);
const AMX: u8 = Isa::Amx as u8;
const EMULATED: u8 = Isa::AmxEmulated as u8;
const UNKNOWN: u8 = u8::MAX;

/// The best instruction set that the machine has and lets the process use. Where there is AMX, this
/// asks for it.
pub fn detected() -> Isa {
    match detected_vectors() {
        Isa::Avx512Bf16 if amx() == Amx::Permitted => Isa::Amx,
        vectors => vectors,
    }
}

/// The best instruction set of the machine, AMX aside.
fn detected_vectors() -> Isa {
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
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("bf16") {
        return Isa::NeonBf16;
    }
    Isa::Baseline
}

/// The instruction set in use: the best that the machine has within the [`limit`].
#[inline]
pub fn current() -> Isa {
    match in_use() {
        AMX => Isa::Amx,
        EMULATED.. => Isa::AmxEmulated,
        vectors => vector_set(vectors),
    }
}

/// The vector instructions in use, for all but products of tiles: never AMX.
#[inline]
pub(crate) fn vectors() -> Isa {
    match in_use() {
        AMX => Isa::Avx512Bf16,
        emulated @ EMULATED.. => vector_set(emulated - EMULATED),
        vectors => vector_set(vectors),
    }
}

#[inline]
fn in_use() -> u8 {
    match IN_USE.load(Ordering::Relaxed) {
        UNKNOWN => {
            lift_limit();
            IN_USE.load(Ordering::Relaxed)
        }
        known => known,
    }
}

#[inline]
fn vector_set(number: u8) -> Isa {
    match number {
        0 => Isa::Baseline,
        1 => Isa::Avx2,
        2 => Isa::Avx512,
        3 => Isa::Avx512Bf16,
        _ => Isa::NeonBf16,
    }
}

/// Limits all kernels of the process to an instruction set and what it includes, for tests and
/// comparisons: one of other processors leaves the baseline. Results of different instruction sets
/// differ by rounding, so call it at the start of a program.
pub fn limit(isa: Isa) {
    let number = match isa {
        Isa::Amx => best_within(isa, detected()) as u8,
        Isa::AmxEmulated => EMULATED + detected_vectors() as u8,
        vectors => best_within(vectors, detected_vectors()) as u8,
    };
    IN_USE.store(number, Ordering::Relaxed);
}

/// Takes the best that the machine has.
fn lift_limit() {
    IN_USE.store(detected() as u8, Ordering::Relaxed);
}

/// The best instruction set of a machine within a limit.
fn best_within(limit: Isa, machine: Isa) -> Isa {
    let is_in_both = |isa: &Isa| *isa <= limit && *isa <= machine;
    Isa::ALL.into_iter().rfind(is_in_both).unwrap_or(Isa::Baseline)
}

/// Whether the hardware multiplies bf16. That bf16 GEMM is then faster than f32 is not said. An
/// emulation answers as what it stands for.
pub fn has_bf16() -> bool {
    current().multiplies_bf16()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Mutex, Once, PoisonError};

    /// Whether the machine can run it.
    fn runs(isa: Isa) -> bool {
        isa == Isa::AmxEmulated || isa <= detected()
    }

    /// Runs a test under every instruction set that the machine has and under the emulation of AMX,
    /// and says once which these are. `ESVIT_REQUIRE_ISA=avx2` makes it a failure that the machine
    /// has not that one.
    pub(crate) fn under_each(mut test: impl FnMut(Isa)) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        static SAID: Once = Once::new();
        let all = Isa::ALL.into_iter().chain([Isa::AmxEmulated]);
        SAID.call_once(|| {
            let names = |has: bool| {
                let all = all.clone().filter(|&isa| runs(isa) == has);
                all.map(Isa::name).collect::<Vec<&str>>().join(", ")
            };
            // Not `eprintln`, which a test that passes does not show.
            let said = format!("kernels run under: {}; not under: {}\n", names(true), names(false));
            std::io::stderr().write_all(said.as_bytes()).expect("an open stderr");
        });
        if let Ok(required) = std::env::var("ESVIT_REQUIRE_ISA") {
            let isa = Isa::ALL.into_iter().find(|isa| isa.name() == required);
            let isa = isa.unwrap_or_else(|| panic!("ESVIT_REQUIRE_ISA={required}: no such one"));
            assert!(runs(isa), "ESVIT_REQUIRE_ISA={required}, but the machine has it not");
        }
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for isa in all.filter(|&isa| runs(isa)) {
            limit(isa);
            test(isa);
        }
        lift_limit();
    }

    #[test]
    fn limits_are_kept() {
        under_each(|isa| {
            assert_eq!(current(), isa);
            let bf16 = [Isa::Avx512Bf16, Isa::NeonBf16, Isa::Amx, Isa::AmxEmulated];
            assert_eq!(has_bf16(), bf16.contains(&isa));
            let expected = if isa.has_tiles() { detected_vectors() } else { isa };
            assert_eq!(vectors(), expected);
        });
    }

    /// An emulation is for those who ask for it, and AMX is nothing that a limit brings.
    #[test]
    fn the_machine_decides() {
        under_each(|_| {
            lift_limit();
            assert!(current() == detected() && current() != Isa::AmxEmulated);
            assert_eq!(current() == Isa::Amx, amx() == Amx::Permitted);
            limit(Isa::Amx);
            assert_eq!(current(), best_within(Isa::Amx, detected()));
        });
    }

    #[test]
    fn limits_on_any_machine() {
        use Isa::{Amx, Avx2, Avx512, Avx512Bf16, Baseline, NeonBf16};
        for (limit, machine, expected) in [
            (Avx2, Avx512Bf16, Avx2),
            (Avx512, Avx2, Avx2),
            (Amx, Avx512Bf16, Avx512Bf16),
            (Amx, Amx, Amx),
            (Baseline, Amx, Baseline),
            (NeonBf16, NeonBf16, NeonBf16),
            (NeonBf16, Baseline, Baseline),
            // Of other processors.
            (NeonBf16, Avx512Bf16, Baseline),
            (NeonBf16, Amx, Baseline),
            (Avx2, NeonBf16, Baseline),
            (Amx, NeonBf16, Baseline),
        ] {
            assert_eq!(best_within(limit, machine), expected, "{limit:?} on {machine:?}");
        }
    }

    /// The list has every set after those that it includes, and what is in use is stored as a number.
    #[test]
    fn sets_by_number() {
        for (place, isa) in Isa::ALL.into_iter().enumerate() {
            assert!(isa < Isa::AmxEmulated && Isa::Baseline <= isa, "{isa:?}");
            assert!(!Isa::ALL[place..].iter().any(|later| *later < isa), "{isa:?}");
            if isa != Isa::Amx {
                assert_eq!(vector_set(isa as u8), isa);
            }
        }
    }
}
