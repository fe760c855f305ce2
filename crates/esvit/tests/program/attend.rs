//! Attention of one image as a figure, and its entropy over many.

use esvit_data::{DecodeLimits, Image, decode};
use image::ImageFormat;
use serde_json::Value;

use crate::images::{encoded, good, labeled, textured, unusable};
use crate::place::{Place, TINY};

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

fn with_a_run() -> Place {
    let place = Place::with_a_run();
    let image = encoded(textured(90, 50, 1), ImageFormat::Png);
    place.write("image.png", image);
    place
}

fn image(place: &Place, name: &str) -> Image {
    decode(&std::fs::read(place.path(name)).unwrap(), &DecodeLimits::default()).unwrap()
}

fn numbers<'a>(rows: &'a Value, key: &str) -> Vec<f64> {
    let of = |row: &'a Value| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    rows.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn the_attention_of_an_image() {
    let place = with_a_run();
    let line = format!("attend image.png --checkpoint {CHECKPOINT} --json");
    let answer = place.well(&format!("{line} --svg attend.svg")).json();
    // The last of two blocks: a map of 4 x 4 that is one window.
    assert_eq!((&answer["block"], &answer["stage"]), (&1.into(), &2.into()));
    assert_eq!((&answer["visible_cells"], &answer["padding_keys"]), (&16.into(), &0.into()));
    assert_eq!(answer["query"], serde_json::json!({ "row": 2, "column": 2 }));
    let entropies = numbers(&answer["heads"], "entropy");
    assert_eq!(entropies.len(), 2);
    assert!(entropies[0] >= entropies[1] && entropies[0] <= 4.0001, "{answer}");
    assert!(image(&place, "attend.png").width() > 500);
    let svg = std::fs::read_to_string(place.path("attend.svg")).unwrap();
    assert!(svg.contains(&format!("head {} ", answer["heads"][0]["head"])), "{svg}");

    // The whole image, 56 x 32 pixels, in windows of 4 that leave 2 columns of padding.
    let whole = "--whole --block 0 --query 89,49 --head 0 --mass 0.9 --out whole.png";
    let answer = place.well(&format!("{line} {whole}")).json();
    assert_eq!(answer["shown"], serde_json::json!({ "width": 56, "height": 32 }));
    assert_eq!(answer["map"], serde_json::json!([8, 14]));
    assert_eq!(answer["query"], serde_json::json!({ "row": 7, "column": 13 }));
    assert_eq!((&answer["visible_cells"], &answer["padding_keys"]), (&8.into(), &8.into()));
    let padding = numbers(&answer["heads"], "padding_mass");
    assert!(padding.len() == 1 && padding[0] > 0.05 && padding[0] < 0.95, "{answer}");
    assert_eq!(answer["mass"], 0.9);
    assert!(place.path("whole.png").exists());

    let table = place.well(&format!("attend image.png --checkpoint {CHECKPOINT} --size 64"));
    assert!(table.stdout.contains("sees 16 of 64 cells"), "{table}");
}

#[test]
fn what_cannot_be_shown_is_said() {
    let place = with_a_run();
    place.write("broken.jpg", &unusable()[1].1);
    let fails = |rest: &str, says: &[&str]| {
        place.run(&format!("attend {rest} --checkpoint {CHECKPOINT}")).expect(1).says(says);
        assert!(!place.path("attend.png").exists());
    };
    fails("none.png", &["cannot read `none.png`"]);
    fails("broken.jpg", &["`broken.jpg` is not a usable image"]);
    fails("image.png --block 2", &["there is no block 2", "0 to 1"]);
    fails("image.png --head 0 2", &["there is no head 2", "0 to 1"]);
    fails("image.png --query 1,1", &["pixel 1,1 is not in the part", "`--whole`"]);
    fails("image.png --mass 0", &["cannot keep 0 of the attention"]);
    fails("image.png --size 3", &["3 x 3 pixels"]);
    fails("image.png --rollout", &["this network has 2 stages", "hint: without `--rollout`"]);
    place.run(&format!("attend image.png --checkpoint {CHECKPOINT} --query 1;1")).expect(2);
}

/// The whole of a long image is more than a vision transformer computes at the usual height.
#[test]
fn a_long_image_is_refused_with_a_hint() {
    let place = Place::new();
    let long = encoded(textured(300, 1, 1), ImageFormat::Png);
    place.write("long.png", long);
    place.well(
        "pretrain --recipe materials --arch vit_micro --out run --steps 1 --batch-size 2 \
         objective.head.out_dim=32 views.local_counts=[0] knn.every=0 train.precision=f32",
    );
    let line = "attend long.png --whole --checkpoint run";
    place.run(line).expect(1).says(&[
        "`size` is 32 x 9600: its 19201 tokens have 368678401 pairs",
        "hint: give a smaller `size`, or leave out `--whole`",
    ]);
    place.well("attend long.png --checkpoint run");
    let large = place.run("attend long.png --checkpoint run --size 600").expect(1);
    assert!(large.stderr.contains("hint: give a smaller `size`\n"), "{large}");
}

#[test]
fn rollout_of_a_network_with_one_map() {
    let place = with_a_run();
    let network = "model.depths=[3] model.num_heads=[2] model.window_size=8";
    place.well(&format!("pretrain --out run --overwrite {TINY} train.epochs=1 {network}"));
    let line = format!("attend image.png --checkpoint {CHECKPOINT} --rollout --json");
    let answer = place.well(&line).json();
    assert_eq!((&answer["rollout"], &answer["map"]), (&true.into(), &serde_json::json!([8, 8])));
    let entropies = numbers(&answer["heads"], "entropy");
    assert!(entropies.len() == 1 && entropies[0] > 3.0 && entropies[0] < 6.0, "{answer}");
    place.run(&format!("{line} --size 64")).expect(1).says(&["a map of 16 x 16 tokens"]);
}

#[test]
fn entropy_over_many_images() {
    let place = with_a_run();
    labeled(&place, "set", 4);
    good(&place, "set/odd", 3);
    place.write("set/red/broken.jpg", &unusable()[1].1);
    let line = format!("eval attention --checkpoint {CHECKPOINT} --json --data set");
    let start = "run/checkpoints/epoch=0000-step=00000000.safetensors";
    let ended =
        place.well(&format!("{line} --out entropy.png --svg entropy.svg --against {start}"));
    let answer = ended.says(&["left out `set/red/broken.jpg`", "saved in"]).json();
    assert_eq!(answer["images"], 15);
    for blocks in [&answer["blocks"], &answer["against"]["blocks"]] {
        assert_eq!(numbers(blocks, "stage"), [1.0, 2.0]);
        assert_eq!(numbers(blocks, "largest_entropy"), [4.0, 4.0]);
        assert!(numbers(blocks, "share").iter().all(|&share| share > 0.5 && share < 1.0001));
        assert_eq!(blocks[0]["diversity"], Value::Null);
        assert!(numbers(&blocks[1]["heads"], "entropy_std").iter().all(|&spread| spread > 0.0));
    }
    assert_ne!(answer["blocks"], answer["against"]["blocks"]);
    assert!(image(&place, "entropy.png").width() > 500 && place.path("entropy.svg").exists());
    let kept = place.folder("run").lines("eval/results.jsonl");
    assert_eq!((&kept[0]["evaluation"], &kept[0]["results"]), (&"attention".into(), &answer));

    // A run starts from the untrained network of its seed.
    let untrained = place.well(&format!("{line} --against untrained")).json();
    assert_eq!(untrained["against"]["blocks"], answer["against"]["blocks"]);
    let table = place.well(&format!("eval attention --checkpoint {CHECKPOINT} --images 1"));
    assert!(table.stdout.contains("1 image of built-in materials"), "{table}");
    place.write("bad/broken.jpg", &unusable()[1].1);
    let bad = format!("eval attention --checkpoint {CHECKPOINT}");
    place.run(&format!("{bad} --data bad")).expect(1).says(&["none of the 1 images"]);
    place.run(&format!("{bad} --images 0")).expect(1).says(&["at least one image"]);
}
