//! Files of weights in every naming: written, recognized, read, and refused.
#![expect(clippy::unwrap_used, reason = "a test may stop")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use esvit_nn::head::HeadConfig;
use esvit_nn::params::{ParamSpec, Registry};
use esvit_nn::weights::{
    Entry, Naming, Report, StoredNetwork, WeightsError, WeightsFile, exported, networks, reason,
    to_vec,
};
use esvit_nn::{Network, Params, Swin, SwinConfig};
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

fn specs(config: &SwinConfig) -> Arc<[ParamSpec]> {
    let mut registry = Registry::default();
    Swin::new(&mut registry.root(), config, 0.0);
    registry.finish()
}

/// Parameters of which no two are alike.
fn params(specs: &Arc<[ParamSpec]>) -> Params {
    let mut next = 0.0;
    Params::from_fn(specs, &Device::flex(), |spec| {
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
    StoredNetwork::find(file, key)?.load(&specs(&config()), &Device::flex(), |_| None)
}

fn same_bits(a: &Params, b: &Params) -> bool {
    let bits = |params: &Params| -> Vec<u32> {
        params.iter().flat_map(|(_, value)| to_vec(value)).map(f32::to_bits).collect()
    };
    bits(a) == bits(b)
}

#[test]
fn every_layout_is_recognized_and_read_back_to_the_bit() {
    let specs = specs(&config());
    let params = params(&specs);
    for naming in Naming::ALL {
        for prefix in ["", "module.", "backbone.", "swin."] {
            let mut entries = prefixed(prefix, exported(&params, naming, Float::F32));
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
            let expected = SwinConfig { norm_eps: naming.norm_eps(), ..config() };
            assert_eq!(stored.shape().unwrap(), expected, "{naming:?}");
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
    let student = Params::init(&specs, 1, &Device::flex());
    let file = opened_torch(vec![
        ("student", prefixed("module.backbone.", exported(&student, Naming::Esvit, Float::F32))),
        ("teacher", prefixed("backbone.", exported(&teacher, Naming::Esvit, Float::F32))),
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
    let entries = || exported(&params(&specs(&config())), Naming::Timm, Float::F32);
    let file = opened_torch(vec![("model", entries()), ("model_ema", entries())]);
    let error = load(&file, None).unwrap_err().to_string();
    assert!(error.contains("several networks: `model`, `model_ema`"), "{error}");
    assert!(load(&file, Some("model_ema")).is_ok());
}

#[test]
fn what_is_left_out_has_a_reason() {
    let params = params(&specs(&config()));
    let mut entries = exported(&params, Naming::Timm, Float::F32);
    entries.push(floats("head.fc.weight", &[10, 64], vec![0.0; 640]));
    let (_, report) = load(&opened(&entries), None).unwrap();
    assert_eq!(report.left_out[reason::CLASSES], ["head.fc.weight"]);

    let mut entries = exported(&params, Naming::Esvit, Float::F32);
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
    let mut entries = exported(&params, Naming::Timm, Float::F32);
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
    let mut entries = exported(&params(&specs(&config())), Naming::Transformers, Float::F32);
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
    let file = opened(&exported(&params(&specs(&other)), Naming::Esvit, Float::F32));
    let (found, report) = load(&file, None).unwrap();
    assert_eq!(report.resized.len(), 4, "{:?}", report.resized);
    assert!(report.resized[0].ends_with("from [9, 1] to [49, 1]"), "{:?}", report.resized);
    let (_, table) = found.iter().find(|(spec, _)| spec.name.ends_with("bias_table")).unwrap();
    let middle = to_vec(table)[24];
    let old = params(&specs(&other));
    let (_, old) = old.iter().find(|(spec, _)| spec.name.ends_with("bias_table")).unwrap();
    assert!((middle - to_vec(old)[4]).abs() < 1e-3, "the middle stays where it is");
}

#[test]
fn other_backbones_are_named() {
    for (name, backbone) in [
        ("blocks.0.attn.qkv.weight", "no backbone"),
        ("cls_token", "a vision transformer (ViT)"),
        ("layer1.0.conv1.weight", "a ResNet"),
        ("stage0.1.layers.0.0.fn.qkv.dw.weight", "a convolutional vision transformer (CvT)"),
        ("layers.0.blocks.0.attn.logit_scale", "a Swin transformer of version 2"),
    ] {
        let file = opened(&[floats(name, &[1], vec![0.0])]);
        let error = load(&file, None).unwrap_err().to_string();
        assert!(error.contains(&format!("holds {backbone}")), "{error}");
    }
}

#[test]
fn tensors_that_are_no_swin_are_explained() {
    let mut entries = exported(&params(&specs(&config())), Naming::Esvit, Float::F32);
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
    let network = Network::new(&config(), 0.0, &head, true);
    let values = params(network.specs());
    for renamed in [false, true] {
        let mut entries = exported(&values, Naming::Esvit, Float::F32);
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
        let (found, report) = stored.load(network.specs(), &Device::flex(), |_| None).unwrap();
        assert!(same_bits(&found, &values));
        assert_eq!(report.matched, network.specs().len());
    }
}
