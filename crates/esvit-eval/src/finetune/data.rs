//! Batches of labeled random crops.

use std::collections::HashSet;

use esvit_data::{Conversion, Crops, Image, ViewsConfig};
use esvit_kernels::rng::Rng;

use crate::labeled::LabeledSet;
use esvit_model::features::SkippedImage;

/// RNG purpose of the epoch order.
const ORDER_PURPOSE: u64 = 0xF17E;

/// A batch.
#[derive(Debug)]
pub struct Batch {
    /// The crops, one of each image.
    pub crops: Crops,
    /// Class index of each image.
    pub labels: Vec<u32>,
    /// Images that could not be read, unless already reported.
    pub left_out: Vec<SkippedImage>,
}

/// Makes batches of random crops. Augmentation is a function of seed, epoch and source index.
/// Unreadable images are left out, which makes their batches smaller.
pub struct Batches<'a> {
    set: &'a LabeledSet,
    views: ViewsConfig,
    /// Batch size, except for the last batch of an epoch.
    pub size: usize,
    seed: u64,
    broken: HashSet<usize>,
    conversion: Conversion,
}

impl<'a> Batches<'a> {
    /// Batches of at most `size` images, each the first of `views`.
    pub fn new(set: &'a LabeledSet, views: ViewsConfig, size: usize, seed: u64) -> Self {
        let size = size.clamp(1, set.images.len().max(1));
        let conversion = Conversion::default();
        Self { set, views, size, seed, broken: HashSet::new(), conversion }
    }

    /// The same batches of images that are loaded as `conversion` says.
    #[must_use]
    pub fn converted(self, conversion: Conversion) -> Self {
        Self { conversion, ..self }
    }

    /// Number of images that could not be read so far.
    pub fn left_out(&self) -> usize {
        self.broken.len()
    }

    /// Number of batches per epoch, including the last partial one.
    pub fn per_epoch(&self) -> u64 {
        self.set.images.len().div_ceil(self.size) as u64
    }

    /// Source indices of the images of an epoch, in order.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order = self.set.images.clone();
        Rng::for_purpose(self.seed, ORDER_PURPOSE, [epoch, 0, 0]).shuffle(&mut order);
        order
    }

    /// Loads and augments some images of an epoch.
    pub fn load(&mut self, epoch: u64, images: &[usize]) -> Batch {
        let images = images.iter().copied().filter(|index| !self.broken.contains(index));
        let view = |index: usize, image: &Image| {
            self.views.first_view(image, self.seed, epoch, index as u64)
        };
        let (views, left_out) =
            self.set.prepare(&images.collect::<Vec<_>>(), &self.conversion, view);
        self.broken.extend(left_out.iter().map(|image| image.index));
        let mut crops = Crops::new(views.len(), self.views.global_size as usize);
        views.iter().enumerate().for_each(|(place, (_, view))| crops.set(place, view));
        let labels = views.iter().map(|&(index, _)| self.set.label(index)).collect();
        Batch { crops, labels, left_out }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Images, noise};
    use esvit_data::InMemory;

    fn set(count: u8) -> LabeledSet {
        let mut source = InMemory::new(vec!["a".into(), "b".into()]);
        for i in 0..count {
            let pixels = (0..20 * 10 * 3).map(|p| (p as u8).wrapping_mul(i + 1)).collect();
            let image = Image::new(20, 10, pixels).unwrap();
            source.push(format!("{i}"), Some(u32::from(i % 2)), image);
        }
        LabeledSet::all(Arc::new(source))
    }

    fn views() -> ViewsConfig {
        ViewsConfig { global_size: 8, ..ViewsConfig::default() }
    }

    #[test]
    fn an_epoch_shows_every_image_once() {
        let set = set(7);
        let mut batches = Batches::new(&set, views(), 3, 1);
        assert_eq!((batches.size, batches.per_epoch()), (3, 3));
        let order = batches.order(0);
        assert_ne!(order, batches.order(1));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, set.images);
        let counts: Vec<usize> =
            order.chunks(3).map(|some| batches.load(0, some).labels.len()).collect();
        assert_eq!(counts, [3, 3, 1]);
        // A batch is never larger than the set.
        let batches = Batches::new(&set, views(), 64, 1);
        assert_eq!((batches.size, batches.per_epoch()), (7, 1));
    }

    #[test]
    fn crops_change_from_epoch_to_epoch_and_not_with_the_batch() {
        let set = set(4);
        let mut batches = Batches::new(&set, views(), 2, 1);
        let one = batches.load(0, &[2]).crops;
        assert_eq!(batches.load(0, &[3, 2]).crops.pixels_of(1..2), one.pixels);
        assert_ne!(batches.load(1, &[2]).crops, one);
        assert_ne!(Batches::new(&set, views(), 2, 2).load(0, &[2]).crops, one);
    }

    #[test]
    fn broken_images_are_reported_once_and_labels_are_those_of_the_images() {
        let mut source = Images::labeled((0..4).map(|i| (i % 3, noise(20, 10, 1))).collect());
        source.list[1].2 = None;
        let set = source.set();
        let mut batches = Batches::new(&set, views(), 4, 1);
        let first = batches.load(0, &[3, 1, 2]);
        assert_eq!((first.labels, first.crops.pixels.len()), (vec![0, 2], 2 * 3 * 64));
        assert_eq!((first.left_out.len(), first.left_out[0].index), (1, 1));
        let again = batches.load(1, &[1, 0]);
        assert_eq!((again.labels, again.left_out.len()), (vec![0], 0));
    }
}
