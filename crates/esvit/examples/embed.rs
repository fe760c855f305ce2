//! Loads a backbone and embeds a picture:
//!
//! ```sh
//! cargo run --release --example embed -- backbone.safetensors photo.jpg
//! ```

#![expect(clippy::print_stdout, reason = "it shows what it found")]

use esvit::data::{DecodeLimits, decode};
use esvit::eval::backbone::Backbone;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let weights = arguments.next().ok_or("name a file of weights")?;
    let picture = arguments.next().ok_or("name a picture")?;

    let backbone = Backbone::open(weights.as_ref(), None, None)?;
    let picture = decode(&std::fs::read(picture)?, &DecodeLimits::default())?;
    let features = backbone.embed(&[picture])?;
    println!("{:?}", features[0]);
    Ok(())
}
