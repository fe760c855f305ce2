//! Comparisons of which a run fails, or would.

use std::ffi::OsStr;
use std::fs;

use serde_json::Value;

#[cfg(unix)]
use crate::compare::VARIANTS;
use crate::compare::{ADDED, line, named, with_variants};
use crate::images::good;
use crate::place::{Place, TINY};

const BAD: &str = "[[variant]]\nname = \"bad\"\noptim.lr = 1e30\noptim.warmup = 0\n\
    [[variant]]\nname = \"good\"\n";

/// Names of the runs that failed, as `compare.json` has them.
fn failed(report: &Value) -> Vec<&str> {
    report["failed"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect()
}

fn stored(place: &Place) -> Value {
    serde_json::from_str(&place.folder("c").text("compare.json")).unwrap()
}

#[test]
fn one_bad_variant_does_not_end_the_others() {
    let place = with_variants(BAD);
    let ended = place.run(&line("train.epochs=1 --json")).expect(1);
    let report = ended.json();
    let ended = ended.says(&[
        "warning: `bad-1` failed: step 1: the loss is",
        "run 2 of 2: `good-1`",
        "warning: 1 of 2 runs failed",
        "compare --resume --out c` tries again",
    ]);
    let [bad, good] = ["bad", "good"].map(|name| named(&report["rows"], "name", name));
    assert_eq!((&bad["seeds"], &bad["failed"], &bad["knn"]), (&0.into(), &1.into(), &Value::Null));
    assert_eq!((&good["seeds"], &good["failed"]), (&1.into(), &0.into()), "{ended}");
    assert!(
        good["knn"]["mean"].is_f64() && named(&report["rows"], "name", "untrained").is_object()
    );
    assert_eq!(failed(&report), ["bad-1"]);
    let reason = report["failed"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("nothing was updated"), "{reason}");
    assert_eq!(stored(&place), report);
    let page = place.folder("c").text("compare.md");
    for part in ["| bad (failed) | - |", "\n- `bad-1` failed: step 1: ", "; 1 of 2 runs failed."] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let figure = place.folder("c").text("parameters.svg");
    assert!(figure.contains(">good<") && !figure.contains(">bad"), "{figure}");

    // What is done stays, and what failed is tried again after it.
    let again = place.run("compare --resume --out c").expect(1);
    assert!(
        again.stdout.contains("\nbad (failed) ") && again.stdout.contains("\ngood "),
        "{again}"
    );
    let again =
        again.says(&["`good-1` is finished", "run 1 of 2: `bad-1`", "`bad-1` failed: step 1"]);
    let place_of = |part: &str| again.stderr.find(part).unwrap();
    assert!(place_of("`good-1` is finished") < place_of("run 1 of 2: `bad-1`"), "{again}");
}

/// One seed of three cannot have its folder, and what goes on from it is not begun.
#[test]
fn a_row_is_of_the_seeds_that_did_not_fail() {
    let place = with_variants(ADDED);
    place.well(&line("train.epochs=1 --quiet"));
    place.write("c/view-2", "no folder");
    let ended = place.run("compare --resume --out c --seeds 3 --json").expect(1);
    let report = ended.json();
    let ended = ended.says(&[
        "`view-2` failed: `c/view-2` is a file, and a run needs a folder",
        "`added-2` failed: it goes on from `view-2`, which failed",
        "warning: 2 of 6 runs failed",
    ]);
    assert_eq!(failed(&report), ["view-2", "added-2"], "{ended}");
    let knn = |run: &str| named(&report["runs"], "run", run)["trained"]["knn"].as_f64().unwrap();
    for variant in ["view", "added"] {
        let row = named(&report["rows"], "name", variant);
        assert_eq!((&row["seeds"], &row["failed"]), (&2.into(), &1.into()), "{row}");
        let mean = [1, 3].map(|seed| knn(&format!("{variant}-{seed}"))).iter().sum::<f64>() / 2.0;
        assert!((row["knn"]["mean"].as_f64().unwrap() - mean).abs() < 1e-9, "{row}");
    }
    let page = place.folder("c").text("compare.md");
    assert!(page.contains("| view (2 of 3 seeds) |"), "{page}");

    fs::remove_file(place.path("c/view-2")).unwrap();
    let report = place.well("compare --resume --out c --json").json();
    assert!(failed(&report).is_empty() && !place.path("c/failed.json").exists(), "{report}");
    assert_eq!(named(&report["rows"], "name", "view")["seeds"], 3, "{report}");
}

/// The images of one variant vanish before its second seed.
#[test]
fn images_that_are_gone_fail_one_variant_alone() {
    let place = Place::new();
    good(&place, "a", 8);
    good(&place, "b", 8);
    let line =
        format!("compare --out c --data a {}", TINY.replace("train.epochs=3", "train.steps=2"));
    place.run_with(&line, &["--run", "one", "--run", "other: --data b"].map(OsStr::new)).expect(0);
    fs::rename(place.path("b"), place.path("elsewhere")).unwrap();
    let ended = place.run("compare --resume --out c --seeds 2 --json").expect(1);
    let report = ended.json();
    assert_eq!(failed(&report), ["other-2"], "{ended}");
    assert!(report["failed"][0]["reason"].as_str().unwrap().contains("`b`"), "{ended}");
    assert_eq!(named(&report["rows"], "name", "one")["seeds"], 2, "{ended}");
}

/// What ends the process, as a lack of memory does, comes after all others when the comparison goes on.
#[cfg(unix)]
#[test]
fn a_run_in_which_the_process_ended_is_not_in_the_way() {
    let place = with_variants(VARIANTS);
    let view = place.folder("c/view-1");
    let mut running = place.start(&line("train.epochs=8 checkpoint.every=100%"));
    running.wait_until(|| !view.steps().is_empty());
    running.kill();
    assert_eq!(view.steps(), [0]);
    // The table is there before it may happen again.
    let mut running = place.start("compare --resume --out c");
    running.wait_until(|| place.path("c/compare.json").exists());
    running.kill();
    let report = stored(&place);
    assert_eq!(failed(&report), ["view-1"]);
    let reason = report["failed"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("the process ended while it was trained"), "{reason}");
    assert_eq!(named(&report["rows"], "name", "both")["seeds"], 1, "{report}");
    let ended = place.well("compare --resume --out c --json");
    let report = ended.json();
    assert!(failed(&report).is_empty() && !place.path("c/failed.json").exists(), "{ended}");
    assert_eq!(named(&report["rows"], "name", "view")["seeds"], 1, "{ended}");
    ended.says(&["`both-1` is finished", "run 1 of 2: `view-1`"]);
}

/// Two processes would take each other's runs for ones that failed.
#[cfg(unix)]
#[test]
fn a_comparison_is_the_work_of_one_process() {
    let place = with_variants(VARIANTS);
    let command = line("train.epochs=8");
    let mut running = place.start(&command);
    running.wait_until(|| place.path("c/view-1").exists());
    place.run(&command).expect(1).says(&["`c` is in use: process "]);
    running.kill();
}

/// Nothing is trained before all that can be known is checked, and a dry run says the same.
#[test]
fn what_would_fail_later_is_told_before() {
    let place = Place::new();
    good(&place, "set", 8);
    for (code, runs, parts) in [
        (
            1,
            "--run|a|--run|b: --continue-from a --continue-at 50% model.embed_dim=32",
            &["variant `b`: cannot start from `new/starts/a-1-step=00000038", "does not fit"][..],
        ),
        (
            2,
            "--run|a|--run|b: --continue-from a --continue-at 50% train.batch_size=8",
            &["continues at 50% of `a`, which is step 38, and its own run would end at step 36"],
        ),
        (
            1,
            "--data|set|--run|a|--run|b: --objective supervised",
            &["variant `b`: the objective `supervised` needs labeled images of two classes"],
        ),
        (
            1,
            "--data|set|--run|a|--run|b: knn.every=1 knn.train=nowhere",
            &["variant `b`: ", "`nowhere`"],
        ),
        // By which all variants are judged.
        (1, "--data|set|--run|a: knn.train=nowhere|--run|b", &["`nowhere`"]),
    ] {
        for how in ["", "--dry-run --quiet"] {
            let more: Vec<&OsStr> = runs.split('|').map(OsStr::new).collect();
            let line = format!("compare --out new {how} {TINY}");
            place.run_with(&line, &more).expect(code).says(parts);
            assert!(!place.path("new").exists(), "{runs}");
        }
    }
}
