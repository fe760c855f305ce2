//! `esvit bench`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use esvit_eval::bench::{self, DataBench, KernelReport, KnnBench, Report};
use esvit_kernels::isa::{self, Isa};
use esvit_kernels::profile;
use esvit_nn::ops::Precision;

use super::exit::Exit;
use super::output::Output;
use super::profile_table::profile_table;

/// Measures how fast this machine is at what the program does.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
    /// Threads of the kernels; by default one a core.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Timed repetitions.
    #[arg(long, global = true, default_value_t = 5, value_name = "N")]
    iterations: usize,
    /// Best instruction set to use, to compare it with what the machine has.
    #[arg(long, global = true, value_name = "NAME")]
    isa: Option<InstructionSet>,
    /// Prints a table of where the time goes.
    #[arg(long, global = true)]
    profile: bool,
    /// One JSON object instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A whole optimizer step on made-up images: teacher, student, loss, backward, clipping,
    /// AdamW, moving average.
    TrainStep(Shape),
    /// View and region features of a batch of images.
    Forward(Shape),
    /// The loss of the region task over the prototypes, forward and backward, without networks.
    Objective(Shape),
    /// Kernels one by one, and the peak GEMM rate of this machine.
    Kernels {
        /// Type of GEMM operands.
        #[arg(long, default_value = "auto")]
        precision: PrecisionName,
    },
    /// k-NN classification of made-up features, the training side piece by piece.
    Knn {
        /// Number of training rows.
        #[arg(long, default_value_t = 1_280_000)]
        train: usize,
        /// Number of query rows.
        #[arg(long, default_value_t = 5_000)]
        queries: usize,
        /// Width of a feature.
        #[arg(long, default_value_t = 768)]
        width: usize,
        /// Number of neighbors.
        #[arg(long, default_value_t = 20)]
        k: usize,
    },
    /// Decoding a JPEG and making its ten views, on one core.
    Data {
        /// An image file; by default a built-in one of 256 x 256.
        #[arg(long, value_name = "FILE", alias = "picture")]
        image: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Shape {
    /// Architecture: `esvit info` lists them; `monolithic_small` is a single-scale one to compare
    /// with.
    #[arg(long, default_value = "swin_tiny")]
    model: String,
    /// Images of a step or a pass.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Side of a global crop, in pixels.
    #[arg(long, default_value_t = 224)]
    global_size: usize,
    /// Side of a local crop, in pixels.
    #[arg(long, default_value_t = 96)]
    local_size: usize,
    /// Local crops of an image.
    #[arg(long, default_value_t = 8)]
    local_crops: usize,
    /// Crops that go through the student at a time; 0 for what memory suggests.
    #[arg(long, default_value_t = 0)]
    crops_per_forward: usize,
    /// Keeps less for the backward pass and computes it again.
    #[arg(long)]
    activation_checkpointing: bool,
    /// Images that go through the networks at a time; 0 for all.
    #[arg(long, default_value_t = 0)]
    micro_batch: usize,
    /// Prototypes of a head.
    #[arg(long, default_value_t = 65_536)]
    prototypes: usize,
    /// Trains the view task alone.
    #[arg(long)]
    view_only: bool,
    /// Type of GEMM operands and of saved activations.
    #[arg(long, default_value = "auto")]
    precision: PrecisionName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PrecisionName {
    Auto,
    F32,
    Bf16,
}

impl PrecisionName {
    pub(super) fn resolve(self) -> Precision {
        match self {
            Self::Auto => Precision::auto(),
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum InstructionSet {
    Baseline,
    Avx2,
    Avx512,
    #[value(name = "avx512-bf16")]
    Avx512Bf16,
}

impl Bench {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if let Some(threads) = self.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("cannot set the number of threads")?;
        }
        if let Some(set) = self.isa {
            isa::limit(match set {
                InstructionSet::Baseline => Isa::Baseline,
                InstructionSet::Avx2 => Isa::Avx2,
                InstructionSet::Avx512 => Isa::Avx512,
                InstructionSet::Avx512Bf16 => Isa::Avx512Bf16,
            });
        }
        let iterations = self.iterations;
        profile::enable(self.profile);
        match &self.what {
            What::TrainStep(shape) => {
                self.show(output, &bench::train_step(&shape.bench(iterations))?)?;
            }
            What::Forward(shape) => {
                self.show(output, &bench::forward(&shape.bench(iterations))?)?
            }
            What::Objective(shape) => {
                self.show(output, &bench::objective(&shape.bench(iterations))?)?;
            }
            What::Kernels { precision } => {
                let precision = precision.resolve();
                let (peak, kernels) = bench::kernels(precision, iterations);
                if self.json {
                    output.json(&serde_json::json!({
                        "isa": isa::current().name(),
                        "precision": precision.name(),
                        "peak_gflops": peak,
                        "kernels": kernels,
                    }))?;
                } else {
                    output.result(kernel_table(precision, peak, &kernels))?;
                }
            }
            What::Knn { train, queries, width, k } => {
                let [train, queries, width, k] = [train, queries, width, k].map(|n| *n);
                if [train, queries, width, k].contains(&0) {
                    bail!("`--train`, `--queries`, `--width` and `--k` must be at least 1");
                }
                let report = bench::knn(&KnnBench { train, queries, width, k });
                if self.json {
                    output.json(&report)?;
                } else {
                    output.result(format!(
                        "{:.1} s, {:.0} GFLOP/s, {:.0} % of peak GEMM ({:.0} GFLOP/s)\n\
                         {:.0} MB at most, {} threads",
                        report.seconds,
                        report.gflops,
                        100.0 * report.share_of_peak,
                        report.peak_gflops,
                        report.peak_rss_mb,
                        report.threads
                    ))?;
                }
            }
            What::Data { image } => {
                let report = bench::data(&DataBench { image: image.clone(), iterations })?;
                if self.json {
                    output.json(&report)?;
                } else {
                    output.result(format!(
                        "{} x {}: decoding {:.2} ms, ten views {:.2} ms, together {:.2} ms \
                         ({:.1} images a second on one core)",
                        report.size[0],
                        report.size[1],
                        report.decode_ms,
                        report.views_ms,
                        report.total_ms,
                        report.images_per_s
                    ))?;
                }
            }
        }
        Ok(Exit::Success)
    }

    fn show(&self, output: &Output, report: &Report) -> Result<()> {
        let repetitions = report.seconds.len();
        if self.json {
            output.json(report)?;
        } else {
            output.result(format!(
                "{:.3} s (median of {}), {:.2} images a second\n\
                 {:.0} GFLOP/s, {:.0} % of peak GEMM ({:.0} GFLOP/s)\n\
                 {:.0} MB at most, {}, {} threads",
                report.median_s,
                report.seconds.len(),
                report.images_per_s,
                report.gflops,
                100.0 * report.share_of_peak,
                report.peak_gflops,
                report.peak_rss_mb,
                report.precision,
                report.threads
            ))?;
        }
        if self.profile {
            output.note(profile_table(report.peak_gflops, Some(repetitions as u64)));
        }
        Ok(())
    }
}

impl Shape {
    fn bench(&self, iterations: usize) -> bench::Bench {
        bench::Bench {
            model: self.model.clone(),
            batch: self.batch,
            global_size: self.global_size,
            local_size: self.local_size,
            local_crops: self.local_crops,
            crops_per_forward: self.crops_per_forward,
            activation_checkpointing: self.activation_checkpointing,
            micro_batch: self.micro_batch,
            prototypes: self.prototypes,
            region: !self.view_only,
            precision: self.precision.resolve(),
            iterations,
        }
    }
}

fn kernel_table(precision: Precision, peak: f64, kernels: &[KernelReport]) -> String {
    let mut text = format!(
        "{}, {}: peak GEMM {peak:.0} GFLOP/s\n{:16} {:>20} {:>10} {:>9} {:>7}",
        isa::current().name(),
        precision.name(),
        "kernel",
        "rows x in x out",
        "median",
        "GFLOP/s",
        "share"
    );
    for report in kernels {
        let [rows, inputs, outputs] = report.shape;
        text.push_str(&format!(
            "\n{:16} {:>20} {:>7.2} ms {:>9.0} {:>5.0} %",
            report.kernel,
            format!("{rows} x {inputs} x {outputs}"),
            report.median_s * 1e3,
            report.gflops,
            100.0 * report.share_of_peak
        ));
    }
    text
}
