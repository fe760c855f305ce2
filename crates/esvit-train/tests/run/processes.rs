//! A run of two processes: it learns as one of both does, and the first writes its folder.

use esvit_testing::Pair;

use super::*;

/// One image and one micro-batch from each process, by a rule that does not magnify rounding.
const HALF: [&str; 5] = [
    "train.micro_batch=1",
    "optim.name=sgd",
    "checkpoint.every=1 steps",
    "checkpoint.keep_last=9",
    "train.log_every=1",
];

type Ended = (Result<Outcome, RunError>, Reported);

/// Both processes; the second is asked to stop after a step.
fn both(bench: &Bench, out: &str, stop_after: u64) -> [Ended; 2] {
    Pair::run(|pair| {
        let stop_after = if pair.rank() == 1 { stop_after } else { 0 };
        bench.run_as(out, pair, stop_after)
    })
}

fn tensors(path: &Path) -> Vec<(String, Vec<f32>)> {
    let file = WeightsFile::open(path).unwrap();
    let tensors = file.tensors().iter();
    tensors.map(|tensor| (tensor.name.clone(), file.read_f32(tensor).unwrap())).collect()
}

#[test]
fn two_processes_are_one_run() {
    let bench = Bench::new(&HALF);
    let one = Bench::new(&HALF);
    let (outcome, alone) = one.well("run");
    let [(first, of_first), (second, of_second)] = both(&bench, "run", 0);
    for (outcome, name) in [(first.unwrap(), "first"), (second.unwrap(), "second")] {
        assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{name}");
        assert_eq!(outcome.checkpoint, bench.checkpoint("run", 2, 6), "{name}");
    }
    // Each has a pool of its own.
    let apart_from_threads = |plan: &str| {
        let (before, after) = plan.split_once(" an epoch, ").unwrap();
        format!("{before}{}", after.split_once("thread").unwrap().1.trim_start_matches('s'))
    };
    assert_eq!(apart_from_threads(&of_first.plan), apart_from_threads(&alone.plan));
    assert_eq!((of_first.losses.len(), of_first.losses), (6, of_second.losses));
    for (found, expected) in of_first.figures.iter().zip(&alone.figures) {
        assert_eq!((found.step, found.epoch), (expected.step, expected.epoch));
        assert_eq!([found.lr, found.wd], [expected.lr, expected.wd]);
        for (found, expected) in [
            (found.train_loss, expected.train_loss),
            (found.grad_norm, expected.grad_norm),
            (found.get("region_loss").unwrap(), expected.get("region_loss").unwrap()),
        ] {
            assert_alike("figures", &[found as f32], &[expected as f32], 2e-5);
        }
        assert!((found.img_per_s * found.batch_time - 2.0).abs() < 1e-6);
    }
    let expected = tensors(&outcome.checkpoint);
    let found = tensors(&bench.checkpoint("run", 2, 6));
    assert!(expected.len() > 30 && found.len() == expected.len());
    for ((name, found), (expected_name, expected)) in found.iter().zip(&expected) {
        assert_eq!(name, expected_name);
        assert_alike(name, found, expected, 1e-4);
    }
    // The first alone has written, and what one process writes.
    assert_eq!(bench.kept("run"), one.kept("run"));
    assert_eq!((of_first.checkpoints, of_second.checkpoints), (alone.checkpoints, Vec::new()));
    let lines = |name: &str| bench.read(name).lines().count();
    assert_eq!((lines("run/metrics.jsonl"), lines("run/log.txt")), (6, 2));
    let events = std::fs::read_dir(bench.path("run")).unwrap();
    let is_events = |name: &str| name.starts_with("events.out.tfevents.");
    assert_eq!(events.filter(|entry| is_events(&name(&entry.as_ref().unwrap().path()))).count(), 1);
}

/// Where one process is asked to stop, both do, and both go on later.
#[test]
fn stopped_and_resumed_together() {
    let whole = Bench::new(&HALF);
    let [(outcome, _), _] = both(&whole, "run", 0);
    let expected = tensors(&outcome.unwrap().checkpoint);
    let mut bench = Bench::new(&HALF);
    for (outcome, _) in both(&bench, "run", 4) {
        let outcome = outcome.unwrap();
        assert_eq!((outcome.end, outcome.step), (End::Stopped, 4));
    }
    bench.start = Start::Resume;
    for (outcome, reported) in both(&bench, "run", 0) {
        assert_eq!(outcome.unwrap().end, End::Finished);
        assert_eq!(reported.losses.len(), 2);
    }
    assert!(tensors(&bench.checkpoint("run", 2, 6)) == expected);
}

/// Neither process goes on, and the run stays.
#[test]
fn a_run_is_not_overwritten_by_one_that_starts_from_it() {
    let mut bench = Bench::new(&HALF);
    let [(outcome, _), _] = both(&bench, "run", 0);
    let checkpoint = outcome.unwrap().checkpoint;
    bench.start = Start::InitFrom { path: checkpoint.clone(), key: None };
    bench.overwrite = true;
    let [(first, _), (second, _)] = both(&bench, "run", 0);
    let error = first.unwrap_err().to_string();
    assert!(error.contains(&checkpoint.display().to_string()), "{error}");
    assert!(second.is_err() && checkpoint.exists());
}
