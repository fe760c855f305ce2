//! Pyramid vision transformers.

use std::ops::ControlFlow;

use esvit_nn::backbone::pvt::PvtConfig;
use esvit_nn::backbone::{AttentionLayout, Input, Key, RowFeatures, TokenMask};

use super::*;

fn network() -> (Arc<dyn Backbone>, Params) {
    let (pvt, list) = BackboneConfig::Pvt(tiny_pvt()).build(0.5);
    (pvt, fill(&list, 0))
}

/// Images of two sizes in one pass are as alone; one has the map that the tables are of.
#[test]
fn sizes_at_once_and_alone() {
    let (pvt, params) = network();
    let batches = [images(1000, [2, 3, 32, 32]), images(1001, [1, 3, 17, 34])];
    let values =
        |features: RowFeatures| [features.view, features.region].map(|t| t.to_vec::<f32>());
    let together = pvt.features(&params, batches.to_vec(), &ForwardCtx::eval());
    let maps: Vec<[usize; 2]> = together.segments.iter().map(|segment| segment.map).collect();
    assert_eq!(maps, [[2, 2], [1, 2]]);
    assert!(together.segments.iter().all(|segment| segment.prefix == 0));
    let mut expected = [Vec::new(), Vec::new()];
    for batch in &batches {
        let alone = values(pvt.features(&params, vec![batch.clone()], &ForwardCtx::eval()));
        expected.iter_mut().zip(alone).for_each(|(all, own)| all.extend(own));
    }
    for (found, expected) in values(together).iter().zip(&expected) {
        assert_alike("features", found, expected, 1e-5);
    }
}

/// In the last stage the probe has the normalized class token, before it means without a norm.
#[test]
fn features_for_a_probe() {
    let (pvt, params) = network();
    let (input, ctx) = (images(1000, [2, 3, 32, 40]), ForwardCtx::eval());
    let all = pvt.last_blocks(&params, input.clone(), 4, &ctx);
    assert_eq!(all.dims(), [2, 4 + 6 + 6 + 8]);
    let view = pvt.forward(&params, input.clone(), &ctx).view;
    assert_eq!(view.to_vec::<f32>(), all.clone().narrow(1, 16, 8).to_vec::<f32>());
    let second = pvt.stage_features(&params, input.clone(), 1, &ctx).unwrap();
    assert_eq!(second.map, [4, 5]);
    let means = second.region.mean_dim(1).to_vec::<f32>();
    assert_alike("means", &all.narrow(1, 10, 6).to_vec::<f32>(), &means, 1e-5);
}

/// The weights that every block attends with; the last one has the class token before its map.
#[test]
fn attention_to_reduced_maps() {
    let (pvt, params) = network();
    let mut found = Vec::new();
    let input = images(1000, [2, 3, 32, 40]);
    let observe = &mut |block, map: AttentionMap| found.push((block, map));
    pvt.attention(&params, input.clone(), 0..4, observe).unwrap();
    let expected = [([8, 10], 1, 4), ([4, 5], 2, 4), ([4, 5], 2, 4), ([2, 2], 2, 5)];
    assert_eq!(found.len(), 4);
    for ((at, (block, map)), (size, heads, keys)) in found.iter().enumerate().zip(expected) {
        assert_eq!(at, *block);
        let (weights, layout) = (map.weights(), &map.layout);
        assert_eq!(layout.map(), size);
        assert_eq!(weights.dims(), [2, heads, layout.queries(), keys]);
        assert_eq!((layout.keys(), layout.group_keys(0).len()), (keys, keys));
        for row in weights.to_vec::<f32>().chunks(keys) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
    let AttentionLayout::Reduced { ratio: 2, .. } = found[2].1.layout else { panic!("{found:?}") };
    assert_eq!(found[3].1.layout.group_keys(0)[0], Key::Prefix(0));
    let one = pvt.block_attention(&params, input, 2).unwrap().unwrap();
    assert_eq!(one.weights().to_vec::<f32>(), found[2].1.weights().to_vec::<f32>());
}

/// The first block written out: norms with two `eps`, attention to a map of squares, and an MLP.
#[test]
fn the_first_block_as_written_out() {
    let config = PvtConfig { norm_eps: 1e-2, ..tiny_pvt() };
    let (pvt, list) = BackboneConfig::Pvt(config).build(0.0);
    let params = fill(&list, 0);
    let named = Named(&params);
    let norm = |name: &str, eps: f64| NormValues { eps, ..named.norm(name) };
    let input = images(1000, [2, 3, 32, 32]);
    let x = composed::patchify(input.clone(), 4);
    let x = composed::linear(x, named.linear("patch_embed1.proj", 48), Activation::None);
    let x = composed::layer_norm(x, norm("patch_embed1.norm", 1e-5));
    let positions = named.vector("pos_embed1").reshape([64, 4]);
    let x = x + Tensor::cat(vec![positions; 2], 0);

    let normed = composed::layer_norm(x.clone(), norm("block1.0.norm1", 1e-2));
    let q = composed::linear(normed.clone(), named.linear("block1.0.attn.q", 4), Activation::None);
    // Squares of 4 x 4 tokens as patches of an image.
    let map = normed.reshape([2, 8, 8, 4]).permute(&[0, 3, 1, 2]);
    let squares = composed::patchify(map, 4);
    let squares = composed::linear(squares, named.linear("block1.0.attn.sr", 64), Activation::None);
    let squares = composed::layer_norm(squares, norm("block1.0.attn.norm", 1e-5));
    let kv = composed::linear(squares, named.linear("block1.0.attn.kv", 4), Activation::None);
    let [queries, keys] = [(&q, 64), (&kv, 4)]
        .map(|(rows, count)| rows.clone().narrow(1, 0, 4).reshape([2, count, 4]));
    let weights = (queries * 0.5).matmul(keys.transpose()).softmax(2).to_vec::<f32>();
    let context = composed::cross_attention(q, kv, &[[64, 4]; 2], 1);
    let branch = composed::linear(context, named.linear("block1.0.attn.proj", 4), Activation::None);
    let x = x + branch;
    let layers = [named.linear("block1.0.mlp.fc1", 4), named.linear("block1.0.mlp.fc2", 8)];
    let (segments, norm2) = ([Segment::new(2, [8, 8])], norm("block1.0.norm2", 1e-2));
    let x = composed::mlp_branch(x, &segments, norm2, layers, Activation::Gelu, None);
    let found = pvt.stage_features(&params, input.clone(), 0, &ForwardCtx::eval()).unwrap();
    let found = found.region.to_vec::<f32>();
    assert_alike("block", &found, &x.to_vec::<f32>(), 1e-4);
    let found = pvt.block_attention(&params, input, 0).unwrap().unwrap();
    assert_alike("weights", &found.weights().to_vec::<f32>(), &weights, 1e-4);
}

/// An image whose branches stochastic depth drops passes through a block as it is, no other does.
#[test]
fn dropped_images_stay() {
    let (pvt, list) = BackboneConfig::Pvt(tiny_pvt()).build(0.9);
    let params = fill(&list, 0);
    let input = images(1000, [16, 3, 16, 24]);
    let ctx = ForwardCtx::student(KEY);
    let mut found = Vec::new();
    pvt.run(&params, vec![input].into(), &ctx, &mut |block| {
        found.push(block.maps.rows.to_vec::<f32>());
        ControlFlow::Continue(())
    });
    // The third of four blocks has two thirds of the rate.
    let scales = [4, 5].map(|branch| ctx.drop_path(16, 0.6, branch).unwrap());
    let of_image = found[2].len() / 16;
    let mut stayed = 0;
    for image in 0..16 {
        let [before, after] = [1, 2].map(|block| &found[block][image * of_image..][..of_image]);
        let is_dropped = scales.iter().all(|scales| scales[image] == 0.0);
        assert_eq!(before == after, is_dropped, "{image}");
        stayed += usize::from(is_dropped);
    }
    assert!((1..16).contains(&stayed), "{stayed}");
}

/// Of masked images nothing is seen but where their tokens are.
#[test]
fn masked_tokens_have_their_places() {
    let (pvt, params) = network();
    let rows = Tensor::from_vec(vec![1f32; 2 * 64], &Device::Cpu);
    let mask = TokenMask { rows, token: hashed_tensor(9, [4]) };
    let features = |images: Tensor| {
        let input = Input { images: vec![images], mask: Some(&mask) };
        pvt.features(&params, input, &ForwardCtx::eval()).region.to_vec::<f32>()
    };
    let found = features(images(1000, [2, 3, 32, 32]));
    assert_eq!(found, features(images(1001, [2, 3, 32, 32])));
    assert_ne!(found[..8], found[8..16]);
}
