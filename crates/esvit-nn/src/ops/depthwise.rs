//! Depthwise convolution over maps of tokens.

use esvit_kernels::buffer;
use esvit_kernels::depthwise::{self, FeatureMaps};

use super::Segment;
use super::cpu::{gradients, made_like, values};
use super::prelude::*;

/// Depthwise convolution of the maps of `segment`, `x [rows, C]`, with `weight [k, k, C]`: stride
/// 1, zero padding of `k / 2`. Rows are saved in `precision`.
///
/// # Panics
/// When the filter is not square, its side is even, or the segment has prefix tokens.
pub fn depthwise(x: Tensor, segment: Segment, weight: Tensor, precision: Precision) -> Tensor {
    let [side, across, channels] = weight.dims();
    assert!(side == across && side % 2 == 1, "a square filter of odd side, not {side} x {across}");
    segment.assert_map("depthwise convolution");
    let maps = FeatureMaps { size: segment.map, channels, kernel_size: side };
    apply(Depthwise { maps, precision }, [x, weight])
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
