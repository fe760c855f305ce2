//! Measuring what a backbone has learnt.

pub mod backbone;
pub mod bench;
pub mod correspondence;
pub mod difference;
pub mod draw;
pub mod embedding;
pub mod export;
pub mod features;
pub mod finetune;
pub mod knn;
pub mod labelled;
pub mod npy;
pub mod record;
pub mod verify;
