//! The operations that backbones and heads are built from.
//!
//! Whole branches of blocks are operations, with kernels and a hand-written backward pass; backbones
//! call these. The plain operations, as methods of [`crate::tensor::Tensor`], are for objectives, for
//! backbones without kernels of their own and as references in tests.

mod attention;
mod auto_choice;
mod batch_norm;
mod colors;
mod contrast;
mod convolution;
mod cpu;
mod cross_attention;
mod depthwise;
mod distance;
mod gathered_attention;
mod images;
mod linear;
mod mlp;
mod neighbors;
mod norm;
mod optimizer;
mod packing;
mod patch;
mod plain;
mod precision;
mod prelude;
mod prototypes;
mod rotary;
mod swiglu;
mod window;

pub use attention::{AttentionValues, attention_branch, plain_attention_branch};
pub use auto_choice::{AUTO_CHOICES, AutoChoice};
pub use batch_norm::{
    BatchNormValues, batch_norm, batch_norm_of_runs, batch_norm_relu, fixed_batch_norm,
};
pub use colors::{embed_colors, nearest_colors};
pub use contrast::info_nce;
pub use convolution::{
    Filter, NormEnd, batch_norm_relu_convolution, convolution, convolution_batch_norm,
    convolution_before_norm, max_pool,
};
pub(crate) use cross_attention::later_keys;
pub use cross_attention::{causal_attention, cross_attention};
pub use depthwise::{depthwise, depthwise_batch_norm};
pub use distance::paired_distance;
pub use gathered_attention::{
    AttentionGroups, GroupTable, ImageRows, Projections, gathered_attention,
};
pub use images::normalize_images;
pub use linear::{Activation, linear, linear_in_precision};
pub use mlp::{LinearValues, NormValues, Scales, mlp_branch};
pub use neighbors::{Border, NeighborMap, NeighborMaps, Neighbors};
pub use norm::{global_average_pool, l2_normalize, layer_norm, layer_norm_in_precision};
pub use optimizer::{Trust, Update, UpdateRule, clip_scales, ema_update, update};
pub use packing::{PackedWeights, Packing};
pub use patch::{merge_patches, merging_indices, patchify};
pub use precision::{Compute, Precision};
pub use prototypes::{
    EXPONENTIALS_BYTES, MatchGroup, Pairs, PrototypeLogits, TeacherRows, best_matches,
    prototype_cross_entropy,
};
pub use rotary::{RotaryAngles, rotary};
pub use swiglu::swiglu;
pub use window::{WindowMap, WindowMaps};

/// Images of one size among the rows of a batch (packed sequences): image by image, first the
/// prefix, then the map's tokens, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Number of images.
    pub images: usize,
    /// Height and width of their maps, in tokens.
    pub map: [usize; 2],
    /// Tokens of every image before its map's: class, register and distillation tokens.
    pub prefix: usize,
}

impl Segment {
    /// Images whose tokens are those of a map alone.
    pub fn new(images: usize, map: [usize; 2]) -> Self {
        Self { images, map, prefix: 0 }
    }

    /// Tokens per image, with its prefix.
    pub fn tokens(&self) -> usize {
        self.prefix + self.map[0] * self.map[1]
    }

    /// Panics when there is a prefix, for which `operation` has no place.
    fn assert_map(&self, operation: &str) {
        assert_eq!(self.prefix, 0, "{operation} is for maps without prefix tokens");
    }
}

/// The number of tokens that all images have, if it is the same.
fn common_size(images: &[usize]) -> Option<usize> {
    let first = *images.first()?;
    images.iter().all(|&tokens| tokens == first).then_some(first)
}

/// Number of tokens of every image, over all segments.
pub fn tokens_per_image(segments: &[Segment]) -> Vec<usize> {
    segments.iter().flat_map(|s| std::iter::repeat_n(s.tokens(), s.images)).collect()
}
