//! Who made the processor: the same instructions are fast on one and slow on another.

/// The maker of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Another one, or none that can be told.
    Other,
}

impl Vendor {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd => "AMD",
            Self::Intel => "Intel",
            Self::Other => "other",
        }
    }

    /// By the name that x86 processors give (CPUID leaf 0).
    #[cfg(any(target_arch = "x86_64", test))]
    fn named(name: &[u8; 12]) -> Self {
        match name {
            b"AuthenticAMD" => Self::Amd,
            b"GenuineIntel" => Self::Intel,
            _ => Self::Other,
        }
    }
}

/// The maker of this processor.
#[cfg(target_arch = "x86_64")]
pub fn vendor() -> Vendor {
    let answer = std::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (to, part) in name.chunks_exact_mut(4).zip([answer.ebx, answer.edx, answer.ecx]) {
        to.copy_from_slice(&part.to_le_bytes());
    }
    Vendor::named(&name)
}

/// The maker of this processor.
#[cfg(not(target_arch = "x86_64"))]
pub fn vendor() -> Vendor {
    Vendor::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_makers() {
        let names = [b"AuthenticAMD", b"GenuineIntel", b"HygonGenuine"];
        assert_eq!(names.map(Vendor::named), [Vendor::Amd, Vendor::Intel, Vendor::Other]);
    }

    /// The kernel's own list agrees.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn as_the_kernel_names_it() {
        let Ok(listed) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let line = listed.lines().find(|line| line.starts_with("vendor_id")).unwrap_or_default();
        let expected = match line.rsplit(' ').next() {
            Some("AuthenticAMD") => Vendor::Amd,
            Some("GenuineIntel") => Vendor::Intel,
            _ => Vendor::Other,
        };
        assert_eq!(vendor(), expected);
    }
}
