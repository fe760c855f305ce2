//! The learner of fine-tuning: a backbone with supervised training as its objective.

use esvit_model::PretrainedBackbone;
use esvit_nn::{Network, Params};
use esvit_train::Learner;
use esvit_train::learner::LearnerSettings;
use esvit_train::mixup::MixupConfig;
use esvit_train::objective::Setup;
use esvit_train::objective::supervised::{ClassifierHead, Supervised, SupervisedConfig};
use esvit_train::optim::{ClipScope, OptimizerKind};

use super::Settings;

/// A learner that starts from the parameters of `backbone` and a new classifier, or from initial
/// values, and its classifier.
pub fn learner(
    backbone: &PretrainedBackbone,
    classes: usize,
    settings: &Settings,
) -> (Learner, ClassifierHead) {
    let mixup =
        settings.mixing().unwrap_or(MixupConfig { enabled: false, ..MixupConfig::default() });
    let config = SupervisedConfig { label_smoothing: settings.label_smoothing, mixup };
    let device = backbone.params.device();
    let shape = &backbone.config;
    let (network, objective) = Network::new(shape, settings.drop_path, |scope, width| {
        let setup = Setup {
            width,
            blocks: shape.blocks(),
            classes,
            images: 0,
            seed: settings.seed,
            precision: settings.precision,
            device,
            ..Setup::default()
        };
        Supervised::new(&config, scope, &setup)
    });
    let head = objective.head().clone();
    let learner_settings = LearnerSettings {
        seed: settings.seed,
        clip_grad: Some(settings.clip_grad).filter(|&limit| limit > 0.0),
        clip_scope: ClipScope::Global,
        precision: settings.precision,
        layer_decay: settings.layer_decay,
        ..LearnerSettings::default()
    };
    let kind = OptimizerKind::AdamW;
    let mut learner = Learner::new(network, Box::new(objective), kind, learner_settings, &device);
    if !settings.from_scratch {
        // The backbone's parameters come first.
        let mut known = backbone.params.values().into_iter();
        learner.student = Params::from_fn(learner.network.specs(), &device, |spec| {
            known.next().map_or_else(|| spec.initial_values(settings.seed), |value| value.to_vec())
        });
    }
    (learner, head)
}
