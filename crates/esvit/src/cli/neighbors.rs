//! `esvit neighbors`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_eval::labeled::{LabeledSet, LabeledTask};
use esvit_eval::neighbors::{NeighborImage, QueryOptions, Row, find, sheet};
use esvit_model::PretrainedBackbone;
use serde_json::json;

use super::images::{self, DrawingFiles};
use super::{BackboneArgs, Exit, Output, image_set};

/// Options of `esvit neighbors`.
#[derive(Debug, clap::Args)]
pub(super) struct Neighbors {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images to search, or several: `-d A -d B` [default: the gallery of the built-in task]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
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
        let mut inputs: Vec<&Path> = self.queries.iter().map(PathBuf::as_path).collect();
        inputs.push(&self.backbone.checkpoint);
        let png = self.files.check("neighbors", &inputs, &[])?;
        let backbone = self.backbone.open(output)?;
        let (gallery, queries) = self.sets(&backbone, output)?;
        let options = QueryOptions { rows: self.rows, k: self.k, seed: self.seed };
        let asked = queries.as_ref().map_or(0, |queries| self.rows.min(queries.images.len()));
        let found = output.with_bar(gallery.images.len() + asked, |done| {
            find(&backbone, &gallery, queries.as_ref(), options, done)
        })?;
        output.warn_skipped(&found.left_out);

        let about = format!("cosine similarity of view features, among {} images", found.images);
        let drawing = sheet(&found, &about)?;
        self.files.write(&drawing, &png, output)?;
        let same_class = found.same_class();
        let report =
            json!({ "images": found.images, "same_class": same_class, "rows": found.rows });
        output.print(self.json, &report, || {
            let mut lines = Vec::new();
            for Row { query, neighbors } in &found.rows {
                lines.push(query.name.clone());
                let line =
                    |near: &NeighborImage| format!("{:7.3}  {}", near.similarity, near.entry.name);
                lines.extend(neighbors.iter().map(line));
            }
            lines.extend(same_class.map(|share| {
                format!("{:.1} % of the neighbors have their query's class", 100.0 * share)
            }));
            lines.join("\n")
        })?;
        Ok(Exit::Success)
    }

    /// The gallery, and the queries if they are a set of their own.
    fn sets(
        &self,
        backbone: &PretrainedBackbone,
        output: &Output,
    ) -> Result<(LabeledSet, Option<LabeledSet>)> {
        let given = match self.queries.as_slice() {
            [] => None,
            paths => Some(LabeledSet::all(images::open(paths, backbone, output)?)),
        };
        if self.data.is_empty() {
            let task = LabeledTask::materials()?;
            return Ok((task.train, Some(given.unwrap_or(task.queries))));
        }
        Ok((image_set(&self.data, backbone, output, |task| task.gallery)?.0, given))
    }
}
