//! The backbone against the same written out layer by layer.

use super::heads::network;
use esvit_nn::backbone::AttentionLayout;

use super::*;

/// What each block gives, and the last map under the final norm, of plain operations.
struct ByHand {
    blocks: Vec<Tensor>,
    segments: Vec<Segment>,
    last: Tensor,
}

/// The network written out: block `i` of 3 is dropped at `DROP_PATH * i / 2`, its branches by the
/// numbers `2 i` and `2 i + 1`; the second block of the first stage is shifted by half a window. By
/// plain operations, or by the kernels in a precision.
fn by_hand(
    params: &Params,
    inputs: &[Tensor],
    pass: &ForwardCtx,
    precision: Option<Precision>,
) -> ByHand {
    let named = Named(params);
    let norm = |x: Tensor, name: &str| {
        let norm = named.norm(name);
        match precision {
            None => composed::layer_norm(x, norm),
            Some(precision) => ops::layer_norm(x, norm.gamma, norm.beta, norm.eps, precision),
        }
    };
    let compute = || precision.map(|precision| Compute { precision, ..Compute::default() });
    let mut segments: Vec<Segment> = inputs
        .iter()
        .map(|images| {
            let [count, _, height, width] = images.dims();
            Segment::new(count, [height / 2, width / 2])
        })
        .collect();
    let patches = inputs.iter().map(|images| composed::patchify(images.clone(), 2)).collect();
    let proj = named.linear("patch_embed.proj", 12);
    let patches = Tensor::cat(patches, 0);
    let none = Activation::None;
    let rows = match precision {
        None => composed::linear(patches, proj, none),
        Some(precision) => ops::linear(patches, proj.weight, proj.bias, none, precision),
    };
    let mut rows = norm(rows, "patch_embed.norm");
    let images = inputs.iter().map(|images| images.shape()[0]).sum();
    let mut blocks = Vec::new();
    for (index, (stage, block, window, shift)) in
        [(0, 0, 4, 0), (0, 1, 4, 2), (1, 0, 4, 0)].into_iter().enumerate()
    {
        let width = 8 << stage;
        if stage == 1 {
            let name = "layers.0.downsample";
            let norm = named.norm(&format!("{name}.norm"));
            let weight = named.matrix(&format!("{name}.reduction.weight"), 32);
            rows = match precision {
                None => composed::merge(rows, &ops::merging_indices(&segments), norm, weight),
                Some(precision) => {
                    let NormValues { gamma, beta, eps } = norm;
                    let norm = [gamma, beta];
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
            None => composed::attention_branch(rows, &segments, &windows, layers, dropped),
            Some(how) => ops::attention_branch(rows, &segments, &windows, layers, dropped, how),
        };
        let layers =
            [named.linear(&name("mlp.fc1"), width), named.linear(&name("mlp.fc2"), 2 * width)];
        let (norm, gelu) = (named.norm(&name("norm2")), Activation::Gelu);
        let dropped = scales(2 * index + 1);
        rows = match compute() {
            None => composed::mlp_branch(rows, &segments, norm, layers, gelu, dropped),
            Some(how) => ops::mlp_branch(rows, &segments, norm, layers, gelu, dropped, how),
        };
        blocks.push(rows.clone());
    }
    ByHand { blocks, segments, last: norm(rows, "norm") }
}

/// The mean row of every image, by its definition.
pub(super) fn means(rows: &Tensor, segments: &[Segment]) -> Vec<f32> {
    let width = rows.shape()[1];
    let values = rows.to_vec::<f32>();
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
    let part = || StepPart { first_view: 1, images: 2..7, step_images: 9 };
    let student = || ForwardCtx::student(KEY);
    for pass in
        [&ForwardCtx::eval as &dyn Fn() -> ForwardCtx, &student, &|| student().for_part(part())]
    {
        let expected = by_hand(&params, &inputs, &pass(), None);
        let found = swin.features(&params, inputs.to_vec(), &pass());
        assert_eq!(found.segments, expected.segments);
        assert_alike("region", &found.region.to_vec::<f32>(), &expected.last.to_vec::<f32>(), 1e-5);
        let view = means(&expected.last, &expected.segments);
        assert_alike("view", &found.view.to_vec::<f32>(), &view, 1e-5);
    }
}

/// The precision of a pass is that of every layer: results and gradients to the bit.
#[test]
fn every_layer_has_the_precision_of_the_pass() {
    let (swin, params) = swin();
    let input = images(1001, [2, 3, 11, 14]);
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |found: bool, recompute: bool| -> (Vec<f32>, Vec<Vec<f32>>) {
            let tape = Tape::new();
            let params = params.tracked(&tape);
            let mut pass = ForwardCtx::student(KEY).with_precision(precision);
            pass.activation_checkpointing = recompute;
            let input = input.clone();
            let rows = if found {
                swin.features(&params, vec![input], &pass).region
            } else {
                by_hand(&params, &[input], &pass, Some(precision)).last
            };
            let values = rows.clone().detach().to_vec::<f32>();
            let projection = hashed_tensor::<2>(40, rows.dims());
            let gradients = tape.backward(&(rows * projection).sum());
            let gradient = |value: &Tensor| gradients.of(value).unwrap().to_vec::<f32>();
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
    let (network, ..) = network(true);
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
    let first = [Segment::new(2, [5, 7])];
    // Of the last two blocks, that of the last stage under the final norm.
    let found = swin.last_blocks(&params, input.clone(), 2, &pass);
    assert_eq!(found.dims(), [2, 24]);
    let [of_first, of_last] =
        [means(&expected.blocks[1], &first), means(&expected.last, &expected.segments)];
    let joined: Vec<f32> = [0, 1]
        .into_iter()
        .flat_map(|image| [&of_first[8 * image..][..8], &of_last[16 * image..][..16]].concat())
        .collect();
    assert_alike("last blocks", &found.to_vec::<f32>(), &joined, 1e-5);

    let found = swin.stage_features(&params, input.clone(), 0, &pass).unwrap();
    assert_eq!((found.map, found.region.dims()), ([5, 7], [2, 35, 8]));
    assert_alike("stage", &found.region.to_vec::<f32>(), &expected.blocks[1].to_vec::<f32>(), 1e-5);
    assert_alike("its mean", &found.view.to_vec::<f32>(), &of_first, 1e-5);
    let found = swin.stage_features(&params, input.clone(), 1, &pass).unwrap();
    assert_alike("last stage", &found.region.to_vec::<f32>(), &expected.last.to_vec::<f32>(), 1e-5);
    assert!(swin.stage_features(&params, input, 2, &pass).is_none());
}

/// Weights by block, of a map that is padded: their windows, and rows that add up to 1. They are
/// those with which values are mixed.
#[test]
fn attention_of_every_block() {
    let (swin, params) = swin();
    let input = images(1001, [2, 3, 11, 14]);
    let mut seen = Vec::new();
    let windows_of = |layout| match layout {
        AttentionLayout::Windows(windows) => windows,
        other => panic!("{other:?}"),
    };
    let mut observe = |block, map: AttentionMap| {
        let (weights, windows) = (map.weights(), windows_of(map.layout));
        assert_eq!(weights.shape()[0], 2 * windows.windows());
        let side = windows.window_tokens();
        assert!(
            weights
                .to_vec::<f32>()
                .chunks_exact(side)
                .all(|row| { (row.iter().sum::<f32>() - 1.0).abs() < 1e-5 })
        );
        let alone = swin.block_attention(&params, input.clone(), block).unwrap().unwrap();
        assert_eq!(alone.weights().to_vec::<f32>(), weights.to_vec::<f32>());
        seen.push((block, windows.map, windows.window, windows.shift, weights.shape()[1]));
    };
    swin.attention(&params, input.clone(), 0..9, &mut observe).unwrap();
    assert_eq!(seen, [(0, [5, 7], 4, 0, 1), (1, [5, 7], 4, 2, 1), (2, [3, 4], 4, 0, 2)]);
    let mut seen = Vec::new();
    swin.attention(&params, input.clone(), 1..2, &mut |block, _| seen.push(block)).unwrap();
    assert_eq!(seen, [1]);
    assert!(swin.block_attention(&params, input.clone(), 3).unwrap().is_none());

    // The first block by its weights: x + proj(weights values).
    let named = Named(&params);
    let first = by_hand(&params, std::slice::from_ref(&input), &ForwardCtx::eval(), None);
    let found = swin.block_attention(&params, input.clone(), 0).unwrap().unwrap();
    let (weights, windows) = (found.weights(), windows_of(found.layout));
    let patches = composed::patchify(input, 2);
    let x = composed::linear(patches, named.linear("patch_embed.proj", 12), Activation::None);
    let norm = |x: Tensor, name: &str| composed::layer_norm(x, named.norm(name));
    let x = norm(x, "patch_embed.norm");
    let qkv = named.linear("layers.0.blocks.0.attn.qkv", 8);
    let values = norm(x.clone(), "layers.0.blocks.0.norm1").matmul(qkv.weight.transpose());
    let (values, bias) = (values.to_vec::<f32>(), qkv.bias.to_vec::<f32>());
    let weights = weights.to_vec::<f32>();
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
    let mixed = Tensor::new(mixed, [70, 8], &Device::Cpu);
    let x = x + composed::linear(mixed, proj, Activation::None);
    let layers = ["mlp.fc1", "mlp.fc2"].into_iter().zip([8, 16]);
    let layers: Vec<LinearValues> = layers
        .map(|(name, width)| named.linear(&format!("layers.0.blocks.0.{name}"), width))
        .collect();
    let layers: [LinearValues; 2] = layers.try_into().unwrap();
    let segments = [Segment::new(2, [5, 7])];
    let norm2 = named.norm("layers.0.blocks.0.norm2");
    let x = composed::mlp_branch(x, &segments, norm2, layers, Activation::Gelu, None);
    assert_alike("block", &x.to_vec::<f32>(), &first.blocks[0].to_vec::<f32>(), 1e-5);
}
