//! What evaluation stores in bf16: rows between operations, where nothing learns.

use esvit_nn::ops::{AttentionGroups, BatchNormValues, Projections};
use esvit_nn::tensor::Dtype;
use esvit_testing::{tiny_cvt, tiny_vil};

use super::*;

fn in_f32(tensor: Tensor) -> Vec<f32> {
    tensor.to_dtype(Dtype::F32).to_vec()
}

fn in_bf16(tensor: Tensor) -> Vec<f32> {
    in_f32(tensor.to_dtype(Dtype::F32).to_dtype(Dtype::Bf16))
}

/// An operation on rows and a parameter.
type Operation<'a> = Box<dyn Fn(Tensor, Tensor) -> Tensor + 'a>;

/// Of rows in bf16 operations give what they give of the same rows in f32; what depends on a tape stays in f32
/// and has the same gradient.
#[test]
fn operations_on_stored_rows() {
    let compute = || Compute::from(Precision::Bf16);
    let segment = Segment::new(2, [3, 4]);
    let norm = || {
        let [gamma, beta, mean, variance] =
            [20, 21, 22, 23].map(|stream| hashed_tensor(stream, [6]));
        BatchNormValues::fixed([gamma, beta], [mean, variance.abs() + 0.2], 1e-3)
    };
    let (stored, wide) = (Dtype::Bf16, Dtype::F32);
    let bias = hashed_tensor(3, [5]);
    let cases: Vec<(&str, Dtype, Tensor, Operation<'_>)> = vec![
        (
            "linear_in_precision",
            stored,
            hashed_tensor(2, [5, 6]),
            Box::new(|x, weight| ops::linear_in_precision(x, weight, bias.clone(), compute())),
        ),
        (
            "linear",
            wide,
            hashed_tensor(2, [5, 6]),
            Box::new(|x, weight| ops::linear(x, weight, bias.clone(), Activation::Gelu, compute())),
        ),
        (
            "depthwise_batch_norm",
            stored,
            hashed_tensor(2, [3, 3, 6]),
            Box::new(|x, weight| {
                ops::depthwise_batch_norm(x, segment, weight, norm(), Precision::Bf16)
            }),
        ),
        (
            "convolution",
            wide,
            hashed_tensor(2, [5, 6, 2, 2]),
            Box::new(|x, weight| {
                ops::convolution(x, &[segment], weight, None, [2, 0], compute()).0
            }),
        ),
        (
            "cross_attention",
            stored,
            hashed_tensor(2, [14, 12]),
            Box::new(|q, kv| {
                let kv = if kv.is_tracked() { kv } else { kv.to_dtype(q.dtype()) };
                ops::cross_attention(q, kv, &[[12, 5], [12, 9]], 2, Precision::Bf16)
            }),
        ),
        (
            "gathered_attention",
            stored,
            hashed_tensor(2, [2, 12, 12]),
            Box::new(|qkv, bias| {
                let groups = vec![(2, Arc::new(AttentionGroups::whole(12)))];
                let qkv = Projections::Joint(qkv);
                ops::gathered_attention(qkv, groups, vec![bias], 2, 0.8, Precision::Bf16)
            }),
        ),
    ];
    for (name, dtype, parameter, operation) in cases {
        let rows = hashed_tensor(1, [24, 6]).to_dtype(Dtype::Bf16);
        let of_wide = operation(rows.clone().to_dtype(Dtype::F32), parameter.clone());
        let found = operation(rows.clone(), parameter.clone());
        assert_eq!((found.dtype(), found.is_tracked()), (dtype, false), "{name}");
        let as_found = if dtype == stored { in_bf16 } else { in_f32 };
        let found = in_f32(found);
        assert_eq!(found, as_found(of_wide), "{name}");

        let learned = |rows: Tensor| {
            let tape = Tape::new();
            let leaf = tape.watch(parameter.clone());
            let y = operation(rows, leaf.clone());
            assert_eq!((y.dtype(), y.is_tracked()), (Dtype::F32, true), "{name}");
            let weights = hashed_tensor(9, [y.numel()]).reshape(y.shape());
            let gradients = tape.backward(&(y.clone() * weights).sum());
            [in_f32(y.detach()), in_f32(gradients.of(&leaf).unwrap())]
        };
        let [y, gradient] = learned(rows.clone());
        assert_eq!(as_found(Tensor::from_vec(y.clone(), &Device::Cpu)), found, "{name}");
        assert_eq!([y, gradient], learned(rows.to_dtype(Dtype::F32)), "{name}");
    }
}

#[test]
fn norms_are_stored() {
    let [gamma, beta] = [2, 3].map(|stream| hashed_tensor(stream, [7]));
    let norm = |x: Tensor, precision| {
        ops::layer_norm_in_precision(x, gamma.clone(), beta.clone(), 1e-6, precision)
    };
    let x = hashed_tensor(1, [5, 7]);
    let tape = Tape::new();
    let learned = norm(tape.watch(x.clone()), Precision::Bf16);
    let found = norm(x.clone(), Precision::Bf16);
    assert_eq!((learned.dtype(), found.dtype()), (Dtype::F32, Dtype::Bf16));
    assert_eq!(in_f32(found), in_bf16(learned.detach()));
    assert_eq!(norm(x, Precision::F32).dtype(), Dtype::F32);
}

/// Networks that store rows in bf16: images of two sizes together are as alone, and what they give is near to
/// f32. What is rounded there would be rounded before the next product, so that most give to the bit what
/// they give where something learns; a depthwise convolution adds up rows that are rounded.
#[test]
fn networks_in_bf16() {
    for (config, is_equal) in [
        (BackboneConfig::Pvt(tiny_pvt()), true),
        (BackboneConfig::Vil(tiny_vil()), true),
        (BackboneConfig::Cvt(tiny_cvt()), false),
    ] {
        let (network, list) = config.build(0.0);
        let params = fill(&list, 0);
        let batches = || vec![images(80, [2, 3, 32, 32]), images(81, [1, 3, 48, 16])];
        let values = |params: &Params, batches: Vec<Tensor>, precision: Precision| {
            let ctx = ForwardCtx::eval().with_precision(precision);
            let features = network.features(params, batches, &ctx);
            [in_f32(features.view.detach()), in_f32(features.region.detach())]
        };
        let both = values(&params, batches(), Precision::Bf16);
        let alone =
            batches().into_iter().map(|batch| values(&params, vec![batch], Precision::Bf16));
        let [first, second] = <[_; 2]>::try_from(alone.collect::<Vec<_>>()).unwrap();
        for (at, both) in both.iter().enumerate() {
            assert_eq!(both[..], [&first[at][..], &second[at]].concat(), "{config:?}");
        }
        let exact = values(&params, batches(), Precision::F32);
        let learned = values(&params.tracked(&Tape::new()), batches(), Precision::Bf16);
        for ((found, exact), learned) in both.iter().zip(&exact).zip(&learned) {
            assert_alike(&format!("{config:?}"), found, exact, 0.05);
            assert_ne!(found, exact);
            assert_eq!(found == learned, is_equal, "{config:?}");
        }
    }
}
