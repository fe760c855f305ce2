//! How long a step of a run takes, and a check of its network: measured on its first images, with networks that are
//! dropped afterwards.
//!
//! Where a micro-batch takes long, fewer images are timed in its place, down to one: a run that would take days says so
//! within seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esvit_data::{Batches, Loader, Source};
use esvit_kernels::pool;
use esvit_nn::{Collective, Device, ForwardCtx, Network, Params, Tensor};

use super::session::micro_batch;
use super::{RunError, plan, settled, start};
use crate::config::Config;
use crate::learner::{Gradients, Learner};
use crate::objective::StepInfo;

/// How long the steps of a run are timed at most, about.
pub const TIMED: Duration = Duration::from_secs(4);

/// Multiply-accumulates a second, for a first guess.
const GUESS: f64 = 2e10;

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

/// The time of the checks of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CheckTime {
    /// Of the one before the first step.
    pub first: Duration,
    /// Of each of those during the run.
    pub each: Duration,
    /// Of what is measured after it.
    pub end: Duration,
}

/// Times the checks of a run, of a network with these parameters.
pub type CheckTimer<'a> = dyn FnMut(&Network, &Params) -> CheckTime + 'a;

/// How long the parts of a run take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// The time of a step.
    pub step: StepTime,
    /// The time of the checks.
    pub checks: CheckTime,
    /// How long it took to measure them.
    pub spent: Duration,
}

/// How long it is worth timing a run of so many steps: a hundredth of the time that it is given, or that it takes
/// by a first guess, and [`TIMED`] at most.
pub fn worth_timing(config: &Config, steps: u64) -> Duration {
    let guess = macs(config) * config.train.batch_size as f64 * steps as f64 / GUESS;
    let time = config.train.time.map_or(guess, |time| time.0.as_secs_f64());
    Duration::from_secs_f64((0.01 * time).clamp(0.05, TIMED.as_secs_f64()))
}

/// Multiply-accumulates of an image: of the student's three passes (forward, and backward for inputs
/// and for weights) over all views, and of the teacher's over the global ones.
pub(crate) fn macs(config: &Config) -> f64 {
    let ctx = ForwardCtx::expected().with_precision(config.train.precision());
    let views = &config.views;
    let of = |size: u32| config.model.backbone.cost([size as usize; 2], 0.0, &ctx).macs;
    let teacher = f64::from(views.global_count) * of(views.global_size);
    teacher + 3.0 * views.sizes().into_iter().map(of).sum::<f64>()
}

/// How long a step takes, measured over about twice the time `timed`, or longer where an image takes that long, and
/// the checks, if a timer is given.
///
/// # Errors
/// When the images cannot be loaded or the device does not exist, and [`RunError::Stopped`] if `stop` is set.
pub fn costs(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
    stop: &Arc<AtomicBool>,
    timed: Duration,
    checks: Option<&mut CheckTimer<'_>>,
) -> Result<Costs, RunError> {
    let began = Instant::now();
    config.check_ready()?;
    let config = settled(config, &**source, collective.world());
    config.check_batch()?;
    let device: Device = config.train.device.parse()?;
    let classes = start::classes(&config, &**source)?;
    let mut learner = plan::learner(&config, &device, classes, collective.clone());
    let timing = Timing { config: &config, source, stop, timed };
    let [first, later] = timing.step(&mut learner)?;
    let checks = match checks {
        Some(time) => time(&learner.network, learner.evaluated()),
        None => CheckTime::default(),
    };
    let CheckTime { first: before, each, end } = checks;
    let times = [first, later, before, each, end].map(|time| time.as_secs_f32());
    // All processes make the same plan: that of the slowest.
    let all = collective.all_gather(Tensor::from_vec(times.to_vec(), &Device::Cpu)).to_vec::<f32>();
    let slowest = |place: usize| {
        let of_processes = all.iter().skip(place).step_by(times.len());
        Duration::from_secs_f32(of_processes.copied().fold(0.0, f32::max))
    };
    Ok(Costs {
        step: StepTime { first: slowest(0), later: slowest(1) },
        checks: CheckTime { first: slowest(2), each: slowest(3), end: slowest(4) },
        spent: began.elapsed(),
    })
}

/// The time of a step, as [`costs`] has it.
///
/// # Errors
/// As [`costs`].
pub fn step_time(
    config: &Config,
    source: &Arc<dyn Source>,
    collective: &Arc<dyn Collective>,
    timed: Duration,
) -> Result<StepTime, RunError> {
    Ok(costs(config, source, collective, &Arc::default(), timed, None)?.step)
}

/// What a step is timed on.
struct Timing<'a> {
    config: &'a Config,
    source: &'a Arc<dyn Source>,
    stop: &'a AtomicBool,
    timed: Duration,
}

impl Timing<'_> {
    /// The time of a step while images are read for the first time, and later.
    fn step(&self, learner: &mut Learner) -> Result<[Duration; 2], RunError> {
        let world = learner.collective.world();
        let own = self.config.train.batch_size / world;
        let micro_batch = self.config.train.micro_batch().min(own);
        let parts = own / micro_batch;
        // Where images of micro-batches are compared, each goes through twice: two stand for all.
        let is_compared = parts > 1 && learner.objective.compares_images();
        let (fewest, fewer_parts) = if is_compared { (micro_batch.min(2), 2) } else { (1, 1) };
        let step = |part: Duration, images: usize, update: Duration| {
            part.mul_f64(own as f64 / images as f64) + update
        };
        // Several processes wait for each other: each goes through as many images as the others.
        let mut images = if world > 1 { micro_batch } else { fewest };
        loop {
            if world > 1 {
                break;
            }
            let loader = self.loader(learner, images, fewer_parts)?;
            let (spent, gradients) = self.first(learner, &loader)?;
            if spent >= self.timed {
                let part = spent.div_f64(fewer_parts as f64);
                return Ok([step(part, images, update(learner, gradients)); 2]);
            }
            learner.abandon(gradients);
            if images == micro_batch || 4 * spent >= self.timed {
                break;
            }
            images = micro_batch.min(4 * images);
        }
        let is_whole = images == micro_batch && !is_compared;
        let loader = self.loader(learner, images, if is_whole { parts } else { fewer_parts })?;
        let (first, gradients) = self.part(learner, &loader)?;
        // It allocates the moments, which no later one does.
        update(learner, gradients);
        let (again, gradients) = self.part(learner, &loader)?;
        let cached = loader.cached_share();
        let later = again.mul_f64(cached) + first.mul_f64(1.0 - cached);
        let update = update(learner, gradients);
        Ok([first, later].map(|part| step(part, images, update)))
    }

    /// The loader of steps of `parts` micro-batches of so many images in each process.
    fn loader(&self, learner: &Learner, images: usize, parts: usize) -> Result<Loader, RunError> {
        let mut config = self.config.clone();
        config.train.batch_size = images * parts * learner.collective.world();
        config.train.micro_batch = Some(images);
        Ok(plan::loader(&config, self.source.clone(), &*learner.collective)?)
    }

    /// The time of the first step of a loader, and its gradients.
    fn first(
        &self,
        learner: &mut Learner,
        loader: &Loader,
    ) -> Result<(Duration, Gradients), RunError> {
        let began = Instant::now();
        let parts = loader.parts();
        let mut gradients = learner.begin(parts, &StepInfo::FIRST);
        let mut batches = loader.batches(0..1);
        for _ in 0..parts {
            self.add(learner, &mut gradients, &mut batches)?;
        }
        Ok((began.elapsed(), gradients))
    }

    /// The mean time of a micro-batch, from the first of the run on, over about the time `timed`, and the
    /// gradients of the last ones. The very first is not counted: it fills buffers.
    fn part(
        &self,
        learner: &mut Learner,
        loader: &Loader,
    ) -> Result<(Duration, Gradients), RunError> {
        let (parts, at) = (loader.parts(), StepInfo::FIRST);
        let mut gradients = learner.begin(parts, &at);
        let (mut count, mut spent) = (0, Duration::ZERO);
        let mut began = Instant::now();
        let limit = Instant::now() + 2 * self.timed;
        let mut batches = loader.batches(0..u64::MAX);
        for index in 0_usize.. {
            self.add(learner, &mut gradients, &mut batches)?;
            if index > 0 {
                (count, spent) = (count + 1, spent + began.elapsed());
            }
            let ends = spent >= self.timed || Instant::now() >= limit;
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

    /// Adds the next micro-batch, unless it is to stop.
    fn add(
        &self,
        learner: &mut Learner,
        gradients: &mut Gradients,
        batches: &mut Batches<'_>,
    ) -> Result<(), RunError> {
        // Several processes wait for each other.
        let alone = learner.collective.world() == 1;
        let stop = || alone && self.stop.load(Ordering::Relaxed);
        let Some(batch) = batches.next_unless(stop) else { return Err(RunError::Stopped) };
        let batch = micro_batch(&batch?, self.config, &**self.source, &learner.device());
        let is_added = pool::run(|| learner.add(gradients, &batch, &StepInfo::FIRST, &stop));
        if is_added && !stop() { Ok(()) } else { Err(RunError::Stopped) }
    }
}

/// The time of an update. What it finds is not looked at.
fn update(learner: &mut Learner, gradients: Gradients) -> Duration {
    let began = Instant::now();
    let _ = pool::run(|| learner.update(gradients, &StepInfo::FIRST));
    began.elapsed()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::config_text::parse_override;
    use esvit_data::{Image, SourceError};
    use esvit_nn::Solo;

    const TINY: [&str; 13] = [
        "model.arch=custom",
        "model.img_size=16",
        "model.embed_dim=4",
        "model.depths=[1,1]",
        "model.num_heads=[1,2]",
        "model.window_size=2",
        "views.global_size=16",
        "views.local_counts=[0]",
        "train.precision=f32",
        "train.epochs=1",
        "data.workers=1",
        "data.prefetch=1",
        "knn.every=0",
    ];

    fn config(more: &[&str]) -> Config {
        let layers = TINY.iter().chain(more).map(|text| parse_override(text).unwrap());
        Config::resolve(layers.collect()).unwrap()
    }

    /// 100 images that take some time to read, and how many were read.
    struct Slow {
        wait: Duration,
        read: AtomicUsize,
    }

    impl Source for Slow {
        fn len(&self) -> usize {
            100
        }

        fn name(&self, index: usize) -> String {
            index.to_string()
        }

        fn label(&self, _index: usize) -> Option<u32> {
            None
        }

        fn classes(&self) -> &[String] {
            &[]
        }

        fn load(&self, index: usize) -> Result<Image, SourceError> {
            self.read.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(self.wait);
            Ok(Image::new(24, 24, vec![index as u8; 24 * 24 * 3]).unwrap())
        }
    }

    /// The time of a step, and how many images were read for it.
    fn timed(config: &Config, wait: u64, timed: u64) -> (StepTime, usize) {
        let [wait, timed] = [wait, timed].map(Duration::from_millis);
        let slow = Arc::new(Slow { wait, read: AtomicUsize::new(0) });
        let source: Arc<dyn Source> = slow.clone();
        let time = step_time(config, &source, &Solo::shared(), timed).unwrap();
        (time, slow.read.load(Ordering::SeqCst))
    }

    /// One image stands for 64, however they are cut, and two micro-batches of two for all that are compared.
    #[test]
    fn a_slow_step_is_timed_on_few_images() {
        let small = ["objective.head.out_dim=8", "objective.head.hidden_dim=8"];
        for cut in ["train.micro_batch=64", "train.micro_batch=16", "train.micro_batch=1"] {
            let config = config(&[&small[..], &["train.batch_size=64", cut]].concat());
            let (time, read) = timed(&config, 30, 20);
            assert_eq!(read, 1, "{cut}");
            assert!(time.first >= Duration::from_millis(64 * 30) && time.later == time.first);
        }
        let compared = ["objective.name=simclr", "train.batch_size=16", "train.micro_batch=4"];
        let (time, read) = timed(&config(&compared), 30, 20);
        assert_eq!(read, 4);
        assert!(time.first >= Duration::from_millis(16 * 30));
    }

    #[test]
    fn a_fast_step_is_timed_whole() {
        let small = ["objective.head.out_dim=8", "objective.head.hidden_dim=8"];
        let batch = ["train.batch_size=8", "train.micro_batch=4"];
        let (time, read) = timed(&config(&[small, batch].concat()), 0, 300);
        assert!(read > 8 && time.first > Duration::ZERO && time.later > Duration::ZERO, "{read}");
    }

    #[test]
    fn long_runs_are_timed_longer() {
        let config = config(&["train.batch_size=8"]);
        let steps = [1, 1_000_000_000_000].map(|steps| worth_timing(&config, steps));
        assert_eq!(steps, [Duration::from_millis(50), TIMED]);
        let mut config = config;
        for (time, expected) in [("1s", 50), ("20s", 200), ("5m", 3000), ("2h", 4000)] {
            config.train.time = Some(time.parse().unwrap());
            assert_eq!(worth_timing(&config, 1), Duration::from_millis(expected), "{time}");
        }
    }
}
