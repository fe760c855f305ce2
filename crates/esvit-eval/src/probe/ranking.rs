//! Metrics of scored images that depend on their order alone: average precision and ROC-AUC.

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

/// Area under the ROC curve of (score, is positive) pairs, in 0..=1: how often a positive has a
/// higher score than a negative (Hanley and McNeil 1982); of equal scores half of the time. `None`
/// without positives or negatives.
pub fn roc_auc(scored: &[(f64, bool)]) -> Option<f64> {
    let positives = scored.iter().filter(|(_, positive)| *positive).count();
    let pairs = positives as f64 * (scored.len() - positives) as f64;
    if pairs == 0.0 {
        return None;
    }
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Negatives below the score at hand, and twice the number of pairs that are in order.
    let (mut below, mut twice) = (0, 0);
    for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
        let held = equal.iter().filter(|(_, positive)| *positive).count() as u64;
        let others = equal.len() as u64 - held;
        twice += held * (2 * below + others);
        below += others;
    }
    Some(twice as f64 / 2.0 / pairs)
}

#[cfg(test)]
mod tests {
    use esvit_kernels::rng::Rng;

    use super::*;

    #[test]
    fn average_precision_by_hand() {
        // Ranked: hit, miss, hit, miss: 1/2 (1) + 1/2 (2/3).
        let scored = [(0.3, true), (0.9, true), (0.5, false), (0.1, false)];
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

    /// The loops of VOC2007's development kit: images from the highest score down, then for each
    /// of eleven recalls the best precision from there on.
    #[test]
    fn eleven_points_are_those_of_the_development_kit() {
        for stream in 0..20 {
            let mut rng = Rng::new(5, [stream, 0, 0]);
            let count = 2 + rng.below(40);
            let mut scored: Vec<(f32, bool)> =
                (0..count).map(|_| (rng.normal() as f32, rng.chance(0.3))).collect();
            scored[0].1 = true;
            let positives = scored.iter().filter(|pair| pair.1).count();
            let mut left = scored.clone();
            let (mut precision, mut recall) = (Vec::new(), Vec::new());
            let (mut true_positives, mut false_positives) = (0, 0);
            while !left.is_empty() {
                let mut highest = 0;
                for (place, pair) in left.iter().enumerate() {
                    if pair.0 > left[highest].0 {
                        highest = place;
                    }
                }
                if left.remove(highest).1 {
                    true_positives += 1;
                } else {
                    false_positives += 1;
                }
                let all = true_positives + false_positives;
                precision.push(f64::from(true_positives) / f64::from(all));
                recall.push((10 * true_positives, positives as i32));
            }
            let mut sum = 0.0;
            for point in 0..=10 {
                let mut best: f64 = 0.0;
                for (precision, (ten_times, of)) in precision.iter().zip(&recall) {
                    if *ten_times >= point * of {
                        best = best.max(*precision);
                    }
                }
                sum += best / 11.0;
            }
            let found = eleven_point_precision(&scored).unwrap();
            assert!((found - sum).abs() < 1e-12, "{found} {sum}");
        }
    }

    #[test]
    fn areas_under_curves_by_hand() {
        // Of four pairs three are in order.
        let scored = [(0.1, false), (0.4, false), (0.35, true), (0.8, true)];
        assert_eq!(roc_auc(&scored), Some(0.75));
        let reversed = scored.map(|(score, positive)| (-score, positive));
        assert_eq!(roc_auc(&reversed), Some(0.25));
        // Which of the two classes is positive makes no difference.
        let swapped = scored.map(|(score, positive)| (-score, !positive));
        assert_eq!(roc_auc(&swapped), Some(0.75));
        // A constant score tells nothing.
        assert_eq!(roc_auc(&[(3.0, true), (3.0, false), (3.0, false)]), Some(0.5));
        assert_eq!(roc_auc(&[(3.0, true), (4.0, true)]), None);
        assert_eq!(roc_auc(&[(3.0, false)]), None);
        assert_eq!(roc_auc(&[]), None);
    }

    /// All pairs of a positive and a negative, one by one.
    #[test]
    fn areas_under_curves_count_pairs() {
        for stream in 0..20 {
            let mut rng = Rng::new(6, [stream, 0, 0]);
            // Few different scores, so that many are equal.
            let mut scored: Vec<(f64, bool)> =
                (0..30).map(|_| (rng.below(8) as f64 - 4.0, rng.chance(0.4))).collect();
            (scored[0].1, scored[1].1) = (true, false);
            let (mut sum, mut pairs) = (0.0, 0.0);
            for positive in scored.iter().filter(|pair| pair.1) {
                for negative in scored.iter().filter(|pair| !pair.1) {
                    pairs += 1.0;
                    if positive.0 > negative.0 {
                        sum += 1.0;
                    } else if positive.0 == negative.0 {
                        sum += 0.5;
                    }
                }
            }
            assert!((roc_auc(&scored).unwrap() - sum / pairs).abs() < 1e-12);
        }
    }
}
