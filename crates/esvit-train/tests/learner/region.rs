//! Variants of the region task in a step: which tokens take part, and what the step reads back.

use esvit_nn::tensor::host_reads;
use esvit_train::objective::esvit::{RegionConfig, RegionLoss};
use esvit_train::objective::regions::Matching;

use super::*;

fn with(region: RegionConfig) -> Learner {
    let mut learner = learner(OptimizerKind::Sgd, false, false);
    esvit_mut(&mut learner).config.region = region;
    learner
}

/// Of the four tokens of a global view and the one of a local view.
fn some(tokens: usize) -> RegionConfig {
    RegionConfig { tokens, ..RegionConfig::default() }
}

/// [`batch`] of images by these numbers.
fn of_samples(samples: &[u64]) -> MicroBatch {
    MicroBatch { samples: samples.to_vec(), ..batch(samples.len()) }
}

fn region_loss(learner: &Learner, batch: &MicroBatch, at: &StepInfo) -> f32 {
    part(&learner_like(learner).step([batch.clone()], at).unwrap(), "region")
}

/// As many as there are change nothing, to the bit; fewer do, by step and image and nothing else, and not
/// in the view task.
#[test]
fn tokens_that_take_part() {
    let images = of_samples(&[3, 8]);
    let all = region_loss(&with(some(0)), &images, &STEP);
    assert_eq!(region_loss(&with(some(4)), &images, &STEP), all);
    let learner = with(some(2));
    let found = region_loss(&learner, &images, &STEP);
    assert_ne!(found, all);
    assert_eq!(region_loss(&learner, &images, &STEP), found, "the same again");
    let later = region_loss(&learner, &images, &StepInfo { step: 1, ..STEP });
    let others = region_loss(&learner, &of_samples(&[4, 9]), &STEP);
    assert!(found != later && found != others, "{found} {later} {others}");
    let [some, all] = [some(2), some(0)]
        .map(|region| part(&with(region).step([images.clone()], &STEP).unwrap(), "view"));
    assert_eq!(some, all);
}

/// Two micro-batches, or passes of one view each, have the tokens of one batch and one pass.
#[test]
fn tokens_do_not_depend_on_the_cut() {
    let region = RegionConfig { r#match: Matching::Sinkhorn, tokens: 2, ..RegionConfig::default() };
    let whole = of_samples(&[5, 1, 7, 2]);
    let halves = [0, 2].map(|first| {
        let views = whole.views.iter().map(|view| view.clone().narrow(0, first, 2));
        let samples = whole.samples[first..first + 2].to_vec();
        MicroBatch { samples, ..MicroBatch::unlabeled(views.collect()) }
    });
    let expected = with(region.clone()).gradients([whole.clone()], &STEP).values;
    let mut by_view = with(region.clone());
    by_view.settings.crop_chunks = CropChunks::Crops(1);
    for (what, found) in [
        ("halves", with(region).gradients(halves, &STEP).values),
        ("views", by_view.gradients([whole], &STEP).values),
    ] {
        for (index, spec) in by_view.network.specs().iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|g| gradient(g, index));
            assert_alike(&format!("{what}, {}", spec.name), &found, &expected, 1e-5);
        }
    }
}

/// Matches, shares and distances stay where the tensors are.
#[test]
fn variants_read_from_the_device_once() {
    for (r#match, loss) in [
        (Matching::Argmax, RegionLoss::Mse),
        (Matching::Sinkhorn, RegionLoss::CrossEntropy),
        (Matching::Sinkhorn, RegionLoss::Mse),
    ] {
        let mut learner = with(RegionConfig { enabled: true, r#match, loss, tokens: 3 });
        let before = host_reads();
        learner.step([batch(2), batch(2)], &STEP).unwrap();
        assert_eq!(host_reads() - before, 1, "{:?}", (r#match, loss));
    }
}
