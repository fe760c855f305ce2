//! What the command asks for: variants, from options and from a file, over what they have in common.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Parser;
use esvit_train::config_text::{Layer, Origin, merge};
use esvit_train::span::Span;
use esvit_train::variants::{Asked, Beginning, Variant, Weights, read};

use super::{Seeds, Usage};
use crate::cli::args::{run_or_file, weights_of};
use crate::cli::parse::parse;
use crate::cli::settings::{Settings, has_images, in_settings, recipe_of};
use crate::cli::shell::words;

/// The options of a variant, after its name.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, args_override_self = true)]
struct Options {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    weights: WeightsArgs,
    #[arg(long, value_name = "NAME")]
    continue_from: Option<String>,
    #[arg(long, value_name = "LENGTH")]
    continue_at: Option<Span>,
}

/// The weights that runs begin with.
#[derive(Debug, Default, clap::Args)]
pub(super) struct WeightsArgs {
    /// Initialize from the weights in this file, or of this run; everything else starts afresh.
    #[arg(long, value_name = "PATH", value_parser = run_or_file())]
    init_from: Option<PathBuf>,
    /// Network of `--init-from` to take, such as `student` [default: as with `esvit pretrain`]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

/// Variants over the settings that they have in common.
pub(super) struct Request {
    pub(super) seeds: Vec<u64>,
    /// The weights of variants that neither name some nor go on from another one.
    weights: Option<Weights>,
    /// The common settings, lowest first.
    pub(super) common: Vec<Layer>,
    /// Each with the recipe that it begins with.
    pub(super) variants: Vec<(Variant, String)>,
}

/// The variants of a file, if one is named, and then those of the command line.
pub(super) fn variants(runs: &[String], file: Option<&Path>) -> Result<Vec<Variant>> {
    let mut variants = file.map(read).transpose()?.unwrap_or_default();
    for variant in &mut variants {
        if let Some(weights) = &mut variant.weights {
            let named = weights_of(std::mem::take(&mut weights.path));
            weights.path = named.map_err(|error| anyhow!("variant `{}`: {error}", variant.name))?;
        }
    }
    for run in runs {
        variants.push(variant(run)?);
    }
    if variants.is_empty() {
        return Err(Usage(
            "there is nothing to compare\n\
             hint: name variants, such as `--run both --run \"view: objective.region=false\"`, or a file \
             of them with `--variants`"
                .into(),
        )
        .into());
    }
    Ok(variants)
}

/// The variant of `NAME: OPTIONS`.
fn variant(text: &str) -> Result<Variant> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let name = name.trim();
    let refuse = |what: &str| Usage(format!("variant `{name}`: {what}"));
    if text.contains(':') && options.trim().is_empty() {
        // The shell has split it.
        let hint = "nothing follows the colon\nhint: quote it, `--run \"NAME: OPTIONS\"`";
        return Err(refuse(hint).into());
    }
    let options = words(options).ok_or_else(|| refuse("a quote is not closed"))?;
    let options = parse::<Options>(options).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        refuse(&format!(
            "{}\nhint: options are those of `esvit pretrain` that say what a run is, such as `--recipe`, \
             `--arch` and `--init-from`, and settings `table.key=value`",
            text.lines().next().unwrap_or_default()
        ))
    })?;
    let Options { settings, weights, continue_from, continue_at } = options;
    let recipe = settings.named_recipe().map(str::to_owned);
    let WeightsArgs { init_from, key } = weights.in_settings()?;
    let beginning = Beginning { init_from, key, continue_from, continue_at };
    Ok(Variant::new(name, recipe, beginning, given(&settings)?)?)
}

impl WeightsArgs {
    /// The same, if the file of a comparison can hold them.
    fn in_settings(self) -> Result<Self> {
        self.init_from.as_deref().map(in_settings).transpose()?;
        Ok(self)
    }

    /// Whether none are given.
    pub(super) fn is_empty(&self) -> bool {
        self.init_from.is_none() && self.key.is_none()
    }
}

/// The layers of what is given, images included.
fn given(settings: &Settings) -> Result<Vec<Layer>> {
    let mut layers = settings.given.layers()?;
    if let Some(folders) = settings.given.images()? {
        layers.push(Layer::of_images(&folders, Origin::CommandLine)?);
    }
    Ok(layers)
}

/// Whether no setting is given.
pub(super) fn is_silent(settings: &Settings) -> Result<bool> {
    Ok(settings.named_recipe().is_none() && given(settings)?.is_empty())
}

/// The last objective that layers name.
fn objective<'a>(layers: impl DoubleEndedIterator<Item = &'a Layer>) -> Option<&'a str> {
    let name = |layer: &'a Layer| layer.table.get("objective")?.as_table()?.get("name")?.as_str();
    layers.rev().find_map(name)
}

/// Whether the last layer that names images names some of one's own.
fn has_own_images<'a>(layers: impl DoubleEndedIterator<Item = &'a Layer>) -> bool {
    let names_images = |layer: &&Layer| {
        layer.table.get("data").and_then(|data| data.as_table()?.get("path")).is_some()
    };
    layers.rev().find(names_images).is_some_and(has_images)
}

impl Request {
    /// `variants` over the settings of the command.
    pub(super) fn new(
        settings: &Settings,
        weights: WeightsArgs,
        variants: Vec<Variant>,
        seeds: Option<&Seeds>,
    ) -> Result<Self> {
        let weights = match weights.in_settings()? {
            WeightsArgs { init_from: Some(path), key } => Some(Weights { path, key }),
            WeightsArgs { init_from: None, key: None } => None,
            WeightsArgs { init_from: None, key: Some(key) } => {
                return Err(Usage(format!(
                    "`--key {key}` names a network and no file of it\nhint: add `--init-from PATH`"
                ))
                .into());
            }
        };
        let mut common = given(settings)?;
        let mut seed = None;
        for layer in &mut common {
            // The list of seeds says it.
            seed = layer.table.remove("seed").or(seed);
        }
        let seed = seed.map(|seed| match seed.as_integer() {
            Some(seed) if seed >= 0 => Ok(seed as u64),
            _ => Err(Usage(format!("`seed` is {seed}: it must be a number from 0 on"))),
        });
        let seeds = seeds.unwrap_or(&Seeds::Count(1)).list(seed.transpose()?)?;
        let mut with_recipes: Vec<(Variant, String)> = Vec::new();
        for variant in variants {
            let base = variant.continues.as_ref().and_then(|continues| {
                with_recipes.iter().find(|(other, _)| other.name == continues.from)
            });
            let named = variant.recipe.as_deref().or(settings.named_recipe());
            let recipe = match (base, &variant.recipe) {
                (Some(_), Some(recipe)) => recipe.clone(),
                (Some((_, recipe)), None) => recipe.clone(),
                (None, _) => {
                    let layers = || common.iter().chain([&variant.layer]);
                    recipe_of(named, objective(layers()), has_own_images(layers())).to_owned()
                }
            };
            with_recipes.push((variant, recipe));
        }
        Ok(Self { seeds, weights, common, variants: with_recipes })
    }

    /// What is asked for of each variant. One that goes on from another has all that one has.
    pub(super) fn asked(&self) -> Vec<Asked> {
        let asked = |(variant, recipe): &(Variant, String)| {
            let mut given = Default::default();
            let common = self.common.iter().filter(|_| variant.continues.is_none());
            common.chain([&variant.layer]).for_each(|layer| merge(&mut given, &layer.table));
            let common = match variant.continues {
                Some(_) => None,
                None => self.weights.as_ref(),
            };
            Asked {
                name: variant.name.clone(),
                recipe: recipe.clone(),
                weights: variant.weights.as_ref().or(common).cloned(),
                continues: variant.continues.clone(),
                given,
            }
        };
        self.variants.iter().map(asked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_train::config::differences;
    use esvit_train::config_text::parse_override;

    fn request(line: &[&str], runs: &[&str]) -> Request {
        let Options { settings, weights, .. } = Options::try_parse_from(line).unwrap();
        let runs: Vec<String> = runs.iter().map(|run| (*run).to_owned()).collect();
        Request::new(&settings, weights, variants(&runs, None).unwrap(), None).unwrap()
    }

    fn recipes(request: &Request) -> Vec<&str> {
        request.variants.iter().map(|(_, recipe)| recipe.as_str()).collect()
    }

    /// As if the words of the variant stood after the common ones.
    #[test]
    fn recipes_follow_from_names_objectives_and_images() {
        let runs = [
            "a",
            "b: --objective supervised",
            "c: --recipe esvit --objective supervised",
            "d: --data photos",
            "e: --continue-from b --continue-at 50%",
            "f: --continue-from a --continue-at 50% --recipe esvit",
        ];
        let found = request(&[], &runs);
        let expected = ["materials", "supervised", "esvit", "auto", "supervised", "esvit"];
        assert_eq!(recipes(&found), expected);
        let named = request(&["--recipe", "materials"], &runs[..4]);
        assert_eq!(recipes(&named), ["materials", "materials", "esvit", "materials"]);
        let images = request(&["-d", "photos"], &["a", "b: data.path=none"]);
        assert_eq!(recipes(&images), ["auto", "materials"]);
        let both = request(&["--objective", "supervised"], &["a", "b: --objective esvit"]);
        assert_eq!(recipes(&both), ["supervised", "materials"]);
    }

    #[test]
    fn what_is_asked_for_is_what_is_given() {
        let line = ["seed=4", "optim.lr=1", "--data", "one", "-d", "two"];
        let runs = ["a: optim.lr=2", "b: --continue-from a --continue-at 3 objective.region=true"];
        let request = request(&line, &runs);
        assert_eq!(request.seeds, [4]);
        let asked = request.asked();
        let expected = |settings: &[&str]| {
            let mut table = Default::default();
            for text in settings {
                merge(&mut table, &parse_override(text).unwrap().table);
            }
            table
        };
        let first = expected(&["optim.lr=2", "data.path=[\"one\", \"two\"]"]);
        assert_eq!(differences(&asked[0].given, &first), [""; 0]);
        let second = expected(&["objective.region=true"]);
        assert_eq!(differences(&asked[1].given, &second), [""; 0]);
        assert_eq!(asked[1].continues.as_ref().unwrap().from, "a");
    }

    #[test]
    fn weights_of_all_are_those_of_variants_that_have_none() {
        let runs =
            ["a", "b: --init-from w --key student", "c: --continue-from a --continue-at 50%"];
        let weights = |line: &[&str]| -> Vec<Option<Weights>> {
            request(line, &runs).asked().into_iter().map(|asked| asked.weights).collect()
        };
        let own = Some(Weights { path: "w".into(), key: Some("student".into()) });
        assert_eq!(weights(&[]), [None, own.clone(), None]);
        let common = Some(Weights { path: "x".into(), key: None });
        assert_eq!(weights(&["--init-from", "x"]), [common, own, None]);
    }

    #[test]
    fn bad_variants_are_named() {
        for (run, part) in [
            ("a: --epocs 3", "variant `a`: unexpected argument '--epocs' found\nhint: "),
            ("a:", "variant `a`: nothing follows the colon\nhint: quote it"),
            ("a: 'b", "variant `a`: a quote is not closed"),
            ("a: lr", "`lr` is no setting"),
            ("a: --key student", "variant `a` names the network `student` and no file"),
            ("a: --continue-at half", "variant `a`: invalid value 'half'"),
            ("a: --epochs 3", "`train.epochs` of variant `a` is 3"),
            ("a: seed=3", "`seed` of variant `a` is 3"),
            ("view objective.region=false", "is no name of a variant"),
        ] {
            let error = variant(run).unwrap_err().to_string();
            assert!(error.contains(part), "{run}: {error}");
        }
    }
}
