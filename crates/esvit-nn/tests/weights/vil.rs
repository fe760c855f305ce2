//! Vision longformers in files: layers with two names, index tables, and what no tensor says.

use esvit_nn::backbone::vil::{BiasResize, VilConfig};
use esvit_nn::weights::Known;
use esvit_nn::zoo;

use super::*;

/// Windows with global tokens and without, full attention with and without.
fn config() -> VilConfig {
    VilConfig {
        img_size: 64,
        stages: "l1,h2,d8,n2,s1,g2,p4,f3,a0_l2,h3,d12,n1,s1,g0,p2,f2,a0_\
                 l3,h2,d16,n1,s0,g1,p2,a0_l4,h4,d16,n2,g0,p2,a0"
            .parse()
            .unwrap(),
        mode: 0,
        fixed_neighbor: false,
        exact: 0,
        bias_resize: BiasResize::Pairs,
        norm_eps: 1e-6,
    }
}

fn network(config: &VilConfig) -> (BackboneConfig, Params) {
    let config = BackboneConfig::Vil(config.clone());
    config.validate().unwrap();
    let params = params(&config.build(0.0).1);
    (config, params)
}

fn official(params: &Params) -> Vec<Entry> {
    exported(params, Family::Vil, Naming::Esvit, Float::F32)
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn the_official_layout_is_recognized_and_read_back_to_the_bit() {
    let (config, params) = network(&config());
    for prefix in ["", "module.", "backbone."] {
        let file = opened(&prefixed(prefix, official(&params)));
        let stored = StoredNetwork::find(&file, None).unwrap();
        assert_eq!(
            (stored.location().family, stored.location().naming),
            (Family::Vil, Naming::Esvit)
        );
        let (shape, assumed) = stored.shape_given(&Known::default()).unwrap();
        assert_eq!(shape, config);
        assert_eq!(
            assumed,
            [
                "`mode` is 0 and `exact` 0, as in EsViT's settings",
                "`eps` of LayerNorm is 1e-6, as in EsViT",
            ]
        );
        let (found, report) = stored.load(params.specs(), &Device::Cpu, |_| None).unwrap();
        assert!(same_bits(&found, &params), "{prefix}");
        assert_eq!((report.matched, report.resized.len()), (params.specs().len(), 0));
        // Three layers of two blocks with a weight and a bias; a table of each of six blocks.
        assert_eq!(report.left_out[reason::SECOND_NAME].len(), 3 * 2 * 2);
        assert_eq!(report.left_out[reason::DERIVED].len(), 6);
    }
    let known = Known { asked_size: Some(128), stated_eps: Some(1e-3), ..Known::default() };
    let file = opened(&official(&params));
    let (shape, assumed) = StoredNetwork::find(&file, None).unwrap().shape_given(&known).unwrap();
    assert_eq!(shape, config.with_img_size(128).with_norm_eps(1e-3));
    assert_eq!(assumed.len(), 1);
}

/// As many entries as an official state dict, and the shapes of index tables.
#[test]
fn entries_of_the_official_state_dict() {
    for (name, entries) in [("vil_2262", 241), ("vil_small", 201), ("vil_tiny", 193)] {
        let (_, list) = zoo::find(name).unwrap().config().build(0.0);
        let zeros = Params::from_fn(&list, &Device::Cpu, |spec| vec![0.0; spec.len()]);
        assert_eq!(official(&zeros).len(), entries, "{name}");
    }
    let (_, params) = network(&config());
    let entries = official(&params);
    let file = opened(&entries);
    for (name, shape) in [
        ("layer1.1.attn.query_global.weight", [8, 8]),
        ("layer1.3.attn.kv_global.weight", [16, 8]),
        ("layer1.1.attn.relative_position_index", [9, 81]),
        ("layer2.1.attn.relative_position_index", [4, 36]),
        ("layer3.1.attn.relative_position_index", [16, 16]),
        ("layer4.3.attn.relative_position_index", [4, 4]),
    ] {
        assert_eq!(file.find("", name).unwrap().shape, shape, "{name}");
    }
    // Without global tokens nothing is shared; full attention has layers of its own.
    let is_second = |name: &&&str| name.contains("_global.") && !name.starts_with("layer1.");
    assert_eq!(names(&entries).iter().find(is_second), None);
    // From the first slot of a window to the first of its first neighbor, to its own, to the last.
    let index =
        file.read_i64(file.find("", "layer1.1.attn.relative_position_index").unwrap()).unwrap();
    assert_eq!([index[0], index[4 * 9], index[80]], [8 * 11 + 8, 5 * 11 + 5, 0]);
}

#[test]
fn layers_with_two_names_are_one() {
    let (_, params) = network(&config());
    let mut entries = official(&params);
    let second = entries.iter_mut().find(|(name, _)| name == "layer1.3.attn.proj_global.bias");
    *second.unwrap() = floats("layer1.3.attn.proj_global.bias", &[8], vec![0.5; 8]);
    let file = opened(&entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let error = stored.load(params.specs(), &Device::Cpu, |_| None).unwrap_err().to_string();
    let expected = "`layer1.3.attn.proj_global.bias` differs from `layer1.3.attn.proj.bias`";
    assert!(error.contains(expected) && error.contains("1 tensors differ"), "{error}");
    // A file may have one name alone, as our own do.
    entries.retain(|(name, _)| !name.contains("_global."));
    let file = opened(&entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (found, report) = stored.load(params.specs(), &Device::Cpu, |_| None).unwrap();
    assert!(same_bits(&found, &params) && !report.left_out.contains_key(reason::SECOND_NAME));
}

/// Nothing says heads and windows of a stage with absolute positions: those of a published network are
/// taken, or else the file is refused.
#[test]
fn absolute_positions_say_no_heads() {
    let config = zoo::find("vil_tiny").unwrap().config();
    let (_, list) = config.build(0.0);
    let values = Params::from_fn(&list, &Device::Cpu, |spec| vec![0.25; spec.len()]);
    let mut entries = official(&values);
    let file = opened(&entries);
    let stored = StoredNetwork::find(&file, None).unwrap();
    let (shape, assumed) = stored.shape_given(&Known::default()).unwrap();
    assert_eq!(shape, config);
    assert!(
        assumed.iter().any(|line| line.starts_with("heads and windows are those")),
        "{assumed:?}"
    );
    // The last stage has positions of no global tokens.
    let (_, report) = stored.load(&list, &Device::Cpu, |_| None).unwrap();
    assert_eq!(report.left_out[reason::EMPTY], ["layer4.0.cls_pos_embed"]);
    // With a block less in the third stage it is no published network.
    entries.retain(|(name, _)| !name.starts_with("layer3.17.") && !name.starts_with("layer3.18."));
    let file = opened(&entries);
    let error = StoredNetwork::find(&file, None).unwrap().shape().unwrap_err().to_string();
    assert!(error.contains("names its tensors as a ViL does, but stage 1 has absolute"), "{error}");
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let (_, params) = network(&config());
    let refused = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = official(&params);
        change(&mut entries);
        let file = opened(&entries);
        StoredNetwork::find(&file, None).unwrap().shape().unwrap_err().to_string()
    };
    let scale = || floats("layer2.1.attn.pooled_k_scale", &[1, 3], vec![1.0; 3]);
    let error = refused(&|entries| entries.push(scale()));
    assert!(error.contains("stage 2 has a branch of pooled windows (`r1`)"), "{error}");
    let error = refused(&|entries| entries.retain(|(name, _)| !name.starts_with("layer3.")));
    assert!(error.contains("it has 2 stages, not 3 or 4"), "{error}");
    let table = "layer1.1.attn.local_relative_position_bias_table";
    let error = refused(&|entries| {
        entries.retain(|(name, _)| name != table);
        entries.push(floats(table, &[25, 2], vec![0.0; 50]));
    });
    assert!(error.contains(&format!("`{table}` has 25 rows, which no windows have")), "{error}");
}
