use esvit_kernels::element::{Bf16, Element};
use esvit_kernels::{DropPath, mlp, peak};
use std::time::Instant;

fn median(n: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut t: Vec<f64> = (0..n)
        .map(|_| {
            let b = Instant::now();
            f();
            b.elapsed().as_secs_f64()
        })
        .collect();
    t.sort_by(f64::total_cmp);
    let n = 1;
    t[n / 2]
}
fn run<T: Element>() {
    let peak = peak::product_rate::<T>(5);
    println!("{} peak {:.0} GFLOP/s", T::NAME, 2e-9 * peak);
    for (rows, width) in
        [(25088 + 18432, 96), (6272 + 4608, 192), (1568 + 1152, 384), (392 + 288, 768)]
    {
        let v = |n: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 % 1000) as f32 / 1000.0 - 0.5) * 0.1).collect()
        };
        let (mut x, g, w1, b1, w2, mut dy) = (
            v(rows * width),
            v(width),
            v(4 * width * width),
            v(4 * width),
            v(4 * width * width),
            v(rows * width),
        );
        let p = mlp::Mlp {
            gamma: &g,
            beta: &g,
            eps: 1e-6,
            fc1_weight: &w1,
            fc1_bias: &b1,
            fc2_weight: &w2,
            fc2_bias: &g,
        };
        let macs = 8.0 * (rows * width * width) as f64;
        let f = median(7, || {
            std::hint::black_box(mlp::forward::<T>(&mut x, &p, &DropPath::NONE, true));
        });
        let fi = median(7, || {
            std::hint::black_box(mlp::forward::<T>(&mut x, &p, &DropPath::NONE, false));
        });
        let fb = median(7, || {
            let k = mlp::forward::<T>(&mut x, &p, &DropPath::NONE, true).unwrap();
            std::hint::black_box(mlp::backward(k, &p, &DropPath::NONE, &mut dy));
        });
        println!(
            "{} mlp {rows}x{width}: fwd {:.2} ms {:.0}%  infer {:.0}%  bwd {:.2} ms {:.0}%",
            T::NAME,
            f * 1e3,
            100.0 * macs / f / peak,
            100.0 * macs / fi / peak,
            (fb - f) * 1e3,
            200.0 * macs / (fb - f) / peak
        );
    }
}
fn main() {
    run::<f32>();
    run::<Bf16>();
}
