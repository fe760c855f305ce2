//! What came of a comparison: a table, figures, and the same as JSON.

use std::io::Write;

use anyhow::{Context, Result};
use esvit_data::{counted, printable};
use esvit_draw::Drawing;
use esvit_eval::compare::{
    FailedRun, Row, RunResult, Speeds, against_parameters, against_throughput, curves, markdown,
    preparation, rows, text,
};
use esvit_files::write_atomically;
use esvit_train::variants::Comparison;
use serde_json::{Value, json};

use super::folder::Folder;
use super::measured::{self, Measured};
use crate::cli::Output;

/// What was written into the folder.
pub(super) struct Summary {
    report: Value,
    text: String,
    /// Names of the files.
    files: Vec<String>,
    /// Why a figure was left out, each.
    left_out: Vec<String>,
}

/// Writes the results of all runs that are done into the folder, and which failed.
pub(super) fn write(
    comparison: &Comparison,
    measured: &Measured<'_>,
    failed: &[FailedRun],
    folder: &Folder,
) -> Result<Summary> {
    let results = measured.in_order(comparison);
    let names: Vec<&str> =
        comparison.variants.iter().map(|variant| variant.asked.name.as_str()).collect();
    let device = comparison.variants[0].config.train.device.parse()?;
    let speeds = Speeds::measure(&results, &device).with_context(|| {
        format!(
            "`{}` describes a network that cannot be built\n\
             hint: delete the line of its run, and the run is measured again",
            measured::file(folder).display()
        )
    })?;
    let rows = rows(&names, &results, failed, &speeds);
    let (figures, left_out) = write_figures(&results, &rows, folder)?;
    let headline = headline(comparison, &results, failed);
    let report = json!({
        "comparison": printable(folder.path()),
        "length": comparison.variants[0].config.train.length(),
        "seeds": comparison.seeds,
        "judged_on": results.first().map(|result| &result.judged_on),
        "rows": rows,
        "runs": results,
        "failed": failed,
        "figures": figures,
    });
    write_file(folder, "compare.json", &format!("{report:#}\n"))?;
    let images: String = figures.iter().map(|name| format!("\n![{name}]({name})\n")).collect();
    let remarks = remarks(&results, failed);
    let below: String = remarks.iter().map(|line| format!("\n- {line}\n")).collect();
    let page = format!("# Comparison\n\n{headline}.\n\n{}{below}{images}", markdown(&rows));
    write_file(folder, "compare.md", &page)?;
    let below: String = remarks.iter().map(|line| format!("\n{line}")).collect();
    let text = format!("{headline}\n\n{}{below}", text(&rows));
    let files = ["compare.md", "compare.json"].into_iter().chain(figures);
    let files = files.map(|name| format!("`{}`", folder.file(name).display())).collect();
    Ok(Summary { report, text, files, left_out })
}

impl Summary {
    /// Prints the table, or the same as JSON.
    pub(super) fn show(&self, as_json: bool, output: &Output) -> Result<()> {
        self.left_out.iter().for_each(|line| output.note(line));
        output.print(as_json, &self.report, || self.text.clone())?;
        output.note(format!("wrote {}", self.files.join(", ")));
        Ok(())
    }
}

/// What to know of the table: each run that failed with the first line of why, and what is not alike.
fn remarks(results: &[RunResult], failed: &[FailedRun]) -> Vec<String> {
    let why = |FailedRun { run, reason, .. }: &FailedRun| {
        format!("`{run}` failed: {}", reason.lines().next().unwrap_or_default())
    };
    failed.iter().map(why).chain(preparation(results)).collect()
}

/// What was compared, in a line.
fn headline(comparison: &Comparison, results: &[RunResult], failed: &[FailedRun]) -> String {
    let mut line = format!(
        "{}, {}, {} each",
        counted(comparison.variants.len(), "variant"),
        counted(comparison.seeds.len(), "seed"),
        comparison.variants[0].config.train.length(),
    );
    if let Some(result) = results.first() {
        line.push_str(&format!("; measured after the last step on {}", result.judged_on));
    }
    if !failed.is_empty() {
        let runs = counted(comparison.runs().count(), "run");
        line.push_str(&format!("; {} of {runs} failed", failed.len()));
    }
    line
}

/// Writes the figures that can be drawn; their names, and a line about each of the others.
fn write_figures(
    results: &[RunResult],
    rows: &[Row],
    folder: &Folder,
) -> Result<(Vec<&'static str>, Vec<String>)> {
    let figures: [(&'static str, Option<Drawing>); 3] = [
        ("curves.svg", curves(results)),
        ("parameters.svg", against_parameters(rows)),
        ("throughput.svg", against_throughput(rows)),
    ];
    let (mut written, mut left_out) = (Vec::new(), Vec::new());
    for (name, figure) in figures {
        match figure {
            Some(figure) => {
                write_file(folder, name, &figure.svg())?;
                written.push(name);
            }
            None if results.is_empty() => {
                left_out.push(format!("`{name}` is left out: no run is done"));
            }
            None => left_out.push(format!(
                "`{name}` is left out: not all runs were checked on the same images (`knn.every`, and \
                 `knn.train` for all where their images differ)"
            )),
        }
    }
    Ok((written, left_out))
}

fn write_file(folder: &Folder, name: &str, text: &str) -> Result<()> {
    Ok(write_atomically(&folder.file(name), |file| file.write_all(text.as_bytes()))?)
}
