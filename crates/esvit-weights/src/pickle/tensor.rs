//! Storages and tensors of a pickle.

use std::sync::Arc;

use super::node::{Arena, Element, Id, Node, Storage, View};
use super::unpickler::Unpickler;
use crate::dtype::Dtype;
use crate::error::{ErrorKind, corrupt};
use crate::limits::{MAX_RANK, MAX_TENSORS};

impl Unpickler<'_, '_> {
    /// An object outside the pickle: a storage, or a class whose source is stored too.
    pub(super) fn persistent_load(&mut self, id: Id) -> Result<Id, ErrorKind> {
        let bad = || corrupt!("a reference to a storage is not as torch.save writes it");
        let parts = self.arena.tuple(id).ok_or_else(bad)?;
        let kind = parts.first().and_then(|&kind| self.arena.text(kind)).ok_or_else(bad)?;
        match (&**kind, &parts[1..]) {
            ("module", &[class, ..]) => Ok(class),
            ("storage", &[class, key, _location, count, ref view @ ..]) => {
                let storage = storage(&self.arena, class, key, count, view.first().copied());
                let storage = Arc::new(storage.ok_or_else(bad)?);
                ErrorKind::check_limit("storages", self.storages.len() + 1, MAX_TENSORS)?;
                self.storages.push(storage.clone());
                self.arena.add(Node::Storage(storage))
            }
            _ => Err(bad()),
        }
    }

    /// Evaluates a function of `torch._utils` that makes a tensor; none if it is unknown.
    pub(super) fn rebuild(&mut self, name: &str, given: &[Id]) -> Result<Option<Node>, ErrorKind> {
        let view = match (name, given) {
            ("_rebuild_tensor" | "_rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
                view(&self.arena, [storage, offset, shape, strides], None)
            }
            ("_rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                view(&self.arena, [storage, offset, shape, strides], Some(dtype))
            }
            _ => return Ok(None),
        };
        let view = view.ok_or_else(|| corrupt!("a tensor is not as torch.save writes it"))?;
        self.arena.charge(view.shape.len())?;
        Ok(Some(Node::Tensor(Box::new(view))))
    }
}

fn storage(arena: &Arena, class: Id, key: Id, count: Id, view: Option<Id>) -> Option<Storage> {
    let Node::Global(global) = arena.get(class) else { return None };
    let element = storage_element(&global.name)?;
    let key = arena.text(key)?.clone();
    let class = global.name.clone();
    let (offset, count) = match view.map(|view| arena.get(view)) {
        None | Some(Node::None) => (0, arena.count(count)?),
        Some(Node::Tuple(view)) => match **view {
            [_, offset, count] => (arena.count(offset)?, arena.count(count)?),
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Storage { key, class, element, offset, count })
}

fn view(
    arena: &Arena,
    [storage, offset, shape, strides]: [Id; 4],
    dtype: Option<Id>,
) -> Option<View> {
    let Node::Storage(storage) = arena.get(storage) else { return None };
    let (element, dtype_name) = match dtype.map(|dtype| arena.get(dtype)) {
        None => (storage.element, storage.class.clone()),
        Some(Node::Global(dtype)) => (dtype_element(&dtype.name), dtype.name.clone()),
        Some(_) => return None,
    };
    let counts = |id| {
        let items = arena.tuple(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&item| arena.count(item)).collect::<Option<Vec<u64>>>()
    };
    let shape: Option<Vec<usize>> =
        counts(shape)?.into_iter().map(|size| usize::try_from(size).ok()).collect();
    Some(View {
        storage: storage.clone(),
        element,
        dtype_name,
        offset: arena.count(offset)?,
        shape: shape?,
        strides: counts(strides)?,
    })
}

/// The element type of a PyTorch storage class, on any device.
fn storage_element(class: &str) -> Option<Element> {
    if let Some(dtype) = Dtype::from_storage_class(class) {
        return Some(Element { size: dtype.size() as u64, dtype: Some(dtype) });
    }
    let (size, dtype) = match class {
        "UntypedStorage" => (1, Some(Dtype::U8)),
        "ComplexDoubleStorage" => (16, None),
        "ComplexFloatStorage" => (8, None),
        "QInt32Storage" => (4, None),
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => (1, None),
        _ => return None,
    };
    Some(Element { size, dtype })
}

/// The element type of a PyTorch dtype; unknown ones cannot be read.
fn dtype_element(name: &str) -> Element {
    let dtype = Dtype::from_torch(name);
    Element { size: dtype.map_or(1, |dtype| dtype.size() as u64), dtype }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and types as PyTorch documents them. In a legacy file the size of one storage says
    /// where the next begins, also of those that are not read.
    #[test]
    fn storages_and_types_are_those_of_pytorch() {
        for (class, size, dtype) in [
            ("DoubleStorage", 8, Some(Dtype::F64)),
            ("FloatStorage", 4, Some(Dtype::F32)),
            ("HalfStorage", 2, Some(Dtype::F16)),
            ("BFloat16Storage", 2, Some(Dtype::Bf16)),
            ("LongStorage", 8, Some(Dtype::I64)),
            ("IntStorage", 4, Some(Dtype::I32)),
            ("ShortStorage", 2, Some(Dtype::I16)),
            ("CharStorage", 1, Some(Dtype::I8)),
            ("ByteStorage", 1, Some(Dtype::U8)),
            ("UntypedStorage", 1, Some(Dtype::U8)),
            ("BoolStorage", 1, Some(Dtype::Bool)),
            ("ComplexDoubleStorage", 16, None),
            ("ComplexFloatStorage", 8, None),
            ("QInt32Storage", 4, None),
            ("QInt8Storage", 1, None),
            ("QUInt8Storage", 1, None),
        ] {
            assert_eq!(storage_element(class), Some(Element { size, dtype }), "{class}");
        }
        assert_eq!(storage_element("Storage"), None);
        for (name, size, dtype) in [
            ("float64", 8, Some(Dtype::F64)),
            ("float32", 4, Some(Dtype::F32)),
            ("float16", 2, Some(Dtype::F16)),
            ("bfloat16", 2, Some(Dtype::Bf16)),
            ("int64", 8, Some(Dtype::I64)),
            ("int32", 4, Some(Dtype::I32)),
            ("int16", 2, Some(Dtype::I16)),
            ("int8", 1, Some(Dtype::I8)),
            ("uint8", 1, Some(Dtype::U8)),
            ("bool", 1, Some(Dtype::Bool)),
            ("uint16", 1, None),
        ] {
            assert_eq!(dtype_element(name), Element { size, dtype }, "{name}");
        }
    }
}
