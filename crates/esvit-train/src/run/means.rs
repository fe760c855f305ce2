//! Means over steps: of a line of the metrics and of an epoch.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::learner::StepResult;

/// A mean that is not done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    pub(super) fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}

/// Sums over the steps that no line has yet. Checkpoints keep them, so that the lines of a run that goes on are
/// those of one that was never stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Losses of the epoch.
    pub(super) epoch: Mean,
    /// Losses since the last line of the metrics.
    pub(super) loss: Mean,
    /// Parts of these losses, unweighted.
    pub(super) parts: Vec<(String, Mean)>,
    /// Norms of gradients.
    pub(super) grad_norm: Mean,
}

impl Sums {
    /// Adds a step.
    pub(super) fn add(&mut self, result: &StepResult) {
        self.epoch.add(f64::from(result.loss));
        self.loss.add(f64::from(result.loss));
        for &(name, value) in &result.parts {
            if !self.parts.iter().any(|part| part.0 == name) {
                self.parts.push((name.to_owned(), Mean::default()));
            }
            let part = self.parts.iter_mut().find(|part| part.0 == name);
            if let Some((_, mean)) = part {
                mean.add(f64::from(value));
            }
        }
        self.grad_norm.add(f64::from(result.grad_norm));
    }

    /// Ends a line of the metrics; the sums of its steps.
    pub(super) fn end_line(&mut self) -> Self {
        let epoch = self.epoch;
        std::mem::replace(self, Self { epoch, ..Self::default() })
    }

    /// Ends an epoch; the mean of its losses.
    pub(super) fn end_epoch(&mut self) -> f64 {
        std::mem::take(&mut self.epoch).mean()
    }

    /// The sums, if there are any.
    pub(super) fn unless_empty(&self) -> Option<Self> {
        (*self != Self::default()).then(|| self.clone())
    }
}

/// Time of the steps of this session since the last line.
#[derive(Debug, Default)]
pub(super) struct Times {
    spent: Duration,
    waited: Duration,
    steps: u64,
}

impl Times {
    /// Adds a step and how much of it was spent waiting for data.
    pub(super) fn add(&mut self, spent: Duration, waited: Duration) {
        self.spent += spent;
        self.waited += waited;
        self.steps += 1;
    }

    /// Seconds per step.
    pub(super) fn of_step(&self) -> f64 {
        self.spent.as_secs_f64() / self.steps as f64
    }

    /// Share of the time that was spent waiting.
    pub(super) fn share_waited(&self) -> f64 {
        self.waited.as_secs_f64() / self.spent.as_secs_f64().max(1e-9)
    }

    /// Images per second, of steps of `batch` images.
    pub(super) fn images_per_second(&self, batch: usize) -> f64 {
        batch as f64 * self.steps as f64 / self.spent.as_secs_f64().max(1e-9)
    }
}
