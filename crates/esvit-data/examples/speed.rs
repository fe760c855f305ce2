//! How long decoding and augmenting take on one thread:
//! `cargo run --release -p esvit-data --example speed [FOLDER]`. With a folder, listing it is
//! timed as well.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Instant;

use esvit_data::augment::{self, CropBox};
use esvit_data::{
    DecodeLimits, Folder, Image, Interpolation, Policy, Source, ViewsConfig, decode, resized_crop,
    training_materials,
};

fn time(name: &str, repeats: u32, mut work: impl FnMut(u64)) {
    work(0);
    let began = Instant::now();
    (0..repeats).for_each(|i| work(u64::from(i)));
    println!("{name:44} {:9.3} ms", began.elapsed().as_secs_f64() * 1e3 / f64::from(repeats));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let jpeg = include_bytes!("../materials/paving001.jpg");
    let limits = DecodeLimits::default();
    let small = decode(jpeg, &limits)?;
    time("decode a JPEG of 256x256", 500, |_| drop(decode(jpeg, &limits)));
    time("decode the 101 built-in images", 3, |_| drop(training_materials()));

    let all = CropBox { left: 0, top: 0, width: 256, height: 256 };
    let crop = CropBox { left: 3, top: 40, width: 250, height: 187 };
    let stretched = resized_crop(&small, all, 500, Interpolation::Bicubic)?;
    let image: Image = stretched.crop(0, 0, 500, 375)?;

    for policy in [Policy::Dino, Policy::Deit, Policy::MocoV2, Policy::Basic] {
        let large = ViewsConfig::for_policy(policy);
        let tiny = ViewsConfig {
            global_size: 32,
            local_sizes: vec![16],
            local_counts: vec![4],
            ..large.clone()
        };
        for (name, config) in [("2x32 + 4x16", tiny), ("2x224 + 8x96", large)] {
            time(&format!("{policy:?}: views {name} of 500x375"), 100, |sample| {
                drop(config.views(&image, 0, 0, sample));
            });
        }
    }

    time("crop 250x187 resized to 224", 200, |_| {
        drop(resized_crop(&image, crop, 224, Interpolation::Bicubic));
    });
    let mut view = resized_crop(&image, crop, 224, Interpolation::Bicubic)?;
    time("brightness, 224", 200, |_| augment::brightness(&mut view, 1.001));
    time("contrast, 224", 200, |_| augment::contrast(&mut view, 1.001));
    time("saturation, 224", 200, |_| augment::saturation(&mut view, 1.001));
    time("hue, 224", 200, |_| augment::hue(&mut view, 0.01));
    time("gaussian_blur, 224", 200, |_| augment::gaussian_blur(&mut view, 1.0));
    let mut out = vec![0.0; 3 * 224 * 224];
    let normalization = ViewsConfig::default().normalization();
    time("normalize, 224", 200, |_| drop(normalization.write(&view, &mut out)));

    if let Some(folder) = std::env::args_os().nth(1) {
        let listed = Folder::open(&folder, &limits)?.len();
        time(&format!("list {listed} files"), 1, |_| drop(Folder::open(&folder, &limits)));
    }
    Ok(())
}
