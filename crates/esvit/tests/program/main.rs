//! The program itself, run in fresh folders.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod attend;
mod auto;
mod beginning;
mod broken_images;
mod checks;
mod commands;
mod correspondence;
mod evaluation;
mod failure;
mod finetune;
mod going_on;
mod goldens;
mod hostile;
mod images;
mod interruption;
mod linear;
mod maps;
mod mistakes;
mod outputs;
mod place;
mod report;
mod resolved;
mod settings;
mod streams;
mod weights;
