//! Detects a collapsed teacher.
//!
//! In both kinds of collapse the loss falls or is flat and nothing is learned: the output is the
//! same for every image, either uniform over prototypes or always the same prototype (constant).
//! The mutual information of image and output is then near 0.

use esvit_nn::Tensor;
use esvit_nn::esvit_heads::Predictions;
use esvit_nn::ops;

use super::Centers;
use crate::objective::{Collapse, GLOBAL_VIEWS, Health};

/// Share of the largest possible mutual information below which outputs count as independent of
/// the image.
const LEAST_INFORMATION: f64 = 0.02;
/// Share of ln K above which a distribution counts as uniform.
const UNIFORM_SHARE: f64 = 0.9;

/// Mean entropy of the teacher's distributions, in nats; ln K if they are uniform.
const TEACHER_ENTROPY: &str = "teacher_entropy";
/// Entropy of the mean distribution of the batch, in nats.
const MARGINAL_ENTROPY: &str = "marginal_entropy";
/// ln K, the largest entropy possible.
const MAX_ENTROPY: &str = "max_entropy";
/// Rows of the batch; mutual information is at most their logarithm.
const ROWS: &str = "rows";
/// Norm of the center of the view logits.
const CENTER_NORM: &str = "center_norm";

/// Uniform over prototypes, for every image.
pub const UNIFORM: Collapse = Collapse {
    kind: "uniform",
    advice: "the teacher has collapsed: it spreads its answer over all prototypes alike, whatever \
             the image\n\
             hint: lower `optim.lr` first; if that does not help, `objective.teacher_temp`, or \
             `objective.head.out_dim` if the set is small",
};

/// The same few prototypes for every image.
pub const CONSTANT: Collapse = Collapse {
    kind: "constant",
    advice: "the teacher has collapsed: it gives the same answer for every image\n\
             hint: lower `optim.lr` first; if that does not help, raise `objective.teacher_temp` or lower \
             `objective.center_momentum`, and see with `esvit data preview` that the images differ",
};

/// Whether a batch with these signals looks collapsed.
pub(super) fn collapse(signal: &dyn Fn(&str) -> Option<f64>) -> Option<Collapse> {
    let [teacher, marginal, most, rows] =
        [TEACHER_ENTROPY, MARGINAL_ENTROPY, MAX_ENTROPY, ROWS].map(signal);
    let (teacher, most, rows) = (teacher?, most?, rows?);
    // Mutual information of image and output, in nats.
    let information = (marginal? - teacher).max(0.0);
    if rows < 4.0 || information > LEAST_INFORMATION * most.min(rows.ln()) {
        return None;
    }
    Some(if teacher > UNIFORM_SHARE * most { UNIFORM } else { CONSTANT })
}

/// Statistics of the teacher's outputs for the views of a batch, at its temperature. The spread of features is
/// that of images, of which there must be several.
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
    let entropy = mean_entropy(distributions);
    let most = (prototypes as f64).ln();
    let center_norm = scalar(centers.view.clone().square().sum()).sqrt();
    let mut health = Health {
        signals: vec![
            (TEACHER_ENTROPY, entropy),
            (MARGINAL_ENTROPY, mean_entropy(marginal)),
            (MAX_ENTROPY, most),
            (ROWS, rows as f64),
            (CENTER_NORM, center_norm),
        ],
        summary: format!("teacher entropy {entropy:.2} of {most:.2}, center {center_norm:.2}"),
    };
    if rows > GLOBAL_VIEWS {
        health.add_feature_std((scalar(variance) * width as f64).sqrt());
    }
    health
}

/// Mean entropy of rows in nats, with 0 log 0 = 0.
pub(super) fn mean_entropy(rows: Tensor) -> f64 {
    let log = rows.clone().clamp_min(f32::MIN_POSITIVE.into()).log();
    -scalar((rows * log).sum_dim(1).mean())
}

fn scalar(tensor: Tensor) -> f64 {
    f64::from(tensor.item())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::{CollapseDetector, FEATURE_STD, UNSTABLE};
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

    fn collapse_of(health: &Health) -> Option<Collapse> {
        collapse(&|name| health.signal(name))
    }

    #[test]
    fn tells_collapsed_from_healthy() {
        let mut confident = [[0.0; 4]; 4];
        (0..4).for_each(|i| confident[i][i] = 1.0);
        assert_eq!(collapse_of(&look(confident)), None);
        assert_eq!(collapse_of(&look([[0.25; 4]; 4])), Some(UNIFORM));
        assert_eq!(collapse_of(&look([[1.0, 0.0, 0.0, 0.0]; 4])), Some(CONSTANT));
    }

    #[test]
    fn warns_once_after_it_has_lasted() {
        let mut watch = CollapseDetector::default();
        let collapsed = collapse_of(&look([[0.25; 4]; 4]));
        let warnings = (0..20).filter(|_| watch.look(collapsed).is_some()).count();
        assert_eq!(warnings, 1);
        let healthy =
            look([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]].repeat(2).try_into().unwrap());
        assert_eq!(watch.look(collapse_of(&healthy)), None);
        assert_eq!((0..4).filter(|_| watch.look(collapsed).is_some()).count(), 0);
        assert_eq!(watch.look(collapsed), collapsed, "it is told of again");
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
        let marginal = -0.375 * ln(0.375) - 0.625 * ln(0.3125);
        // All of the signals, in the order of the metrics.
        let expected = [
            (TEACHER_ENTROPY, 1.5 * ln(2.0)),
            (MARGINAL_ENTROPY, marginal),
            (MAX_ENTROPY, ln(3.0)),
            (ROWS, 4.0),
            (CENTER_NORM, 3.0),
            // Unit rows (0.6, 0.8), (0, 1), (1, 0), (-0.6, 0.8): variances 0.3675 and 0.1475.
            (FEATURE_STD, (2.0 * (0.3675 + 0.1475) / 2.0f64).sqrt()),
        ];
        assert_eq!(found.signals.len(), expected.len());
        assert_eq!(found.signal(ROWS), Some(4.0));
        for ((name, found), (expected_name, expected)) in found.signals.into_iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((found - expected).abs() < 1e-6, "{name}: {found} instead of {expected}");
        }
        let words = "teacher entropy 1.04 of 1.10, center 3.00, feature std 0.72";
        assert_eq!(found.summary, words);
    }

    /// Two views of one image say nothing of how images spread.
    #[test]
    fn one_image_has_no_spread() {
        let device = Device::Cpu;
        let teacher = Predictions {
            view_features: Tensor::ones([2, 3], &device),
            view_logits: PrototypeLogits::from_matrix(Tensor::ones([2, 4], &device)),
            region: None,
        };
        let found = examine(&teacher, &Centers::zeros(4, false, &device), 1.0);
        assert_eq!((found.signal(FEATURE_STD), found.signal(ROWS)), (None, Some(2.0)));
        assert_eq!(found.summary, "teacher entropy 1.39 of 1.39, center 0.00");
    }

    /// What a batch with these statistics looks like.
    fn judged(teacher: f64, marginal: f64, max_entropy: f64, rows: usize) -> Option<Collapse> {
        let signals = vec![
            (TEACHER_ENTROPY, teacher),
            (MARGINAL_ENTROPY, marginal),
            (MAX_ENTROPY, max_entropy),
            (ROWS, rows as f64),
        ];
        collapse_of(&Health { signals, summary: String::new() })
    }

    /// 2 % of what could be told apart: of ln 64 by 64 rows, of ln 4 by 4 prototypes.
    #[test]
    fn bounds_of_collapse() {
        let [all, of_rows, of_prototypes] = [7.0, 64f64.ln(), 4f64.ln()];
        for ((teacher, marginal, most, rows), expected) in [
            ((1.0, 1.0 + 0.0199 * of_rows, all, 64), Some(CONSTANT)),
            ((1.0, 1.0 + 0.0201 * of_rows, all, 64), None),
            ((0.5, 0.5 + 0.0199 * of_prototypes, of_prototypes, 64), Some(CONSTANT)),
            ((0.5, 0.5 + 0.0201 * of_prototypes, of_prototypes, 64), None),
            ((0.91 * all, 0.91 * all, all, 64), Some(UNIFORM)),
            ((0.89 * all, 0.89 * all, all, 64), Some(CONSTANT)),
            // Rounding may make the mean's entropy the smaller one.
            ((1.0, 1.0 - 1e-6, all, 64), Some(CONSTANT)),
            ((1.0, 0.5, all, 64), Some(CONSTANT)),
            ((1.0, 1.0, all, 4), Some(CONSTANT)),
            ((1.0, 1.0, all, 3), None),
        ] {
            let found = judged(teacher, marginal, most, rows);
            assert_eq!(found, expected, "{teacher} {marginal} {most} {rows}");
        }
        assert_eq!(collapse(&|name| (name != ROWS).then_some(1.0)), None, "a signal is missing");
    }

    /// The fifth finding in a row is reported, and no other until the outputs have recovered: advice on
    /// another kind would be the opposite.
    #[test]
    fn a_change_of_the_kind_is_no_other_collapse() {
        let [uniform, constant] = [Some(UNIFORM), Some(CONSTANT)];
        let healthy = judged(0.1, 1.0, 2.0, 64);
        assert_eq!(healthy, None);
        let mut watch = CollapseDetector::default();
        for (round, expected) in [(0, [None; 4]), (1, [uniform, None, None, None])] {
            let found = [0; 4].map(|_| watch.look(uniform));
            assert_eq!(found, expected, "round {round}");
        }
        assert_eq!([0; 9].map(|_| watch.look(constant)), [None; 9]);
        // Again, and as before.
        assert_eq!(watch.look(healthy), None);
        assert_eq!([0; 5].map(|_| watch.look(uniform)), [None, None, None, None, uniform]);
        // Again, and in another way.
        for other in [constant, uniform] {
            assert_eq!(watch.look(healthy), None);
            let expected = [None, None, None, None, Some(UNSTABLE), None];
            assert_eq!([0; 6].map(|_| watch.look(other)), expected);
        }
        assert!(UNSTABLE.advice.contains("hint: lower `optim.lr`"));
    }

    #[test]
    fn advice_says_which_way_to_turn() {
        assert_eq!([UNIFORM.kind, CONSTANT.kind], ["uniform", "constant"]);
        let [uniform, constant] = [UNIFORM, CONSTANT].map(|collapse| collapse.advice);
        assert!(uniform.contains("all prototypes alike"), "{uniform}");
        assert!(uniform.contains("help, `objective.teacher_temp`, or"), "{uniform}");
        assert!(constant.contains("the same answer for every image"), "{constant}");
        assert!(constant.contains("help, raise `objective.teacher_temp`"), "{constant}");
        // A rate that is too high leads to both.
        for advice in [uniform, constant] {
            assert!(advice.contains("\nhint: lower `optim.lr` first; "), "{advice}");
        }
    }
}
