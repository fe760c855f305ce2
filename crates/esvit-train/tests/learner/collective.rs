//! Two learners on two threads, each with half of a step's images, are one with all of them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use esvit_nn::Collective;
use esvit_train::learner::NotFinite;

use super::*;

/// One of two, which sends the other its values.
#[derive(Debug)]
struct Pair {
    rank: usize,
    to: Sender<Vec<f32>>,
    from: Mutex<Receiver<Vec<f32>>>,
}

impl Pair {
    fn connected() -> [Arc<dyn Collective>; 2] {
        let ((to_first, of_first), (to_second, of_second)) = (channel(), channel());
        [(0, to_second, of_first), (1, to_first, of_second)].map(|(rank, to, from)| {
            let pair: Arc<dyn Collective> = Arc::new(Self { rank, to, from: Mutex::new(from) });
            pair
        })
    }

    /// The values of both, by rank.
    fn both(&self, tensor: &Tensor) -> [Tensor; 2] {
        self.to.send(tensor.to_vec()).unwrap();
        let other = self.from.lock().unwrap().recv().unwrap();
        let other = Tensor::new(other, tensor.shape(), &Device::Cpu);
        if self.rank == 0 { [tensor.clone(), other] } else { [other, tensor.clone()] }
    }
}

impl Collective for Pair {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        2
    }

    fn all_reduce(&self, tensor: Tensor) -> Tensor {
        let [first, second] = self.both(&tensor);
        first + second
    }

    fn all_gather(&self, tensor: Tensor) -> Tensor {
        Tensor::cat(self.both(&tensor).to_vec(), 0)
    }

    fn all_gather_grad(&self, _tensor: Tensor) -> Tensor {
        panic!("no loss here needs it")
    }

    fn broadcast(&self, tensor: Tensor, root: usize) -> Tensor {
        self.both(&tensor)[root].clone()
    }
}

/// What is left of a learner and its last step.
struct Left {
    result: Result<StepResult, NotFinite>,
    state: Vec<Vec<u32>>,
}

/// The first half of the micro-batches on one learner and the second on another.
fn apart(new: fn() -> Learner, steps: &[Vec<MicroBatch>]) -> [Left; 2] {
    let run = |collective: Arc<dyn Collective>| {
        let mut learner = new();
        let rank = collective.rank();
        learner.collective = collective;
        let mut result = None;
        for (step, batches) in (0..).zip(steps) {
            let half = batches.len() / 2;
            let own = &batches[rank * half..(rank + 1) * half];
            let at = StepInfo { step, health: true, ..STEP };
            result = Some(learner.step(own, &at));
        }
        Left { result: result.unwrap(), state: state(&learner) }
    };
    std::thread::scope(|scope| {
        let threads = Pair::connected().map(|collective| scope.spawn(|| run(collective)));
        threads.map(|thread| thread.join().unwrap())
    })
}

/// All of them on one.
fn together(new: fn() -> Learner, steps: &[Vec<MicroBatch>]) -> Left {
    let mut learner = new();
    let mut result = None;
    for (step, batches) in (0..).zip(steps) {
        result = Some(learner.step(batches, &StepInfo { step, health: true, ..STEP }));
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
