//! k-NN accuracy and features of a trained network.

use serde_json::{Value, json};

use crate::images::{encoded, labeled, textured, unusable};
use crate::place::{Ended, Place};
use esvit_model::npy::NpyWriter;
use esvit_nn::ops::Precision;
use esvit_weights::WeightsFile;
use image::ImageFormat;

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

/// Top-1 and top-5 for every k of one row of the answer.
fn accuracies(answer: &Value, row: usize, name: &str) -> Vec<(u64, f64, f64)> {
    let row = &answer["results"][row];
    assert_eq!(row["features"], name, "{answer}");
    let of = |entry: &Value| {
        let [top1, top5] = ["top1", "top5"].map(|key| entry[key].as_f64().unwrap());
        assert!((0.0..=100.0).contains(&top1) && top5 >= top1, "{answer}");
        (entry["k"].as_u64().unwrap(), top1, top5)
    };
    row["accuracies"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn knn_on_the_built_in_task() {
    let place = Place::with_a_run();
    let answer = place.well(&format!("eval knn --checkpoint {CHECKPOINT} --json")).json();
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&808.into(), &404.into()));
    for (row, name) in ["raw pixels", "untrained", "trained"].iter().enumerate() {
        let accuracies = accuracies(&answer, row, name);
        assert_eq!(accuracies.iter().map(|a| a.0).collect::<Vec<_>>(), [10, 20, 100, 200]);
        // By chance it is 1 in 101.
        assert!(accuracies[0].1 > 3.0, "{answer}");
    }
    assert_ne!(answer["results"][1]["accuracies"], answer["results"][2]["accuracies"]);
    let zero = place.run(&format!("eval knn --checkpoint {CHECKPOINT} --k 10 0")).expect(1);
    zero.says(&["`--k` is 0", "1 to 1000000"]);
    let table = place.well(&format!("eval knn --checkpoint {CHECKPOINT} --key student --k 5"));
    assert!(
        table.stdout.contains("k=5 top-1/top-5") && table.stdout.contains("untrained"),
        "{table}"
    );
    let student = place.well(&format!("eval knn --checkpoint {CHECKPOINT} --key student --json"));
    let student = accuracies(&student.json(), 2, "trained")[0].1;
    let table = place.well(&format!("eval knn --checkpoint {CHECKPOINT} --key student")).stdout;
    let bounds =
        table.lines().last().unwrap().strip_prefix(
            "95 % interval of trained top-1 at k=10, by the number of query images: ",
        );
    let bounds: Vec<f64> =
        bounds.unwrap().split(" to ").map(|bound| bound.parse().unwrap()).collect();
    // The normal distribution's, of 404 images, is nearly the same.
    let half = 1.96 * (student * (100.0 - student) / 404.0).sqrt();
    assert!((bounds[1] - bounds[0] - 2.0 * half).abs() < 0.5, "{table}");
    assert!(bounds[0] < student && student < bounds[1], "{table}");
}

#[test]
fn knn_on_labeled_folders() {
    let place = Place::with_a_run();
    labeled(&place, "set/train", 8);
    labeled(&place, "set/val", 3);
    place.write("set/val/red/broken.jpg", &unusable()[1].1);
    let line = format!("eval knn --checkpoint {CHECKPOINT} --k 1 3 --json --train set/train");
    let ended =
        place.well(&format!("{line} --val set/val")).says(&["left out `set/val/red/broken.jpg`"]);
    let answer = ended.json();
    // The ten query images without the one that was left out.
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&24.into(), &9.into()));
    let table = place.well(&format!("{line} --val set/val").replace(" --json", ""));
    assert!(table.stdout.contains(": 9 images classified by 24\n"), "{table}");
    let pixels = accuracies(&answer, 0, "raw pixels");
    assert_eq!(pixels.iter().map(|a| a.0).collect::<Vec<_>>(), [1, 3]);
    // The classes differ in color, and three classes are all among the first five.
    assert!(pixels[0].1 > 99.0 && pixels[0].2 == 100.0, "{answer}");
    accuracies(&answer, 2, "trained");

    let answer = place.well(&line).json();
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&19.into(), &5.into()));
}

/// Shape and values of a NumPy file.
fn npy(bytes: &[u8]) -> (String, Vec<f32>) {
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\0");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8(bytes[10..end].to_vec()).unwrap();
    assert!(header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"));
    let shape = header.split_once("'shape': ").unwrap().1.split_once(')').unwrap().0;
    let values = bytes[end..].chunks_exact(4);
    (format!("{shape})"), values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
}

#[test]
fn features_are_the_same_in_every_format() {
    let place = Place::with_a_run();
    labeled(&place, "set", 4);
    place.write("set/red/broken.jpg", "");
    let embed = |rest: &str| -> Ended {
        place.well(&format!("embed --checkpoint {CHECKPOINT} --data set {rest}"))
    };
    embed("--out f.npy").says(&["left out `set/red/broken.jpg`", "12 features of 32 values"]);
    embed("--out f.safetensors");
    embed("--out f.csv");
    place.write("bad/broken.jpg", "");
    let bad = place.run(&format!("embed --checkpoint {CHECKPOINT} --data bad --out bad.npy"));
    bad.expect(1).says(&["none of the 1 images can be read"]);
    assert!(!place.path("bad.npy").exists());

    let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let (shape, values) = npy(&std::fs::read(place.path("f.npy")).unwrap());
    assert_eq!((shape.as_str(), values.len()), ("(12, 32)", 12 * 32));
    let names: Vec<String> = read("f.txt").lines().map(String::from).collect();
    let expected = ["blue", "green", "red"]
        .iter()
        .flat_map(|class| (0..4).map(move |number| format!("set/{class}/{number}.png")));
    assert_eq!(names, expected.collect::<Vec<_>>());

    let file = WeightsFile::open(&place.path("f.safetensors")).unwrap();
    let tensor = file.find("", "features").unwrap();
    assert_eq!((&tensor.shape, file.read_f32(tensor).unwrap()), (&vec![12, 32], values.clone()));

    let csv = read("f.csv");
    let mut lines = csv.lines();
    assert!(lines.next().unwrap().starts_with("name,label,f0,f1,"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 12);
    for ((row, name), values) in rows.iter().zip(&names).zip(values.chunks(32)) {
        assert_eq!((row[0], row[1]), (name.as_str(), name.split('/').nth(1).unwrap()));
        let found: Vec<f32> = row[2..].iter().map(|value| value.parse().unwrap()).collect();
        assert_eq!(found, values);
    }

    embed("--out f.npy --normalize --overwrite");
    let (_, values) = npy(&std::fs::read(place.path("f.npy")).unwrap());
    for row in values.chunks(32) {
        let length = row.iter().map(|value| value * value).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
}

#[test]
fn features_of_the_built_in_images() {
    let place = Place::with_a_run();
    place.well(&format!("embed --checkpoint {CHECKPOINT} --out features.npy"));
    let (shape, values) = npy(&std::fs::read(place.path("features.npy")).unwrap());
    assert_eq!((shape.as_str(), values.len()), ("(808, 32)", 808 * 32));
    let names = std::fs::read_to_string(place.path("features.txt")).unwrap();
    assert_eq!(names.lines().count(), 808);
}

#[test]
fn knn_on_stored_features() {
    let place = Place::new();
    let store = |folder: &str, side: &str, classes: &[i64]| {
        let file = |what: &str| place.path(&format!("{folder}/{side}_{what}.npy"));
        std::fs::create_dir_all(place.path(folder)).unwrap();
        let mut features = NpyWriter::create(&file("features"), 2).unwrap();
        let mut labels = NpyWriter::create_vector(&file("labels")).unwrap();
        for (row, &class) in classes.iter().enumerate() {
            let angle = class as f32 + 0.01 * row as f32;
            features.append(&[3.0 * angle.cos(), 3.0 * angle.sin()]).unwrap();
            labels.append(&[class]).unwrap();
        }
        features.finish().unwrap();
        labels.finish().unwrap();
    };
    store("stored", "train", &[0, 1, 2, 0, 1, 2]);
    store("stored", "query", &[0, 1, 2]);
    let answer = place.well("eval knn --features stored --k 1 2 --json").json();
    assert_eq!((&answer["train_images"], &answer["query_images"]), (&6.into(), &3.into()));
    assert_eq!(accuracies(&answer, 0, "stored"), [(1, 100.0, 100.0), (2, 100.0, 100.0)]);
    // At a high temperature all six vote alike, and the class with four of them wins.
    store("uneven", "train", &[0, 0, 0, 0, 1, 2]);
    store("uneven", "query", &[0, 1, 2]);
    for (temperature, top1) in [("0.07", 100.0), ("1e9", 100.0 / 3.0)] {
        let line = format!("eval knn --features uneven --k 6 --temperature {temperature} --json");
        let found = accuracies(&place.well(&line).json(), 0, "stored")[0].1;
        assert!((found - top1).abs() < 1e-9, "{found} at {temperature}");
    }
    let table = place.well("eval knn --features stored --k 2 6 200");
    let table = table.says(&["the gallery has 6 images"]);
    for part in ["k=2 top-1/top-5", "k=6 top-1/top-5", "k=200 of 6 top-1/top-5"] {
        assert!(table.stdout.contains(part), "{table}");
    }
    let huge = place.run(&format!("eval knn --features stored --k {}", u64::MAX)).expect(1);
    huge.says(&["`--k` is 18446744073709551615", "1 to 1000000"]);
    std::fs::remove_file(place.path("stored/query_labels.npy")).unwrap();
    place.run("eval knn --features stored").expect(1).says(&["stored/query_labels.npy"]);
    place.run("eval knn").expect(1).says(&["--checkpoint FILE", "--features FOLDER"]);
}

#[test]
fn one_image_can_be_classified_but_not_set_aside() {
    let place = Place::with_a_run();
    labeled(&place, "set", 1);
    std::fs::remove_dir_all(place.path("set/blue")).unwrap();
    std::fs::remove_dir_all(place.path("set/green")).unwrap();
    let line = format!("eval knn --checkpoint {CHECKPOINT} --k 1 --json --train set");
    place.run(&line).expect(1).says(&["`set` holds one image", "--val"]);
    let answer = place.well(&format!("{line} --val set")).json();
    assert_eq!(accuracies(&answer, 2, "trained"), [(1, 100.0, 100.0)]);
}

#[test]
fn results_are_kept_with_the_run() {
    let place = Place::with_a_run();
    for k in ["1", "5"] {
        place
            .well(&format!("eval knn --checkpoint {CHECKPOINT} --k {k}"))
            .says(&["run/eval/results.jsonl"]);
    }
    let lines = std::fs::read_to_string(place.path("run/eval/results.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["evaluation"], &lines[1]["network"]), (&"knn".into(), &"teacher".into()));
    assert_eq!((&lines[1]["steps"], &lines[1]["epochs"]), (&25.into(), &1.into()));
    assert_eq!(accuracies(&lines[1]["results"], 2, "trained").len(), 1);
}

/// A run that may not be written to: the figures are shown all the same.
#[test]
fn results_that_cannot_be_kept_are_shown() {
    let place = Place::with_a_run();
    labeled(&place, "set", 4);
    place.write("run/eval", "no folder");
    let line = format!("--checkpoint {CHECKPOINT} --json --train set");
    for evaluation in ["knn --k 1", "linear --n 1 --lr 1 --epochs 2", "finetune --epochs 1"] {
        let ended = place.well(&format!("eval {evaluation} {line}"));
        let ended = ended.says(&["the results are not kept with the run", "run/eval"]);
        assert_eq!(ended.json()["train_images"], 9, "{ended}");
    }
    place
        .well(&format!("eval correspondence --checkpoint {CHECKPOINT} --data set"))
        .says(&["the results are not kept with the run"]);
}

/// One check of the task for all that measure accuracy.
#[test]
fn what_a_set_is_worth_is_said() {
    let place = Place::with_a_run();
    labeled(&place, "set/train", 4);
    labeled(&place, "set/val", 2);
    place.write("set/val/unknown/1.png", encoded(textured(40, 40, 9), ImageFormat::Png));
    std::fs::copy(place.path("set/train/red/1.png"), place.path("set/val/red/copy.png")).unwrap();
    for evaluation in ["knn --k 1", "linear --n 1 --lr 1 --epochs 2", "finetune --epochs 1"] {
        let line = format!("eval {evaluation} --checkpoint {CHECKPOINT} --json --train");
        let ended = place.well(&format!("{line} set")).says(&[
            "the training images of `set` are those in `train`",
            "the query images of `set` are those in `val`",
            "1 query image of classes without training images, such as `unknown`",
            "training images too, byte for byte",
        ]);
        let answer = ended.json();
        assert_eq!((&answer["train_images"], &answer["query_images"]), (&12.into(), &8.into()));
        place
            .well(&format!("{line} set/train --val set/train"))
            .says(&["are the same folder, `set/train`"]);
    }
    std::fs::remove_dir_all(place.path("set/train/green")).unwrap();
    std::fs::remove_dir_all(place.path("set/train/blue")).unwrap();
    place
        .well(&format!("eval knn --k 1 --checkpoint {CHECKPOINT} --train set/train"))
        .says(&["training images are of one class, `red`"]);
}

#[test]
fn efficiency_of_a_small_step() {
    let place = Place::new();
    let line = "eval efficiency --models swin_tiny --batches 1 2 --prototypes 64 \
        --global-size 32 --local-size 32 --local-crops 1 --iterations 1 --json";
    let answer = place.well(line).json();
    let backbone = &answer["backbones"][0];
    assert_eq!((&backbone["stages"], &backbone["parameters"]), (&4.into(), &27_519_354.into()));
    for (steps, batch) in backbone["steps"].as_array().unwrap().iter().zip([1, 2]) {
        assert_eq!(steps["batch"], batch);
        // The region task has a head of its own; time is measured, not asserted.
        assert!(steps["memory_ratio"].as_f64().unwrap() > 1.05, "{answer}");
        assert!(steps["time_ratio"].as_f64().unwrap() > 0.0, "{answer}");
    }
    place.run("eval efficiency --models nothing").expect(1).says(&["`nothing`", "esvit info"]);
}

#[test]
fn what_is_measured_is_what_was_asked_for() {
    let place = Place::new();
    let knn = "bench knn --train 300 --queries 20 --width 8 --k 3 --threads 3 --json";
    let answer = place.well(knn).json();
    for (key, expected) in [("train", 300), ("queries", 20), ("width", 8), ("k", 3), ("threads", 3)]
    {
        assert_eq!(answer[key], expected, "{answer}");
    }
    place.run("bench knn --k 0").expect(1).says(&["must be at least 1"]);
    for temperature in ["nan", "0", "-1", "inf"] {
        let line = format!("eval knn --features features --temperature={temperature}");
        place.run(&line).expect(1).says(&["`--temperature` is", "above 0"]);
    }
    let forward = "bench forward --batch 1 --global-size 64 --prototypes 32 --iterations 1 --json";
    let answer = place.well(&format!("{forward} --precision f32 --view-only --threads 1")).json();
    let other = place.well(&format!("{forward} --arch pvt_tiny")).json();
    assert_eq!((&answer["model"], &other["model"]), (&"swin_tiny_w7".into(), &"pvt_tiny".into()));
    let slow = place.well(&format!("{forward} --arch swin_micro --isa baseline")).json();
    assert_eq!((&slow["isa"], &slow["model"]), (&"baseline".into(), &"swin_micro".into()));
    let kernels = place.well("bench kernels --iterations 1 --precision f32 --json").json();
    assert_eq!((&kernels["isa"], &kernels["precision"]), (&answer["isa"], &"f32".into()));
    assert_eq!((&answer["region"], &answer["precision"]), (&false.into(), &"f32".into()));
    assert_eq!((&answer["threads"], answer["seconds"].as_array().unwrap().len()), (&1.into(), 1));

    let step = "bench train-step --arch swin_micro --batch 2 --global-size 32 --iterations 1";
    let answer = place.well(&format!("{step} --objective simclr --json")).json();
    assert_eq!(answer["objective"], "simclr");
    for option in ["--view-only", "--prototypes 8"] {
        let refused = place.run(&format!("{step} --objective simclr {option}")).expect(1);
        refused.says(&[option.split(' ').next().unwrap(), "is of `--objective esvit`"]);
    }
}

/// Times are measured, not asserted.
#[test]
fn the_machine_beside_what_auto_takes() {
    let place = Place::new();
    let line = "bench self --arch swin_micro --batch 1 --global-size 64 --local-crops 0 --prototypes 32 --iterations 1";
    let answer = place.well(&format!("{line} --json")).json();
    let report = &answer["report"];
    assert_eq!((&report["forward_batch"], &report["rounds"]), (&2.into(), &json!([1, 1])));
    let choices = report["choices"].as_array().unwrap();
    let is_positive = |choice: &Value, key: &str| choice[key].as_f64().is_some_and(|v| v > 0.0);
    for choice in choices {
        assert!(
            is_positive(choice, "peak_gflops") && is_positive(choice, "limit_gflops"),
            "{choice}"
        );
        assert_eq!(choice["step_s"].is_null(), choice["forward_s"].is_null(), "{choice}");
    }
    let auto: Vec<&Value> = choices.iter().filter(|choice| choice["is_auto"] == true).collect();
    assert_eq!((auto.len(), &auto[0]["precision"]), (1, &Precision::auto().name().into()));
    assert!(is_positive(auto[0], "step_s") && is_positive(auto[0], "forward_s"), "{answer}");
    let row = answer["row"].as_str().unwrap();
    assert!(!row.contains("not measured"), "{row}");

    // Within a limit.
    let ended = place.well(&format!("{line} --isa avx2"));
    assert!(!ended.stdout.contains("avx512") && ended.stdout.contains("  auto\n"), "{ended}");
    ended.says(&["measuring products alone", "measuring training steps", "measuring forward"]);
}

#[test]
fn the_temperature_of_the_votes_counts() {
    let place = Place::with_a_run();
    labeled(&place, "set", 12);
    // As good as equal votes of all images, and the nearest image alone.
    let accuracies = ["1e6", "1e-4"].map(|temperature| {
        let line = format!("eval knn -c run --train set --k 28 --temperature {temperature} --json");
        place.well(&line).json()["results"].clone()
    });
    assert_ne!(accuracies[0], accuracies[1]);
    let fit = "embed -c run -d set --arch swin_tiny_w7 --out features.npy";
    place.run(fit).expect(1).says(&["does not fit", "embed.proj.weight"]);
}
