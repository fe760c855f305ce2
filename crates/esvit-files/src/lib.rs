//! Files that survive a kill: atomic replacement, and logs that lose at most their last line. Also
//! the protocol-buffer encoder that ONNX graphs and TensorBoard share, and NumPy's arrays.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

mod atomic;
mod error;
mod growing;
mod line_log;
pub mod npy;
pub mod protobuf;
mod regular;
mod whole;

pub use atomic::{
    AtomicFile, is_device, is_temporary, remove_stale_temporaries, temporary_path, write_atomically,
};
pub use error::{FileError, FileStep, format_bytes, free_bytes};
pub use growing::GrowingFile;
pub use line_log::{LineLog, retain_lines_while};
pub use regular::{read_hint, read_regular, read_text};
pub use whole::WholeWriter;
