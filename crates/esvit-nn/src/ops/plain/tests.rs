use std::f64::consts::PI;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::*;
use crate::tape::{Origin, Tape};
use crate::tensor::{Dtype, MAX_RANK};

const CPU: Device = Device::Cpu;
/// Width of the steps of finite differences, whose formula is wrong by `STEP^4 / 30` fifth
/// derivatives.
const STEP: f64 = 1e-3;

/// Numbers in -1..1 that f32 can hold, the same for every call.
fn numbers(stream: u64, count: usize) -> Vec<f64> {
    let number = |at: usize| {
        let mut bits = (at as u64 + 1 + (stream << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        f64::from(((bits >> 40) as f64 / (1u64 << 23) as f64 - 1.0) as f32)
    };
    (0..count).map(number).collect()
}

fn tensor(stream: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::new(numbers(stream, shape.numel()), shape, &CPU)
}

/// Numbers in 0.5..2.5.
fn positive(stream: u64, shape: impl Into<Shape>) -> Tensor {
    tensor(stream, shape) + 1.5
}

fn f32s(values: &[f32]) -> Tensor {
    Tensor::new(values.to_vec(), [values.len()], &CPU)
}

fn f64s(values: &[f64]) -> Tensor {
    Tensor::new(values.to_vec(), [values.len()], &CPU)
}

fn assert_near(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_near = (found - expected).abs() <= tolerance * largest;
        assert!(is_near, "{what}, {at}: {found} instead of {expected}");
    }
}

/// The result, and gradients of the sum of all results times fixed numbers.
fn differentiate(
    inputs: &[Tensor],
    watched: impl Fn(usize) -> bool,
    function: &dyn Fn(&[Tensor]) -> Tensor,
) -> (Tensor, Vec<Option<Tensor>>) {
    let tape = Tape::new();
    let watch = |(i, input): (usize, &Tensor)| {
        if watched(i) { tape.watch(input.clone()) } else { input.clone() }
    };
    let leaves: Vec<Tensor> = inputs.iter().enumerate().map(watch).collect();
    let y = function(&leaves);
    let projection = tensor(99, y.shape()).to_dtype(y.dtype());
    let gradients = tape.backward(&(&y * projection).sum());
    (y.detach(), leaves.iter().map(|leaf| gradients.of(leaf)).collect())
}

/// Checks an operation on f64 inputs that f32 can hold: gradients against finite differences; the
/// same with f32, with a single input on the tape and without a tape; the shape alone; and that
/// inputs with another owner stay as they are. Returns the result.
fn check(
    what: &str,
    inputs: impl Into<Vec<Tensor>>,
    function: impl Fn(&[Tensor]) -> Tensor,
) -> Vec<f64> {
    let inputs = &inputs.into()[..];
    let before: Vec<Vec<f64>> = inputs.iter().map(Tensor::to_vec).collect();
    let (y, gradients) = differentiate(inputs, |_| true, &function);
    let projection = numbers(99, y.numel());
    for (i, gradient) in gradients.iter().enumerate() {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{what}: input {i}"));
        assert_eq!(gradient.shape(), inputs[i].shape(), "{what}: input {i}");
        let slope = |entry: usize| {
            let at = |steps: f64| -> f64 {
                let mut moved = inputs.to_vec();
                moved[i].values_mut::<f64>()[entry] += steps * STEP;
                let y = function(&moved).to_vec::<f64>();
                y.iter().zip(&projection).map(|(a, b)| a * b).sum()
            };
            (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP)
        };
        let expected: Vec<f64> = (0..inputs[i].numel()).map(slope).collect();
        assert_near(&format!("{what}: gradient {i}"), &gradient.to_vec(), &expected, 1e-8);
        let (_, alone) = differentiate(inputs, |j| j == i, &function);
        assert_eq!(alone[i].as_ref().map(Tensor::to_vec::<f64>), Some(gradient.to_vec()), "{what}");
        assert_eq!(alone.iter().flatten().count(), 1, "{what}");
    }
    let untracked = function(inputs);
    assert!(!untracked.is_tracked() && untracked.shape() == y.shape(), "{what}");
    assert_eq!(untracked.to_vec::<f64>(), y.to_vec::<f64>(), "{what}");

    let narrow = |x: &Tensor| x.clone().to_dtype(Dtype::F32);
    let wide = |x: &Tensor| x.clone().to_dtype(Dtype::F64).to_vec::<f64>();
    let (y32, gradients32) =
        differentiate(&inputs.iter().map(narrow).collect::<Vec<_>>(), |_| true, &function);
    assert_eq!((y32.dtype(), y32.shape()), (Dtype::F32, y.shape()), "{what}");
    assert_near(&format!("{what}: f32"), &wide(&y32), &wide(&y), 3e-6);
    for (narrow, gradient) in gradients32.iter().flatten().zip(gradients.iter().flatten()) {
        assert_near(&format!("{what}: f32 gradients"), &wide(narrow), &wide(gradient), 1e-5);
    }

    let tape = Tape::new();
    let symbols: Vec<Tensor> = inputs.iter().map(|x| tape.symbol("x", x.shape())).collect();
    let symbol = function(&symbols);
    assert!(symbol.is_symbolic() && symbol.shape() == y.shape(), "{what}");

    for (input, before) in inputs.iter().zip(before) {
        assert_eq!(input.to_vec::<f64>(), before, "{what} changed an input that others hold");
    }
    y.to_vec()
}

/// What a function panics with.
fn panic_of<T>(function: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(function)).err().expect("a panic");
    panic.downcast_ref::<String>().cloned().expect("a text with values")
}

/// Index of every value of a shape, row-major.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &size in shape {
        let extend = |index: Vec<usize>| (0..size).map(move |i| [&index[..], &[i]].concat());
        all = all.into_iter().flat_map(extend).collect();
    }
    all
}

/// The value at an index, of which leading entries and those of dimensions of size 1 are ignored.
fn at(x: &Tensor, index: &[usize]) -> f64 {
    let shape = x.shape();
    let index = &index[index.len() - shape.len()..];
    let place = shape.iter().zip(index).fold(0, |place, (&size, &i)| place * size + i % size);
    x.values::<f64>()[place]
}

type Operator = (&'static str, fn(&Tensor, &Tensor) -> Tensor, fn(f64, f64) -> f64);

const OPERATORS: [Operator; 4] = [
    ("+", |x, y| x + y, |x, y| x + y),
    ("-", |x, y| x - y, |x, y| x - y),
    ("*", |x, y| x * y, |x, y| x * y),
    ("/", |x, y| x / y, |x, y| x / y),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Of a common shape, each operand lacks leading dimensions and has others of size 1.
    #[test]
    fn arithmetic_broadcasts_both_ways(
        shape in prop::collection::vec(1usize..4, 1..4),
        ones in prop::array::uniform2(0u8..8),
        missing in prop::array::uniform2(0usize..3),
        operator in 0usize..4,
    ) {
        let (name, operate, define) = OPERATORS[operator];
        let operand = |side: usize| {
            let sizes = shape.iter().enumerate();
            let sizes = sizes.map(|(i, &size)| if ones[side] >> i & 1 == 1 { 1 } else { size });
            let sizes: Vec<usize> = sizes.skip(missing[side].min(shape.len() - 1)).collect();
            positive(side as u64, &sizes[..])
        };
        let (x, y) = (operand(0), operand(1));
        let what = format!("{:?} {name} {:?}", x.shape(), y.shape());
        let z = check(&what, [x.clone(), y.clone()], |v| operate(&v[0], &v[1]));
        let of = |x: &Tensor, i: usize| *x.shape().iter().rev().nth(i).unwrap_or(&1);
        let rank = x.shape().len().max(y.shape().len());
        let common: Vec<usize> = (0..rank).rev().map(|i| of(&x, i).max(of(&y, i))).collect();
        let expected: Vec<f64> =
            indices(&common).iter().map(|index| define(at(&x, index), at(&y, index))).collect();
        prop_assert_eq!(z, expected);
    }

    #[test]
    fn permutations_and_sums_of_any_shape(
        shape in prop::collection::vec(1usize..4, 1..=MAX_RANK),
        order in Just((0..MAX_RANK).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let rank = shape.len();
        let axes: Vec<usize> = order.into_iter().filter(|&axis| axis < rank).collect();
        let x = tensor(1, &shape[..]);
        let y = x.clone().permute(&axes);
        for index in indices(&y.shape()) {
            let mut from = vec![0; rank];
            axes.iter().zip(&index).for_each(|(&axis, &i)| from[axis] = i);
            prop_assert_eq!(at(&y, &index), at(&x, &from));
        }
        let axis = axes[0];
        let sums = x.clone().sum_dim(axis);
        prop_assert_eq!(sums.shape(), x.shape().with(axis, 1));
        for index in indices(&sums.shape()) {
            let along = (0..shape[axis]).map(|i| {
                let mut index = index.clone();
                index[axis] = i;
                at(&x, &index)
            });
            let along: Vec<f64> = along.collect();
            let (sum, largest) = (along.iter().sum::<f64>(), along.iter().fold(-9.0, |a: f64, &b| a.max(b)));
            prop_assert!((at(&sums, &index) - sum).abs() < 1e-12);
            prop_assert_eq!(at(&x.clone().max_dim(axis), &index), largest);
            prop_assert!((at(&x.clone().mean_dim(axis), &index) - sum / along.len() as f64).abs() < 1e-12);
        }
    }
}

#[test]
fn numbers_are_operands() {
    let x = f64s(&[0.5, -2.0, 3.0]);
    let y = check("numbers", [positive(1, [2, 3])], |v| {
        1.0 / (2.0 - (&v[0] * 0.3 - 0.25) / 7.0) + &(0.5 * &v[0])
    });
    let x0 = positive(1, [2, 3]).to_vec::<f64>();
    let expected: Vec<f64> =
        x0.iter().map(|x| 1.0 / (2.0 - (x * 0.3 - 0.25) / 7.0) + 0.5 * x).collect();
    assert_near("numbers", &y, &expected, 1e-15);
    assert_eq!((-&x).to_vec::<f64>(), [-0.5, 2.0, -3.0]);
    assert_eq!((-x).to_vec::<f64>(), [-0.5, 2.0, -3.0]);
    // Rounded to f32, and truly divided.
    let x = f32s(&[1.0, 5.0, 7.0]);
    assert_eq!((&x * 0.1).to_vec::<f32>(), [0.1f32, 5.0 * 0.1, 7.0 * 0.1]);
    assert_eq!((&x / 0.07).to_vec::<f32>(), [1.0 / 0.07f32, 5.0 / 0.07, 7.0 / 0.07]);
    assert_eq!((0.3 - x).to_vec::<f32>(), [0.3 - 1.0f32, 0.3 - 5.0, 0.3 - 7.0]);
}

type Function = (&'static str, fn(Tensor) -> Tensor, fn(f64) -> f64);

/// By the series of its integral.
fn erf(x: f64) -> f64 {
    let term = |n: i32| {
        let factorial: f64 = (1..=n).map(f64::from).product();
        (-1f64).powi(n) * x.powi(2 * n + 1) / (factorial * f64::from(2 * n + 1))
    };
    (0..60).map(term).sum::<f64>() * 2.0 / PI.sqrt()
}

const FUNCTIONS: [Function; 12] = [
    ("exp", Tensor::exp, f64::exp),
    ("square", Tensor::square, |x| x * x),
    ("abs", Tensor::abs, f64::abs),
    ("sigmoid", Tensor::sigmoid, |x| x.exp() / (1.0 + x.exp())),
    ("tanh", Tensor::tanh, |x| 1.0 - 2.0 / ((2.0 * x).exp() + 1.0)),
    ("relu", Tensor::relu, |x| x.max(0.0)),
    ("gelu", Tensor::gelu, |x| x * (1.0 + erf(x / 2f64.sqrt())) / 2.0),
    ("erf", Tensor::erf, erf),
    ("clamp_min", |x| x.clamp_min(0.3), |x| x.max(0.3)),
    ("log", Tensor::log, f64::ln),
    ("sqrt", Tensor::sqrt, f64::sqrt),
    ("powf", |x| x.powf(1.7), |x| x.powf(1.7)),
];

#[test]
fn functions_of_single_values() {
    for (what, function, define) in FUNCTIONS {
        let inputs = if ["log", "sqrt", "powf"].contains(&what) {
            positive(2, [3, 1, 7])
        } else {
            tensor(3, [3, 1, 7]) * 2.5
        };
        // No step crosses a bend.
        let inputs = inputs.to_dtype(Dtype::F32).to_dtype(Dtype::F64);
        assert!(inputs.to_vec::<f64>().iter().all(|x| x.abs() > 0.01 && (x - 0.3).abs() > 0.01));
        let expected: Vec<f64> = inputs.to_vec().into_iter().map(define).collect();
        let found = check(what, &[inputs], |v| function(v[0].clone()));
        assert_near(what, &found, &expected, 1e-12);
        let [nan] = function(f64s(&[f64::NAN])).to_vec::<f64>()[..] else { panic!() };
        assert!(nan.is_nan(), "{what}");
    }
}

#[test]
fn derivatives_at_bends() {
    let slopes = |function: fn(Tensor) -> Tensor, at: &[f64]| {
        let tape = Tape::new();
        let x = tape.watch(f64s(at));
        tape.backward(&function(x.clone()).sum()).of(&x).unwrap().to_vec::<f64>()
    };
    assert_eq!(slopes(Tensor::relu, &[-1.0, 0.0, 1e-9]), [0.0, 0.0, 1.0]);
    assert_eq!(slopes(Tensor::abs, &[-1e-9, 0.0, -0.0, 2.0]), [-1.0, 0.0, 0.0, 1.0]);
    assert_eq!(slopes(|x| x.clamp_min(0.5), &[0.4, 0.5, 0.6]), [0.0, 1.0, 1.0]);
    assert_eq!(slopes(|x| x.powf(0.0), &[0.0, 3.0]), [0.0, 0.0]);
    assert_eq!(slopes(|x| x.powf(2.0), &[0.0, -3.0]), [0.0, -6.0]);
    // Far from 0 nothing overflows.
    assert_eq!(slopes(Tensor::sigmoid, &[-1e4, 1e4]), [0.0, 0.0]);
    assert_eq!(slopes(Tensor::gelu, &[-40.0, 40.0]), [0.0, 1.0]);
}

#[test]
fn products_of_matrices() {
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[4, 3], &[3, 5]),
        (&[1, 7], &[7, 1]),
        (&[2, 3, 4, 5], &[2, 3, 5, 2]),
        (&[2, 3, 4], &[4, 3]),
        (&[3, 1, 2], &[3, 2, 1]),
        (&[33, 17], &[17, 3]),
    ];
    for (left, right) in shapes {
        let (x, y) = (tensor(4, left), tensor(5, right));
        let what = format!("{left:?} by {right:?}");
        let z = check(&what, [x.clone(), y.clone()], |v| v[0].clone().matmul(v[1].clone()));
        let (rank, k) = (left.len(), left[left.len() - 1]);
        let shape = [&left[..rank - 1], &right[right.len() - 1..]].concat();
        let expected = indices(&shape).into_iter().map(|index| {
            let term = |i: usize| {
                let row = [&index[..rank - 1], &[i]].concat();
                let column = [&index[..rank - 2], &[i, index[rank - 1]]].concat();
                at(&x, &row) * at(&y, &column)
            };
            (0..k).map(term).sum()
        });
        assert_near(&what, &z, &expected.collect::<Vec<f64>>(), 1e-14);
    }
    let none = Tensor::zeros([2, 0], &CPU).matmul(Tensor::zeros([0, 3], &CPU));
    assert_eq!((none.shape(), none.to_vec::<f32>()), ([2, 3].into(), vec![0.0; 6]));
    for (left, right) in [([2, 3, 4], &[3, 4, 3][..]), ([2, 3, 4], &[3, 3])] {
        let panic = panic_of(|| tensor(1, left).matmul(tensor(1, right)));
        assert_eq!(panic, format!("a product of {left:?} and {right:?}"));
    }
    check("transpose", [tensor(6, [2, 3, 4])], |v| v[0].clone().transpose());
}

#[test]
fn sums_and_means() {
    for axis in 0..3 {
        check("sum_dim", [tensor(7, [3, 4, 5])], |v| v[0].clone().sum_dim(axis));
        check("mean_dim", [tensor(7, [3, 4, 5])], |v| v[0].clone().mean_dim(axis));
        check("max_dim", [tensor(8, [3, 4, 5])], |v| v[0].clone().max_dim(axis));
    }
    let x = tensor(7, [3, 4, 5]);
    let total: f64 = x.to_vec::<f64>().iter().sum();
    assert_near("sum", &check("sum", [x.clone()], |v| v[0].clone().sum()), &[total], 1e-15);
    let mean = check("mean", [x.clone()], |v| v[0].clone().mean());
    assert_near("mean", &mean, &[total / 60.0], 1e-15);
    assert_eq!((x.clone().sum().shape(), x.mean().shape()), ([1].into(), [1].into()));
    assert_eq!(f32s(&[]).sum().item(), 0.0);
    panic_of(|| f32s(&[]).mean());
}

/// Rows are added in f32 from the first on; all else is added in f64.
#[test]
fn rounding_of_sums() {
    let column = [1e8f32, 1.0, -1e8, 0.5];
    let rows = Tensor::new(column.iter().flat_map(|&x| [x, 1.0]).collect(), [4, 2], &CPU);
    assert_eq!(rows.clone().sum_dim(0).to_vec::<f32>(), [0.5, 4.0]);
    assert_eq!(rows.clone().mean_dim(0).to_vec::<f32>(), [0.125, 1.0]);
    for shape in [[1, 4], [4, 1]] {
        let axis = if shape[0] == 1 { 1 } else { 0 };
        let x = f32s(&column).reshape(shape);
        assert_eq!(x.clone().sum_dim(axis).item(), 1.5);
        assert_eq!(x.mean_dim(axis).item(), 0.375);
    }
    assert_eq!(rows.sum().item(), 5.5);
    // The mean is the rounded sum divided, not multiplied with the inverse.
    let x = Tensor::new(vec![5f32, 1.0, 0.0, 0.0, 0.0, 0.0], [3, 2], &CPU);
    assert_eq!(x.mean_dim(0).to_vec::<f32>(), [5.0 / 3.0, 1.0 / 3.0]);
}

#[test]
fn the_first_of_equal_values_is_largest() {
    let x = Tensor::new(vec![1f32, 3.0, 3.0, 2.0, 2.0, -1.0], [2, 3], &CPU);
    assert_eq!(x.clone().argmax(1).to_vec::<i32>(), [1, 0]);
    let best = x.clone().argmax(0);
    assert_eq!((best.shape(), best.dtype()), ([1, 3].into(), Dtype::I32));
    assert_eq!(best.to_vec::<i32>(), [1, 0, 0]);
    let tape = Tape::new();
    let leaf = tape.watch(x);
    assert!(!leaf.clone().argmax(0).is_tracked());
    let gradient = tape.backward(&leaf.clone().max_dim(1).sum()).of(&leaf).unwrap();
    assert_eq!(gradient.to_vec::<f32>(), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
    let x = f32s(&[f32::NEG_INFINITY, f32::NAN, 5.0]);
    assert_eq!(x.clone().argmax(0).to_vec::<i32>(), [1]);
    assert!(x.max_dim(0).item().is_nan());
    assert_eq!(f32s(&[f32::NEG_INFINITY; 2]).argmax(0).to_vec::<i32>(), [0]);
    panic_of(|| Tensor::zeros([2, 0], &CPU).argmax(1));
    let tape = Tape::new();
    let symbol = tape.symbol("x", [4, 5]).argmax(1);
    assert_eq!((symbol.shape(), symbol.dtype()), ([4, 1].into(), Dtype::I32));
}

#[test]
fn softmax_of_rows() {
    for shape in [&[3, 5][..], &[7], &[2, 3, 1]] {
        let (x, axis) = (tensor(9, shape) * 3.0, shape.len() - 1);
        let x = x.to_dtype(Dtype::F32).to_dtype(Dtype::F64);
        let y = check("softmax", [x.clone()], |v| v[0].clone().softmax(axis));
        let logs = check("log_softmax", [x.clone()], |v| v[0].clone().log_softmax(axis));
        let values = x.to_vec::<f64>();
        let rows = values.chunks(shape[axis]).flat_map(|row| {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(move |x| x.exp() / sum)
        });
        let expected: Vec<f64> = rows.collect();
        assert_near("softmax", &y, &expected, 1e-15);
        let expected: Vec<f64> = expected.iter().map(|p| p.ln()).collect();
        assert_near("log_softmax", &logs, &expected, 1e-15);
    }
    let far = f32s(&[1e4, -1e4, 1e4]);
    assert_eq!(far.clone().softmax(0).to_vec::<f32>(), [0.5, 0.0, 0.5]);
    let half = -std::f32::consts::LN_2;
    assert_eq!(far.log_softmax(0).to_vec::<f32>(), [half, half - 2e4, half]);
    let nan = f32s(&[1.0, f32::NAN]);
    assert!(nan.clone().softmax(0).to_vec::<f32>()[0].is_nan());
    assert!(nan.log_softmax(0).to_vec::<f32>()[0].is_nan());
    panic_of(|| tensor(1, [2, 2]).softmax(0));
}

#[test]
fn selecting_and_joining() {
    let x = tensor(10, [3, 4, 2]);
    let values = |y: &Tensor, of: &dyn Fn(&[usize]) -> f64| {
        let expected: Vec<f64> = indices(&y.shape()).iter().map(|index| of(index)).collect();
        assert_eq!(y.to_vec::<f64>(), expected);
    };
    let chosen = [3, 0, 3, 1, 3];
    check("index_select", [x.clone()], |v| v[0].clone().index_select(1, chosen));
    for axis in [0, 2] {
        check("index_select", [x.clone()], |v| v[0].clone().index_select(axis, vec![1, 0, 1]));
    }
    let y = x.clone().index_select(1, &chosen[..]);
    assert_eq!(y.shape(), [3, 5, 2].into());
    values(&y, &|i| at(&x, &[i[0], chosen[i[1]] as usize, i[2]]));
    for wrong in [-1, 4] {
        let panic = panic_of(|| x.clone().index_select(1, [wrong]));
        assert_eq!(panic, format!("index {wrong} of 4"));
    }
    for axis in 0..3 {
        check("narrow", [x.clone()], |v| v[0].clone().narrow(axis, 1, 1));
        check("flip", [x.clone()], |v| v[0].clone().flip(axis));
        let joined =
            check("cat", [x.clone(), tensor(11, x.shape().with(axis, 1)), x.clone()], |v| {
                Tensor::cat(v.to_vec(), axis)
            });
        let parts = [x.clone(), tensor(11, x.shape().with(axis, 1)), x.clone()];
        let shape = x.shape().with(axis, 2 * x.shape()[axis] + 1);
        values(&Tensor::new(joined, shape, &CPU), &|index| {
            let (mut index, mut part) = (index.to_vec(), 0);
            while index[axis] >= parts[part].shape()[axis] {
                index[axis] -= parts[part].shape()[axis];
                part += 1;
            }
            at(&parts[part], &index)
        });
    }
    values(&x.clone().narrow(1, 1, 2), &|i| at(&x, &[i[0], i[1] + 1, i[2]]));
    values(&x.clone().narrow(0, 2, 1), &|i| at(&x, &[2, i[1], i[2]]));
    values(&x.clone().flip(1), &|i| at(&x, &[i[0], 3 - i[1], i[2]]));
    values(&x.clone().swap_dims(0, 2), &|i| at(&x, &[i[2], i[1], i[0]]));
    values(&x.clone().expand([2, 3, 4, 2]), &|i| at(&x, &i[1..]));
    check("permute", [x.clone()], |v| v[0].clone().permute(&[2, 0, 1]));
    check("expand", [tensor(12, [3, 1])], |v| v[0].clone().expand([2, 3, 4]));
    let rows = tensor(13, [3, 4]);
    let y = check("pick", [rows.clone()], |v| v[0].clone().pick(&[3, 0, 2]));
    assert_eq!(y, [at(&rows, &[0, 3]), at(&rows, &[1, 0]), at(&rows, &[2, 2])]);
    assert_eq!(panic_of(|| rows.clone().pick(&[0, 4, 0])), "column 4 of 4");
    panic_of(|| x.clone().permute(&[0, 1, 1]));
    panic_of(|| x.clone().narrow(1, 3, 2));
    panic_of(|| x.clone().expand([3, 4, 3]));
    panic_of(|| Tensor::cat(vec![x.clone(), tensor(1, [3, 4, 3])], 1));
}

/// Large means and sums over broadcast dimensions do not lose digits.
#[test]
fn gradients_of_repeated_values_are_summed_in_f64() {
    let tape = Tape::new();
    let x = tape.watch(f32s(&[1.0]).reshape([1, 1]));
    let projection = Tensor::new(vec![1e8f32, 1.0, -1e8, 0.5], [4, 1], &CPU);
    let gradients = tape.backward(&(x.clone().expand([4, 1]) * projection).sum());
    assert_eq!(gradients.of(&x).unwrap().item(), 1.5);
}

#[test]
fn convolutions() {
    // Images, filters, stride, padding, groups.
    type Case = ([usize; 4], [usize; 4], usize, usize, usize);
    let cases: [Case; 7] = [
        ([2, 3, 5, 6], [4, 3, 3, 2], 1, 1, 1),
        ([1, 2, 7, 5], [2, 2, 3, 3], 2, 1, 1),
        ([1, 4, 4, 5], [6, 2, 2, 3], 1, 0, 2),
        ([2, 3, 4, 3], [3, 1, 3, 3], 2, 2, 3),
        ([1, 1, 6, 6], [2, 1, 2, 2], 3, 0, 1),
        ([1, 2, 1, 2], [2, 2, 5, 5], 2, 3, 1),
        ([2, 4, 3, 3], [2, 4, 1, 1], 1, 0, 1),
    ];
    for (image, filter, stride, padding, groups) in cases {
        let (x, weight, bias) = (tensor(14, image), tensor(15, filter), tensor(16, [filter[0]]));
        let what = format!("{image:?} {filter:?} {stride} {padding} {groups}");
        let y = check(&what, [x.clone(), weight.clone(), bias.clone()], |v| {
            v[0].clone().conv2d(v[1].clone(), Some(v[2].clone()), stride, padding, groups)
        });
        let [height, width] =
            [0, 1].map(|i| (image[2 + i] + 2 * padding - filter[2 + i]) / stride + 1);
        let expected = indices(&[image[0], filter[0], height, width]).into_iter().map(|i| {
            let taps = indices(&filter[1..]).into_iter().map(|tap| {
                let place = |axis: usize| (i[axis] * stride + tap[axis - 1]).checked_sub(padding);
                let inside = |axis: usize| place(axis).filter(|&place| place < image[axis]);
                let (Some(row), Some(column)) = (inside(2), inside(3)) else { return 0.0 };
                let channel = i[1] / (filter[0] / groups) * filter[1] + tap[0];
                at(&x, &[i[0], channel, row, column]) * at(&weight, &[i[1], tap[0], tap[1], tap[2]])
            });
            taps.sum::<f64>() + at(&bias, &[i[1]])
        });
        assert_near(&what, &y, &expected.collect::<Vec<f64>>(), 1e-14);
        let plain = x.conv2d(weight, None, stride, padding, groups);
        let plain = plain + bias.reshape([filter[0], 1, 1]);
        assert_near(&what, &plain.to_vec(), &y, 1e-14);
    }
    panic_of(|| tensor(1, [1, 3, 4, 4]).conv2d(tensor(1, [4, 3, 2, 2]), None, 1, 0, 2));
}

#[test]
fn costs_are_read_off_the_tape() {
    let cost = |shapes: [&[usize]; 2], function: &dyn Fn(Tensor, Tensor) -> Tensor| {
        let tape = Tape::new();
        let [x, y] = shapes.map(|shape| tape.symbol("x", shape));
        function(x, y);
        tape.with_entries(|entries| {
            let Origin::Operation(recorded) = &entries[2].origin else { panic!("{entries:?}") };
            let shapes: Vec<Shape> = recorded.inputs.iter().map(|(_, shape)| *shape).collect();
            let cost = recorded.operation.cost(&shapes);
            (cost.macs, cost.saved_bytes)
        })
    };
    for right in [&[2, 3, 5, 6][..], &[5, 6]] {
        let found = cost([&[2, 3, 4, 5], right], &|x, y| x.matmul(y));
        assert_eq!(found, (6.0 * 120.0, 480.0));
    }
    let found = cost([&[2, 4, 5, 5], &[6, 2, 3, 3]], &|x, y| x.conv2d(y, None, 2, 1, 2));
    assert_eq!(found, (2.0 * 6.0 * 9.0 * 18.0, 800.0));
    assert_eq!(cost([&[2, 4], &[4]], &|x, y| x + y), (0.0, 0.0));
    // Constants are values of a tape of shapes.
    let tape = Tape::new();
    let _ = tape.symbol("x", [3]) * 2.0;
    tape.with_entries(|entries| {
        let (Origin::Constant(number), Origin::Operation(product)) =
            (&entries[1].origin, &entries[2].origin)
        else {
            panic!("{entries:?}")
        };
        assert_eq!(number.to_vec::<f32>(), [2.0]);
        assert_eq!(product.inputs, [(Some(0), [3].into()), (Some(1), [1].into())]);
    });
}

#[test]
fn conversion() {
    let tape = Tape::new();
    let x = tape.watch(f64s(&[0.1, -3.0]));
    let y = x.clone().to_dtype(Dtype::F32);
    assert_eq!((y.dtype(), y.to_vec::<f32>()), (Dtype::F32, vec![0.1, -3.0]));
    let back = y.to_dtype(Dtype::F64);
    assert_eq!(back.to_vec::<f64>(), [f64::from(0.1f32), -3.0]);
    // The gradient has the type of the input, and went through f32.
    let gradient = tape.backward(&(back * f64s(&[0.2, 4.0])).sum()).of(&x).unwrap();
    assert_eq!(gradient.to_vec::<f64>(), [f64::from(0.2f32), 4.0]);
    let symbol = Tape::new().symbol("x", [2]).to_dtype(Dtype::F64);
    assert_eq!((symbol.dtype(), symbol.shape()), (Dtype::F64, [2].into()));
}

#[test]
fn eye_and_likes() {
    assert_eq!(Tensor::eye(2, &CPU).to_vec::<f32>(), [1.0, 0.0, 0.0, 1.0]);
    let x = tensor(1, [2, 1]);
    let ones = x.ones_like();
    assert_eq!((ones.shape(), ones.to_vec::<f64>()), ([2, 1].into(), vec![1.0; 2]));
    assert_eq!(f32s(&[3.0]).zeros_like().to_vec::<f32>(), [0.0]);
    let tape = Tape::new();
    assert!(!tape.watch(x.clone()).ones_like().is_tracked());
    for dtype in [Dtype::F32, Dtype::F64] {
        let shared = x.clone().to_dtype(dtype);
        let mut sum = shared.clone();
        sum.add_assign(&shared.clone().reshape([2]));
        let expected: Vec<f64> = x.to_vec::<f64>().iter().map(|x| 2.0 * x).collect();
        assert_eq!(sum.to_dtype(Dtype::F64).to_vec::<f64>(), expected);
        assert_eq!(shared.to_dtype(Dtype::F64).to_vec::<f64>(), x.to_vec::<f64>());
        panic_of(|| x.clone().add_assign(&tensor(1, [3])));
    }
}

#[test]
fn values_that_are_used_twice() {
    // A leaf as both operands, a value by two operations, and a leaf by two operations.
    check("twice", [tensor(18, [2, 3]), positive(19, [3])], |v| {
        let squares = &v[0] * &v[0];
        let sums = (&squares + &v[1]).exp();
        (squares.clone() / &v[1]) + sums.sum_dim(0) + squares.reshape([3, 2]).sum_dim(0).sum()
    });
    let tape = Tape::new();
    let [x, y, unused] = [20, 21, 22].map(|stream| tape.watch(tensor(stream, [3])));
    // The derivative of x y + 2 x with respect to x is y + 2 where the second x is not detached.
    let gradients = tape.backward(&(&x * &y + 2.0 * x.clone().detach()).sum());
    assert_eq!(gradients.of(&x).unwrap().to_vec::<f64>(), y.to_vec::<f64>());
    assert!(gradients.of(&unused).is_none() && gradients.of(&x.detach()).is_none());
}

#[test]
fn gradients_arrive_once_per_use_with_the_number_of_their_leaf() {
    let tape = Tape::new();
    let [x, y] = [23, 24].map(|stream| tape.watch(tensor(stream, [3])));
    let loss = (&x * &y + &y).sum();
    let mut leaves = Vec::new();
    tape.backward_into(&loss, &mut |leaf, _| leaves.push(leaf));
    leaves.sort_unstable();
    assert_eq!(leaves, [0, 1, 1]);
}

#[test]
fn results_overwrite_what_nobody_else_holds() {
    let place = |x: &Tensor| x.values::<f64>().as_ptr();
    let x = tensor(25, [100]);
    let start = place(&x);
    let x = (x.exp() * 2.0 + tensor(26, [100])).sqrt();
    assert_eq!(place(&x), start);
    let other = x.clone();
    assert_ne!(place(&x.relu()), start);
    assert_eq!(place(&other), start);
    // Leading slices share the values.
    assert_eq!(place(&other.clone().reshape([4, 25]).narrow(0, 1, 2)), start.wrapping_add(25));
}

/// Sizes beyond one task; the same bits for any number of threads.
#[test]
fn large_tensors() {
    let rows = 2 * TASK_VALUES / 7 + 13;
    let x = tensor(27, [rows, 7]).to_dtype(Dtype::F32);
    let y = tensor(28, [rows, 1]).to_dtype(Dtype::F32);
    let compute = || {
        let tape = Tape::new();
        let (x, y) = (tape.watch(x.clone()), tape.watch(y.clone()));
        let z = (&x * &y - &x).exp().softmax(1) + x.clone().sum_dim(0) + x.clone().max_dim(1);
        let z = z + x.clone().transpose().matmul(y.clone()).reshape([7]) + x.clone().mean_dim(1);
        let gradients = tape.backward(&z.clone().square().mean());
        [z.detach(), gradients.of(&x).unwrap(), gradients.of(&y).unwrap()]
            .map(|x| x.to_vec::<f32>())
    };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(compute)
    };
    let bits = |results: [Vec<f32>; 3]| {
        results.map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    assert!(bits(with(1)) == bits(with(3)));
    let values = x.to_vec::<f32>();
    let expected: Vec<f32> = values.iter().map(|x| x.exp()).collect();
    assert!(x.clone().exp().to_vec::<f32>() == expected);
    let expected: Vec<f32> =
        values.chunks(7).map(|row| row.iter().map(|&x| f64::from(x)).sum::<f64>() as f32).collect();
    assert!(x.clone().sum_dim(1).to_vec::<f32>() == expected);
    let expected: Vec<f32> = values
        .chunks(7)
        .zip(y.to_vec::<f32>())
        .flat_map(|(row, y)| row.iter().map(move |x| x * y))
        .collect();
    assert!((x * y).to_vec::<f32>() == expected);
}

#[test]
fn other_types_are_refused_by_name() {
    let x = Tensor::new(vec![1i32, 2], [2], &CPU);
    let expected = "I32: plain operations take F32 and F64";
    assert_eq!(panic_of(|| x.clone().exp()), expected);
    assert_eq!(panic_of(|| &x + 1.0), expected);
    assert_eq!(panic_of(|| f32s(&[1.0, 2.0]) + f64s(&[1.0, 2.0])), "F64, not F32");
    assert_eq!(
        panic_of(|| f32s(&[1.0]).to_dtype(Dtype::I32)),
        "to I32: plain operations take F32 and F64"
    );
    let panic = panic_of(|| tensor(1, [2, 3]) + tensor(1, [3, 2]));
    assert_eq!(panic, "shapes [2, 3] and [3, 2] cannot be broadcast together");
}
