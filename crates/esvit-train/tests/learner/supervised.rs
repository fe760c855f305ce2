//! Supervised training: its loss and gradient by hand.

use esvit_train::objective::supervised::{Supervised, SupervisedConfig};
use esvit_train::objective::{Chunking, ObjectiveSettings, Teacher};

use super::*;

const CLASSES: usize = 5;

fn supervised(config: &SupervisedConfig, backbone: &BackboneConfig) -> Learner {
    let (network, objective) = Network::new(backbone, 0.0, |scope, width| {
        let setup = Setup {
            width,
            blocks: backbone.blocks(),
            classes: CLASSES,
            images: 0,
            seed: 0,
            precision: Precision::F32,
            device: Device::Cpu,
            ..Setup::default()
        };
        Supervised::new(config, scope, &setup)
    });
    let specs = network.specs().clone();
    let (objective, kind) = (Box::new(objective), OptimizerKind::Sgd);
    let mut learner = Learner::new(network, objective, kind, SETTINGS, &Device::Cpu);
    learner.student = fill(&specs, 100);
    learner
}

fn labeled(labels: &[u32]) -> MicroBatch {
    MicroBatch { labels: labels.to_vec(), ..batch(labels.len()) }
}

fn plain(label_smoothing: f64) -> SupervisedConfig {
    SupervisedConfig { label_smoothing, mixup: MixupConfig::default() }
}

/// Logits of all views, `[4 * images][classes]`, by hand from features and the classifier's values.
fn logits(learner: &Learner, views: &[Tensor]) -> Vec<Vec<f64>> {
    let features = learner.network.features(&learner.student, views, &ForwardCtx::eval()).view;
    let value = |name: &str| -> Vec<f32> {
        let mut parameters = learner.student.iter();
        parameters.find(|(spec, _)| spec.name == name).unwrap().1.to_vec()
    };
    let (weight, bias) = (value("classifier.weight"), value("classifier.bias"));
    let [_, width] = features.dims();
    let features = features.to_vec::<f32>();
    let row = |row: &[f32]| -> Vec<f64> {
        let outputs = weight.chunks_exact(width).zip(&bias).map(|(weight, &bias)| {
            let products = weight.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
            products.sum::<f64>() + f64::from(bias)
        });
        outputs.collect()
    };
    features.chunks_exact(width).map(row).collect()
}

/// Mean cross-entropy to targets that put `1 - smoothing` on the label and spread the rest.
fn by_hand(logits: &[Vec<f64>], labels: &[u32], smoothing: f64) -> f64 {
    let rows = logits.iter().enumerate().map(|(row, logits)| {
        let sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let label = labels[row % labels.len()] as usize;
        let entries = logits.iter().enumerate().map(|(class, logit)| {
            let hit = if class == label { 1.0 - smoothing } else { 0.0 };
            (hit + smoothing / CLASSES as f64) * (sum - logit)
        });
        entries.sum::<f64>()
    });
    rows.sum::<f64>() / logits.len() as f64
}

#[test]
fn loss_of_labels() {
    let labels = [4, 0, 2];
    for smoothing in [0.0, 0.1] {
        for crop_chunks in [CropChunks::All, CropChunks::Crops(1)] {
            let mut learner = supervised(&plain(smoothing), &tiny_backbone());
            learner.settings.crop_chunks = crop_chunks;
            let expected = by_hand(&logits(&learner, &crops(3)), &labels, smoothing);
            let other = by_hand(&logits(&learner, &crops(3)), &[1, 0, 2], smoothing);
            assert!((expected / other - 1.0).abs() > 1e-3, "labels make a difference");
            let result = learner.step([labeled(&labels)], &STEP).unwrap();
            assert_close("loss", &[result.loss, part(&result, "class")], &[expected; 2], 1e-5);
            assert_eq!((result.parts.len(), result.health), (1, None));
        }
    }
    let mut learner = supervised(&plain(0.0), &tiny_backbone());
    assert!(learner.teacher.is_none() && learner.objective.state().is_empty());
    assert!(matches!(learner.objective.teacher(&STEP), Teacher::None));
    assert!((learner.objective.chance_loss() - (CLASSES as f64).ln()).abs() < 1e-12);
    // A classifier of zeros is chance.
    for index in 0..learner.network.specs().len() {
        let spec = &learner.network.specs()[index];
        if spec.name.starts_with("classifier.") {
            let zeros = vec![0.0; spec.len()];
            learner.student.set(index, &zeros);
        }
    }
    let chance = learner.objective.chance_loss();
    let result = learner.step([labeled(&labels)], &STEP).unwrap();
    assert_close("chance", &[result.loss], &[chance], 1e-6);
}

/// Views are mixed, and labels as they are: with labels that are all one, only images change.
#[test]
fn labels_are_mixed_with_their_images() {
    let mixup = MixupConfig { enabled: true, ..MixupConfig::default() };
    let config = SupervisedConfig { mixup, ..plain(0.1) };
    for labels in [[4, 0, 2, 1], [3, 3, 3, 3]] {
        let mut learner = supervised(&config, &tiny_backbone());
        let (views, mixing) = esvit_train::mixup::mix(&crops(4), &mixup, 0, [0, 0]);
        let logits = logits(&learner, &views);
        // Cross-entropy is linear in its targets.
        let mut expected = 0.0;
        for (view, mixing) in mixing.iter().enumerate() {
            for image in 0..4 {
                for source in 0..4 {
                    let row = std::slice::from_ref(&logits[view * 4 + image]);
                    let share = f64::from(mixing[image * 4 + source]);
                    expected += share * by_hand(row, &[labels[source]], 0.1) / 16.0;
                }
            }
        }
        let unmixed = by_hand(&logits, &labels, 0.1);
        let same = (unmixed / expected - 1.0).abs() < 1e-6;
        assert_eq!(same, labels[0] == labels[1], "{unmixed} {expected}");
        let result = learner.step([labeled(&labels)], &STEP).unwrap();
        assert_close("mixed", &[result.loss], &[expected], 1e-5);
        // Passes of some views have the targets of these views.
        let mut learner = supervised(&config, &tiny_backbone());
        learner.settings.crop_chunks = CropChunks::Crops(1);
        let result = learner.step([labeled(&labels)], &STEP).unwrap();
        assert_close("mixed, one at a time", &[result.loss], &[expected], 1e-5);
    }
}

#[test]
fn what_it_needs() {
    let config = SupervisedConfig::default();
    assert!(config.needs_labels());
    assert_eq!((config.global_views(), config.chunking()), (1, Chunking::ByView));
    assert_eq!(config.collapse(&|_| Some(0.0)), None);
}
