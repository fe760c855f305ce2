//! What the loop does for any objective: its teachers, frozen parameters, rates, parts of the loss
//! and the order of its calls, with an objective that is no more than that.

use std::sync::{Arc, Mutex};

use esvit_nn::layers::Linear;
use esvit_nn::ops::Activation;
use esvit_nn::params::{ParamId, ParamSpec};
use esvit_nn::{Collective, Solo};
use esvit_train::objective::{
    EmaTiming, FrozenTeacher, Loss, LossPart, Objective, Pass, Teacher, Views,
};

use super::*;

/// Weight of the second part of the loss.
const SIZE: f64 = 0.25;

/// Kinds of [`Teacher`].
#[derive(Debug, Clone)]
enum Kind {
    None,
    Shared,
    Ema(EmaTiming),
    Frozen(Arc<FrozenTeacher>),
}

/// What an objective was given, in order.
#[derive(Debug, Default, Clone)]
struct Given {
    calls: Vec<String>,
    /// The targets of every micro-batch.
    targets: Vec<Vec<f32>>,
}

/// The mean squared distance of a linear layer on view features to the teacher's features of the
/// first view, or to the labels where there is no teacher, and the mean square of its outputs.
#[derive(Debug)]
struct Distance {
    kind: Kind,
    linear: Linear,
    width: usize,
    is_frozen: bool,
    /// Factors of the learning rate of the layer, of the embedding, and of the rest.
    scales: [f64; 3],
    target: Option<Tensor>,
    given: Arc<Mutex<Given>>,
}

impl Distance {
    fn call(&self, what: impl Into<String>) {
        self.given.lock().unwrap().calls.push(what.into());
    }
}

impl Objective for Distance {
    fn chance_loss(&self) -> f64 {
        1.0
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        match &self.kind {
            Kind::None => Teacher::None,
            Kind::Shared => Teacher::Shared,
            &Kind::Ema(timing) => Teacher::Ema { timing, momentum: 0.75 },
            Kind::Frozen(teacher) => Teacher::Frozen(teacher.clone()),
        }
    }

    fn frozen(&self, _at: &StepInfo) -> Vec<ParamId> {
        if self.is_frozen { vec![self.linear.weight()] } else { Vec::new() }
    }

    fn lr_scale(&self, spec: &ParamSpec) -> f64 {
        let [head, embedding, rest] = self.scales;
        match spec.name.split('.').next() {
            Some("distance") => head,
            Some("patch_embed") => embedding,
            _ => rest,
        }
    }

    fn begin_step(&mut self, _student: &mut Params, at: &StepInfo) {
        self.call(format!("begin {}", at.step));
        self.target = None;
    }

    fn targets(
        &mut self,
        batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let images = batch.images();
        let seen = teacher.as_ref().map(|pass| (pass.views.clone(), pass.batch));
        self.call(format!("targets {:?} {seen:?}", batch.labels));
        let target = match teacher {
            Some(pass) => {
                // What the student's parameters are not, the pass has no gradient for.
                pass.features.view.narrow(0, 0, images)
            }
            None => {
                let labels = batch.labels.iter().flat_map(|&label| vec![label as f32; self.width]);
                Tensor::new(labels.collect(), [images, self.width], &Device::Cpu)
            }
        };
        self.given.lock().unwrap().targets.push(target.to_vec());
        self.target = Some(target);
    }

    fn student_views(&mut self, batch: &MicroBatch, place: [u64; 2]) -> Vec<Tensor> {
        self.call(format!("views {place:?}"));
        batch.views.clone()
    }

    fn loss(&mut self, student: Pass<'_>, _at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let Pass { params, features, ctx, views, batch } = student;
        self.call(format!("loss {:?} of {}, {batch}", views.at_hand, views.total));
        let outputs = self.linear.forward(params, features.view, Activation::None, ctx);
        let target = self.target.clone().unwrap();
        let targets = Tensor::cat(vec![target; views.at_hand.len()], 0);
        // A view's share of the mean over all.
        let share = views.at_hand.len() as f64 / views.total as f64;
        let distance = (outputs.clone() - targets).square().mean() * share;
        let size = outputs.square().mean() * share;
        Loss {
            parts: vec![
                LossPart { name: "distance", value: distance, weight: 1.0 },
                LossPart { name: "size", value: size, weight: SIZE },
            ],
        }
    }

    fn commit(&mut self, at: &StepInfo, _collective: &dyn Collective) {
        self.call(format!("commit {}", at.step));
    }
}

/// A learner of this kind of teacher, and what its objective is given.
fn simple(kind: Kind, optimizer: OptimizerKind) -> (Learner, Arc<Mutex<Given>>) {
    let given = Arc::default();
    let (network, objective) = Network::new(&tiny_backbone(), 0.0, |scope, student_width| {
        let width = match &kind {
            Kind::Frozen(teacher) => teacher.network.backbone().output_width(),
            _ => student_width,
        };
        Distance {
            linear: Linear::new(&mut scope.head("distance"), student_width, width),
            kind: kind.clone(),
            width,
            is_frozen: false,
            scales: [1.0; 3],
            target: None,
            given: Arc::clone(&given),
        }
    });
    let specs = network.specs().clone();
    let objective = Box::new(objective);
    let mut learner = Learner::new(network, objective, optimizer, SETTINGS, &Device::Cpu);
    learner.student = fill(&specs, 100);
    if matches!(kind, Kind::Ema(_)) {
        assert!(learner.teacher.is_some());
        learner.teacher = Some(fill(&specs, 200));
    }
    (learner, given)
}

fn distance(learner: &mut Learner) -> &mut Distance {
    let objective: &mut dyn Any = &mut *learner.objective;
    objective.downcast_mut().unwrap()
}

fn labeled(images: usize) -> MicroBatch {
    MicroBatch { labels: (0..images as u32).map(|image| image % 3).collect(), ..batch(images) }
}

/// A backbone of another width and depth, which is nowhere near the student.
fn frozen_teacher() -> Arc<FrozenTeacher> {
    let BackboneConfig::Swin(swin) = tiny_backbone() else { panic!("a Swin") };
    let swin = SwinConfig { embed_dim: 6, depths: vec![2, 1], ..swin };
    let (network, ()) = Network::new(&BackboneConfig::Swin(swin), 0.0, |_, _| ());
    let params = fill(network.specs(), 500);
    Arc::new(FrozenTeacher { network, params })
}

/// View features of the first view.
fn first_view(network: &Network, params: &Params, ctx: &ForwardCtx, images: usize) -> Vec<f32> {
    let features = network.features(params, &crops(images)[..2], ctx);
    features.view.narrow(0, 0, images).to_vec()
}

fn bits(params: &Params) -> Vec<u32> {
    params.flat().to_vec::<f32>().into_iter().map(f32::to_bits).collect()
}

/// `momentum * teacher + (1 - momentum) * student`.
fn averaged(teacher: &Params, student: &Params) -> Vec<f64> {
    let values = teacher.flat().to_vec::<f32>().into_iter().zip(student.flat().to_vec::<f32>());
    values.map(|(teacher, student)| 0.75 * f64::from(teacher) + 0.25 * f64::from(student)).collect()
}

/// What each kind of teacher sees and says, with which parameters, and what becomes of them.
#[test]
fn every_kind_of_teacher() {
    let ctx = ForwardCtx::teacher();
    let outside = frozen_teacher();
    let kinds = [
        Kind::None,
        Kind::Shared,
        Kind::Ema(EmaTiming::BeforeForward),
        Kind::Ema(EmaTiming::AfterStep),
        Kind::Frozen(outside.clone()),
    ];
    for kind in kinds {
        let what = format!("{:?}", distance(&mut simple(kind.clone(), OptimizerKind::Sgd).0).kind);
        let what = what.split(' ').next().unwrap();
        let (mut learner, given) = simple(kind.clone(), OptimizerKind::Sgd);
        let has_teacher = matches!(kind, Kind::Ema(_));
        let (student, teacher) = (learner.student.clone(), learner.teacher.clone());
        let outside_before = bits(&outside.params);
        learner.step([labeled(3)], &STEP).unwrap();

        let given = given.lock().unwrap().clone();
        let seen = if matches!(kind, Kind::None) { None } else { Some((Views::all(2), 3)) };
        let expected = [
            "begin 0".to_owned(),
            format!("targets [0, 1, 2] {seen:?}"),
            "views [0, 0]".to_owned(),
            "loss 0..4 of 4, 3".to_owned(),
            "commit 0".to_owned(),
        ];
        assert_eq!(given.calls, expected, "{what}");

        let network = &learner.network;
        let expected = match &kind {
            Kind::None => [0.0f32, 1.0, 2.0].into_iter().flat_map(|label| [label; 8]).collect(),
            Kind::Shared => first_view(network, &student, &ctx, 3),
            Kind::Ema(EmaTiming::AfterStep) => {
                first_view(network, teacher.as_ref().unwrap(), &ctx, 3)
            }
            // It has followed the student before, and only then.
            Kind::Ema(EmaTiming::BeforeForward) => {
                first_view(network, learner.teacher.as_ref().unwrap(), &ctx, 3)
            }
            Kind::Frozen(teacher) => {
                first_view(&teacher.network, &teacher.params, &ForwardCtx::eval(), 3)
            }
        };
        assert_eq!(given.targets, [expected], "{what}");

        assert_ne!(bits(&learner.student), bits(&student), "{what}");
        assert_eq!(learner.teacher.is_some(), has_teacher, "{what}");
        if let (Some(before), Some(after)) = (&teacher, &learner.teacher) {
            let followed = match kind {
                Kind::Ema(EmaTiming::BeforeForward) => &student,
                _ => &learner.student,
            };
            let found = after.flat().to_vec::<f32>();
            assert_close(what, &found, &averaged(before, followed), 1e-6);
        }
        assert_eq!(bits(&outside.params), outside_before, "{what}");
        let evaluated = if has_teacher { teacher_of(&learner) } else { &learner.student };
        assert_eq!(bits(learner.evaluated()), bits(evaluated), "{what}");
    }
}

/// A shared teacher's targets are constants: gradients are those of the same targets from elsewhere.
#[test]
fn no_gradient_flows_through_a_teacher() {
    let gradients = |learner: &mut Learner| -> Vec<Vec<f32>> {
        let gradients = learner.gradients([labeled(2)], &STEP).values;
        (0..learner.network.specs().len()).map(|index| gradient(&gradients, index)).collect()
    };
    let (mut shared, _) = simple(Kind::Shared, OptimizerKind::Sgd);
    let (mut follower, _) = simple(Kind::Ema(EmaTiming::AfterStep), OptimizerKind::Sgd);
    follower.teacher = Some(shared.student.clone());
    assert_eq!(gradients(&mut shared), gradients(&mut follower));
}

/// The teacher sees no more views than there are.
#[test]
fn a_single_view() {
    let (mut learner, given) = simple(Kind::Shared, OptimizerKind::Sgd);
    let mut one = labeled(2);
    one.views.truncate(1);
    learner.step([one], &STEP).unwrap();
    let calls = &given.lock().unwrap().calls;
    let expected = format!("targets [0, 1] {:?}", Some((Views::all(1), 2)));
    assert_eq!(calls[1], expected);
    assert_eq!(calls[3], "loss 0..1 of 1, 2");
}

/// A frozen parameter keeps its values, its moments and its count of updates, though its gradient
/// counts for the norm; a teacher follows it all the same.
#[test]
fn frozen_parameters_keep_values_and_moments() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Lars] {
        let (mut learner, _) = simple(Kind::Ema(EmaTiming::AfterStep), kind);
        let specs = learner.network.specs().clone();
        for is_frozen in [true, false, true] {
            let grad_norm = |learner: &mut Learner| {
                let gradients = learner.gradients([labeled(2)], &STEP).values;
                optim::clip(&gradients, None, ClipScope::Tensor).0.item()
            };
            let expected = grad_norm(&mut learner);
            distance(&mut learner).is_frozen = is_frozen;
            let before = (learner.student.clone(), teacher_of(&learner).clone());
            let optimizer = learner.optimizer.clone();
            let result = learner.step([labeled(2)], &STEP).unwrap();
            assert_eq!(result.grad_norm, expected);
            for (index, spec) in specs.iter().enumerate() {
                let stays = is_frozen && spec.name == "distance.weight";
                let [old, new] = [&before.0, &learner.student].map(|p| p.value(index));
                assert_eq!(old.to_vec::<f32>() == new.to_vec::<f32>(), stays, "{}", spec.name);
                let updates = optimizer.updates(index) + u64::from(!stays);
                assert_eq!(learner.optimizer.updates(index), updates, "{}", spec.name);
                if stays {
                    let [old, new] = [&optimizer, &learner.optimizer].map(|o| moments(o, index));
                    assert_eq!(old, new, "{kind:?}");
                }
            }
            let found = teacher_of(&learner).flat().to_vec::<f32>();
            assert_close("teacher", &found, &averaged(&before.1, &learner.student), 1e-6);
        }
    }
}

/// Steps are as long as the factor says: those of the head a quarter, those of the embedding 0.
#[test]
fn rates_of_parts() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd] {
        let changes = |scales: [f64; 3]| -> Vec<Vec<f64>> {
            let (mut learner, _) = simple(Kind::None, kind);
            distance(&mut learner).scales = scales;
            let before = learner.student.values();
            learner.step([labeled(2)], &STEP).unwrap();
            let pairs = learner.student.values().into_iter().zip(before);
            let change = |(new, old): (Tensor, Tensor)| -> Vec<f64> {
                let pairs = new.to_vec::<f32>().into_iter().zip(old.to_vec::<f32>());
                pairs.map(|(new, old)| f64::from(new) - f64::from(old)).collect()
            };
            pairs.map(change).collect()
        };
        let (plain, scaled) = (changes([1.0; 3]), changes([0.25, 0.0, 1.0]));
        let (learner, _) = simple(Kind::None, kind);
        let mut found = [0; 3];
        for ((spec, plain), scaled) in learner.network.specs().iter().zip(plain).zip(scaled) {
            let (place, scale) = match spec.name.split('.').next() {
                Some("distance") => (0, 0.25),
                Some("patch_embed") => (1, 0.0),
                _ => (2, 1.0),
            };
            found[place] += 1;
            assert!(plain.iter().any(|change| *change != 0.0), "{}", spec.name);
            for (plain, scaled) in plain.into_iter().zip(scaled) {
                // Values of about 1 are rounded to 1e-7.
                assert!((plain * scale - scaled).abs() < 3e-7, "{}: {plain} {scaled}", spec.name);
                assert!(scale != 0.0 || scaled == 0.0, "{}", spec.name);
            }
        }
        assert_eq!(found[..2], [2, 4], "weights and biases");
    }
}

/// The parts of a loss are means over micro-batches and sums over passes, by name and unweighted;
/// the loss is their weighted sum.
#[test]
fn parts_of_a_loss_add_up() {
    let other = MicroBatch {
        views: crops(2).into_iter().map(|crop| crop * -0.5).collect(),
        labels: vec![2, 0],
        samples: Vec::new(),
    };
    let batches = [labeled(2), other, labeled(2)];
    let by_hand = || -> [f64; 2] {
        let (mut learner, _) = simple(Kind::None, OptimizerKind::Sgd);
        let mut means = [0.0; 2];
        for batch in &batches {
            let ctx = ForwardCtx::eval();
            let features = learner.network.features(&learner.student, &batch.views, &ctx).view;
            let linear = distance(&mut learner).linear.clone();
            let outputs = linear.forward(&learner.student, features, Activation::None, &ctx);
            let [rows, width] = outputs.dims();
            let outputs = outputs.to_vec::<f32>();
            for (row, outputs) in outputs.chunks_exact(width).enumerate() {
                let label = f64::from(batch.labels[row % 2]);
                for &output in outputs {
                    let output = f64::from(output);
                    let share = 1.0 / (rows * width * batches.len()) as f64;
                    means[0] += (output - label).powi(2) * share;
                    means[1] += output.powi(2) * share;
                }
            }
        }
        means
    };
    let [first, second] = by_hand();
    for (crop_chunks, passes) in [
        (CropChunks::All, 1),
        (CropChunks::Crops(1), 4),
        (CropChunks::Crops(2), 2),
        (CropChunks::Crops(3), 2),
    ] {
        let (mut learner, given) = simple(Kind::None, OptimizerKind::Sgd);
        learner.settings.crop_chunks = crop_chunks;
        let result = learner.step(batches.clone(), &STEP).unwrap();
        let names: Vec<&str> = result.parts.iter().map(|part| part.0).collect();
        assert_eq!(names, ["distance", "size"]);
        let found = [result.loss, part(&result, "distance"), part(&result, "size")];
        let expected = [first + SIZE * second, first, second];
        assert_close(&format!("{crop_chunks:?}"), &found, &expected, 1e-5);
        assert_eq!(result.part("view"), None);

        let calls = given.lock().unwrap().calls.clone();
        let kinds: Vec<&str> = calls.iter().map(|call| call.split(' ').next().unwrap()).collect();
        let micro_batch = [vec!["targets", "views"], vec!["loss"; passes]].concat();
        let expected = [vec!["begin"], micro_batch.repeat(3), vec!["commit"]].concat();
        assert_eq!(kinds, expected);
        // Labels and place of each.
        for (index, batch) in batches.iter().enumerate() {
            let at = 1 + index * (2 + passes);
            assert_eq!(calls[at], format!("targets {:?} None", batch.labels));
            assert_eq!(calls[at + 1], format!("views [0, {index}]"));
        }
    }
}

/// What is not finite is not committed, and a teacher that follows after the step does not.
#[test]
fn a_failed_step_is_not_committed() {
    let (mut learner, given) = simple(Kind::Ema(EmaTiming::AfterStep), OptimizerKind::AdamW);
    let before = state(&learner);
    let mut bad = labeled(2);
    bad.views[2].write(0, &[f32::NAN]);
    learner.step([bad], &StepInfo { step: 4, ..STEP }).unwrap_err();
    assert!(state(&learner) == before);
    let calls = &given.lock().unwrap().calls;
    assert_eq!(calls.first().map(String::as_str), Some("begin 4"));
    assert!(calls.iter().all(|call| !call.starts_with("commit")), "{calls:?}");
}

/// A process alone is a world of one.
#[test]
fn alone() {
    let (learner, _) = simple(Kind::None, OptimizerKind::Sgd);
    assert_eq!((learner.collective.rank(), learner.collective.world()), (0, 1));
    let tensor = hashed_tensor(1, [3]);
    for found in [
        Solo.all_reduce(tensor.clone()),
        Solo.all_gather(tensor.clone()),
        Solo.all_gather_grad(tensor.clone()),
        Solo.broadcast(tensor.clone(), 0),
    ] {
        assert_eq!(found.to_vec::<f32>(), tensor.to_vec::<f32>());
    }
}
