//! Where a query looks: attention of single queries as maps and images (the attention figure of
//! the EsViT paper), and its entropy over whole sets of images.
//!
//! In a Swin a query sees the tokens of its window only, less those that a shift has brought there
//! from the other side of the map, and it also sees the padding of a map that is no multiple of
//! the window. All three are told apart here.

mod figure;
mod measure;
mod plot;
mod query;
mod rollout;
mod shown;
mod statistics;

use esvit_data::ImageError;
use esvit_nn::SwinConfig;
use serde::Serialize;

pub use figure::draw;
pub use measure::{entropy, jensen_shannon, smallest_set};
pub use plot::plot;
pub use query::{Attended, QueryAttention, of_query};
pub use rollout::rollout;
pub use shown::{Framing, Shown};
pub use statistics::{BlockStatistics, HeadStatistics, Measured, statistics};

/// The share of the attention that a mask holds, unless another is asked for: that of the paper.
pub const MASS: f64 = 0.6;

/// Where a block stands; all numbers count from 0, as in the names of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BlockPlace {
    /// Among the blocks of all stages.
    pub block: usize,
    /// Its stage, counted from 1 as in the paper.
    pub stage: usize,
    /// Among the blocks of its stage.
    pub block_in_stage: usize,
}

impl BlockPlace {
    /// The place of a block, counted over all stages.
    ///
    /// # Errors
    /// When the network has no such block.
    pub fn of(config: &SwinConfig, block: usize) -> Result<Self, AttentionError> {
        let mut block_in_stage = block;
        for (stage, &depth) in config.depths.iter().enumerate() {
            if block_in_stage < depth {
                return Ok(Self { block, stage: stage + 1, block_in_stage });
            }
            block_in_stage -= depth;
        }
        Err(AttentionError::Block { block, last: config.depths.iter().sum::<usize>() - 1 })
    }
}

/// Why attention cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum AttentionError {
    /// There is no such block.
    #[error("there is no block {block}: the network's blocks are 0 to {last}")]
    Block {
        /// What was asked for.
        block: usize,
        /// The last block.
        last: usize,
    },
    /// There is no such head.
    #[error("there is no head {head}: the block's heads are 0 to {last}")]
    Head {
        /// What was asked for.
        head: usize,
        /// The last head.
        last: usize,
    },
    /// The pixel is not shown to the network.
    #[error(
        "pixel {x},{y} is not in the part of the image that the network sees: columns {} to {}, \
         rows {} to {}\nhint: `--whole` shows all of it",
        columns[0], columns[1], rows[0], rows[1]
    )]
    Outside {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// First and last column that are seen.
        columns: [u32; 2],
        /// First and last row that are seen.
        rows: [u32; 2],
    },
    /// The share of the attention is none.
    #[error("a mask cannot hold {mass} of the attention, give a share above 0 and at most 1")]
    Mass {
        /// What was asked for.
        mass: f64,
    },
    /// The image would be shown in a size that cannot be used.
    #[error(
        "the image would be shown with {width} x {height} pixels, which must be at least one \
         patch of {patch} and at most {largest} pixels in all"
    )]
    Size {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// Side of a patch.
        patch: usize,
        /// Largest number of pixels.
        largest: u64,
    },
    /// Rollout is not defined for the network.
    #[error(
        "attention rollout needs blocks that all see the same tokens: {reason}\n\
         hint: without `--rollout` the attention of single blocks is shown"
    )]
    Rollout {
        /// What is in the way.
        reason: String,
    },
    /// The image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
}
