//! How fast a backbone is.

use esvit_kernels::pool;
use esvit_model::PretrainedBackbone;
use esvit_nn::{ForwardCtx, Tensor};

use crate::bench::{median, time};

/// Pixels of a batch, and the fewest and most images that it has.
const PIXELS: usize = 1 << 20;
const BATCH: [usize; 2] = [8, 64];
const ITERATIONS: usize = 5;

/// Images per second of the forward pass at the size that the backbone is evaluated at, as evaluations
/// run it: the median of five batches.
pub fn forward_images_per_s(backbone: &PretrainedBackbone) -> f64 {
    let PretrainedBackbone { network, params, preprocess, .. } = backbone;
    let size = preprocess.size();
    let [least, most] = BATCH;
    let batch = (PIXELS / (size * size).max(1)).clamp(least, most);
    let shape = [batch, 3, size, size];
    // Values between -1 and 1 that are not all alike.
    let pixels: Vec<f32> =
        (0..batch * 3 * size * size).map(|i| (i % 255) as f32 / 127.0 - 1.0).collect();
    let images = Tensor::new(pixels, shape, &params.device());
    let seconds = time(ITERATIONS, |_| {
        let view = pool::run(|| {
            network.forward(params, images.clone(), &ForwardCtx::eval()).view.to_vec::<f32>()
        });
        std::hint::black_box(view);
    });
    batch as f64 / median(&seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backbone;

    #[test]
    fn a_speed_is_a_number_of_images() {
        let speed = forward_images_per_s(&backbone(1));
        assert!(speed.is_finite() && speed > 0.0, "{speed}");
    }
}
