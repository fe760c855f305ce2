//! `esvit verify`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::verify::{Check, Options, Outcome, Report, run, run_built_in};
use esvit_kernels::isa::{self, Isa};
use esvit_nn::Device;
use esvit_nn::ops::Precision;
use serde_json::{Value, json};

use super::bench::{isa_parser, precision_parser};
use super::{Exit, Output};

/// Instruction sets that cases can be computed by: those of processors, and AMX in plain Rust.
const ISAS: [Isa; 7] = [
    Isa::Baseline,
    Isa::Avx2,
    Isa::Avx512,
    Isa::Avx512Bf16,
    Isa::Amx,
    Isa::NeonBf16,
    Isa::AmxEmulated,
];

/// Options of `esvit verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// Folder of cases, or one case [default: the built-in cases]
    #[arg(value_name = "FOLDER")]
    cases: Option<PathBuf>,
    /// Also fail if a case is not supported.
    #[arg(long)]
    strict: bool,
    /// Device: `cpu`, or one that this build supports.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: Device,
    /// Compute by this instruction set, which the machine must have; `amx-emulated` by that in plain Rust
    /// beside the best that it has [default: the best]
    #[arg(long, value_name = "NAME", value_parser = isa_parser(&ISAS))]
    isa: Option<Isa>,
    /// Precision of networks and losses. Tolerances stay those of f32, which bf16 exceeds.
    #[arg(long, default_value = "f32", value_parser = precision_parser())]
    precision: Precision,
    /// Show every comparison, not only the one closest to its tolerance.
    #[arg(long)]
    all: bool,
    /// Print JSON instead of lines, with every comparison.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if let Some(isa) = self.isa {
            take_isa(isa)?;
        }
        let Self { device, precision, .. } = self;
        precision.remark().into_iter().for_each(|remark| output.note(remark));
        let options = Options { device, precision };
        let mut shown = Ok(());
        let show = |report: &Report| {
            if !self.json {
                let lines = describe(report, self.all);
                shown = std::mem::replace(&mut shown, Ok(())).and_then(|()| output.result(lines));
            }
        };
        let reports = match &self.cases {
            Some(folder) => run(folder, options, show)?,
            None => run_built_in(options, show),
        };
        shown?;
        let failed = reports.iter().filter(|report| report.failed()).count();
        let passed = reports.iter().filter(|report| report.passed()).count();
        let unsupported = reports.len() - passed - failed;
        let summary = json!({
            "isa": isa::current().name(),
            "precision": self.precision.name(),
            "cases": reports.iter().map(as_json).collect::<Vec<_>>(),
            "passed": passed,
            "failed": failed,
            "not_supported": unsupported,
        });
        output.print(self.json, &summary, || {
            format!("{passed} passed, {failed} failed, {unsupported} not supported")
        })?;
        let bad = failed > 0 || (self.strict && unsupported > 0);
        Ok(if bad { Exit::CheckFailed } else { Exit::Success })
    }
}

/// Limits kernels to an instruction set. Another one in its place would verify what was not asked for.
fn take_isa(isa: Isa) -> Result<()> {
    isa::limit(isa);
    if isa::current() != isa {
        bail!(
            "this machine has not `{}`, or its system refuses it\n\
             hint: `--isa {}` is the most that it has",
            isa.name(),
            isa::detected().name()
        );
    }
    Ok(())
}

fn as_json(report: &Report) -> Value {
    let (comparisons, reason) = match &report.outcome {
        Outcome::Compared(checks) => (&checks[..], None),
        Outcome::NotSupported(what) => (&[][..], Some(what.clone())),
        Outcome::Failed(error) => (&[][..], Some(error.to_string())),
    };
    let comparison = |check: &Check| {
        json!({
            "what": check.what,
            "difference": check.difference,
            "tolerance": check.tolerance,
            "passed": check.passed(),
        })
    };
    json!({
        "name": report.name,
        "kind": report.kind,
        "outcome": match report {
            report if report.passed() => "passed",
            report if report.failed() => "failed",
            _ => "not supported",
        },
        "reason": reason,
        "comparisons": comparisons.iter().map(comparison).collect::<Vec<_>>(),
    })
}

fn describe(report: &Report, all: bool) -> String {
    let Report { name, kind, outcome } = report;
    let state = if report.passed() { "passed" } else { "FAILED" };
    match outcome {
        Outcome::NotSupported(what) => format!("not supported  {name}: {what}"),
        Outcome::Failed(error) => format!("FAILED         {name}: {error}"),
        Outcome::Compared(checks) if all => {
            let lines = checks.iter().map(|check| format!("\n    {}", line(check)));
            format!("{state:14} {name} ({kind}){}", lines.collect::<String>())
        }
        Outcome::Compared(checks) => {
            let nearest =
                checks.iter().max_by(|a, b| relative_error(a).total_cmp(&relative_error(b)));
            let nearest = nearest.map(line).unwrap_or_else(|| "nothing was compared".into());
            format!("{state:14} {name} ({kind}, {} comparisons): {nearest}", checks.len())
        }
    }
}

/// Difference divided by tolerance.
fn relative_error(check: &Check) -> f64 {
    match check.difference {
        0.0 => 0.0,
        difference => difference / check.tolerance,
    }
}

fn line(check: &Check) -> String {
    format!("{} differs by {:.1e}, {:.0e} allowed", check.what, check.difference, check.tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_nearest_to_its_tolerance_is_shown() {
        let check =
            |what: &str, difference, tolerance| Check { what: what.into(), difference, tolerance };
        let checks =
            vec![check("exact", 0.0, 0.0), check("near", 0.5, 1.0), check("large", 3.0, 100.0)];
        let mut report =
            Report { name: "case".into(), kind: "kind".into(), outcome: Outcome::Compared(checks) };
        let line = describe(&report, false);
        assert!(
            line.starts_with("passed         case (kind, 3 comparisons): near differs by 5.0e-1")
        );
        let all = describe(&report, true);
        assert!(
            all.lines().count() == 4 && all.contains("\n    large differs by 3.0e0, 1e2 allowed")
        );
        report.outcome = Outcome::Compared(vec![check("wrong", 2.0, 1.0)]);
        assert!(describe(&report, false).starts_with("FAILED         case"));
    }
}
