//! Metrics of a classifier's logits: accuracy with confidence intervals, and those of rankings.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::{
    LinearClassifier, Metric, ProbeError, Result, Subset, Targets, average_precision,
    eleven_point_precision, loss, roc_auc,
};

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Metrics on query images, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Metrics {
    /// Of single-label tasks.
    Classes(ClassMetrics),
    /// Of multi-label tasks.
    Labels {
        /// Mean average precision over labels.
        map: f64,
        /// The same with VOC2007's 11-point interpolation.
        map_11_point: f64,
        /// Mean area under the ROC curve, over labels that some images hold and others do not.
        #[serde(skip_serializing_if = "Option::is_none")]
        roc_auc: Option<f64>,
    },
}

/// Metrics of images with one class each, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassMetrics {
    /// Top-k accuracy.
    #[serde(flatten)]
    pub accuracy: ClassAccuracy,
    /// Mean over the classes that have images of the share of those that are told right.
    pub mean_per_class: f64,
    /// Area under the ROC curve, of two classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roc_auc: Option<f64>,
}

/// Top-k accuracy, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// Images whose class has the highest logit.
    pub top1: f64,
    /// Images whose class is among the five highest logits.
    pub top5: f64,
    /// 95 % Wilson confidence interval of `top1`.
    pub interval: [f64; 2],
}

impl ClassAccuracy {
    /// From the rank of each image's class, from 0. Without images, shares are 0 and the interval
    /// is 0 to 100.
    pub(crate) fn of_ranks(ranks: &[usize]) -> Self {
        let below = |limit| ranks.iter().filter(|&&rank| rank < limit).count();
        let share = |count| 100.0 * count as f64 / ranks.len().max(1) as f64;
        let first = below(1);
        Self {
            top1: share(first),
            top5: share(below(5)),
            interval: wilson_interval(first, ranks.len()),
        }
    }
}

/// Validation score, compared by value (higher is better), then by loss (lower is better).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Score {
    /// Value of the metric, in percent.
    pub(super) value: f64,
    /// Mean loss.
    pub(super) loss: f64,
}

impl Score {
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        self.value > other.value || (self.value == other.value && self.loss < other.loss)
    }

    /// Score of a classifier; `None` if it diverged.
    pub(super) fn of(
        classifier: &LinearClassifier,
        subset: &Subset<'_>,
        metric: Metric,
    ) -> Option<Self> {
        let mut logits = classifier.logits(subset);
        let metrics = Metrics::of_logits(&logits, subset, "validation").ok()?;
        let loss = loss::replace_by_gradient(&mut logits, &subset.examples.targets, &subset.rows);
        Some(Self { value: metrics.get(metric)?, loss })
    }
}

impl Metrics {
    /// Top-1 or mAP.
    pub fn value(&self) -> f64 {
        match self {
            Self::Classes(of) => of.accuracy.top1,
            Self::Labels { map, .. } => *map,
        }
    }

    /// Value of a metric; `None` if it is not defined for these images.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match (*self, metric) {
            (Self::Classes(of), Metric::Top1) => Some(of.accuracy.top1),
            (Self::Classes(of), Metric::MeanPerClass) => Some(of.mean_per_class),
            (Self::Classes(of), Metric::RocAuc) => of.roc_auc,
            (Self::Labels { map, .. }, Metric::Map) => Some(map),
            (Self::Labels { map_11_point, .. }, Metric::Map11Point) => Some(map_11_point),
            (Self::Labels { roc_auc, .. }, Metric::RocAuc) => roc_auc,
            (Self::Classes(_), Metric::Map | Metric::Map11Point)
            | (Self::Labels { .. }, Metric::Top1 | Metric::MeanPerClass) => None,
        }
    }

    /// Metrics of a classifier on some rows.
    ///
    /// # Errors
    /// [`ProbeError`] if it diverged, or no row has a label.
    pub fn of(classifier: &LinearClassifier, queries: &Subset<'_>) -> Result<Self> {
        Self::of_logits(&classifier.logits(queries), queries, "query")
    }

    fn of_logits(logits: &[f32], subset: &Subset<'_>, set: &'static str) -> Result<Self> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(ProbeError::Diverged);
        }
        let rows = &subset.rows;
        match &subset.examples.targets {
            Targets::Classes { of, count } => {
                let rank = |(logits, &row): (&[f32], &usize)| rank(logits, of[row] as usize);
                let ranks: Vec<usize> =
                    logits.par_chunks_exact(*count).zip(rows).map(rank).collect();
                let hits = rows.iter().zip(&ranks).map(|(&row, &rank)| (of[row], rank == 0));
                // Of two classes either may be the positive one: the area is the same.
                let second = |(logits, &row): (&[f32], &usize)| {
                    (f64::from(logits[1]) - f64::from(logits[0]), of[row] == 1)
                };
                let two = *count == 2 && rows.iter().all(|&row| of[row] < 2);
                let scored = two.then(|| -> Vec<(f64, bool)> {
                    logits.chunks_exact(2).zip(rows).map(second).collect()
                });
                Ok(Self::Classes(ClassMetrics {
                    accuracy: ClassAccuracy::of_ranks(&ranks),
                    mean_per_class: mean_per_class(hits),
                    roc_auc: scored.and_then(|scored| Some(100.0 * roc_auc(&scored)?)),
                }))
            }
            Targets::Labels { of, count } => {
                let of_label = |label: u32| {
                    let images = rows.iter().zip(logits.chunks_exact(*count));
                    let scored: Vec<(f32, bool)> = images
                        .map(|(&row, logits)| (logits[label as usize], of[row].contains(&label)))
                        .collect();
                    let wide: Vec<(f64, bool)> =
                        scored.iter().map(|&(score, held)| (score.into(), held)).collect();
                    [average_precision(&scored), eleven_point_precision(&scored), roc_auc(&wide)]
                };
                let all: Vec<[Option<f64>; 3]> =
                    (0..*count as u32).into_par_iter().map(of_label).collect();
                let mean = |which: usize| {
                    let some: Vec<f64> = all.iter().filter_map(|of| of[which]).collect();
                    (!some.is_empty()).then(|| 100.0 * some.iter().sum::<f64>() / some.len() as f64)
                };
                let (Some(map), Some(map_11_point)) = (mean(0), mean(1)) else {
                    return Err(ProbeError::NoPositive(set));
                };
                Ok(Self::Labels { map, map_11_point, roc_auc: mean(2) })
            }
        }
    }
}

/// Mean over classes of the share of their images that are told right, in percent, from (class, is
/// right) pairs; 0 without images.
fn mean_per_class(images: impl Iterator<Item = (u32, bool)>) -> f64 {
    let mut classes: BTreeMap<u32, [usize; 2]> = BTreeMap::new();
    for (class, right) in images {
        let [hits, all] = classes.entry(class).or_default();
        *hits += usize::from(right);
        *all += 1;
    }
    let shares = classes.values().map(|&[hits, all]| hits as f64 / all as f64);
    100.0 * shares.sum::<f64>() / classes.len().max(1) as f64
}

/// Rank of `class`, from 0; ties are broken by class index. A class without an output ranks after
/// everything, even with fewer than five outputs.
pub(crate) fn rank(logits: &[f32], class: usize) -> usize {
    let Some(&own) = logits.get(class) else { return usize::MAX };
    let before = |(other, &logit): (usize, &f32)| logit > own || (logit == own && other < class);
    logits.iter().enumerate().filter(|&entry| before(entry)).count()
}

/// 95 % Wilson (1927) confidence interval of a proportion, in percent.
pub fn wilson_interval(hits: usize, of: usize) -> [f64; 2] {
    if of == 0 {
        return [0.0, 100.0];
    }
    let (n, share) = (of as f64, hits as f64 / of as f64);
    let middle = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 100.0 / (1.0 + Z * Z / n);
    [((middle - half) * scale).max(0.0), ((middle + half) * scale).min(100.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_formula() {
        // 8 of 10, worked out by hand: (0.8 + 0.192073 -+ 0.312961) / 1.384146.
        let [low, high] = wilson_interval(8, 10);
        assert!((low - 49.0162).abs() < 1e-3 && (high - 94.3318).abs() < 1e-3, "{low} {high}");
        let [low, high] = wilson_interval(0, 20);
        assert!(low == 0.0 && (high - 16.1125).abs() < 1e-3, "{high}");
        let [low, high] = wilson_interval(1, 1);
        assert!((low - 20.6543).abs() < 1e-3 && high == 100.0, "{low}");
    }

    #[test]
    fn ranks_count_what_comes_before() {
        assert_eq!(rank(&[0.5, 2.0, 0.5], 2), 2);
        assert_eq!(rank(&[0.5, 2.0, 0.5], 0), 1);
        assert_eq!(rank(&[0.5, 2.0], 7), usize::MAX);
    }

    #[test]
    fn the_first_five_are_five() {
        let accuracy = ClassAccuracy::of_ranks(&[0, 4, 5, usize::MAX]);
        assert_eq!((accuracy.top1, accuracy.top5), (25.0, 50.0));
        assert_eq!(accuracy.interval, wilson_interval(1, 4));
        let none = ClassAccuracy::of_ranks(&[]);
        assert_eq!((none.top1, none.top5, none.interval), (0.0, 0.0, [0.0, 100.0]));
    }

    #[test]
    fn of_equal_values_the_lower_loss_is_better() {
        let score = |value, loss| Score { value, loss };
        assert!(score(50.0, 1.0).is_better_than(&score(50.0, 2.0)));
        assert!(!score(50.0, 2.0).is_better_than(&score(50.0, 1.0)));
        assert!(!score(50.0, 1.0).is_better_than(&score(50.0, 1.0)), "of equals the first");
        assert!(score(50.1, 9.0).is_better_than(&score(50.0, 1.0)));
        assert!(!score(50.0, 1.0).is_better_than(&score(50.1, 9.0)));
    }

    /// A label that no image holds has no precision and does not count.
    #[test]
    fn labels_that_nobody_holds_are_left_out_of_the_mean() {
        let targets = Targets::Labels { of: vec![vec![0], vec![1], vec![]], count: 3 };
        let examples =
            super::super::Examples { values: vec![0.0; 3], width: 1, targets: targets.clone() };
        let subset = Subset::all(&examples);
        // Label 0 comes first, label 1 second.
        let logits = [2.0, 3.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.0];
        let found = Metrics::of_logits(&logits, &subset, "query").unwrap();
        let Metrics::Labels { map, map_11_point, roc_auc } = found else { panic!() };
        // Of the two others one comes before the image of label 1, none before that of label 0.
        assert_eq!((map, map_11_point, roc_auc), (75.0, 75.0, Some(75.0)));
        let error = Metrics::of_logits(&[0.0, f32::NAN, 0.0], &subset, "query");
        assert_eq!(error, Err(ProbeError::Diverged));
    }

    /// Classes of different sizes, by loops over classes and images; one class has no image, one
    /// no output.
    #[test]
    fn classes_count_alike_in_a_mean_over_them() {
        let of = vec![0, 0, 0, 0, 0, 0, 1, 1, 3, 4];
        let found_class = [0, 0, 0, 0, 0, 1, 1, 0, 3, 0];
        let logits: Vec<f32> = found_class
            .iter()
            .flat_map(|&found| (0..4).map(move |class| if class == found { 1.0 } else { 0.0 }))
            .collect();
        let mut sum = 0.0;
        for class in [0, 1, 3, 4] {
            let (mut hits, mut all) = (0.0, 0.0);
            for (image, &own) in of.iter().enumerate() {
                if own == class {
                    all += 1.0;
                    hits += f64::from(u8::from(found_class[image] == own));
                }
            }
            sum += 100.0 * hits / all;
        }
        let targets = Targets::Classes { of, count: 4 };
        let examples = super::super::Examples { values: vec![0.0; 10], width: 1, targets };
        let found = Metrics::of_logits(&logits, &Subset::all(&examples), "query").unwrap();
        let value = found.get(Metric::MeanPerClass).unwrap();
        assert!((value - sum / 4.0).abs() < 1e-12, "{value}");
        assert!((value - 100.0 * (5.0 / 6.0 + 0.5 + 1.0) / 4.0).abs() < 1e-12, "{value}");
        assert!((found.get(Metric::Top1).unwrap() - 70.0).abs() < 1e-12);
        assert_eq!([Metric::RocAuc, Metric::Map].map(|metric| found.get(metric)), [None; 2]);
        assert_eq!(mean_per_class([].into_iter()), 0.0);
    }

    #[test]
    fn two_classes_are_ranked_by_the_difference_of_their_logits() {
        let metrics = |of: [u32; 4]| {
            let targets = Targets::Classes { of: of.to_vec(), count: 2 };
            let examples = super::super::Examples { values: vec![0.0; 4], width: 1, targets };
            // Differences 0.1, 0.4, 0.35 and 0.8; the logits of the second class alone are equal.
            let logits = [0.9, 1.0, 0.6, 1.0, 0.65, 1.0, 0.2, 1.0];
            Metrics::of_logits(&logits, &Subset::all(&examples), "query").unwrap()
        };
        let found = metrics([0, 0, 1, 1]);
        assert_eq!(found.get(Metric::RocAuc), Some(75.0));
        assert_eq!((found.get(Metric::Top1), found.value()), (Some(50.0), 50.0));
        // One class alone, and an image of neither, have none.
        assert_eq!([[1; 4], [0, 1, 2, 1]].map(|of| metrics(of).get(Metric::RocAuc)), [None; 2]);
        let json = serde_json::to_value(found).unwrap();
        assert_eq!((&json["top1"], &json["mean_per_class"]), (&50.0.into(), &50.0.into()));
        assert_eq!((&json["roc_auc"], &json["top5"]), (&75.0.into(), &100.0.into()));
    }
}
