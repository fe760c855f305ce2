//! The recipe for one's own images, and the figure of quality without labels.

use esvit_train::checkpoint::{Checkpoint, Measure};

use crate::images::{good, labeled};
use crate::place::{Place, TINY};

/// The whole way with nothing but a folder.
#[test]
fn a_folder_is_enough() {
    let place = Place::new();
    good(&place, "photos", 40);
    let ended = place.well("pretrain --data photos --out run --steps 12 train.log_every=4");
    let ended = ended.says(&[
        "recipe `auto`, for 40 images of about ",
        "network     a Swin of two stages, views of 32 pixels",
        "batch       5 images a step: an eighth of the images",
        "few images (40): a published network, such as those of huggingface.co/timm,",
        "`--recipe adapt --init-from FILE` to go on from it",
        "step 0  the other crop of an image is found in",
        "among 40 images",
        "% before training",
        "next steps:",
    ]);
    assert!(!ended.stderr.contains("length      "), "the length is given");
    assert!(!ended.stderr.contains("timing a step of"), "nothing depends on it");
    assert!(!ended.stderr.contains("eval linear"), "there are no labels");
    assert_eq!(ended.stderr.matches("few images (40)").count(), 1, "{ended}");
    let run = place.folder("run");
    let best = Checkpoint::open(&run.file("checkpoints/best.safetensors")).unwrap();
    let best = best.metadata.unwrap().best.unwrap();
    assert_eq!(best.by, Measure::Retrieval);
    let found: Vec<u64> = run
        .lines("metrics.jsonl")
        .iter()
        .filter(|line| line["retrieval_top1"].is_f64())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!((found[0], found.last()), (0, Some(&12)));

    // What the run has chosen stays, and the report draws what was measured.
    place.well("resume run").says(&["nothing to do"]);
    place.well("report run");
    assert!(run.text("report.html").contains("Other crop found"));
    let measured = place.well("eval retrieval --checkpoint run --data photos --json").json();
    let features: Vec<&str> = measured["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["features"].as_str().unwrap())
        .collect();
    assert_eq!(features, ["raw pixels", "untrained", "trained"]);
    assert_eq!(measured["images"], 40);
    let table = place.well("eval retrieval --checkpoint run --data photos --images 10");
    assert!(table.stdout.contains("among those of 10 images of `photos`"), "{table}");
}

#[test]
fn labels_measure_and_are_not_trained_on() {
    let place = Place::new();
    labeled(&place, "classes", 6);
    let config = place.settings("pretrain --data classes");
    assert_eq!(config.objective.name(), "esvit");
    // One hour, unless something else is said.
    assert_eq!(config.train.time.unwrap().to_string(), "1h");
    place.write("time.toml", "[train]\nepochs = 3\n");
    let config = place.settings("pretrain --config time.toml data.path=classes");
    assert_eq!(config.train.epochs, Some(3));
}

#[test]
fn what_cannot_be_chosen_is_said() {
    let place = Place::new();
    place.run("pretrain --data nowhere").expect(1).says(&["there is no folder `nowhere`"]);
    place.write("letters/letter.txt", "no image");
    place.run("pretrain --data letters").expect(1).says(&["no images in `letters`"]);
    place.write("broken/a.png", "no image");
    place.run("pretrain --data broken").expect(1).says(&["broken/a.png"]);
    good(&place, "photos", 9);
    // In the numbers of this run, and not in those of the defaults.
    let wrong = place.run("pretrain --data photos train.micro_batch=7 --dry-run").expect(2);
    wrong.says(&["`train.micro_batch` is 7: it must divide `train.batch_size`, which is 1"]);
    let unknown = place.run("pretrain --data photos --recipe autom").expect(2);
    unknown.says(&["there is no recipe `autom`", "`auto`"]);
    assert!(!place.path("runs").exists(), "no run was begun");
}

/// Before anything is written, by `auto` and by a recipe that does not choose.
#[test]
fn a_time_for_hardly_a_step_is_refused() {
    let place = Place::new();
    good(&place, "photos", 9);
    let others = format!("pretrain {TINY} train.epochs=none");
    for line in ["pretrain --data photos".to_owned(), others] {
        for dry in ["", "--dry-run"] {
            let ended = place.run(&format!("{line} --out run --time 1ms {dry}")).expect(2);
            ended.says(&["`train.time` is 1ms, and a step takes", "is enough for 10 steps"]);
            assert!(!place.path("run").exists(), "{line} {dry}");
        }
    }
    let timed = place.well("pretrain --data photos --time 1m --dry-run");
    timed.says(&["timing a step of a small network on some of the images"]);
}
