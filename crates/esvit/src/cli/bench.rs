//! `esvit bench`.

mod choices;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use esvit_eval::bench::{self, BenchError, DataReport, KernelReport, KnnBench, KnnReport, Report};
use esvit_kernels::isa::{self, Isa};
use esvit_kernels::profile;
use esvit_nn::Device;
use esvit_nn::ops::Precision;
use esvit_train::objective::ObjectiveConfig;

use super::profile_table::profile_table;
use super::{Exit, Output};

/// The objective of all benchmarks that do not name one.
const ESVIT: &str = "esvit";

/// Options of `esvit bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Number of timed repetitions.
    #[arg(long, global = true, default_value_t = 5, value_name = "N")]
    iterations: usize,
    /// Do not use instruction sets beyond this one; one of other processors leaves `baseline`.
    #[arg(long, global = true, value_name = "NAME", value_parser = isa_parser(&Isa::ALL))]
    isa: Option<Isa>,
    /// Device of training step, forward pass and objective.
    #[arg(long, global = true, default_value = "cpu", value_name = "NAME")]
    device: Device,
    /// Print the time spent in each phase.
    #[arg(long, global = true)]
    profile: bool,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Training step on synthetic images: teacher and student forward, loss, backward, gradient
    /// clipping, AdamW, EMA.
    TrainStep {
        #[command(flatten)]
        args: StepArgs,
        /// What is trained, with its defaults (see `esvit config --objective NAME`); heads and tasks of
        /// `esvit` are those of `--prototypes` and `--view-only`.
        #[arg(long, value_name = "NAME", default_value = ESVIT,
              value_parser = PossibleValuesParser::new(ObjectiveConfig::NAMES))]
        objective: String,
    },
    /// Forward pass of a backbone.
    Forward(StepArgs),
    /// This machine: products, training steps and forward passes by each instruction set and precision, beside
    /// what `auto` takes, in two minutes.
    #[command(name = "self")]
    Machine(NetworkShape),
    /// Cross-entropy over the prototypes, forward and backward, without a network.
    Objective(StepArgs),
    /// Single kernels, and the peak GEMM throughput of this machine.
    Kernels {
        /// Precision of GEMM operands.
        #[arg(long, default_value = "auto", value_parser = precision_parser())]
        precision: Precision,
    },
    /// k-NN classification of synthetic features, generated and searched in chunks.
    Knn {
        /// Number of training features.
        #[arg(long, default_value_t = 1_280_000)]
        train: usize,
        /// Number of query features.
        #[arg(long, default_value_t = 5_000)]
        queries: usize,
        /// Feature dimension.
        #[arg(long, default_value_t = 768)]
        width: usize,
        /// Number of neighbors.
        #[arg(long, default_value_t = 20)]
        k: usize,
    },
    /// JPEG decoding and multi-crop augmentation (ten views) on one core.
    Data {
        /// Image file [default: a built-in image of 256 x 256 pixels]
        #[arg(long, value_name = "FILE", alias = "picture")]
        image: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct StepArgs {
    #[command(flatten)]
    shape: NetworkShape,
    /// Precision of GEMM operands and saved activations.
    #[arg(long, default_value = "auto", value_parser = precision_parser())]
    precision: Precision,
}

#[derive(Debug, Args)]
struct NetworkShape {
    /// Architecture (see `esvit info`), or `monolithic_small`, a single-scale baseline.
    #[arg(long, value_name = "NAME", alias = "model", default_value = "swin_tiny_w7")]
    arch: String,
    /// Batch size.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Size of global crops in pixels.
    #[arg(long, default_value_t = 224)]
    global_size: usize,
    /// Size of local crops in pixels.
    #[arg(long, default_value_t = 96)]
    local_size: usize,
    /// Number of local crops per image [default: 8, or none with another objective than `esvit`]
    #[arg(long, value_name = "N")]
    local_crops: Option<usize>,
    /// Crops per student forward pass; 0 chooses by memory.
    #[arg(long, default_value_t = 0)]
    crops_per_forward: usize,
    /// Recompute activations in the backward pass instead of saving them.
    #[arg(long)]
    activation_checkpointing: bool,
    /// Images per micro-batch; 0 for the whole batch.
    #[arg(long, default_value_t = 0)]
    micro_batch: usize,
    /// Number of prototypes of each head [default: 65536]
    #[arg(long, value_name = "N")]
    prototypes: Option<usize>,
    /// Train with the view loss only.
    #[arg(long)]
    view_only: bool,
}

/// Parses a precision.
pub(super) fn precision_parser() -> impl TypedValueParser<Value = Precision> {
    let names = ["auto"].into_iter().chain(Precision::ALL.map(Precision::name));
    PossibleValuesParser::new(names).map(|name| {
        let named = Precision::ALL.into_iter().find(|precision| precision.name() == name);
        named.unwrap_or_else(Precision::auto)
    })
}

/// Parses the name of one of these instruction sets.
pub(super) fn isa_parser(of: &'static [Isa]) -> impl TypedValueParser<Value = Isa> {
    let named = move |name: String| of.iter().copied().find(|isa| isa.name() == name);
    PossibleValuesParser::new(of.iter().copied().map(Isa::name))
        .map(move |name| named(name).unwrap_or(Isa::Baseline))
}

impl Bench {
    pub(super) fn is_of_forward_pass(&self) -> bool {
        matches!(self.benchmark, Benchmark::Forward(_))
    }

    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if let Some(isa) = self.isa {
            isa::limit(isa);
        }
        let iterations = self.iterations;
        profile::enable(self.profile);
        let remark = |precision: Precision| {
            precision.remark().into_iter().for_each(|remark| output.note(remark));
        };
        let step = |bench: fn(&_) -> Result<Report, BenchError>, args: &StepArgs, of: &str| {
            remark(args.precision);
            let settings = args.shape.bench(of, args.precision, iterations, self.device);
            self.show(output, &bench(&settings)?)
        };
        match &self.benchmark {
            Benchmark::TrainStep { args, objective } => {
                args.shape.check_objective(objective)?;
                step(bench::train_step, args, objective)?;
            }
            Benchmark::Forward(args) => step(bench::forward, args, ESVIT)?,
            Benchmark::Objective(args) => step(bench::objective, args, ESVIT)?,
            Benchmark::Machine(shape) => {
                let bench = shape.bench(ESVIT, Precision::F32, iterations, self.device);
                choices::show(&bench, self.json, output)?;
            }
            &Benchmark::Kernels { precision } => {
                remark(precision);
                let (peak, kernels) = bench::kernels(precision, iterations);
                let limit = bench::limit_gflops(precision);
                let report = serde_json::json!({
                    "isa": isa::current().name(),
                    "precision": precision.name(),
                    "peak_gflops": peak,
                    "limit_gflops": limit,
                    "kernels": kernels,
                });
                output.print(self.json, &report, || {
                    kernel_table(precision, [peak, limit], &kernels)
                })?;
            }
            &Benchmark::Knn { train, queries, width, k } => {
                if [train, queries, width, k].contains(&0) {
                    bail!("`--train`, `--queries`, `--width` and `--k` must be at least 1");
                }
                let report = bench::knn(&KnnBench { train, queries, width, k });
                output.print(self.json, &report, || knn_text(&report))?;
            }
            Benchmark::Data { image } => {
                let report = bench::data(image.as_deref(), iterations)?;
                output.print(self.json, &report, || data_text(&report))?;
            }
        }
        Ok(Exit::Success)
    }

    fn show(&self, output: &Output, report: &Report) -> Result<()> {
        let repetitions = report.seconds.len();
        output.print(self.json, report, || {
            let Report { median_s, images_per_s, gflops, share_of_peak, peak_gflops, .. } = report;
            let Report { peak_rss_mb, precision, threads, limit_gflops, .. } = report;
            format!(
                "{median_s:.3} s (median of {repetitions}), {images_per_s:.2} images per second\n\
                 {gflops:.0} GFLOP/s, {:.0} % of peak GEMM ({peak_gflops:.0} GFLOP/s; registers \
                 alone {limit_gflops:.0})\n\
                 {peak_rss_mb:.0} MB peak memory, {precision}, {threads} threads",
                100.0 * share_of_peak,
            )
        })?;
        if self.profile {
            output.note(profile_table(report.peak_gflops, Some(repetitions as u64)));
        }
        Ok(())
    }
}

impl NetworkShape {
    /// Refuses what only EsViT has.
    fn check_objective(&self, objective: &str) -> Result<()> {
        let only = match (objective, self.prototypes, self.view_only) {
            (ESVIT, ..) | (_, None, false) => return Ok(()),
            (_, Some(_), _) => "--prototypes",
            (_, None, true) => "--view-only",
        };
        bail!("`{only}` is of `--objective {ESVIT}`: `{objective}` is timed with its defaults");
    }

    fn bench(
        &self,
        objective: &str,
        precision: Precision,
        iterations: usize,
        device: Device,
    ) -> bench::Bench {
        let local_crops = if objective == ESVIT { 8 } else { 0 };
        bench::Bench {
            model: self.arch.clone(),
            batch: self.batch,
            global_size: self.global_size,
            local_size: self.local_size,
            local_crops: self.local_crops.unwrap_or(local_crops),
            crops_per_forward: self.crops_per_forward,
            activation_checkpointing: self.activation_checkpointing,
            micro_batch: self.micro_batch,
            objective: objective.into(),
            prototypes: self.prototypes.unwrap_or(65_536),
            region: !self.view_only,
            precision,
            iterations,
            device,
        }
    }
}

fn knn_text(report: &KnnReport) -> String {
    let KnnReport { seconds, gflops, share_of_peak, peak_gflops, peak_rss_mb, threads, .. } =
        report;
    format!(
        "{seconds:.1} s, {gflops:.0} GFLOP/s, {:.0} % of peak GEMM ({peak_gflops:.0} GFLOP/s)\n\
         {peak_rss_mb:.0} MB peak memory, {threads} threads",
        100.0 * share_of_peak,
    )
}

fn data_text(report: &DataReport) -> String {
    let DataReport { size: [width, height], decode_ms, views_ms, total_ms, images_per_s } = report;
    format!(
        "{width} x {height}: decoding {decode_ms:.2} ms, ten views {views_ms:.2} ms, total \
         {total_ms:.2} ms ({images_per_s:.1} images per second on one core)"
    )
}

fn kernel_table(precision: Precision, [peak, limit]: [f64; 2], kernels: &[KernelReport]) -> String {
    let mut text = format!(
        "{}, {}: peak GEMM {peak:.0} GFLOP/s, registers alone {limit:.0}\n\
         kernel                rows x in x out     median   GFLOP/s   share",
        isa::current().name(),
        precision.name(),
    );
    for KernelReport {
        kernel,
        shape: [rows, inputs, outputs],
        median_s,
        gflops,
        share_of_peak,
        ..
    } in kernels
    {
        text.push_str(&format!(
            "\n{kernel:16} {:>20} {:>7.2} ms {gflops:>9.0} {:>5.0} %",
            format!("{rows} x {inputs} x {outputs}"),
            median_s * 1e3,
            100.0 * share_of_peak
        ));
    }
    text
}
