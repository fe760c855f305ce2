//! What a run is about to do, before it does it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{Source, counted};
use esvit_eval::labeled::LabeledTask;
use esvit_nn::{Collective, Solo};
use esvit_train::run::{
    Costs, batch_in_words, checks, plan, run_length, settled, split_statistics,
};
use esvit_train::span::{RunLength, Span};
use esvit_train::{Config, auto, memory};
use serde_json::{Value, json};

use super::disk::Checkpoints;
use super::progress::clock;
use super::{Output, costs};

/// Refuses settings that need more memory than there is, unless the user has given an amount.
pub(super) fn check_memory(config: &Config, source: &dyn Source) -> Result<()> {
    let config = settled(config, source, 1);
    let takes = |config: &Config| memory::estimate(config, config.train.micro_batch());
    let Some(available) = memory::available().filter(|&available| takes(&config) > available)
    else {
        return Ok(());
    };
    // Images are looked at only where it matters how large they are.
    let config = memory::with_images(&config, source);
    let need = takes(&config);
    if need <= available {
        return Ok(());
    }
    bail!(
        "the run takes about {} of memory and {} are free\n\
         hint: `--memory {}` cuts its steps so that they fit; {}",
        memory::size(need),
        memory::size(available),
        amount(0.9 * available),
        memory::savings(&config, config.train.micro_batch())
    )
}

/// A number of bytes as `--memory` takes it.
fn amount(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.1}G", bytes / 1e9) } else { format!("{:.0}M", bytes / 1e6) }
}

/// Cuts the steps of a run on these images so that they fit into the memory that the user has given, in
/// bytes.
pub(super) fn fit_memory(
    config: &mut Config,
    source: &dyn Source,
    given: f64,
    output: &Output,
) -> Result<()> {
    let found = settled(config, source, 1);
    batch_in_words(config, &found).iter().for_each(|note| output.note(note));
    config.train.batch_size = found.train.batch_size;
    let batch = config.train.batch_size;
    let fit = memory::fit(&memory::with_images(config, source), given)?;
    config.train.micro_batch = Some(fit.micro_batch);
    config.train.activation_checkpointing = fit.activation_checkpointing;
    let activation_checkpointing =
        if fit.activation_checkpointing { ", with activation checkpointing" } else { "" };
    output.note(format!(
        "within {}: micro-batches of {} of the {batch} images of a step{activation_checkpointing} (about {})",
        memory::size(given),
        fit.micro_batch,
        memory::size(fit.bytes)
    ));
    Ok(())
}

/// A run that is about to begin, or would be.
pub(super) struct Upcoming<'a> {
    /// Its settings.
    pub(super) config: &'a Config,
    /// Its images.
    pub(super) source: &'a Arc<dyn Source>,
    /// What its checks of k-NN accuracy are made on.
    pub(super) task: Option<&'a LabeledTask>,
    /// Whether it begins with weights, which are measured.
    pub(super) from_weights: bool,
    /// Steps that are done.
    pub(super) first: u64,
    /// Its folder.
    pub(super) out: &'a Path,
    /// Whether it is to be said what to keep in mind of a run from nothing.
    pub(super) is_cautious: bool,
}

/// What was found of it.
struct Outlook {
    /// The settings, with a length and checks that fit the time that is given.
    config: Config,
    costs: Costs,
    run: RunLength,
}

impl Upcoming<'_> {
    /// Says what the run would do: network, steps, time, memory, disk and files, and returns the same as
    /// JSON. A step and the checks are timed.
    pub(super) fn show(&self, output: &Output) -> Result<Value> {
        let Outlook { config, costs, run } = self.outlook(output)?;
        let collective: Arc<dyn Collective> = Solo::shared();
        let plan = plan(&config, self.source, &collective)?;
        output.note(&plan);
        batch_in_words(self.config, &config).iter().for_each(|line| output.note(line));
        let every = config.knn.every;
        output.note(time_in_words(&costs, self.first, run, every));
        let (memory, available) = self.say_memory(&config, output);
        if let Some(warning) = split_statistics(&config, 1) {
            output.warning(warning);
        }
        let checkpoints = self.say_disk(&config, run, output);
        self.caution(run, output);
        let time = costs.time(self.first, run, every) + costs.checks.end;
        Ok(json!({
            "images": plan.images,
            "batch_size": plan.batch,
            "micro_batch": config.train.micro_batch(),
            "steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "threads": plan.threads,
            "precision": plan.precision.name(),
            "seconds": time.as_secs_f64(),
            "seconds_per_step": costs.step.later.as_secs_f64(),
            "checks": checks(self.first, run, every),
            "seconds_per_check": costs.checks.each.as_secs_f64(),
            "memory_bytes": memory,
            "available_memory_bytes": available,
            "checkpoint_bytes": checkpoints.bytes,
            "checkpoints": checkpoints.files(),
            "free_disk_bytes": checkpoints.free,
        }))
    }

    /// Says what a run that begins takes: time, memory and disk; returns how long its parts take. What is wrong with
    /// its images is said by the run, which leaves some out.
    pub(super) fn announce(&self, output: &Output) -> Result<Option<Costs>> {
        let is_needed = self.config.train.time.is_some();
        let alone: Arc<dyn Collective> = Solo::shared();
        let length = run_length(self.config, self.source, &alone)?;
        if !is_needed && length.total_steps <= self.first {
            // There is nothing to do.
            return Ok(None);
        }
        let outlook = match output.shows_notes() || is_needed {
            true => Some(self.outlook(output)),
            false => None,
        };
        let outlook = match outlook {
            Some(Err(error)) if is_needed => return Err(error),
            outlook => outlook.and_then(Result::ok),
        };
        if let Some(Outlook { config, costs, run }) = &outlook {
            output.note(time_in_words(costs, self.first, *run, config.knn.every));
        }
        let config = settled(self.config, &**self.source, 1);
        self.say_memory(&config, output);
        let run = outlook.as_ref().map_or(length, |outlook| outlook.run);
        self.say_disk(&config, run, output);
        if let Some(outlook) = &outlook {
            self.caution(outlook.run, output);
        }
        Ok(outlook.map(|outlook| outlook.costs))
    }

    fn outlook(&self, output: &Output) -> Result<Outlook> {
        let mut config = settled(self.config, &**self.source, 1);
        let collective: Arc<dyn Collective> = Solo::shared();
        let mut run = run_length(&config, self.source, &collective)?;
        output.note("timing a step and the checks on some of the images");
        let costs = costs::measure(&config, self.source, self.task, self.from_weights)?;
        if let Some(time) = config.train.time {
            let (given, every) = ((time.0, costs.spent), config.knn.every);
            let found = costs.within(given, self.first, run.steps_per_epoch, every)?;
            run.total_steps = self.first + found.steps;
            (config.train.steps, config.train.time) = (Some(run.total_steps), None);
            config.knn.every = found.every;
        }
        Ok(Outlook { config, costs, run })
    }

    /// Says what memory the run needs; returns it and what is free, in bytes.
    fn say_memory(&self, config: &Config, output: &Output) -> (f64, Option<f64>) {
        let judged = memory::with_images(config, &**self.source);
        let need = memory::estimate(&judged, config.train.micro_batch());
        let available = memory::available();
        let free = available
            .map_or_else(String::new, |bytes| format!(" of {} that are free", memory::size(bytes)));
        output.note(format!(
            "memory: about {}{free}, with micro-batches of {}",
            memory::size(need),
            counted(config.train.micro_batch(), "image")
        ));
        (need, available)
    }

    /// Says what room on the disk its checkpoints need, and warns if there is less.
    fn say_disk(&self, config: &Config, run: RunLength, output: &Output) -> Checkpoints {
        let checkpoints = Checkpoints::of(config, run, self.out);
        output.note(checkpoints.describe(self.out));
        if let Some(warning) = checkpoints.warning(self.out) {
            output.warning(warning);
        }
        checkpoints
    }

    fn caution(&self, run: RunLength, output: &Output) {
        if self.is_cautious {
            let cautions = auto::cautions(self.source.len(), run.total_steps);
            cautions.iter().for_each(|caution| output.note(caution));
        }
    }
}

/// The time of a run from `first` steps on, and what takes it.
fn time_in_words(costs: &Costs, first: u64, run: RunLength, every: Span) -> String {
    let (steps, count) = (run.total_steps.saturating_sub(first), checks(first, run, every));
    let (each, end) = (costs.checks.each, costs.checks.end);
    let mut parts = vec![format!(
        "{} of {:.2} s",
        counted(steps as usize, "step"),
        costs.step.later.as_secs_f64()
    )];
    if count > 0 && !each.is_zero() {
        let count = counted(count as usize, "check");
        parts.push(format!("{count} of {:.1} s", each.as_secs_f64()));
    }
    if !end.is_zero() {
        parts.push(format!("{} for what is measured at the end", clock(end)));
    }
    let time = clock(costs.time(first, run, every) + end);
    format!("time: about {time}, as measured: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::amount;

    /// No amount that can be run in is nothing.
    #[test]
    fn amounts_of_memory() {
        let shown = [27.44e9, 1e9, 4.5e8, 3.6e7].map(amount);
        assert_eq!(shown, ["27.4G", "1.0G", "450M", "36M"]);
    }
}
