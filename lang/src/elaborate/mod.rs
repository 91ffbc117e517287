//! From files to the elaborated model: constants evaluated, modules placed, stores named.
//!
//! `tree` is the result, `consts` and `eval` the compile-time values, `place` instantiates members, `overrides` applies
//! `--set`, `config.json` and `shrink` to the model's constants, `unused` finds parameters nobody reads.

pub mod consts;
pub mod eval;
mod overrides;
mod place;
pub mod tree;
mod unused;

use crate::ast;
use crate::diag::Diag;
use crate::source::{FileId, SourceMap, Span};
pub use consts::Const;
pub(crate) use place::words_of;
pub use tree::{InstId, Instance, Member, Tree};

/// A diagnostic has been pushed; whoever gets this goes on with the next thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported;

/// What changes a model's constants from outside, weakest first.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The text of a checkpoint's `config.json`, parsed.
    pub config: Option<serde_json::Value>,
    /// Use the model's `shrink` block.
    pub shrink: bool,
    /// `--set name=value`.
    pub sets: Vec<(String, String)>,
}

/// Elaborate the program's model. All that is wrong goes to `diags`; `None` if nothing useful is left.
pub fn elaborate<'a>(
    program: &'a ast::Program,
    map: &SourceMap,
    overrides: &Overrides,
    diags: &mut Vec<Diag>,
) -> Option<Tree<'a>> {
    let mut modules: Vec<&ast::Module> = vec![];
    let mut models: Vec<&ast::Model> = vec![];
    let mut blocks: Vec<&ast::Block> = vec![];
    for item in program.files.iter().flat_map(|f| &f.items) {
        match item {
            ast::Item::Module(m) => match modules.iter().find(|o| o.name.text == m.name.text) {
                Some(other) => diags.push(
                    Diag::error(m.name.span, format!("module `{}` is defined twice", m.name.text))
                        .label(other.name.span, "first here"),
                ),
                None => modules.push(m),
            },
            ast::Item::Model(m) => models.push(m),
            ast::Item::Block(b) => blocks.push(b),
        }
    }
    for module in &modules {
        unused::check(module, map, diags);
    }
    let (model, more) = match models[..] {
        [] => {
            let start = Span::new(FileId(0), 0, 0);
            diags.push(
                Diag::error(start, "no model in this file")
                    .hint("a file to compile has one `model NAME { ... }`"),
            );
            return None;
        }
        [first, ref more @ ..] => (first, more),
    };
    for other in more {
        diags.push(
            Diag::error(other.name.span, "a compilation has one model")
                .label(model.name.span, "the first is here"),
        );
    }
    place::place(&modules, model, blocks, overrides, diags)
}
