//! Attention maps of single queries (the attention figure of the EsViT paper), and entropy of
//! attention over many images.
//!
//! In a Swin, a query attends to the tokens of its window, except those that the cyclic shift moved
//! there from the other side of the map (masked), and to padding tokens if the map is not a
//! multiple of the window size. All three are accounted for separately here. In a PVT it attends to
//! tokens of a coarser map, each of which stands for a square of cells.

mod figure;
mod input;
mod measure;
mod plot;
mod query;
mod rollout;
mod statistics;

use esvit_data::ImageError;
use esvit_model::features::NotFinite;
use esvit_nn::backbone::{NoAttention, Stage};
use esvit_settings::SettingError;
use serde::Serialize;

use self::input::MAX_PIXELS;
pub use figure::draw;
pub use input::{Framing, InputImage};
pub use measure::{entropy, jensen_shannon, threshold_mask};
pub use plot::plot;
pub use query::{HeadAttention, QueryAttention, query_attention};
pub use rollout::rollout;
pub use statistics::{AttentionStatistics, BlockStatistics, HeadStatistics, statistics};

/// Default share of the attention that masks keep, as in the paper.
pub const MASS: f64 = 0.6;

/// Most weights of a block that are held at a time, but for windows: all of those of a large image may be
/// more than fit into memory.
const MOST_WEIGHTS: usize = 1 << 24;

/// Position of a block; indices count from 0, as in parameter names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BlockPosition {
    /// Index over all stages.
    pub block: usize,
    /// Stage, from 1 as in the paper.
    pub stage: usize,
    /// Index within its stage.
    pub block_in_stage: usize,
}

impl BlockPosition {
    /// The position of the block with index `block` over all stages.
    ///
    /// # Errors
    /// [`AttentionError::Block`] if there is no such block.
    pub fn of(stages: &[Stage], block: usize) -> Result<Self, AttentionError> {
        let mut block_in_stage = block;
        for (stage, &Stage { blocks, .. }) in stages.iter().enumerate() {
            if block_in_stage < blocks {
                return Ok(Self { block, stage: stage + 1, block_in_stage });
            }
            block_in_stage -= blocks;
        }
        let blocks: usize = stages.iter().map(|stage| stage.blocks).sum();
        Err(AttentionError::Block { block, last: blocks - 1 })
    }
}

/// Attention cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum AttentionError {
    /// The block does not exist.
    #[error("there is no block {block}: the network's blocks are 0 to {last}")]
    Block {
        /// The requested value.
        block: usize,
        /// Index of the last block.
        last: usize,
    },
    /// The network does not take images of this size.
    #[error(transparent)]
    Input(#[from] SettingError),
    /// The head does not exist.
    #[error("there is no head {head}: the block's heads are 0 to {last}")]
    Head {
        /// The requested value.
        head: usize,
        /// Index of the last head.
        last: usize,
    },
    /// The query pixel is outside the network's input.
    #[error(
        "pixel {x},{y} is not in the part of the image that the network sees: columns {} to {}, \
         rows {} to {}\nhint: use the whole image with `--whole`",
        columns[0], columns[1], rows[0], rows[1]
    )]
    Outside {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// First and last visible column.
        columns: [u32; 2],
        /// First and last visible row.
        rows: [u32; 2],
    },
    /// The mask's share of the attention is out of range.
    #[error("a mask cannot keep {0} of the attention, give a share above 0 and at most 1")]
    Mass(f64),
    /// A weight is not finite.
    #[error(
        "the attention holds {0}: it is not finite\n\
         hint: the weights, or the mean and standard deviation of the images, are damaged; \
         `esvit info` shows what the file says of itself"
    )]
    Weights(f32),
    /// The input size is out of range.
    #[error(
        "the network's input would be {width} x {height} pixels, which must be at least one \
         patch of {patch} and at most {MAX_PIXELS} pixels in all"
    )]
    Size {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// Patch size.
        patch: usize,
    },
    /// Rollout is undefined for the network.
    #[error(
        "attention rollout needs blocks that all see the same tokens: {0}\n\
         hint: without `--rollout` the attention of single blocks is shown"
    )]
    Rollout(String),
    /// The network has no attention.
    #[error(transparent)]
    NoAttention(#[from] NoAttention),
    /// The attention of an image is not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
}
