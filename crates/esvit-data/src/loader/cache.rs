//! A cache of decoded images, so that small sets are decoded only once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Image;

/// Caches images up to a number of bytes, without eviction: in a random order, all images are
/// equally likely to be needed next.
pub(super) struct Cache {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: usize,
    images: HashMap<usize, Arc<Image>>,
}

impl Cache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    pub(super) fn get(&self, sample: usize) -> Option<Arc<Image>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.images.get(&sample).cloned()
    }

    /// The share of `images` images that will be cached, by the size of those that are.
    pub(super) fn share(&self, images: usize) -> f64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let all = state.bytes as f64 / state.images.len().max(1) as f64 * images as f64;
        if all == 0.0 { 0.0 } else { (self.max_bytes as f64 / all).min(1.0) }
    }

    pub(super) fn insert(&self, sample: usize, image: &Arc<Image>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = state.bytes + image.pixels().len();
        if bytes <= self.max_bytes && !state.images.contains_key(&sample) {
            state.bytes = bytes;
            state.images.insert(sample, Arc::clone(image));
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
            cache.insert(sample, &image);
        }
        assert!(cache.get(7).is_some() && cache.get(8).is_some());
        assert!(cache.get(9).is_none());
    }

    #[test]
    fn the_share_that_fits_follows_from_the_first_images() {
        let cache = Cache::new(100);
        assert_eq!(cache.share(8), 0.0, "nothing is known");
        cache.insert(3, &Arc::new(Image::filled(5, 1, [1; 3])));
        cache.insert(4, &Arc::new(Image::filled(5, 3, [1; 3])));
        assert_eq!((cache.share(2), cache.share(3), cache.share(8)), (1.0, 1.0, 100.0 / 240.0));
        assert_eq!(Cache::new(0).share(5), 0.0);
    }

    #[test]
    fn can_be_filled_exactly() {
        let image = Arc::new(Image::filled(4, 4, [1; 3]));
        for (max_bytes, expected) in [(95, [true, false]), (96, [true, true]), (47, [false, false])]
        {
            let cache = Cache::new(max_bytes);
            [0, 1].iter().for_each(|&sample| cache.insert(sample, &image));
            assert_eq!([0, 1].map(|sample| cache.get(sample).is_some()), expected, "{max_bytes}");
        }
    }

    #[test]
    fn gives_back_the_image_of_the_sample() {
        let cache = Cache::new(1000);
        for sample in [3, 5] {
            cache.insert(sample, &Arc::new(Image::filled(2, 2, [sample as u8; 3])));
        }
        assert_eq!(cache.get(5).unwrap().pixel(0, 0), Some([5; 3]));
    }
}
