//! SVG and PNG drawings, line charts, plots and self-contained HTML pages.
//!
//! No tensors and no image decoding: images come as the bytes of PNG files.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod axis;
pub mod chart;
pub mod color;
mod drawing;
pub mod html;
pub mod number;
pub mod plot;
mod rows;
mod thin;
mod words;

pub use drawing::{Anchor, DrawError, Drawing};
pub use html::escape;
pub use rows::labeled_rows;
pub use words::{ellipsize, text_width};
