//! Comparisons of several variants of a run, each with several seeds: what is measured of every run, on
//! the same images, and what it says of the variants.

mod figures;
mod judge;
mod log;
mod prepared;
mod result;
mod rows;
mod speed;
mod table;

pub use figures::{against_parameters, against_throughput, curves};
pub use judge::{CompareError, Judge, Judged};
pub use log::{RunLog, read_log};
pub use prepared::preparation;
pub use result::{Check, FailedRun, Original, RunResult, Scores, Start};
pub use rows::{Row, rows};
pub use speed::Speeds;
pub use table::{markdown, text};
