//! The program itself, run in fresh folders.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod attend;
mod beginning;
mod broken_pictures;
mod commands;
mod correspondence;
mod evaluation;
mod failure;
mod finetune;
mod goldens;
mod interruption;
mod linear;
mod maps;
mod mistakes;
mod pictures;
mod place;
mod report;
mod settings;
mod weights;
