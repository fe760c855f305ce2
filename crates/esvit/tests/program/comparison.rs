//! Figures that compare checkpoints, of networks of different families.

use image::ImageFormat;

use crate::images::{encoded, textured};
use crate::place::{Place, TINY};

const VIT: &str = "model.family=vit model.img_size=32 model.patch_size=4 model.embed_dim=16 \
    model.depth=3 model.num_heads=2";
const RESNET: &str = "model.family=resnet model.img_size=32 model.stem_width=8 model.widths=[4,8] \
    model.layers=[1,1]";

/// A place with an image, the run `run` of a Swin and the run `other` of another network.
fn with_runs(model: &str) -> Place {
    let place = Place::with_a_run();
    place.write("image.png", encoded(textured(90, 50, 1), ImageFormat::Png));
    let settings = TINY.split_whitespace().filter(|word| !word.starts_with("model."));
    let settings = settings.collect::<Vec<_>>().join(" ");
    let line = format!("pretrain --out other {settings} train.epochs=1 model.arch=custom {model}");
    place.well(&line);
    place
}

fn height(place: &Place, name: &str) -> u32 {
    image::open(place.path(name)).unwrap().height()
}

#[test]
fn every_checkpoint_has_a_row() {
    let place = with_runs(VIT);
    for line in ["attend image.png --whole", "match image.png --view flip"] {
        let of = |run: &str| place.well(&format!("{line} -c {run} --out {run}.png --json")).json();
        let alone = ["run", "other"].map(of);
        assert_ne!(alone[0], alone[1]);
        let both = format!("{line} -c run -c other --out both.png --svg both.svg");
        let answer = place.well(&format!("{both} --json")).json();
        let rows = answer["checkpoints"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{answer}");
        for (index, (run, family)) in [("run", "swin"), ("other", "vit")].into_iter().enumerate() {
            let row = &rows[index];
            let file = row["checkpoint"].as_str().unwrap();
            assert!(file.starts_with(&format!("{run}/checkpoints/")), "{answer}");
            assert_eq!((&row["family"], &row["architecture"]), (&family.into(), &"custom".into()));
            for (key, value) in alone[index].as_object().unwrap() {
                assert_eq!(&row[key], value, "{key} of {run}");
            }
        }
        let [run, other, drawn] =
            ["run.png", "other.png", "both.png"].map(|name| height(&place, name));
        assert!(drawn > run.max(other) + 200, "{run} {other} {drawn}");
        let svg = std::fs::read_to_string(place.path("both.svg")).unwrap();
        let table = place.well(&format!("{both} --overwrite")).stdout;
        for label in ["run/check", "· Swin (custom)", "other/check", "· ViT (custom)"] {
            let count = |text: &str| text.matches(label).count();
            assert_eq!((count(&svg), count(&table)), (1, 1), "{label}: {table}");
        }
        for name in ["run.png", "other.png", "both.png", "both.svg"] {
            std::fs::remove_file(place.path(name)).unwrap();
        }
    }
    // What one of them cannot do is said of it, and nothing is drawn.
    for (line, run, said) in [
        ("attend image.png --block 2", "run", "there is no block 2"),
        ("match image.png --stage 2", "other", "there is no stage 2"),
        ("match image.png --size 36", "run", "whole number of cells"),
    ] {
        let ended = place.run(&format!("{line} -c run -c other")).expect(1);
        ended.says(&[&format!("`{run}/checkpoints/"), said]);
    }
    assert!(!place.path("attend.png").exists() && !place.path("match.png").exists());
}

#[test]
fn a_network_without_attention_is_named() {
    let place = with_runs(RESNET);
    for line in ["attend image.png -c run -c other", "attend image.png -c other"] {
        let said = ["`other/checkpoints/", "a ResNet backbone has no attention", "hint: leave it"];
        place.run(line).expect(1).says(&said);
    }
    assert!(!place.path("attend.png").exists());
    let answer = place.well("match image.png -c run -c other --json").json();
    let [swin, resnet] = [0, 1].map(|row| &answer["checkpoints"][row]);
    assert_eq!(resnet["family"], "resnet");
    // Both are shown the same random view.
    assert_eq!(swin["views"][1]["crop"], resnet["views"][1]["crop"]);
}
