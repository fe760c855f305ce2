//! `esvit embed`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{DecodeLimits, Folder, MaterialsTask, Source};
use esvit_eval::embedding::{Format, write};
use esvit_eval::features::view_features;
use indicatif::ProgressBar;

use super::Done;
use super::eval::NetworkChoice;
use super::output::Output;

/// Writes features.
#[derive(Debug, clap::Args)]
pub(super) struct Embed {
    /// A checkpoint of a run, or a file of weights.
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    #[command(flatten)]
    network: NetworkChoice,
    /// Folder of pictures; without it the gallery of the built-in task.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The file to write: `.npy`, `.safetensors` or `.csv`. For `.npy` and `.safetensors` the
    /// pictures' names go into a `.txt` file beside it, one a line.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Scales every feature to unit length.
    #[arg(long)]
    normalize: bool,
    /// Replaces a file that is there.
    #[arg(long)]
    overwrite: bool,
}

impl Embed {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        let format = Format::of(&self.out)?;
        if self.out.exists() && !self.overwrite {
            bail!("`{}` is there already\nhint: add `--overwrite`", self.out.display());
        }
        let backbone = self.network.open(&self.checkpoint, output)?;
        let source: Arc<dyn Source> = match &self.data {
            Some(path) => Arc::new(Folder::open(path, &DecodeLimits::default())?),
            None => Arc::new(MaterialsTask::new()?.into_sources().0),
        };
        let bar = match output.draws_bars() {
            true => output.bars.add(ProgressBar::new(source.len() as u64)),
            false => ProgressBar::hidden(),
        };
        let pictures: Vec<usize> = (0..source.len()).collect();
        let mut features = view_features(
            &backbone.swin,
            &backbone.params,
            &*source,
            &pictures,
            &backbone.preprocess,
            |count| bar.inc(count as u64),
        );
        bar.finish_and_clear();
        for left_out in &features.left_out {
            output.warning(format!("left out `{}`: {}", left_out.name, left_out.reason));
        }
        if features.pictures.is_empty() {
            bail!("none of the {} pictures can be read", source.len());
        }
        if self.normalize {
            features.rows.normalize();
        }
        write(&self.out, format, &features, &*source)?;
        output.note(format!(
            "{} features of {} values in `{}`",
            features.pictures.len(),
            features.rows.width,
            self.out.display()
        ));
        Ok(Done::Well)
    }
}
