//! Measuring what a backbone has learnt.

pub mod correspondence;
pub mod knn;
pub mod npy;
pub mod verify;
