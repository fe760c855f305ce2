//! Multi-stage backbones.

pub mod swin;

use crate::tensor::Tensor;

use crate::ops::Segment;

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
