//! Two learners on two threads, each with half of a step's images, are one with all of them.

use std::sync::Arc;

use esvit_nn::Collective;
use esvit_testing::Pair;
use esvit_train::learner::NotFinite;

use super::*;

/// What is left of a learner and its last step.
pub(super) struct Left {
    pub(super) result: Result<StepResult, NotFinite>,
    pub(super) state: Vec<Vec<u32>>,
}

/// The first half of the micro-batches on one learner and the second on another.
pub(super) fn apart(new: fn() -> Learner, steps: &[Vec<MicroBatch>]) -> [Left; 2] {
    let run = |collective: Arc<dyn Collective>| {
        let mut learner = new();
        let rank = collective.rank();
        learner.collective = collective;
        let mut result = None;
        for (step, batches) in (0..).zip(steps) {
            let half = batches.len() / 2;
            let own = &batches[rank * half..(rank + 1) * half];
            let at = StepInfo { step, health: true, ..STEP };
            result = Some(learner.step(own.to_vec(), &at));
        }
        Left { result: result.unwrap(), state: state(&learner) }
    };
    Pair::run(run)
}

/// All of them on one.
pub(super) fn together(new: fn() -> Learner, steps: &[Vec<MicroBatch>]) -> Left {
    let mut learner = new();
    let mut result = None;
    for (step, batches) in (0..).zip(steps) {
        result = Some(learner.step(batches.clone(), &StepInfo { step, health: true, ..STEP }));
    }
    Left { result: result.unwrap(), state: state(&learner) }
}

/// Micro-batches that differ.
fn different(count: usize) -> Vec<MicroBatch> {
    let one = |index: usize| {
        let factor = 1.0 - 0.3 * index as f64;
        MicroBatch::unlabeled(crops(2).into_iter().map(|crop| crop * factor).collect())
    };
    (0..count).map(one).collect()
}

/// Branches are dropped and images are mixed as they are on one.
fn with_random_numbers() -> Learner {
    let mut learner = learner_with_drop_path(OptimizerKind::Sgd, false, false, 0.5);
    esvit_mut(&mut learner).config.mixup = MixupConfig { enabled: true, ..MixupConfig::default() };
    learner
}

/// Clipped by the norm of all gradients, with prototypes of unit length.
fn clipped() -> Learner {
    let mut learner = learner(OptimizerKind::Sgd, true, false);
    (learner.settings.clip_grad, learner.settings.clip_scope) = (Some(0.05), ClipScope::Global);
    learner
}

#[test]
fn two_learners_are_one() {
    for (new, count) in
        [(with_random_numbers as fn() -> Learner, 2), (with_random_numbers, 4), (clipped, 2)]
    {
        let steps = vec![different(count); 3];
        let expected = together(new, &steps);
        let [first, second] = apart(new, &steps);
        assert!(first.state == second.state, "both have the same bits");
        for (found, expected) in first.state.iter().zip(&expected.state) {
            let values = |bits: &[u32]| -> Vec<f32> {
                bits.iter().map(|&bits| f32::from_bits(bits)).collect()
            };
            // Counts of updates among them are subnormal numbers.
            assert_alike("state", &values(found), &values(expected), 2e-5);
        }
        assert_eq!(first.state.len(), expected.state.len());
        let [first, second, expected] =
            [first.result, second.result, expected.result].map(Result::unwrap);
        let shared = |result: &StepResult| (result.loss, result.parts.clone(), result.grad_norm);
        assert_eq!(shared(&first), shared(&second));
        for [found, expected] in [
            [first.loss, expected.loss],
            [part(&first, "view"), part(&expected, "view")],
            [part(&first, "region"), part(&expected, "region")],
            [first.grad_norm, expected.grad_norm],
        ] {
            assert_alike("result", &[found], &[expected], 2e-5);
        }
        assert!(first.health.is_some() && second.health.is_some());
    }
}

/// AdamW magnifies rounding, and magnifies the same on both.
#[test]
fn two_learners_stay_equal() {
    let new = || learner(OptimizerKind::AdamW, false, false);
    let [first, second] = apart(new, &vec![different(2); 4]);
    assert!(first.state == second.state);
}

/// Where one fails, both do, and neither changes.
#[test]
fn a_step_fails_on_both() {
    let new = || learner(OptimizerKind::AdamW, false, false);
    for bad in [0, 1] {
        let mut failing = different(2);
        failing[bad].views[3].write(0, &[f32::NAN]);
        let good = different(2);
        let before = apart(new, std::slice::from_ref(&good));
        let after = apart(new, &[good, failing]);
        for (before, after) in before.into_iter().zip(after) {
            assert!(after.result.is_err(), "{bad}");
            assert!(before.state == after.state, "{bad}");
        }
    }
}

/// Heads with batch norm have the statistics of the images of both, student and teacher, as one
/// learner with all of these in a micro-batch has.
#[test]
fn batch_statistics_are_those_of_both() {
    let new = || learner(OptimizerKind::Sgd, false, true);
    let whole = crops(4);
    let halves = [0, 2].map(|first| {
        let half = whole.iter().map(|crop| crop.clone().narrow(0, first, 2));
        MicroBatch::unlabeled(half.collect())
    });
    let expected = together(new, &[vec![MicroBatch::unlabeled(whole)]]);
    let [first, second] = apart(new, &[halves.to_vec()]);
    assert!(first.state == second.state, "both have the same bits");
    for (found, expected) in first.state.iter().zip(&expected.state) {
        let values =
            |bits: &[u32]| -> Vec<f32> { bits.iter().map(|&bits| f32::from_bits(bits)).collect() };
        let (found, expected) = (values(found), values(expected));
        // The gradient of a bias before a batch norm is rounding alone.
        if expected.iter().any(|value| value.abs() > 1e-6) {
            assert_alike("state", &found, &expected, 2e-5);
        } else {
            assert!(found.iter().all(|value| value.abs() < 1e-6));
        }
    }
}
