//! Runs with masked patches, KoLeo and balanced targets: stopped anywhere they go on as if nothing had
//! happened, and what they write.

use super::*;

/// All terms for six images.
const ALL: &[&str] = &[
    "objective.name=dinov2",
    "objective.teacher_temp=0.1",
    "objective.patches.mask_ratio=[0.2,0.6]",
    "objective.patches.separate_head=true",
    "objective.head.out_dim=8",
    "objective.head.hidden_dim=8",
    "objective.head.bottleneck_dim=4",
];

const BALANCED: &str = "objective.centering=sinkhorn";

fn bench(objective: &[&str], settings: &[&str]) -> Bench {
    Bench::new(&[objective, &["train.log_every=1", "checkpoint.keep_last=9"], settings].concat())
}

/// Stopped after some steps, and within one.
#[test]
fn runs_go_on_with_masks_and_centers() {
    for centering in ["objective.centering=softmax", BALANCED] {
        for micro_batch in ["train.micro_batch=2", "train.micro_batch=1"] {
            let settings = [centering, micro_batch];
            let whole = bench(ALL, &settings);
            let (outcome, reported) = whole.well("run");
            assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{settings:?}");
            assert!(reported.losses.iter().all(|loss| loss.is_finite()), "{settings:?}");
            let expected = bytes(&outcome.checkpoint);
            for (stop_after, stop_within) in [(1, None), (4, None), (0, Some((3, 1)))] {
                // All micro-batches of a step that has one are done after the first.
                if stop_within.is_some() && micro_batch == "train.micro_batch=2" {
                    continue;
                }
                let mut bench = bench(ALL, &settings);
                (bench.stop_after, bench.stop_within) = (stop_after, stop_within);
                let done = if stop_within.is_some() { 3 } else { stop_after };
                let (outcome, first) = bench.well("run");
                assert_eq!((outcome.end, outcome.step), (End::Stopped, done), "{settings:?}");
                (bench.start, bench.stop_after, bench.stop_within) = (Start::Resume, 0, None);
                let (outcome, second) = bench.well("run");
                assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{settings:?}");
                assert!(bytes(&outcome.checkpoint) == expected, "{settings:?}, {done}");
                assert_eq!([first.losses, second.losses].concat(), reported.losses);
            }
        }
    }
}

/// The same of both of EsViT's tasks, where some tokens take part in the region task.
#[test]
fn runs_with_some_regions_go_on() {
    let objective = [
        "objective.region.tokens=2",
        "objective.region.loss=mse",
        "objective.patches.weight=1",
        "objective.koleo=0.1",
        BALANCED,
    ];
    let new = || bench(&objective, &["train.micro_batch=1"]);
    let undisturbed = new();
    let (outcome, reported) = undisturbed.well("run");
    assert!(reported.losses.iter().all(|loss| loss.is_finite()));
    let expected = bytes(&outcome.checkpoint);
    let mut bench = new();
    bench.stop_after = 4;
    let (outcome, first) = bench.well("run");
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 4));
    (bench.start, bench.stop_after) = (Start::Resume, 0);
    let (outcome, second) = bench.well("run");
    assert!(bytes(&outcome.checkpoint) == expected);
    assert_eq!([first.losses, second.losses].concat(), reported.losses);
}

/// How a step is cut changes the last bits alone.
#[test]
fn micro_batches_change_rounding_alone() {
    for centering in ["objective.centering=softmax", BALANCED] {
        let losses = |micro_batch: &str| {
            let settings =
                [centering, micro_batch, "train.batch_size=6", "train.epochs=3", "optim.name=sgd"];
            bench(ALL, &settings).well("run").1.losses
        };
        let whole = losses("train.micro_batch=6");
        for cut in ["train.micro_batch=1", "train.micro_batch=3"] {
            assert_alike(&format!("{centering}, {cut}"), &losses(cut), &whole, 3e-3);
        }
    }
}

/// Networks with the token and the head of patches, both running means, and figures by their names.
#[test]
fn what_a_run_writes() {
    let bench = bench(ALL, &[BALANCED]);
    let (outcome, reported) = bench.well("run");
    let file = WeightsFile::open(&outcome.checkpoint).unwrap();
    let shape = |name: &str| {
        let found = file.tensors().iter().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("{name}")).shape.clone()
    };
    for (name, expected) in [
        ("student.mask_token", [1, 4]),
        ("teacher.mask_token", [1, 4]),
        ("optimizer.exp_avg.mask_token", [1, 4]),
        ("student.ibot_head.last_layer.weight_v", [8, 4]),
        ("teacher.ibot_head.last_layer.weight_v", [8, 4]),
        ("center", [1, 8]),
        ("center_patch", [1, 8]),
    ] {
        assert_eq!(shape(name), expected, "{name}");
    }
    let figures = reported.figures.last().unwrap();
    let names: Vec<&str> = figures.objective.iter().map(|(name, _)| name).collect();
    for name in
        ["view_loss", "patch_loss", "koleo_loss", "masked_patches", "patch_entropy", "teacher_temp"]
    {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let total = ["view_loss", "patch_loss", "koleo_loss"].map(|name| figures.get(name).unwrap());
    close("loss", figures.train_loss, total[0] + total[1] + 0.1 * total[2]);

    // EsViT's code has no such objective; of its own with masked patches it gets what it knows.
    let error = official::write(&outcome.checkpoint, &bench.path("o.pth"), Float::F32);
    assert!(error.unwrap_err().to_string().contains("the objective `dinov2`"));
    let patches = ["objective.patches.weight=1", "objective.patches.separate_head=true"];
    let bench = Bench::new(&patches);
    let (outcome, _) = bench.well("run");
    let out = bench.path("official.pth");
    official::write(&outcome.checkpoint, &out, Float::F32).unwrap();
    let written = WeightsFile::open(&out).unwrap();
    let has = |part: &str| written.tensors().iter().any(|tensor| tensor.name.contains(part));
    assert!(has("head_dense.last_layer") && !has("mask_token") && !has("ibot_head"));
}
