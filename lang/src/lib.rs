//! `.model` text to typed modules to IR.
//!
//! `source` holds the texts, `ast` the tree, `diag` what is told to the author. This crate opens no
//! file and knows no device.

pub mod ast;
pub mod diag;
pub mod source;
