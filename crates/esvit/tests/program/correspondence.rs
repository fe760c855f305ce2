//! Correspondence of views, measured and drawn.

use image::ImageFormat;

use crate::images::{encoded, textured, unusable};
use crate::place::Place;

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

fn with_a_run() -> Place {
    let place = Place::with_a_run();
    let image = |seed| encoded(textured(64, 48, seed), ImageFormat::Png);
    place.write("a.png", image(1));
    place.write("b.png", image(2));
    place
}

#[test]
fn mirrored_and_cropped_views_are_measured() {
    let place = with_a_run();
    let line = format!("eval correspondence --checkpoint {CHECKPOINT} --images 12 --json");
    for (geometry, rows) in [
        ("mirror", &["chance", "untrained", "trained"][..]),
        ("crops", &["chance", "untrained", "trained", "best possible"][..]),
    ] {
        let line = format!("{line} --stage 1 --geometry {geometry}");
        let first = place.well(&line);
        let answer = first.json();
        assert_eq!(answer["stage"], 1, "{first}");
        let results = answer["results"].as_array().unwrap();
        let names: Vec<&str> = results.iter().map(|r| r["features"].as_str().unwrap()).collect();
        assert_eq!(names, rows);
        let mean = |row: usize, key: &str| results[row][key]["mean"].as_f64().unwrap();
        // Even an untrained network tells places apart better than chance.
        assert!(mean(1, "accuracy") > mean(0, "accuracy"), "{first}");
        assert!(mean(1, "distance") < mean(0, "distance"), "{first}");
        assert_eq!(results[2]["pck"].as_array().unwrap().len(), 3);
        assert!(results[2]["accuracy"]["interval"][0].is_number(), "{first}");
        assert_eq!(first.stdout, place.well(&line).stdout);
        let other = place.well(&format!("{line} --seed 1 --pairs 7")).json();
        assert_eq!((&other["pairs"], &other["seed"]), (&7.into(), &1.into()));
        assert!(answer["pairs"] != 7 && !first.stderr.contains("all of them are measured"));
    }
    let seeds =
        [0, 1].map(|seed| place.well(&format!("{line} --geometry crops --seed {seed}")).json());
    assert_ne!(seeds[0]["results"][2], seeds[1]["results"][2]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = with_a_run();
    place.write("broken/a.png", &unusable()[1].1);
    let line = format!("eval correspondence --checkpoint {CHECKPOINT}");
    place.run(&format!("{line} --stage 3")).expect(1).says(&["no stage 3", "stages 1 to 2"]);
    place.run(&format!("{line} --size 30")).expect(1).says(&["whole number of cells", "hint:"]);
    place.run(&format!("{line} --data broken")).expect(1);
    for scale in ["1 0.4", "0 1", "0.5 1.1"] {
        place.run(&format!("{line} --scale {scale}")).expect(1).says(&["`--scale` is"]);
    }
}

#[test]
fn one_image_is_enough_and_broken_ones_are_named() {
    let place = with_a_run();
    place.write("set/good.png", encoded(textured(90, 40, 3), ImageFormat::Png));
    place.write("set/broken.jpg", &unusable()[1].1);
    let line = format!("eval correspondence --checkpoint {CHECKPOINT} --data set");
    let answer = place
        .well(&format!("{line} --size 16 --json"))
        .says(&["left out `set/broken.jpg`", "the map has 4 cells", "`--stage 1`"])
        .json();
    assert_eq!((&answer["images"], &answer["left_out"]), (&1.into(), &1.into()));
    // All four cells are measured, so none is next.
    assert!(answer["pairs"].is_null() && answer["map"] == serde_json::json!([2, 2]), "{answer}");
    let trained = &answer["results"][2];
    assert!(trained["accuracy"]["interval"].is_null(), "{answer}");
    assert!(trained["next_similarity"].is_null(), "{answer}");
    place.write("empty/notes.txt", "");
    place
        .run(&format!("eval correspondence --checkpoint {CHECKPOINT} --data empty"))
        .expect(1)
        .says(&["no images in `empty`"]);
}

#[test]
fn two_images_and_two_views_are_drawn() {
    let place = with_a_run();
    let line = format!("match a.png --checkpoint {CHECKPOINT} --stage 1 --pairs 5 --json");
    let views = place.well(&format!("{line} --out views.png --svg views.svg")).json();
    let pairs = views["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 5);
    let similarity: Vec<f64> = pairs.iter().map(|p| p["similarity"].as_f64().unwrap()).collect();
    assert!(similarity.is_sorted_by(|a, b| a >= b), "{similarity:?}");
    let png = std::fs::read(place.path("views.png")).unwrap();
    assert!(image::load_from_memory(&png).unwrap().width() > 200);
    assert!(std::fs::read_to_string(place.path("views.svg")).unwrap().starts_with("<svg"));

    place.run(&format!("{line} --out views.png")).expect(1).says(&["already exists"]);
    let other = place.well(&format!("{line} --seed 1 --out other.png")).json();
    assert_ne!(other["views"][1]["crop"], views["views"][1]["crop"]);
    // Of all 64 cells some have the same best match, but no two of those that are each other's.
    let matched = |rest: &str| {
        let line = line.replace("--pairs 5", "--pairs 64");
        let all = place.well(&format!("{line} --out all.png --overwrite {rest}")).json();
        let second = |pair: &serde_json::Value| pair["second"]["cell"].as_u64().unwrap();
        let mut cells: Vec<u64> = all["pairs"].as_array().unwrap().iter().map(second).collect();
        let count = cells.len();
        cells.sort_unstable();
        cells.dedup();
        (count, cells.len())
    };
    let ((all, distinct), (mutual, also)) = (matched(""), matched("--mutual"));
    assert!(all > distinct && mutual == also && mutual < all, "{all} {distinct} {mutual} {also}");
    place.well(&format!("{line} --out again.png"));
    assert_eq!(png, std::fs::read(place.path("again.png")).unwrap());

    // An image is found in itself: every cell is most similar to itself.
    let line = format!("match a.png a.png --checkpoint {CHECKPOINT} --stage 1 --json --out s.png");
    let same = place.well(&line).json();
    for pair in same["pairs"].as_array().unwrap() {
        assert_eq!(pair["first"]["cell"], pair["second"]["cell"], "{same}");
    }
    let line = format!("match a.png b.png --checkpoint {CHECKPOINT} --mutual --out two.png");
    assert!(place.well(&line).stdout.contains("similarity"));
}

#[test]
fn an_image_is_matched_with_its_mirror_image() {
    let place = with_a_run();
    let line = format!("match a.png --view flip --checkpoint {CHECKPOINT} --stage 1");
    let answer = place.well(&format!("{line} --pairs 20 --json --out flip.png")).json();
    let [first, second] = [0, 1].map(|view| &answer["views"][view]);
    assert!(answer["seed"].is_null() && second["mirrored"] == true, "{answer}");
    assert_eq!((&first["crop"], &first["map"]), (&second["crop"], &second["map"]));
    let columns = second["map"][1].as_u64().unwrap();
    let pairs = answer["pairs"].as_array().unwrap();
    let is_right = |pair: &serde_json::Value| {
        let [a, b] = ["first", "second"].map(|end| pair[end]["cell"].as_u64().unwrap());
        a / columns == b / columns && a % columns + b % columns == columns - 1
    };
    for pair in pairs {
        assert_eq!(pair["error"].as_f64().unwrap() < 1e-6, is_right(pair), "{pair}");
    }
    let right = pairs.iter().filter(|pair| is_right(pair)).count() as f64;
    assert!((answer["accuracy"].as_f64().unwrap() - right / 20.0).abs() < 1e-9, "{answer}");
    let table = place.well(&format!("{line} --out table.png")).stdout;
    assert!(table.contains("error in view") && table.contains("\naccuracy "), "{table}");
    let seed = place.run(&format!("{line} --seed 1")).expect(2);
    seed.says(&["`--view flip` is not random", "hint: leave out `--seed`"]);
    let two = format!("match a.png b.png --view flip --checkpoint {CHECKPOINT}");
    place.run(&two).expect(2).says(&["--view", "cannot be used with"]);
}
