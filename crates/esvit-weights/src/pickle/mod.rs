//! Python's pickles, read as data.
//!
//! A pickle is a program for a small stack machine, which can call any function of any module. Here
//! a call makes a node that says what would have been called; the few functions that `torch.save`
//! needs are known and give what they stand for.

mod call;
mod danger;
mod input;
mod literal;
mod machine;
mod node;
pub(crate) mod opcode;
mod tensor;
mod tree;

pub(crate) use input::Input;
pub(crate) use machine::{Machine, Pickle};
pub(crate) use node::Element;
pub(crate) use tree::{StorageBytes, unfold};
