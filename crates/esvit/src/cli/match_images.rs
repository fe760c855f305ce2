//! `esvit match`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_eval::correspondence::MEASURED_PAIRS;
use esvit_eval::matching::{self, MatchSettings, MatchedView, Matching, Pair};
use esvit_model::PretrainedBackbone;
use serde_json::{Value, json};

use super::candidates::{self, Candidate, CandidateArgs};
use super::exit::Usage;
use super::images::{self, DrawingFiles};
use super::{Exit, Output};

/// Options of `esvit match`.
#[derive(Debug, clap::Args)]
pub(super) struct Match {
    /// First image.
    #[arg(value_name = "A")]
    first: PathBuf,
    /// Second image [default: a view of the first, see `--view`]
    #[arg(value_name = "B")]
    second: Option<PathBuf>,
    #[command(flatten)]
    backbones: CandidateArgs,
    /// View of the first image that it is matched with.
    #[arg(long, value_enum, default_value = "random", conflicts_with = "second")]
    view: ViewArg,
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
    /// Random seed of the view [default: 0]
    #[arg(long, conflicts_with = "second")]
    seed: Option<u64>,
    #[command(flatten)]
    files: DrawingFiles,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Second view of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ViewArg {
    /// A random crop: 40 to 60 % of the area, possibly mirrored and color-jittered.
    Random,
    /// The mirror image.
    Flip,
}

impl Match {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.pairs == 0 {
            bail!("`--pairs` is 0, at least one pair must be drawn");
        }
        if self.view == ViewArg::Flip && self.seed.is_some() {
            let error = "`--view flip` is not random and has no `--seed`\nhint: leave out `--seed`";
            return Err(Usage(error.into()).into());
        }
        let second = self.second.as_deref().unwrap_or(&self.first);
        let inputs = [vec![&*self.first, second], self.backbones.paths()].concat();
        let png = self.files.check("match", &inputs, &[])?;
        let backbones = self.backbones.open(output)?;
        let (mut rows, mut results) = (Vec::new(), Vec::new());
        for candidate in &backbones {
            let settings = self.settings(&candidate.backbone);
            let matching = self.matching(candidate, &settings, output)?;
            results.push((self.report(&matching, &settings), table(&matching)));
            rows.push((label(candidate, &matching), matching));
        }
        let drawing = match &rows[..] {
            [(_, alone)] => matching::draw(alone)?,
            rows => matching::draw_rows(rows)?,
        };
        self.files.write(&drawing, &png, output)?;
        candidates::print(&backbones, results, self.json, output)?;
        Ok(Exit::Success)
    }

    /// Seed of the second view, if it is random.
    fn view_seed(&self) -> Option<u64> {
        let is_random = self.second.is_none() && self.view == ViewArg::Random;
        is_random.then_some(self.seed.unwrap_or(0))
    }

    fn settings(&self, backbone: &PretrainedBackbone) -> MatchSettings {
        let usual = MatchSettings::usual(backbone);
        MatchSettings {
            pairs: self.pairs,
            size: self.size.map_or(usual.size, NonZeroUsize::get),
            stage: self.stage.map_or(usual.stage, |stage| stage.get() - 1),
            mutual: self.mutual,
        }
    }

    fn matching(
        &self,
        candidate: &Candidate,
        settings: &MatchSettings,
        output: &Output,
    ) -> Result<Matching> {
        let backbone = &candidate.backbone;
        let read = |path: &PathBuf| images::read(path, backbone, output);
        let first = read(&self.first)?;
        let second = self.second.as_ref().map(read).transpose()?;
        let matching = match (&second, self.view_seed()) {
            (Some(second), _) => matching::two_images(backbone, [&first, second], settings),
            (None, Some(seed)) => matching::two_views(backbone, &first, seed, settings),
            (None, None) => matching::mirror_image(backbone, &first, settings),
        };
        matching.map_err(|error| candidate.error(error))
    }

    fn report(&self, matching: &Matching, settings: &MatchSettings) -> Value {
        let paths = [&self.first, self.second.as_ref().unwrap_or(&self.first)];
        let paths = paths.map(|path| path.display().to_string());
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
            "seed": self.view_seed(),
            "views": [view(0), view(1)],
            "pairs": matching.pairs,
            "accuracy": matching.accuracy(),
        })
    }
}

/// Label of a row: the backbone, and the share of its matches that are right, if that is known.
fn label(candidate: &Candidate, matching: &Matching) -> String {
    let accuracy = matching.accuracy().map(|accuracy| format!(" · accuracy {accuracy:.2}"));
    candidate.label() + &accuracy.unwrap_or_default()
}

/// The pairs as a table, in pixel coordinates of the input images.
fn table(matching: &Matching) -> String {
    let pairs = &matching.pairs;
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
    if let Some(accuracy) = matching.accuracy() {
        let visible = pairs.iter().filter(|pair| pair.error.is_some()).count();
        let _ = write!(
            text,
            "\naccuracy {accuracy:.3}: share of right cells among {visible} visible in both views"
        );
    }
    text
}
