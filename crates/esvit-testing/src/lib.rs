//! What tests of several crates share.

#![allow(clippy::unwrap_used, reason = "for tests alone")]

mod close;
pub mod composed;
mod gradients;
mod hash;
pub mod losses;
mod network;
mod pair;

pub use close::{assert_alike, assert_close};
pub use gradients::check_gradients;
pub use hash::{fill, hash, hashed, hashed_tensor, hashed_times};
pub use network::{
    tiny_cvt, tiny_igpt, tiny_pvt, tiny_resnet, tiny_swin, tiny_vil, tiny_vit, untrained,
};
pub use pair::Pair;
