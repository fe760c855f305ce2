//! Files of weights in every naming: written, recognized, read, and refused.
#![expect(clippy::unwrap_used, reason = "a test may stop")]

#[path = "weights/cvt.rs"]
mod cvt;
#[path = "weights/igpt.rs"]
mod igpt;
#[path = "weights/methods.rs"]
mod methods;
#[path = "weights/pvt.rs"]
mod pvt;
#[path = "weights/resnet.rs"]
mod resnet;
#[path = "weights/vil.rs"]
mod vil;
#[path = "weights/vit.rs"]
mod vit;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use esvit_nn::Device;
use esvit_nn::backbone::Family;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::head::HeadConfig;
use esvit_nn::params::{ParamList, ParamSpec};
use esvit_nn::weights::{
    Entry, Naming, Report, StoredNetwork, WeightsError, WeightsFile, exported, networks, reason,
};
use esvit_nn::{BackboneConfig, EsvitHeads, Network, Params};
use esvit_testing::tiny_swin;
use esvit_weights::{Dtype, Float, Tensor, Tree, Values, write_safetensors, write_torch};

/// Small, and of another window in its last stage than in its first.
fn config() -> SwinConfig {
    SwinConfig {
        img_size: 64,
        depths: vec![2, 1, 1, 1],
        num_heads: vec![1, 2, 2, 4],
        ..tiny_swin()
    }
}

fn specs(config: &SwinConfig) -> Arc<ParamList> {
    BackboneConfig::Swin(config.clone()).build(0.0).1
}

/// Parameters of which no two are alike.
fn params(specs: &Arc<ParamList>) -> Params {
    let mut next = 0.0;
    Params::from_fn(specs, &Device::Cpu, |spec| {
        let value = |_| {
            next += 1.0;
            next
        };
        (0..spec.len()).map(value).collect()
    })
}

fn floats(name: &str, shape: &[usize], values: Vec<f32>) -> Entry {
    let values = move || Ok(Values::F32(Cow::Owned(values.clone())));
    (name.into(), Tensor::new(shape, Dtype::F32, values))
}

fn opened(entries: &[Entry]) -> WeightsFile {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, entries, &BTreeMap::new()).unwrap();
    WeightsFile::from_bytes(Path::new("weights"), bytes).unwrap()
}

/// The state dictionaries of a `.pth`, by name.
fn opened_torch(networks: Vec<(&str, Vec<Entry>)>) -> WeightsFile {
    let state = |entries: Vec<Entry>| {
        Tree::Dict(entries.into_iter().map(|(name, t)| (name, Tree::Tensor(t))).collect())
    };
    let networks = networks.into_iter().map(|(name, entries)| (name.into(), state(entries)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    write_torch(&mut bytes, &Tree::Dict(networks.collect())).unwrap();
    WeightsFile::from_bytes(Path::new("weights.pth"), bytes.into_inner()).unwrap()
}

fn prefixed(prefix: &str, mut entries: Vec<Entry>) -> Vec<Entry> {
    for (name, _) in &mut entries {
        name.insert_str(0, prefix);
    }
    entries
}

fn load(file: &WeightsFile, key: Option<&str>) -> Result<(Params, Report), WeightsError> {
    StoredNetwork::find(file, key)?.load(&specs(&config()), &Device::Cpu, |_| None)
}

fn same_bits(a: &Params, b: &Params) -> bool {
    let bits = |params: &Params| -> Vec<u32> {
        params.iter().flat_map(|(_, value)| value.to_vec::<f32>()).map(f32::to_bits).collect()
    };
    bits(a) == bits(b)
}

#[test]
fn every_layout_is_recognized_and_read_back_to_the_bit() {
    let specs = specs(&config());
    let params = params(&specs);
    for naming in Naming::OF_SWIN {
        for prefix in ["", "module.", "backbone.", "swin."] {
            let mut entries = prefixed(prefix, exported(&params, Family::Swin, naming, Float::F32));
            if naming == Naming::Microsoft {
                entries.push(floats(
                    &format!("{prefix}layers.0.blocks.1.attn_mask"),
                    &[1],
                    vec![0.0],
                ));
            }
            let file = opened(&entries);
            let stored = StoredNetwork::find(&file, None).unwrap();
            assert_eq!(stored.location().naming, naming, "{prefix}");
            let expected = SwinConfig { norm_eps: naming.norm_eps(Family::Swin), ..config() };
            assert_eq!(stored.shape().unwrap(), BackboneConfig::Swin(expected), "{naming:?}");
            let (found, report) = load(&file, None).unwrap();
            assert!(same_bits(&found, &params), "{naming:?}");
            assert_eq!(report.matched, specs.len());
            assert!(report.resized.is_empty());
        }
    }
}

#[test]
fn networks_of_a_run_are_told_apart() {
    let specs = specs(&config());
    let teacher = params(&specs);
    let student = Params::init(&specs, 1, &Device::Cpu);
    let file = opened_torch(vec![
        (
            "student",
            prefixed(
                "module.backbone.",
                exported(&student, Family::Swin, Naming::Esvit, Float::F32),
            ),
        ),
        (
            "teacher",
            prefixed("backbone.", exported(&teacher, Family::Swin, Naming::Esvit, Float::F32)),
        ),
    ]);
    assert_eq!(networks(&file).len(), 2);
    assert!(same_bits(&load(&file, None).unwrap().0, &teacher));
    assert!(same_bits(&load(&file, Some("teacher")).unwrap().0, &teacher));
    assert!(same_bits(&load(&file, Some("student")).unwrap().0, &student));
    let error = load(&file, Some("model")).unwrap_err().to_string();
    assert!(error.contains("has no network `model`, only `student`, `teacher`"), "{error}");
}

#[test]
fn a_network_of_several_must_be_chosen() {
    let entries = || exported(&params(&specs(&config())), Family::Swin, Naming::Timm, Float::F32);
    let file = opened_torch(vec![("model", entries()), ("model_ema", entries())]);
    let error = load(&file, None).unwrap_err().to_string();
    assert!(error.contains("several networks: `model`, `model_ema`"), "{error}");
    assert!(load(&file, Some("model_ema")).is_ok());
}

#[test]
fn what_is_left_out_has_a_reason() {
    let params = params(&specs(&config()));
    let mut entries = exported(&params, Family::Swin, Naming::Timm, Float::F32);
    entries.push(floats("head.fc.weight", &[10, 64], vec![0.0; 640]));
    let (_, report) = load(&opened(&entries), None).unwrap();
    assert_eq!(report.left_out[reason::CLASSES], ["head.fc.weight"]);

    let mut entries = exported(&params, Family::Swin, Naming::Esvit, Float::F32);
    entries.push(floats("head.mlp.0.weight", &[2, 64], vec![0.0; 128]));
    entries.push(floats("head_dense.last_layer.weight_g", &[2, 1], vec![0.0; 2]));
    entries.push(floats("center", &[1, 2], vec![0.0; 2]));
    let (_, report) = load(&opened(&entries), None).unwrap();
    assert_eq!(report.left_out[reason::PROJECTION].len(), 2);
    assert_eq!(report.left_out[reason::STATE], ["center"]);
    assert_eq!(report.left_out[reason::DERIVED].len(), 5);
}

#[test]
fn what_does_not_fit_is_listed() {
    let params = params(&specs(&config()));
    let mut entries = exported(&params, Family::Swin, Naming::Timm, Float::F32);
    let at = |entries: &[Entry], name: &str| entries.iter().position(|(n, _)| n == name).unwrap();
    let missing = at(&entries, "layers.1.blocks.0.mlp.fc2.bias");
    entries.remove(missing);
    let misshapen = at(&entries, "norm.weight");
    entries[misshapen] = floats("norm.weight", &[63], vec![0.0; 63]);
    let broken = at(&entries, "norm.bias");
    let mut values = vec![0.0; 64];
    (values[3], values[5]) = (f32::NAN, f32::INFINITY);
    entries[broken] = floats("norm.bias", &[64], values);
    entries.push(floats("layers.0.blocks.0.gamma", &[1], vec![0.0]));
    let error = load(&opened(&entries), None).unwrap_err().to_string();
    for part in [
        "4 tensors differ",
        "`layers.1.blocks.0.mlp.fc2.bias` [16] is missing",
        "`norm.weight` is [63], the network has [64]",
        "`norm.bias` holds 2 values that are not finite",
        "`layers.0.blocks.0.gamma` has no place in the network",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn parts_of_a_parameter_must_be_alike() {
    let mut entries =
        exported(&params(&specs(&config())), Family::Swin, Naming::Transformers, Float::F32);
    let name = "encoder.layers.0.blocks.0.attention.self.key.weight";
    let at = entries.iter().position(|(n, _)| n == name).unwrap();
    entries[at] = floats(name, &[8, 3], vec![0.0; 24]);
    let error = load(&opened(&entries), None).unwrap_err().to_string();
    assert!(error.contains("are [[8, 8], [8, 3], [8, 8]], not alike"), "{error}");
}

/// A file that names so many stages would ask for a network beyond all memory.
#[test]
fn more_stages_than_there_can_be_are_refused() {
    let table = |stage| format!("layers.{stage}.blocks.0.attn.relative_position_bias_table");
    let mut entries: Vec<Entry> =
        (0..70).map(|stage| floats(&table(stage), &[9, 1], vec![0.0; 9])).collect();
    entries.push(floats("patch_embed.proj.weight", &[4, 3, 4, 4], vec![0.0; 192]));
    let file = opened(&entries);
    let error = StoredNetwork::find(&file, None).unwrap().shape().unwrap_err().to_string();
    assert!(error.contains("more than 8 stages"), "{error}");
}

#[test]
fn tables_are_resized_to_the_windows_of_the_network() {
    let other = SwinConfig { window_size: 2, ..config() };
    let file = opened(&exported(&params(&specs(&other)), Family::Swin, Naming::Esvit, Float::F32));
    let (found, report) = load(&file, None).unwrap();
    assert_eq!(report.resized.len(), 4, "{:?}", report.resized);
    assert!(report.resized[0].ends_with("from [9, 1] to [49, 1]"), "{:?}", report.resized);
    let (_, table) = found.iter().find(|(spec, _)| spec.name.ends_with("bias_table")).unwrap();
    let middle = table.to_vec::<f32>()[24];
    let old = params(&specs(&other));
    let (_, old) = old.iter().find(|(spec, _)| spec.name.ends_with("bias_table")).unwrap();
    assert!((middle - old.to_vec::<f32>()[4]).abs() < 1e-3, "the middle stays where it is");
}

#[test]
fn other_backbones_are_named() {
    for (name, backbone) in [
        ("blocks.0.attn.qkv.weight", "no backbone"),
        ("cls_token", "a vision transformer (ViT) of another form"),
        ("layer1.0.conv1.weight", "a residual network of another form"),
        ("stages.0.0.fn.qkv.dw.weight", "a convolutional vision transformer (CvT) in another form"),
        ("layers.0.blocks.0.attn.logit_scale", "a Swin transformer of version 2"),
    ] {
        let file = opened(&[floats(name, &[1], vec![0.0])]);
        let error = load(&file, None).unwrap_err().to_string();
        assert!(error.contains(&format!("holds {backbone}")), "{error}");
    }
}

#[test]
fn tensors_that_are_no_swin_are_explained() {
    let mut entries = exported(&params(&specs(&config())), Family::Swin, Naming::Esvit, Float::F32);
    let table = |(name, _): &Entry| name == "layers.0.blocks.0.attn.relative_position_bias_table";
    let table = entries.iter().position(table).unwrap();
    let name = entries[table].0.clone();
    entries[table] = floats(&name, &[48, 1], vec![0.0; 48]);
    let file = opened(&entries);
    let error = StoredNetwork::find(&file, None).unwrap().shape().unwrap_err().to_string();
    assert!(error.contains("has 48 rows, no odd square"), "{error}");
}

#[test]
fn heads_come_with_their_network_under_both_names_of_the_last_layer() {
    let head =
        HeadConfig { out_dim: 16, hidden_dim: 8, bottleneck_dim: 4, ..HeadConfig::default() };
    let (network, _) = Network::new(&BackboneConfig::Swin(config()), 0.0, |scope, width| {
        EsvitHeads::new(scope, width, &head, true)
    });
    let values = params(network.specs());
    for renamed in [false, true] {
        let mut entries = exported(&values, Family::Swin, Naming::Esvit, Float::F32);
        for (name, _) in &mut entries {
            if renamed {
                *name = name
                    .replace("weight_g", "parametrizations.weight.original0")
                    .replace("weight_v", "parametrizations.weight.original1");
            }
        }
        let file = opened(&prefixed("module.", entries));
        let stored = StoredNetwork::find(&file, None).unwrap();
        assert!(stored.has_part("head") && stored.has_part("head_dense"));
        let (found, report) = stored.load(network.specs(), &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &values));
        assert_eq!(report.matched, network.specs().len());
    }
}

/// Tables that other programs keep among their weights: which, of what shape, and what is in them.
#[test]
fn positions_are_exported_where_the_program_stores_them() {
    let config = SwinConfig { window_size: 2, ..config() };
    let params = params(&specs(&config));
    // Of a window of 2 x 2 tokens, by hand: rows of the table for every query and key.
    let rows = [4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4];
    for (naming, name, shape) in [
        (Naming::Esvit, "layers.2.blocks.0.attn.relative_position_index", Some(vec![4, 4])),
        (Naming::Microsoft, "layers.2.blocks.0.attn.relative_position_index", Some(vec![4, 4])),
        (Naming::Torchvision, "features.5.0.attn.relative_position_index", Some(vec![16])),
        (Naming::Timm, "relative_position_index", None),
        (Naming::Transformers, "relative_position_index", None),
        (Naming::Transformers5, "relative_position_index", None),
        (
            Naming::OpenMmLab,
            "stages.2.blocks.0.attn.w_msa.relative_position_index",
            Some(vec![4, 4]),
        ),
    ] {
        let file = opened(&exported(&params, Family::Swin, naming, Float::F32));
        let tables: Vec<_> =
            file.tensors().iter().filter(|t| t.name.ends_with("relative_position_index")).collect();
        match shape {
            None => assert!(tables.is_empty(), "{naming:?}"),
            Some(shape) => {
                assert_eq!(tables.len(), 5, "one a block");
                let table = tables.iter().find(|table| table.name == name).unwrap();
                assert_eq!(table.shape, shape);
                assert_eq!(file.read_i64(table).unwrap(), rows);
            }
        }
    }
}

#[test]
fn weights_are_exported_in_16_bits_too() {
    let params = params(&specs(&config()));
    let (spec, value) = params.iter().nth(4).unwrap();
    for (float, dtype, keeps) in
        [(Float::F32, Dtype::F32, 24), (Float::F16, Dtype::F16, 11), (Float::Bf16, Dtype::Bf16, 8)]
    {
        let file = opened(&exported(&params, Family::Swin, Naming::Timm, float));
        assert_eq!(file.tensors().len(), params.specs().len());
        let tensor = file.find("", &spec.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape), (dtype, &spec.shape));
        for (found, exact) in file.read_f32(tensor).unwrap().iter().zip(value.to_vec::<f32>()) {
            assert!((found - exact).abs() <= exact * 0.5f32.powi(keeps), "{found} {exact}");
        }
    }
}

#[test]
fn layouts_that_share_their_names_are_told_apart() {
    let params = params(&specs(&config()));
    let layout_of = |file: &WeightsFile| networks(file)[0].naming;
    let esvit = || exported(&params, Family::Swin, Naming::Esvit, Float::F32);
    assert_eq!(layout_of(&opened(&esvit())), Naming::Esvit);
    for (name, expected) in [
        ("head.weight", Naming::Microsoft),
        ("layers.0.blocks.1.attn_mask", Naming::Microsoft),
        ("head.mlp.0.weight", Naming::Esvit),
    ] {
        let entries = joined([esvit(), vec![floats(name, &[1], vec![0.0])]]);
        assert_eq!(layout_of(&opened(&entries)), expected, "{name}");
    }
    assert_eq!(layout_of(&opened_torch(vec![("model", esvit())])), Naming::Microsoft);
    assert_eq!(layout_of(&opened_torch(vec![("teacher", esvit())])), Naming::Esvit);
    let found = networks(&opened_torch(vec![("teacher", prefixed("module.backbone.", esvit()))]));
    assert_eq!(
        (found[0].group.as_str(), found[0].prefix.as_str()),
        ("teacher", "module.backbone.")
    );
    assert_eq!(found[0].network(), "teacher");
    assert_eq!(networks(&opened(&prefixed("swin.", esvit())))[0].network(), "swin");
}

fn joined(parts: [Vec<Entry>; 2]) -> Vec<Entry> {
    parts.into_iter().flatten().collect()
}

/// Moments of an optimizer have the names of what they belong to, and are no networks.
#[test]
fn states_of_an_optimizer_are_no_networks() {
    let params = params(&specs(&config()));
    let esvit = || exported(&params, Family::Swin, Naming::Esvit, Float::F32);
    let entries = joined([prefixed("student.", esvit()), prefixed("optimizer.exp_avg.", esvit())]);
    let found = networks(&opened(&entries));
    assert_eq!(found.iter().map(|at| at.network()).collect::<Vec<_>>(), ["student"]);
    let file = opened_torch(vec![("optimizer", esvit()), ("model", esvit())]);
    assert_eq!(networks(&file).len(), 1);
    // Something that only ends like one.
    let name = "xlayers.0.blocks.0.attn.relative_position_bias_table";
    assert!(networks(&opened(&[floats(name, &[49, 1], vec![0.0; 49])])).is_empty());
}

/// The side of the images follows from the windows; usual ones are tried first, then multiples of
/// the last stride, then of the patch.
#[test]
fn sizes_of_images_follow_from_the_windows() {
    let base = SwinConfig {
        depths: vec![1; 4],
        num_heads: vec![1; 4],
        embed_dim: 4,
        mlp_ratio: 1.0,
        ..config()
    };
    for (img_size, window_size, patch_size) in
        [(224, 7, 4), (384, 12, 4), (224, 14, 2), (96, 5, 4), (40, 5, 4)]
    {
        let expected = SwinConfig { img_size, window_size, patch_size, ..base.clone() };
        let file =
            opened(&exported(&params(&specs(&expected)), Family::Swin, Naming::Esvit, Float::F32));
        let found = StoredNetwork::find(&file, None).unwrap().shape().unwrap();
        assert_eq!(found, BackboneConfig::Swin(expected));
    }
    // Stages whose windows grow follow from no size.
    let mut entries = exported(&params(&specs(&base)), Family::Swin, Naming::Esvit, Float::F32);
    let name = "layers.3.blocks.0.attn.relative_position_bias_table";
    let at = entries.iter().position(|(other, _)| other == name).unwrap();
    entries[at] = floats(name, &[361, 1], vec![0.0; 361]);
    let error =
        StoredNetwork::find(&opened(&entries), None).unwrap().shape().unwrap_err().to_string();
    assert!(error.contains("follow from no size of image"), "{error}");
    for (name, shape, expected) in [
        ("patch_embed.proj.weight", vec![4, 1, 4, 4], "not [width, 3, side, side]"),
        ("patch_embed.proj.weight", vec![4, 3, 4, 2], "4 x 2 pixels are not square"),
        ("layers.1.blocks.0.attn.relative_position_bias_table", vec![64, 1], "64 rows, no odd"),
        ("layers.1.blocks.0.attn.relative_position_bias_table", vec![49], "not [positions, heads]"),
    ] {
        let mut entries = exported(&params(&specs(&base)), Family::Swin, Naming::Esvit, Float::F32);
        let at = entries.iter().position(|(other, _)| other == name).unwrap();
        entries[at] = floats(name, &shape, vec![0.0; shape.iter().product()]);
        let error =
            StoredNetwork::find(&opened(&entries), None).unwrap().shape().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_backbone_that_is_known_by_its_names() {
    for (name, backbone) in [
        ("encoder.layers.0.blocks.0.attention.self.logit_scale", "a Swin transformer of version 2"),
        (
            "layers.0.local_relative_position_bias_table",
            "a vision longformer (ViL) of another form",
        ),
        (
            "stage0.0.attn.fn.qkv.dw.weight",
            "a convolutional vision transformer (CvT) in another form than EsViT's",
        ),
        ("patch_embed1.proj.weight", "a pyramid vision transformer of version 2 (PVTv2)"),
        ("downsample.dwconv.weight", "a ConvNeXt"),
        ("stages.0.conv_dw.weight", "a ConvNeXt"),
        ("class_token", "a vision transformer (ViT) of another form"),
    ] {
        let error = load(&opened(&[floats(name, &[1], vec![0.0])]), None).unwrap_err().to_string();
        assert!(error.contains(&format!("holds {backbone}, a backbone that")), "{error}");
    }
    let error = load(&opened(&[floats("a", &[1], vec![0.0])]), None).unwrap_err().to_string();
    assert!(error.contains("none of its 1 tensors is named like one of"), "{error}");
}

#[test]
fn every_reason_to_leave_a_tensor_out() {
    let params = params(&specs(&config()));
    let mut entries =
        prefixed("module.backbone.", exported(&params, Family::Swin, Naming::Timm, Float::F32));
    let of = |reason| match reason {
        reason::DERIVED => {
            vec!["layers.0.blocks.1.attn_mask", "head.mlp.1.num_batches_tracked"]
        }
        reason::PROJECTION => vec![
            "head.mlp.0.bias",
            "head_dense.last_layer.weight_v",
            "head.0.weight",
            "fc.2.bias",
            "mlp2.0.weight",
            "projector.linear_out.bias",
            "predictor.1.running_mean",
            "prototypes.weight",
            "ibot_head.last_layer.weight_v",
        ],
        reason::CLASSES => vec!["head.bias", "classifier.weight", "fc.weight"],
        _ => vec!["center", "center_grid", "optimizer.step"],
    };
    for reason in [reason::DERIVED, reason::PROJECTION, reason::CLASSES, reason::STATE] {
        for name in of(reason) {
            entries.push(floats(&format!("module.backbone.{name}"), &[1], vec![0.0]));
        }
    }
    entries.push(floats("module.predictor.weight", &[1], vec![0.0]));
    entries.push(floats("module.head.last_layer.weight_g", &[1], vec![0.0]));
    entries.push(floats("elsewhere.weight", &[1], vec![0.0]));
    let (_, report) = load(&opened(&entries), None).unwrap();
    for reason in [reason::DERIVED, reason::PROJECTION, reason::CLASSES, reason::STATE] {
        let mut expected: Vec<String> =
            of(reason).iter().map(|name| format!("module.backbone.{name}")).collect();
        if reason == reason::PROJECTION {
            expected.push("module.head.last_layer.weight_g".into());
        }
        let mut found = report.left_out[reason].clone();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{reason}");
    }
    assert_eq!(report.left_out[reason::BESIDE], ["module.predictor.weight"]);
    assert_eq!(report.left_out.len(), 5);
}

#[test]
fn one_parameter_and_parts_of_a_network() {
    let specs = specs(&config());
    let params = params(&specs);
    let mut entries = exported(&params, Family::Swin, Naming::Transformers, Float::F32);
    entries.push(floats("head.weight", &[2], vec![0.0; 2]));
    let file = opened(&entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    assert!(!stored.has_part("head"), "a class head is no projection head");
    let mut layers = exported(&params, Family::Swin, Naming::Esvit, Float::F32);
    layers.push(floats("head.3.weight", &[2], vec![0.0; 2]));
    layers.push(floats("head_contrastive.nl_0.dense.weight", &[2], vec![0.0; 2]));
    let layers = opened(&layers);
    let sequence = StoredNetwork::find(&layers, None).unwrap();
    for (part, has) in [("head", true), ("head_contrastive", true), ("projector", false)] {
        assert_eq!(sequence.has_part(part), has, "{part}");
    }
    for (spec, value) in params.iter().filter(|(spec, _)| spec.name.contains("blocks.1")) {
        assert_eq!(stored.parameter(spec).unwrap(), value.to_vec::<f32>(), "{}", spec.name);
    }
    let other = ParamSpec { name: "layers.0.gamma".into(), ..specs[0].clone() };
    let error = stored.parameter(&other).unwrap_err().to_string();
    assert!(error.contains("1 tensors differ:\n  `layers.0.gamma` is missing"), "{error}");
    let other = ParamSpec { shape: vec![7], ..specs[1].clone() };
    let error = stored.parameter(&other).unwrap_err().to_string();
    assert!(error.contains("is [8], the network has [7]"), "{error}");

    // What a file lacks may come from somewhere else; lists of differences are cut off.
    let few: Vec<Entry> = exported(&params, Family::Swin, Naming::Esvit, Float::F32)
        .into_iter()
        .filter(|(name, _)| !name.contains(".blocks.0.mlp") && !name.contains(".norm1."))
        .collect();
    let file = opened(&few);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let count =
        specs.iter().filter(|s| s.name.contains(".blocks.0.mlp") || s.name.contains(".norm1."));
    let count = count.count();
    let error = stored.load(&specs, &Device::Cpu, |_| None).unwrap_err().to_string();
    assert!(error.contains(&format!("{count} tensors differ")), "{error}");
    assert_eq!(error.matches(" is missing").count(), 12);
    assert!(error.contains(&format!("  ... and {} more\n", count - 12)), "{error}");
    let (found, report) =
        stored.load(&specs, &Device::Cpu, |spec| Some(vec![0.5; spec.len()])).unwrap();
    assert_eq!(report.matched, specs.len() - count);
    for ((spec, found), expected) in found.iter().zip(params.values()) {
        let lacks = spec.name.contains(".blocks.0.mlp") || spec.name.contains(".norm1.");
        let expected = if lacks { vec![0.5; spec.len()] } else { expected.to_vec::<f32>() };
        assert_eq!(found.to_vec::<f32>(), expected, "{}", spec.name);
    }
}

/// A square table becomes another one position by position, each head on its own.
#[test]
fn heads_of_a_table_are_resized_apart() {
    let other = SwinConfig { window_size: 2, ..config() };
    let mut entries = exported(&params(&specs(&other)), Family::Swin, Naming::Esvit, Float::F32);
    let name = "layers.1.blocks.0.attn.relative_position_bias_table";
    let at = entries.iter().position(|(other, _)| other == name).unwrap();
    let values = (0..9).flat_map(|_| [2.0, -3.0]).collect();
    entries[at] = floats(name, &[9, 2], values);
    let (found, _) = load(&opened(&entries), None).unwrap();
    let (_, table) = found.iter().find(|(spec, _)| spec.name == name).unwrap();
    for pair in table.to_vec::<f32>().chunks_exact(2) {
        assert!((pair[0] - 2.0).abs() < 1e-6 && (pair[1] + 3.0).abs() < 1e-6, "{pair:?}");
    }
    entries[at] = floats(name, &[8, 2], vec![0.0; 16]);
    let error = load(&opened(&entries), None).unwrap_err().to_string();
    assert!(error.contains("[8, 2] is no square of positions"), "{error}");
}

#[test]
fn own_files_of_weights() {
    use esvit_nn::weights::{METADATA_KEY, entries, entry, save};
    let specs = specs(&config());
    let params = params(&specs);
    let mut all = entries("student.", &params);
    all.push(entry("center", &[1, 2], &esvit_nn::Tensor::from_vec(vec![1f32, 2.0], &Device::Cpu)));
    let mut bytes = Vec::new();
    save(&mut bytes, &all, "{\"step\":3}").unwrap();
    let file = WeightsFile::from_bytes(Path::new("own"), bytes).unwrap();
    assert_eq!(file.metadata().get(METADATA_KEY).and_then(|v| v.as_str()), Some("{\"step\":3}"));
    assert_eq!(file.find("", "center").unwrap().shape, [1, 2]);
    let (found, report) =
        StoredNetwork::at(&file, "student.").load(&specs, &Device::Cpu, |_| None).unwrap();
    assert!(same_bits(&found, &params));
    assert!(report.left_out.is_empty(), "what is beside the prefix is not looked at");
    assert!(StoredNetwork::at(&file, "teacher.").load(&specs, &Device::Cpu, |_| None).is_err());
}

/// Student and teacher (or what they are called) in one dictionary, and which are loaded.
#[test]
fn networks_that_share_a_dictionary_are_told_apart() {
    let specs = specs(&config());
    let [first, second] = [1, 2].map(|seed| Params::init(&specs, seed, &Device::Cpu));
    for (group, prefixes, preferred) in [
        ("state_dict", ["student_backbone", "teacher_backbone"], true),
        ("model", ["student.backbone", "teacher.backbone"], true),
        ("model", ["encoder", "encoder_k"], false),
        ("state_dict", ["backbone", "momentum_backbone"], false),
    ] {
        let of = |prefix: &str, params| {
            prefixed(
                &format!("{prefix}."),
                exported(params, Family::Swin, Naming::Esvit, Float::F32),
            )
        };
        let both = joined([of(prefixes[0], &first), of(prefixes[1], &second)]);
        let file = opened_torch(vec![(group, both)]);
        for (prefix, params) in prefixes.into_iter().zip([&first, &second]) {
            for key in [prefix.to_owned(), format!("{group}/{prefix}")] {
                assert!(same_bits(&load(&file, Some(&key)).unwrap().0, params), "{key}");
            }
        }
        match load(&file, None) {
            Ok((found, _)) => assert!(preferred && same_bits(&found, &second)),
            Err(error) => {
                let expected = format!(
                    "several networks: `{}`, `{}`\nhint: choose with `--key`, for instance \
                     `--key {}`",
                    prefixes[0], prefixes[1], prefixes[1]
                );
                assert!(!preferred && error.to_string().ends_with(&expected), "{error}");
            }
        }
    }
}

/// Patch merging by hand: OpenMMLab has the four patches of a channel side by side, row by row, the
/// official code (0, 0), (1, 0), (0, 1), (1, 1) one after the other.
#[test]
fn patch_merging_of_openmmlab_is_put_in_order() {
    let params = params(&specs(&config()));
    let mut entries =
        prefixed("backbone.", exported(&params, Family::Swin, Naming::OpenMmLab, Float::F32));
    // Mmdetection has norms of all stages.
    for stage in 0..3 {
        entries.push(floats(&format!("backbone.norm{stage}.weight"), &[1], vec![0.0]));
    }
    entries.push(floats("neck.conv.weight", &[1], vec![0.0]));
    let name = "backbone.stages.0.downsample.norm.weight";
    let at = entries.iter().position(|(other, _)| other == name).unwrap();
    let width = config().embed_dim;
    let place =
        |channel: usize, row: usize, column: usize| (100 * channel + 10 * row + column) as f32;
    let merged = (0..width).flat_map(|channel| {
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(row, column)| place(channel, row, column))
    });
    entries[at] = floats(name, &[4 * width], merged.collect());
    let file = opened_torch(vec![("state_dict", entries)]);
    let (found, report) = load(&file, None).unwrap();
    assert_eq!(networks(&file)[0].naming, Naming::OpenMmLab);
    let (_, norm) =
        found.iter().find(|(spec, _)| spec.name == "layers.0.downsample.norm.weight").unwrap();
    let expected: Vec<f32> = [(0, 0), (1, 0), (0, 1), (1, 1)]
        .into_iter()
        .flat_map(|(row, column)| (0..width).map(move |channel| place(channel, row, column)))
        .collect();
    assert_eq!(norm.to_vec::<f32>(), expected);
    assert_eq!(report.left_out[reason::STAGE_NORM].len(), 3);
    assert_eq!(report.left_out[reason::BESIDE], ["neck.conv.weight"]);
    let all = params.iter().zip(found.iter());
    for ((spec, value), (_, found)) in
        all.filter(|((spec, _), _)| spec.name != "layers.0.downsample.norm.weight")
    {
        assert_eq!(value.to_vec::<f32>(), found.to_vec::<f32>(), "{}", spec.name);
    }
}

/// Microsoft's code for detection has the official names but for the norms.
#[test]
fn norms_of_stages_stand_for_the_norm_of_the_network() {
    let params = params(&specs(&config()));
    let mut entries = exported(&params, Family::Swin, Naming::Esvit, Float::F32);
    for (name, _) in &mut entries {
        *name = name.replace("norm.weight", "norm3.weight").replace("norm.bias", "norm3.bias");
        *name = name
            .replace("embed.norm3", "embed.norm")
            .replace("downsample.norm3", "downsample.norm");
    }
    entries.push(floats("norm0.weight", &[8], vec![0.0; 8]));
    let file = opened_torch(vec![("state_dict", prefixed("backbone.", entries))]);
    assert_eq!(networks(&file)[0].naming, Naming::Microsoft);
    let (found, report) = load(&file, None).unwrap();
    assert!(same_bits(&found, &params));
    assert_eq!(report.left_out[reason::STAGE_NORM], ["backbone.norm0.weight"]);
}

#[test]
fn what_masked_image_modeling_adds_is_left_out() {
    let params = params(&specs(&config()));
    for (naming, prefix, token) in [
        (Naming::Esvit, "encoder.", "encoder.mask_token"),
        (Naming::Transformers, "swin.", "swin.embeddings.mask_token"),
        (Naming::Esvit, "backbone.", "backbone.masked_embed"),
        (Naming::OpenMmLab, "backbone.", "backbone.mask_token"),
    ] {
        let mut entries = prefixed(prefix, exported(&params, Family::Swin, naming, Float::F32));
        entries.push(floats(token, &[1, 1, 8], vec![0.0; 8]));
        entries.push(floats("decoder.0.weight", &[1], vec![0.0]));
        let (found, report) = load(&opened(&entries), None).unwrap();
        assert!(same_bits(&found, &params));
        let left_out = &report.left_out[reason::PRETEXT];
        assert!(left_out.len() == 2 && left_out.contains(&token.into()), "{left_out:?}");
    }
}

/// Of a type that is not read there may be all tensors, or a few.
#[test]
fn types_that_are_not_read_are_named() {
    let with = |types: &[(&str, &str)]| {
        let mut bytes = Vec::new();
        let entries = exported(&params(&specs(&config())), Family::Swin, Naming::Esvit, Float::F32);
        write_safetensors(&mut bytes, &entries, &BTreeMap::new()).unwrap();
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let mut header = String::from_utf8(header.into()).unwrap();
        for (name, dtype) in types {
            let at = header.find(name).unwrap();
            let found = at + header[at..].find("\"F32\"").unwrap();
            header.replace_range(found..found + 5, &format!("\"{dtype}\""));
        }
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        WeightsFile::from_bytes(Path::new("weights"), bytes).unwrap()
    };
    let error = load(&with(&[("\"norm.bias", "F8_E4M3")]), None).unwrap_err().to_string();
    let expected =
        "`norm.bias` is stored as `F8_E4M3`, which this program does not read\nhint: convert";
    assert!(error.contains(expected), "{error}");
    let table = "layers.0.blocks.0.attn.relative_position_bias_table";
    let file = with(&[(table, "F4"), ("\"norm.bias", "C64")]);
    let error = load(&file, None).unwrap_err().to_string();
    let count = file.tensors().len() + 2;
    let expected = format!("2 of its {count} tensors are stored as `C64`, `F4`\nhint: convert");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn values_that_are_not_finite_have_a_hint_of_their_own() {
    let mut entries = exported(&params(&specs(&config())), Family::Swin, Naming::Timm, Float::F32);
    let at = entries.iter().position(|(name, _)| name == "norm.bias").unwrap();
    entries[at] = floats("norm.bias", &[64], vec![f32::NAN; 64]);
    let error = load(&opened(&entries), None).unwrap_err().to_string();
    assert!(error.ends_with("take an earlier file"), "{error}");
}

/// What neither tensors nor anything else say is assumed, and said to be.
#[test]
fn what_is_assumed_is_told() {
    use esvit_nn::weights::Known;
    let file =
        opened(&exported(&params(&specs(&config())), Family::Swin, Naming::Timm, Float::F32));
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (_, assumed) = stored.shape_given(&Known::default()).unwrap();
    assert_eq!(
        assumed,
        [
            "the image size is 64 pixels, the smallest usual one in which no window is cut",
            "`eps` of LayerNorm is 1e-5, as in timm",
        ]
    );
    let known = Known { stated_size: Some(64), stated_eps: Some(1e-3), ..Known::default() };
    let (shape, assumed) = stored.shape_given(&known).unwrap();
    assert_eq!((shape.img_size(), shape.norm_eps(), assumed.len()), (64, 1e-3, 0));
    let known = Known { asked_size: Some(96), ..known };
    assert_eq!(stored.shape_given(&known).unwrap().0.img_size(), 96);
}

/// Windows of 4 tokens do for 32 pixels as for 64; the masks of shifted windows tell them apart.
#[test]
fn masks_in_a_file_tell_the_size_of_its_images() {
    use esvit_nn::weights::Known;
    let config = SwinConfig { img_size: 64, depths: vec![2, 2], ..tiny_swin() };
    for naming in [Naming::Microsoft, Naming::Timm] {
        let mut entries = exported(&params(&specs(&config)), Family::Swin, naming, Float::F32);
        let shape = |entries: &[Entry]| {
            let file = opened(&prefixed_all("module.", entries));
            let stored = StoredNetwork::find(&file, None).unwrap();
            let (shape, assumed) = stored.shape_given(&Known::default()).unwrap();
            (shape.img_size(), assumed.len())
        };
        assert_eq!(shape(&entries), (32, 2));
        for (stage, windows) in [(0, 16), (1, 4)] {
            let name = format!("layers.{stage}.blocks.1.attn_mask");
            entries.push(floats(&name, &[windows, 16, 16], vec![0.0; windows * 256]));
        }
        assert_eq!(shape(&entries), (64, 1), "{naming:?}");
    }
}

/// The same tensors, that can be written again.
fn prefixed_all(prefix: &str, entries: &[Entry]) -> Vec<Entry> {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, entries, &BTreeMap::new()).unwrap();
    let file = WeightsFile::from_bytes(Path::new("weights"), bytes).unwrap();
    let floats = file.tensors().iter().filter(|tensor| tensor.dtype.is_float());
    let entry = |info: &esvit_weights::TensorInfo| {
        let values = file.read_f32(info).unwrap();
        self::floats(&format!("{prefix}{}", info.name), &info.shape, values)
    };
    floats.map(entry).collect()
}
