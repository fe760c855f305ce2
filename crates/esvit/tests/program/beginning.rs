//! Runs from nothing, on few images and on many.

use std::path::Path;

use esvit_train::Config;
use esvit_train::config_text::Origin;

use crate::images::labeled;
use crate::place::{Place, TINY, metadata};

/// Weights and states that do not fit are told of before anything is timed, by a dry run, too.
#[test]
fn what_does_not_fit_is_not_waited_for() {
    let place = Place::with_a_run();
    let wider = format!("pretrain --out new {TINY} model.embed_dim=32");
    for from in ["--init-from run", "--continue-from run"] {
        for more in ["", " --dry-run"] {
            let ended = place.run(&format!("{wider} {from}{more}")).expect(1);
            let ended = ended.says(&[
                "cannot start from `",
                "patch_embed.proj.weight` is [16, 3, 4, 4], the network has [32, 3, 4, 4]",
            ]);
            assert!(!ended.stderr.contains("timing"), "{ended}");
        }
    }
    assert!(!place.path("new").exists());
}

#[test]
fn a_run_from_nothing_leaves_a_whole_folder() {
    let place = Place::new();
    let line = format!(
        "pretrain --out runs/first {TINY} train.log_every=5 checkpoint.every=7steps \
         checkpoint.keep_last=2 knn.every=1"
    );
    let ended = place.well(&line).says(&[
        "run folder `runs/first`",
        "timing a step and the checks on some of the images",
        "time: about ",
        "as measured: 75 steps of ",
        ", 3 checks of ",
        "memory: about ",
        "disk: 3 checkpoints and the best one, ",
        "101 images, 75 steps of 4 images, 25 steps an epoch",
        "step 75/75",
        "saved in `runs/first/eval/results.jsonl`",
        "esvit report runs/first",
        "esvit eval linear --checkpoint runs/first",
    ]);
    for row in ["raw pixels", "untrained", "trained"] {
        assert!(ended.stdout.contains(row), "{ended}");
    }
    assert!(!ended.stderr.contains("few images"), "they are the built-in ones\n{ended}");

    let run = place.folder("runs/first");
    let names = run.names();
    let (events, others): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| name.starts_with("events.out.tfevents."));
    assert_eq!(events.len(), 1, "{names:?}");
    let expected =
        ["checkpoints", "config.toml", "env.json", "eval", "log.txt", "metrics.jsonl", "train.log"];
    assert_eq!(others, expected.iter().collect::<Vec<_>>());
    assert_eq!(run.lines("eval/results.jsonl")[0]["evaluation"], "knn");
    let checkpoints = [
        "best.safetensors",
        "epoch=0002-step=00000070.safetensors",
        "epoch=0003-step=00000075.safetensors",
    ];
    assert_eq!(run.checkpoint_names(), checkpoints);

    let steps: Vec<u64> = run.losses().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=15).map(|n| n * 5).collect::<Vec<_>>());
    assert!(run.losses().iter().all(|(_, loss)| loss.is_finite() && *loss > 0.0));
    let metrics = run.lines("metrics.jsonl");
    let steps: Vec<_> = metrics.iter().filter(|line| line["train_loss"].is_f64()).collect();
    // The teacher of 32 prototypes has not collapsed; its center has moved from 0.
    for (key, low, high) in [
        ("lr", 0.0, 12e-3),
        ("img_per_s", 0.0, f64::INFINITY),
        ("data_wait", -1e-9, 1.0),
        ("teacher_entropy", 0.1, 32f64.ln()),
        ("center_norm", 0.0, 10.0),
        ("feature_std", 0.01, 1.0),
    ] {
        let value = steps[0][key].as_f64().unwrap_or_else(|| panic!("{key}: {}", steps[0]));
        assert!(value > low && value < high, "{key}: {}", steps[0]);
    }
    let checks: Vec<f64> = metrics.iter().filter_map(|line| line["knn_top1"].as_f64()).collect();
    assert_eq!(checks.len(), 3);
    let best = metadata(&run.file("checkpoints/best.safetensors"));
    assert_eq!(best["best"]["top1"].as_f64(), checks.iter().copied().reduce(f64::max));
    assert_eq!(best["best"]["epoch"], best["epoch"]);

    let epochs = run.lines("log.txt");
    assert_eq!(
        epochs.iter().filter_map(|line| line["epoch"].as_u64()).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    let text = run.text("config.toml");
    let config = Config::parse(&text, Origin::File(Path::new("config.toml").into())).unwrap();
    assert_eq!((config.seed, config.train.epochs, config.checkpoint.keep_last), (1, Some(3), 2));
    assert_eq!(metadata(&run.newest())["config"], text.as_str());
    assert!(run.text("train.log").contains("L_V + L_R"));
    let environment: serde_json::Value = serde_json::from_str(&run.text("env.json")).unwrap();
    assert!(environment["command"].as_array().is_some_and(|words| words.len() > 10));
}

#[test]
fn a_labeled_folder_is_checked_with_the_val_folder_beside_it() {
    let place = Place::new();
    labeled(&place, "set/train", 6);
    labeled(&place, "set/val", 2);
    place
        .well(&format!("pretrain --data set/train --out run {TINY} knn.every=3 knn.k=3"))
        .says(&["18 images in `set/train`", "k-NN check on `set/train` and `set/val`"])
        .says(&["few images (18)", "a short run (12 steps)"])
        .says(&["k-NN top-1", "esvit embed --checkpoint run --data set/train"]);
    let metrics = place.folder("run").lines("metrics.jsonl");
    assert_eq!(metrics.iter().filter(|line| line["knn_top1"].is_number()).count(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_hundred_thousand_files_are_not_read_before_the_first_step() {
    let place = Place::new();
    crate::images::good(&place, "few", 50);
    let few: Vec<_> = place.files("").into_iter().collect();
    std::fs::create_dir(place.path("many")).unwrap();
    let mut bytes = 0;
    for number in 0..100_000 {
        let (image, content) = &few[number % few.len()];
        let extension = image.extension().unwrap().to_str().unwrap();
        let name = format!("many/{number:06}.{extension}");
        std::fs::hard_link(image, place.path(&name)).unwrap();
        bytes += content.len() as u64;
    }
    let line = format!("pretrain --data many --out run {TINY} train.epochs=1 train.log_every=1");
    let mut running = place.start(&line);
    let run = place.folder("run");
    running.wait_until(|| run.losses_so_far() > 0);
    let read = running.bytes_read();
    running.signal(&["INT"]);
    running.wait().expect(75).says(&["100000 images in `many`"]);
    // Of 500 MB what a few steps take, and what the process reads of itself.
    assert!(read < bytes / 20, "{read} of {bytes} bytes were read");
}
