//! Options of linear probes.

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_eval::probe::{self, BLOCKS, Elevater, Logistic, Probe, SGD_LRS, Sgd, Solver};
use esvit_nn::BackboneConfig;
use serde::Serialize;

/// Solver of the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum SolverArg {
    /// SGD with momentum, all learning rates at once.
    Sgd,
    /// L2-regularized logistic regression with L-BFGS.
    Logistic,
    /// ELEVATER's search over learning rate and L2 penalty.
    Elevater,
}

/// Options of a linear probe.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct ProbeArgs {
    /// Solver of the classifier.
    #[arg(long, value_enum, default_value_t = SolverArg::Sgd)]
    solver: SolverArg,
    /// Numbers of last blocks whose features are tried [default: 1 4]
    #[arg(long, value_name = "N", num_args = 1.., alias = "n_last_blocks")]
    n: Vec<usize>,
    /// Learning rates to try, for a batch size of 256 [default: 0.001 to 10, for `elevater` 1e-6 to
    /// 0.1]
    #[arg(long, value_name = "LR", num_args = 1..)]
    lr: Vec<f64>,
    /// L2 penalties that `logistic` tries [default: 1e-7 to 10]
    #[arg(long, value_name = "L2", num_args = 1..)]
    l2: Vec<f64>,
    /// Number of epochs of `sgd` [default: 100]
    #[arg(long, value_name = "COUNT")]
    epochs: Option<usize>,
    /// Batch size of `sgd` and `elevater` [default: 256]
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,
    /// Standardize features to mean 0 and variance 1, like a BatchNorm without affine parameters.
    #[arg(long)]
    standardize: bool,
    /// Do not refit the best setting to all training images.
    #[arg(long)]
    no_refit: bool,
    /// Random seed.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

impl ProbeArgs {
    /// The probe for a network of this configuration.
    pub(super) fn probe(&self, shape: &BackboneConfig) -> Result<Probe> {
        let ns = match &self.n[..] {
            [] => BLOCKS.map(|n| n.min(shape.feature_block())).to_vec(),
            ns => ns.to_vec(),
        };
        Ok(Probe {
            solver: self.solver()?,
            blocks: probe::last_blocks(shape, &ns)?,
            standardize: self.standardize,
            refit: !self.no_refit,
            metric: None,
        })
    }

    /// The solver; fails for options that it does not use.
    fn solver(&self) -> Result<Solver> {
        let or = |given: &[f64], default: &[f64]| {
            if given.is_empty() { default.to_vec() } else { given.to_vec() }
        };
        let sgd = Sgd {
            epochs: self.epochs.unwrap_or(Sgd::default().epochs),
            batch: self.batch.unwrap_or(Sgd::default().batch),
            seed: self.seed,
            ..Sgd::default()
        };
        let solver = match self.solver {
            SolverArg::Sgd => Solver::Sgd { lrs: or(&self.lr, &SGD_LRS), sgd },
            SolverArg::Logistic => {
                let logistic = Logistic::default();
                Solver::Logistic(Logistic { l2s: or(&self.l2, &logistic.l2s), ..logistic })
            }
            SolverArg::Elevater => {
                let elevater = Elevater::default();
                let tuning = Sgd { epochs: elevater.tuning.epochs, ..sgd };
                Solver::Elevater(Elevater { lrs: or(&self.lr, &elevater.lrs), tuning, ..elevater })
            }
        };
        let given = [
            ("--lr", !self.lr.is_empty(), &[SolverArg::Sgd, SolverArg::Elevater][..]),
            ("--l2", !self.l2.is_empty(), &[SolverArg::Logistic]),
            ("--epochs", self.epochs.is_some(), &[SolverArg::Sgd]),
            ("--batch", self.batch.is_some(), &[SolverArg::Sgd, SolverArg::Elevater]),
        ];
        for (option, given, used_by) in given {
            if given && !used_by.contains(&self.solver) {
                bail!("`{option}` is not used by `--solver {}`", solver.name());
            }
        }
        Ok(solver)
    }
}
