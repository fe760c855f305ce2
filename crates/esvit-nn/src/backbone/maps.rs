//! Feature maps as rows of tokens.

use crate::ops::{self, Segment};
use crate::tensor::Tensor;

/// The token maps of a batch, as rows.
#[derive(Debug, Clone)]
pub struct TokenMaps {
    /// `[tokens of all images, C]`.
    pub rows: Tensor,
    /// Which rows belong to which images.
    pub segments: Vec<Segment>,
}

impl TokenMaps {
    /// Global average pooling, `[images, C]`.
    pub fn means(&self) -> Tensor {
        ops::global_average_pool(self.rows.clone(), &ops::tokens_per_image(&self.segments))
    }
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
    /// Region features of all images, `[tokens, C]`.
    pub region: Tensor,
    /// Which rows of `region` belong to which images.
    pub segments: Vec<Segment>,
}

impl RowFeatures {
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
