//! A cache of decoded images, so that small sets are decoded only once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Image;

/// Caches images up to a number of bytes, without eviction: in a random order, all images are
/// equally likely to be needed next.
pub(super) struct Cache {
    room: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    images: HashMap<usize, Arc<Image>>,
}

impl Cache {
    pub(super) fn new(room: usize) -> Self {
        Self { room, kept: Mutex::default() }
    }

    pub(super) fn get(&self, sample: usize) -> Option<Arc<Image>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.images.get(&sample).cloned()
    }

    pub(super) fn offer(&self, sample: usize, image: &Arc<Image>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = kept.bytes + image.pixels().len();
        if bytes <= self.room && !kept.images.contains_key(&sample) {
            kept.bytes = bytes;
            kept.images.insert(sample, Arc::clone(image));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits() {
        let cache = Cache::new(100);
        let image = Arc::new(Image::filled(4, 4, [1; 3]));
        for sample in [7, 7, 8, 9] {
            cache.offer(sample, &image);
        }
        assert!(cache.get(7).is_some() && cache.get(8).is_some());
        assert!(cache.get(9).is_none());
    }

    #[test]
    fn can_be_filled_exactly() {
        let image = Arc::new(Image::filled(4, 4, [1; 3]));
        for (room, expected) in [(95, [true, false]), (96, [true, true]), (47, [false, false])] {
            let cache = Cache::new(room);
            [0, 1].iter().for_each(|&sample| cache.offer(sample, &image));
            assert_eq!([0, 1].map(|sample| cache.get(sample).is_some()), expected, "{room}");
        }
    }

    #[test]
    fn gives_back_the_image_of_the_sample() {
        let cache = Cache::new(1000);
        for sample in [3, 5] {
            cache.offer(sample, &Arc::new(Image::filled(2, 2, [sample as u8; 3])));
        }
        assert_eq!(cache.get(5).unwrap().pixel(0, 0), Some([5; 3]));
    }
}
