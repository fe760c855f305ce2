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

use crate::error::Fault;
use crate::limits::MAX_TEXT;

pub(crate) use input::Input;
pub(crate) use machine::{Machine, Pickle};
pub(crate) use node::Element;
pub(crate) use tree::{StorageBytes, unfold};

/// Counts bytes of text that are copied, so that a small file cannot ask for a large one's memory.
fn charge_text(text: &mut usize, bytes: usize) -> Result<(), Fault> {
    *text = text.saturating_add(bytes);
    if *text > MAX_TEXT {
        return Err(Fault::Limit { what: "bytes of text in its pickle", limit: MAX_TEXT as u64 });
    }
    Ok(())
}
