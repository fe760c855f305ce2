//! Health of a training run: does the network's output still depend on the image?

use std::path::Path;

use esvit_nn::{Tensor, ops};

use super::ObjectiveSettings;

/// Statistics of the networks on one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Names and values, for the metrics.
    pub signals: Vec<(&'static str, f64)>,
    /// The signals in a few words, for the log.
    pub summary: String,
}

impl Health {
    /// The value of a signal.
    pub fn signal(&self, name: &str) -> Option<f64> {
        self.signals.iter().find(|signal| signal.0 == name).map(|signal| signal.1)
    }

    /// Adds the spread of features.
    pub(crate) fn add_feature_std(&mut self, std: f64) {
        self.signals.push((FEATURE_STD, std));
        self.summary.push_str(&format!(", feature std {std:.2}"));
    }
}

/// [`feature_std`] of the features of the network that is evaluated, without dropped branches.
pub const FEATURE_STD: &str = "feature_std";

/// Features whose spread is below this share of that of directions by chance count as equal.
const LEAST_FEATURE_STD: f64 = 0.01;

/// One feature for every image.
pub const FEATURES: Collapse = Collapse {
    kind: "features",
    advice: "the features have collapsed: they are the same for every image\n\
             hint: lower `optim.lr`, lengthen `optim.warmup`, and see with `esvit data preview` that the \
             images differ",
};

/// How the networks with these signals have collapsed, as the objective sees it, or else by their features.
pub fn collapse(
    settings: &dyn ObjectiveSettings,
    signal: &dyn Fn(&str) -> Option<f64>,
) -> Option<Collapse> {
    let are_equal = || signal(FEATURE_STD).is_some_and(|std| std < LEAST_FEATURE_STD);
    settings.collapse(signal).or_else(|| are_equal().then_some(FEATURES))
}

/// Standard deviation over the rows of features `[rows, C]`, scaled to unit length, times the root of
/// C: 1 for features in all directions, 0 for identical ones. Without gradient.
pub fn feature_std(features: Tensor) -> f64 {
    let features = ops::l2_normalize(features.detach());
    let width = features.shape()[1] as f64;
    let centered = features.clone() - features.mean_dim(0);
    let variance = centered.square().mean_dim(0).mean();
    (f64::from(variance.item()) * width).sqrt()
}

/// A kind of collapse: an output that does not depend on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collapse {
    /// Name of the kind.
    pub kind: &'static str,
    /// Explanation and hint for the user.
    pub advice: &'static str,
}

/// What an advice calls the command that draws crops.
const PREVIEW: &str = "`esvit data preview`";

impl Collapse {
    /// The advice for a run in this folder: the command that draws crops is given its settings, without
    /// which it would draw others.
    pub fn advice_for(&self, run: &Path) -> String {
        let settings = run.join("config.toml");
        let preview = format!("`esvit data preview --config {}`", settings.display());
        self.advice.replace(PREVIEW, &preview)
    }
}

/// Outputs that recover and collapse again in another way: what helps against one way leads to the
/// other.
pub const UNSTABLE: Collapse = Collapse {
    kind: "unstable",
    advice: "the outputs have collapsed again, and in another way than before\n\
             hint: lower `optim.lr`, or lengthen `optim.warmup`",
};

/// Detects collapse that lasts over several batches.
#[derive(Debug, Clone, Default)]
pub struct CollapseDetector {
    suspicious: usize,
    /// Whether the collapse that lasts has been told of.
    is_told: bool,
    /// The last one that was told of.
    told: Option<Collapse>,
}

/// Consecutive batches that must look collapsed.
const PATIENCE: usize = 5;

impl CollapseDetector {
    /// Adds what a batch looks like; returns a collapse once, when it has lasted, whatever its kind
    /// becomes. One of another kind, after a recovery, is [`UNSTABLE`].
    pub fn look(&mut self, collapse: Option<Collapse>) -> Option<Collapse> {
        let Some(collapse) = collapse else {
            (self.suspicious, self.is_told) = (0, false);
            return None;
        };
        self.suspicious += 1;
        if self.suspicious < PATIENCE || self.is_told {
            return None;
        }
        let is_other = self.told.is_some_and(|told| told != collapse);
        self.told = Some(if is_other { UNSTABLE } else { collapse });
        self.is_told = true;
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::ObjectiveConfig;
    use crate::objective::esvit::{CONSTANT, UNIFORM};

    /// Whatever the objective: heads may spread what features do not.
    #[test]
    fn equal_features_are_a_collapse() {
        for name in ObjectiveConfig::NAMES {
            let config = ObjectiveConfig::named(name).unwrap();
            let look = |std: f64| {
                collapse(config.settings(), &|signal| (signal == FEATURE_STD).then_some(std))
            };
            assert_eq!(look(0.0099), Some(FEATURES), "{name}");
            assert_eq!([look(0.0101), look(1.0)], [None; 2], "{name}");
            assert_eq!(collapse(config.settings(), &|_| None), None, "{name}");
        }
    }

    #[test]
    fn crops_are_those_of_the_run() {
        let advice = |collapse: Collapse| collapse.advice_for(Path::new("runs/x"));
        let command = "see with `esvit data preview --config runs/x/config.toml` that the images";
        assert!(advice(CONSTANT).contains(command), "{}", advice(CONSTANT));
        assert!(!CONSTANT.advice.contains("--config"));
        assert_eq!(advice(UNIFORM), UNIFORM.advice);
    }
}
