//! What a comparison would do.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use esvit_data::printable;
use esvit_eval::preview;
use esvit_nn::{Collective, Solo};
use esvit_train::Config;
use esvit_train::run::{StepTime, run_length, settled, step_time, steps_within, worth_timing};
use esvit_train::variants::{Comparison, Planned};
use serde::Serialize;
use serde_json::json;

use super::folder::Folder;
use super::measured;
use crate::cli::pretrain::newest;
use crate::cli::progress::clock;
use crate::cli::{Output, teacher};

/// A run that would be trained.
#[derive(Serialize)]
struct Listed {
    run: String,
    /// Steps done, and of all.
    done: u64,
    steps: Option<u64>,
    images_seen: Option<u64>,
    /// Time of the steps that are left.
    seconds: Option<f64>,
}

/// The length of a variant's runs, and how long a step takes if it was measured.
struct Length {
    batch: u64,
    steps: Option<u64>,
    steps_per_epoch: u64,
    step: Option<StepTime>,
}

/// Lists the runs with their expected time. A step of each variant is timed, unless quiet.
pub(super) fn show(
    comparison: &Comparison,
    folder: &Folder,
    as_json: bool,
    output: &Output,
) -> Result<()> {
    let is_done: Vec<String> =
        measured::read(folder)?.into_iter().map(|result| result.run).collect();
    let length = |variant: &Planned| {
        let mut config = variant.config.clone();
        folder.find_images(&mut config);
        if output.shows_notes() {
            teacher::attach(&mut config, output)?;
        }
        Length::of(config, output.shows_notes())
    };
    let lengths = comparison.variants.iter().map(length).collect::<Result<Vec<Length>>>()?;
    let mut listed = Vec::new();
    for run in comparison.runs() {
        let place = comparison.variants.iter().position(|other| std::ptr::eq(other, run.variant));
        let length = &lengths[place.unwrap_or(0)];
        let name = run.name();
        let first = run.variant.start.unwrap_or(0);
        let done = match (is_done.contains(&name), newest(&folder.file(&name))) {
            (true, _) => length.steps.unwrap_or(first),
            (false, Some((step, _))) => step,
            (false, None) => first,
        };
        listed.push(length.listed(name, done));
    }
    let total: Option<f64> = listed.iter().map(|run| run.seconds).sum();
    let settings = comparison
        .variants
        .iter()
        .map(|variant| json!({ "name": variant.asked.name, "settings": variant.config }));
    let report = json!({
        "comparison": printable(folder.path()),
        "runs": listed,
        "seconds": total,
        "variants": settings.collect::<Vec<_>>(),
    });
    output.print(as_json, &report, || table(&listed, total))
}

impl Length {
    fn of(config: Config, is_timed: bool) -> Result<Self> {
        let source = preview::source(&config)?;
        let collective: Arc<dyn Collective> = Solo::shared();
        let length = run_length(&config, &source, &collective)?;
        let step = match is_timed {
            true => {
                let stop = Arc::new(AtomicBool::new(false));
                let timed = worth_timing(&config, length.total_steps);
                Some(step_time(&config, &source, &collective, &stop, timed)?)
            }
            false => None,
        };
        let steps = match (config.train.time, &step) {
            (Some(time), Some(step)) => Some(steps_within(time.0, step, length.steps_per_epoch)?),
            (Some(_), None) => None,
            (None, _) => Some(length.total_steps),
        };
        let batch = settled(&config, &*source, 1).train.batch_size as u64;
        Ok(Self { batch, steps, steps_per_epoch: length.steps_per_epoch, step })
    }

    fn listed(&self, run: String, done: u64) -> Listed {
        let time = |step: &StepTime, steps: u64| step.of(steps, self.steps_per_epoch).as_secs_f64();
        let left = |(step, steps): (&StepTime, u64)| {
            (time(step, steps) - time(step, done.min(steps))).max(0.0)
        };
        Listed {
            run,
            done,
            steps: self.steps,
            images_seen: self.steps.map(|steps| steps * self.batch),
            seconds: self.step.as_ref().zip(self.steps).map(left),
        }
    }
}

fn table(listed: &[Listed], total: Option<f64>) -> String {
    let width = listed.iter().map(|run| run.run.chars().count()).max().unwrap_or(0).max(5);
    let time = |seconds: Option<f64>| match seconds {
        Some(seconds) => clock(Duration::from_secs_f64(seconds)),
        None => "?".into(),
    };
    let number = |number: Option<u64>| number.map_or_else(|| "?".into(), |n| n.to_string());
    let mut lines = vec![format!(
        "{:width$}  {:>10}  {:>10}  {:>12}  {:>10}",
        "run", "steps", "done", "images seen", "time"
    )];
    lines.extend(listed.iter().map(|run| {
        format!(
            "{:width$}  {:>10}  {:>10}  {:>12}  {:>10}",
            run.run,
            number(run.steps),
            run.done,
            number(run.images_seen),
            time(run.seconds)
        )
    }));
    lines.push(format!(
        "{:width$}  {:>10}  {:>10}  {:>12}  {:>10}",
        "total",
        "",
        "",
        "",
        time(total)
    ));
    lines.push("the time is that of steps, besides checks and what is measured at the end".into());
    lines.join("\n")
}
