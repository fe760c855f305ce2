//! `esvit eval attention`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_eval::attention::{self, AttentionStatistics, BlockStatistics};
use esvit_eval::labeled::LabeledSet;
use esvit_eval::record;
use esvit_model::PretrainedBackbone;
use serde_json::json;

use crate::cli::args::{BackboneArgs, image_set};
use crate::cli::exit::Exit;
use crate::cli::images;
use crate::cli::output::{Output, check_writable};
use crate::cli::pca::pluralize;

/// Value of `--against` for a newly initialized network.
const UNTRAINED: &str = "untrained";

/// Options of `esvit eval attention`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Attention {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images [default: the built-in images]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Maximum number of images, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 100, alias = "pictures")]
    images: usize,
    /// Checkpoint to compare with, or `untrained` for the same network newly initialized.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Also write a plot as PNG.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the plot as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Attention {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.images == 0 {
            bail!("`--images` is 0, at least one image is needed");
        }
        for file in [&self.out, &self.svg].into_iter().flatten() {
            check_writable(file, self.overwrite)?;
        }
        let (mut set, task) = image_set(self.data.as_deref(), |task| task.gallery)?;
        set.limit(self.images);
        let backbone = self.backbone.open(output)?;
        let other = match &self.against {
            Some(path) if path == Path::new(UNTRAINED) => Some((path, backbone.untrained())),
            Some(path) => Some((path, self.backbone.network.open(path, output)?)),
            None => None,
        };
        let measured = measure(&backbone, &set, output)?;
        output.warn_skipped(&measured.left_out);
        let other = match other {
            Some((path, backbone)) => Some((path, measure(&backbone, &set, output)?)),
            None => None,
        };

        let mut networks = vec![(name(&self.backbone.checkpoint), measured.blocks.as_slice())];
        if let Some((path, other)) = &other {
            networks.push((name(path), other.blocks.as_slice()));
        }
        self.draw(&networks, output)?;
        let mut report = json!({
            "task": task,
            "images": measured.images,
            "blocks": measured.blocks,
        });
        if let Some((path, other)) = &other {
            report["against"] =
                json!({ "checkpoint": path.display().to_string(), "blocks": other.blocks });
        }
        output.print(self.json, &report, || {
            let images = pluralize(measured.images, "image");
            let title = |name: &str| format!("{name}, {images} of {task}");
            let tables = networks.iter().map(|(name, blocks)| table(&title(name), blocks));
            tables.collect::<Vec<_>>().join("\n")
        })?;
        self.backbone.save_record(&backbone, "attention", &task, &report, output)?;
        Ok(Exit::Success)
    }

    fn draw(&self, networks: &[(String, &[BlockStatistics])], output: &Output) -> Result<()> {
        let networks: Vec<(&str, &[BlockStatistics])> =
            networks.iter().map(|(name, blocks)| (name.as_str(), *blocks)).collect();
        let drawing = attention::plot(&networks);
        images::write(&drawing, self.out.as_deref(), self.svg.as_deref(), output)
    }
}

fn measure(
    backbone: &PretrainedBackbone,
    set: &LabeledSet,
    output: &Output,
) -> Result<AttentionStatistics> {
    let bar = output.bar(set.images.len());
    let measured = attention::statistics(
        &*backbone.network,
        &backbone.params,
        &backbone.preprocess,
        &*set.source,
        &set.images,
        |count| bar.inc(count as u64),
    )?;
    bar.finish_and_clear();
    if measured.images == 0 {
        output.warn_skipped(&measured.left_out);
        bail!("none of the {} images can be read", set.images.len());
    }
    Ok(measured)
}

/// Display name of a checkpoint: its run and its file.
fn name(checkpoint: &Path) -> String {
    let file = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    match record::run_folder_of(checkpoint).as_deref().and_then(Path::file_name) {
        Some(run) => format!("{}, {file}", run.to_string_lossy()),
        None => file.into(),
    }
}

/// The statistics of one network as a table.
fn table(title: &str, blocks: &[BlockStatistics]) -> String {
    let mut text = format!(
        "attention entropy in bits: {title}\n{:>5} {:>5} {:>8} {:>6} {:>6} {:>8} {:>10} {:>14} {:>9} {:>8}",
        "block",
        "stage",
        "map",
        "window",
        "heads",
        "entropy",
        "of largest",
        "lowest-highest",
        "diversity",
        "padding"
    );
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for block in blocks {
        let entropies = || block.heads.iter().map(|head| head.entropy);
        let (lowest, highest) =
            (entropies().fold(f64::INFINITY, f64::min), entropies().fold(0.0, f64::max));
        let _ = write!(
            text,
            "\n{:>5} {:>5} {:>8} {:>6} {:>6} {:>8.3} {:>10} {:>14} {:>9} {:>7.1}%",
            block.position.block,
            block.position.stage,
            format!("{}x{}", block.map[0], block.map[1]),
            block.window,
            block.heads.len(),
            block.entropy,
            or_none(block.share.map(|share| format!("{:.1}%", 100.0 * share))),
            format!("{lowest:.2}-{highest:.2}"),
            or_none(block.diversity.map(|diversity| format!("{diversity:.4}"))),
            100.0 * block.padding_mass.max(0.0)
        );
    }
    text
}
