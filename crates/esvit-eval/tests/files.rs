//! Backbones out of files and into files of other programs, and two files side by side.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says at which line it failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use esvit_data::Preprocess;
use esvit_model::difference::{Tensors, compare};
use esvit_model::export::{ExportError, Options, Target, load_snippet, write};
use esvit_model::{OpenOptions, PretrainedBackbone, SourceFile};
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;
use esvit_nn::weights::METADATA_KEY;
use esvit_nn::{BackboneConfig, Device, Params};
use esvit_train::checkpoint::{self, Metadata};
use esvit_train::learner::LearnerSettings;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::esvit::EsvitConfig;
use esvit_train::official::{self, OfficialError};
use esvit_train::optim::{ClipScope, OptimizerKind};
use esvit_train::span::Span;
use esvit_train::{Config, CropChunks, Learner};
use esvit_weights::{Float, Tensor, WeightsFile, write_safetensors};
use serde_json::{Value, json};

fn shape() -> SwinConfig {
    SwinConfig {
        img_size: 16,
        patch_size: 4,
        embed_dim: 32,
        depths: vec![1, 1],
        num_heads: vec![1, 2],
        window_size: 2,
        mlp_ratio: 2.0,
        norm_eps: 1e-6,
    }
}

fn backbone(shape: &SwinConfig) -> PretrainedBackbone {
    let config = BackboneConfig::Swin(shape.clone());
    let (network, specs) = config.build(0.0);
    let params = Params::init(&specs, 7, &Device::Cpu);
    let mut preprocess = Preprocess::new(shape.img_size as u32, 20, &Default::default());
    preprocess.mean = [0.25, 0.5, 0.75];
    PretrainedBackbone {
        config,
        network,
        params,
        preprocess,
        source: SourceFile { steps: Some(9), ..Default::default() },
    }
}

fn values(backbone: &PretrainedBackbone) -> Vec<f32> {
    backbone.params.values().iter().flat_map(|value| value.to_vec::<f32>()).collect()
}

fn options(target: Target) -> Options {
    Options { target, float: Float::F32, size: [16, 16] }
}

/// A checkpoint of a run of 12 steps, two epochs, whose student and teacher differ.
fn run(folder: &Path) -> (PathBuf, Config) {
    let mut config = Config::default();
    config.model.arch = "custom".into();
    config.model.drop_path = 0.0;
    config.model.backbone = BackboneConfig::Swin(SwinConfig { norm_eps: 1e-4, ..shape() });
    let head = HeadConfig { out_dim: 6, hidden_dim: 8, bottleneck_dim: 4, ..HeadConfig::default() };
    config.objective = ObjectiveConfig::Esvit(EsvitConfig { head, ..EsvitConfig::default() });
    (config.views.global_size, config.knn.crop, config.seed) = (16, 0, 5);
    let settings = LearnerSettings {
        seed: config.seed,
        clip_grad: None,
        clip_scope: ClipScope::Tensor,
        precision: Precision::F32,
        crop_chunks: CropChunks::All,
        activation_checkpointing: false,
        layer_decay: 1.0,
        freeze_backbone: Span::NONE,
    };
    let (network, objective) = config.network(&Device::Cpu, 0);
    let mut learner =
        Learner::new(network, objective, OptimizerKind::AdamW, settings, &Device::Cpu);
    learner.teacher = Some(Params::init(learner.network.specs(), 77, &Device::Cpu));
    let path = folder.join("step.safetensors");
    let metadata = Metadata::new(12, 2, &config, None);
    checkpoint::save(&path, &learner, metadata).unwrap();
    (path, config)
}

#[test]
fn a_checkpoint_holds_where_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = run(folder.path());
    let teacher = PretrainedBackbone::open(&path).unwrap();
    assert_eq!(teacher.config, config.model.backbone);
    assert_eq!((teacher.source.steps, teacher.source.epochs), (Some(12), Some(2)));
    assert_eq!((teacher.network_name(), teacher.preprocess.size()), ("teacher", 16));
    assert_eq!(teacher.metadata().steps, Some(12));
    let student = OpenOptions::default().key(Some("student")).open(&path).unwrap();
    assert_eq!(student.network_name(), "student");
    assert_ne!(values(&student), values(&teacher));
    // What the run started from, by its seed.
    assert_eq!(values(&teacher.untrained()), values(&student));
    // Another shape keeps what the run adds to variances.
    let wide = BackboneConfig::Swin(SwinConfig { window_size: 4, norm_eps: 1e-6, ..shape() });
    let resized = OpenOptions::default().shape(Some(wide.clone())).open(&path).unwrap();
    assert_eq!(resized.config, wide.with_norm_eps(1e-4));
}

#[test]
fn a_checkpoint_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = run(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let format = br#"\"format\":1"#;
    let at = bytes.windows(format.len()).position(|window| window == format).unwrap();
    bytes[at + format.len() - 1] = b'2';
    std::fs::write(&path, bytes).unwrap();
    let error = PretrainedBackbone::open(&path).unwrap_err().to_string();
    assert!(error.contains("format: it is 2, this program reads 1\nhint: "), "{error}");
}

/// The first versions wrote no family; a shape that is none is refused with the file's name.
#[test]
fn stored_shapes_are_read_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(&shape());
    let about = serde_json::to_value(backbone.metadata()).unwrap();
    let open = |change: &dyn Fn(&mut Value)| {
        let mut about = about.clone();
        change(&mut about["model"]);
        let tensors = esvit_nn::weights::entries("", &backbone.params);
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), about.to_string())]);
        let path = folder.path().join("x.safetensors");
        write_safetensors(&mut std::fs::File::create(&path).unwrap(), &tensors, &metadata).unwrap();
        PretrainedBackbone::open(&path)
    };
    assert_eq!(about["model"]["family"], "swin");
    for change in [&|_: &mut Value| (), &|model: &mut Value| {
        model.as_object_mut().unwrap().remove("family");
    }] as [&dyn Fn(&mut Value); 2]
    {
        assert_eq!(open(change).unwrap().config, BackboneConfig::Swin(shape()));
    }
    let text = open(&|model| model["num_heads"] = json!([3, 2])).unwrap_err().to_string();
    let expected = "x.safetensors` is damaged: model: `num_heads[0]` is 3: it must divide";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_is_exported_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(&shape());
    for (target, name) in [
        (Target::Timm, "timm.safetensors"),
        (Target::Timm, "timm.pth"),
        (Target::Timm, "timm"),
        (Target::Torchvision, "torchvision.pth"),
        (Target::Transformers, "transformers"),
        (Target::Esvit, "esvit.pth"),
        (Target::Esvit, "esvit.safetensors"),
    ] {
        let files = write(&backbone, &folder.path().join(name), &options(target)).unwrap();
        let read = OpenOptions::default()
            .shape(Some(BackboneConfig::Swin(shape())))
            .open(&files[0])
            .unwrap();
        assert_eq!(values(&read), values(&backbone), "{name}");
        assert_eq!(read.source.steps, Some(9), "{name}");
        assert_eq!(read.preprocess, backbone.preprocess, "{name}");
        if files[0].extension().unwrap() == "safetensors" {
            let file = WeightsFile::open(&files[0]).unwrap();
            let format = file.metadata().get("format").and_then(|value| value.as_str());
            assert_eq!(format, Some("pt"), "{name}");
        }
    }
}

fn card(folder: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn cards_describe_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let mut backbone = backbone(&SwinConfig { embed_dim: 32, window_size: 2, ..shape() });
    backbone.preprocess.transform.resize = 20;
    let timm = folder.path().join("timm");
    write(&backbone, &timm, &options(Target::Timm)).unwrap();
    let found = card(&timm, "config.json");
    let config = &found["pretrained_cfg"];
    assert_eq!(config["crop_pct"], 0.8);
    assert_eq!(
        (&config["input_size"], &config["pool_size"]),
        (&json!([3, 16, 16]), &json!([2, 2]))
    );
    assert_eq!((&config["mean"], &found["num_features"]), (&json!([0.25, 0.5, 0.75]), &json!(64)));
    assert_eq!(
        (&found["model_args"]["window_size"], &found["model_args"]["embed_dim"]),
        (&json!(2), &json!(32))
    );

    let transformers = folder.path().join("transformers");
    let options = Options { float: Float::Bf16, ..options(Target::Transformers) };
    write(&backbone, &transformers, &options).unwrap();
    let found = card(&transformers, "config.json");
    for (key, value) in [
        ("encoder_stride", json!(8)),
        ("hidden_size", json!(64)),
        ("num_layers", json!(2)),
        ("window_size", json!(2)),
        ("layer_norm_eps", json!(1e-6)),
        ("dtype", json!("bfloat16")),
        ("stage_names", json!(["stem", "stage1", "stage2"])),
        ("depths", json!([1, 1])),
    ] {
        assert_eq!(found[key], value, "{key}");
    }
    let found = card(&transformers, "preprocessor_config.json");
    assert_eq!(
        (&found["size"]["shortest_edge"], &found["crop_size"]["width"]),
        (&json!(20), &json!(16))
    );
    assert_eq!((&found["resample"], &found["image_mean"]), (&json!(3), &json!([0.25, 0.5, 0.75])));
}

/// Names of timm's architectures, and the arguments by which a network differs from them.
#[test]
fn lines_that_load_name_the_nearest_architecture() {
    let line = |config: BackboneConfig| {
        let backbone = PretrainedBackbone {
            network: config.build(0.0).0,
            config,
            ..backbone(&SwinConfig { img_size: 16, ..shape() })
        };
        load_snippet(&backbone, Path::new("x.safetensors"), &options(Target::Timm))
    };
    let named = |name: &str| esvit_nn::zoo::find(name).unwrap().config();
    let tiny = line(named("swin_tiny_w7"));
    assert!(tiny.contains("create_model('swin_tiny_patch4_window7_224'"), "{tiny}");
    assert!(!tiny.contains("embed_dim") && !tiny.contains("window_size"), "{tiny}");
    let small = line(named("swin_small_w7"));
    assert!(
        small.contains("'swin_small_patch4_window7_224'") && !small.contains("depths"),
        "{small}"
    );
    assert!(line(named("swin_base_w7")).contains("'swin_base_patch4_window7_224'"));
    let BackboneConfig::Swin(tiny) = named("swin_tiny_w7") else { panic!("a Swin") };
    let wide = line(BackboneConfig::Swin(SwinConfig { window_size: 14, ..tiny }));
    assert!(wide.contains(", window_size=14") && !wide.contains("embed_dim"), "{wide}");
    let own = line(BackboneConfig::Swin(shape()));
    assert!(own.contains(", embed_dim=32") && own.contains("eps=1e-6"), "{own}");
}

#[test]
fn what_another_program_cannot_take_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let plain = backbone(&shape());
    for (target, name) in [
        (Target::Timm, "x.onnx"),
        (Target::Torchvision, "folder"),
        (Target::Transformers, "x.safetensors"),
        (Target::Onnx, "x.pth"),
        (Target::Esvit, "x.txt"),
    ] {
        let error = write(&plain, &out(name), &options(target)).unwrap_err();
        assert!(matches!(error, ExportError::Ending { .. }), "{target} {name}: {error}");
        assert!(!out(name).exists());
    }
    // Windows of 4 and, on a map of 2, of 2.
    let uneven = backbone(&SwinConfig { window_size: 4, ..shape() });
    for (target, name) in [(Target::Torchvision, "x.pth"), (Target::Transformers, "x")] {
        let error = write(&uneven, &out(name), &options(target)).unwrap_err();
        assert!(matches!(error, ExportError::Windows { .. }), "{error}");
    }
    assert!(write(&uneven, &out("x.safetensors"), &options(Target::Timm)).is_ok());
    let graph = |float, size| {
        let options = Options { target: Target::Onnx, float, size };
        write(&plain, &out("x.onnx"), &options)
    };
    assert!(matches!(graph(Float::Bf16, [16, 16]), Err(ExportError::Bf16Graph)));
    assert!(matches!(graph(Float::F32, [16, 3]), Err(ExportError::Size { patch: 4, .. })));
    assert!(graph(Float::F16, [16, 24]).is_ok());
    for (name, target) in Target::ALL {
        assert_eq!((name.parse(), target.to_string().as_str()), (Ok(target), name));
    }
}

/// Both networks of a run as the official code names them: the student's with `module.`.
#[test]
fn a_whole_run_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = run(folder.path());
    let out = folder.path().join("run.pth");
    official::write(&path, &out, Float::F32).unwrap();
    let file = WeightsFile::open(&out).unwrap();
    let find = |group: &str, name: &str| {
        file.find(group, name).map(|tensor| file.read_f32(tensor).unwrap())
    };
    let run = WeightsFile::open(&path).unwrap();
    let own = |name: &str| run.read_f32(run.find("", name).unwrap()).unwrap();
    let name = "norm.weight";
    assert_eq!(find("student", &format!("module.{name}")), Some(own(&format!("student.{name}"))));
    assert_eq!(find("teacher", name), Some(own(&format!("teacher.{name}"))));
    assert!(
        find("student", name).is_none() && find("teacher", &format!("module.{name}")).is_none()
    );
    assert_eq!(find("dino_loss", "center"), Some(own("center")));
    let facts = file.metadata();
    assert_eq!(facts.get("epoch").and_then(|value| value.as_i64()), Some(2));
    assert!(
        facts.get(METADATA_KEY).and_then(|value| value.as_str()).unwrap().contains("\"steps\":12")
    );
    let other = folder.path().join("x.safetensors");
    let error = official::write(&path, &other, Float::F32).unwrap_err();
    assert!(matches!(error, OfficialError::Ending { .. }), "{error}");
}

#[test]
fn differences_are_counted_and_ordered() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, tensors: &[(&str, &[usize], &[f32])]| {
        let tensors: Vec<(String, Tensor<'_>)> = tensors
            .iter()
            .map(|&(name, shape, values)| (name.to_owned(), Tensor::f32(shape, values)))
            .collect();
        let mut bytes = Vec::new();
        write_safetensors(&mut bytes, &tensors, &BTreeMap::new()).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        WeightsFile::open(&path).unwrap()
    };
    let a = file(
        "a",
        &[
            ("equal", &[2], &[1.0, f32::NAN]),
            ("little", &[2], &[1.0, -4.0]),
            ("much", &[2], &[1.0, 2.0]),
            ("nan", &[3], &[1.0, 2.0, 3.0]),
            ("only a", &[1], &[0.0]),
            ("shape", &[2, 1], &[1.0, 2.0]),
            ("zero", &[1], &[0.0]),
        ],
    );
    let b = file(
        "b",
        &[
            ("equal", &[2], &[1.0, f32::NAN]),
            ("little", &[2], &[1.0, -3.5]),
            ("much", &[2], &[4.0, 2.0]),
            ("nan", &[3], &[1.0, f32::NAN, 9.0]),
            ("only b", &[1], &[0.0]),
            ("shape", &[2], &[1.0, 2.0]),
            ("zero", &[1], &[-0.0]),
        ],
    );
    let [of_a, of_b] = [&a, &b].map(|file| Tensors::of(file, None).unwrap());
    let found = compare(&of_a, &of_b).unwrap();
    let differences: Vec<(&str, f32)> =
        found.different.iter().map(|d| (d.name.as_str(), d.scale)).collect();
    assert_eq!(differences, [("nan", 3.0), ("much", 2.0), ("little", 4.0), ("zero", 0.0)]);
    assert!(found.different[0].largest.is_nan());
    assert_eq!(found.different[1..].iter().map(|d| d.largest).collect::<Vec<_>>(), [3.0, 0.5, 0.0]);
    assert_eq!(
        (found.equal, found.only_a, found.only_b),
        (1, vec!["only a".into()], vec!["only b".to_owned()])
    );
    assert_eq!(found.reshaped, [("shape".into(), vec![2, 1], vec![2])]);
    let same = compare(&of_a, &Tensors::of(&a, None).unwrap()).unwrap();
    assert!(same.is_equal() && same.equal == 7);
}

/// Names of other programs are those of the parameters that they mean.
#[test]
fn networks_are_compared_by_their_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(&shape());
    let out = |name: &str| folder.path().join(name);
    write(&backbone, &out("a.safetensors"), &options(Target::Timm)).unwrap();
    write(&backbone, &out("b.safetensors"), &options(Target::Esvit)).unwrap();
    let [a, b] =
        ["a.safetensors", "b.safetensors"].map(|name| WeightsFile::open(&out(name)).unwrap());
    let found = compare(&Tensors::of(&a, None).unwrap(), &Tensors::of(&b, None).unwrap()).unwrap();
    assert!(found.is_equal() && found.equal == backbone.params.values().len(), "{found:?}");
}
