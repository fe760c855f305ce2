//! How fast this machine is at what the program does. Figures on a machine that does other things
//! are noisy: medians are told, and ratios within one run are what to go by.

mod architecture;
mod data;
mod forward;
mod kernels;
mod knn;
mod train_step;

use std::time::Instant;

use esvit_kernels::element::Bf16;
use esvit_kernels::{peak, profile};
use esvit_nn::ops::Precision;
use serde::Serialize;

pub use architecture::{MONOLITHIC, architecture};
pub use data::{DataBench, DataReport, data};
pub use forward::forward;
pub use kernels::{KernelReport, kernels};
pub use knn::{KnnBench, KnnReport, knn};
pub use train_step::{objective, train_step};

/// What is timed.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Name of the architecture.
    pub model: String,
    /// Images of a step or a pass.
    pub batch: usize,
    /// Side of a global crop, or of the image of a forward pass.
    pub global_size: usize,
    /// Side of a local crop.
    pub local_size: usize,
    /// Local crops of an image.
    pub local_crops: usize,
    /// Crops that go through the student at a time; 0 for what memory suggests.
    pub crops_per_forward: usize,
    /// Keeps the input of every branch of a block alone and computes the rest again.
    pub activation_checkpointing: bool,
    /// Images that go through the networks at a time; 0 for all.
    pub micro_batch: usize,
    /// Prototypes of a head.
    pub prototypes: usize,
    /// Whether the region task is trained too.
    pub region: bool,
    /// The type of GEMM operands.
    pub precision: Precision,
    /// Timed repetitions, after one that is not.
    pub iterations: usize,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the architecture.
    pub model: String,
    /// Images of a step or a pass.
    pub batch: usize,
    /// Whether the region task is trained too.
    pub region: bool,
    /// Prototypes of a head.
    pub prototypes: usize,
    /// Type of GEMM operands.
    pub precision: &'static str,
    /// Threads of the kernels.
    pub threads: usize,
    /// Median over the repetitions, in seconds.
    pub median_s: f64,
    /// All repetitions, in seconds.
    pub seconds: Vec<f64>,
    /// Images a second at the median.
    pub images_per_s: f64,
    /// Floating-point operations of the GEMMs, a second, at the median, in billions.
    pub gflops: f64,
    /// That as a share of the peak GEMM rate on this machine.
    pub share_of_peak: f64,
    /// Peak GEMM rate, in billions of operations a second.
    pub peak_gflops: f64,
    /// Most memory that the process has had so far, in MB (2^20 bytes); 0 where it is not known.
    pub peak_rss_mb: f64,
}

impl Report {
    /// From the seconds of all repetitions, each of `macs` multiply-accumulates.
    fn new(bench: &Bench, mut seconds: Vec<f64>, macs: u64) -> Self {
        // Before the peak is measured, so that it does not count.
        let peak_rss_mb = peak_rss_mb();
        let all = seconds.clone();
        let median_s = median(&mut seconds);
        let gflops = 2e-9 * macs as f64 / median_s;
        let peak_gflops = peak_gflops(bench.precision);
        Self {
            model: bench.model.clone(),
            batch: bench.batch,
            region: bench.region,
            prototypes: bench.prototypes,
            precision: bench.precision.name(),
            threads: rayon::current_num_threads(),
            median_s,
            seconds: all,
            images_per_s: bench.batch as f64 / median_s,
            gflops,
            share_of_peak: gflops / peak_gflops,
            peak_gflops,
            peak_rss_mb,
        }
    }
}

/// A bench that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No such architecture.
    #[error("there is no architecture `{0}`\nhint: `esvit info` lists them")]
    Architecture(String),
    /// A number that makes no sense.
    #[error("{0}")]
    Setting(String),
    /// A step went wrong.
    #[error("a step failed: {0}")]
    Step(String),
    /// An image could not be made, written or read.
    #[error("the test image: {0}")]
    Image(String),
}

/// The peak GEMM rate of a precision on this machine, in billions of operations a second.
pub fn peak_gflops(precision: Precision) -> f64 {
    // A few tenths of a second, so that other work on the machine does not disturb all of them.
    const ROUNDS: usize = 40;
    2e-9 * match precision {
        Precision::F32 => peak::gemm_rate::<f32>(ROUNDS),
        Precision::Bf16 => peak::gemm_rate::<Bf16>(ROUNDS),
    }
}

/// The seconds that each of `iterations` calls takes, after one that is not timed.
fn repeat<E>(
    iterations: usize,
    mut call: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    call(0)?;
    // What a first call takes is not what the others take.
    drop(profile::take());
    (1..=iterations.max(1))
        .map(|iteration| {
            let began = Instant::now();
            call(iteration)?;
            Ok(began.elapsed().as_secs_f64())
        })
        .collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Most memory that the process has had, in MB, where the system tells.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kilobytes.map_or(0.0, |kilobytes: f64| kilobytes / 1024.0)
}
