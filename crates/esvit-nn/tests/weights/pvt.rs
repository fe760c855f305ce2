//! Pyramid vision transformers in files.

use esvit_nn::backbone::pvt::PvtConfig;
use esvit_nn::weights::Known;
use esvit_testing::tiny_pvt;

use super::*;

/// Pyramid vision transformers, whose heads are 64 channels wide; tables are resized where another
/// size is asked for.
#[test]
fn pyramid_vision_transformers_are_recognized() {
    let config = PvtConfig {
        embed_dims: vec![64, 128, 64],
        num_heads: vec![1, 2, 1],
        mlp_ratios: vec![0.5, 0.25, 1.0],
        ..tiny_pvt()
    };
    let (_, list) = BackboneConfig::Pvt(config.clone()).build(0.0);
    let written = params(&list);
    let entries = || exported(&written, Family::Pvt, Naming::Esvit, Float::F32);
    let file = opened(&prefixed("module.", entries()));
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (shape, assumed) = stored.shape_given(&Known::default()).unwrap();
    assert_eq!((shape, assumed.len()), (BackboneConfig::Pvt(config.clone()), 2));
    assert!(same_bits(&stored.load(&list, &Device::Cpu, |_| None).unwrap().0, &written));
    // Version 2 has no tables of positions.
    let mut without = entries();
    without.retain(|(name, _)| !name.starts_with("pos_embed"));
    let error = StoredNetwork::find(&opened(&without), None).unwrap_err().to_string();
    assert!(error.contains("of version 2"), "{error}");
    // Of maps of 8, 4 and 2 tokens, of 16, 8 and 4.
    let larger = Known { asked_size: Some(64), ..Known::default() };
    let (shape, _) = stored.shape_given(&larger).unwrap();
    let (_, larger) = shape.build(0.0);
    let (found, report) = stored.load(&larger, &Device::Cpu, |_| None).unwrap();
    assert_eq!(report.resized.len(), 3, "{report:?}");
    let value = |params: &Params, name: &str| {
        let (_, value) = params.iter().find(|(spec, _)| spec.name == name).unwrap();
        value.to_vec::<f32>()
    };
    let [table, before] = [&found, &written].map(|params| value(params, "pos_embed3"));
    assert_eq!((table.len(), &table[..64]), (17 * 64, &before[..64]));
    // Corners stay: they are beyond the middle of the old corners.
    assert_eq!(table[64..128], before[64..128]);
    for (name, shape, expected) in [
        ("patch_embed1.proj.weight", vec![64, 3, 4, 2], "4 x 2 pixels are no squares"),
        ("pos_embed1", vec![1, 63, 64], "has 63 rows, of no square map"),
        ("block1.0.attn.q.weight", vec![60, 60], "how many attention heads the 60 channels"),
    ] {
        let mut entries = entries();
        let at = entries.iter().position(|(other, _)| other == name).unwrap();
        entries[at] = floats(name, &shape, vec![0.0; shape.iter().product()]);
        let error =
            StoredNetwork::find(&opened(&entries), None).unwrap().shape().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
