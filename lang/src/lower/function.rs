//! A function while it is lowered: parameters appear as the text asks for them.
//!
//! A layer's function takes the carried values, then slices of its own stores, then what all layers
//! share. Which stores that will be is known only after its body is lowered; so parameters are
//! added in any order and sorted at the end.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use weft_ir::builder::Builder;
use weft_ir::dim::SymId;
use weft_ir::module::{Def, Func, ValueId};

use super::tokens::TokenDims;
use super::value::Ragged;
use crate::elaborate::InstId;
use crate::source::Span;

/// Where a parameter stands in the signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    Carry,
    Stacked,
    Shared,
}

/// What a parameter is bound to in every function that has it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// The n-th carried value, or an entry's own input.
    Input(usize),
    Store(String),
    Positions,
    Segments,
    /// Where in the cache this call's first position goes.
    Start,
}

/// A side output on its way up: `path` is the instance's, `result` this function's value.
#[derive(Clone, Debug)]
pub struct Emit {
    pub path: String,
    pub name: String,
    pub span: Span,
    pub value: ValueId,
    /// First numbers of the stacks above the instance, for published numbering.
    pub starts: Vec<u64>,
}

pub struct Function {
    pub builder: Builder,
    /// The stacked instance whose body this is; none for an entry.
    pub inst: Option<InstId>,
    pub params: IndexMap<Key, (ValueId, Class)>,
    pub emits: Vec<Emit>,
    /// Caches after this call, by store.
    pub caches: IndexMap<String, ValueId>,
    pub ragged: IndexMap<SymId, Ragged>,
    /// Values named after the member whose call made them, for want of a better name.
    pub passing_names: BTreeSet<ValueId>,
    /// Positions of this call's tokens, in an entry.
    pub positions: Option<ValueId>,
    pub token_dims: TokenDims,
}

impl Function {
    pub fn new(name: &str, inst: Option<InstId>) -> Function {
        Function {
            builder: Builder::new(name),
            inst,
            params: IndexMap::new(),
            emits: vec![],
            caches: IndexMap::new(),
            ragged: IndexMap::new(),
            passing_names: BTreeSet::new(),
            positions: None,
            token_dims: TokenDims::default(),
        }
    }

    /// Close the function with `results`, its parameters in the order of their classes; returns the
    /// keys in that order.
    pub fn finish(self, results: Vec<ValueId>) -> (Func, Vec<(Key, Class)>) {
        let mut params: Vec<(Key, ValueId, Class)> =
            self.params.into_iter().map(|(key, (id, class))| (key, id, class)).collect();
        params.sort_by_key(|(_, _, class)| *class);
        let mut func = self.builder.finish(results);
        func.params = params.iter().map(|(_, id, _)| *id).collect();
        for (i, (_, id, _)) in params.iter().enumerate() {
            func.value_mut(*id).def = Def::Param(i as u32);
        }
        (func, params.into_iter().map(|(key, _, class)| (key, class)).collect())
    }
}
