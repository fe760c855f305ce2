//! Detects a collapsed teacher.
//!
//! In both kinds of collapse the loss falls or is flat and nothing is learned: the output is the
//! same for every image, either uniform over prototypes or always the same prototype (constant).
//! The mutual information of image and output is then near 0.

use esvit_nn::Tensor;
use esvit_nn::network::Predictions;
use esvit_nn::ops;
use serde::{Deserialize, Serialize};

use crate::objective::Centers;

/// Share of the largest possible mutual information below which outputs count as independent of
/// the image.
const LEAST_INFORMATION: f64 = 0.02;
/// Share of ln K above which a distribution counts as uniform.
const UNIFORM: f64 = 0.9;

/// Statistics of the teacher on one batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Mean entropy of its distributions, in nats; ln K if they are uniform.
    pub teacher_entropy: f64,
    /// Entropy of the mean distribution of the batch, in nats.
    pub marginal_entropy: f64,
    /// ln K, the largest entropy possible.
    pub max_entropy: f64,
    /// Rows of the batch; mutual information is at most their logarithm.
    pub rows: usize,
    /// Norm of the center of the view logits.
    pub center_norm: f64,
    /// Standard deviation of the L2-normalized view features over the batch, times the root of
    /// their width: 1 for features in all directions, 0 for identical ones.
    pub feature_std: f64,
}

/// A kind of collapse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Collapse {
    /// Uniform over prototypes, for every image.
    Uniform,
    /// The same few prototypes for every image.
    Constant,
}

impl Health {
    /// Mutual information of image and output, in nats.
    pub fn information(&self) -> f64 {
        (self.marginal_entropy - self.teacher_entropy).max(0.0)
    }

    /// Whether this batch looks collapsed. One batch is weak evidence: see [`CollapseDetector`].
    pub fn collapse(&self) -> Option<Collapse> {
        let possible = self.max_entropy.min((self.rows as f64).ln());
        if self.rows < 4 || self.information() > LEAST_INFORMATION * possible {
            return None;
        }
        let uniform = self.teacher_entropy > UNIFORM * self.max_entropy;
        Some(if uniform { Collapse::Uniform } else { Collapse::Constant })
    }
}

/// Statistics of the teacher's outputs for the views of a batch, at its temperature.
pub fn examine(teacher: &Predictions, centers: &Centers, temperature: f64) -> Health {
    let logits = teacher.view_logits.clone().detach().matrix();
    let [rows, prototypes] = logits.dims();
    let centered = logits - centers.view.clone().reshape([1, prototypes]);
    let distributions = (centered / temperature).softmax(1);
    let marginal = distributions.clone().mean_dim(0);
    let features = ops::l2_normalize(teacher.view_features.clone().detach());
    let width = features.shape()[1];
    let centered = features.clone() - features.mean_dim(0);
    let variance = centered.square().mean_dim(0).mean();
    Health {
        teacher_entropy: mean_entropy(distributions),
        marginal_entropy: mean_entropy(marginal),
        max_entropy: (prototypes as f64).ln(),
        rows,
        center_norm: scalar(centers.view.clone().square().sum()).sqrt(),
        feature_std: (scalar(variance) * width as f64).sqrt(),
    }
}

/// Mean entropy of rows in nats, with 0 log 0 = 0.
fn mean_entropy(rows: Tensor) -> f64 {
    let log = rows.clone().clamp_min(f32::MIN_POSITIVE.into()).log();
    -scalar((rows * log).sum_dim(1).mean())
}

fn scalar(tensor: Tensor) -> f64 {
    f64::from(tensor.item())
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
    /// Adds the statistics of a batch; returns a collapse once, when it has lasted.
    pub fn look(&mut self, health: &Health) -> Option<Collapse> {
        let Some(collapse) = health.collapse() else {
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

impl Collapse {
    /// Explanation and hint for the user.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Uniform => {
                "the teacher has collapsed: it spreads its answer over all prototypes alike, \
                 whatever the image\n\
                 hint: lower `objective.teacher_temp`, or `head.out_dim` if the set is small"
            }
            Self::Constant => {
                "the teacher has collapsed: it gives the same answer for every image\n\
                 hint: raise `objective.teacher_temp`, lower `optim.lr` or \
                 `objective.center_momentum`, and see with `esvit data preview` that the \
                 images differ"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;
    use esvit_nn::ops::PrototypeLogits;

    fn look(rows: [[f32; 4]; 4]) -> Health {
        let device = Device::Cpu;
        // Logits of these distributions.
        let logits = rows.map(|row| row.map(|share: f32| share.max(1e-30).ln()));
        let logits = Tensor::new(logits.as_flattened().to_vec(), [4, 4], &device);
        let teacher = Predictions {
            view_features: Tensor::ones([4, 3], &device),
            view_logits: PrototypeLogits::from_matrix(logits),
            region: None,
        };
        examine(&teacher, &Centers::zeros(4, false, &device), 1.0)
    }

    #[test]
    fn tells_collapsed_from_healthy() {
        let mut confident = [[0.0; 4]; 4];
        (0..4).for_each(|i| confident[i][i] = 1.0);
        assert_eq!(look(confident).collapse(), None);
        assert_eq!(look([[0.25; 4]; 4]).collapse(), Some(Collapse::Uniform));
        assert_eq!(look([[1.0, 0.0, 0.0, 0.0]; 4]).collapse(), Some(Collapse::Constant));
    }

    #[test]
    fn warns_once_after_it_has_lasted() {
        let mut watch = CollapseDetector::default();
        let collapsed = look([[0.25; 4]; 4]);
        let warnings = (0..20).filter(|_| watch.look(&collapsed).is_some()).count();
        assert_eq!(warnings, 1);
        let healthy =
            look([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]].repeat(2).try_into().unwrap());
        assert_eq!(watch.look(&healthy), None);
        assert_eq!((0..4).filter(|_| watch.look(&collapsed).is_some()).count(), 0);
    }

    /// Distributions of known entropy behind a center of length 3, at a temperature of 0.5, and
    /// features of other lengths than 1.
    #[test]
    fn figures_by_hand() {
        let device = Device::Cpu;
        let center = [1.0f32, -2.0, 2.0];
        let rows = [[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0], [2.0, 1.0, 1.0]];
        let logits = rows.map(|row: [f32; 3]| {
            std::array::from_fn::<f32, 3, _>(|k| 0.5 * (row[k] / 4.0).ln() + center[k])
        });
        let logits = Tensor::new(logits.as_flattened().to_vec(), [4, 3], &device);
        let features = vec![3f32, 4.0, 0.0, 2.0, 5.0, 0.0, -0.3, 0.4];
        let teacher = Predictions {
            view_features: Tensor::new(features, [4, 2], &device),
            view_logits: PrototypeLogits::from_matrix(logits),
            region: None,
        };
        let centers = Centers::new(Tensor::from_vec(center.to_vec(), &device), None);
        let found = examine(&teacher, &centers, 0.5);
        let ln = f64::ln;
        let expected = Health {
            teacher_entropy: 1.5 * ln(2.0),
            marginal_entropy: -0.375 * ln(0.375) - 0.625 * ln(0.3125),
            max_entropy: ln(3.0),
            rows: 4,
            center_norm: 3.0,
            // Unit rows (0.6, 0.8), (0, 1), (1, 0), (-0.6, 0.8): variances 0.3675 and 0.1475.
            feature_std: (2.0 * (0.3675 + 0.1475) / 2.0f64).sqrt(),
        };
        assert_eq!(found.rows, expected.rows);
        for (what, found, expected) in [
            ("teacher", found.teacher_entropy, expected.teacher_entropy),
            ("marginal", found.marginal_entropy, expected.marginal_entropy),
            ("largest", found.max_entropy, expected.max_entropy),
            ("center", found.center_norm, expected.center_norm),
            ("features", found.feature_std, expected.feature_std),
        ] {
            assert!((found - expected).abs() < 1e-6, "{what}: {found} instead of {expected}");
        }
        let information = expected.marginal_entropy - expected.teacher_entropy;
        assert!((found.information() - information).abs() < 1e-6);
    }

    fn figures(teacher: f64, marginal: f64, max_entropy: f64, rows: usize) -> Health {
        Health {
            teacher_entropy: teacher,
            marginal_entropy: marginal,
            max_entropy,
            rows,
            center_norm: 0.0,
            feature_std: 0.0,
        }
    }

    /// 2 % of what could be told apart: of ln 64 by 64 rows, of ln 4 by 4 prototypes.
    #[test]
    fn bounds_of_collapse() {
        let [all, of_rows, of_prototypes] = [7.0, 64f64.ln(), 4f64.ln()];
        for (health, expected) in [
            (figures(1.0, 1.0 + 0.0199 * of_rows, all, 64), Some(Collapse::Constant)),
            (figures(1.0, 1.0 + 0.0201 * of_rows, all, 64), None),
            (
                figures(0.5, 0.5 + 0.0199 * of_prototypes, of_prototypes, 64),
                Some(Collapse::Constant),
            ),
            (figures(0.5, 0.5 + 0.0201 * of_prototypes, of_prototypes, 64), None),
            (figures(0.91 * all, 0.91 * all, all, 64), Some(Collapse::Uniform)),
            (figures(0.89 * all, 0.89 * all, all, 64), Some(Collapse::Constant)),
            // Rounding may make the mean's entropy the smaller one.
            (figures(1.0, 1.0 - 1e-6, all, 64), Some(Collapse::Constant)),
            (figures(1.0, 1.0, all, 4), Some(Collapse::Constant)),
            (figures(1.0, 1.0, all, 3), None),
        ] {
            assert_eq!(health.collapse(), expected, "{health:?}");
        }
        assert_eq!(figures(1.0, 0.5, all, 64).information(), 0.0);
    }

    /// The fifth finding in a row is reported, and another each time that the kind changes.
    #[test]
    fn a_change_of_the_kind_is_reported() {
        let uniform = look([[0.25; 4]; 4]);
        let constant = look([[1.0, 0.0, 0.0, 0.0]; 4]);
        let healthy = figures(0.1, 1.0, 2.0, 64);
        let [uniform_once, constant_once] = [Some(Collapse::Uniform), Some(Collapse::Constant)];
        let mut watch = CollapseDetector::default();
        for (round, expected) in [(0, [None; 4]), (1, [uniform_once, None, None, None])] {
            let found = [0; 4].map(|_| watch.look(&uniform));
            assert_eq!(found, expected, "round {round}");
        }
        assert_eq!([0; 2].map(|_| watch.look(&constant)), [constant_once, None]);
        assert_eq!([0; 2].map(|_| watch.look(&uniform)), [uniform_once, None]);
        assert_eq!(watch.look(&healthy), None);
        assert_eq!([0; 4].map(|_| watch.look(&uniform)), [None; 4]);
        assert_eq!(watch.look(&constant), constant_once);
    }

    #[test]
    fn advice_says_which_way_to_turn() {
        let [uniform, constant] = [Collapse::Uniform, Collapse::Constant].map(Collapse::advice);
        assert!(uniform.contains("all prototypes alike"), "{uniform}");
        assert!(uniform.contains("hint: lower `objective.teacher_temp`"), "{uniform}");
        assert!(constant.contains("the same answer for every image"), "{constant}");
        assert!(constant.contains("hint: raise `objective.teacher_temp`"), "{constant}");
    }
}
