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
    let mut text =
        String::from("phase                          calls    ms a step   GFLOP/s   share");
    let mut line = |name: &str, calls: &str, seconds: f64, gflops: Option<f64>| {
        let rate = gflops.map(|gflops| format!("{gflops:.0}")).unwrap_or_default();
        let share = gflops.map(|gflops| format!("{:.0} %", 100.0 * gflops / peak_gflops));
        let milliseconds = seconds * 1e3 / repetitions as f64;
        text.push_str(&format!(
            "\n{name:28} {calls:>7} {milliseconds:>12.1} {rate:>9} {:>7}",
            share.unwrap_or_default()
        ));
    };
    let (mut time, mut gemm_time, mut macs) = (0.0, 0.0, 0);
    for (name, phase) in &phases {
        let seconds = phase.time.as_secs_f64();
        time += seconds;
        if phase.macs > 0 {
            gemm_time += seconds;
            macs += phase.macs;
        }
        let gflops = (phase.macs > 0).then(|| 2e-9 * phase.macs as f64 / seconds);
        line(name, &(phase.calls / repetitions).to_string(), seconds, gflops);
    }
    let gflops = |seconds: f64| Some(2e-9 * macs as f64 / seconds);
    line("all of these", "", time, gflops(gemm_time));
    let inside = gemm.as_secs_f64() / rayon::current_num_threads() as f64;
    line("inside GEMM only", "", inside, gflops(inside));
    text
}
