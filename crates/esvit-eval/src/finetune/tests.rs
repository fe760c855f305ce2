use std::sync::Arc;

use esvit_data::{Image, InMemory};
use esvit_kernels::rng::Rng;
use esvit_nn::{backbone::swin::SwinConfig, params::ParamSpec};

use super::*;
use crate::testing::{Images, noise};
use esvit_testing::{tiny_swin, untrained};

fn backbone() -> PretrainedBackbone {
    untrained(&SwinConfig { img_size: 16, window_size: 2, ..tiny_swin() }, 5, 16)
}

/// `per_class` noisy images of every class, learned and classified.
fn task(classes: usize, per_class: usize) -> LabeledTask {
    let names: Vec<String> = (0..classes).map(|class| format!("c{class}")).collect();
    let mut source = InMemory::new(names.clone());
    for class in 0..classes {
        for number in 0..per_class {
            let mut rng = Rng::new(9, [class as u64, number as u64, 0]);
            let mut levels = Rng::new(8, [class as u64, 0, 0]);
            let color: [u64; 3] = std::array::from_fn(|_| levels.below(200));
            let pixels = (0..24 * 18 * 3).map(|i| (color[i % 3] + rng.below(50)) as u8).collect();
            let image = Image::new(24, 18, pixels).unwrap();
            source.push(format!("{class}/{number}"), Some(class as u32), image);
        }
    }
    let set = LabeledSet::all(Arc::new(source));
    let (train, remarks) = (set.clone(), Default::default());
    LabeledTask { train, queries: set, classes: names, description: "noise".into(), remarks }
}

fn quick(epochs: u64) -> Settings {
    Settings { batch_size: 5, precision: Precision::F32, ..Settings::new(epochs, false) }
}

fn bits(params: &Params) -> Vec<u32> {
    params.values().into_iter().flat_map(|value| value.to_vec::<f32>()).map(f32::to_bits).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_for_any_number_of_threads() {
    let (backbone, task) = (backbone(), task(3, 4));
    let settings = Settings { randaugment: true, ..quick(2) };
    let run = |threads, settings: &Settings| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| finetune(&backbone, &task, settings, |_| ()).unwrap())
    };
    let [one, three] = [1, 3].map(|threads| run(threads, &settings));
    assert_eq!(bits(&one.params), bits(&three.params));
    assert_eq!(one.epochs, three.epochs);
    // 12 images by 5 are 3 steps an epoch.
    assert_eq!(one.steps, 6);
    let other = run(2, &Settings { seed: 1, ..settings });
    assert_ne!(bits(&one.params), bits(&other.params));
}

#[test]
fn the_backbone_is_where_it_starts_unless_it_is_from_scratch() {
    let backbone = backbone();
    let (started, _) = learner(&backbone, 3, &Settings { seed: 1, ..quick(1) });
    let params = started.student;
    let backbones = backbone.params.values().len();
    assert_eq!(bits(&backbone.params), bits_of(&params.values()[..backbones]));
    let classifier: Vec<&ParamSpec> = params.specs()[backbones..].iter().collect();
    assert_eq!(classifier.len(), 2);
    assert_eq!(params.values()[backbones].to_vec::<f32>(), classifier[0].initial_values(1));

    // With almost no learning rate, what is found is what it started from.
    let task = task(2, 2);
    let still = Settings { lr: 1e-30, weight_decay: 0.0, ..quick(1) };
    let moved = |settings: &Settings| {
        let end = finetune(&backbone, &task, settings, |_| ()).unwrap();
        let start = backbone.params.values().into_iter().flat_map(|value| value.to_vec::<f32>());
        let values =
            end.params.values().into_iter().take(backbones).flat_map(|value| value.to_vec::<f32>());
        values.zip(start).map(|(value, start)| (value - start).abs()).fold(0.0, f32::max)
    };
    assert!(moved(&still) < 1e-20);
    assert!(moved(&Settings { from_scratch: true, ..still }) > 1e-3);
}

fn bits_of(values: &[esvit_nn::Tensor]) -> Vec<u32> {
    values.iter().flat_map(|value| value.to_vec::<f32>()).map(f32::to_bits).collect()
}

#[test]
fn layers_move_by_their_own_learning_rates() {
    let (backbone, task) = (backbone(), task(2, 3));
    let before = network_values(&backbone);
    let settings = Settings {
        layer_decay: 0.1,
        weight_decay: 0.0,
        warmup_epochs: 0.0,
        mixup: 0.0,
        cutmix: 0.0,
        drop_path: 0.0,
        batch_size: 6,
        lr: 0.256 / 6.0,
        ..quick(1)
    };
    let end = finetune(&backbone, &task, &settings, |_| ()).unwrap();
    // The first update of AdamW moves every value by its learning rate.
    for (name, expected) in [
        ("patch_embed.proj.bias", 1e-6),
        ("layers.0.blocks.0.mlp.fc2.bias", 1e-5),
        ("layers.1.blocks.0.mlp.fc2.bias", 1e-4),
        ("norm.bias", 1e-3),
    ] {
        let find = |params: &Params| {
            let (_, value) = params.iter().find(|(spec, _)| spec.name == name).unwrap();
            value.to_vec::<f32>()
        };
        let moved = find(&end.params)
            .iter()
            .zip(find(&before))
            .fold(0f32, |most, (new, old)| most.max((new - old).abs()));
        assert!((moved / expected - 1.0).abs() < 0.1, "{name}: {moved} instead of {expected}");
    }
}

fn network_values(backbone: &PretrainedBackbone) -> Params {
    backbone.params.clone()
}

#[test]
fn more_than_a_thousand_classes_of_one_image_each() {
    let (backbone, task) = (backbone(), task(1100, 1));
    let settings = Settings { batch_size: 5000, ..quick(1) };
    let end = finetune(&backbone, &task, &settings, |_| ()).unwrap();
    assert_eq!(end.steps, 1);
    assert!((end.epochs[0].loss - 1100f64.ln()).abs() < 0.5, "{:?}", end.epochs);
}

#[test]
fn best_is_the_first_of_the_highest() {
    let epochs = [30.0, 70.0, 70.0, 50.0].into_iter().zip(1..).map(|(top1, epoch)| EpochResult {
        epoch,
        loss: 1.0,
        lr: 1.0,
        accuracy: ClassAccuracy { top1, top5: 100.0, interval: [0.0, 100.0] },
    });
    let (backbone, epochs) = (backbone(), epochs.collect());
    let (started, _) = learner(&backbone, 2, &quick(1));
    let end = Finetuned { params: started.student, steps: 4, epochs, images: (1, 1) };
    assert_eq!((end.best().epoch, end.last().epoch), (2, 4));
    assert_eq!((end.best().accuracy.top1, end.last().accuracy.top1), (70.0, 50.0));
}

#[test]
fn what_cannot_be_learnt_is_refused() {
    let backbone = backbone();
    let fails = |task: &LabeledTask, settings: &Settings| {
        finetune(&backbone, task, settings, |_| ()).unwrap_err().to_string()
    };
    let error = fails(&task(1, 3), &quick(1));
    assert!(error.starts_with("all 3 training images are of one class, `c0`"), "{error}");
    let mut none = task(2, 2);
    none.queries.images.clear();
    assert!(fails(&none, &quick(1)).contains("no query images"));
    // Weights that are multiplied by a large number in every step.
    let wild = Settings { lr: 100.0, weight_decay: 100.0, clip_grad: 0.0, ..quick(60) };
    let error = fails(&task(2, 3), &wild);
    assert!(error.contains("hint: lower `--lr`, which is 100"), "{error}");
    assert!(!error.contains("--precision"), "{error}");
}

/// Runs from one start with and without a setting differ, so the setting is used.
#[test]
fn every_setting_of_a_step_is_used() {
    let (backbone, task) = (backbone(), task(3, 4));
    let plain = Settings {
        mixup: 0.0,
        cutmix: 0.0,
        label_smoothing: 0.0,
        drop_path: 0.0,
        clip_grad: 0.0,
        weight_decay: 0.0,
        layer_decay: 1.0,
        lr: 0.05,
        ..quick(2)
    };
    let end = |settings: &Settings| {
        let end = finetune(&backbone, &task, settings, |_| ()).unwrap();
        (bits(&end.params), end.epochs)
    };
    let usual = end(&plain);
    assert_eq!(end(&Settings { clip_grad: 1e9, ..plain.clone() }), usual);
    for (name, settings) in [
        ("mixup", Settings { mixup: 1.0, ..plain.clone() }),
        ("cutmix", Settings { cutmix: 1.0, ..plain.clone() }),
        ("label smoothing", Settings { label_smoothing: 0.3, ..plain.clone() }),
        ("drop path", Settings { drop_path: 0.9, ..plain.clone() }),
        ("clipping", Settings { clip_grad: 1e-3, ..plain.clone() }),
        ("weight decay", Settings { weight_decay: 0.5, ..plain.clone() }),
        ("layer decay", Settings { layer_decay: 0.5, ..plain.clone() }),
        ("scale", Settings { scale: [1.0, 1.0], ..plain.clone() }),
        ("randaugment", Settings { randaugment: true, ..plain.clone() }),
    ] {
        assert_ne!(end(&settings).0, usual.0, "{name}");
    }
}

#[test]
fn an_epoch_s_loss_is_the_mean_over_its_images() {
    let mut steps = Vec::new();
    let end = finetune(&backbone(), &task(3, 4), &quick(1), |event| {
        if let Event::Step { images, loss, .. } = *event {
            steps.push((images, f64::from(loss)));
        }
    });
    let counts: Vec<usize> = steps.iter().map(|step| step.0).collect();
    assert_eq!(counts, [5, 5, 2]);
    let mean = steps.iter().map(|&(images, loss)| images as f64 * loss).sum::<f64>() / 12.0;
    assert!((end.unwrap().epochs[0].loss - mean).abs() < 1e-9);
}

#[test]
fn what_starts_from_scratch_starts_by_the_seed() {
    let (backbone, task) = (backbone(), task(2, 2));
    let still = Settings { lr: 1e-30, weight_decay: 0.0, from_scratch: true, ..quick(1) };
    let start = |seed| {
        let settings = Settings { seed, ..still.clone() };
        let end = finetune(&backbone, &task, &settings, |_| ()).unwrap();
        end.params.values()[0].to_vec::<f32>()
    };
    assert_eq!(start(3), start(3));
    assert_ne!(start(3), start(4));
}

#[test]
fn images_of_unknown_classes_count_as_wrong() {
    let backbone = backbone();
    let (learner, head) = learner(&backbone, 2, &Settings { seed: 1, ..quick(1) });
    let LabeledTask { queries, .. } = task(6, 1);
    let (network, preprocess) = (learner.network.backbone(), &backbone.preprocess);
    let (accuracy, left_out) =
        evaluate(network, &head, &learner.student, preprocess, &queries).unwrap();
    let accuracy = accuracy.unwrap();
    // Classes 2 to 5 have no output: at most two of six are right, and among five of two both are.
    assert!(accuracy.top1 < 34.0 && left_out.is_empty(), "{accuracy:?}");
    assert!((accuracy.top5 - 200.0 / 6.0).abs() < 1e-9, "{accuracy:?}");
}

#[test]
fn images_that_cannot_be_read_are_not_counted() {
    let mut train = Images::labeled((0..6).map(|i| (i % 2, noise(24, 18, i.into()))).collect());
    train.list[3].2 = None;
    let mut of_two = task(2, 4);
    of_two.train = train.set();
    let end = finetune(&backbone(), &of_two, &quick(2), |_| ()).unwrap();
    assert_eq!(end.images, (5, 8));
}

#[test]
fn saved_networks_hold_their_steps_and_classes() {
    let mut start = backbone();
    start.source.steps = Some(100);
    let classes = ["x".to_owned(), "y".to_owned()];
    let end = finetune(&start, &task(2, 3), &quick(1), |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let steps = |from_scratch| {
        save(&path, &end, &start, from_scratch, &classes).unwrap();
        let read = PretrainedBackbone::open(&path).unwrap();
        assert_eq!(
            bits_of(&read.params.values()),
            bits_of(&end.params.values()[..read.params.values().len()])
        );
        assert_eq!(read.preprocess, start.preprocess);
        let file = esvit_weights::WeightsFile::open(&path).unwrap();
        assert_eq!(file.find("", "classifier.weight").unwrap().shape, [2, 16]);
        let about = file.metadata().get(esvit_nn::weights::METADATA_KEY).unwrap().as_str().unwrap();
        assert!(about.contains(r#""classes":["x","y"]"#), "{about}");
        read.source.steps
    };
    assert_eq!((steps(false), steps(true)), (Some(102), Some(2)));
}
