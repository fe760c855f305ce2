//! What was measured of the runs that are done, a line each: `measured.jsonl` in the folder.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use esvit_data::counted;
use esvit_eval::compare::{Judge, Original, RunResult, Scores, Start, read_log};
use esvit_files::{LineLog, read_text};
use esvit_model::{OpenOptions, PretrainedBackbone};
use esvit_nn::{Collective, Solo};
use esvit_train::Config;
use esvit_train::run::{run_length, settled};
use esvit_train::span::Span;
use esvit_train::variants::{Comparison, Run, Weights, run_name};

use super::folder::Folder;
use super::train::Finished;
use crate::cli::Output;
use crate::cli::pretrain::images;

const FILE: &str = "measured.jsonl";

/// What is called so that has no folder.
const BUILT_IN: &str = "built-in materials";

/// The runs that are done.
pub(super) struct Measured<'a> {
    folder: &'a Folder,
    results: Vec<RunResult>,
    log: LineLog,
    /// Whether images that cannot be read were named.
    has_warned: Cell<bool>,
}

/// The file in a folder.
pub(super) fn file(folder: &Folder) -> PathBuf {
    folder.file(FILE)
}

/// The lines of the file; none if there is no file.
pub(super) fn read(folder: &Folder) -> Result<Vec<RunResult>> {
    let path = file(folder);
    let text = match read_text(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read `{}`", path.display()))?,
    };
    let result = |(line, text): (usize, &str)| -> Result<RunResult> {
        serde_json::from_str(text).map_err(|error| {
            anyhow!(
                "line {} of `{}` is no result of a run: {error}\n\
                 hint: delete the line, and the run is measured again",
                line + 1,
                path.display()
            )
        })
    };
    // A last line without a line break was cut off.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().enumerate().map(result).collect()
}

impl<'a> Measured<'a> {
    pub(super) fn open(folder: &'a Folder) -> Result<Self> {
        // A line that was cut off is dropped.
        let log = LineLog::open(&file(folder))?;
        Ok(Self { folder, results: read(folder)?, log, has_warned: Cell::new(false) })
    }

    /// What was measured of a run.
    pub(super) fn find(&self, run: &str) -> Option<&RunResult> {
        self.results.iter().find(|result| result.run == run)
    }

    /// Keeps what was measured of a run.
    pub(super) fn keep(&mut self, result: &RunResult) -> Result<()> {
        let line = serde_json::to_string(result)?;
        self.log.append_line(&line)?;
        self.log.sync()?;
        // As it is read when the comparison goes on: the last digit of a number may differ.
        self.results.push(serde_json::from_str(&line)?);
        Ok(())
    }

    /// Measures a run that is done.
    pub(super) fn measure(
        &self,
        run: &Run<'_>,
        finished: Finished,
        judge: &Judge,
        output: &Output,
    ) -> Result<RunResult> {
        output.note(format!("measuring `{}` after its last step", run.name()));
        let Finished { prepared, folder, checkpoint, steps, is_peak_own } = finished;
        let config = &prepared.config;
        let device = config.train.device.parse()?;
        let backbone = OpenOptions::default().device(device).open(&checkpoint)?;
        let (shape, preprocess) = (
            serde_json::to_string(&backbone.config)?,
            serde_json::to_string(&backbone.preprocess)?,
        );
        let judged = output.with_bar(judge.len(), |done| judge.measure(&backbone, done))?;
        if !self.has_warned.replace(true) {
            output.warn_skipped(&judged.left_out);
        }
        judged.notes.iter().for_each(|note| output.note(note));
        let alike = |other: &&RunResult| other.preprocess == preprocess;
        let same =
            |other: &&RunResult| alike(other) && other.shape == shape && other.seed == run.seed;
        let untrained = match self.results.iter().find(same) {
            Some(other) => other.untrained,
            None => measure_untrained(judge, &backbone, output)?,
        };
        let known = self.results.iter().filter(|other| alike(other) && other.shape == shape);
        let mut known = known.filter_map(|other| other.original.as_ref());
        let original = match &run.variant.asked.weights {
            None => None,
            Some(weights) => match known.find(|known| known.weights == in_words(weights)) {
                Some(known) => Some(known.clone()),
                None => self.measure_original(weights, judge, &backbone, output)?,
            },
        };
        let raw_pixels = match self.results.iter().find(alike) {
            Some(other) => other.raw_pixels,
            None => judge.measure_pixels(&backbone.preprocess)?,
        };

        let start = self.start(run)?;
        let (first, before) = start.as_ref().map_or((0, 0), |at| (at.step, at.images_seen));
        let batch_size = settled(config, &*prepared.source, 1).train.batch_size;
        let seen = |step: u64| before + step.saturating_sub(first) * batch_size as u64;
        let log = read_log(&folder, [first, u64::MAX], seen)
            .with_context(|| format!("cannot read the metrics of `{}`", folder.display()))?;
        let collective: Arc<dyn Collective> = Solo::shared();
        let epoch = run_length(config, &prepared.source, &collective)?.steps_per_epoch;
        let earlier = start.as_ref().map_or(0.0, |start| start.training_seconds);
        Ok(RunResult {
            run: run.name(),
            variant: run.variant.asked.name.clone(),
            seed: run.seed,
            start,
            data: format!(
                "{} ({})",
                name_of_images(config),
                counted(prepared.source.len(), "image")
            ),
            batch_size,
            images_per_epoch: epoch * batch_size as u64,
            steps,
            images_seen: seen(steps),
            training_seconds: earlier + log.training_seconds,
            peak_memory_mb: log.peak_memory_mb.filter(|_| is_peak_own),
            parameters: backbone.params.specs().parameters(),
            shape,
            preprocess,
            judged_on: judge.description().to_owned(),
            trained: judged.scores,
            untrained,
            original,
            raw_pixels,
            checked_on: prepared.task.as_ref().map(|task| task.description.clone()),
            checks: log.checks,
        })
    }

    /// Measures the weights that a run began with, as the network that it has and on images prepared for it.
    fn measure_original(
        &self,
        weights: &Weights,
        judge: &Judge,
        trained: &PretrainedBackbone,
        output: &Output,
    ) -> Result<Option<Original>> {
        let options = OpenOptions::default()
            .key(weights.key.as_deref())
            .shape(Some(trained.config.clone()))
            .device(trained.params.device());
        let mut original = match options.open(&self.folder.find_file(&weights.path)) {
            Ok(original) => original,
            Err(error) => {
                let error = error.to_string();
                let reason = error.lines().next().unwrap_or_default();
                output.note(format!("the original weights are left out: {reason}"));
                return Ok(None);
            }
        };
        original.preprocess = trained.preprocess.clone();
        let judged = output.with_bar(judge.len(), |done| judge.measure(&original, done))?;
        Ok(Some(Original { weights: in_words(weights), scores: judged.scores }))
    }

    /// Where a run went on from another one, and what that one had done by then.
    fn start(&self, run: &Run<'_>) -> Result<Option<Start>> {
        let (Some(continues), Some(step)) = (&run.variant.asked.continues, run.variant.start)
        else {
            return Ok(None);
        };
        let name = run_name(&continues.from, run.seed);
        let base = self.find(&name).ok_or_else(|| anyhow!("`{name}` is not measured yet"))?;
        let before = base.start.as_ref();
        let first = before.map_or(0, |start| start.step);
        let seen = |step: u64| {
            let own = step.saturating_sub(first) * base.batch_size as u64;
            before.map_or(0, |start| start.images_seen) + own
        };
        let folder = self.folder.file(&name);
        let log = read_log(&folder, [first, step], seen)
            .with_context(|| format!("cannot read the metrics of `{}`", folder.display()))?;
        let earlier = before.map_or(0.0, |start| start.training_seconds);
        Ok(Some(Start {
            variant: continues.from.clone(),
            step,
            images_seen: seen(step),
            training_seconds: earlier + log.training_seconds,
        }))
    }

    /// What is known of all runs, in their order.
    pub(super) fn in_order(&self, comparison: &Comparison) -> Vec<RunResult> {
        comparison.runs().filter_map(|run| self.find(&run.name()).cloned()).collect()
    }
}

/// What all runs are measured on: the images of the first variant, or those that it is checked on.
pub(super) fn judge(comparison: &Comparison, folder: &Folder, output: &Output) -> Result<Judge> {
    let mut config = comparison.variants[0].config.clone();
    folder.find_images(&mut config);
    // Also where no checks are made while it is trained.
    config.knn.every = Span::Percent(100.0);
    let (source, task) = images(&config, output)?;
    let name = name_of_images(&config);
    Ok(Judge::new(task, (source, &name), (config.knn.k, config.knn.temperature)))
}

fn measure_untrained(
    judge: &Judge,
    backbone: &PretrainedBackbone,
    output: &Output,
) -> Result<Scores> {
    let untrained = backbone.untrained();
    Ok(output.with_bar(judge.len(), |done| judge.measure(&untrained, done))?.scores)
}

fn in_words(Weights { path, key }: &Weights) -> String {
    match key {
        Some(key) => format!("`{key}` of `{}`", path.display()),
        None => format!("`{}`", path.display()),
    }
}

fn name_of_images(config: &Config) -> String {
    config.data.path.as_ref().map_or_else(|| BUILT_IN.to_owned(), ToString::to_string)
}
