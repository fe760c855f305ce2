//! What commands print with `--json`: one document, and nothing else on stdout.

use crate::images::good;
use crate::place::{Place, TINY};

#[test]
fn what_came_of_a_run() {
    let place = Place::new();
    let done = place
        .well(&format!("pretrain --out run {TINY} train.epochs=2 knn.every=1 --threads 1 --json"));
    let result = done.json();
    assert_eq!((&result["run"], &result["end"]), (&"run".into(), &"finished".into()), "{done}");
    assert_eq!((&result["steps"], &result["left_out"]), (&50.into(), &0.into()), "{done}");
    assert!(place.path(result["checkpoint"].as_str().unwrap()).is_file(), "{done}");
    let [before, after] = [0, 1].map(|i| result["retrieval"][i]["step"].as_u64());
    assert_eq!((before, after), (Some(0), Some(50)), "{done}");
    let knn = &result["knn"]["results"];
    assert_eq!(knn[2]["features"], "trained", "{done}");
    assert!(knn[2]["accuracies"][0]["top1"].is_number(), "{done}");

    let environment = place.folder("run").text("env.json");
    assert!(environment.contains("\"threads\": 1"), "{environment}");

    let result = place.well("resume run --json").json();
    assert_eq!(result["end"], "nothing to do", "{result}");
    let resumed = place.well("resume run train.epochs=3 --json");
    let result = resumed.json();
    resumed.says(&["\n25 steps in "]);
    assert_eq!((&result["end"], &result["steps"]), (&"finished".into(), &75.into()), "{result}");
}

#[test]
fn what_a_run_would_do() {
    let place = Place::new();
    let would = place.well(&format!("pretrain --out run {TINY} --dry-run --json"));
    assert!(!place.path("run").exists());
    let would = would.json();
    let plan = &would["plan"];
    assert_eq!((&would["run"], &plan["steps"]), (&"run".into(), &75.into()), "{would}");
    assert_eq!((&plan["batch_size"], &plan["images"]), (&4.into(), &101.into()), "{would}");
    let [seconds, per_step, memory] =
        ["seconds", "seconds_per_step", "memory_bytes"].map(|key| plan[key].as_f64().unwrap());
    assert!(per_step > 0.0 && seconds > 49.0 * per_step && memory > 1e6, "{would}");
    assert_eq!(would["settings"]["objective"]["head"]["out_dim"], 32, "{would}");
    assert!(plan["free_disk_bytes"].as_f64().unwrap() > 1e6 && would["first_step"] == 0, "{would}");
    let split = "objective.head.use_bn_in_head=true train.micro_batch=2";
    let line = format!("pretrain --out run {TINY} --dry-run --json --threads 3 {split}");
    let would = place.well(&line);
    assert_eq!(would.json()["plan"]["threads"], 3);
    would.says(&["batch normalization has the statistics of 2 images at a time, of the 4"]);
    let line = format!("pretrain --out run {TINY} --dry-run --json --threads 3");
    assert_eq!(place.well(&line).json()["plan"]["threads"], 3);
    // Three checks and one before the first step.
    let checked = place.well(&format!("pretrain --out run {TINY} knn.every=1 --dry-run --json"));
    let plan = &checked.json()["plan"];
    let [seconds, per_step, per_check] =
        ["seconds", "seconds_per_step", "seconds_per_check"].map(|key| plan[key].as_f64().unwrap());
    assert!(plan["checks"] == 3 && per_check > 0.0, "{plan}");
    assert!(seconds > 49.0 * per_step + 3.0 * per_check, "{plan}");
    checked.says(&["timing a step and the checks", "time: about ", "75 steps of ", "3 checks of "]);
    // Without a plan nothing is timed.
    let would = place.well(&format!("pretrain --out run {TINY} --dry-run --json --quiet")).json();
    assert!(would["plan"].is_null() && would["settings"].is_object(), "{would}");
}

#[test]
fn what_was_written() {
    let place = Place::with_a_run();
    good(&place, "set", 3);
    let json = place.well("embed -c run --data set --out f.npy --json").json();
    assert_eq!((&json["out"], &json["names"]), (&"f.npy".into(), &"f.txt".into()), "{json}");
    assert_eq!((&json["images"], &json["features"]), (&3.into(), &3.into()), "{json}");
    let json = place.well("export -c run --format timm --out timm --json").json();
    assert_eq!(json["format"], "timm", "{json}");
    for file in json["files"].as_array().unwrap() {
        assert!(place.path(file.as_str().unwrap()).is_file(), "{json}");
    }
    let json = place.well("export -c run --format esvit --full --out full.pth --json").json();
    assert_eq!(json["files"], serde_json::json!(["full.pth"]), "{json}");
    let json = place.well("report run --json").json();
    assert!(place.path(json["out"].as_str().unwrap()).is_file(), "{json}");
    let json = place.well("data preview --recipe materials --images 2 --json").json();
    assert_eq!((&json["out"], &json["images"]), (&"preview.png".into(), &2.into()), "{json}");
}

#[test]
fn memory_is_limited_in_resumed_runs_too() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=1"));
    let ended = place.well("resume run train.epochs=2 --memory 2G --dry-run --json");
    assert_eq!(ended.json()["settings"]["train"]["micro_batch"], 4, "{ended}");
    assert_eq!(ended.json()["first_step"], 25, "{ended}");
    ended.says(&["within 2.0 GB: micro-batches of 4", "the run goes on after step 25"]);
    place.run("resume run train.epochs=2 --memory 64M").expect(1).says(&["64 MB were given"]);
    place.run("resume run --recipe auto").expect(2).says(&["--recipe"]);
}
