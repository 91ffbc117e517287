//! What the blocks `train`, `precision`, `parallel` and `serve` say, typed and checked.
//!
//! `train` is one block's settings, `precision` another's, with the `selector`s of its rules,
//! `parallel` a third's, `serve` the last's, which refuses what this version does not do;
//! `published` writes the model's constants as a `config.json`. The structs here serialize to the
//! form that the runtime reads back from an executable graph.
//!
//! `--set NAME=VALUE` names a constant of the model first; a name that is no constant is a key of
//! the train block. So `--set depth=4 --set steps=20` changes one of each, and a model with a
//! constant `steps` keeps it to itself.

pub mod gemm;
mod keys;
pub mod parallel;
mod precision;
mod published;
pub mod recipe;
mod schedule;
mod selector;
mod serve;
mod train;

pub use parallel::{ExpertGradients, GradientSums, Order, Parallel, parallel};
pub use precision::{Precision, choose as choose_precision};
pub use published::{published_config, published_dims};
pub use schedule::{Phase, Schedule, Shape, Unit};
pub use selector::Selector;
pub use serve::{Serve, serve};
pub use train::{AdamW, Recompute, TrainSettings, train};

use crate::ast;
use crate::diag::{self, Diag};
use crate::elaborate::tree::Body;
use crate::elaborate::{self, Tree};
use crate::lower::Site;

/// Check every block of the model, whether it will be used or not.
pub fn check(tree: &Tree, diags: &mut Vec<Diag>) {
    for (i, block) in tree.blocks.iter().enumerate() {
        let same = |b: &&&ast::Block| b.kind == block.kind && b.name.text == block.name.text;
        if let Some(first) = tree.blocks[..i].iter().find(same) {
            let why = format!("two {} blocks are called `{}`", kind(block), block.name.text);
            diags.push(Diag::error(block.name.span, why).label(first.name.span, "first here"));
        }
        match block.kind {
            ast::BlockKind::Train => {
                train::of_block(tree, block, &[], diags);
            }
            ast::BlockKind::Precision => {
                let precision = precision::read(tree, block, diags);
                // A library's rules are for the models that choose them.
                if is_meant_for(tree, block) {
                    precision::resolve(&precision, tree, diags);
                }
            }
            ast::BlockKind::Parallel => {
                parallel::read(tree, block, diags);
            }
            ast::BlockKind::Serve => {
                serve::read(tree, block, diags);
            }
        }
    }
}

/// Check the rules of every precision block of the model against its products.
pub fn check_products(tree: &Tree, sites: &[Site], diags: &mut Vec<Diag>) {
    let blocks = tree.blocks.iter().filter(|b| b.kind == ast::BlockKind::Precision);
    for block in blocks.filter(|b| is_meant_for(tree, b)) {
        // What is wrong with the block itself has been told.
        let precision = precision::read(tree, block, &mut vec![]);
        recipe::recipes(&precision, sites, diags);
    }
    diag::drop_repeated(diags);
}

/// Whether a precision block was written for this model or one it comes from, or a train block
/// names it.
fn is_meant_for(tree: &Tree, block: &ast::Block) -> bool {
    let names_it = |e: &ast::Entry| match &e.value {
        ast::EntryValue::Expr(ast::Expr { kind: ast::ExprKind::Path(p), .. }) => {
            e.key.text == "precision" && p.to_string() == block.name.text
        }
        _ => false,
    };
    let mut trains = tree.blocks.iter().filter(|b| b.kind == ast::BlockKind::Train);
    if trains.any(|b| b.entries.iter().any(names_it)) {
        return true;
    }
    let members = match tree.root().body {
        Body::Model(model) => &model.members[..],
        Body::Module(module) => &module.members[..],
    };
    members.iter().any(|m| matches!(m, ast::Member::Block(b) if b.span == block.span))
}

/// `--set` values for the model's constants, and those for the train block.
pub fn split_sets(program: &ast::Program, sets: Vec<(String, String)>) -> (Sets, Sets) {
    let models = program.files.iter().flat_map(|f| &f.items).filter_map(|i| match i {
        ast::Item::Model(m) => Some(m),
        _ => None,
    });
    let constants: Vec<&str> = models
        .flat_map(|m| &m.members)
        .filter_map(|m| match m {
            ast::Member::Constant(c) => Some(c.name.text.as_str()),
            _ => None,
        })
        .collect();
    let schedules = schedule_names(program);
    sets.into_iter().partition(|(name, _)| {
        let key = train::KEYS.contains(&name.as_str()) || schedules.contains(&name.as_str());
        constants.contains(&name.as_str()) || !key
    })
}

/// Names and their values, as text.
pub type Sets = Vec<(String, String)>;

fn schedule_names(program: &ast::Program) -> Vec<&str> {
    let items = program.files.iter().flat_map(|f| &f.items);
    items
        .flat_map(|item| match item {
            ast::Item::Model(m) => elaborate::schedule_names(&m.members),
            ast::Item::Module(m) => elaborate::schedule_names(&m.members),
            ast::Item::Block(_) => vec![],
        })
        .collect()
}

/// The block of a kind that is called `name`.
fn named<'a>(
    tree: &Tree<'a>,
    of: ast::BlockKind,
    name: &str,
    diags: &mut Vec<Diag>,
) -> Option<&'a ast::Block> {
    let blocks: Vec<&'a ast::Block> =
        tree.blocks.iter().copied().filter(|b| b.kind == of).collect();
    if let Some(block) = blocks.iter().find(|b| b.name.text == name) {
        return Some(block);
    }
    let here = match tree.root().body {
        Body::Model(m) => m.name.span,
        Body::Module(m) => m.name.span,
    };
    let kind = kind_name(of);
    let why = format!("`{}` has no {kind} block `{name}`", tree.name);
    let names: Vec<&str> = blocks.iter().map(|b| b.name.text.as_str()).collect();
    let mut diag = Diag::error(here, why).did_you_mean(name, names.iter().copied());
    if diag.hint.is_none() {
        diag = diag.hint(match names.len() {
            0 => format!("add `{kind} {name} {{ ... }}`"),
            _ => format!("there are: {}", names.join(", ")),
        });
    }
    diags.push(diag);
    None
}

fn kind(block: &ast::Block) -> &'static str {
    kind_name(block.kind)
}

fn kind_name(kind: ast::BlockKind) -> &'static str {
    match kind {
        ast::BlockKind::Precision => "precision",
        ast::BlockKind::Parallel => "parallel",
        ast::BlockKind::Train => "train",
        ast::BlockKind::Serve => "serve",
    }
}
