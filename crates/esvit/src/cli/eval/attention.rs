//! `esvit eval attention`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_data::counted;
use esvit_eval::attention::{self, AttentionStatistics, BlockStatistics};
use esvit_eval::labeled::LabeledSet;
use esvit_eval::record;
use esvit_model::PretrainedBackbone;
use serde_json::json;

use super::warn_unsaved;
use crate::cli::args::run_or_file;
use crate::cli::{BackboneArgs, Exit, Output, image_set, images};

/// Value of `--against` for a newly initialized network.
const UNTRAINED: &str = "untrained";

/// Options of `esvit eval attention`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Attention {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of images, or several: `-d A -d B` [default: the built-in images]
    #[arg(long, short, value_name = "FOLDER")]
    data: Vec<PathBuf>,
    /// Maximum number of images, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 100, alias = "pictures")]
    images: usize,
    /// Run or checkpoint to compare with, or `untrained` for the same network newly initialized.
    #[arg(long, value_name = "PATH", value_parser = run_or_file())]
    against: Option<PathBuf>,
    /// Also write a plot as PNG.
    #[arg(long, short, value_name = "FILE")]
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
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        if self.images == 0 {
            bail!("`--images` is 0, at least one image is needed");
        }
        let files = [self.out.as_deref(), self.svg.as_deref()];
        let mut inputs = vec![&*self.backbone.checkpoint];
        inputs.extend(self.against.as_deref());
        images::check_files(files, &[], self.overwrite, &inputs)?;
        let backbone = self.backbone.open(output)?;
        let (mut set, task) = image_set(&self.data, &backbone, output, |task| task.gallery)?;
        set.limit(self.images);
        let other = match &self.against {
            Some(path) if path == Path::new(UNTRAINED) => Some((path, backbone.untrained())),
            Some(path) => Some((path, self.backbone.network.open(path, output)?)),
            None => None,
        };
        let AttentionStatistics { blocks, images, left_out } = measure(&backbone, &set, output)?;
        output.warn_skipped(&left_out);
        let mut report = json!({ "task": task, "images": images, "blocks": blocks });
        let mut networks = vec![(name(&self.backbone.checkpoint), blocks)];
        if let Some((path, backbone)) = other {
            let blocks = measure(&backbone, &set, output)?.blocks;
            report["against"] =
                json!({ "checkpoint": path.display().to_string(), "blocks": blocks });
            networks.push((name(path), blocks));
        }
        let plotted: Vec<(&str, &[BlockStatistics])> =
            networks.iter().map(|(name, blocks)| (&name[..], &blocks[..])).collect();
        let drawing = attention::plot(&plotted);
        images::write(&drawing, files, output)?;
        output.print(self.json, &report, || {
            let images = counted(images, "image");
            let title = |name: &str| format!("{name}, {images} of {task}");
            let tables = networks.iter().map(|(name, blocks)| table(&title(name), blocks));
            tables.collect::<Vec<_>>().join("\n")
        })?;
        let saved = self.backbone.save_record(&backbone, "attention", &task, &report, output);
        warn_unsaved(saved, output);
        Ok(Exit::Success)
    }
}

fn measure(
    backbone: &PretrainedBackbone,
    set: &LabeledSet,
    output: &Output,
) -> Result<AttentionStatistics> {
    let count = set.images.len();
    let measured = output.with_bar(count, |done| attention::statistics(backbone, set, done))?;
    if measured.images == 0 {
        output.warn_skipped(&measured.left_out);
        bail!("none of the {count} images can be read");
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
        "attention entropy in bits: {title}\n\
         block stage      map window  heads  entropy of largest lowest-highest diversity   beside"
    );
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for block in blocks {
        let entropies = || block.heads.iter().map(|head| head.entropy);
        let lowest = entropies().fold(f64::INFINITY, f64::min);
        let highest = entropies().fold(0.0, f64::max);
        let BlockStatistics { position, map: [rows, columns], window, heads, entropy, .. } = block;
        let _ = write!(
            text,
            "\n{:>5} {:>5} {:>8} {:>6} {:>6} {entropy:>8.3} {:>10} {:>14} {:>9} {:>7.1}%",
            position.block,
            position.stage,
            format!("{rows}x{columns}"),
            or_none(window.map(|side| side.to_string())),
            heads.len(),
            or_none(block.share.map(|share| format!("{:.1}%", 100.0 * share))),
            format!("{lowest:.2}-{highest:.2}"),
            or_none(block.diversity.map(|diversity| format!("{diversity:.4}"))),
            100.0 * (block.padding_mass + block.prefix_mass).max(0.0)
        );
    }
    text
}
