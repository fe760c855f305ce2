//! Linear probes: linear classifiers on the frozen features of a backbone.
//!
//! Features are those of the last n blocks, so one matrix has the features of every smaller n in
//! its last columns. Settings (n, learning rate, strength of the L2 penalty) are chosen on a part
//! of the training side that is set aside; the chosen ones are fitted to all of the training side
//! and reported once, on the query side.

mod classifier;
mod dump;
mod elevater;
mod examples;
mod features;
mod few_shot;
mod logistic;
mod loss;
mod metrics;
mod multi_label;
mod sgd;
mod standardize;
mod sweep;

pub use classifier::LinearClassifier;
pub use dump::{DumpError, dump, read_dump};
pub use elevater::{ELEVATER_LRS, Elevater};
pub use examples::{Augmented, Examples, Subset, Targets};
pub use features::{ProbeTask, Sides, Suffix, last_blocks_forward, suffixes};
pub use few_shot::{Draw, FewShot, MeanStd, Spread, few_shot};
pub use logistic::{Logistic, logistic_l2s};
pub(crate) use metrics::rank;
pub use metrics::{
    ClassAccuracy, Metrics, average_precision, eleven_point_precision, wilson_interval,
};
pub use multi_label::{LabelsError, multi_label_task};
pub use sgd::{Head, SGD_LRS, Sgd, train_heads};
pub use standardize::Standardization;
pub use sweep::{Setting, Sweep, Trial};

use serde::Serialize;

use crate::labeled::{HELD_OUT, held_out};

/// How a probe is fitted.
#[derive(Debug, Clone)]
pub enum Solver {
    /// Stochastic gradient descent, by the reference's protocol, for a list of learning rates.
    Sgd {
        /// Learning rates for a batch of 256.
        lrs: Vec<f64>,
        /// Everything else.
        sgd: Sgd,
    },
    /// Logistic regression by L-BFGS.
    Logistic(Logistic),
    /// ELEVATER's automatic tuning.
    Elevater(Elevater),
}

/// A probe.
#[derive(Debug, Clone)]
pub struct Probe {
    /// How it is fitted.
    pub solver: Solver,
    /// The numbers of last blocks that are tried.
    pub suffixes: Vec<Suffix>,
    /// Gives every column the mean 0 and the variance 1 of what is fitted to, as a batch norm
    /// without parameters does.
    pub standardize: bool,
    /// Fits the chosen setting once more, to the part set aside too.
    pub refit: bool,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The chosen setting and what it reaches on the query side.
    pub best: Best,
    /// All settings that were tried.
    pub sweep: Vec<Trial>,
    /// Number of images that the classifier was fitted to.
    pub fitted_to: usize,
    /// Number of images that the setting was chosen on; 0 where there was no choice.
    pub chosen_on: usize,
}

/// A setting and what it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Best {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// On the query side.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// Why there is no probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// A side has no images that can be read.
    #[error("the {set} set has no images")]
    Empty {
        /// `training` or `query`.
        set: &'static str,
    },
    /// The two sides were made by different networks.
    #[error("training features have {train} values and query features {queries}")]
    Width {
        /// Width of the training features.
        train: usize,
        /// Width of the query features.
        queries: usize,
    },
    /// There is nothing to tell apart.
    #[error("all training images are of one class, at least two are needed to tell them apart")]
    OneClass,
    /// Labels that nothing has, or everything.
    #[error("no label is held by some training images and not by others, nothing can be learned")]
    NoContrast,
    /// Average precision has no meaning.
    #[error("no {set} image holds a label, average precision needs at least one")]
    NoPositive {
        /// `query` or `validation`.
        set: &'static str,
    },
    /// Nothing is left to choose a setting on.
    #[error(
        "no training image is left to choose a setting on\n\
         hint: name one setting, such as `--n 4 --lr 0.1`, or give more training images"
    )]
    NoValidation,
    /// No setting led anywhere.
    #[error(
        "every setting diverged\n\
         hint: try smaller learning rates with `--lr`, or `--standardize`"
    )]
    Diverged,
    /// A number that makes no sense.
    #[error("{name} is {value}, it must be {need}")]
    Setting {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        need: String,
    },
    /// An image that could be read once cannot be read again.
    #[error("`{name}` can no longer be read: {reason}")]
    Image {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
}

impl Solver {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Logistic(_) => "logistic",
            Self::Elevater(_) => "elevater",
        }
    }

    fn check(&self) -> Result<(), ProbeError> {
        match self {
            Self::Sgd { lrs, sgd } => {
                sgd.check()?;
                all_positive("a learning rate", lrs)
            }
            Self::Logistic(logistic) => logistic.check(),
            Self::Elevater(elevater) => elevater.check(),
        }
    }

    /// The setting, where there is one only.
    fn only_setting(&self, suffixes: &[Suffix]) -> Option<Setting> {
        let &[suffix] = suffixes else { return None };
        match self {
            Self::Sgd { lrs, .. } => match lrs[..] {
                [lr] => Some(Setting { suffix, lr: Some(lr), l2: None }),
                _ => None,
            },
            Self::Logistic(logistic) => match logistic.l2s[..] {
                [l2] => Some(Setting { suffix, lr: None, l2: Some(l2) }),
                _ => None,
            },
            Self::Elevater(_) => None,
        }
    }

    fn sweep(
        &self,
        fit: &Subset<'_>,
        validation: &Subset<'_>,
        suffixes: &[Suffix],
    ) -> Result<Sweep, ProbeError> {
        match self {
            Self::Sgd { lrs, sgd } => sgd::sweep(sgd, lrs, fit, validation, suffixes),
            Self::Logistic(logistic) => logistic.sweep(fit, validation, suffixes),
            Self::Elevater(elevater) => elevater.sweep(fit, validation, suffixes),
        }
    }

    /// The classifier of one setting.
    fn fit(&self, setting: &Setting, data: &Subset<'_>) -> Result<LinearClassifier, ProbeError> {
        match self {
            Self::Sgd { sgd, .. } => sgd::fit(sgd, setting, data),
            Self::Logistic(logistic) => Ok(logistic.fit(setting, data)),
            Self::Elevater(elevater) => elevater.fit(setting, data),
        }
    }
}

impl Probe {
    /// Probes `train` and reports on `queries`. Every fifth training row is set aside for the
    /// choice of a setting, where there is one. `augmented` gives the training rows' features
    /// anew for every epoch.
    ///
    /// # Errors
    /// When a side is empty, nothing can be told apart, or every setting diverged.
    pub fn run(
        &self,
        train: &Examples,
        queries: &Examples,
        augmented: Option<&Augmented<'_>>,
    ) -> Result<Outcome, ProbeError> {
        let (fit, validation) = held_out(train.len(), HELD_OUT);
        self.run_on(train, queries, augmented, fit, validation)
    }

    /// The same with the rows of `train` that are fitted to and that the setting is chosen on.
    ///
    /// # Errors
    /// As [`Probe::run`].
    pub fn run_on(
        &self,
        train: &Examples,
        queries: &Examples,
        augmented: Option<&Augmented<'_>>,
        fit: Vec<usize>,
        validation: Vec<usize>,
    ) -> Result<Outcome, ProbeError> {
        self.solver.check()?;
        for (set, side) in [("training", train), ("query", queries)] {
            if side.is_empty() {
                return Err(ProbeError::Empty { set });
            }
        }
        if train.width != queries.width {
            return Err(ProbeError::Width { train: train.width, queries: queries.width });
        }
        if let Some(setting) = self.solver.only_setting(&self.suffixes) {
            let rows = fit.into_iter().chain(validation).collect();
            let sweep = vec![Trial { setting, validation: None, validation_loss: None }];
            return self.report(setting, sweep, Subset::new(train, rows, augmented), queries, 0);
        }
        train.targets.check_contrast(&[&fit[..], &validation].concat())?;
        if validation.is_empty() || fit.is_empty() {
            return Err(ProbeError::NoValidation);
        }
        let mut data = Subset::new(train, fit, augmented);
        let mut validation = Subset::new(train, validation, None);
        let norm = self.standardize.then(|| data.standardization());
        let (mut fit, mut tried_on) = (data.clone(), validation.clone());
        fit.standardize(norm.as_ref());
        tried_on.standardize(norm.as_ref());
        let Sweep { trials, best } = self.solver.sweep(&fit, &tried_on, &self.suffixes)?;
        let chosen_on = validation.len();
        if self.refit {
            data.rows.append(&mut validation.rows);
        }
        self.report(best.ok_or(ProbeError::Diverged)?, trials, data, queries, chosen_on)
    }

    /// Fits a setting and says what it reaches on the query side.
    fn report(
        &self,
        setting: Setting,
        sweep: Vec<Trial>,
        data: Subset<'_>,
        queries: &Examples,
        chosen_on: usize,
    ) -> Result<Outcome, ProbeError> {
        data.examples.targets.check_contrast(&data.rows)?;
        let norm = self.standardize.then(|| data.standardization());
        let mut queries = Subset::all(queries);
        let fitted_to = data.len();
        let mut data = data.clone();
        data.standardize(norm.as_ref());
        queries.standardize(norm.as_ref());
        let metrics = Metrics::of(&self.solver.fit(&setting, &data)?, &queries)?;
        Ok(Outcome { best: Best { setting, metrics }, sweep, fitted_to, chosen_on })
    }
}

fn all_positive(name: &'static str, values: &[f64]) -> Result<(), ProbeError> {
    match values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
        Some(value) => {
            Err(ProbeError::Setting { name, value: value.to_string(), need: "above 0".into() })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
