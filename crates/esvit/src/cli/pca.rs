//! `esvit pca`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_data::counted;
use esvit_eval::pca::{ColorMap, Framing, RegionImage, Upsampling, draw, region_map};
use serde_json::json;

use super::images::{self, DrawingFiles};
use super::{BackboneArgs, Exit, Output};

/// Maximum number of images in a drawing.
const MAX_IMAGES: usize = 64;

/// Options of `esvit pca`.
#[derive(Debug, clap::Args)]
pub(super) struct Pca {
    /// Images, or one folder of images.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Side of the network's input in pixels, a multiple of the patch size; larger inputs have
    /// finer maps [default: enough for 16 regions a side]
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// Show whole images, with the shorter side resized to `--size`, instead of center crops.
    #[arg(long)]
    whole: bool,
    /// Stage whose regions are shown, from 1 [default: the last, after the final norm]
    #[arg(long, value_name = "STAGE")]
    stage: Option<usize>,
    /// Interpolate colors between region centers.
    #[arg(long)]
    smooth: bool,
    #[command(flatten)]
    files: DrawingFiles,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

impl Pca {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let mut inputs: Vec<&Path> = self.images.iter().map(PathBuf::as_path).collect();
        inputs.push(&self.backbone.checkpoint);
        let png = self.files.check("pca", &inputs, &[])?;
        let backbone = self.backbone.open(output)?;
        let source = images::open(&self.images, &backbone, output)?;
        if source.len() > MAX_IMAGES {
            bail!("{} images are too many for a drawing, at most {MAX_IMAGES}", source.len());
        }
        let stages = backbone.config.stages().len();
        let stage = self.stage.unwrap_or(stages);
        let size = self.size.unwrap_or_else(|| Framing::default_size(&backbone, stage));
        let framing = Framing { size, whole: self.whole };
        let bar = output.bar(source.len());
        let mut shown = Vec::new();
        for index in 0..source.len() {
            let name = source.name(index);
            match source.load_as(index, &backbone.preprocess.conversion()) {
                Ok(image) => {
                    let regions = region_map(&backbone, &image, framing, stage)?;
                    shown.push(RegionImage { name, regions });
                }
                Err(error) => output.warn_left_out(&name, &error.reason()),
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if shown.is_empty() {
            bail!("none of the {} images can be read", source.len());
        }
        let colors = ColorMap::fit(&shown)?;
        let explained = colors.explained();
        let norm = if stage == stages { " after the final norm" } else { "" };
        let about = format!(
            "{} regions in {}, {size} pixels {}, stage {stage} of {stages}{norm}",
            colors.regions,
            counted(shown.len(), "image"),
            if self.whole { "on the shorter side" } else { "a side" },
        );
        let upsampling = if self.smooth { Upsampling::Smooth } else { Upsampling::Sharp };
        let drawing = draw(&shown, &colors, upsampling, &about)?;
        self.files.write(&drawing, &png, output)?;
        let map = |RegionImage { name, regions }: &RegionImage| {
            let [height, width] = regions.map;
            json!({ "image": name, "height": height, "width": width })
        };
        let report = json!({
            "stage": stage,
            "size": size,
            "regions": colors.regions,
            "explained_variance": explained,
            "maps": shown.iter().map(map).collect::<Vec<_>>(),
        });
        output.print(self.json, &report, || {
            let share = |share: &f64| format!("{:.1}", 100.0 * share);
            let shares: Vec<String> = explained.iter().map(share).collect();
            format!("{about}\npercent of the variance by component: {}", shares.join(", "))
        })?;
        Ok(Exit::Success)
    }
}
