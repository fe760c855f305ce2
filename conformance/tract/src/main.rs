//! Runs an exported graph in tract and compares it with expected features:
//!
//! ```sh
//! cargo run --release --manifest-path conformance/tract/Cargo.toml -- model.onnx features.safetensors 1e-4
//! ```
//!
//! The second file holds `input [B, 3, H, W]`, `cls [B, C]` and `region [B, T, C]`. All images are
//! run at once and one by one.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use tract_onnx::prelude::*;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what| arguments.next().with_context(|| format!("name {what}"));
    let model = argument("a graph")?;
    let features = std::fs::read(argument("a file of features")?)?;
    let tolerance: f32 = argument("a tolerance")?.parse()?;

    let features = SafeTensors::deserialize(&features)?;
    let input = tensor(&features, "input")?;
    let [view, region] = [tensor(&features, "cls")?, tensor(&features, "region")?];
    let images = input.shape()[0];
    let mut good = true;
    for batch in [1, images] {
        let shape = [&[batch], &input.shape()[1..]].concat();
        let plan = tract_onnx::onnx()
            .model_for_path(&model)?
            .with_input_fact(0, f32::fact(&shape).into())?
            .into_optimized()?
            .into_runnable()?;
        let mut largest = [0f32; 2];
        for first in (0..images).step_by(batch) {
            let slice = |t: &Tensor| t.slice(0, first, first + batch);
            let found = plan.run(tvec!(slice(&input)?.into()))?;
            ensure!(found.len() == 2, "two outputs");
            for (largest, (found, expected)) in largest.iter_mut().zip(found.iter().zip([&view, &region])) {
                *largest = largest.max(difference(found, &slice(expected)?)?);
            }
        }
        for (name, largest) in ["view", "region"].into_iter().zip(largest) {
            let verdict = if largest <= tolerance { "ok  " } else { "FAIL" };
            println!("{verdict} tract, batch {batch}, {name}: {largest:.2e} (at most {tolerance:.0e})");
            good &= largest <= tolerance;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Result<Tensor> {
    let view = file.tensor(name)?;
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Tensor::from_shape(view.shape(), &values)?)
}

/// The largest difference; not a number if there is one among the values.
fn difference(found: &Tensor, expected: &Tensor) -> Result<f32> {
    ensure!(found.shape() == expected.shape(), "{:?} for {:?}", found.shape(), expected.shape());
    let (found, expected) = (found.to_plain_array_view::<f32>()?, expected.to_plain_array_view::<f32>()?);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    Ok(differences.fold(0.0, |l, d| if d > l || d.is_nan() { d } else { l }))
}
