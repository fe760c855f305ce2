//! The operations against Pillow's and torchvision's own results: the case `augment` of the
//! workspace's `crates/esvit-eval/goldens/`. `esvit verify` compares the same; this needs no tensors, and so tells sooner.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail and tell why")]

use std::path::Path;

use esvit_data::augment::{self, CropBox};
use esvit_data::{EvalTransform, Image, Interpolation, resized_crop};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

#[test]
fn augment() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../esvit-eval/goldens/augment"));
    let case: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
    let file = std::fs::read(folder.join("tensors.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let image = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let (height, width) = (tensor.shape()[0] as u32, tensor.shape()[1] as u32);
        Image::new(width, height, tensor.data().to_vec()).unwrap()
    };

    let mut wrong = Vec::new();
    for (i, operation) in case["operations"].as_array().unwrap().iter().enumerate() {
        let input = image(operation["input"].as_str().unwrap_or("image"));
        let got = run(operation, input);
        let expected = image(&format!("out.{i}"));
        assert_eq!((got.width(), got.height()), (expected.width(), expected.height()));
        let differences = got.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b));
        let worst = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / got.pixels().len() as f64;
        let op = operation["op"].as_str().unwrap();
        println!("{i:2} {op:16} mean {mean:.4} max {worst}");
        if mean > if op == "gaussian_blur" { 1.0 } else { 0.5 } || worst > 3 {
            wrong.push(format!("{operation}: mean {mean}, max {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(operation: &Value, mut image: Image) -> Image {
    let whole = |key: &str| operation[key].as_u64().unwrap() as u32;
    let factor = || operation["factor"].as_f64().unwrap();
    let interpolation = || Interpolation::deserialize(&operation["interpolation"]).unwrap();
    match operation["op"].as_str().unwrap() {
        "resized_crop" => {
            let crop = CropBox {
                left: whole("left"),
                top: whole("top"),
                width: whole("width"),
                height: whole("height"),
            };
            return resized_crop(&image, crop, whole("size"), interpolation()).unwrap();
        }
        "eval_transform" => {
            let transform = EvalTransform {
                resize: whole("resize_shorter"),
                crop: whole("center_crop"),
                interpolation: interpolation(),
            };
            return transform.apply(&image).unwrap();
        }
        "horizontal_flip" => augment::horizontal_flip(&mut image),
        "brightness" => augment::brightness(&mut image, factor()),
        "contrast" => augment::contrast(&mut image, factor()),
        "saturation" => augment::saturation(&mut image, factor()),
        "hue" => augment::hue(&mut image, factor()),
        "grayscale" => augment::grayscale(&mut image),
        "gaussian_blur" => {
            augment::gaussian_blur(&mut image, operation["radius"].as_f64().unwrap());
        }
        "solarize" => augment::solarize(&mut image, whole("threshold")),
        other => panic!("unknown operation `{other}`"),
    }
    image
}
