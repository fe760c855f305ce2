//! What a comparison would do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use esvit_data::printable;
use esvit_eval::labeled::LabeledTask;
use esvit_eval::preview;
use esvit_nn::{Collective, Solo};
use esvit_train::Config;
use esvit_train::run::{Costs, run_length, settled};
use esvit_train::span::{RunLength, Span};
use esvit_train::variants::{Comparison, Planned};
use serde::Serialize;
use serde_json::json;

use super::folder::Folder;
use super::measured;
use crate::cli::pretrain::newest;
use crate::cli::progress::clock;
use crate::cli::{Output, costs, teacher};

/// A run that would be trained.
#[derive(Serialize)]
struct Listed {
    run: String,
    /// Steps done, and of all.
    done: u64,
    steps: Option<u64>,
    images_seen: Option<u64>,
    /// Time of the steps and checks that are left.
    seconds: Option<f64>,
}

/// The length of a variant's runs, and how long their parts take if it was measured.
struct Length {
    /// The step at which they begin, and the images seen by then, both of the variant they go on from.
    start: (u64, u64),
    batch: u64,
    steps: Option<u64>,
    steps_per_epoch: u64,
    every: Span,
    costs: Option<Costs>,
}

/// Lists the runs with their expected time. A step and a check of each variant are timed, unless quiet.
pub(super) fn show(
    comparison: &Comparison,
    folder: &Folder,
    as_json: bool,
    output: &Output,
) -> Result<()> {
    let is_done: Vec<String> =
        measured::read(folder)?.into_iter().map(|result| result.run).collect();
    let mut lengths: Vec<Length> = Vec::new();
    for variant in &comparison.variants {
        let mut config = variant.config.clone();
        folder.find_images(&mut config);
        if output.shows_notes() {
            teacher::attach(&mut config, output)?;
        }
        let start = start(variant, &comparison.variants, &lengths);
        lengths.push(Length::of(config, start, output.shows_notes())?);
    }
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
    let variants = comparison.variants.iter().map(|variant| {
        let asked = &variant.asked;
        json!({
            "name": asked.name,
            "continues": asked.continues,
            "start_step": variant.start,
            "weights": asked.weights,
            "settings": variant.config,
        })
    });
    let report = json!({
        "comparison": printable(folder.path()),
        "runs": listed,
        "seconds": total,
        "variants": variants.collect::<Vec<_>>(),
    });
    output.print(as_json, &report, || table(&listed, total))
}

/// The step at which a variant's runs begin, and the images seen by then. `lengths` are those of the variants
/// before it.
fn start(variant: &Planned, variants: &[Planned], lengths: &[Length]) -> (u64, u64) {
    let (Some(continues), Some(step)) = (&variant.asked.continues, variant.start) else {
        return (0, 0);
    };
    let base = variants.iter().position(|other| other.asked.name == continues.from);
    (step, base.and_then(|base| lengths.get(base)).map_or(0, |base| base.images_seen(step)))
}

impl Length {
    fn of(config: Config, start: (u64, u64), is_timed: bool) -> Result<Self> {
        let all = preview::all_images(&config)?;
        let source = preview::learned(&config, all.clone())?;
        let collective: Arc<dyn Collective> = Solo::shared();
        let length = run_length(&config, &source, &collective)?;
        let costs = match is_timed {
            true => {
                let task = LabeledTask::of_run(&config, &all)?;
                Some(costs::measure(&config, &source, task.as_ref(), false)?)
            }
            false => None,
        };
        let (mut steps, mut every) = (Some(length.total_steps), config.knn.every);
        if let Some(time) = config.train.time {
            let within = |costs: &Costs| {
                costs.within((time.0, costs.spent), 0, length.steps_per_epoch, every)
            };
            let found = costs.as_ref().map(within).transpose()?;
            steps = found.map(|found| found.steps);
            every = found.map_or(every, |found| found.every);
        }
        let batch = settled(&config, &*source, 1).train.batch_size as u64;
        Ok(Self { start, batch, steps, steps_per_epoch: length.steps_per_epoch, every, costs })
    }

    /// Images seen after a step.
    fn images_seen(&self, step: u64) -> u64 {
        let (first, before) = self.start;
        before + step.saturating_sub(first) * self.batch
    }

    fn listed(&self, run: String, done: u64) -> Listed {
        let left = |(costs, total_steps): (&Costs, u64)| {
            let run = RunLength { total_steps, steps_per_epoch: self.steps_per_epoch };
            costs.time(done.min(total_steps), run, self.every).as_secs_f64()
        };
        Listed {
            run,
            done,
            steps: self.steps,
            images_seen: self.steps.map(|steps| self.images_seen(steps)),
            seconds: self.costs.as_ref().zip(self.steps).map(left),
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
    lines.push("the time is that of steps and checks, besides what is measured at the end".into());
    lines.join("\n")
}
