//! `.model` text to typed modules to IR.
//!
//! `source` holds the texts, `ast` the tree, `diag` what is told to the author. Text becomes tokens
//! (`lexer`), tokens a sequence whose meaning does not depend on names (`layout`), that a tree
//! (`parse`, with `grammar.lalrpop`). This crate opens no file and knows no device.

pub mod ast;
pub mod diag;
mod expected;
pub mod fmt;
mod layout;
mod lexer;
mod load;
mod parse;
pub mod source;

pub use load::load;
pub use parse::parse_file;
