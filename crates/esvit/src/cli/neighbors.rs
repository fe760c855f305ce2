//! `esvit neighbors`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::labeled::{LabeledSet, LabeledTask};
use esvit_eval::neighbors::{QueryOptions, find, sheet};
use serde_json::json;

use super::args::{BackboneArgs, image_set};
use super::exit::Exit;
use super::images::{self, DrawingFiles};
use super::output::Output;

/// Options of `esvit neighbors`.
#[derive(Debug, clap::Args)]
pub(super) struct Neighbors {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images to search [default: the gallery of the built-in task]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Query images, or one folder of them [default: images of the searched folder, or the queries
    /// of the built-in task]
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    queries: Vec<PathBuf>,
    /// Number of neighbors per query.
    #[arg(long, value_name = "K", default_value_t = 8)]
    k: usize,
    /// Maximum number of queries.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Choose queries at random with this seed [default: evenly spaced]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    files: DrawingFiles,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

impl Neighbors {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.k == 0 || self.rows == 0 {
            bail!("`--k` and `--rows` must be at least 1");
        }
        let png = self.files.check("neighbors")?;
        let (gallery, queries) = self.sets(output)?;
        let backbone = self.backbone.open(output)?;
        let options = QueryOptions { rows: self.rows, k: self.k, seed: self.seed };
        let asked = queries.as_ref().map_or(0, |queries| self.rows.min(queries.images.len()));
        let bar = output.bar(gallery.images.len() + asked);
        let done = |count| bar.inc(count as u64);
        let found = find(&backbone, &gallery, queries.as_ref(), options, done)?;
        bar.finish_and_clear();
        output.warn_skipped(&found.left_out);

        let about = format!("cosine similarity of view features, among {} images", found.images);
        let drawing = sheet(&found, &about)?;
        self.files.write(&drawing, &png, output)?;
        if self.json {
            output.json(&json!({
                "images": found.images,
                "same_class": found.same_class(),
                "rows": found.rows,
            }))?;
            return Ok(Exit::Success);
        }
        for row in &found.rows {
            output.result(&row.query.name)?;
            for near in &row.neighbors {
                output.result(format!("{:7.3}  {}", near.similarity, near.entry.name))?;
            }
        }
        if let Some(share) = found.same_class() {
            let percent = 100.0 * share;
            output.result(format!("{percent:.1} % of the neighbors have their query's class"))?;
        }
        Ok(Exit::Success)
    }

    /// The gallery, and the queries if they are a set of their own.
    fn sets(&self, output: &Output) -> Result<(LabeledSet, Option<LabeledSet>)> {
        let given = match self.queries.as_slice() {
            [] => None,
            paths => Some(LabeledSet::all(images::open(paths, output)?)),
        };
        Ok(match &self.data {
            Some(folder) => (image_set(Some(folder), |task| task.gallery)?.0, given),
            None => {
                let task = LabeledTask::materials()?;
                (task.train, Some(given.unwrap_or(task.queries)))
            }
        })
    }
}
