//! Comparisons of variants that begin with weights.

use std::ffi::OsStr;

use serde_json::Value;

use crate::compare::{named, names, newest};
use crate::images::good;
use crate::place::Place;

/// Weights to begin with are those of a run by itself, and a row of their own.
#[test]
fn variants_may_begin_with_weights() {
    let place = Place::with_a_run();
    good(&place, "set", 12);
    let settings = "-d set --steps 6 train.precision=f32";
    let runs = [
        "--run",
        "adapt: --recipe adapt --init-from run",
        "--run",
        "slow: --recipe adapt --init-from run --lr 0.001",
    ];
    let ended = place
        .run_with(&format!("compare --out c {settings} --json"), &runs.map(OsStr::new))
        .expect(0);
    let report = ended.json();
    assert_eq!(ended.stderr.matches("recipe `adapt`, for 12 images").count(), 1, "{ended}");
    let ended = ended.says(&["the network is that of `run/checkpoints/"]);
    let rows = ["raw pixels", "untrained", "original weights", "adapt", "slow"];
    assert_eq!(names(&report["rows"], "name"), rows, "{ended}");
    let alone = format!("pretrain --out alone {settings} --recipe adapt --init-from run");
    place.well(&alone);
    assert!(newest(&place, "alone") == newest(&place, "c/adapt-0"), "another run");
    // They are what the run itself was measured to begin with.
    let original = named(&report["rows"], "name", "original weights");
    let check = &report["runs"][0]["checks"][0];
    assert_eq!(check["images_seen"], 0, "{report}");
    let [found, expected] = [&original["retrieval"]["mean"], &check["retrieval"]];
    let difference = found.as_f64().unwrap() - expected.as_f64().unwrap();
    assert!(difference.abs() < 1e-9, "{found} {expected}");
    assert_eq!((&original["seeds"], &original["knn"]), (&1.into(), &Value::Null));

    place.well("compare --resume --out c --seeds 2 --quiet");
    let log = place.folder("c/slow-1").text("train.log");
    assert!(log.contains("from `run/checkpoints/"), "{log}");
    let other = ["--run", "adapt: --recipe adapt --init-from set", runs[2], runs[3]];
    place
        .run_with(&format!("compare --out c {settings}"), &other.map(OsStr::new))
        .expect(2)
        .says(&["`adapt`: init_from = set (it was run/checkpoints/"]);
}

#[test]
fn weights_that_cannot_be_a_beginning_are_told() {
    let place = Place::with_a_run();
    good(&place, "set", 12);
    place.write("v.toml", "[[variant]]\nname = \"a\"\nrecipe = \"adapt\"\ninit_from = \"run\"\n");
    let compare = |code: i32, run: &[&str]| {
        let run: Vec<&OsStr> = run.iter().map(OsStr::new).collect();
        place.run_with("compare --out c -d set --steps 2", &run).expect(code)
    };
    let refused = compare(2, &["--run", "a: --recipe adapt"]);
    refused.says(&["variant `a`: recipe `adapt` goes on from a network that there is", "hint: "]);
    let refused = compare(1, &["--run", "a: --recipe materials --arch vit_micro --init-from run"]);
    refused.says(&["variant `a`: cannot start from `run/checkpoints/", "does not fit"]);
    let refused = compare(2, &["--run", "a", "--key", "student"]);
    refused.says(&["`--key student` names a network and no file of it", "hint: "]);
    assert!(!place.path("c").exists());
    // In a file too a run stands for its weights.
    let would = compare(0, &["--variants", "v.toml", "--dry-run", "--json", "--quiet"]).json();
    assert_eq!(would["variants"][0]["settings"]["model"]["embed_dim"], 16, "{would}");
}
