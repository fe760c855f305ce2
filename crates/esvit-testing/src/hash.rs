//! Numbers that a hash makes, the same in every language.

use std::sync::Arc;

use esvit_nn::params::{ParamList, Params, Role};
use esvit_nn::{Device, Tensor};

/// A number in `[-1, 1)` for index `i` of a stream. The values of the official code that the tests
/// hold were computed from these inputs and parameters.
pub fn hash(stream: u32, i: usize) -> f64 {
    let mut x = (i as u32)
        .wrapping_mul(2_654_435_761)
        .wrapping_add(stream.wrapping_mul(40_503))
        .wrapping_add(12_345);
    for _ in 0..2 {
        x = (x ^ x >> 16).wrapping_mul(0x45d_9f3b);
    }
    f64::from(x ^ x >> 16) / 4_294_967_296.0 * 2.0 - 1.0
}

/// The first `len` numbers of a stream.
pub fn hashed(stream: u32, len: usize) -> Vec<f32> {
    hashed_times(stream, len, 1.0)
}

/// The first `len` numbers of a stream, scaled.
pub fn hashed_times(stream: u32, len: usize, scale: f64) -> Vec<f32> {
    (0..len).map(|i| (hash(stream, i) * scale) as f32).collect()
}

/// A tensor of the numbers of a stream.
pub fn hashed_tensor<const D: usize>(stream: u32, shape: [usize; D]) -> Tensor {
    Tensor::new(hashed(stream, shape.iter().product()), shape, &Device::Cpu)
}

/// Parts of the names of positions and tokens, which have no inputs to scale by.
const POSITIONS: [&str; 5] =
    ["relative_position_bias", "pos_embed", "cls_token", "dist_token", "reg_token"];

/// Parameters filled from the hash, number `p` in the list (buffers not counted) from stream
/// `first_stream + p`: scaled to keep the variance of what passes through.
pub fn fill(specs: &Arc<ParamList>, first_stream: u32) -> Params {
    let mut stream = first_stream;
    Params::from_fn(specs, &Device::Cpu, |spec| {
        if spec.role == Role::Buffer {
            return spec.initial_values(0);
        }
        let (name, len) = (&spec.name, spec.len());
        let values = if name.ends_with("weight_g") {
            vec![1.0; len]
        } else if POSITIONS.iter().any(|part| name.contains(part)) {
            hashed_times(stream, len, 0.5)
        } else if spec.shape.len() == 1 {
            let center = if name.ends_with("weight") { 1.0 } else { 0.0 };
            (0..len).map(|i| (hash(stream, i) * 0.1 + center) as f32).collect()
        } else {
            let fan_in: usize = spec.shape[1..].iter().product();
            hashed_times(stream, len, (3.0 / fan_in as f64).sqrt())
        };
        stream += 1;
        values
    })
}
