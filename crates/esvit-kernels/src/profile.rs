//! An optional profile of the kernels: calls, wall-clock time and multiply-accumulates by phase.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<BTreeMap<&'static str, Phase>> = Mutex::new(BTreeMap::new());
static GEMM_NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Totals of one phase of a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phase {
    /// Number of calls.
    pub calls: u64,
    /// Wall-clock time of all calls.
    pub time: Duration,
    /// Multiply-accumulates of its GEMMs.
    pub macs: u64,
}

/// A profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// Phases, the longest first.
    pub phases: Vec<(&'static str, Phase)>,
    /// Time inside GEMMs in all phases, summed over threads.
    pub gemm: Duration,
}

/// Starts or stops recording.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Runs `work` without recording it.
pub(crate) fn unrecorded<R>(work: impl FnOnce() -> R) -> R {
    let on = ENABLED.swap(false, Ordering::Relaxed);
    let result = work();
    enable(on);
    result
}

/// Returns what was recorded since the last call, and clears it.
pub fn take() -> Recorded {
    let table = std::mem::take(&mut *TABLE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut phases: Vec<_> = table.into_iter().collect();
    phases.sort_by_key(|(_, phase)| std::cmp::Reverse(phase.time));
    let gemm = Duration::from_nanos(GEMM_NANOSECONDS.swap(0, Ordering::Relaxed));
    Recorded { phases, gemm }
}

/// Runs and records a phase whose GEMMs have `macs` multiply-accumulates.
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

/// Runs and records one GEMM call.
#[inline(always)]
pub(crate) fn gemm(gemm: impl FnOnce()) {
    if !ENABLED.load(Ordering::Relaxed) {
        return gemm();
    }
    let began = Instant::now();
    gemm();
    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    GEMM_NANOSECONDS.fetch_add(took, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since the profile is the process's; other tests may record phases in the meantime.
    #[test]
    fn phases_are_added_up() {
        let of = |recorded: &Recorded, name| {
            recorded.phases.iter().find(|(phase, _)| *phase == name).map(|(_, phase)| *phase)
        };
        time("not recorded", 1, || ());
        enable(true);
        time("first", 3, || std::thread::sleep(Duration::from_millis(20)));
        time("second", 0, || ());
        time("first", 4, || ());
        unrecorded(|| time("not recorded", 1, || ()));
        gemm(|| std::thread::sleep(Duration::from_millis(1)));
        let recorded = take();
        enable(false);
        time("not recorded", 1, || ());
        let first = of(&recorded, "first").unwrap();
        assert_eq!((first.calls, first.macs), (2, 7));
        assert!(first.time >= Duration::from_millis(20));
        assert_eq!(of(&recorded, "second").unwrap().calls, 1);
        assert!(recorded.phases.is_sorted_by(|(_, a), (_, b)| a.time >= b.time), "longest first");
        assert!(recorded.gemm >= Duration::from_millis(1));
        let empty = take();
        assert!(of(&recorded, "not recorded").is_none() && of(&empty, "not recorded").is_none());
        assert!(of(&empty, "first").is_none());
    }
}
