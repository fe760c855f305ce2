//! `esvit pca`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::pca::{ColourMap, Enlarged, Framing, RegionPicture, draw, region_map};
use serde_json::json;

use super::Done;
use super::choice::BackboneChoice;
use super::output::Output;
use super::pictures::{self, DrawingFiles};

/// The most pictures of one drawing.
const MAX_PICTURES: usize = 64;

/// Region features as colours.
#[derive(Debug, clap::Args)]
pub(super) struct Pca {
    /// Pictures, or one folder of them.
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    #[command(flatten)]
    backbone: BackboneChoice,
    /// Side of the square that the network sees, in pixels, a multiple of the patch; larger squares
    /// have finer maps. Without it so many that a map has at least 16 regions a side.
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// Shows whole pictures, their shorter sides resized to the size, instead of the centre crops.
    #[arg(long)]
    whole: bool,
    /// Stage whose regions are shown, the first is 1; without it the last, after the final norm.
    #[arg(long, value_name = "STAGE")]
    stage: Option<usize>,
    /// Colours between the regions' centres are interpolated.
    #[arg(long)]
    smooth: bool,
    #[command(flatten)]
    files: DrawingFiles,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

impl Pca {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        let png = self.files.check("pca")?;
        let source = pictures::open(&self.pictures, output)?;
        if source.len() > MAX_PICTURES {
            bail!("{} pictures are too many for a drawing, at most {MAX_PICTURES}", source.len());
        }
        let backbone = self.backbone.open(output)?;
        let stages = backbone.swin.config().stages();
        let stage = self.stage.unwrap_or(stages);
        let size = self.size.unwrap_or_else(|| Framing::usual_size(&backbone, stage));
        let framing = Framing { size, whole: self.whole };
        let bar = output.bar(source.len());
        let mut shown = Vec::new();
        for index in 0..source.len() {
            let name = source.name(index);
            match source.load(index) {
                Ok(picture) => {
                    let regions = region_map(&backbone, &picture, framing, stage)?;
                    shown.push(RegionPicture { name, regions });
                }
                Err(error) => output.warning(format!("left out `{name}`: {error}")),
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if shown.is_empty() {
            bail!("none of the {} pictures can be read", self.pictures.len());
        }
        let colours = ColourMap::fit(&shown)?;
        let explained = colours.explained();
        let norm = if stage == stages { " after the final norm" } else { "" };
        let about = format!(
            "{} regions in {}, {size} pixels {}, stage {stage} of {stages}{norm}",
            colours.regions(),
            counted(shown.len(), "picture"),
            if self.whole { "on the shorter side" } else { "a side" },
        );
        let enlarged = if self.smooth { Enlarged::Smooth } else { Enlarged::Sharp };
        let drawing = draw(&shown, &colours, enlarged, &about)?;
        self.files.write(&drawing, &png, output)?;
        if self.json {
            let maps = shown.iter().map(|picture| {
                let [height, width] = picture.regions.map;
                json!({ "picture": picture.name, "height": height, "width": width })
            });
            output.json(&json!({
                "stage": stage,
                "size": size,
                "regions": colours.regions(),
                "explained_variance": explained,
                "maps": maps.collect::<Vec<_>>(),
            }))?;
        } else {
            let shares: Vec<String> =
                explained.iter().map(|share| format!("{:.1}", 100.0 * share)).collect();
            output.result(format!(
                "{about}\nper cent of the variance by component: {}",
                shares.join(", ")
            ))?;
        }
        Ok(Done::Well)
    }
}

/// A number with its noun.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
