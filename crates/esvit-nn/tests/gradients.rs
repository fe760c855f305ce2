//! Gradients of every operation and layer against finite differences, and drop-path.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use common::{check_gradients, fill, hashed, hashed_times};
use esvit_nn::head::{Head, HeadConfig};
use esvit_nn::ops::{self, WindowMap};
use esvit_nn::params::{Params, Registry, Role, tensor};
use esvit_nn::pass::DropPathKey;
use esvit_nn::weights::to_vec;
use esvit_nn::{Pass, Swin, SwinConfig};

const KEY: DropPathKey = DropPathKey { seed: 3, step: 5, pass: 1 };

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let len = tensor.shape().num_elements();
    tensor.reshape([len])
}

#[test]
fn linear() {
    for [rows, inputs, outputs] in [[1, 1, 1], [5, 3, 7], [4, 6, 2], [10, 37, 19]] {
        let data = [hashed(1, 2 * rows * inputs), hashed(2, outputs * inputs), hashed(3, outputs)];
        let apply = |v: &[Tensor<1>]| {
            let x = v[0].clone().reshape([2, rows, inputs]);
            let weight = v[1].clone().reshape([outputs, inputs]);
            flat(ops::linear(x, weight, v.get(2).cloned()))
        };
        check_gradients("with bias", &data, apply);
        check_gradients("without bias", &data[..2], apply);
    }
}

#[test]
fn layer_norm() {
    for [rows, channels] in [[1, 3], [3, 5], [4, 8], [18, 37]] {
        // Twice the size, so that the variance is well above the step.
        let data =
            [hashed_times(1, rows * channels, 2.0), hashed(2, channels), hashed(3, channels)];
        check_gradients("layer_norm", &data, |v| {
            let x = v[0].clone().reshape([rows, channels]);
            flat(ops::layer_norm(x, v[1].clone(), v[2].clone(), 1e-6))
        });
    }
}

#[test]
fn gelu() {
    check_gradients("gelu", &[hashed_times(1, 45, 4.0)], |v| ops::gelu(v[0].clone()));
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
    let zeros: Tensor<2> = Tensor::zeros([1, 3], &Device::flex()).autodiff().require_grad();
    let gradients = ops::l2_normalize(zeros.clone()).sum().backward();
    let gradient = to_vec(&zeros.grad(&gradients).unwrap());
    assert!(gradient.iter().all(|g| (g * 1e-12 - 1.0).abs() < 1e-6), "{gradient:?}");
}

/// With and without shift and padding; gradients of the product, of its bias (which padding tokens
/// consist of) and of the table.
#[test]
fn window_attention() {
    const HEADS: usize = 2;
    for (batch, head_dim, map, window, shift) in [
        (2, 3, [4, 4], 2, 0),
        (2, 3, [4, 4], 2, 1),
        (2, 3, [3, 3], 3, 0),
        (2, 3, [5, 3], 2, 1),
        (2, 3, [3, 5], 4, 2),
        (2, 3, [1, 2], 3, 1),
        (2, 3, [1, 1], 1, 0),
        (5, 20, [9, 5], 7, 3),
    ] {
        let width = HEADS * head_dim;
        let windows = Arc::new(WindowMap::new(map, window, shift));
        let rows = (2 * window - 1).pow(2);
        let data = [
            hashed_times(1, batch * windows.tokens() * 3 * width, 2.0),
            hashed(2, 3 * width),
            hashed(3, rows * HEADS),
        ];
        let what = format!("map {map:?}, window {window}, shift {shift}");
        check_gradients(&what, &data, |v| {
            let qkv = v[0].clone().reshape([batch, windows.tokens(), 3 * width]);
            let table = v[2].clone().reshape([rows, HEADS]);
            flat(ops::window_attention(qkv, v[1].clone(), table, &windows))
        });
    }
}

#[test]
fn merge_patches() {
    for [height, width] in [[4, 4], [3, 5], [2, 3], [1, 1]] {
        check_gradients("merge_patches", &[hashed(1, 2 * height * width * 3)], |v| {
            let tokens = v[0].clone().reshape([2, height * width, 3]);
            flat(ops::merge_patches(tokens, [height, width]).0)
        });
    }
}

#[test]
fn patches() {
    for [height, width] in [[4, 4], [5, 7], [2, 3]] {
        check_gradients("patches", &[hashed(1, 2 * 3 * height * width)], |v| {
            flat(ops::patches(v[0].clone().reshape([2, 3, height, width]), 2).0)
        });
    }
}

/// Targets that do not sum to 1, and a weight of zero among those of the rows.
#[test]
fn soft_cross_entropy() {
    for ([rows, prototypes], temperature) in
        [([1, 2], 1.0), ([4, 5], 0.5), ([3, 7], 2.0), ([3, 37], 1.0), ([18, 2], 1.0)]
    {
        // The sum stays small: its rounding is what limits the differences.
        let targets = hashed(2, rows * prototypes);
        let targets: Vec<f32> = targets.iter().map(|t| 5.0 * t.abs() / prototypes as f32).collect();
        let weights: Vec<f32> = (0..rows).map(|row| ((row + 1) % 3) as f32).collect();
        check_gradients("soft_cross_entropy", &[hashed(1, rows * prototypes)], |v| {
            let logits = v[0].clone().reshape([rows, prototypes]);
            let targets = tensor(targets.clone(), [rows, prototypes], &Device::flex());
            ops::soft_cross_entropy(logits, targets, weights.clone(), temperature)
        });
    }
}

/// Checks a network's gradients with respect to `x` and all its trained parameters.
fn check_network(
    what: &str,
    x: Vec<f32>,
    start: &Params,
    forward: impl Fn(&Params, Tensor<1>) -> Tensor<1>,
) {
    let mut inputs = vec![x];
    let trained = start.iter().filter(|(spec, _)| spec.role == Role::Trained);
    inputs.extend(trained.map(|(_, value)| to_vec(value)));
    check_gradients(what, &inputs, |values| {
        let mut values = values.iter().cloned();
        let x = values.next().unwrap();
        let mut params = start.clone();
        for (spec, value) in start.specs().iter().zip(params.values_mut()) {
            if spec.role == Role::Trained {
                *value = values.next().unwrap();
            } else if x.device().is_autodiff() {
                *value = value.clone().autodiff();
            }
        }
        forward(&params, x)
    });
}

/// The head down to the prototypes' lengths and directions, of every depth, plain and with batch
/// normalisation by the batch's and by the running statistics.
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
        for (spec, value) in specs.iter().zip(params.values_mut()) {
            // Lengths, and running means and variances, that are not all alike.
            if spec.name.ends_with("weight_g") || spec.role == Role::Buffer {
                *value = value.clone() + common::hashed_tensor(5, [spec.len()]) * 0.3;
            }
        }
        let what = format!("{layers} layers, batch norm {use_bn_in_head}, training {training}");
        check_network(&what, hashed_times(1, ROWS * 4, 2.0), &params, |params, x| {
            let pass = if training { Pass::teacher() } else { Pass::eval() };
            flat(head.forward(params, x.reshape([ROWS, 4]), &pass))
        });
    }
}

/// Two stages with shift, padding, an odd map in patch merging, pixels cut off, and drop-path.
#[test]
fn swin() {
    let config = SwinConfig {
        img_size: 16,
        patch_size: 2,
        embed_dim: 8,
        depths: vec![2, 1],
        num_heads: vec![1, 2],
        window_size: 4,
        mlp_ratio: 2.0,
    };
    config.validate().unwrap();
    let mut registry = Registry::default();
    let swin = Swin::new(&mut registry.root(), &config, 0.5);
    let params = fill(&registry.finish(), 0);
    let pixels = hashed_times(1000, 2 * 3 * 11 * 14, 3f64.sqrt());
    for pass in [Pass::eval, || Pass::student(KEY)] {
        check_network("swin", pixels.clone(), &params, |params, x| {
            let features = swin.forward(params, x.reshape([2, 3, 11, 14]), &pass());
            assert_eq!(features.map, [3, 4]);
            Tensor::cat(vec![flat(features.view), flat(features.region)], 0)
        });
    }
}

#[test]
fn drop_path() {
    check_gradients("drop_path", &[hashed(1, 6 * 2 * 3)], |v| {
        flat(Pass::student(KEY).drop_path(v[0].clone().reshape([6, 2, 3]), 0.4, 2))
    });
}

/// A share of the samples is dropped, whole, and the others are scaled so that the mean stays.
#[test]
fn drop_path_drops_its_share() {
    const SAMPLES: usize = 20_000;
    let ones = Tensor::ones([SAMPLES, 2, 1], &Device::flex());
    for rate in [0.0, 0.1, 0.5, 0.9] {
        let pass = Pass::student(KEY);
        let scales = to_vec(&pass.drop_path(ones.clone(), rate, 0));
        let kept = (1.0 / (1.0 - rate)) as f32;
        assert!(scales.chunks_exact(2).all(|s| s[0] == s[1] && (s[0] == 0.0 || s[0] == kept)));
        let dropped = scales.iter().filter(|&&scale| scale == 0.0).count() as f64 / 2.0;
        // Five standard deviations of a binomial share.
        let tolerance = 5.0 * (rate * (1.0 - rate) / SAMPLES as f64).sqrt();
        assert!((dropped / SAMPLES as f64 - rate).abs() <= tolerance, "{rate}: {dropped}");

        let another_branch = to_vec(&pass.drop_path(ones.clone(), rate, 1));
        assert_eq!(another_branch == scales, rate == 0.0, "branches are drawn separately");
        let another_step = Pass::student(DropPathKey { step: 6, ..KEY });
        assert_eq!(to_vec(&another_step.drop_path(ones.clone(), rate, 0)) == scales, rate == 0.0);
        for pass in [Pass::eval(), Pass::teacher()] {
            assert_eq!(to_vec(&pass.drop_path(ones.clone(), rate, 0)), to_vec(&ones));
        }
    }
}
