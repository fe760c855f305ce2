//! The stack machine. Every instruction adds a bounded number of nodes, so that the limits on
//! instructions and nodes bound memory and time.

use std::collections::HashMap;
use std::sync::Arc;

use super::danger::is_dangerous;
use super::input::Input;
use super::literal::{literal, utf8};
use super::node::{Arena, Global, Id, Node, Storage};
use super::opcode as op;
use crate::error::{ErrorKind, corrupt, ensure};
use crate::limits::MAX_INSTRUCTIONS;

/// The result of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(crate) arena: Arena,
    pub(crate) root: Id,
    /// All storages, in order of first use.
    pub(crate) storages: Vec<Arc<Storage>>,
}

#[derive(Debug)]
pub(crate) struct Unpickler<'i, 's> {
    input: &'i mut Input<'s>,
    pub(super) arena: Arena,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    pub(super) storages: Vec<Arc<Storage>>,
}

impl<'i, 's> Unpickler<'i, 's> {
    /// Runs one pickle; `input` is left after its end.
    pub(crate) fn run(input: &'i mut Input<'s>) -> Result<Pickle, ErrorKind> {
        let mut unpickler = Self {
            input,
            arena: Arena::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Vec::new(),
        };
        for _ in 0..MAX_INSTRUCTIONS {
            let position = unpickler.input.position();
            let code = unpickler.input.byte()?;
            if code == op::STOP {
                let root = unpickler.pop()?;
                return Ok(Pickle { arena: unpickler.arena, root, storages: unpickler.storages });
            }
            unpickler.step(code).map_err(|kind| match kind {
                ErrorKind::Corrupt(reason) => {
                    corrupt!("{reason} (instruction {} at byte {position})", op::name(code))
                }
                other => other,
            })?;
        }
        Err(ErrorKind::Limit { what: "instructions in its pickle", limit: MAX_INSTRUCTIONS })
    }

    fn step(&mut self, code: u8) -> Result<(), ErrorKind> {
        if let Some(node) = literal(code, self.input)? {
            return self.push(node);
        }
        match code {
            op::PROTO => drop(self.input.byte()?),
            op::FRAME => drop(self.input.array::<8>()?),
            op::READONLY_BUFFER => {}
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => {
                // A mark on top is popped instead.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            op::POP_MARK => drop(self.pop_mark()?),
            op::DUP => self.stack.push(self.top()?),

            op::EMPTY_TUPLE => self.tuple(0)?,
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items.into()))?;
            }
            op::LIST | op::FROZENSET => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))?;
            }
            op::DICT => {
                let entries = pairs(self.pop_mark()?)?;
                self.push(Node::Dict(entries))?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            op::SETITEMS => {
                let entries = pairs(self.pop_mark()?)?;
                self.set(entries)?;
            }

            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => {
                let (key, top) = (self.memo_key(code)?, self.top()?);
                self.memo.insert(key, top);
            }
            op::GET | op::BINGET | op::LONG_BINGET => {
                let key = self.memo_key(code)?;
                let missing = || corrupt!("nothing is kept as {key}");
                self.stack.push(self.memo.get(&key).copied().ok_or_else(missing)?);
            }

            op::GLOBAL => {
                let global = self.read_global()?;
                self.stack.push(global);
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id| self.arena.text(id).cloned();
                let (Some(module), Some(name)) = (text(module), text(name)) else {
                    return Err(corrupt!("a class has no name"));
                };
                self.push(Node::Global(Arc::new(Global { module, name })))?;
            }
            op::REDUCE | op::NEWOBJ => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)?;
            }
            op::NEWOBJ_EX => {
                let (_keywords, arguments) = (self.pop()?, self.pop()?);
                let callable = self.pop()?;
                self.reduce(callable, arguments)?;
            }
            op::INST => {
                let callable = self.read_global()?;
                let arguments = self.pop_mark()?;
                self.reduce_items(callable, &arguments)?;
            }
            op::OBJ => {
                let items = self.pop_mark()?;
                let (&callable, arguments) =
                    items.split_first().ok_or_else(|| corrupt!("an object has no class"))?;
                self.reduce_items(callable, arguments)?;
            }
            op::BUILD => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = self.persistent_load(id)?;
                self.stack.push(storage);
            }

            op::PERSID | op::EXT1 | op::EXT2 | op::EXT4 | op::NEXT_BUFFER => {
                return Err(corrupt!("torch.save writes no such instruction"));
            }
            _ => return Err(corrupt!("there is no such instruction")),
        }
        Ok(())
    }

    fn reduce(&mut self, callable: Id, arguments: Id) -> Result<(), ErrorKind> {
        if let Node::Global(global) = self.arena.get(callable)
            && is_dangerous(&global.module, &global.name)
        {
            return Err(ErrorKind::DangerousCall { function: global.path() });
        }
        let result = self.call(callable, arguments)?;
        self.stack.push(result);
        Ok(())
    }

    fn reduce_items(&mut self, callable: Id, arguments: &[Id]) -> Result<(), ErrorKind> {
        let arguments = self.arena.add(Node::Tuple(arguments.into()))?;
        self.reduce(callable, arguments)
    }

    fn push(&mut self, node: Node) -> Result<(), ErrorKind> {
        let id = self.arena.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// Stack height below which only instructions that take the mark may reach.
    fn stack_base(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, ErrorKind> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    pub(super) fn top(&self) -> Result<Id, ErrorKind> {
        let above = self.stack.get(self.stack_base()..).unwrap_or_default();
        above.last().copied().ok_or_else(|| corrupt!("the stack of its pickle is empty"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, ErrorKind> {
        let mark = self.marks.pop().ok_or_else(|| corrupt!("a mark is missing"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Result<(), ErrorKind> {
        let has_items = self.stack.len() >= self.stack_base() + count;
        ensure!(has_items, corrupt!("the stack of its pickle is empty"));
        let items = self.stack.split_off(self.stack.len() - count);
        self.push(Node::Tuple(items.into()))
    }

    /// The key under which an instruction keeps or finds a value.
    fn memo_key(&mut self, code: u8) -> Result<u64, ErrorKind> {
        match code {
            op::PUT | op::GET => {
                let key = utf8(&self.input.line()?).ok().and_then(|text| text.parse().ok());
                key.ok_or_else(|| corrupt!("a key is not a number"))
            }
            op::BINPUT | op::BINGET => self.input.uint::<1>(),
            op::LONG_BINPUT | op::LONG_BINGET => self.input.uint::<4>(),
            _ => Ok(self.memo.len() as u64),
        }
    }

    fn read_global(&mut self) -> Result<Id, ErrorKind> {
        let (module, name) = (self.input.line()?, self.input.line()?);
        let global = Global { module: utf8(&module)?.into(), name: utf8(&name)?.into() };
        self.arena.add(Node::Global(Arc::new(global)))
    }
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, ErrorKind> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(corrupt!("a key has no value")),
    }
}
