//! `esvit report`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use esvit_data::printable;
use esvit_eval::report::{self, ReportError};
use esvit_nn::Device;
use serde_json::json;

use super::args::run_around;
use super::shell::{program, quoted};
use super::{Exit, Output};

/// Options of `esvit report`.
#[derive(Debug, clap::Args)]
pub(super) struct Report {
    /// Run folder.
    run: PathBuf,
    /// HTML file to write [default: report.html in the run folder]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Device that runs the network.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: Device,
    /// Print JSON instead of the name of the file.
    #[arg(long)]
    json: bool,
}

impl Report {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let hint = |error| match (error, &self.out) {
            (error @ ReportError::NotARun(_), _) if run_around(&self.run).is_some() => {
                let run = run_around(&self.run).unwrap_or(&self.run);
                let named =
                    format!("hint: name the run itself: `{} report {}`", program(), quoted(run));
                anyhow!("{}\n{named}", error.to_string().lines().next().unwrap_or_default())
            }
            (ReportError::File(error), None) => {
                let error = anyhow::Error::from(error);
                anyhow!("{error:#}\nhint: `--out FILE` writes it elsewhere")
            }
            (error, _) => error.into(),
        };
        let written = report::write(&self.run, self.out.as_deref(), self.device).map_err(hint)?;
        for problem in &written.problems {
            output.warning(format!("not in the report: {problem}"));
        }
        for finding in &written.findings {
            output.warning(finding);
        }
        let summary = json!({
            "out": printable(&written.path),
            "not_in_the_report": written.problems,
            "findings": written.findings,
        });
        output.print(self.json, &summary, || written.path.display().to_string())?;
        Ok(Exit::Success)
    }
}
