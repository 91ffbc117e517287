//! The block `serve`: its keys are known, and what this version does not do is refused.
//!
//! A key is available with the one value that says what is done anyway: f32, one device, one
//! sequence.

use super::keys::Keys;
use super::kind;
use crate::ast::{self, EntryValue, ExprKind};
use crate::diag::Diag;
use crate::elaborate::{Const, Tree};

/// A key of the block.
struct Known {
    name: &'static str,
    /// What another value asks for.
    asks: &'static str,
    now: Now,
}

/// Which value is available.
enum Now {
    /// This element type.
    Type(&'static str),
    /// This number.
    Number(f64),
    None,
}

const SERVE: &[Known] = &[
    Known { name: "cache", asks: "a cache of another type than f32", now: Now::Type("f32") },
    Known { name: "batch", asks: "several sequences at once", now: Now::Number(1.0) },
    Known { name: "speculative", asks: "speculative decoding", now: Now::Number(0.0) },
    Known { name: "paged", asks: "a paged cache", now: Now::None },
];

/// Refuse every entry that means more than what this version does anyway.
pub fn check(tree: &Tree, block: &ast::Block, diags: &mut Vec<Diag>) {
    let mut keys = Keys { tree, diags };
    keys.twice(&block.entries.iter().collect::<Vec<_>>());
    for entry in &block.entries {
        match SERVE.iter().find(|k| k.name == entry.key.text) {
            Some(k) => value(&mut keys, k, entry),
            None => {
                let names: Vec<&str> = SERVE.iter().map(|k| k.name).collect();
                keys.unknown(&entry.key, kind(block), &names);
            }
        }
    }
}

fn value(keys: &mut Keys, known: &Known, entry: &ast::Entry) {
    let available = match (&known.now, &entry.value) {
        (Now::Type(name), EntryValue::Expr(e)) => {
            matches!(&e.kind, ExprKind::Path(p) if p.to_string() == *name)
        }
        (Now::Number(n), EntryValue::Expr(e)) => match keys.value(e) {
            Some(value) => value == Const::Num(*n),
            None => return,
        },
        _ => false,
    };
    if available {
        return;
    }
    let diag = Diag::error(entry.span, format!("not available yet: {}", known.asks));
    keys.diags.push(match known.now {
        Now::Type(name) => diag.hint(format!("`{} = {name}` is what there is", known.name)),
        Now::Number(n) => diag.hint(format!("`{} = {n}` is what there is", known.name)),
        Now::None => diag.hint(format!("leave `{}` out", known.name)),
    });
}
