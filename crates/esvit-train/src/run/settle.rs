//! What the settings of a run leave to the machine: how a step is cut, and how many steps fit a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esvit_data::Source;
use esvit_kernels::pool;
use esvit_nn::{Collective, Device, Tensor};

use super::session::micro_batch;
use super::{RunError, plan};
use crate::config::Config;
use crate::memory;
use crate::objective::StepInfo;

/// How long steps are timed.
const TIMED: Duration = Duration::from_secs(4);

/// Share of a run's time that its steps may take; the rest is for checks and checkpoints.
const FOR_STEPS: f64 = 0.92;

/// The settings with a batch that the images fill and a size of micro-batches. Fewer images than a
/// batch make a smaller one.
pub fn settled(config: &Config, source: &dyn Source, world: usize) -> Config {
    let mut config = config.clone();
    let images = source.len().saturating_mul(config.data.repeat as usize) / world * world;
    if (1..config.train.batch_size).contains(&images) {
        (config.train.batch_size, config.train.micro_batch) = (images, None);
    }
    if config.train.micro_batch.is_none() {
        config.train.micro_batch = Some(memory::micro_batch(&config, world, memory::available()));
    }
    config
}

/// The time of a step, measured on the first images of the run with networks that are dropped
/// afterwards. The first micro-batch is not counted: it fills buffers and caches.
///
/// # Errors
/// When the images cannot be loaded or the device does not exist.
pub fn step_time(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
    stop: &Arc<AtomicBool>,
) -> Result<Duration, RunError> {
    let config = settled(config, &**source, collective.world());
    let device: Device = config.train.device.parse()?;
    let classes = source.classes().len();
    let mut learner = plan::learner(&config, &device, classes, collective.clone());
    let loader = plan::loader(&config, source.clone(), &**collective)?;
    let parts = loader.parts();
    let at = StepInfo::FIRST;
    let mut gradients = learner.begin(parts, &at);
    let (mut count, mut spent) = (0, Duration::ZERO);
    let mut began = Instant::now();
    let limit = Instant::now() + 2 * TIMED;
    for (index, batch) in loader.batches(0..u64::MAX).enumerate() {
        let batch = micro_batch(&batch?, &config, &**source, &device);
        pool::run(|| learner.add(&mut gradients, &batch, &at, &|| false));
        if index > 0 {
            (count, spent) = (count + 1, spent + began.elapsed());
        }
        let ends = spent >= TIMED || Instant::now() >= limit || stop.load(Ordering::Relaxed);
        if count > 0 && ends {
            break;
        }
        if (index + 1).is_multiple_of(parts) {
            // Gradients start at zero in every step, as here.
            learner.abandon(gradients);
            gradients = learner.begin(parts, &at);
        }
        began = Instant::now();
    }
    let began = Instant::now();
    // Its loss is not looked at.
    let _ = pool::run(|| learner.update(gradients, &at));
    let update = began.elapsed();
    let own = spent.mul_f64(parts as f64 / f64::from(count.max(1))) + update;
    let all = collective.all_gather(Tensor::full(own.as_secs_f32(), [1], &Device::Cpu)).to_vec();
    Ok(Duration::from_secs_f32(all.into_iter().fold(0.0, f32::max)))
}

/// Steps that fit a time beside checks and checkpoints, at least one.
pub fn steps_within(time: Duration, step: Duration) -> u64 {
    ((FOR_STEPS * time.as_secs_f64() / step.as_secs_f64().max(1e-6)) as u64).max(1)
}
