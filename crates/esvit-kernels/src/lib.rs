//! The lowest floor of `esvit`: code that works on slices and numbers and knows neither pictures
//! nor tensors.
//!
//! Every kernel gives the same bits however many threads there are: work is cut into pieces by its
//! size alone, and sums over pieces are taken in order.

mod simd;

pub mod cross_entropy;
pub mod gelu;
pub mod layer_norm;
pub mod matmul;
pub mod optimizer;
pub mod rng;
pub mod window_attention;

/// Values that one task of an elementwise kernel works on.
const TASK_VALUES: usize = 1 << 15;
