//! The object graph of a pickle: nodes that refer to each other by index. As with Python's objects,
//! references may be shared or form cycles.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::ErrorKind;
use crate::limits::MAX_OBJECTS;

/// Index of a node.
pub(crate) type Id = u32;

#[derive(Debug, Clone)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Digits of an integer beyond 64 bits: hexadecimal after `0x`, or decimal in text protocols.
    BigInt(Arc<str>),
    Float(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Vec<Id>),
    Tuple(Arc<[Id]>),
    Dict(Vec<(Id, Id)>),
    /// A class or function.
    Global(Arc<Global>),
    Object(Box<Object>),
    Storage(Arc<Storage>),
    Tensor(Box<View>),
}

/// The name of a class or function.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) module: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Global {
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}

/// An object of an unknown class.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) class: Id,
    /// A tuple.
    pub(crate) arguments: Id,
    pub(crate) state: Option<Id>,
    /// Items appended to it, if it is list-like.
    pub(crate) items: Vec<Id>,
    /// Pairs added to it, if it is dictionary-like.
    pub(crate) entries: Vec<(Id, Id)>,
}

/// Element size of a storage in bytes, and its type if that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) size: u64,
    pub(crate) dtype: Option<Dtype>,
}

/// A buffer of elements that tensors share, identified by a key.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) key: Arc<str>,
    /// The class of the storage, such as `FloatStorage`.
    pub(crate) class: Arc<str>,
    pub(crate) element: Element,
    /// The first element; not 0 only in files of the earliest versions.
    pub(crate) offset: u64,
    pub(crate) count: u64,
}

/// A tensor: a view of a storage.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) storage: Arc<Storage>,
    pub(crate) element: Element,
    /// Name of the element type in the file.
    pub(crate) dtype_name: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<u64>,
}

/// All nodes, within limits.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    /// Number of nodes and copied items.
    objects: usize,
    text: usize,
}

impl Arena {
    pub(crate) fn add(&mut self, node: Node) -> Result<Id, ErrorKind> {
        self.charge(1)?;
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Id)
    }

    /// Counts copied items.
    pub(crate) fn charge(&mut self, items: usize) -> Result<(), ErrorKind> {
        self.objects = self.objects.saturating_add(items);
        ErrorKind::check_limit("objects in its pickle", self.objects, MAX_OBJECTS)?;
        Ok(())
    }

    /// Counts copied bytes of text.
    pub(crate) fn charge_text(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        super::charge_text(&mut self.text, bytes)
    }

    pub(crate) fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub(crate) fn tuple(&self, id: Id) -> Option<Arc<[Id]>> {
        match self.get(id) {
            Node::Tuple(items) => Some(items.clone()),
            _ => None,
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&Arc<str>> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub(crate) fn count(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}
