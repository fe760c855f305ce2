//! Depthwise convolution over maps of tokens.

use esvit_kernels::buffer::{self, Buffer};
use esvit_kernels::depthwise::{self, FeatureMaps};
use esvit_kernels::element::{self, Bf16};

use super::Segment;
use super::batch_norm::{BatchNormValues, Norm};
use super::cpu::{gradients, made_like, values};
use super::prelude::*;
use crate::tensor::{Dtype, Element};

/// Depthwise convolution of the maps of `segment`, `x [rows, C]`, with `weight [k, k, C]`: stride
/// 1, zero padding of `k / 2`. Rows are saved in `precision`.
///
/// # Panics
/// When the filter is not square, its side is even, or the segment has prefix tokens.
pub fn depthwise(x: Tensor, segment: Segment, weight: Tensor, precision: Precision) -> Tensor {
    apply(Depthwise { maps: maps_of(&segment, &weight), precision }, [x, weight])
}

/// The same and the norm by given statistics after it. Where nothing learns, both are one operation whose
/// results are stored in `precision`, as maps may be.
///
/// # Panics
/// As [`depthwise()`].
pub fn depthwise_batch_norm(
    x: Tensor,
    segment: Segment,
    weight: Tensor,
    norm: BatchNormValues,
    precision: Precision,
) -> Tensor {
    if [&x, &weight].into_iter().chain(&norm.parameters).any(Tensor::is_tracked) {
        let y = depthwise(x.to_dtype(Dtype::F32), segment, weight, precision);
        return norm.forward(y, precision);
    }
    let maps = maps_of(&segment, &weight);
    let BatchNormValues { norm, parameters } = norm;
    let inputs: Vec<Tensor> = [x, weight].into_iter().chain(parameters).collect();
    apply(DepthwiseBatchNorm { maps, norm, precision }, inputs)
}

fn maps_of(segment: &Segment, weight: &Tensor) -> FeatureMaps {
    let [side, across, channels] = weight.dims();
    assert!(side == across && side % 2 == 1, "a square filter of odd side, not {side} x {across}");
    segment.assert_map("depthwise convolution");
    FeatureMaps { size: segment.map, channels, kernel_size: side }
}

#[derive(Debug)]
struct Depthwise {
    maps: FeatureMaps,
    precision: Precision,
}

impl Operation for Depthwise {
    fn cost(&self, inputs: &[Shape]) -> Cost {
        let values = inputs[0].numel();
        Cost::products(values * self.maps.kernel_size.pow(2)).saving(values, self.precision)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let FeatureMaps { size: [height, width], channels, kernel_size: side } = self.maps;
        let (x, weight) = (nodes.input(0), nodes.input(1));
        let maps = nodes.reshape(&x, &[height, width, channels]);
        let maps = nodes.transpose(&maps, &[0, 3, 1, 2]);
        let filters = nodes.transpose(&weight, &[2, 0, 1]);
        let filters = nodes.reshape(&filters, &[1, side, side]);
        let y = nodes.conv(&maps, &filters, [side; 2], 1, side / 2, channels);
        let y = nodes.transpose(&y, &[0, 2, 3, 1]);
        Some(nodes.reshape(&y, &[channels]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let (x, weight) = (values(&inputs[0]), values(&inputs[1]));
        let mut y = buffer::uninit(x.len());
        depthwise::forward(&self.maps, x, weight, &mut y);
        let y = made_like(y, &inputs[0]);
        (y, save.then(|| Saved::new(self.precision.save(inputs.swap_remove(0)))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let x = pass.saved.take::<SavedRows>().restored();
        let (weight, dy) = (values(&pass.parameters[0]), values(&pass.gradient));
        let mut dx = buffer::uninit(dy.len());
        let dweight = depthwise::backward(&self.maps, values(&x), weight, dy, &mut dx);
        gradients(Some(made_like(dx, &x)), [dweight], pass.parameters)
    }
}

/// Inputs: `x`, `weight` and those of the norm.
#[derive(Debug)]
struct DepthwiseBatchNorm {
    maps: FeatureMaps,
    norm: Norm,
    precision: Precision,
}

impl DepthwiseBatchNorm {
    fn results<O>(&self, inputs: &[Tensor]) -> Tensor
    where
        O: element::Element + Element<Memory = Buffer<O>>,
    {
        let (x, weight, maps) = (&inputs[0], values(&inputs[1]), &self.maps);
        let norm = &self.norm.of_maps(&inputs[2..], 1)[0];
        let y = match x.dtype() {
            Dtype::Bf16 => depthwise::forward_normalized::<Bf16, O>(maps, x.values(), weight, norm),
            _ => depthwise::forward_normalized::<f32, O>(maps, x.values(), weight, norm),
        };
        Tensor::of_memory::<O>(y, x.shape())
    }
}

impl Operation for DepthwiseBatchNorm {
    fn dtype(&self, _: Dtype) -> Dtype {
        self.precision.dtype()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::products(inputs[0].numel() * self.maps.kernel_size.pow(2))
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let y = match self.precision.dtype() {
            Dtype::Bf16 => self.results::<Bf16>(&inputs),
            _ => self.results::<f32>(&inputs),
        };
        (y, None)
    }
}
