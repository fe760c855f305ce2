//! The program itself, run in fresh folders.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod beginning;
mod broken_pictures;
mod commands;
mod evaluation;
mod failure;
mod goldens;
mod interruption;
mod linear;
mod mistakes;
mod pictures;
mod place;
mod settings;
mod weights;
