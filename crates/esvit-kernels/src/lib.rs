//! The lowest floor of `esvit`: code that works on slices and numbers and knows neither images
//! nor tensors.
//!
//! Every kernel gives the same bits however many threads there are: work is cut into pieces by its
//! size alone, and sums over pieces are taken in order.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod best_match;
pub mod buffer;
mod gemm;
mod rows;
mod simd;

pub mod depthwise;
pub mod element;
pub mod isa;
pub mod layer_norm;
pub mod linear;
pub mod merge;
pub mod mlp;
pub mod nearest;
pub mod optimizer;
pub mod peak;
pub mod pool;
pub mod profile;
pub mod prototypes;
pub mod rng;
pub mod tokens;
pub mod window_attention;

pub use rows::SampleScales;

/// Values that one task of an elementwise kernel works on.
const TASK_VALUES: usize = 1 << 15;
