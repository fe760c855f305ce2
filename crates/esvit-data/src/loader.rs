//! Batches of views, prefetched by worker threads.
//!
//! A step's images come in micro-batches, so that few of them are in memory. A micro-batch is one job
//! per image. Workers take jobs in order, so that all of them work on the micro-batch that is needed
//! next; a job decodes its image once for all views and writes these into the micro-batch. They are
//! returned in order and depend only on seed and step, not on threads.

mod broken;
mod cache;
mod worker;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_settings::{SettingError, check, settings};

pub use broken::BrokenImage;

use self::worker::{Job, Pending, Shared};
use crate::{Background, Crops, ImageError, Levels, Source, ViewsConfig, printable};

/// Most worker threads: more are a typing error, and no machine has as many processors.
pub const MAX_WORKERS: usize = 1024;

/// How often a wait for a batch asks whether to stop.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How long a loader that is dropped waits for workers that are reading.
const END_WITHIN: Duration = Duration::from_secs(2);

/// RNG purpose of the order of an epoch.
const ORDER: u64 = u64::from_be_bytes(*b"  order ");

settings! {
    /// Settings of a loader.
    pub struct LoaderConfig {
        /// Images per step, over all processes.
        pub batch: usize = 64,
        /// Images that are returned at once, of this process; 0 for its whole share of a step.
        pub micro_batch: usize = 0,
        /// Number of processes, which share every batch.
        pub world: usize = 1,
        /// This process, from 0: it gets the images of its place in the batch.
        pub rank: usize = 0,
        /// How often each image comes up in an epoch, with other views every time.
        pub repeat: u32 = 1,
        /// Worker threads; 0 means one per processor.
        pub workers: usize = 0,
        /// Micro-batches to prepare ahead.
        pub prefetch: usize = 2,
        /// Seed of the order and of the views.
        pub seed: u64 = 0,
        /// Largest share of images that may be broken.
        pub max_broken: f64 = 0.5,
        /// Larger images are shrunk to this shorter side, in pixels, when they are read; 0 for none.
        pub max_side: u32 = 0,
        /// Cache for decoded images, in bytes.
        pub cache_bytes: usize = 512 << 20,
        /// What becomes black and white in images of more than 8 bits.
        pub levels: Levels = Levels::default(),
        /// What transparent pixels show.
        pub background: Background = Background::Mean,
    }
}

/// Why there is no (further) batch.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A setting is invalid.
    #[error(transparent)]
    Config(#[from] SettingError),
    /// Not even one batch can be filled.
    #[error(
        "{len} images do not fill one batch of {batch}\n\
         hint: lower `train.batch_size` to at most {len}, add images, or let each come up \
         {times} times in an epoch with `data.repeat={times}`",
        times = batch.div_ceil((*len).max(1))
    )]
    TooFewImages {
        /// Number of images in the source.
        len: usize,
        /// Images per batch.
        batch: usize,
    },
    /// More images are broken than allowed, or all of them.
    #[error("{}", broken::describe(*count, *len, *limit, first))]
    TooManyBroken {
        /// Number of broken images so far.
        count: usize,
        /// Number of images in the source.
        len: usize,
        /// Number of broken images allowed.
        limit: usize,
        /// The first ten of them.
        first: Vec<BrokenImage>,
    },
    /// Views of an image could not be made.
    #[error("cannot make views of `{}`: {source}", printable(name))]
    Views {
        /// Path or name of the image.
        name: String,
        /// What went wrong.
        source: ImageError,
    },
    /// The program is at fault.
    #[error(
        "loading `{}` panicked: {message}\nhint: leave that image out and report the fault",
        printable(name)
    )]
    Panic {
        /// Path or name of the image.
        name: String,
        /// The panic's message.
        message: String,
    },
    /// The workers ended before the batch was ready.
    #[error("the loader's worker threads ended\nhint: report the fault")]
    WorkersEnded,
    /// No thread could be started.
    #[error("cannot start a worker thread: {0}\nhint: lower `workers`")]
    Spawn(#[source] std::io::Error),
}

/// The result of preparing a batch.
type JobResult = Result<(), LoaderError>;

/// A micro-batch of views: those of this process.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The step, from 0, counted over all epochs.
    pub step: u64,
    /// Its place among the micro-batches of the step, from 0.
    pub part: usize,
    /// Index in the source of every image, replacements included.
    pub samples: Vec<u64>,
    /// The crops of every view, in the order of [`ViewsConfig::sizes`].
    pub views: Vec<Crops>,
    /// Time spent waiting for the batch.
    pub wait_time: Duration,
}

/// Prefetches batches of views of a source's images.
pub struct Loader {
    shared: Arc<Shared>,
    prefetch: usize,
    /// `None` only while the loader is dropped.
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts the workers; an error if a setting is invalid or the images do not fill a batch.
    pub fn new(
        source: Arc<dyn Source>,
        views: ViewsConfig,
        config: LoaderConfig,
    ) -> Result<Self, LoaderError> {
        views.validate()?;
        check(config.batch > 0, "batch", config.batch, "a batch has at least 1 image")?;
        let is_shared = config.rank < config.world && config.batch.is_multiple_of(config.world);
        let need = format!("{} processes share it equally", config.world);
        check(is_shared, "batch", config.batch, need)?;
        let share = config.batch / config.world;
        let fits = config.micro_batch == 0 || share.is_multiple_of(config.micro_batch);
        let need = format!("the {share} images of a step are cut into equal parts");
        check(fits, "micro_batch", config.micro_batch, need)?;
        let share = (0.0..=1.0).contains(&config.max_broken);
        check(share, "max_broken", config.max_broken, "give a share between 0 and 1")?;
        let need = "every image comes up at least once in an epoch";
        check(config.repeat > 0, "repeat", config.repeat, need)?;
        let need = format!("at most {MAX_WORKERS} threads can be started");
        check(config.workers <= MAX_WORKERS, "workers", config.workers, need)?;
        let visits = source.len() as u64 * u64::from(config.repeat);
        let need = "it times the number of images must be at most 268435456";
        check(visits <= 1 << 28, "repeat", config.repeat, need)?;
        if (visits as usize) < config.batch {
            return Err(LoaderError::TooFewImages { len: source.len(), batch: config.batch });
        }
        let count = match config.workers {
            0 => pool::threads(),
            count => count,
        };
        // Unbounded: `Batches` has at most `prefetch + 1` micro-batches in flight, and a sender that
        // never blocks cannot take part in a deadlock.
        let (jobs, receiver) = unbounded();
        let mut loader = Self {
            prefetch: config.prefetch,
            shared: Arc::new(Shared::new(source, views, &config)),
            jobs: Some(jobs),
            workers: Vec::new(),
        };
        for number in 0..count {
            let (shared, jobs) = (Arc::clone(&loader.shared), receiver.clone());
            let worker = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || shared.run(&jobs))
                .map_err(LoaderError::Spawn)?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// Steps per epoch. Images that do not fill the last one are left out, a different set in each
    /// epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.shared.samples_per_epoch() / self.shared.batch) as u64
    }

    /// The share of images that the cache will hold, by the size of those read so far.
    pub fn cached_share(&self) -> f64 {
        self.shared.cached_share()
    }

    /// Micro-batches per step.
    pub fn parts(&self) -> usize {
        self.shared.parts
    }

    /// The order of an epoch, a permutation of its visits; visit `v` is of image `v % len`.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shared.samples_per_epoch()).collect();
        Rng::for_purpose(self.shared.seed, ORDER, [epoch, 0, 0]).shuffle(&mut order);
        order
    }

    /// The micro-batches of `steps`, counted over all epochs. Prefetching starts at once and
    /// continues across epochs.
    pub fn batches(&self, steps: Range<u64>) -> Batches<'_> {
        let mut batches = Batches {
            loader: self,
            remaining: steps,
            part: 0,
            order: (u64::MAX, Arc::default()),
            in_flight: VecDeque::new(),
            stop: Arc::default(),
        };
        batches.fill_queue(self.prefetch);
        batches
    }

    /// All broken images found so far, by index.
    pub fn broken(&self) -> Vec<BrokenImage> {
        self.shared.broken.all()
    }

    /// The broken images found since the last call, each reported once.
    pub fn take_new_broken(&self) -> Vec<BrokenImage> {
        self.shared.broken.drain_new()
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("images", &self.shared.source.len())
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Dropping the sender closes the channel, which ends the workers.
        self.jobs = None;
        // A worker that reads from a drive that does not answer is left alone: it ends with its
        // job, or with the process.
        let until = Instant::now() + END_WITHIN;
        while self.workers.iter().any(|worker| !worker.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        for worker in self.workers.drain(..).filter(JoinHandle::is_finished) {
            // A worker catches panics of its jobs, so that there is nothing to report.
            let _ = worker.join();
        }
    }
}

/// An iterator over micro-batches, in order. It ends after an error.
pub struct Batches<'a> {
    loader: &'a Loader,
    /// Steps of which micro-batches are not started yet.
    remaining: Range<u64>,
    /// The first such micro-batch of the first such step.
    part: usize,
    /// An epoch and its order.
    order: (u64, Arc<Vec<usize>>),
    /// Micro-batches in flight, in order.
    in_flight: VecDeque<(Arc<Pending>, Receiver<JobResult>)>,
    /// Makes workers skip the remaining jobs.
    stop: Arc<AtomicBool>,
}

impl Batches<'_> {
    fn fill_queue(&mut self, count: usize) {
        while self.in_flight.len() < count && !self.remaining.is_empty() {
            let (step, part) = (self.remaining.start, self.part);
            self.part = (part + 1) % self.loader.parts();
            if self.part == 0 {
                self.remaining.start += 1;
            }
            self.start(step, part);
        }
    }

    fn start(&mut self, step: u64, part: usize) {
        let (per_epoch, batch) = (self.loader.steps_per_epoch(), self.loader.shared.batch);
        let epoch = step / per_epoch;
        if self.order.0 != epoch {
            self.order = (epoch, Arc::new(self.loader.order(epoch)));
        }
        let shared = &self.loader.shared;
        let first = (step % per_epoch) as usize * batch
            + shared.rank * shared.share
            + part * shared.micro_batch;
        let pending = Arc::new(Pending::new(
            epoch,
            [step, part as u64],
            first,
            Arc::clone(&self.order.1),
            shared,
            Arc::clone(&self.stop),
        ));
        // Capacity 1: only the first message of a batch counts, completion or first error.
        let (result_sender, receiver) = bounded(1);
        for slot in 0..shared.micro_batch {
            let job =
                Job { pending: Arc::clone(&pending), slot, result_sender: result_sender.clone() };
            // If the workers are gone, so are all senders of results, which `next` notices.
            let _ = self.loader.jobs.as_ref().map(|jobs| jobs.send(job));
        }
        self.in_flight.push_back((pending, receiver));
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.in_flight.clear();
        self.remaining = 0..0;
    }
}

impl Batches<'_> {
    /// The next micro-batch, or `None` if there are no more, or if `should_stop` says so while it is
    /// waited for, as from a network drive that hangs; it is asked every few milliseconds. None
    /// follows then.
    pub fn next_unless(
        &mut self,
        should_stop: impl Fn() -> bool,
    ) -> Option<Result<Batch, LoaderError>> {
        self.fill_queue(self.loader.prefetch + 1);
        let (pending, receiver) = self.in_flight.pop_front()?;
        let began = Instant::now();
        let result = loop {
            match receiver.recv_timeout(ASK_EVERY) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Disconnected) => break Err(LoaderError::WorkersEnded),
                Err(RecvTimeoutError::Timeout) if should_stop() => {
                    self.end();
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let wait_time = began.elapsed();
        if result.is_err() {
            self.end();
        }
        Some(result.map(|()| pending.take(wait_time)))
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_unless(|| false)
    }
}

impl Drop for Batches<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
