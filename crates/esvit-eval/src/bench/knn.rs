//! Benchmark of k-NN search over more features than fit into memory.

use std::time::Instant;

use esvit_kernels::nearest::Search;
use esvit_kernels::pool;
use esvit_kernels::rng::Rng;
use esvit_nn::ops::Precision;
use rayon::prelude::*;
use serde::Serialize;

use super::{peak_gflops, peak_rss_mb};
use crate::knn::{TEMPERATURE, accuracies};

/// RNG purpose of the synthetic features.
const FEATURES_PURPOSE: u64 = 0xFEA7;
/// Features generated at a time.
const ROWS: usize = 8192;
/// Number of classes of the synthetic labels.
const CLASSES: u32 = 1000;

/// Settings of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct KnnBench {
    /// Number of training features, generated in chunks.
    pub train: usize,
    /// Number of query features.
    pub queries: usize,
    /// Feature dimension.
    pub width: usize,
    /// Number of neighbors.
    pub k: usize,
}

/// Results.
#[derive(Debug, Clone, Serialize)]
pub struct KnnReport {
    /// The settings.
    #[serde(flatten)]
    pub bench: KnnBench,
    /// Number of threads.
    pub threads: usize,
    /// Time of search and voting in seconds, without generating features.
    pub seconds: f64,
    /// GFLOP/s of the similarity GEMMs.
    pub gflops: f64,
    /// Peak GEMM throughput in GFLOP/s, mean of a measurement before and one after.
    pub peak_gflops: f64,
    /// `gflops` divided by `peak_gflops`.
    pub share_of_peak: f64,
    /// Peak resident memory in MiB; 0 if unknown.
    pub peak_rss_mb: f64,
}

/// Times k-NN classification of random features.
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
        bench: bench.clone(),
        threads: rayon::current_num_threads(),
        seconds,
        gflops,
        peak_gflops: peak,
        share_of_peak: gflops / peak,
        peak_rss_mb: peak_rss_mb(),
    }
}

/// Random features of about unit length.
fn rows(stream: u64, count: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; count * width];
    let bound = (3.0 / width as f64).sqrt();
    values.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
        let mut rng = Rng::for_purpose(0, FEATURES_PURPOSE, [stream, row as u64, 0]);
        values.iter_mut().for_each(|value| *value = rng.uniform_in(-bound, bound) as f32);
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_rows_have_about_unit_length_and_differ() {
        let rows = rows(3, 200, 384);
        let length = |row: &[f32]| row.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let lengths: Vec<f64> = rows.chunks(384).map(length).collect();
        assert!(lengths.iter().all(|length| (length - 1.0).abs() < 0.1), "{lengths:?}");
        assert!(rows[..384] != rows[384..768] && rows == super::rows(3, 200, 384));
    }
}
