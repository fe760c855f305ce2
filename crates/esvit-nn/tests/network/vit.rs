//! Vision transformers: the tokens before the patches, sizes in one pass, layers written out.

use std::f64::consts::TAU;

use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::backbone::{AttentionLayout, Input, TokenMask};
use esvit_testing::tiny_vit;

use super::*;

/// Every kind of token, LayerScale, and norms whose `eps` is seen in the result.
fn config(position_table: PositionTable) -> VitConfig {
    VitConfig {
        img_size: 12,
        patch_size: 4,
        embed_dim: 8,
        depth: 3,
        norm_eps: 1e-2,
        register_tokens: 2,
        distillation_token: true,
        layer_scale: true,
        position_table,
        ..tiny_vit()
    }
}

/// Rotary positions, with two periods of a head of 8 channels.
fn rotary(qkv_bias: QkvBias) -> VitConfig {
    VitConfig { embed_dim: 16, qkv_bias, ..config(PositionTable::Rotary) }
}

/// Every form, each of them in some network.
fn forms() -> [VitConfig; 7] {
    let gated = VitConfig { mlp: MlpKind::SwiGlu, ..config(PositionTable::ClassAndPatches) };
    let fixed = PositionTable::SineCosine;
    let frozen = VitConfig { patch_embedding: PatchEmbedding::Frozen, ..config(fixed) };
    let normed = VitConfig { mlp_norm: MlpNorm::BatchNorm, ..frozen };
    let stem = VitConfig {
        img_size: 32,
        patch_size: 16,
        patch_embedding: PatchEmbedding::ConvStem,
        ..config(fixed)
    };
    let [without, some] = [QkvBias::None, QkvBias::QueriesAndValues].map(rotary);
    [
        config(PositionTable::ClassAndPatches),
        config(PositionTable::Patches),
        gated,
        normed,
        stem,
        without,
        some,
    ]
}

/// A network whose running statistics are not all alike.
fn vit(config: VitConfig) -> (Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Vit(config);
    config.validate().unwrap();
    let (vit, list) = config.build(DROP_PATH);
    let mut params = fill(&list, 0);
    for (index, spec) in list.iter().enumerate().filter(|(_, spec)| spec.role == Role::Buffer) {
        let value = params.value(index) + hashed_tensor(5, [spec.len()]) * 0.3;
        params.set(index, &value.to_vec());
    }
    (vit, params)
}

#[test]
fn sizes_in_one_pass_are_as_each_alone() {
    for config in forms() {
        let least = config.patch_size;
        let (vit, params) = vit(config);
        let inputs = [[2, 3, 12, 12], [3, 3, 8, 17], [1, 3, 20, 20]];
        let inputs = inputs.map(|[images, channels, height, width]| {
            [images, channels, height * least / 4, width * least / 4]
        });
        let inputs: Vec<Tensor> = (1000..).zip(inputs).map(|(i, shape)| images(i, shape)).collect();
        let together = vit.features(&params, inputs.clone(), &ForwardCtx::eval());
        let (mut view, mut region) = (Vec::new(), Vec::new());
        for input in inputs {
            let alone = vit.forward(&params, input, &ForwardCtx::eval());
            view.extend(alone.view.to_vec::<f32>());
            region.extend(alone.region.to_vec::<f32>());
        }
        assert_alike("view", &together.view.to_vec::<f32>(), &view, 1e-5);
        assert_alike("region", &together.region.to_vec::<f32>(), &region, 1e-5);
        let prefixes = together.segments.iter().map(|segment| segment.prefix);
        assert_eq!(prefixes.collect::<Vec<_>>(), [0; 3]);
    }
}

/// Rows normalized by running statistics.
fn batch_normed(named: &Named<'_>, name: &str, rows: Tensor) -> Tensor {
    let [weight, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
        .map(|part| named.vector(&format!("{name}.{part}")));
    composed::fixed_batch_norm(rows, [weight, bias], [mean, variance], 1e-5)
}

/// The tokens of an image of whole patches, by convolutions.
fn stem(named: &Named<'_>, width: usize, input: Tensor) -> Tensor {
    let [_, _, height, across] = input.dims();
    let (mut map, mut inputs, mut rows) = ([height, across], 3, composed::patchify(input, 1));
    for (layer, outputs) in [width / 8, width / 4, width / 2, width].into_iter().enumerate() {
        let name = |place: usize| format!("patch_embed.proj.{}", 3 * layer + place);
        let weight = named.vector(&format!("{}.weight", name(0)));
        let weight = weight.reshape([outputs, inputs, 3, 3]);
        rows = composed::convolution(rows, &[Segment::new(1, map)], weight, None, [2, 1]);
        rows = batch_normed(named, &name(1), rows).relu();
        (map, inputs) = (map.map(|side| side / 2), outputs);
    }
    composed::linear(rows, named.linear("patch_embed.proj.12", width), Activation::None)
}

/// Queries or keys `[heads, tokens, depth]` of a square map after `prefix` tokens, turned value by value.
fn turned(part: Tensor, side: usize, prefix: usize) -> Tensor {
    let [heads, tokens, depth] = part.dims();
    let mut values = part.to_vec::<f32>();
    for head in 0..heads {
        for patch in 0..side * side {
            let start = (head * tokens + prefix + patch) * depth;
            for point in 0..depth / 2 {
                let is_row = point < depth / 4;
                let place = if is_row { patch / side } else { patch % side };
                let position = (place as f64 + 0.5) / side as f64 * 2.0 - 1.0;
                let exponent = 4.0 * (point % (depth / 4)) as f64 / depth as f64;
                let (sine, cosine) = (TAU * position / 100f64.powf(exponent)).sin_cos();
                let [first, second] = [start + point, start + point + depth / 2];
                let [x, y] = [first, second].map(|at| f64::from(values[at]));
                values[first] = (x * cosine - y * sine) as f32;
                values[second] = (y * cosine + x * sine) as f32;
            }
        }
    }
    Tensor::new(values, [heads, tokens, depth], &Device::Cpu)
}

/// A block by plain operations, of rows of tokens.
fn block(config: &VitConfig, named: &Named<'_>, index: usize, rows: Tensor) -> Tensor {
    let VitConfig { embed_dim: width, num_heads: heads, .. } = *config;
    let (tokens, depth, side) =
        (rows.shape()[0], width / heads, config.img_size / config.patch_size);
    let is_rotary = config.position_table == PositionTable::Rotary;
    let name = |part: &str| format!("blocks.{index}.{part}");
    let gamma = |number: usize| {
        let part = if is_rotary { format!("gamma_{number}") } else { format!("ls{number}.gamma") };
        named.vector(&name(&part)).reshape([1, width])
    };
    let normed = composed::layer_norm(rows.clone(), named.norm(&name("norm1")));
    let zeros = |count: usize| Tensor::zeros([count * width], &Device::Cpu);
    let bias = match config.qkv_bias {
        QkvBias::All => named.vector(&name("attn.qkv.bias")),
        QkvBias::QueriesAndValues => {
            let [queries, values] =
                ["attn.q_bias", "attn.v_bias"].map(|part| named.vector(&name(part)));
            Tensor::cat(vec![queries, zeros(1), values], 0)
        }
        QkvBias::None => zeros(3),
    };
    let weight = named.matrix(&name("attn.qkv.weight"), width);
    let qkv = composed::linear(normed, LinearValues { weight, bias }, Activation::None);
    let part = |index: usize| {
        let part = qkv.clone().narrow(1, width * index, width);
        part.reshape([tokens, heads, depth]).permute(&[1, 0, 2])
    };
    let [queries, keys] = [0, 1].map(|index| match is_rotary {
        true => turned(part(index), side, tokens - side * side),
        false => part(index),
    });
    let logits = (queries * (depth as f64).powf(-0.5)).matmul(keys.transpose());
    let context = logits.softmax(2).matmul(part(2)).permute(&[1, 0, 2]).reshape([tokens, width]);
    let proj = composed::linear(context, named.linear(&name("attn.proj"), width), Activation::None);
    let rows = rows + proj * gamma(1);

    let normed = match config.mlp_norm {
        MlpNorm::LayerNorm => composed::layer_norm(rows.clone(), named.norm(&name("norm2"))),
        MlpNorm::BatchNorm => batch_normed(named, &name("norm2"), rows.clone()),
    };
    let hidden = config.hidden_width();
    let layer = |part: &str, inputs: usize| named.linear(&name(part), inputs);
    let branch = match config.mlp {
        MlpKind::Gelu => {
            let x = composed::linear(normed, layer("mlp.fc1", width), Activation::None);
            composed::linear(x, layer("mlp.fc2", hidden), Activation::Gelu)
        }
        MlpKind::SwiGlu => {
            let x = composed::linear(normed, layer("mlp.w12", width), Activation::None);
            let [a, b] = [0, hidden].map(|start| x.clone().narrow(1, start, hidden));
            let x = a.clone() / ((-a).exp() + 1.0) * b;
            composed::linear(x, layer("mlp.w3", hidden), Activation::None)
        }
    };
    rows + branch * gamma(2)
}

/// An image of the table's own size, by plain operations.
#[test]
fn a_network_is_its_layers() {
    for config in forms() {
        let (vit, params) = vit(config.clone());
        let named = Named(&params);
        let (width, size, patch) = (config.embed_dim, config.img_size, config.patch_size);
        let (count, input) = ((size / patch).pow(2), images(1000, [1, 3, size, size]));
        let token = |name: &str| named.matrix(name, width);
        let mut patches = match config.patch_embedding {
            PatchEmbedding::ConvStem => stem(&named, width, input.clone()),
            PatchEmbedding::Linear | PatchEmbedding::Frozen => {
                let patches = composed::patchify(input.clone(), patch);
                let layer = named.linear("patch_embed.proj", 3 * patch * patch);
                composed::linear(patches, layer, Activation::None)
            }
        };
        let mut prefix = Tensor::cat(vec![token("cls_token"), token("dist_token")], 0);
        let registers = match config.position_table {
            PositionTable::ClassAndPatches | PositionTable::SineCosine => {
                let table = token("pos_embed");
                patches = patches + table.clone().narrow(0, 2, count);
                prefix = prefix + table.narrow(0, 0, 2);
                "register_tokens"
            }
            PositionTable::Patches => {
                patches = patches + token("pos_embed");
                "reg_token"
            }
            PositionTable::Rotary => "reg_token",
        };
        let mut rows = Tensor::cat(vec![prefix, token(registers), patches], 0);
        for index in 0..config.depth {
            rows = block(&config, &named, index, rows);
        }
        let rows = composed::layer_norm(rows, named.norm("norm"));
        let found = vit.forward(&params, input, &ForwardCtx::eval());
        let view = (rows.clone().narrow(0, 0, 1) + rows.clone().narrow(0, 1, 1)) * 0.5;
        let what = BackboneConfig::Vit(config).describe();
        assert_alike(&what, &found.view.to_vec::<f32>(), &view.to_vec::<f32>(), 1e-5);
        let region = rows.narrow(0, 4, count).to_vec::<f32>();
        assert_alike(&what, &found.region.to_vec::<f32>(), &region, 1e-5);
    }
}

/// Pixels beyond the last whole patch do not reach the convolutions of the stem.
#[test]
fn a_stem_sees_whole_patches() {
    let [_, _, _, _, stem, ..] = forms();
    let (vit, params) = vit(stem);
    let view = |size: [usize; 2], seen: usize| {
        let mut pixels = vec![7.0; 3 * size[0] * size[1]];
        for (at, pixel) in pixels.iter_mut().enumerate() {
            let [row, column] = [at / size[1] % size[0], at % size[1]];
            if row < seen && column < seen {
                *pixel = ((row * 3 + column * 5) % 11) as f32 * 0.2 - 1.0;
            }
        }
        let image = Tensor::new(pixels, [1, 3, size[0], size[1]], &Device::Cpu);
        let found = vit.forward(&params, image, &ForwardCtx::eval());
        (found.map, found.view.to_vec::<f32>())
    };
    assert_eq!(view([32, 32], 32), view([40, 47], 32));
    assert_ne!(view([32, 32], 32).1, view([32, 32], 31).1);
}

/// What MoCo v3 does not train: positions, with their values, and the patch embedding.
#[test]
fn what_is_frozen() {
    let [_, _, _, frozen, stem, ..] = forms();
    for (config, is_embedded) in [(frozen, true), (stem, false)] {
        let (_, list) = BackboneConfig::Vit(config).build(0.0);
        let frozen: Vec<&str> = list
            .iter()
            .filter(|spec| spec.role == Role::Frozen)
            .map(|spec| spec.name.as_str())
            .collect();
        let expected = ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"];
        assert_eq!(frozen, expected[..if is_embedded { 3 } else { 1 }]);
        let table = list.iter().find(|spec| spec.name == "pos_embed").unwrap();
        let values = table.initial_values(3);
        // Two tokens before the patches, of which the second is in column 1.
        assert_eq!(values[..16], [0.0; 16]);
        let expected = [0.0, 0.0, 1.0, 1.0, 0.841_471, 0.009_999_8, 0.540_302, 0.999_95];
        assert_alike("second patch", &values[24..32], &expected, 1e-6);
    }
}

/// Statistics of all tokens before an MLP, and of every layer of the stem.
#[test]
fn running_statistics_follow_the_batch() {
    let [_, _, _, normed, stem, ..] = forms();
    for (config, norms) in [(normed, 3), (stem, 4)] {
        assert!(BackboneConfig::Vit(config.clone()).has_batch_norm());
        let side = config.img_size;
        let (vit, mut params) = vit(config);
        let before = params.clone();
        let ctx = ForwardCtx::teacher();
        vit.forward(&params, images(1000, [2, 3, side, side]), &ctx);
        let statistics = ctx.into_statistics();
        assert_eq!(statistics.len(), 2 * norms);
        params.set_buffers(statistics);
        for ((spec, before), (_, after)) in before.iter().zip(params.iter()) {
            let is_moved = before.to_vec::<f32>() != after.to_vec::<f32>();
            assert_eq!(is_moved, spec.role == Role::Buffer, "{}", spec.name);
        }
    }
}

/// Pixels of a masked patch are hidden from all tokens.
#[test]
fn masked_patches_are_not_seen() {
    let (vit, params) = vit(config(PositionTable::Patches));
    let rows = (0..9).map(|token| f32::from(u8::from(token == 5))).collect();
    let mask = TokenMask {
        rows: Tensor::from_vec(rows, &Device::Cpu),
        token: Tensor::from_vec(hashed(9, 8), &Device::Cpu),
    };
    let with_pixel = |y: usize, x: usize| {
        let mut pixels = images(1000, [1, 3, 12, 12]).to_vec::<f32>();
        pixels[y * 12 + x] += 1.0;
        let images = vec![Tensor::new(pixels, [1, 3, 12, 12], &Device::Cpu)];
        let input = Input { images, mask: Some(&mask) };
        vit.features(&params, input, &ForwardCtx::eval()).view.to_vec::<f32>()
    };
    assert_eq!(with_pixel(4, 8), with_pixel(7, 11));
    assert_ne!(with_pixel(4, 8), with_pixel(4, 7));
}

/// All tokens attend to all of their image: rows of weights add up to one.
#[test]
fn attention_is_over_whole_images() {
    for config in [config(PositionTable::ClassAndPatches), rotary(QkvBias::None)] {
        let (vit, params) = vit(config);
        let input = images(1000, [2, 3, 8, 16]);
        let found = vit.block_attention(&params, input, 2).unwrap().unwrap();
        assert!(matches!(found.layout, AttentionLayout::Whole { map: [2, 4], prefix: 4 }));
        let weights = found.weights();
        assert_eq!(weights.dims(), [2, 2, 12, 12]);
        for row in weights.to_vec::<f32>().chunks(12) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5 && row.iter().all(|&weight| weight > 0.0), "{row:?}");
        }
    }
}

/// Weights come from queries and keys that are turned.
#[test]
fn attention_with_rotary_positions() {
    let config = VitConfig {
        register_tokens: 0,
        distillation_token: false,
        depth: 1,
        ..rotary(QkvBias::None)
    };
    let (vit, params) = vit(config);
    let named = Named(&params);
    let input = images(1000, [1, 3, 12, 12]);
    let found = vit.block_attention(&params, input.clone(), 0).unwrap().unwrap();
    let patches = composed::linear(
        composed::patchify(input, 4),
        named.linear("patch_embed.proj", 48),
        Activation::None,
    );
    let rows = Tensor::cat(vec![named.matrix("cls_token", 16), patches], 0);
    let normed = composed::layer_norm(rows, named.norm("blocks.0.norm1"));
    let qkv = normed.matmul(named.matrix("blocks.0.attn.qkv.weight", 16).transpose());
    let part = |index: usize| {
        let part = qkv.clone().narrow(1, 16 * index, 16);
        turned(part.reshape([10, 2, 8]).permute(&[1, 0, 2]), 3, 1)
    };
    let expected = (part(0) * 8f64.powf(-0.5)).matmul(part(1).transpose()).softmax(2);
    let expected = expected.to_vec::<f32>();
    assert_alike("weights", &found.weights().to_vec::<f32>(), &expected, 1e-5);
}
