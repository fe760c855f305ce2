//! A network that learns to predict colors: trained, evaluated, exported, and what it needs.

use crate::images::{good, labeled};
use crate::place::{Place, tensors};

/// A small network on a few images.
const RUN: &str = "pretrain -d set --objective igpt --arch igpt_micro views.global_size=32 train.batch_size=4 \
    train.precision=f32 train.log_every=1 knn.every=0";

#[test]
fn an_image_gpt_from_images_to_features() {
    let place = Place::new();
    good(&place, "set", 12);
    let ended = place.well(&format!("{RUN} --out run --steps 4"));
    ended.says(&[
        "prediction of colors (iGPT), iGPT `igpt_micro` (4 blocks, width 96, 64 colors of 2 x 2 pixels",
        "a palette of 64 colors: k-means of",
        "a loss of 4.16 is that of chance",
        "step 4/4",
    ]);
    let run = place.folder("run");
    let lines = run.lines("metrics.jsonl");
    assert_eq!(lines.iter().filter(|line| line["color_loss"].is_f64()).count(), 4);
    assert!(run.file("palette.npy").exists());
    let stored = tensors(&run.newest());
    assert!(
        stored.contains_key("student.palette") && stored.contains_key("student.lm_head.weight")
    );
    assert!(stored.keys().all(|name| !name.starts_with("teacher.")), "{:?}", stored.keys());

    // The network alone, with its palette, under our names.
    place.well("embed -c run -d set --out f.npy");
    place.well("export -c run --format esvit --out own.safetensors");
    let own = tensors(&place.path("own.safetensors"));
    assert!(own.contains_key("palette") && !own.contains_key("lm_head.weight"), "{:?}", own.keys());
    place.well("embed -c own.safetensors -d set --out g.npy");
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert!(read("f.npy") == read("g.npy"), "the same features");
    let timm = place.run("export -c run --format timm --out timm").expect(1);
    timm.says(&["iGPT networks"]);
    let info = place.well("info own.safetensors");
    assert!(info.stdout.contains("igpt_micro"), "{info}");
    place.well("report run");

    // It goes on without looking for colors again.
    let resumed = place.well("resume run --steps 5").says(&["going on after step 4", "step 5/5"]);
    assert!(!resumed.stderr.contains("k-means"), "{resumed}");

    // A palette is a file of a run, which another one may replace, though not one that takes it.
    let again = format!("{RUN} --out run --overwrite --steps 1");
    let taken = format!("{again} objective.palette=run/palette.npy");
    place.run(&taken).expect(1).says(&["by a run that needs `run/palette.npy`"]);
    place.well(&again).says(&["step 1/1"]);
}

/// Neighbors and a linear probe on the block in the middle, with hidden colors as well.
#[test]
fn features_of_the_middle_are_evaluated() {
    let place = Place::new();
    good(&place, "set", 12);
    place.well(&format!("{RUN} --out first --steps 1"));
    let bert = "model.variant=bert objective.palette=first/palette.npy";
    place.well(&format!("{RUN} --out run --steps 2 {bert}")).says(&[
        "the palette of `first/palette.npy`",
        "BERT",
        "step 2/2",
    ]);
    labeled(&place, "colors/train", 6);
    labeled(&place, "colors/val", 2);
    let knn = "eval knn -c run --train colors/train --val colors/val --k 1 --json";
    let answer = place.well(knn).json();
    assert_eq!(answer["query_images"], 6, "{answer}");
    let linear = "eval linear -c run --train colors/train --val colors/val --no-baseline --json \
                  --solver logistic --l2 0.001";
    let answer = place.well(linear).json();
    // Two blocks up to the middle: of 1 and 4 blocks asked for by default these are left.
    assert_eq!(answer["sweep"].as_array().unwrap().len(), 2, "{answer}");
    let error = place.run(&format!("{linear} --n 3")).expect(1);
    error.says(&["between 1 and 2, the blocks up to that of the features"]);
}

#[test]
fn what_does_not_suit_is_refused() {
    let place = Place::new();
    good(&place, "set", 8);
    let other = RUN.replace("igpt_micro", "vit_micro");
    for line in [format!("{other} --out x --steps 1"), format!("{other} --out x --dry-run")] {
        place.run(&line).expect(2).says(&[
            "`objective.name` is igpt: it predicts colors, which a ViT network does not see",
            "hint: choose an image GPT, such as `--arch igpt_micro`",
        ]);
    }
    let gone = place.run(&format!("{RUN} --out x --steps 1 objective.palette=gone.npy")).expect(1);
    gone.says(&["gone.npy"]);
    place.well(&format!("{RUN} --out first --steps 1"));
    let line =
        format!("{RUN} --out x --steps 1 objective.palette=first/palette.npy model.colors=5");
    place
        .run(&line)
        .expect(1)
        .says(&["is [64, 3], the network needs 5 colors", "hint: save `[5, 3]`"]);
    assert!(!place.path("x").exists());
    // Other objectives take the network as it is.
    let simclr = "pretrain -d set --objective simclr --arch igpt_micro views.global_size=16 \
                  train.batch_size=4 knn.every=0 --out y --steps 1";
    place.well(simclr).says(&["step 1/1"]);
}
