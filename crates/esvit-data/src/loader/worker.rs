//! Worker threads of the loader: a job is all views of one image.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use esvit_kernels::rng::Rng;

use super::broken::Broken;
use super::cache::Cache;
use super::{Batch, JobResult, LoaderConfig, LoaderError};
use crate::{Conversion, Crops, Image, Interpolation, Source, ViewsConfig, resize};

/// RNG purpose of replacements for broken images.
const REPLACEMENT: u64 = u64::from_be_bytes(*b"replace ");

/// Attempts to replace a broken image. With half of the images broken, all of them fail once in
/// 2^1000; with 99 % broken, once in 20,000.
const ATTEMPTS: u64 = 1000;

/// State that all workers of a loader share.
pub(super) struct Shared {
    pub(super) source: Arc<dyn Source>,
    pub(super) batch: usize,
    pub(super) rank: usize,
    /// Images of this process in a step.
    pub(super) share: usize,
    pub(super) micro_batch: usize,
    /// Micro-batches of this process in a step.
    pub(super) parts: usize,
    pub(super) seed: u64,
    repeat: usize,
    pub(super) broken: Broken,
    views: ViewsConfig,
    conversion: Conversion,
    max_side: u32,
    sizes: Vec<u32>,
    cache: Cache,
}

/// A micro-batch in preparation.
pub(super) struct Pending {
    epoch: u64,
    /// Its step and its place in it.
    place: [u64; 2],
    /// Index of its first image in the epoch's order.
    first: usize,
    order: Arc<Vec<usize>>,
    samples: Vec<AtomicU64>,
    /// One lock per view, so that workers can write different views at the same time.
    views: Vec<Mutex<Crops>>,
    /// Number of images still missing.
    left: AtomicUsize,
    stop: Arc<AtomicBool>,
}

/// One image of a micro-batch.
pub(super) struct Job {
    pub(super) pending: Arc<Pending>,
    pub(super) slot: usize,
    /// Receives the result when the micro-batch is complete or has failed.
    pub(super) result_sender: Sender<JobResult>,
}

impl Pending {
    pub(super) fn new(
        epoch: u64,
        place: [u64; 2],
        first: usize,
        order: Arc<Vec<usize>>,
        shared: &Shared,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let images = shared.micro_batch;
        let crops = |&size: &u32| Mutex::new(Crops::new(images, size as usize));
        Self {
            epoch,
            place,
            first,
            order,
            samples: (0..images).map(|_| AtomicU64::new(0)).collect(),
            views: shared.sizes.iter().map(crops).collect(),
            left: AtomicUsize::new(images),
            stop,
        }
    }

    /// The complete micro-batch.
    pub(super) fn take(&self, wait_time: Duration) -> Batch {
        let take = |view: &Mutex<Crops>| {
            let mut view = view.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *view, Crops::new(0, 0))
        };
        Batch {
            epoch: self.epoch,
            step: self.place[0],
            part: self.place[1] as usize,
            samples: self.samples.iter().map(|sample| sample.load(Ordering::Relaxed)).collect(),
            views: self.views.iter().map(take).collect(),
            wait_time,
        }
    }
}

impl Shared {
    pub(super) fn new(source: Arc<dyn Source>, views: ViewsConfig, config: &LoaderConfig) -> Self {
        let share = config.batch / config.world;
        let micro_batch = if config.micro_batch == 0 { share } else { config.micro_batch };
        Self {
            batch: config.batch,
            rank: config.rank,
            share,
            micro_batch,
            parts: share / micro_batch,
            seed: config.seed,
            repeat: config.repeat as usize,
            broken: Broken::new(source.len(), config.max_broken),
            sizes: views.sizes(),
            cache: Cache::new(config.cache_bytes),
            max_side: config.max_side,
            conversion: Conversion { levels: config.levels, background: config.background },
            source,
            views,
        }
    }

    /// The share of images that will be cached.
    pub(super) fn cached_share(&self) -> f64 {
        self.cache.share(self.source.len())
    }

    /// Images per epoch, repetitions included.
    pub(super) fn samples_per_epoch(&self) -> usize {
        self.source.len() * self.repeat
    }

    /// Runs jobs until the channel is closed.
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        for Job { pending, slot, result_sender } in jobs {
            if pending.stop.load(Ordering::Relaxed) {
                continue;
            }
            let mut name = String::new();
            // Unwind-safe: a batch whose job panicked is discarded.
            let result = catch_unwind(AssertUnwindSafe(|| self.fill(&pending, slot, &mut name)))
                .unwrap_or_else(|panic| {
                    Err(LoaderError::Panic { name, message: panic_message(&*panic) })
                });
            // The last job of a batch reports completion; the ordering makes the others' writes
            // visible. A full or closed channel means that an error was reported before.
            match result {
                Ok(()) if pending.left.fetch_sub(1, Ordering::AcqRel) == 1 => {
                    let _ = result_sender.try_send(Ok(()));
                }
                Ok(()) => {}
                Err(error) => {
                    let _ = result_sender.try_send(Err(error));
                }
            }
        }
    }

    /// Writes all views of one image. `name` is set to the current image, for errors.
    fn fill(&self, pending: &Pending, slot: usize, name: &mut String) -> JobResult {
        let position = pending.first + slot;
        let len = self.source.len();
        let (round, sample) = (pending.order[position] / len, pending.order[position] % len);
        let (sample, image) = self.load_or_replace(pending.epoch, position, sample, name)?;
        pending.samples[slot].store(sample as u64, Ordering::Relaxed);
        // Each repetition of an image in an epoch has views of its own.
        let key = (round * len + sample) as u64;
        let views = self
            .views
            .views(&image, self.seed, pending.epoch, key)
            .map_err(|source| LoaderError::Views { name: name.clone(), source })?;
        for (view, batch) in views.iter().zip(&pending.views) {
            batch.lock().unwrap_or_else(PoisonError::into_inner).set(slot, view);
        }
        Ok(())
    }

    /// Image `sample` or, if it is broken, its replacement for `position` in the epoch. The choice
    /// does not depend on which broken images other threads have found.
    fn load_or_replace(
        &self,
        epoch: u64,
        position: usize,
        mut sample: usize,
        name: &mut String,
    ) -> Result<(usize, Arc<Image>), LoaderError> {
        for attempt in 0..ATTEMPTS {
            *name = self.source.name(sample);
            if let Some(image) = self.load(sample, name)? {
                return Ok((sample, image));
            }
            let at = [epoch, position as u64, attempt];
            let len = self.source.len() as u64;
            sample = Rng::for_purpose(self.seed, REPLACEMENT, at).below(len) as usize;
        }
        Err(self.broken.too_many())
    }

    /// The decoded image, or `None` if it is broken.
    fn load(&self, sample: usize, name: &str) -> Result<Option<Arc<Image>>, LoaderError> {
        if let Some(image) = self.cache.get(sample) {
            return Ok(Some(image));
        }
        if self.broken.contains(sample) {
            return Ok(None);
        }
        match self.source.load_as(sample, &self.conversion) {
            Ok(image) => {
                let image = Arc::new(shrunk(image, self.max_side));
                self.cache.insert(sample, &image);
                Ok(Some(image))
            }
            Err(reason) => {
                self.broken.record(sample, name.to_owned(), &reason)?;
                Ok(None)
            }
        }
    }
}

/// The image with a shorter side of at most `side` pixels, if that is not 0.
fn shrunk(image: Image, side: u32) -> Image {
    let (width, height) = (image.width(), image.height());
    let shorter = width.min(height);
    if side == 0 || shorter <= side {
        return image;
    }
    let scaled = |length: u32| {
        let length = (f64::from(length) * f64::from(side) / f64::from(shorter)).round();
        length as u32
    };
    // No side is 0.
    resize(&image, scaled(width), scaled(height), Interpolation::Bilinear).unwrap_or(image)
}

/// The message of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_is_limited() {
        let sides = |width, height, side| {
            let image = shrunk(Image::filled(width, height, [7, 8, 9]), side);
            assert!(image.pixels().as_chunks::<3>().0.iter().all(|pixel| *pixel == [7, 8, 9]));
            (image.width(), image.height())
        };
        assert_eq!(sides(30, 20, 0), (30, 20));
        assert_eq!(sides(30, 20, 20), (30, 20));
        assert_eq!(sides(30, 20, 10), (15, 10));
        assert_eq!(sides(20, 31, 10), (10, 16));
        assert_eq!(sides(1, 900, 10), (1, 900));
        assert_eq!(sides(2, 900, 1), (1, 450));
    }
}
