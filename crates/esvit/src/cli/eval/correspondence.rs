//! `esvit eval correspondence`.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_data::{EvalTransform, Preprocess};
use esvit_eval::correspondence::{
    CorrespondenceResults, Estimate, Geometry, Grid, MEASURED_PAIRS, Protocol, Summary, measure,
};
use esvit_model::PretrainedBackbone;
use serde::Serialize;

use crate::cli::args::{BackboneArgs, image_set};
use crate::cli::exit::Exit;
use crate::cli::output::Output;

/// Options of `esvit eval correspondence`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Correspondence {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images [default: the held-out parts of the built-in images]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
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
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let (mut set, task) = image_set(self.data.as_deref(), |task| task.queries)?;
        set.limit(self.images.map_or(usize::MAX, NonZeroUsize::get));
        let backbone = self.backbone.open(output)?;
        let preprocess = self.preprocess(&backbone)?;
        let config = &backbone.config;
        let stages = config.stages().len();
        let stage = self.stage.map_or(stages, NonZeroUsize::get);
        let protocol = self.protocol(stage - 1)?;
        let grid = Grid::new(config, stage - 1, [preprocess.size(); 2])?;
        if self.geometry == GeometryArg::Mirror && protocol.pairs > grid.cells() {
            output.warning(few_cells_warning(&grid, stage));
        }

        let untrained = backbone.untrained();
        let bar = output.bar(set.images.len());
        let measured = measure(
            &*set.source,
            &set.images,
            &preprocess,
            &protocol,
            &[&untrained, &backbone],
            |count| bar.inc(count as u64),
        )?;
        bar.finish_and_clear();
        output.warn_skipped(&measured.left_out);
        if measured.disjoint > 0 {
            output.note(format!(
                "{} images are not measured: their two crops do not overlap",
                measured.disjoint
            ));
        }

        let pairs = (protocol.pairs < grid.cells()).then_some(protocol.pairs);
        let (images, disjoint) = (measured.images, measured.disjoint);
        let left_out = measured.left_out.len();
        let rows = self.rows(measured);
        let report = serde_json::json!({
            "task": task,
            "images": images,
            "left_out": left_out,
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
            let pairs_text = match (pairs, self.geometry) {
                (Some(pairs), _) => format!("the {pairs} most similar"),
                (None, GeometryArg::Mirror) => "all".into(),
                (None, GeometryArg::Crops) => "those visible in both".into(),
            };
            let views = match self.geometry {
                GeometryArg::Mirror => "an image and its mirror image",
                GeometryArg::Crops => "two crops of an image",
            };
            format!(
                "correspondence on {task}: {images} images, {views}, {pairs_text} of {} x {} \
                 cells\n{}",
                grid.rows,
                grid.columns,
                table(&rows)
            )
        })?;
        self.backbone.save_record(&backbone, "correspondence", &task, &report, output)?;
        Ok(Exit::Success)
    }

    fn preprocess(&self, backbone: &PretrainedBackbone) -> Result<Preprocess> {
        let usual = backbone.preprocess.clone();
        Ok(match self.size {
            Some(size) => {
                let transform = EvalTransform::new(u32::try_from(size.get())?);
                Preprocess { transform, ..usual }
            }
            None => usual,
        })
    }

    fn protocol(&self, stage: usize) -> Result<Protocol> {
        let scale = [self.scale[0], self.scale[1]];
        if !(0.0 < scale[0] && scale[0] <= scale[1] && scale[1] <= 1.0) {
            bail!(
                "`--scale` is {} {}: both must be above 0 and at most 1, the smaller one first",
                scale[0],
                scale[1]
            );
        }
        let (geometry, pairs) = match self.geometry {
            GeometryArg::Mirror => (Geometry::Mirror, MEASURED_PAIRS),
            GeometryArg::Crops => (Geometry::Crops { scale }, usize::MAX),
        };
        let pairs = self.pairs.map_or(pairs, NonZeroUsize::get);
        Ok(Protocol { geometry, pairs, stage, seed: self.seed })
    }

    fn rows(&self, measured: CorrespondenceResults) -> Vec<Row> {
        let CorrespondenceResults { chance, best, networks, .. } = measured;
        let mut rows = vec![Row { features: "chance", summary: chance }];
        let names = ["untrained", "trained"];
        rows.extend(
            names.into_iter().zip(networks).map(|(features, summary)| Row { features, summary }),
        );
        // Mirrored cells map onto whole cells, so the best possible score is perfect.
        if self.geometry == GeometryArg::Crops {
            rows.push(Row { features: "best possible", summary: best });
        }
        rows
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
    let summary = |row: &Row| row.summary.clone();
    for pck in rows.first().map(|row| summary(row).pck).unwrap_or_default() {
        let _ = write!(text, "{:>23}", format!("PCK@{}", pck.alpha));
    }
    let next = rows.iter().any(|row| row.summary.next_similarity.is_some());
    if next {
        let _ = write!(text, "{:>23}", "next similarity");
    }
    for row in rows {
        let Summary { accuracy, distance, pck, next_similarity } = summary(row);
        let _ = write!(
            text,
            "\n{:14}{}{}",
            row.features,
            format_estimate(&accuracy, 3),
            format_estimate(&distance, 1)
        );
        for pck in pck {
            text.push_str(&format_estimate(&pck.share, 3));
        }
        if let Some(next) = next_similarity {
            text.push_str(&format_estimate(&next, 3));
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
