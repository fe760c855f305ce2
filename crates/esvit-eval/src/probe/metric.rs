//! The metric by which settings are chosen and sets are compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ProbeError, Result, Targets};

/// A metric, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of images whose class has the highest logit.
    Top1,
    /// Mean over classes of the share of their images whose class has the highest logit.
    MeanPerClass,
    /// Mean over labels of the average precision.
    Map,
    /// Mean over labels of VOC2007's 11-point average precision.
    #[serde(rename = "map_11_point")]
    Map11Point,
    /// Area under the ROC curve of two classes, or its mean over labels.
    RocAuc,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 5] =
        [Self::Top1, Self::MeanPerClass, Self::Map, Self::Map11Point, Self::RocAuc];

    /// The metric of a task for which none is chosen.
    pub fn standard(is_multi_label: bool) -> Self {
        if is_multi_label { Self::Map } else { Self::Top1 }
    }

    /// Name in results and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Top1 => "top1",
            Self::MeanPerClass => "mean_per_class",
            Self::Map => "map",
            Self::Map11Point => "map_11_point",
            Self::RocAuc => "roc_auc",
        }
    }

    /// The metric of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    /// Returns an error unless the metric is defined for some rows, which are called `set`.
    pub(super) fn check(self, targets: &Targets, rows: &[usize], set: &'static str) -> Result<()> {
        let refuse = |problem: String| Err(ProbeError::Metric { metric: self, problem });
        match (self, targets) {
            (Self::Top1 | Self::MeanPerClass, Targets::Classes { .. }) => Ok(()),
            (Self::Top1 | Self::MeanPerClass, Targets::Labels { .. }) => {
                refuse("images have any number of labels instead of one class".into())
            }
            (Self::Map | Self::Map11Point, Targets::Classes { .. }) => refuse(
                "images have one class instead of labels\n\
                 hint: a file of labels says what is on an image"
                    .into(),
            ),
            (Self::Map | Self::Map11Point, Targets::Labels { of, .. }) => {
                let held = rows.iter().any(|&row| !of[row].is_empty());
                held.then_some(()).ok_or(ProbeError::NoPositive(set))
            }
            (Self::RocAuc, Targets::Classes { count, .. }) if *count != 2 => {
                refuse(format!("it tells two classes apart, these are {count}"))
            }
            (Self::RocAuc, Targets::Classes { .. }) => {
                let counts = targets.counts(rows);
                if counts.iter().sum::<usize>() < rows.len() {
                    return refuse(format!("some {set} images are of neither class"));
                }
                if counts.contains(&0) {
                    return refuse(format!("all {set} images are of one class"));
                }
                Ok(())
            }
            (Self::RocAuc, Targets::Labels { .. }) => {
                let apart = |count: &usize| (1..rows.len()).contains(count);
                if !targets.counts(rows).iter().any(apart) {
                    return refuse(format!("each label is held by all {set} images or by none"));
                }
                Ok(())
            }
        }
    }

    /// Classes or labels that a mean over them leaves out, since no row tells anything of them.
    pub fn left_out(self, targets: &Targets) -> Vec<usize> {
        let rows: Vec<usize> = (0..targets.len()).collect();
        let counts = targets.counts(&rows);
        let counted = |count: usize| match (self, targets) {
            (Self::Top1, _) | (Self::RocAuc, Targets::Classes { .. }) => true,
            (Self::RocAuc, Targets::Labels { .. }) => (1..rows.len()).contains(&count),
            (Self::MeanPerClass | Self::Map | Self::Map11Point, _) => count > 0,
        };
        (0..counts.len()).filter(|&index| !counted(counts[index])).collect()
    }
}

/// The name in words.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Top1 => "top-1",
            Self::MeanPerClass => "mean per class",
            Self::Map => "mAP",
            Self::Map11Point => "11-point mAP",
            Self::RocAuc => "ROC-AUC",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(of: &[u32], count: usize) -> Targets {
        Targets::Classes { of: of.to_vec(), count }
    }

    fn labels(of: &[&[u32]], count: usize) -> Targets {
        Targets::Labels { of: of.iter().map(|held| held.to_vec()).collect(), count }
    }

    #[test]
    fn metrics_are_stored_and_chosen_by_one_name() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
            assert_eq!(Metric::of_name(metric.name()), Some(metric));
        }
        assert_eq!(Metric::of_name("top-1"), None);
        assert_eq!(format!("{:>8}", Metric::RocAuc), " ROC-AUC");
        assert_eq!([false, true].map(Metric::standard), [Metric::Top1, Metric::Map]);
    }

    #[test]
    fn metrics_that_images_do_not_have_are_refused() {
        let all = |metric: Metric, targets: Targets| {
            let rows: Vec<usize> = (0..targets.len()).collect();
            metric.check(&targets, &rows, "query").map_err(|error| error.to_string())
        };
        for (metric, targets, message) in [
            (Metric::Top1, labels(&[&[0]], 1), "top-1 cannot be measured: images have any number"),
            (Metric::MeanPerClass, labels(&[&[0]], 1), "mean per class cannot be measured"),
            (Metric::Map, classes(&[0, 1], 2), "mAP cannot be measured: images have one class"),
            (Metric::Map11Point, classes(&[0, 1], 2), "hint: a file of labels"),
            (Metric::Map11Point, labels(&[&[], &[]], 1), "no query image holds a label"),
            (Metric::RocAuc, classes(&[0, 1, 2], 3), "two classes apart, these are 3"),
            (Metric::RocAuc, classes(&[1, 1], 2), "all query images are of one class"),
            (Metric::RocAuc, classes(&[0, 1, 2], 2), "some query images are of neither class"),
            (Metric::RocAuc, labels(&[&[0], &[0]], 2), "held by all query images or by none"),
        ] {
            let error = all(metric, targets).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        for (metric, targets) in [
            (Metric::Top1, classes(&[7], 2)),
            (Metric::MeanPerClass, classes(&[0], 3)),
            (Metric::Map, labels(&[&[], &[1]], 2)),
            (Metric::RocAuc, classes(&[0, 1, 1], 2)),
            (Metric::RocAuc, labels(&[&[0, 1], &[0]], 2)),
        ] {
            all(metric, targets).unwrap();
        }
        // Rows that are not asked about do not matter.
        let targets = classes(&[0, 0, 1], 2);
        assert!(Metric::RocAuc.check(&targets, &[0, 1], "validation").is_err());
        assert!(Metric::RocAuc.check(&targets, &[0, 2], "validation").is_ok());
    }

    #[test]
    fn classes_without_images_are_named() {
        let three = classes(&[0, 2, 2, 5], 4);
        assert_eq!(Metric::MeanPerClass.left_out(&three), [1, 3]);
        assert_eq!(Metric::Top1.left_out(&three), [0; 0]);
        let held = labels(&[&[0, 1], &[0]], 3);
        assert_eq!(Metric::Map11Point.left_out(&held), [2]);
        assert_eq!(Metric::RocAuc.left_out(&held), [0, 2]);
    }
}
