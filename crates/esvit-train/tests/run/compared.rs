//! Runs of contrastive and clustering objectives: stopped anywhere they go on as if nothing had happened,
//! with their queues, prototypes and teachers.

use esvit_nn::weights::METADATA_KEY;

use super::*;

/// The objectives with heads and queues for six images. Queues are shorter than a run, and no multiple
/// of a batch.
const OBJECTIVES: [&[&str]; 10] = [
    &["objective.name=mocov2", "objective.queue_length=5", "objective.out_dim=4"],
    &["objective.name=mocov3", "objective.hidden_dim=8", "objective.out_dim=4"],
    &[
        "objective.name=moby",
        "objective.queue_length=5",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
    ],
    &["objective.name=simclr", "objective.out_dim=4"],
    &["objective.name=byol", "objective.hidden_dim=8", "objective.out_dim=4"],
    &[
        "objective.name=swav",
        "objective.prototypes=7",
        "objective.queue_length=5",
        "objective.queue_start=2 steps",
        "objective.freeze_prototypes=1 steps",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
    ],
    &[
        "objective.name=densecl",
        "objective.queue_length=5",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
    ],
    &[
        "objective.name=byol",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
        "objective.region.loss=mse",
    ],
    &[
        "objective.name=byol",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
        "objective.region.loss=softmax",
        "objective.region.head.out_dim=7",
        "objective.region.head.hidden_dim=8",
        "objective.region.head.bottleneck_dim=4",
    ],
    &["objective.name=masked_patch"],
];

fn bench(objective: &[&str], settings: &[&str]) -> Bench {
    Bench::new(&[objective, &["train.log_every=1", "checkpoint.keep_last=9"], settings].concat())
}

/// Stopped after each of some steps, and within one.
#[test]
fn runs_go_on_with_queues_and_prototypes() {
    for objective in OBJECTIVES {
        for micro_batch in ["train.micro_batch=2", "train.micro_batch=1"] {
            let whole = bench(objective, &[micro_batch]);
            let (outcome, reported) = whole.well("run");
            assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{objective:?}");
            assert!(reported.losses.iter().all(|loss| loss.is_finite()), "{objective:?}");
            let expected = bytes(&outcome.checkpoint);
            for (stop_after, stop_within) in [(1, None), (4, None), (0, Some((3, 1)))] {
                // All micro-batches of a step that has one are done after the first.
                if stop_within.is_some() && micro_batch == "train.micro_batch=2" {
                    continue;
                }
                let mut bench = bench(objective, &[micro_batch]);
                (bench.stop_after, bench.stop_within) = (stop_after, stop_within);
                let (outcome, first) = bench.well("run");
                let done = if stop_within.is_some() { 3 } else { stop_after };
                assert_eq!((outcome.end, outcome.step), (End::Stopped, done), "{objective:?}");
                (bench.start, bench.stop_after, bench.stop_within) = (Start::Resume, 0, None);
                let (outcome, second) = bench.well("run");
                assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{objective:?}");
                assert!(bytes(&outcome.checkpoint) == expected, "{objective:?}, {done}");
                assert_eq!([first.losses, second.losses].concat(), reported.losses);
            }
        }
    }
}

/// How a step is cut changes the last bits alone, also where its images are compared; and a run may go
/// on with another cut.
#[test]
fn micro_batches_change_rounding_alone() {
    for objective in OBJECTIVES {
        let settings = ["train.batch_size=6", "train.epochs=3", "optim.name=sgd"];
        let with = |micro_batch| bench(objective, &[&settings[..], &[micro_batch]].concat());
        let whole = with("train.micro_batch=6").well("run").1.losses;
        for cut in ["train.micro_batch=1", "train.micro_batch=3"] {
            let losses = with(cut).well("run").1.losses;
            assert_alike(&format!("{objective:?}, {cut}"), &losses, &whole, 1e-3);
        }
        let mut bench = with("train.micro_batch=6");
        bench.stop_after = 1;
        let first = bench.well("run").1.losses;
        bench.config.train.micro_batch = Some(2);
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        let second = bench.well("run").1.losses;
        assert_alike(&format!("{objective:?}"), &[first, second].concat(), &whole, 1e-3);
    }
}

/// One image, also where a step was to have more, has none to be compared with.
#[test]
fn a_single_image_is_refused() {
    let mut bench = bench(&["objective.name=simclr", "objective.out_dim=4"], &[]);
    bench.source = Arc::new(images(1, 100));
    let error = bench.run("run").0.unwrap_err();
    let text = "`train.batch_size` is 1: `simclr` compares the images of a step with each other";
    assert!(error.to_string().starts_with(text), "{error}");
    assert!(!bench.path("run").exists());
    // Keys in a queue are those of other steps.
    let mut queued = super::compared::bench(OBJECTIVES[0], &[]);
    queued.source = Arc::new(images(1, 100));
    queued.well("run");
}

/// What a checkpoint has beside the networks, by its official names and shapes.
#[test]
fn state_by_its_official_names() {
    let expected: [&[(&str, &[usize])]; 10] = [
        &[("queue", &[4, 5]), ("queue_ptr", &[1])],
        &[],
        &[("queue1", &[4, 5]), ("queue2", &[4, 5]), ("queue_ptr", &[1])],
        &[],
        &[],
        &[("queue", &[2, 5, 4]), ("queue_filled", &[1])],
        &[("queue", &[4, 5]), ("queue2", &[4, 5]), ("queue2_ptr", &[1]), ("queue_ptr", &[1])],
        &[],
        &[("center_grid", &[1, 7])],
        &[],
    ];
    for (objective, expected) in OBJECTIVES.into_iter().zip(expected) {
        let bench = bench(objective, &[]);
        let (outcome, reported) = bench.well("run");
        let file = WeightsFile::open(&outcome.checkpoint).unwrap();
        let is_state = |name: &str| {
            !["student.", "teacher.", "optimizer."].iter().any(|start| name.starts_with(start))
        };
        let mut state: Vec<(&str, &[usize])> = file
            .tensors()
            .iter()
            .filter(|tensor| is_state(&tensor.name))
            .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
            .collect();
        state.sort_unstable();
        assert_eq!(state, expected, "{objective:?}");
        // What is evaluated later is what was during the run.
        let about = file.metadata().get(METADATA_KEY).unwrap().as_str().unwrap();
        let about: serde_json::Value = serde_json::from_str(about).unwrap();
        let has_teacher = file.tensors().iter().any(|tensor| tensor.name.starts_with("teacher."));
        let network = if has_teacher { "student".into() } else { serde_json::Value::Null };
        assert_eq!(about["backbone"]["network"], network, "{objective:?}");
        // A predictor is the student's alone.
        let of_teacher =
            |tensor: &esvit_weights::TensorInfo| tensor.name.starts_with("teacher.predictor");
        assert!(!file.tensors().iter().any(of_teacher));
        // Health and schedules are among the figures, by names that no two have.
        let figures = reported.figures.last().unwrap();
        let names: Vec<&str> = figures.objective.iter().map(|(name, _)| name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len(), "{names:?}");
        let is_spread = |name: &&str| ["embedding_std", "feature_std"].contains(name);
        assert!(names.iter().any(is_spread), "{names:?}");
        assert!(figures.summary.is_some());
    }
}
