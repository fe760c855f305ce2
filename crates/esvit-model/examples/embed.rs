//! Loads a backbone and embeds a picture:
//!
//! ```sh
//! cargo run --release -p esvit-model --example embed -- backbone.safetensors photo.jpg
//! ```

#![expect(clippy::print_stdout, reason = "it shows what it found")]

use esvit_data::{DecodeLimits, decode};
use esvit_model::PretrainedBackbone;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let weights = arguments.next().ok_or("name a file of weights")?;
    let picture = arguments.next().ok_or("name a picture")?;

    let backbone = PretrainedBackbone::open(weights.as_ref())?;
    let picture = decode(&std::fs::read(picture)?, &DecodeLimits::default())?;
    let features = backbone.embed(&[picture])?;
    println!("{:?}", features[0]);
    Ok(())
}
