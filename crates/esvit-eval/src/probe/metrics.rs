//! Accuracy with confidence intervals, and average precision.

use rayon::prelude::*;
use serde::Serialize;

use super::{LinearClassifier, ProbeError, Result, Subset, Targets, loss};

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Metrics on query images, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Metrics {
    /// Of single-label tasks.
    Classes(ClassAccuracy),
    /// Of multi-label tasks.
    Labels {
        /// Mean average precision over labels.
        map: f64,
        /// The same with VOC2007's 11-point interpolation.
        map_11_point: f64,
    },
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
    /// Top-1 or mAP, in percent.
    pub(super) value: f64,
    /// Mean loss.
    pub(super) loss: f64,
}

impl Score {
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        self.value > other.value || (self.value == other.value && self.loss < other.loss)
    }

    /// Score of a classifier; `None` if it diverged or there is no positive label.
    pub(super) fn of(classifier: &LinearClassifier, subset: &Subset<'_>) -> Option<Self> {
        let mut logits = classifier.logits(subset);
        let metrics = Metrics::of_logits(&logits, subset, "validation").ok()?;
        let loss = loss::replace_by_gradient(&mut logits, &subset.examples.targets, &subset.rows);
        Some(Self { value: metrics.value(), loss })
    }
}

impl Metrics {
    /// Top-1 or mAP.
    pub fn value(&self) -> f64 {
        match self {
            Self::Classes(accuracy) => accuracy.top1,
            Self::Labels { map, .. } => *map,
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
                Ok(Self::Classes(ClassAccuracy::of_ranks(&ranks)))
            }
            Targets::Labels { of, count } => {
                let precision = |label: u32| {
                    let rows = rows.iter().zip(logits.chunks_exact(*count));
                    let scored: Vec<(f32, bool)> = rows
                        .map(|(&row, logits)| (logits[label as usize], of[row].contains(&label)))
                        .collect();
                    Some((average_precision(&scored)?, eleven_point_precision(&scored)?))
                };
                let precisions: Vec<(f64, f64)> =
                    (0..*count as u32).into_par_iter().filter_map(precision).collect();
                if precisions.is_empty() {
                    return Err(ProbeError::NoPositive(set));
                }
                let mean = |of: fn(&(f64, f64)) -> f64| {
                    100.0 * precisions.iter().map(of).sum::<f64>() / precisions.len() as f64
                };
                Ok(Self::Labels { map: mean(|p| p.0), map_11_point: mean(|p| p.1) })
            }
        }
    }
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

/// Precision-recall curve by descending threshold; `None` without positives.
fn precision_recall_curve(scored: &[(f32, bool)]) -> Option<Vec<(f64, f64)>> {
    let positives = scored.iter().filter(|(_, positive)| *positive).count();
    if positives == 0 {
        return None;
    }
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut seen) = (0, 0);
    let points = sorted.chunk_by(|a, b| a.0 == b.0).map(|equal| {
        seen += equal.len();
        hits += equal.iter().filter(|(_, positive)| *positive).count();
        (f64::from(hits as u32) / seen as f64, f64::from(hits as u32) / positives as f64)
    });
    Some(points.collect())
}

/// Average precision of (score, is positive) pairs, in 0..=1: sum over thresholds of precision
/// times the increase of recall. Equal scores share a threshold. `None` without positives.
pub fn average_precision(scored: &[(f32, bool)]) -> Option<f64> {
    let mut reached = 0.0;
    let area = precision_recall_curve(scored)?.into_iter().map(|(precision, recall)| {
        let grown = recall - reached;
        reached = recall;
        precision * grown
    });
    Some(area.sum())
}

/// PASCAL VOC2007's 11-point average precision: mean over the recalls 0, 0.1, ..., 1 of the highest
/// precision at that recall or above. `None` without positives.
pub fn eleven_point_precision(scored: &[(f32, bool)]) -> Option<f64> {
    let curve = precision_recall_curve(scored)?;
    let best_from = |tenths: u32| {
        let reached = |(precision, recall): &(f64, f64)| {
            (*recall >= f64::from(tenths) / 10.0 - 1e-12).then_some(*precision)
        };
        curve.iter().filter_map(reached).fold(0.0, f64::max)
    };
    Some((0..=10).map(best_from).sum::<f64>() / 11.0)
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
    fn average_precision_by_hand() {
        // Ranked: hit, miss, hit, miss: 1/2 (1) + 1/2 (2/3).
        let scored = [(0.4, true), (0.9, true), (0.5, false), (0.1, false)];
        let scored = scored.map(|(s, p)| if s == 0.4 { (0.3, p) } else { (s, p) });
        assert!((average_precision(&scored).unwrap() - 5.0 / 6.0).abs() < 1e-12);
        // Recall 0 to 0.5 is reached with precision 1, the rest with 2/3.
        let eleven = (6.0 + 5.0 * 2.0 / 3.0) / 11.0;
        assert!((eleven_point_precision(&scored).unwrap() - eleven).abs() < 1e-12);
        // All scores equal: one threshold, the share of positives.
        let equal = [(1.0, true), (1.0, false), (1.0, false), (1.0, false)];
        assert_eq!(average_precision(&equal), Some(0.25));
        assert_eq!(average_precision(&[(1.0, false)]), None);
        assert_eq!(eleven_point_precision(&[(1.0, false)]), None);
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
        let Metrics::Labels { map, map_11_point } = found else { panic!() };
        assert_eq!((map, map_11_point), (75.0, 75.0));
        let error = Metrics::of_logits(&[0.0, f32::NAN, 0.0], &subset, "query");
        assert_eq!(error, Err(ProbeError::Diverged));
    }
}
