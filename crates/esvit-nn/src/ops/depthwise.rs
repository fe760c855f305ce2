//! Depthwise convolution over maps of tokens.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use esvit_kernels::buffer;
use esvit_kernels::depthwise::{self, FeatureMaps};

use super::Segment;
use super::extension::{
    Entry, Fused, Kept, Operation, has_kernels, keep_or_reclaim, made_like, own, reclaim, values,
};

/// Depthwise convolution of the maps of `segment`, `x [rows, C]`, with `weight [k, k, C]`: stride
/// 1, zero padding of `k / 2`.
///
/// # Panics
/// When the filter is not square or its side is even.
pub fn depthwise(x: Tensor<2>, segment: Segment, weight: Tensor<3>) -> Tensor<2> {
    let [side, across, channels] = weight.dims();
    assert!(side == across && side % 2 == 1, "a square filter of odd side, not {side} x {across}");
    if !has_kernels(&x.device()) {
        return composed_depthwise(x, segment, weight);
    }
    let operation = Arc::new(Depthwise {
        maps: FeatureMaps { size: segment.map, channels, kernel_size: side },
    });
    Tensor::from_dispatch(Entry::fused2(operation, x.into_dispatch(), weight.into_dispatch()))
}

/// [`depthwise()`] composed of the framework's operations.
pub fn composed_depthwise(x: Tensor<2>, segment: Segment, weight: Tensor<3>) -> Tensor<2> {
    let [side, _, channels] = weight.dims();
    let Segment { images, map: [height, width] } = segment;
    let maps = x.reshape([images, height, width, channels]).permute([0, 3, 1, 2]);
    let weight = weight.permute([2, 0, 1]).reshape([channels, 1, side, side]);
    let options = ConvOptions::new([1, 1], [side / 2; 2], [1, 1], channels);
    let maps = conv2d(maps, weight, None, options);
    maps.permute([0, 2, 3, 1]).reshape([images * height * width, channels])
}

#[derive(Debug)]
struct Depthwise {
    maps: FeatureMaps,
}

impl Operation for Depthwise {
    fn forward(&self, mut inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>) {
        let (x, weight) = (values(&inputs[0]), values(&inputs[1]));
        let mut y = buffer::uninit(x.len());
        depthwise::forward(&self.maps, x, weight, &mut y);
        let y = made_like(y, &inputs[0]);
        (y, keep_or_reclaim(inputs.swap_remove(0), keep))
    }

    fn backward(
        &self,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let x: FlexTensor = own(kept);
        let mut dx = buffer::uninit(values(&x).len());
        let weight = values(&parameters[0]);
        let dweight =
            depthwise::backward(&self.maps, values(&x), weight, values(&gradient), &mut dx);
        let dx = made_like(dx, &x);
        reclaim(gradient);
        reclaim(x);
        vec![Some(dx), Some(made_like(dweight, &parameters[0]))]
    }
}
