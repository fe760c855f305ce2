//! Where the time of kernels goes: a table by phase, when it is asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<BTreeMap<&'static str, Phase>> = Mutex::new(BTreeMap::new());
static GEMM_NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// What one phase of a kernel took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phase {
    /// How often it ran.
    pub calls: u64,
    /// Wall-clock time of all calls, on all threads together.
    pub time: Duration,
    /// Multiply-accumulates of its products.
    pub macs: u64,
}

/// What was recorded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// Phases, the longest first.
    pub phases: Vec<(&'static str, Phase)>,
    /// What threads spent inside the matrix products of all phases, added up over threads.
    pub gemm: Duration,
}

/// Begins or ends the recording.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Runs something that is not recorded.
pub(crate) fn unrecorded<R>(work: impl FnOnce() -> R) -> R {
    let on = ENABLED.swap(false, Ordering::Relaxed);
    let result = work();
    enable(on);
    result
}

/// What was recorded since the last call.
pub fn take() -> Recorded {
    let table = std::mem::take(&mut *TABLE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut phases: Vec<_> = table.into_iter().collect();
    phases.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.time));
    let gemm = Duration::from_nanos(GEMM_NANOSECONDS.swap(0, Ordering::Relaxed));
    Recorded { phases, gemm }
}

/// Runs a phase; its products have `macs` multiply-accumulates.
pub fn time<R>(name: &'static str, macs: usize, phase: impl FnOnce() -> R) -> R {
    if !ENABLED.load(Ordering::Relaxed) {
        return phase();
    }
    let began = Instant::now();
    let result = phase();
    let took = began.elapsed();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let row = table.entry(name).or_default();
    row.calls += 1;
    row.time += took;
    row.macs += macs as u64;
    result
}

/// Runs one matrix product.
pub(crate) fn gemm(gemm: impl FnOnce()) {
    if !ENABLED.load(Ordering::Relaxed) {
        return gemm();
    }
    let began = Instant::now();
    gemm();
    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    GEMM_NANOSECONDS.fetch_add(took, Ordering::Relaxed);
}
