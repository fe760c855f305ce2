//! Linear probes: linear classifiers on the frozen features of a backbone.
//!
//! Features of the last n blocks are concatenated, so the features of any smaller n are the last
//! columns of the same matrix. Settings (n, learning rate, L2 penalty) are chosen on a held-out
//! part of the training images, refit on all of them, and evaluated once on the query images.

mod classifier;
mod dump;
mod elevater;
mod examples;
mod features;
mod few_shot;
mod logistic;
mod loss;
mod metric;
mod metrics;
mod multi_label;
mod ranking;
mod sgd;
mod standardize;
mod sweep;

pub use classifier::LinearClassifier;
pub use dump::{DumpError, dump};
pub use elevater::{ELEVATER_LRS, Elevater};
pub use examples::{Augmented, Examples, Subset, Targets};
pub use features::{LastBlocks, ProbeTask, SplitFeatures, last_blocks};
pub use few_shot::{Draw, FewShot, FewShotResult, MeanStd, few_shot};
pub use logistic::{Logistic, logistic_l2s};
pub use metric::Metric;
pub(crate) use metrics::rank;
pub use metrics::{ClassAccuracy, ClassMetrics, Metrics, wilson_interval};
pub use multi_label::multi_label_task;
pub use ranking::{average_precision, eleven_point_precision, roc_auc};
pub use sgd::{SGD_LRS, Sgd, train_heads};
pub use standardize::Standardization;
pub use sweep::{Setting, Trial};

use esvit_nn::BackboneConfig;
use serde::Serialize;

use self::sweep::Sweep;
use crate::knn::KnnError;
use crate::labeled::{HELD_OUT, held_out};
use esvit_model::features::NotFinite;

/// Numbers of last blocks that published probes try.
pub const BLOCKS: [usize; 2] = [1, 4];

/// Largest learning rate and L2 penalty, far above any that is of use.
const MAX_STRENGTH: f64 = 1e6;

/// What a probe gives, or why there is none.
type Result<T, E = ProbeError> = std::result::Result<T, E>;

/// Solver of a probe.
#[derive(Debug, Clone)]
pub enum Solver {
    /// SGD by the reference's protocol, for a list of learning rates.
    Sgd {
        /// Learning rates for a batch size of 256.
        lrs: Vec<f64>,
        /// All other settings.
        sgd: Sgd,
    },
    /// Logistic regression by L-BFGS.
    Logistic(Logistic),
    /// ELEVATER's hyper-parameter tuning.
    Elevater(Elevater),
}

/// A linear probe.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The solver.
    pub solver: Solver,
    /// Numbers of last blocks to try.
    pub blocks: Vec<LastBlocks>,
    /// Standardize each column over the rows fitted to, like a BatchNorm without affine parameters.
    pub standardize: bool,
    /// Refit the chosen setting on training and validation rows.
    pub refit: bool,
    /// Metric that settings are chosen by; `None` for the standard one of the targets.
    pub metric: Option<Metric>,
}

/// Result of a probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeResult {
    /// The chosen setting and its metrics on query images.
    pub best: Best,
    /// All settings tried.
    pub sweep: Vec<Trial>,
    /// Number of images that the classifier is fitted to.
    pub fitted_to: usize,
    /// Number of validation images; 0 if there was only one setting.
    pub chosen_on: usize,
}

/// A setting and its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Best {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Metrics on query images.
    #[serde(flatten)]
    pub metrics: Metrics,
}

/// A probe cannot be fitted or evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProbeError {
    /// A network makes features that are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A set is empty, or the dimensions differ.
    #[error(transparent)]
    Features(#[from] KnnError),
    /// All rows have the same class.
    #[error("all training images are of one class, at least two classes are needed")]
    OneClass,
    /// Each label is held by all rows or by none.
    #[error("every label is held by all training images or by none, nothing can be learned")]
    NoContrast,
    /// Average precision is undefined.
    #[error("no {0} image holds a label, average precision needs at least one")]
    NoPositive(&'static str),
    /// A metric is not defined for these images.
    #[error("{metric} cannot be measured: {problem}")]
    Metric {
        /// The metric.
        metric: Metric,
        /// Why, and what to do.
        problem: String,
    },
    /// There are no validation images.
    #[error(
        "no training image is left to choose a setting on\n\
         hint: name one setting, such as `--n 4 --lr 0.1`, or give more training images"
    )]
    NoValidation,
    /// All settings diverged.
    #[error(
        "every setting diverged\n\
         hint: try smaller learning rates with `--lr`, or `--standardize`"
    )]
    Diverged,
    /// A setting is invalid.
    #[error("{name} is {value}, it must be {need}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The requirement.
        need: String,
    },
    /// An image can no longer be read.
    #[error("`{name}` can no longer be read: {reason}")]
    Image {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
}

impl Solver {
    /// Name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Logistic(_) => "logistic",
            Self::Elevater(_) => "elevater",
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Sgd { lrs, sgd } => {
                sgd.check()?;
                check_positive("a learning rate", lrs)
            }
            Self::Logistic(logistic) => logistic.check(),
            Self::Elevater(elevater) => elevater.check(),
        }
    }

    /// The setting, if there is only one.
    fn only_setting(&self, blocks: &[LastBlocks]) -> Option<Setting> {
        let &[blocks] = blocks else { return None };
        match self {
            Self::Sgd { lrs, .. } if lrs.len() == 1 => {
                Some(Setting { blocks, lr: Some(lrs[0]), l2: None })
            }
            Self::Logistic(Logistic { l2s, .. }) if l2s.len() == 1 => {
                Some(Setting { blocks, lr: None, l2: Some(l2s[0]) })
            }
            _ => None,
        }
    }

    fn sweep(
        &self,
        fit: &Subset<'_>,
        validation: &Subset<'_>,
        blocks: &[LastBlocks],
        metric: Metric,
    ) -> Result<Sweep> {
        let sweep = Sweep::by(metric);
        match self {
            Self::Sgd { lrs, sgd } => sgd::sweep(sgd, lrs, fit, validation, blocks, sweep),
            Self::Logistic(logistic) => logistic.sweep(fit, validation, blocks, sweep),
            Self::Elevater(elevater) => elevater.sweep(fit, validation, blocks, sweep),
        }
    }

    /// Fits the classifier of one setting.
    fn fit(&self, setting: &Setting, data: &Subset<'_>) -> Result<LinearClassifier> {
        match self {
            Self::Sgd { sgd, .. } => sgd::fit(sgd, setting, data),
            Self::Logistic(logistic) => Ok(logistic.fit(setting, data)),
            Self::Elevater(elevater) => elevater.fit(setting, data),
        }
    }
}

impl ProbeError {
    fn setting(name: &'static str, value: impl ToString, need: impl Into<String>) -> Self {
        Self::Setting { name, value: value.to_string(), need: need.into() }
    }
}

impl Probe {
    /// The probe with all settings at their defaults, for a network of this configuration.
    ///
    /// # Errors
    /// [`ProbeError::Setting`] if the network has no blocks.
    pub fn standard(config: &BackboneConfig) -> Result<Self> {
        let blocks = BLOCKS.map(|n| n.min(config.feature_block()));
        let solver = Solver::Sgd { lrs: SGD_LRS.to_vec(), sgd: Sgd::default() };
        let blocks = last_blocks(config, &blocks)?;
        Ok(Self { solver, blocks, standardize: false, refit: true, metric: None })
    }

    /// The metric that settings are chosen by for some targets.
    pub fn metric_of(&self, targets: &Targets) -> Metric {
        let is_multi_label = matches!(targets, Targets::Labels { .. });
        self.metric.unwrap_or(Metric::standard(is_multi_label))
    }

    /// The largest number of last blocks that it tries.
    pub fn last_blocks(&self) -> usize {
        self.blocks.last().map_or(0, |blocks| blocks.n)
    }

    /// Fits to `train` and evaluates on `queries`. If there is more than one setting, every fifth
    /// training row is held out for validation. `augmented` recomputes training features for each
    /// epoch.
    ///
    /// # Errors
    /// [`ProbeError`] if a set is empty, targets do not differ, or every setting diverged.
    pub fn run(
        &self,
        train: &Examples,
        queries: &Examples,
        augmented: Option<&Augmented<'_>>,
    ) -> Result<ProbeResult> {
        let (fit, validation) = held_out(train.len(), HELD_OUT);
        self.run_on(train, queries, augmented, fit, validation)
    }

    /// The same with given training rows `fit` and `validation`.
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
    ) -> Result<ProbeResult> {
        self.solver.check()?;
        let size = |set: &Examples| (set.len(), set.width);
        KnnError::check(size(train), size(queries))?;
        let metric = self.metric_of(&queries.targets);
        metric.check(&queries.targets, &(0..queries.len()).collect::<Vec<_>>(), "query")?;
        if let Some(setting) = self.solver.only_setting(&self.blocks) {
            let rows = fit.into_iter().chain(validation).collect();
            let sweep = vec![Trial { setting, validation: None, validation_loss: None }];
            return self.report(setting, sweep, Subset::new(train, rows, augmented), queries, 0);
        }
        train.targets.check_contrast(&[&fit[..], &validation].concat())?;
        if validation.is_empty() || fit.is_empty() {
            return Err(ProbeError::NoValidation);
        }
        metric.check(&train.targets, &validation, "validation")?;
        let mut data = Subset::new(train, fit, augmented);
        let mut validation = Subset::new(train, validation, None);
        let norm = self.standardize.then(|| data.standardization());
        let fit = data.clone().standardized(norm.as_ref());
        let tried_on = validation.clone().standardized(norm.as_ref());
        let Sweep { trials, best, .. } =
            self.solver.sweep(&fit, &tried_on, &self.blocks, metric)?;
        let (setting, _) = best.ok_or(ProbeError::Diverged)?;
        let chosen_on = validation.len();
        if self.refit {
            data.rows.append(&mut validation.rows);
        }
        self.report(setting, trials, data, queries, chosen_on)
    }

    /// Fits a setting and evaluates it on the query images.
    fn report(
        &self,
        setting: Setting,
        sweep: Vec<Trial>,
        data: Subset<'_>,
        queries: &Examples,
        chosen_on: usize,
    ) -> Result<ProbeResult> {
        data.examples.targets.check_contrast(&data.rows)?;
        let norm = self.standardize.then(|| data.standardization());
        let data = data.standardized(norm.as_ref());
        let queries = Subset::all(queries).standardized(norm.as_ref());
        let metrics = Metrics::of(&self.solver.fit(&setting, &data)?, &queries)?;
        let best = Best { setting, metrics };
        Ok(ProbeResult { best, sweep, fitted_to: data.len(), chosen_on })
    }
}

fn check_positive(name: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().find(|&&value| !(value > 0.0 && value <= MAX_STRENGTH)) {
        Some(value) => {
            Err(ProbeError::setting(name, value, format!("above 0 and at most {MAX_STRENGTH}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
