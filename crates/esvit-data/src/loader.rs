//! Batches of views, prepared on worker threads ahead of their use.
//!
//! A batch is cut into one job per image. Workers take jobs in order, so the batch that is
//! needed first is finished first, by all of them together; every job decodes its image once
//! for all views and writes them into the batch. Batches are handed out in the order of their
//! steps. What a batch holds depends only on the seed and the step, never on the threads.

mod broken;
mod cache;
mod worker;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use esvit_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

pub use broken::BrokenImage;

use self::worker::{Job, Pending, Shared};
use crate::augment::SliceLength;
use esvit_settings::{SettingError, check};

use crate::{ImageError, Source, ViewsConfig};

/// Tells the numbers that order an epoch from others of the same seed.
const ORDER: u64 = u64::from_be_bytes(*b"  order ");

/// How images are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Images per batch. Default 64.
    pub batch: usize,
    /// How often each image comes up in one epoch, every time with other views. Default 1.
    pub repeat: u32,
    /// Worker threads; 0 (the default) means one per processor.
    pub workers: usize,
    /// Batches that are prepared while one is used. Default 2.
    pub prefetch: usize,
    /// Seed of the order and of the views. Default 0.
    pub seed: u64,
    /// The run fails when more than this share of the images is broken. Default 0.5.
    pub max_broken: f64,
    /// Decoded images are kept in memory up to this many bytes. Default 512 MiB.
    pub cache_bytes: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch: 64,
            repeat: 1,
            workers: 0,
            prefetch: 2,
            seed: 0,
            max_broken: 0.5,
            cache_bytes: 512 << 20,
        }
    }
}

/// Why no (more) batches come.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] SettingError),
    /// Not even one batch can be filled.
    #[error(
        "{len} images do not fill one batch of {batch}; lower the batch size to at most {len}, add \
         images, or let each come up several times in an epoch with `repeat`"
    )]
    TooFewImages {
        /// Images of the source.
        len: usize,
        /// Images per batch.
        batch: usize,
    },
    /// More images are broken than allowed, or all of them.
    #[error("{}", broken::describe(*count, *len, *limit, first))]
    TooManyBroken {
        /// Broken images so far.
        count: usize,
        /// Images of the source.
        len: usize,
        /// Broken images allowed.
        limit: usize,
        /// The first twenty of them.
        first: Vec<BrokenImage>,
    },
    /// Views of an image could not be made.
    #[error("cannot make views of `{name}`: {error}")]
    Views {
        /// Path or name of the image.
        name: String,
        /// What went wrong.
        error: ImageError,
    },
    /// A view does not fit its place in the batch.
    #[error(transparent)]
    Write(#[from] SliceLength),
    /// The program is at fault.
    #[error("loading `{name}` panicked: {message}; leave that image out and report the fault")]
    Panic {
        /// Path or name of the image.
        name: String,
        /// What the panic said.
        message: String,
    },
    /// The workers ended before the batch was ready.
    #[error("the loader's worker threads ended; report the fault")]
    WorkersEnded,
    /// No thread could be started.
    #[error("cannot start a worker thread: {0}; lower `workers`")]
    Spawn(std::io::Error),
}

/// Whether a batch is complete.
type Outcome = Result<(), LoaderError>;

/// The views of some images.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Passes over the images before this one.
    pub epoch: u64,
    /// Batches since the beginning of the run, over all epochs.
    pub step: u64,
    /// The images that are really in the batch, by their index in the source.
    pub samples: Vec<u64>,
    /// One buffer per view, `[batch, 3, size, size]`, in the order of [`ViewsConfig::sizes`].
    pub views: Vec<Vec<f32>>,
    /// How long the batch was waited for.
    pub waited: Duration,
}

/// Prepares batches of views of a source's images.
pub struct Loader {
    shared: Arc<Shared>,
    prefetch: usize,
    /// `None` only while the loader is dropped.
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Checks the settings and starts the workers.
    pub fn new(
        source: Arc<dyn Source>,
        views: ViewsConfig,
        config: LoaderConfig,
    ) -> Result<Self, LoaderError> {
        views.validate()?;
        check(config.batch > 0, "batch", config.batch, "a batch has at least 1 image")?;
        let share = (0.0..=1.0).contains(&config.max_broken);
        check(share, "max_broken", config.max_broken, "give a share between 0 and 1")?;
        let need = "every image comes up at least once in an epoch";
        check(config.repeat > 0, "repeat", config.repeat, need)?;
        if source.len().saturating_mul(config.repeat as usize) < config.batch {
            return Err(LoaderError::TooFewImages { len: source.len(), batch: config.batch });
        }
        let count = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        // Not bounded: `Batches` has at most `prefetch + 1` batches under way, and a sender that
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
                .spawn(move || shared.work(&jobs))
                .map_err(LoaderError::Spawn)?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// Batches per epoch. Images that do not fill the last batch are left out; which ones,
    /// changes from epoch to epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.shared.visits() / self.shared.batch) as u64
    }

    /// The order of an epoch's visits. Visit `v` is to image `v % len`.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shared.visits()).collect();
        Rng::for_purpose(self.shared.seed, ORDER, [epoch, 0, 0]).shuffle(&mut order);
        order
    }

    /// The batches of `steps`, counted from the beginning of the run over all epochs. Preparing
    /// goes on across the ends of epochs, and begins at once.
    pub fn batches(&self, steps: Range<u64>) -> Batches<'_> {
        let mut batches = Batches {
            loader: self,
            coming: steps,
            order: (u64::MAX, Arc::default()),
            under_way: VecDeque::new(),
            stop: Arc::default(),
        };
        batches.start_up_to(self.prefetch);
        batches
    }

    /// All broken images found so far, by index.
    pub fn broken(&self) -> Vec<BrokenImage> {
        self.shared.broken.all()
    }

    /// The broken images found since the last call, each reported once.
    pub fn take_new_broken(&self) -> Vec<BrokenImage> {
        self.shared.broken.take_new()
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
        // Without a sender the workers' prefetch ends, and so do they.
        self.jobs = None;
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs; nothing is left to be told here.
            let _ = worker.join();
        }
    }
}

/// An iterator over batches, in the order of their steps. It ends after an error.
pub struct Batches<'a> {
    loader: &'a Loader,
    /// Steps that are not begun.
    coming: Range<u64>,
    /// An epoch and its order.
    order: (u64, Arc<Vec<usize>>),
    /// Batches that are begun, the next one first.
    under_way: VecDeque<(Arc<Pending>, Receiver<Outcome>)>,
    /// Tells the workers that nobody waits any more.
    stop: Arc<AtomicBool>,
}

impl Batches<'_> {
    fn start_up_to(&mut self, count: usize) {
        while self.under_way.len() < count {
            let Some(step) = self.coming.next() else { return };
            self.start(step);
        }
    }

    fn start(&mut self, step: u64) {
        let (per_epoch, batch) = (self.loader.steps_per_epoch(), self.loader.shared.batch);
        let epoch = step / per_epoch;
        if self.order.0 != epoch {
            self.order = (epoch, Arc::new(self.loader.order(epoch)));
        }
        let first = (step % per_epoch) as usize * batch;
        let pending = Arc::new(Pending::new(
            epoch,
            step,
            first,
            Arc::clone(&self.order.1),
            &self.loader.shared,
            Arc::clone(&self.stop),
        ));
        // One place: of a batch only the first message counts, its end or its first error.
        let (done, wait) = bounded(1);
        for slot in 0..batch {
            let job = Job { pending: Arc::clone(&pending), slot, done: done.clone() };
            // If the workers are gone, all senders of `done` are too, which `next` notices.
            let _ = self.loader.jobs.as_ref().map(|jobs| jobs.send(job));
        }
        self.under_way.push_back((pending, wait));
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.under_way.clear();
        self.coming = 0..0;
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.start_up_to(self.loader.prefetch + 1);
        let (pending, wait) = self.under_way.pop_front()?;
        let began = Instant::now();
        let outcome = wait.recv().unwrap_or(Err(LoaderError::WorkersEnded));
        let waited = began.elapsed();
        if outcome.is_err() {
            self.end();
        }
        Some(outcome.map(|()| pending.take(waited)))
    }
}

impl Drop for Batches<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
