//! Vision transformers in files: forms and namings.

use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::weights::Known;
use esvit_testing::tiny_vit;

use super::*;

/// A shape whose number of heads follows from its width, with LayerScale.
fn config() -> VitConfig {
    VitConfig { embed_dim: 64, num_heads: 1, depth: 3, layer_scale: true, ..tiny_vit() }
}

fn network(config: &VitConfig) -> (Arc<ParamList>, Params) {
    let (_, list) = BackboneConfig::Vit(config.clone()).build(0.0);
    let values = Params::init(&list, 3, &Device::Cpu);
    (list, values)
}

/// Forms of DINOv2 and DINOv3 under all names that they have; tokens for masked patches are left out.
#[test]
fn forms_are_recognized_under_all_names() {
    let gated = VitConfig { mlp: MlpKind::SwiGlu, ..config() };
    let registers = |config: VitConfig| VitConfig { register_tokens: 4, ..config };
    let patches = VitConfig { position_table: PositionTable::Patches, ..registers(gated.clone()) };
    let turned = |qkv_bias| VitConfig {
        position_table: PositionTable::Rotary,
        qkv_bias,
        ..registers(config())
    };
    let [own, chunks] = [0, 2].map(|chunk| Naming::Dinov2 { chunk });
    let v2 = Naming::TransformersDinov2;
    let v3 = Naming::TransformersDinov3;
    use PositionResize::{Dino, Esvit, Timm};
    for (shape, naming, token, resize) in [
        (config(), Naming::Timm, "mask_token", Dino),
        (config(), chunks, "mask_token", Dino),
        (config(), v2, "embeddings.mask_token", Esvit),
        (gated.clone(), own, "mask_token", Dino),
        (gated.clone(), chunks, "mask_token", Dino),
        (gated.clone(), Naming::Timm, "mask_token", Dino),
        (gated.clone(), v2, "embeddings.mask_token", Esvit),
        (registers(gated.clone()), own, "mask_token", Timm),
        (registers(config()), v2, "embeddings.mask_token", Timm),
        (patches, Naming::Timm, "mask_token", Timm),
        (turned(QkvBias::None), Naming::TimmEva, "mask_token", Timm),
        (turned(QkvBias::QueriesAndValues), Naming::TimmEva, "mask_token", Timm),
        (turned(QkvBias::QueriesAndValues), v3, "embeddings.mask_token", Timm),
        (turned(QkvBias::None), v3, "embeddings.mask_token", Timm),
    ] {
        let what = format!("{naming:?}, {shape:?}");
        let (list, values) = network(&shape);
        let mut entries = exported(&values, Family::Vit, naming, Float::F32);
        // Those of `transformers` are exported with the network.
        if naming != v2 && naming != v3 {
            entries.push(floats(token, &[1, 64], vec![0.0; 64]));
        }
        let file = opened(&prefixed("module.", entries));
        assert_eq!(networks(&file).len(), 1, "{what}");
        let stored = StoredNetwork::find(&file, None).unwrap();
        assert_eq!(stored.location().naming, naming, "{what}");
        // DINOv3 has no table that tells the size.
        let known = Known { stated_size: Some(32), ..Known::default() };
        let (found, assumed) = stored.shape_given(&known).unwrap();
        let norm_eps = naming.norm_eps(Family::Vit);
        let expected = VitConfig { norm_eps, position_resize: resize, ..shape };
        assert_eq!((found, assumed.len()), (BackboneConfig::Vit(expected), 2), "{what}");
        let (found, report) = stored.load(&list, &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &values), "{what}");
        assert_eq!(report.left_out[reason::PRETEXT], [format!("module.{token}")]);
    }
    let eps = [Naming::TimmEva, v3, v2, own].map(|naming| naming.norm_eps(Family::Vit));
    assert_eq!(eps, [1e-5, 1e-5, 1e-6, 1e-6]);
}

/// Of rotary positions only registers tell, and no table tells the size.
#[test]
fn what_is_no_dinov3() {
    let shape = VitConfig { position_table: PositionTable::Rotary, register_tokens: 4, ..config() };
    let (_, values) = network(&shape);
    let entries = || exported(&values, Family::Vit, Naming::TimmEva, Float::F32);
    let file = opened(&entries());
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (found, assumed) = stored.shape_given(&Known::default()).unwrap();
    assert_eq!((found.img_size(), assumed.len()), (224, 3));
    assert_eq!(assumed[0], "the image size is 224 pixels");
    for missing in ["reg_token", "cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight"] {
        let mut entries = entries();
        entries.retain(|(name, _)| name != missing);
        assert!(networks(&opened(&entries)).is_empty(), "{missing}");
    }
    // Gated MLPs of three layers, as in DINOv3's S+ and H+.
    let mut entries = exported(&values, Family::Vit, Naming::TransformersDinov3, Float::F32);
    entries.push(floats("layer.0.mlp.gate_proj.weight", &[96, 64], vec![0.0; 96 * 64]));
    let file = opened(&entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (_, list) = stored.shape().unwrap().build(0.0);
    let error = stored.load(&list, &Device::Cpu, |_| None).unwrap_err().to_string();
    assert!(
        error.contains("`layer.0.mlp.gate_proj.weight` has no place in the network"),
        "{error}"
    );
}

/// Both encoders of MoCo v3 with their heads: positions are known by their values, also in 16 bits.
#[test]
fn networks_of_moco_are_recognized() {
    let fixed = VitConfig {
        position_table: PositionTable::SineCosine,
        patch_embedding: PatchEmbedding::Frozen,
        layer_scale: false,
        ..config()
    };
    let stem =
        VitConfig { patch_embedding: PatchEmbedding::ConvStem, patch_size: 16, ..fixed.clone() };
    let normed = VitConfig { mlp_norm: MlpNorm::BatchNorm, ..fixed.clone() };
    let small = VitConfig { embed_dim: 384, num_heads: 12, depth: 1, ..fixed.clone() };
    for (shape, float, lines) in [
        (fixed.clone(), Float::F32, 3),
        (fixed, Float::Bf16, 3),
        (stem, Float::F32, 2),
        (normed, Float::F32, 3),
        (small, Float::F32, 3),
    ] {
        let (list, values) = network(&shape);
        let encoder = |name: &str| {
            let entries = exported(&values, Family::Vit, Naming::Timm, float);
            prefixed(&format!("module.{name}."), entries)
        };
        let mut entries = joined([encoder("base_encoder"), encoder("momentum_encoder")]);
        let head = "module.base_encoder.head.0.weight";
        for name in [head, "module.predictor.0.weight"] {
            entries.push(floats(name, &[2, 2], vec![0.0; 4]));
        }
        let file = opened_torch(vec![("state_dict", entries)]);
        let found = networks(&file);
        let names: Vec<&str> = found.iter().map(|at| at.network()).collect();
        assert_eq!(names, ["base_encoder", "momentum_encoder"]);
        // Without a name it is the one that MoCo's evaluation takes.
        let stored = StoredNetwork::find(&file, None).unwrap();
        assert_eq!(stored.location().network(), "base_encoder");
        let (found, assumed) = stored.shape_given(&Known::default()).unwrap();
        assert_eq!((found, assumed.len()), (BackboneConfig::Vit(shape), lines), "{assumed:?}");
        let (found, report) = stored.load(&list, &Device::Cpu, |_| None).unwrap();
        assert!(float == Float::Bf16 || same_bits(&found, &values));
        assert_eq!(report.left_out[reason::PROJECTION], [head]);
    }
}

/// A table that was trained from sines and cosines on is one like any other.
#[test]
fn trained_positions_are_not_fixed() {
    let fixed = VitConfig { position_table: PositionTable::SineCosine, ..config() };
    let (_, mut values) = network(&fixed);
    let at = values.specs().iter().position(|spec| spec.name == "pos_embed").unwrap();
    let mut table = values.value(at).to_vec::<f32>();
    table[70] += 0.1;
    values.set(at, &table);
    let file = opened(&exported(&values, Family::Vit, Naming::Timm, Float::F32));
    let BackboneConfig::Vit(found) = StoredNetwork::find(&file, None).unwrap().shape().unwrap()
    else {
        panic!("a vision transformer")
    };
    assert_eq!(found.position_table, PositionTable::ClassAndPatches);
    assert_eq!(found.patch_embedding, PatchEmbedding::Linear);
}

/// DINO's files of a backbone have timm's names; a class head, another place in the file, its kind and what is
/// beside it tell that it is timm's.
#[test]
fn a_backbone_alone_is_taken_for_dinos() {
    let (_, values) = network(&VitConfig { layer_scale: false, ..config() });
    let entries = || exported(&values, Family::Vit, Naming::Timm, Float::F32);
    let alone = |entries: Vec<Entry>| {
        let tensors = entries.into_iter().map(|(name, tensor)| (name, Tree::Tensor(tensor)));
        let mut bytes = std::io::Cursor::new(Vec::new());
        write_torch(&mut bytes, &Tree::Dict(tensors.collect())).unwrap();
        WeightsFile::from_bytes(Path::new("weights.pth"), bytes.into_inner()).unwrap()
    };
    let found = |file: &WeightsFile, stated_size: Option<usize>| {
        let known = Known { stated_size, ..Known::default() };
        let stored = StoredNetwork::find(file, None).unwrap();
        let (found, assumed) = stored.shape_given(&known).unwrap();
        let BackboneConfig::Vit(found) = found else { panic!("a vision transformer") };
        (found.position_resize, assumed.len())
    };
    assert_eq!(found(&alone(entries()), None), (PositionResize::Dino, 3));
    assert_eq!(found(&alone(entries()), Some(32)), (PositionResize::Timm, 2));
    assert_eq!(found(&opened(&entries()), None), (PositionResize::Timm, 2));
    let model = opened_torch(vec![("model", entries())]);
    assert_eq!(found(&model, None), (PositionResize::Timm, 2));
    let mut with_head = entries();
    with_head.push(floats("head.weight", &[2, 64], vec![0.0; 128]));
    assert_eq!(found(&alone(with_head), None), (PositionResize::Timm, 2));
}

#[test]
fn what_is_no_vision_transformer() {
    let (_, values) = network(&config());
    for (name, shape, expected) in [
        ("patch_embed.proj.weight", vec![64, 3, 8, 4], "8 x 4 pixels are not square"),
        ("pos_embed", vec![1, 18, 64], "has 18 rows, of no square map"),
        ("pos_embed", vec![1, 17, 32], "is 32 wide, its patches are 64"),
        ("blocks.0.mlp.fc1.weight", vec![100, 64], "MLPs have 100 channels before 96 channels"),
        ("blocks.0.mlp.fc2.weight", vec![64], "is [64], not [width, hidden]"),
    ] {
        let mut entries = exported(&values, Family::Vit, Naming::Timm, Float::F32);
        let at = entries.iter().position(|(other, _)| other == name).unwrap();
        entries[at] = floats(name, &shape, vec![0.0; shape.iter().product()]);
        let file = opened(&entries);
        let error = StoredNetwork::find(&file, None).unwrap().shape().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
