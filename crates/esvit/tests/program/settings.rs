//! Settings that must change nothing, and some that must.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::images::good;
use crate::place::{Place, TINY, tensors};

/// What a run with some settings leaves: tensors of the last checkpoint, and the lines about steps and epochs.
struct Run {
    tensors: BTreeMap<String, Vec<u32>>,
    steps: Vec<Value>,
    epochs: Vec<Value>,
}

fn result(settings: &str) -> Run {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=2 train.log_every=1 {settings}"));
    let run = place.folder("run");
    let (steps, epochs) = (run.lines("metrics.jsonl"), run.lines("log.txt"));
    Run { tensors: tensors(&run.newest()), steps, epochs }
}

fn column(lines: &[Value], key: &str) -> Vec<f64> {
    lines
        .iter()
        .map(|line| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}")))
        .collect()
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * b.abs();
    let equal = found.len() == expected.len() && found.iter().zip(expected).all(close);
    assert!(equal, "{what}: {found:?}, not {expected:?}");
}

#[test]
fn loader_threads_change_nothing_and_the_seed_changes_everything() {
    let one = result("data.workers=1");
    let two = result("data.workers=2 data.prefetch=5 data.cache_mb=0 train.log_every=5");
    assert!(one.tensors == two.tensors, "other weights with two loader threads");
    // A line of several steps has their means, and so has an epoch.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for key in ["train_loss", "view_loss", "region_loss", "grad_norm"] {
        let means: Vec<f64> = column(&one.steps, key).chunks(5).map(mean).collect();
        assert_close(&column(&two.steps, key), &means, key);
    }
    let epochs: Vec<f64> = column(&one.steps, "train_loss").chunks(25).map(mean).collect();
    assert_close(&column(&one.epochs, "train_loss"), &epochs, "train_loss of the epochs");
    assert_eq!(column(&one.epochs, "epoch"), [0.0, 1.0]);

    let other = result("data.workers=1 seed=2");
    assert!(other.tensors != one.tensors, "the same weights with another seed");
    let losses = [&one, &other].map(|run| column(&run.steps, "train_loss"));
    assert!(losses[0].iter().zip(&losses[1]).all(|(one, other)| one != other));
}

#[test]
fn micro_batches_have_the_loss_of_one_large_batch() {
    let whole = result("train.batch_size=4");
    let parts = result("train.batch_size=4 train.micro_batch=2");
    // The learning rate follows the size of the step.
    assert_eq!(column(&whole.steps, "lr"), column(&parts.steps, "lr"));
    let [whole, parts] = [whole, parts].map(|run| column(&run.steps, "train_loss")[0]);
    assert!((whole - parts).abs() < 1e-4 * whole, "{whole} in one batch, {parts} in two parts");
}

/// But for batch normalization, whose statistics are those of a part.
#[test]
fn a_split_step_with_batch_normalization_is_warned_of() {
    let place = Place::new();
    good(&place, "set", 8);
    let line = "pretrain -d set --objective mocov2 --arch resnet_micro objective.queue_length=32 \
        views.global_size=32 --batch-size 8 train.precision=f32 knn.every=0";
    let warning =
        "warning: batch normalization has the statistics of 2 images at a time, of the 8 of a step";
    let split = format!("{line} --steps 1 train.micro_batch=2");
    place.well(&format!("{split} --out parts")).says(&[warning, "hint: raise `train.micro_batch`"]);
    assert!(place.folder("parts").text("train.log").contains(warning));
    let whole = place.well(&format!("{line} --steps 1 --out whole"));
    assert!(!whole.stderr.contains("batch normalization"), "{whole}");
    assert_eq!(place.settings("resume whole").train.micro_batch, Some(8));
}

#[test]
fn bf16_trains_like_f32_and_is_not_f32() {
    let [full, half] = ["f32", "bf16"].map(|name| {
        let run = result(&format!("train.precision={name} optim.lr=1e-4"));
        column(&run.steps, "train_loss")
    });
    assert_ne!(full, half);
    for (full, half) in full.iter().zip(&half) {
        assert!((full - half).abs() < 0.02 * full, "{full} in f32, {half} in bf16");
    }
}
