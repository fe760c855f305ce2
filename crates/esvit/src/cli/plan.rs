//! What a run is about to do, before it does it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use esvit_data::{Source, counted};
use esvit_files::free_bytes;
use esvit_nn::Solo;
use esvit_train::run::{plan, run_length, settled, step_time, steps_within, worth_timing};
use esvit_train::{Config, memory};
use serde_json::{Value, json};

use super::Output;
use super::progress::clock;

/// Refuses settings that need more memory than there is, unless the user has given an amount.
pub(super) fn check_memory(config: &Config, source: &dyn Source) -> Result<()> {
    let config = settled(config, source, 1);
    let need = memory::estimate(&config, config.train.micro_batch());
    let Some(available) = memory::available().filter(|&available| need > available) else {
        return Ok(());
    };
    let [need, available] = [need, available].map(|bytes| bytes / 1e9);
    bail!(
        "the run takes about {need:.1} GB of memory and {available:.1} GB are free\n\
         hint: `--memory {:.1}G` cuts its steps so that they fit; a smaller network \
         (`--arch`), fewer prototypes (`objective.head.out_dim`) or a smaller cache \
         (`data.cache_mb`) take less",
        0.9 * available
    )
}

/// Says what a new run would do: network, steps, time, memory, disk and files, and returns the same as
/// JSON. A step is timed.
pub(super) fn show(
    config: &Config,
    source: &Arc<dyn Source>,
    out: &Path,
    output: &Output,
) -> Result<Value> {
    let config = settled(config, &**source, 1);
    let collective: Arc<dyn esvit_nn::Collective> = Solo::shared();
    let stop = Arc::new(AtomicBool::new(false));
    let length = run_length(&config, source, &collective)?;
    output.note("timing a step on some of the images");
    let timed = worth_timing(&config, length.total_steps);
    let step = step_time(&config, source, &collective, &stop, timed)?;
    let mut planned = config.clone();
    if let Some(time) = config.train.time {
        let steps = steps_within(time.0, &step, length.steps_per_epoch)?;
        (planned.train.steps, planned.train.time) = (Some(steps), None);
    }
    let plan = plan(&planned, source, &collective)?;
    output.note(&plan);
    let time = step.of(plan.total_steps, plan.steps_per_epoch);
    output.note(format!(
        "time: about {} ({:.2} s a step, measured), besides checks",
        clock(time),
        step.later.as_secs_f64()
    ));
    let need = memory::estimate(&config, config.train.micro_batch());
    let available = memory::available();
    let free = available
        .map_or_else(String::new, |bytes| format!(" of {:.1} GB that are free", bytes / 1e9));
    output.note(format!(
        "memory: about {:.1} GB{free}, with micro-batches of {}",
        need / 1e9,
        counted(config.train.micro_batch(), "image")
    ));
    let checkpoint = memory::checkpoint_bytes(&config);
    // The kept ones and the one being written; the best one is a file of its own once they are gone.
    let recent = config.checkpoint.keep_last + 1;
    let checkpoints = recent + 1;
    let free_disk = free_bytes(out);
    let free = free_disk
        .map_or_else(String::new, |bytes| format!(", where {:.1} GB are free", bytes as f64 / 1e9));
    output.note(format!(
        "disk: {} and the best one, {:.1} MB each, in `{}`{free}",
        counted(recent, "checkpoint"),
        checkpoint / 1e6,
        out.display()
    ));
    let disk = checkpoint * checkpoints as f64;
    if free_disk.is_some_and(|free| disk > free as f64) {
        output.warning(format!(
            "the checkpoints take up to {:.1} GB, more than is free\n\
             hint: make room, choose another `--out`, or lower `checkpoint.keep_last`",
            disk / 1e9
        ));
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
        "checkpoint_bytes": checkpoint,
        "checkpoints": checkpoints,
        "free_disk_bytes": free_disk,
    }))
}
