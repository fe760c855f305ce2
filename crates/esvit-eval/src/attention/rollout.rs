//! Attention rollout (Abnar & Zuidema, 2020).

use esvit_kernels::pool;
use esvit_nn::backbone::AttentionMap;
use esvit_nn::{Backbone, Params};

use super::query::{check_finite, check_mass, images, without_weights};
use super::{
    AttentionError, BlockPosition, HeadAttention, InputImage, MOST_WEIGHTS, QueryAttention,
};

/// Rollout of the cell at `query` (`[x, y]` in input pixels) up to `block`: the query's row of the
/// product over blocks of `(A + I) / 2`, where `A` is the mean attention over heads and `I` stands
/// for the residual path.
///
/// Defined only if all blocks attend over the same tokens, as in a ViT: one stage, of a single window if
/// it has windows. Tokens before those of the map take part.
///
/// # Errors
/// [`AttentionError`] if rollout is undefined for the network or input size, there is no such
/// block, or `mass` is out of range.
pub fn rollout(
    network: &dyn Backbone,
    params: &Params,
    input: &InputImage,
    query: [f64; 2],
    block: usize,
    mass: f64,
) -> Result<QueryAttention, AttentionError> {
    let stages = network.stages();
    let position = BlockPosition::of(&stages, block)?;
    check_mass(mass)?;
    let refuse = |reason: String| Err(AttentionError::Rollout(reason));
    if stages.len() > 1 {
        return refuse(format!(
            "this network has {} stages, and patch merging changes the tokens",
            stages.len()
        ));
    }

    let images = images(input, params);
    let mut blocks = Vec::new();
    let mut tap = |_, map: AttentionMap| blocks.push(map);
    pool::run(|| network.attention(params, images, 0..block + 1, &mut tap))?;
    let layout = &blocks.last().expect("a block that exists").layout;
    let [height, width] = layout.map();
    if let Some([window, _]) = layout.window().filter(|[window, _]| [height, width] != [*window; 2])
    {
        return refuse(format!(
            "a map of {height} x {width} tokens is not one window of {window} x {window}"
        ));
    }
    let (token, mut attention) = without_weights(&stages, position, [height, width], query, mass);
    let keys = layout.group_keys(0);
    let mut row = vec![0.0; keys.len()];
    row[layout.query(token)[1]] = 1.0;
    for map in blocks.iter().rev() {
        row = pool::run(|| rollout_step(&row, map, MOST_WEIGHTS))?;
    }
    let row: Vec<f32> = row.iter().map(|&weight| weight as f32).collect();
    attention.visible.fill(true);
    attention.heads.push(HeadAttention::new(None, &keys, &row, layout, mass));
    let map_keys = layout.tokens();
    let prefix_keys = keys.len() - map_keys;
    Ok(QueryAttention { window: layout.window(), map_keys, prefix_keys, ..attention })
}

/// `row (A + I) / 2`, with `A` the mean over heads of a block's weights, of which at most `most` are held
/// at a time.
fn rollout_step(row: &[f64], map: &AttentionMap, most: usize) -> Result<Vec<f64>, AttentionError> {
    let heads = map.heads();
    let mut result: Vec<f64> = row.iter().map(|&weight| 0.5 * weight).collect();
    for head in 0..heads {
        for queries in map.slices(1, most) {
            let weights = map.part(head..head + 1, queries.clone()).to_vec::<f32>();
            check_finite(&weights)?;
            add_attended(&mut result, &row[queries], &weights, heads);
        }
    }
    Ok(result)
}

/// Adds what queries of these weights attend to by one of `heads` heads, `weights [queries, tokens]`.
fn add_attended(result: &mut [f64], row: &[f64], weights: &[f32], heads: usize) {
    for (&weight, keys) in row.iter().zip(weights.chunks_exact(result.len())) {
        let share = 0.5 * weight / heads as f64;
        result.iter_mut().zip(keys).for_each(|(sum, &key)| *sum += share * f64::from(key));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Framing;
    use super::*;
    use esvit_data::Preprocess;
    use esvit_data::{Image, ViewsConfig};
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_nn::{BackboneConfig, Device};
    use esvit_testing::{tiny_swin, tiny_vit};
    use std::sync::Arc;

    fn input(size: usize) -> InputImage {
        let pixels = (0..32u32 * 32 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8);
        let image = Image::new(32, 32, pixels.collect()).unwrap();
        let preprocess = Preprocess::new(32, 32, &ViewsConfig::default());
        InputImage::new(&image, &preprocess, Framing::Center, size, 8).unwrap()
    }

    fn untrained(depths: &[usize], window: usize) -> (Arc<dyn Backbone>, Params) {
        let config = SwinConfig {
            patch_size: 8,
            embed_dim: 16,
            depths: depths.to_vec(),
            num_heads: vec![4; depths.len()],
            window_size: window,
            ..tiny_swin()
        };
        let (network, specs) = BackboneConfig::Swin(config).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        (network, params)
    }

    /// Two tokens, one head, by hand.
    #[test]
    fn one_block_by_hand() {
        let weights = [0.5, 0.5, 0.25, 0.75];
        let step = |row: [f64; 2], weights: &[[f32; 4]]| {
            let mut result = row.map(|weight| 0.5 * weight);
            for head in weights {
                add_attended(&mut result, &row, head, weights.len());
            }
            result
        };
        assert_eq!(step([1.0, 0.0], &[weights]), [0.75, 0.25]);
        assert_eq!(step([0.5, 0.5], &[weights]), [0.4375, 0.5625]);
        // Two heads are averaged.
        assert_eq!(step([1.0, 0.0], &[weights, [0.0, 1.0, 1.0, 0.0]]), [0.625, 0.375]);
    }

    /// A step does not depend on how many weights are held at a time.
    #[test]
    fn steps_of_many_weights() {
        let (network, specs) = BackboneConfig::Vit(tiny_vit()).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        let map = network.block_attention(&params, images(&input(32), &params), 1);
        let map = map.unwrap().unwrap();
        let row: Vec<f64> = (0..17).map(|token| f64::from(token * token % 7)).collect();
        let expected = rollout_step(&row, &map, usize::MAX).unwrap();
        for most in [1, 60] {
            assert_eq!(rollout_step(&row, &map, most).unwrap(), expected);
        }
        // All of the attention is spent.
        let [before, after]: [f64; 2] = [row.iter().sum(), expected.iter().sum()];
        assert!((before - after).abs() < 1e-4, "{before} {after}");
    }

    #[test]
    fn the_first_block_is_attention_and_residual() {
        let (network, params) = untrained(&[3], 4);
        let query = [20.0, 12.0];
        let rolled = rollout(&*network, &params, &input(32), query, 0, 0.6).unwrap();
        let heads =
            super::super::query_attention(&*network, &params, &input(32), query, 0, 0.6).unwrap();
        assert_eq!(rolled.query, [1, 2]);
        for cell in 0..16 {
            let mean: f32 = heads.heads.iter().map(|head| head.weights[cell]).sum::<f32>() / 4.0;
            let residual = if cell == 6 { 0.5 } else { 0.0 };
            assert!((rolled.heads[0].weights[cell] - 0.5 * mean - residual).abs() < 1e-6);
        }
        // Each further block halves what stays.
        let rolled = rollout(&*network, &params, &input(32), query, 2, 0.6).unwrap();
        let weights = &rolled.heads[0].weights;
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(weights[6] > 0.125 && weights[6] < 0.3, "{weights:?}");
    }

    #[test]
    fn networks_without_one_map_are_refused() {
        let refused = |depths: &[usize], window, size| {
            let (network, params) = untrained(depths, window);
            let query = input(size).center();
            rollout(&*network, &params, &input(size), query, 0, 0.6).unwrap_err().to_string()
        };
        assert!(refused(&[1, 1], 4, 32).contains("has 2 stages"));
        assert!(refused(&[2], 2, 32).contains("a map of 4 x 4 tokens is not one window of 2 x 2"));
        assert!(refused(&[2], 4, 24).contains("a map of 3 x 3 tokens is not one window of 4 x 4"));
    }

    /// Blocks are followed from the last to the first: the product of all of them, row by row.
    #[test]
    fn several_blocks_are_multiplied_in_their_order() {
        let (network, params) = untrained(&[3], 4);
        // Sharper than untrained attention, so that the order tells.
        let params = Params::from_fn(params.specs(), &Device::Cpu, |spec| {
            let mut values = params.iter().find(|(own, _)| own.name == spec.name);
            let mut values =
                values.take().map(|(_, value)| value.to_vec::<f32>()).unwrap_or_default();
            if spec.name.ends_with("qkv.weight") {
                values.iter_mut().for_each(|value| *value *= 40.0);
            }
            values
        });
        let input = input(32);
        let mut blocks: Vec<Vec<f64>> = Vec::new();
        let mut observe = |_, map: AttentionMap| {
            let weights = map.weights().to_vec::<f32>();
            let mean =
                |entry: usize| (0..4).map(|h| f64::from(weights[h * 256 + entry])).sum::<f64>();
            let half = |entry: usize| {
                0.125 * mean(entry) + if entry / 16 == entry % 16 { 0.5 } else { 0.0 }
            };
            blocks.push((0..256).map(half).collect());
        };
        network.attention(&params, images(&input, &params), 0..3, &mut observe).unwrap();
        let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
            let entry = |i: usize| (0..16).map(|k| a[i / 16 * 16 + k] * b[k * 16 + i % 16]).sum();
            (0..256).map(entry).collect()
        };
        let expected = product(&blocks[2], &product(&blocks[1], &blocks[0]));
        let turned = product(&blocks[0], &product(&blocks[1], &blocks[2]));
        let rolled = rollout(&*network, &params, &input, [20.0, 12.0], 2, 0.6).unwrap();
        let off = |of: &[f64]| {
            let row = rolled.heads[0].weights.iter().zip(&of[6 * 16..]);
            row.map(|(found, expected)| (f64::from(*found) - expected).abs()).fold(0.0, f64::max)
        };
        assert!(
            off(&expected) < 1e-6 && off(&turned) > 1e-4,
            "{} {}",
            off(&expected),
            off(&turned)
        );
    }
}
