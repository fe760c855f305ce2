//! AMX, Intel's matrix unit: whether the processor has it with bf16, and whether the operating system
//! lets the process use it.

use std::sync::OnceLock;

/// What there is of AMX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amx {
    /// The processor or the operating system does not know it, or has no bf16.
    Absent,
    /// The processor has it, but the operating system refuses it, as some containers do.
    Refused {
        /// Error number (errno) of the system call `arch_prctl`.
        error: i64,
    },
    /// All threads of the process may use it.
    Permitted,
}

/// What there is of AMX. The first call asks the operating system, for the whole process.
pub fn amx() -> Amx {
    static ANSWER: OnceLock<Amx> = OnceLock::new();
    *ANSWER.get_or_init(ask)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> Amx {
    Amx::Absent
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> Amx {
    if !linux::is_there() {
        return Amx::Absent;
    }
    match linux::request() {
        0 => Amx::Permitted,
        error => Amx::Refused { error: -error },
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// CPUID leaf 1, ECX: the operating system has enabled `xgetbv`.
    const OSXSAVE: u32 = 1 << 27;

    /// XCR0: the operating system saves the configuration of tiles (bit 17) and tiles (bit 18).
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;

    /// CPUID leaf 7, EDX: products of bf16 tiles (bit 22) and tiles (bit 24).
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;

    /// System call `arch_prctl` and its function that asks for a state too large to be there for
    /// every thread.
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;

    /// Number of the state of tiles: bit 18 of XCR0.
    const XFEATURE_XTILEDATA: i64 = 18;

    /// Whether processor and operating system know tiles of bf16. The standard library's detection
    /// of AMX is not stable yet.
    pub(super) fn is_there() -> bool {
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        // SAFETY: OSXSAVE says that `xgetbv` may be executed, and XCR0 is there where it may.
        let saved = unsafe { _xgetbv(0) };
        saved & TILE_STATE == TILE_STATE
            && __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
    }

    /// Asks for the state of tiles for all threads of the process: 0, or an error number below it.
    pub(super) fn request() -> i64 {
        let mut answer = ARCH_PRCTL;
        // SAFETY: the system call takes two numbers and accesses no memory of the process; `syscall`
        // itself overwrites RCX and R11.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") answer,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack, nomem),
            );
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same answer every time, and none but the processor's own where it has no AMX.
    #[test]
    fn asked_once() {
        let first = amx();
        assert_eq!(amx(), first);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        assert_eq!(first == Amx::Absent, !linux::is_there());
    }

    /// The kernel's own list of features agrees.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn as_the_kernel_lists_it() {
        let Ok(listed) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let flags = listed.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has = |name| flags.split_whitespace().any(|flag| flag == name);
        assert_eq!(linux::is_there(), has("amx_tile") && has("amx_bf16"));
    }
}
