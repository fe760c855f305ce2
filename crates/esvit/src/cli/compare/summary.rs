//! What came of a comparison: a table, figures, and the same as JSON.

use std::io::Write;

use anyhow::Result;
use esvit_data::{counted, printable};
use esvit_draw::Drawing;
use esvit_eval::compare::{
    Row, RunResult, against_parameters, against_throughput, curves, markdown, rows, text,
};
use esvit_files::write_atomically;
use esvit_train::variants::Comparison;
use serde_json::json;

use super::folder::Folder;
use super::measured::Measured;
use crate::cli::Output;

/// Writes the results into the folder, and prints them.
pub(super) fn show(
    comparison: &Comparison,
    measured: &Measured<'_>,
    folder: &Folder,
    as_json: bool,
    output: &Output,
) -> Result<()> {
    let results = measured.in_order(comparison);
    let rows = rows(&results);
    let figures = write_figures(&results, &rows, folder, output)?;
    let headline = headline(comparison, &results);
    let report = json!({
        "comparison": printable(folder.path()),
        "length": comparison.variants[0].config.train.length(),
        "seeds": comparison.seeds,
        "judged_on": results.first().map(|result| &result.judged_on),
        "rows": rows,
        "runs": results,
        "figures": figures,
    });
    write(folder, "compare.json", &format!("{report:#}\n"))?;
    let images: String = figures.iter().map(|name| format!("\n![{name}]({name})\n")).collect();
    let page = format!("# Comparison\n\n{headline}.\n\n{}{images}", markdown(&rows));
    write(folder, "compare.md", &page)?;
    output.print(as_json, &report, || format!("{headline}\n\n{}", text(&rows)))?;
    let names = ["compare.md", "compare.json"].into_iter().chain(figures);
    let names: Vec<String> =
        names.map(|name| format!("`{}`", folder.file(name).display())).collect();
    output.note(format!("wrote {}", names.join(", ")));
    Ok(())
}

/// What was compared, in a line.
fn headline(comparison: &Comparison, results: &[RunResult]) -> String {
    let judged_on = results.first().map_or("", |result| result.judged_on.as_str());
    format!(
        "{}, {}, {} each; measured after the last step on {judged_on}",
        counted(comparison.variants.len(), "variant"),
        counted(comparison.seeds.len(), "seed"),
        comparison.variants[0].config.train.length(),
    )
}

/// Writes the figures that can be drawn; their names.
fn write_figures(
    results: &[RunResult],
    rows: &[Row],
    folder: &Folder,
    output: &Output,
) -> Result<Vec<&'static str>> {
    let figures: [(&'static str, Option<Drawing>); 3] = [
        ("curves.svg", curves(results)),
        ("parameters.svg", against_parameters(rows)),
        ("throughput.svg", against_throughput(rows)),
    ];
    let mut written = Vec::new();
    for (name, figure) in figures {
        match figure {
            Some(figure) => {
                write(folder, name, &figure.svg())?;
                written.push(name);
            }
            None => output.note(format!(
                "`{name}` is left out: not all runs were checked on the same images (`knn.every`, and \
                 `knn.train` for all where their images differ)"
            )),
        }
    }
    Ok(written)
}

fn write(folder: &Folder, name: &str, text: &str) -> Result<()> {
    Ok(write_atomically(&folder.file(name), |file| file.write_all(text.as_bytes()))?)
}
