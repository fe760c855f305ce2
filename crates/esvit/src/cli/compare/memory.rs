//! The largest memory of each of several runs of this process.
//!
//! They are trained in one process, so that a signal or a kill ends all there is. The system's record of the
//! largest resident memory is that of the process; Linux lets it start anew.

use esvit_kernels::buffer;

/// Frees what the last run has left, and lets the record of the largest memory start anew; whether the
/// system does that.
pub(super) fn forget_peak() -> bool {
    buffer::release();
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}
