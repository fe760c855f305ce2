//! What the settings of a run leave to the machine: how a step is cut, the precision, and how many steps
//! fit a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esvit_data::{Loader, Source};
use esvit_kernels::pool;
use esvit_nn::ops::Precision;
use esvit_nn::{Collective, Device, Tensor};

use super::session::micro_batch;
use super::{RunError, plan};
use crate::config::Config;
use crate::learner::{Gradients, Learner};
use crate::memory;
use crate::objective::StepInfo;

/// How long the steps of a run are timed.
pub const TIMED: Duration = Duration::from_secs(4);

/// Share of a run's time that its steps may take; the rest is for checks and checkpoints.
pub const FOR_STEPS: f64 = 0.92;

/// The settings with a batch that the images fill, a size of micro-batches and a precision. Fewer images
/// than a batch make a smaller one.
pub fn settled(config: &Config, source: &dyn Source, world: usize) -> Config {
    let mut config = config.clone();
    let images = source.len().saturating_mul(config.data.repeat as usize) / world * world;
    if (1..config.train.batch_size).contains(&images) {
        (config.train.batch_size, config.train.micro_batch) = (images, None);
    }
    if config.train.micro_batch.is_none() {
        config.train.micro_batch = Some(memory::micro_batch(&config, world, memory::available()));
    }
    config.train.precision = config.train.precision().into();
    config
}

/// The precision of the first process, which all take: on another machine `auto` may mean another one.
pub(super) fn precision_of_first(own: Precision, collective: &dyn Collective) -> Precision {
    let number = |precision: Precision| f32::from(precision as u8);
    let first = collective.broadcast(Tensor::full(number(own), [1], &Device::Cpu), 0).item();
    Precision::ALL.into_iter().find(|&precision| number(precision) == first).unwrap_or(own)
}

/// The time of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    /// While images are read for the first time.
    pub first: Duration,
    /// In later epochs, as far as images are in the cache then.
    pub later: Duration,
}

impl StepTime {
    /// The time of so many steps.
    pub fn of(&self, steps: u64, steps_per_epoch: u64) -> Duration {
        let first = steps.min(steps_per_epoch);
        self.first.mul_f64(first as f64) + self.later.mul_f64((steps - first) as f64)
    }
}

/// The time of a step, measured on the first images of the run with networks that are dropped
/// afterwards, over about twice the time `timed`.
///
/// # Errors
/// When the images cannot be loaded or the device does not exist, and [`RunError::Stopped`] if `stop` is set.
pub fn step_time(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
    stop: &Arc<AtomicBool>,
    timed: Duration,
) -> Result<StepTime, RunError> {
    config.check_ready()?;
    let config = settled(config, &**source, collective.world());
    let device: Device = config.train.device.parse()?;
    let classes = source.classes().len();
    let mut learner = plan::learner(&config, &device, classes, collective.clone());
    let loader = plan::loader(&config, source.clone(), &**collective)?;
    let pass = |learner: &mut _| time_of_part(&config, learner, &loader, &**source, timed, stop);
    // The losses are not looked at.
    let update = |learner: &mut Learner, gradients| {
        let began = Instant::now();
        let _ = pool::run(|| learner.update(gradients, &StepInfo::FIRST));
        began.elapsed()
    };
    let (first, gradients) = pass(&mut learner)?;
    // It allocates the moments, which no later one does.
    update(&mut learner, gradients);
    let (again, gradients) = pass(&mut learner)?;
    let cached = loader.cached_share();
    let later = again.mul_f64(cached) + first.mul_f64(1.0 - cached);
    let update = update(&mut learner, gradients);
    let [first, later] = [first, later].map(|part| {
        let own = part.mul_f64(loader.parts() as f64) + update;
        let all = Tensor::full(own.as_secs_f32(), [1], &Device::Cpu);
        let slowest = collective.all_gather(all).to_vec().into_iter().fold(0.0, f32::max);
        Duration::from_secs_f32(slowest)
    });
    Ok(StepTime { first, later })
}

/// The mean time of a micro-batch, from the first of the run on, over about the time `timed`, and the
/// gradients of the last ones. The very first is not counted: it fills buffers.
fn time_of_part(
    config: &Config,
    learner: &mut Learner,
    loader: &Loader,
    source: &dyn Source,
    timed: Duration,
    stop: &AtomicBool,
) -> Result<(Duration, Gradients), RunError> {
    let (parts, at, device) = (loader.parts(), StepInfo::FIRST, learner.device());
    // Several processes wait for each other.
    let alone = learner.collective.world() == 1;
    let should_stop = || alone && stop.load(Ordering::Relaxed);
    let mut gradients = learner.begin(parts, &at);
    let (mut count, mut spent) = (0, Duration::ZERO);
    let mut began = Instant::now();
    let limit = Instant::now() + 2 * timed;
    let mut batches = loader.batches(0..u64::MAX);
    for index in 0.. {
        let Some(batch) = batches.next_unless(should_stop) else { return Err(RunError::Stopped) };
        let batch = micro_batch(&batch?, config, source, &device);
        if !pool::run(|| learner.add(&mut gradients, &batch, &at, &should_stop)) || should_stop() {
            return Err(RunError::Stopped);
        }
        if index > 0 {
            (count, spent) = (count + 1, spent + began.elapsed());
        }
        let ends = spent >= timed || Instant::now() >= limit || stop.load(Ordering::Relaxed);
        let ends_step = (index + 1).is_multiple_of(parts);
        // Micro-batches that are compared go through with the last one of their step.
        let is_done = ends_step || !learner.objective.compares_images();
        if count > 0 && ends && is_done {
            break;
        }
        if ends_step {
            // Gradients start at zero in every step, as here.
            learner.abandon(gradients);
            gradients = learner.begin(parts, &at);
        }
        began = Instant::now();
    }
    Ok((spent.div_f64(f64::from(count.max(1))), gradients))
}

/// Steps that fit a time beside checks and checkpoints, at least one.
pub fn steps_within(time: Duration, step: &StepTime, steps_per_epoch: u64) -> u64 {
    let time = time.mul_f64(FOR_STEPS);
    let epoch = step.first.mul_f64(steps_per_epoch as f64);
    let within =
        |time: Duration, step: Duration| (time.as_secs_f64() / step.as_secs_f64().max(1e-6)) as u64;
    let steps = match time.checked_sub(epoch) {
        Some(rest) => steps_per_epoch + within(rest, step.later),
        None => within(time, step.first),
    };
    steps.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrecisionChoice;
    use esvit_data::{Image, InMemory};
    use esvit_testing::Pair;

    #[test]
    fn the_precision_is_decided() {
        let mut source = InMemory::new(Vec::new());
        for index in 0..4 {
            source.push(index.to_string(), None, Image::new(8, 8, vec![0; 192]).unwrap());
        }
        let mut config = Config::default();
        (config.train.batch_size, config.train.micro_batch) = (2, Some(2));
        for (given, expected) in [
            (PrecisionChoice::Auto, Precision::auto()),
            (PrecisionChoice::F32, Precision::F32),
            (PrecisionChoice::Bf16, Precision::Bf16),
            (PrecisionChoice::Bf16x3, Precision::Bf16x3),
        ] {
            config.train.precision = given;
            assert_eq!(settled(&config, &source, 1).train.precision, expected.into());
        }
    }

    #[test]
    fn processes_take_the_precision_of_the_first() {
        for [first, second] in
            [[Precision::Bf16, Precision::F32], [Precision::F32, Precision::Bf16]]
        {
            let found = Pair::run(|pair| precision_of_first([first, second][pair.rank()], &*pair));
            assert_eq!(found, [first; 2]);
        }
    }
}
