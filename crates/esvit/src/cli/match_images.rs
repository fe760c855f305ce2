//! `esvit match`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_eval::correspondence::MEASURED_PAIRS;
use esvit_eval::matching::{self, MatchSettings, MatchedView, Matching, Pair};
use serde_json::{Value, json};

use super::images::{self, DrawingFiles};
use super::{BackboneArgs, Exit, Output};

/// Options of `esvit match`.
#[derive(Debug, clap::Args)]
pub(super) struct Match {
    /// First image.
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Second image [default: a random view of the first: 40 to 60 % of its area, possibly mirrored
    /// and color-jittered]
    #[arg(value_name = "B")]
    second: Option<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Number of most similar pairs to draw.
    #[arg(long, value_name = "N", default_value_t = MEASURED_PAIRS)]
    pairs: usize,
    /// Keep only mutual best matches.
    #[arg(long)]
    mutual: bool,
    /// Shorter side of the network's input in pixels; larger inputs have finer maps [default: as in
    /// evaluations]
    #[arg(long, value_name = "PIXELS")]
    size: Option<NonZeroUsize>,
    /// Stage whose features are matched, from 1; earlier ones have finer maps [default: the last]
    #[arg(long, value_name = "STAGE")]
    stage: Option<NonZeroUsize>,
    /// Random seed of the view.
    #[arg(long, default_value_t = 0, conflicts_with = "second")]
    seed: u64,
    #[command(flatten)]
    files: DrawingFiles,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Match {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.pairs == 0 {
            bail!("`--pairs` is 0, at least one pair must be drawn");
        }
        let second = self.second.as_deref().unwrap_or(&self.first);
        let inputs = [&*self.first, second, &self.backbone.checkpoint];
        let png = self.files.check("match", &inputs, &[])?;
        let backbone = self.backbone.open(output)?;
        let read = |path: &PathBuf| images::read(path, &backbone, output);
        let first = read(&self.first)?;
        let second = self.second.as_ref().map(read).transpose()?;
        let usual = MatchSettings::usual(&backbone);
        let settings = MatchSettings {
            pairs: self.pairs,
            size: self.size.map_or(usual.size, NonZeroUsize::get),
            stage: self.stage.map_or(usual.stage, |stage| stage.get() - 1),
            mutual: self.mutual,
        };
        let matching = match &second {
            Some(second) => matching::two_images(&backbone, [&first, second], &settings)?,
            None => matching::two_views(&backbone, &first, self.seed, &settings)?,
        };
        let drawing = matching::draw(&matching)?;
        self.files.write(&drawing, &png, output)?;
        output.print(self.json, &self.report(&matching, &settings), || table(&matching.pairs))?;
        Ok(Exit::Success)
    }

    fn report(&self, matching: &Matching, settings: &MatchSettings) -> Value {
        let paths = [&self.first, self.second.as_ref().unwrap_or(&self.first)];
        let view = |at: usize| {
            let MatchedView { view, grid, nearest_own, nearest_other, .. } = &matching.views[at];
            let crop = view.crop;
            json!({
                "image": paths[at],
                "crop": [crop.left, crop.top, crop.width, crop.height],
                "mirrored": view.mirrored,
                "size": grid.size(),
                "map": [grid.rows, grid.columns],
                "cell": grid.cell,
                "nearest_own": nearest_own,
                "nearest_other": nearest_other,
            })
        };
        json!({
            "stage": settings.stage + 1,
            "mutual": settings.mutual,
            "seed": self.second.is_none().then_some(self.seed),
            "views": [view(0), view(1)],
            "pairs": matching.pairs,
        })
    }
}

/// The pairs as a table, in pixel coordinates of the input images.
fn table(pairs: &[Pair]) -> String {
    let mut text =
        format!("{:>4}{:>12}{:>18}{:>18}", "rank", "similarity", "first x, y", "second x, y");
    let known = pairs.iter().any(|pair| pair.error.is_some());
    if known {
        let _ = write!(text, "{:>16}", "error in view");
    }
    for Pair { rank, similarity, first, second, error, .. } in pairs {
        let place = |[x, y]: [f64; 2]| format!("{x:.1}, {y:.1}");
        let _ = write!(
            text,
            "\n{rank:>4}{similarity:>12.4}{:>18}{:>18}",
            place(first.image),
            place(second.image)
        );
        if known {
            let error = error.map_or("not visible".into(), |error| format!("{error:.1}"));
            let _ = write!(text, "{error:>16}");
        }
    }
    text
}
