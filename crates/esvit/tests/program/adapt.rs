//! Going on from a network on other images.

use esvit_train::span::Span;

use crate::images::{good, labeled};
use crate::place::{Place, metadata, tensors};

fn place() -> Place {
    let place = Place::with_a_run();
    good(&place, "set", 20);
    place
}

const ADAPT: &str = "pretrain --recipe adapt --init-from run -d set checkpoint.keep_last=20 \
    train.precision=f32";

#[test]
fn heads_learn_first_and_then_all() {
    let place = place();
    let ended = place.well(&format!("{ADAPT} --out next --steps 20"));
    ended.says(&[
        "the network is that of `run/checkpoints/",
        "recipe `adapt`, for 20 images of about ",
        "batch       2 images a step",
        "`head`, `head_dense` start anew",
        "step 0  the other crop of an image is found in",
        "step 20/20",
    ]);
    let config = place.settings("resume next");
    assert_eq!((config.optim.layer_decay, config.objective.name()), (0.75, "esvit"));
    assert_eq!(config.optim.freeze_backbone, Span::Percent(10.0));
    assert_eq!(config.model.backbone.stages()[0].width, 16, "that of the file");
    // A fifth of the rate from nothing.
    let rate = config.optim.lr * config.train.batch_size as f64 / 256.0;
    assert!((rate - 1.5e-4 * (2.0f64 / 16.0).sqrt()).abs() < 1e-9, "{rate}");

    let next = place.folder("next");
    // The rate of the first step of a warm-up is 0, two steps are a tenth of the run.
    let [start, frozen, free] = [0, 2, 4].map(|step| tensors(&next.checkpoint(step)));
    let original = tensors(&place.folder("run").newest());
    let of_backbone = |name: &str| {
        let name = name.split_once('.').map_or("", |(_, name)| name);
        ["patch_embed", "layers", "norm"].iter().any(|part| name.starts_with(part))
    };
    let (mut backbone, mut heads) = (0, 0);
    for (name, values) in &start {
        if name.starts_with("optimizer.") || name.starts_with("center") {
            continue;
        }
        if of_backbone(name) {
            backbone += 1;
            assert!(frozen[name] == *values, "{name}");
            let (_, own) = name.split_once('.').unwrap();
            let from = ["student", "teacher"].map(|network| &original[&format!("{network}.{own}")]);
            assert!(from.contains(&values), "{name}");
        } else if name.starts_with("student.") && !name.ends_with("weight_g") {
            heads += usize::from(frozen[name] != *values);
        }
    }
    assert!(backbone > 0 && heads > 0);
    let moved = start.iter().filter(|(name, values)| of_backbone(name) && free[*name] != **values);
    assert!(moved.count() > 0);
}

#[test]
fn an_original_that_stays_the_best_is_kept_and_said_to_be() {
    let place = place();
    // One network, so that a teacher that follows a student that stays is where it was.
    place.well("export -c run --format timm --out exported");
    let line = ADAPT.replace("--init-from run", "--init-from exported");
    let line = format!("{line} --out next --steps 10 optim.lr=0.0 optim.min_lr=0.0");
    let ended = place.well(&format!("{line} --json"));
    let ended = ended.says(&[
        "no network of this run was better on these images than the one that it began with",
        "which is kept as `best.safetensors`",
        "hint: use it as it is",
    ]);
    assert_eq!(ended.json()["best"]["step"], 0, "{ended}");
    let next = place.folder("next");
    let best = next.file("checkpoints/best.safetensors");
    let about = metadata(&best);
    assert_eq!((&about["best"]["step"], &about["step"]), (&0.into(), &0.into()));
    assert_eq!(about["from_weights"], true);
    assert!(std::fs::read(&best).unwrap() == std::fs::read(next.checkpoint(0)).unwrap());
    let again = place.well("resume next");
    again.says(&["nothing to do"]);
    let report = place.well("report next");
    report.says(&["no network of this run was better on these images", "hint: use it as it is"]);
    let page = next.text("report.html");
    assert!(page.contains("which is kept as <code>best.safetensors</code>"));
}

#[test]
fn what_a_run_began_with_is_in_its_table() {
    let place = place();
    labeled(&place, "classes", 6);
    let line = ADAPT.replace("-d set", "-d classes");
    let ended = place.well(&format!("{line} --out next --steps 4"));
    let lines = place.folder("next").lines("metrics.jsonl");
    let first = lines.iter().find(|line| line["step"] == 0 && line["knn_top1"].is_f64()).unwrap();
    let [top1, top5] = ["knn_top1", "knn_top5"].map(|key| first[key].as_f64().unwrap());
    let row = |name: &str| {
        let place = ended.stdout.lines().position(|line| line.starts_with(name));
        place.unwrap_or_else(|| panic!("no {name}\n{ended}"))
    };
    let places = ["untrained", "at the start", "trained"].map(row);
    assert_eq!(places[1..], [places[0] + 1, places[0] + 2]);
    let shown = ended.stdout.lines().nth(places[1]).unwrap();
    assert!(shown.ends_with(&format!(" {top1:.1} / {top5:.1}")), "{ended}");
}

#[test]
fn weights_are_asked_for() {
    let place = place();
    let ended = place.run("pretrain --recipe adapt -d set --out next").expect(2);
    ended.says(&["recipe `adapt` goes on from a network", "--init-from PATH"]);
    assert!(!place.path("next").exists());
}
