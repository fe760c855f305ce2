//! `esvit diff`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use esvit_model::difference::{Comparison, Difference, Tensors, compare};
use esvit_nn::weights::WeightsFile;

use super::args::run_or_file;
use super::{Exit, Output};

/// Options of `esvit diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    /// First run, checkpoint or weights file.
    #[arg(value_name = "A", value_parser = run_or_file())]
    a: PathBuf,
    /// The second one.
    #[arg(value_name = "B", value_parser = run_or_file())]
    b: PathBuf,
    /// Network to compare [default: the teacher, else the one that its method evaluates, or the only one]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Maximum number of lines of each list.
const MAX_SHOWN: usize = 20;

impl Diff {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let (a, b) = (WeightsFile::open(&self.a)?, WeightsFile::open(&self.b)?);
        let tensors = |file| Tensors::of(file, self.key.as_deref());
        let (one, other) = (tensors(&a)?, tensors(&b)?);
        for (path, tensors) in [(&self.a, &one), (&self.b, &other)] {
            // Of several networks only one is compared.
            if let Some(name) = tensors.network().filter(|_| tensors.networks() > 1) {
                output.note(format!("`{}`: comparing the network `{name}`", path.display()));
            }
        }
        let comparison = compare(&one, &other)?;
        output.print(self.json, &comparison, || table(&self.a, &self.b, &comparison))?;
        Ok(if comparison.is_equal() { Exit::Success } else { Exit::CheckFailed })
    }
}

fn table(a: &Path, b: &Path, comparison: &Comparison) -> String {
    let Comparison { equal, different, reshaped, only_a, only_b } = comparison;
    let mut lines = vec![format!("{equal} tensors are equal")];
    if !different.is_empty() {
        lines.push(format!("{} tensors differ, by at most", different.len()));
        let line = |Difference { name, largest, scale }: &Difference| {
            format!("  {largest:<12.3e} of {scale:<12.3e} {name}")
        };
        lines.extend(truncate(different.iter().map(line).collect()));
    }
    if !reshaped.is_empty() {
        lines.push(format!("{} tensors differ in shape", reshaped.len()));
        let line =
            |(name, a, b): &(String, Vec<usize>, Vec<usize>)| format!("  {a:?} {b:?} {name}");
        lines.extend(truncate(reshaped.iter().map(line).collect()));
    }
    for (file, names) in [(a, only_a), (b, only_b)] {
        if !names.is_empty() {
            lines.push(format!("{} tensors only in `{}`", names.len(), file.display()));
            lines.extend(truncate(names.iter().map(|name| format!("  {name}")).collect()));
        }
    }
    lines.join("\n")
}

/// Truncates a list and appends the number of lines left out.
fn truncate(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(MAX_SHOWN);
    if more > 0 {
        lines.truncate(MAX_SHOWN);
        lines.push(format!("  ... and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let lines = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(truncate(lines(MAX_SHOWN)), lines(MAX_SHOWN));
        let shown = truncate(lines(MAX_SHOWN + 2));
        assert_eq!((shown.len(), shown[MAX_SHOWN].as_str()), (MAX_SHOWN + 1, "  ... and 2 more"));
    }
}
