//! The settings that were tried, and the best of them.

use serde::{Serialize, Serializer};

use super::metrics::Score;
use super::{LinearClassifier, Subset, Suffix};

/// What is chosen. What a solver does not have is left out of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    /// The features of how many last blocks.
    #[serde(rename = "n", serialize_with = "number_of_blocks")]
    pub suffix: Suffix,
    /// Learning rate for a batch of 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Strength of the L2 penalty `l2 / 2 |weight|^2`, which is added to the mean loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<f64>,
}

fn number_of_blocks<S: Serializer>(suffix: &Suffix, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(suffix.n as u64)
}

/// A setting that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Top-1 or mean average precision on the part set aside, in per cent; none where the
    /// classifier diverged or there was no choice.
    pub validation: Option<f64>,
    /// The mean loss there.
    pub validation_loss: Option<f64>,
}

/// All trials and the best of them.
#[derive(Debug, Default)]
pub struct Sweep {
    /// In the order in which they were made.
    pub trials: Vec<Trial>,
    /// The best setting, of equals the first; none when all diverged.
    pub best: Option<Setting>,
}

/// A sweep in progress.
#[derive(Debug, Default)]
pub(super) struct Trials {
    sweep: Sweep,
    best: Option<Score>,
}

impl Trials {
    /// Adds a setting whose classifier is tried on `validation`.
    pub(super) fn add(
        &mut self,
        setting: Setting,
        classifier: &LinearClassifier,
        validation: &Subset<'_>,
    ) -> Option<Score> {
        let score = Score::of(classifier, validation);
        self.sweep.trials.push(Trial {
            setting,
            validation: score.map(|score| score.value),
            validation_loss: score.map(|score| score.loss),
        });
        if let Some(score) = score
            && self.best.is_none_or(|best| score.beats(&best))
        {
            self.best = Some(score);
            self.sweep.best = Some(setting);
        }
        score
    }

    pub(super) fn finish(self) -> Sweep {
        self.sweep
    }
}
