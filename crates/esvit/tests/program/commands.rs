//! Runs that start from other runs, and what there is to see of them.

use esvit_nn::ops::Precision;

use crate::images::{good, unusable};
use crate::place::{Place, TINY, metadata, tensors};

/// The parts of a checkpoint that hold one network.
fn network(
    tensors: &std::collections::BTreeMap<String, Vec<u32>>,
    of: &str,
) -> Vec<(String, Vec<u32>)> {
    let own = tensors.iter().filter_map(|(name, values)| Some((name.strip_prefix(of)?, values)));
    own.map(|(name, values)| (name.into(), values.clone())).collect()
}

#[test]
fn init_from_takes_weights_and_nothing_else() {
    let place = Place::new();
    place.well(&format!("pretrain --out first {TINY} train.epochs=1"));
    let source = "first/checkpoints/epoch=0001-step=00000025.safetensors";
    let settings =
        "train.epochs=2 objective.region=true checkpoint.keep_last=100 train.log_every=1";
    let ended =
        place.well(&format!("pretrain --out second {TINY} {settings} --init-from {source}"));
    assert!(!ended.stderr.contains("ms a step"), "{ended}");
    ended.says(&["weights of `backbone`, `head`, `head_dense` from", source]);
    let run = place.folder("second");
    let (given, start) = (tensors(&place.path(source)), tensors(&run.checkpoint(0)));
    for of in ["student.", "teacher."] {
        assert!(network(&given, of) == network(&start, of) && !network(&start, of).is_empty());
    }
    assert!(given.keys().any(|name| name.starts_with("optimizer.")));
    assert!(!start.keys().any(|name| name.starts_with("optimizer.")));
    assert!(start["center"].iter().all(|bits| *bits == 0));
    assert_eq!(run.steps().last(), Some(&50));

    // Going on with everything gives another run than beginning with the weights.
    place.well("resume first train.epochs=2 train.log_every=1");
    let resumed = place.folder("first").losses();
    let resumed = resumed.iter().find(|(step, _)| *step == 26).unwrap();
    assert_ne!(resumed.1, run.losses()[0].1);
}

#[test]
fn the_region_task_is_added_to_a_run_of_the_view_task() {
    let place = Place::new();
    place.well(&format!("pretrain --out view {TINY} train.epochs=1 objective.region=false"));
    let source = "view/checkpoints/epoch=0001-step=00000025.safetensors";
    let settings =
        "train.epochs=2 objective.region=true checkpoint.keep_last=100 train.log_every=1";
    assert_eq!(place.well(&format!("info {source} --json")).json()["objective"], "L_V");
    place
        .well(&format!(
            "pretrain --out both {TINY} {settings} --continue-from {source} --profile -v"
        ))
        .says(&["the state of `backbone`, `head` from", "`head_dense` start anew"])
        .says(&["step 26/50", "step 50/50", "ms a step", "optimizer and teacher", "all of these"]);
    let run = place.folder("both");
    let (given, start) = (tensors(&place.path(source)), tensors(&run.checkpoint(25)));
    // All that was there is kept: both networks, both moments, the center.
    assert!(given.contains_key("optimizer.exp_avg.norm.weight"));
    for (name, values) in &given {
        assert!(start.get(name) == Some(values), "`{name}` was not kept");
    }
    let new: Vec<&String> = start.keys().filter(|name| !given.contains_key(*name)).collect();
    let expected = |name: &&String| name.contains("head_dense.") || *name == "center_grid";
    assert!(new.iter().all(expected) && !new.iter().any(|name| name.contains("optim")), "{new:?}");
    let dense = |of| network(&start, of);
    assert!(dense("student.head_dense.") == dense("teacher.head_dense."));
    assert_eq!(metadata(&run.checkpoint(25))["updates"], metadata(&place.path(source))["updates"]);
    // Another 25 updates of what was there, the first 25 of what is new.
    let updates = &metadata(&run.checkpoint(50))["updates"];
    assert_eq!(
        (&updates["norm.weight"], &updates["head_dense.mlp.0.bias"]),
        (&50.into(), &25.into())
    );
    assert!(run.lines("metrics.jsonl").iter().all(|line| line["region_loss"].is_number()));
    assert_eq!(run.losses()[0].0, 26);
}

#[test]
fn a_finished_run_has_nothing_to_do_until_it_is_made_longer() {
    let place = Place::with_a_run();
    let run = place.folder("run");
    let before = std::fs::read(run.newest()).unwrap();
    place.well("resume run").says(&["nothing to do: all 25 steps of this run are done"]);
    assert!(std::fs::read(run.newest()).unwrap() == before);
    assert_eq!(run.steps(), [0, 25]);
    place.well("resume run train.epochs=2").says(&["going on after step 25", "step 50/50"]);
    assert_eq!(run.steps(), [0, 25, 50]);
}

#[test]
fn the_crops_of_a_preview_are_an_image() {
    let place = Place::new();
    let decoded = |name: &str| image::open(place.path(name)).unwrap();
    place.well("data preview --recipe materials --images 3 --out sheet.png").says(&["3 images"]);
    let again = "data preview --recipe materials --images 3 --out sheet.png";
    place.run(again).expect(1).says(&["`sheet.png` already exists", "--overwrite"]);
    let before = decoded("sheet.png");
    place.well(&format!("{again} --overwrite --epoch 1"));
    assert!(before != decoded("sheet.png"), "the crops of another epoch");
    let (three, one) = (decoded("sheet.png"), {
        place.well("data preview --recipe materials --images 1");
        decoded("preview.png")
    });
    // Six crops of at least 16 pixels side by side, and a row an image.
    assert!(three.width() >= 6 * 16 && three.width() == one.width());
    assert!(three.height() >= 3 * 32 && three.height() > 2 * one.height());

    good(&place, "set", 4);
    for (name, bytes) in unusable() {
        place.write(&format!("set/{name}"), bytes);
    }
    place.well("data preview --recipe materials --data set --images 10 --out set.png").says(&[
        "left out `",
        "set/cut.jpg",
        "4 images",
    ]);
    decoded("set.png");
}

#[test]
fn info_tells_what_there_is() {
    let place = Place::with_a_run();
    let listing = place.well("info --json").json();
    let names = |kind: &str| -> Vec<String> {
        let entries = listing[kind].as_array().unwrap().iter();
        entries.map(|entry| entry["name"].as_str().unwrap().into()).collect()
    };
    assert!(names("architectures").contains(&"swin_tiny_w7".into()), "{listing}");
    assert!(names("recipes").contains(&"materials".into()), "{listing}");
    // 4.5 billion, as the paper counts.
    let tiny = listing["architectures"].as_array().unwrap().iter();
    let tiny = tiny.clone().find(|entry| entry["name"] == "swin_tiny_w7").unwrap();
    let [large, small] = ["macs_224", "macs_96"].map(|key| tiny[key].as_f64().unwrap() / 1e9);
    assert!((large - 4.5).abs() < 0.1 && small < 1.5, "{tiny}");
    // Regions of a view: four stages end at 32 pixels a token, a single one stays at its patches.
    for (name, expected) in [("swin_tiny_w7", [49, 9]), ("vit_small16", [196, 36])] {
        let mut entries = listing["architectures"].as_array().unwrap().iter();
        let entry = entries.find(|entry| entry["name"] == name).unwrap();
        let tokens = ["tokens_224", "tokens_96"].map(|key| entry[key].as_u64().unwrap());
        assert_eq!(tokens, expected, "{entry}");
    }
    let table = place.well("info");
    assert!(table.stdout.contains("swin_tiny_w7") && table.stdout.contains("materials"), "{table}");
    // What `auto` takes, and where its rows come from.
    let precisions = listing["precisions"].as_array().unwrap();
    let here: Vec<_> = precisions.iter().filter(|row| row["is_here"] == true).collect();
    assert_eq!((here.len(), &here[0]["precision"]), (1, &Precision::auto().name().into()));
    for row in precisions {
        let measured = row["measured"].as_str().unwrap();
        let mark = if row == here[0] { "* " } else { "  " };
        let line = table.stdout.lines().find(|line| line.ends_with(measured));
        assert!(line.is_some_and(|line| line.starts_with(mark)), "{row} {table}");
    }

    let file = "run/checkpoints/epoch=0001-step=00000025.safetensors";
    let facts = place.well(&format!("info {file} --json")).json();
    for (key, expected) in [
        ("steps", 25.into()),
        ("seed", 1.into()),
        ("prototypes", 32.into()),
        ("feature_width", 32.into()),
        ("image_size", 32.into()),
        ("objective", "L_V + L_R".into()),
        ("network", "teacher".into()),
    ] as [(&str, serde_json::Value); 7]
    {
        assert_eq!(facts[key], expected, "{key}: {facts}");
    }
    assert!(facts["backbone_parameters"].as_u64().is_some_and(|count| count > 10_000), "{facts}");
    let lines = place.well(&format!("info {file}"));
    assert!(lines.stdout.contains("backbone parameters"), "{lines}");
    let other = place.run(&format!("info {file} --arch swin_tiny_w7")).expect(1);
    assert!(other.stdout.contains("does not load"), "{other}");
}

/// Every command that runs a network takes the device, and none takes another one in its place.
#[test]
fn a_device_that_the_build_lacks_is_refused() {
    let place = Place::new();
    for (command, status) in [
        ("pretrain --dry-run", 2),
        ("resume run", 2),
        ("info x.pth", 2),
        ("embed --checkpoint x.pth --data set --out x.npy", 2),
        ("export --checkpoint x.pth --format onnx --out x.onnx", 2),
        ("eval knn --checkpoint x.pth", 2),
        ("eval linear --checkpoint x.pth", 2),
        ("eval finetune --checkpoint x.pth", 2),
        ("eval correspondence --checkpoint x.pth", 2),
        ("eval attention --checkpoint x.pth", 2),
        ("eval transfer --checkpoint x.pth --solver logistic --n 2 --sets set", 2),
        ("eval efficiency", 2),
        ("attend x.png --checkpoint x.pth", 2),
        ("match x.png --checkpoint x.pth", 2),
        ("pca x.png --checkpoint x.pth", 2),
        ("neighbors --checkpoint x.pth --data set", 2),
        ("map --checkpoint x.pth --data set", 2),
        ("report run", 2),
        ("verify", 2),
        ("bench forward", 2),
    ] {
        if command.starts_with("resume") {
            place.well(&format!("pretrain --out run {TINY} train.epochs=1"));
        }
        let ended = place.run(&format!("{command} --device cuda:0"));
        ended.expect(status).says(&["there is no device `cuda:0` in this build", "`cpu`"]);
    }
}
