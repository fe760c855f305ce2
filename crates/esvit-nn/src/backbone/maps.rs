//! Feature maps as rows of tokens.

use std::ops::Range;

use crate::ops::{self, Segment};
use crate::tensor::{Dtype, Tensor};

/// Images, and which of their tokens are masked.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Batches `[B, 3, H, W]`, each of its own size.
    pub images: Vec<Tensor>,
    /// Masked tokens; None for no masking.
    pub mask: Option<&'a TokenMask>,
}

impl From<Vec<Tensor>> for Input<'_> {
    fn from(images: Vec<Tensor>) -> Self {
        Self { images, mask: None }
    }
}

/// Tokens that are hidden from the blocks, for masked prediction (SimMIM, BEiT, iBOT).
#[derive(Debug, Clone)]
pub struct TokenMask {
    /// `[tokens of all images]` after the patch embedding, image by image: 1 where masked, else 0.
    pub rows: Tensor,
    /// `[embedding width]`: stands in place of every masked token. A leaf of a tape has a gradient.
    pub token: Tensor,
}

impl TokenMask {
    /// Replaces the masked ones of embedded tokens `[tokens, C]`.
    pub fn apply(&self, tokens: Tensor) -> Tensor {
        let [count, width] = tokens.dims();
        let masked = self.rows.clone().reshape([count, 1]);
        let kept = masked.clone() * -1.0 + 1.0;
        tokens * kept + masked * self.token.clone().reshape([1, width])
    }
}

/// The token maps of a batch, as rows.
#[derive(Debug, Clone)]
pub struct TokenMaps {
    /// `[tokens of all images, C]`. In evaluation those of a block may be in bf16.
    pub rows: Tensor,
    /// Which rows belong to which images.
    pub segments: Vec<Segment>,
}

impl TokenMaps {
    /// Images `[B, C, H, W]` as maps of their pixels.
    pub(super) fn of_pixels(images: Vec<Tensor>) -> Self {
        let (rows, segments): (Vec<_>, Vec<_>) =
            images.into_iter().map(|images| ops::patchify(images, 1)).unzip();
        Self { rows: joined(rows), segments }
    }

    /// The same maps in f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        Self { rows: self.rows.to_dtype(Dtype::F32), ..self }
    }

    /// Global average pooling of the maps' tokens, `[images, C]`.
    pub fn means(&self) -> Tensor {
        let maps = self.clone().without_prefix();
        ops::global_average_pool(maps.rows, &ops::tokens_per_image(&maps.segments))
    }

    /// The same maps without the tokens before them.
    #[must_use]
    pub fn without_prefix(self) -> Self {
        if self.segments.iter().all(|segment| segment.prefix == 0) {
            return self;
        }
        let rows = self.select(|segment| segment.prefix..segment.tokens());
        let segments = self.segments.iter().map(|&segment| Segment { prefix: 0, ..segment });
        Self { rows, segments: segments.collect() }
    }

    /// The same maps, their masked tokens replaced.
    #[must_use]
    pub(super) fn masked(self, mask: Option<&TokenMask>) -> Self {
        match mask {
            Some(mask) => Self { rows: mask.apply(self.rows), ..self },
            None => self,
        }
    }

    /// Maps after `prefix` other tokens. Of the tokens `[images, n, C]` of maps of a size, `place` makes
    /// those before them, `[prefix, C]` for every image, and the map's own.
    pub(super) fn with_prefix(
        self,
        prefix: usize,
        place: impl Fn(Tensor, [usize; 2]) -> (Option<Tensor>, Tensor),
    ) -> Self {
        let width = self.rows.shape()[1];
        let rows = self.parts().into_iter().zip(&self.segments).map(|(tokens, segment)| {
            let Segment { images, map, .. } = *segment;
            let (before, tokens) = place(tokens, map);
            let all = match before {
                Some(before) => {
                    let before = before.reshape([1, prefix, width]).expand([images, prefix, width]);
                    Tensor::cat(vec![before, tokens], 1)
                }
                None => tokens,
            };
            all.reshape([images * (prefix + map[0] * map[1]), width])
        });
        let rows = joined(rows.collect());
        let segments = self.segments.into_iter().map(|segment| Segment { prefix, ..segment });
        Self { rows, segments: segments.collect() }
    }

    /// Some tokens of every image, `[tokens of all images, C]`: their numbers by segment.
    pub(super) fn select(&self, tokens: impl Fn(&Segment) -> Range<usize>) -> Tensor {
        let width = self.rows.shape()[1];
        let parts = self.parts().into_iter().zip(&self.segments).map(|(part, segment)| {
            let range = tokens(segment);
            let rows = part.narrow(1, range.start, range.len());
            rows.reshape([segment.images * range.len(), width])
        });
        joined(parts.collect())
    }

    /// The tokens of each segment, `[images, tokens, C]`.
    pub(super) fn parts(&self) -> Vec<Tensor> {
        let Self { rows, segments } = self;
        let (width, mut start) = (rows.shape()[1], 0);
        let part = |segment: &Segment| {
            let count = segment.images * segment.tokens();
            // In a pass over shapes, all rows are those of any number of images.
            let own = match segments.len() {
                1 => rows.clone(),
                _ => rows.clone().narrow(0, start, count),
            };
            start += count;
            own.reshape([segment.images, segment.tokens(), width])
        };
        segments.iter().map(part).collect()
    }
}

/// Rows `[rows, C]` of segments, one after another; several ones in bf16 become f32.
pub(super) fn joined(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let widened = |part: Tensor| match part.dtype() {
        Dtype::Bf16 => part.to_dtype(Dtype::F32),
        _ => part,
    };
    Tensor::cat(parts.into_iter().map(widened).collect(), 0)
}

/// Tokens `[images, n, C]` with a token of zeros after those of each image, `[images, n + 1, C]`.
pub(super) fn with_zero_token(tokens: Tensor) -> Tensor {
    let [images, _, width] = tokens.dims();
    let zero = Tensor::zeros([images, 1, width], &tokens.device());
    Tensor::cat(vec![tokens, zero], 1)
}

/// Features of images of one size.
#[derive(Debug, Clone)]
pub struct Features {
    /// View features, `[B, C]`: the mean token.
    pub view: Tensor,
    /// Region features, `[B, T, C]`: the tokens of the last map, row-major, after the final norm.
    pub region: Tensor,
    /// Height and width of that map in tokens; `T = height * width`.
    pub map: [usize; 2],
}

/// Features of images of several sizes.
#[derive(Debug, Clone)]
pub struct RowFeatures {
    /// View features, `[images, C]`.
    pub view: Tensor,
    /// Region features of all images, `[tokens, C]`, without prefix tokens.
    pub region: Tensor,
    /// Which rows of `region` belong to which images.
    pub segments: Vec<Segment>,
}

impl RowFeatures {
    /// View features and the maps' tokens, without those before them.
    pub fn new(view: Tensor, maps: TokenMaps) -> Self {
        let TokenMaps { rows, segments } = maps.without_prefix();
        Self { view, region: rows, segments }
    }

    /// Height and width of the map in each view, of views of `batch` images.
    pub fn maps_per_view(&self, batch: usize) -> Vec<[usize; 2]> {
        let of = |segment: &Segment| std::iter::repeat_n(segment.map, segment.images / batch);
        self.segments.iter().flat_map(of).collect()
    }

    /// Tokens of an image in each view, of views of `batch` images.
    pub fn tokens_per_view(&self, batch: usize) -> Vec<usize> {
        self.maps_per_view(batch).into_iter().map(|[height, width]| height * width).collect()
    }

    /// The features of images that all have one size.
    ///
    /// # Panics
    /// When there are several sizes.
    pub fn of_one_size(self) -> Features {
        let [Segment { map, .. }] = self.segments[..] else {
            panic!("images of one size expected, not {:?}", self.segments)
        };
        let [batch, width] = self.view.dims();
        let region = self.region.reshape([batch, map[0] * map[1], width]);
        Features { view: self.view, region, map }
    }
}
