//! Steps, checks and images that fail.

use super::*;

/// A rate beyond all reason. The inputs and the state before the step are kept, and the error says
/// where.
#[test]
fn a_step_that_is_not_finite_is_kept_for_inspection() {
    let settings = [
        "optim.lr=1e30",
        "optim.clip_grad=none",
        "optim.warmup=0.0",
        "optim.name=sgd",
        "optim.weight_decay_end=0.04",
        "train.batch_size=2",
        "train.micro_batch=1",
        "checkpoint.every=1 steps",
        "checkpoint.keep_last=9",
    ];
    let bench = Bench::new(&settings);
    let (result, reported) = bench.run("run");
    let error = result.unwrap_err();
    let RunError::NotFinite { step, saved, checkpoint, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(reported.losses.len() as u64, *step);
    assert!(*step > 0, "the first step is finite");
    assert_eq!(saved, &bench.path("run/failures"));
    assert_eq!(checkpoint, &bench.checkpoint("run", step / 3, *step));
    let state = saved.join(format!("step={step:08}-state.safetensors"));
    assert!(bytes(&state) == bytes(checkpoint), "the state before the step");
    let inputs = Checkpoint::open(&saved.join(format!("step={step:08}-inputs.safetensors")));
    let inputs = inputs.unwrap();
    let shapes: Vec<(String, Vec<usize>)> = inputs
        .file()
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone()))
        .collect();
    for part in 0..2 {
        for (view, side) in [16, 16, 8].into_iter().enumerate() {
            let expected = (format!("batch.{part}.view.{view}"), vec![1, 3, side, side]);
            assert!(shapes.contains(&expected), "{shapes:?}");
        }
    }
    assert_eq!(shapes.len(), 6);
    let facts = inputs.file().metadata().get("esvit").and_then(|value| value.as_str());
    assert_eq!(facts, Some(format!("{{\"step\":{step}}}").as_str()));
    let log = bench.read("run/train.log");
    let last = log.lines().find(|line| line.contains(" error: ")).unwrap();
    assert!(last.contains(&format!("error: step {step}: the loss is ")), "{last}");

    // The inputs are the images of that step, its halves in order.
    let loader = esvit_data::Loader::new(
        bench.source.clone(),
        bench.config.views.clone(),
        esvit_data::LoaderConfig { batch: 2, workers: 1, ..Default::default() },
    );
    let batch = loader.unwrap().batches(*step..step + 1).next().unwrap().unwrap();
    let normalization = bench.config.views.normalization();
    for (view, crops) in batch.views.iter().enumerate() {
        for part in 0..2 {
            let input = network_input(crops, part..part + 1, &normalization, &Device::Cpu);
            let tensor = inputs.file().find("", &format!("batch.{part}.view.{view}")).unwrap();
            assert_eq!(inputs.file().read_f32(tensor).unwrap(), input.to_vec::<f32>());
        }
    }
}

/// A check that fails ends the run after its state is saved.
#[test]
fn a_failed_check_loses_nothing() {
    let mut bench = Bench::new(&["knn.every=1", "checkpoint.every=2"]);
    bench.top1 = Some(Vec::new());
    let (outcome, _) = bench.run("run");
    assert!(matches!(outcome, Err(RunError::Check(_))), "{outcome:?}");
    assert_eq!(bench.kept("run"), [numbered(0, 0), numbered(1, 3)]);
}

/// An update out of all bounds, whose loss was finite: nothing of it is saved, and what was stays.
#[test]
fn weights_that_are_not_finite_are_not_saved() {
    for settings in
        [&["train.epochs=1"][..], &["checkpoint.every=1 steps", "checkpoint.keep_last=1"]]
    {
        let mut bench = Bench::new(&[&["optim.warmup=0"], settings].concat());
        bench.config.optim.lr = 1e300;
        bench.config.train.log_every = 1;
        if settings.len() == 1 {
            // The only step is the last.
            bench.source = Arc::new(images(2, 100));
        }
        let (outcome, _) = bench.run("run");
        let Err(RunError::Weights { step, checkpoint }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((step, checkpoint), (1, bench.checkpoint("run", 0, 0)));
        assert_eq!(bench.kept("run"), [numbered(0, 0)]);
    }
}

struct OneBroken(InMemory);

impl Source for OneBroken {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.0.label(index)
    }

    fn classes(&self) -> &[String] {
        self.0.classes()
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.0.load(if index == 4 { 100 } else { index })
    }
}

#[test]
fn a_broken_image_is_left_out_and_reported_once() {
    let mut bench = Bench::new(&[]);
    bench.source = Arc::new(OneBroken(images(6, 100)));
    let (outcome, reported) = bench.well("run");
    assert_eq!((outcome.end, outcome.broken), (End::Finished, 1));
    assert_eq!(reported.broken, ["image 4"]);
    let log = bench.read("run/train.log");
    assert_eq!(log.matches("left out `image 4`: ").count(), 1, "{log}");
    bench.config.data.max_broken = 0.0;
    let error = bench.run("strict").0.unwrap_err();
    assert!(matches!(error, RunError::Data(_)), "{error}");
}

/// Black images: the teacher says the same about all of them.
#[test]
fn a_collapse_is_reported() {
    let mut bench = Bench::new(&["train.log_every=1", "train.epochs=3"]);
    bench.source = Arc::new(images(6, 0));
    let (_, reported) = bench.well("run");
    assert_eq!(reported.warnings.len(), 1, "{:?}", reported.warnings);
    let warning = &reported.warnings[0];
    assert!(warning.starts_with("step 5: the teacher has collapsed: "), "{warning}");
    let log = bench.read("run/train.log");
    assert!(log.contains(" warning: step 5: the teacher has collapsed: "), "{log}");
    // It takes five records.
    bench.config.train.log_every = 2;
    let (_, reported) = bench.well("fewer records");
    assert_eq!(reported.warnings.len(), 1);
    assert!(reported.warnings[0].starts_with("step 9: "), "{:?}", reported.warnings);
}
