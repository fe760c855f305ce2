//! The settings of all variants.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use esvit_data::{Folders, Source};
use esvit_eval::preview;
use esvit_nn::{Collective, Solo};
use esvit_train::config::{Resolved, recipe_layers};
use esvit_train::config_text::{Layer, Origin, parse_text};
use esvit_train::run::{check_continued, check_images, check_weights, run_length};
use esvit_train::variants::{
    Asked, BudgetError, Comparison, Continues, Planned, Variant, Weights, share_budget,
    share_checks,
};
use esvit_train::{Config, auto};

use super::folder::Folder;
use super::measured::judge;
use super::{Request, Usage, labels};
use crate::cli::pretrain::images;
use crate::cli::{Output, plan, settings, teacher};

/// The settings that a request comes to. What would end a run at its start is told now, before any of them is
/// trained.
pub(super) fn resolve(request: &Request, folder: &Folder, output: &Output) -> Result<Comparison> {
    let mut resolver = Resolver { request, chosen: Vec::new(), notes: Vec::new(), output };
    let mut variants: Vec<Planned> = Vec::new();
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    for ((variant, recipe), asked) in request.variants.iter().zip(request.asked()) {
        let is_base =
            |other: &Planned| asked.continues.as_ref().is_some_and(|c| c.from == other.asked.name);
        let base = variants.iter().position(is_base);
        let base_variant = base.map(|base| &variants[base]);
        let weights = asked.weights.as_ref();
        let mut config = resolver.config(variant, (recipe.as_str(), weights), base_variant)?;
        labels::set_aside(&mut config, &asked.name, output);
        let source = match config.data.path {
            // With the labeled images of its checks, if it has any.
            Some(_) => match images(&config, &output.silent()) {
                Ok((source, _)) => source,
                Err(error) => return Err(of_variant(&asked, &error)),
            },
            None => preview::source(&config)?,
        };
        let judged_by = variants.first().map_or(&config, |first| &first.config);
        labels::check(judged_by, &config, &*source, &asked.name)?;
        if let (None, Some(first)) = (base, variants.first()) {
            share_budget((&first.config, &sources[0]), (&mut config, &source))
                .map_err(|error| refused(error, &asked))?;
            let given: Vec<&Layer> = request.common.iter().chain([&variant.layer]).collect();
            share_checks(&first.config, &mut config, &given);
        }
        teacher::locate(&mut config)?;
        // It is opened again for each run: others have the memory to themselves.
        let mut ready = config.clone();
        teacher::attach(&mut ready, output)?;
        ready.check_ready()?;
        plan::check_memory(&ready, &*source)?;
        check_images(&ready, &*source).map_err(|error| of_variant(&asked, &error))?;
        if let Some(Weights { path, key }) = &asked.weights {
            check_weights(&ready, &*source, (path.as_path(), key.as_deref()))
                .map_err(|error| of_variant(&asked, &error))?;
        }
        let start = match base {
            Some(base) => {
                let of_base = (&variants[base], &sources[base]);
                let step = start(&asked, of_base, (&config, &source))?;
                let state = folder.start(&of_base.0.asked.name, request.seeds[0], step);
                let mut base = of_base.0.config.clone();
                teacher::attach(&mut base, &output.silent())?;
                check_continued((&ready, &*source), (&base, &**of_base.1), &state)
                    .map_err(|error| of_variant(&asked, &error))?;
                Some(step)
            }
            None => None,
        };
        variants.push(Planned { asked, start, config });
        sources.push(source);
    }
    let comparison = Comparison { seeds: request.seeds.clone(), variants };
    judge(&comparison, folder, &output.silent())?;
    Ok(comparison)
}

/// An error that a run of a variant would end with.
fn of_variant(asked: &Asked, error: &dyn Display) -> anyhow::Error {
    anyhow!("variant `{}`: {error}", asked.name)
}

/// A length that a variant cannot have makes no sense.
fn refused(error: BudgetError, asked: &Asked) -> anyhow::Error {
    match error {
        BudgetError::Time { .. } => Usage(format!("variant `{}`: {error}", asked.name)).into(),
        BudgetError::Run(error) => error.into(),
    }
}

/// The step of `base` from which a variant goes on.
fn start(
    asked: &Asked,
    (base, base_source): (&Planned, &Arc<dyn Source>),
    (config, source): (&Config, &Arc<dyn Source>),
) -> Result<u64> {
    let Some(Continues { from, at }) = &asked.continues else { return Ok(0) };
    let name = &asked.name;
    if base.config.train.time.is_some() {
        return Err(Usage(format!(
            "variant `{name}` continues from `{from}`, whose number of steps depends on a time\n\
             hint: give the length with `--steps` or `--epochs`"
        ))
        .into());
    }
    let collective: Arc<dyn Collective> = Solo::shared();
    let run = run_length(&base.config, base_source, &collective)?;
    let (step, first) = (at.steps(run), base.start.unwrap_or(0));
    if step <= first || step >= run.total_steps {
        return Err(Usage(format!(
            "variant `{name}` continues at {at} of `{from}`, which is step {step}: that run has the steps \
             {first} to {}\nhint: choose another `continue_at`, within them",
            run.total_steps
        ))
        .into());
    }
    let own = run_length(config, source, &collective)?.total_steps;
    if step >= own {
        return Err(Usage(format!(
            "variant `{name}` continues at {at} of `{from}`, which is step {step}, and its own run would end \
             at step {own}\n\
             hint: choose an earlier `continue_at`, or settings with as many steps, such as the same \
             `train.batch_size`"
        ))
        .into());
    }
    Ok(step)
}

struct Resolver<'a> {
    request: &'a Request,
    /// What a recipe has chosen for a network to begin with, or for none: once for all variants.
    chosen: Vec<(&'static str, Option<Weights>, Vec<Layer>)>,
    /// What was said already.
    notes: Vec<String>,
    output: &'a Output,
}

impl Resolver<'_> {
    /// The settings of a variant: its recipe, what all have in common, and its own; or those of the variant
    /// that it goes on from, a recipe if it names one, and its own.
    fn config(
        &mut self,
        variant: &Variant,
        (recipe, weights): (&str, Option<&Weights>),
        base: Option<&Planned>,
    ) -> Result<Config> {
        let mut layers = Vec::new();
        match base {
            Some(base) => {
                let origin = Origin::Variant(base.asked.name.clone());
                layers.push(parse_text(&base.config.to_toml(), origin)?);
                if variant.recipe.is_some() {
                    layers.extend(self.recipe(recipe, variant, None)?);
                }
            }
            None => {
                layers.extend(self.recipe(recipe, variant, weights)?);
                layers.extend(self.request.common.iter().cloned());
            }
        }
        layers.push(variant.layer.clone());
        let Resolved { config, notes, .. } = Config::resolve_with_notes(layers)?;
        for note in notes {
            if !self.notes.contains(&note) {
                self.output.note(&note);
                self.notes.push(note);
            }
        }
        Ok(config)
    }

    /// The layers of a recipe. `auto` and `adapt` choose for the images of the first variant that has them, and
    /// for the network of its weights, so that variants differ in what they change alone.
    fn recipe(
        &mut self,
        recipe: &str,
        variant: &Variant,
        weights: Option<&Weights>,
    ) -> Result<Vec<Layer>> {
        let Some(chooser) = auto::named(recipe) else { return Ok(recipe_layers(recipe)?) };
        if chooser.goes_on() && weights.is_none() {
            return Err(Usage(format!(
                "variant `{}`: recipe `{recipe}` goes on from a network that there is\n\
                 hint: name its file of weights, or its run, with `--init-from PATH`",
                variant.name
            ))
            .into());
        }
        // A variant's own network is no other one's.
        let weights = weights.filter(|_| !variant.layer.table.contains_key("model"));
        let is_chosen = |(name, of, _): &&(&'static str, Option<Weights>, Vec<Layer>)| {
            *name == chooser.name() && of.as_ref() == weights
        };
        if let Some((_, _, layers)) = self.chosen.iter().find(is_chosen) {
            return Ok(layers.clone());
        }
        let common = &self.request.common;
        let data = folders(common.iter().chain([&variant.layer]));
        let of_network = weights.map(|weights| (weights.path.as_path(), weights.key.as_deref()));
        let layers =
            settings::chosen_layers(chooser, common.clone(), of_network, data, self.output)?;
        self.chosen.push((chooser.name(), weights.cloned(), layers.clone()));
        Ok(layers)
    }
}

/// The folders of the last layer that names images.
fn folders<'a>(layers: impl DoubleEndedIterator<Item = &'a Layer>) -> Option<Folders> {
    let path = |layer: &'a Layer| layer.table.get("data")?.as_table()?.get("path").cloned();
    let path = layers.rev().find_map(path)?;
    // Where that is none, `auto` says what it lacks.
    path.try_into().ok().filter(|folders: &Folders| folders.one() != Some("none".as_ref()))
}
