//! Vision transformers: the tokens before the patches, sizes in one pass, layers written out.

use esvit_nn::backbone::vit::{PositionResize, PositionTable, VitConfig};
use esvit_nn::backbone::{AttentionLayout, Input, TokenMask};

use super::*;

/// Every kind of token, LayerScale, and norms whose `eps` is seen in the result.
fn config(position_table: PositionTable) -> VitConfig {
    VitConfig {
        img_size: 12,
        patch_size: 4,
        embed_dim: 8,
        depth: 3,
        num_heads: 2,
        mlp_ratio: 1.5,
        norm_eps: 1e-2,
        register_tokens: 2,
        distillation_token: true,
        layer_scale: true,
        position_table,
        position_resize: PositionResize::Timm,
    }
}

fn vit(config: VitConfig) -> (Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Vit(config);
    config.validate().unwrap();
    let (vit, list) = config.build(DROP_PATH);
    (vit, fill(&list, 0))
}

const TABLES: [PositionTable; 2] = [PositionTable::ClassAndPatches, PositionTable::Patches];

#[test]
fn sizes_in_one_pass_are_as_each_alone() {
    for table in TABLES {
        let (vit, params) = vit(config(table));
        let inputs = [[2, 3, 12, 12], [3, 3, 8, 17], [1, 3, 20, 20]];
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

/// An image of the table's own size, by plain operations.
#[test]
fn a_network_is_its_layers() {
    for table in TABLES {
        let (vit, params) = vit(config(table));
        let named = Named(&params);
        let input = images(1000, [1, 3, 12, 12]);
        let token = |name: &str| {
            let values = named.vector(name);
            let rows = values.numel() / 8;
            values.reshape([rows, 8])
        };
        let patches = composed::patchify(input.clone(), 4);
        let patches =
            composed::linear(patches, named.linear("patch_embed.proj", 48), Activation::None);
        let positions = token("pos_embed");
        let (registers, placed) = match table {
            PositionTable::ClassAndPatches => ("register_tokens", 2),
            PositionTable::Patches => ("reg_token", 0),
        };
        let patches = patches + positions.clone().narrow(0, placed, 9);
        let mut prefix = Tensor::cat(vec![token("cls_token"), token("dist_token")], 0);
        if placed > 0 {
            prefix = prefix + positions.narrow(0, 0, 2);
        }
        let mut rows = Tensor::cat(vec![prefix, token(registers), patches], 0);
        for block in 0..3 {
            let name = |part: &str| format!("blocks.{block}.{part}");
            let normed = composed::layer_norm(rows.clone(), named.norm(&name("norm1")));
            let qkv =
                composed::linear(normed, named.linear(&name("attn.qkv"), 8), Activation::None);
            let part = |index: usize| {
                qkv.clone().narrow(1, 8 * index, 8).reshape([13, 2, 4]).permute(&[1, 0, 2])
            };
            let logits = (part(0) * 0.5).matmul(part(1).transpose());
            let context = logits.softmax(2).matmul(part(2)).permute(&[1, 0, 2]).reshape([13, 8]);
            let proj =
                composed::linear(context, named.linear(&name("attn.proj"), 8), Activation::None);
            rows = rows + proj * named.vector(&name("ls1.gamma")).reshape([1, 8]);
            let normed = composed::layer_norm(rows.clone(), named.norm(&name("norm2")));
            let hidden =
                composed::linear(normed, named.linear(&name("mlp.fc1"), 8), Activation::None);
            let branch =
                composed::linear(hidden, named.linear(&name("mlp.fc2"), 12), Activation::Gelu);
            rows = rows + branch * named.vector(&name("ls2.gamma")).reshape([1, 8]);
        }
        let rows = composed::layer_norm(rows, named.norm("norm"));
        let found = vit.forward(&params, input, &ForwardCtx::eval());
        let view = (rows.clone().narrow(0, 0, 1) + rows.clone().narrow(0, 1, 1)) * 0.5;
        assert_alike("view", &found.view.to_vec::<f32>(), &view.to_vec::<f32>(), 1e-5);
        let region = rows.narrow(0, 4, 9).to_vec::<f32>();
        assert_alike("region", &found.region.to_vec::<f32>(), &region, 1e-5);
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
    let (vit, params) = vit(config(PositionTable::ClassAndPatches));
    let input = images(1000, [2, 3, 8, 16]);
    let found = vit.block_attention(&params, input, 2).unwrap().unwrap();
    assert!(matches!(found.layout, AttentionLayout::Whole { map: [2, 4], prefix: 4 }));
    assert_eq!(found.weights.dims(), [2, 2, 12, 12]);
    for row in found.weights.to_vec::<f32>().chunks(12) {
        let sum: f32 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5 && row.iter().all(|&weight| weight > 0.0), "{row:?}");
    }
}
