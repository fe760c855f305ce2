//! k-NN on made-up features, more than fit the memory.

use std::time::Instant;

use esvit_kernels::nearest::Search;
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::ops::Precision;
use rayon::prelude::*;
use serde::Serialize;

use super::{peak_gflops, peak_rss_mb};
use crate::knn::{TEMPERATURE, accuracies};

/// Purpose word of the made-up features.
const FEATURES_PURPOSE: u64 = 0xFEA7;
/// Rows that are made at a time.
const ROWS: usize = 8192;
/// Classes of the made-up labels.
const CLASSES: u32 = 1000;

/// What is timed.
#[derive(Debug, Clone)]
pub struct KnnBench {
    /// Number of training rows, which are made piece by piece.
    pub train: usize,
    /// Number of query rows.
    pub queries: usize,
    /// Width of a feature.
    pub width: usize,
    /// Number of neighbors.
    pub k: usize,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct KnnReport {
    /// Number of training rows.
    pub train: usize,
    /// Number of query rows.
    pub queries: usize,
    /// Width of a feature.
    pub width: usize,
    /// Number of neighbors.
    pub k: usize,
    /// Threads.
    pub threads: usize,
    /// Seconds from the first training row to the accuracy; making the rows is not counted.
    pub seconds: f64,
    /// Billions of operations of the GEMMs a second.
    pub gflops: f64,
    /// Peak GEMM rate: the mean of before and after.
    pub peak_gflops: f64,
    /// That as a share of the peak GEMM rate on this machine.
    pub share_of_peak: f64,
    /// Most memory that the process has had, in MB (2^20 bytes); 0 where it is not known.
    pub peak_rss_mb: f64,
}

/// Times k-NN classification of random rows.
pub fn knn(bench: &KnnBench) -> KnnReport {
    let KnnBench { train, queries, width, k } = *bench;
    let before = peak_gflops(Precision::F32);
    let query_rows = rows(u64::MAX, queries, width);
    let mut search = Search::new(&query_rows, width, k);
    let mut seconds = 0.0;
    for first in (0..train).step_by(ROWS) {
        let rows = rows(first as u64, ROWS.min(train - first), width);
        let began = Instant::now();
        pool::run(|| search.add(&rows));
        seconds += began.elapsed().as_secs_f64();
    }
    let began = Instant::now();
    let labels = |count: usize| -> Vec<u32> { (0..count as u32).map(|i| i % CLASSES).collect() };
    let found = search.finish();
    std::hint::black_box(accuracies(&found, &labels(train), &labels(queries), &[k], TEMPERATURE));
    seconds += began.elapsed().as_secs_f64();
    let gflops = 2e-9 * train as f64 * queries as f64 * width as f64 / seconds;
    let peak = (before + peak_gflops(Precision::F32)) / 2.0;
    KnnReport {
        train,
        queries,
        width,
        k,
        threads: rayon::current_num_threads(),
        seconds,
        gflops,
        peak_gflops: peak,
        share_of_peak: gflops / peak,
        peak_rss_mb: peak_rss_mb(),
    }
}

/// Random rows of about unit length.
fn rows(stream: u64, count: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; count * width];
    let bound = (3.0 / width as f64).sqrt();
    values.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
        let mut rng = Rng::for_purpose(0, FEATURES_PURPOSE, [stream, row as u64, 0]);
        values.iter_mut().for_each(|value| *value = rng.uniform_in(-bound, bound) as f32);
    });
    values
}
