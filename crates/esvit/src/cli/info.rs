//! `esvit info`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use esvit_data::printable;
use esvit_eval::efficiency::parameters;
use esvit_kernels::isa::{Isa, Vendor};
use esvit_model::PretrainedBackbone;
use esvit_nn::ops::{AUTO_CHOICES, AutoChoice};
use esvit_nn::weights::{Method, WeightsFile, networks};
use esvit_nn::{BackboneConfig, ForwardCtx, zoo};
use esvit_train::Config;
use esvit_train::auto;
use esvit_train::config_text::Origin;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::recipe::{RECIPES, Recipe};
use serde_json::{Value, json};

use super::args::run_or_file;
use super::{Exit, NetworkArgs, Output, weights_report};

/// Options of `esvit info`.
#[derive(Debug, clap::Args)]
pub(super) struct Info {
    /// Run, checkpoint or weights file; without it, architectures, recipes and what precision `auto` takes are
    /// listed.
    #[arg(value_name = "PATH", value_parser = run_or_file())]
    file: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Image sizes for which MACs and tokens of the last map are listed.
const SIZES: [usize; 2] = [224, 96];

/// Properties of a file, in the order of display.
type Properties = Vec<(&'static str, Value)>;

impl Info {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let Some(path) = &self.file else {
            if self.network.has_key() {
                bail!(
                    "`--key` chooses a network of a file\nhint: name the file, `esvit info FILE`"
                );
            }
            let listing = listing();
            output.print(self.json, &listing, || tables(&listing))?;
            return Ok(Exit::Success);
        };
        let file = WeightsFile::open(path)?;
        let mut properties = self.container(&file);
        let backbone = self.network.options().and_then(|options| Ok(options.read(&file)?));
        match &backbone {
            Ok(backbone) => properties.extend(backbone_properties(backbone)),
            Err(error) => properties.push(("does_not_load", error.to_string().into())),
        }
        let map: BTreeMap<&str, Value> = properties.iter().cloned().collect();
        output.print(self.json, &map, || lines(&properties))?;
        Ok(if backbone.is_ok() { Exit::Success } else { Exit::CheckFailed })
    }

    /// Properties of the file, whether or not it holds a backbone.
    fn container(&self, file: &WeightsFile) -> Properties {
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in file.tensors() {
            *values.entry(tensor.dtype.to_string()).or_default() +=
                tensor.shape.iter().product::<usize>();
        }
        let networks = networks(file);
        let networks: Vec<&str> = networks.iter().map(|location| location.network()).collect();
        let mut properties = vec![
            ("file", json!(self.file.as_ref().map(printable))),
            ("format", file.container().to_string().into()),
        ];
        if file.parts() > 1 {
            properties.push(("parts", file.parts().into()));
        }
        properties.push(("tensors", file.tensors().len().into()));
        if !file.unsupported().is_empty() {
            let mut unread: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (name, dtype) in file.unsupported() {
                unread.entry(dtype).or_default().push(name);
            }
            properties.push(("not_read", json!(unread)));
        }
        properties.extend([("values", json!(values)), ("networks", json!(networks))]);
        properties
    }
}

/// Properties of the backbone and of its file.
fn backbone_properties(backbone: &PretrainedBackbone) -> Properties {
    let PretrainedBackbone { config, params, preprocess, source, .. } = backbone;
    let size = preprocess.size();
    let location = source.location.as_ref();
    // A run says more of its objective, below.
    let method = location.and_then(|at| at.method).filter(|_| source.config.is_none());
    let mut properties = vec![
        ("network", json!(location.map(|location| location.network()))),
        ("naming", json!(location.map(|location| location.naming.label()))),
        ("method", json!(method.map(Method::label))),
        ("architecture", backbone.architecture().into()),
        ("backbone_parameters", params.specs().parameters().into()),
        ("feature_width", config.output_width().into()),
        ("image_size", size.into()),
        ("macs", macs(config, size).into()),
        ("epochs", json!(source.epochs)),
        ("steps", json!(source.steps)),
    ];
    if let Some(text) = &source.config {
        match Config::parse(text, Origin::Defaults) {
            Ok(config) => {
                match &config.objective {
                    ObjectiveConfig::Esvit(objective) => {
                        properties.push(("objective", objective.tasks().into()));
                        properties.push(("prototypes", objective.head.out_dim.into()));
                    }
                    other => properties.push(("objective", other.settings().describe().into())),
                }
                properties.push(("seed", config.seed.into()));
            }
            Err(error) => properties.push(("settings", error.to_string().into())),
        }
    }
    properties.extend([
        ("shape", json!(config)),
        ("preprocess", json!(preprocess)),
        ("assumed", json!(source.assumed)),
        ("matched", source.report.matched.into()),
        ("resized", json!(source.report.resized)),
        ("left_out", json!(source.report.left_out)),
    ]);
    properties
}

/// Multiply-accumulates for a square image of `size` pixels, as the official code counts them.
fn macs(config: &BackboneConfig, size: usize) -> u64 {
    config.cost([size; 2], 0.0, &ForwardCtx::eval()).official_macs()
}

/// One line per property; unknown ones are omitted.
fn lines(properties: &Properties) -> String {
    let mut lines = Vec::new();
    for (name, value) in properties {
        let name = name.replace('_', " ");
        let texts: Vec<String> = match value {
            Value::Object(reasons) if name == "left out" || name == "not read" => {
                let texts = reasons.iter();
                texts.map(|(reason, names)| weights_report::left_out(reason, names)).collect()
            }
            Value::Array(items) if items.iter().all(Value::is_string) => {
                items.iter().map(plain).collect()
            }
            value => vec![plain(value)],
        };
        let texts = texts.iter().filter(|text| !text.is_empty());
        lines.extend(texts.map(|text| format!("{name:20} {text}")));
    }
    lines.join("\n")
}

/// A value as text: an object as its keys and values, nothing for what is unknown or empty.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                format!("{} {}", key.replace('_', " "), plain(value))
            };
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

fn listing() -> Value {
    let architecture = |arch: &zoo::Architecture| {
        let config = arch.config();
        let [large, small] = SIZES.map(|size| macs(&config, size));
        let [many, few] = SIZES.map(|size| config.last_map(size).pow(2));
        json!({
            "name": arch.name,
            "parameters": parameters(&config),
            "feature_width": config.output_width(),
            "macs_224": large,
            "macs_96": small,
            "tokens_224": many,
            "tokens_96": few,
            "drop_path": arch.drop_path,
        })
    };
    let architectures: Vec<Value> = zoo::ARCHITECTURES.iter().map(architecture).collect();
    let recipe = |recipe: &Recipe| json!({ "name": recipe.name, "summary": recipe.summary() });
    let auto = json!({ "name": auto::NAME, "summary": auto::SUMMARY });
    let recipes: Vec<Value> = [auto].into_iter().chain(RECIPES.iter().map(recipe)).collect();
    let here = AutoChoice::here();
    let precision = |choice: &AutoChoice| {
        json!({
            "processor": choice.vendor.map_or("any", Vendor::name),
            "isa": choice.isa.map_or("any", Isa::name),
            "precision": choice.precision.name(),
            "measured": choice.measured,
            "is_here": choice == here,
        })
    };
    let precisions: Vec<Value> = AUTO_CHOICES.iter().map(precision).collect();
    json!({ "architectures": architectures, "recipes": recipes, "precisions": precisions })
}

fn tables(listing: &Value) -> String {
    let rows = |of: &str| listing[of].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let scaled = |value: &Value, unit: f64| value.as_f64().unwrap_or(f64::NAN) / unit;
    let names = rows("architectures").map(|arch| text(&arch["name"]).len());
    let wide = names.max().unwrap_or(0);
    let mut table = format!(
        "{:wide$} {:>12} {:>9} {:>12} {:>12}",
        "architecture", "parameters", "features", "MACs at 224", "MACs at 96"
    );
    for arch in rows("architectures") {
        table.push_str(&format!(
            "\n{:wide$} {:>10.2} M {:>9} {:>10.2} G {:>10.2} G",
            text(&arch["name"]),
            scaled(&arch["parameters"], 1e6),
            arch["feature_width"],
            scaled(&arch["macs_224"], 1e9),
            scaled(&arch["macs_96"], 1e9),
        ));
    }
    table.push_str("\n\nrecipes (`esvit pretrain --recipe NAME`)");
    for recipe in rows("recipes") {
        table.push_str(&format!("\n{:16} {}", text(&recipe["name"]), text(&recipe["summary"])));
    }
    table.push_str("\n\nprecision `auto`, `*` here (`esvit bench self` measures this machine)");
    for choice in rows("precisions") {
        let mark = if choice["is_here"] == true { "*" } else { " " };
        let [processor, isa, precision, measured] =
            ["processor", "isa", "precision", "measured"].map(|key| text(&choice[key]));
        table.push_str(&format!("\n{mark} {processor:6} {isa:12} {precision:5} {measured}"));
    }
    table
}
