//! `esvit map`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_data::{DecodeLimits, Folder};
use esvit_eval::embedding_map::{self, EmbeddingMap, MIN_TSNE, Method};
use esvit_eval::labelled::{LabelledSet, LabelledTask};
use esvit_model::features::view_forward;

use super::Done;
use super::choice::BackboneChoice;
use super::output::Output;
use super::pictures::DrawingFiles;

/// A map of features.
#[derive(Debug, clap::Args)]
pub(super) struct Map {
    #[command(flatten)]
    backbone: BackboneChoice,
    /// Folder of pictures; without it the gallery of the built-in task.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// How features are laid out; without it by t-SNE, and by PCA where there are too few pictures
    /// for that.
    #[arg(long, value_enum)]
    method: Option<MethodChoice>,
    /// The most pictures; of more, some are chosen, always the same.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    max: usize,
    #[command(flatten)]
    files: DrawingFiles,
    /// Also writes the places as a table: name, label, x, y.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// One JSON object, with the places, instead of a line.
    #[arg(long)]
    json: bool,
}

/// Names of methods.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodChoice {
    /// Neighbours stay neighbours.
    Tsne,
    /// The first two principal components.
    Pca,
}

impl Map {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        if self.max == 0 {
            bail!("`--max` is 0, a map needs pictures");
        }
        let png = self.files.check("map")?;
        if let Some(csv) = &self.csv {
            self.files.may_write(csv)?;
        }
        let mut set = match &self.data {
            Some(folder) => {
                LabelledSet::all(Arc::new(Folder::open(folder, &DecodeLimits::default())?))
            }
            None => LabelledTask::materials()?.train,
        };
        let all = set.pictures.len();
        set.limit(self.max);
        set.pictures.sort_unstable();
        if set.pictures.len() < all {
            output.note(format!("{} of the {all} pictures are shown", set.pictures.len()));
        }
        let backbone = self.backbone.open(output)?;
        let bar = output.bar(set.pictures.len());
        let forward = view_forward(&backbone.swin, &backbone.params, &backbone.preprocess);
        let features = set.features(&backbone.preprocess, forward, |n| bar.inc(n as u64));
        bar.finish_and_clear();
        output.left_out(&features.left_out);
        let count = features.pictures.len();
        if count == 0 {
            bail!("none of the {} pictures can be read", set.pictures.len());
        }

        let method = self.method(count, output);
        let bar = output.bar(embedding_map::STEPS);
        let map = EmbeddingMap::new(features, &*set.source, method, || bar.inc(1))?;
        bar.finish_and_clear();
        let about = match map.classes.len() {
            0 => format!("{count} pictures without labels"),
            classes => format!("{count} pictures of {classes} classes"),
        };
        let drawing = embedding_map::picture(&map, &*set.source, &about)?;
        self.files.write(&drawing, &png, output)?;
        if let Some(csv) = &self.csv {
            embedding_map::write_csv(csv, &map)?;
            output.note(format!("written `{}`", csv.display()));
        }
        if self.json {
            output.json(&map)?;
        } else {
            output.result(format!("{} map of {about}", method.name()))?;
        }
        Ok(Done::Well)
    }

    fn method(&self, pictures: usize, output: &Output) -> Method {
        match self.method {
            Some(MethodChoice::Tsne) => Method::Tsne,
            Some(MethodChoice::Pca) => Method::Pca,
            None if pictures >= MIN_TSNE => Method::Tsne,
            None => {
                output.note(format!("laid out by PCA: t-SNE needs at least {MIN_TSNE} pictures"));
                Method::Pca
            }
        }
    }
}
