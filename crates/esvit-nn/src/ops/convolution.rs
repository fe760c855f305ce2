//! Convolution and max pooling over maps of tokens.

use esvit_kernels::batch_norm::{End, Gate, Normalization};
use esvit_kernels::buffer::Buffer;
use esvit_kernels::convolution::{self, Gradients, InputGradient, OutputGradient};
use esvit_kernels::element::{self, Bf16, Bf16x3};
use esvit_kernels::maps::Maps;
use esvit_kernels::pooling;

use super::batch_norm::{BatchNormValues, Norm, batch_norm_relu};
use super::cpu::{gradients, made, made_like, values};
use super::prelude::*;
use super::{Compute, Segment};
use crate::tensor::{Dtype, Element};

pub use esvit_kernels::maps::Filter;

/// Convolution of the maps of `x [rows, in]` with square filters `weight [out, in, k, k]` and
/// `bias [out]`: rows `[.., out]` and their segments. `moves` are the stride, pixels between two places of a
/// filter, and the padding, zeros around a map; what lies beyond the last whole step is dropped. Where nothing
/// learns, maps may be in the precision.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn convolution(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    bias: Option<Tensor>,
    moves: [usize; 2],
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let filter = filter_of(&weight, moves);
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(bias).collect();
    let operation = Convolution { maps, filter, norm: None, is_stored: false, compute };
    (apply(operation, in_f32_to_learn(inputs)), moved)
}

/// The same without bias, whose results a norm takes: they are stored in the precision, as the maps may be,
/// also where something learns. The gradient of the norm is so, too.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn convolution_before_norm(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    moves: [usize; 2],
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let filter = filter_of(&weight, moves);
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let operation = Convolution { maps, filter, norm: None, is_stored: true, compute };
    (apply(operation, [x, weight]), moved)
}

/// The same of maps that are normalized and go through ReLU first: `convolution(relu(norm(x)))`. What these
/// give is not saved. With statistics of runs the runs are the segments.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn batch_norm_relu_convolution(
    x: Tensor,
    norm: BatchNormValues,
    segments: &[Segment],
    weight: Tensor,
    moves: [usize; 2],
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let filter = filter_of(&weight, moves);
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let BatchNormValues { norm, parameters } = norm;
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(parameters).collect();
    let operation = Convolution { maps, filter, norm: Some(norm), is_stored: true, compute };
    (apply(operation, inputs), moved)
}

/// What comes after a convolution and its norm.
#[derive(Debug, Clone)]
pub enum NormEnd {
    /// Nothing.
    Norm,
    /// `relu(norm(..))`.
    Relu,
    /// `relu(norm(..) + shortcut)`, of a shortcut as long as the results.
    Shortcut(Tensor),
}

/// A convolution without bias, the norm by given statistics after it, and `end`. Where nothing learns,
/// all of it is one operation, so that results go through memory once, and they are stored in the
/// precision: maps and a shortcut may be so as well.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn convolution_batch_norm(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    moves: [usize; 2],
    norm: BatchNormValues,
    end: NormEnd,
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let shortcut = match &end {
        NormEnd::Shortcut(shortcut) => Some(shortcut.clone()),
        NormEnd::Norm | NormEnd::Relu => None,
    };
    let learns = [&x, &weight].into_iter().chain(&norm.parameters).chain(&shortcut);
    if learns.into_iter().any(Tensor::is_tracked) {
        let precision = compute.precision;
        let (y, moved) = convolution(x, segments, weight, None, moves, compute);
        let y = match end {
            NormEnd::Norm => norm.forward(y, precision),
            _ => {
                let shortcut = shortcut.map(|shortcut| shortcut.to_dtype(Dtype::F32));
                batch_norm_relu(y, norm, shortcut, precision)
            }
        };
        return (y, moved);
    }
    let filter = filter_of(&weight, moves);
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let BatchNormValues { norm, parameters } = norm;
    let has_relu = !matches!(end, NormEnd::Norm);
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(parameters).chain(shortcut).collect();
    (apply(ConvolutionBatchNorm { maps, filter, norm, has_relu, compute }, inputs), moved)
}

/// The largest values of the maps of `x [rows, C]` under a square window of `side` pixels at every
/// place, `stride` apart, also with its middle at most `padding` pixels from a border: rows
/// `[.., C]` and their segments.
///
/// # Panics
/// When a segment has prefix tokens, or a map is smaller than the window.
pub fn max_pool(
    x: Tensor,
    segments: &[Segment],
    [side, stride, padding]: [usize; 3],
) -> (Tensor, Vec<Segment>) {
    let [_, channels] = x.dims();
    let filter = Filter { channels, side, stride, padding };
    let (maps, moved) = moved(segments, &filter, "max pooling");
    (apply(MaxPool { maps, filter }, [x]), moved)
}

/// The square filters `weight [out, in, k, k]`, moved by `stride` over maps with `padding`.
fn filter_of(weight: &Tensor, [stride, padding]: [usize; 2]) -> Filter {
    let [_, channels, side, across] = weight.dims();
    assert_eq!(side, across, "a square filter");
    Filter { channels, side, stride, padding }
}

/// The maps of segments, and the segments that a filter makes of them.
fn moved(segments: &[Segment], filter: &Filter, what: &str) -> (Vec<Maps>, Vec<Segment>) {
    let of = |segment: &Segment| {
        segment.assert_map(what);
        let maps = Maps { images: segment.images, size: segment.map };
        let map = filter.positions(segment.map);
        assert!(!map.contains(&0), "{what} of {filter:?} over maps of {:?}", segment.map);
        (maps, Segment { map, ..*segment })
    };
    segments.iter().map(of).unzip()
}

/// The maps of rows as images, `[n, channels, height, width]`, if they have one size.
fn image_nodes(nodes: &mut Nodes<'_>, x: &str, maps: &[Maps], channels: usize) -> Option<String> {
    let [Maps { size: [height, width], .. }] = *maps else { return None };
    let images = nodes.reshape(x, &[height, width, channels]);
    Some(nodes.transpose(&images, &[0, 3, 1, 2]))
}

/// Images as rows.
fn row_nodes(nodes: &mut Nodes<'_>, images: &str, channels: usize) -> String {
    let rows = nodes.transpose(images, &[0, 2, 3, 1]);
    nodes.reshape(&rows, &[channels])
}

/// Inputs: `x`, `weight` and, if there is one, `bias`, or those of a norm before the convolution.
#[derive(Debug)]
struct Convolution {
    maps: Vec<Maps>,
    filter: Filter,
    norm: Option<Norm>,
    /// Whether results are stored in the precision.
    is_stored: bool,
    compute: Compute,
}

impl Convolution {
    /// The results in `O`, of products in `T`.
    fn results<T, O>(&self, inputs: &[Tensor]) -> Tensor
    where
        T: element::Element,
        O: element::Element + Element<Memory = Buffer<O>>,
    {
        let Self { maps, filter, norm, compute, .. } = self;
        let weight = values(&inputs[1]);
        let bias = inputs.get(2).filter(|_| norm.is_none()).map(values);
        let (norms, outputs) = (self.norms(&inputs[2..]), inputs[1].shape()[0]);
        let packed =
            compute.packing.get(compute.precision, || convolution::pack::<T>(filter, weight, bias));
        let y: Buffer<O> = with_stored!(inputs[0], x: I => {
            convolution::forward::<T, I, O>(x, maps, filter, norms.as_deref(), &packed)
        });
        let shape = [y.len() / outputs, outputs];
        Tensor::of_memory::<O>(y, shape)
    }

    /// The gradients of all inputs, that of `x` in `O`, or added to `sum`.
    fn gradients<T, I, O>(
        &self,
        x: &[I],
        pass: &Backward<'_>,
        sum: Option<Tensor>,
    ) -> InputGradients
    where
        T: element::Element,
        I: element::Element,
        O: element::Element + Element<Memory = Buffer<O>>,
    {
        let (weight, of_norm) = (values(&pass.parameters[0]), &pass.parameters[1..]);
        let norms = self.norms(of_norm);
        let dy = match pass.gradient.dtype() {
            Dtype::Bf16 => OutputGradient::Bf16(pass.gradient.values()),
            _ => OutputGradient::F32(values(&pass.gradient)),
        };
        let (adds, wants) = (sum.is_some(), pass.wanted[0] || norms.is_some());
        let shape = [x.len() / self.filter.channels, self.filter.channels];
        let new = || wants.then(|| Tensor::of_memory::<O>(Buffer::scratch(x.len()), shape));
        let mut dx = sum.or_else(new);
        let to = match &mut dx {
            None => InputGradient::Unwanted,
            Some(dx) if adds => InputGradient::Added(dx.values_mut::<O>()),
            Some(dx) => InputGradient::Stored(dx.values_mut()),
        };
        let has_bias = norms.is_none() && !of_norm.is_empty();
        let Self { maps, filter, .. } = self;
        let found = convolution::backward::<T, I, O>(
            x,
            maps,
            filter,
            norms.as_deref(),
            weight,
            dy,
            to,
            has_bias,
        );
        let Gradients { weight, bias } = found;
        let Some(norm) = &self.norm else {
            // Without a bias, its gradient is left over.
            return gradients(dx, [weight, bias], pass.parameters);
        };
        let mut dx = dx.expect("asked for");
        let affine = norm.backward(x, of_norm, Gate::Norm, dx.values_mut::<O>(), None::<&mut [O]>);
        let mut found = gradients(Some(dx), [weight], pass.parameters);
        let affine = affine.into_iter().zip(of_norm);
        found.extend(affine.map(|(gradient, parameter)| Some(made_like(gradient, parameter))));
        found.resize(1 + pass.parameters.len(), None);
        found
    }

    /// The norm of every size of maps, with inputs `x`, `weight` and so on.
    fn norms(&self, of_norm: &[Tensor]) -> Option<Vec<Normalization>> {
        self.norm.as_ref().map(|norm| norm.of_maps(of_norm, self.maps.len()))
    }
}

impl Operation for Convolution {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [_, channels] = inputs[0].dims();
        assert_eq!(channels, self.filter.channels, "channels of maps and filters");
        [self.filter.positions_of_all(&self.maps), inputs[1][0]].into()
    }

    fn dtype(&self, _: Dtype) -> Dtype {
        if self.is_stored { self.compute.precision.dtype() } else { Dtype::F32 }
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let macs = self.filter.positions_of_all(&self.maps) * inputs[1].numel();
        Cost::products(macs).saving(inputs[0].numel(), self.compute.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let Filter { channels, side, stride, padding } = self.filter;
        let mut x = nodes.input(0);
        if let Some(norm) = &self.norm {
            let y = norm.nodes(nodes, &x, 2)?;
            x = nodes.node("Relu", &[&y], &[]);
        }
        let images = image_nodes(nodes, &x, &self.maps, channels)?;
        let (weight, outputs) = (nodes.input(1), nodes.shape(1)[0]);
        let images = nodes.conv(&images, &weight, [side; 2], stride, padding, 1);
        let rows = row_nodes(nodes, &images, outputs);
        if self.norm.is_some() || nodes.count() < 3 {
            return Some(rows);
        }
        let bias = nodes.parameter(2);
        Some(nodes.node("Add", &[&rows, &bias], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let y = match (self.compute.precision, self.is_stored) {
            (Precision::Bf16, true) => self.results::<Bf16, Bf16>(&inputs),
            (precision, _) => with_element!(precision, T => self.results::<T, f32>(&inputs)),
        };
        let saved = save.then(|| Saved::new(self.compute.precision.save(inputs.swap_remove(0))));
        (y, saved)
    }

    fn adds_to_sum(&self) -> bool {
        self.norm.is_none()
    }

    fn backward(&self, mut pass: Backward<'_>) -> InputGradients {
        let x = std::mem::replace(&mut pass.saved, Saved::new(())).take::<SavedRows>();
        let (is_stored, x) = (x.came_stored() && self.norm.is_some(), x.stored());
        let sum = pass.sum.take();
        with_stored!(x, x: I => match (self.compute.precision, is_stored) {
            (Precision::Bf16, true) => self.gradients::<Bf16, I, Bf16>(x, &pass, sum),
            (precision, _) => with_element!(precision, T => {
                self.gradients::<T, I, f32>(x, &pass, sum)
            }),
        })
    }
}

/// Inputs: `x`, `weight`, those of the norm, and the shortcut, if there is one.
#[derive(Debug)]
struct ConvolutionBatchNorm {
    maps: Vec<Maps>,
    filter: Filter,
    norm: Norm,
    has_relu: bool,
    compute: Compute,
}

impl ConvolutionBatchNorm {
    /// The results in `O`, of products in `T`.
    fn results<T, O>(&self, inputs: &[Tensor]) -> Tensor
    where
        T: element::Element,
        O: element::Element + Element<Memory = Buffer<O>>,
    {
        let Self { maps, filter, compute, .. } = self;
        let (weight, outputs) = (values(&inputs[1]), inputs[1].shape()[0]);
        let packed =
            compute.packing.get(compute.precision, || convolution::pack::<T>(filter, weight, None));
        let shortcut = 2 + self.norm.inputs();
        let norm = &self.norm.of_maps(&inputs[2..shortcut], 1)[0];
        let shortcut = inputs.get(shortcut).map(|shortcut| shortcut.clone().to_dtype(O::DTYPE));
        let end = match &shortcut {
            Some(shortcut) => End::Shortcut(shortcut.values()),
            None if self.has_relu => End::Relu,
            None => End::Norm,
        };
        let y = match inputs[0].dtype() {
            Dtype::F32 => {
                let x: &[f32] = inputs[0].values();
                convolution::forward_normalized(x, maps, filter, &packed, norm, end)
            }
            _ => {
                let x: &[O] = inputs[0].values();
                convolution::forward_normalized(x, maps, filter, &packed, norm, end)
            }
        };
        let shape = [y.len() / outputs, outputs];
        Tensor::of_memory::<O>(y, shape)
    }
}

impl Operation for ConvolutionBatchNorm {
    fn output(&self, inputs: &[Shape]) -> Shape {
        [self.filter.positions_of_all(&self.maps), inputs[1][0]].into()
    }

    fn dtype(&self, _: Dtype) -> Dtype {
        self.compute.precision.dtype()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::products(self.filter.positions_of_all(&self.maps) * inputs[1].numel())
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let y = match self.compute.precision {
            Precision::F32 => self.results::<f32, f32>(&inputs),
            Precision::Bf16 => self.results::<Bf16, Bf16>(&inputs),
            Precision::Bf16x3 => self.results::<Bf16x3, f32>(&inputs),
        };
        (y, None)
    }
}

#[derive(Debug)]
struct MaxPool {
    maps: Vec<Maps>,
    filter: Filter,
}

impl Operation for MaxPool {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(0, self.filter.positions_of_all(&self.maps))
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        // A byte for every value.
        let saved_bytes = self.output(inputs).numel() as f64;
        Cost { saved_bytes, ..Cost::default() }
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let Filter { channels, side, stride, padding } = self.filter;
        let x = nodes.input(0);
        let images = image_nodes(nodes, &x, &self.maps, channels)?;
        let attributes = [
            ("kernel_shape", Attribute::Integers(&[side as i64; 2])),
            ("strides", Attribute::Integers(&[stride as i64; 2])),
            ("pads", Attribute::Integers(&[padding as i64; 4])),
        ];
        let images = nodes.node("MaxPool", &[&images], &attributes);
        Some(row_nodes(nodes, &images, channels))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let Self { maps, filter } = self;
        let shape = [filter.positions_of_all(maps), filter.channels];
        with_stored!(inputs[0], x: T => {
            if save {
                let (y, places) = pooling::max_pool(x, maps, filter);
                return (Tensor::of_memory::<T>(y, shape), Some(Saved::new(places)));
            }
            (Tensor::of_memory::<T>(pooling::largest(x, maps, filter), shape), None)
        })
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let places: Vec<u8> = pass.saved.take();
        let dy = pass.gradient.to_dtype(Dtype::F32);
        let dx = pooling::max_pool_backward(values(&dy), &places, &self.maps, &self.filter);
        let shape = [dx.len() / self.filter.channels, self.filter.channels];
        vec![Some(made(dx, shape))]
    }
}
