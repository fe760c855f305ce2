//! Runs with labels: they learn, go on after a stop, lend their backbone, and refuse images without.

use std::any::Any;

use esvit_nn::weights::StoredNetwork;
use esvit_nn::{Device, ForwardCtx};
use esvit_train::objective::supervised::Supervised;

use esvit_train::span::Span;

use super::*;

const SUPERVISED: [&str; 6] = [
    "objective.name=supervised",
    "objective.label_smoothing=0.0",
    "views.policy=basic",
    "views.global_count=1",
    "optim.warmup=1.0",
    "train.log_every=1",
];

/// Noise that is reddish or bluish, which is what the two classes are.
fn labeled(count: u32) -> InMemory {
    let mut source = InMemory::new(vec!["red".into(), "blue".into()]);
    for index in 0..count {
        let noise = |i: u32| (i + 1).wrapping_mul(2_654_435_761 + 7_919_000 * index) >> 24;
        let strong = if index.is_multiple_of(2) { 0 } else { 2 };
        let pixel = |i: u32| if i % 3 == strong { 128 + noise(i) / 2 } else { noise(i) / 2 };
        let pixels = (0..24 * 24 * 3).map(|i| pixel(i) as u8).collect();
        let image = Image::new(24, 24, pixels).unwrap();
        source.push(format!("image {index}"), Some(index % 2), image);
    }
    source
}

fn bench(settings: &[&str]) -> Bench {
    let source = Arc::new(labeled(6));
    Bench { source, ..Bench::new(&[&SUPERVISED[..], settings].concat()) }
}

fn tensors(path: &Path) -> Vec<(String, Vec<f32>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let file = checkpoint.file();
    let values = |tensor| file.read_f32(tensor).unwrap();
    file.tensors().iter().map(|tensor| (tensor.name.clone(), values(tensor))).collect()
}

fn value<'a>(tensors: &'a [(String, Vec<f32>)], name: &str) -> &'a [f32] {
    let found = tensors.iter().find(|(other, _)| other == name);
    &found.unwrap_or_else(|| panic!("no {name}")).1
}

/// How many of the six images the classifier in this checkpoint knows, in global views.
fn right(bench: &Bench, checkpoint: &Path) -> usize {
    let (network, objective) = bench.config.network(&Device::Cpu, 2);
    let objective: &dyn Any = &*objective;
    let head = objective.downcast_ref::<Supervised>().unwrap().head();
    let file = Checkpoint::open(checkpoint).unwrap();
    let stored = StoredNetwork::at(file.file(), "student.");
    let (params, _) = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap();
    let settings = esvit_data::LoaderConfig { batch: 6, workers: 1, ..Default::default() };
    let loader =
        esvit_data::Loader::new(bench.source.clone(), bench.config.views.clone(), settings);
    let batch = loader.unwrap().batches(0..1).next().unwrap().unwrap();
    let normalization = bench.config.views.normalization();
    let images = network_input(&batch.views[0], 0..6, &normalization, &Device::Cpu);
    let ctx = ForwardCtx::eval();
    let features = network.features(&params, &[images], &ctx).view;
    let logits = head.forward(&params, features, &ctx).to_vec::<f32>();
    let answers = logits.chunks_exact(2).map(|logits| u32::from(logits[1] > logits[0]));
    let labels = batch.samples.iter().map(|&sample| bench.source.label(sample as usize).unwrap());
    answers.zip(labels).filter(|(answer, label)| answer == label).count()
}

#[test]
fn a_run_with_labels_learns() {
    let mut bench = bench(&["objective.mixup.enabled=false", "train.epochs=16"]);
    bench.config.knn.every = Span::Epochs(16.0);
    bench.top1 = Some(vec![75.0]);
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.step), (End::Finished, 48));
    let chance = std::f64::consts::LN_2;
    let mean = |losses: &[f32]| losses.iter().map(|&l| f64::from(l)).sum::<f64>() / 3.0;
    let [first, last] = [mean(&reported.losses[..3]), mean(&reported.losses[45..])];
    assert!((first / chance - 1.0).abs() < 0.1, "{first} at the start, {chance} by chance");
    assert!(last < 0.5 * chance, "{last} at the end, {chance} by chance");
    assert!(reported.plan.ends_with("; a loss of 0.69 is that of chance"), "{}", reported.plan);

    assert_eq!(right(&bench, &outcome.checkpoint), 6, "each image has its own label");

    // What is written is the student's alone.
    for figures in &reported.figures {
        assert_eq!(
            figures.objective.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            ["class_loss"]
        );
        close("loss", figures.get("class_loss").unwrap(), figures.train_loss);
        assert_eq!(figures.summary, None);
    }
    assert_eq!((reported.warnings, reported.knn.len()), (Vec::new(), 1));
    let stored = tensors(&outcome.checkpoint);
    assert!(stored.iter().all(|(name, _)| !name.starts_with("teacher.") && name != "center"));
    assert_eq!(value(&stored, "student.classifier.bias").len(), 2);
    assert_eq!(value(&stored, "optimizer.exp_avg.classifier.weight").len(), 2 * 8);

    // It has no place in the official form, which has no classifier.
    let error = official::write(&outcome.checkpoint, &bench.path("o.pth"), Float::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("was trained with the objective `supervised`"), "{error}");
    // Which any network can take.
    assert!(error.ends_with("hint: `--format esvit` without `--full` exports its backbone"));
    assert!(!bench.path("o.pth").exists());
}

/// Stopped after each of some steps, with mixed images and dropped branches: the state at the end
/// is that of a run that was not stopped.
#[test]
fn a_run_with_labels_goes_on_as_if_nothing_had_happened() {
    let whole = bench(&["optim.layer_decay=0.75"]);
    let (outcome, reported) = whole.well("run");
    let expected = bytes(&outcome.checkpoint);
    for stop_after in [1, 3, 5] {
        let mut bench = bench(&["optim.layer_decay=0.75"]);
        bench.stop_after = stop_after;
        let (outcome, first) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Stopped, stop_after));
        (bench.start, bench.stop_after) = (Start::Resume, 0);
        let (outcome, second) = bench.well("run");
        assert_eq!((outcome.end, outcome.step), (End::Finished, 6));
        assert!(bytes(&outcome.checkpoint) == expected, "stopped after {stop_after}");
        assert_eq!([first.losses, second.losses].concat(), reported.losses);
    }
}

/// Images of which one has a label beyond the classes.
struct Beyond(InMemory);

impl Source for Beyond {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        if index == 4 { Some(2) } else { self.0.label(index) }
    }

    fn classes(&self) -> &[String] {
        self.0.classes()
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.0.load(index)
    }
}

#[test]
fn images_without_labels_are_refused() {
    let one_class = {
        let mut source = InMemory::new(vec!["all".into()]);
        let image = Image::new(24, 24, vec![7; 24 * 24 * 3]).unwrap();
        (0..6).for_each(|index| source.push(format!("{index}"), Some(0), image.clone()));
        source
    };
    let two_classes = |label| {
        let mut source = InMemory::new(vec!["a".into(), "b".into()]);
        let image = Image::new(24, 24, vec![7; 24 * 24 * 3]).unwrap();
        for index in 0..6 {
            let label = if index == 4 { label } else { Some(index % 2) };
            source.push(format!("{index}"), label, image.clone());
        }
        source
    };
    let nameless = "image 0".to_owned();
    let cases: [(Arc<dyn Source>, usize, Option<String>); 4] = [
        (Arc::new(images(6, 100)), 0, Some(nameless)),
        (Arc::new(one_class), 1, None),
        (Arc::new(two_classes(None)), 2, Some("4".to_owned())),
        (Arc::new(Beyond(two_classes(Some(0)))), 2, Some("4".to_owned())),
    ];
    for (source, expected, name) in cases {
        let mut bench = bench(&[]);
        bench.source = source;
        let (result, reported) = bench.run("run");
        let error = result.unwrap_err();
        let RunError::NoLabels { objective: "supervised", classes, ref unlabeled } = error else {
            panic!("{error}");
        };
        assert_eq!((classes, unlabeled), (expected, &name));
        let gap = name.map(|name| format!(", and `{name}` has no label")).unwrap_or_default();
        let words = format!(
            "the objective `supervised` needs labeled images of two classes at least, there are \
             {classes}{gap}\nhint: classes are the subfolders of `--data`"
        );
        assert_eq!(error.to_string(), words);
        assert!(!bench.path("run").exists() && reported.losses.is_empty());
    }
}

/// A network with a teacher begins with one that had none, and the other way round.
#[test]
fn runs_lend_each_other_their_backbones() {
    let mut bench = bench(&[]);
    let (labeled, _) = bench.well("labeled");
    let classifier = tensors(&labeled.checkpoint);
    bench.config = config(&["train.epochs=3", "checkpoint.keep_last=9"]);
    let note = |what: &str| {
        let path = labeled.checkpoint.display();
        format!("{what} of `backbone` from `{path}`; `head`, `head_dense` start anew")
    };
    for (out, start, what, step) in [
        ("begun", Start::InitFrom { path: labeled.checkpoint.clone(), key: None }, "weights", 0),
        ("continued", Start::ContinueFrom(labeled.checkpoint.clone()), "the state", 6),
    ] {
        bench.start = start;
        let (outcome, reported) = bench.well(out);
        assert_eq!((outcome.step, reported.losses.len() as u64), (9, 9 - step));
        assert_eq!(reported.notes, [note(what)]);
        let found = tensors(&bench.checkpoint(out, step / 3, step));
        for name in ["norm.weight", "layers.1.blocks.0.attn.qkv.weight"] {
            let expected = value(&classifier, &format!("student.{name}"));
            for network in ["student", "teacher"] {
                assert_eq!(value(&found, &format!("{network}.{name}")), expected, "{name}");
            }
            let moments = format!("optimizer.exp_avg.{name}");
            let has_moments = found.iter().any(|(other, _)| *other == moments);
            assert_eq!(has_moments, step > 0, "{out}");
        }
        let [student, teacher] = ["student", "teacher"]
            .map(|network| value(&found, &format!("{network}.head.mlp.0.weight")));
        assert_eq!(student, teacher, "heads that start anew");
        assert!(value(&found, "center").iter().all(|&value| value == 0.0));
    }
    let begun = bench.checkpoint("begun", 3, 9);
    let from = tensors(&begun);
    let mut other = super::supervised::bench(&["train.epochs=1"]);
    other.start = Start::InitFrom { path: begun.clone(), key: None };
    let (_, reported) = other.well("run");
    let expected =
        format!("weights of `backbone` from `{}`; `classifier` start anew", begun.display());
    assert_eq!(reported.notes, [expected]);
    let found = tensors(&other.checkpoint("run", 0, 0));
    // What is evaluated is what another run goes on from.
    assert_eq!(value(&found, "student.norm.weight"), value(&from, "teacher.norm.weight"));
}
