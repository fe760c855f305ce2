//! Files whose metadata describes no network, or one that no machine can hold.

use image::ImageFormat;
use serde_json::{Value, json};

use crate::images::{encoded, labeled, textured};
use crate::place::{Place, TINY};

const CHECKPOINT: &str = "run/checkpoints/epoch=0001-step=00000025.safetensors";

/// Commands that read a backbone from `FILE`, on few images, as the built-in ones take a while.
const COMMANDS: [&str; 18] = [
    "info FILE",
    "embed --checkpoint FILE --data set --out features.npy",
    "export --checkpoint FILE --format timm --out timm.safetensors",
    "export --checkpoint FILE --format onnx --out graph.onnx",
    "export --checkpoint FILE --format esvit --out own.pth",
    "eval knn --checkpoint FILE --train set",
    "eval linear --checkpoint FILE --train set",
    "eval finetune --checkpoint FILE --train set",
    "eval correspondence --checkpoint FILE --data set",
    "eval attention --checkpoint FILE --data set",
    "eval transfer --checkpoint FILE --solver logistic --n 2 --sets set",
    "attend image.png --checkpoint FILE",
    "match image.png --checkpoint FILE",
    "pca image.png --checkpoint FILE",
    "neighbors --checkpoint FILE --data set",
    "map --checkpoint FILE --data set",
    "pretrain --out next TINY --data set --init-from FILE",
    "pretrain --out next TINY --data set --continue-from FILE",
];

/// A field of the shape, its value, and what is said of it.
fn shapes() -> Vec<(&'static str, Value, &'static str)> {
    let huge = 1_000_000_000_000_000_000_u64;
    vec![
        ("img_size", json!(0), "`img_size` is 0: "),
        ("img_size", json!(3), "`img_size` is 3: it leaves no token"),
        ("img_size", json!(huge), "`img_size` is 1000000000000000000: "),
        ("patch_size", json!(0), "`patch_size` is 0: "),
        ("patch_size", json!(huge), "`patch_size` is 1000000000000000000: "),
        ("embed_dim", json!(0), "`embed_dim` is 0: "),
        ("embed_dim", json!(1_u64 << 63), "`embed_dim` is 9223372036854775808: "),
        ("window_size", json!(0), "`window_size` is 0: "),
        ("window_size", json!(huge), "`window_size` is 1000000000000000000: "),
        ("depths", json!([1, 1_000_000_000]), "`depths` is [1, 1000000000]: "),
        ("depths", json!([1_u64 << 62, 1_u64 << 62]), "`depths` is [46116860184273879"),
        ("depths", json!(vec![1; 100_000]), "`depths` is a list of 100000: "),
        ("depths", json!([1, 1, 1]), "`num_heads` is [1, 2]: `depths` has 3 stages"),
        ("depths", json!("x"), "`depths`: invalid type: string \"x\""),
        ("depths", Value::Null, "missing field `depths`"),
        ("num_heads", json!([]), "`num_heads` is []: "),
        ("num_heads", json!([1, 0]), "`num_heads[1]` is 0: "),
        ("num_heads", json!([3, 2]), "`num_heads[0]` is 3: it must divide"),
        ("mlp_ratio", json!(1e300), "`mlp_ratio` is 1000"),
        ("norm_eps", json!(-1), "`norm_eps` is -1: "),
        ("norm_eps", json!(1e9), "`norm_eps` is 1000000000: "),
        ("family", json!("bit"), "`family` is \"bit\": "),
    ]
}

/// Writes the file at `from` again with other metadata; the tensors stay where they are.
fn edited(place: &Place, from: &str, to: &str, edit: impl FnOnce(&mut Value)) {
    let bytes = std::fs::read(place.path(from)).unwrap();
    let (len, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let text = &mut header["__metadata__"]["esvit"];
    let mut metadata: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    edit(&mut metadata);
    *text = metadata.to_string().into();
    let header = header.to_string();
    let len = (header.len() as u64).to_le_bytes();
    place.write(to, [&len, header.as_bytes(), data].concat());
}

/// Sets a field, or removes it.
fn set(table: &mut Value, key: &str, value: &Value) {
    match value {
        Value::Null => drop(table.as_object_mut().unwrap().remove(key)),
        value => table[key] = value.clone(),
    }
}

fn with_a_run() -> Place {
    let place = Place::with_a_run();
    place.write("image.png", encoded(textured(90, 50, 1), ImageFormat::Png));
    labeled(&place, "set", 4);
    place.well(&format!("export --checkpoint {CHECKPOINT} --format esvit --out own.safetensors"));
    place
}

/// The command ends with one line that names file and field.
fn refused(place: &Place, line: &str, file: &str, expected: &str) {
    let ended = place.run(&line.replace("FILE", file).replace("TINY", TINY)).expect(1);
    let said = if line.starts_with("info") { &ended.stdout } else { &ended.stderr };
    let is_said = |line: &&str| line.contains(file) && line.contains(expected);
    assert_eq!(said.lines().filter(is_said).count(), 1, "`{expected}` was not said\n{ended}");
    assert!(said.len() < 2000 && !said.contains("panicked"), "{ended}");
}

#[test]
fn shapes_of_no_network_are_refused_by_every_command() {
    let place = with_a_run();
    let before = place.files("");
    for (number, (key, value, expected)) in shapes().iter().enumerate() {
        edited(&place, "own.safetensors", "bad.safetensors", |m| set(&mut m["model"], key, value));
        edited(&place, CHECKPOINT, "run.safetensors", |m| {
            set(&mut m["backbone"]["model"], key, value);
        });
        // All commands, by turns, as each takes a while to start.
        for (file, first) in [("bad.safetensors", 0), ("run.safetensors", COMMANDS.len() / 2)] {
            for command in [0, first + number].map(|number| COMMANDS[number % COMMANDS.len()]) {
                refused(&place, command, file, expected);
            }
        }
    }
    for name in ["bad.safetensors", "run.safetensors"] {
        std::fs::remove_file(place.path(name)).unwrap();
    }
    assert!(place.files("") == before, "something was written");
    // A run's only checkpoints.
    let edit = |m: &mut Value| set(&mut m["backbone"]["model"], "depths", &json!([1_u64 << 40, 1]));
    let folder = "run/checkpoints";
    for name in place.folder(folder).names() {
        let path = format!("{folder}/{name}");
        edited(&place, &path, &path, edit);
    }
    refused(&place, "resume run train.epochs=2", CHECKPOINT, "`depths` is [1099511627776, 1]: ");
}

#[test]
fn metadata_with_one_bad_field_is_not_passed_over() {
    let place = with_a_run();
    for (key, value, expected) in [
        ("preprocess", Value::Null, "missing field `preprocess`"),
        ("mean", json!("x"), "preprocess.mean: invalid type: string \"x\""),
        ("crop", json!(-1), "preprocess.crop: invalid value: integer `-1`"),
        ("crop", json!(0), "preprocess: `crop` is 0: "),
        ("crop", json!(3), "`preprocess.crop` is 3: it must be between a patch of 4"),
        ("crop", json!(1_000_000_000), "preprocess: `crop` is 1000000000: "),
        ("std", json!([0, 0, 0]), "preprocess: `std` is [0.0, 0.0, 0.0]: "),
        ("steps", json!("many"), "steps: invalid type: string \"many\""),
    ] {
        edited(&place, "own.safetensors", "bad.safetensors", |metadata| {
            let is_inside = metadata["preprocess"].get(key).is_some();
            let table = if is_inside { &mut metadata["preprocess"] } else { metadata };
            set(table, key, &value);
        });
        for command in &COMMANDS[..2] {
            refused(&place, command, "bad.safetensors", expected);
        }
    }
    edited(&place, CHECKPOINT, "run.safetensors", |metadata| metadata["epoch"] = json!("two"));
    let expected = "epoch: invalid type: string \"two\"";
    for command in [COMMANDS[0], COMMANDS[1], COMMANDS[17]] {
        refused(&place, command, "run.safetensors", expected);
    }
}
