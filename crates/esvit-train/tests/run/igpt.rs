//! Runs of iGPT: the palette that they begin with, its file, and that they go on as if nothing had happened.

use esvit_files::npy;
use esvit_train::objective::igpt::palette::PaletteError;

use super::*;

/// Three blocks over 4 x 4 colors, six images in steps of two.
const IGPT: [&str; 29] = [
    "model.arch=custom",
    "model.family=igpt",
    "model.img_size=8",
    "model.patch_size=2",
    "model.colors=5",
    "model.embed_dim=8",
    "model.depth=3",
    "model.num_heads=2",
    "model.feature_block=2",
    "model.drop_path=0.2",
    "objective.name=igpt",
    "objective.mask_rate=0.3",
    "views.policy=basic",
    "views.global_size=8",
    "views.global_count=1",
    "views.local_sizes=[]",
    "views.local_counts=[]",
    "views.mean=[0.5,0.4,0.6]",
    "views.std=[0.5,0.3,0.4]",
    "train.batch_size=2",
    "train.epochs=2",
    "train.precision=f32",
    "train.log_every=1",
    "data.workers=1",
    "optim.lr=0.64",
    "optim.warmup=1.0",
    "checkpoint.every=1 steps",
    "checkpoint.keep_last=9",
    "knn.every=0",
];

fn bench(settings: &[&str]) -> Bench {
    let layers = IGPT.iter().chain(settings).map(|text| parse_override(text).unwrap());
    Bench { config: Config::resolve(layers.collect()).unwrap(), ..Bench::new(&[]) }
}

/// The palette in a checkpoint.
fn palette(path: &Path) -> Vec<f32> {
    let file = WeightsFile::open(path).unwrap();
    file.read_f32(file.find("", "student.palette").unwrap()).unwrap()
}

/// The palette of images of two colors is these, in a file of values from -1 to 1; training does not change it.
#[test]
fn a_run_begins_with_the_colors_of_its_images() {
    let mut two = InMemory::new(Vec::new());
    for index in 0..6 {
        let color = [[250u8, 10, 128], [20, 200, 60]][index % 2];
        let image = Image::new(24, 24, color.repeat(24 * 24)).unwrap();
        two.push(format!("image {index}"), None, image);
    }
    let bench = Bench { source: Arc::new(two), ..bench(&["model.colors=2"]) };
    let (outcome, reported) = bench.well("run");
    let note = "a palette of 2 colors: k-means of 65538 pixels in 6 images";
    assert!(reported.notes.iter().any(|found| found == note), "{:?}", reported.notes);
    let array = npy::read::<f32>(&bench.path("run/palette.npy")).unwrap();
    assert_eq!(array.shape, [2, 3]);
    let mut bytes: Vec<Vec<f32>> = array
        .values
        .chunks(3)
        .map(|color| color.iter().map(|value| (127.5 * (value + 1.0)).round()).collect())
        .collect();
    bytes.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert_eq!(bytes, [[20.0, 200.0, 60.0], [250.0, 10.0, 128.0]]);
    let first = palette(&bench.checkpoint("run", 0, 0));
    assert_eq!(palette(&outcome.checkpoint), first);
    let normalization = bench.config.views.normalization();
    for (at, (value, stored)) in array.values.iter().zip(&first).enumerate() {
        let expected =
            127.5 * (value + 1.0) * normalization.scale[at % 3] + normalization.shift[at % 3];
        assert!((stored - expected).abs() < 1e-5, "{stored} instead of {expected}");
    }
    // What is predicted, and how it goes.
    let names: Vec<&str> = reported.figures[0].objective.iter().map(|(name, _)| name).collect();
    for name in ["color_loss", "color_accuracy", "color_entropy", "colors_used"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(
        reported.plan.contains("prediction of colors (iGPT), iGPT `custom`"),
        "{}",
        reported.plan
    );
    assert!(reported.plan.contains("a loss of 0.69 is that of chance"), "{}", reported.plan);
}

/// Stopped after a step, and within one.
#[test]
fn runs_go_on() {
    for variant in ["model.variant=autoregressive", "model.variant=bert"] {
        for micro_batch in ["train.micro_batch=2", "train.micro_batch=1"] {
            let whole = bench(&[variant, micro_batch]);
            let (outcome, reported) = whole.well("run");
            assert_eq!((outcome.end, outcome.step), (End::Finished, 6), "{variant}");
            let expected = bytes(&outcome.checkpoint);
            for stop_after in [1, 4] {
                let mut bench = bench(&[variant, micro_batch]);
                bench.stop_after = stop_after;
                let (outcome, first) = bench.well("run");
                assert_eq!((outcome.end, outcome.step), (End::Stopped, stop_after));
                (bench.start, bench.stop_after) = (Start::Resume, 0);
                let (outcome, second) = bench.well("run");
                assert!(bytes(&outcome.checkpoint) == expected, "{variant}, {stop_after}");
                assert_eq!([first.losses, second.losses].concat(), reported.losses);
            }
        }
    }
}

#[test]
fn micro_batches_change_rounding_alone() {
    for variant in ["model.variant=autoregressive", "model.variant=bert"] {
        let with = |micro_batch| {
            let settings = [variant, micro_batch, "train.batch_size=6", "optim.name=sgd"];
            bench(&settings).well("run").1.losses
        };
        let whole = with("train.micro_batch=6");
        for cut in ["train.micro_batch=1", "train.micro_batch=3"] {
            assert_alike(&format!("{variant}, {cut}"), &with(cut), &whole, 1e-3);
        }
    }
}

/// The file of another run gives its palette; one that does not fit is refused before there is a folder.
#[test]
fn palettes_of_files() {
    let first = bench(&[]);
    first.well("first");
    let file = first.path("first/palette.npy");
    let named = format!("objective.palette={}", file.display());
    let second = Bench { source: Arc::new(images(4, 50)), ..bench(&[&named]) };
    let (_, reported) = second.well("second");
    assert!(reported.notes.iter().any(|note| note.starts_with("the palette of `")));
    let found = palette(&second.checkpoint("second", 0, 0));
    assert_alike("palette", &found, &palette(&first.checkpoint("first", 0, 0)), 1e-5);

    let wrong = bench(&[&named, "model.colors=6"]);
    let error = wrong.run("run").0.unwrap_err();
    assert!(matches!(error, RunError::Palette(PaletteError::Shape { colors: 6, .. })), "{error}");
    assert!(error.to_string().contains("palette.npy` is [5, 3], the network needs 6 colors"));
    assert!(!wrong.path("run").exists());
    let missing = bench(&["objective.palette=nowhere.npy"]).run("run").0.unwrap_err();
    assert!(missing.to_string().contains("nowhere.npy"), "{missing}");
    // A checkpoint has the palette: the file is not needed to go on.
    let mut going_on = bench(&[&named]);
    going_on.stop_after = 2;
    going_on.well("run");
    std::fs::remove_file(&file).unwrap();
    (going_on.start, going_on.stop_after) = (Start::Resume, 0);
    assert_eq!(going_on.well("run").0.end, End::Finished);
}

/// Weights are made for their palette, which another run on other images takes with them.
#[test]
fn weights_bring_their_palette() {
    let first = bench(&[]);
    let (outcome, _) = first.well("first");
    let start = Start::InitFrom { path: outcome.checkpoint.clone(), key: None };
    let second = Bench { source: Arc::new(images(5, 40)), start, ..bench(&[]) };
    second.well("second");
    assert_eq!(palette(&second.checkpoint("second", 0, 0)), palette(&outcome.checkpoint));
    let own = Bench { source: Arc::new(images(5, 40)), ..bench(&[]) };
    own.well("own");
    assert_ne!(palette(&own.checkpoint("own", 0, 0)), palette(&outcome.checkpoint));
}
