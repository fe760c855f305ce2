//! Loads a backbone and embeds an image:
//!
//! ```sh
//! cargo run --release -p esvit-model --example embed -- backbone.safetensors photo.jpg
//! ```

#![expect(clippy::print_stdout, reason = "it prints the feature")]

use esvit_data::{DecodeLimits, decode};
use esvit_model::PretrainedBackbone;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let weights = arguments.next().ok_or("name a file of weights")?;
    let image = arguments.next().ok_or("name an image")?;

    let backbone = PretrainedBackbone::open(weights.as_ref())?;
    let image = decode(&std::fs::read(image)?, &DecodeLimits::default())?;
    let features = backbone.embed(&[image])?;
    println!("{:?}", features[0]);
    Ok(())
}
