//! Comparisons of several variants of a run.

use std::ffi::OsStr;
use std::fs;

use serde_json::{Value, json};

use crate::images::{good, labeled};
#[cfg(unix)]
use crate::place::Ended;
use crate::place::{Place, TINY, metadata};

pub(crate) const VARIANTS: &str = "[[variant]]\nname = \"view\"\nobjective.region = false\n\
    [[variant]]\nname = \"both\"\n";

/// The view task, and from its middle on both.
pub(crate) const ADDED: &str = "[[variant]]\nname = \"view\"\nobjective.region = false\n\
    [[variant]]\nname = \"added\"\ncontinue_from = \"view\"\ncontinue_at = \"50%\"\n\
    objective.region = true\n";

/// A place with these variants in `v.toml`.
pub(crate) fn with_variants(text: &str) -> Place {
    let place = Place::new();
    place.write("v.toml", text);
    place
}

/// The beginning of a comparison's command line.
pub(crate) fn line(rest: &str) -> String {
    format!("compare --out c --variants v.toml {TINY} {rest}")
}

/// The runs of a line of JSON, or of other things, by their names.
pub(crate) fn named<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|item| item[key] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

pub(crate) fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

/// The bytes of the last checkpoint of a run.
pub(crate) fn newest(place: &Place, run: &str) -> Vec<u8> {
    fs::read(place.folder(run).newest()).unwrap()
}

/// Every tag of an SVG file that is opened is closed, in order.
fn assert_whole(svg: &str) {
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    let mut open: Vec<&str> = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("`{tag}` has no end"));
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "{svg}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty() && !svg.contains("NaN"), "{open:?}\n{svg}");
}

#[test]
fn variants_are_compared_over_seeds() {
    let place = with_variants(VARIANTS);
    let settings = "train.epochs=2 knn.every=1";
    let ended = place.well(&line(&format!("{settings} --seeds 2 --json")));
    let report = ended.json();
    let ended = ended.says(&["run 4 of 4: `both-2`", "wrote `c/compare.md`, `c/compare.json`"]);
    assert!(!ended.stderr.contains("no checkpoint yet"), "{ended}");
    assert_eq!(report["seeds"], serde_json::json!([1, 2]), "{ended}");
    assert_eq!(
        (&report["length"], &report["judged_on"]),
        (&"2 epochs".into(), &"built-in materials".into())
    );
    let rows = &report["rows"];
    assert_eq!(names(rows, "name"), ["raw pixels", "untrained", "view", "both"], "{ended}");
    assert_eq!(names(&report["runs"], "run"), ["view-1", "both-1", "view-2", "both-2"], "{ended}");
    for name in ["view", "both"] {
        let row = named(rows, "name", name);
        for figure in ["knn", "linear", "correspondence", "retrieval"] {
            let [mean, std] = ["mean", "std"].map(|key| row[figure][key].as_f64());
            assert!(mean.is_some_and(|mean| mean > 0.0) && std.is_some(), "{figure}: {row}");
        }
        assert_eq!(
            (&row["images_seen"]["mean"], &row["seeds"]),
            (&200.0.into(), &2.into()),
            "{row}"
        );
        let measured = [&row["training_seconds"]["mean"], &row["forward_images_per_s"]];
        assert!(measured.iter().all(|value| value.as_f64() > Some(0.0)), "{row}");
        assert!(row["parameters"].as_u64() > Some(0), "{row}");
    }
    assert!(named(rows, "name", "raw pixels")["linear"].is_null(), "{rows}");
    // Each seed has initial values of its own.
    let untrained = named(rows, "name", "untrained");
    let differs = |figure: &str| untrained[figure]["std"].as_f64().unwrap() > 0.0;
    assert!(["knn", "linear", "retrieval"].into_iter().any(differs), "{untrained}");

    // Files in the folder say the same.
    let folder = place.folder("c");
    let stored: Value = serde_json::from_str(&folder.text("compare.json")).unwrap();
    assert_eq!(stored, report);
    let page = folder.text("compare.md");
    for part in
        ["| view |", "| untrained |", "![curves.svg](curves.svg)", "2 variants, 2 seeds, 2 epochs"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    for figure in ["curves.svg", "parameters.svg", "throughput.svg"] {
        let svg = folder.text(figure);
        assert_whole(&svg);
        assert!(svg.contains(">view<") && svg.contains(">both<"), "{figure}: {svg}");
    }

    // Again nothing is trained, and a table is printed.
    let again = place.well(&line(&format!("{settings} --seeds 2")));
    let table: Vec<&str> = again.stdout.lines().skip(3).collect();
    assert!(table[2].starts_with("view ") && table[3].contains(" ± "), "{again}");
    assert!(!again.stderr.contains("measuring"), "{again}");
    again.says(&["`view-1` is finished", "`both-2` is finished"]);

    // Each run is the one that its command alone makes, and can be used as any other.
    let alone = format!("pretrain --out alone {TINY} {settings} seed=2 objective.region=false");
    place.well(&alone);
    assert!(newest(&place, "alone") == newest(&place, "c/view-2"), "another run");
    place.well("resume c/view-1").says(&["nothing to do: all 50 steps of this run are done"]);
    place.well("report c/both-1");
}

/// The figures of a run are those that the evaluations give of its last checkpoint.
#[test]
fn figures_are_those_of_the_evaluations() {
    let place = with_variants("[[variant]]\nname = \"one\"\n");
    let report = place.well(&line("train.epochs=1 --json")).json();
    let run = &report["runs"][0];
    let checkpoint = place.folder("c/one-1").newest();
    let of = |evaluation: &str| {
        let line = format!("eval {evaluation} --json --checkpoint {}", checkpoint.display());
        place.well(&line).json()
    };
    let same = |features: &str, figure: &str, expected: &Value| {
        let [found, expected] = [&run[features][figure], expected].map(|v| v.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-9, "{figure} of {features}: {found}, not {expected}");
    };
    let [knn, linear, retrieval, matches] =
        ["knn --k 10", "linear", "retrieval", "correspondence"].map(of);
    for (row, features) in [(0, "raw_pixels"), (1, "untrained"), (2, "trained")] {
        same(features, "knn", &knn["results"][row]["accuracies"][0]["top1"]);
        same(features, "retrieval", &retrieval["results"][row]["top1"]);
    }
    same("trained", "linear", &linear["best"]["top1"]);
    same("untrained", "linear", &linear["untrained"]["top1"]);
    for features in ["untrained", "trained"] {
        let share = named(&matches["results"], "features", features)["accuracy"]["mean"].as_f64();
        same(features, "correspondence", &(100.0 * share.unwrap()).into());
    }
    // Without checks there is nothing to draw over the course of the run, and no figure of before.
    assert!(!place.path("c/curves.svg").exists() && place.path("c/parameters.svg").exists());
    assert_eq!(report["figures"], serde_json::json!(["parameters.svg", "throughput.svg"]));
}

#[test]
fn a_variant_goes_on_from_another() {
    let place = with_variants(ADDED);
    let report = place.well(&line("train.epochs=4 knn.every=1 --json")).json();
    let [view, added] = ["c/view-1", "c/added-1"].map(|run| place.folder(run));
    assert_eq!((view.steps(), added.steps()), (vec![50, 75, 100], vec![50, 75, 100]));
    let start = "c/starts/view-1-step=00000050.safetensors";
    assert!(fs::read(place.path(start)).unwrap() == fs::read(view.checkpoint(50)).unwrap());
    assert!(added.text("train.log").contains(start));
    // As by hand, and the first is as if none had gone on from it.
    place.well(&format!("pretrain --out by-hand --continue-from {start} objective.region=true"));
    assert!(newest(&place, "by-hand") == newest(&place, "c/added-1"), "another run");
    let line =
        format!("pretrain --out whole {TINY} train.epochs=4 knn.every=1 objective.region=false");
    place.well(&line);
    assert!(newest(&place, "whole") == newest(&place, "c/view-1"), "another run");

    let run = named(&report["runs"], "run", "added-1");
    assert_eq!((&run["steps"], &run["images_seen"]), (&100.into(), &400.into()), "{run}");
    assert_eq!((&run["start"]["step"], &run["start"]["images_seen"]), (&50.into(), &200.into()));
    let before = run["start"]["training_seconds"].as_f64().unwrap();
    let all = run["training_seconds"].as_f64().unwrap();
    // A line of the log is of ten steps.
    let lines = added.lines("metrics.jsonl");
    let own: f64 = lines.iter().filter_map(|line| line["batch_time"].as_f64()).sum::<f64>() * 10.0;
    assert!(before > 0.0 && (all - before - own).abs() < 1e-6, "{run} {own}");
    let seen: Vec<u64> = run["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["images_seen"].as_u64().unwrap())
        .collect();
    assert_eq!(seen, [300, 400], "{run}");
    // Its line begins where the other one was.
    let svg = place.folder("c").text("curves.svg");
    assert_whole(&svg);
    assert_eq!(svg.matches("<circle").count(), 4 + 3, "{svg}");
}

/// Twenty steps of four images before it went on, and twenty of eight since.
#[test]
fn images_of_a_run_that_goes_on_are_those_of_both() {
    let place = Place::new();
    let line = format!("compare --out c {}", TINY.replace("train.epochs=3", "train.steps=40"));
    let compare = |more: &str| {
        let next = "b: --continue-from a --continue-at 50% --batch-size 8";
        let runs = ["--run", "a", "--run", next].map(OsStr::new);
        place.run_with(&format!("{line} {more}"), &runs).expect(0).json()
    };
    let seen = |report: Value| {
        ["a-1", "b-1"].map(|run| named(&report["runs"], "run", run)["images_seen"].clone())
    };
    let would = compare("--dry-run --json --quiet");
    let next = named(&would["variants"], "name", "b");
    assert_eq!(next["continues"], json!({ "from": "a", "at": "50%" }), "{would}");
    assert_eq!(next["start_step"], 20, "{would}");
    let would = seen(would);
    assert_eq!(would, [160, 80 + 160].map(Value::from));
    assert_eq!(seen(compare("--json")), would);
}

/// The recipe of the second would have other neighbors, and images shrunk to 37 pixels before the crop.
#[test]
fn variants_are_judged_in_the_same_way() {
    let place = Place::new();
    let other = "other: --recipe esvit model.arch=swin_micro model.depths=[1,1] model.embed_dim=16 \
                 model.num_heads=[1,2] views.global_size=32 views.local_sizes=[16]";
    let compare = |line: &str, runs: [&str; 4]| {
        let line = format!("compare --out c {TINY} {line}");
        place.run_with(&line, &runs.map(OsStr::new)).expect(0)
    };
    let would = compare("--dry-run --json --quiet", ["--run", "one", "--run", other]).json();
    let [one, other] = [0, 1].map(|variant| &would["variants"][variant]["settings"]["knn"]);
    for key in ["crop", "resize", "k", "temperature"] {
        assert_eq!(one[key], other[key], "{key}: {would}");
    }
    assert_eq!((&one["crop"], &one["resize"], &one["k"]), (&32.into(), &32.into(), &10.into()));

    // What is given stays, and is said.
    let ended = compare("train.epochs=1", ["--run", "one", "--run", "other: knn.resize=40"]);
    let line = "images are not prepared alike: `one` with resize 32; `other` with resize 40";
    assert!(ended.stdout.contains(line), "{ended}");
    assert!(place.folder("c").text("compare.md").contains(&format!("\n- {line}\n")));
}

#[test]
fn every_run_sees_the_same_number_of_images() {
    let place = Place::new();
    good(&place, "a", 8);
    good(&place, "b", 13);
    let compare = |length: &str| {
        let settings = TINY.replace("train.epochs=3", length);
        let line = format!("compare --out c {settings} --data a --json --run a");
        place.run_with(&line, &["--run", "b: data.path=b train.batch_size=6"].map(OsStr::new))
    };
    let ended = compare("--time 5s").expect(2);
    ended.says(&[
        "variant `b`: `train.time` is 5s, and the variants have different images",
        "hint: ",
    ]);
    assert!(!place.path("c").exists());
    // Six steps of four images.
    let ended = compare("--epochs 3").expect(0);
    let report = ended.json();
    for (run, steps, data) in [("a-1", 6, "`a` (8 images)"), ("b-1", 4, "`b` (13 images)")] {
        let run = named(&report["runs"], "run", run);
        assert_eq!((&run["steps"], &run["images_seen"]), (&steps.into(), &24.into()), "{ended}");
        assert_eq!(run["data"], data, "{ended}");
        assert!(run["trained"]["knn"].is_null() && run["trained"]["retrieval"].is_f64(), "{ended}");
    }
    assert_eq!(report["judged_on"], "`a`", "{ended}");
    let page = place.folder("c").text("compare.md");
    assert!(page.contains("| b | `b` (13 images) | 24 |"), "{page}");
}

/// Labels of one's own judge all variants, and `auto` chooses once.
#[test]
fn own_images_are_chosen_for_once() {
    let place = Place::new();
    labeled(&place, "set", 6);
    place.write(
        "v.toml",
        "[[variant]]\nname = \"both\"\n[[variant]]\nname = \"view\"\nobjective.region = false\n",
    );
    let line =
        "compare --out c --variants v.toml --data set --steps 8 knn.k=1 train.log_every=4 --json";
    let ended = place.well(line);
    assert_eq!(ended.stderr.matches("recipe `auto`, for 18 images").count(), 1, "{ended}");
    let report = ended.json();
    assert_eq!(report["judged_on"], "`set`, every fifth image set aside", "{ended}");
    assert!(named(&report["rows"], "name", "view")["linear"]["mean"].is_f64(), "{ended}");
    let [both, view] = ["both-0", "view-0"].map(|run| place.settings(&format!("resume c/{run}")));
    let differences = both.differences(&view);
    assert_eq!(differences, ["objective.region.enabled = true (it was false)"]);
    // What was chosen stays, and nothing is timed again.
    assert!(!place.well(line).stderr.contains("recipe `auto`"));
}

#[test]
fn what_would_be_done_is_listed() {
    let place = with_variants(ADDED);
    let would = place.well(&line("--seeds 0,5, --dry-run --json --quiet").replace("seed=1 ", ""));
    assert_eq!(place.files("").len(), 1, "nothing but the variants\n{would}");
    let would = would.json();
    assert_eq!(names(&would["runs"], "run"), ["view-0", "added-0", "view-5", "added-5"], "{would}");
    let added = named(&would["runs"], "run", "added-5");
    // Half of 75 steps, rounded.
    assert_eq!((&added["done"], &added["steps"]), (&38.into(), &75.into()), "{would}");
    assert_eq!(added["images_seen"], 300, "{would}");
    assert!(would["seconds"].is_null(), "{would}");
    let region =
        |variant: usize| &would["variants"][variant]["settings"]["objective"]["region"]["enabled"];
    assert_eq!((region(0), region(1)), (&false.into(), &true.into()), "{would}");

    let timed = place.well(&line("--dry-run"));
    let rows: Vec<&str> = timed.stdout.lines().collect();
    assert!(rows[1].starts_with("view-1") && rows[3].starts_with("total"), "{timed}");
    let timed = place.well(&line("--dry-run --json")).json();
    let [view, added] = [0, 1].map(|run| timed["runs"][run]["seconds"].as_f64().unwrap());
    assert!(view > 0.0 && added > 0.0 && added < view, "{timed}");
    // What is done is not done again.
    place.well(&line("train.epochs=1 --quiet"));
    let would = place.well("compare --resume --out c --dry-run --json").json();
    assert_eq!(would["seconds"], 0.0, "{would}");
}

#[test]
fn settings_that_have_changed_are_refused() {
    let place = with_variants(VARIANTS);
    place.well(&line("train.epochs=1 --seeds 1 --quiet"));
    let before = place.files("");
    let refused = |command: &str, parts: &[&str]| {
        let ended = place.run(command).expect(2);
        ended.says(&["`c` holds a comparison with other settings: "]).says(parts);
    };
    refused(
        &line("train.epochs=1 optim.lr=0.25"),
        &["`view`: optim.lr = 0.25 (it was \"none\"), `both`: optim.lr = 0.25", "hint: `--resume`"],
    );
    refused(&line("train.epochs=2"), &["`view`: train.epochs = 2 (it was 1)"]);
    refused(&line("train.epochs=1 seed=3"), &["seeds = [3] (it was [1])"]);
    place.write("other.toml", VARIANTS.replace("false", "true"));
    let other = line("train.epochs=1").replace("v.toml", "other.toml");
    refused(&other, &["`view`: objective.region = true (it was false)"]);
    place.write("other.toml", format!("{VARIANTS}[[variant]]\nname = \"more\"\n"));
    refused(&other, &["variants = view, both, more (it was view, both)"]);
    fs::remove_file(place.path("other.toml")).unwrap();
    place
        .run("compare --resume --out c optim.lr=1")
        .expect(2)
        .says(&["goes on with the settings that the comparison has"]);
    assert!(place.files("") == before, "nothing was written");

    // A run that was changed by hand is not taken for one of the comparison, measured or not.
    let settings = place.folder("c/view-1").text("config.toml");
    let edited = settings.replace("\nmomentum_teacher = ", "\nmomentum_teacher = 0.5 # ");
    assert_ne!(edited, settings);
    place.write("c/view-1/config.toml", edited);
    for command in ["compare --resume --out c", "compare --resume --out c --dry-run --quiet"] {
        let ended = place.run(command).expect(1).says(&[
            "the run `c/view-1` has other settings than the comparison: objective.momentum_teacher = 0.5 (it was",
            "hint: delete the folder and its line in `c/measured.jsonl`, and the run is trained again",
        ]);
        assert!(ended.stdout.is_empty(), "{ended}");
    }
    place.write("c/view-1/config.toml", settings);
    place.well("resume c/view-1 train.epochs=2");
    place.run("compare --resume --out c").expect(1).says(&["train.epochs = 2 (it was 1)"]);
    fs::remove_file(place.path("c/measured.jsonl")).unwrap();
    place.run("compare --resume --out c").expect(1).says(&[
        "the run `c/view-1` has other settings than the comparison: train.epochs = 2 (it was 1)",
        "hint: delete the folder",
    ]);
    fs::remove_dir_all(place.path("c/view-1")).unwrap();
    place.well("compare --resume --out c");
    assert_eq!(place.folder("c/view-1").steps(), [0, 25]);
}

#[test]
fn seeds_can_be_added() {
    let place = with_variants(VARIANTS);
    place.well(&line("train.epochs=1 --quiet"));
    let before = newest(&place, "c/view-1");
    let report = place.well("compare --resume --out c --seeds 2 --json").json();
    assert_eq!(names(&report["runs"], "run"), ["view-1", "both-1", "view-2", "both-2"], "{report}");
    assert!(newest(&place, "c/view-1") == before);
}

#[test]
fn what_cannot_be_compared_is_told() {
    let place = with_variants(VARIANTS);
    place.write("full/letter.txt", "mine");
    let fails = |code: i32, command: &str, run: &str, parts: &[&str]| {
        let more: Vec<&OsStr> = run.split_terminator('|').map(OsStr::new).collect();
        place.run_with(&format!("{command} {TINY}"), &more).expect(code).says(parts);
    };
    let new = "compare --out new";
    fails(2, new, "", &["there is nothing to compare", "hint: name variants"]);
    fails(
        2,
        new,
        "--run|a: objective.regoin=false",
        &["unknown key `objective.regoin` in variant `a`, did you mean `objective.region`?"],
    );
    fails(2, new, "--run|a: --recipe nothing", &["there is no recipe `nothing`"]);
    fails(2, new, "--run|a: --arch nothing", &["there is no architecture `nothing`"]);
    fails(2, new, "--run|a: --epocs 3", &["variant `a`: unexpected argument '--epocs' found"]);
    fails(2, new, "--run|a: train.steps=3", &["`train.steps` of variant `a` is 3", "hint: "]);
    fails(2, new, "--run|a|--run|a", &["two variants are called `a`"]);
    fails(2, new, "--run|a objective.region=false", &["is no name of a variant", "hint: "]);
    fails(
        2,
        new,
        "--run|a: --continue-from b --continue-at 5%",
        &["variant `a` continues from `b`"],
    );
    fails(2, new, "--run|a|--run|b: --continue-from a", &["does not say after how much"]);
    fails(
        2,
        new,
        "--run|a|--run|b: --continue-from a --continue-at 100%",
        &["variant `b` continues at 100% of `a`, which is step 75: that run has the steps 0 to 75"],
    );
    fails(2, new, "--run|a|--seeds|1,2", &["`seed` is 1, and `--seeds` is a list"]);
    fails(2, new, "--run|a|--seeds|0", &["--seeds", "1 to 1000"]);
    fails(2, new, "--variants|nothing.toml", &["cannot read config `nothing.toml`"]);
    fails(1, new, "--run|a: --data nowhere", &["there is no folder `nowhere`"]);
    fails(1, "compare --out full", "--run|a", &["`full` is not empty and holds no comparison"]);
    assert!(!place.path("new").exists());
    let nothing = ["there is no comparison in `new`", "hint: name the folder"];
    place.run("compare --out new --resume").expect(1).says(&nothing);
    place.run("compare --run a").expect(2).says(&["--out"]);
}

/// What an uninterrupted comparison leaves of each run.
#[cfg(unix)]
fn assert_same_runs(place: &Place, whole: &Place, ended: &Ended) {
    for run in ["c/view-1", "c/added-1"] {
        assert!(newest(place, run) == newest(whole, run), "other bytes in {run}\n{ended}");
        assert_eq!(place.folder(run).losses(), whole.folder(run).losses(), "{run}");
    }
    let rows = |place: &Place| -> Vec<Value> {
        let report: Value = serde_json::from_str(&place.folder("c").text("compare.json")).unwrap();
        ["raw pixels", "untrained", "view", "added"]
            .map(|name| {
                let mut row = named(&report["rows"], "name", name).clone();
                // What a clock and the system say.
                for key in ["training_seconds", "peak_memory_mb", "forward_images_per_s"] {
                    row[key] = Value::Null;
                }
                row
            })
            .into()
    };
    assert_eq!(rows(place), rows(whole));
}

/// A comparison of 400 steps a run, with a checkpoint after every one.
#[cfg(unix)]
const LONG: &str = "train.epochs=16 train.log_every=1 checkpoint.every=1steps";

#[cfg(unix)]
#[test]
fn killed_or_stopped_it_ends_as_if_it_never_was() {
    let whole = with_variants(ADDED);
    whole.well(&line(LONG));

    let place = with_variants(ADDED);
    let [view, added] = ["c/view-1", "c/added-1"].map(|run| place.folder(run));
    // Before the other run can go on from it, after that, and while the other one is trained.
    let start = place.path("c/starts/view-1-step=00000200.safetensors");
    let reached = |steps: Vec<u64>, least: u64| steps.last().is_some_and(|step| *step > least);
    let mut running = place.start(&line(LONG));
    running.wait_until(|| reached(view.steps(), 20));
    assert!(!start.exists());
    running.kill();
    let mut running = place.start(&line(LONG));
    running.wait_until(|| reached(view.steps(), 220));
    assert!(start.is_file());
    running.kill();
    let mut running = place.start("compare --resume --out c");
    running.wait_until(|| reached(added.steps(), 220));
    running.kill();

    // A signal is heard as by a run, and what is left is told.
    let mut running = place.start(&line(LONG));
    running.wait_until(|| reached(added.steps(), 300));
    running.signal(&["TERM"]);
    let ended = running.wait().expect(75);
    let ended = ended.says(&["state saved", "to resume: ", "esvit compare --resume --out c"]);
    assert!(!place.path("c/compare.json").exists() && ended.stdout.is_empty(), "{ended}");
    let ended = place.well("compare --resume --out c");
    let ended = ended.says(&["`view-1` is finished", "going on after step 3"]);
    assert_same_runs(&place, &whole, &ended);
}

/// Every run opens its teacher, those of a seed that is added later too.
#[test]
fn variants_may_learn_from_a_teacher() {
    let place = Place::with_a_run();
    good(&place, "set", 12);
    let line = "compare --out c -d set --arch vit_micro --steps 2 views.global_size=32 train.batch_size=4 \
                train.precision=f32 knn.every=0";
    let runs = ["--run", "cosine: --teacher run", "--run", "mse: --teacher run objective.loss=mse"];
    let ended = place.run_with(line, &runs.map(OsStr::new)).expect(0);
    ended.says(&["run 2 of 2: `mse-0`", "the teacher is `run/checkpoints/"]);
    let ended = place.well("compare --resume --out c --seeds 2");
    ended.says(&["`mse-0` is finished", "run 4 of 4: `mse-1`", "the teacher is `run/checkpoints/"]);
    let teachers = ["cosine-0", "cosine-1", "mse-0", "mse-1"]
        .map(|run| metadata(&place.folder(&format!("c/{run}")).newest())["teacher"].clone());
    assert!(teachers[0]["tensors"].is_string());
    assert!(teachers.iter().all(|teacher| *teacher == teachers[0]), "{teachers:?}");
}
