//! Settings tried, and the best of them.

use serde::Serialize;

use super::metrics::Score;
use super::{LastBlocks, LinearClassifier, Metric, Subset};

/// Hyper-parameters of a probe. Those that a solver does not have are omitted from JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    /// Number of last blocks.
    #[serde(flatten)]
    pub blocks: LastBlocks,
    /// Learning rate for a batch size of 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// L2 penalty: `l2 / 2 |weight|^2` is added to the mean loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<f64>,
}

/// A setting that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Value of the metric on the validation rows, in percent; `None` if the classifier diverged or there
    /// was only one setting.
    pub validation: Option<f64>,
    /// Mean loss on the validation rows.
    pub validation_loss: Option<f64>,
}

/// All trials, and the best.
#[derive(Debug)]
pub(super) struct Sweep {
    /// What the best is chosen by.
    metric: Metric,
    /// In the order of evaluation.
    pub(super) trials: Vec<Trial>,
    /// The best setting and its score, the first of equals; `None` if all diverged.
    pub(super) best: Option<(Setting, Score)>,
}

impl Sweep {
    /// Without trials so far.
    pub(super) fn by(metric: Metric) -> Self {
        Self { metric, trials: Vec::new(), best: None }
    }

    /// Evaluates the classifier of a setting on `validation`.
    pub(super) fn add(
        &mut self,
        setting: Setting,
        classifier: &LinearClassifier,
        validation: &Subset<'_>,
    ) -> Option<Score> {
        let score = Score::of(classifier, validation, self.metric);
        self.trials.push(Trial {
            setting,
            validation: score.map(|score| score.value),
            validation_loss: score.map(|score| score.loss),
        });
        if let Some(score) = score
            && self.best.is_none_or(|(_, best)| score.is_better_than(&best))
        {
            self.best = Some((setting, score));
        }
        score
    }
}
