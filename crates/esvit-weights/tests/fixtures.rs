//! Files that PyTorch wrote, made by `conformance/make_weights_fixtures.py`.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says at which line it failed")]

use std::path::PathBuf;

use esvit_weights::{Container, Value, WeightsFile};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str) -> WeightsFile {
    WeightsFile::open(&path(name)).unwrap()
}

fn expected() -> serde_json::Map<String, serde_json::Value> {
    let text = std::fs::read_to_string(path("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What PyTorch calls a type, as this crate does.
fn dtype(name: &str) -> String {
    let number = name.trim_start_matches(|c: char| c.is_alphabetic());
    match name {
        "bool" => name.into(),
        _ if name.starts_with("bfloat") => format!("bf{number}"),
        _ if name.starts_with("uint") => format!("u{number}"),
        _ => format!("{}{number}", &name[..1]),
    }
}

/// Compares every tensor of `file` below `prefix` with the values that PyTorch gave.
fn check(file: &WeightsFile, prefix: &str) {
    let mut compared = 0;
    for (path, expected) in expected().iter().filter(|(path, _)| path.starts_with(prefix)) {
        let text = |key: &str| expected[key].as_str().unwrap();
        let group = text("group").strip_prefix(prefix.trim_end_matches('/')).unwrap();
        let tensor = file.find(group, text("name")).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(tensor.dtype.to_string(), dtype(text("dtype")), "{path}");
        let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
        assert_eq!(tensor.shape, shape, "{path}");
        if tensor.dtype.is_float() {
            let values: Vec<f64> = serde_json::from_value(expected["values"].clone()).unwrap();
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            assert_eq!(file.read_f32(tensor).unwrap(), values, "{path}");
        } else {
            let values: Vec<i64> = serde_json::from_value(expected["values"].clone()).unwrap();
            assert_eq!(file.read_i64(tensor).unwrap(), values, "{path}");
        }
        compared += 1;
    }
    assert!(compared >= 20 && compared == file.tensors().len(), "{compared}");
}

#[test]
fn checkpoints_of_both_formats_hold_what_was_saved() {
    for (name, container) in [
        ("zip.pth", Container::TorchZip),
        ("zip_protocol4.pth", Container::TorchZip),
        ("legacy.pth", Container::TorchLegacy),
        ("legacy_protocol4.pth", Container::TorchLegacy),
    ] {
        let file = open(name);
        assert_eq!(file.container(), container);
        check(&file, "");
        let mut unsupported = vec![("complex".to_owned(), "ComplexFloatStorage".to_owned())];
        if container == Container::TorchZip {
            unsupported.push(("u16".to_owned(), "uint16".to_owned()));
        }
        assert_eq!(file.unsupported(), unsupported);
    }
}

#[test]
fn plain_dictionaries_of_tensors_have_no_group() {
    check(&open("state_dict.pth"), "student/");
    let file = open("state_dict.safetensors");
    check(&file, "student/");
    assert_eq!(file.container(), Container::Safetensors);
    assert_eq!(file.metadata().get("about").and_then(Value::as_str), Some("a test"));
    let bytes = file.find("", "u8").map(|tensor| file.read_u8(tensor).unwrap());
    assert_eq!(bytes, Some(vec![0, 255]));
}

#[test]
fn what_is_no_tensor_is_data() {
    for name in ["zip.pth", "zip_protocol4.pth", "legacy.pth", "legacy_protocol4.pth"] {
        let file = open(name);
        let metadata = file.metadata();
        let at = |path: &[&str]| {
            path.iter().try_fold(metadata, |value, key| value.get(key)).cloned().unwrap()
        };
        let text = |text: &str| Value::Str(text.into());
        let class = |class: &str, arguments: Vec<Value>| Value::Object {
            class: class.into(),
            arguments,
            state: None,
        };
        assert_eq!(at(&["epoch"]), Value::Int(7));
        assert_eq!(at(&["best"]), Value::Float(61.5));
        assert_eq!(at(&["steps"]), Value::Int(-3));
        assert_eq!(at(&["seed"]), class("int", vec![text("0x008000000000000001")]));
        assert_eq!(at(&["raw"]), Value::Bytes(vec![0, 255]));
        assert_eq!(at(&["size"]), Value::Tuple(vec![Value::Int(2), Value::Int(3)]));
        assert_eq!(at(&["device"]), class("torch.device", vec![text("cpu")]));
        assert_eq!(at(&["dtype"]), class("torch.float32", vec![]));
        let Value::List(mut names) = at(&["names"]) else { panic!() };
        names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        assert_eq!(names, [text("a"), text("b")]);
        let Value::Object { class, .. } = at(&["args"]) else { panic!() };
        assert_eq!(class, "argparse.Namespace");
        assert_eq!(at(&["args", "arch"]), text("swin_tiny"));
        assert_eq!(at(&["args", "lr"]).as_f64(), Some(5e-4));
        assert_eq!(at(&["args", "fp16"]).as_bool(), Some(true));
        assert_eq!(at(&["args", "crops"]), Value::None);
        let Value::List(groups) = at(&["optimizer", "param_groups"]) else { panic!() };
        assert_eq!(groups[0].get("lr").and_then(Value::as_f64), Some(1e-3));
        let Value::Tensor(place) = at(&["teacher", "module.norm.weight"]) else { panic!() };
        assert_eq!(file.tensors()[place].path(), "teacher/module.norm.weight");
    }
}

#[test]
fn a_pickled_module_has_the_names_of_its_state_dict() {
    let file = open("module.pth");
    let names: Vec<&str> = file.tensors().iter().map(|tensor| &*tensor.name).collect();
    let expected = [
        "body.0.weight",
        "body.0.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ];
    assert_eq!(names, expected);
    let weight = file.find("", "body.0.weight").unwrap();
    assert_eq!(weight.shape, [3, 2]);
    assert_eq!(file.read_f32(weight).unwrap().len(), 6);
}

#[test]
fn a_program_is_refused_by_name() {
    let error = WeightsFile::open(&path("script.pt")).unwrap_err().to_string();
    assert!(error.contains("TorchScript") && error.contains("state_dict"), "{error}");
}

#[test]
fn a_tensor_is_read_as_what_it_is() {
    let file = open("zip.pth");
    let float = file.find("student", "f32").unwrap();
    let integer = file.find("student", "i64").unwrap();
    for error in [
        file.read_i64(float).unwrap_err(),
        file.read_f32(integer).unwrap_err(),
        file.read_u8(integer).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("`student/") && error.contains("hint: "), "{error}");
    }
}

#[test]
fn a_description_of_another_file_or_shape_reads_no_foreign_bytes() {
    let file = open("zip.pth");
    let mut tensor = file.find("student", "f32").unwrap().clone();
    tensor.shape = vec![4, 600];
    assert!(file.read_f32(&tensor).is_err());
    let small = open("state_dict.safetensors");
    let last = file.tensors().last().unwrap();
    assert!(small.read_f32(last).is_err());
}

#[test]
fn files_are_shared_between_threads() {
    fn shared<T: Send + Sync + std::fmt::Debug>() {}
    shared::<WeightsFile>();
}
