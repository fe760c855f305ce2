//! Calls. Known functions of PyTorch, NumPy and Python's own types are evaluated; any other becomes
//! an object with class and arguments.

use std::sync::Arc;

use super::node::{Id, Node, Object};
use super::unpickler::Unpickler;
use crate::error::{ErrorKind, corrupt};

/// Bytes of the longest NumPy scalar.
const MAX_SCALAR: usize = 8;

impl Unpickler<'_, '_> {
    pub(super) fn call(&mut self, callable: Id, arguments: Id) -> Result<Id, ErrorKind> {
        let Some(given) = self.arena.tuple(arguments) else {
            return Err(corrupt!("a call has no tuple of arguments"));
        };
        let Node::Global(global) = self.arena.get(callable) else {
            return self.object(callable, arguments);
        };
        let global = global.clone();
        let is_torch_utils =
            |id| matches!(self.arena.get(id), Node::Global(of) if &*of.module == "torch._utils");
        let node = match (&*global.module, &*global.name, &*given) {
            // Tensors with attributes, and subclasses: the inner function rebuilds the tensor. Only
            // `torch._utils` is followed, or the recursion would not end.
            ("torch._tensor", "_rebuild_from_type_v2", &[inner, _, inner_arguments, _])
                if is_torch_utils(inner) =>
            {
                return self.call(inner, inner_arguments);
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[of, ..])
            | ("torch", "Size", &[of])
            | ("builtins" | "__builtin__", "list" | "tuple" | "set" | "frozenset", &[of]) => {
                return Ok(of);
            }
            ("torch._utils", name, given) => self.rebuild(name, given)?,
            ("_codecs", "encode", &[text, encoding])
            | ("builtins" | "__builtin__", "bytes" | "bytearray", &[text, encoding]) => {
                self.encoded(text, encoding)?
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar", &[dtype, bytes]) => {
                self.scalar(dtype, bytes)
            }
            ("collections", "OrderedDict" | "Counter", given)
            | ("builtins" | "__builtin__", "dict", given) => Some(self.dict(given)?),
            ("collections", "defaultdict", given) => {
                Some(self.dict(given.get(1..).unwrap_or_default())?)
            }
            ("copyreg" | "copy_reg", "_reconstructor", &[class, ..]) => {
                let nothing = self.arena.add(Node::Tuple(Arc::default()))?;
                return self.object(class, nothing);
            }
            ("builtins" | "__builtin__", name, given) => self.builtin(name, given),
            _ => None,
        };
        match node {
            Some(node) => self.arena.add(node),
            None => self.object(callable, arguments),
        }
    }

    fn object(&mut self, class: Id, arguments: Id) -> Result<Id, ErrorKind> {
        let object =
            Object { class, arguments, state: None, items: Vec::new(), entries: Vec::new() };
        self.arena.add(Node::Object(Box::new(object)))
    }

    fn builtin(&self, name: &str, given: &[Id]) -> Option<Node> {
        match (name, given) {
            ("list" | "set" | "frozenset", []) => Some(Node::List(Vec::new())),
            ("tuple", []) => Some(Node::Tuple(Arc::default())),
            ("bytearray" | "bytes", []) => Some(Node::Bytes(Arc::default())),
            ("bytearray" | "bytes", &[bytes]) => match self.arena.get(bytes) {
                Node::Bytes(bytes) => Some(Node::Bytes(bytes.clone())),
                _ => None,
            },
            _ => None,
        }
    }

    /// A dictionary: empty, or from a dictionary or a list of pairs.
    fn dict(&mut self, given: &[Id]) -> Result<Node, ErrorKind> {
        let entries = match given.first().map(|&first| self.arena.get(first)) {
            None => Some(Vec::new()),
            Some(Node::Dict(entries)) => Some(entries.clone()),
            Some(Node::List(items)) => {
                let pair = |&item: &Id| match *self.arena.tuple(item)? {
                    [key, value] => Some((key, value)),
                    _ => match self.arena.get(item) {
                        Node::List(pair) => pair.first().copied().zip(pair.get(1).copied()),
                        _ => None,
                    },
                };
                items.iter().map(pair).collect()
            }
            Some(_) => None,
        };
        let entries = entries.ok_or_else(|| corrupt!("a dictionary is not made of pairs"))?;
        self.arena.charge(entries.len())?;
        Ok(Node::Dict(entries))
    }

    /// Bytes as Python 3 pickles them for Python 2: text with one character per byte.
    fn encoded(&mut self, text: Id, encoding: Id) -> Result<Option<Node>, ErrorKind> {
        let (Some(text), Some(encoding)) = (self.arena.text(text), self.arena.text(encoding))
        else {
            return Ok(None);
        };
        let (text, encoding) = (text.clone(), encoding.clone());
        self.arena.charge_text(text.len())?;
        let bytes: Option<Arc<[u8]>> = match &*encoding {
            "latin1" | "latin-1" | "iso-8859-1" => latin1(&text),
            "utf-8" | "utf8" | "ascii" => Some(text.as_bytes().into()),
            _ => None,
        };
        Ok(bytes.map(Node::Bytes))
    }

    /// A NumPy scalar: an object of class `numpy.dtype`, with the type in its first argument and
    /// the byte order in its state, and the bytes.
    fn scalar(&self, dtype: Id, bytes: Id) -> Option<Node> {
        let Node::Object(dtype) = self.arena.get(dtype) else { return None };
        let code = self.arena.text(*self.arena.tuple(dtype.arguments)?.first()?)?;
        let order = dtype.state.and_then(|state| self.arena.tuple(state));
        let order = order.and_then(|state| self.arena.text(*state.get(1)?).cloned());
        let mut bytes = match self.arena.get(bytes) {
            Node::Bytes(bytes) if bytes.len() <= MAX_SCALAR => bytes.to_vec(),
            Node::Text(text) if text.len() <= 2 * MAX_SCALAR => latin1(text)?,
            _ => return None,
        };
        if order.as_deref() == Some(">") {
            bytes.reverse();
        }
        fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match &**code {
            "f8" => Node::Float(f64::from_le_bytes(array(&bytes)?)),
            "f4" => Node::Float(f32::from_le_bytes(array(&bytes)?).into()),
            "f2" => Node::Float(half::f16::from_le_bytes(array(&bytes)?).into()),
            "i8" => Node::Int(i64::from_le_bytes(array(&bytes)?)),
            "i4" => Node::Int(i32::from_le_bytes(array(&bytes)?).into()),
            "i2" => Node::Int(i16::from_le_bytes(array(&bytes)?).into()),
            "i1" => Node::Int(i8::from_le_bytes(array(&bytes)?).into()),
            "u8" => Node::Int(u64::from_le_bytes(array(&bytes)?).try_into().ok()?),
            "u4" => Node::Int(u32::from_le_bytes(array(&bytes)?).into()),
            "u2" => Node::Int(u16::from_le_bytes(array(&bytes)?).into()),
            "u1" => Node::Int(u8::from_le_bytes(array(&bytes)?).into()),
            "b1" => Node::Bool(array::<1>(&bytes)? != [0]),
            _ => return None,
        })
    }

    /// Appends to a list or list-like object.
    pub(super) fn append(&mut self, items: Vec<Id>) -> Result<(), ErrorKind> {
        let top = self.top()?;
        match self.arena.get_mut(top) {
            Node::List(list) => list.extend(items),
            Node::Object(object) => object.items.extend(items),
            _ => return Err(corrupt!("something is appended to what is not a list")),
        }
        Ok(())
    }

    /// Adds pairs to a dictionary or dictionary-like object.
    pub(super) fn set(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), ErrorKind> {
        let top = self.top()?;
        match self.arena.get_mut(top) {
            Node::Dict(entries) => entries.extend(pairs),
            Node::Object(object) => object.entries.extend(pairs),
            _ => return Err(corrupt!("a pair is added to what is not a dictionary")),
        }
        Ok(())
    }

    /// Sets an object's attributes. Those of dictionaries, lists and tensors are ignored.
    pub(super) fn build(&mut self, object: Id, state: Id) -> Result<(), ErrorKind> {
        match self.arena.get_mut(object) {
            Node::Object(object) => object.state = Some(state),
            Node::Dict(_) | Node::List(_) | Node::Tensor(_) => {}
            _ => return Err(corrupt!("attributes are given to what has none")),
        }
        Ok(())
    }
}

/// The bytes of text that has one character for each.
fn latin1<B: FromIterator<u8>>(text: &str) -> Option<B> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}
