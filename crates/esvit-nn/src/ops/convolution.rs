//! Convolution and max pooling over maps of tokens.

use esvit_kernels::batch_norm::Normalization;
use esvit_kernels::convolution::{self, Epilogue, Gradients};
use esvit_kernels::maps::Maps;
use esvit_kernels::pooling;

use super::batch_norm::{BatchNormValues, Norm, batch_norm_relu};
use super::cpu::{gradients, made, made_like, values};
use super::prelude::*;
use super::{Compute, Segment};

pub use esvit_kernels::maps::Filter;

/// Convolution of the maps of `x [rows, in]` with square filters `weight [out, in, k, k]` and
/// `bias [out]`: rows `[.., out]` and their segments. `stride` pixels lie between two places of a
/// filter, `padding` zeros around a map; what lies beyond the last whole step is dropped.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn convolution(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    bias: Option<Tensor>,
    [stride, padding]: [usize; 2],
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let [_, channels, side, across] = weight.dims();
    assert_eq!(side, across, "a square filter");
    let filter = Filter { channels, side, stride, padding };
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(bias).collect();
    (apply(Convolution { maps, filter, norm: None, compute }, inputs), moved)
}

/// The same without bias of maps that are normalized and go through ReLU first: `convolution(
/// relu(norm(x)))`. What these give is not saved. With statistics of runs the runs are the segments.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn batch_norm_relu_convolution(
    x: Tensor,
    norm: BatchNormValues,
    segments: &[Segment],
    weight: Tensor,
    [stride, padding]: [usize; 2],
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let [_, channels, side, across] = weight.dims();
    assert_eq!(side, across, "a square filter");
    let filter = Filter { channels, side, stride, padding };
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let BatchNormValues { norm, parameters } = norm;
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(parameters).collect();
    (apply(Convolution { maps, filter, norm: Some(norm), compute }, inputs), moved)
}

/// A convolution without bias and the norm after it, or with a `shortcut` as long as the results
/// `relu(norm(convolution(..)) + shortcut)`; what the first of the norms, if there is one, and ReLU make of
/// the maps is convolved. The last norm has given statistics. Where nothing learns, all of it is
/// one operation, so that results go through memory once.
///
/// # Panics
/// When a segment has prefix tokens, a filter is not square, or a map is smaller than it.
pub fn convolution_batch_norm(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    [stride, padding]: [usize; 2],
    (before, after): (Option<BatchNormValues>, BatchNormValues),
    shortcut: Option<Tensor>,
    compute: Compute,
) -> (Tensor, Vec<Segment>) {
    let of_norms = before.iter().chain([&after]).flat_map(|norm| &norm.parameters);
    let learns = [&x, &weight].into_iter().chain(of_norms).chain(&shortcut).any(Tensor::is_tracked);
    if learns {
        let precision = compute.precision;
        let step = [stride, padding];
        let (y, moved) = match before {
            Some(norm) => batch_norm_relu_convolution(x, norm, segments, weight, step, compute),
            None => convolution(x, segments, weight, None, step, compute),
        };
        let y = match shortcut {
            Some(shortcut) => batch_norm_relu(y, after, Some(shortcut), precision),
            None => after.forward(y, precision),
        };
        return (y, moved);
    }
    let [_, channels, side, across] = weight.dims();
    assert_eq!(side, across, "a square filter");
    let filter = Filter { channels, side, stride, padding };
    let (maps, moved) = moved(segments, &filter, "a convolution");
    let (norm, of_before) = before.map(|norm| (norm.norm, norm.parameters)).unzip();
    let has_shortcut = shortcut.is_some();
    let inputs = [x, weight].into_iter().chain(of_before.into_iter().flatten());
    let inputs: Vec<Tensor> = inputs.chain(after.parameters).chain(shortcut).collect();
    let convolution = Convolution { maps, filter, norm, compute };
    (apply(ConvolutionBatchNorm { convolution, norm: after.norm, has_shortcut }, inputs), moved)
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

/// Rows that a filter makes of maps.
fn positions(maps: &[Maps], filter: &Filter) -> usize {
    maps.iter().map(|maps| maps.images * filter.output(maps).tokens()).sum()
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
    compute: Compute,
}

impl Convolution {
    /// The norm of every size of maps, with inputs `x`, `weight` and so on.
    fn norms(&self, of_norm: &[Tensor]) -> Option<Vec<Normalization>> {
        self.norm.as_ref().map(|norm| norm.of_maps(of_norm, self.maps.len()))
    }

    /// The results, with what follows.
    fn compute(&self, inputs: &[Tensor], epilogue: Option<Epilogue<'_>>) -> Tensor {
        let Self { maps, filter, norm, compute } = self;
        let (x, weight) = (values(&inputs[0]), values(&inputs[1]));
        let bias = inputs.get(2).filter(|_| norm.is_none() && epilogue.is_none()).map(values);
        let (norms, outputs) = (self.norms(&inputs[2..]), inputs[1].shape()[0]);
        let y = with_element!(compute.precision, T => {
            let packed = compute.packing.get(compute.precision, || {
                convolution::pack::<T>(filter, weight, bias)
            });
            convolution::forward(x, maps, filter, norms.as_deref(), &packed, epilogue)
        });
        let shape = [y.len() / outputs, outputs];
        made(y, shape)
    }
}

impl Operation for Convolution {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [_, channels] = inputs[0].dims();
        assert_eq!(channels, self.filter.channels, "channels of maps and filters");
        [positions(&self.maps, &self.filter), inputs[1][0]].into()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let macs = positions(&self.maps, &self.filter) * inputs[1].numel();
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
        let y = self.compute(&inputs, None);
        let saved = save.then(|| Saved::new(self.compute.precision.save(inputs.swap_remove(0))));
        (y, saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let x = pass.saved.take::<SavedRows>().restored();
        let (weight, dy) = (values(&pass.parameters[0]), values(&pass.gradient));
        let of_norm = &pass.parameters[1..];
        let norms = self.norms(of_norm);
        let Gradients { x: dx, weight, bias } = with_element!(self.compute.precision, T => {
            let input = pass.wanted[0] || norms.is_some();
            let (x, norms) = (values(&x), norms.as_deref());
            convolution::backward::<T>(x, &self.maps, &self.filter, norms, weight, dy, input)
        });
        let Some(norm) = &self.norm else {
            let dx = dx.map(|dx| made_like(dx, &x));
            // Without a bias, its gradient is left over.
            return gradients(dx, [weight, bias], pass.parameters);
        };
        let mut dx = dx.expect("asked for");
        let affine = norm.backward(values(&x), of_norm, true, &mut dx);
        let mut found = gradients(Some(made_like(dx, &x)), [weight], pass.parameters);
        let affine = affine.into_iter().zip(of_norm);
        found.extend(affine.map(|(gradient, parameter)| Some(made_like(gradient, parameter))));
        found.resize(1 + pass.parameters.len(), None);
        found
    }
}

/// Inputs: those of the convolution, of the norm after it, and the shortcut, if there is one.
#[derive(Debug)]
struct ConvolutionBatchNorm {
    convolution: Convolution,
    norm: Norm,
    has_shortcut: bool,
}

impl Operation for ConvolutionBatchNorm {
    fn output(&self, inputs: &[Shape]) -> Shape {
        self.convolution.output(inputs)
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        self.convolution.cost(inputs)
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let before = 2 + self.convolution.norm.as_ref().map_or(0, Norm::inputs);
        let after = before + self.norm.inputs();
        let norm = &self.norm.of_maps(&inputs[before..after], 1)[0];
        let shortcut = self.has_shortcut.then(|| values(&inputs[after]));
        (self.convolution.compute(&inputs[..before], Some(Epilogue { norm, shortcut })), None)
    }
}

#[derive(Debug)]
struct MaxPool {
    maps: Vec<Maps>,
    filter: Filter,
}

impl Operation for MaxPool {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(0, positions(&self.maps, &self.filter))
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
        let (y, places) = pooling::max_pool(values(&inputs[0]), &self.maps, &self.filter);
        let channels = self.filter.channels;
        let shape = [y.len() / channels, channels];
        (made(y, shape), save.then(|| Saved::new(places)))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let places: Vec<u8> = pass.saved.take();
        let dy = values(&pass.gradient);
        let dx = pooling::max_pool_backward(dy, &places, &self.maps, &self.filter);
        let shape = [dx.len() / self.filter.channels, self.filter.channels];
        vec![Some(made(dx, shape))]
    }
}
