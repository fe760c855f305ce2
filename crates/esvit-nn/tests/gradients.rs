//! Gradients of every operation and layer against finite differences, and drop-path.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;

use esvit_nn::backbone::cvt::CvtConfig;
use esvit_nn::backbone::igpt::{IgptConfig, Variant};
use esvit_nn::backbone::pvt::PvtConfig;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::backbone::vil::{BiasResize, VilConfig};
use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::backbone::{Input, TokenMask};
use esvit_nn::forward_ctx::DropPathKey;
use esvit_nn::head::{Head, HeadConfig};
use esvit_nn::ops::{
    self, Activation, AttentionGroups, AttentionValues, BatchNormValues, Border, Compute,
    GroupTable, ImageRows, LinearValues, NeighborMap, Neighbors, NormEnd, NormValues, Pairs,
    Precision, Projections, PrototypeLogits, RotaryAngles, Scales, Segment, TeacherRows, WindowMap,
};
use esvit_nn::params::{Params, Registry, Role};
use esvit_nn::tensor::Dtype;
use esvit_nn::{BackboneConfig, Collective, Device, ForwardCtx, Solo, Tape, Tensor};
use esvit_testing::{
    Pair, assert_alike, check_gradients, composed, fill, hashed, hashed_tensor, hashed_times,
    tiny_cvt, tiny_igpt, tiny_pvt, tiny_swin, tiny_vit,
};

const KEY: DropPathKey = DropPathKey { seed: 3, step: 5 };

fn flat(tensor: Tensor) -> Tensor {
    let len = tensor.numel();
    tensor.reshape([len])
}

#[test]
fn linear() {
    for [rows, inputs, outputs] in [[1, 1, 1], [5, 3, 7], [4, 6, 2], [10, 37, 19]] {
        for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu] {
            let data =
                [hashed(1, 2 * rows * inputs), hashed(2, outputs * inputs), hashed(3, outputs)];
            let by_kernels = |v: &[Tensor]| {
                let x = v[0].clone().reshape([2, rows, inputs]);
                let weight = v[1].clone().reshape([outputs, inputs]);
                flat(ops::linear(x, weight, v[2].clone(), activation, Precision::F32))
            };
            let composed = |v: &[Tensor]| {
                let x = v[0].clone().reshape([2 * rows, inputs]);
                let weight = v[1].clone().reshape([outputs, inputs]);
                flat(composed::linear(x, LinearValues { weight, bias: v[2].clone() }, activation))
            };
            check_both("linear", &data, by_kernels, composed);
        }
    }
}

#[test]
fn layer_norm() {
    for [rows, channels] in [[1, 3], [3, 5], [4, 8], [18, 37]] {
        // Twice the size, so that the variance is well above the step.
        let data =
            [hashed_times(1, rows * channels, 2.0), hashed(2, channels), hashed(3, channels)];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
        check_both(
            "layer_norm",
            &data,
            |v| flat(ops::layer_norm(x(v), v[1].clone(), v[2].clone(), 1e-6, Precision::F32)),
            |v| flat(composed::layer_norm(x(v), norm_values(&v[1..]))),
        );
    }
}

#[test]
fn batch_norm() {
    let solo = Solo::shared();
    for [rows, channels] in [[2, 3], [5, 1], [18, 37]] {
        let data =
            [hashed_times(1, rows * channels, 2.0), hashed(2, channels), hashed(3, channels)];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
        check_both(
            "batch_norm",
            &data,
            |v| flat(ops::batch_norm(x(v), v[1].clone(), v[2].clone(), 1e-5, &solo).0),
            |v| flat(composed::batch_norm(x(v), v[1].clone(), v[2].clone(), 1e-5).0),
        );
        let x: Tensor = Tensor::new(data[0].clone(), [rows, channels], &Device::Cpu);
        let ones = Tensor::from_vec(vec![1f32; channels], &Device::Cpu);
        let (_, found) = ops::batch_norm(x.clone(), ones.clone(), ones.clone(), 1e-5, &solo);
        let (_, expected) = composed::batch_norm(x, ones.clone(), ones, 1e-5);
        for (found, expected) in found.iter().zip(&expected) {
            assert_alike("statistics", &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-6);
        }
    }
}

/// Two processes with half of the rows each have the statistics and the gradients of all rows.
#[test]
fn batch_norm_over_processes() {
    let [rows, channels] = [8, 37];
    let tensor = |seed, rows| {
        Tensor::new(hashed_times(seed, rows * channels, 2.0), [rows, channels], &Device::Cpu)
    };
    let (x, weights) = (tensor(1, rows), tensor(2, rows));
    // The output, the statistics and the gradients of x, gamma and beta.
    let run = |part: Range<usize>, collective: &Arc<dyn Collective>| -> Vec<Vec<f32>> {
        let part_of = |tensor: &Tensor| {
            let values = tensor.view(part.start * channels, part.len() * channels);
            values.reshape([part.len(), channels])
        };
        let tape = Tape::new();
        let [x, gamma, beta] = [part_of(&x), tensor(3, 1), tensor(4, 1)].map(|t| tape.watch(t));
        let [row, column] = [&gamma, &beta].map(|v| v.clone().reshape([channels]));
        let (y, [mean, variance]) = ops::batch_norm(x.clone(), row, column, 1e-5, collective);
        let gradients = tape.backward(&(y.clone() * part_of(&weights)).sum());
        let of = |leaf: &Tensor| gradients.of(leaf).unwrap().to_vec();
        vec![y.to_vec(), mean.to_vec(), variance.to_vec(), of(&x), of(&gamma), of(&beta)]
    };
    let whole = run(0..rows, &Solo::shared());
    let [first, second] = Pair::run(|pair| run(4 * pair.rank()..4 * pair.rank() + 4, &pair));
    let joined = |at: usize| [first[at].clone(), second[at].clone()].concat();
    let sum = |at: usize| first[at].iter().zip(&second[at]).map(|(a, b)| a + b).collect();
    assert_eq!((&first[1], &first[2]), (&second[1], &second[2]));
    for (name, found, expected) in [
        ("y", joined(0), &whole[0]),
        ("mean", first[1].clone(), &whole[1]),
        ("variance", first[2].clone(), &whole[2]),
        ("dx", joined(3), &whole[3]),
        ("dgamma", sum(4), &whole[4]),
        ("dbeta", sum(5), &whole[5]),
    ] {
        assert_alike(name, &found, expected, 1e-5);
    }
}

/// Runs of rows have their own statistics: as many calls for one each.
#[test]
fn batch_norm_of_runs() {
    let (solo, runs, channels) = (Solo::shared(), [4, 7, 2], 5);
    let data = [hashed_times(1, 13 * channels, 2.0), hashed(2, channels), hashed(3, channels)];
    let x = |v: &[Tensor]| v[0].clone().reshape([13, channels]);
    let by_kernels = |v: &[Tensor]| {
        let (gamma, beta) = (v[1].clone(), v[2].clone());
        flat(ops::batch_norm_of_runs(x(v), gamma, beta, 1e-5, &runs, &solo).0)
    };
    let composed = |v: &[Tensor]| {
        let (gamma, beta) = (v[1].clone(), v[2].clone());
        flat(composed::batch_norm_of_runs(x(v), gamma, beta, 1e-5, &runs))
    };
    check_both("batch_norm_of_runs", &data, by_kernels, composed);
    let rows = hashed_tensor(1, [13, channels]) * 2.0;
    let ones = Tensor::from_vec(vec![1f32; channels], &Device::Cpu);
    let (_, found) =
        ops::batch_norm_of_runs(rows.clone(), ones.clone(), ones.clone(), 1e-5, &runs, &solo);
    let mut first = 0;
    for (rows_of_run, found) in runs.into_iter().zip(found) {
        let own = rows.clone().narrow(0, first, rows_of_run);
        first += rows_of_run;
        let (_, expected) = composed::batch_norm(own, ones.clone(), ones.clone(), 1e-5);
        for (found, expected) in found.iter().zip(&expected) {
            assert_alike("statistics", &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-6);
        }
    }
}

#[test]
fn fixed_batch_norm() {
    for [rows, channels] in [[1, 3], [18, 37]] {
        let data =
            [hashed_times(1, rows * channels, 2.0), hashed(2, channels), hashed(3, channels)];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
        let affine = |v: &[Tensor]| [v[1].clone(), v[2].clone()];
        let fixed = |like: &Tensor| {
            let [mean, variance] = [4, 5].map(|stream| hashed_tensor(stream, [channels]));
            [mean, variance.abs() + 0.2].map(|v| v.to_dtype(like.dtype()))
        };
        check_both(
            "fixed_batch_norm",
            &data,
            |v| flat(ops::fixed_batch_norm(x(v), affine(v), fixed(&v[0]), 1e-3)),
            |v| flat(composed::fixed_batch_norm(x(v), affine(v), fixed(&v[0]), 1e-3)),
        );
    }
}

/// Maps of two sizes, with and without margin, stride and bias, and filters over the whole map.
#[test]
fn convolution() {
    for (maps, [inputs, outputs, side], stride, padding, has_bias) in [
        (vec![(1, [1, 1])], [1, 1, 1], 1, 0, true),
        (vec![(2, [4, 5]), (1, [3, 3])], [3, 4, 3], 1, 1, false),
        (vec![(1, [5, 4]), (2, [2, 3])], [2, 5, 3], 2, 1, true),
        (vec![(2, [5, 7])], [3, 2, 2], 2, 0, true),
        (vec![(1, [6, 3])], [2, 3, 7], 2, 3, false),
        (vec![(2, [3, 4])], [5, 17, 1], 2, 0, false),
    ] {
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map)| Segment::new(images, map)).collect();
        let rows: usize = ops::tokens_per_image(&segments).iter().sum();
        let mut data = vec![hashed(1, rows * inputs), hashed(2, outputs * inputs * side * side)];
        data.extend(has_bias.then(|| hashed(3, outputs)));
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, inputs]);
        let weight = |v: &[Tensor]| v[1].clone().reshape([outputs, inputs, side, side]);
        let moves = [stride, padding];
        let by_kernels = |v: &[Tensor]| {
            let (bias, compute) = (v.get(2).cloned(), Compute::default());
            flat(ops::convolution(x(v), &segments, weight(v), bias, moves, compute).0)
        };
        let composed = |v: &[Tensor]| {
            flat(composed::convolution(x(v), &segments, weight(v), v.get(2).cloned(), moves))
        };
        check_both(&format!("maps {maps:?}, side {side}"), &data, by_kernels, composed);
        let [x, w] = [data[0].clone(), data[1].clone()];
        let x = Tensor::new(x, [rows, inputs], &Device::Cpu);
        let w = Tensor::new(w, [outputs, inputs, side, side], &Device::Cpu);
        let (y, moved) = ops::convolution(x, &segments, w, None, moves, Compute::default());
        let found: usize = ops::tokens_per_image(&moved).iter().sum();
        assert_eq!(y.dims(), [found, outputs]);
    }
}

/// How rows of two sizes are normalized, from `v[1]`, `v[2]`: by their own statistics, or by others.
fn norm_of(v: &[Tensor], x: &Tensor, runs: &[usize], is_fixed: bool) -> BatchNormValues {
    let affine = [v[1].clone(), v[2].clone()];
    if is_fixed {
        let [mean, variance] = [4, 5].map(|stream| hashed_tensor(stream, [affine[0].numel()]));
        return BatchNormValues::fixed(affine, [mean, variance.abs() + 0.2], 1e-3);
    }
    BatchNormValues::of_runs(x, affine, 1e-3, runs, &Solo::shared()).0
}

/// What [`norm_of`] makes of the rows.
fn composed_norm(v: &[Tensor], x: Tensor, runs: &[usize], is_fixed: bool) -> Tensor {
    let [gamma, beta] = [v[1].clone(), v[2].clone()];
    if is_fixed {
        let [mean, variance] = [4, 5].map(|stream| hashed_tensor(stream, [gamma.numel()]));
        let statistics = [mean, variance.abs() + 0.2].map(|v| v.to_dtype(x.dtype()));
        return composed::fixed_batch_norm(x, [gamma, beta], statistics, 1e-3);
    }
    composed::batch_norm_of_runs(x, gamma, beta, 1e-3, runs)
}

#[test]
fn batch_norm_relu() {
    let (runs, channels) = ([6, 9], 5);
    let rows: usize = runs.iter().sum();
    for (is_fixed, has_shortcut) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut data =
            vec![hashed_times(1, rows * channels, 2.0), hashed(2, channels), hashed(3, channels)];
        data.extend(has_shortcut.then(|| hashed(4, rows * channels)));
        let matrix = |v: &Tensor| v.clone().reshape([rows, channels]);
        let by_kernels = |v: &[Tensor]| {
            let (x, shortcut) = (matrix(&v[0]), v.get(3).map(matrix));
            let norm = norm_of(v, &x, &runs, is_fixed);
            flat(ops::batch_norm_relu(x, norm, shortcut, Precision::F32))
        };
        let composed = |v: &[Tensor]| {
            let y = composed_norm(v, matrix(&v[0]), &runs, is_fixed);
            let y = match v.get(3) {
                Some(shortcut) => y + matrix(shortcut),
                None => y,
            };
            flat(y.relu())
        };
        let what = format!("fixed {is_fixed}, shortcut {has_shortcut}");
        check_composed(&what, &data, by_kernels, composed);
    }
}

/// Maps of two sizes that are normalized before a convolution of one pixel, of three, and with stride.
#[test]
fn batch_norm_relu_convolution() {
    let segments = [Segment::new(2, [3, 4]), Segment::new(1, [4, 2])];
    let (rows, runs, [inputs, outputs]) = (32, [24, 8], [3, 4]);
    for (is_fixed, side, moves) in
        [(false, 1, [1, 0]), (true, 1, [1, 0]), (false, 3, [1, 1]), (true, 3, [2, 1])]
    {
        let data = [
            hashed_times(1, rows * inputs, 2.0),
            hashed(2, inputs),
            hashed(3, inputs),
            hashed(6, outputs * inputs * side * side),
        ];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, inputs]);
        let weight = |v: &[Tensor]| v[3].clone().reshape([outputs, inputs, side, side]);
        let convolved = |v: &[Tensor], precision: Precision| {
            let (x, compute) = (x(v), Compute { precision, ..Compute::default() });
            let norm = norm_of(v, &x, &runs, is_fixed);
            let (y, _) =
                ops::batch_norm_relu_convolution(x, norm, &segments, weight(v), moves, compute);
            // Stored in the precision.
            flat(y.to_dtype(Dtype::F32))
        };
        let composed = |v: &[Tensor]| {
            let y = composed_norm(v, x(v), &runs, is_fixed).relu();
            flat(composed::convolution(y, &segments, weight(v), None, moves))
        };
        let what = format!("fixed {is_fixed}, side {side}");
        check_composed(&what, &data, |v| convolved(v, Precision::F32), composed);

        // In bf16 rows and products are rounded, gradients about as much.
        let gradients = |precision: Precision| -> Vec<Vec<f32>> {
            let tape = Tape::new();
            let leaves = data.clone().map(|v| tape.watch(Tensor::from_vec(v, &Device::Cpu)));
            let y = convolved(&leaves, precision);
            let projection = Tensor::from_vec(hashed(7000, y.numel()), &Device::Cpu);
            let gradients = tape.backward(&(y.clone() * projection).sum());
            let of = |leaf: &Tensor| gradients.of(leaf).unwrap().to_vec();
            [vec![y.to_vec()], leaves.iter().map(of).collect()].concat()
        };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(gradients);
        for (found, expected) in rounded.iter().zip(&exact) {
            assert_alike(&format!("{what}, bf16"), found, expected, 0.05);
            assert_ne!(found, expected);
        }
    }
}

/// A residual block whose maps are stored in the precision, with what it may have in a shortcut: in bf16
/// results and gradients are near those in f32, which are those of operations one by one.
#[test]
fn a_block_of_stored_maps() {
    let segments = [Segment::new(2, [3, 4]), Segment::new(1, [4, 2])];
    let (rows, runs, channels) = (32, [24, 8], 4);
    let data = [
        hashed_times(1, rows * channels, 2.0),
        hashed(2, channels),
        hashed(3, channels),
        hashed(6, channels * channels * 9),
        hashed(7, channels * channels),
    ];
    let weights = |v: &[Tensor]| {
        let of = |at: usize, side| v[at].clone().reshape([channels, channels, side, side]);
        [of(3, 3), of(4, 1)]
    };
    let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
    let block = |v: &[Tensor], precision: Precision, has_norm: bool| {
        let compute = || Compute { precision, ..Compute::default() };
        let [first, second] = weights(v);
        let (y, _) = ops::convolution_before_norm(x(v), &segments, first, [1, 1], compute());
        let stored = if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        assert_eq!(y.dtype(), stored);
        let norm = norm_of(v, &y, &runs, false);
        let shortcut = if has_norm { norm.clone().forward(y.clone(), precision) } else { x(v) };
        let (y, _) =
            ops::batch_norm_relu_convolution(y, norm, &segments, second, [1, 0], compute());
        let norm = norm_of(v, &y, &runs, false);
        let y = ops::batch_norm_relu(y, norm, Some(shortcut), precision);
        assert_eq!(y.dtype(), stored);
        flat(y.to_dtype(Dtype::F32))
    };
    for has_norm in [false, true] {
        let composed = |v: &[Tensor]| {
            let [first, second] = weights(v);
            let y = composed::convolution(x(v), &segments, first, None, [1, 1]);
            let y = composed_norm(v, y, &runs, false);
            let shortcut = if has_norm { y.clone() } else { x(v) };
            let y = composed::convolution(y.relu(), &segments, second, None, [1, 0]);
            flat((composed_norm(v, y, &runs, false) + shortcut).relu())
        };
        let what = format!("a norm in the shortcut: {has_norm}");
        check_composed(&what, &data, |v| block(v, Precision::F32, has_norm), composed);
        let gradients = |precision: Precision| -> Vec<Vec<f32>> {
            let tape = Tape::new();
            let leaves = data.clone().map(|v| tape.watch(Tensor::from_vec(v, &Device::Cpu)));
            let y = block(&leaves, precision, has_norm);
            let projection = Tensor::from_vec(hashed(7000, y.numel()), &Device::Cpu);
            let gradients = tape.backward(&(y.clone() * projection).sum());
            let of = |leaf: &Tensor| gradients.of(leaf).unwrap().to_vec();
            [vec![y.to_vec()], leaves.iter().map(of).collect()].concat()
        };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(gradients);
        for (found, expected) in rounded.iter().zip(&exact) {
            assert_alike(&format!("{what}, bf16"), found, expected, 0.05);
            assert_ne!(found, expected);
        }
    }
}

/// What a convolution, its norm and what ends it give at one go, where nothing learns, is what they give one
/// by one, also of maps and shortcuts that are stored in the precision.
#[test]
fn convolution_batch_norm() {
    let segments = [Segment::new(2, [3, 4]), Segment::new(1, [4, 2])];
    let (rows, [inputs, outputs]) = (32, [3, 4]);
    let norm = || {
        let [gamma, beta, mean, variance] =
            [20, 21, 22, 23].map(|stream| hashed_tensor(stream, [outputs]));
        BatchNormValues::fixed([gamma, beta], [mean, variance.abs() + 0.2], 1e-3)
    };
    let shortcut = hashed_tensor(4, [10, outputs]);
    for precision in Precision::ALL {
        let stored = if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let as_stored = |x: Tensor| x.to_dtype(stored).to_dtype(Dtype::F32);
        for end in [NormEnd::Norm, NormEnd::Relu, NormEnd::Shortcut(as_stored(shortcut.clone()))] {
            let given = |x: Tensor, end: &NormEnd| {
                let weight = hashed_tensor(2, [outputs, inputs, 3, 3]);
                let (moves, end) = ([2, 1], end.clone());
                let compute = Compute { precision, ..Compute::default() };
                ops::convolution_batch_norm(x, &segments, weight, moves, norm(), end, compute)
            };
            let x = as_stored(hashed_tensor(1, [rows, inputs]));
            let (at_once, moved) = given(x.clone(), &end);
            let maps: Vec<_> = moved.iter().map(|moved| moved.map).collect();
            assert_eq!((at_once.dims(), maps), ([10, outputs], vec![[2, 2], [2, 1]]));
            assert_eq!((at_once.dtype(), at_once.is_tracked()), (stored, false));
            let found = at_once.to_dtype(Dtype::F32).to_vec::<f32>();

            let tape = Tape::new();
            let (one_by_one, also) = given(tape.watch(x.clone()), &end);
            assert_eq!((&also, one_by_one.is_tracked()), (&moved, true));
            // What learns stays in f32.
            assert_eq!(one_by_one.dtype(), Dtype::F32);
            assert_eq!(as_stored(one_by_one.detach()).to_vec::<f32>(), found);

            let end = match end {
                NormEnd::Shortcut(shortcut) => NormEnd::Shortcut(shortcut.to_dtype(stored)),
                end => end,
            };
            let (of_stored, _) = given(x.clone().to_dtype(stored), &end);
            assert_eq!(of_stored.to_dtype(Dtype::F32).to_vec::<f32>(), found);
            if let NormEnd::Shortcut(shortcut) = end {
                let learned = NormEnd::Shortcut(shortcut);
                let (one_by_one, _) = given(tape.watch(x.clone()), &learned);
                assert_eq!(as_stored(one_by_one.detach()).to_vec::<f32>(), found);
            }
        }
    }
}

/// Values that are all well apart, so that small steps do not change which is the largest.
#[test]
fn max_pool() {
    for (maps, channels, side, stride, padding) in [
        (vec![(1, [2, 2])], 1, 2, 2, 0),
        (vec![(2, [5, 4]), (1, [3, 1])], 2, 3, 2, 1),
        (vec![(1, [4, 4])], 2, 3, 1, 1),
    ] {
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map)| Segment::new(images, map)).collect();
        let rows: usize = ops::tokens_per_image(&segments).iter().sum();
        let len = rows * channels;
        let apart = |at: usize| ((at * 37) % 101) as f32 * 0.1;
        let data = [(0..len).map(apart).collect::<Vec<f32>>()];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
        let window = [side, stride, padding];
        check_both(
            &format!("maps {maps:?}, side {side}"),
            &data,
            |v| flat(ops::max_pool(x(v), &segments, window).0),
            |v| flat(composed::max_pool(x(v), &segments, window)),
        );
    }
}

/// Images of several numbers of queries and keys.
#[test]
fn cross_attention() {
    for (heads, head_dim, images) in
        [(1, 3, vec![[1, 1]]), (2, 3, vec![[5, 2], [5, 2], [2, 7]]), (3, 4, vec![[70, 9], [9, 1]])]
    {
        let width = heads * head_dim;
        let [queries, keys]: [usize; 2] =
            [0, 1].map(|of| images.iter().map(|image: &[usize; 2]| image[of]).sum());
        let data = [hashed_times(1, queries * width, 2.0), hashed(2, keys * 2 * width)];
        let q = |v: &[Tensor]| v[0].clone().reshape([queries, width]);
        let kv = |v: &[Tensor]| v[1].clone().reshape([keys, 2 * width]);
        check_both(
            &format!("images {images:?}"),
            &data,
            |v| flat(ops::cross_attention(q(v), kv(v), &images, heads, Precision::F32)),
            |v| flat(composed::cross_attention(q(v), kv(v), &images, heads)),
        );
    }
}

/// Images of several sizes.
#[test]
fn causal_attention() {
    for (heads, head_dim, images) in [(1, 3, vec![1]), (2, 3, vec![5, 2]), (2, 4, vec![70, 3])] {
        let (width, tokens) = (heads * head_dim, images.iter().sum::<usize>());
        let data = [hashed_times(1, tokens * width, 2.0), hashed(2, tokens * 2 * width)];
        let q = |v: &[Tensor]| v[0].clone().reshape([tokens, width]);
        let kv = |v: &[Tensor]| v[1].clone().reshape([tokens, 2 * width]);
        check_both(
            &format!("causal, images {images:?}"),
            &data,
            |v| flat(ops::causal_attention(q(v), kv(v), &images, heads, Precision::F32)),
            |v| flat(composed::causal_attention(q(v), kv(v), &images, heads)),
        );
    }
}

/// Rows of a table by the nearest colors, which are found in plain loops; several pixels have one color.
#[test]
fn embed_colors() {
    let (pixels, colors, width) = (40, 7, 5);
    let (points, palette) = (hashed_tensor(1, [pixels, 3]), hashed_tensor(2, [colors, 3]));
    let [p, c] = [&points, &palette].map(Tensor::to_vec::<f32>);
    let square = |pixel: usize, color: usize| -> f64 {
        (0..3).map(|i| f64::from(p[3 * pixel + i] - c[3 * color + i]).powi(2)).sum()
    };
    let nearest = |pixel: usize| {
        let nearer = |a: &usize, b: &usize| square(pixel, *a).total_cmp(&square(pixel, *b));
        (0..colors).min_by(nearer).unwrap() as i32
    };
    let indices: Vec<i32> = (0..pixels).map(nearest).collect();
    assert_eq!(ops::nearest_colors(&points, &palette), indices);
    let table = |v: &[Tensor]| v[0].clone().reshape([colors, width]);
    check_both(
        "embed_colors",
        &[hashed(3, colors * width)],
        |v| flat(ops::embed_colors(points.clone(), palette.clone(), table(v))),
        |v| flat(table(v).index_select(0, indices.clone())),
    );
}

/// Images of two sizes, with and without tokens before their maps.
#[test]
fn rotary() {
    for (heads, half, maps) in
        [(1, 1, vec![(1, [1, 1], 0)]), (2, 3, vec![(2, [2, 3], 1), (1, [1, 2], 1)])]
    {
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map, prefix)| Segment { images, map, prefix }).collect();
        let rows: usize = ops::tokens_per_image(&segments).iter().sum();
        let width = 6 * half * heads;
        let angles = segments.iter().enumerate().map(|(stream, segment)| {
            let tokens = segment.tokens();
            let angles = hashed_times(stream as u32 + 4, tokens * half, 3.0);
            let [cosines, sines] =
                [f32::cos, f32::sin].map(|of| angles.iter().map(|&angle| of(angle)).collect());
            Arc::new(RotaryAngles { tokens, cosines, sines })
        });
        let angles: Vec<Arc<RotaryAngles>> = angles.collect();
        let qkv = |v: &[Tensor]| v[0].clone().reshape([rows, width]);
        check_both(
            &format!("maps {maps:?}"),
            &[hashed(1, rows * width)],
            |v| flat(ops::rotary(qkv(v), &segments, &angles)),
            |v| flat(composed::rotary(qkv(v), &segments, &angles)),
        );
    }
}

#[test]
fn swiglu() {
    for [rows, half] in [[1, 1], [5, 3], [18, 37]] {
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, 2 * half]);
        check_both(
            "swiglu",
            &[hashed_times(1, rows * 2 * half, 3.0)],
            |v| flat(ops::swiglu(x(v))),
            |v| flat(composed::swiglu(x(v))),
        );
    }
}

/// Windows whose padding is seen, windows with those around them at every kind of border after some
/// tokens, and whole images; two sizes at once, with and without biases, of joint and of separate
/// projections.
#[test]
fn gathered_attention() {
    let padded = |map: [usize; 2], window| {
        let of_map = WindowMap::new(map, window, 0);
        let of_padded = WindowMap::new(of_map.grid.map(|count| count * window), window, 0);
        let (tokens, padded) = (of_map.tokens(), of_padded.tokens());
        let table = GroupTable {
            queries: window * window,
            keys: window * window,
            query_row: of_padded.slot_token.clone(),
            context_row: of_map.slot_token,
            key_row: of_padded.slot_token,
            hidden: Vec::new(),
        };
        let rows = ImageRows { queries: padded, keys: padded, context: tokens };
        AttentionGroups::new(rows, vec![table])
    };
    let near =
        |map, neighbors, border, prefix| NeighborMap::new(map, 2, neighbors, border).groups(prefix);
    let cases = [
        (1, 3, false, vec![(1, padded([1, 1], 1))]),
        (2, 3, false, vec![(2, padded([3, 5], 2)), (1, padded([2, 2], 2))]),
        (2, 2, true, vec![(1, AttentionGroups::whole(5)), (2, AttentionGroups::whole(3))]),
        (2, 3, true, vec![(2, near([3, 4], Neighbors::All, Border::Closed, 1))]),
        (1, 3, false, vec![(1, near([3, 4], Neighbors::One(2), Border::Closed, 0))]),
        (2, 2, true, vec![(1, near([3, 3], Neighbors::All, Border::Cyclic, 2))]),
        (2, 2, true, vec![(1, near([5, 3], Neighbors::All, Border::Sliding, 1))]),
    ];
    for (heads, head_dim, has_bias, segments) in cases {
        let segments: Vec<(usize, Arc<AttentionGroups>)> =
            segments.into_iter().map(|(images, groups)| (images, Arc::new(groups))).collect();
        let (width, what) = (heads * head_dim, format!("{segments:?}"));
        let count = |of: fn(ImageRows) -> usize| -> usize {
            segments.iter().map(|(images, groups)| images * of(groups.rows())).sum()
        };
        let [queries, keys] = [count(|rows| rows.queries), count(|rows| rows.keys)];
        let tables = || segments.iter().flat_map(|(_, groups)| groups.tables());
        let sizes = tables().filter(|_| has_bias).map(|t| [heads, t.queries, t.keys]);
        let sizes: Vec<[usize; 3]> = sizes.collect();
        let biases = |v: &[Tensor]| -> Vec<Tensor> {
            v.iter().zip(&sizes).map(|(bias, &size)| bias.clone().reshape(size)).collect()
        };
        let of_biases =
            sizes.iter().zip(10..).map(|(size, seed)| hashed(seed, size.iter().product()));
        let of_biases: Vec<Vec<f32>> = of_biases.collect();
        let scale = 0.8;
        let by_kernels = |projections: Projections, biases: Vec<Tensor>| {
            let (segments, f32) = (segments.clone(), Precision::F32);
            flat(ops::gathered_attention(projections, segments, biases, heads, scale, f32))
        };
        let composed = |q: Tensor, kv: Tensor, biases: Vec<Tensor>| {
            flat(composed::gathered_attention(q, kv, &segments, &biases, heads, scale))
        };

        let mut data = vec![hashed_times(1, queries * width, 2.0), hashed(2, keys * 2 * width)];
        data.extend(of_biases.clone());
        let q = |v: &[Tensor]| v[0].clone().reshape([queries, width]);
        let kv = |v: &[Tensor]| v[1].clone().reshape([keys, 2 * width]);
        check_both(
            &format!("separate, {what}"),
            &data,
            |v| by_kernels(Projections::Separate { q: q(v), kv: kv(v) }, biases(&v[2..])),
            |v| composed(q(v), kv(v), biases(&v[2..])),
        );

        let mut data = vec![hashed_times(1, queries * 3 * width, 2.0)];
        data.extend(of_biases);
        let qkv = |v: &[Tensor]| v[0].clone().reshape([queries, 3 * width]);
        check_both(
            &format!("joint, {what}"),
            &data,
            |v| by_kernels(Projections::Joint(qkv(v)), biases(&v[1..])),
            |v| {
                let kv = qkv(v).narrow(1, width, 2 * width);
                composed(qkv(v).narrow(1, 0, width), kv, biases(&v[1..]))
            },
        );
    }
}

#[test]
fn depthwise() {
    for (images, map, channels, side) in
        [(1, [1, 1], 1, 3), (2, [4, 3], 5, 3), (1, [2, 5], 17, 5), (2, [3, 3], 2, 1)]
    {
        let segment = Segment::new(images, map);
        let rows = images * segment.tokens();
        let data = [hashed(1, rows * channels), hashed(2, side * side * channels)];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, channels]);
        let weight = |v: &[Tensor]| v[1].clone().reshape([side, side, channels]);
        check_both(
            "depthwise",
            &data,
            |v| flat(ops::depthwise(x(v), segment, weight(v), Precision::F32)),
            |v| flat(composed::depthwise(x(v), segment, weight(v))),
        );
    }
}

#[test]
fn l2_normalize() {
    for [rows, channels] in [[1, 2], [3, 5], [4, 1]] {
        check_gradients("l2_normalize", &[hashed(1, rows * channels)], |v| {
            flat(ops::l2_normalize(v[0].clone().reshape([rows, channels])))
        });
    }
}

/// Far below the smallest norm that counts the function is linear: a row of zeros has a gradient.
#[test]
fn l2_normalize_of_zeros() {
    let tape = Tape::new();
    let zeros = tape.watch(Tensor::zeros([1, 3], &Device::Cpu));
    let gradients = tape.backward(&ops::l2_normalize(zeros.clone()).sum());
    let gradient = gradients.of(&zeros).unwrap().to_vec::<f32>();
    assert!(gradient.iter().all(|g| (g * 1e-12 - 1.0).abs() < 1e-6), "{gradient:?}");
}

#[test]
fn global_average_pool() {
    for images in [vec![1], vec![2, 2, 5], vec![4, 1]] {
        let rows: usize = images.iter().sum();
        check_gradients("global_average_pool", &[hashed(1, rows * 3)], |v| {
            flat(ops::global_average_pool(v[0].clone().reshape([rows, 3]), &images))
        });
    }
}

/// The values of a branch's parameters from a list of vectors.
fn norm_values(v: &[Tensor]) -> NormValues {
    NormValues { gamma: v[0].clone(), beta: v[1].clone(), eps: 1e-6 }
}

fn linear_values(v: &[Tensor], inputs: usize) -> LinearValues {
    let outputs = v[1].shape()[0];
    LinearValues { weight: v[0].clone().reshape([outputs, inputs]), bias: v[1].clone() }
}

/// Scales of a branch for a number of images: some dropped, some larger.
fn scales(images: usize) -> Scales {
    Some((0..images).map(|image| [1.25, 0.0, 1.0][image % 3]).collect())
}

/// With and without shift and padding, maps of two sizes at once, images dropped and not.
#[test]
fn attention_branch() {
    const HEADS: usize = 2;
    for (head_dim, maps, window, shift) in [
        (3, vec![(2, [4, 4])], 2, 0),
        (3, vec![(2, [4, 4]), (1, [2, 2])], 2, 1),
        (3, vec![(4, [3, 3])], 3, 0),
        (3, vec![(2, [5, 3]), (3, [1, 2])], 2, 1),
        (3, vec![(2, [3, 5])], 4, 2),
        (3, vec![(2, [1, 1])], 1, 0),
        (20, vec![(1, [9, 5]), (1, [3, 3])], 7, 3),
    ] {
        let width = HEADS * head_dim;
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map)| Segment::new(images, map)).collect();
        let windows: Vec<Arc<WindowMap>> = segments
            .iter()
            .map(|segment| Arc::new(WindowMap::new(segment.map, window, shift)))
            .collect();
        let images = ops::tokens_per_image(&segments);
        let (rows, table) = (images.iter().sum::<usize>(), (2 * window - 1).pow(2));
        let small = (width as f64).powf(-0.5);
        let data = [
            hashed_times(1, rows * width, 2.0),
            hashed(2, width),
            hashed(3, width),
            hashed_times(4, 3 * width * width, small),
            hashed(5, 3 * width),
            hashed(6, table * HEADS),
            hashed_times(7, width * width, small),
            hashed(8, width),
        ];
        for (scales, activation_checkpointing) in [(None, true), (scales(images.len()), false)] {
            let compute = || Compute { activation_checkpointing, ..Compute::default() };
            let arguments = |v: &[Tensor]| {
                let x = v[0].clone().reshape([rows, width]);
                let layers = AttentionValues {
                    norm: norm_values(&v[1..]),
                    qkv: linear_values(&v[3..], width),
                    proj: linear_values(&v[6..], width),
                    table: v[5].clone().reshape([table, HEADS]),
                };
                (x, layers)
            };
            let what = format!("maps {maps:?}, window {window}, shift {shift}");
            let by_kernels = |v: &[Tensor]| {
                let (x, layers) = arguments(v);
                let scales = scales.clone();
                flat(ops::attention_branch(x, &segments, &windows, layers, scales, compute()))
            };
            let composed = |v: &[Tensor]| {
                let (x, layers) = arguments(v);
                let scales = scales.clone();
                flat(composed::attention_branch(x, &segments, &windows, layers, scales))
            };
            check_both(&what, &data, by_kernels, composed);
        }
    }
}

/// Images of several sizes, dropped and not.
#[test]
fn plain_attention_branch() {
    for (heads, head_dim, images) in [(1, 3, vec![1]), (2, 3, vec![5, 5, 2]), (3, 4, vec![17, 9])] {
        let (width, rows) = (heads * head_dim, images.iter().sum::<usize>());
        let small = (width as f64).powf(-0.5);
        let data = [
            hashed_times(1, rows * width, 2.0),
            hashed(2, width),
            hashed(3, width),
            hashed_times(4, 3 * width * width, small),
            hashed(5, 3 * width),
            hashed_times(6, width * width, small),
            hashed(7, width),
        ];
        let x = |v: &[Tensor]| v[0].clone().reshape([rows, width]);
        let layers = |v: &[Tensor]| [3, 5].map(|at| linear_values(&v[at..], width));
        for (scales, activation_checkpointing) in [(None, true), (scales(images.len()), false)] {
            let compute = || Compute { activation_checkpointing, ..Compute::default() };
            let by_kernels = |v: &[Tensor]| {
                let (norm, scales) = (norm_values(&v[1..]), scales.clone());
                flat(ops::plain_attention_branch(
                    x(v),
                    &images,
                    heads,
                    norm,
                    layers(v),
                    scales,
                    compute(),
                ))
            };
            let composed = |v: &[Tensor]| {
                let (norm, scales) = (norm_values(&v[1..]), scales.clone());
                let layers = layers(v);
                flat(composed::plain_attention_branch(x(v), &images, heads, norm, layers, scales))
            };
            check_both(&format!("images {images:?}"), &data, by_kernels, composed);
        }
    }
}

#[test]
fn mlp_branch() {
    for (width, hidden, maps) in [
        (1, 1, vec![(1, [1, 1])]),
        (5, 11, vec![(2, [2, 1]), (2, [3, 2])]),
        (9, 70, vec![(3, [3, 3])]),
    ] {
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map)| Segment::new(images, map)).collect();
        let images = ops::tokens_per_image(&segments);
        let rows: usize = images.iter().sum();
        let data = [
            hashed_times(1, rows * width, 2.0),
            hashed(2, width),
            hashed(3, width),
            hashed(4, hidden * width),
            hashed(5, hidden),
            hashed(6, hidden * width),
            hashed(7, width),
        ];
        for (activation, scales, activation_checkpointing) in [
            (Activation::Gelu, None, true),
            (Activation::Gelu, scales(images.len()), false),
            (Activation::QuickGelu, None, false),
        ] {
            let compute = || Compute { activation_checkpointing, ..Compute::default() };
            let arguments = |v: &[Tensor]| {
                let x = v[0].clone().reshape([rows, width]);
                let layers = [linear_values(&v[3..], width), linear_values(&v[5..], hidden)];
                (x, norm_values(&v[1..]), layers)
            };
            let by_kernels = |v: &[Tensor]| {
                let (x, norm, layers) = arguments(v);
                let scales = scales.clone();
                flat(ops::mlp_branch(x, &segments, norm, layers, activation, scales, compute()))
            };
            let composed = |v: &[Tensor]| {
                let (x, norm, layers) = arguments(v);
                let scales = scales.clone();
                flat(composed::mlp_branch(x, &segments, norm, layers, activation, scales))
            };
            check_both(&format!("{width}, {hidden}, {maps:?}"), &data, by_kernels, composed);
        }
    }
}

#[test]
fn merge_patches() {
    for maps in [vec![(2, [4, 4])], vec![(1, [3, 5]), (2, [2, 3])], vec![(2, [1, 1])]] {
        let segments: Vec<Segment> =
            maps.iter().map(|&(images, map)| Segment::new(images, map)).collect();
        let rows: usize = ops::tokens_per_image(&segments).iter().sum();
        let data =
            [hashed_times(1, rows * 3, 2.0), hashed(2, 12), hashed(3, 12), hashed(4, 5 * 12)];
        let arguments = |v: &[Tensor]| {
            let norm = [v[1].clone(), v[2].clone()];
            (v[0].clone().reshape([rows, 3]), norm, v[3].clone().reshape([5, 12]))
        };
        let by_kernels = |v: &[Tensor]| {
            let (x, norm, weight) = arguments(v);
            flat(ops::merge_patches(x, &segments, norm, weight, 1e-6, Precision::F32).0)
        };
        let composed = |v: &[Tensor]| {
            let (x, _, weight) = arguments(v);
            flat(composed::merge(x, &ops::merging_indices(&segments), norm_values(&v[1..]), weight))
        };
        check_both("merge_patches", &data, by_kernels, composed);
    }
}

#[test]
fn patchify() {
    for [height, width] in [[4, 4], [5, 7], [2, 3]] {
        let x = |v: &[Tensor]| v[0].clone().reshape([2, 3, height, width]);
        check_both(
            "patches",
            &[hashed(1, 2 * 3 * height * width)],
            |v| flat(ops::patchify(x(v), 2).0),
            |v| flat(composed::patchify(x(v), 2)),
        );
    }
}

/// Targets that do not sum to 1, rows without a target, and lengths other than 1.
#[test]
fn prototype_cross_entropy() {
    for [rows, teachers, prototypes, width] in [[1, 1, 2, 3], [4, 2, 5, 4], [6, 4, 37, 5]] {
        let mut pairs = Pairs::new();
        for row in 0..rows {
            pairs.push((0..row % 3).map(|i| ((row + i) % teachers, 0.2 + 0.1 * i as f32)));
        }
        if rows == 1 {
            pairs = Pairs::new();
            pairs.push([(0, 0.7)]);
        }
        let teacher_rows = TeacherRows::new(&pairs, &Device::Cpu);
        let lengths: Vec<f32> = hashed(3, prototypes).iter().map(|g| 1.0 + 0.3 * g).collect();
        let data = [hashed(1, rows * width), hashed(2, prototypes * width), lengths];
        let teacher = || PrototypeLogits {
            z: hashed_tensor(4, [teachers, width]),
            v: hashed_tensor(5, [prototypes, width]),
            g: hashed_tensor(6, [prototypes]) * 0.2 + 1.0,
        };
        let student = |v: &[Tensor]| PrototypeLogits {
            z: v[0].clone().reshape([rows, width]),
            v: v[1].clone().reshape([prototypes, width]),
            g: v[2].clone(),
        };
        let center = || hashed_tensor(7, [prototypes]) * 0.1;
        let temperatures = [0.7, 0.4];
        check_both(
            "prototype_cross_entropy",
            &data,
            |v| {
                let (pairs, f32) = (teacher_rows.clone(), Precision::F32);
                let (student, teacher) = (student(v), teacher());
                ops::prototype_cross_entropy(student, teacher, center(), pairs, temperatures, f32)
            },
            |v| {
                let f64 = |x: Tensor| x.to_dtype(Dtype::F64);
                let PrototypeLogits { z, v: directions, g } = teacher();
                let teacher = PrototypeLogits { z: f64(z), v: f64(directions), g: f64(g) };
                let center = f64(center());
                composed::cross_entropy(student(v), teacher, center, &pairs, temperatures)
            },
        );
    }
}

#[test]
fn info_nce() {
    for [rows, negatives, width] in [[1, 1, 2], [4, 9, 5], [6, 70, 3]] {
        let unit =
            |stream: u32, count: usize| ops::l2_normalize(hashed_tensor(stream, [count, width]));
        for temperature in [1.0, 0.5] {
            let queries = |v: &[Tensor]| v[0].clone().reshape([rows, width]);
            check_both(
                "info_nce",
                &[hashed(1, rows * width)],
                |v| ops::info_nce(queries(v), unit(2, rows), unit(3, negatives), temperature),
                |v| {
                    let f64 = |x: Tensor| x.to_dtype(Dtype::F64);
                    let (positives, negatives) = (f64(unit(2, rows)), f64(unit(3, negatives)));
                    composed::info_nce(queries(v), positives, negatives, temperature)
                },
            );
        }
    }
}

/// Checks an operation's result and gradients against its composed form in f64, and its gradients
/// by finite differences.
fn check_both(
    what: &str,
    data: &[Vec<f32>],
    by_kernels: impl Fn(&[Tensor]) -> Tensor,
    composed: impl Fn(&[Tensor]) -> Tensor,
) {
    check_composed(what, data, &by_kernels, composed);
    check_gradients(what, data, by_kernels);
}

/// The same without finite differences, which cross the kinks of ReLU.
fn check_composed(
    what: &str,
    data: &[Vec<f32>],
    by_kernels: impl Fn(&[Tensor]) -> Tensor,
    composed: impl Fn(&[Tensor]) -> Tensor,
) {
    let inputs = |tape: &Tape| -> Vec<Tensor> {
        let inputs = data.iter().map(|values| Tensor::from_vec(values.clone(), &Device::Cpu));
        inputs.map(|input| tape.watch(input)).collect()
    };
    let projected = |output: &Tensor| {
        let projection = Tensor::from_vec(hashed(7000, output.numel()), &Device::Cpu);
        (output.clone() * projection).sum()
    };
    let tape = Tape::new();
    let fused = inputs(&tape);
    let output = by_kernels(&fused);
    let gradients = tape.backward(&projected(&output));
    // On a tape of its own, in f64.
    let tape = Tape::new();
    let leaves = inputs(&tape);
    let in_f64: Vec<Tensor> = leaves.iter().map(|leaf| leaf.clone().to_dtype(Dtype::F64)).collect();
    let expected = composed(&in_f64).to_dtype(Dtype::F32);
    let expected_gradients = tape.backward(&projected(&expected));
    assert_alike(what, &output.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-5);
    for (number, (fused, leaf)) in fused.iter().zip(&leaves).enumerate() {
        let [found, expected] = [gradients.of(fused), expected_gradients.of(leaf)]
            .map(|gradient| gradient.unwrap().to_vec::<f32>());
        // A gradient that is zero but for rounding has no scale of its own.
        let largest = expected.iter().fold(0f32, |largest, g| g.abs().max(largest));
        let tolerance = 2e-5 * (f64::from(largest) + 0.1) / f64::from(largest.max(1e-30));
        assert_alike(&format!("{what}, gradient {number}"), &found, &expected, tolerance);
    }
}

/// Checks a network's gradients with respect to `x` and all its trained parameters.
fn check_network(
    what: &str,
    x: Vec<f32>,
    start: &Params,
    forward: impl Fn(&Params, Tensor) -> Tensor,
) {
    let mut inputs = vec![x];
    let trained = start.iter().filter(|(spec, _)| spec.role == Role::Trained);
    inputs.extend(trained.map(|(_, value)| value.to_vec::<f32>()));
    check_gradients(what, &inputs, |values| {
        let mut values = values.iter().cloned();
        let x = values.next().unwrap();
        let params = start.with_trained(values.collect());
        forward(&params, x)
    });
}

/// The head down to the prototypes' lengths and directions, of every depth, plain and with batch
/// normalization by the batch's and by the running statistics.
#[test]
fn head() {
    const ROWS: usize = 9;
    for (layers, use_bn_in_head, training) in
        [(1, false, true), (2, false, true), (3, false, true), (3, true, true), (3, true, false)]
    {
        let config = HeadConfig {
            out_dim: 7,
            hidden_dim: 6,
            bottleneck_dim: 5,
            layers,
            use_bn_in_head,
            norm_last_layer: false,
        };
        let mut registry = Registry::default();
        let head = Head::new(&mut registry.root(), 4, &config);
        let mut params = fill(&registry.finish(), 10);
        let specs = params.specs().clone();
        for (index, spec) in specs.iter().enumerate() {
            // Lengths, and running means and variances, that are not all alike.
            if spec.name.ends_with("weight_g") || spec.role == Role::Buffer {
                let value = params.value(index) + hashed_tensor(5, [spec.len()]) * 0.3;
                params.set(index, &value.to_vec());
            }
        }
        let what = format!("{layers} layers, batch norm {use_bn_in_head}, training {training}");
        check_network(&what, hashed_times(1, ROWS * 4, 2.0), &params, |params, x| {
            let pass = if training { ForwardCtx::teacher() } else { ForwardCtx::eval() };
            flat(head.forward(params, x.reshape([ROWS, 4]), &pass).matrix())
        });
    }
}

/// Two stages with shift, padding, an odd map in patch merging, pixels cut off, and drop-path.
#[test]
fn swin() {
    let config = SwinConfig { img_size: 16, patch_size: 2, depths: vec![2, 1], ..tiny_swin() };
    config.validate().unwrap();
    let (swin, list) = BackboneConfig::Swin(config).build(0.5);
    let params = fill(&list, 0);
    let pixels = hashed_times(1000, 2 * 3 * 11 * 14, 3f64.sqrt());
    for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
        check_network("swin", pixels.clone(), &params, |params, x| {
            let features = swin.forward(params, x.reshape([2, 3, 11, 14]), &pass());
            assert_eq!(features.map, [3, 4]);
            Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
        });
    }
}

/// Three stages with reduced maps, pixels cut off, resized position tables, and drop-path.
#[test]
fn pvt() {
    let config = PvtConfig { depths: vec![1, 1, 1], ..tiny_pvt() };
    let (pvt, list) = BackboneConfig::Pvt(config).build(0.5);
    let params = fill(&list, 0);
    let pixels = hashed_times(1000, 2 * 3 * 17 * 34, 3f64.sqrt());
    for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
        check_network("pvt", pixels.clone(), &params, |params, x| {
            let features = pvt.forward(params, x.reshape([2, 3, 17, 34]), &pass());
            assert_eq!(features.map, [1, 2]);
            Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
        });
    }
}

/// Two kinds of positions, MLPs, norms and biases, tokens before a map, pixels cut off, and drop-path.
#[test]
fn vit() {
    let gated = VitConfig { mlp: MlpKind::SwiGlu, layer_scale: true, ..tiny_vit() };
    let turned = VitConfig {
        position_table: PositionTable::Rotary,
        qkv_bias: QkvBias::QueriesAndValues,
        register_tokens: 2,
        ..tiny_vit()
    };
    let normed = VitConfig {
        position_table: PositionTable::SineCosine,
        patch_embedding: PatchEmbedding::Frozen,
        mlp_norm: MlpNorm::BatchNorm,
        ..tiny_vit()
    };
    for config in [gated, turned, normed] {
        // Norms that vary slowly over the steps of finite differences.
        let config = VitConfig { norm_eps: 0.1, patch_size: 4, ..config };
        config.validate().unwrap();
        let what = format!("{config:?}");
        let (vit, list) = BackboneConfig::Vit(config).build(0.5);
        let params = fill(&list, 0);
        let pixels = hashed_times(1000, 2 * 3 * 9 * 12, 3f64.sqrt());
        for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
            check_network(&what, pixels.clone(), &params, |params, x| {
                let features = vit.forward(params, x.reshape([2, 3, 9, 12]), &pass());
                assert_eq!(features.map, [2, 3]);
                Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
            });
        }
    }
}

/// Windows with relative positions, drawn neighbors in training, full attention with resized biases, absolute
/// positions, global tokens, pixels cut off, and drop-path.
#[test]
fn vil() {
    type Case = (&'static str, fn() -> ForwardCtx);
    let cases: [Case; 2] = [
        ("l1,h2,d8,n1,s1,g1,p2,f3,a0_l2,h2,d8,n1,s0,g2,p2,a0_l3,h2,d8,n1,g0,p2,a0", || {
            ForwardCtx::student(KEY)
        }),
        (
            "l1,h2,d8,n1,s1,g1,p2,f2,a1_l2,h1,d4,n1,s1,g0,p2,f2,a0_l3,h1,d4,n1,s0,g1,p2,a1",
            ForwardCtx::eval,
        ),
    ];
    for (stages, pass) in cases {
        let config = VilConfig {
            img_size: 16,
            stages: stages.parse().unwrap(),
            mode: 1,
            fixed_neighbor: false,
            exact: 0,
            bias_resize: BiasResize::Pairs,
            // Norms that vary slowly over the steps of finite differences.
            norm_eps: 0.1,
        };
        config.validate().unwrap();
        let (vil, list) = BackboneConfig::Vil(config).build(0.5);
        let params = fill(&list, 0);
        let pixels = hashed_times(1000, 2 * 3 * 9 * 16, 3f64.sqrt());
        check_network("vil", pixels, &params, |params, x| {
            let features = vil.forward(params, x.reshape([2, 3, 9, 16]), &pass());
            assert_eq!(features.map, [1, 2]);
            Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
        });
    }
}

/// Overlapping patches, padded windows, running statistics and those of the batch, and drop-path.
#[test]
fn cvt() {
    let config = CvtConfig { norm_eps: 1e-3, ..tiny_cvt() };
    config.validate().unwrap();
    let (cvt, list) = BackboneConfig::Cvt(config).build(0.5);
    let params = fill(&list, 0);
    let pixels = hashed_times(1000, 2 * 3 * 15 * 22, 3f64.sqrt());
    for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
        check_network("cvt", pixels.clone(), &params, |params, x| {
            let features = cvt.forward(params, x.reshape([2, 3, 15, 22]), &pass());
            assert_eq!(features.map, [2, 3]);
            Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
        });
    }
}

/// Both kinds of attention, resized positions, and drop-path. Colors are chosen by pixels, which have no
/// gradient.
#[test]
fn image_gpt() {
    for variant in [Variant::Autoregressive, Variant::Bert] {
        // Norms that vary slowly over the steps of finite differences.
        let config =
            IgptConfig { variant, norm_eps: 0.1, depth: 2, feature_block: 1, ..tiny_igpt() };
        config.validate().unwrap();
        let (igpt, list) = BackboneConfig::Igpt(config).build(0.5);
        let params = fill(&list, 0);
        let images = hashed_tensor(1000, [2, 3, 4, 7]);
        for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
            check_network("igpt", vec![1.0], &params, |params, x| {
                let features = igpt.forward(params, images.clone(), &pass());
                assert_eq!(features.map, [2, 3]);
                Tensor::cat(vec![flat(features.view) * x, flat(features.region)], 0)
            });
        }
    }
}

/// The token in place of masked ones, and the pixels around them.
#[test]
fn masked_swin() {
    let config = SwinConfig { img_size: 16, patch_size: 2, depths: vec![1, 1], ..tiny_swin() };
    let (width, pixels) = (config.embed_dim, 2 * 3 * 8 * 8);
    let (swin, list) = BackboneConfig::Swin(config).build(0.0);
    let params = fill(&list, 0);
    let rows = (0..32).map(|token| f32::from(u8::from(token % 3 == 0))).collect();
    let rows = Tensor::from_vec(rows, &Device::Cpu);
    let data = hashed_times(1000, pixels + width, 3f64.sqrt());
    check_network("masked swin", data, &params, |params, x| {
        let images = x.clone().narrow(0, 0, pixels).reshape([2, 3, 8, 8]);
        let mask = TokenMask { rows: rows.clone(), token: x.narrow(0, pixels, width) };
        let input = Input { images: vec![images], mask: Some(&mask) };
        let features = swin.features(params, input, &ForwardCtx::eval());
        Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
    });
}

/// A share of the samples is dropped, and the others are scaled so that the mean stays.
#[test]
fn drop_path_drops_its_share() {
    const SAMPLES: usize = 20_000;
    for rate in [0.1, 0.5, 0.9] {
        let pass = ForwardCtx::student(KEY);
        let scales = pass.drop_path(SAMPLES, rate, 0).unwrap();
        let kept = (1.0 / (1.0 - rate)) as f32;
        assert!(scales.iter().all(|&scale| scale == 0.0 || scale == kept));
        let dropped = scales.iter().filter(|&&scale| scale == 0.0).count() as f64;
        // Five standard deviations of a binomial share.
        let tolerance = 5.0 * (rate * (1.0 - rate) / SAMPLES as f64).sqrt();
        assert!((dropped / SAMPLES as f64 - rate).abs() <= tolerance, "{rate}: {dropped}");

        let another_branch = pass.drop_path(SAMPLES, rate, 1).unwrap();
        assert_ne!(another_branch, scales, "branches are drawn separately");
        let another_step = ForwardCtx::student(DropPathKey { step: 6, ..KEY });
        assert_ne!(another_step.drop_path(SAMPLES, rate, 0).unwrap(), scales);
        for pass in [ForwardCtx::eval(), ForwardCtx::teacher()] {
            assert!(pass.drop_path(SAMPLES, rate, 0).is_none());
        }
    }
    assert!(ForwardCtx::student(KEY).drop_path(SAMPLES, 0.0, 0).is_none());
}
