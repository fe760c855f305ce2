//! Tokens before a map: class, register and distillation tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};

use esvit_nn::backbone::{RowFeatures, TokenMaps};

use super::*;

/// Two images of 2 x 3 tokens and one of 1 x 2, each after `prefix` tokens.
fn segments(prefix: usize) -> Vec<Segment> {
    [(2, [2, 3]), (1, [1, 2])].map(|(n, map)| Segment { prefix, ..Segment::new(n, map) }).to_vec()
}

/// Whether each row is of a map.
fn is_map(prefix: usize) -> Vec<bool> {
    let image = |tokens| [vec![false; prefix], vec![true; tokens]].concat();
    [6, 6, 2].into_iter().flat_map(image).collect()
}

#[test]
fn features_are_those_of_the_maps() {
    for prefix in [0, 1, 5] {
        let is_map = is_map(prefix);
        assert_eq!(ops::tokens_per_image(&segments(prefix)), [6, 6, 2].map(|n| n + prefix));
        let rows = hashed_tensor(1, [is_map.len(), 4]);
        let tape = Tape::new();
        let watched = tape.watch(rows.clone());
        let maps = TokenMaps { rows: watched.clone(), segments: segments(prefix) };
        let features = RowFeatures::new(maps.means(), maps);
        assert_eq!(features.segments, segments(0));
        let values = rows.to_vec::<f32>();
        let kept = values.chunks(4).zip(&is_map).filter(|(_, is_map)| **is_map);
        let kept: Vec<f32> = kept.flat_map(|(row, _)| row.to_vec()).collect();
        assert_eq!(features.region.to_vec::<f32>(), kept);
        let alone = Tensor::new(kept, [14, 4], &Device::Cpu);
        let expected = ops::global_average_pool(alone, &[6, 6, 2]).to_vec::<f32>();
        assert_eq!(features.view.to_vec::<f32>(), expected);
        // A token of an image of 6 is in the region feature and for a sixth in the view feature.
        let gradients = tape.backward(&(features.region.sum() + features.view.sum()));
        let found = gradients.of(&watched).unwrap().to_vec::<f32>();
        for (row, (found, is_map)) in found.chunks(4).zip(&is_map).enumerate() {
            let share = if row < 2 * (6 + prefix) { 6.0 } else { 2.0 };
            let expected = if *is_map { 1.0 + 1.0 / share } else { 0.0 };
            assert!(found.iter().all(|g| (g - expected).abs() < 1e-6), "{prefix} {row}: {found:?}");
        }
    }
}

/// Every image's scale reaches its own rows.
#[test]
fn branches_take_prefix_tokens() {
    for prefix in [1, 5] {
        let segments = segments(prefix);
        let rows: usize = ops::tokens_per_image(&segments).iter().sum();
        let x = hashed_tensor(1, [rows, 4]);
        let norm = || {
            let [gamma, beta] = [2, 3].map(|i| Tensor::from_vec(hashed(i, 4), &Device::Cpu));
            NormValues { gamma, beta, eps: 1e-6 }
        };
        let layers = || {
            [(4, [8, 4]), (6, [4, 8])].map(|(stream, shape)| LinearValues {
                weight: hashed_tensor(stream, shape),
                bias: Tensor::from_vec(hashed(stream + 1, shape[0]), &Device::Cpu),
            })
        };
        let (gelu, scales) = (Activation::Gelu, Some(Arc::from([1.0, 0.0, 2.0])));
        let compute = Compute::default();
        let found = ops::mlp_branch(
            x.clone(),
            &segments,
            norm(),
            layers(),
            gelu,
            Option::clone(&scales),
            compute,
        );
        let expected = composed::mlp_branch(x, &segments, norm(), layers(), gelu, scales);
        assert_alike("mlp", &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-5);
    }
}

#[test]
fn operations_on_maps_refuse_prefix_tokens() {
    let segments = [Segment { prefix: 1, ..Segment::new(1, [2, 2]) }];
    let x = || hashed_tensor(1, [5, 4]);
    let vector = |len| Tensor::from_vec(hashed(2, len), &Device::Cpu);
    let windows = [Arc::new(WindowMap::new([2, 2], 2, 0))];
    let linear = |shape: [usize; 2]| LinearValues {
        weight: hashed_tensor(3, shape),
        bias: vector(shape[0]),
    };
    let layers = || AttentionValues {
        norm: NormValues { gamma: vector(4), beta: vector(4), eps: 1e-6 },
        qkv: linear([12, 4]),
        proj: linear([4, 4]),
        table: hashed_tensor(4, [9, 2]),
    };
    let (eps, precision) = (1e-6, Precision::F32);
    let attention = || {
        drop(ops::attention_branch(x(), &segments, &windows, layers(), None, Compute::default()))
    };
    let merging = || {
        let norm = [vector(16), vector(16)];
        let weight = hashed_tensor(5, [8, 16]);
        drop(ops::merge_patches(x(), &segments, norm, weight, eps, precision));
    };
    let depthwise =
        || drop(ops::depthwise(x(), segments[0], hashed_tensor(6, [3, 3, 4]), Precision::F32));
    let all: [(&str, &dyn Fn()); 3] = [
        ("attention in windows", &attention),
        ("patch merging", &merging),
        ("depthwise convolution", &depthwise),
    ];
    for (what, operation) in all {
        let panic = catch_unwind(AssertUnwindSafe(operation)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains(&format!("{what} is for maps without prefix")), "{message}");
    }
}
