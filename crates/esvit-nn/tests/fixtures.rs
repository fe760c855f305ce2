//! Backbones and the head against values of the official code, run on parameters and images that
//! a hash makes.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use esvit_nn::Tensor;
use esvit_nn::backbone::Stage;
use esvit_nn::head::{Head, HeadConfig};
use esvit_nn::params::{Registry, Role};
use esvit_nn::{Backbone, EsvitHeads, ForwardCtx, Network, Params, zoo};
use esvit_testing::{assert_close, fill, hash, hashed_tensor, hashed_times};

/// The values have five decimals; f32 in another order of summation moves the last.
const TOLERANCE: f64 = 3e-5;
/// Sums over hundreds of values.
const SUM_TOLERANCE: f64 = 1e-3;
/// Deep networks of random weights, whose errors grow.
const DEEP_TOLERANCE: f64 = 2e-3;

fn swin(architecture: &str) -> (Arc<dyn Backbone>, Params) {
    let (swin, list) = zoo::find(architecture).unwrap().config().build(0.0);
    (swin, fill(&list, 0))
}

/// One image of unit variance.
fn image(size: usize) -> Tensor {
    let pixels = hashed_times(1000, 3 * size * size, 3f64.sqrt());
    Tensor::new(pixels, [1, 3, size, size], &esvit_nn::Device::Cpu)
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum()
}

#[test]
fn the_hash_is_the_one_that_the_values_were_made_with() {
    for (stream, expected) in
        [(0, [-0.18623554, -0.08581558, -0.73810759]), (7, [-0.22613627, -0.31824104, -0.44244588])]
    {
        for (i, expected) in expected.into_iter().enumerate() {
            assert!((hash(stream, i) - expected).abs() < 1e-8, "stream {stream}, {i}");
        }
    }
}

/// What the official code gives for one image.
struct Expected {
    size: usize,
    /// The first values of the view feature.
    view: [f64; 4],
    view_sum: f64,
    /// The first values of region token 5.
    region: [f64; 3],
    /// Euclidean norm of all region tokens.
    region_norm: f64,
}

fn check_features(architecture: &str, expected: [Expected; 2]) {
    check_features_within(architecture, [TOLERANCE, SUM_TOLERANCE], expected);
}

/// `tolerance` is that of values, and of sums over hundreds of them.
fn check_features_within(architecture: &str, tolerance: [f64; 2], expected: [Expected; 2]) {
    let (network, params) = swin(architecture);
    let width = network.output_width();
    for Expected { size, view, view_sum, region, region_norm } in expected {
        let what = |part: &str| format!("{architecture}, {size} pixels, {part}");
        let found = network.forward(&params, image(size), &ForwardCtx::eval());
        let side = size.div_ceil(32);
        assert_eq!(found.region.dims(), [1, side * side, width]);
        let (views, regions) = (found.view.to_vec::<f32>(), found.region.to_vec::<f32>());
        assert_close(&what("view"), &views[..4], &view, tolerance[0]);
        assert_close(&what("sum"), &[sum(&views) as f32], &[view_sum], tolerance[1]);
        assert_close(&what("region"), &regions[5 * width..][..3], &region, tolerance[0]);
        let squares: Vec<f32> = regions.iter().map(|value| value * value).collect();
        let norm = sum(&squares).sqrt() as f32;
        assert_close(&what("norm"), &[norm], &[region_norm], tolerance[1]);
    }
}

#[test]
fn pvt_small() {
    check_features_within(
        "pvt_small",
        [DEEP_TOLERANCE, 0.05],
        [
            Expected {
                size: 224,
                view: [2.09899, -1.35220, 0.54038, 0.19211],
                view_sum: 0.63614,
                region: [1.74236, -2.10681, 0.76484],
                region_norm: 160.70821,
            },
            Expected {
                size: 96,
                view: [1.78613, -0.99143, 0.83955, 0.00134],
                view_sum: -0.30896,
                region: [1.23518, -1.93097, 0.97706],
                region_norm: 68.24362,
            },
        ],
    );
}

#[test]
fn pvt_2262() {
    check_features_within(
        "pvt_2262",
        [DEEP_TOLERANCE, 0.05],
        [
            Expected {
                size: 224,
                view: [-0.66145, -0.04243, 1.25360, -0.91899],
                view_sum: -0.34707,
                region: [-1.13752, 0.24409, 0.46442],
                region_norm: 159.14444,
            },
            Expected {
                size: 96,
                view: [-0.14838, -0.15344, 1.44465, -0.63972],
                view_sum: -0.90532,
                region: [-0.51092, 0.26964, 1.08320],
                region_norm: 68.37298,
            },
        ],
    );
}

#[test]
fn resnet50() {
    check_features_within(
        "resnet50",
        [DEEP_TOLERANCE, 0.5],
        [
            Expected {
                size: 224,
                view: [0.05559, 3.05509, 0.04395, 0.69249],
                view_sum: 2428.26831,
                region: [0.0, 2.67893, 0.0],
                region_norm: 585.09283,
            },
            Expected {
                size: 96,
                view: [0.20648, 2.18786, 0.11559, 0.59669],
                view_sum: 1982.72461,
                region: [0.34512, 2.48472, 0.0],
                region_norm: 207.50728,
            },
        ],
    );
}

#[test]
fn swin_tiny_w7() {
    check_features(
        "swin_tiny_w7",
        [
            Expected {
                size: 224,
                view: [-0.30677, 0.59618, 0.85016, -1.81938],
                view_sum: -3.15427,
                region: [-0.50774, 1.28456, 1.03918],
                region_norm: 195.20477,
            },
            Expected {
                size: 96,
                view: [0.34479, 1.12567, 1.30366, -0.83448],
                view_sum: -2.24872,
                region: [0.30319, 1.99867, 0.7559],
                region_norm: 83.50333,
            },
        ],
    );
}

#[test]
fn swin_tiny_w14() {
    check_features(
        "swin_tiny_w14",
        [
            Expected {
                size: 224,
                view: [-0.27421, 0.59755, 0.90143, -1.84592],
                view_sum: -3.11707,
                region: [-0.45523, 0.72317, 0.93462],
                region_norm: 195.29366,
            },
            Expected {
                size: 96,
                view: [0.75565, 0.87406, 0.3935, -0.49457],
                view_sum: -1.57043,
                region: [0.75244, 0.91009, 0.79243],
                region_norm: 83.49523,
            },
        ],
    );
}

#[test]
fn cvt_tiny() {
    check_features(
        "cvt_tiny",
        [
            Expected {
                size: 224,
                view: [-0.18498, -1.4744, -0.14373, -0.2648],
                view_sum: 1.06076,
                region: [-0.45269, -1.17099, 0.29608],
                region_norm: 193.78702,
            },
            Expected {
                size: 96,
                view: [-1.11966, -1.51238, -0.79342, -0.59314],
                view_sum: 0.40203,
                region: [-2.05907, -1.77545, -0.42876],
                region_norm: 82.97545,
            },
        ],
    );
}

/// The paper's, with relative positions in all stages; at 96 pixels biases of full attention are resized.
#[test]
fn vil_2262() {
    check_features(
        "vil_2262",
        [
            Expected {
                size: 224,
                view: [1.47249, -1.62647, -0.7692, 0.8077],
                view_sum: 0.687,
                region: [1.45208, -1.68569, -0.96132],
                region_norm: 194.37276,
            },
            Expected {
                size: 96,
                view: [1.35096, -1.49017, 0.06201, 0.61836],
                view_sum: -0.05631,
                region: [1.1789, -1.59875, 0.07574],
                region_norm: 83.59159,
            },
        ],
    );
}

/// The linear probe's feature and the last block's attention, Swin-T with window 7.
#[test]
fn last_blocks_and_attention() {
    let (swin, params) = swin("swin_tiny_w7");
    let features = swin.last_blocks(&params, image(224), 4, &ForwardCtx::eval()).to_vec::<f32>();
    assert_eq!(features.len(), 2304);
    assert_close("sum", &[sum(&features) as f32], &[-39.88349], SUM_TOLERANCE);
    let found = [0, 384, 768, 1536].map(|i| features[i]);
    assert_close("features", &found, &[0.49329, -0.81538, 0.09148, -0.30677], TOLERANCE);

    let last = swin.blocks() - 1;
    let attention = swin.block_attention(&params, image(224), last).unwrap().unwrap().weights();
    assert_eq!(attention.dims(), [1, 24, 49, 49]);
    let attention = attention.to_vec::<f32>();
    let keys = &attention[9 * 49..][..4];
    assert_close("query 9", keys, &[0.013627, 0.020901, 0.015082, 0.010111], 2e-6);
    for row in attention.chunks_exact(49) {
        assert_close("sum of a row", &[row.iter().sum()], &[1.0], 1e-5);
    }
}

#[test]
fn head() {
    let config =
        HeadConfig { out_dim: 16, hidden_dim: 12, bottleneck_dim: 6, ..Default::default() };
    let mut registry = Registry::default();
    let head = Head::new(&mut registry.root(), 8, &config);
    let params = fill(&registry.finish(), 0);
    let logits = head
        .forward(&params, hashed_tensor(2000, [3, 8]), &ForwardCtx::eval())
        .matrix()
        .to_vec::<f32>();
    let expected = [
        [0.411922, 0.078899, 0.20165, -0.500888],
        [0.070152, 0.147677, 0.094266, 0.557065],
        [-0.270243, 0.045133, 0.839701, 0.219187],
    ];
    for (row, expected) in logits.chunks_exact(16).zip(expected) {
        assert_close("logits", &row[..4], &expected, 2e-6);
    }
}

/// Names and shapes of Swin-T with window 7 and both heads, in the order of an official
/// checkpoint.
#[test]
fn state_dict() {
    let config = zoo::find("swin_tiny_w7").unwrap().config();
    let (network, _) = Network::new(&config, 0.1, |scope, width| {
        EsvitHeads::new(scope, width, &HeadConfig::default(), true)
    });

    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |prefix: &str, entries: &[(&str, &[usize])]| {
        let entries =
            entries.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.to_vec()));
        expected.extend(entries);
    };
    add(
        "patch_embed.",
        &[
            ("proj.weight", &[96, 3, 4, 4]),
            ("proj.bias", &[96]),
            ("norm.weight", &[96]),
            ("norm.bias", &[96]),
        ],
    );
    for (stage, (blocks, c, heads)) in
        [(2, 96, 3), (2, 192, 6), (6, 384, 12), (2, 768, 24)].into_iter().enumerate()
    {
        for block in 0..blocks {
            add(
                &format!("layers.{stage}.blocks.{block}."),
                &[
                    ("norm1.weight", &[c]),
                    ("norm1.bias", &[c]),
                    ("attn.relative_position_bias_table", &[169, heads]),
                    ("attn.qkv.weight", &[3 * c, c]),
                    ("attn.qkv.bias", &[3 * c]),
                    ("attn.proj.weight", &[c, c]),
                    ("attn.proj.bias", &[c]),
                    ("norm2.weight", &[c]),
                    ("norm2.bias", &[c]),
                    ("mlp.fc1.weight", &[4 * c, c]),
                    ("mlp.fc1.bias", &[4 * c]),
                    ("mlp.fc2.weight", &[c, 4 * c]),
                    ("mlp.fc2.bias", &[c]),
                ],
            );
        }
        if stage < 3 {
            add(
                &format!("layers.{stage}.downsample."),
                &[
                    ("reduction.weight", &[2 * c, 4 * c]),
                    ("norm.weight", &[4 * c]),
                    ("norm.bias", &[4 * c]),
                ],
            );
        }
    }
    add("norm.", &[("weight", &[768]), ("bias", &[768])]);
    for head in ["head.", "head_dense."] {
        add(
            head,
            &[
                ("mlp.0.weight", &[2048, 768]),
                ("mlp.0.bias", &[2048]),
                ("mlp.2.weight", &[2048, 2048]),
                ("mlp.2.bias", &[2048]),
                ("mlp.4.weight", &[256, 2048]),
                ("mlp.4.bias", &[256]),
                ("last_layer.weight_g", &[65536, 1]),
                ("last_layer.weight_v", &[65536, 256]),
            ],
        );
    }

    let specs = network.specs();
    let found: Vec<_> = specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(specs.iter().map(|spec| spec.len()).sum::<usize>(), 73_796_474);
    for spec in specs.iter() {
        let frozen = spec.name.ends_with("weight_g");
        assert_eq!(spec.role, if frozen { Role::Frozen } else { Role::Trained }, "{}", spec.name);
    }
}

/// The map of a stage is what its last block gives, whose mean the linear probe takes.
#[test]
fn features_of_earlier_stages() {
    let (swin, params) = swin("swin_tiny_w7");
    let pass = ForwardCtx::eval();
    let blocks = swin.last_blocks(&params, image(64), swin.blocks(), &pass).to_vec::<f32>();
    let mut end = 0;
    for (stage, Stage { blocks: depth, width, stride, .. }) in swin.stages().into_iter().enumerate()
    {
        let features = swin.stage_features(&params, image(64), stage, &pass).unwrap();
        end += depth * width;
        assert_eq!(features.view.to_vec::<f32>(), blocks[end - width..end]);
        let side = 64 / stride;
        assert_eq!(features.map, [side; 2]);
        assert_eq!(features.region.dims(), [1, side * side, width]);
    }
    assert!(swin.stage_features(&params, image(64), 4, &pass).is_none());
}
