//! A learner's state in a file: all of it, or what fits another network.

use std::io::Write;
use std::path::{Path, PathBuf};

use esvit_nn::weights::{self, Entry, METADATA_KEY, entry};
use esvit_train::Config;
use esvit_train::checkpoint::{self, Best, Checkpoint, CheckpointError, Measure, Metadata};
use esvit_train::optim::OptimizerConfig;

use super::*;

/// A learner after two steps, the first with frozen prototypes.
fn trained(kind: OptimizerKind) -> Learner {
    let mut learner = learner(kind, true, true);
    esvit_mut(&mut learner).config.freeze_last_layer = Span::Epochs(1.0);
    for step in 0..2 {
        learner.step([batch(2)], &StepInfo { step, epoch: step, ..STEP }).unwrap();
    }
    learner
}

/// A run that goes on writes what it has read: decimals to the last bit.
#[test]
fn figures_come_back_to_the_bit() {
    let best = Best { by: Measure::Knn, top1: 13.118811881188119, epoch: 1, step: Some(25) };
    let again: Best = serde_json::from_str(&serde_json::to_string(&best).unwrap()).unwrap();
    assert_eq!(again.top1.to_bits(), best.top1.to_bits());
}

/// Settings of another run: what a learner is stored with is not looked at.
fn settings() -> Config {
    Config { seed: 31, ..Config::default() }
}

fn metadata() -> Metadata {
    Metadata::new(
        12,
        3,
        &settings(),
        Some(Best { by: Measure::Knn, top1: 51.5, epoch: 2, step: None }),
    )
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn saved(&self, learner: &Learner) -> Checkpoint {
        let path = self.path("state.safetensors");
        checkpoint::save(&path, learner, metadata()).unwrap();
        Checkpoint::open(&path).unwrap()
    }

    fn written(&self, entries: &[Entry], metadata: &str) -> Checkpoint {
        let path = self.path("written.safetensors");
        let mut bytes = Vec::new();
        weights::save(&mut bytes, entries, metadata).unwrap();
        std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        Checkpoint::open(&path).unwrap()
    }
}

/// The stored tensors but those whose name starts as one of `without`.
fn entries(checkpoint: &Checkpoint, without: &[&str]) -> Vec<Entry> {
    let file = checkpoint.file();
    let tensors = file.tensors().iter();
    let tensors =
        tensors.filter(|tensor| !without.iter().any(|start| tensor.name.starts_with(start)));
    let entries = tensors.map(|tensor| {
        let values = file.read_f32(tensor).unwrap();
        let values = Tensor::from_vec(values, &Device::Cpu);
        entry(tensor.name.clone(), &tensor.shape, &values)
    });
    entries.collect()
}

fn stored_metadata(checkpoint: &Checkpoint) -> String {
    checkpoint.file().metadata().get(METADATA_KEY).and_then(|value| value.as_str()).unwrap().into()
}

/// Values of the parameters whose name starts with `start`, as bits.
fn part(params: &Params, start: &str) -> Vec<u32> {
    let parts = params.iter().filter(|(spec, _)| spec.name.starts_with(start));
    parts.flat_map(|(_, value)| value.to_vec::<f32>()).map(f32::to_bits).collect()
}

#[test]
fn all_of_a_state_is_restored() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Sgd, OptimizerKind::Larc] {
        let place = Place::new();
        let learner = trained(kind);
        let file = place.saved(&learner);
        let mut restored = super::learner(kind, true, true);
        file.restore(&mut restored).unwrap();
        assert!(state(&restored) == state(&learner), "{kind:?}");
        let updates = |name: &str| {
            let specs = learner.network.specs().iter();
            let at = specs.map(|spec| spec.name.as_str()).position(|other| other == name);
            restored.optimizer.updates(at.unwrap())
        };
        let found = ["head.last_layer.weight_v", "norm.weight", "head.last_layer.weight_g"];
        assert_eq!(found.map(updates), [1, 2, 0]);
        let metadata = file.run().unwrap();
        assert_eq!((metadata.step, metadata.epoch), (12, 3));
        assert_eq!(
            metadata.best,
            Some(Best { by: Measure::Knn, top1: 51.5, epoch: 2, step: None })
        );
        assert_eq!(metadata.config(Path::new("")).unwrap(), settings());
        assert_eq!(metadata.program, env!("CARGO_PKG_VERSION"));
        let text: serde_json::Value = serde_json::from_str(&stored_metadata(&file)).unwrap();
        let expected = serde_json::json!({
            "model": settings().model.backbone, "preprocess": settings().preprocess(), "seed": 31
        });
        assert_eq!(text["backbone"], expected, "for readers that know nothing of runs");

        // Equal states make equal files.
        let first = std::fs::read(place.path("state.safetensors")).unwrap();
        place.saved(&restored);
        assert!(std::fs::read(place.path("state.safetensors")).unwrap() == first);
    }
}

/// The moments of one optimizer mean nothing to another one.
#[test]
fn another_optimizer_starts_anew() {
    for [before, now] in
        [[OptimizerKind::AdamW, OptimizerKind::Sgd], [OptimizerKind::Lars, OptimizerKind::AdamW]]
    {
        let place = Place::new();
        let learner = trained(before);
        let file = place.saved(&learner);
        let text = stored_metadata(&file);
        let name = |kind| match kind {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::Lars => "lars",
            OptimizerKind::Larc => "larc",
        };
        // The settings beside them say which optimizer it was.
        let text =
            text.replace("name = \\\"adamw\\\"", &format!("name = \\\"{}\\\"", name(before)));
        let file = place.written(&entries(&file, &[]), &text);
        let mut other = super::learner(now, true, true);
        file.restore(&mut other).unwrap();
        assert!(other.student.flat().to_vec::<f32>() == learner.student.flat().to_vec::<f32>());
        for index in 0..learner.network.specs().len() {
            let found = &other.optimizer;
            assert!(found.moments(index).is_empty() && found.updates(index) == 0);
        }
    }
}

/// What momentum has added up without the learning rate is of another size than what has it inside.
#[test]
fn momentum_with_the_rate_inside_starts_anew() {
    let place = Place::new();
    let file = place.saved(&trained(OptimizerKind::Sgd));
    for [lr_in_momentum, is_restored] in [[false, true], [true, false]] {
        let mut other = super::learner(OptimizerKind::Sgd, true, true);
        let config = OptimizerConfig { lr_in_momentum, ..OptimizerKind::Lars.into() };
        other.optimizer = Optimizer::new(config, other.network.specs(), &Device::Cpu);
        file.restore(&mut other).unwrap();
        let has_moments = |index| !other.optimizer.moments(index).is_empty();
        let found = (0..other.network.specs().len()).any(has_moments);
        assert_eq!(found, is_restored, "{lr_in_momentum}");
    }
}

#[test]
fn what_does_not_fit_is_not_restored() {
    let place = Place::new();
    let file = place.saved(&trained(OptimizerKind::AdamW));
    let text = stored_metadata(&file);
    let fresh = || super::learner(OptimizerKind::AdamW, true, true);
    for (without, expected) in [
        ("center", "`center` of shape [1, 6] is missing"),
        ("center_grid", "`center_grid` of shape [1, 6] is missing"),
        ("teacher.norm.weight", "`teacher.norm.weight` [8] is missing"),
        ("optimizer.exp_avg.norm.weight", "`optimizer.exp_avg.norm.weight` is missing"),
        ("optimizer.exp_avg_sq.", "`optimizer.exp_avg_sq."),
        ("optimizer", "`optimizer.exp_avg."),
    ] {
        let file = place.written(&entries(&file, &[without]), &text);
        let error = file.restore(&mut fresh()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Written by a later version.
    let later = text.replace("\"format\":1", "\"format\":2");
    let path = place.path("written.safetensors");
    let mut bytes = Vec::new();
    weights::save(&mut bytes, &entries(&file, &[]), &later).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("format: it is 2, this program reads 1\nhint: "), "{error}");
    let mut other = fresh();
    let BackboneConfig::Swin(swin) = tiny_backbone() else { panic!("a Swin") };
    let wider = BackboneConfig::Swin(SwinConfig { window_size: 4, ..swin });
    let config = EsvitConfig { head: head(true, true), ..EsvitConfig::default() };
    (other.network, _) = network(&wider, 0.0, &config, 0);
    let error = file.restore(&mut other).unwrap_err();
    assert!(matches!(error, CheckpointError::OtherSettings { .. }), "{error}");
    assert!(error.to_string().contains("made for another size of images or windows: "), "{error}");

    // The description is that of no network.
    let damaged = text.replace("\"num_heads\":[3,", "\"num_heads\":[5,");
    assert_ne!(damaged, text);
    let path = place.path("written.safetensors");
    let mut bytes = Vec::new();
    weights::save(&mut bytes, &entries(&file, &[]), &damaged).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("written.safetensors` is damaged: backbone.model: `num_heads[0]` is 5"),
        "{error}"
    );

    let weights = place.written(&entries(&file, &["optimizer", "center"]), "{}");
    assert_eq!(weights.metadata, None);
    for error in [
        weights.run().map(drop),
        weights.restore(&mut fresh()),
        weights.continue_from(&mut fresh()).map(drop),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("holds weights and not the state of a run"), "{error}");
        assert!(error.contains("hint: start a new run from it with `--init-from"), "{error}");
    }
    let error = Checkpoint::open(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent"), "{error}");
}

/// Both networks begin as the one that is named.
#[test]
fn a_learner_begins_from_the_network_of_its_key() {
    let place = Place::new();
    let learner = trained(OptimizerKind::AdamW);
    let file = place.saved(&learner);
    for (key, expected) in [("student", &learner.student), ("teacher", teacher_of(&learner))] {
        let mut begun = super::learner(OptimizerKind::AdamW, true, true);
        file.initialize(&mut begun, Some(key)).unwrap();
        for found in [&begun.student, teacher_of(&begun)] {
            assert!(part(found, "layers.") == part(expected, "layers."), "{key}");
        }
    }
    let mut begun = super::learner(OptimizerKind::AdamW, true, true);
    let error = file.initialize(&mut begun, Some("ema")).unwrap_err().to_string();
    assert!(error.contains("has no network `ema`, only `student`, `teacher`"), "{error}");
}

/// Weights alone: the student's and the teacher's of a run, or one network's for both.
#[test]
fn weights_to_begin_with() {
    let place = Place::new();
    let learner = trained(OptimizerKind::AdamW);
    let file = place.saved(&learner);
    let fresh = || super::learner(OptimizerKind::AdamW, true, true);
    let mut begun = fresh();
    let loaded = file.initialize(&mut begun, None).unwrap();
    assert_eq!(loaded.found, ["backbone", "head", "head_dense"]);
    assert!(loaded.new.is_empty() && loaded.report.resized.is_empty());
    assert_eq!(loaded.norm_eps, None, "the run's settings say");
    assert_eq!(loaded.report.matched, learner.network.specs().len());
    let same = |a: &Params, b: &Params| part(a, "") == part(b, "");
    assert!(
        same(&begun.student, &learner.student) && same(teacher_of(&begun), teacher_of(&learner))
    );
    assert!(!same(&begun.student, teacher_of(&begun)));
    for index in 0..learner.network.specs().len() {
        let optimizer = &begun.optimizer;
        assert!(optimizer.moments(index).is_empty() && optimizer.updates(index) == 0);
    }
    assert_eq!(centers(&begun).view.to_vec::<f32>(), centers(&fresh()).view.to_vec::<f32>());

    // The backbone of one network and the head of the view task.
    let values = weights::entries("", teacher_of(&learner));
    let values: Vec<Entry> =
        values.into_iter().filter(|(name, _)| !name.starts_with("head_dense.")).collect();
    let path = place.path("network.safetensors");
    let mut bytes = Vec::new();
    esvit_weights::write_safetensors(&mut bytes, &values, &Default::default()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let mut begun = fresh();
    let loaded = Checkpoint::open(&path).unwrap().initialize(&mut begun, None).unwrap();
    assert_eq!(
        (loaded.found, loaded.new),
        (vec!["backbone".to_owned(), "head".to_owned()], vec!["head_dense".to_owned()])
    );
    assert_eq!(loaded.norm_eps, Some(1e-6), "that of EsViT's programs");
    let fresh = fresh();
    for (params, old) in
        [(&begun.student, &fresh.student), (teacher_of(&begun), teacher_of(&fresh))]
    {
        for start in ["head.", "layers.", "norm.", "patch_embed."] {
            assert!(part(params, start) == part(teacher_of(&learner), start), "{start}");
        }
        assert!(part(params, "head_dense.") == part(old, "head_dense."));
    }
}

/// A run of the view task goes on with the region task beside it, and the other way round.
#[test]
fn a_run_goes_on_with_other_tasks() {
    let place = Place::new();
    let learner = trained(OptimizerKind::AdamW);
    let file = place.saved(&learner);
    let text = stored_metadata(&file);
    let without = [
        "student.head_dense",
        "teacher.head_dense",
        "optimizer.exp_avg.head_dense",
        "optimizer.exp_avg_sq.head_dense",
        "center_grid",
    ];
    let view = place.written(&entries(&file, &without), &text);
    let mut both = super::learner(OptimizerKind::AdamW, true, true);
    let fresh = learner_like(&both);
    let loaded = view.continue_from(&mut both).unwrap();
    assert_eq!(
        (loaded.found, loaded.new),
        (vec!["backbone".to_owned(), "head".to_owned()], vec!["head_dense".to_owned()])
    );
    for (params, [stored, old]) in [
        (&both.student, [&learner.student, &fresh.student]),
        (teacher_of(&both), [teacher_of(&learner), teacher_of(&fresh)]),
    ] {
        for start in ["head.", "layers.", "norm.", "patch_embed."] {
            assert!(part(params, start) == part(stored, start), "{start}");
        }
        assert!(part(params, "head_dense.") == part(old, "head_dense."));
    }
    assert_eq!(centers(&both).view.to_vec::<f32>(), centers(&learner).view.to_vec::<f32>());
    let [found, expected] =
        [&both, &fresh].map(|l| centers(l).region.as_ref().unwrap().to_vec::<f32>());
    assert_eq!(found, expected);
    let [found, stored] = [&both.optimizer, &learner.optimizer];
    for (index, spec) in learner.network.specs().iter().enumerate() {
        if spec.name.starts_with("head_dense") {
            assert!(found.moments(index).is_empty(), "{}", spec.name);
        } else {
            assert_eq!(moments(found, index), moments(stored, index), "{}", spec.name);
            assert_eq!(found.updates(index), stored.updates(index), "{}", spec.name);
        }
    }

    // All of it is as a restored one.
    let mut all = super::learner(OptimizerKind::AdamW, true, true);
    assert_eq!(file.continue_from(&mut all).unwrap().new, Vec::<String>::new());
    assert!(state(&all) == state(&learner));

    // Without the region task, its head is left out.
    let config =
        EsvitConfig { region: false.into(), head: head(true, true), ..EsvitConfig::default() };
    let (network, objective) = network(&tiny_backbone(), 0.0, &config, 0);
    let kind = OptimizerKind::AdamW;
    let mut alone = Learner::new(network, Box::new(objective), kind, SETTINGS, &Device::Cpu);
    let loaded = file.continue_from(&mut alone).unwrap();
    assert_eq!(loaded.found, ["backbone", "head"]);
    assert!(part(teacher_of(&alone), "head.") == part(teacher_of(&learner), "head."));
    assert!(centers(&alone).region.is_none());
    assert_eq!(centers(&alone).view.to_vec::<f32>(), centers(&learner).view.to_vec::<f32>());
}
