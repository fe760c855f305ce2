//! Region features of the micro-batches of a step, as those of all its images, and back.
//!
//! Rows are view-major: all images of the first view, token by token, then those of the second.

use std::iter::repeat_n;

use esvit_nn::Tensor;
use esvit_nn::backbone::RowFeatures;
use esvit_nn::ops::Segment;

/// The place of micro-batches' region rows among those of all images.
#[derive(Debug)]
pub(crate) struct RegionRows {
    /// Segments of a micro-batch.
    segments: Vec<Segment>,
    /// Images of a micro-batch.
    images: usize,
    /// Number of micro-batches.
    parts: usize,
}

impl RegionRows {
    /// Of `parts` micro-batches of `images` each, whose features are like these.
    pub(crate) fn new(features: &RowFeatures, images: usize, parts: usize) -> Self {
        Self { segments: features.segments.clone(), images, parts }
    }

    /// Rows of a micro-batch in each view.
    fn counts(&self) -> impl Iterator<Item = usize> {
        let images = self.images;
        self.segments.iter().flat_map(move |s| repeat_n(images * s.tokens(), s.images / images))
    }

    /// The rows of all micro-batches, in order of the images.
    pub(crate) fn joined(&self, parts: &[RowFeatures]) -> Tensor {
        let mut start = 0;
        let mut rows = Vec::new();
        for count in self.counts() {
            let of_view = |part: &RowFeatures| part.region.clone().narrow(0, start, count);
            rows.extend(parts.iter().map(of_view));
            start += count;
        }
        Tensor::cat(rows, 0)
    }

    /// The segments of all images.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        let all = |s: &Segment| Segment { images: s.images * self.parts, ..*s };
        self.segments.iter().map(all).collect()
    }

    /// The rows of micro-batch number `part` among those of all images.
    pub(crate) fn of_part(&self, all: &Tensor, part: usize) -> Tensor {
        let mut start = 0;
        let mut rows = Vec::new();
        for count in self.counts() {
            rows.push(all.clone().narrow(0, start + part * count, count));
            start += self.parts * count;
        }
        Tensor::cat(rows, 0)
    }
}

/// View features without those of regions.
pub(crate) fn without_regions(view: Tensor) -> RowFeatures {
    let region = Tensor::zeros([0, view.shape()[1]], &view.device());
    RowFeatures { view, region, segments: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;
    use std::ops::Range;

    /// Two micro-batches of two images, two views of two tokens and one of one: a row says its view, image
    /// and token.
    #[test]
    fn rows_are_sorted_by_view_and_back() {
        let row =
            |view: usize, image: usize, token: usize| (100 * view + 10 * image + token) as f32;
        let rows = |images: Range<usize>| -> Vec<f32> {
            let of_view = |(view, tokens): (usize, usize)| {
                let images = images.clone();
                images.flat_map(move |image| (0..tokens).map(move |t| row(view, image, t)))
            };
            [(0, 2), (1, 2), (2, 1)].into_iter().flat_map(of_view).collect()
        };
        let part = |images: Range<usize>| {
            let values = rows(images);
            let region = Tensor::new(values.clone(), [values.len(), 1], &Device::Cpu);
            // Both views of one size are a segment.
            let segments = vec![Segment::new(4, [1, 2]), Segment::new(2, [1, 1])];
            RowFeatures { view: Tensor::zeros([6, 1], &Device::Cpu), region, segments }
        };
        let parts = [part(0..2), part(2..4)];
        let places = RegionRows::new(&parts[0], 2, 2);
        let all = places.joined(&parts);
        assert_eq!(all.to_vec::<f32>(), rows(0..4));
        assert_eq!(places.segments(), [Segment::new(8, [1, 2]), Segment::new(4, [1, 1])]);
        assert_eq!(places.of_part(&all, 0).to_vec::<f32>(), rows(0..2));
        assert_eq!(places.of_part(&all, 1).to_vec::<f32>(), rows(2..4));
    }
}
