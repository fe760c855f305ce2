//! Writes files for `torch.load`.

use std::io::{Seek, Write};

use super::archive::Archive;
use super::pickle::Pickler;
use super::{Tensor, WriteError};

/// Prefix of the archive's entries; PyTorch accepts any.
const PREFIX: &str = "archive";

/// A tree of tensors and plain data.
#[derive(Debug)]
pub enum Tree<'a> {
    /// Nothing.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(String),
    /// A dictionary, in this order.
    Dict(Vec<(String, Tree<'a>)>),
    /// A list.
    List(Vec<Tree<'a>>),
    /// A tensor.
    Tensor(Tensor<'a>),
}

/// Writes `tree` as `torch.save` does, for `torch.load(path, weights_only=True)`.
///
/// Equal input gives equal bytes. Values of tensors are requested in the tree's order.
///
/// # Errors
/// When `writer` or a source of values fails, a dictionary has a duplicate key, values do not fit
/// their tensor, or the tree is deeper than [`MAX_NESTING`](crate::limits::MAX_NESTING). The file
/// is then incomplete.
pub fn write_torch<W: Write + Seek>(writer: &mut W, tree: &Tree<'_>) -> Result<(), WriteError> {
    let pickler = Pickler::of(tree)?;
    let mut archive = Archive::new(writer)?;
    archive.add_bytes(&format!("{PREFIX}/data.pkl"), &pickler.bytes)?;
    archive.add_bytes(&format!("{PREFIX}/byteorder"), b"little")?;
    for (key, (name, tensor)) in pickler.tensors.iter().enumerate() {
        let length = tensor.length(name)?;
        archive
            .add_entry(&format!("{PREFIX}/data/{key}"), length, |sink| tensor.write(name, sink))?;
    }
    archive.add_bytes(&format!("{PREFIX}/version"), b"3\n")?;
    Ok(archive.finish()?)
}
