//! Backbones by their configuration: what is stored, costs, sizes.

use super::swin::SwinConfig;
use super::*;
use crate::ops::Precision;
use crate::params::Part;

/// Shapes are stored with their family; those of the first versions, without, are Swin's.
#[test]
fn shapes_are_stored_with_their_family() {
    let config = BackboneConfig::Swin(swin::tests::config());
    let text = serde_json::to_string(&config).unwrap();
    assert!(text.starts_with(r#"{"family":"swin","img_size":"#), "{text}");
    assert_eq!(serde_json::from_str::<BackboneConfig>(&text).unwrap(), config);
    let old = text.replace(r#""family":"swin","#, "");
    assert_eq!(serde_json::from_str::<BackboneConfig>(&old).unwrap(), config);
    for (from, to, expected) in [
        (
            "\"swin\"",
            "\"bit\"",
            "`family` is \"bit\": this program has \"swin\", \"vit\", \"pvt\", \"resnet\", \"cvt\", \"vil\", \
             \"igpt\"",
        ),
        ("\"depths\":[2,1,1],", "", "missing field `depths`"),
        ("\"depths\":[2,", "\"depths\":[-2,", "`depths[0]`: invalid value: integer `-2`"),
        ("\"depths\"", "\"depth\"", "unknown field `depth`"),
        ("[2,1,1]", "[2,0,1]", "`depths` is [2, 0, 1]: every stage needs a block"),
    ] {
        let damaged = text.replace(from, to);
        assert_ne!(damaged, text);
        let error = serde_json::from_str::<BackboneConfig>(&damaged).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Maps of 8, 4 and 2 tokens a side.
#[test]
fn the_table_of_stages() {
    let config = BackboneConfig::Swin(swin::tests::config());
    let expected = [(2, 6, 4, 1), (1, 12, 8, 2), (1, 24, 16, 3)]
        .map(|(blocks, width, stride, heads)| Stage { blocks, width, stride, heads });
    assert_eq!(config.stages(), expected);
    assert_eq!((config.blocks(), config.output_width(), config.img_size()), (4, 24, 32));
    assert_eq!((config.last_map(36), config.norm_eps()), (3, 1e-5));
    assert_eq!(config.clone().with_norm_eps(1e-3).norm_eps(), 1e-3);
    assert_eq!(config.with_img_size(48).img_size(), 48);
}

/// For 36 pixels: maps of 9, 5 and 3 tokens a side, padded to 9, 6 and 4 in windows.
#[test]
fn multiply_accumulates_by_hand() {
    let config = BackboneConfig::Swin(swin::tests::config());
    let attention =
        |tokens: u64, slots: u64, width: u64| tokens * (4 * width * width + 2 * slots * width);
    let mlp = |tokens: u64, width: u64| tokens * 2 * width * (width * 3 / 2);
    let embed = 81 * 48 * 6;
    let merges = 25 * 24 * 12 + 9 * 48 * 24;
    let block = |tokens: u64, padded: u64, slots: u64, width: u64| {
        attention(padded, slots, width) + mlp(tokens, width)
    };
    let expected =
        embed + 2 * block(81, 81, 9, 6) + merges + block(25, 36, 9, 12) + block(9, 16, 4, 24);
    let all = config.cost([36; 2], 0.0, &ForwardCtx::eval());
    assert_eq!(all.official_macs(), expected);
    // Without padding, and of four blocks a share is dropped: 0, 0.1, 0.2 and 0.3.
    let expected = (embed + merges) as f64
        + 1.9 * block(81, 81, 9, 6) as f64
        + 0.8 * block(25, 25, 9, 12) as f64
        + 0.7 * block(9, 9, 4, 24) as f64;
    let found = config.cost([36; 2], 0.3, &ForwardCtx::expected()).macs;
    assert!((found / expected - 1.0).abs() < 1e-7, "{found} instead of {expected}");
    let expected =
        embed + merges + 2 * block(81, 81, 9, 6) + block(25, 25, 9, 12) + block(9, 9, 4, 24);
    assert_eq!(all.macs, expected as f64);
}

/// Every family's shape is stored under its name.
#[test]
fn families_by_name() {
    let configs = [
        BackboneConfig::Pvt(pvt::tests::config()),
        BackboneConfig::ResNet(resnet::tests::config()),
        BackboneConfig::Cvt(cvt::tests::config()),
        BackboneConfig::Vil(vil::tests::config()),
        BackboneConfig::Igpt(igpt::tests::config()),
    ];
    for config in configs {
        let text = serde_json::to_string(&config).unwrap();
        let start = format!(r#"{{"family":"{}","img_size":"#, config.family().name());
        assert!(text.starts_with(&start), "{text}");
        assert_eq!(serde_json::from_str::<BackboneConfig>(&text).unwrap(), config);
        assert_eq!(config.clone().with_norm_eps(1e-2).norm_eps(), 1e-2);
        assert_eq!(config.clone().with_img_size(64).img_size(), 64);
        let (backbone, _) = config.build(0.0);
        assert_eq!(backbone.stages(), config.stages());
        assert_eq!(backbone.family(), config.family().label());
    }
}

/// For 48 pixels: maps of 12, 6 and 3 tokens a side, keys on maps of 3, and a class token in the
/// last stage.
#[test]
fn multiply_accumulates_of_a_pvt_by_hand() {
    let config = BackboneConfig::Pvt(pvt::tests::config());
    let block = |tokens: u64, keys: u64, width: u64, reduced: u64, hidden: u64| {
        let attention = tokens * 2 * width * width + keys * 2 * width * width;
        let reduction = keys * width * width * reduced;
        attention + reduction + 2 * tokens * keys * width + tokens * 2 * width * hidden
    };
    let embed = 144 * 48 * 6 + 36 * 24 * 8 + 9 * 32 * 12;
    let expected =
        embed + 2 * block(144, 9, 6, 16, 9) + block(36, 9, 8, 4, 16) + block(10, 10, 12, 0, 30);
    let cost = config.cost([48; 2], 0.0, &ForwardCtx::eval());
    assert_eq!(cost.official_macs(), expected);
}

/// For 40 pixels: maps of 20 tokens a side after the first convolution, then 10, 5 and 3.
#[test]
fn multiply_accumulates_of_a_resnet_by_hand() {
    let config = BackboneConfig::ResNet(resnet::tests::config());
    // A block on `before` tokens of `inputs` channels that makes `after` tokens.
    let block = |before: u64, after: u64, inputs: u64, width: u64| {
        before * inputs * width + after * 9 * width * width + after * width * 4 * width
    };
    let stem = 400 * 147 * 6;
    let shortcuts = 100 * 6 * 12 + 25 * 12 * 16 + 9 * 16 * 20;
    let expected = stem
        + shortcuts
        + block(100, 100, 6, 3)
        + block(100, 100, 12, 3)
        + block(100, 25, 12, 4)
        + block(25, 9, 16, 5);
    let cost = config.cost([40; 2], 0.0, &ForwardCtx::eval());
    assert_eq!(cost.official_macs(), expected);
    assert_eq!(config.cost([40; 2], 0.0, &ForwardCtx::expected()).macs, expected as f64);
}

/// For 52 pixels: maps of 13, 7 and 4 tokens a side.
#[test]
fn saved_values_by_hand() {
    let config = BackboneConfig::Swin(swin::tests::config());
    // Per value two norms, query, key, value, what attention gives, and 1.5 hidden ones; with tiles
    // of bf16 the norms and what attention gives.
    let of_bf16 = if esvit_kernels::isa::current().has_tiles() { 3.0 } else { 7.5 };
    let blocks = (2 * 169 * 6 + 49 * 12 + 16 * 24) as f64;
    // Patches and their norm, merging, the last norm.
    let others = (169 * 48 + 169 * 6 + 49 * 24 + 16 * 48 + 16 * 24) as f64;
    let saved = |precision, again| {
        let mut ctx = ForwardCtx::expected().with_precision(precision);
        ctx.activation_checkpointing = again;
        config.cost([52; 2], 0.0, &ctx).saved_bytes
    };
    assert_eq!(saved(Precision::F32, false), blocks * 30.0 + others * 4.0);
    assert_eq!(saved(Precision::Bf16, false), blocks * of_bf16 * 2.0 + others * 2.0);
    assert_eq!(saved(Precision::F32, true), blocks * 8.0 + others * 4.0);
    assert_eq!(saved(Precision::Bf16, true), blocks * 8.0 + others * 2.0);
    // The patches, and in a wide network the first stage.
    let largest = |config: &BackboneConfig| config.cost([52; 2], 0.0, &ForwardCtx::eval()).largest;
    assert_eq!(largest(&config), 169.0 * 48.0);
    let wide = SwinConfig { embed_dim: 60, ..swin::tests::config() };
    assert_eq!(largest(&BackboneConfig::Swin(wide)), 169.0 * 60.0);
}

/// Maps of 10, 5 and 3 tokens a side, padded to 12, 8 and 3 in windows of 3, 4 and 3.
#[test]
fn multiply_accumulates_of_a_cvt_by_hand() {
    let block = |tokens: u64, padded: u64, window: u64, width: u64, hidden: u64| {
        let attention = 2 * window.pow(2) * width;
        padded * (9 * width + 3 * width * width + attention)
            + tokens * (width * width + 2 * width * hidden)
    };
    let convolutions = 100 * 49 * 3 * 6 + 25 * 9 * 6 * 8 + 9 * 9 * 8 * 9;
    let expected = convolutions
        + block(100, 144, 3, 6, 9)
        + 2 * block(25, 64, 4, 8, 16)
        + block(9, 9, 3, 9, 27);
    let config = BackboneConfig::Cvt(cvt::tests::config());
    let cost = config.cost([40; 2], 0.0, &ForwardCtx::eval());
    assert_eq!(cost.official_macs(), expected);
    // In training more is saved, and dropped branches count less.
    let training = config.cost([40; 2], 0.5, &ForwardCtx::expected());
    assert!(training.macs < cost.macs && training.saved_bytes > 0.0);
}

/// For 20 pixels: a map of 5 x 5 tokens, of which each sees those before it, or all.
#[test]
fn multiply_accumulates_of_an_image_gpt() {
    let block = |pairs: u64| 25 * (4 + 8) * 12 * 12 + 2 * pairs * 12;
    let colors = 25 * 9 * 3;
    for (variant, pairs) in
        [(igpt::Variant::Autoregressive, 25 * 26 / 2), (igpt::Variant::Bert, 25 * 25)]
    {
        let config = igpt::IgptConfig { variant, ..igpt::tests::config() };
        let config = BackboneConfig::Igpt(config);
        let cost = config.cost([20; 2], 0.0, &ForwardCtx::eval());
        assert_eq!(cost.official_macs(), colors + 6 * block(pairs));
    }
}

/// Features are those of the second of six blocks.
#[test]
fn features_from_the_middle() {
    let config = BackboneConfig::Igpt(igpt::tests::config());
    let (backbone, _) = config.build(0.0);
    assert_eq!((config.feature_block(), backbone.feature_block()), (2, 2));
    let swin = BackboneConfig::Swin(swin::tests::config());
    assert_eq!((swin.feature_block(), swin.build(0.0).0.feature_block()), (4, 4));
    assert!(swin.color_tokens().is_none() && config.color_tokens().is_some());
}

#[test]
fn parts_of_a_cvt() {
    let (_, list) = BackboneConfig::Cvt(cvt::tests::config()).build(0.0);
    for (name, part) in [
        ("stage0.0.proj.weight", Part::Embedding),
        ("stage0.1.layers.0.1.norm.bias", Part::Block(0)),
        ("stage1.0.norm.weight", Part::Block(0)),
        ("stage1.1.layers.1.0.fn.qkv.bn.running_var", Part::Block(2)),
        ("stage2.0.proj.bias", Part::Block(2)),
        ("stage2.1.layers.0.1.fn.net.2.weight", Part::Block(3)),
        ("norm.bias", Part::FinalNorm),
    ] {
        let found = list.iter().find(|spec| spec.name == name).map(|spec| spec.part.clone());
        assert_eq!(found, Some(part), "{name}");
    }
}

/// Maps of 20, 10 and 5 tokens a side.
#[test]
fn stages_of_a_vision_longformer() {
    let config = BackboneConfig::Vil(vil::tests::config());
    let expected = [(2, 8, 2, 2), (1, 12, 4, 3), (1, 16, 8, 4)]
        .map(|(blocks, width, stride, heads)| Stage { blocks, width, stride, heads });
    assert_eq!(config.stages(), expected);
    assert_eq!((config.family(), config.least_side(), config.last_map(47)), (Family::Vil, 8, 5));
    assert_eq!(config.clone().with_norm_eps(1e-3).norm_eps(), 1e-3);
    assert_eq!(config.clone().with_img_size(48).img_size(), 48);
    let text = serde_json::to_string(&config).unwrap();
    assert!(text.starts_with(r#"{"family":"vil","img_size":40,"stages":"l1,h2,"#), "{text}");
    assert_eq!(serde_json::from_str::<BackboneConfig>(&text).unwrap(), config);
    let damaged = text.replace("l2,h3", "l2,h");
    let error = serde_json::from_str::<BackboneConfig>(&damaged).unwrap_err().to_string();
    assert!(error.contains("`stages`: stage 2, `h`: `h` is followed by a whole"), "{error}");
    let damaged = text.replace("l2,h3", "l2,h5");
    let error = serde_json::from_str::<BackboneConfig>(&damaged).unwrap_err().to_string();
    assert!(error.contains("`stages.l2.h` is 5: it must divide `d`, which is 12"), "{error}");
}

/// Of 40 pixels: 7 x 7 windows of 9 slots, each with 82 keys; then 102 tokens and 25 in all pairs.
#[test]
fn multiply_accumulates_of_a_vision_longformer() {
    let config = BackboneConfig::Vil(vil::tests::config());
    // Four products with matrices of the width, and the MLP.
    let layers = |tokens: u64, width: u64| tokens * (4 + 8) * width * width;
    let pairs = |queries: u64, keys: u64, width: u64| 2 * queries * keys * width;
    let sparse = layers(401, 8) + pairs(49 * 9, 82, 8) + pairs(1, 401, 8);
    let full = |tokens: u64, width: u64| layers(tokens, width) + pairs(tokens, tokens, width);
    let embed = 400 * 12 * 8 + 100 * 32 * 12 + 25 * 48 * 16;
    let expected = embed + 2 * sparse + full(102, 12) + full(25, 16);
    let cost = config.cost([40; 2], 0.0, &ForwardCtx::eval());
    assert_eq!(cost.official_macs(), expected);
    // The last window of a row has 2 of 3 columns; those at the border see two windows along an axis,
    // of 3 and 3 or of 3 and 2 columns, the one before the last 3, 3 and 2.
    let seen: u64 = 3 * 6 + 4 * 3 * 9 + 3 * 8 + 2 * 5;
    let sparse = layers(401, 8) + 2 * (seen * seen + 400) * 8 + pairs(1, 401, 8);
    let expected = embed + 2 * sparse + full(102, 12) + full(25, 16);
    assert_eq!(cost.macs, expected as f64);
}
