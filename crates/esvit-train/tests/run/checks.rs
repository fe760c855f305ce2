//! Checks during a run, and which checkpoints are kept.

use super::*;

/// Every second of three epochs: the last has its check and its checkpoint all the same.
#[test]
fn the_last_epoch_is_checked_and_kept() {
    let mut bench = Bench::new(&["train.epochs=3", "knn.every=2", "checkpoint.every=2"]);
    bench.top1 = Some(vec![50.0, 40.0]);
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step, outcome.broken), (End::Finished, 9, 0));
    let found: Vec<_> = reported.knn.iter().map(|check| (check.step, check.epoch)).collect();
    assert_eq!(found, [(6, 2), (9, 3)]);
    let first = KnnMetrics { step: 6, epoch: 2, knn_k: 20, knn_top1: 50.0, knn_top5: 51.0 };
    assert_eq!(reported.knn[0], first);
    assert_eq!(outcome.knn.unwrap(), reported.knn[1]);
    let checkpoints = [numbered(0, 0), numbered(2, 6), numbered(3, 9)];
    assert_eq!(reported.checkpoints, checkpoints);
    assert_eq!(outcome.checkpoint, bench.checkpoint("run", 3, 9));
    assert_eq!(bench.kept("run"), [&["best.safetensors".into()], &checkpoints[..]].concat());
}

/// A better check makes a checkpoint where none is due. Of equal accuracies the first stays the
/// best, and so does an earlier better one.
#[test]
fn of_equal_accuracies_the_first_is_the_best() {
    let mut bench = Bench::new(&[
        "train.epochs=5",
        "knn.every=1",
        "checkpoint.every=5",
        "checkpoint.keep_last=9",
    ]);
    bench.top1 = Some(vec![40.0, 40.0, 60.0, 55.0, 60.0]);
    let (_, reported) = bench.well("run");
    assert_eq!(
        reported.checkpoints,
        [numbered(0, 0), numbered(1, 3), numbered(3, 9), numbered(5, 15)]
    );
    let third = bench.checkpoint("run", 3, 9);
    assert_eq!(bytes(&bench.path("run/checkpoints/best.safetensors")), bytes(&third));
    assert_eq!(best(&bench.checkpoint("run", 0, 0)), None);
    assert_eq!(
        best(&bench.checkpoint("run", 1, 3)),
        Some(Best { by: Measure::Knn, top1: 40.0, epoch: 1, step: Some(3) })
    );
    assert_eq!(best(&third), Some(Best { by: Measure::Knn, top1: 60.0, epoch: 3, step: Some(9) }));
    assert_eq!(
        best(&bench.checkpoint("run", 5, 15)),
        Some(Best { by: Measure::Knn, top1: 60.0, epoch: 3, step: Some(9) })
    );
}

/// Without labels the crops that are found choose the best checkpoint, and with labels they do not.
/// They are measured before the first step, once, and what is measured then is not the best.
#[test]
fn crops_that_are_found_choose_where_nothing_else_does() {
    let settings = ["train.epochs=3", "knn.every=1", "checkpoint.every=3"];
    let mut bench = Bench::new(&settings);
    bench.found = Some(vec![70.0, 20.0, 50.0, 30.0]);
    bench.stop_after = 7;
    let (_, reported) = bench.well("run");
    let found: Vec<_> = reported.retrieval.iter().map(|f| (f.step, f.retrieval_top1)).collect();
    assert_eq!(found, [(0, 70.0), (3, 20.0), (6, 50.0)]);
    let second = Some(Best { by: Measure::Retrieval, top1: 50.0, epoch: 2, step: Some(6) });
    assert_eq!(best(&bench.path("run/checkpoints/best.safetensors")), second);

    // The last check only, and the first of the run from its log.
    (bench.start, bench.stop_after, bench.found) = (Start::Resume, 0, Some(vec![30.0]));
    let (outcome, reported) = bench.well("run");
    assert_eq!(reported.retrieval.len(), 1);
    let ends = outcome.retrieval.unwrap().map(|f| (f.step, f.retrieval_top1, f.retrieval_images));
    assert_eq!(ends, [(0, 70.0, 6), (9, 30.0, 6)]);
    assert_eq!(best(&outcome.checkpoint), second);

    let mut labeled = Bench::new(&settings);
    labeled.found = Some(vec![0.0, 90.0, 80.0, 70.0]);
    labeled.top1 = Some(vec![10.0, 20.0, 15.0]);
    let (outcome, reported) = labeled.well("run");
    assert_eq!((reported.retrieval.len(), reported.knn.len()), (4, 3));
    let by_labels = Some(Best { by: Measure::Knn, top1: 20.0, epoch: 2, step: Some(6) });
    assert_eq!(best(&outcome.checkpoint), by_labels);
}

/// A figure of another kind is no measure for those to come.
#[test]
fn labels_that_come_later_choose_afresh() {
    let mut bench = Bench::new(&["train.epochs=3", "knn.every=1", "checkpoint.every=3"]);
    (bench.found, bench.stop_after) = (Some(vec![5.0, 80.0, 90.0]), 7);
    bench.well("run");
    (bench.start, bench.stop_after) = (Start::Resume, 0);
    (bench.found, bench.top1) = (Some(vec![95.0]), Some(vec![12.0]));
    let (outcome, _) = bench.well("run");
    let by_labels = Some(Best { by: Measure::Knn, top1: 12.0, epoch: 3, step: Some(9) });
    assert_eq!(best(&outcome.checkpoint), by_labels);
}

#[test]
fn checkpoints_within_an_epoch_and_only_the_newest() {
    let bench = Bench::new(&["checkpoint.every=2 steps", "checkpoint.keep_last=2"]);
    let (_, reported) = bench.well("run");
    let steps = [(0, 0), (0, 2), (1, 4), (2, 6)];
    assert_eq!(reported.checkpoints, steps.map(|(epoch, step)| numbered(epoch, step)));
    assert_eq!(bench.kept("run"), [numbered(1, 4), numbered(2, 6)]);
    let metadata = Checkpoint::open(&bench.checkpoint("run", 1, 4)).unwrap().metadata.unwrap();
    assert_eq!((metadata.step, metadata.epoch, metadata.best), (4, 1, None));
    assert_eq!(metadata.config(Path::new("")).unwrap(), bench.settled());
    assert_eq!(metadata.program, env!("CARGO_PKG_VERSION"));
}

/// What a run begins with is a checkpoint like others where it is weights: if no later one is better, it stays
/// the best, also of a run that was stopped.
#[test]
fn weights_to_begin_with_may_stay_the_best() {
    let first = Bench::new(&[]);
    let (old, _) = first.well("old");
    let begun = || {
        let mut bench = Bench::new(&[
            "train.epochs=3",
            "knn.every=1",
            "checkpoint.every=3",
            "checkpoint.keep_last=9",
        ]);
        bench.start = Start::InitFrom { path: old.checkpoint.clone(), key: None };
        bench
    };
    let by = |top1: f64, epoch: u64| {
        Some(Best { by: Measure::Retrieval, top1, epoch, step: Some(3 * epoch) })
    };
    for (found, expected) in
        [([70.0, 20.0, 50.0, 70.0], by(70.0, 0)), ([40.0, 20.0, 50.0, 30.0], by(50.0, 2))]
    {
        let mut bench = begun();
        bench.found = Some(found.into());
        let (outcome, reported) = bench.well("run");
        assert_eq!(outcome.best, expected);
        assert_eq!(reported.retrieval[0].step, 0);
        let kept = bench.path("run/checkpoints/best.safetensors");
        assert_eq!(best(&kept), expected);
        let Best { epoch, step, .. } = expected.unwrap();
        assert!(bytes(&kept) == bytes(&bench.checkpoint("run", epoch, step.unwrap())));

        let whole = bytes(&outcome.checkpoint);
        let mut bench = begun();
        (bench.found, bench.stop_after) = (Some(found[..2].to_vec()), 4);
        bench.well("run");
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        bench.found = Some(found[2..].to_vec());
        let (outcome, _) = bench.well("run");
        assert_eq!(outcome.best, expected);
        assert!(bytes(&outcome.checkpoint) == whole);
    }
    // Labels judge the weights, too.
    let mut labeled = begun();
    (labeled.found, labeled.top1) = (Some(vec![0.0; 4]), Some(vec![60.0, 10.0, 59.0, 60.0]));
    let (outcome, reported) = labeled.well("run");
    let by_labels = Some(Best { by: Measure::Knn, top1: 60.0, epoch: 0, step: Some(0) });
    assert_eq!((outcome.best, reported.knn.len()), (by_labels, 4));
    // Killed while the weights were measured: they are in the folder, and are measured again.
    let mut killed = begun();
    killed.found = Some(vec![]);
    let error = killed.run("run").0.unwrap_err().to_string();
    assert!(error.contains("a check too many"), "{error}");
    assert_eq!(killed.kept("run"), [numbered(0, 0)]);
    (killed.start, killed.found) = (Start::Resume, Some(vec![70.0, 20.0, 50.0, 60.0]));
    let (outcome, _) = killed.well("run");
    assert_eq!(outcome.best, by(70.0, 0));
}

/// The first two as was measured before the run, then as the last one.
#[test]
fn checks_are_announced_with_what_they_take() {
    let mut bench = Bench::new(&["knn.every=1"]);
    bench.found = Some(vec![10.0, 20.0, 30.0]);
    let [step, first, each, end] = [2, 5, 7, 9].map(Duration::from_secs);
    let checks = CheckTime { first, each, end };
    let step = StepTime { first: step, later: step };
    bench.costs = Some(Costs { step, checks, spent: Duration::ZERO });
    let (_, reported) = bench.well("run");
    assert_eq!(reported.time, Some(Duration::from_secs(6 * 2 + 5 + 2 * 7)));
    assert_eq!(reported.checks[..2], [(0, Some(first)), (3, Some(each))]);
    let (step, time) = reported.checks[2];
    assert!(step == 6 && time.is_some_and(|time| time < each), "{time:?}");

    bench.costs = None;
    let (_, reported) = bench.well("unknown");
    assert_eq!((reported.time, reported.checks[0]), (None, (0, None)));
}
