//! Runs that learn from a frozen teacher: they go on to the byte, and with no other teacher.

use esvit_nn::BackboneConfig;
use esvit_testing::{fill, tiny_vit};
use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::distill::TeacherNetwork;

use super::*;

/// A vision transformer with the values of a stream.
fn teacher(stream: u32) -> Arc<TeacherNetwork> {
    let config = BackboneConfig::Vit(tiny_vit());
    let (_, specs) = config.build(0.0);
    let path = format!("teacher-{stream}.safetensors").into();
    let normalization = [[0.5; 3], [0.25; 3]];
    Arc::new(TeacherNetwork::new(path, config, fill(&specs, stream), 16, normalization))
}

fn bench(settings: &[&str], stream: u32) -> Bench {
    let all = [&["objective.name=distill", "train.log_every=1"][..], settings].concat();
    let mut bench = Bench::new(&all);
    bench.config.attach_teacher(teacher(stream)).unwrap();
    bench
}

/// Stopped after each of some steps: the end is that of a run that was not stopped. The last one caches the
/// teacher's features, which are computed again in other company after a stop.
#[test]
fn a_distillation_goes_on_as_if_nothing_had_happened() {
    let cached = [
        "objective.loss=prototypes",
        "views.policy=basic",
        "views.flip=0.0",
        "views.global_count=1",
        "views.global_scale=[1.0, 1.0]",
        "views.local_counts=[0]",
    ];
    for settings in [
        &["objective.loss=cosine"][..],
        &["objective.loss=mse", "objective.region=false"],
        &["objective.loss=prototypes", "objective.prototypes=5"],
        &cached,
    ] {
        let uninterrupted = bench(settings, 500);
        let (outcome, reported) = uninterrupted.well("run");
        let first = &reported.notes[0];
        assert!(first.starts_with("the teacher is `teacher-500.safetensors`: ViT ("), "{first}");
        let is_cached = reported.notes.iter().any(|note| note.contains("are cached"));
        assert_eq!(is_cached, settings.len() == cached.len());
        for figures in &reported.figures {
            let view = figures.get("view_loss").unwrap();
            assert!(view.is_finite() && view > 0.0);
        }
        let whole = bytes(&outcome.checkpoint);
        let metadata = Checkpoint::open(&outcome.checkpoint).unwrap().metadata.unwrap();
        assert_eq!(metadata.teacher, Some(teacher(500).record()));
        for stop_after in [1, 3, 4] {
            let mut bench = bench(settings, 500);
            bench.stop_after = stop_after;
            let (outcome, _) = bench.well("run");
            assert_eq!((outcome.end, outcome.step), (End::Stopped, stop_after));
            (bench.start, bench.stop_after) = (Start::Resume, 0);
            let (outcome, _) = bench.well("run");
            assert!(bytes(&outcome.checkpoint) == whole, "{settings:?}, {stop_after}");
        }
        // What is stored is the student alone, and its backbone is one by itself.
        let file = WeightsFile::open(&outcome.checkpoint).unwrap();
        assert!(file.tensors().iter().all(|tensor| !tensor.name.starts_with("teacher.")));
    }
}

#[test]
fn another_teacher_is_refused() {
    let mut bench = bench(&[], 500);
    bench.stop_after = 2;
    bench.well("run");
    let before = bytes(&bench.checkpoint("run", 0, 2));
    (bench.start, bench.stop_after) = (Start::Resume, 0);
    bench.config.attach_teacher(teacher(501)).unwrap();
    let (outcome, _) = bench.run("run");
    let error = outcome.unwrap_err();
    assert!(matches!(error, RunError::OtherTeacher { .. }), "{error}");
    let error = error.to_string();
    for part in [
        "`teacher-501.safetensors` is not the teacher that this run learned from",
        &teacher(501).record().tensors,
        &teacher(500).record().tensors,
        "`teacher-500.safetensors`",
        "hint: name the file that taught it with `--teacher PATH`",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(bytes(&bench.checkpoint("run", 0, 2)) == before);
    bench.config.attach_teacher(teacher(500)).unwrap();
    let (outcome, _) = bench.well("run");
    assert_eq!(outcome.end, End::Finished);

    // A run that goes on elsewhere may have another one, and says so.
    bench.start = Start::ContinueFrom(outcome.checkpoint);
    bench.config.train.epochs = Some(3);
    bench.config.attach_teacher(teacher(501)).unwrap();
    let (_, reported) = bench.well("next");
    let says = |note: &String| note.contains("the teacher is `teacher-501.safetensors` (tensors ");
    assert!(reported.notes.iter().any(says), "{:?}", reported.notes);
}

#[test]
fn a_distillation_without_a_teacher_does_not_begin() {
    let bench = Bench::new(&["objective.name=distill"]);
    let error = bench.run("run").0.unwrap_err().to_string();
    assert!(error.starts_with("`objective.teacher` is none: "), "{error}");
    assert!(!bench.path("run").exists());
}

/// A teacher that moved with its run is found; what is named with its whole path stays.
#[test]
fn a_teacher_is_looked_for_beside_the_run() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("runs/student");
    std::fs::create_dir_all(&run).unwrap();
    let folder = esvit_train::run::RunFolder::at(run.clone());
    let found = |teacher: &Path| {
        let mut config = config(&["objective.name=distill"]);
        let ObjectiveConfig::Distill(distill) = &mut config.objective else { panic!("distill") };
        distill.settings.teacher = Some(teacher.into());
        folder.find_images(&mut config);
        let ObjectiveConfig::Distill(distill) = config.objective else { panic!("distill") };
        distill.settings.teacher.unwrap()
    };
    let named = Path::new("models/vit-of-this-test.safetensors");
    assert_eq!(found(named), named);
    let beside = place.path().canonicalize().unwrap().join(named);
    std::fs::create_dir_all(beside.parent().unwrap()).unwrap();
    std::fs::write(&beside, "").unwrap();
    assert_eq!(found(named), beside);
    assert_eq!(found(&place.path().join("gone")), place.path().join("gone"));
    // Where the run was started comes first.
    let start = place.path().join("start");
    std::fs::create_dir_all(start.join("models")).unwrap();
    std::fs::write(start.join(named), "").unwrap();
    let environment = serde_json::json!({ "folder": start });
    std::fs::write(run.join("env.json"), environment.to_string()).unwrap();
    assert_eq!(found(named), start.join(named));
}
