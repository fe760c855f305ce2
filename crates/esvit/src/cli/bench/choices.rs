//! `esvit bench self`: what this machine reaches, beside what `auto` takes on it.

use std::time::SystemTime;

use anyhow::Result;
use esvit_eval::bench::{Bench, ChoiceSpeed, ChoicesReport, choices};
use esvit_nn::ops::Precision;
use serde_json::json;

use crate::cli::Output;
use crate::cli::pretrain::processor;

/// Measures and shows it.
pub(super) fn show(bench: &Bench, json: bool, output: &Output) -> Result<()> {
    let report = choices(bench, |next| output.note(format!("measuring {next}")))?;
    let (row, verdict) = (row(&report), verdict(&report));
    let value = json!({
        "processor": processor(),
        "report": report,
        "faster": report.faster().map(|(choice, _)| choice),
        "row": row,
    });
    output.print(json, &value, || {
        format!("{}\n{verdict}\n\nas a row of docs/performance.md:\n{row}", table(&report))
    })
}

fn table(report: &ChoicesReport) -> String {
    let ChoicesReport { model, batch, forward_batch, prototypes, threads, rounds, .. } = report;
    let mut text = format!(
        "{}, {threads} threads; step of `{model}` with {batch} images and {prototypes} prototypes, forward pass \
         of {forward_batch} images, medians of {} and {} in turns; GFLOP/s of products alone and of registers \
         alone\n\
         instruction set  precision  products  registers        step     forward",
        name(),
        rounds[0],
        rounds[1],
    );
    let seconds = |time: Option<f64>| time.map_or("-".into(), |time| format!("{time:.3} s"));
    for choice in &report.choices {
        let ChoiceSpeed { isa, precision, peak_gflops, limit_gflops, step_s, forward_s, is_auto } =
            choice;
        text.push_str(&format!(
            "\n{isa:15}  {precision:9}  {peak_gflops:>8.0}  {limit_gflops:>9.0}  {:>10}  {:>10}{}",
            seconds(*step_s),
            seconds(*forward_s),
            if *is_auto { "  auto" } else { "" },
        ));
    }
    text
}

/// Whether something else than `auto` is faster, and how it is had.
fn verdict(report: &ChoicesReport) -> String {
    let words = |choice: &ChoiceSpeed| format!("{} by `{}`", choice.precision, choice.isa);
    let auto = report.auto();
    let taken = format!("`auto` takes {}", words(auto));
    let Some((faster, times)) = report.faster() else {
        return format!("{taken}; nothing else is more than 3 % faster in a step");
    };
    let percent = 100.0 * (times - 1.0);
    let how = if faster.precision == auto.precision {
        "no setting takes it: the table of `auto` (`esvit info`) has no such row".into()
    } else {
        format!("`--precision {}` takes it, or `train.precision` of a run", faster.precision)
    };
    format!("{taken}; {} is {percent:.0} % faster in a step\n{how}", words(faster))
}

/// The row of this machine in the table of `docs/performance.md`.
fn row(report: &ChoicesReport) -> String {
    let of = |value: fn(&ChoiceSpeed) -> Option<String>| {
        [Precision::F32, Precision::Bf16].map(|precision| {
            report.of(precision).and_then(value).unwrap_or_else(|| "not measured".into())
        })
    };
    let [step_f32, step_bf16] = of(|choice| Some(format!("{:.2} s", choice.step_s?)));
    let [forward_f32, forward_bf16] = of(|choice| Some(format!("{:.3} s", choice.forward_s?)));
    let products = of(|choice| Some(format!("{:.0}", choice.peak_gflops))).join(", ");
    let registers = of(|choice| Some(format!("{:.0}", choice.limit_gflops))).join(", ");
    let auto = report.auto();
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let date = now.split('T').next().unwrap_or_default();
    format!(
        "| {}, {} threads | {}, `{}` | {step_f32} | {step_bf16} | {forward_f32} | {forward_bf16} | \
         {products} | {registers} | {}, {date} |",
        name(),
        report.threads,
        auto.precision,
        auto.isa,
        env!("CARGO_PKG_VERSION"),
    )
}

/// The processor, as its system names it.
fn name() -> String {
    processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(steps: [f64; 3]) -> ChoicesReport {
        let choice = |(place, step): (usize, f64)| ChoiceSpeed {
            isa: ["avx2", "avx512", "avx512-bf16"][place],
            precision: ["f32", "f32", "bf16"][place],
            is_auto: place == 1,
            peak_gflops: 100.0 + place as f64,
            limit_gflops: 200.0 + place as f64,
            step_s: Some(step),
            forward_s: (place > 0).then_some(step / 10.0),
        };
        ChoicesReport {
            model: "swin_tiny_w7".into(),
            batch: 4,
            forward_batch: 8,
            prototypes: 65_536,
            threads: 2,
            rounds: [3, 5],
            choices: steps.into_iter().enumerate().map(choice).collect(),
        }
    }

    #[test]
    fn a_row_has_what_a_run_in_each_precision_takes() {
        let row = row(&report([9.0, 3.0, 2.0]));
        let values = "f32, `avx512` | 3.00 s | 2.00 s | 0.300 s | 0.200 s | 101, 102 | 201, 202 | ";
        assert!(row.contains(&format!(", 2 threads | {values}")), "{row}");
        // As many columns as the table of the page, and its date.
        let page = include_str!("../../../../../docs/performance.md");
        let header = page.lines().find(|line| line.starts_with("| processor, ")).unwrap();
        assert_eq!(row.matches('|').count(), header.matches('|').count());
        let date = row.trim_end_matches(" |").rsplit(", ").next().unwrap();
        assert!(date.len() == 10 && date.starts_with("20"), "{date}");
    }

    #[test]
    fn what_is_faster_is_proposed() {
        let none = verdict(&report([9.0, 3.0, 2.95]));
        assert_eq!(
            none,
            "`auto` takes f32 by `avx512`; nothing else is more than 3 % faster in a step"
        );
        let precision = verdict(&report([9.0, 3.0, 2.0]));
        assert!(
            precision
                .contains("bf16 by `avx512-bf16` is 50 % faster in a step\n`--precision bf16`")
        );
        let isa = verdict(&report([2.0, 3.0, 2.5]));
        assert!(isa.contains("f32 by `avx2` is 50 % faster in a step\nno setting"), "{isa}");
    }
}
