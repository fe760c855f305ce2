//! Drawings of what a network has learned: regions, neighbors and maps.

use image::{ImageFormat, RgbImage};
use serde_json::Value;

use crate::images::{encoded, good, labeled, textured, unusable};
use crate::place::Place;

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

pub(crate) fn drawn(place: &Place, name: &str) -> RgbImage {
    image::open(place.path(name)).unwrap().to_rgb8()
}

fn text(place: &Place, name: &str) -> String {
    std::fs::read_to_string(place.path(name)).unwrap()
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn regions_of_images_of_any_shape() {
    let place = Place::with_a_run();
    place.write("wide.png", encoded(textured(90, 40, 1), ImageFormat::Png));
    place.write("square.png", encoded(textured(50, 50, 2), ImageFormat::Png));
    place.write("broken.jpg", &unusable()[1].1);
    let pca = format!("pca square.png wide.png --checkpoint {CHECKPOINT}");
    let answer = place.well(&format!("{pca} broken.jpg --json --svg pca.svg"));
    let answer = answer.says(&["left out `broken.jpg`", "wrote `pca.png`"]).json();
    // Two stages and patches of 4 pixels: a region has 8, and 16 of them are asked for.
    assert_eq!((&answer["size"], &answer["stage"]), (&128.into(), &2.into()));
    assert_eq!(answer["maps"][1]["width"], 16);
    assert_eq!(answer["regions"], 512);
    let shares: Vec<f64> = answer["explained_variance"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect();
    assert!(shares.len() == 3 && shares.is_sorted_by(|a, b| a >= b), "{answer}");
    assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9 && shares[2] > 0.0, "{answer}");
    let first = drawn(&place, "pca.png");
    // Two images with their maps, 180 high, at two pixels each.
    assert!(first.width() > 2 * 4 * 180 && first.height() > 2 * 180, "{:?}", first.dimensions());
    assert!(text(&place, "pca.svg").matches("<image").count() == 4);
    place.well(&format!("{pca} --smooth --out smooth.png"));
    assert_ne!(first, drawn(&place, "smooth.png"));
    place.well(&format!("{pca} --out again.png"));
    assert_eq!(first, drawn(&place, "again.png"));

    let whole = place.well(&format!("{pca} --whole --size 32 --stage 1 --smooth --json")).json();
    let maps = [0, 1]
        .map(|i| [&whole["maps"][i]["height"], &whole["maps"][i]["width"]].map(Value::as_u64));
    assert_eq!(maps, [[Some(8), Some(8)], [Some(8), Some(18)]]);
}

#[test]
fn images_without_regions_are_refused() {
    let place = Place::with_a_run();
    place.write("a.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    place.write("broken.jpg", "");
    let pca = |rest: &str| place.run(&format!("pca --checkpoint {CHECKPOINT} {rest}")).expect(1);
    pca("a.png --size 33").says(&["33 x 33", "multiples of the patch, 4 pixels"]);
    pca("a.png --stage 3").says(&["there is no stage 3: the network has 2"]);
    pca("a.png --stage 0").says(&["there is no stage 0"]);
    pca("a.png --size 4").says(&["there is only one feature"]);
    pca("broken.jpg").says(&["left out `broken.jpg`", "none of the 1 images can be read"]);
    pca("missing.png").says(&["cannot read `missing.png`"]);
    labeled(&place, "many", 22);
    pca("many").says(&["66 images are too many for a drawing, at most 64"]);
    ["a", "b", "c"].iter().for_each(|name| place.write(&format!("bad/{name}.png"), ""));
    pca("bad").says(&["none of the 3 images can be read"]);
    assert!(!place.path("pca.png").exists());
}

#[test]
fn neighbors_in_a_labeled_folder() {
    let place = Place::with_a_run();
    labeled(&place, "set", 6);
    place.write("set/red/broken.jpg", "");
    let line = format!("neighbors --checkpoint {CHECKPOINT} --data set --json");
    let answer = place.well(&format!("{line} --k 5 --rows 6 --svg n.svg"));
    let answer = answer.says(&["left out `set/red/broken.jpg`"]).json();
    assert_eq!(answer["images"], 18);
    let rows = answer["rows"].as_array().unwrap();
    let queries: Vec<&str> =
        rows.iter().map(|row| row["query"]["name"].as_str().unwrap()).collect();
    // Spread evenly over the set.
    let expected = ["blue/0", "blue/3", "green/0", "green/3", "red/0", "red/3"];
    assert_eq!(queries, expected.map(|name| format!("set/{name}.png")));
    for row in rows {
        let found = names(&row["neighbors"]);
        assert!(found.len() == 5 && !found.contains(&row["query"]["name"].as_str().unwrap()));
        let similarities = row["neighbors"].as_array().unwrap().iter();
        assert!(
            similarities.map(|n| n["similarity"].as_f64().unwrap()).is_sorted_by(|a, b| a >= b)
        );
    }
    // The classes differ in color; by chance it is 5 in 17.
    assert!(answer["same_class"].as_f64().unwrap() > 0.4, "{answer}");
    assert_eq!(text(&place, "n.svg").matches("<image").count(), 36);
    drawn(&place, "neighbors.png");
    assert_eq!(answer, place.well(&format!("{line} --k 5 --rows 6")).json());
    let chosen = place.well(&format!("{line} --k 1 --rows 6 --seed 3")).json();
    assert_ne!(chosen["rows"], answer["rows"]);
}

#[test]
fn a_image_is_not_its_own_neighbor() {
    let place = Place::with_a_run();
    good(&place, "set", 5);
    std::fs::copy(place.path("set/good-01.png"), place.path("copy.png")).unwrap();
    let answer = place.well(&format!(
        "neighbors --checkpoint {CHECKPOINT} --data set --queries set/good-01.png copy.png --json"
    ));
    let rows = &answer.json()["rows"];
    let [own, copy] = [0, 1].map(|row| names(&rows[row]["neighbors"]));
    assert!(own.len() == 4 && !own.contains(&"set/good-01.png"), "{own:?}");
    assert_eq!((copy.len(), copy[0]), (5, "set/good-01.png"));
    assert_eq!(rows[0]["query"]["class"], Value::Null);

    place.write("one/a.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    let line = format!("neighbors --checkpoint {CHECKPOINT} --data one");
    place.run(&line).expect(1).says(&["an image is not its own neighbor"]);
    place.run(&format!("{line} --k 0")).expect(1).says(&["at least 1"]);
}

#[test]
fn maps_of_labeled_and_of_few_images() {
    let place = Place::with_a_run();
    labeled(&place, "set", 8);
    let line = format!("map --checkpoint {CHECKPOINT} --data set");
    let map = place.well(&format!("{line} --csv map.csv --svg map.svg --json")).json();
    assert_eq!((&map["method"], map["points"].as_array().unwrap().len()), (&"tsne".into(), 24));
    let csv = text(&place, "map.csv");
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), &rows[0][..]), (25, &["name", "label", "x", "y"][..]));
    assert_eq!(&rows[9][..2], ["set/green/0.png", "green"]);
    let [table, json] =
        [rows[9][2].parse().ok(), map["points"][8]["x"].as_f64()].map(Option::unwrap);
    let apart: f64 = table - json;
    assert!(apart.abs() < 1e-9, "{table} {json}");
    let svg = text(&place, "map.svg");
    assert!([">blue<", ">green<", ">red<"].iter().all(|class| svg.contains(class)), "a legend");
    let first = drawn(&place, "map.png");
    place.well(&format!("{line} --out again.png --csv again.csv"));
    assert_eq!((first, csv.clone()), (drawn(&place, "again.png"), text(&place, "again.csv")));

    let pca = place.well(&format!("{line} --method pca --max 9 --json")).json();
    let shares = [0, 1].map(|axis| pca["explained_variance"][axis].as_f64().unwrap());
    assert!(shares[0] >= shares[1] && shares[0] + shares[1] <= 1.0 + 1e-9, "{shares:?}");
    place.well(&format!("{line} --max 2")).says(&["t-SNE needs at least 10", "2 of the 24"]);
    let refused = |rest: &str| place.run(&format!("{line} {rest}")).expect(1);
    refused("--max 9 --method tsne").says(&["at least 10 images, there are 9"]);
    refused("--max 1").says(&["there is only one feature"]);
    for file in ["--svg map.svg", "--csv map.csv", "--out again.png"] {
        refused(file).says(&["already exists", "hint: add `--overwrite`"]);
    }
    refused("--out none/map.png").says(&["there is no folder `none`"]);
    assert_eq!(csv, text(&place, "map.csv"));
    let ten = place.well(&format!("{line} --max 10 --csv map.csv --overwrite"));
    assert!(ten.stdout.starts_with("t-SNE map of 10 images"), "{ten}");
    assert_eq!(text(&place, "map.csv").lines().count(), 11);
}
