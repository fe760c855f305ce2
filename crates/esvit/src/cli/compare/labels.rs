//! Variants that learn labels are judged on other images than those that they learn from.

use anyhow::Result;
use esvit_data::{Source, counted};
use esvit_eval::labeled::judging_images;
use esvit_eval::preview;
use esvit_train::Config;
use esvit_train::span::Span;

use super::Usage;
use crate::cli::Output;

/// The settings of a variant that learns labels: without checks, no images would be set aside for what all
/// are measured on in the end.
pub(super) fn set_aside(config: &mut Config, name: &str, output: &Output) {
    if config.objective.settings().needs_labels() && config.knn.every.is_none() {
        config.knn.every = Span::Percent(100.0);
        output.note(format!(
            "variant `{name}` learns labels and is checked after its last step (`knn.every=100%`): the \
             images that judge it are set aside, as without checks they are not"
        ));
    }
}

/// Refuses a variant that would learn the labels of images on which all are measured. `judge` has the
/// settings of the first variant, `source` the images that the variant called `name` learns from.
pub(super) fn check(
    judge: &Config,
    config: &Config,
    source: &dyn Source,
    name: &str,
) -> Result<()> {
    if !config.objective.settings().needs_labels() {
        return Ok(());
    }
    let mut judge = judge.clone();
    judge.knn.every = Span::Percent(100.0);
    let all = preview::all_images(&judge)?;
    let learned = judging_images(&judge, &all, source)?;
    if learned.is_empty() {
        return Ok(());
    }
    Err(Usage(format!(
        "variant `{name}` would learn the labels of {} on which the comparison measures all variants\n\
         hint: give `knn.train` and `knn.val` for all variants alike, beside `--run`",
        counted(learned.len(), "image")
    ))
    .into())
}
