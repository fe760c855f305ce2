//! What is due at the end of epochs and of the run: k-NN checks and checkpoints.

use image::ImageFormat;

use crate::images::{encoded, good, labeled, textured};
use crate::place::{Place, TINY, metadata};

#[test]
fn the_last_epoch_is_checked_and_saved_and_the_first_of_equals_is_best() {
    let place = Place::new();
    // Nothing is learned, so that all checks find the same.
    let due = "checkpoint.every=2 knn.every=2 optim.lr=0 optim.min_lr=0 optim.momentum_teacher=1";
    place.well(&format!("pretrain --out run {TINY} {due}"));
    let run = place.folder("run");
    assert_eq!(run.steps(), [0, 50, 75]);
    let lines = run.lines("metrics.jsonl");
    let checks: Vec<_> = lines.iter().filter(|line| line["knn_top1"].is_number()).collect();
    assert_eq!(
        checks.iter().map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(),
        [Some(2), Some(3)]
    );
    assert_eq!(checks[0]["knn_top1"], checks[1]["knn_top1"]);
    let best = metadata(&run.file("checkpoints/best.safetensors"));
    assert_eq!((&best["epoch"], &best["best"]["epoch"]), (&2.into(), &2.into()));
}

#[test]
fn the_table_at_the_end_says_whose_weights_it_is_of() {
    let place = Place::new();
    // A rate at which the network gets worse.
    let worse = format!("pretrain --out run {TINY} knn.every=1 optim.lr=0.5 optim.warmup=0");
    let ended = place.well(&worse);
    let lines = place.folder("run").lines("metrics.jsonl");
    let check =
        |line: &serde_json::Value| Some((line["knn_top1"].as_f64()?, line["step"].as_u64()?));
    let (top1, step) = lines
        .iter()
        .filter_map(check)
        .reduce(|best, check| if check.0 > best.0 { check } else { best })
        .unwrap();
    assert!(step < 75, "{ended}");
    assert!(
        ended.stdout.contains("classified by 808, with the weights of the last step\n"),
        "{ended}"
    );
    ended.says(&[&format!(
        "weights: `run/checkpoints/best.safetensors` of step {step} (k-NN top-1 {top1:.1} %), and those \
         of the last step"
    )]);
    let ended = place.well(&format!("pretrain --out last {TINY} train.epochs=1 knn.every=1"));
    assert!(ended.stdout.contains("classified by 808\n"), "{ended}");
    ended.says(&["weights: `last/checkpoints/best.safetensors` of the last step, the best ones"]);
}

#[test]
fn the_check_has_settings_of_its_own() {
    let place = Place::new();
    let class = |folder: &str, count: u32, seed: u32| {
        for number in 0..count {
            let image = encoded(textured(40, 40, seed + number), ImageFormat::Png);
            place.write(&format!("{folder}/{number}.png"), image);
        }
    };
    class("set/many", 6, 0);
    class("set/few", 4, 10);
    class("others/few", 12, 10);
    // At this temperature all ten images vote alike, so that the class with six of them wins.
    let settings = "train.epochs=1 knn.every=1 knn.k=10 knn.temperature=1e9 knn.max_images=10";
    let line = format!("pretrain --data set --out run {TINY} {settings} knn.val=others");
    place.well(&line).says(&["k-NN check on `set` and `others`"]);
    let run = place.folder("run");
    let lines = run.lines("metrics.jsonl");
    let check = lines.iter().find(|line| line["knn_top1"].is_number()).unwrap();
    assert_eq!((check["knn_top1"].as_f64(), check["knn_top5"].as_f64()), (Some(0.0), Some(100.0)));
    assert_eq!(check["knn_k"], 10);
    // So has the table at the end.
    let kept = &run.lines("eval/results.jsonl")[0]["results"];
    assert_eq!((&kept["train_images"], &kept["query_images"]), (&10.into(), &10.into()));
    assert_eq!(kept["temperature"], 1e9);
    assert_eq!(kept["results"][2]["accuracies"][0]["top1"], 0.0);
    let line = "eval knn --checkpoint run/checkpoints/best.safetensors --train set --val others --k 10 --json";
    let top1 = |rest: &str| {
        let answer = place.well(&format!("{line} {rest}")).json();
        answer["results"][2]["accuracies"][0]["top1"].as_f64().unwrap()
    };
    assert_eq!(top1("--temperature 1e9"), 0.0);
    assert!(top1("--temperature 1e-3") > 0.0);
}

#[test]
fn only_labels_that_are_there_are_checked() {
    let place = Place::new();
    labeled(&place, "set/photos", 2);
    labeled(&place, "set/val", 2);
    labeled(&place, "pair/train", 2);
    good(&place, "one/train/class", 6);
    good(&place, "one/val/class", 6);
    // What is checked is said before such a file is refused.
    let line = |data: &str| {
        let settings = "knn.every=1 --init-from nowhere.safetensors";
        place.run(&format!("pretrain --out run {TINY} {settings} --data {data}")).expect(1)
    };
    let checks = |text: &str| {
        text.lines().filter(|l| l.contains("k-NN check on")).map(String::from).collect::<Vec<_>>()
    };
    let on = |folder: &str| format!("k-NN check on `{folder}`, every fifth image set aside");
    // A folder `val` counts beside one called `train` alone.
    assert_eq!(checks(&line("set/photos").stderr), [on("set/photos")]);
    assert_eq!(checks(&line("pair/train").stderr), [on("pair/train")]);
    // One class is no task.
    assert!(checks(&line("one/train").stderr).is_empty());
    // Folders that are named are used as they are.
    let named = line("one/train knn.train=set/photos");
    assert_eq!(checks(&named.stderr), [on("set/photos")]);
    assert!(checks(&line("set/photos knn.every=0").stderr).is_empty());
}

#[test]
fn images_above_the_largest_size_are_left_out() {
    let place = Place::new();
    good(&place, "set", 8);
    place.write("set/large.png", encoded(textured(60, 60, 1), ImageFormat::Png));
    // The good ones have up to 47 x 48 pixels.
    place
        .well(&format!("pretrain --data set --out run {TINY} train.epochs=1 train.batch_size=3 data.max_pixels=2500"))
        .says(&["left out `set/large.png`", "60x60 is 3600 pixels, more than `max_pixels`"])
        .says(&["1 image left out, `run/train.log` names them"]);
    assert_eq!(place.folder("run").steps(), [0, 3]);
}
