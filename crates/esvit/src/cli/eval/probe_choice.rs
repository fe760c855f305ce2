//! Options of a linear probe.

use anyhow::{Result, bail};
use clap::ValueEnum;
use esvit_eval::probe::{self, Elevater, Logistic, Probe, SGD_LRS, Sgd, Solver};
use esvit_nn::SwinConfig;
use serde::Serialize;

/// Numbers of last blocks that are tried unless others are named: those of published probes.
const BLOCKS: [usize; 2] = [1, 4];

/// How the classifier is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum SolverName {
    /// Stochastic gradient descent with momentum, all learning rates at once.
    Sgd,
    /// Logistic regression by L-BFGS, with an L2 penalty.
    Logistic,
    /// ELEVATER's tuning of learning rate and L2 penalty.
    Elevater,
}

/// A linear probe.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct ProbeChoice {
    /// How the classifier is fitted.
    #[arg(long, value_enum, default_value_t = SolverName::Sgd)]
    solver: SolverName,
    /// Numbers of last blocks whose features are tried [default: 1 4].
    #[arg(long, value_name = "N", num_args = 1.., alias = "n_last_blocks")]
    n: Vec<usize>,
    /// Learning rates for a batch of 256 that are tried [default: 0.001 to 10, for `elevater`
    /// 1e-6 to 0.1].
    #[arg(long, value_name = "LR", num_args = 1..)]
    lr: Vec<f64>,
    /// Strengths of the L2 penalty that `logistic` tries [default: 1e-7 to 10].
    #[arg(long, value_name = "L2", num_args = 1..)]
    l2: Vec<f64>,
    /// Passes of `sgd` over the training images [default: 100].
    #[arg(long, value_name = "COUNT")]
    epochs: Option<usize>,
    /// Images a step of `sgd` and `elevater` [default: 256].
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,
    /// Gives every column of the features the mean 0 and the variance 1, as a batch norm without
    /// parameters.
    #[arg(long)]
    standardize: bool,
    /// Does not fit the chosen setting again to all training images.
    #[arg(long)]
    no_refit: bool,
    /// Seed of starts, orders, augmentation and draws.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

impl ProbeChoice {
    /// The probe for a network of some shape.
    pub(super) fn probe(&self, shape: &SwinConfig) -> Result<Probe> {
        let ns = match &self.n[..] {
            [] => BLOCKS.map(|n| n.min(shape.depths.iter().sum())).to_vec(),
            ns => ns.to_vec(),
        };
        Ok(Probe {
            solver: self.solver()?,
            suffixes: probe::suffixes(shape, &ns)?,
            standardize: self.standardize,
            refit: !self.no_refit,
        })
    }

    fn solver(&self) -> Result<Solver> {
        self.refuse_unused()?;
        let or = |given: &[f64], default: &[f64]| {
            if given.is_empty() { default.to_vec() } else { given.to_vec() }
        };
        let sgd = Sgd {
            epochs: self.epochs.unwrap_or(Sgd::default().epochs),
            batch: self.batch.unwrap_or(Sgd::default().batch),
            seed: self.seed,
            ..Sgd::default()
        };
        Ok(match self.solver {
            SolverName::Sgd => Solver::Sgd { lrs: or(&self.lr, &SGD_LRS), sgd },
            SolverName::Logistic => {
                let logistic = Logistic::default();
                Solver::Logistic(Logistic { l2s: or(&self.l2, &logistic.l2s), ..logistic })
            }
            SolverName::Elevater => {
                let elevater = Elevater::default();
                let tuning = Sgd { epochs: elevater.tuning.epochs, ..sgd };
                Solver::Elevater(Elevater { lrs: or(&self.lr, &elevater.lrs), tuning, ..elevater })
            }
        })
    }

    /// An option that the solver does not look at is a mistake.
    fn refuse_unused(&self) -> Result<()> {
        let given = [
            ("--lr", !self.lr.is_empty(), &[SolverName::Sgd, SolverName::Elevater][..]),
            ("--l2", !self.l2.is_empty(), &[SolverName::Logistic]),
            ("--epochs", self.epochs.is_some(), &[SolverName::Sgd]),
            ("--batch", self.batch.is_some(), &[SolverName::Sgd, SolverName::Elevater]),
        ];
        for (option, is_given, used_by) in given {
            if is_given && !used_by.contains(&self.solver) {
                bail!("`{option}` is not used by `--solver {}`", self.solver.name());
            }
        }
        Ok(())
    }
}

impl SolverName {
    fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Logistic => "logistic",
            Self::Elevater => "elevater",
        }
    }
}
