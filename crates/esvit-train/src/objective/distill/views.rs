//! Features by view.

use esvit_nn::backbone::RowFeatures;
use esvit_nn::{Tensor, resize};

/// A network's features of a view of some images.
#[derive(Debug, Clone)]
pub(super) struct ViewFeatures {
    /// View features, `[B, C]`.
    pub(super) view: Tensor,
    /// Region features, `[B * T, C]`, image by image; None where they are not compared.
    pub(super) region: Option<Tensor>,
    /// Height and width of the map in tokens; `T = height * width`.
    pub(super) map: [usize; 2],
}

impl ViewFeatures {
    /// The region features as those of a map of another size, `[B * T', C]`, by bilinear interpolation.
    pub(super) fn region_at(&self, map: [usize; 2]) -> Option<Tensor> {
        let region = self.region.clone()?;
        let [rows, width] = region.dims();
        let tokens = self.map[0] * self.map[1];
        let images = rows / tokens;
        let maps = resize::maps(region.reshape([images, tokens, width]), self.map, map);
        Some(maps.reshape([images * map[0] * map[1], width]))
    }
}

/// The features of every view of `batch` images, of a pass that is view-major; with or without those of
/// regions.
pub(super) fn by_view(features: &RowFeatures, batch: usize, regions: bool) -> Vec<ViewFeatures> {
    let (mut views, mut first) = (Vec::new(), 0);
    for segment in &features.segments {
        let rows = batch * segment.tokens();
        for _ in 0..segment.images / batch {
            views.push(ViewFeatures {
                view: features.view.clone().narrow(0, views.len() * batch, batch),
                region: regions.then(|| features.region.clone().narrow(0, first, rows)),
                map: segment.map,
            });
            first += rows;
        }
    }
    views
}

/// The height and width of the map of every view, in the same order.
pub(super) fn maps(features: &RowFeatures, batch: usize) -> Vec<[usize; 2]> {
    let segments = features.segments.iter();
    segments.flat_map(|s| std::iter::repeat_n(s.map, s.images / batch)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;
    use esvit_nn::ops::Segment;
    use esvit_testing::hashed_tensor;

    /// Two views of 2 x 2 tokens and one of a single token, of three images.
    #[test]
    fn rows_of_views() {
        let features = RowFeatures {
            view: hashed_tensor(1, [9, 2]),
            region: hashed_tensor(2, [27, 2]),
            segments: vec![Segment::new(6, [2, 2]), Segment::new(3, [1, 1])],
        };
        assert_eq!(maps(&features, 3), [[2, 2], [2, 2], [1, 1]]);
        assert!(by_view(&features, 3, false).iter().all(|view| view.region.is_none()));
        let views = by_view(&features, 3, true);
        let region = |view: &ViewFeatures| view.region.clone().unwrap();
        let [all_views, all_regions] =
            [&features.view, &features.region].map(|rows| rows.to_vec::<f32>());
        let found: Vec<f32> = views.iter().flat_map(|v| v.view.to_vec::<f32>()).collect();
        assert_eq!(found, all_views);
        let found: Vec<f32> = views.iter().flat_map(|v| region(v).to_vec::<f32>()).collect();
        assert_eq!(found, all_regions);
        let size = |v: &ViewFeatures| (v.view.dims::<2>(), region(v).dims::<2>());
        let sizes: Vec<_> = views.iter().map(size).collect();
        assert_eq!(sizes, [([3, 2], [12, 2]), ([3, 2], [12, 2]), ([3, 2], [3, 2])]);
    }

    /// Of 2 x 2 tokens the one in the middle has their mean; of another image that one's.
    #[test]
    fn regions_at_another_size() {
        let region = [1.0f32, 2.0, 3.0, 6.0, 10.0, 20.0, 30.0, 60.0];
        let of = ViewFeatures {
            view: Tensor::zeros([2, 1], &Device::Cpu),
            region: Some(Tensor::new(region.to_vec(), [8, 1], &Device::Cpu)),
            map: [2, 2],
        };
        let at = |map: [usize; 2]| of.region_at(map).unwrap().to_vec::<f32>();
        assert_eq!(at([1, 1]), [3.0, 30.0]);
        assert_eq!(at([2, 2]), region);
        let larger = at([3, 3]);
        assert_eq!([larger[4], larger[13]], [3.0, 30.0]);
    }
}
