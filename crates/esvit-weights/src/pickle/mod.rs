//! Python's pickles, read as data.
//!
//! A pickle is a program for a stack machine that can call any function of any module. Here a call
//! only makes a node with function and arguments; the few functions that `torch.save` needs are
//! evaluated.

mod call;
mod danger;
mod input;
mod literal;
mod node;
pub(crate) mod opcode;
mod tensor;
mod tree;
mod unpickler;

use crate::error::ErrorKind;
use crate::limits::MAX_TEXT;

pub(crate) use input::Input;
pub(crate) use node::Element;
pub(crate) use tree::{ByteRange, expand};
pub(crate) use unpickler::{Pickle, Unpickler};

/// Counts copied bytes of text, so that a small file cannot expand to a large amount of memory.
fn charge_text(text: &mut usize, bytes: usize) -> Result<(), ErrorKind> {
    *text = text.saturating_add(bytes);
    ErrorKind::check_limit("bytes of text in its pickle", *text, MAX_TEXT)?;
    Ok(())
}

#[cfg(test)]
mod tests;
