//! The teacher's features of images that look the same in every epoch.

use std::collections::HashMap;

use esvit_data::counted;
use esvit_nn::Tensor;

use super::views::ViewFeatures;

/// Features by the image's index in its source. What fits is kept for the whole run: images come up in
/// another order in every epoch, so that nothing is gained by dropping one for the next.
#[derive(Debug, Default)]
pub(super) struct FeatureCache {
    /// Most bytes.
    limit: usize,
    bytes: usize,
    entries: HashMap<u64, ViewFeatures>,
}

impl FeatureCache {
    /// An empty cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Rows of the images that are not there.
    pub(super) fn missing(&self, images: &[u64]) -> Vec<i32> {
        let rows = (0..).zip(images);
        rows.filter(|(_, image)| !self.entries.contains_key(*image)).map(|(row, _)| row).collect()
    }

    /// The features of `images`, from the cache and from `computed`, which has those of the rows that are
    /// [missing](FeatureCache::missing), in order; these are kept as far as they fit.
    ///
    /// # Panics
    /// When `computed` has not the images that are missing.
    pub(super) fn complete(
        &mut self,
        images: &[u64],
        computed: Option<ViewFeatures>,
    ) -> ViewFeatures {
        let computed = computed.map(|features| one_by_one(&features)).unwrap_or_default();
        let computed: HashMap<i32, ViewFeatures> =
            self.missing(images).into_iter().zip(computed).collect();
        let mut rows = Vec::with_capacity(images.len());
        for (row, image) in (0..).zip(images) {
            rows.push(match computed.get(&row) {
                Some(features) => {
                    self.keep(*image, features);
                    features.clone()
                }
                None => self.entries.get(image).cloned().expect("what is missing was computed"),
            });
        }
        let map = rows[0].map;
        let (view, region): (Vec<_>, Vec<_>) =
            rows.into_iter().map(|row| (row.view, row.region)).unzip();
        let region: Option<Vec<Tensor>> = region.into_iter().collect();
        ViewFeatures {
            view: Tensor::cat(view, 0),
            region: region.map(|region| Tensor::cat(region, 0)),
            map,
        }
    }

    fn keep(&mut self, image: u64, features: &ViewFeatures) {
        let region = features.region.as_ref().map_or(0, Tensor::numel);
        let bytes = (features.view.numel() + region) * size_of::<f32>();
        if self.bytes + bytes <= self.limit && !self.entries.contains_key(&image) {
            self.bytes += bytes;
            // Joined to nothing, they are a copy: rows of a micro-batch would hold all of it.
            let own = |rows: &Tensor| Tensor::cat(vec![rows.clone()], 0);
            let (view, region) = (own(&features.view), features.region.as_ref().map(own));
            self.entries.insert(image, ViewFeatures { view, region, map: features.map });
        }
    }
}

/// The features of every image.
fn one_by_one(features: &ViewFeatures) -> Vec<ViewFeatures> {
    let [images, _] = features.view.dims();
    let tokens = features.map[0] * features.map[1];
    let region = |image: usize| {
        let region = features.region.clone()?;
        Some(region.narrow(0, image * tokens, tokens))
    };
    let one = |image: usize| ViewFeatures {
        view: features.view.clone().narrow(0, image, 1),
        region: region(image),
        map: features.map,
    };
    (0..images).map(one).collect()
}

/// What a run says of a cache of `limit` bytes for so many images of `bytes` each.
pub(super) fn remark(limit: usize, bytes: usize, images: usize) -> String {
    let fit = (limit / bytes.max(1)).min(images);
    let size = |bytes: usize| bytes.div_ceil(1 << 20);
    let of = if fit == images { String::new() } else { format!("{fit} of ") };
    let more = if fit == images {
        ""
    } else {
        "; the teacher computes the others in every epoch (`objective.cache_mb` is the limit)"
    };
    format!(
        "every image has one view, the same in all epochs: the teacher's features of {of}{} are cached, in \
         {} MiB{more}",
        counted(images, "image"),
        size(fit * bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_testing::hashed_tensor;

    /// Two channels, a map of 1 x 2 tokens: 24 bytes an image.
    fn features(stream: u32, images: usize) -> ViewFeatures {
        ViewFeatures {
            view: hashed_tensor(stream, [images, 2]),
            region: Some(hashed_tensor(stream + 1, [images * 2, 2])),
            map: [1, 2],
        }
    }

    fn values(features: &ViewFeatures) -> [Vec<f32>; 2] {
        [&features.view, features.region.as_ref().unwrap()].map(|tensor| tensor.to_vec())
    }

    /// Of an image among others.
    fn of(features: &ViewFeatures, image: usize) -> [Vec<f32>; 2] {
        let [view, region] = values(features);
        [view[image * 2..][..2].to_vec(), region[image * 4..][..4].to_vec()]
    }

    #[test]
    fn what_fits_is_kept() {
        let mut cache = FeatureCache::new(3 * 24);
        assert_eq!(cache.missing(&[7, 3]), [0, 1]);
        let first = features(10, 2);
        assert_eq!(values(&cache.complete(&[7, 3], Some(first.clone()))), values(&first));
        assert_eq!(cache.missing(&[3, 5, 7, 6]), [1, 3]);
        let second = features(20, 2);
        let all = cache.complete(&[3, 5, 7, 6], Some(second.clone()));
        assert_eq!(all.view.dims(), [4, 2]);
        let expected = [of(&first, 1), of(&second, 0), of(&first, 0), of(&second, 1)];
        assert_eq!([0, 1, 2, 3].map(|image| of(&all, image)), expected);
        // There was room for three.
        assert_eq!(cache.missing(&[3, 5, 7, 6]), [3]);
        assert_eq!(cache.bytes, 72);
        let known = cache.complete(&[5, 5], None);
        assert_eq!([0, 1].map(|image| of(&known, image)), [of(&second, 0), of(&second, 0)]);
        // An image that comes twice is computed twice and kept once.
        let mut cache = FeatureCache::new(1 << 20);
        assert_eq!(cache.missing(&[4, 4, 9]), [0, 1, 2]);
        let third = features(30, 3);
        let all = cache.complete(&[4, 4, 9], Some(third.clone()));
        assert_eq!(of(&all, 2), of(&third, 2));
        assert_eq!(cache.bytes, 48);
    }

    #[test]
    fn what_fits_is_said() {
        let all = remark(1 << 30, 1 << 19, 10);
        assert!(all.ends_with("features of 10 images are cached, in 5 MiB"), "{all}");
        let some = remark(1 << 20, 1 << 19, 10);
        assert!(some.contains("features of 2 of 10 images are cached, in 1 MiB; "), "{some}");
        assert!(some.contains("`objective.cache_mb`"), "{some}");
    }
}
