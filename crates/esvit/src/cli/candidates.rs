//! Backbones that a figure compares, a row each.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow};
use esvit_data::printable;
use esvit_model::PretrainedBackbone;
use serde_json::{Value, json};

use super::args::run_or_file;
use super::{NetworkArgs, Output};

/// Backbones to load.
#[derive(Debug, clap::Args)]
pub(super) struct CandidateArgs {
    /// Run (its best checkpoint, or else its newest), checkpoint or weights file, or several: `-c A
    /// -c B`
    #[arg(long, short, value_name = "PATH", alias = "pretrained_weights", value_parser = run_or_file(), required = true)]
    checkpoint: Vec<PathBuf>,
    #[command(flatten)]
    network: NetworkArgs,
}

impl CandidateArgs {
    /// Their files.
    pub(super) fn paths(&self) -> Vec<&Path> {
        self.checkpoint.iter().map(PathBuf::as_path).collect()
    }

    /// Loads the backbones and reports how the tensors of their files were matched.
    pub(super) fn open(&self, output: &Output) -> Result<Vec<Candidate>> {
        let open = |path: &PathBuf| {
            let backbone = self.network.open(path, output)?;
            Ok(Candidate { path: path.clone(), backbone })
        };
        self.checkpoint.iter().map(open).collect()
    }
}

/// One of the backbones.
#[derive(Debug)]
pub(super) struct Candidate {
    path: PathBuf,
    pub(super) backbone: PretrainedBackbone,
}

impl Candidate {
    /// Its file, family and architecture.
    pub(super) fn label(&self) -> String {
        let (family, architecture) = (self.backbone.config.family(), self.backbone.architecture());
        format!("{} · {family} ({architecture})", printable(&self.path))
    }

    /// An error that names its file.
    pub(super) fn error(&self, error: impl Display) -> Error {
        anyhow!("`{}`: {error}", printable(&self.path))
    }

    /// A report that says what it is of.
    fn named(&self, mut report: Value) -> Value {
        report["checkpoint"] = printable(&self.path).into();
        report["family"] = self.backbone.config.family().name().into();
        report["architecture"] = self.backbone.architecture().into();
        report
    }
}

/// Prints the report or the table of each backbone; those of a single one stand alone.
pub(super) fn print(
    candidates: &[Candidate],
    results: Vec<(Value, String)>,
    as_json: bool,
    output: &Output,
) -> Result<()> {
    if let [(report, table)] = &results[..] {
        return output.print(as_json, report, || table.clone());
    }
    let (reports, tables): (Vec<Value>, Vec<String>) = results.into_iter().unzip();
    let reports = candidates.iter().zip(reports).map(|(candidate, report)| candidate.named(report));
    let reports = json!({ "checkpoints": reports.collect::<Vec<_>>() });
    output.print(as_json, &reports, || {
        let titled =
            |(candidate, table): (&Candidate, String)| format!("{}\n{table}", candidate.label());
        candidates.iter().zip(tables).map(titled).collect::<Vec<_>>().join("\n\n")
    })
}
