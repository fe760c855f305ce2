//! What is known of a run that is compared.

use serde::{Deserialize, Serialize};

/// What a network reaches on the images that all are judged by, in percent; what cannot be measured of it
/// is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// k-NN top-1.
    pub knn: Option<f64>,
    /// Top-1 of a linear probe.
    pub linear: Option<f64>,
    /// Matches of an image and its mirror image that are right.
    pub correspondence: Option<f64>,
    /// Crops whose most similar one is of the same image.
    pub retrieval: Option<f64>,
}

/// A check of a run while it was trained, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Images that were seen by then.
    pub images_seen: u64,
    /// k-NN top-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knn: Option<f64>,
    /// Crops whose most similar one is of the same image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<f64>,
}

/// The place in the run of another variant, of the same seed, from which a run went on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The other variant.
    pub variant: String,
    /// Steps of its run.
    pub step: u64,
    /// Images that it had seen.
    pub images_seen: u64,
    /// Seconds of these steps.
    pub training_seconds: f64,
}

/// Weights of a file, with which a run began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Original {
    /// The file, and the network in it if one was named.
    pub weights: String,
    /// What they reach.
    pub scores: Scores,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of its folder.
    pub run: String,
    /// Its variant.
    pub variant: String,
    /// Its seed.
    pub seed: u64,
    /// Where it went on from, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// The images that it was trained on, in words.
    pub data: String,
    /// Images of a step.
    pub batch_size: usize,
    /// Images of an epoch.
    pub images_per_epoch: u64,
    /// Steps, those before its start included.
    pub steps: u64,
    /// Images that it saw, those before its start included.
    pub images_seen: u64,
    /// Time of all these steps.
    pub training_seconds: f64,
    /// Largest resident memory while it was trained, in MiB, if the system tells.
    pub peak_memory_mb: Option<f64>,
    /// Parameters of the backbone, without heads.
    pub parameters: usize,
    /// Shape of the backbone, as JSON.
    pub shape: String,
    /// How images are prepared for it, as JSON.
    pub preprocess: String,
    /// The images that all are judged by, in words.
    pub judged_on: String,
    /// After the last step.
    pub trained: Scores,
    /// Of the same network with the initial values of its seed.
    pub untrained: Scores,
    /// Of the weights that it began with, if they are those of a file and could be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Original>,
    /// Of raw pixels, prepared in the same way.
    pub raw_pixels: Scores,
    /// What its checks of k-NN accuracy were made on, if there were any.
    pub checked_on: Option<String>,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

/// A run that failed, of which there are no figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRun {
    /// Name of its folder.
    pub run: String,
    /// Its variant.
    pub variant: String,
    /// Its seed.
    pub seed: u64,
    /// Why, in words.
    pub reason: String,
}

/// A run that failed, for tests.
#[cfg(test)]
pub(super) fn failed(variant: &str, seed: u64) -> FailedRun {
    let (run, reason) = (format!("{variant}-{seed}"), "the loss is NaN".into());
    FailedRun { run, variant: variant.into(), seed, reason }
}

/// A run with these figures, for tests.
#[cfg(test)]
pub(super) fn example(variant: &str, seed: u64, knn: f64) -> RunResult {
    let check = |images_seen: u64| Check {
        images_seen,
        knn: (images_seen > 0).then_some(knn * images_seen as f64 / 80.0),
        retrieval: Some(knn / 2.0),
    };
    RunResult {
        run: format!("{variant}-{seed}"),
        variant: variant.into(),
        seed,
        start: None,
        data: "`photos` (40 images)".into(),
        batch_size: 4,
        images_per_epoch: 40,
        steps: 20,
        images_seen: 80,
        training_seconds: 10.0 + seed as f64,
        peak_memory_mb: Some(100.0),
        parameters: 250_000,
        shape: "swin".into(),
        preprocess: "32".into(),
        judged_on: "`photos`".into(),
        trained: Scores {
            knn: Some(knn),
            linear: None,
            correspondence: None,
            retrieval: Some(7.0),
        },
        untrained: Scores { knn: Some(5.0 + seed as f64), ..Scores::default() },
        original: None,
        raw_pixels: Scores { knn: Some(3.0), ..Scores::default() },
        checked_on: Some("`photos`".into()),
        checks: vec![check(0), check(40), check(80)],
    }
}
