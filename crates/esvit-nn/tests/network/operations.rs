//! Small operations by their definitions, and what all of them have in common.

use super::swin::means;
use super::*;

/// Means, lengths and norms by their definitions: gradients alone do not tell a factor.
#[test]
fn rows_by_their_definition() {
    let x = hashed_tensor(1, [6, 4]) * 3.0;
    let values: Vec<f64> = x.to_vec::<f32>().iter().map(|&v| v.into()).collect();
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let unit: Vec<f64> = values
        .chunks_exact(4)
        .flat_map(|row| row.iter().map(|v| v / norm(row)).collect::<Vec<_>>())
        .collect();
    assert_close("unit rows", &ops::l2_normalize(x.clone()).to_vec::<f32>(), &unit, 1e-6);
    let segments = [Segment::new(1, [1, 2]), Segment::new(1, [2, 2])];
    assert_eq!(ops::tokens_per_image(&segments), [2, 4]);
    let expected: Vec<f64> = means(&x, &segments).iter().map(|&v| v.into()).collect();
    assert_close("means", &ops::global_average_pool(x, &[2, 4]).to_vec::<f32>(), &expected, 1e-6);
}

/// Weights whose naming is kept give the same, until a value changes.
#[test]
fn kept_layouts_follow_the_values() {
    let (swin, params) = swin();
    let input = images(1000, [1, 3, 16, 16]);
    let view = |params: &Params| {
        swin.forward(params, input.clone(), &ForwardCtx::eval()).view.to_vec::<f32>()
    };
    let expected = view(&params);
    let mut kept = params.clone().for_inference();
    assert_eq!([view(&kept), view(&kept)], [expected.clone(), expected.clone()]);
    let doubled = |params: &mut Params| {
        *params.flat_mut() = params.flat().clone() * 1.1;
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
        swin.forward(params, input.clone(), &pass).view.to_vec::<f32>()
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
    let device = Device::Cpu;
    let whole = hashed_tensor(1, [9, 4]);
    let before = whole.to_vec::<f32>();
    let norm = || NormValues {
        gamma: Tensor::from_vec(hashed(2, 4), &device),
        beta: Tensor::from_vec(hashed(3, 4), &device),
        eps: 1e-6,
    };
    let linear = |stream, [outputs, inputs]: [usize; 2]| LinearValues {
        weight: hashed_tensor(stream, [outputs, inputs]),
        bias: Tensor::from_vec(hashed(stream + 1, outputs), &device),
    };
    let segments = [Segment::new(2, [2, 2])];
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
        let copy: Tensor = Tensor::new(x.to_vec::<f32>(), [8, 4], &device);
        for (what, found, expected) in [
            (
                "attention",
                ops::attention_branch(x.clone(), &segments, &windows, layers(), None, compute()),
                composed::attention_branch(copy.clone(), &segments, &windows, layers(), None),
            ),
            (
                "mlp",
                ops::mlp_branch(x.clone(), &segments, norm(), mlp(), gelu, None, compute()),
                composed::mlp_branch(copy.clone(), &segments, norm(), mlp(), gelu, None),
            ),
            (
                "unit rows",
                ops::l2_normalize(x.clone()),
                copy.clone() / copy.clone().square().sum_dim(1).sqrt(),
            ),
        ] {
            assert_alike(what, &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-5);
            assert_eq!(x.to_vec::<f32>(), copy.to_vec::<f32>(), "{what}");
        }
    }
    assert_eq!(whole.to_vec::<f32>(), before);
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
/// f32, and at least one of them is not the same. By products of bf16 parts they are nearer. Blocks that
/// are computed again give the same bits.
#[test]
fn bf16_is_near_f32_in_every_operation() {
    let device = Device::Cpu;
    let segments = [Segment::new(2, [3, 4]), Segment::new(1, [2, 2])];
    let windows: Vec<Arc<WindowMap>> =
        segments.iter().map(|s| Arc::new(WindowMap::new(s.map, 2, 1))).collect();
    let [rows, width] = [28, 8];
    let small = (width as f64).powf(-0.5);
    type Function<'a> = Box<dyn Fn(&[Tensor], Precision, bool) -> Tensor + 'a>;
    let x = |v: &[Tensor]| v[0].clone().reshape([rows, width]);
    let norm = |v: &[Tensor]| NormValues { gamma: v[0].clone(), beta: v[1].clone(), eps: 1e-6 };
    let linear = |v: &[Tensor], inputs: usize| LinearValues {
        weight: v[0].clone().reshape([v[1].shape()[0], inputs]),
        bias: v[1].clone(),
    };
    let flat = |x: Tensor| {
        let len = x.numel();
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
    let pairs = TeacherRows::new(&pairs, &Device::Cpu);
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
            "cross-attention",
            vec![input(), hashed(2, 12 * 2 * width)],
            Box::new(|v, precision, _| {
                let kv = v[1].clone().reshape([12, 2 * width]);
                flat(ops::cross_attention(x(v), kv, &[[14, 5], [14, 7]], 2, precision))
            }),
        ),
        (
            "causal attention",
            vec![input(), hashed(2, rows * 2 * width)],
            Box::new(|v, precision, _| {
                let kv = v[1].clone().reshape([rows, 2 * width]);
                flat(ops::causal_attention(x(v), kv, &[14, 14], 2, precision))
            }),
        ),
        (
            "convolution",
            vec![input(), hashed_times(4, 6 * 9 * width, small / 3.0), hashed(5, 6)],
            Box::new(|v, precision, again| {
                let (weight, bias) = (v[1].clone().reshape([6, width, 3, 3]), Some(v[2].clone()));
                let compute = compute(precision, again);
                flat(ops::convolution(x(v), &segments, weight, bias, [2, 1], compute).0)
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
            let tape = Tape::new();
            let inputs: Vec<Tensor> = data
                .iter()
                .map(|values| tape.watch(Tensor::from_vec(values.clone(), &device)))
                .collect();
            let output = function(&inputs, precision, again);
            let projection = Tensor::from_vec(hashed(40, output.shape()[0]), &device);
            let gradients = tape.backward(&(output.clone() * projection).sum());
            let mut results = vec![output.detach().to_vec::<f32>()];
            results.extend(inputs.iter().map(|input| gradients.of(input).unwrap().to_vec::<f32>()));
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
        let found = run(Precision::Bf16x3, false);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let far = far(found, expected);
            assert!(far < 3e-4, "{what} by parts, {i}: {far}");
        }
        assert!(run(Precision::Bf16x3, true) == found, "{what}, computed again");
    }
}
