//! Images that cannot be loaded.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{LoaderError, SourceError};

/// Number of images that an error names.
const NAMED: usize = 20;

/// An image that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenImage {
    /// Its index in the source.
    pub sample: u64,
    /// Its path or name.
    pub name: String,
    /// Why it could not be loaded.
    pub reason: String,
}

/// All broken images found so far.
pub(super) struct Broken {
    /// Number of images in the source.
    len: usize,
    /// Number of them that may be broken.
    limit: usize,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    all: BTreeMap<usize, BrokenImage>,
    new: Vec<BrokenImage>,
}

impl Broken {
    pub(super) fn new(len: usize, max_broken: f64) -> Self {
        let limit = (max_broken * len as f64) as usize;
        Self { len, limit, found: Mutex::default() }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, sample: usize) -> bool {
        self.found().all.contains_key(&sample)
    }

    /// Adds a broken image; an error if there are now too many.
    pub(super) fn record(
        &self,
        sample: usize,
        name: String,
        reason: &SourceError,
    ) -> Result<(), LoaderError> {
        let mut found = self.found();
        if !found.all.contains_key(&sample) {
            let image = BrokenImage { sample: sample as u64, name, reason: reason.to_string() };
            found.new.push(image.clone());
            found.all.insert(sample, image);
        }
        let too_many = found.all.len() > self.limit || found.all.len() >= self.len;
        drop(found);
        if too_many { Err(self.too_many()) } else { Ok(()) }
    }

    /// The error that names the broken images.
    pub(super) fn too_many(&self) -> LoaderError {
        let found = self.found();
        LoaderError::TooManyBroken {
            count: found.all.len(),
            len: self.len,
            limit: self.limit,
            first: found.all.values().take(NAMED).cloned().collect(),
        }
    }

    pub(super) fn all(&self) -> Vec<BrokenImage> {
        self.found().all.values().cloned().collect()
    }

    pub(super) fn take_new(&self) -> Vec<BrokenImage> {
        std::mem::take(&mut self.found().new)
    }
}

/// The message of [`LoaderError::TooManyBroken`].
pub(super) fn describe(count: usize, len: usize, limit: usize, first: &[BrokenImage]) -> String {
    let mut text = format!(
        "{count} of {len} images are broken, and at most {limit} may be (`max_broken`); mend or \
         remove them"
    );
    for image in first {
        // Writing to a string does not fail. The reason names the file.
        let _ = write!(text, "\n  {}", image.reason);
    }
    if count > first.len() {
        let _ = write!(text, "\n  and {} more", count - first.len());
    }
    text
}
