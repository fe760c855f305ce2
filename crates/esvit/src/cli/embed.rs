//! `esvit embed`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Error, Result, anyhow, bail};
use esvit_data::{counted, printable};
use esvit_files::FileError;
use esvit_model::PretrainedBackbone;
use esvit_model::embedding::{
    EmbeddingError, EmbeddingWriter, Format, Job, Progress, is_feature_file,
};
use esvit_model::features::{normalize, stream, view_forward};
use serde_json::json;

use super::ending::end_on_signal;
use super::{BackboneArgs, Exit, Output, check_writable, image_set};

/// Options of `esvit embed`.
#[derive(Debug, clap::Args)]
pub(super) struct Embed {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images, or several: `-d A -d B` [default: the gallery of the built-in task]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
    /// Output file: `.npy`, `.safetensors` or `.csv`. For `.npy` and `.safetensors`, image names go
    /// into a `.txt` file beside it, one per line.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// L2-normalize the features.
    #[arg(long)]
    normalize: bool,
    /// Overwrite an existing file.
    #[arg(long)]
    overwrite: bool,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

impl Embed {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let format = Format::of(&self.out)?;
        check_writable(&self.out, self.overwrite, &[&self.backbone.checkpoint])?;
        if self.out.exists() && !is_feature_file(&self.out, format) {
            return Err(EmbeddingError::NotFeatures { path: self.out }.into());
        }
        let backbone = self.backbone.open(output)?;
        let source = image_set(&self.data, &backbone, output, |task| task.gallery)?.0.source;
        let job = Job::new(format, &backbone, &*source, self.normalize);
        let mut writer = EmbeddingWriter::open(&self.out, &job, &*source)?;
        let resumed = writer.progress();
        if resumed.images > 0 {
            output.note(format!("resuming after {}", counted(resumed.images, "image")));
        }
        let done = Arc::new(AtomicUsize::new(resumed.images));
        let (counted_done, total) = (done.clone(), source.len());
        let part = writer.part().display().to_string();
        let last_words = move || {
            let done = counted_done.load(Ordering::Relaxed);
            format!(
                "stopped after {done} of {}: the same command goes on after them; they are in `{part}`",
                counted(total, "image")
            )
        };
        end_on_signal(last_words, output)?;
        let bar = output.bar(source.len());
        bar.set_position(resumed.images as u64);
        // The images before are not of this session's speed.
        bar.reset_eta();
        let PretrainedBackbone { network, params, preprocess, .. } = &backbone;
        let batches = stream(
            &*source,
            resumed.images..source.len(),
            preprocess.conversion(),
            |_, image| preprocess.apply(image),
            view_forward(&**network, params, preprocess),
        );
        for batch in batches {
            let mut batch = batch?;
            output.warn_skipped(&batch.left_out);
            if self.normalize {
                let width = batch.width();
                normalize(&mut batch.rows, width);
            }
            let images = writer.progress().images;
            writer.append(&*source, &batch).map_err(|error| on_full(error, images))?;
            done.store(writer.progress().images, Ordering::Relaxed);
            bar.set_position(writer.progress().images as u64);
        }
        bar.finish_and_clear();
        if writer.progress().rows == 0 {
            writer.discard();
            bail!("none of the {} images can be read", source.len());
        }
        let Progress { rows, width, .. } = writer.finish()?;
        let names = format.names_file(&self.out);
        if self.json {
            let written = json!({
                "out": printable(&self.out),
                "names": names.as_ref().map(printable),
                "images": source.len(),
                "features": rows,
                "width": width,
            });
            output.json(&written)?;
        }
        let names = names.map(|names| format!(", names in `{}`", names.display()));
        output.note(format!(
            "{} of {width} values in `{}`{}",
            counted(rows, "feature"),
            self.out.display(),
            names.unwrap_or_default()
        ));
        Ok(Exit::Success)
    }
}

/// An error after so many images, with how the command goes on if it is that of a full disk.
fn on_full(error: EmbeddingError, images: usize) -> Error {
    match error {
        EmbeddingError::File(FileError::DiskFull { .. }) => anyhow!(
            "{error}\nhint: with room on the disk, the same command goes on after {}",
            counted(images, "image")
        ),
        error => error.into(),
    }
}
