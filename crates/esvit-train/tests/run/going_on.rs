//! Runs that go on, and runs that start from another.

use super::*;
use esvit_nn::ops::Precision;
use esvit_train::config_text::Origin;

/// Stopped after each step in turn: the state at the end, the lines of the steps and the best
/// check are those of a run that was not stopped. Lines after the checkpoint are written anew.
#[test]
fn a_run_goes_on_as_if_nothing_had_happened() {
    let settings = ["train.log_every=1", "knn.every=1", "checkpoint.keep_last=9"];
    let mut whole = Bench::new(&settings);
    whole.top1 = Some(vec![70.0, 60.0]);
    let (outcome, reported) = whole.well("run");
    let expected = bytes(&outcome.checkpoint);
    for stop_after in [1, 3, 5] {
        let mut bench = Bench::new(&settings);
        bench.top1 = whole.top1.clone();
        bench.stop_after = stop_after;
        let (outcome, first) = bench.well("run");
        assert_eq!(outcome.step, stop_after);
        if stop_after == 5 {
            // As if it had been killed before this checkpoint, and while it wrote another.
            std::fs::remove_file(&outcome.checkpoint).unwrap();
            std::fs::write(bench.path("run/checkpoints/.half.safetensors.1-0.esvit-tmp"), "")
                .unwrap();
        }
        let again = stop_after - stop_after % 3 * u64::from(stop_after == 5);
        let checks = (again / 3) as usize;
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        bench.top1 = Some(whole.top1.as_ref().unwrap()[checks..].to_vec());
        let (outcome, second) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
        assert!(bytes(&outcome.checkpoint) == expected, "stopped after {stop_after}");
        let note = format!("going on after step {again} (`");
        assert!(second.notes[0].starts_with(&note), "{:?}", second.notes);
        let losses = [&first.losses[..again as usize], &second.losses].concat();
        assert_eq!(losses, reported.losses);
        assert_eq!(bench.read("run/log.txt"), whole.read("run/log.txt"));
        let steps = |bench: &Bench| -> Vec<(u64, bool)> {
            let text = bench.read("run/metrics.jsonl");
            let line = |line| -> serde_json::Value { serde_json::from_str(line).unwrap() };
            let lines = text.lines().map(line);
            lines.map(|l| (l["step"].as_u64().unwrap(), l["knn_top1"].is_f64())).collect()
        };
        assert_eq!(steps(&bench), steps(&whole));
        // The file for TensorBoard says from which step on earlier curves are void.
        let mut events: Vec<PathBuf> = std::fs::read_dir(bench.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| name(path).starts_with("events."))
            .collect();
        events.sort();
        let restart = [0x10, again as u8 + 1, 0x3a, 2, 8, 1];
        let restarts = events.iter().map(|path| bytes(path).windows(6).any(|w| w == restart));
        assert_eq!(restarts.collect::<Vec<_>>(), [false, true]);
        let best = |bench: &Bench| bytes(&bench.path("run/checkpoints/best.safetensors"));
        assert!(best(&bench) == best(&whole));
        assert!(bench.kept("run").iter().all(|name| !name.ends_with("tmp")));
        if stop_after == 3 {
            // Nothing is left to do, and what was lost between writing and marking is marked.
            std::fs::remove_file(bench.path("run/checkpoints/best.safetensors")).unwrap();
            let (outcome, reported) = bench.well("run");
            assert_eq!((outcome.end, outcome.step), (End::NothingToDo, 6));
            assert!(
                reported.notes[1].starts_with("nothing to do: all 6 steps"),
                "{:?}",
                reported.notes
            );
            assert!(!bench.kept("run").contains(&"best.safetensors".to_owned()));
            std::fs::remove_file(bench.checkpoint("run", 2, 6)).unwrap();
            bench.top1 = Some(vec![0.0]);
            bench.well("run");
            assert!(best(&bench) == best(&whole));
            assert_eq!(bench.read("run/log.txt"), whole.read("run/log.txt"));
            assert_eq!(steps(&bench), steps(&whole));
        }
    }
}

/// A line that was not full when a run was stopped has the means of all its steps, as that of an epoch.
#[test]
fn a_line_has_steps_from_before_a_stop() {
    let settings = ["train.log_every=4"];
    let whole = Bench::new(&settings);
    let (outcome, expected) = whole.well("run");
    let expected_state = bytes(&outcome.checkpoint);
    for stop_after in [1, 2, 5] {
        let mut bench = Bench::new(&settings);
        bench.stop_after = stop_after;
        let (_, first) = bench.well("run");
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        let (outcome, second) = bench.well("run");
        assert_eq!(bench.read("run/log.txt"), whole.read("run/log.txt"), "{stop_after}");
        let means = |figures: &[StepMetrics]| -> Vec<(u64, Vec<u64>)> {
            let bits = |line: &StepMetrics| {
                let parts = line.loss_parts().map(|part| part.1);
                let all = [line.train_loss, line.grad_norm].into_iter().chain(parts);
                (line.step, all.map(f64::to_bits).collect())
            };
            figures.iter().map(bits).collect()
        };
        let found = [means(&first.figures), means(&second.figures)].concat();
        assert_eq!(found, means(&expected.figures), "{stop_after}");
        // Times are those of the steps that were timed.
        for line in &second.figures {
            close("images", line.img_per_s * line.batch_time, 2.0);
        }
        assert!(bytes(&outcome.checkpoint) == expected_state, "{stop_after}");
    }
}

/// Where kernels take other instructions than before, that is said, and the precision stays.
#[test]
fn other_instructions_are_told() {
    let isa = esvit_kernels::isa::current().name();
    let other = if Precision::auto() == Precision::F32 { Precision::Bf16 } else { Precision::F32 };
    let mut bench = Bench::new(&[&format!("train.precision={}", other.name())]);
    bench.stop_after = 2;
    bench.well("run");
    bench.start = Start::Resume;
    let told = format!("kernels take `{isa}`, before `abacus`: results differ by rounding");
    for (environment, is_told) in [
        (serde_json::json!({ "isa": "abacus" }), true),
        (serde_json::json!({ "isa": isa }), false),
        (serde_json::json!({ "isa": "abacus", "resumed": [{ "isa": isa }] }), false),
        (serde_json::json!({ "isa": isa, "resumed": [{ "isa": isa }, { "isa": "abacus" }] }), true),
    ] {
        std::fs::write(bench.path("run/env.json"), environment.to_string()).unwrap();
        bench.stop_after += 1;
        let (_, reported) = bench.well("run");
        let note = reported.notes.iter().find(|note| note.starts_with(&told));
        assert_eq!(note.is_some(), is_told, "{environment}: {:?}", reported.notes);
        let kept = format!("; `train.precision={}` stays, ", other.name());
        assert!(note.is_none_or(|note| note.contains(&kept)), "{note:?}");
        let stored = Config::parse(&bench.read("run/config.toml"), Origin::Defaults).unwrap();
        assert_eq!(stored.train.precision(), other);
    }
}

/// What LARS and LARC remember, with the learning rate inside and outside, and the place in a
/// schedule.
#[test]
fn optimizers_and_schedules_go_on() {
    for settings in [
        ["optim.name=larc", "optim.decay=all", "optim.schedule=warmup_cosine"],
        ["optim.name=lars", "optim.lr_in_momentum=true", "optim.schedule=timm_cosine"],
        ["optim.name=sgd", "optim.decay=all", "optim.schedule=epoch_cosine"],
    ] {
        let expected = bytes(&Bench::new(&settings).well("run").0.checkpoint);
        let mut bench = Bench::new(&settings);
        bench.stop_after = 4;
        bench.well("run");
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        let (outcome, _) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
        assert!(bytes(&outcome.checkpoint) == expected, "{settings:?}");
    }
}

#[test]
fn a_broken_checkpoint_is_passed_over_and_reported() {
    let mut bench = Bench::new(&["checkpoint.every=1 steps", "checkpoint.keep_last=9"]);
    let (outcome, _) = bench.well("run");
    let expected = bytes(&outcome.checkpoint);
    for step in [4, 5, 6] {
        std::fs::write(bench.checkpoint("run", step / 3, step), "half").unwrap();
    }
    bench.start = Start::Resume;
    let (outcome, reported) = bench.well("run");
    assert!(bytes(&outcome.checkpoint) == expected);
    assert_eq!(reported.notes.len(), 4, "{:?}", reported.notes);
    assert!(reported.notes[0].starts_with("passing over a broken checkpoint: "));
    assert!(reported.notes[0].contains(&numbered(2, 6)), "{}", reported.notes[0]);
    assert!(reported.notes[3].contains(&numbered(1, 3)), "{}", reported.notes[3]);
    // Without any that is whole, the run does not start over.
    for name in bench.kept("run") {
        std::fs::write(bench.path("run/checkpoints").join(name), "half").unwrap();
    }
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains(&numbered(2, 6)), "the newest: {error}");
    // Nor with none at all, where it had any.
    std::fs::remove_dir_all(bench.path("run/checkpoints")).unwrap();
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.contains("has metrics up to step 6 and no checkpoint"), "{error}");
    std::fs::remove_file(bench.path("run/metrics.jsonl")).unwrap();
    let (outcome, reported) = bench.well("run");
    assert!(bytes(&outcome.checkpoint) == expected);
    assert_eq!(reported.notes, ["no checkpoint yet, starting from the beginning"]);
}

/// The first checkpoint of a run holds what it starts from.
#[test]
fn a_run_starts_from_another() {
    let mut bench = Bench::new(&["objective.region=false"]);
    let (old, _) = bench.well("old");
    let tensors = |path: &Path| -> Vec<(String, Vec<f32>)> {
        let checkpoint = Checkpoint::open(path).unwrap();
        let file = checkpoint.file();
        let values = |tensor| file.read_f32(tensor).unwrap();
        file.tensors().iter().map(|tensor| (tensor.name.clone(), values(tensor))).collect()
    };
    let stored = tensors(&old.checkpoint);
    let value = |name: &str| stored.iter().find(|(other, _)| other == name).map(|(_, v)| v.clone());
    assert!(value("optimizer.exp_avg.norm.weight").is_some());

    // All of it, at its step, with a task more.
    bench.config = config(&["train.epochs=3"]);
    bench.start = Start::ContinueFrom(old.checkpoint.clone());
    let (outcome, reported) = bench.well("continued");
    assert_eq!((outcome.end, outcome.step, reported.losses.len()), (End::Finished, 9, 3));
    assert_eq!(reported.checkpoints, [numbered(2, 6), numbered(3, 9)]);
    let expected = format!(
        "the state of `backbone`, `head` from `{}`; `head_dense` start anew",
        old.checkpoint.display()
    );
    assert_eq!(reported.notes, [expected]);
    let found = tensors(&bench.checkpoint("continued", 2, 6));
    let mut new = Vec::new();
    for (name, values) in &found {
        match value(name) {
            Some(expected) => assert_eq!(values, &expected, "{name}"),
            None => new.push(name.as_str()),
        }
    }
    assert!(stored.iter().all(|(name, _)| found.iter().any(|(other, _)| other == name)));
    assert!(new.contains(&"student.head_dense.mlp.0.weight") && new.contains(&"center_grid"));
    let is_new = |name: &str| name.contains("head_dense") || name == "center_grid";
    assert!(new.iter().all(|name| is_new(name) && !name.starts_with("optimizer.")), "{new:?}");
    let error = {
        bench.config = config(&[]);
        bench.run("nothing left").0.unwrap_err().to_string()
    };
    assert!(error.contains("is at step 6 and the run would end at step 6"), "{error}");
    assert!(error.contains("hint: give the run more than 2 epochs"), "{error}");
    assert!(!bench.path("nothing left").exists());

    // Weights alone, from the first step.
    bench.start = Start::InitFrom { path: old.checkpoint.clone(), key: None };
    let (outcome, reported) = bench.well("begun");
    assert_eq!((outcome.step, reported.losses.len()), (6, 6));
    let expected = format!(
        "weights of `backbone`, `head` from `{}`; `head_dense` start anew",
        old.checkpoint.display()
    );
    assert_eq!(reported.notes, [expected]);
    for (name, values) in tensors(&bench.checkpoint("begun", 0, 0)) {
        assert!(!name.starts_with("optimizer."), "{name}");
        match value(&name) {
            _ if name.starts_with("center") => assert!(values.iter().all(|&v| v == 0.0), "{name}"),
            Some(expected) => assert_eq!(values, expected, "{name}"),
            None => assert!(is_new(&name) || name.contains("head_dense"), "{name}"),
        }
    }
    bench.start = Start::InitFrom { path: bench.path("missing.safetensors"), key: None };
    let error = bench.run("no start").0.unwrap_err().to_string();
    assert!(error.contains("missing.safetensors") && !bench.path("no start").exists(), "{error}");
}
