//! Layers that learn at rates of their own, or not at all for a while.

use esvit_nn::params::Part;

use super::*;

/// A step of a run of ten.
fn at(step: u64) -> StepInfo {
    StepInfo { step, run: RunLength { total_steps: 10, steps_per_epoch: 5 }, ..STEP }
}

/// Each block learns at half the rate of the block after it.
#[test]
fn rates_decay_by_block() {
    let BackboneConfig::Swin(swin) = tiny_backbone() else { panic!("a Swin") };
    let backbone = BackboneConfig::Swin(SwinConfig { depths: vec![1, 2], ..swin });
    let config = EsvitConfig { head: head(false, false), ..EsvitConfig::default() };
    let changes = |layer_decay: f64| -> Vec<Vec<f64>> {
        let (network, objective) = network(&backbone, 0.0, &config, 0);
        let specs = network.specs().clone();
        let settings = LearnerSettings { layer_decay, clip_grad: None, ..SETTINGS };
        let (objective, kind) = (Box::new(objective), OptimizerKind::Sgd);
        let mut learner = Learner::new(network, objective, kind, settings, &Device::Cpu);
        learner.student = fill(&specs, 100);
        learner.teacher = Some(fill(&specs, 200));
        let before = learner.student.values();
        learner.step([batch(2)], &StepInfo { epoch: 1, weight_decay: 0.0, ..STEP }).unwrap();
        let pairs = learner.student.values().into_iter().zip(before);
        let change = |(new, old): (Tensor, Tensor)| -> Vec<f64> {
            let pairs = new.to_vec::<f32>().into_iter().zip(old.to_vec::<f32>());
            pairs.map(|(new, old)| f64::from(new) - f64::from(old)).collect()
        };
        pairs.map(change).collect()
    };
    let (plain, decayed) = (changes(1.0), changes(0.5));
    let (network, _) = network(&backbone, 0.0, &config, 0);
    let mut found = 0;
    for ((spec, plain), decayed) in network.specs().iter().zip(plain).zip(decayed) {
        for (start, expected) in [
            ("patch_embed.", 0.0625),
            ("layers.0.blocks.0.", 0.125),
            ("layers.0.downsample.", 0.125),
            ("layers.1.blocks.0.", 0.25),
            ("layers.1.blocks.1.", 0.5),
            ("norm.", 1.0),
            ("head.", 1.0),
            ("head_dense.", 1.0),
        ] {
            if !spec.name.starts_with(start) {
                continue;
            }
            found += 1;
            assert_eq!(optim::layer_scale(0.5, 3, &spec.part), expected, "{}", spec.name);
            assert_eq!(optim::layer_scale(1.0, 3, &spec.part), 1.0, "{}", spec.name);
            for (plain, decayed) in plain.iter().zip(&decayed) {
                // Values of about 1 are rounded to 1e-7.
                let far = (plain * expected - decayed).abs();
                assert!(far < 1e-6 + 1e-4 * plain.abs(), "{}: {plain} {decayed}", spec.name);
            }
        }
    }
    assert_eq!(found, network.specs().len());
    assert_eq!(optim::layer_scale(0.5, 3, &Part::StudentHead("predictor".into())), 1.0);
}

/// In the first phase heads learn and neither backbone moves by a bit, whatever the optimizer; then all
/// learn. The teacher's heads follow all the time.
#[test]
fn a_frozen_backbone_stays_to_the_bit() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Lars] {
        let mut learner = learner(kind, false, false);
        learner.settings.freeze_backbone = Span::Percent(20.0);
        learner.settings.clip_scope = ClipScope::Global;
        for step in 0..4 {
            let is_frozen = step < 2;
            let before = (learner.student.clone(), teacher_of(&learner).clone());
            let optimizer = learner.optimizer.clone();
            let result = learner.step([batch(2), batch(2)], &at(step)).unwrap();
            let bits = |params: &Params, index: usize| -> Vec<u32> {
                params.value(index).to_vec::<f32>().into_iter().map(f32::to_bits).collect()
            };
            let mut still = 0;
            for (index, spec) in learner.network.specs().iter().enumerate() {
                let stays = is_frozen && spec.part.is_backbone();
                for (old, new) in [(&before.0, &learner.student), (&before.1, teacher_of(&learner))]
                {
                    let same = bits(old, index) == bits(new, index);
                    assert_eq!(same, stays, "{kind:?}, step {step}: {}", spec.name);
                }
                let updates = optimizer.updates(index) + u64::from(!stays);
                assert_eq!(learner.optimizer.updates(index), updates, "{}", spec.name);
                still += usize::from(stays);
            }
            assert_eq!(still > 0, is_frozen);
            assert!(result.grad_norm > 0.0);
        }
    }
}

/// The running statistics of a backbone with batch normalization stay as well.
#[test]
fn running_statistics_of_a_frozen_backbone_stay() {
    let backbone = BackboneConfig::ResNet(tiny_resnet());
    let config = EsvitConfig { head: head(false, true), ..EsvitConfig::default() };
    let (network, objective) = network(&backbone, 0.0, &config, 0);
    let settings = LearnerSettings { freeze_backbone: Span::Steps(1), ..SETTINGS };
    let (objective, kind) = (Box::new(objective), OptimizerKind::Sgd);
    let mut learner = Learner::new(network, objective, kind, settings, &Device::Cpu);
    let sizes = [32, 32].into_iter().zip(400..);
    let views: Vec<Tensor> =
        sizes.map(|(size, stream)| hashed_tensor(stream, [2, 3, size, size])).collect();
    for step in 0..2 {
        let before = [learner.student.clone(), teacher_of(&learner).clone()];
        learner.step([MicroBatch::unlabeled(views.clone())], &at(step)).unwrap();
        for (index, spec) in learner.network.specs().iter().enumerate() {
            if spec.role != Role::Buffer {
                continue;
            }
            let stays = step == 0 && spec.part.is_backbone();
            for (old, new) in before.iter().zip([&learner.student, teacher_of(&learner)]) {
                let [old, new] = [old, new].map(|params| params.value(index).to_vec::<f32>());
                assert_eq!(old == new, stays, "step {step}: {}", spec.name);
            }
        }
    }
}
