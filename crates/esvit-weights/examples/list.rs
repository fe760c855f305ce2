//! Lists the tensors of a file of weights.
//!
//!     cargo run --release -p esvit-weights --example list -- FILE

use std::path::PathBuf;

use esvit_weights::WeightsFile;

#[expect(clippy::print_stdout, reason = "a program")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: list FILE")?;
    let start = std::time::Instant::now();
    let file = WeightsFile::open(&path)?;
    let opened = start.elapsed();
    for tensor in file.tensors() {
        println!("{} {} {:?}", tensor.path(), tensor.dtype, tensor.shape);
    }
    println!("{}, {} tensors, opened in {opened:?}", file.container(), file.tensors().len());
    Ok(())
}
