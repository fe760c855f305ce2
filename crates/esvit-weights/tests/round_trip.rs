//! What is written is read back to the bit.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says at which line it failed")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use esvit_weights::{
    Dtype, Tensor, Tree, Value, Values, WeightsFile, WriteError, write_safetensors, write_torch,
    write_torch_with,
};
use proptest::prelude::*;

fn read(bytes: Vec<u8>) -> WeightsFile {
    WeightsFile::from_bytes(Path::new("written"), bytes).unwrap()
}

fn torch(tree: &Tree) -> Result<Vec<u8>, WriteError> {
    let mut writer = Cursor::new(Vec::new());
    write_torch(&mut writer, tree)?;
    Ok(writer.into_inner())
}

fn safetensors(
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}

/// A tensor's shape, type and values, which the type can hold.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    floats: Vec<f32>,
    integers: Vec<i64>,
    bytes: Vec<u8>,
}

impl Case {
    fn tensor(&self) -> Tensor<'_> {
        Tensor::new(&self.shape, self.dtype, || {
            Ok(match self.dtype {
                Dtype::I64 => Values::I64((&self.integers).into()),
                Dtype::U8 => Values::U8((&self.bytes).into()),
                _ => Values::F32((&self.floats).into()),
            })
        })
    }

    fn check(&self, file: &WeightsFile, group: &str) {
        let tensor = file.find(group, &self.name).unwrap();
        assert_eq!((&tensor.shape, tensor.dtype), (&self.shape, self.dtype));
        match self.dtype {
            Dtype::I64 => assert_eq!(file.read_i64(tensor).unwrap(), self.integers),
            Dtype::U8 => assert_eq!(file.read_u8(tensor).unwrap(), self.bytes),
            _ => {
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&file.read_f32(tensor).unwrap()), bits(&self.floats));
            }
        }
    }
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I64, Dtype::U8];
    let case = (proptest::collection::vec(0usize..5, 0..5), 0usize..dtypes.len(), any::<u64>());
    let case = case.prop_map(move |(shape, kind, seed)| {
        let count: usize = shape.iter().product();
        let bits: Vec<u64> = (0..count as u64)
            .map(|i| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23))
            .collect();
        let float = |&bits: &u64| match dtypes[kind] {
            Dtype::F32 => f32::from_bits(bits as u32),
            // Small integers stand exactly in 16 bits.
            _ => (bits % 256) as f32 - 128.0,
        };
        Case {
            name: String::new(),
            shape,
            dtype: dtypes[kind],
            floats: bits.iter().map(float).collect(),
            integers: bits.iter().map(|&bits| bits as i64).collect(),
            bytes: bits.iter().map(|&bits| bits as u8).collect(),
        }
    });
    proptest::collection::vec(case, 0..6).prop_map(|mut cases| {
        for (i, case) in cases.iter_mut().enumerate() {
            case.name = format!("layers.{i}.\"weight\" ü");
        }
        cases
    })
}

proptest! {
    #[test]
    fn tensors_come_back_to_the_bit(cases in cases()) {
        let tensors: Vec<(String, Tensor)> =
            cases.iter().map(|case| (case.name.clone(), case.tensor())).collect();
        let metadata = BTreeMap::from([("b".into(), "2".into()), ("a".into(), "\n".into())]);
        let bytes = safetensors(&tensors, &metadata).unwrap();
        let mut reversed: Vec<(String, Tensor)> =
            cases.iter().map(|case| (case.name.clone(), case.tensor())).collect();
        reversed.reverse();
        prop_assert_eq!(&safetensors(&reversed, &metadata).unwrap(), &bytes);
        let file = read(bytes);
        prop_assert_eq!(file.tensors().len(), cases.len());
        prop_assert_eq!(file.metadata().get("a").and_then(Value::as_str), Some("\n"));
        cases.iter().for_each(|case| case.check(&file, ""));

        let tree = || {
            let named = cases.iter().map(|case| (case.name.clone(), Tree::Tensor(case.tensor())));
            let model = Tree::Dict(named.collect());
            Tree::Dict(vec![("model".into(), model), ("epoch".into(), Tree::Int(-3))])
        };
        let bytes = torch(&tree()).unwrap();
        prop_assert_eq!(&torch(&tree()).unwrap(), &bytes);
        let file = read(bytes);
        prop_assert_eq!(file.tensors().len(), cases.len());
        cases.iter().for_each(|case| case.check(&file, "model"));
    }
}

#[test]
fn plain_data_come_back() {
    let long = 1 << 40;
    let tree = Tree::Dict(vec![
        ("none".into(), Tree::None),
        ("yes".into(), Tree::Bool(true)),
        ("long".into(), Tree::Int(-long)),
        ("least".into(), Tree::Int(i64::MIN)),
        ("pi".into(), Tree::Float(std::f64::consts::PI)),
        ("list".into(), Tree::List(vec![Tree::Str("ü".into()), Tree::Dict(vec![])])),
    ]);
    let file = read(torch(&tree).unwrap());
    let expected = Value::Dict(
        [
            ("none", Value::None),
            ("yes", Value::Bool(true)),
            ("long", Value::Int(-long)),
            ("least", Value::Int(i64::MIN)),
            ("pi", Value::Float(std::f64::consts::PI)),
            ("list", Value::List(vec![Value::Str("ü".into()), Value::Dict(vec![])])),
        ]
        .map(|(key, value)| (Value::Str(key.into()), value))
        .into(),
    );
    assert_eq!(file.metadata(), &expected);
}

#[test]
fn sixteen_bits_are_rounded_to_even() {
    // Halfway between two neighbors, a little above, and beyond the largest number.
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.1 / 256.0, f32::MAX];
    let bf16 = [1.0, 1.0 + 4.0 / 256.0, 1.0 + 2.0 / 256.0, f32::INFINITY];
    let tensor = Tensor::new(&[4], Dtype::Bf16, || Ok(Values::F32((&values[..]).into())));
    let file = read(torch(&Tree::Tensor(tensor)).unwrap());
    assert_eq!(file.read_f32(file.find("", "").unwrap()).unwrap(), bf16);

    let values = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.1 / 2048.0, 65520.0];
    let f16 = [1.0, 1.0 + 4.0 / 2048.0, 1.0 + 2.0 / 2048.0, f32::INFINITY];
    let tensor = Tensor::new(&[4], Dtype::F16, || Ok(Values::F32((&values[..]).into())));
    let bytes = safetensors(&[("x".into(), tensor)], &BTreeMap::new()).unwrap();
    let file = read(bytes);
    assert_eq!(file.read_f32(file.find("", "x").unwrap()).unwrap(), f16);
}

#[test]
fn what_would_not_be_read_is_not_written() {
    let tensor = || Tensor::f32(&[2], &[1.0, 2.0]);
    let named = |name: &str, tensor| (name.to_owned(), tensor);
    let both = |name: &str, make: &dyn Fn() -> Tensor<'static>| {
        [
            safetensors(&[named(name, make())], &BTreeMap::new()).unwrap_err(),
            torch(&Tree::Dict(vec![(name.into(), Tree::Tensor(make()))])).unwrap_err(),
        ]
    };
    for error in both("x", &|| Tensor::f32(&[3], &[1.0, 2.0])) {
        assert!(matches!(&error, WriteError::Count { tensor, found: 2, .. } if tensor == "x"));
    }
    for error in
        both("x", &|| Tensor::new(&[1], Dtype::I64, || Ok(Values::F32(vec![1.0; 1].into()))))
    {
        assert!(matches!(error, WriteError::Count { .. } | WriteError::Type { .. }), "{error}");
    }
    for error in both("x", &|| Tensor::f32(&[usize::MAX, 2], &[])) {
        assert!(matches!(error, WriteError::Size { .. }), "{error}");
    }
    for error in both(&"x".repeat(5000), &|| Tensor::f32(&[], &[1.0])) {
        assert!(matches!(error, WriteError::Name(_)), "{error}");
    }
    let twice = [named("a", tensor()), named("a", tensor())];
    assert!(matches!(safetensors(&twice, &BTreeMap::new()), Err(WriteError::Name(_))));
    let twice = Tree::Dict(twice.map(|(name, tensor)| (name, Tree::Tensor(tensor))).into());
    assert!(matches!(torch(&twice), Err(WriteError::Name(_))));
    let meta = [named("__metadata__", tensor())];
    assert!(matches!(safetensors(&meta, &BTreeMap::new()), Err(WriteError::Name(_))));
    let deep = (0..100).fold(Tree::None, |tree, _| Tree::List(vec![tree]));
    assert!(matches!(torch(&deep), Err(WriteError::Limit { .. })));
    let failing = Tensor::new(&[1], Dtype::F32, || Err(std::io::Error::other("gone")));
    assert!(matches!(torch(&Tree::Tensor(failing)), Err(WriteError::Io(_))));
}

/// Values are converted and read back block by block.
#[test]
fn tensors_of_many_blocks_come_back() {
    let count = 300_001;
    let floats: Vec<f32> = (0..count).map(|i| (i % 8191) as f32 - 4000.0).collect();
    let integers: Vec<i64> = (0..count as i64).map(|i| i * 3_000_000_007 - 5).collect();
    let (integers, floats) = (&integers, &floats);
    let stored = |dtype| {
        let values = move || {
            Ok(match dtype {
                Dtype::I64 => Values::I64((&integers[..]).into()),
                _ => Values::F32((&floats[..]).into()),
            })
        };
        Tensor::new(&[count], dtype, values)
    };
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::I64] {
        let bytes = safetensors(&[("x".into(), stored(dtype))], &BTreeMap::new()).unwrap();
        let tree = Tree::Dict(vec![("x".into(), Tree::Tensor(stored(dtype)))]);
        for bytes in [bytes, torch(&tree).unwrap()] {
            let file = read(bytes);
            let tensor = file.find("", "x").unwrap();
            if dtype == Dtype::I64 {
                assert_eq!(&file.read_i64(tensor).unwrap(), integers);
            } else {
                let found = file.read_f32(tensor).unwrap();
                let within = if dtype == Dtype::F32 { 0.0 } else { 16.0 };
                assert!(found.iter().zip(floats).all(|(a, b)| (a - b).abs() <= within));
            }
        }
    }
}

#[test]
fn a_tree_as_deep_as_is_read_is_written() {
    let deep = (0..64).fold(Tree::None, |tree, _| Tree::List(vec![tree]));
    let file = read(torch(&deep).unwrap());
    let depth = std::iter::successors(Some(file.metadata()), |value| match value {
        Value::List(items) => items.first(),
        _ => None,
    });
    assert_eq!(depth.count(), 65);
}

/// Whole files, byte by byte, as the formats describe them.
#[test]
fn written_files_are_those_of_the_formats() {
    let wide = || Tensor::new(&[2], Dtype::I64, || Ok(Values::I64(vec![1, 2].into())));
    let narrow = || Tensor::new(&[3], Dtype::U8, || Ok(Values::U8(vec![7, 8, 9].into())));
    let tensors = [("layer".into(), narrow()), ("b".into(), wide())];
    let bytes = safetensors(&tensors, &BTreeMap::new()).unwrap();
    let header = r#"{"b":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"layer":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}"#;
    let padded = format!("{header:<120}");
    assert_eq!(padded.len() % 8, 0);
    let values = [&1i64.to_le_bytes()[..], &2i64.to_le_bytes(), &[7, 8, 9]].concat();
    let length = (padded.len() as u64).to_le_bytes();
    assert_eq!(bytes, [&length[..], padded.as_bytes(), &values].concat());

    let tree =
        Tree::Dict(vec![("yes".into(), Tree::Bool(true)), ("b".into(), Tree::Tensor(wide()))]);
    let bytes = torch(&tree).unwrap();
    for part in [
        &b"archive/data.pkl"[..],
        b"archive/byteorder",
        b"little",
        b"archive/data/0",
        b"archive/version",
        b"3\nPK",
        b"ctorch\nLongStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\x02\0\0\0tQJ\0\0\0\0(J\x02\0\0\0t(J\x01\0\0\0t\x89",
    ] {
        let found = bytes.windows(part.len()).filter(|window| *window == part).count();
        assert!(found > 0, "{}", part.escape_ascii());
    }
}

/// Texts beside a state dictionary are read with it; the tree itself stays as it is.
#[test]
fn texts_beside_a_state_dictionary_come_back() {
    let values = [1.0f32, 2.0];
    let tree = Tree::Dict(vec![("x".into(), Tree::Tensor(Tensor::f32(&[2], &values)))]);
    let written = |beside: &[(&str, &str)]| {
        let mut writer = Cursor::new(Vec::new());
        write_torch_with(&mut writer, &tree, beside).unwrap();
        WeightsFile::from_bytes(Path::new("a.pth"), writer.into_inner()).unwrap()
    };
    let file = written(&[("about", "{\"é\": 1}"), ("other", "")]);
    let text = |key| file.metadata().get(key).and_then(|value| value.as_str());
    assert_eq!((text("about"), text("other")), (Some("{\"é\": 1}"), Some("")));
    assert_eq!(file.read_f32(&file.tensors()[0]).unwrap(), values);
    assert_eq!(written(&[]).metadata().get("about"), None);
}

/// The parts of a set are one file, whichever of them or of their index is named.
#[test]
fn parts_of_a_set_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"];
    for (name, tensors) in names.iter().zip([["a", "b"], ["c", "d"]]) {
        let values: Vec<[f32; 2]> =
            tensors.iter().map(|name| [f32::from(name.as_bytes()[0]), 0.5]).collect();
        let entries = tensors.iter().zip(&values);
        let entries: Vec<(String, Tensor<'_>)> =
            entries.map(|(n, v)| ((*n).to_string(), Tensor::f32(&[2], v))).collect();
        let mut file = std::fs::File::create(path(name)).unwrap();
        write_safetensors(&mut file, &entries, &BTreeMap::new()).unwrap();
    }
    let index = r#"{"weight_map": {"a": "m-00001-of-00002.safetensors",
        "c": "m-00002-of-00002.safetensors"}}"#;
    std::fs::write(path("m.safetensors.index.json"), index).unwrap();
    for name in [names[0], names[1], "m.safetensors.index.json"] {
        let file = WeightsFile::open(&path(name)).unwrap();
        assert_eq!((file.parts(), file.tensors().len()), (2, 4));
        for tensor in ["a", "b", "c", "d"] {
            let info = file.find("", tensor).unwrap();
            let expected = [f32::from(tensor.as_bytes()[0]), 0.5];
            assert_eq!(file.read_f32(info).unwrap(), expected, "{tensor} of {name}");
        }
    }
    // A tensor in two parts is in neither for certain.
    std::fs::copy(path(names[0]), path(names[1])).unwrap();
    let error = WeightsFile::open(&path(names[0])).unwrap_err().to_string();
    assert!(error.contains("`a` stands in the file twice"), "{error}");
    std::fs::remove_file(path(names[1])).unwrap();
    let error = WeightsFile::open(&path(names[0])).unwrap_err().to_string();
    assert!(error.contains("set of 2 files") && error.contains(names[1]), "{error}");
}
