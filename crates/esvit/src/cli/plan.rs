//! What a run is about to do, before it does it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use esvit_data::{Source, counted};
use esvit_nn::Solo;
use esvit_train::run::{
    TIMED, fewer_images, plan, settled, split_statistics, step_time, steps_within,
};
use esvit_train::{Config, memory};
use serde_json::{Value, json};

use super::Output;
use super::disk::Checkpoints;
use super::progress::clock;

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
    let of_settings = config.train.batch_size;
    config.train.batch_size = settled(config, source, 1).train.batch_size;
    let batch = config.train.batch_size;
    fewer_images(of_settings, batch).iter().for_each(|note| output.note(note));
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

/// Says what a new run would do: network, steps, time, memory, disk and files, and returns the same as
/// JSON. A few steps are timed.
pub(super) fn show(
    config: &Config,
    source: &Arc<dyn Source>,
    out: &Path,
    output: &Output,
) -> Result<Value> {
    let config = settled(config, &**source, 1);
    let collective: Arc<dyn esvit_nn::Collective> = Solo::shared();
    let stop = Arc::new(AtomicBool::new(false));
    let step = step_time(&config, source, &collective, &stop, TIMED)?;
    let mut planned = config.clone();
    if let Some(time) = config.train.time {
        (planned.train.steps, planned.train.time) = (Some(1), None);
        let steps_per_epoch = plan(&planned, source, &collective)?.steps_per_epoch;
        planned.train.steps = Some(steps_within(time.0, &step, steps_per_epoch));
    }
    let plan = plan(&planned, source, &collective)?;
    output.note(&plan);
    let time = step.of(plan.total_steps, plan.steps_per_epoch);
    output.note(format!(
        "time: about {} ({:.2} s a step, measured), besides checks",
        clock(time),
        step.later.as_secs_f64()
    ));
    let judged = memory::with_images(&config, &**source);
    let need = memory::estimate(&judged, config.train.micro_batch());
    let available = memory::available();
    let free = available
        .map_or_else(String::new, |bytes| format!(" of {} that are free", memory::size(bytes)));
    output.note(format!(
        "memory: about {}{free}, with micro-batches of {}",
        memory::size(need),
        counted(config.train.micro_batch(), "image")
    ));
    if let Some(warning) = split_statistics(&config, 1) {
        output.warning(warning);
    }
    let checkpoints = Checkpoints::of(&config, plan.run(), out);
    output.note(checkpoints.describe(out));
    if let Some(warning) = checkpoints.warning(out) {
        output.warning(warning);
    }
    Ok(json!({
        "images": plan.images,
        "batch_size": plan.batch,
        "micro_batch": config.train.micro_batch(),
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "threads": plan.threads,
        "precision": plan.precision.name(),
        "seconds": time.as_secs_f64(),
        "seconds_per_step": step.later.as_secs_f64(),
        "memory_bytes": need,
        "available_memory_bytes": available,
        "checkpoint_bytes": checkpoints.bytes,
        "checkpoints": checkpoints.files(),
        "free_disk_bytes": checkpoints.free,
    }))
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
