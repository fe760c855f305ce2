//! Networks against the same written out layer by layer, and what a pass leaves behind.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use esvit_nn::forward_ctx::DropPathKey;
use esvit_nn::head::{Head, HeadConfig};
use esvit_nn::ops::{
    self, Activation, AttentionValues, Compute, LinearValues, NormValues, Pairs, Precision,
    PrototypeLogits, Segment, WindowMap,
};
use esvit_nn::params::{Init, Registry, Role, tensor, vector};
use esvit_nn::weights::to_vec;
use esvit_nn::{ForwardCtx, Network, Params, Swin, SwinConfig};
use esvit_testing::{assert_alike, assert_close, fill, hashed, hashed_tensor, hashed_times};

const KEY: DropPathKey = DropPathKey { seed: 3, step: 5, micro_batch: 1 };

fn config() -> SwinConfig {
    SwinConfig {
        img_size: 16,
        patch_size: 2,
        embed_dim: 8,
        depths: vec![2, 1],
        num_heads: vec![1, 2],
        window_size: 4,
        mlp_ratio: 2.0,
        norm_eps: 1e-2,
    }
}

const DROP_PATH: f64 = 0.6;

fn swin() -> (Swin, Params) {
    let mut registry = Registry::default();
    let swin = Swin::new(&mut registry.root(), &config(), DROP_PATH);
    (swin, fill(&registry.finish(), 0))
}

fn images(stream: u32, shape: [usize; 4]) -> Tensor<4> {
    let len = shape.iter().product();
    tensor(hashed_times(stream, len, 3f64.sqrt()), shape, &Device::flex())
}

/// One parameter by its name.
struct Named<'a>(&'a Params);

impl Named<'_> {
    fn vector(&self, name: &str) -> Tensor<1> {
        let found = self.0.iter().find(|(spec, _)| spec.name == name);
        found.unwrap_or_else(|| panic!("{name}")).1.clone()
    }

    fn matrix(&self, name: &str, columns: usize) -> Tensor<2> {
        let values = self.vector(name);
        let rows = values.dims()[0] / columns;
        values.reshape([rows, columns])
    }

    fn norm(&self, name: &str) -> NormValues {
        let [gamma, beta] = ["weight", "bias"].map(|part| self.vector(&format!("{name}.{part}")));
        NormValues { gamma, beta, eps: 1e-2 }
    }

    fn linear(&self, name: &str, inputs: usize) -> LinearValues {
        let weight = self.matrix(&format!("{name}.weight"), inputs);
        LinearValues { weight, bias: self.vector(&format!("{name}.bias")) }
    }
}

/// What each block gives, and the last map under the final norm, of the framework's own operations.
struct ByHand {
    blocks: Vec<Tensor<2>>,
    segments: Vec<Segment>,
    last: Tensor<2>,
}

/// The network written out: block `i` of 3 is dropped at `DROP_PATH * i / 2`, its branches by the
/// numbers `2 i` and `2 i + 1`; the second block of the first stage is shifted by half a window. By
/// the framework's operations, or by the kernels in a precision.
fn by_hand(
    params: &Params,
    inputs: &[Tensor<4>],
    pass: &ForwardCtx,
    precision: Option<Precision>,
) -> ByHand {
    let named = Named(params);
    let norm = |x: Tensor<2>, name: &str| {
        let NormValues { gamma, beta, eps } = named.norm(name);
        match precision {
            None => ops::composed_layer_norm(x, gamma, beta, eps),
            Some(precision) => ops::layer_norm(x, gamma, beta, eps, precision),
        }
    };
    let compute = || precision.map(|precision| Compute { precision, ..Compute::default() });
    let mut segments: Vec<Segment> = inputs
        .iter()
        .map(|images| {
            let [count, _, height, width] = images.dims();
            Segment { images: count, map: [height / 2, width / 2] }
        })
        .collect();
    let patches = inputs.iter().map(|images| ops::composed_patchify(images.clone(), 2)).collect();
    let LinearValues { weight, bias } = named.linear("patch_embed.proj", 12);
    let patches = Tensor::cat(patches, 0);
    let rows = match precision {
        None => ops::composed_linear(patches, weight, bias, Activation::None),
        Some(precision) => ops::linear(patches, weight, bias, Activation::None, precision),
    };
    let mut rows = norm(rows, "patch_embed.norm");
    let images = inputs.iter().map(|images| images.dims()[0]).sum();
    let mut blocks = Vec::new();
    for (index, (stage, block, window, shift)) in
        [(0, 0, 4, 0), (0, 1, 4, 2), (1, 0, 4, 0)].into_iter().enumerate()
    {
        let width = 8 << stage;
        if stage == 1 {
            let name = "layers.0.downsample";
            let NormValues { gamma, beta, eps } = named.norm(&format!("{name}.norm"));
            let weight = named.matrix(&format!("{name}.reduction.weight"), 32);
            let norm = [gamma, beta];
            rows = match precision {
                None => {
                    ops::composed_merge(rows, &ops::merging_indices(&segments), norm, weight, eps)
                }
                Some(precision) => {
                    ops::merge_patches(rows, &segments, norm, weight, eps, precision).0
                }
            };
            for segment in &mut segments {
                segment.map = segment.map.map(|side| side.div_ceil(2));
            }
        }
        let name = |part: &str| format!("layers.{stage}.blocks.{block}.{part}");
        let table = name("attn.relative_position_bias_table");
        let layers = AttentionValues {
            norm: named.norm(&name("norm1")),
            qkv: named.linear(&name("attn.qkv"), width),
            proj: named.linear(&name("attn.proj"), width),
            table: named.matrix(&table, 1 + stage),
        };
        let windows: Vec<Arc<WindowMap>> = segments
            .iter()
            .map(|segment| Arc::new(WindowMap::new(segment.map, window, shift)))
            .collect();
        let scales = |branch| pass.drop_path(images, DROP_PATH * index as f64 / 2.0, branch);
        let index = index as u64;
        let dropped = scales(2 * index);
        rows = match compute() {
            None => ops::composed_attention_branch(rows, &segments, &windows, layers, dropped),
            Some(how) => ops::attention_branch(rows, &segments, &windows, layers, dropped, how),
        };
        let layers =
            [named.linear(&name("mlp.fc1"), width), named.linear(&name("mlp.fc2"), 2 * width)];
        let (norm, gelu) = (named.norm(&name("norm2")), Activation::Gelu);
        let dropped = scales(2 * index + 1);
        rows = match compute() {
            None => ops::composed_mlp_branch(rows, &segments, norm, layers, gelu, dropped),
            Some(how) => ops::mlp_branch(rows, &segments, norm, layers, gelu, dropped, how),
        };
        blocks.push(rows.clone());
    }
    ByHand { blocks, segments, last: norm(rows, "norm") }
}

/// The mean row of every image, by its definition.
fn means(rows: &Tensor<2>, segments: &[Segment]) -> Vec<f32> {
    let width = rows.dims()[1];
    let values = to_vec(rows);
    let mut found = Vec::new();
    let mut first = 0;
    for segment in segments {
        for _ in 0..segment.images {
            let rows = &values[first * width..][..segment.tokens() * width];
            let mean = |column: usize| -> f64 {
                let column = rows[column..].iter().step_by(width);
                column.map(|&value| f64::from(value)).sum::<f64>() / segment.tokens() as f64
            };
            found.extend((0..width).map(|column| mean(column) as f32));
            first += segment.tokens();
        }
    }
    found
}

#[test]
fn a_network_is_its_layers() {
    let (swin, params) = swin();
    let inputs = [images(1000, [3, 3, 16, 16]), images(1001, [2, 3, 11, 14])];
    for pass in
        [ForwardCtx::eval, || ForwardCtx::student(KEY), || ForwardCtx::student(KEY).after_images(4)]
    {
        let expected = by_hand(&params, &inputs, &pass(), None);
        let found = swin.features(&params, inputs.to_vec(), &pass());
        assert_eq!(found.segments, expected.segments);
        assert_alike("region", &to_vec(&found.region), &to_vec(&expected.last), 1e-5);
        let view = means(&expected.last, &expected.segments);
        assert_alike("view", &to_vec(&found.view), &view, 1e-5);
    }
}

/// The precision of a pass is that of every layer: results and gradients to the bit.
#[test]
fn every_layer_has_the_precision_of_the_pass() {
    let (swin, params) = swin();
    let input = images(1001, [2, 3, 11, 14]);
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |found: bool, recompute: bool| -> (Vec<f32>, Vec<Vec<f32>>) {
            let params = params.tracked();
            let mut pass = ForwardCtx::student(KEY).with_precision(precision);
            pass.activation_checkpointing = recompute;
            let input = input.clone().autodiff();
            let rows = if found {
                swin.features(&params, vec![input], &pass).region
            } else {
                by_hand(&params, &[input], &pass, Some(precision)).last
            };
            let values = to_vec(&rows.clone().inner());
            let projection = hashed_tensor(40, rows.dims()).autodiff();
            let gradients = (rows * projection).sum().backward();
            let gradient = |value: &Tensor<1>| to_vec(&value.grad(&gradients).unwrap());
            (values, params.values().iter().map(gradient).collect())
        };
        let expected = run(false, false);
        for recompute in [false, true] {
            let found = run(true, recompute);
            assert!(found.0 == expected.0, "{precision:?}, recomputed {recompute}");
            for ((spec, found), expected) in params.specs().iter().zip(&found.1).zip(&expected.1) {
                assert!(found == expected, "{}, {precision:?}, recomputed {recompute}", spec.name);
            }
        }
    }
}

/// How every parameter of a network starts, by its name.
#[test]
fn starts_of_all_parameters() {
    let (network, _) = network(true);
    for spec in network.specs().iter() {
        let part = spec.name.rsplit('.').next().unwrap();
        let is_norm = spec.name.contains("norm");
        let expected = match part {
            // PyTorch's own of convolutions (3 * 2 * 2 inputs) and linear layers (5 inputs).
            _ if spec.name.starts_with("patch_embed.proj.") => Init::Uniform(12f64.powf(-0.5)),
            "weight_v" => Init::Uniform(5f64.powf(-0.5)),
            "weight_g" => Init::Ones,
            "weight" if is_norm => Init::Ones,
            "weight" | "relative_position_bias_table" => Init::TruncatedNormal(0.02),
            "bias" => Init::Zeros,
            other => panic!("{other}"),
        };
        assert_eq!(spec.init, expected, "{}", spec.name);
    }
    let default = HeadConfig {
        out_dim: 65_536,
        hidden_dim: 2048,
        bottleneck_dim: 256,
        layers: 3,
        use_bn_in_head: false,
        norm_last_layer: true,
    };
    assert_eq!(HeadConfig::default(), default);
}

#[test]
fn features_of_blocks_and_stages() {
    let (swin, params) = swin();
    let pass = ForwardCtx::eval();
    let input = images(1001, [2, 3, 11, 14]);
    let expected = by_hand(&params, std::slice::from_ref(&input), &pass, None);
    let first = [Segment { images: 2, map: [5, 7] }];
    // Of the last two blocks, that of the last stage under the final norm.
    let found = swin.last_blocks(&params, input.clone(), 2, &pass);
    assert_eq!(found.dims(), [2, 24]);
    let [of_first, of_last] =
        [means(&expected.blocks[1], &first), means(&expected.last, &expected.segments)];
    let joined: Vec<f32> = [0, 1]
        .into_iter()
        .flat_map(|image| [&of_first[8 * image..][..8], &of_last[16 * image..][..16]].concat())
        .collect();
    assert_alike("last blocks", &to_vec(&found), &joined, 1e-5);

    let found = swin.stage_features(&params, input.clone(), 0, &pass).unwrap();
    assert_eq!((found.map, found.region.dims()), ([5, 7], [2, 35, 8]));
    assert_alike("stage", &to_vec(&found.region), &to_vec(&expected.blocks[1]), 1e-5);
    assert_alike("its mean", &to_vec(&found.view), &of_first, 1e-5);
    let found = swin.stage_features(&params, input.clone(), 1, &pass).unwrap();
    assert_alike("last stage", &to_vec(&found.region), &to_vec(&expected.last), 1e-5);
    assert!(swin.stage_features(&params, input, 2, &pass).is_none());
}

/// Weights by block, of a map that is padded: their windows, and rows that add up to 1. They are
/// those with which values are mixed.
#[test]
fn attention_of_every_block() {
    let (swin, params) = swin();
    let input = images(1001, [2, 3, 11, 14]);
    let mut seen = Vec::new();
    swin.attentions(&params, input.clone(), 0..9, |block, weights, windows| {
        assert_eq!(weights.dims()[0], 2 * windows.windows());
        let side = windows.window_tokens();
        assert!(
            to_vec(&weights)
                .chunks_exact(side)
                .all(|row| { (row.iter().sum::<f32>() - 1.0).abs() < 1e-5 })
        );
        let (alone, _) = swin.attention(&params, input.clone(), block).unwrap();
        assert_eq!(to_vec(&alone), to_vec(&weights));
        seen.push((block, windows.map, windows.window, windows.shift, weights.dims()[1]));
    });
    assert_eq!(seen, [(0, [5, 7], 4, 0, 1), (1, [5, 7], 4, 2, 1), (2, [3, 4], 4, 0, 2)]);
    let mut seen = Vec::new();
    swin.attentions(&params, input.clone(), 1..2, |block, _, _| seen.push(block));
    assert_eq!(seen, [1]);
    assert!(swin.attention(&params, input.clone(), 3).is_none());

    // The first block by its weights: x + proj(weights values).
    let named = Named(&params);
    let first = by_hand(&params, std::slice::from_ref(&input), &ForwardCtx::eval(), None);
    let (weights, windows) = swin.attention(&params, input.clone(), 0).unwrap();
    let LinearValues { weight, bias } = named.linear("patch_embed.proj", 12);
    let patches = ops::composed_patchify(input, 2);
    let x = ops::composed_linear(patches, weight, bias, Activation::None);
    let norm = |x: Tensor<2>, name: &str| {
        let NormValues { gamma, beta, eps } = named.norm(name);
        ops::composed_layer_norm(x, gamma, beta, eps)
    };
    let x = norm(x, "patch_embed.norm");
    let qkv = named.linear("layers.0.blocks.0.attn.qkv", 8);
    let values = norm(x.clone(), "layers.0.blocks.0.norm1").matmul(qkv.weight.transpose());
    let (values, bias) = (to_vec(&values), to_vec(&qkv.bias));
    let weights = to_vec(&weights);
    let side = windows.window_tokens();
    let mut mixed = vec![0.0f32; 2 * 35 * 8];
    for image in 0..2 {
        for token in 0..35 {
            let slot = windows.token_slot[token] as usize;
            let window = slot / side;
            let row =
                &weights[((image * windows.windows() + window) * side + slot % side) * side..];
            for channel in 0..8 {
                let value = |key: usize| {
                    let token = windows.slot_token[window * side + key] as usize;
                    let own = if token < 35 {
                        values[(image * 35 + token) * 24 + 16 + channel]
                    } else {
                        0.0
                    };
                    own + bias[16 + channel]
                };
                mixed[(image * 35 + token) * 8 + channel] =
                    (0..side).map(|key| row[key] * value(key)).sum();
            }
        }
    }
    let proj = named.linear("layers.0.blocks.0.attn.proj", 8);
    let mixed = tensor(mixed, [70, 8], &Device::flex());
    let x = x + ops::composed_linear(mixed, proj.weight, proj.bias, Activation::None);
    let layers = ["mlp.fc1", "mlp.fc2"].into_iter().zip([8, 16]);
    let layers: Vec<LinearValues> = layers
        .map(|(name, width)| named.linear(&format!("layers.0.blocks.0.{name}"), width))
        .collect();
    let layers: [LinearValues; 2] = layers.try_into().unwrap();
    let segments = [Segment { images: 2, map: [5, 7] }];
    let norm2 = named.norm("layers.0.blocks.0.norm2");
    let x = ops::composed_mlp_branch(x, &segments, norm2, layers, Activation::Gelu, None);
    assert_alike("block", &to_vec(&x), &to_vec(&first.blocks[0]), 1e-5);
}

fn network(region: bool) -> (Network, Params) {
    let head = HeadConfig {
        out_dim: 7,
        hidden_dim: 6,
        bottleneck_dim: 5,
        layers: 2,
        use_bn_in_head: false,
        norm_last_layer: false,
    };
    let network = Network::new(&config(), 0.0, &head, region);
    let params = fill(network.specs(), 0);
    (network, params)
}

/// Crops of two sizes at once and each alone; the region head has parameters of its own.
#[test]
fn crops_at_once_and_alone() {
    let (network, params) = network(true);
    let crops: Vec<Tensor<4>> = (0..4)
        .map(|i| images(1000 + i, [2, 3, [16, 8][i as usize / 2], [16, 12][i as usize / 2]]))
        .collect();
    let pass = ForwardCtx::eval();
    let together = network.forward(&params, &crops, &pass);
    let region = together.region.unwrap();
    assert_eq!(region.tokens, [16, 16, 6, 6]);
    let (mut rows, mut region_rows) = (0, 0);
    let part = |whole: Tensor<2>, first: usize, rows: usize| to_vec(&whole.narrow(0, first, rows));
    for (crop, tokens) in crops.iter().zip([16, 16, 6, 6]) {
        let alone = network.forward(&params, std::slice::from_ref(crop), &pass);
        let of_region = alone.region.unwrap();
        assert_eq!(of_region.tokens, [tokens]);
        for (what, found, expected, at) in [
            ("features", &together.view_features, &alone.view_features, [rows, 2]),
            ("logits", &together.view_logits.matrix(), &alone.view_logits.matrix(), [rows, 2]),
            ("tokens", &region.features, &of_region.features, [region_rows, 2 * tokens]),
            (
                "region logits",
                &region.logits.matrix(),
                &of_region.logits.matrix(),
                [region_rows, 2 * tokens],
            ),
        ] {
            let found = part(found.clone(), at[0], at[1]);
            assert_alike(what, &found, &to_vec(expected), 1e-5);
        }
        (rows, region_rows) = (rows + 2, region_rows + 2 * tokens);
        // The dense head on the tokens, the other on their mean.
        let mut registry = Registry::default();
        let config = HeadConfig {
            out_dim: 7,
            hidden_dim: 6,
            bottleneck_dim: 5,
            layers: 2,
            use_bn_in_head: false,
            norm_last_layer: false,
        };
        let head = Head::new(&mut registry.root(), 16, &config);
        let specs = registry.finish();
        for (name, features, expected) in [
            ("head", &alone.view_features, &alone.view_logits),
            ("head_dense", &of_region.features, &of_region.logits),
        ] {
            let named = Named(&params);
            let own = Params::from_fn(&specs, &Device::flex(), |spec| {
                to_vec(&named.vector(&format!("{name}.{}", spec.name)))
            });
            let found = head.forward(&own, features.clone(), &pass);
            assert_eq!(to_vec(&found.matrix()), to_vec(&expected.matrix()), "{name}");
        }
    }
    assert!(network.has_region_head() && network.prototypes() == 7);
    let (network, params) = self::network(false);
    assert!(!network.has_region_head());
    assert!(network.forward(&params, &crops[..1], &pass).region.is_none());
}

/// PrototypeLogits of prototypes of any length, their mean, and a matrix of logits as it is.
#[test]
fn logits_by_their_definition() {
    let [rows, prototypes, width] = [3, 4, 5];
    let logits = PrototypeLogits {
        z: hashed_tensor(1, [rows, width]),
        v: hashed_tensor(2, [prototypes, width]),
        g: hashed_tensor(3, [prototypes]) + 2.0,
    };
    let [z, v] = [hashed(1, rows * width), hashed(2, prototypes * width)];
    let expected: Vec<f64> = (0..rows * prototypes)
        .map(|i| {
            let (row, k) = (&z[i / prototypes * width..][..width], i % prototypes);
            let v: Vec<f64> = v[k * width..][..width].iter().map(|&v| v.into()).collect();
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let product: f64 = row.iter().zip(&v).map(|(&a, b)| f64::from(a) * b).sum();
            product / norm * f64::from(hashed(3, prototypes)[k] + 2.0)
        })
        .collect();
    assert_close("matrix", &to_vec(&logits.matrix()), &expected, 1e-6);
    let mean: Vec<f64> = (0..prototypes)
        .map(|k| expected.iter().skip(k).step_by(prototypes).sum::<f64>() / rows as f64)
        .collect();
    assert_close("mean", &to_vec(&logits.mean()), &mean, 1e-6);
    assert_eq!((logits.rows(), logits.prototypes()), (rows, prototypes));
    let matrix = hashed_tensor(4, [3, 4]);
    let same = PrototypeLogits::from_matrix(matrix.clone());
    assert_alike("same", &to_vec(&same.matrix()), &to_vec(&matrix), 1e-6);
    let mean = to_vec(&matrix.mean_dim(0));
    assert_alike("its mean", &to_vec(&same.mean()), &mean, 1e-6);
}

/// Means, lengths and norms by their definitions: gradients alone do not tell a factor.
#[test]
fn rows_by_their_definition() {
    let x = hashed_tensor(1, [6, 4]) * 3.0;
    let values: Vec<f64> = to_vec(&x).iter().map(|&v| v.into()).collect();
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let unit: Vec<f64> = values
        .chunks_exact(4)
        .flat_map(|row| row.iter().map(|v| v / norm(row)).collect::<Vec<_>>())
        .collect();
    assert_close("unit rows", &to_vec(&ops::l2_normalize(x.clone())), &unit, 1e-6);
    let total = ops::norm(&x.clone().reshape([24]));
    assert!((total / norm(&values) - 1.0).abs() < 1e-6);
    let segments = [Segment { images: 1, map: [1, 2] }, Segment { images: 1, map: [2, 2] }];
    assert_eq!(ops::tokens_per_image(&segments), [2, 4]);
    let expected: Vec<f64> = means(&x, &segments).iter().map(|&v| v.into()).collect();
    assert_close("means", &to_vec(&ops::global_average_pool(x, &[2, 4])), &expected, 1e-6);
}

/// Means and unbiased variances of the batch, a tenth of which goes into the running ones; these
/// are what evaluation uses.
#[test]
fn running_statistics_of_the_head() {
    const ROWS: usize = 5;
    let config = HeadConfig {
        out_dim: 4,
        hidden_dim: 3,
        bottleneck_dim: 2,
        layers: 2,
        use_bn_in_head: true,
        norm_last_layer: true,
    };
    let mut registry = Registry::default();
    let head = Head::new(&mut registry.root(), 2, &config);
    let mut params = fill(&registry.finish(), 10);
    let specs = params.specs().clone();
    for (spec, value) in specs.iter().zip(params.values_mut()) {
        if spec.role == Role::Buffer {
            *value = value.clone() + 0.5;
        }
    }
    let x = hashed_tensor(1, [ROWS, 2]) * 2.0;
    let named = Named(&params);
    let LinearValues { weight, bias } = named.linear("mlp.0", 2);
    let hidden = to_vec(&ops::composed_linear(x.clone(), weight, bias, Activation::None));
    let column = |k: usize| hidden[k..].iter().step_by(3).map(|&v| f64::from(v));
    let mean: Vec<f64> = (0..3).map(|k| column(k).sum::<f64>() / ROWS as f64).collect();
    let squares: Vec<f64> =
        (0..3).map(|k| column(k).map(|v| (v - mean[k]).powi(2)).sum::<f64>()).collect();

    let [gamma, beta] =
        ["weight", "bias"].map(|part| to_vec(&named.vector(&format!("mlp.1.{part}"))));
    let embedded = |mean: &[f64], variance: &[f64]| -> Vec<f64> {
        let normed: Vec<f32> = hidden
            .iter()
            .enumerate()
            .map(|(i, &value)| {
                let k = i % 3;
                let unit = (f64::from(value) - mean[k]) / (variance[k] + 1e-5).sqrt();
                (unit * f64::from(gamma[k]) + f64::from(beta[k])) as f32
            })
            .collect();
        let normed = tensor(normed, [ROWS, 3], &Device::flex());
        let LinearValues { weight, bias } = named.linear("mlp.3", 3);
        let z = to_vec(&ops::composed_linear(normed, weight, bias, Activation::Gelu));
        z.chunks_exact(2)
            .flat_map(|row| {
                let length = f64::from(row[0]).hypot(f64::from(row[1]));
                [f64::from(row[0]) / length, f64::from(row[1]) / length]
            })
            .collect()
    };
    let variance: Vec<f64> = squares.iter().map(|sum| sum / ROWS as f64).collect();
    for pass in [ForwardCtx::teacher(), ForwardCtx::student(KEY)] {
        let found = to_vec(&head.embed(&params, x.clone(), &pass));
        assert_close("training", &found, &embedded(&mean, &variance), 2e-5);
        let mut after = params.clone();
        after.set_buffers(pass.into_statistics());
        let after = Named(&after);
        let running = |old: f64, new: f64| 0.9 * old + 0.1 * new;
        let expected: Vec<f64> = mean.iter().map(|&mean| running(0.5, mean)).collect();
        assert_close("mean", &to_vec(&after.vector("mlp.1.running_mean")), &expected, 1e-6);
        let expected: Vec<f64> =
            squares.iter().map(|sum| running(1.5, sum / (ROWS - 1) as f64)).collect();
        assert_close("variance", &to_vec(&after.vector("mlp.1.running_var")), &expected, 1e-6);
    }
    let pass = ForwardCtx::eval();
    let found = to_vec(&head.embed(&params, x.clone(), &pass));
    assert_close("evaluation", &found, &embedded(&[0.5; 3], &[1.5; 3]), 2e-5);
    assert!(pass.into_statistics().is_empty());
    let one = ForwardCtx::teacher();
    head.embed(&params, x.narrow(0, 0, 1), &one);
    let finite = |(_, value): (_, Tensor<1>)| to_vec(&value).iter().all(|v| v.is_finite());
    assert!(one.into_statistics().into_iter().all(finite), "of one row");
}

/// Weights whose naming is kept give the same, until a value changes.
#[test]
fn kept_layouts_follow_the_values() {
    let (swin, params) = swin();
    let input = images(1000, [1, 3, 16, 16]);
    let view =
        |params: &Params| to_vec(&swin.forward(params, input.clone(), &ForwardCtx::eval()).view);
    let expected = view(&params);
    let mut kept = params.clone().for_inference();
    assert_eq!([view(&kept), view(&kept)], [expected.clone(), expected.clone()]);
    let doubled = |params: &mut Params| {
        for value in params.values_mut() {
            *value = value.clone() * 1.1;
        }
    };
    let mut other = params.clone();
    doubled(&mut other);
    doubled(&mut kept);
    assert_eq!(view(&kept), view(&other));
    assert_ne!(view(&kept), expected);
    // Two precisions have two layouts.
    let kept = params.clone().for_inference();
    let bf16 = |params: &Params| {
        let pass = ForwardCtx::eval().with_precision(Precision::Bf16);
        to_vec(&swin.forward(params, input.clone(), &pass).view)
    };
    assert_eq!(
        [view(&kept), bf16(&kept), view(&kept)],
        [expected.clone(), bf16(&params), expected.clone()]
    );
    assert_ne!(bf16(&params), expected);
}

/// An operation does not change a tensor that somebody else has, and reads parts of tensors and
/// transposed ones as they are.
#[test]
fn inputs_are_left_alone() {
    let device = Device::flex();
    let whole = hashed_tensor(1, [9, 4]);
    let before = to_vec(&whole);
    let norm = || NormValues {
        gamma: vector(hashed(2, 4), &device),
        beta: vector(hashed(3, 4), &device),
        eps: 1e-6,
    };
    let linear = |stream, [outputs, inputs]: [usize; 2]| LinearValues {
        weight: hashed_tensor(stream, [outputs, inputs]),
        bias: vector(hashed(stream + 1, outputs), &device),
    };
    let segments = [Segment { images: 2, map: [2, 2] }];
    let windows = [Arc::new(WindowMap::new([2, 2], 2, 0))];
    let layers = || AttentionValues {
        norm: norm(),
        qkv: linear(4, [12, 4]),
        proj: linear(6, [4, 4]),
        table: hashed_tensor(8, [9, 2]),
    };
    let mlp = || [linear(10, [8, 4]), linear(12, [4, 8])];
    let gelu = Activation::Gelu;
    let compute = Compute::default;
    // Rows 1 to 8, and the columns of a transposed matrix.
    for x in [whole.clone().narrow(0, 1, 8), hashed_tensor(20, [4, 8]).transpose()] {
        let copy: Tensor<2> = tensor(to_vec(&x), [8, 4], &device);
        for (what, found, expected) in [
            (
                "attention",
                ops::attention_branch(x.clone(), &segments, &windows, layers(), None, compute()),
                ops::composed_attention_branch(copy.clone(), &segments, &windows, layers(), None),
            ),
            (
                "mlp",
                ops::mlp_branch(x.clone(), &segments, norm(), mlp(), gelu, None, compute()),
                ops::composed_mlp_branch(copy.clone(), &segments, norm(), mlp(), gelu, None),
            ),
            (
                "unit rows",
                ops::l2_normalize(x.clone()),
                copy.clone() / copy.clone().square().sum_dim(1).sqrt(),
            ),
        ] {
            assert_alike(what, &to_vec(&found), &to_vec(&expected), 1e-5);
            assert_eq!(to_vec(&x), to_vec(&copy), "{what}");
        }
    }
    assert_eq!(to_vec(&whole), before);
}

/// Relative difference of two lists, by their lengths.
fn far(found: &[f32], expected: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    length(&mut found.iter().zip(expected).map(|(a, b)| a - b))
        / length(&mut expected.iter().copied()).max(1e-30)
}

/// Every operation that takes a precision, in bf16: its result and all gradients are near those in
/// f32, and at least one of them is not the same. Blocks that are computed again give the same bits.
#[test]
fn bf16_is_near_f32_in_every_operation() {
    let device = Device::flex();
    let segments = [Segment { images: 2, map: [3, 4] }, Segment { images: 1, map: [2, 2] }];
    let windows: Vec<Arc<WindowMap>> =
        segments.iter().map(|s| Arc::new(WindowMap::new(s.map, 2, 1))).collect();
    let [rows, width] = [28, 8];
    let small = (width as f64).powf(-0.5);
    type Function<'a> = Box<dyn Fn(&[Tensor<1>], Precision, bool) -> Tensor<1> + 'a>;
    let x = |v: &[Tensor<1>]| v[0].clone().reshape([rows, width]);
    let norm = |v: &[Tensor<1>]| NormValues { gamma: v[0].clone(), beta: v[1].clone(), eps: 1e-6 };
    let linear = |v: &[Tensor<1>], inputs: usize| LinearValues {
        weight: v[0].clone().reshape([v[1].dims()[0], inputs]),
        bias: v[1].clone(),
    };
    let flat = |x: Tensor<2>| {
        let len = x.shape().num_elements();
        x.reshape([len])
    };
    let compute = |precision, activation_checkpointing| Compute {
        precision,
        activation_checkpointing,
        ..Compute::default()
    };
    let input = || hashed_times(1, rows * width, 2.0);
    let [gamma, beta] =
        [hashed(2, width), hashed(3, width)].map(|v| v.iter().map(|v| v + 1.0).collect::<Vec<_>>());
    let mut pairs = Pairs::new();
    for row in 0..rows {
        pairs.push([(row % 5, 0.03), ((row + 1) % 5, 0.01)]);
    }
    let pairs = Arc::new(pairs);
    let teacher = || PrototypeLogits {
        z: hashed_tensor(30, [5, width]),
        v: hashed_tensor(31, [9, width]),
        g: hashed_tensor(32, [9]) * 0.2 + 1.0,
    };
    let operations: Vec<(&str, Vec<Vec<f32>>, Function<'_>)> = vec![
        (
            "linear",
            vec![input(), hashed_times(4, 6 * width, small), hashed(5, 6)],
            Box::new(|v, precision, _| {
                let LinearValues { weight, bias } = linear(&v[1..], width);
                flat(ops::linear(x(v), weight, bias, Activation::Gelu, precision))
            }),
        ),
        (
            "layer_norm",
            vec![input(), gamma.clone(), beta.clone()],
            Box::new(|v, precision, _| {
                flat(ops::layer_norm(x(v), v[1].clone(), v[2].clone(), 1e-6, precision))
            }),
        ),
        (
            "attention",
            vec![
                input(),
                gamma.clone(),
                beta.clone(),
                hashed_times(4, 3 * width * width, small),
                hashed(5, 3 * width),
                hashed(6, 9 * 2),
                hashed_times(7, width * width, small),
                hashed(8, width),
            ],
            Box::new(|v, precision, again| {
                let layers = AttentionValues {
                    norm: norm(&v[1..]),
                    qkv: linear(&v[3..], width),
                    proj: linear(&v[6..], width),
                    table: v[5].clone().reshape([9, 2]),
                };
                let compute = compute(precision, again);
                flat(ops::attention_branch(x(v), &segments, &windows, layers, None, compute))
            }),
        ),
        (
            "plain attention",
            vec![
                input(),
                gamma.clone(),
                beta.clone(),
                hashed_times(4, 3 * width * width, small),
                hashed(5, 3 * width),
                hashed_times(7, width * width, small),
                hashed(8, width),
            ],
            Box::new(|v, precision, again| {
                let (layers, compute) =
                    ([3, 5].map(|at| linear(&v[at..], width)), compute(precision, again));
                flat(ops::plain_attention_branch(
                    x(v),
                    &[14, 14],
                    2,
                    norm(&v[1..]),
                    layers,
                    None,
                    compute,
                ))
            }),
        ),
        (
            "mlp",
            vec![
                input(),
                gamma.clone(),
                beta.clone(),
                hashed_times(4, 12 * width, small),
                hashed(5, 12),
                hashed_times(6, 12 * width, small),
                hashed(7, width),
            ],
            Box::new(|v, precision, again| {
                let layers = [linear(&v[3..], width), linear(&v[5..], 12)];
                let (gelu, compute) = (Activation::Gelu, compute(precision, again));
                flat(ops::mlp_branch(x(v), &segments, norm(&v[1..]), layers, gelu, None, compute))
            }),
        ),
        (
            "merge",
            vec![
                input(),
                hashed(2, 4 * width),
                hashed(3, 4 * width),
                hashed_times(4, 5 * 4 * width, small),
            ],
            Box::new(|v, precision, _| {
                let (norm, weight) =
                    ([v[1].clone(), v[2].clone()], v[3].clone().reshape([5, 4 * width]));
                flat(ops::merge_patches(x(v), &segments, norm, weight, 1e-6, precision).0)
            }),
        ),
        (
            "cross-entropy",
            vec![hashed(1, rows * width), hashed(2, 9 * width), vec![1.0; 9]],
            Box::new(|v, precision, _| {
                let v_of_student = v[1].clone().reshape([9, width]);
                let student = PrototypeLogits { z: x(v), v: v_of_student, g: v[2].clone() };
                let center = hashed_tensor(33, [9]) * 0.1;
                let temperatures = [0.5, 0.3];
                ops::prototype_cross_entropy(
                    student,
                    teacher(),
                    center,
                    pairs.clone(),
                    temperatures,
                    precision,
                )
            }),
        ),
    ];
    for (what, data, function) in &operations {
        let run = |precision, again| -> Vec<Vec<f32>> {
            let inputs: Vec<Tensor<1>> = data
                .iter()
                .map(|values| vector(values.clone(), &device).autodiff().require_grad())
                .collect();
            let output = function(&inputs, precision, again);
            let projection = vector(hashed(40, output.dims()[0]), &device).autodiff();
            let gradients = (output.clone() * projection).sum().backward();
            let mut results = vec![to_vec(&output.inner())];
            results.extend(inputs.iter().map(|input| to_vec(&input.grad(&gradients).unwrap())));
            results
        };
        let expected = run(Precision::F32, false);
        let found = run(Precision::Bf16, false);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let far = far(found, expected);
            assert!(far < 0.03, "{what}, {i}: {far}");
        }
        // What is kept in 16 bits is seen in gradients, operands of products in the result too.
        let different = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(different > found.len() / 3, "{what}: {different} of {}", found.len());
        assert!(run(Precision::Bf16, true) == found, "{what}, computed again");
        assert!(run(Precision::F32, true) == expected, "{what}, computed again");
    }
}
