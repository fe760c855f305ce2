//! Masked patch prediction in the loop, with its loss by its definition.

use esvit_data::augment::Normalization;
use esvit_testing::losses;
use esvit_train::objective::Objective;
use esvit_train::objective::masked_patch::{self, COLORS, Cut, MaskedPatch, MaskedPatchConfig};

use super::*;

/// Tokens of 8 pixels.
const SIDE: usize = 8;
const SEED: u64 = 3;

fn normalization() -> Normalization {
    Normalization::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
}

fn masked() -> Learner {
    let (network, objective) = Network::new(&tiny_backbone(), 0.0, |scope, width| {
        let setup = Setup {
            width,
            stride: SIDE,
            normalization: normalization(),
            seed: SEED,
            ..Setup::default()
        };
        MaskedPatch::new(&MaskedPatchConfig::default(), scope, &setup)
    });
    let specs = network.specs().clone();
    let (objective, kind) = (Box::new(objective), OptimizerKind::Sgd);
    let mut learner = Learner::new(network, objective, kind, SETTINGS, &Device::Cpu);
    learner.student = fill(&specs, 100);
    learner
}

fn of_samples(samples: &[u64]) -> MicroBatch {
    MicroBatch { samples: samples.to_vec(), ..batch(samples.len()) }
}

/// The mean over views, images and corrupted patches of `-log softmax`, from the student's tokens of the
/// corrupted views.
#[test]
fn the_loss_by_its_definition() {
    let images = of_samples(&[5, 1, 7]);
    let mut learner = masked();
    let result = learner_step(&mut learner, &images);
    let learner = masked();
    let objective: &dyn Any = &*learner.objective;
    let objective: &MaskedPatch = objective.downcast_ref().unwrap();
    let cut = Cut { side: SIDE, normalization: normalization() };
    let mut sum = 0.0;
    for (number, view) in (0..).zip(&images.views) {
        let numbers = &images.samples;
        let (view, patches) =
            cut.corrupt(view, &objective.config, SEED, [STEP.step, number], numbers);
        let ctx = ForwardCtx::teacher();
        let features = learner.network.features(&learner.student, &[view], &ctx);
        let map = features.maps_per_view(3)[0];
        let activation = esvit_nn::ops::Activation::None;
        let logits = objective.head.forward(&learner.student, features.region, activation, &ctx);
        let logits: Vec<f64> = logits.to_vec::<f32>().iter().map(|&value| value.into()).collect();
        let of_patches = patches.iter().map(|patch| {
            let token = (patch.image * map[0] + patch.place[0]) * map[1] + patch.place[1];
            let logits = &logits[token * COLORS..][..COLORS];
            let sum = logits.iter().map(|logit| logit.exp()).sum::<f64>();
            sum.ln() - logits[patch.color as usize]
        });
        // Half of four patches of each image, or the only one.
        let expected = if number < 2 { 6 } else { 3 };
        assert_eq!(patches.len(), expected);
        sum += of_patches.sum::<f64>() / expected as f64;
    }
    assert_close("loss", &[result.loss], &[sum / 4.0], 1e-5);
    assert_eq!(result.parts, [("color", result.loss)]);
    let health = result.health.unwrap();
    assert!((0.0..=100.0).contains(&health.signal("color_accuracy").unwrap()));
}

fn learner_step(learner: &mut Learner, images: &MicroBatch) -> StepResult {
    learner.step([images.clone()], &StepInfo { health: true, ..STEP }).unwrap()
}

/// The gradient of weighted cross-entropies, by differences.
#[test]
fn gradients_of_the_loss() {
    let (rows, colors) = (3, [4i32, 0, 510]);
    let weights = [0.5f32, 0.25, 0.125];
    let tape = esvit_nn::Tape::new();
    let leaf = tape.watch(hashed_tensor(1, [rows, COLORS]));
    let found = masked_patch::loss(leaf.clone(), &colors, weights.to_vec());
    let definition = |values: &[f64]| -> f64 {
        let of_row = |row: usize| {
            let logits = &values[row * COLORS..][..COLORS];
            let sum = logits.iter().map(|logit| logit.exp()).sum::<f64>();
            f64::from(weights[row]) * (sum.ln() - logits[colors[row] as usize])
        };
        (0..rows).map(of_row).sum()
    };
    let values: Vec<f64> = hashed_tensor(1, [rows, COLORS])
        .to_vec::<f32>()
        .iter()
        .map(|&value| value.into())
        .collect();
    assert_close("loss", &[found.item()], &[definition(&values)], 1e-5);
    let expected = losses::gradient(&values, definition);
    let found = tape.backward(&found).of(&leaf).unwrap().to_vec::<f32>();
    assert_close("gradient", &found, &expected, 1e-6);
}

/// Patches are those of step, image and view, however a step is cut.
#[test]
fn patches_do_not_depend_on_the_cut() {
    let whole = of_samples(&[5, 1, 7, 2]);
    let halves = [0, 2].map(|first| {
        let views = whole.views.iter().map(|view| view.clone().narrow(0, first, 2));
        let samples = whole.samples[first..first + 2].to_vec();
        MicroBatch { samples, ..MicroBatch::unlabeled(views.collect()) }
    });
    let expected = masked().gradients([whole.clone()], &STEP).values;
    let mut by_view = masked();
    by_view.settings.crop_chunks = CropChunks::Crops(1);
    for (what, found) in [
        ("halves", masked().gradients(halves, &STEP).values),
        ("views", by_view.gradients([whole.clone()], &STEP).values),
    ] {
        for (index, spec) in by_view.network.specs().iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|g| gradient(g, index));
            assert_alike(&format!("{what}, {}", spec.name), &found, &expected, 1e-5);
        }
    }
    let loss = |batch: &MicroBatch, at: &StepInfo| masked().step([batch.clone()], at).unwrap().loss;
    let first = loss(&whole, &STEP);
    assert_eq!(loss(&whole, &STEP), first);
    assert_ne!(loss(&whole, &StepInfo { step: 1, ..STEP }), first);
    assert_ne!(loss(&of_samples(&[5, 1, 7, 3]), &STEP), first);
}

/// Views that hold no whole patch have nothing to predict; a step on them changes nothing.
#[test]
fn views_without_a_patch() {
    let mut learner = masked();
    let objective: &mut dyn Any = &mut *learner.objective;
    let objective: &mut MaskedPatch = objective.downcast_mut().unwrap();
    let small = MicroBatch::unlabeled(vec![hashed_tensor(1, [2, 3, 4, 4])]);
    let views = objective.student_views(&small, [0, 0]);
    assert_eq!(views[0].to_vec::<f32>(), small.views[0].to_vec::<f32>());
    let before = learner.student.clone();
    let result = learner.step([small], &STEP).unwrap();
    assert_eq!((result.loss, result.grad_norm), (0.0, 0.0));
    assert!(learner.student.flat().to_vec::<f32>() == before.flat().to_vec::<f32>());
}
