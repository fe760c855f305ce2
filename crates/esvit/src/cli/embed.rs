//! `esvit embed`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{DecodeLimits, Folder, MaterialsTask, Source};
use esvit_eval::embedding::{Format, write};
use esvit_eval::features::{extract, view_forward};

use super::Done;
use super::choice::BackboneChoice;
use super::output::{Output, may_write};

/// Writes features.
#[derive(Debug, clap::Args)]
pub(super) struct Embed {
    #[command(flatten)]
    backbone: BackboneChoice,
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
        may_write(&self.out, self.overwrite)?;
        let backbone = self.backbone.open(output)?;
        let source: Arc<dyn Source> = match &self.data {
            Some(path) => Arc::new(Folder::open(path, &DecodeLimits::default())?),
            None => Arc::new(MaterialsTask::new()?.into_sources().0),
        };
        let bar = output.bar(source.len());
        let pictures: Vec<usize> = (0..source.len()).collect();
        let mut features = extract(
            &*source,
            &pictures,
            &backbone.preprocess,
            view_forward(&backbone.swin, &backbone.params, &backbone.preprocess),
            |count| bar.inc(count as u64),
        );
        bar.finish_and_clear();
        output.left_out(&features.left_out);
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
