//! Images that cannot be loaded.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{LoaderError, SourceError, list_reasons};

/// Number of images that an error names.
const MAX_NAMED: usize = 10;

/// An image that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenImage {
    /// Its index in the source.
    pub sample: u64,
    /// Its path or name.
    pub name: String,
    /// Why it could not be loaded, in one line without its name.
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
            // Lists of broken images have one hint for all.
            let reason = reason.reason().split("\nhint:").take(1).collect();
            let image = BrokenImage { sample: sample as u64, name, reason };
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
            first: found.all.values().take(MAX_NAMED).cloned().collect(),
        }
    }

    pub(super) fn all(&self) -> Vec<BrokenImage> {
        self.found().all.values().cloned().collect()
    }

    pub(super) fn drain_new(&self) -> Vec<BrokenImage> {
        std::mem::take(&mut self.found().new)
    }
}

/// The message of [`LoaderError::TooManyBroken`].
pub(super) fn describe(count: usize, len: usize, limit: usize, first: &[BrokenImage]) -> String {
    let images = first.iter().map(|image| (&image.name, &image.reason));
    let text =
        format!("{count} of {len} images are broken, and at most {limit} may be (`max_broken`)")
            + &list_reasons(images, count);
    text + "\nhint: mend or remove them"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DecodeError;

    fn record(broken: &Broken, sample: usize) -> bool {
        let name = format!("{sample}.png");
        let reason = SourceError::Decode { name: name.clone(), source: DecodeError::Empty };
        broken.record(sample, name, &reason).is_ok()
    }

    #[test]
    fn the_share_itself_is_allowed() {
        let broken = Broken::new(10, 0.25);
        assert_eq!([4, 2, 4, 7].map(|sample| record(&broken, sample)), [true, true, true, false]);
    }

    #[test]
    fn not_all_may_be_broken() {
        let broken = Broken::new(3, 1.0);
        assert_eq!([0, 1, 2].map(|sample| record(&broken, sample)), [true, true, false]);
        assert_eq!(broken.too_many().to_string().lines().count(), 5, "all three are named");
    }

    #[test]
    fn ten_are_named_in_their_order_and_the_others_counted() {
        let broken = Broken::new(100, 1.0);
        (0..22).rev().for_each(|sample| assert!(record(&broken, sample)));
        let text = broken.too_many().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 13);
        assert_eq!(lines[0], "22 of 100 images are broken, and at most 100 may be (`max_broken`)");
        assert_eq!(lines[1], "  `0.png`: the file is empty (0 bytes)");
        assert_eq!(lines[10], "  `9.png`: the file is empty (0 bytes)");
        assert_eq!(lines[11..], ["  and 12 more", "hint: mend or remove them"]);
    }

    #[test]
    fn each_is_told_once() {
        let broken = Broken::new(100, 1.0);
        let new = || broken.drain_new().iter().map(|b| b.sample).collect::<Vec<_>>();
        [5, 3, 5].iter().for_each(|&sample| assert!(record(&broken, sample)));
        assert_eq!(new(), [5, 3]);
        record(&broken, 3);
        assert!(new().is_empty());
        assert!(broken.contains(3) && !broken.contains(4));
        assert_eq!(broken.all().iter().map(|b| b.sample).collect::<Vec<_>>(), [3, 5]);
    }
}
