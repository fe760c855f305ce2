//! The table of `--profile`.

use esvit_kernels::profile::{self, Recorded};

/// A phase that occurs once per optimizer step.
const STEP_PHASE: &str = "optimizer and teacher";

/// Time and GEMM throughput by phase.
///
/// Times are divided by `repetitions`, or by the number of optimizer steps.
pub(super) fn profile_table(peak_gflops: f64, repetitions: Option<u64>) -> String {
    let Recorded { phases, gemm } = profile::take();
    let steps = phases.iter().find(|(name, _)| *name == STEP_PHASE).map(|(_, phase)| phase.calls);
    let repetitions = repetitions.or(steps).unwrap_or(1).max(1);
    let mut text = format!(
        "{:28} {:>7} {:>12} {:>9} {:>7}",
        "phase", "calls", "ms a step", "GFLOP/s", "share"
    );
    let (mut time, mut gemm_time, mut macs) = (0.0, 0.0, 0);
    for (name, phase) in &phases {
        let seconds = phase.time.as_secs_f64();
        time += seconds;
        let gflops = 2e-9 * phase.macs as f64 / seconds;
        let (rate, share) = if phase.macs > 0 {
            gemm_time += seconds;
            macs += phase.macs;
            (format!("{gflops:.0}"), format!("{:.0} %", 100.0 * gflops / peak_gflops))
        } else {
            Default::default()
        };
        text.push_str(&format!(
            "\n{name:28} {:>7} {:>12.1} {rate:>9} {share:>7}",
            phase.calls / repetitions,
            seconds * 1e3 / repetitions as f64
        ));
    }
    let mut total = |name: &str, seconds: f64, gemm_seconds: f64| {
        let gflops = 2e-9 * macs as f64 / gemm_seconds;
        text.push_str(&format!(
            "\n{name:28} {:>7} {:>12.1} {:>9} {:>7}",
            "",
            seconds * 1e3 / repetitions as f64,
            format!("{gflops:.0}"),
            format!("{:.0} %", 100.0 * gflops / peak_gflops)
        ));
    };
    total("all of these", time, gemm_time);
    let inside = gemm.as_secs_f64() / rayon::current_num_threads() as f64;
    total("inside GEMM only", inside, inside);
    text
}
