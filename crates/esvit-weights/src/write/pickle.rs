//! Writes the pickle of a tree, in protocol 2.

use std::collections::HashSet;

use super::torch::Tree;
use super::{Tensor, WriteError};
use crate::error::ensure;
use crate::file::join;
use crate::limits::{MAX_NAME, MAX_NESTING, MAX_PICKLE, MAX_TENSORS};
use crate::pickle::opcode as op;

/// A pickle, and the tensors that it refers to by index.
#[derive(Debug)]
pub(super) struct Pickler<'t, 'a> {
    pub(super) bytes: Vec<u8>,
    /// Tensors with their paths in the tree.
    pub(super) tensors: Vec<(String, &'t Tensor<'a>)>,
}

impl<'t, 'a> Pickler<'t, 'a> {
    pub(super) fn of(tree: &'t Tree<'a>) -> Result<Self, WriteError> {
        let mut pickler = Self { bytes: vec![op::PROTO, 2], tensors: Vec::new() };
        pickler.node(tree, "", 0)?;
        pickler.bytes.push(op::STOP);
        Ok(pickler)
    }

    fn node(&mut self, tree: &'t Tree<'a>, path: &str, depth: usize) -> Result<(), WriteError> {
        WriteError::check_limit("levels of nesting", depth as u64, MAX_NESTING as u64)?;
        WriteError::check_limit("bytes of pickle", self.bytes.len() as u64, MAX_PICKLE)?;
        match tree {
            Tree::None => self.bytes.push(op::NONE),
            Tree::Bool(value) => self.bool(*value),
            Tree::Int(number) => self.int(*number),
            Tree::Float(number) => {
                self.bytes.push(op::BINFLOAT);
                self.bytes.extend(number.to_be_bytes());
            }
            Tree::Str(text) => self.text(text)?,
            Tree::List(items) => {
                self.bytes.extend([op::EMPTY_LIST, op::MARK]);
                for (i, item) in items.iter().enumerate() {
                    self.node(item, &join(path, &i.to_string()), depth + 1)?;
                }
                self.bytes.push(op::APPENDS);
            }
            Tree::Dict(pairs) => {
                self.bytes.extend([op::EMPTY_DICT, op::MARK]);
                let mut keys = HashSet::new();
                for (key, value) in pairs {
                    let path = join(path, key);
                    let is_free = keys.insert(key) && path.len() <= MAX_NAME;
                    ensure!(is_free, WriteError::Name(path));
                    self.text(key)?;
                    self.node(value, &path, depth + 1)?;
                }
                self.bytes.push(op::SETITEMS);
            }
            Tree::Tensor(tensor) => self.tensor(tensor, path)?,
        }
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.
    fn tensor(&mut self, tensor: &'t Tensor<'a>, path: &str) -> Result<(), WriteError> {
        let count = tensor.length(path)? / tensor.dtype.size() as u64;
        let too_large = || WriteError::Size { tensor: path.into(), shape: tensor.shape.clone() };
        let count = i64::try_from(count).map_err(|_| too_large())?;
        WriteError::check_limit("tensors", self.tensors.len() as u64 + 1, MAX_TENSORS as u64)?;
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.push(op::MARK);
        self.bytes.push(op::MARK);
        self.text("storage")?;
        self.global("torch", tensor.dtype.storage_class());
        self.text(&self.tensors.len().to_string())?;
        self.text("cpu")?;
        self.int(count);
        self.bytes.extend([op::TUPLE, op::BINPERSID]);
        self.int(0);
        self.ints(tensor.shape.iter().map(|&size| size as i64));
        // Saturating: if one dimension is 0, the others may be anything.
        let mut strides = vec![1i64; tensor.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i].saturating_mul(tensor.shape[i].max(1) as i64);
        }
        self.ints(strides);
        self.bool(false);
        self.global("collections", "OrderedDict");
        self.bytes.extend([op::EMPTY_TUPLE, op::REDUCE, op::TUPLE, op::REDUCE]);
        self.tensors.push((path.into(), tensor));
        Ok(())
    }

    fn bool(&mut self, value: bool) {
        self.bytes.push(if value { op::NEWTRUE } else { op::NEWFALSE });
    }

    fn int(&mut self, number: i64) {
        if let Ok(small) = i32::try_from(number) {
            self.bytes.push(op::BININT);
            self.bytes.extend(small.to_le_bytes());
        } else {
            self.bytes.extend([op::LONG1, 8]);
            self.bytes.extend(number.to_le_bytes());
        }
    }

    fn ints(&mut self, numbers: impl IntoIterator<Item = i64>) {
        self.bytes.push(op::MARK);
        numbers.into_iter().for_each(|number| self.int(number));
        self.bytes.push(op::TUPLE);
    }

    fn text(&mut self, text: &str) -> Result<(), WriteError> {
        WriteError::check_limit("bytes of text", text.len() as u64, u32::MAX.into())?;
        self.bytes.push(op::BINUNICODE);
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(op::GLOBAL);
        self.bytes.extend(format!("{module}\n{name}\n").as_bytes());
    }
}
