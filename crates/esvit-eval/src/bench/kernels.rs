//! Benchmark of single kernels, relative to the peak GEMM throughput.

use esvit_kernels::activation::Activation;
use esvit_kernels::element::{Bf16, Bf16x3, Element};
use esvit_kernels::{SampleScales, linear, mlp};
use esvit_nn::ops::Precision;
use serde::Serialize;

use super::{median, peak_gflops, time};

/// One kernel at one size.
#[derive(Debug, Clone, Serialize)]
pub struct KernelReport {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Precision of the operands.
    pub precision: &'static str,
    /// `[rows, inputs, outputs]`.
    pub shape: [usize; 3],
    /// Median time in seconds.
    pub median_s: f64,
    /// GFLOP/s of its GEMMs.
    pub gflops: f64,
    /// The same divided by the peak GEMM throughput.
    pub share_of_peak: f64,
}

/// Rows and widths of the stages of Swin-T for 4 images of 2 crops of 224 and 8 of 96 pixels.
const STAGES: [[usize; 2]; 4] = [[43_520, 96], [10_880, 192], [2_720, 384], [680, 768]];

/// Peak GEMM throughput in GFLOP/s, and a report for each kernel and stage.
pub fn kernels(precision: Precision, iterations: usize) -> (f64, Vec<KernelReport>) {
    let peak = peak_gflops(precision);
    let stage = match precision {
        Precision::F32 => stage::<f32>,
        Precision::Bf16 => stage::<Bf16>,
        Precision::Bf16x3 => stage::<Bf16x3>,
    };
    let reports = STAGES.into_iter().flat_map(|[rows, width]| stage(rows, width, iterations, peak));
    (peak, reports.collect())
}

fn stage<T: Element>(rows: usize, width: usize, iterations: usize, peak: f64) -> Vec<KernelReport> {
    let hidden = 4 * width;
    let values = |n: usize| -> Vec<f32> {
        (0..n).map(|i| (i * 7919 % 1009) as f32 / 5045.0 - 0.1).collect()
    };
    let (x, dy) = (values(rows * width), values(rows * hidden));
    let (weight, bias) = (values(hidden * width), values(hidden));
    let report = |kernel, macs: usize, seconds: f64| KernelReport {
        kernel,
        precision: T::NAME,
        shape: [rows, width, hidden],
        median_s: seconds,
        gflops: 2e-9 * macs as f64 / seconds,
        share_of_peak: 2e-9 * macs as f64 / seconds / peak,
    };
    let timed = |call: &mut dyn FnMut()| -> f64 { median(&time(iterations, |_| call())) };
    let act = Activation::None;
    let forward = |keep| linear::forward::<T>(&x, width, act, &weight, Some(&bias), keep);
    let kept = forward(true).1;
    let macs = rows * width * hidden;
    let linear_forward = timed(&mut || drop(std::hint::black_box(forward(false))));
    let linear_backward = timed(&mut || {
        if let Some(kept) = kept.clone() {
            let gradients = linear::backward(kept, width, act, &weight, &dy, true);
            drop(std::hint::black_box(gradients));
        }
    });
    let branch = mlp::Mlp {
        gamma: &bias[..width],
        beta: &bias[..width],
        eps: 1e-6,
        fc1_weight: &weight,
        fc1_bias: &bias,
        activation: Activation::Gelu,
        fc2_weight: &weight,
        fc2_bias: &bias[..width],
    };
    let sample_scales = SampleScales::NONE;
    let mut rows_in_place = x.clone();
    let branch_forward = timed(&mut || {
        let packed = branch.pack_weights::<T>();
        let kept = mlp::forward(&mut rows_in_place, &branch, &packed, &sample_scales, false);
        drop(std::hint::black_box(kept));
    });
    rows_in_place.copy_from_slice(&x);
    let packed = branch.pack_weights::<T>();
    let kept = mlp::forward(&mut rows_in_place, &branch, &packed, &sample_scales, true);
    let mut gradient = x.clone();
    let branch_backward = timed(&mut || {
        if let Some(kept) = kept.clone() {
            drop(std::hint::black_box(mlp::backward(kept, &branch, &sample_scales, &mut gradient)));
        }
    });
    vec![
        report("linear forward", macs, linear_forward),
        report("linear backward", 2 * macs, linear_backward),
        report("mlp forward", 2 * macs, branch_forward),
        report("mlp backward", 4 * macs, branch_backward),
    ]
}
