//! `esvit map`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_data::counted;
use esvit_eval::embedding_map::{self, EmbeddingMap, MIN_TSNE, Method};

use super::images::DrawingFiles;
use super::{BackboneArgs, Exit, Output, image_set};

/// Options of `esvit map`.
#[derive(Debug, clap::Args)]
pub(super) struct Map {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images, or several: `-d A -d B` [default: the gallery of the built-in task]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
    /// Projection [default: t-SNE, or PCA if there are too few images]
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Maximum number of images, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    max: usize,
    #[command(flatten)]
    files: DrawingFiles,
    /// Also write the coordinates as CSV: name, label, x, y.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print the map as JSON instead of a line.
    #[arg(long)]
    json: bool,
}

/// Projections.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodArg {
    /// t-SNE: preserves neighborhoods.
    Tsne,
    /// PCA: the first two principal components.
    Pca,
}

impl Map {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.max == 0 {
            bail!("`--max` is 0, a map needs images");
        }
        let others: Vec<&Path> = self.csv.as_deref().into_iter().collect();
        let png = self.files.check("map", &[&self.backbone.checkpoint], &others)?;
        let backbone = self.backbone.open(output)?;
        let (mut set, _) = image_set(&self.data, &backbone, output, |task| task.gallery)?;
        let all = set.images.len();
        set.limit(self.max);
        set.images.sort_unstable();
        if set.images.len() < all {
            output.note(format!("{} of the {all} images are shown", set.images.len()));
        }
        let features =
            output.with_bar(set.images.len(), |done| set.view_features(&backbone, done))?;
        output.warn_skipped(&features.left_out);
        let count = features.images.len();
        if count == 0 {
            bail!("none of the {} images can be read", set.images.len());
        }

        let method = self.method(count, output);
        let map = output.with_bar(embedding_map::STEPS, |done| {
            EmbeddingMap::new(features, &*set.source, method, || done(1))
        })?;
        let about = match map.classes.len() {
            0 => format!("{} without labels", counted(count, "image")),
            classes => format!("{count} images of {classes} classes"),
        };
        let shown = backbone.preprocess.conversion();
        let drawing = embedding_map::draw(&map, &*set.source, &shown, &about)?;
        self.files.write(&drawing, &png, output)?;
        if let Some(csv) = &self.csv {
            map.write_csv(csv)?;
            output.note(format!("wrote `{}`", csv.display()));
        }
        output.print(self.json, &map, || format!("{} map of {about}", method.name()))?;
        Ok(Exit::Success)
    }

    fn method(&self, images: usize, output: &Output) -> Method {
        match self.method {
            Some(MethodArg::Tsne) => Method::Tsne,
            Some(MethodArg::Pca) => Method::Pca,
            None if images >= MIN_TSNE => Method::Tsne,
            None => {
                output.note(format!("using PCA: t-SNE needs at least {MIN_TSNE} images"));
                Method::Pca
            }
        }
    }
}
