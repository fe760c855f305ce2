//! Health of a training run: does the network's output still depend on the image?

use esvit_nn::{Tensor, ops};

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

/// Detects collapse that lasts over several batches.
#[derive(Debug, Clone, Default)]
pub struct CollapseDetector {
    suspicious: usize,
    warned: Option<Collapse>,
}

/// Consecutive batches that must look collapsed.
const PATIENCE: usize = 5;

impl CollapseDetector {
    /// Adds what a batch looks like; returns a collapse once, when it has lasted.
    pub fn look(&mut self, collapse: Option<Collapse>) -> Option<Collapse> {
        let Some(collapse) = collapse else {
            *self = Self::default();
            return None;
        };
        self.suspicious += 1;
        if self.suspicious < PATIENCE || self.warned == Some(collapse) {
            return None;
        }
        self.warned = Some(collapse);
        Some(collapse)
    }
}
