//! Linear probes, on one set and on several.

use serde_json::Value;

use crate::images::{encoded, labeled, textured, unusable};
use crate::place::Place;
use image::ImageFormat;

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Checks that a result is one, and returns top-1.
fn top1(best: &Value) -> f64 {
    let [top1, top5] = ["top1", "top5"].map(|key| number(&best[key]));
    let [low, high] = [0, 1].map(|end| number(&best["interval"][end]));
    assert!(0.0 <= low && low <= top1 && top1 <= high && high <= 100.0 && top5 >= top1, "{best}");
    top1
}

#[test]
fn linear_probe_on_the_built_in_task() {
    let place = Place::with_a_run();
    let line = format!("eval linear --checkpoint {CHECKPOINT} --epochs 10 --lr 0.1 1");
    let answer = place.well(&format!("{line} --json")).json();
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&808.into(), &404.into()));
    assert_eq!((&answer["fitted_to"], &answer["chosen_on"]), (&808.into(), &162.into()));
    // The network has two blocks: of 1 and 4 blocks asked for by default these are left.
    assert_eq!(answer["sweep"].as_array().unwrap().len(), 4, "{answer}");
    assert!([1, 2].contains(&answer["best"]["n"].as_i64().unwrap()), "{answer}");
    // By chance it is 1 in 101.
    assert!(top1(&answer["best"]) > 3.0 && top1(&answer["untrained"]) > 3.0, "{answer}");
    assert_eq!(place.well(&format!("{line} --json")).json(), answer);

    let table = place.well(&format!("{line} --no-baseline --no-refit --standardize"));
    assert!(table.stdout.contains("trained") && !table.stdout.contains("untrained"), "{table}");
    assert!(table.stdout.contains("by n and learning rate"), "{table}");
    assert!(table.stdout.contains("not refit: 646 images"), "{table}");
    let other = place.well(&format!("{line} --no-baseline --seed 1 --json")).json();
    assert_eq!((&other["standardize"], &other["seed"]), (&false.into(), &1.into()));
    assert_ne!(other["sweep"], answer["sweep"]);

    let kept = place.folder("run").lines("eval/results.jsonl");
    assert_eq!(kept.len(), 4);
    assert_eq!((&kept[0]["evaluation"], &kept[0]["results"]), (&"linear".into(), &answer));
}

#[test]
fn every_solver_tells_colored_folders_apart() {
    let place = Place::with_a_run();
    labeled(&place, "set/train", 10);
    labeled(&place, "set/val", 3);
    place.write("set/val/red/broken.jpg", &unusable()[1].1);
    place.write("set/val/unknown/1.png", encoded(textured(90, 40, 9), ImageFormat::Png));
    let line =
        format!("eval linear --checkpoint {CHECKPOINT} --train set/train --json --no-baseline");
    for solver in [
        "--epochs 20 --augment",
        "--solver logistic --l2 0.001 0.01 --n 1 --dump dump",
        "--solver elevater --n 2 --batch 8",
    ] {
        let ended = place.well(&format!("{line} --val set/val {solver}"));
        let answer = ended.says(&["left out `set/val/red/broken.jpg`"]).json();
        // Nine images of the three colors, and one of a class that is not known.
        assert!((top1(&answer["best"]) - 90.0).abs() < 1e-9, "{solver}: {answer}");
        let images = ["train_images", "query_images"].map(|key| answer[key].as_u64());
        assert_eq!(images, [Some(30), Some(10)], "{solver}");
        assert_eq!(answer["untrained"], Value::Null);
        if solver.contains("--l2") {
            assert_eq!(answer["sweep"].as_array().unwrap().len(), 2, "{answer}");
        }
        if solver.contains("--augment") {
            let plain = solver.replace("--augment", "");
            let plain = place.well(&format!("{line} --val set/val {plain}")).json();
            assert_ne!(plain["sweep"], answer["sweep"]);
            let other = place.well(&format!("{line} --val set/val {solver} --seed 1")).json();
            assert_ne!(other["sweep"], answer["sweep"]);
        }
    }
    for name in ["train_features", "train_labels", "query_features", "query_labels"] {
        let bytes = std::fs::read(place.path(&format!("dump/{name}.npy"))).unwrap();
        let rows = if name.starts_with("train") { "(30," } else { "(10," };
        assert!(String::from_utf8_lossy(&bytes[..128]).contains(rows), "{name}");
    }
    let again = place.run(&format!("{line} --dump dump")).expect(1);
    again.says(&["`dump/train_features.npy` already exists"]);

    let line = format!("{line} --shots 2 --draws 3 --epochs 20 --standardize");
    let answer = place.well(&line).json();
    assert_eq!(answer["standardize"], true);
    assert_eq!(answer["draws"].as_array().unwrap().len(), 3);
    assert!(number(&answer["top1"]["mean"]) > 60.0, "{answer}");
    assert!(number(&answer["top1"]["std"]) >= 0.0 && answer["refit"] == Value::Bool(false));
}

#[test]
fn labels_out_of_a_file() {
    let place = Place::with_a_run();
    labeled(&place, "images", 8);
    let mut file = "image,labels\n".to_string();
    for number in 0..8 {
        file += &format!("images/red/{number}.png,warm;color\nimages/blue/{number}.png,color\n");
    }
    place.write("labels.csv", file.clone() + "images/green/0.png,\nelsewhere.png,warm\n");
    let line = format!("eval linear --checkpoint {CHECKPOINT} --train images --json");
    let line = format!("{line} --labels labels.csv --solver logistic");
    let answer = place.well(&line).json();
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&13.into(), &4.into()));
    let best = &answer["best"];
    assert!(number(&best["map"]) > 50.0 && number(&best["map_11_point"]) <= 100.0, "{answer}");

    place.write("labels.csv", "image,labels\nred/1.png,warm\n");
    place.run(&line).expect(1).says(&["`labels.csv` names no image in `images`", "hint:"]);
    place.write("labels.csv", "name,warm\n");
    place.run(&line).expect(1).says(&["the first line of `labels.csv` is not `image,labels`"]);
}

#[test]
fn probes_that_make_no_sense() {
    let place = Place::with_a_run();
    labeled(&place, "set", 2);
    labeled(&place, "one", 2);
    for other in ["green", "red"] {
        std::fs::remove_dir_all(place.path(&format!("one/{other}"))).unwrap();
    }
    place.write("flat/1.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    let line = format!("eval linear --checkpoint {CHECKPOINT} --train");
    for (rest, message) in [
        ("one", "all training images are of one class"),
        ("flat", "`flat` has no labels"),
        ("set --n 3", "`n` is 3, it must be between 1 and 2"),
        ("set --lr 0", "a learning rate is 0"),
        ("set --epochs 0", "the number of epochs is 0"),
        ("set --l2 1", "`--l2` is not used by `--solver sgd`"),
        ("set --solver logistic --lr 1", "`--lr` is not used by `--solver logistic`"),
        ("set --solver elevater --epochs 1", "`--epochs` is not used by `--solver elevater`"),
        ("set --solver logistic --augment", "`--augment` is not used by `--solver logistic`"),
        ("set --shots 2", "no training image is left to choose a setting on"),
        ("set --shots 0", "at least 1"),
        ("set --shots 2 --draws 18446744073709551615", "at least 1 and at most 1000"),
        ("set --lr 1e30", "above 0 and at most 1000000"),
    ] {
        let ended = place.run(&format!("{line} {rest}")).expect(1).says(&[message]);
        assert!(!ended.stderr.contains("panicked"), "{ended}");
    }
    // One setting needs no choice.
    place.well(&format!("{line} set --shots 1 --draws 1 --n 1 --lr 1 --epochs 5"));
}

#[test]
fn transfer_goes_on_where_it_stopped() {
    let place = Place::with_a_run();
    labeled(&place, "sets/split/train", 5);
    labeled(&place, "sets/split/test", 2);
    labeled(&place, "sets/whole", 5);
    place.write("sets/flat/1.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    let line = format!(
        "eval transfer --checkpoint {CHECKPOINT} --solver logistic --n 2 --out kept/results.jsonl \
         --json --sets sets/split"
    );
    let answer = place.well(&line).json();
    assert_eq!(answer["sets"][0]["query_images"], 6);
    let kept = || std::fs::read_to_string(place.path("kept/results.jsonl")).unwrap();
    assert_eq!(kept().lines().count(), 1);

    let line = format!("{line} sets/flat sets/whole --against {CHECKPOINT}");
    let ended = place.run(&line).expect(1);
    let said = ["`sets/split` is in `kept/results.jsonl` already", "left out the set `sets/flat`"];
    let answer = ended.says(&said).json();
    assert_eq!(answer["sets"].as_array().unwrap().len(), 2);
    assert_eq!(answer["failed"][0]["set"], "sets/flat");
    // The same weights are their own rival: nothing is measured twice, and nobody wins.
    assert_eq!(kept().lines().count(), 2);
    let summary = &answer["summary"];
    assert_eq!((&summary["wins"], &summary["ties"]), (&0.into(), &2.into()));
    let mean = [0, 1].map(|set| number(&answer["sets"][set]["value"])).iter().sum::<f64>() / 2.0;
    assert!((number(&summary["mean"]) - mean).abs() < 1e-9, "{answer}");

    // Other options are another measurement.
    let other = line.replace("--n 2", "--n 1").replace(" --json", "").replace("sets/flat ", "");
    let table = place.well(&other);
    assert!(table.stdout.contains("ties on 2"), "{table}");
    assert_eq!(kept().lines().count(), 4);
}

/// A set is compared by the metric of its name: the folder's, or one that is given.
#[test]
fn transfer_measures_each_set_by_its_metric() {
    let place = Place::with_a_run();
    for set in ["flowers102", "photos", "two", "own"] {
        labeled(&place, &format!("sets/{set}/train"), 8);
        labeled(&place, &format!("sets/{set}/test"), 2);
    }
    for folder in ["flowers102/test", "two/train", "two/test"] {
        std::fs::remove_dir_all(place.path(&format!("sets/{folder}/green"))).unwrap();
    }
    let mut file = "image,labels\n".to_string();
    for (part, count) in [("train", 8), ("test", 2)] {
        for number in 0..count {
            for (class, held) in [("red", "warm;color"), ("blue", "color"), ("green", "")] {
                file += &format!("{part}/{class}/{number}.png,{held}\n");
            }
        }
    }
    place.write("sets/own/labels.csv", file);
    let line = format!(
        "eval transfer --checkpoint {CHECKPOINT} --solver logistic --l2 0.001 --n 2 --sets"
    );
    let sets = "sets/flowers102 sets/photos mean_per_class=sets/photos roc_auc=sets/two sets/own \
                VOC2007=sets/own voc2007=sets/photos";
    let ended = place.run(&format!("{line} {sets} --json")).expect(1).says(&[
        "1 class of `sets/flowers102` without a query image is left out of mean per class: `green`",
        "left out the set `sets/photos`: 11-point mAP cannot be measured",
    ]);
    let answer = ended.json();
    let sets = answer["sets"].as_array().unwrap();
    let metrics: Vec<&str> = sets.iter().map(|set| set["metric"].as_str().unwrap()).collect();
    let expected = ["mean_per_class", "top1", "mean_per_class", "roc_auc", "map", "map_11_point"];
    assert_eq!(metrics, expected);
    for (set, metric) in sets.iter().zip(metrics) {
        // By chance it is a third to a half.
        let value = number(&set["value"]);
        assert!(value > 70.0 && value == number(&set["best"][metric]), "{set}");
        assert_eq!(set["interval"].is_null(), metric != "top1", "{set}");
    }
    assert_eq!(sets[0]["left_out"], serde_json::json!(["green"]));
    assert_eq!(place.folder("").lines("transfer.jsonl")[3]["metric"], "roc_auc");

    let table = place.well(&format!("{line} sets/photos roc_auc=sets/two")).stdout;
    assert!(table.contains("ROC-AUC") && table.contains("top-1 "), "{table}");
    place.run(&format!("{line} accuracy=sets/photos")).expect(2).says(&["neither a metric"]);
}
