//! Backbones that are opened, exported and compared.

#![expect(clippy::unwrap_used, reason = "a test may stop")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use esvit_data::{Image, InMemory, Preprocess};
use esvit_model::difference::{Tensors, compare};
use esvit_model::embedding::{Format, Job};
use esvit_model::export::{Options, Target, load_snippet, write};
use esvit_model::{OpenOptions, PretrainedBackbone};
use esvit_nn::backbone::Family;
use esvit_nn::backbone::resnet::ResNetConfig;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::weights::{Entry, Naming, entries, exported, save};
use esvit_nn::{BackboneConfig, Device, Params};
use esvit_testing::{tiny_cvt, tiny_pvt, tiny_resnet, tiny_swin, tiny_vil, untrained};
use esvit_weights::{
    Dtype, Float, Tensor, Tree, Values, WeightsFile, write_safetensors, write_torch,
};
use serde_json::{Value, json};

fn options(target: Target) -> Options {
    Options { target, float: Float::F32, size: [32, 32] }
}

fn values(params: &Params) -> Vec<f32> {
    params.values().iter().flat_map(|values| values.to_vec::<f32>()).collect()
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_is_exported_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let shape = SwinConfig { norm_eps: 1e-4, ..tiny_swin() };
    let backbone = untrained(&shape, 3, 40);
    for (target, name, keeps_metadata) in [
        (Target::Timm, "timm", true),
        (Target::Timm, "timm.safetensors", true),
        (Target::Timm, "timm.pt", true),
        (Target::Torchvision, "torchvision.PTH", true),
        (Target::Transformers, "transformers", true),
        (Target::Esvit, "esvit.pth", true),
    ] {
        let files = write(&backbone, &folder.path().join(name), &options(target)).unwrap();
        let opened = PretrainedBackbone::open(&files[0]).unwrap();
        assert_eq!(values(&opened.params), values(&backbone.params), "{name}");
        assert_eq!(opened.metadata() == backbone.metadata(), keeps_metadata, "{name}");
        let file = WeightsFile::open(&files[0]).unwrap();
        if files[0].extension().unwrap() == "safetensors" {
            let format = file.metadata().get("format").and_then(|value| value.as_str());
            assert_eq!(format, Some("pt"), "{name}");
        } else {
            // Nothing but the state dictionary, for the programs that would refuse it.
            let is_state = file.tensors().iter().all(|tensor| tensor.group.is_empty());
            assert_eq!(is_state, target != Target::Esvit, "{name}");
        }
    }
}

/// An untrained backbone of any family.
fn untrained_of(config: BackboneConfig) -> PretrainedBackbone {
    let (network, specs) = config.build(0.0);
    let params = Params::init(&specs, 3, &Device::Cpu);
    let preprocess = Preprocess::new(config.img_size() as u32, 40, &Default::default());
    PretrainedBackbone { config, network, params, preprocess, source: Default::default() }
}

/// A ResNet of the usual widths, as shallow as it can be.
fn resnet() -> ResNetConfig {
    let (widths, layers) = (vec![64, 128, 256, 512], vec![1, 1, 1, 1]);
    ResNetConfig { img_size: 32, stem_width: 64, widths, layers, ..tiny_resnet() }
}

#[test]
fn residual_networks_are_exported() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = untrained_of(BackboneConfig::ResNet(resnet()));
    for (target, name) in [
        (Target::Timm, "timm"),
        (Target::Torchvision, "torchvision.pth"),
        (Target::Transformers, "transformers"),
        (Target::Esvit, "esvit.pth"),
        (Target::Esvit, "esvit.safetensors"),
    ] {
        let files = write(&backbone, &folder.path().join(name), &options(target)).unwrap();
        let opened = PretrainedBackbone::open(&files[0]).unwrap();
        assert_eq!(values(&opened.params), values(&backbone.params), "{name}");
        assert_eq!(opened.config, backbone.config, "{name}");
        // What PyTorch's batch norm has besides.
        let file = WeightsFile::open(&files[0]).unwrap();
        let tensors = file.tensors().iter();
        let counts = tensors.filter(|tensor| tensor.name.ends_with("num_batches_tracked"));
        assert_eq!(counts.count(), 17, "{name}");
    }
    let config = json_file(&folder.path().join("timm").join("config.json"));
    assert_eq!(config["architecture"], json!("resnet50"));
    assert_eq!(config["num_features"], json!(2048));
    assert_eq!(config["model_args"], json!({ "layers": [1, 1, 1, 1] }));
    assert_eq!(config["pretrained_cfg"]["first_conv"], json!("conv1"));
    assert_eq!(config["pretrained_cfg"]["pool_size"], json!([1, 1]));
    let config = json_file(&folder.path().join("transformers").join("config.json"));
    assert_eq!(config["hidden_sizes"], json!([256, 512, 1024, 2048]));
    assert_eq!(config["layer_type"], json!("bottleneck"));
    assert_eq!(config["embedding_size"], json!(64));
    let snippet = load_snippet(&backbone, Path::new("a.pth"), &options(Target::Torchvision));
    let model = "ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]";
    for part in [model, "BatchNorm2d", "model.fc"] {
        assert!(snippet.contains(part), "{snippet}");
    }
}

/// Other forms of ResNets, and families that no other program has; running statistics are exported
/// with the parameters.
#[test]
fn families_that_a_target_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let refused_for = |config: BackboneConfig, target: Target, name: &str, others: &str| {
        let out = folder.path().join(name);
        let error = write(&untrained_of(config), &out, &options(target)).unwrap_err().to_string();
        let hint = format!("hint: {others} can take it");
        assert!(!out.exists() && error.ends_with(&hint), "{error}");
        error
    };
    let refused = |config: BackboneConfig, target: Target, name: &str| {
        refused_for(config, target, name, "esvit and onnx")
    };
    let [pvt, cvt] = [BackboneConfig::Pvt(tiny_pvt()), BackboneConfig::Cvt(tiny_cvt())];
    let vil = BackboneConfig::Vil(tiny_vil());
    for (target, name) in
        [(Target::Timm, "a"), (Target::Torchvision, "a.pth"), (Target::Transformers, "a")]
    {
        for (config, what) in
            [(&pvt, "PVT of version 1"), (&cvt, "CvT networks"), (&vil, "ViL networks")]
        {
            let error = refused(config.clone(), target, name);
            assert!(error.contains(&format!("{target} has no {what}")), "{error}");
        }
        let selective = ResNetConfig { selective_kernels: true, ..resnet() };
        let error = refused(BackboneConfig::ResNet(selective), target, name);
        assert!(error.contains("selective kernels"), "{error}");
    }
    let narrow = || BackboneConfig::ResNet(tiny_resnet());
    let others = "transformers, esvit and onnx";
    let of_widths = refused_for(narrow(), Target::Torchvision, "a.pth", others);
    assert!(of_widths.contains("of other widths"));
    assert!(refused_for(narrow(), Target::Timm, "a", others).contains("first convolution"));
    let eps = BackboneConfig::ResNet(ResNetConfig { norm_eps: 1e-3, ..resnet() });
    let of_eps = refused_for(eps, Target::Transformers, "a", "timm, torchvision, esvit and onnx");
    assert!(of_eps.contains("`eps` of BatchNorm"));
    for config in [pvt.clone(), narrow(), cvt, vil] {
        let backbone = untrained_of(config);
        for (target, name) in [(Target::Esvit, "b.pth"), (Target::Onnx, "b.onnx")] {
            let files = write(&backbone, &folder.path().join(name), &options(target)).unwrap();
            if target == Target::Esvit {
                let opened = PretrainedBackbone::open(&files[0]).unwrap();
                assert_eq!(values(&opened.params), values(&backbone.params));
                assert!(opened.metadata() == backbone.metadata());
            }
        }
    }
    let small = Options { size: [15, 32], ..options(Target::Onnx) };
    let error = write(&untrained_of(pvt), &folder.path().join("c.onnx"), &small).unwrap_err();
    assert!(
        error.to_string().contains("15 x 32 pixels are smaller than what the network needs, 16"),
        "{error}"
    );
}

#[test]
fn other_programs_find_their_settings() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = untrained(&tiny_swin(), 3, 40);
    let out = folder.path().join("timm");
    write(&backbone, &out, &options(Target::Timm)).unwrap();
    let config = &json_file(&out.join("config.json"));
    assert_eq!(config["pretrained_cfg"]["crop_pct"], json!(0.8));
    assert_eq!(config["pretrained_cfg"]["pool_size"], json!([4, 4]));
    assert_eq!(config["num_features"], json!(16));
    assert_eq!(config["model_args"]["window_size"], json!(4));
    assert_eq!(config["model_args"]["num_heads"], json!([1, 2]));

    let out = folder.path().join("transformers");
    let files = write(&backbone, &out, &options(Target::Transformers)).unwrap();
    assert_eq!(files.len(), 3);
    let config = &json_file(&out.join("config.json"));
    for (key, value) in [
        ("encoder_stride", json!(8)),
        ("hidden_size", json!(16)),
        ("layer_norm_eps", json!(1e-6)),
        ("stage_names", json!(["stem", "stage1", "stage2"])),
        ("out_features", json!(["stage2"])),
        ("dtype", json!("float32")),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let processor = &json_file(&out.join("preprocessor_config.json"));
    for (key, value) in [
        ("size", json!({ "shortest_edge": 40 })),
        ("crop_size", json!({ "height": 32, "width": 32 })),
        ("resample", json!(3)),
        ("image_mean", json!([0.485, 0.456, 0.406])),
        ("image_std", json!([0.229, 0.224, 0.225])),
    ] {
        assert_eq!(processor[key], value, "{key}");
    }
    let snippet = load_snippet(&backbone, Path::new("a.pth"), &options(Target::Esvit));
    assert!(snippet.ends_with("torch.load('a.pth', weights_only=True)['teacher']"), "{snippet}");
    let snippet = load_snippet(&backbone, Path::new("a.safetensors"), &options(Target::Timm));
    assert!(snippet.contains("load_file('a.safetensors')"), "{snippet}");
    // Imports are what the lines use.
    for (target, name) in [
        (Target::Timm, "timm"),
        (Target::Timm, "a.pth"),
        (Target::Timm, "a.safetensors"),
        (Target::Torchvision, "a.pth"),
        (Target::Torchvision, "a.safetensors"),
        (Target::Transformers, "transformers"),
        (Target::Esvit, "a.pth"),
        (Target::Esvit, "a.safetensors"),
        (Target::Onnx, "a.onnx"),
    ] {
        let snippet = load_snippet(&backbone, &folder.path().join(name), &options(target));
        let (first, lines) = snippet.split_once('\n').unwrap();
        let imported: Vec<&str> = first.strip_prefix("import ").unwrap().split(", ").collect();
        let known = [
            "functools",
            "numpy",
            "onnxruntime",
            "safetensors.torch",
            "timm",
            "torch",
            "torchvision",
            "transformers",
        ];
        for library in known {
            let calls = [" ", "(", "=", "\n", ","].map(|before| format!("{before}{library}."));
            let is_used = calls.iter().any(|call| lines.contains(call));
            assert_eq!(imported.contains(&library), is_used, "{library} in {snippet}");
        }
        let is_model = lines.contains("model = ");
        assert_eq!(lines.contains(".eval()"), is_model, "{snippet}");
    }
}

#[test]
fn what_a_target_cannot_take_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |shape: &SwinConfig, options: Options, name: &str| {
        let out = folder.path().join(name);
        let error = write(&untrained(shape, 0, 40), &out, &options).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    let (depths, num_heads) = (vec![1, 1, 1, 1], vec![1, 2, 2, 4]);
    let uneven = SwinConfig { img_size: 64, depths, num_heads, ..tiny_swin() };
    for (target, out) in [(Target::Torchvision, "a.pth"), (Target::Transformers, "a")] {
        let message = refused(&uneven, options(target), out);
        assert!(message.contains("[4, 4, 4, 2]"), "{message}");
    }
    let message = refused(&tiny_swin(), options(Target::Onnx), "a.pth");
    assert!(message.contains("onnx is no `pth` file"), "{message}");
    for size in [[2, 32], [32, 2]] {
        let options = Options { size, ..options(Target::Onnx) };
        let message = refused(&tiny_swin(), options, "a.onnx");
        assert!(message.contains(&format!("{} x {} pixels", size[0], size[1])), "{message}");
    }
    let options = Options { float: Float::Bf16, ..options(Target::Onnx) };
    let message = refused(&tiny_swin(), options, "a.onnx");
    assert!(message.contains("bf16"), "{message}");
}

/// Student and teacher as a training run stores them, started from `seeds`, and metadata.
fn checkpoint(metadata: &str, seeds: [u64; 2]) -> WeightsFile {
    let [student, teacher] = seeds.map(|seed| untrained(&tiny_swin(), seed, 40).params);
    let mut all = entries("student.", &student);
    all.extend(entries("teacher.", &teacher));
    let mut bytes = Vec::new();
    save(&mut bytes, &all, metadata).unwrap();
    WeightsFile::from_bytes(Path::new("run.safetensors"), bytes).unwrap()
}

const EARLY: &str = r#"
seed = 5

[model]
img_size = 32
patch_size = 4
embed_dim = 8
depths = [1, 1]
num_heads = [1, 2]
window_size = 4
mlp_ratio = 2.0
norm_eps = 1e-5

[views]
crop = 16
seed = 9
global_size = 32
mean = [0.1, 0.2, 0.3]
std = [0.4, 0.5, 0.6]

[knn]
crop = 0
resize = 40
"#;

#[test]
fn settings_of_early_runs_describe_their_network() {
    let about = json!({ "step": 7, "epoch": 2, "config": EARLY }).to_string();
    let opened = OpenOptions::default().read(&checkpoint(&about, [1, 2])).unwrap();
    let source = &opened.source;
    assert_eq!((source.seed, source.steps, source.epochs), (Some(5), Some(7), Some(2)));
    assert_eq!(opened.config.norm_eps(), 1e-5);
    let expected = Preprocess {
        mean: [0.1, 0.2, 0.3],
        std: [0.4, 0.5, 0.6],
        ..Preprocess::new(32, 40, &Default::default())
    };
    assert_eq!(opened.preprocess, expected);
    assert_eq!(values(&opened.untrained().params), values(&untrained(&tiny_swin(), 5, 40).params));

    let without = EARLY.replace("resize", "size");
    let about = json!({ "step": 7, "epoch": 2, "config": without }).to_string();
    let error = OpenOptions::default().read(&checkpoint(&about, [1, 2])).unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(reason.contains("no `knn.resize`"), "{reason}");
}

#[test]
fn the_network_is_the_one_that_is_asked_for() {
    let about = json!({
        "model": SwinConfig { norm_eps: 1e-3, ..tiny_swin() },
        "preprocess": Preprocess::new(32, 48, &Default::default()),
        "steps": 30,
    });
    let file = checkpoint(&about.to_string(), [1, 2]);
    let asked = OpenOptions::default();
    let [teacher, student] =
        [None, Some("student")].map(|key| asked.clone().key(key).read(&file).unwrap());
    assert_eq!((teacher.network_name(), student.network_name()), ("teacher", "student"));
    assert_eq!(values(&student.params), values(&untrained(&tiny_swin(), 1, 40).params));
    assert_eq!(values(&teacher.params), values(&untrained(&tiny_swin(), 2, 40).params));
    assert_eq!((teacher.source.steps, teacher.preprocess.transform.resize), (Some(30), 48));
    // A run may say that its student is the one to take.
    let run = json!({
        "step": 7,
        "epoch": 2,
        "config": "",
        "backbone": {
            "model": BackboneConfig::Swin(tiny_swin()),
            "preprocess": Preprocess::new(32, 48, &Default::default()),
            "seed": 3,
            "network": "student",
        },
    });
    let run = checkpoint(&run.to_string(), [1, 2]);
    let found = [None, Some("teacher")].map(|key| asked.clone().key(key).read(&run).unwrap());
    assert_eq!(found.map(|backbone| backbone.network_name()), ["student", "teacher"]);
    // `eps` is no matter of the shape.
    let shape = SwinConfig { img_size: 64, window_size: 8, ..tiny_swin() };
    let reshaped = asked.shape(Some(BackboneConfig::Swin(shape.clone()))).read(&file).unwrap();
    assert_eq!(reshaped.config, BackboneConfig::Swin(SwinConfig { norm_eps: 1e-3, ..shape }));
    assert_eq!(reshaped.source.report.resized.len(), 2);
}

#[test]
fn epochs_of_a_pytorch_file_are_not_negative() {
    for (epoch, expected) in [(-1, 0), (12, 12)] {
        let backbone = untrained(&tiny_swin(), 1, 40);
        let state = exported(&backbone.params, Family::Swin, Naming::Esvit, Float::F32).into_iter();
        let state = state.map(|(name, tensor)| (name, Tree::Tensor(tensor))).collect();
        let tree = Tree::Dict(vec![
            ("teacher".into(), Tree::Dict(state)),
            ("epoch".into(), Tree::Int(epoch)),
        ]);
        let mut bytes = std::io::Cursor::new(Vec::new());
        write_torch(&mut bytes, &tree).unwrap();
        let file = WeightsFile::from_bytes(Path::new("a.pth"), bytes.into_inner()).unwrap();
        let opened = OpenOptions::default().read(&file).unwrap();
        assert_eq!((opened.source.epochs, opened.source.steps), (Some(expected), None));
    }
}

#[test]
fn images_of_several_batches_keep_their_features() {
    let backbone = untrained(&tiny_swin(), 1, 40);
    let pattern = |factor: u8| {
        let pixels = (0..48u8).map(|at| at.wrapping_mul(factor)).collect();
        Image::new(4, 4, pixels).unwrap()
    };
    let images: Vec<Image> = (0..66).map(pattern).collect();
    let together = backbone.embed(&images).unwrap();
    assert_eq!(together.len(), 66);
    for at in [0, 63, 64, 65] {
        let alone = backbone.embed(&images[at..=at]).unwrap().swap_remove(0);
        assert_eq!(alone.len(), backbone.width());
        let is_close = alone.iter().zip(&together[at]).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(is_close, "{at}: {alone:?} {:?}", together[at]);
    }
    assert!((together[63][0] - together[64][0]).abs() > 1e-3, "{together:?}");
}

#[test]
fn a_job_is_that_of_its_images_and_its_network() {
    let [one, other] = [1, 2].map(|seed| untrained(&tiny_swin(), seed, 40));
    let job = |backbone, names: [&str; 2], normalize| {
        let mut source = InMemory::new(Vec::new());
        for name in names {
            source.push(name, None, Image::new(1, 1, vec![0; 3]).unwrap());
        }
        Job::new(Format::Npy, backbone, &source, normalize)
    };
    let same = job(&one, ["ab", "c"], true);
    assert_eq!(same, job(&one, ["ab", "c"], true));
    for other in [
        job(&one, ["a", "bc"], true),
        job(&one, ["c", "ab"], true),
        job(&one, ["ab", "c"], false),
        job(&other, ["ab", "c"], true),
    ] {
        assert_ne!(same, other);
    }
}

fn tensors(all: &[(&str, &[f32])]) -> WeightsFile {
    let entry = |(name, values): &(&str, &[f32])| -> Entry {
        let (values, shape) = (values.to_vec(), [values.len()]);
        let values = move || Ok(Values::F32(Cow::Owned(values.clone())));
        ((*name).into(), Tensor::new(&shape, Dtype::F32, values))
    };
    let entries: Vec<Entry> = all.iter().map(entry).collect();
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &entries, &BTreeMap::new()).unwrap();
    WeightsFile::from_bytes(Path::new("a.safetensors"), bytes).unwrap()
}

#[test]
fn differences_are_told_with_the_largest_first() {
    let a = tensors(&[
        ("equal", &[1.0, f32::NAN]),
        ("gone", &[1.0]),
        ("large", &[1.0, -9.0]),
        ("nan", &[1.0, 2.0, 3.0]),
        ("shorter", &[1.0, 2.0]),
        ("small", &[2.0]),
        ("zero", &[0.0]),
    ]);
    let b = tensors(&[
        ("equal", &[1.0, f32::NAN]),
        ("large", &[5.0, -7.0]),
        ("nan", &[1.0, f32::NAN, 9.0]),
        ("new", &[1.0]),
        ("shorter", &[1.0]),
        ("small", &[2.5]),
        ("zero", &[-0.0]),
    ]);
    let [of_a, of_b] = [&a, &b].map(|file| Tensors::of(file, None).unwrap());
    let found = compare(&of_a, &of_b).unwrap();
    assert!(!found.is_equal());
    assert_eq!(found.equal, 1);
    assert_eq!((found.only_a, found.only_b), (vec!["gone".into()], vec!["new".into()]));
    assert_eq!(found.reshaped, [("shorter".into(), vec![2], vec![1])]);
    let names: Vec<&str> = found.different.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["nan", "large", "small", "zero"]);
    assert!(found.different[0].largest.is_nan());
    assert_eq!((found.different[1].largest, found.different[1].scale), (4.0, 9.0));
    assert!(compare(&of_a, &of_a).unwrap().is_equal());
    // A shape alone is a difference too.
    let [long, short] = [tensors(&[("x", &[1.0, 2.0])]), tensors(&[("x", &[1.0])])];
    assert!(
        !compare(&Tensors::of(&long, None).unwrap(), &Tensors::of(&short, None).unwrap())
            .unwrap()
            .is_equal()
    );
}

#[test]
fn networks_are_compared_under_their_official_names() {
    let backbone = untrained(&tiny_swin(), 1, 40);
    let [a, b] = [Naming::Torchvision, Naming::Transformers].map(|naming| {
        let mut bytes = Vec::new();
        let state = exported(&backbone.params, Family::Swin, naming, Float::F32);
        write_safetensors(&mut bytes, &state, &BTreeMap::new()).unwrap();
        WeightsFile::from_bytes(Path::new("a.safetensors"), bytes).unwrap()
    });
    let found = compare(&Tensors::of(&a, None).unwrap(), &Tensors::of(&b, None).unwrap()).unwrap();
    assert!(found.is_equal(), "{found:?}");
    assert_eq!(found.equal, backbone.params.specs().len());
}

#[test]
fn a_network_that_a_file_lacks_is_not_compared() {
    let backbone = untrained(&tiny_swin(), 1, 40);
    let about = serde_json::to_string(&backbone.metadata()).unwrap();
    let file = checkpoint(&about, [1, 2]);
    let error = Tensors::of(&file, Some("foo")).unwrap_err().to_string();
    assert!(error.contains("no network `foo`, only `student`, `teacher`"), "{error}");
    let student = Tensors::of(&file, Some("student")).unwrap();
    assert_eq!((student.network(), student.networks()), (Some("student"), 2));
    let plain = tensors(&[("x", &[1.0])]);
    assert!(Tensors::of(&plain, Some("foo")).is_err());
    assert_eq!(Tensors::of(&plain, None).unwrap().network(), None);
}

/// A file of a larger image and the same windows; what is beside it says so, or the user does.
#[test]
fn the_size_of_images_is_taken_from_what_says_it() {
    let folder = tempfile::tempdir().unwrap();
    let shape = SwinConfig { img_size: 64, norm_eps: 1e-5, ..tiny_swin() };
    let backbone = untrained(&shape, 1, 40);
    let path = folder.path().join("model.safetensors");
    let mut file = fs::File::create(&path).unwrap();
    let state = exported(&backbone.params, Family::Swin, Naming::Transformers, Float::F32);
    write_safetensors(&mut file, &state, &BTreeMap::new()).unwrap();
    let opened = PretrainedBackbone::open(&path).unwrap();
    assert_eq!((opened.config.img_size(), opened.source.assumed.len()), (32, 2));

    let card = json!({ "model_type": "swin", "image_size": 64, "layer_norm_eps": 1e-4,
        "embed_dim": shape.embed_dim, "depths": shape.depths, "num_heads": shape.num_heads });
    fs::write(folder.path().join("config.json"), card.to_string()).unwrap();
    let images = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2] });
    fs::write(folder.path().join("preprocessor_config.json"), images.to_string()).unwrap();
    let opened = PretrainedBackbone::open(&path).unwrap();
    assert_eq!((opened.config.img_size(), opened.config.norm_eps()), (64, 1e-4));
    assert_eq!((opened.preprocess.size(), opened.preprocess.mean), (64, [0.5; 3]));
    assert!(opened.source.assumed.is_empty(), "{:?}", opened.source.assumed);
    let asked = OpenOptions::default().img_size(Some(96)).open(&path).unwrap();
    assert_eq!((asked.config.img_size(), asked.preprocess.size()), (96, 96));

    // Of another network.
    let other = card.to_string().replace("\"depths\":[1,1]", "\"depths\":[2,2]");
    fs::write(folder.path().join("config.json"), other).unwrap();
    let opened = PretrainedBackbone::open(&path).unwrap();
    assert_eq!((opened.config.img_size(), opened.preprocess.mean[0]), (32, 0.485));
    assert!(opened.source.assumed[2].contains("of another network"), "{:?}", opened.source);

    // What the file itself says can be overruled, with as much of the image in sight.
    let own = write(&backbone, &folder.path().join("own.pth"), &options(Target::Timm)).unwrap();
    let asked = OpenOptions::default().img_size(Some(96)).open(&own[0]).unwrap();
    assert_eq!((asked.config.img_size(), asked.preprocess.size()), (96, 96));
    assert_eq!(asked.preprocess.transform.resize, 40 * 96 / 64);
    let error = OpenOptions::default().img_size(Some(4)).open(&own[0]).unwrap_err();
    assert!(error.to_string().contains("`img_size` is 4: it leaves no token"), "{error}");
}

#[test]
fn features_that_are_not_finite_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = untrained(&tiny_swin(), 1, 40);
    let files = write(&backbone, &folder.path().join("own.pth"), &options(Target::Timm)).unwrap();
    let mut opened = PretrainedBackbone::open(&files[0]).unwrap();
    let images = vec![Image::new(4, 4, vec![7; 48]).unwrap(); 66];
    assert!(opened.embed(&images).is_ok());
    opened.preprocess.mean = [f64::NAN; 3];
    let error = opened.embed(&images[..2]).unwrap_err().to_string();
    assert!(error.contains("own.pth") && error.contains("`image 1 of 2` hold NaN"), "{error}");
}
