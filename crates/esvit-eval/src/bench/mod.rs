//! Benchmarks. Timings on a shared machine are noisy: reports hold medians, and ratios within one
//! run are more reliable than times.

mod architecture;
mod choices;
mod data;
mod forward;
mod kernels;
mod knn;
mod train_step;

use std::convert::Infallible;
use std::time::Instant;

use esvit_kernels::element::{Bf16, Bf16x3};
use esvit_kernels::{isa, peak, profile};
use esvit_nn::Device;
use esvit_nn::ops::Precision;
use esvit_settings::SettingError;
use serde::Serialize;

pub use architecture::{MONOLITHIC, architecture};
pub use choices::{ChoiceSpeed, ChoicesReport, choices};
pub use data::{DataReport, data};
pub use forward::forward;
pub use kernels::{KernelReport, kernels};
pub use knn::{KnnBench, KnnReport, knn};
pub use train_step::{objective, train_step};

/// Settings of a benchmark.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Name of the architecture.
    pub model: String,
    /// Batch size.
    pub batch: usize,
    /// Size of global crops, or of the images of a forward pass, in pixels.
    pub global_size: usize,
    /// Size of local crops in pixels.
    pub local_size: usize,
    /// Number of local crops per image.
    pub local_crops: usize,
    /// Crops per student forward pass; 0 chooses by memory.
    pub crops_per_forward: usize,
    /// Activation checkpointing: saves only the inputs of residual branches and recomputes the rest
    /// in the backward pass.
    pub activation_checkpointing: bool,
    /// Images per micro-batch; 0 for the whole batch.
    pub micro_batch: usize,
    /// Name of the objective of a training step, whose settings are its defaults but for EsViT's heads.
    pub objective: String,
    /// Number of prototypes of each head of EsViT.
    pub prototypes: usize,
    /// Whether to include EsViT's region loss.
    pub region: bool,
    /// Precision of GEMM operands.
    pub precision: Precision,
    /// Number of timed repetitions, after one warm-up.
    pub iterations: usize,
    /// The device.
    pub device: Device,
}

/// Results of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the architecture.
    pub model: String,
    /// Batch size.
    pub batch: usize,
    /// Name of the objective.
    pub objective: String,
    /// Whether to include the region loss.
    pub region: bool,
    /// Number of prototypes of each head.
    pub prototypes: usize,
    /// Precision of GEMM operands.
    pub precision: &'static str,
    /// The instruction set of the kernels.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Median time in seconds.
    pub median_s: f64,
    /// All times in seconds.
    pub seconds: Vec<f64>,
    /// Images per second at the median.
    pub images_per_s: f64,
    /// GFLOP/s of the GEMMs at the median.
    pub gflops: f64,
    /// `gflops` divided by `peak_gflops`.
    pub share_of_peak: f64,
    /// Peak GEMM throughput of this machine in GFLOP/s.
    pub peak_gflops: f64,
    /// The machine's own limit in GFLOP/s: see [`limit_gflops`].
    pub limit_gflops: f64,
    /// Peak resident memory of the process in MiB; 0 if unknown.
    pub peak_rss_mb: f64,
}

impl Report {
    /// From the times of all repetitions of `macs` multiply-accumulates each.
    fn new(bench: &Bench, seconds: Vec<f64>, macs: u64) -> Self {
        // Read before the peak GEMM measurement, which allocates too.
        let peak_rss_mb = peak_rss_mb();
        let median_s = median(&seconds);
        let gflops = 2e-9 * macs as f64 / median_s;
        let peak_gflops = peak_gflops(bench.precision);
        Self {
            model: bench.model.clone(),
            batch: bench.batch,
            objective: bench.objective.clone(),
            region: bench.region,
            prototypes: bench.prototypes,
            precision: bench.precision.name(),
            isa: isa::current().name(),
            threads: rayon::current_num_threads(),
            median_s,
            seconds,
            images_per_s: bench.batch as f64 / median_s,
            gflops,
            share_of_peak: gflops / peak_gflops,
            peak_gflops,
            limit_gflops: limit_gflops(bench.precision),
            peak_rss_mb,
        }
    }
}

/// A benchmark cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The architecture does not exist.
    #[error("there is no architecture `{0}`\nhint: `esvit info` lists them")]
    Architecture(String),
    /// The objective does not exist.
    #[error("there is no objective `{0}`")]
    Objective(String),
    /// The objective cannot be built from its defaults alone.
    #[error(
        "`{0}` needs more than its defaults, such as a teacher: its steps cannot be timed here"
    )]
    NotReady(String),
    /// A setting is invalid.
    #[error("{0}")]
    Setting(String),
    /// The network does not take images of this size, or is none for the objective.
    #[error(transparent)]
    Invalid(#[from] SettingError),
    /// A training step failed.
    #[error("a step failed: {0}")]
    Step(String),
    /// The test image cannot be made or read.
    #[error("the test image: {0}")]
    Image(String),
}

/// Peak GEMM throughput of this machine in GFLOP/s.
pub fn peak_gflops(precision: Precision) -> f64 {
    // Takes a few tenths of a second, so that other load does not disturb all rounds.
    const ROUNDS: usize = 40;
    gemm_gflops(precision, ROUNDS)
}

/// The machine's own limit in GFLOP/s: that of the instructions that GEMM takes in a precision, on
/// registers alone.
pub fn limit_gflops(precision: Precision) -> f64 {
    const ROUNDS: usize = 20;
    register_gflops(precision, ROUNDS)
}

/// Throughput of GEMM in GFLOP/s, the best of some rounds.
fn gemm_gflops(precision: Precision, rounds: usize) -> f64 {
    2e-9 * match precision {
        Precision::F32 => peak::gemm_rate::<f32>(rounds),
        Precision::Bf16 => peak::gemm_rate::<Bf16>(rounds),
        Precision::Bf16x3 => peak::gemm_rate::<Bf16x3>(rounds),
    }
}

/// The same of registers alone.
fn register_gflops(precision: Precision, rounds: usize) -> f64 {
    2e-9 * match precision {
        Precision::F32 => peak::register_rate::<f32>(rounds),
        Precision::Bf16 => peak::register_rate::<Bf16>(rounds),
        // Four products for one.
        Precision::Bf16x3 if isa::current().has_tiles() => {
            peak::register_rate::<Bf16x3>(rounds) / 4.0
        }
        Precision::Bf16x3 => peak::register_rate::<Bf16x3>(rounds),
    }
}

/// Times of `iterations` calls in seconds, after one warm-up.
fn repeat<E>(
    iterations: usize,
    mut call: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    call(0)?;
    // The profile must not include the warm-up.
    drop(profile::take());
    (1..=iterations.max(1))
        .map(|iteration| {
            let began = Instant::now();
            call(iteration)?;
            Ok(began.elapsed().as_secs_f64())
        })
        .collect()
}

/// The same for calls that do not fail.
pub(crate) fn time(iterations: usize, mut call: impl FnMut(usize)) -> Vec<f64> {
    let seconds = repeat::<Infallible>(iterations, |iteration| {
        call(iteration);
        Ok(())
    });
    seconds.unwrap_or_else(|never| match never {})
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Peak resident memory in MiB, from `/proc`; 0 if unknown.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kilobytes.map_or(0.0, |kilobytes: f64| kilobytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn bench() -> Bench {
        Bench {
            model: "swin_tiny_w7".into(),
            batch: 6,
            global_size: 32,
            local_size: 32,
            local_crops: 1,
            crops_per_forward: 0,
            activation_checkpointing: false,
            micro_batch: 0,
            objective: "esvit".into(),
            prototypes: 16,
            region: false,
            precision: Precision::F32,
            iterations: 1,
            device: esvit_nn::Device::Cpu,
        }
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn the_first_call_is_not_timed_and_one_always_is() {
        let counts = |iterations| {
            let mut calls = Vec::new();
            let seconds = repeat::<std::convert::Infallible>(iterations, |call| {
                calls.push(call);
                Ok(())
            });
            (calls, seconds.unwrap().len())
        };
        assert_eq!(counts(3), (vec![0, 1, 2, 3], 3));
        assert_eq!(counts(0), (vec![0, 1], 1));
    }

    #[test]
    fn reports_are_about_the_median() {
        let report = Report::new(&bench(), vec![3.0, 1.0, 2.0], 10_000_000_000);
        assert_eq!((report.median_s, report.images_per_s, report.gflops), (2.0, 3.0, 10.0));
        assert_eq!(report.seconds, [3.0, 1.0, 2.0]);
        assert!((report.share_of_peak - 10.0 / report.peak_gflops).abs() < 1e-12);
    }

    #[test]
    fn batches_that_cannot_be_cut_and_unknown_networks_are_refused() {
        let error = |bench: &Bench| train_step(bench).unwrap_err().to_string();
        let cut = error(&Bench { micro_batch: 4, ..bench() });
        assert_eq!(cut, "a batch of 6 cannot be cut into micro-batches of 4");
        assert!(error(&Bench { batch: 0, ..bench() }).contains("a batch of 0"));
        assert!(error(&Bench { model: "x".into(), ..bench() }).contains("architecture `x`"));
    }
}
