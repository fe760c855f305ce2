//! Dense correspondence between two views of an image (Section 4.4 of the EsViT paper).
//!
//! Each cell of a view's token map is matched with the most similar cell of the other view's map;
//! since both views show the same image, the true correspondence is known from their geometry.

mod grid;
mod interval;
mod matches;
mod measure;
mod score;
mod view;

use esvit_data::ImageError;
use esvit_model::features::NotFinite;
use esvit_settings::SettingError;

pub use grid::Grid;
pub use interval::{Estimate, estimate};
pub use matches::{Matches, match_cells};
pub use measure::{CorrespondenceResults, Geometry, Protocol, measure};
pub use score::{ALPHAS, Pck, Scores, Summary};
pub use view::{RATIO, View};

/// Number of pairs measured per image in the paper.
pub const MEASURED_PAIRS: usize = 10;

/// Cells cannot be matched.
#[derive(Debug, thiserror::Error)]
pub enum CorrespondenceError {
    /// The stage does not exist.
    #[error("there is no stage {stage}: the network has stages 1 to {stages}")]
    Stage {
        /// The stage, from 1.
        stage: usize,
        /// Number of stages.
        stages: usize,
    },
    /// The view size is not a multiple of the cell size, so that border cells would extend beyond
    /// it.
    #[error(
        "views of {size} pixels are not a whole number of cells of {cell} pixels\n\
         hint: take another size, such as {}", size.next_multiple_of(*cell).max(*cell)
    )]
    Size {
        /// View size in pixels.
        size: usize,
        /// Cell size in pixels.
        cell: usize,
    },
    /// The network does not take views of this size.
    #[error(transparent)]
    View(#[from] SettingError),
    /// The convolutions' margins are not those for which tokens divide the view.
    #[error(
        "tokens of {cell} pixels would divide a view of {view:?} pixels, but its map has {map:?} of them"
    )]
    Map {
        /// Height and width of the map in tokens.
        map: [usize; 2],
        /// Height and width of the view in pixels.
        view: [usize; 2],
        /// Cell size in pixels.
        cell: usize,
    },
    /// No image can be read.
    #[error("none of the {0} images can be read")]
    Unreadable(usize),
    /// The two views overlap for no image.
    #[error("the two views overlap for no image\nhint: take larger crops")]
    Disjoint,
    /// An image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The features of an image are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
}
