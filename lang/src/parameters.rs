//! How many parameters each part of a model has, how many of them a token uses, and which of them
//! only training needs.
//!
//! Parameters are weights and states; schedules are settings. A stored copy is no parameter.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use weft_ir::module::{Module, StoreKind};

use crate::elaborate::tree::{InstId, StoreDecl};
use crate::elaborate::{Member, Tree};

/// A member with all that it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Dotted path of members; a group of a stack has its number.
    pub path: String,
    /// How many equal modules stand here, in a stack; none outside one.
    pub count: Option<u64>,
    /// Of all of them together.
    pub total: u128,
    /// Of those, what one token uses.
    pub active: u128,
    /// Nothing of it is needed to compute the model's forward.
    pub training_only: bool,
    pub parts: Vec<Part>,
}

/// What is counted: the tree, and what lowering found out about it.
pub struct Count<'a> {
    pub tree: &'a Tree<'a>,
    /// The share of a store that one token uses, where that is not all of it: (active, of).
    pub active: &'a IndexMap<String, (u64, u64)>,
    /// Stores that the model's forward reads.
    pub inferred: &'a BTreeSet<String>,
}

/// The stores that `@forward` of `module` reads.
pub fn inferred(module: &Module) -> BTreeSet<String> {
    let Some(id) = module.find("forward") else { return BTreeSet::new() };
    let func = module.func(id);
    let names = func.params.iter().filter_map(|p| func.value(*p).name.clone());
    names.filter(|name| module.stores.contains_key(name)).collect()
}

impl Count<'_> {
    /// The model, its members in order.
    pub fn model(&self) -> Part {
        let tree = self.tree;
        self.part(tree.root, tree.name.clone())
    }

    /// (total, active) of what inference needs, then of what only training does.
    pub fn totals(&self) -> [(u128, u128); 2] {
        let mut sums = [(0, 0); 2];
        for (path, store) in self.parameters() {
            let sum = &mut sums[usize::from(!self.inferred.contains(path))];
            *sum = (sum.0 + u128::from(store.elements()), sum.1 + self.used(path, store));
        }
        sums
    }

    fn parameters(&self) -> impl Iterator<Item = (&String, &StoreDecl)> {
        self.tree.stores.iter().filter(|(_, s)| s.kind != StoreKind::Schedule)
    }

    fn used(&self, path: &str, store: &StoreDecl) -> u128 {
        let (active, of) = self.active.get(path).copied().unwrap_or((1, 1));
        u128::from(store.elements()) * u128::from(active) / u128::from(of.max(1))
    }

    fn part(&self, id: InstId, shown: String) -> Part {
        let inst = self.tree.get(id);
        let inside = |path: &str| match inst.path.as_str() {
            "" => true,
            own => path.strip_prefix(own).is_some_and(|rest| rest.starts_with('.')),
        };
        let (mut total, mut active, mut training_only) = (0, 0, true);
        for (path, store) in self.parameters().filter(|(path, _)| inside(path)) {
            total += u128::from(store.elements());
            active += self.used(path, store);
            training_only &= !self.inferred.contains(path);
        }
        let stacked = |id: InstId| self.tree.get(id).levels.len() > inst.levels.len();
        let mut parts = vec![];
        for id in inst.members.values().flat_map(members) {
            // Shared members and the originals of copies stand elsewhere.
            let member = self.tree.get(id);
            if inside(&member.path) {
                let mut part = self.part(id, member.path.clone());
                part.count = member.levels.last().copied().filter(|_| stacked(id));
                parts.push(part);
            }
        }
        parts.retain(|p| p.total > 0);
        let training_only = training_only && total > 0;
        Part { path: shown, count: None, total, active, training_only, parts }
    }
}

fn members(member: &Member) -> Vec<InstId> {
    match member {
        Member::One(id) => vec![*id],
        Member::Stack(ids) => ids.clone(),
        Member::Store(_) => vec![],
    }
}
