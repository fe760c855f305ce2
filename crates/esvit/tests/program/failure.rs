//! Runs that go wrong by themselves.

use crate::images::good;
use crate::place::{Ended, Place, TINY, metadata, tensors};

/// A file system of its own size; unmounted when this is dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount(path: std::path::PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        assert!(mount(&["-t", "tmpfs", "-o", options, "tmpfs"], &path), "cannot mount {path:?}");
        Self(path)
    }
}

#[cfg(target_os = "linux")]
fn mount(options: &[&str], path: &std::path::Path) -> bool {
    let output = std::process::Command::new("mount").args(options).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs the right to mount a file system; `.ci/run` runs it where it has it"]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let place = Place::new();
    let disk = SmallDisk::mount(place.path("disk"), "size=800k");
    // The first checkpoint has 200 kB, those with an optimizer's moments 370 kB.
    let line = format!("pretrain --out disk/run {TINY} checkpoint.every=10steps");
    let ended = place.run(&line).expect(1).says(&[
        // Four at a time, before the first step.
        "warning: the checkpoints take up to 1.",
        " MB, and `disk/run` has room for",
        "the disk is full: `disk/run/checkpoints/epoch=0000-step=00000020.safetensors` needs ",
        "has room for",
        "resume disk/run` goes on after step 10",
    ]);
    // The whole of it, and not what was written of it.
    let need = ended.stderr.split_once("safetensors` needs ").unwrap().1;
    let need: f64 = need.split_once(" kB").unwrap().0.parse().unwrap();
    let length = std::fs::metadata(place.folder("disk/run").checkpoint(10)).unwrap().len() as f64;
    assert!((need * 1e3 / length - 1.0).abs() < 0.01, "{need} kB of {length}");
    assert_eq!(ended.stderr.matches("error:").count(), 1, "{ended}");
    let run = place.folder("disk/run");
    assert_eq!(run.steps(), [0, 10], "{ended}");
    assert_eq!(run.checkpoint_names().len(), 2, "{:?}", run.checkpoint_names());
    place.well("info disk/run/checkpoints/epoch=0000-step=00000010.safetensors");
    assert!(mount(&["-o", "remount,size=16m"], &disk.0));
    place.well("resume disk/run").says(&["going on after step 10"]);
    assert_eq!(run.steps().last(), Some(&75));
}

/// It is no fault of one of its runs: all others would meet it, too.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs the right to mount a file system; `.ci/run` runs it where it has it"]
fn a_full_disk_ends_a_comparison_until_there_is_room() {
    let place = Place::new();
    let disk = SmallDisk::mount(place.path("disk"), "size=800k");
    let line = format!("compare --out disk/c {TINY} checkpoint.every=10steps --run a --run b");
    let ended = place.run(&line).expect(1).says(&[
        "the disk is full: `disk/c/a-1/checkpoints/epoch=0000-step=00000020.safetensors`",
        "hint: with room on the disk, `",
        "compare --resume --out disk/c` goes on",
    ]);
    assert!(!ended.stderr.contains("failed:") && !ended.stderr.contains("run 2 of 2"), "{ended}");
    assert!(mount(&["-o", "remount,size=16m"], &disk.0));
    let ended = place.well("compare --resume --out disk/c");
    let ended = ended.says(&["going on after step 10", "run 2 of 2: `b-1`"]);
    assert!(!ended.stderr.contains("failed"), "{ended}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_leaves_what_led_to_it() {
    let place = Place::new();
    let line = format!("pretrain --out run {TINY} optim.lr=1e30 optim.warmup=0");
    let message = [
        "step 1: the loss is",
        "nothing was updated",
        "`run/failures`",
        "the last good checkpoint is `run/checkpoints/epoch=0000-step=00000000.safetensors`",
    ];
    let ended = place.run(&line).expect(1).says(&message);
    let run = place.folder("run");
    assert!(run.text("train.log").contains("error: step 1: the loss is"), "{ended}");
    let inputs = tensors(&run.file("failures/step=00000001-inputs.safetensors"));
    let shapes: Vec<(&str, usize)> =
        inputs.iter().map(|(name, values)| (name.as_str(), values.len())).collect();
    let [global, local] = [32, 16].map(|size| 4 * 3 * size * size);
    let expected =
        [("batch.0.view.0", global), ("batch.0.view.1", global), ("batch.0.view.2", local)];
    assert_eq!(shapes, expected);
    let state = run.file("failures/step=00000001-state.safetensors");
    assert_eq!(metadata(&state)["step"], 1);
    assert!(tensors(&state).contains_key("optimizer.exp_avg.norm.weight"));

    assert_eq!(run.steps(), [0]);
    // The report says the same as the run, and nothing that would fail again.
    let ended = place.well("report run").says(&[
        "the run ended with an error, after 0 of 3 epochs: step 1: the loss is",
        "hint: lower `optim.lr`",
    ]);
    assert!(!ended.stderr.contains("step 2") && !ended.stderr.contains("esvit resume"), "{ended}");
    let good = run.newest();
    let good = good.strip_prefix(place.path("")).unwrap().display();
    place.well(&format!("pretrain --out again {TINY} train.epochs=1 --init-from {good}"));
    place.well(&format!("pretrain --out run {TINY} train.epochs=1 --overwrite"));
    assert!(!run.file("failures").exists());
}

/// The run says within 200 steps that the teacher has collapsed.
fn collapses(settings: &str, finding: &str) -> (Place, Ended) {
    let place = Place::new();
    let line = format!(
        "pretrain --out run {TINY} train.epochs=8 train.log_every=1 optim.momentum_teacher=0.0 \
         objective.center_momentum=1.0 {settings}"
    );
    let ended = place.well(&line).says(&["warning: step", finding, "hint:"]);
    let log = place.folder("run").text("train.log");
    assert!(log.contains(finding), "{ended}\n-- train.log\n{log}");
    (place, ended)
}

#[test]
fn a_collapsed_teacher_is_told_of() {
    let same = "the teacher has collapsed: it gives the same answer";
    let (place, ended) = collapses("optim.lr=0.5", same);
    // The command in the hint draws the crops of the run, as it stands.
    let (_, command) = ended.stderr.split_once("see with `esvit ").unwrap();
    let (command, _) = command.split_once('`').unwrap();
    place.well(command).says(&["8 images, 3 crops each"]);
    collapses(
        "optim.lr=0.1 objective.teacher_temp=1.0 objective.warmup_teacher_temp=1.0",
        "the teacher has collapsed: it spreads its answer over all prototypes alike",
    );
}

#[test]
fn a_run_that_has_not_learned_names_what_draws_its_crops() {
    let place = Place::new();
    good(&place, "photos", 100);
    let ended = place.well(&format!(
        "pretrain --data photos --out run {TINY} train.epochs=1 knn.every=1 optim.lr=1e-12"
    ));
    let command = "data preview --config run/config.toml";
    ended.says(&["apart no better than before training", &format!(" {command}`")]);
    place.well(&format!("{command} --images 2")).says(&["2 images, 3 crops each"]);
}

#[test]
fn a_healthy_run_is_not_called_collapsed() {
    let place = Place::new();
    let line = format!("pretrain --out run {TINY} train.log_every=1");
    let ended = place.well(&line);
    assert!(!ended.stderr.contains("warning:"), "{ended}");
}
