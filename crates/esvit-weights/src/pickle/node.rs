//! What a pickle builds: nodes that name each other by number. The numbers may form cycles and name
//! one node from many places, as objects in Python do.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::Fault;
use crate::limits::MAX_OBJECTS;

/// The number of a node.
pub(crate) type Id = u32;

#[derive(Debug, Clone)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Digits of an integer beyond 64 bits: hexadecimal behind `0x`, or decimal in text protocols.
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

/// What calling a foreign class would give.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) class: Id,
    /// A tuple.
    pub(crate) arguments: Id,
    pub(crate) state: Option<Id>,
    /// What was appended to it as to a list.
    pub(crate) items: Vec<Id>,
    /// What was put into it as into a dictionary.
    pub(crate) entries: Vec<(Id, Id)>,
}

/// The elements of a storage: their size, and their type if it is one that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) size: u64,
    pub(crate) dtype: Option<Dtype>,
}

/// Elements that tensors share, known by a key.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) key: Arc<str>,
    /// What the file calls the type, such as `FloatStorage`.
    pub(crate) class: Arc<str>,
    pub(crate) element: Element,
    /// The first element; other than 0 in files of the earliest versions only.
    pub(crate) offset: u64,
    pub(crate) count: u64,
}

/// A tensor: a view of a storage.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) storage: Arc<Storage>,
    pub(crate) element: Element,
    /// What the file calls the type.
    pub(crate) kind: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<u64>,
}

/// The nodes, and how many there may be.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Node>,
    /// Nodes, and items that were copied into them at once.
    objects: usize,
    text: usize,
}

impl Arena {
    pub(crate) fn add(&mut self, node: Node) -> Result<Id, Fault> {
        self.charge(1)?;
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Id)
    }

    /// Counts items that one instruction copies.
    pub(crate) fn charge(&mut self, items: usize) -> Result<(), Fault> {
        self.objects = self.objects.saturating_add(items);
        if self.objects > MAX_OBJECTS {
            return Err(Fault::Limit { what: "objects in its pickle", limit: MAX_OBJECTS as u64 });
        }
        Ok(())
    }

    /// Counts bytes of text that an instruction copies from a node.
    pub(crate) fn charge_text(&mut self, bytes: usize) -> Result<(), Fault> {
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

    /// A whole number that is not negative.
    pub(crate) fn count(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}
