//! The verifier: what every pass may rely on and must leave behind. Verified IR makes no later
//! stage panic.
//!
//! Of the module:
//! - **ids**: every id (value, op, function, symbol, axis, file) points into its table; a shown
//!   value says truly who defines it.
//! - **symbols**: names of symbols and of axes are unique; a bound, a number of segments and an
//!   axis have at least 1; the total of a ragged symbol is made of bounded ones.
//! - **types**: dims are at least 1, and their product at the bounds is a number; `axes` is empty
//!   or as long as the dims and names no axis twice; a quantized type is a small float whose group
//!   has sides of at least 1 and no more sides than dims, its scales f32 or ue8m0. Groups need not
//!   divide the dims.
//! - **stores**: a store has no more first indices than dims; a schedule is an f32 scalar; codes
//!   and scales have the types that such parts of the named quantized type have; what is placed has
//!   lines of the placement that fit its dims.
//! - **entries**: a parameter of an entry that is called as a store has the store's type (an entry
//!   is a function whose results have names).
//! - **function names** are unique.
//!
//! Of a function:
//! - **value names** are unique.
//! - **ssa**: a value is defined once, and before it is used.
//! - **result names**: none, or as many as results, all different.
//! - **spans**: every op has a place in a source file.
//! - **op types**: operand counts, attributes and result types are those of the op's row (mesh axes
//!   aside); so a callee's signature is the one its callers use.
//! - **callees** stand before their callers: there is no recursion.
//! - **fused** functions hold sources, pointwise, movement, reduction and row ops only, and codes
//!   in groups within rows.
//!
//! Of states (`states.rs`):
//! - **consumed once**: a state is consumed by a `State` op, by a call whose callee donates the
//!   parameter, or by being returned; after that nothing uses it, and the consumer itself uses it
//!   once.
//! - **reads**: a value `read` from a state, or returned by the op that made it, is not used after
//!   the state is consumed, nor by the call that consumes it.
//! - **donations**: each pair links a state parameter to a state result of the same type that it
//!   became through a chain of consumptions; no parameter and no result stands in two pairs; every
//!   state result stands in one; a parameter that stands in none is not consumed.
//! - **repeats**: what a repeated function donates is a carried value that returns in its place, or
//!   a slice of a stack that returns in a stack; never a value that all runs share.
//!
//! Of what is in flight (`flights.rs`):
//! - **flights**: it is begun and done in one function: neither a parameter nor a result, and taken
//!   by one `done` and no other op. What was read from a state is done before that is consumed.

mod flights;
mod states;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use crate::attr::Attr;
use crate::builder;
use crate::dim::{Dim, SymKind};
use crate::module::{
    Def, Func, FuncId, Module, OpData, OpId, Part, Placed, Store, StoreKind, ValueId,
};
use crate::op::{CostRule, Op, Trait};
use crate::rules::grid;
use crate::text;
use crate::ty::{AxisId, DType, Type};

/// The part of a module that an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Symbol(usize),
    Axis(usize),
    Store(usize),
    Head(FuncId),
    Op(FuncId, OpId),
    Return(FuncId),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct VerifyError {
    pub place: Place,
    pub message: String,
    /// The place as it prints: `@f: %1 = add %x, %y : f32[B]`.
    pub text: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}", self.message, self.text)
    }
}

impl VerifyError {
    pub fn func(&self) -> Option<FuncId> {
        match self.place {
            Place::Head(f) | Place::Op(f, _) | Place::Return(f) => Some(f),
            Place::Symbol(_) | Place::Axis(_) | Place::Store(_) => None,
        }
    }

    pub fn op(&self) -> Option<OpId> {
        match self.place {
            Place::Op(_, op) => Some(op),
            _ => None,
        }
    }
}

/// Every broken invariant. Wrong ids hide the others: nothing else is looked at while there are
/// some.
pub fn verify(m: &Module) -> Result<(), Vec<VerifyError>> {
    let mut cx = Cx { m, errors: vec![] };
    for f in m.func_ids() {
        ids(&mut cx, f);
    }
    tables_ids(&mut cx);
    if cx.errors.is_empty() {
        symbols(&mut cx);
        stores(&mut cx);
        for f in m.func_ids() {
            func(&mut cx, f);
        }
    }
    if cx.errors.is_empty() { Ok(()) } else { Err(cx.errors) }
}

struct Cx<'a> {
    m: &'a Module,
    errors: Vec<VerifyError>,
}

impl Cx<'_> {
    fn check(&mut self, ok: bool, place: Place, message: impl FnOnce() -> String) {
        if !ok {
            let text = shown(self.m, place);
            self.errors.push(VerifyError { place, message: message(), text });
        }
    }

    fn fail(&mut self, place: Place, message: impl Into<String>) {
        self.check(false, place, || message.into());
    }
}

fn shown(m: &Module, place: Place) -> String {
    match place {
        Place::Symbol(i) => format!("dim {}", m.syms[i].name),
        Place::Axis(i) => format!("axis {}", m.axes[i].name),
        Place::Store(i) => m.stores.get_index(i).map_or(String::new(), |(n, _)| format!("@{n}")),
        Place::Head(f) | Place::Return(f) => format!("@{}", m.func(f).name),
        Place::Op(f, op) => {
            let func = m.func(f);
            format!("@{}: {}", func.name, text::print_op(m, func, op))
        }
    }
}

// --- ids ----------------------------------------------------------------------------------------

fn ids(cx: &mut Cx, id: FuncId) {
    let m = cx.m;
    let f = m.func(id);
    let value_ok = |v: ValueId| (v.0 as usize) < f.n_values();
    for (i, v) in f.params.iter().enumerate() {
        let known = value_ok(*v);
        cx.check(known, Place::Head(id), || format!("parameter {i} is no value"));
        if known {
            let own = f.value(*v).def == Def::Param(i as u32);
            cx.check(own, Place::Head(id), || format!("parameter {i} says another defines it"));
            type_ids(cx, f.ty(*v), Place::Head(id));
        }
    }
    for op_id in &f.body {
        let at = Place::Op(id, *op_id);
        if op_id.0 as usize >= f.n_ops() {
            cx.fail(Place::Head(id), format!("the body holds op {}, which is none", op_id.0));
            continue;
        }
        let op = f.op(*op_id);
        for v in op.operands.iter().filter(|v| !value_ok(**v)) {
            cx.fail(at, format!("operand {} is no value", v.0));
        }
        for (i, v) in op.results.iter().enumerate() {
            if !value_ok(*v) {
                cx.fail(at, format!("result {} is no value", v.0));
                continue;
            }
            let own = f.value(*v).def == Def::Result { op: *op_id, idx: i as u32 };
            cx.check(own, at, || format!("result {i} is defined twice: another defines it too"));
            type_ids(cx, f.ty(*v), at);
        }
        for (name, attr) in op.attrs.iter() {
            match attr {
                Attr::Func(g) if g.0 as usize >= m.funcs.len() => {
                    cx.fail(at, format!("{name}: no such function"));
                }
                Attr::Axis(a) if a.0 as usize >= m.axes.len() => {
                    cx.fail(at, format!("{name}: no such mesh axis"));
                }
                Attr::Dim(d) => dim_ids(cx, *d, at),
                Attr::Dims(ds) => ds.iter().for_each(|d| dim_ids(cx, *d, at)),
                Attr::Type(ty) => type_ids(cx, ty, at),
                _ => {}
            }
        }
    }
    for v in f.results.iter().filter(|v| !value_ok(**v)) {
        cx.fail(Place::Return(id), format!("value {} is returned and is none", v.0));
    }
}

fn tables_ids(cx: &mut Cx) {
    for (i, sym) in cx.m.syms.iter().enumerate() {
        if let SymKind::Ragged { total, .. } = sym.kind {
            dim_ids(cx, total, Place::Symbol(i));
        }
    }
    for (i, store) in cx.m.stores.values().enumerate() {
        type_ids(cx, &store.ty, Place::Store(i));
    }
}

fn dim_ids(cx: &mut Cx, dim: Dim, at: Place) {
    let known = dim.symbols().all(|s| (s.0 as usize) < cx.m.syms.len());
    cx.check(known, at, || "a dim uses a symbol the module does not have".into());
}

fn type_ids(cx: &mut Cx, ty: &Type, at: Place) {
    ty.dims.iter().for_each(|d| dim_ids(cx, *d, at));
    let known = ty.axes.iter().flatten().all(|a| (a.0 as usize) < cx.m.axes.len());
    cx.check(known, at, || "a type uses a mesh axis the module does not have".into());
}

// --- the module's tables ------------------------------------------------------------------------

fn symbols(cx: &mut Cx) {
    let m = cx.m;
    let mut seen = BTreeSet::new();
    for (i, sym) in m.syms.iter().enumerate() {
        let at = Place::Symbol(i);
        cx.check(seen.insert(&sym.name), at, || format!("two dims are called {}", sym.name));
        match &sym.kind {
            SymKind::Bounded { max } => cx.check(*max >= 1, at, || "a bound is at least 1".into()),
            SymKind::Ragged { segments, total } => {
                cx.check(*segments >= 1, at, || "a ragged dim has at least 1 segment".into());
                let bounded = |s| matches!(m.sym(s).kind, SymKind::Bounded { .. });
                let ok = total.coeff() >= 1 && total.symbols().all(bounded);
                cx.check(ok, at, || "the total of a ragged dim is made of bounded dims".into());
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (i, axis) in m.axes.iter().enumerate() {
        let at = Place::Axis(i);
        cx.check(seen.insert(&axis.name), at, || format!("two axes are called {}", axis.name));
        cx.check(axis.size >= 1, at, || "a mesh axis has at least size 1".into());
        let parts = m.axes.iter().filter(|a| a.within == Some(AxisId(i as u32)));
        let n = parts.map(|a| a.size).reduce(u64::saturating_mul).unwrap_or(axis.size);
        cx.check(n == axis.size, at, || {
            format!("{} has {} places, and its parts make {n}", axis.name, axis.size)
        });
    }
}

fn stores(cx: &mut Cx) {
    for (i, store) in cx.m.stores.values().enumerate() {
        let at = Place::Store(i);
        ty(cx, &store.ty, at);
        let stacked = store.starts.len() <= store.ty.rank();
        cx.check(stacked, at, || "`from` has more first indices than there are dims".into());
        let part = store.part.as_ref().is_none_or(|(part, of)| is_part(&store.ty, *part, of));
        cx.check(part, at, || "its type is not that of the part it holds".into());
        let scalar = store.ty.as_value() == Type::scalar(DType::F32);
        let ok = store.kind != StoreKind::Schedule || scalar;
        cx.check(ok, at, || "a schedule is an f32 scalar".into());
        let placed = store.placed.is_none_or(|placed| is_placed(cx.m, store, placed));
        cx.check(placed, at, || "it has not the dims of its lines of the placement".into());
    }
}

/// Whether each index of a store's leading dims has a line of the placement that fits.
fn is_placed(m: &Module, store: &Store, placed: Placed) -> bool {
    let dims: Option<Vec<u64>> = store.ty.dims.iter().map(|d| d.as_fixed()).collect();
    let Some(dims) = dims else { return false };
    let at = match placed {
        Placed::Weights(_) => store.starts.len().checked_sub(1),
        Placed::Table(_) => dims.len().checked_sub(2),
    };
    let Some(at) = at.filter(|at| *at < dims.len()) else { return false };
    let n_lines: u64 = dims[..at].iter().product();
    let first = placed.first() as usize;
    let lines = m.placement.get(first..first.saturating_add(n_lines as usize));
    let n_parts = match store.ty.axes.get(at).copied().flatten() {
        Some(axis) => m.axes[axis.0 as usize].size,
        None => 1,
    };
    lines.is_some_and(|lines| {
        lines.iter().all(|line| match placed {
            Placed::Weights(_) => line.len() as u64 == dims[at] * n_parts,
            Placed::Table(_) => (0..dims[at]).all(|e| line.contains(&e)),
        })
    })
}

/// Whether a value of type `ty` is this part of one of type `of`.
fn is_part(ty: &Type, part: Part, of: &Type) -> bool {
    let Some(quant) = &of.quant else { return false };
    match part {
        Part::Codes => *ty == Type { quant: None, ..of.clone() },
        Part::Scales => {
            let grid = grid(&of.dims, quant.group.map(u64::from));
            let own = |dims| Type { axes: of.axes.clone(), ..Type::new(quant.scale, dims) };
            grid.is_some_and(|dims| *ty == own(dims))
        }
    }
}

fn ty(cx: &mut Cx, ty: &Type, at: Place) {
    let m = cx.m;
    let positive = ty.dims.iter().all(|d| d.coeff() >= 1);
    cx.check(positive, at, || "a dim is at least 1".into());
    let elements = ty.elements().map(|n| m.dim_max(n));
    cx.check(elements.is_some_and(|n| n < u64::MAX), at, || {
        "the number of elements at the bounds is no 64-bit number".into()
    });
    let one_each = ty.axes.is_empty() || ty.axes.len() == ty.dims.len();
    cx.check(one_each, at, || "there are not as many axes as dims".into());
    let mut seen = BTreeSet::new();
    let twice = ty.axes.iter().flatten().any(|a| !seen.insert(*a));
    cx.check(!twice, at, || "two dims are cut along one mesh axis".into());
    if let Some(q) = &ty.quant {
        let small = matches!(ty.dtype, DType::E4m3 | DType::E5m2 | DType::E5m6);
        cx.check(small, at, || "only e4m3, e5m2 and e5m6 have group scales".into());
        let scale = matches!(q.scale, DType::F32 | DType::Ue8m0);
        cx.check(scale, at, || "a scale is f32 or ue8m0".into());
        let sides = q.group[0] >= 1 && q.group[1] >= 1;
        cx.check(sides, at, || "a group's sides are at least 1".into());
        let fits = ty.rank() >= 2 || (ty.rank() == 1 && q.group[0] == 1);
        cx.check(fits, at, || "a group has more sides than the value dims".into());
    }
}

// --- functions ----------------------------------------------------------------------------------

fn func(cx: &mut Cx, id: FuncId) {
    let m = cx.m;
    let f = m.func(id);
    let before = cx.errors.len();
    let head = Place::Head(id);
    cx.check(m.find(&f.name) == Some(id), head, || format!("two functions are called @{}", f.name));
    f.params.iter().for_each(|p| ty(cx, f.ty(*p), head));
    names(cx, id, f);
    order(cx, id, f);
    result_names(cx, id, f);
    entry(cx, id, f);
    for (op_id, data) in f.body_ops() {
        op(cx, f, Place::Op(id, op_id), id, data);
    }
    flights::check(cx, id);
    // Chains of states are looked for in what is otherwise right.
    if cx.errors.len() == before {
        states::check(cx, id);
    }
}

fn names(cx: &mut Cx, id: FuncId, f: &Func) {
    let mut seen = BTreeSet::new();
    let mut unique = |cx: &mut Cx, v: ValueId, at: Place| {
        if let Some(n) = &f.value(v).name {
            cx.check(seen.insert(n), at, || format!("two values are called %{n}"));
        }
    };
    f.params.iter().for_each(|v| unique(cx, *v, Place::Head(id)));
    for (op_id, op) in f.body_ops() {
        op.results.iter().for_each(|v| unique(cx, *v, Place::Op(id, op_id)));
    }
}

/// Defined once and before use.
fn order(cx: &mut Cx, id: FuncId, f: &Func) {
    let names = text::value_names(f);
    let name = |v: ValueId| &names[v.0 as usize];
    let mut defined = BTreeSet::new();
    for v in &f.params {
        let new = defined.insert(*v);
        cx.check(new, Place::Head(id), || format!("{} is defined twice", name(*v)));
    }
    for (op_id, op) in f.body_ops() {
        let at = Place::Op(id, op_id);
        for v in op.operands.iter().filter(|v| !defined.contains(v)) {
            cx.fail(at, format!("{} is used before it is defined", name(*v)));
        }
        for v in &op.results {
            let new = defined.insert(*v);
            cx.check(new, at, || format!("{} is defined twice", name(*v)));
        }
    }
    for v in f.results.iter().filter(|v| !defined.contains(v)) {
        cx.fail(Place::Return(id), format!("{} is returned and never defined", name(*v)));
    }
}

fn result_names(cx: &mut Cx, id: FuncId, f: &Func) {
    let n = f.result_names.len();
    let all = n == 0 || n == f.results.len();
    cx.check(all, Place::Head(id), || "either every result has a name or none".into());
    let mut seen = BTreeSet::new();
    for name in &f.result_names {
        let new = seen.insert(name);
        cx.check(new, Place::Head(id), || format!("two results are called {name}"));
    }
}

fn entry(cx: &mut Cx, id: FuncId, f: &Func) {
    if f.result_names.is_empty() {
        return;
    }
    for p in &f.params {
        let Some(name) = &f.value(*p).name else { continue };
        let Some(store) = cx.m.stores.get(name) else { continue };
        let same = store.ty.as_value() == f.ty(*p).as_value();
        let ty = text::print_type(cx.m, &store.ty);
        cx.check(same, Place::Head(id), || format!("%{name} is not the {ty} that is stored"));
    }
}

fn op(cx: &mut Cx, f: &Func, at: Place, id: FuncId, data: &OpData) {
    let m = cx.m;
    cx.check(!data.spans.is_empty(), at, || "an op needs a place in a source file".into());
    for s in &data.spans {
        let real = (s.file as usize) < m.files.len() && s.line >= 1 && s.col >= 1;
        cx.check(real, at, || format!("{}:{} is no place in a source file", s.line, s.col));
    }
    data.results.iter().for_each(|v| ty(cx, f.ty(*v), at));
    let callee = data.attrs.get_func("func");
    let earlier = callee.is_none_or(|g| g < id);
    cx.check(earlier, at, || "a callee stands before its callers".into());
    if let Some(g) = callee.filter(|_| data.op == Op::Fused && earlier) {
        let ops = || m.func(g).body_ops().map(|(_, op)| op);
        let attends = ops().any(|op| op.op == Op::Attention);
        for inner in ops().filter(|inner| !fusible(inner, attends)) {
            cx.fail(at, format!("a fused function may not hold {}", inner.op.name()));
        }
    }
    match builder::infer(Some(m), f, data.op, &data.operands, &data.attrs) {
        Err(why) => cx.fail(at, why.0),
        Ok(types) => result_types(cx, f, at, data, &types),
    }
}

/// What a `fused` function may hold: sources, and ops whose rows are independent of each other. One
/// that attends holds nothing else but codes of its rows.
fn fusible(op: &OpData, attends: bool) -> bool {
    let def = op.op.def();
    let source = def.operands.is_empty() && def.has(Trait::Pure);
    let kind = [Trait::Pointwise, Trait::Movement, Trait::Reduction].iter().any(|t| def.has(*t));
    let per_row = matches!(def.cost, CostRule::PerElement(_) | CostRule::PerInput(_));
    let codes = op.op == Op::Encode && matches!(op.attrs.get_ints("group"), Some([1, _]));
    if attends {
        return op.op == Op::Attention || codes || def.has(Trait::Movement);
    }
    source || kind || codes || (def.has(Trait::Composite) && def.has(Trait::Pure) && per_row)
}

fn result_types(cx: &mut Cx, f: &Func, at: Place, data: &OpData, types: &[Type]) {
    let n = data.results.len();
    if n != types.len() {
        cx.fail(at, format!("expected {} results, found {n}", types.len()));
        return;
    }
    for (v, expected) in data.results.iter().zip(types) {
        let found = f.ty(*v);
        let same =
            Type { axes: vec![], ..found.clone() } == Type { axes: vec![], ..expected.clone() };
        let [expected, found] = [expected, found].map(|t| text::print_type(cx.m, t));
        cx.check(same, at, || format!("expected type {expected}, found {found}"));
    }
}
