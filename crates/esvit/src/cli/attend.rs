//! `esvit attend`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use esvit_data::{Image, counted};
use esvit_draw::labeled_rows;
use esvit_eval::attention::{
    self, AttentionError, BlockPosition, Framing, HeadAttention, InputImage, MASS, QueryAttention,
};
use esvit_model::PretrainedBackbone;
use esvit_train::SettingError;
use serde_json::{Value, json};

use super::candidates::{self, Candidate, CandidateArgs};
use super::images::{self, DrawingFiles};
use super::{Exit, Output};

/// Options of `esvit attend`.
#[derive(Debug, clap::Args)]
pub(super) struct Attend {
    /// Input image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    #[command(flatten)]
    backbones: CandidateArgs,
    /// Block, counted from 0 over all stages [default: the last]
    #[arg(long, value_name = "N")]
    block: Option<usize>,
    /// Heads to show [default: all]
    #[arg(long, value_name = "H", num_args = 1.., conflicts_with = "rollout")]
    head: Vec<usize>,
    /// Column and row of the query pixel in the input image [default: the center]
    #[arg(long, value_name = "X,Y", value_parser = pixel)]
    query: Option<[u32; 2]>,
    /// Side of the network's input in pixels, with `--whole` the shorter side [default: as in
    /// evaluations]
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// Show the whole image instead of the center crop.
    #[arg(long)]
    whole: bool,
    /// Share of the attention that the mask keeps (the smallest set of cells).
    #[arg(long, value_name = "SHARE", default_value_t = MASS)]
    mass: f64,
    /// Attention rollout up to the block (single-scale networks only).
    #[arg(long)]
    rollout: bool,
    #[command(flatten)]
    files: DrawingFiles,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Attend {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let inputs = [vec![&*self.image], self.backbones.paths()].concat();
        let png = self.files.check("attend", &inputs, &[])?;
        let backbones = self.backbones.open(output)?;
        backbones.iter().try_for_each(check_attention)?;
        let (mut rows, mut results) = (Vec::new(), Vec::new());
        for candidate in &backbones {
            let image = images::read(&self.image, &candidate.backbone, output)?;
            let found = self.attention(&image, &candidate.backbone);
            let (input, attention) = found.map_err(|error| candidate.error(error))?;
            rows.push((candidate.label(), attention::draw(&input, &attention)?));
            results.push((report(&self.image, &input, &attention), table(&attention)));
        }
        let drawing = match &rows[..] {
            [(_, alone)] => alone.clone(),
            rows => labeled_rows(rows),
        };
        self.files.write(&drawing, &png, output)?;
        candidates::print(&backbones, results, self.json, output)?;
        Ok(Exit::Success)
    }

    /// What a backbone is shown of the image, and its attention there.
    fn attention(
        &self,
        image: &Image,
        backbone: &PretrainedBackbone,
    ) -> Result<(InputImage, QueryAttention), AttentionError> {
        let (network, params) = (&*backbone.network, &backbone.params);
        let config = &backbone.config;
        let framing = if self.whole { Framing::Whole } else { Framing::Center };
        let size = self.size.unwrap_or(backbone.preprocess.size());
        let patch = config.least_side();
        let input = InputImage::new(image, &backbone.preprocess, framing, size, patch)?;
        // The whole of a long image is a long one, too.
        config.check_image("size", input.size()).map_err(|error| match self.whole {
            true => {
                SettingError { need: format!("{}, or leave out `--whole`", error.need), ..error }
            }
            false => error,
        })?;
        let place = self.query.map_or(Ok(input.center()), |pixel| input.map_pixel(pixel))?;
        let block = self.block.unwrap_or(config.blocks() - 1);
        let compute = if self.rollout { attention::rollout } else { attention::query_attention };
        let mut attention = compute(network, params, &input, place, block, self.mass)?;
        if !self.head.is_empty() {
            attention.keep_heads(&self.head)?;
        }
        Ok((input, attention))
    }
}

/// Refuses a backbone without attention.
fn check_attention(candidate: &Candidate) -> Result<()> {
    let config = &candidate.backbone.config;
    if config.stages().iter().any(|stage| stage.heads > 0) {
        return Ok(());
    }
    Err(candidate.error(format_args!(
        "a {} backbone has no attention\n\
         hint: leave it out; `esvit match` and `esvit pca` draw its features",
        config.family()
    )))
}

/// Parses a pixel `X,Y`.
fn pixel(text: &str) -> Result<[u32; 2], String> {
    let parts = text
        .split_once(',')
        .and_then(|(x, y)| Some([x.trim().parse().ok()?, y.trim().parse().ok()?]));
    parts.ok_or_else(|| "give column and row of a pixel, such as `120,80`".into())
}

fn report(path: &Path, input: &InputImage, attention: &QueryAttention) -> Value {
    let [height, width] = input.size();
    let largest = attention.largest_entropy();
    let row = |head_attention: &HeadAttention| {
        json!({
            "head": head_attention.head,
            "entropy": head_attention.entropy,
            "share": (largest > 0.0).then(|| head_attention.entropy / largest),
            "largest_weight": head_attention.largest(),
            "padding_mass": head_attention.padding_mass,
            "prefix_mass": head_attention.prefix_mass,
            "mask_cells": head_attention.mask.len(),
        })
    };
    json!({
        "image": path.display().to_string(),
        "shown": { "width": width, "height": height },
        "block": attention.position.block,
        "stage": attention.position.stage,
        "block_in_stage": attention.position.block_in_stage,
        "rollout": attention.heads.iter().any(|head_attention| head_attention.head.is_none()),
        "map": attention.map,
        "cell": attention.cell,
        "window": attention.window.map(|[side, _]| side),
        "shift": attention.window.map(|[_, shift]| shift),
        "query": { "row": attention.query[0], "column": attention.query[1] },
        "visible_cells": attention.visible_cells(),
        "map_keys": attention.map_keys,
        "padding_keys": attention.padding_keys,
        "prefix_keys": attention.prefix_keys,
        "largest_entropy": largest,
        "mass": attention.mass,
        "heads": attention.heads.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The results as a table.
fn table(attention: &QueryAttention) -> String {
    let QueryAttention { position, query: [row, column], padding_keys, prefix_keys, .. } =
        attention;
    let BlockPosition { block, stage, block_in_stage } = position;
    let mut text = format!(
        "block {block} (stage {stage}, block {block_in_stage} of it): the query at row {row}, column \
         {column} sees {} of {} cells",
        attention.visible_cells(),
        attention.visible.len()
    );
    if *prefix_keys > 0 {
        text.push_str(&format!(" and {} before them", counted(*prefix_keys, "token")));
    }
    if *padding_keys > 0 {
        text.push_str(&format!(" and {padding_keys} padding tokens"));
    }
    text.push_str(&format!(
        "\nlargest possible entropy {:.2} bits\n   head     bits max weight   beside mask cells",
        attention.largest_entropy(),
    ));
    for head_attention in &attention.heads {
        let name = head_attention.head.map_or("rollout".into(), |head| head.to_string());
        text.push_str(&format!(
            "\n{name:>7} {:>8.3} {:>10.4} {:>7.1}% {:>10}",
            head_attention.entropy,
            head_attention.largest(),
            100.0 * (head_attention.padding_mass + head_attention.prefix_mass).max(0.0),
            head_attention.mask.len()
        ));
    }
    text
}
