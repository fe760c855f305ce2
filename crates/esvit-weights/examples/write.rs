//! Writes `written.pth` and `written.safetensors` into a folder, for
//! `conformance/make_weights_fixtures.py --check`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use esvit_weights::{Dtype, Tensor, Tree, Values, write_safetensors, write_torch};

const TENSORS: [(&str, &[usize], Dtype); 6] = [
    ("odd.f16", &[3, 5], Dtype::F16),
    ("bf16", &[7], Dtype::Bf16),
    ("f32", &[2, 3, 4], Dtype::F32),
    ("scalar", &[], Dtype::F32),
    ("empty", &[0, 4], Dtype::F32),
    ("large", &[300, 100], Dtype::F32),
];

/// The numbers from -1 on in steps of an eighth.
fn tensor(shape: &'static [usize], dtype: Dtype) -> Tensor<'static> {
    let count: usize = shape.iter().product();
    Tensor::new(shape, dtype, move || {
        Ok(Values::F32((0..count).map(|i| i as f32 / 8.0 - 1.0).collect()))
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: write FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    let tensors = || TENSORS.map(|(name, shape, dtype)| (name.to_owned(), tensor(shape, dtype)));

    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("by".into(), "write".into())]);
    let mut file = BufWriter::new(File::create(folder.join("written.safetensors"))?);
    write_safetensors(&mut file, &tensors(), &metadata)?;
    file.into_inner()?.sync_all()?;

    let model = tensors().into_iter().map(|(name, tensor)| (name, Tree::Tensor(tensor)));
    let tree = Tree::Dict(vec![
        ("model".into(), Tree::Dict(model.collect())),
        ("epoch".into(), Tree::Int(7)),
        ("big".into(), Tree::Int(1 << 40)),
        ("lr".into(), Tree::Float(0.125)),
        ("on".into(), Tree::Bool(true)),
        ("none".into(), Tree::None),
        ("text".into(), Tree::Str("grün".into())),
        ("list".into(), Tree::List(vec![Tree::Int(1), Tree::Tensor(Tensor::f32(&[], &[5.0]))])),
    ]);
    let mut file = BufWriter::new(File::create(folder.join("written.pth"))?);
    write_torch(&mut file, &tree)?;
    file.into_inner()?.sync_all()?;
    Ok(())
}
