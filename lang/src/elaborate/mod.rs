//! From files to the elaborated model: constants evaluated, modules placed, stores named.
//!
//! `tree` is the result, `consts` and `eval` the compile-time values, `place` instantiates members,
//! `stores` declares what they store and `published` names it, `overrides` applies `--set`,
//! `config.json` and `shrink` to the model's constants, `unused` finds parameters nobody reads.

pub mod consts;
pub mod eval;
mod overrides;
mod place;
mod published;
mod stores;
pub mod tree;
mod unused;

use crate::ast::{self, Item, Program};
use crate::diag::{self, Diag};
use crate::settings;
use crate::source::{FileId, SourceMap, Span};
pub use consts::Const;
pub(crate) use place::{schedule_names, words_of};
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
    /// `--precision name`.
    pub precision: Option<String>,
}

/// Elaborate the model of the program's first file. All that is wrong goes to `diags`; `None` if
/// nothing useful is left. A tree of a program with errors lacks the members that are wrong and is
/// good for nothing but finding more errors.
pub fn elaborate<'a>(
    program: &'a Program,
    map: &SourceMap,
    overrides: &Overrides,
    diags: &mut Vec<Diag>,
) -> Option<Tree<'a>> {
    let modules = modules(program, diags);
    for module in &modules {
        unused::check(module, map, diags);
    }
    let model = the_model(program, diags)?;
    let mut tree = place::place(&modules, model, blocks(program), overrides, diags);
    if let Some(name) = &overrides.precision {
        let asked = format!("--precision {name}");
        settings::choose_precision(&mut tree, name, (model.name.span, &asked), diags);
    }
    diag::drop_repeated(diags);
    Some(tree)
}

/// Every module, by its first definition.
fn modules<'a>(program: &'a Program, diags: &mut Vec<Diag>) -> Vec<&'a ast::Module> {
    let mut modules: Vec<&ast::Module> = vec![];
    for item in program.files.iter().flat_map(|f| &f.items) {
        let Item::Module(m) = item else { continue };
        match modules.iter().find(|o| o.name.text == m.name.text) {
            None => modules.push(m),
            Some(other) => diags.push(
                Diag::error(m.name.span, format!("module `{}` is defined twice", m.name.text))
                    .label(other.name.span, "first here"),
            ),
        }
    }
    modules
}

/// The model of the first file. Used files may have one each, to come `from`.
fn the_model<'a>(program: &'a Program, diags: &mut Vec<Diag>) -> Option<&'a ast::Model> {
    for file in &program.files {
        let all: Vec<&ast::Model> = models(file).collect();
        for other in all.iter().skip(1) {
            diags.push(
                Diag::error(other.name.span, "a file has one model")
                    .label(all[0].name.span, "the first is here"),
            );
        }
    }
    let model = program.files.first().and_then(|f| models(f).next());
    if model.is_none() {
        let start = Span::new(FileId(0), 0, 0);
        diags.push(
            Diag::error(start, "no model in this file")
                .hint("a file to compile has one `model NAME { ... }`"),
        );
    }
    model
}

fn models(file: &ast::File) -> impl Iterator<Item = &ast::Model> {
    file.items.iter().filter_map(|item| match item {
        Item::Model(m) => Some(m),
        Item::Module(_) | Item::Block(_) => None,
    })
}

/// Blocks of files without a model; those next to a model are its members.
fn blocks(program: &Program) -> Vec<&ast::Block> {
    let items = program.files.iter().flat_map(|f| &f.items);
    let blocks = items.filter_map(|item| match item {
        Item::Block(b) => Some(b),
        Item::Module(_) | Item::Model(_) => None,
    });
    blocks.collect()
}
