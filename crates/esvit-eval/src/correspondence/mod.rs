//! How well cells of one view are found again in another (Section 4.4 of the EsViT paper).
//!
//! A cell of a network's map is matched with the most similar cell of another view's map. Where
//! the two views show one image, geometry says where each cell really is.

mod grid;
mod interval;
mod matched;
mod measure;
mod score;
mod view;

pub use grid::Grid;
pub use interval::{Estimate, estimate};
pub use matched::{Correspondence, correspond};
pub use measure::{Geometry, Measured, Protocol, measure};
pub use score::{ALPHAS, Pck, Scores, Summary};
pub use view::{RATIO, View};

/// Pairs whose prediction is measured.
pub const MEASURED_PAIRS: usize = 10;

/// Why cells cannot be matched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorrespondenceError {
    /// The network has fewer stages.
    #[error("there is no stage {stage}: the network has stages 1 to {stages}")]
    Stage {
        /// The stage, from 1.
        stage: usize,
        /// Number of stages.
        stages: usize,
    },
    /// A view's side is no multiple of a cell's, so that cells at its border would lie partly
    /// outside.
    #[error(
        "views of {size} pixels are not a whole number of cells of {cell} pixels\n\
         hint: take another size, such as {}", size.next_multiple_of(*cell).max(*cell)
    )]
    Size {
        /// Side of the view in pixels.
        size: usize,
        /// Side of a cell in pixels.
        cell: usize,
    },
    /// There is nothing to measure.
    #[error("none of the {images} images can be read")]
    Unreadable {
        /// Number of images.
        images: usize,
    },
    /// The two views of every image show different parts of it.
    #[error(
        "no cell of any first view is seen in the second one\n\
         hint: take larger crops"
    )]
    Disjoint,
}
