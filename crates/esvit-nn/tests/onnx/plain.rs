//! Graphs of plain operations, which a backbone may be written with.

use std::fmt;
use std::ops::ControlFlow;

use esvit_nn::backbone::{BlockOutput, Input, Stage, TokenMaps};
use esvit_nn::cost::Cost;
use esvit_nn::layers::{LayerNorm, Linear};
use esvit_nn::ops::{
    self, Activation, BatchNormValues, LinearValues, NormValues, Packing, Precision, Segment,
};
use esvit_nn::params::{Init, ParamId, ParamList, Registry};
use esvit_nn::tensor::Dtype;
use esvit_nn::{Backbone, Device, ForwardCtx, Params, Solo, Tape, Tensor, onnx};
use esvit_testing::{assert_close, fill, hashed, hashed_times};
use esvit_weights::Float;
use proptest::prelude::*;

use crate::interpreter::{Model, Value};

/// A backbone that is one function of images `[B, 3, h, w]`. Its result, of any shape, is a row of
/// numbers for every image.
struct Function {
    ids: Ids,
    compute: Compute,
}

type Compute = fn(&Params, Ids, Tensor) -> Tensor;

fn function(ids: Ids, compute: Compute) -> Function {
    Function { ids, compute }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

impl Backbone for Function {
    fn family(&self) -> &'static str {
        "Toy"
    }

    fn stages(&self) -> Vec<Stage> {
        vec![Stage { blocks: 1, width: 1, stride: 1, heads: 0 }]
    }

    fn run(
        &self,
        params: &Params,
        mut input: Input<'_>,
        _: &ForwardCtx,
        _: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        let images = input.images.remove(0);
        let batch = images.shape()[0];
        let result = (self.compute)(params, self.ids, images);
        let values = result.numel();
        let segments = vec![Segment::new(batch, [1, values / batch])];
        Some(TokenMaps { rows: result.reshape([values, 1]), segments })
    }

    fn normalize(&self, _: &Params, maps: TokenMaps, _: &ForwardCtx) -> TokenMaps {
        maps
    }
}

fn pixels(batch: usize, [height, width]: [usize; 2]) -> Vec<f32> {
    hashed_times(77, batch * 3 * height * width, 1.5)
}

fn write(
    backbone: &dyn Backbone,
    params: &Params,
    size: [usize; 2],
    float: Float,
) -> std::io::Result<Model> {
    let mut bytes = Vec::new();
    onnx::write(&mut bytes, backbone, params, size, float, &[])?;
    Ok(Model::read(&bytes))
}

/// Fails unless the graph computes what the backbone does, for one image and for three.
fn check_float(
    what: &str,
    backbone: &dyn Backbone,
    params: &Params,
    size: [usize; 2],
    (float, tolerance): (Float, f64),
) {
    let model = write(backbone, params, size, float).unwrap_or_else(|e| panic!("{what}: {e}"));
    for batch in [1, 3] {
        let pixels = pixels(batch, size);
        let shape = [batch, 3, size[0], size[1]];
        let images = Tensor::new(pixels.clone(), shape, &Device::Cpu);
        let expected = backbone.forward(params, images, &ForwardCtx::eval());
        let input = pixels.iter().map(|&value| value.into()).collect();
        let values = model.run("images", Value::new(&shape, input));
        // Means may cancel out: their error is one of what is averaged.
        let region = expected.region.to_vec::<f32>();
        let largest = region.iter().fold(1e-30, |largest, value| value.abs().max(largest));
        let tolerance = tolerance * f64::from(largest);
        for (name, expected) in [("view", expected.view), ("region", expected.region)] {
            let found = &values[name];
            assert_eq!(found.shape, *expected.shape(), "{what}: {name} of {batch}");
            let found: Vec<f32> = found.data.iter().map(|&value| value as f32).collect();
            let what = format!("{what}: {name} of {batch} of {size:?}");
            let expected: Vec<f64> = expected.to_vec::<f32>().into_iter().map(f64::from).collect();
            assert_close(&what, &found, &expected, tolerance);
        }
    }
}

fn check(what: &str, backbone: &dyn Backbone, params: &Params, size: [usize; 2]) {
    check_float(what, backbone, params, size, (Float::F32, 1e-5));
}

/// Parameters of many shapes for images of a size.
#[derive(Clone, Copy)]
struct Ids {
    /// `[w]`.
    row: ParamId,
    /// `[1, 1, w]`.
    token: ParamId,
    /// `[w, 5]`.
    matrix: ParamId,
    /// `[5, w]` and `[5]`.
    weight: ParamId,
    bias: ParamId,
    /// `[6, 1, 2, 3]`.
    filters: ParamId,
    /// `[6]`.
    filter_bias: ParamId,
    /// `[3, 3, 3]`.
    depthwise: ParamId,
    /// `[2, 3, h, w]`.
    pair: ParamId,
}

fn parameters([height, width]: [usize; 2]) -> (Ids, std::sync::Arc<ParamList>) {
    let mut registry = Registry::default();
    let mut root = registry.root();
    let mut param = |name: &str, shape: &[usize]| root.param(name, shape, Init::Zeros);
    let ids = Ids {
        row: param("row.weight", &[width]),
        token: param("token", &[1, 1, width]),
        matrix: param("matrix", &[width, 5]),
        weight: param("weight", &[5, width]),
        bias: param("bias", &[5]),
        filters: param("filters", &[6, 1, 2, 3]),
        filter_bias: param("filter_bias", &[6]),
        depthwise: param("depthwise", &[3, 3, 3]),
        pair: param("pair", &[2, 3, height, width]),
    };
    (ids, registry.finish())
}

/// `[B * 3 * h, w]`.
fn rows(x: Tensor) -> Tensor {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch * channels * height, width])
}

/// `[B, 3 * h, w]`.
fn tokens(x: Tensor) -> Tensor {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels * height, width])
}

/// Multiplies the images by a result that is not one of every image.
fn spread(x: &Tensor, y: Tensor) -> Tensor {
    x * y
}

#[rustfmt::skip]
const OPERATIONS: &[(&str, Compute)] = &[
    ("add", |p, ids, x| x + p.vector(ids.row)),
    ("sub", |p, ids, x| p.vector(ids.row) - x),
    ("mul", |p, ids, x| x.clone() * x * p.vector(ids.row)),
    ("div", |p, ids, x| x / (p.vector(ids.row).square() + 0.5)),
    ("neg", |_, _, x| -x),
    ("numbers", |_, _, x| 0.3 - (x * 2.5 + 1.25) / 0.7),
    ("broadcast", |_, _, x| x.clone().max_dim(1) - x.sum_dim(3)),
    ("exp", |_, _, x| x.exp()),
    ("log", |_, _, x| (x.square() + 0.1).log()),
    ("sqrt", |_, _, x| (x.abs() + 0.1).sqrt()),
    ("square", |_, _, x| x.square()),
    ("abs", |_, _, x| x.abs()),
    ("sigmoid", |_, _, x| x.sigmoid()),
    ("tanh", |_, _, x| x.tanh()),
    ("relu", |_, _, x| x.relu()),
    ("gelu", |_, _, x| x.gelu()),
    ("erf", |_, _, x| x.erf()),
    ("clamp_min", |_, _, x| x.clone().clamp_min(0.25) - x.clamp_min(-0.5)),
    ("powf", |_, _, x| (x.abs() + 0.2).powf(1.7)),
    ("sum_dim", |_, _, x| x.sum_dim(2)),
    ("mean_dim", |_, _, x| x.clone().mean_dim(1) + x.mean_dim(3)),
    ("sums over the batch", |_, _, x| spread(&x, x.clone().sum_dim(0))),
    ("sum of all", |_, _, x| spread(&x, x.clone().sum())),
    ("max_dim", |_, _, x| x.max_dim(3)),
    ("matmul", |p, ids, x| x.matmul(p.tensor(ids.matrix))),
    ("matmul of a transposed weight", |p, ids, x| rows(x).matmul(p.tensor(ids.weight).transpose())),
    ("matmul of many", |_, _, x| x.clone().matmul(x.transpose())),
    ("softmax", |_, _, x| x.softmax(3)),
    ("log_softmax", |_, _, x| rows(x).log_softmax(1)),
    ("permute", |_, _, x| x.permute(&[0, 3, 1, 2])),
    ("permute of images", |_, _, x| x.clone().permute(&[1, 2, 0, 3]).mean_dim(0).permute(&[2, 1, 0, 3])),
    ("reshape of images behind", |_, _, x| {
        let [batch, _, height, width] = x.dims();
        let behind = x.permute(&[1, 0, 2, 3]).reshape([3, batch * height, width]);
        behind.max_dim(0).reshape([batch, height * width])
    }),
    ("narrow", |_, _, x| x.clone().narrow(1, 1, 2) + x.narrow(1, 0, 1)),
    ("narrow to all", |_, _, x| { let n = x.shape()[0]; x.narrow(0, 0, n) }),
    ("narrow to the first image", |_, _, x| spread(&x, x.clone().narrow(0, 0, 1))),
    ("flip", |_, _, x| x.clone().flip(3) - x.flip(1)),
    ("flip of images", |_, _, x| x.flip(0)),
    ("expand", |p, ids, x| { let s = x.shape(); p.vector(ids.row).expand(s) + x.mean_dim(2).expand(s) }),
    ("expand of a token", |p, ids, x| {
        let [batch, _, _, width] = x.dims();
        let token = p.tensor(ids.token).expand([batch, 2, width]);
        Tensor::cat(vec![token, tokens(x)], 1)
    }),
    ("expand of a token that one image has once", |p, ids, x| {
        let [batch, _, _, width] = x.dims();
        let token = p.tensor(ids.token).expand([batch, 1, width]);
        Tensor::cat(vec![token, tokens(x)], 1)
    }),
    ("expand of images", |_, _, x| {
        let [batch, channels, height, width] = x.dims();
        x.mean_dim(2).reshape([1, batch, channels, width]).expand([height, batch, channels, width]).swap_dims(0, 1)
    }),
    ("constant for every image", |_, _, x| {
        let [batch, _, height, width] = x.dims();
        let one = hashed(5, 2 * width);
        let zeros = Tensor::new(one.repeat(batch), [batch, 2, width], &Device::Cpu);
        let row = Tensor::new(hashed(6, 3 * height).repeat(batch), [batch * 3 * height, 1], &Device::Cpu);
        let x = rows(x) + row;
        Tensor::cat(vec![x.reshape([batch, 3 * height, width]), zeros], 1)
    }),
    ("index_select", |_, _, x| x.index_select(1, [2, 0, 0, 1])),
    ("index_select of rows of every image", |_, _, x| {
        let [batch, _, height, _] = x.dims();
        let image = (3 * height) as i32;
        let indices = (0..batch as i32).flat_map(|i| [i * image + image - 1, i * image, i * image + 1]);
        rows(x).index_select(0, indices.collect::<Vec<_>>())
    }),
    ("index_select of the first image", |_, _, x| spread(&x, x.clone().index_select(0, [0]))),
    ("pick", |_, _, x| {
        let x = rows(x);
        let columns: Vec<i32> = (0..x.shape()[0]).map(|_| 0).collect();
        x.pick(&columns)
    }),
    ("cat", |_, _, x| Tensor::cat(vec![x.clone(), x.clone().exp(), x.mean_dim(1)], 1)),
    ("cat of images", |_, _, x| Tensor::cat(vec![x.clone(), x.exp()], 0)),
    ("cast", |_, _, x| (x.to_dtype(Dtype::F64) * 0.1 + 0.7).exp().to_dtype(Dtype::F32)),
    ("conv2d", |p, ids, x| x.conv2d(p.tensor(ids.filters), Some(p.vector(ids.filter_bias)), 2, 2, 3)),
    ("conv2d with dense filters", |p, ids, x| {
        let filters = p.tensor(ids.pair).narrow(2, 0, 1).narrow(3, 0, 1);
        x.conv2d(filters, None, 1, 0, 1)
    }),
    ("depthwise", |p, ids, x| {
        let [batch, channels, height, width] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([batch * height * width, channels]);
        ops::depthwise(rows, Segment::new(batch, [height, width]), p.tensor(ids.depthwise), Precision::F32)
    }),
    ("convolution", |p, ids, x| {
        let [batch, _, height, width] = x.dims();
        let maps = Segment::new(batch, [height, width]);
        let rows = x.permute(&[0, 2, 3, 1]).reshape([batch * height * width, 3]);
        let filters = p.tensor(ids.depthwise).reshape([1, 3, 3, 3]);
        let bias = p.vector(ids.bias).narrow(0, 1, 1);
        let padded = ops::convolution(rows, &[maps], filters, Some(bias), [2, 1], ForwardCtx::eval().compute(Packing::default()));
        let filters = p.vector(ids.filter_bias).reshape([6, 1, 1, 1]);
        ops::convolution(padded.0, &padded.1, filters, None, [1, 0], ForwardCtx::eval().compute(Packing::default())).0
    }),
    ("max_pool", |_, _, x| {
        let [batch, channels, height, width] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([batch * height * width, channels]);
        ops::max_pool(rows, &[Segment::new(batch, [height, width])], [3, 2, 1]).0
    }),
    ("cross_attention", |p, ids, x| {
        let (batch, image) = (x.shape()[0], 3 * x.shape()[2]);
        let q = rows(x.clone()).matmul(p.tensor(ids.matrix)).index_select(1, [0, 1, 2, 3]);
        let kv = tokens(x).narrow(1, 0, 2).matmul(p.tensor(ids.matrix)).index_select(2, [4, 3, 2, 1, 0, 1, 2, 3]);
        ops::cross_attention(q, kv.reshape([2 * batch, 8]), &vec![[image, 2]; batch], 2, Precision::F32)
    }),
    ("causal_attention", |p, ids, x| {
        let (batch, image) = (x.shape()[0], 3 * x.shape()[2]);
        let qkv = rows(x).matmul(p.tensor(ids.matrix));
        let q = qkv.clone().index_select(1, [0, 1, 2, 3]);
        let kv = qkv.index_select(1, [4, 3, 2, 1, 0, 1, 2, 3]);
        ops::causal_attention(q, kv, &vec![image; batch], 2, Precision::F32)
    }),
    ("embed_colors", |p, ids, x| {
        let pixels = rows(x).matmul(p.tensor(ids.matrix)).index_select(1, [4, 0, 1]);
        let palette = p.tensor(ids.matrix).narrow(1, 0, 3);
        ops::embed_colors(pixels, palette, p.tensor(ids.matrix))
    }),
    ("fixed_batch_norm", |p, ids, x| {
        let row = p.vector(ids.row);
        ops::fixed_batch_norm(rows(x), [row.clone(), row.clone()], [row.clone(), row.square()], 1e-2)
    }),
    ("batch_norm_relu with a shortcut", |p, ids, x| {
        let (row, x) = (p.vector(ids.row), rows(x));
        let norm = BatchNormValues::fixed([row.clone(), row.clone()], [row.clone(), row.square()], 1e-2);
        ops::batch_norm_relu(x.clone() * 0.5, norm, Some(x), Precision::F32)
    }),
    ("batch_norm_relu_convolution", |p, ids, x| {
        let [batch, _, height, width] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([batch * height * width, 3]);
        let filters = p.tensor(ids.depthwise).reshape([1, 3, 3, 3]);
        let row = p.vector(ids.bias).narrow(0, 0, 3);
        let norm = BatchNormValues::fixed([row.clone(), row.clone()], [row.clone(), row.square()], 1e-2);
        let maps = [Segment::new(batch, [height, width])];
        let compute = ForwardCtx::eval().compute(Packing::default());
        ops::batch_norm_relu_convolution(rows, norm, &maps, filters, [1, 1], compute).0
    }),
    ("l2_normalize", |_, _, x| ops::l2_normalize(rows(x))),
    ("l2_normalize of zeros", |_, _, x| ops::l2_normalize(rows(x.clone() - x.clone()) + 1e-13)),
    ("global_average_pool of parts", |_, _, x| {
        let [batch, _, height, _] = x.dims();
        ops::global_average_pool(rows(x), &vec![height; 3 * batch])
    }),
    ("quick gelu before a linear layer", |p, ids, x| {
        ops::linear(rows(x), p.tensor(ids.weight), p.vector(ids.bias), Activation::QuickGelu, Precision::F32)
    }),
    ("a weight as it is, then transposed", |p, ids, x| {
        let y = rows(x).matmul(p.tensor(ids.weight).transpose()).matmul(p.tensor(ids.weight));
        ops::linear(y, p.tensor(ids.weight), p.vector(ids.bias), Activation::None, Precision::F32)
    }),
    ("a weight transposed, then as it is", |p, ids, x| {
        let layer = |x| ops::linear(x, p.tensor(ids.weight), p.vector(ids.bias), Activation::Gelu, Precision::F32);
        layer(layer(rows(x)).matmul(p.tensor(ids.weight)))
    }),
    ("a computed weight", |p, ids, x| {
        let weight = p.tensor(ids.weight);
        let length = weight.clone().square().sum_dim(1).sqrt() + 0.1;
        ops::linear(rows(x), weight / length, p.vector(ids.bias).exp(), Activation::None, Precision::F32)
    }),
    ("norm of a parameter's rows", |p, ids, x| {
        let [row, ones] = [0.0, 1.0].map(|v| p.vector(ids.row) * 0.1 + v);
        let table = ops::layer_norm(p.tensor(ids.pair).reshape([6 * x.shape()[2], x.shape()[3]]), ones, row, 1e-3, Precision::F32);
        let [_, channels, height, width] = x.dims();
        x + table.narrow(0, 0, channels * height).reshape([1, channels, height, width])
    }),
    ("plain attention", |p, ids, x| {
        let (batch, image) = (x.shape()[0], 3 * x.shape()[2]);
        let x = rows(x).matmul(p.tensor(ids.matrix)).index_select(1, [0, 1, 2, 3]);
        let table = p.tensor(ids.weight).reshape([5 * p.vector(ids.row).numel()]);
        let value = |rows: usize, columns: usize| {
            let places = (0..rows * columns).map(|at| (at * 7 % table.numel()) as i32);
            table.clone().index_select(0, places.collect::<Vec<_>>()).reshape([rows, columns])
        };
        let layer = |rows, columns| LinearValues { weight: value(rows, columns), bias: value(rows, 1).reshape([rows]) };
        let norm = NormValues { gamma: value(4, 1).reshape([4]), beta: value(4, 1).reshape([4]), eps: 1e-2 };
        let layers = [layer(12, 4), layer(4, 4)];
        ops::plain_attention_branch(x, &vec![image; batch], 2, norm, layers, None, ForwardCtx::eval().compute(Packing::default()))
    }),
    ("batch norm of evaluations", |p, ids, x| {
        let row = |v: Tensor| { let n = v.numel(); v.reshape([1, n]) };
        let [mean, variance] = [row(p.vector(ids.row)), row(p.vector(ids.row).square())];
        (rows(x) - mean) / (variance + 1e-2).sqrt() * row(p.vector(ids.row)) + row(p.vector(ids.row))
    }),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every operation, for any size and number of images.
    #[test]
    fn graphs_compute_plain_operations(height in 1usize..6, width in 1usize..8, stream in 0u32..100) {
        let size = [height, width];
        let (ids, list) = parameters(size);
        let params = fill(&list, stream);
        for &(what, compute) in OPERATIONS {
            check(what, &function(ids, compute), &params, size);
        }
    }
}

#[test]
fn filters_and_matrices_are_stored_in_16_bits() {
    let (ids, list) = parameters([4, 5]);
    let params = fill(&list, 3);
    let compute: Compute = |p, ids, x| {
        let y = x.matmul(p.tensor(ids.matrix)) + p.vector(ids.bias);
        y.conv2d(p.tensor(ids.filters), None, 1, 1, 3)
    };
    let function = function(ids, compute);
    check_float("16 bits", &function, &params, [4, 5], (Float::Bf16, 0.05));
    let model = write(&function, &params, [4, 5], Float::Bf16).unwrap();
    let types = ["matrix.stored", "filters.stored", "bias"].map(|name| model.types[name]);
    assert_eq!(types, [16, 16, 1]);
}

/// The error names family and operation.
#[test]
fn what_has_no_form_is_an_error() {
    let (ids, list) = parameters([3, 2]);
    let params = fill(&list, 0);
    let cases: [(Compute, &str); 7] = [
        (
            |_, _, x| Tensor::cat(vec![x, Tensor::ones([1, 3, 3, 2], &Device::Cpu)], 0).exp(),
            "`Exp` takes [2, 3, 3, 2] for one image and [3, 3, 3, 2] for two",
        ),
        (
            |p, ids, x| {
                ops::batch_norm(rows(x), p.vector(ids.row), p.vector(ids.row), 0.1, &Solo::shared())
                    .0
            },
            "a value that was taken off the tape",
        ),
        (
            |_, _, x| {
                let fixed = x.clone().detach();
                x * fixed
            },
            "a value that was taken off the tape",
        ),
        (|_, _, x| x.clone().narrow(0, x.shape()[0] - 1, 1) * x, "`Strided`"),
        (
            |_, _, x| {
                let last = x.shape()[0] as i32 - 1;
                x.clone().index_select(0, [last]) * x
            },
            "`IndexSelect`",
        ),
        (
            |_, _, x| {
                let batch = x.shape()[0];
                let factors = Tensor::new(hashed(1, batch), [batch, 1, 1, 1], &Device::Cpu);
                x * factors
            },
            "a constant [1, 1, 1, 1] that depends on the batch",
        ),
        (
            |_, _, x| if x.shape()[0] == 1 { x.exp() } else { x.tanh() },
            "a batch of two otherwise than one image",
        ),
    ];
    for (compute, expected) in &cases {
        let error =
            write(&function(ids, *compute), &params, [3, 2], Float::F32).err().unwrap().to_string();
        let start = "a Toy backbone has no ONNX form: ";
        assert!(error.starts_with(start) && error.contains(expected), "{error}");
        assert!(error.contains("hint: "), "{error}");
    }
}

/// Patches, positions, a block that gates normalized tokens by their mean, and a last norm.
#[derive(Debug)]
struct Toy {
    embed: Linear,
    positions: ParamId,
    norm: LayerNorm,
    gate: ParamId,
    last: LayerNorm,
}

const PATCH: usize = 2;
const WIDTH: usize = 8;

impl Toy {
    fn new([height, width]: [usize; 2]) -> (Self, std::sync::Arc<ParamList>) {
        let tokens = (height / PATCH) * (width / PATCH);
        let mut registry = Registry::default();
        let mut root = registry.root();
        let init = Init::TruncatedNormal(0.02);
        let toy = Self {
            embed: Linear::new(&mut root.at("embed"), 3 * PATCH * PATCH, WIDTH),
            positions: root.param("positions", &[1, tokens, WIDTH], init),
            norm: LayerNorm::new(&mut root.at("norm"), WIDTH, 1e-3),
            gate: root.param("gate.weight", &[WIDTH, WIDTH], init),
            last: LayerNorm::new(&mut root.at("last"), WIDTH, 1e-3),
        };
        (toy, registry.finish())
    }
}

impl Backbone for Toy {
    fn family(&self) -> &'static str {
        "Toy"
    }

    fn stages(&self) -> Vec<Stage> {
        vec![Stage { blocks: 1, width: WIDTH, stride: PATCH, heads: 0 }]
    }

    fn run(
        &self,
        params: &Params,
        mut input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        let (rows, segment) = ops::patchify(input.images.remove(0), PATCH);
        let by_image = [segment.images, segment.tokens(), WIDTH];
        let flat = [segment.images * segment.tokens(), WIDTH];
        let rows = self.embed.forward(params, rows, Activation::None, ctx);
        let x = rows.reshape(by_image) + params.tensor(self.positions);
        let normed = self.norm.forward(params, x.clone().reshape(flat), ctx).reshape(by_image);
        let mean = normed.clone().mean_dim(1);
        let gate = mean.matmul(params.tensor(self.gate).transpose()).gelu();
        let rows = (x + normed * gate).reshape(flat);
        let maps = TokenMaps { rows, segments: vec![segment] };
        let block = BlockOutput { index: 0, stage: 0, ends_stage: true, maps: &maps };
        tap(block).is_continue().then_some(maps)
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.last.forward(params, maps.rows, ctx), ..maps }
    }
}

#[test]
fn a_backbone_of_plain_operations() {
    for size in [[6, 8], [7, 5], [2, 2]] {
        let (toy, list) = Toy::new(size);
        let params = fill(&list, 20);
        check("toy", &toy, &params, size);
        check_float("toy in 16 bits", &toy, &params, size, (Float::Bf16, 0.05));
    }
}

#[test]
fn the_cost_of_plain_operations_by_hand() {
    let (toy, list) = Toy::new([6, 8]);
    let tape = Tape::new();
    let symbols = list.iter().map(|spec| tape.symbol(&spec.name, [spec.len()])).collect();
    let params = fill(&list, 20).with_trained(symbols);
    let images = tape.symbol("images", [1, 3, 6, 8]);
    let toy: &dyn Backbone = &toy;
    toy.forward(&params, images, &ForwardCtx::eval());
    let (tokens, columns) = (12.0, 12.0);
    let map = tokens * 8.0;
    // The linear layer, and the gate of the mean token.
    let macs = tokens * columns * 8.0 + 8.0 * 8.0;
    let saved = [
        // The linear layer; the norm.
        tokens * columns + map,
        // The mean token and the transposed weight; what GELU takes.
        8.0 + 64.0 + 8.0,
        // Both factors of the gating; the last norm.
        map + 8.0 + map,
    ];
    let saved_bytes = 4.0 * saved.iter().sum::<f64>();
    let largest = tokens * columns;
    assert_eq!(tape.cost(), Cost { macs, saved_bytes, largest, ..Cost::default() });
}

type Saving = fn(Tensor) -> Tensor;

/// What operations save, in values for `x [2, 3, 4, 5]`.
#[test]
fn saved_values_of_plain_operations() {
    let cases: [(&str, Saving, usize); 16] = [
        ("a number", |x| x * 2.0 + 1.0, 0),
        ("a quotient by a number", |x| x / 2.0, 0),
        ("a sum", |x| x.clone() + x.exp(), 120),
        // A computed right operand that is needed is kept by the tape.
        ("a product", |x| x.clone() * x.exp(), 3 * 120),
        ("a function", |x| x.gelu(), 120),
        ("a mean", |x| x.mean_dim(1), 0),
        ("indices of maxima", |x| x.max_dim(3), 24),
        ("softmax", |x| x.softmax(3), 120),
        ("log-softmax", |x| x.log_softmax(3), 120),
        ("places", |x| x.permute(&[3, 1, 0, 2]).narrow(0, 1, 2).flip(2).index_select(1, [0]), 0),
        ("unit rows and their lengths", |x| ops::l2_normalize(x.reshape([24, 5])), 144),
        (
            "depthwise",
            |x| {
                let weight = Tensor::ones([3, 3, 5], &Device::Cpu);
                ops::depthwise(x.reshape([24, 5]), Segment::new(2, [3, 4]), weight, Precision::F32)
            },
            120,
        ),
        (
            "a convolution",
            |x| x.conv2d(Tensor::ones([2, 3, 1, 1], &Device::Cpu), None, 1, 0, 1),
            120,
        ),
        (
            "convolution over maps",
            |x| {
                let weight = Tensor::ones([2, 5, 1, 1], &Device::Cpu);
                let compute = ForwardCtx::eval().compute(Packing::default());
                let maps = [Segment::new(2, [3, 4])];
                ops::convolution(x.reshape([24, 5]), &maps, weight, None, [2, 0], compute).0
            },
            120,
        ),
        (
            "batch norm of evaluations",
            |x| {
                let row = || Tensor::ones([5], &Device::Cpu);
                let statistics = [row(), row()];
                ops::fixed_batch_norm(x.reshape([24, 5]), [row(), row()], statistics, 0.1)
            },
            120,
        ),
        (
            "batch norm and its statistics",
            |x| {
                let row = Tensor::ones([5], &Device::Cpu);
                ops::batch_norm(x.reshape([24, 5]), row.clone(), row, 0.1, &Solo::shared()).0
            },
            120,
        ),
    ];
    for (what, compute, expected) in cases {
        let tape = Tape::new();
        compute(tape.symbol("x", [2, 3, 4, 5]));
        assert_eq!(tape.cost().saved_bytes, 4.0 * expected as f64, "{what}");
    }
}
