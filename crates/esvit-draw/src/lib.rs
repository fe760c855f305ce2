//! Drawings as SVG and PNG, line charts and pages of HTML that need no other file.
//!
//! Knows neither tensors nor how images are decoded: an image comes as the bytes of a PNG file.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod axis;
pub mod chart;
pub mod color;
mod drawing;
pub mod html;
pub mod number;
mod thin;
mod words;

pub use drawing::{Anchor, DrawError, Drawing};
pub use html::escaped;
pub use words::{shortened, words_width};
