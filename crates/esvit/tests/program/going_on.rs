//! Runs that go on under other circumstances: in use, cut off, with other settings or images.

use std::fs;

use crate::images::{good, textured};
use crate::place::{Place, TINY, metadata};

/// Two processes never write one folder, whatever they were told.
#[test]
fn a_run_in_use_is_left_alone() {
    let place = Place::new();
    let run = place.folder("run");
    let mut running = place.start(&format!("pretrain --out run {TINY} train.epochs=400"));
    running.wait_until(|| run.steps() == [0]);
    let in_use = "`run` is in use: process ";
    place.run("resume run").expect(1).says(&[in_use, "hint: wait until that run has ended"]);
    place.run(&format!("pretrain --out run --overwrite {TINY}")).expect(1).says(&[in_use]);
    assert!(run.file("config.toml").is_file(), "nothing was deleted");
    #[cfg(unix)]
    {
        running.signal(&["TERM"]);
        running.wait().expect(75).says(&["state saved"]);
        place.well("resume run train.epochs=1");
    }
}

#[test]
fn checkpoints_that_are_gone_are_not_replaced_by_a_new_start() {
    let place = Place::with_a_run();
    let checkpoints = place.path("run/checkpoints");
    fs::rename(&checkpoints, place.path("elsewhere")).unwrap();
    let metrics = fs::read(place.path("run/metrics.jsonl")).unwrap();
    place.run("resume run train.epochs=2").expect(1).says(&[
        "`run` has metrics up to step 25 and no checkpoint",
        "hint: bring its checkpoints back, or start again with `--overwrite`",
    ]);
    assert_eq!(fs::read(place.path("run/metrics.jsonl")).unwrap(), metrics);
    fs::remove_dir(&checkpoints).unwrap();
    fs::rename(place.path("elsewhere"), &checkpoints).unwrap();
    place.well("resume run train.epochs=2").says(&["going on after step 25"]);
}

/// What a run was begun with stands in its checkpoints, too: a settings file that was cut off or edited
/// changes what it says, and that is said.
#[test]
fn settings_that_are_gone_come_from_the_checkpoint() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=1 optim.lr=0.5"));
    let text = place.folder("run").text("config.toml");
    let cut = &text[..text.find("[optim]").unwrap()];
    place.write("run/config.toml", cut.replace("seed = 1", "seed = 5"));
    place
        .well("resume run train.epochs=2")
        .says(&["settings other than before: seed = 5 (it was 1), train.epochs = 2 (it was 1)"]);
    let stored = place.settings("resume run");
    assert_eq!((stored.optim.lr, stored.seed), (0.5, 5));
    // A run that is done is not one with other settings.
    place.well("resume run optim.lr=0.25").says(&["nothing to do: all 50 steps"]);
    assert_eq!(place.settings("resume run").optim.lr, 0.5);
    let environment: serde_json::Value =
        serde_json::from_str(&place.folder("run").text("env.json")).unwrap();
    let words = |command: &serde_json::Value| command.as_array().unwrap()[1].clone();
    assert_eq!(words(&environment["command"]), "pretrain");
    assert_eq!(environment["resumed"].as_array().unwrap().len(), 1);
    assert_eq!(words(&environment["resumed"][0]["command"]), "resume");
}

/// A run that goes on elsewhere has all settings of the first but those that are given.
#[test]
fn a_continued_run_takes_its_settings_along() {
    let place = Place::new();
    place.well(&format!("pretrain --out a {TINY} train.epochs=1 optim.lr=0.0123 views.flip=0"));
    place.well("pretrain --out b --continue-from a train.epochs=2").says(&["the state of"]);
    let [first, second] = ["a", "b"].map(|run| place.settings(&format!("resume {run}")));
    assert_eq!((first.train.epochs, second.train.epochs), (Some(1), Some(2)));
    let mut expected = first;
    expected.train.epochs = Some(2);
    assert_eq!(second, expected);
    assert_eq!((second.optim.lr, second.views.flip, second.seed), (0.0123, 0.0, 1));
}

/// 25 steps of 4 images an epoch become 50 of 2, or 12 of 8: the run's place in the images stays, and
/// so do the lines of its log.
#[test]
fn another_batch_keeps_the_place_in_the_images() {
    for (batch, steps_per_epoch) in [(2, 50), (8, 12)] {
        let place = Place::new();
        let run = place.folder("run");
        place.well(&format!("pretrain --out run {TINY} train.epochs=2 train.log_every=5"));
        let before = run.losses();
        let done = 2 * steps_per_epoch;
        place.well(&format!("resume run train.batch_size={batch} train.epochs=3")).says(&[&format!(
            "an epoch has {steps_per_epoch} steps instead of 25: what was step 50 is now step {done}"
        )]);
        let total = 3 * steps_per_epoch;
        assert_eq!(run.steps().last(), Some(&total));
        assert!(run.steps().iter().all(|&step| step >= done), "{:?}", run.steps());
        let after = run.losses();
        let old: Vec<f64> = after.iter().filter(|(step, _)| *step <= done).map(|l| l.1).collect();
        assert_eq!(old, before.iter().map(|line| line.1).collect::<Vec<_>>());
        assert!(after.windows(2).all(|pair| pair[0].0 < pair[1].0), "{after:?}");
        assert_eq!(metadata(&run.newest())["images"]["steps_per_epoch"], steps_per_epoch);
    }
}

/// A run is not deleted for one that is made from it, whatever it is called.
#[test]
fn what_a_run_needs_is_not_overwritten() {
    let place = Place::with_a_run();
    good(&place, "set", 4);
    let newest = "run/checkpoints/epoch=0001-step=00000025.safetensors";
    let begins = format!("pretrain {TINY} --init-from");
    let mut lines = vec![
        format!("{begins} run --out run"),
        format!("{begins} {newest} --out run/../run"),
        format!("{begins} {newest} --out run --dry-run --quiet"),
        "pretrain --continue-from run train.epochs=2 --out run".into(),
        format!("pretrain --continue-from ./{newest} train.epochs=2 --out run"),
        "pretrain -d set --arch vit_micro views.global_size=32 --steps 2 --teacher run --out run"
            .into(),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("run", place.path("link")).unwrap();
        std::os::unix::fs::symlink(newest, place.path("link.safetensors")).unwrap();
        lines.extend([
            format!("{begins} link.safetensors --out run"),
            format!("{begins} run --out link"),
        ]);
    }
    let before = place.files("");
    for line in &lines {
        place.run(&format!("{line} --overwrite")).expect(1).says(&[
            "is to be overwritten by a run that needs `",
            "so nothing is written or deleted there",
            "hint: choose another folder with `--out`",
        ]);
        assert!(place.files("") == before, "{line}");
    }
    // Weights that are elsewhere stay when the folder goes.
    fs::copy(place.path(newest), place.path("copy.safetensors")).unwrap();
    let line = format!("{begins} copy.safetensors --out run --overwrite train.epochs=1");
    place.well(&line).says(&["weights of `backbone`", "step 25/25"]);
}

/// The settings say what does not fit, and a new run takes over the rest.
#[test]
fn a_checkpoint_that_does_not_fit_is_told_from_a_broken_one() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=1"));
    place.well("resume run train.epochs=2 objective.region=false").says(&["step 50/50"]);
    let before = place.files("");
    let ended = place.run("resume run train.epochs=3 objective.region=true").expect(1);
    assert!(!ended.stderr.contains("broken"), "{ended}");
    ended.says(&[
        "step=00000050.safetensors` does not fit the run as it is now: objective.region.enabled = \
         true (it was false), train.epochs = 3 (it was 2)",
        "head_dense",
        "hint: go on with what the run had before, or begin a new run",
    ]);
    let other = "pretrain --resume --out run --objective byol train.epochs=3";
    let ended = place.run(other).expect(1).says(&["objective.name = ", "... and "]);
    assert!(ended.stderr.lines().count() < 18, "{ended}");
    assert!(place.files("") == before);
    place
        .well("pretrain --out both --continue-from run train.epochs=3 objective.region=true")
        .says(&["`head_dense` start anew", "step 75/75"]);
    place
        .well("pretrain --out byol --continue-from run train.epochs=3 --objective byol")
        .says(&["`projector`, `predictor` start anew", "step 75/75"]);
}

/// The head of masked patches is none of the backbone's, also where its run goes on with another objective.
#[test]
fn masked_patches_leave_a_backbone() {
    let place = Place::new();
    good(&place, "set", 8);
    let own = TINY.split_whitespace().filter(|word| !word.starts_with("objective."));
    let line = own.collect::<Vec<_>>().join(" ");
    place.well(&format!("pretrain --out run {line} --objective masked_patch train.epochs=1"));
    place.well("embed --checkpoint run --data set --out f.npy");
    place
        .well("pretrain --out next --continue-from run train.epochs=2 --objective byol")
        .says(&["`projector`, `predictor` start anew", "step 50/50"]);
}

/// Where other settings leave no step to do, the run stays the one that it is.
#[test]
fn without_a_step_to_do_no_file_is_touched() {
    let place = Place::new();
    let settings = TINY.replace("train.epochs=3", "train.steps=20");
    place.well(&format!("pretrain --out run {settings} train.log_every=5"));
    let before = place.files("");
    for setting in ["train.batch_size=2", "train.batch_size=8", "train.steps=10"] {
        let ended = place.well(&format!("resume run {setting} --json"));
        let result = ended.json();
        assert_eq!(result["end"], "nothing to do", "{ended}");
        assert!(place.path(result["checkpoint"].as_str().unwrap()).is_file(), "{ended}");
        assert!(place.files("") == before, "{setting}: {:?}", place.folder("run").names());
    }
    place.well("resume run train.steps=30");
    let steps: Vec<u64> = place.folder("run").losses().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [5, 10, 15, 20, 25, 30]);
}

#[test]
fn images_that_have_changed_are_told() {
    let place = Place::new();
    good(&place, "photos", 8);
    let line = format!("pretrain --data photos --out run {TINY} train.epochs=1");
    place.well(&line);
    let quiet = place.well("resume run train.epochs=2");
    assert!(!quiet.stderr.contains("the images are not those"), "{quiet}");
    place.write(
        "photos/good-01.png",
        crate::images::encoded(textured(9, 9, 1), image::ImageFormat::Png),
    );
    place.well("resume run train.epochs=3").says(&[
        "the images are not those of the run before: files of the same names have other contents",
    ]);
    fs::rename(place.path("photos/good-02.webp"), place.path("photos/other.webp")).unwrap();
    place.well("resume run train.epochs=4").says(&["images or classes have other names"]);
    good(&place, "photos", 12);
    place
        .well("resume run train.epochs=5")
        .says(&["13 images instead of 8", "an epoch has 3 steps instead of 2"]);
}

/// Values that are no numbers are damage as a cut file is: the checkpoint before is used.
#[test]
fn a_checkpoint_of_values_that_are_no_numbers_is_passed_over() {
    for tensor in ["student.patch_embed.proj.bias", "center", "optimizer.exp_avg.norm.weight"] {
        let place = Place::new();
        let run = place.folder("run");
        place.well(&format!("pretrain --out run {TINY} train.epochs=2"));
        let newest = run.newest();
        let mut bytes = fs::read(&newest).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let offsets = &value[tensor]["data_offsets"];
        let start = 8 + header + offsets[0].as_u64().unwrap() as usize;
        bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&newest, bytes).unwrap();
        place
            .well("resume run train.epochs=3")
            .says(&["passing over a broken checkpoint", "going on after step 25"]);
        assert_eq!(run.steps().last(), Some(&75), "{tensor}");
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_passed_over() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=2"));
    let path = |name: &str| place.path(&format!("run/checkpoints/{name}.safetensors"));
    fs::copy(path("epoch=0001-step=00000025"), path("epoch=0040-step=00001000")).unwrap();
    place.well("resume run train.epochs=3").says(&[
        "its name says step 1000, and it says step 25",
        "going on after step 50",
        "step 75/75",
    ]);
}

/// A script may always say `--resume`; a folder whose name is mistyped is no reason to learn from the built-in images
/// without a word.
#[test]
fn a_run_that_is_not_there_begins_anew_and_says_so() {
    let place = Place::new();
    good(&place, "set", 6);
    let new = "there is no run in `rnu` to resume: a new one begins";
    let built_in = format!("warning: {new}, on the built-in images");
    place.well("pretrain --resume --out rnu --dry-run --quiet").says(&[&built_in, "hint: name"]);
    let own = place.well(&format!("pretrain --resume --out rnu {TINY} --data set --dry-run"));
    assert!(!own.stderr.contains("built-in"), "{own}");
    own.says(&[&format!("{new}, on the images in `set`")]);
    // Who names the recipe for the built-in images means them.
    let meant = place.well(&format!("pretrain --resume --out rnu {TINY} train.epochs=1"));
    assert!(!meant.stderr.contains("warning: there is no run"), "{meant}");
    meant.says(&[&format!("{new}, on the built-in images"), "101 built-in images"]);
    let resumed = place.well(&format!("pretrain --resume --out rnu {TINY} train.epochs=2"));
    assert!(!resumed.stderr.contains("a new one begins"), "{resumed}");
}
