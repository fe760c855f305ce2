//! Training: objectives, schedules, optimisers, the loop and the run folder.

pub mod config_text;
pub mod files;
pub mod health;
pub mod learner;
pub mod mixup;
pub mod objective;
pub mod optim;
pub mod schedule;
pub mod teacher;
pub mod tensorboard;

pub use learner::Learner;
