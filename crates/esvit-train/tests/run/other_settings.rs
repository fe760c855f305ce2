//! Runs whose checkpoints do not fit the settings that they are to go on with.

use super::*;

const MOCO: [&str; 2] = ["objective.name=mocov2", "objective.out_dim=4"];

/// A run of six steps with these settings.
fn done(settings: &[&str]) -> (Bench, Outcome) {
    let bench = Bench::new(settings);
    let outcome = bench.well("run").0;
    (bench, outcome)
}

/// The values of a tensor of a checkpoint, if it has one of this name.
fn tensor(path: &Path, name: &str) -> Option<Vec<f32>> {
    let file = WeightsFile::open(path).unwrap();
    file.find("", name).map(|tensor| file.read_f32(tensor).unwrap())
}

/// What is wrong when the run goes on with other settings: what is not as it was, and what does not fit.
fn refused(bench: &Bench) -> (Vec<String>, Vec<String>, String) {
    let error = bench.run("run").0.unwrap_err();
    let text = error.to_string();
    let RunError::OtherSettings { changed, misfits, .. } = error else { panic!("{text}") };
    (changed, misfits, text)
}

/// A checkpoint that is whole is not passed over for an earlier one that fits: its steps would be gone.
#[test]
fn a_checkpoint_that_does_not_fit_is_not_broken() {
    let (mut bench, _) = done(&["checkpoint.keep_last=9"]);
    bench.start = Start::Resume;
    bench.config = config(&["checkpoint.keep_last=9", "objective.region=false", "train.epochs=3"]);
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step), (End::Finished, 9));
    assert!(reported.notes.iter().all(|note| !note.contains("broken")), "{:?}", reported.notes);
    let before = (bytes(&outcome.checkpoint), bench.kept("run"), bench.read("run/metrics.jsonl"));
    bench.config = config(&["checkpoint.keep_last=9", "train.epochs=4"]);
    let (changed, misfits, text) = refused(&bench);
    assert_eq!(
        changed,
        ["objective.region.enabled = true (it was false)", "train.epochs = 4 (it was 3)"]
    );
    assert!(misfits.iter().all(|line| line.contains("head_dense")), "{misfits:?}");
    let beginning = format!("{}` does not fit the run as it is now: ", numbered(3, 9));
    assert!(text.contains(&beginning), "{text}");
    assert!(text.contains("\n  ... and ") && text.contains("--continue-from "), "{text}");
    let after = (bytes(&outcome.checkpoint), bench.kept("run"), bench.read("run/metrics.jsonl"));
    assert!(before == after);
    // As the hint says.
    bench.start = Start::ContinueFrom(outcome.checkpoint);
    let (outcome, reported) = bench.well("both");
    assert_eq!((outcome.step, reported.losses.len()), (12, 3));
    assert!(reported.notes[0].ends_with("; `head_dense` start anew"), "{:?}", reported.notes);
}

/// Of another objective its name alone is told, and of another network that it cannot be taken over.
#[test]
fn what_has_changed_is_told() {
    let (mut bench, _) = done(&[]);
    bench.start = Start::Resume;
    bench.config = config(&["objective.name=byol", "objective.hidden_dim=8"]);
    let (changed, _, text) = refused(&bench);
    assert_eq!(changed.len(), 1, "{text}");
    assert!(changed[0].starts_with("objective.name = ") && changed[0].contains("byol"), "{text}");
    bench.config = config(&["model.embed_dim=8"]);
    let (changed, misfits, text) = refused(&bench);
    assert_eq!(changed, ["model.embed_dim = 8 (it was 4)"]);
    assert!(misfits.len() > 3 && text.contains("patch_embed.proj.weight"), "{text}");
    assert!(text.contains("hint: ") && !text.contains("--continue-from"), "{text}");
    // What no setting changes is damage.
    bench.config = config(&["train.epochs=3"]);
    let path = bench.checkpoint("run", 2, 6);
    let mut whole = bytes(&path);
    let end = whole.len() - 4;
    whole[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, whole).unwrap();
    let (_, reported) = bench.well("run");
    assert!(reported.notes[0].starts_with("passing over a broken checkpoint: "));
}

/// Only the queue has another length: it is told so, and in a new run it starts anew and all else goes on.
#[test]
fn a_queue_of_another_length() {
    let (mut bench, outcome) = done(&[&MOCO[..], &["objective.queue_length=5"]].concat());
    let others = ["objective.queue_length=7", "train.epochs=3", "checkpoint.keep_last=9"];
    let longer = [&MOCO[..], &others].concat();
    (bench.start, bench.config) = (Start::Resume, config(&longer));
    let (changed, misfits, text) = refused(&bench);
    assert!(changed.contains(&"objective.queue_length = 7 (it was 5)".to_owned()), "{text}");
    assert_eq!(misfits, ["`queue` is [4, 5], the run has [4, 7]"]);
    assert!(text.contains("--continue-from ") && !text.contains("--init-from"), "{text}");

    bench.start = Start::ContinueFrom(outcome.checkpoint.clone());
    let (continued, reported) = bench.well("longer");
    assert!(reported.notes[0].ends_with("; `queue`, `queue_ptr` start anew"), "{text}");
    assert_eq!((continued.step, reported.losses.len()), (9, 3));
    bench.start = Start::New;
    bench.well("fresh");
    let first = bench.checkpoint("longer", 2, 6);
    for name in ["queue", "queue_ptr"] {
        assert_eq!(tensor(&first, name), tensor(&bench.checkpoint("fresh", 0, 0), name));
    }
    let name = "optimizer.exp_avg.norm.weight";
    assert!(tensor(&first, name).is_some());
    assert_eq!(tensor(&first, name), tensor(&outcome.checkpoint, name));
}

/// No row of a queue that starts anew counts as filled.
#[test]
fn a_queue_that_starts_anew_is_empty() {
    let swav = [
        "objective.name=swav",
        "objective.prototypes=7",
        "objective.queue_start=2 steps",
        "objective.hidden_dim=8",
        "objective.out_dim=4",
    ];
    let (mut bench, outcome) = done(&[&swav[..], &["objective.queue_length=5"]].concat());
    assert_eq!(tensor(&outcome.checkpoint, "queue_filled"), Some(vec![5.0]));
    let shorter = ["objective.queue_length=3", "train.epochs=3"];
    bench.config = config(&[&swav[..], &shorter].concat());
    bench.start = Start::ContinueFrom(outcome.checkpoint);
    bench.well("shorter");
    let first = bench.checkpoint("shorter", 2, 6);
    assert_eq!(tensor(&first, "queue_filled"), Some(vec![0.0]));
}

/// Heads that another objective has in another form start anew, with the moments of the optimizer.
#[test]
fn a_run_goes_on_with_another_objective() {
    let named = |name: &'static str| vec![name, "objective.hidden_dim=8", "objective.out_dim=4"];
    let [moby, byol, mocov3] =
        ["objective.name=moby", "objective.name=byol", "objective.name=mocov3"].map(named);
    // One bias has the same shape in both.
    let narrower = vec!["objective.name=moby", "objective.hidden_dim=6", "objective.out_dim=4"];
    let both = ["projector", "predictor"];
    for (before, after, heads) in [
        (&moby, &byol, &both[..]),
        (&byol, &moby, &both),
        (&moby, &narrower, &both),
        (&mocov3, &byol, &["projector"]),
        (&mocov3, &vec![], &["head", "head_dense"]),
    ] {
        let (mut bench, outcome) = done(before);
        bench.config = config(&[&after[..], &["train.epochs=3"]].concat());
        bench.start = Start::ContinueFrom(outcome.checkpoint.clone());
        let (continued, reported) = bench.well("continued");
        let what = format!("{before:?} to {after:?}: {:?}", reported.notes);
        assert!(reported.notes[0].contains(" start anew"), "{what}");
        assert_eq!((continued.step, reported.losses.len()), (9, 3), "{what}");
        assert!(reported.losses.iter().all(|loss| loss.is_finite()), "{what}");
        let first = bench.checkpoint("continued", 2, 6);
        let file = WeightsFile::open(&first).unwrap();
        for head in heads {
            assert!(reported.notes[0].contains(&format!("`{head}`")), "{head}: {what}");
            let start = format!("optimizer.exp_avg.{head}.");
            assert!(file.tensors().iter().all(|tensor| !tensor.name.starts_with(&start)), "{what}");
        }
        for name in ["student.norm.weight", "optimizer.exp_avg.norm.weight"] {
            assert_eq!(tensor(&first, name), tensor(&outcome.checkpoint, name), "{what}");
        }
    }
}
