//! `esvit eval correspondence`.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_data::EvalTransform;
use esvit_eval::correspondence::{
    CorrespondenceResults, Estimate, Geometry, Grid, MEASURED_PAIRS, Protocol, Summary, measure,
};
use serde::Serialize;

use super::warn_unsaved;
use crate::cli::{BackboneArgs, Exit, Output, image_set};

/// Largest view in pixels: a map of the first stage has a token for every 4 x 4 of them.
const MAX_SIZE: usize = 4096;

/// Options of `esvit eval correspondence`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Correspondence {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images, or several: `-d A -d B` [default: the held-out parts of the built-in images]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
    /// Maximum number of images, chosen at random.
    #[arg(long, value_name = "N", alias = "pictures")]
    images: Option<NonZeroUsize>,
    /// How the two views are made; the second is color-jittered and gray in both cases.
    #[arg(long, value_enum, default_value = "mirror")]
    geometry: GeometryArg,
    /// Range of the area of a random crop, as shares of the image.
    #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = [0.4, 1.0])]
    scale: Vec<f64>,
    /// Number of pairs measured per image, most similar first [default: 10 for `mirror`, all cells
    /// visible in both views for `crops`]
    #[arg(long, value_name = "N")]
    pairs: Option<NonZeroUsize>,
    /// Size of the views in pixels [default: as in other evaluations]
    #[arg(long, value_name = "PIXELS")]
    size: Option<NonZeroUsize>,
    /// Stage whose features are matched, from 1; earlier ones have finer maps [default: the last]
    #[arg(long, value_name = "STAGE")]
    stage: Option<NonZeroUsize>,
    /// Random seed of the views.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// How views are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum GeometryArg {
    /// The center crop and its mirror image, as in the paper.
    Mirror,
    /// Two random crops, each mirrored with probability 0.5.
    Crops,
}

/// Results for one kind of features.
#[derive(Debug, Serialize)]
struct Row {
    features: &'static str,
    #[serde(flatten)]
    summary: Summary,
}

impl Correspondence {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        let backbone = self.backbone.open(output)?;
        let (mut set, task) = image_set(&self.data, &backbone, output, |task| task.queries)?;
        set.limit(self.images.map_or(usize::MAX, NonZeroUsize::get));
        let mut preprocess = backbone.preprocess.clone();
        if let Some(size) = self.size {
            if size.get() > MAX_SIZE {
                bail!("`--size` is {size}, it must be 1 to {MAX_SIZE}");
            }
            preprocess.transform = EvalTransform::new(size.get() as u32);
        }
        let config = &backbone.config;
        let stage = self.stage.map_or(config.stages().len(), NonZeroUsize::get);
        let protocol = self.protocol(stage - 1)?;
        let grid = Grid::new(config, stage - 1, [preprocess.size(); 2])?;
        if self.geometry == GeometryArg::Mirror && protocol.pairs > grid.cells() {
            output.warning(few_cells_warning(&grid, stage));
        }

        let networks = [&backbone.untrained(), &backbone];
        let CorrespondenceResults { images, disjoint, left_out, networks, chance, best, .. } =
            output.with_bar(set.images.len(), |done| {
                measure(&set, &preprocess, &protocol, &networks, done)
            })?;
        output.warn_skipped(&left_out);
        if disjoint > 0 {
            output.note(format!(
                "{disjoint} images are not measured: their two crops do not overlap"
            ));
        }
        let names = ["chance", "untrained", "trained", "best possible"];
        let summaries = [chance].into_iter().chain(networks).chain([best]);
        let rows = names.into_iter().zip(summaries);
        let mut rows: Vec<Row> =
            rows.map(|(features, summary)| Row { features, summary }).collect();
        // Mirrored cells map onto whole cells, so the best possible score is perfect.
        if self.geometry == GeometryArg::Mirror {
            rows.pop();
        }

        let pairs = (protocol.pairs < grid.cells()).then_some(protocol.pairs);
        let report = serde_json::json!({
            "task": task,
            "images": images,
            "left_out": left_out.len(),
            "disjoint": disjoint,
            "geometry": self.geometry,
            "scale": (self.geometry == GeometryArg::Crops).then_some(&self.scale),
            "pairs": pairs,
            "size": preprocess.size(),
            "stage": stage,
            "map": [grid.rows, grid.columns],
            "cell": grid.cell,
            "seed": self.seed,
            "results": rows,
        });
        output.print(self.json, &report, || {
            let (views, all) = match self.geometry {
                GeometryArg::Mirror => ("an image and its mirror image", "all"),
                GeometryArg::Crops => ("two crops of an image", "those visible in both"),
            };
            let pairs = pairs.map_or(all.into(), |pairs| format!("the {pairs} most similar"));
            let Grid { rows: high, columns: wide, .. } = grid;
            format!(
                "correspondence on {task}: {images} images, {views}, {pairs} of {high} x {wide} \
                 cells\n{}",
                table(&rows)
            )
        })?;
        let saved = self.backbone.save_record(&backbone, "correspondence", &task, &report, output);
        warn_unsaved(saved, output);
        Ok(Exit::Success)
    }

    fn protocol(&self, stage: usize) -> Result<Protocol> {
        let scale @ [low, high] = [self.scale[0], self.scale[1]];
        if !(0.0 < low && low <= high && high <= 1.0) {
            bail!(
                "`--scale` is {low} {high}: both must be above 0 and at most 1, the smaller one \
                 first"
            );
        }
        let (geometry, pairs) = match self.geometry {
            GeometryArg::Mirror => (Geometry::Mirror, MEASURED_PAIRS),
            GeometryArg::Crops => (Geometry::Crops { scale }, usize::MAX),
        };
        let pairs = self.pairs.map_or(pairs, NonZeroUsize::get);
        Ok(Protocol { geometry, pairs, stage, seed: self.seed })
    }
}

fn few_cells_warning(grid: &Grid, stage: usize) -> String {
    let finer = if stage > 1 { format!(", or `--stage {}`", stage - 1) } else { String::new() };
    format!(
        "the map has {} cells, so all of them are measured\n\
         hint: a larger `--size` gives more{finer}",
        grid.cells()
    )
}

/// The results as a table.
fn table(rows: &[Row]) -> String {
    let mut text = format!("{:14}{:>23}{:>23}", "matches", "accuracy", "distance in pixels");
    for pck in rows.first().map(|row| &row.summary.pck[..]).unwrap_or_default() {
        let _ = write!(text, "{:>23}", format!("PCK@{}", pck.alpha));
    }
    if rows.iter().any(|row| row.summary.next_similarity.is_some()) {
        let _ = write!(text, "{:>23}", "next similarity");
    }
    for Row { features, summary: Summary { accuracy, distance, pck, next_similarity } } in rows {
        let _ = write!(text, "\n{features:14}");
        text.push_str(&format_estimate(accuracy, 3));
        text.push_str(&format_estimate(distance, 1));
        for share in pck.iter().map(|pck| &pck.share).chain(next_similarity) {
            text.push_str(&format_estimate(share, 3));
        }
    }
    text
}

/// Formats a mean and its confidence interval.
fn format_estimate(Estimate { mean, interval }: &Estimate, digits: usize) -> String {
    let interval = match interval {
        Some([low, high]) if low < high => format!(" [{low:.digits$}, {high:.digits$}]"),
        _ => String::new(),
    };
    format!("{:>23}", format!("{mean:.digits$}{interval}"))
}
