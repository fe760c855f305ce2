//! `esvit info`.

use std::path::PathBuf;

use anyhow::Result;
use esvit_nn::params::{Params, Registry};
use esvit_nn::{Swin, zoo};
use esvit_train::recipe::RECIPES;

use super::Done;
use super::eval::NetworkChoice;
use super::output::Output;

/// Lists what there is, or tells what a file is.
#[derive(Debug, clap::Args)]
pub(super) struct Info {
    /// A checkpoint or a file of weights; without it architectures and recipes are listed.
    file: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkChoice,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Picture sizes for which multiply-accumulates are told.
const SIZES: [usize; 2] = [224, 96];

impl Info {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match &self.file {
            Some(file) => {
                let backbone = self.network.open(file)?;
                let config = &backbone.config;
                let size = config.views.global_size as usize;
                let facts = serde_json::json!({
                    "file": file,
                    "architecture": config.model.arch,
                    "network": self.network.key(),
                    "shape": backbone.swin.config(),
                    "backbone_parameters": count(&backbone.params),
                    "feature_width": backbone.swin.config().output_width(),
                    "picture_size": size,
                    "macs": backbone.swin.config().macs(size),
                    "objective": if config.objective.region { "L_V + L_R" } else { "L_V" },
                    "prototypes": config.head.out_dim,
                    "steps": backbone.step,
                    "seed": config.seed,
                });
                if self.json { output.json(&facts)? } else { output.result(lines(&facts))? }
            }
            None if self.json => output.json(&listing())?,
            None => output.result(tables())?,
        }
        Ok(Done::Well)
    }
}

fn count(params: &Params) -> usize {
    params.specs().iter().map(|spec| spec.len()).sum()
}

/// One line a fact.
fn lines(facts: &serde_json::Value) -> String {
    let facts = facts.as_object().into_iter().flatten();
    let lines = facts.map(|(name, value)| match value.as_str() {
        Some(text) => format!("{name:20} {text}"),
        None => format!("{name:20} {value}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn listing() -> serde_json::Value {
    let architectures: Vec<_> = zoo::ARCHITECTURES
        .iter()
        .map(|arch| {
            let config = arch.config();
            let macs = SIZES.map(|size| config.macs(size));
            serde_json::json!({
                "name": arch.name,
                "parameters": parameters(arch),
                "feature_width": config.output_width(),
                "macs_224": macs[0],
                "macs_96": macs[1],
                "drop_path": arch.drop_path,
            })
        })
        .collect();
    let recipes: Vec<_> = RECIPES
        .iter()
        .map(|recipe| serde_json::json!({ "name": recipe.name, "summary": recipe.summary() }))
        .collect();
    serde_json::json!({ "architectures": architectures, "recipes": recipes })
}

fn parameters(arch: &zoo::Architecture) -> usize {
    let mut registry = Registry::default();
    Swin::new(&mut registry.root(), &arch.config(), 0.0);
    registry.finish().iter().map(|spec| spec.len()).sum()
}

fn tables() -> String {
    let mut text = format!(
        "{:16} {:>12} {:>9} {:>12} {:>12}",
        "architecture", "parameters", "features", "MACs at 224", "MACs at 96"
    );
    for arch in &zoo::ARCHITECTURES {
        let config = arch.config();
        let [large, small] = SIZES.map(|size| format!("{:.2} G", config.macs(size) as f64 / 1e9));
        let parameters = format!("{:.2} M", parameters(arch) as f64 / 1e6);
        text.push_str(&format!(
            "\n{:16} {parameters:>12} {:>9} {large:>12} {small:>12}",
            arch.name,
            config.output_width()
        ));
    }
    text.push_str("\n\nrecipes (`esvit pretrain --recipe NAME`)");
    for recipe in RECIPES {
        text.push_str(&format!("\n{:16} {}", recipe.name, recipe.summary()));
    }
    text
}
