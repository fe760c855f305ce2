//! CPU kernels of `esvit`, on slices: forward and backward passes of the operations of vision
//! transformers, optimizer updates, nearest-neighbor search and counter-based random numbers.
//!
//! Results do not depend on the number of threads: work is split into tasks by its size alone, and
//! partial sums are added in task order.
//!
//! Conventions: matrices are row-major, `[rows, columns]`; a backward pass takes the gradient of
//! the output and returns (or writes in place) those of the inputs. GEMM operands and saved
//! activations have the type [`element::Element`], f32 or bf16; accumulators, parameters and
//! gradients of parameters are f32.

pub mod activation;
pub mod attention;
mod attention_head;
pub mod batch_norm;
pub mod best_match;
pub mod buffer;
pub mod colors;
pub mod convolution;
pub mod cross_attention;
mod elementwise;
pub mod gathered_attention;
mod gemm;
mod reduce;
mod rows;
mod simd;
#[cfg(test)]
mod testing;

pub mod depthwise;
pub mod element;
pub mod huge_pages;
pub mod images;
pub mod isa;
pub mod layer_norm;
pub mod linear;
pub mod maps;
pub mod merge;
pub mod mlp;
pub mod nearest;
pub mod optimizer;
pub mod peak;
pub mod pixels;
pub mod pool;
pub mod pooling;
pub mod profile;
pub mod prototypes;
pub mod resample;
pub mod rng;
pub mod rotary;
pub mod swiglu;
pub mod tokens;
pub mod window_attention;

pub use rows::SampleScales;

/// Values per task of elementwise kernels and of row-wise reductions.
const TASK_VALUES: usize = 1 << 15;
