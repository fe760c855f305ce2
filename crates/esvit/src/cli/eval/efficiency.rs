//! `esvit eval efficiency`.

use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use esvit_eval::bench::{MONOLITHIC, architecture};
use esvit_eval::efficiency::{self, BackboneCost, Cost, StepCosts};
use esvit_nn::{Device, ForwardCtx};
use serde_json::Value;

use crate::cli::{Exit, Output};

/// Options of `esvit eval efficiency`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Efficiency {
    /// Architectures (see `esvit info`), and `monolithic_small`, a single-scale baseline.
    #[arg(long, value_name = "NAME", num_args = 1.., default_values = [MONOLITHIC, "swin_tiny"])]
    models: Vec<String>,
    /// Batch sizes of training steps, tried in order until one fails.
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1, 2, 4])]
    batches: Vec<usize>,
    /// Number of prototypes of each head.
    #[arg(long, default_value_t = 65_536)]
    prototypes: usize,
    /// Size of global crops, and of the images of the forward pass, in pixels.
    #[arg(long, default_value_t = 224)]
    global_size: usize,
    /// Size of local crops in pixels.
    #[arg(long, default_value_t = 96)]
    local_size: usize,
    /// Number of local crops per image.
    #[arg(long, default_value_t = 8)]
    local_crops: usize,
    /// Precision of GEMM operands: `auto`, `f32`, `bf16` or `bf16x3`.
    #[arg(long, default_value = "auto")]
    precision: String,
    /// Device.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: Device,
    /// Number of timed repetitions of each step.
    #[arg(long, default_value_t = 3)]
    iterations: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Batch size of the timed forward pass.
const FORWARD_BATCH: usize = 8;

impl Efficiency {
    pub(in crate::cli) fn run(self, output: &Output) -> Result<Exit> {
        let backbones: Vec<BackboneCost> =
            self.models.iter().map(|model| self.measure(model, output)).collect::<Result<_>>()?;
        let report = serde_json::json!({
            "prototypes": self.prototypes,
            "global_size": self.global_size,
            "local_size": self.local_size,
            "local_crops": self.local_crops,
            "precision": self.precision,
            "backbones": backbones,
        });
        output.print(self.json, &report, || efficiency::table(&backbones))?;
        Ok(Exit::Success)
    }

    fn measure(&self, model: &str, output: &Output) -> Result<BackboneCost> {
        let (config, _) = architecture(model)?;
        output.note(format!("{model}: forward"));
        let forward = self.bench("forward", model, FORWARD_BATCH, false)?;
        let mut steps = Vec::new();
        let mut stopped = None;
        for &batch in &self.batches {
            output.note(format!("{model}: training step, batch {batch}"));
            let cost = |view_only| -> Result<Cost> {
                let report = self.bench("train-step", model, batch, view_only)?;
                Ok(Cost {
                    seconds: number(&report, "median_s")?,
                    memory_mb: number(&report, "peak_rss_mb")?,
                })
            };
            match cost(true).and_then(|view| Ok(StepCosts::new(batch, view, cost(false)?))) {
                Ok(measured) => steps.push(measured),
                Err(error) if steps.is_empty() => return Err(error),
                Err(error) => {
                    stopped = Some(format!("batch {batch}: {error}"));
                    break;
                }
            }
        }
        let cost = config.cost([self.global_size; 2], 0.0, &ForwardCtx::eval());
        Ok(BackboneCost {
            model: model.into(),
            stages: config.stages().len(),
            parameters: efficiency::parameters(&config),
            macs: cost.official_macs(),
            forward_images_per_s: number(&forward, "images_per_s")?,
            steps,
            stopped,
        })
    }

    /// Runs one measurement in its own process, so that its peak memory is its own.
    fn bench(&self, what: &str, model: &str, batch: usize, view_only: bool) -> Result<Value> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.args(["bench", what, "--json", "--arch", model, "--precision", &self.precision]);
        command.args(["--device", self.device.name()]);
        for (flag, value) in [
            ("--batch", batch),
            ("--prototypes", self.prototypes),
            ("--global-size", self.global_size),
            ("--local-size", self.local_size),
            ("--local-crops", self.local_crops),
            ("--iterations", self.iterations),
        ] {
            command.args([flag, &value.to_string()]);
        }
        if view_only {
            command.arg("--view-only");
        }
        let child_output = command.output().context("cannot start this program again")?;
        if !child_output.status.success() {
            let stderr = String::from_utf8_lossy(&child_output.stderr);
            match stderr.lines().find(|line| !line.is_empty()) {
                Some(line) => bail!("{}", line.trim_start_matches("error: ")),
                None => bail!("ended with {}, possibly out of memory", child_output.status),
            }
        }
        serde_json::from_slice(&child_output.stdout).context("a measurement is not JSON")
    }
}

fn number(report: &Value, key: &str) -> Result<f64> {
    report[key].as_f64().ok_or_else(|| anyhow!("a measurement has no `{key}`"))
}
