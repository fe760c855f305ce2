//! Decoded pictures that are kept, so that small sets are decoded only once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Picture;

/// Keeps the pictures that come first, until the room is used. Nothing is thrown out: with a
/// random order, every picture is as good as any other.
pub(super) struct Cache {
    room: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    pictures: HashMap<usize, Arc<Picture>>,
}

impl Cache {
    pub(super) fn new(room: usize) -> Self {
        Self { room, kept: Mutex::default() }
    }

    pub(super) fn get(&self, sample: usize) -> Option<Arc<Picture>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pictures.get(&sample).cloned()
    }

    pub(super) fn offer(&self, sample: usize, picture: &Arc<Picture>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = kept.bytes + picture.pixels().len();
        if bytes <= self.room && !kept.pictures.contains_key(&sample) {
            kept.bytes = bytes;
            kept.pictures.insert(sample, Arc::clone(picture));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits() {
        let cache = Cache::new(100);
        let picture = Arc::new(Picture::filled(4, 4, [1; 3]));
        for sample in [7, 7, 8, 9] {
            cache.offer(sample, &picture);
        }
        assert!(cache.get(7).is_some() && cache.get(8).is_some());
        assert!(cache.get(9).is_none());
    }
}
