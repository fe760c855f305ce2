//! Multi-stage backbones.

pub mod swin;

use burn::tensor::Tensor;

use crate::ops::Segment;

/// What a backbone gives for a batch of images.
#[derive(Debug, Clone)]
pub struct Features {
    /// The view feature, `[B, C]`: one vector an image.
    pub view: Tensor<2>,
    /// The region features, `[B, T, C]`: the tokens of the last map, row-major, after the final
    /// norm and before any head.
    pub region: Tensor<3>,
    /// Height and width of that map in tokens, `T = height * width`.
    pub map: [usize; 2],
}

/// What a backbone gives for images of several sizes at once.
#[derive(Debug, Clone)]
pub struct RowFeatures {
    /// The view feature of every image, `[images, C]`.
    pub view: Tensor<2>,
    /// The region features of all images, `[tokens, C]`.
    pub region: Tensor<2>,
    /// Which rows of `region` belong to which image.
    pub segments: Vec<Segment>,
}
