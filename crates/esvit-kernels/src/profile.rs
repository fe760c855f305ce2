//! Where the time of kernels goes: a table by phase, when it is asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<BTreeMap<&'static str, Phase>> = Mutex::new(BTreeMap::new());

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

/// Begins or ends the recording.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// What was recorded since the last call, the longest first.
pub fn take() -> Vec<(&'static str, Phase)> {
    let table = std::mem::take(&mut *TABLE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut rows: Vec<_> = table.into_iter().collect();
    rows.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.time));
    rows
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
