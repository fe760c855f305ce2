//! Fine-tuning of a backbone, and training from scratch.

use serde_json::Value;

use crate::images::{encoded, labeled, textured, unusable};
use crate::place::Place;
use image::ImageFormat;

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";
/// Nothing that would stand in the way of learning by heart.
const BY_HEART: &str = "--mixup 0 --cutmix 0 --label-smoothing 0 --drop-path 0 --scale 0.9 1 --weight-decay 0 \
    --lr 0.05 --batch-size 8 --epochs 20 --train set --val set --json";

fn top1(accuracy: &Value) -> f64 {
    accuracy["top1"].as_f64().unwrap_or_else(|| panic!("no top-1 in {accuracy}"))
}

#[test]
fn a_small_set_is_learnt_by_heart_and_kept() {
    let place = Place::with_a_run();
    labeled(&place, "set", 6);
    place.write("set/red/broken.jpg", &unusable()[1].1);
    let line = format!("eval finetune --checkpoint {CHECKPOINT} {BY_HEART}");
    let ended = place.well(&format!("{line} --out tuned.safetensors")).says(&[
        "left out `set/red/broken.jpg`",
        "tuned.safetensors",
        "epoch 20/20",
    ]);
    let answer = ended.json();
    assert_eq!((top1(&answer["best"]), top1(&answer["last"])), (100.0, 100.0), "{answer}");
    assert_eq!(answer["epochs"].as_array().unwrap().len(), 20);
    // The one that was left out is none of them.
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&18.into(), &18.into()));
    let settings = &answer["settings"];
    assert_eq!((&settings["lr"], &settings["layer_decay"]), (&0.05.into(), &0.8.into()));
    assert_eq!((&settings["batch_size"], &settings["from_scratch"]), (&8.into(), &false.into()));
    let kept = place.folder("run").lines("eval/results.jsonl");
    assert_eq!((&kept[0]["evaluation"], &kept[0]["results"]), (&"finetune".into(), &answer));

    // The file is a backbone like any other.
    let facts = place.well("info tuned.safetensors --json").json();
    assert_eq!(facts["feature_width"], 32, "{facts}");
    let line = "eval knn --checkpoint tuned.safetensors --train set --val set --k 1 --json";
    let rows = place.well(line).json();
    assert_eq!(rows["results"][2]["accuracies"][0]["top1"], 100.0, "{rows}");
    place
        .run(&format!("eval finetune --checkpoint {CHECKPOINT} {BY_HEART} --out tuned.safetensors"))
        .expect(1)
        .says(&["`tuned.safetensors` already exists", "--overwrite"]);
}

#[test]
fn from_scratch_with_all_the_trimmings() {
    let place = Place::with_a_run();
    labeled(&place, "set", 5);
    place.write("val/red/wide.png", encoded(textured(90, 30, 4), ImageFormat::Png));
    place.write("val/unknown/1.png", encoded(textured(40, 40, 9), ImageFormat::Png));
    let line = format!(
        "eval finetune --checkpoint {CHECKPOINT} --from-scratch --train set --val val --epochs 2 \
         --batch-size 64 --randaugment --layer-decay 0.5 --precision f32 --seed 3 --json"
    );
    let answer = place.well(&line).says(&[
        "1 query image of classes without training images, such as `unknown`",
        "not kept with a run",
    ]);
    let answer = answer.json();
    // It says nothing of the checkpoint.
    assert!(!place.path("run/eval/results.jsonl").exists());
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&15.into(), &2.into()));
    assert!(top1(&answer["last"]) <= 50.0, "{answer}");
    for (key, expected) in [
        ("from_scratch", true.into()),
        ("epochs", 2.into()),
        ("batch_size", 64.into()),
        ("randaugment", true.into()),
        ("layer_decay", 0.5.into()),
        ("precision", "f32".into()),
        ("seed", 3.into()),
    ] as [(&str, Value); 7]
    {
        assert_eq!(answer["settings"][key], expected, "{key}: {answer}");
    }
    assert_eq!(place.well(&line).json(), answer, "a second time");
}

#[test]
fn what_cannot_be_learnt_is_refused() {
    let place = Place::with_a_run();
    place.write("one/only/1.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    place.write("one/only/2.png", encoded(textured(40, 40, 2), ImageFormat::Png));
    let line = format!("eval finetune --checkpoint {CHECKPOINT} --epochs 1");
    let refused = |options: &str, said: &[&str]| {
        // A setting that makes no sense is a wrong command line.
        let code = if options.starts_with("--lr") { 2 } else { 1 };
        place.run(&format!("{line} {options}")).expect(code).says(said);
    };
    refused("--train one", &["one class", "`only`", "--train"]);
    refused("--lr 0", &["`--lr` is 0"]);
    refused("--out nowhere/a.safetensors", &["no folder `nowhere`"]);
    refused("--train one --out a.pth", &["does not end in `.safetensors`"]);
}
