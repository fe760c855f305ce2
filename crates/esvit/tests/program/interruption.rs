//! Runs that are killed or asked to stop, and go on.
#![cfg(unix)]

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::images::{good, labeled};
use crate::place::{Ended, Folder, Place, Running, TINY, metadata};

/// 400 steps with a checkpoint after every one.
const LONG: &str = "train.epochs=16 train.log_every=1 checkpoint.every=1steps";

/// What an uninterrupted run leaves.
struct Whole {
    bytes: Vec<u8>,
    losses: Vec<(u64, f64)>,
    took: Duration,
}

fn uninterrupted() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let place = Place::new();
        let took = place.well(&format!("pretrain --out run {TINY} {LONG}")).took;
        let run = place.folder("run");
        assert_eq!(run.steps(), [398, 399, 400]);
        Whole { bytes: std::fs::read(run.newest()).unwrap(), losses: run.losses(), took }
    })
}

/// Nothing tells the folder from that of the uninterrupted run.
fn assert_whole(run: &Folder) {
    let whole = uninterrupted();
    assert!(
        std::fs::read(run.newest()).unwrap() == whole.bytes,
        "other bytes in {:?}",
        run.newest()
    );
    assert_eq!(run.steps(), [398, 399, 400]);
    assert_eq!(run.checkpoint_names().len(), 3, "{:?}", run.checkpoint_names());
    assert_eq!(run.losses(), whole.losses);
    let epochs: Vec<u64> =
        run.lines("log.txt").iter().filter_map(|line| line["epoch"].as_u64()).collect();
    assert_eq!(epochs, (0..16).collect::<Vec<_>>());
    assert!(!run.names().iter().any(|name| name.ends_with("-tmp")), "{:?}", run.names());
}

/// A random share of `time`; the seed is the process's own, and what it gave is printed.
fn some_of(time: Duration) -> Duration {
    let share = RandomState::new().hash_one(0) >> 11;
    time.mul_f64(share as f64 / (1u64 << 53) as f64)
}

/// Waits until the run is writing a checkpoint.
fn wait_for_a_write(running: &mut Running, run: &Folder) {
    running.wait_until(|| {
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            if run.checkpoint_names().iter().any(|name| name.ends_with("-tmp")) {
                return true;
            }
        }
        false
    });
}

#[test]
fn killed_at_five_random_moments_it_ends_as_if_it_never_was() {
    let longest = uninterrupted().took / 6;
    let place = Place::new();
    let run = place.folder("run");
    let mut halves = 0;
    for aimed in [false, true, false, true, true] {
        // The first moment may come before there is anything to go on from.
        let mut running = place.start(&format!("pretrain --resume --out run {TINY} {LONG}"));
        let delay = some_of(longest);
        std::thread::sleep(delay);
        if aimed {
            wait_for_a_write(&mut running, &run);
        }
        running.kill();
        let half = run.checkpoint_names().iter().filter(|name| name.ends_with("-tmp")).count();
        eprintln!("killed after {delay:?}, aimed: {aimed}, half-written files: {half}");
        halves += half;
    }
    eprintln!("{halves} half-written checkpoints");
    place.well("resume run").says(&["going on after step"]);
    assert_whole(&run);
}

#[test]
fn asked_to_stop_it_saves_and_goes_on() {
    let whole = uninterrupted();
    let place = Place::new();
    let run = place.folder("run");
    let mut line = format!("pretrain --out run {TINY} {LONG}");
    let mut last = 0;
    for signal in ["INT", "TERM"] {
        let mut running = place.start(&line);
        running.wait_until(|| run.steps().last().is_some_and(|step| *step > last + 20));
        std::thread::sleep(some_of(whole.took / 20));
        running.signal(&[signal]);
        let ended = running.wait().expect(75).says(&["to resume: ", "esvit resume run"]);
        last = *run.steps().last().unwrap();
        assert!(last < 400, "{ended}");
        let ended = ended.says(&[&format!("stopped after step {last} of 400, state saved")]);
        assert_eq!(run.losses().last().map(|(step, _)| *step), Some(last), "{ended}");
        line = "resume run".into();
    }
    place.well("resume run").says(&[&format!("going on after step {last}")]);
    assert_whole(&run);
}

/// A run of one step that takes about a second, in parts that take milliseconds.
const ONE_STEP: &str =
    "train.epochs=1 optim.warmup=0 data.repeat=4 train.batch_size=400 train.micro_batch=4";

/// Starts a run and sends it signals during its first step.
fn signalled(place: &Place, settings: &str, signals: &[&str]) -> Ended {
    let run = place.folder("run");
    let mut running = place.start(&format!("pretrain --out run {TINY} {settings}"));
    running.wait_until(|| run.steps() == [0]);
    running.signal(signals);
    running.wait()
}

/// `timeout`, closed terminals and service managers send a signal twice, or two of them; clusters have
/// warnings of their own.
#[test]
fn a_signal_within_a_step_drops_it_however_often_it_comes() {
    for signals in [
        &["TERM"][..],
        &["TERM", "TERM"],
        &["HUP", "TERM"],
        &["HUP", "HUP"],
        &["INT", "INT"],
        &["INT", "TERM"],
        &["USR1"],
        &["USR2"],
        &["XCPU"],
    ] {
        let place = Place::new();
        let ended = signalled(&place, ONE_STEP, signals).expect(75).says(&[
            "stopping: the step or check at hand is dropped",
            "stopped after step 0 of 1, state saved",
            "to resume: ",
        ]);
        let run = place.folder("run");
        assert!(run.steps() == [0] && run.losses().is_empty(), "{signals:?}: {ended}");
        place.well("resume run").says(&["going on after step 0", "1 step in"]);
        assert_eq!(run.steps(), [0, 1]);
    }
}

/// Its networks take a second for an image.
const SLOW: &str = "train.epochs=1 optim.warmup=0 data.repeat=2 train.batch_size=200 train.micro_batch=200 \
    model.embed_dim=128 model.depths=[2,72] model.num_heads=[4,8] --threads 1 train.activation_checkpointing=true";

/// The same without a teacher, which would hear of a stop within its pass.
const ALONE: &str = "--recipe materials objective.name=simclr objective.out_dim=8 views.local_counts=[0] \
    views.local_sizes=[16] knn.every=0";

#[test]
fn a_second_request_to_end_after_a_second_ends_at_once() {
    let place = Place::new();
    let run = place.folder("run");
    let mut running = place.start(&format!("pretrain --out run {ALONE} {SLOW}"));
    running.wait_until(|| run.steps() == [0]);
    // Crops are made before the networks see them.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    running.signal(&["INT"]);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    running.signal(&["TERM"]);
    let ended = running.wait().expect(130).says(&["(a second signal ends at once)"]);
    assert!(!ended.stderr.contains("state saved"), "{ended}");
    // What is on disk is whole.
    assert_eq!(run.steps(), [0]);
    place.well("info run/checkpoints/epoch=0000-step=00000000.safetensors");
}

/// Before the first step there is nothing to save, also while a step is timed.
#[test]
fn a_signal_before_the_run_ends_at_once() {
    let place = Place::new();
    let line = format!("pretrain --out run {TINY} {SLOW} train.epochs=none train.time=1h");
    let mut running = place.start(&line);
    running.wait_until_said("timing a step");
    running.signal(&["TERM"]);
    let ended = running.wait().expect(75).says(&["stopped before the first step"]);
    assert!(!place.path("run").exists(), "{ended}");
}

/// A check of large images by one thread takes many seconds. It is dropped, as a step is.
#[test]
fn a_signal_within_a_check_drops_it() {
    let place = Place::new();
    let run = place.folder("run");
    let slow = "knn.every=1 knn.crop=256 model.embed_dim=128 model.num_heads=[4,8] --threads 1";
    let mut running = place.start(&format!("pretrain --out run {TINY} {slow}"));
    // The first check follows what is said of the run.
    running.wait_until_said("is that of chance");
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.signal(&["TERM"]);
    let ended = running.wait().expect(75).says(&[
        "stopping: the step or check at hand is dropped",
        "stopped after step 0 of 75, state saved",
        "to resume: ",
    ]);
    assert_eq!(run.steps(), [0]);
    assert!(!run.text("metrics.jsonl").contains("retrieval_top1"), "{ended}");
    assert!(metadata(&run.newest()).get("is_unchecked").is_some_and(|value| value == true));
}

#[test]
fn a_stop_between_checkpoints_makes_one() {
    let place = Place::new();
    let run = place.folder("run");
    let settings = "train.epochs=400 checkpoint.every=400 train.log_every=1";
    let mut running = place.start(&format!("pretrain --out run {TINY} {settings}"));
    running.wait_until(|| run.losses_so_far() > 30);
    running.signal(&["INT"]);
    let ended = running.wait().expect(75);
    let steps = run.steps();
    assert_eq!(steps[0], 0);
    let stopped = format!("stopped after step {} of 10000, state saved", steps[1]);
    let ended = ended.says(&[&stopped]);
    assert!(steps.len() == 2 && steps[1] > 30, "{steps:?}\n{ended}");
}

#[test]
fn a_kill_before_the_best_is_marked_is_mended() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=1 knn.every=1"));
    let run = place.folder("run");
    let best = run.file("checkpoints/best.safetensors");
    std::fs::remove_file(&best).unwrap();
    place.well("resume run").says(&["nothing to do: all 25 steps of this run are done"]);
    assert!(std::fs::read(best).unwrap() == std::fs::read(run.newest()).unwrap());
}

#[test]
fn a_cut_checkpoint_is_passed_over() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} {LONG} train.epochs=2"));
    let run = place.folder("run");
    let (bytes, newest) = (std::fs::read(run.newest()).unwrap(), run.newest());
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    place.well("resume run").says(&[
        "passing over a broken checkpoint",
        "epoch=0002-step=00000050.safetensors` is damaged",
        "going on after step 49",
    ]);
    assert!(std::fs::read(newest).unwrap() == bytes);
    let steps: Vec<u64> = run.losses().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=50).collect::<Vec<_>>());
}

/// Lines of a file so far.
fn lines(place: &Place, name: &str) -> usize {
    std::fs::read_to_string(place.path(name)).map_or(0, |text| text.lines().count())
}

/// What is done is kept, and said to be.
#[test]
fn features_go_on_after_a_signal() {
    let place = Place::with_a_run();
    good(&place, "few", 30);
    let few: Vec<_> = place.files("run").into_keys().collect();
    std::fs::create_dir(place.path("many")).unwrap();
    for number in 0..3000 {
        let image = &few[number % few.len()];
        let extension = image.extension().unwrap().to_str().unwrap();
        let name = format!("many/{number:04}.{extension}");
        std::fs::hard_link(image, place.path(&name)).unwrap();
    }
    let line = "embed -c run -d many --out f.npy --threads 1";
    let (log, part) = (".f.npy.esvit-log", ".f.npy.esvit-part");
    for signal in ["INT", "TERM"] {
        // One line is about the job, and one comes with every batch.
        let before = lines(&place, log).max(1);
        let mut running = place.start(line);
        running.wait_until(|| lines(&place, log) > before);
        running.signal(&[signal]);
        let ended = running.wait().expect(75).says(&[
            "stopped after ",
            " of 3000 images: the same command goes on after them; they are in `.f.npy.esvit-part`",
        ]);
        assert!(place.path(part).exists() && !place.path("f.npy").exists(), "{ended}");
    }
    place.well(line).says(&["resuming after ", "3000 features of 32 values in `f.npy`"]);
    assert!(!place.path(part).exists() && !place.path(log).exists());
    place.well(&line.replace("f.npy", "g.npy"));
    let [stopped, whole] = ["f.npy", "g.npy"].map(|name| std::fs::read(place.path(name)).unwrap());
    assert!(stopped == whole);
}

#[test]
fn results_of_sets_are_kept_after_a_signal() {
    let place = Place::with_a_run();
    labeled(&place, "small", 6);
    labeled(&place, "large", 500);
    let mut running =
        place.start("eval transfer -c run --solver logistic --n 2 --sets small large --threads 1");
    running.wait_until(|| lines(&place, "transfer.jsonl") > 0);
    running.signal(&["TERM"]);
    let said = "stopped: the results of the sets that are done are in `transfer.jsonl`";
    running.wait().expect(75).says(&[said]);
    assert_eq!(lines(&place, "transfer.jsonl"), 1);
}
