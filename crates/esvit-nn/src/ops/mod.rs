//! The operations that backbones and heads are built from.
//!
//! On the hot path, models call only these. Each exists twice: as CPU kernels on slices with a
//! hand-written backward pass, and composed of the framework's operations, for every other device
//! and as a reference in tests.

mod attention;
mod batch_norm;
mod depthwise;
mod extension;
mod linear;
mod mlp;
mod norm;
mod packing;
mod patch;
mod precision;
mod prototypes;
mod window;

use burn::tensor::Tensor;

pub use attention::{
    AttentionValues, attention_branch, composed_attention_branch, composed_plain_attention_branch,
    plain_attention_branch, window_attention_weights,
};
pub use batch_norm::{batch_norm, composed_batch_norm};
pub use depthwise::{composed_depthwise, depthwise};
pub use extension::has_kernels;
pub use linear::{Activation, composed as composed_linear, linear};
pub use mlp::{LinearValues, NormValues, Scales, composed_mlp_branch, mlp_branch};
pub use norm::{composed_layer_norm, global_average_pool, l2_normalize, layer_norm, norm};
pub use packing::{PackedWeights, Packing};
pub use patch::{composed_merge, composed_patchify, merge_patches, merging_indices, patchify};
pub use precision::{Compute, Precision};
pub use prototypes::{
    EXPONENTIALS_BYTES, Group, Pairs, PrototypeLogits, best_matches, composed_best_matches,
    composed_cross_entropy, prototype_cross_entropy,
};
pub use window::{WindowMap, WindowMaps};

/// Images of one size among the rows of a batch (packed sequences): image by image, tokens
/// row-major over the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Number of images.
    pub images: usize,
    /// Height and width of their maps, in tokens.
    pub map: [usize; 2],
}

impl Segment {
    /// Tokens per image.
    pub fn tokens(&self) -> usize {
        self.map[0] * self.map[1]
    }
}

/// Number of tokens of every image, over all segments.
pub fn tokens_per_image(segments: &[Segment]) -> Vec<usize> {
    segments.iter().flat_map(|s| std::iter::repeat_n(s.tokens(), s.images)).collect()
}

/// Exact GELU, `x * (1 + erf(x / sqrt 2)) / 2`.
///
/// On all devices but the CPU, the framework's own GELU has the gradient of the tanh
/// approximation, which is wrong in the third digit.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let erf = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf();
    x * 0.5 * (erf + 1.0)
}
