//! Few-shot probes: few training images per class, over several random draws.

use esvit_kernels::rng::Rng;
use serde::Serialize;

use super::{Augmented, Best, ClassMetrics, Examples, Metrics, Probe, ProbeError, Result, Targets};

/// Most training images per class, and most draws.
const MAX_SHOTS: usize = 1_000_000;
const MAX_DRAWS: usize = 1000;

/// RNG purpose of the draws.
const DRAW_PURPOSE: u64 = 0x11E5807;
/// Maximum validation images per class, as in CoOp (Zhou et al. 2022).
const MAX_VALIDATION: usize = 4;

/// Settings of the draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FewShot {
    /// Training images per class; all of them if there are fewer.
    pub shots: usize,
    /// Number of draws.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Result of one draw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Draw {
    /// Index of the draw.
    pub draw: usize,
    /// Number of images that the classifier is fitted to.
    pub fitted_to: usize,
    /// Number of validation images.
    pub chosen_on: usize,
    /// The chosen setting and its metrics.
    #[serde(flatten)]
    pub best: Best,
}

/// Results of all draws.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FewShotResult {
    /// Training images per class.
    pub shots: usize,
    /// Each draw.
    pub draws: Vec<Draw>,
    /// Number of classes with fewer training images than requested.
    pub smaller_classes: usize,
    /// Top-1 over the draws, in percent.
    pub top1: MeanStd,
    /// Top-5 over the draws, in percent.
    pub top5: MeanStd,
}

/// Mean and standard deviation of a sample, in the unit of its values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeanStd {
    /// The mean.
    pub mean: f64,
    /// The standard deviation; `None` for one value.
    pub std: Option<f64>,
}

/// Probes several draws of few images per class. Settings are chosen on other training images, as
/// many per class but at most four, which the classifier is never fitted to.
///
/// # Errors
/// [`ProbeError`] for multi-label targets, and as [`Probe::run`].
pub fn few_shot(
    probe: &Probe,
    train: &Examples,
    queries: &Examples,
    augmented: Option<&Augmented<'_>>,
    options: &FewShot,
) -> Result<FewShotResult> {
    for (name, value, most) in [
        ("the number of shots", options.shots, MAX_SHOTS),
        ("the number of draws", options.draws, MAX_DRAWS),
    ] {
        if !(1..=most).contains(&value) {
            let need = format!("at least 1 and at most {most}");
            return Err(ProbeError::setting(name, value, need));
        }
    }
    let Targets::Classes { of, count } = &train.targets else {
        let (name, need) = ("the number of shots", "left out for multi-label tasks");
        return Err(ProbeError::setting(name, options.shots, need));
    };
    let mut classes = vec![Vec::new(); *count];
    for (row, &class) in of.iter().enumerate() {
        classes[class as usize].push(row);
    }
    // Validation images are no shots: no refit to them.
    let probe = Probe { refit: false, ..probe.clone() };
    let only_setting = probe.solver.only_setting(&probe.blocks).is_some();
    let mut draws = Vec::with_capacity(options.draws);
    for draw in 0..options.draws {
        let (fit, mut validation) = sample_draw(&classes, options, draw);
        if only_setting {
            validation.clear();
        }
        let result = probe.run_on(train, queries, augmented, fit, validation)?;
        let (fitted_to, chosen_on) = (result.fitted_to, result.chosen_on);
        draws.push(Draw { draw, fitted_to, chosen_on, best: result.best });
    }
    let top = |of: fn(f64, f64) -> f64| {
        let value = |draw: &Draw| match draw.best.metrics {
            Metrics::Classes(ClassMetrics { accuracy, .. }) => of(accuracy.top1, accuracy.top5),
            Metrics::Labels { map, .. } => map,
        };
        MeanStd::of(&draws.iter().map(value).collect::<Vec<f64>>())
    };
    let smaller = |rows: &&Vec<usize>| !rows.is_empty() && rows.len() < options.shots;
    Ok(FewShotResult {
        shots: options.shots,
        smaller_classes: classes.iter().filter(smaller).count(),
        top1: top(|top1, _| top1),
        top5: top(|_, top5| top5),
        draws,
    })
}

/// Training rows and validation rows of a draw.
fn sample_draw(classes: &[Vec<usize>], options: &FewShot, draw: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut fit, mut validation) = (Vec::new(), Vec::new());
    for (class, rows) in classes.iter().enumerate() {
        let mut rows = rows.clone();
        Rng::for_purpose(options.seed, DRAW_PURPOSE, [draw as u64, class as u64, 0])
            .shuffle(&mut rows);
        let (chosen, rest) = rows.split_at(options.shots.min(rows.len()));
        fit.extend(chosen);
        validation.extend(rest.iter().take(options.shots.min(MAX_VALIDATION)));
    }
    (fit, validation)
}

impl MeanStd {
    /// Of the values of a sample.
    pub(crate) fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, std: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_never_share_rows() {
        let classes = vec![(0..30).collect::<Vec<usize>>(), (30..33).collect(), vec![], vec![33]];
        let options = FewShot { shots: 2, draws: 2, seed: 3 };
        let (fit, validation) = sample_draw(&classes, &options, 0);
        assert_eq!((fit.len(), validation.len()), (2 + 2 + 1, 2 + 1));
        assert!(fit.iter().all(|row| !validation.contains(row)));
        assert_eq!(sample_draw(&classes, &options, 0).0, fit);
        assert_ne!(sample_draw(&classes, &options, 1).0, fit);
    }

    #[test]
    fn deviations_are_those_of_a_sample() {
        assert_eq!(MeanStd::of(&[1.0, 3.0]), MeanStd { mean: 2.0, std: Some(2f64.sqrt()) });
        assert_eq!(MeanStd::of(&[5.0]), MeanStd { mean: 5.0, std: None });
    }

    #[test]
    fn settings_are_chosen_on_at_most_four_of_a_class() {
        let classes = vec![(0..40).collect::<Vec<usize>>(), (40..59).collect()];
        let options = |shots| FewShot { shots, draws: 1, seed: 3 };
        let counts = |shots| {
            let (fit, validation) = sample_draw(&classes, &options(shots), 0);
            (fit.len(), validation.len())
        };
        assert_eq!([1, 3, 4, 16].map(counts), [(2, 2), (6, 6), (8, 8), (32, 4 + 3)]);
    }
}
