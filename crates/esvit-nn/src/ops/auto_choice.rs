//! What `auto` takes: instruction set and precision by kind of processor, as they were measured and not
//! by what a feature is called.

use esvit_kernels::isa::{self, Isa, Vendor, vendor};

use super::Precision;

/// Processors of a kind, and what `auto` takes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoChoice {
    /// Their maker; None for all.
    pub vendor: Option<Vendor>,
    /// The best instruction set that they have and the system permits, which kernels take; None for
    /// all.
    pub isa: Option<Isa>,
    /// The precision.
    pub precision: Precision,
    /// What was measured.
    pub measured: &'static str,
}

/// What `auto` takes; the first row that fits counts. `docs/performance.md` has the measurements.
pub static AUTO_CHOICES: [AutoChoice; 5] = [
    AutoChoice {
        vendor: Some(Vendor::Intel),
        isa: Some(Isa::Amx),
        precision: Precision::Bf16,
        measured: "two cores of a Xeon with AMX: a training step of Swin-T takes 1.11 s in bf16 and \
                   2.83 s in f32, a forward pass 0.089 and 0.292 s",
    },
    AutoChoice {
        vendor: Some(Vendor::Intel),
        isa: Some(Isa::Avx512Bf16),
        precision: Precision::F32,
        measured: "two cores of an Emerald Rapids without AMX: products alone 225 to 340 GFLOP/s \
                   in f32 and 148 in bf16, built-in recipe 225 to 267 and 190 to 213 images/s",
    },
    AutoChoice {
        vendor: Some(Vendor::Amd),
        isa: Some(Isa::Avx512Bf16),
        precision: Precision::Bf16,
        measured: "two cores of a Zen 4: a training step of Swin-T takes 2.14 s in bf16 and 3.68 s \
                   in f32",
    },
    AutoChoice {
        vendor: None,
        isa: Some(Isa::NeonBf16),
        precision: Precision::F32,
        measured: "not measured: an instruction of bf16 multiplies four times as much as one of f32, \
                   which does not say how long it takes",
    },
    AutoChoice {
        vendor: None,
        isa: None,
        precision: Precision::F32,
        measured: "bf16 is widened to f32 before it is multiplied, or was not measured",
    },
];

impl AutoChoice {
    /// What `auto` takes on this machine, within the limit of its instruction sets: the same at every
    /// start.
    pub fn here() -> &'static Self {
        Self::of(vendor(), isa::current())
    }

    /// What it takes on processors of a maker with this instruction set. An emulation counts as what it
    /// stands for.
    pub fn of(vendor: Vendor, isa: Isa) -> &'static Self {
        let (vendor, isa) = match isa {
            Isa::AmxEmulated => (Vendor::Intel, Isa::Amx),
            isa => (vendor, isa),
        };
        let [rows @ .., others] = &AUTO_CHOICES;
        let is_fit = |row: &&Self| {
            row.vendor.is_none_or(|of| of == vendor) && row.isa.is_none_or(|of| of == isa)
        };
        rows.iter().find(is_fit).unwrap_or(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_maker_and_instruction_set() {
        let bf16 = |vendor, isa| AutoChoice::of(vendor, isa).precision == Precision::Bf16;
        let (amd, intel, other) = (Vendor::Amd, Vendor::Intel, Vendor::Other);
        assert!(bf16(intel, Isa::Amx) && bf16(amd, Isa::Avx512Bf16));
        assert!(!bf16(intel, Isa::Avx512Bf16), "AMX is absent or refused");
        for vendor in [amd, intel, other] {
            for isa in [Isa::Baseline, Isa::Avx2, Isa::Avx512, Isa::NeonBf16] {
                assert!(!bf16(vendor, isa), "{vendor:?} {isa:?}");
            }
            assert!(bf16(vendor, Isa::AmxEmulated));
        }
        assert!(!bf16(other, Isa::Avx512Bf16) && !bf16(other, Isa::Amx), "not measured");
    }

    /// Every row is somebody's, of all makers where it names none, and the last one takes what is left.
    #[test]
    fn rows_do_not_hide_each_other() {
        for row in &AUTO_CHOICES[..AUTO_CHOICES.len() - 1] {
            let all = [Vendor::Amd, Vendor::Intel, Vendor::Other];
            let makers = row.vendor.map_or(all.to_vec(), |vendor| vec![vendor]);
            for maker in makers {
                assert_eq!(AutoChoice::of(maker, row.isa.unwrap()), row);
            }
        }
        let last = &AUTO_CHOICES[AUTO_CHOICES.len() - 1];
        assert_eq!((last.vendor, last.isa), (None, None));
        assert_eq!(Precision::auto(), AutoChoice::here().precision);
    }

    #[test]
    fn the_page_has_all_rows() {
        let page = include_str!("../../../../docs/performance.md");
        for AutoChoice { vendor, isa, precision, measured } in &AUTO_CHOICES {
            let vendor = vendor.map_or("any", Vendor::name);
            let isa = isa.map_or("any".into(), |isa| format!("`{}`", isa.name()));
            let row = format!("| {vendor} | {isa} | {} | {measured} |", precision.name());
            assert!(page.contains(&row), "docs/performance.md lacks: {row}");
        }
    }
}
