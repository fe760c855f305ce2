//! Expands the object graph of a pickle into a tree and a list of tensors.
//!
//! The graph may have cycles, or expand to more than memory: depth, nodes and text of the tree are
//! limited.

use std::collections::HashSet;

use super::node::{Id, Node, Object, Storage, View};
use super::unpickler::Pickle;
use crate::error::{ErrorKind, corrupt};
use crate::file::{Parsed, TensorInfo, join};
use crate::layout::Layout;
use crate::limits::{MAX_NAME, MAX_NESTING, MAX_NODES, MAX_TENSORS};
use crate::value::Value;

/// Position and length of a storage in the file, in bytes.
pub(crate) type ByteRange = (u64, u64);

/// Expands a pickle; `locate` finds a storage in the file.
pub(crate) fn expand(
    pickle: &Pickle,
    locate: impl FnMut(&Storage) -> Result<ByteRange, ErrorKind>,
) -> Result<Parsed, ErrorKind> {
    let mut tree = Tree {
        pickle,
        locate,
        parsed: Parsed::default(),
        path: Path::default(),
        open: HashSet::new(),
        nodes: 0,
        text: 0,
    };
    tree.parsed.metadata = tree.value(pickle.root, "")?;
    Ok(tree.parsed)
}

/// Position in the tree: the path of dictionaries and, inside a module, that of modules.
#[derive(Debug, Default, Clone)]
struct Path {
    group: String,
    /// Path of modules, with a dot after each.
    modules: String,
}

struct Tree<'p, F> {
    pickle: &'p Pickle,
    locate: F,
    parsed: Parsed,
    path: Path,
    /// Nodes on the current path, to detect cycles.
    open: HashSet<Id>,
    nodes: usize,
    text: usize,
}

impl<F: FnMut(&Storage) -> Result<ByteRange, ErrorKind>> Tree<'_, F> {
    /// Expands a node with the key `name`.
    fn value(&mut self, id: Id, name: &str) -> Result<Value, ErrorKind> {
        self.nodes += 1;
        ErrorKind::check_limit("values beside its tensors", self.nodes, MAX_NODES)?;
        Ok(match self.pickle.arena.get(id) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(number) => Value::Int(*number),
            Node::Float(number) => Value::Float(*number),
            Node::Text(text) => Value::Str(self.copy_text(text)?),
            Node::Bytes(bytes) => {
                self.charge(bytes.len())?;
                Value::Bytes(bytes.to_vec())
            }
            Node::BigInt(digits) => opaque_object("int", vec![Value::Str(self.copy_text(digits)?)]),
            Node::Global(global) => {
                self.charge(global.module.len() + global.name.len())?;
                opaque_object(global.path(), Vec::new())
            }
            Node::Storage(storage) => {
                let key = Value::Str(self.copy_text(&storage.key)?);
                opaque_object(format!("torch.{}", storage.class), vec![key])
            }
            Node::Tensor(view) => self.tensor(view, name)?,
            Node::List(items) => Value::List(self.nested(id, name, |tree| tree.list(items))?),
            Node::Tuple(items) => Value::Tuple(self.nested(id, name, |tree| tree.list(items))?),
            Node::Dict(pairs) => Value::Dict(self.nested(id, name, |tree| tree.dict(pairs))?),
            Node::Object(object) => self.nested(id, name, |tree| tree.expand_object(object))?,
        })
    }

    /// Expands the contents of a node, with its name appended to the path.
    fn nested<T>(
        &mut self,
        id: Id,
        name: &str,
        make: impl FnOnce(&mut Self) -> Result<T, ErrorKind>,
    ) -> Result<T, ErrorKind> {
        let group = if self.open.is_empty() {
            // The root has no name.
            String::new()
        } else {
            join(&self.path.group, &format!("{}{name}", self.path.modules))
        };
        self.at(id, Path { group, modules: String::new() }, make)
    }

    fn at<T>(
        &mut self,
        id: Id,
        path: Path,
        make: impl FnOnce(&mut Self) -> Result<T, ErrorKind>,
    ) -> Result<T, ErrorKind> {
        ErrorKind::check_limit("levels of nesting", self.open.len() + 1, MAX_NESTING)?;
        if !self.open.insert(id) {
            let place = if path.group.is_empty() { "the file's content" } else { &path.group };
            return Err(corrupt!("`{place}` contains itself"));
        }
        self.charge(path.group.len() + path.modules.len())?;
        let outer = std::mem::replace(&mut self.path, path);
        let made = make(self)?;
        self.path = outer;
        self.open.remove(&id);
        Ok(made)
    }

    fn list(&mut self, items: &[Id]) -> Result<Vec<Value>, ErrorKind> {
        items.iter().enumerate().map(|(i, &item)| self.value(item, &i.to_string())).collect()
    }

    fn dict(&mut self, pairs: &[(Id, Id)]) -> Result<Vec<(Value, Value)>, ErrorKind> {
        let pair =
            |(place, &(key, value))| self.pair(place, key, |tree, name| tree.value(value, name));
        pairs.iter().enumerate().map(pair).collect()
    }

    /// A dictionary's key, and its value as made by `make`.
    fn pair(
        &mut self,
        place: usize,
        key: Id,
        make: impl FnOnce(&mut Self, &str) -> Result<Value, ErrorKind>,
    ) -> Result<(Value, Value), ErrorKind> {
        let name = self.key(key, place);
        self.charge(name.len())?;
        Ok((self.value(key, &format!("{place}.key"))?, make(self, &name)?))
    }

    /// A dictionary's key as part of a path: text, a number, or else its index.
    fn key(&self, key: Id, place: usize) -> String {
        match self.pickle.arena.get(key) {
            Node::Text(text) if text.len() <= MAX_NAME => text.to_string(),
            Node::Text(text) => {
                // Too long for the name of a tensor, which is an error there; elsewhere a label.
                text.chars().take(MAX_NAME + 1).collect()
            }
            Node::Int(number) => number.to_string(),
            _ => place.to_string(),
        }
    }

    /// Expands an object, with the path set to it.
    fn expand_object(&mut self, object: &Object) -> Result<Value, ErrorKind> {
        let class = match self.pickle.arena.get(object.class) {
            Node::Global(global) => {
                self.charge(global.module.len() + global.name.len())?;
                global.path()
            }
            _ => "a call".into(),
        };
        let mut arguments = Vec::new();
        if let Some(given) = self.pickle.arena.tuple(object.arguments)
            && !given.is_empty()
        {
            arguments = self.nested(object.arguments, "arguments", |tree| tree.list(&given))?;
        }
        arguments.extend(self.list(&object.items)?);
        let state = self.state(object)?.map(Box::new);
        Ok(Value::Object { class, arguments, state })
    }

    /// The attributes of an object, after pairs that were added to it as to a dictionary.
    fn state(&mut self, object: &Object) -> Result<Option<Value>, ErrorKind> {
        let mut pairs = self.dict(&object.entries)?;
        let Some(id) = object.state else {
            return Ok((!pairs.is_empty()).then_some(Value::Dict(pairs)));
        };
        match self.pickle.arena.get(id) {
            Node::Dict(attributes) if self.is_module(attributes) => {
                pairs.extend(self.module(attributes)?);
            }
            Node::Dict(attributes) => pairs.extend(self.dict(attributes)?),
            _ if pairs.is_empty() => return self.value(id, "state").map(Some),
            _ => pairs.push((Value::Str("state".into()), self.value(id, "state")?)),
        }
        Ok(Some(Value::Dict(pairs)))
    }

    /// Whether these are the attributes of an `nn.Module`.
    fn is_module(&self, attributes: &[(Id, Id)]) -> bool {
        let has = |name: &str| attributes.iter().any(|&(key, _)| self.is(key, name));
        has("_parameters") && has("_modules")
    }

    fn is(&self, key: Id, name: &str) -> bool {
        self.pickle.arena.text(key).is_some_and(|key| &**key == name)
    }

    /// The attributes of an `nn.Module`. Parameters are named as in its `state_dict()`: by the path
    /// of modules, with dots.
    fn module(&mut self, attributes: &[(Id, Id)]) -> Result<Vec<(Value, Value)>, ErrorKind> {
        let arena = &self.pickle.arena;
        let attribute = |(place, &(key, value))| {
            let members = match arena.get(value) {
                Node::Dict(modules) if self.is(key, "_modules") => Some(self.children(modules)?),
                Node::Dict(tensors) if self.is(key, "_parameters") || self.is(key, "_buffers") => {
                    Some(self.dict(tensors)?)
                }
                _ => None,
            };
            self.pair(place, key, |tree, name| match members {
                Some(members) => Ok(Value::Dict(members)),
                None => tree.value(value, name),
            })
        };
        attributes.iter().enumerate().map(attribute).collect()
    }

    fn children(&mut self, modules: &[(Id, Id)]) -> Result<Vec<(Value, Value)>, ErrorKind> {
        let child = |(place, &(key, child))| {
            self.pair(place, key, |tree, name| match tree.pickle.arena.get(child) {
                Node::Object(object) => {
                    let mut path = tree.path.clone();
                    path.modules.push_str(name);
                    path.modules.push('.');
                    tree.at(child, path, |tree| tree.expand_object(object))
                }
                _ => tree.value(child, name),
            })
        };
        modules.iter().enumerate().map(child).collect()
    }

    fn tensor(&mut self, view: &View, name: &str) -> Result<Value, ErrorKind> {
        let name = format!("{}{name}", self.path.modules);
        let group = self.path.group.clone();
        let path = join(&group, &name);
        ErrorKind::check_limit("bytes of a tensor's name", path.len(), MAX_NAME)?;
        self.charge(path.len())?;
        let parsed = &mut self.parsed;
        ErrorKind::check_limit(
            "tensors",
            parsed.tensors.len() + parsed.unsupported.len() + 1,
            MAX_TENSORS,
        )?;
        let storage = &*view.storage;
        let Some(dtype) = view.element.dtype else {
            let dtype_name = self.copy_text(&view.dtype_name)?;
            self.parsed.unsupported.push((path, dtype_name.clone()));
            return Ok(opaque_object("torch.Tensor", vec![Value::Str(dtype_name)]));
        };
        let (start, length) = (self.locate)(storage).map_err(|kind| match kind {
            ErrorKind::Corrupt(reason) => ErrorKind::CorruptTensor { tensor: path.clone(), reason },
            other => other,
        })?;
        let layout = layout(view, start, length);
        let layout = layout.and_then(|layout| layout.extent(dtype, &view.shape).map(|_| layout));
        let layout = layout.map_err(|reason| ErrorKind::CorruptTensor { tensor: path, reason })?;
        let shape = view.shape.clone();
        self.parsed.tensors.push(TensorInfo { group, name, dtype, shape, layout, part: 0 });
        Ok(Value::Tensor(self.parsed.tensors.len() - 1))
    }

    fn copy_text(&mut self, text: &str) -> Result<String, ErrorKind> {
        self.charge(text.len())?;
        Ok(text.into())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        super::charge_text(&mut self.text, bytes)
    }
}

/// Where a view is in the file, which has `length` bytes from `start` on for its storage.
fn layout(view: &View, start: u64, length: u64) -> Result<Layout, String> {
    let storage = &*view.storage;
    let size = storage.element.size;
    let first = storage.offset.checked_mul(size);
    let claimed = storage.count.checked_mul(size);
    let end = first.zip(claimed).and_then(|(first, claimed)| first.checked_add(claimed));
    let (Some(first), Some(claimed), true) = (first, claimed, end.is_some_and(|e| e <= length))
    else {
        return Err(format!(
            "is of a storage of {} elements from {} on, for which the file has {length} bytes",
            storage.count, storage.offset
        ));
    };
    let strides = view.strides.clone();
    Ok(Layout { start: start + first, length: claimed, offset: view.offset, strides })
}

fn opaque_object(class: impl Into<String>, arguments: Vec<Value>) -> Value {
    Value::Object { class: class.into(), arguments, state: None }
}
