//! `serve NAME { ... }`: how requests are continued. What this version does not do is refused.
//!
//! `paged = N` puts caches into pages of N positions, `pages = P` into pools of P of them, which
//! `batch = B` requests share. A key that is not available takes the one value that says what is
//! done anyway. What `batch` and `pages` need besides is checked where options have gone before the
//! block.

use super::keys::Keys;
use super::{kind, named};
use crate::ast::{self, BlockKind, EntryValue, ExprKind};
use crate::diag::Diag;
use crate::elaborate::{Const, Tree};

const KEYS: &[&str] = &["cache", "batch", "speculative", "paged", "pages"];

/// How requests are continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Serve {
    /// Requests at once; where the block does not say, who serves does.
    pub batch: Option<u64>,
    /// Positions of a page; caches are in one piece without.
    pub page: Option<u64>,
    /// Pages of a pool; where the block does not say, as many as the requests may need.
    pub pages: Option<u64>,
}

/// The serve block called `name`.
pub fn serve(tree: &Tree, name: &str, diags: &mut Vec<Diag>) -> Option<Serve> {
    let block = named(tree, BlockKind::Serve, name, diags)?;
    read(tree, block, diags)
}

/// One block; nothing where something is wrong with it.
pub fn read(tree: &Tree, block: &ast::Block, diags: &mut Vec<Diag>) -> Option<Serve> {
    let known = diags.len();
    let mut keys = Keys { tree, diags };
    keys.twice(&block.entries.iter().collect::<Vec<_>>());
    let mut serve = Serve::default();
    for entry in &block.entries {
        match entry.key.text.as_str() {
            "batch" => serve.batch = keys.whole(entry, 1),
            "paged" => serve.page = keys.whole(entry, 1),
            "pages" => serve.pages = keys.whole(entry, 1),
            "cache" if is_f32(entry) => {}
            "cache" => {
                let hint = "a precision block says what caches are stored as";
                refuse(&mut keys, entry, "a cache of another type than f32", hint);
            }
            "speculative" => {
                if let EntryValue::Expr(e) = &entry.value
                    && keys.value(e) == Some(Const::Num(0.0))
                {
                    continue;
                }
                let hint = "`speculative = 0` is what there is";
                refuse(&mut keys, entry, "speculative decoding", hint);
            }
            _ => keys.unknown(&entry.key, kind(block), KEYS),
        }
    }
    (diags.len() == known).then_some(serve)
}

fn is_f32(entry: &ast::Entry) -> bool {
    let path = |e: &ast::Expr| matches!(&e.kind, ExprKind::Path(p) if p.to_string() == "f32");
    matches!(&entry.value, EntryValue::Expr(e) if path(e))
}

fn refuse(keys: &mut Keys, entry: &ast::Entry, asks: &str, hint: &str) {
    let diag = Diag::error(entry.span, format!("not available yet: {asks}"));
    keys.diags.push(diag.hint(hint));
}
