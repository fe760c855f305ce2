//! Runs with the variants of EsViT's region task.

use super::*;

const VARIANTS: [&[&str]; 4] = [
    &["objective.region.match=sinkhorn"],
    &["objective.region.loss=mse"],
    &["objective.region.tokens=2"],
    &["objective.region.match=sinkhorn", "objective.region.loss=mse", "objective.region.tokens=3"],
];

fn bench(variant: &[&str], settings: &[&str]) -> Bench {
    Bench::new(&[variant, &["train.log_every=1", "checkpoint.keep_last=9"], settings].concat())
}

/// A run that is stopped goes on as if nothing had happened, with the same tokens; and each variant is
/// another run than the published one.
#[test]
fn runs_go_on_with_the_same_regions() {
    let published = bench(&[], &[]).well("run").1.losses;
    for variant in VARIANTS {
        let undisturbed = bench(variant, &[]);
        let (outcome, reported) = undisturbed.well("run");
        let expected = bytes(&outcome.checkpoint);
        assert_ne!(reported.losses, published, "{variant:?}");
        assert!(reported.losses.iter().all(|loss| loss.is_finite()), "{variant:?}");
        for stop_after in [1, 4] {
            let mut bench = bench(variant, &[]);
            bench.stop_after = stop_after;
            let (outcome, first) = bench.well("run");
            assert_eq!((outcome.end, outcome.step), (End::Stopped, stop_after), "{variant:?}");
            (bench.start, bench.stop_after) = (Start::Resume, 0);
            let (outcome, second) = bench.well("run");
            assert!(bytes(&outcome.checkpoint) == expected, "{variant:?}, {stop_after}");
            assert_eq!([first.losses, second.losses].concat(), reported.losses);
        }
    }
}

/// Tokens are those of the images, however a step is cut.
#[test]
fn micro_batches_have_the_same_regions() {
    let settings = ["train.batch_size=6", "train.epochs=3", "optim.name=sgd"];
    for variant in VARIANTS {
        let with = |micro_batch| {
            bench(variant, &[&settings[..], &[micro_batch]].concat()).well("run").1.losses
        };
        let whole = with("train.micro_batch=6");
        for cut in ["train.micro_batch=1", "train.micro_batch=3"] {
            assert_alike(&format!("{variant:?}, {cut}"), &with(cut), &whole, 1e-3);
        }
    }
}

/// The prototypes of the region's head do not learn from distances before them; the rest of it does.
#[test]
fn distances_leave_prototypes_alone() {
    let bench = bench(&["objective.region.loss=mse"], &[]);
    let (outcome, reported) = bench.well("run");
    let file = WeightsFile::open(&outcome.checkpoint).unwrap();
    let has_moments = |name: &str| {
        let is_own = |tensor: &esvit_weights::TensorInfo| {
            tensor.name.starts_with("optimizer.") && tensor.name.ends_with(name)
        };
        file.tensors().iter().any(is_own)
    };
    assert!(!has_moments("head_dense.last_layer.weight_v"));
    assert!(has_moments("head_dense.mlp.4.weight") && has_moments("head.last_layer.weight_v"));
    // Rows of unit length are at most 2 apart.
    let distances = reported.figures.iter().map(|figures| figures.get("region_loss").unwrap());
    let distances: Vec<f64> = distances.collect();
    assert!(distances.len() == 6 && distances.iter().all(|loss| (0.0..=4.0).contains(loss)));
}
