//! Training: objectives, schedules, optimizers, the loop and the run folder.

pub mod auto;
pub mod checkpoint;
mod compared;
pub mod config;
pub mod config_text;
pub mod crop_chunks;
pub mod input;
pub mod learner;
pub mod memory;
pub mod mixup;
pub mod objective;
pub mod official;
pub mod optim;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod span;
pub mod tensorboard;
pub mod variants;

pub use config::Config;
pub use crop_chunks::CropChunks;
pub use esvit_settings::SettingError;
pub use learner::Learner;
pub use run::pretrain;
