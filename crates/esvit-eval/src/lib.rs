//! Measuring what a backbone has learnt.

pub mod attention;
pub mod backbone;
pub mod bench;
pub mod correspondence;
pub mod difference;
pub mod draw;
pub mod efficiency;
pub mod embedding;
pub mod embedding_map;
pub mod export;
pub mod features;
pub mod finetune;
pub mod knn;
pub mod labelled;
pub mod matching;
pub mod neighbours;
pub mod npy;
pub mod pca;
pub mod preview;
pub mod probe;
pub mod record;
pub mod report;
pub mod thumbnail;
pub mod transfer;
pub mod verify;
