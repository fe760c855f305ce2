//! How a step is cut, and how a run stops.

use super::*;

/// The rate at the end of the warm-up is that of all images of a step, however it is cut, and
/// centers and losses are those of the same images.
#[test]
fn a_step_may_be_cut() {
    let settings = ["train.log_every=1", "model.drop_path=0.0"];
    let [whole, cut] = [
        ["train.batch_size=2", "train.micro_batch=2"],
        ["train.batch_size=2", "train.micro_batch=1"],
    ]
    .map(|batch| Bench::new(&[&settings[..], &batch].concat()).well("run").1.figures);
    for (whole, cut) in whole.iter().zip(&cut) {
        assert_eq!((whole.lr, whole.step), (cut.lr, cut.step));
        assert!((whole.train_loss / cut.train_loss - 1.0).abs() < 1e-3, "{whole:?}\n{cut:?}");
    }
    close("rate", whole[2].lr, 0.64 * 2.0 / 256.0);
    assert_eq!(whole.len(), cut.len());
}

#[test]
fn a_run_stops_after_a_step_and_not_after_the_last() {
    let mut bench = Bench::new(&[]);
    bench.stop_after = 2;
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 2));
    assert_eq!(reported.checkpoints, [numbered(0, 0), numbered(0, 2)]);
    assert_eq!(reported.notes, ["stopped after step 2 of 6, state saved"]);
    // Where the step has a checkpoint already, it gets no second one.
    bench.stop_after = 3;
    let (outcome, reported) = bench.well("at the end of an epoch");
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 3));
    assert_eq!(reported.checkpoints, [numbered(0, 0), numbered(1, 3)]);
    bench.stop_after = 6;
    let (outcome, reported) = bench.well("at the end");
    assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
    assert_eq!(reported.notes, Vec::<String>::new());
}

/// A step that is cut short leaves no trace: the state before it is saved, and the run that goes on
/// from there ends as one that was not stopped.
#[test]
fn a_run_stops_within_a_step() {
    let settings = ["train.micro_batch=1", "checkpoint.keep_last=9"];
    let bench = Bench::new(&settings);
    let expected = bytes(&bench.well("run").0.checkpoint);
    for (stop_within, step, checkpoints) in [
        ((0, 1), 0, vec![numbered(0, 0)]),
        ((1, 1), 1, vec![numbered(0, 0), numbered(0, 1)]),
        ((3, 1), 3, vec![numbered(0, 0), numbered(1, 3)]),
        // All of its micro-batches are done: the step ends.
        ((4, 2), 5, vec![numbered(0, 0), numbered(1, 3), numbered(1, 5)]),
    ] {
        let mut bench = Bench::new(&settings);
        bench.stop_within = Some(stop_within);
        let (outcome, reported) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Stopped, step), "{stop_within:?}");
        assert_eq!(reported.losses.len() as u64, step);
        assert_eq!(reported.checkpoints, checkpoints, "{stop_within:?}");
        let note = format!("stopped after step {step} of 6, state saved");
        assert_eq!(reported.notes, [note]);
        (bench.start, bench.stop_within) = (Start::Resume, None);
        let (outcome, _) = bench.well("run");
        assert!(bytes(&outcome.checkpoint) == expected, "{stop_within:?}");
    }
}

/// A check that is stopped measures nothing, and is made when the run goes on: all ends as if it had not
/// been stopped, the check of the last step and the best network included.
#[test]
fn a_run_stops_within_a_check() {
    let settings =
        ["train.epochs=3", "knn.every=1", "checkpoint.every=3", "checkpoint.keep_last=9"];
    let found = [10.0, 20.0, 30.0, 50.0];
    let with = |checks: &[f64]| {
        let mut bench = Bench::new(&settings);
        bench.found = Some(checks.into());
        bench
    };
    let whole = with(&found);
    let (expected, all) = whole.well("run");
    for (check, step) in [(1, 0), (2, 3), (3, 6), (4, 9)] {
        let mut bench = with(&found[..check - 1]);
        bench.stop_in_check = Some(check);
        let (outcome, first) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Stopped, step), "{check}");
        let last = first.notes.last().unwrap();
        assert!(last.contains(&format!("after step {step}")), "{last}");
        assert!(last.ends_with("state saved"), "{last}");
        assert_eq!(outcome.checkpoint, bench.checkpoint("run", step / 3, step));
        (bench.start, bench.stop_in_check) = (Start::Resume, None);
        bench.found = Some(found[check - 1..].into());
        let (outcome, second) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Finished, 9), "{check}");
        let measured = [first.retrieval, second.retrieval].concat();
        assert_eq!(measured, all.retrieval, "{check}");
        assert!(bytes(&outcome.checkpoint) == bytes(&expected.checkpoint), "{check}");
        let best = |bench: &Bench| bytes(&bench.path("run/checkpoints/best.safetensors"));
        assert!(best(&bench) == best(&whole), "{check}");
        // It is made once.
        bench.found = Some(Vec::new());
        let (outcome, _) = bench.well("run");
        assert_eq!(outcome.end, End::NothingToDo, "{check}");
    }
}

/// While steps are timed there is no run yet, and nothing is left behind.
#[test]
fn a_run_stops_before_it_begins() {
    let mut bench = Bench::new(&["train.epochs=none", "train.time=1h"]);
    bench.stop_in_check = Some(0);
    let (outcome, _) = bench.run("run");
    assert!(matches!(outcome, Err(RunError::Stopped)), "{outcome:?}");
    assert!(!bench.path("run").exists());
}

/// How a step is cut changes the last bits alone, dropped branches included.
#[test]
fn micro_batches_change_rounding_alone() {
    let losses = |micro_batch: &str| {
        let settings = ["train.batch_size=6", "model.drop_path=0.5", "train.epochs=3", micro_batch];
        Bench::new(&settings).well("run").1.losses
    };
    let whole = losses("train.micro_batch=6");
    assert_eq!(whole.len(), 3);
    for cut in ["train.micro_batch=1", "train.micro_batch=2", "train.micro_batch=3"] {
        assert_alike(cut, &losses(cut), &whole, 1e-4);
    }
}

/// Statistics of batch normalization are those of a micro-batch. Where heads see all images of a step, they
/// are not, and where there is one micro-batch, it is all.
#[test]
fn split_statistics_are_warned_of() {
    let warnings = |settings: &[&str]| {
        let common = ["train.epochs=1", "objective.head.use_bn_in_head=true"];
        Bench::new(&[&common[..], settings].concat()).well("run").1.warnings
    };
    let [warning] = warnings(&["train.micro_batch=1"]).try_into().unwrap();
    let expected =
        "batch normalization has the statistics of 1 image at a time, of the 2 of a step";
    assert!(warning.starts_with(expected), "{warning}");
    assert!(warning.contains("\nhint: raise `train.micro_batch`"), "{warning}");
    for others in [
        &["train.micro_batch=2"][..],
        &["train.micro_batch=1", "objective.koleo=0.1"],
        &["train.micro_batch=1", "objective.head.use_bn_in_head=false"],
        &[],
    ] {
        assert_eq!(warnings(others), [""; 0], "{others:?}");
    }
}

/// A time becomes steps, which are stored.
#[test]
fn a_run_of_a_given_time() {
    let mut bench = Bench::new(&[
        "train.epochs=none",
        "train.time=2s",
        "train.log_every=1000",
        "checkpoint.every=100%",
    ]);
    let (outcome, reported) = bench.well("run");
    assert!(reported.notes[0].ends_with(" fit 2s"), "{:?}", reported.notes);
    let stored = bench.read("run/config.toml");
    let steps = format!("steps = {}", outcome.step);
    assert!(stored.contains(&steps) && stored.contains("time = \"none\""), "{stored}");
    // More time later adds to what was done.
    let done = outcome.step;
    bench.start = Start::Resume;
    let (outcome, _) = bench.well("run");
    assert!(outcome.end == End::Finished && outcome.step > done, "{}", outcome.step);
}

/// What steps and checks are said to take decides how many there are: of ten minutes those of a minute each have
/// a fifth, so that one at the end has room beside the first, and half a minute is for what comes after the run.
#[test]
fn a_time_has_room_for_checks() {
    let of = |step: u64| {
        let step = Duration::from_secs(step);
        let [each, end] = [60, 30].map(Duration::from_secs);
        let checks = CheckTime { first: each, each, end };
        let step = StepTime { first: step, later: step };
        Some(Costs { step, checks, spent: Duration::from_secs(6) })
    };
    let settings = ["train.epochs=none", "train.time=10m", "knn.every=10%"];
    let mut bench = Bench::new(&settings);
    (bench.costs, bench.found) = (of(20), Some(vec![10.0, 20.0]));
    let (outcome, reported) = bench.well("run");
    // 576 seconds less six, thirty and two minutes.
    assert_eq!((outcome.end, outcome.step), (End::Finished, 20));
    assert_eq!(reported.notes[0], "20 steps of 20.000 s and 1 check of 60.0 s fit 10m");
    assert!(reported.notes[1].starts_with("a check comes every 100% of the run instead of 10%"));
    assert_eq!(reported.retrieval.iter().map(|f| f.step).collect::<Vec<_>>(), [0, 20]);
    assert!(bench.read("run/config.toml").contains("every = \"100%\""));
    assert!(outcome.elapsed >= outcome.training);

    let mut bench = Bench::new(&settings);
    (bench.costs, bench.found) = (of(60), Some(Vec::new()));
    let (outcome, _) = bench.run("run");
    assert!(matches!(outcome, Err(RunError::TooShort { .. })), "{outcome:?}");
    assert!(!bench.path("run").exists());
}
