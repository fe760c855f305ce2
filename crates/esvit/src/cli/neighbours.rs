//! `esvit neighbours`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{DecodeLimits, Folder};
use esvit_eval::labelled::{LabelledSet, LabelledTask};
use esvit_eval::neighbours::{Wanted, find, sheet};
use serde_json::json;

use super::Done;
use super::choice::BackboneChoice;
use super::output::Output;
use super::pictures::{self, DrawingFiles};

/// Nearest neighbours.
#[derive(Debug, clap::Args)]
pub(super) struct Neighbours {
    #[command(flatten)]
    backbone: BackboneChoice,
    /// Folder of pictures to look for neighbours among; without it those of the built-in task.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Pictures whose neighbours are looked for, or one folder of them; without it some of the
    /// folder, or of the built-in task's queries.
    #[arg(long, value_name = "PICTURE", num_args = 1..)]
    queries: Vec<PathBuf>,
    /// Number of neighbours of a query.
    #[arg(long, value_name = "K", default_value_t = 8)]
    k: usize,
    /// The most queries.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Chooses queries at random by this seed; without it they are spread evenly over the set.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    files: DrawingFiles,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

impl Neighbours {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        if self.k == 0 || self.rows == 0 {
            bail!("`--k` and `--rows` must be at least 1");
        }
        let png = self.files.check("neighbours")?;
        let (gallery, queries) = self.sets(output)?;
        let backbone = self.backbone.open(output)?;
        let wanted = Wanted { rows: self.rows, k: self.k, seed: self.seed };
        let asked = queries.as_ref().map_or(0, |queries| self.rows.min(queries.pictures.len()));
        let bar = output.bar(gallery.pictures.len() + asked);
        let done = |count| bar.inc(count as u64);
        let found = find(&backbone, &gallery, queries.as_ref(), wanted, done)?;
        bar.finish_and_clear();
        output.left_out(&found.left_out);

        let about =
            format!("cosine similarity of view features, among {} pictures", found.pictures);
        let drawing = sheet(&found, &about)?;
        self.files.write(&drawing, &png, output)?;
        if self.json {
            output.json(&json!({
                "pictures": found.pictures,
                "same_class": found.same_class(),
                "rows": found.rows,
            }))?;
            return Ok(Done::Well);
        }
        for row in &found.rows {
            output.result(&row.query.name)?;
            for near in &row.neighbours {
                output.result(format!("{:7.3}  {}", near.similarity, near.entry.name))?;
            }
        }
        if let Some(share) = found.same_class() {
            let percent = 100.0 * share;
            output.result(format!("{percent:.1} % of the neighbours have their query's class"))?;
        }
        Ok(Done::Well)
    }

    /// What is looked among, and what is looked for, if that is a set of its own.
    fn sets(&self, output: &Output) -> Result<(LabelledSet, Option<LabelledSet>)> {
        let given = match self.queries.as_slice() {
            [] => None,
            paths => Some(LabelledSet::all(pictures::open(paths, output)?)),
        };
        Ok(match &self.data {
            Some(folder) => {
                let folder = Folder::open(folder, &DecodeLimits::default())?;
                (LabelledSet::all(Arc::new(folder)), given)
            }
            None => {
                let task = LabelledTask::materials()?;
                (task.train, Some(given.unwrap_or(task.queries)))
            }
        })
    }
}
