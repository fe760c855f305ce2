//! `esvit eval retrieval`.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use esvit_eval::retrieval::{IMAGES, Retrieval as Found, RetrievalTask};
use esvit_model::PretrainedBackbone;
use serde::Serialize;
use serde_json::json;

use super::warn_unsaved;
use crate::cli::{BackboneArgs, Exit, Output, image_set};

/// Options of `esvit eval retrieval`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Retrieval {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images, or several: `-d A -d B` [default: the held-out parts of the built-in images]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
    /// Maximum number of images, evenly spaced.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(IMAGES).expect("not 0"))]
    images: NonZeroUsize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Results for one kind of features.
#[derive(Debug, Serialize)]
struct Row {
    features: &'static str,
    top1: f64,
}

impl Retrieval {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        let backbone = self.backbone.open(output)?;
        let (set, name) = image_set(&self.data, &backbone, output, |task| task.queries)?;
        let task = RetrievalTask::new(set.source, self.images.get());
        let preprocess = &backbone.preprocess;
        let measure = |backbone: &PretrainedBackbone| {
            task.measure((&*backbone.network, &backbone.params), preprocess)
        };
        let (Found { images, top1: pixels }, left_out) = task.measure_pixels(preprocess)?;
        output.warn_skipped(&left_out);
        let rows = [
            Row { features: "raw pixels", top1: pixels },
            Row { features: "untrained", top1: measure(&backbone.untrained())?.0.top1 },
            Row { features: "trained", top1: measure(&backbone)?.0.top1 },
        ];
        let report = json!({ "data": name, "images": images, "results": rows });
        output.print(self.json, &report, || table(&rows, &name, images))?;
        let saved = self.backbone.save_record(&backbone, "retrieval", &name, &report, output);
        warn_unsaved(saved, output);
        Ok(Exit::Success)
    }
}

fn table(rows: &[Row], name: &str, images: usize) -> String {
    let mut text = format!(
        "the other crop of an image, found among those of {images} images of {name}\n\
         features       found"
    );
    for Row { features, top1 } in rows {
        let _ = write!(text, "\n{features:12} {top1:>5.1} %");
    }
    text
}
