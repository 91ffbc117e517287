//! `.model` text to typed modules to IR.
//!
//! `source` holds the texts, `ast` the tree, `diag` what is told to the author. Text becomes tokens
//! (`lexer`), tokens a sequence whose meaning does not depend on names (`layout`, `brackets`), that
//! a tree (`parse`, with `grammar.lalrpop`). `load` reads the files a program uses and `derive`
//! fills in what a model takes from another. `elaborate` places modules and decides sizes, `lower`
//! makes IR, `parameters` counts. This crate opens no file and knows no device.

pub mod ast;
mod brackets;
mod derive;
pub mod diag;
pub mod elaborate;
mod expected;
pub mod fmt;
mod layout;
mod lexer;
mod load;
pub mod lower;
pub mod parameters;
mod parse;
pub mod settings;
pub mod source;

pub use load::load;
pub use parse::parse_file;
