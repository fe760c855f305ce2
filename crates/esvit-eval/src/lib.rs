//! Evaluation of backbones.

pub mod attention;
pub mod bench;
pub mod compare;
pub mod correspondence;
pub mod efficiency;
pub mod embedding_map;
pub mod finetune;
pub mod knn;
pub mod labeled;
pub mod matching;
pub mod neighbors;
pub mod pca;
pub mod preview;
pub mod probe;
pub mod record;
pub mod report;
pub mod retrieval;
pub mod stoppable;
pub mod thumbnail;
pub mod transfer;
pub mod verify;

#[cfg(test)]
mod testing;
