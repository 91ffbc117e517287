//! Modules, functions, ops and values, in arenas with u32 ids.
//!
//! A *module* holds the dim table, stores (weights, states and schedules), and functions. A
//! *function* is one block of SSA ops. Ids print as they are written in text IR: `%12` a value,
//! `@f` a function.

use indexmap::IndexMap;

use crate::attr::{Attr, Attrs};
use crate::dim::{Dim, Sym, SymId, SymKind};
use crate::op::Op;
use crate::ty::{AxisId, Type};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FuncId(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ValueId(pub u32);

/// A place in a `.model` file: `Module::files[file]`, line and column from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Span {
    pub file: u32,
    pub line: u32,
    pub col: u32,
}

/// What is stored between runs under a name.
#[derive(Clone, PartialEq, Debug)]
pub struct Store {
    pub ty: Type,
    pub kind: StoreKind,
    /// The names of the stored tensors: `{i}` in a template is the place in stacked dim 0 plus
    /// `starts[0]`, `{j}` in dim 1, and so on. The first template is the store's own, the others
    /// name duplicates.
    pub templates: Vec<String>,
    pub starts: Vec<u64>,
    pub init: Init,
    /// It holds a part of what the stored tensors are when quantized to this type.
    pub part: Option<(Part, Type)>,
    /// What it has to do with places of experts.
    pub placed: Option<Placed>,
}

/// A store of experts that may have several copies each. It has a line of `Module::placement` for
/// each index of the dims before, from this one on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// The last of its stacked dims counts places: the tensors of each are those of the expert that
    /// the line has there.
    Weights(u64),
    /// Where to find experts, i32[.., experts, turns]: an expert's places, in turn. Ranks begin
    /// with different ones.
    Table(u64),
}

impl Placed {
    pub fn name(self) -> &'static str {
        match self {
            Placed::Weights(_) => "placed",
            Placed::Table(_) => "places",
        }
    }

    /// The first line.
    pub fn first(self) -> u64 {
        match self {
            Placed::Weights(first) | Placed::Table(first) => first,
        }
    }
}

/// One of the two values that a quantized one is in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Codes,
    Scales,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Codes => "codes",
            Part::Scales => "scales",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreKind {
    /// Trained by gradients.
    Weight,
    /// Changed by `update` blocks, caches and optimizers only.
    State,
    /// A scalar that the training settings schedule.
    Schedule,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// From the training settings' distribution, keyed by seed and name.
    Drawn,
    Constant(f64),
}

/// A mesh axis, `data = 8`, or one of those that a place along another is made of:
/// `data = 8 (replicas = 2, experts = 4)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Axis {
    pub name: String,
    pub size: u64,
    /// The axis it is a part of; the sizes of an axis's parts multiply to its size.
    pub within: Option<AxisId>,
}

#[derive(Clone, Debug, Default)]
pub struct Module {
    pub name: String,
    /// Source files that spans name.
    pub files: Vec<String>,
    pub syms: Vec<Sym>,
    pub axes: Vec<Axis>,
    pub stores: IndexMap<String, Store>,
    /// For each layer of experts that have copies: the expert at each place. Places of a rank
    /// follow one another. Made by `copy_experts`.
    pub placement: Vec<Vec<u64>>,
    pub funcs: Vec<Func>,
}

/// One function: parameters, ops in order, results.
#[derive(Clone, Debug, Default)]
pub struct Func {
    pub name: String,
    pub params: Vec<ValueId>,
    pub body: Vec<OpId>,
    pub results: Vec<ValueId>,
    /// Names of the results of an entry; empty in a function that only other functions call.
    pub result_names: Vec<String>,
    /// `(parameter, result)` pairs: the result is the state that the parameter became.
    pub donated: Vec<(u32, u32)>,
    ops: Vec<OpData>,
    values: Vec<ValueData>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct OpData {
    pub op: Op,
    pub operands: Vec<ValueId>,
    pub attrs: Attrs,
    pub results: Vec<ValueId>,
    /// Where in the source it comes from; a fused op has several.
    pub spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ValueData {
    pub ty: Type,
    /// Unique in its function; a value without one prints as its number.
    pub name: Option<String>,
    pub def: Def,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Def {
    Param(u32),
    Result { op: OpId, idx: u32 },
}

impl Module {
    pub fn func(&self, id: FuncId) -> &Func {
        &self.funcs[id.0 as usize]
    }

    pub fn func_mut(&mut self, id: FuncId) -> &mut Func {
        &mut self.funcs[id.0 as usize]
    }

    pub fn find(&self, name: &str) -> Option<FuncId> {
        self.funcs.iter().position(|f| f.name == name).map(|i| FuncId(i as u32))
    }

    /// Every function's id, in order: callees stand before their callers.
    pub fn func_ids(&self) -> impl DoubleEndedIterator<Item = FuncId> + use<> {
        (0..self.funcs.len() as u32).map(FuncId)
    }

    pub fn add_func(&mut self, func: Func) -> FuncId {
        self.funcs.push(func);
        FuncId(self.funcs.len() as u32 - 1)
    }

    /// A function name not in use: `base`, or `base.2`, `base.3`, ...
    pub fn fresh_func_name(&self, base: &str) -> String {
        fresh(base, &|n| self.find(n).is_some())
    }

    pub fn sym(&self, id: SymId) -> &Sym {
        &self.syms[id.0 as usize]
    }

    pub fn find_sym(&self, name: &str) -> Option<SymId> {
        self.syms.iter().position(|s| s.name == name).map(|i| SymId(i as u32))
    }

    pub fn find_axis(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().position(|a| a.name == name).map(|i| AxisId(i as u32))
    }

    /// How many ranks the mesh has.
    pub fn n_ranks(&self) -> u64 {
        let whole = self.axes.iter().filter(|a| a.within.is_none());
        whole.fold(1, |n, a| n.saturating_mul(a.size))
    }

    /// How far apart ranks are that are neighbours along `axis`: of the axes of a mesh, and of the
    /// parts of an axis, the last is the fastest.
    pub fn stride(&self, axis: AxisId) -> u64 {
        let at = axis.0 as usize;
        let within = self.axes[at].within;
        let inner = self.axes[at + 1..].iter().filter(|a| a.within == within);
        let own = inner.fold(1, |n: u64, a| n.saturating_mul(a.size));
        own.saturating_mul(within.map_or(1, |whole| self.stride(whole)))
    }

    pub fn add_sym(&mut self, name: &str, kind: SymKind) -> SymId {
        self.syms.push(Sym { name: name.to_string(), kind });
        SymId(self.syms.len() as u32 - 1)
    }

    /// The size of `dim` where the bounded symbols have the sizes `bound` gives.
    pub fn eval_dim(&self, dim: Dim, bound: &dyn Fn(SymId) -> Option<u64>) -> Option<u64> {
        dim.eval(&|s| match &self.sym(s).kind {
            SymKind::Bounded { .. } => bound(s),
            SymKind::Ragged { total, .. } => self.eval_dim(*total, bound),
        })
    }

    /// The largest size `dim` can have; saturates.
    pub fn dim_max(&self, dim: Dim) -> u64 {
        let max = |s: SymId| match &self.sym(s).kind {
            SymKind::Bounded { max } => Some(*max),
            SymKind::Ragged { .. } => None,
        };
        self.eval_dim(dim, &max).unwrap_or(u64::MAX)
    }
}

impl Func {
    pub fn new(name: &str) -> Func {
        Func { name: name.to_string(), ..Func::default() }
    }

    pub fn op(&self, id: OpId) -> &OpData {
        &self.ops[id.0 as usize]
    }

    pub fn op_mut(&mut self, id: OpId) -> &mut OpData {
        &mut self.ops[id.0 as usize]
    }

    pub fn value(&self, id: ValueId) -> &ValueData {
        &self.values[id.0 as usize]
    }

    /// Every dim of types and attributes through `map`.
    pub fn map_dims(&mut self, map: &dyn Fn(Dim) -> Dim) {
        let typed = |ty: &mut Type| ty.dims.iter_mut().for_each(|d| *d = map(*d));
        self.values.iter_mut().for_each(|v| typed(&mut v.ty));
        for (_, attr) in self.ops.iter_mut().flat_map(|op| op.attrs.iter_mut()) {
            match attr {
                Attr::Dim(d) => *d = map(*d),
                Attr::Dims(dims) => dims.iter_mut().for_each(|d| *d = map(*d)),
                Attr::Type(ty) => typed(ty),
                _ => {}
            }
        }
    }

    pub fn value_mut(&mut self, id: ValueId) -> &mut ValueData {
        &mut self.values[id.0 as usize]
    }

    pub fn ty(&self, id: ValueId) -> &Type {
        &self.value(id).ty
    }

    /// Size of the value arena: ids are below it.
    pub fn n_values(&self) -> usize {
        self.values.len()
    }

    /// The value that `v` only gives another shape.
    pub fn past_reshapes(&self, v: ValueId) -> ValueId {
        match self.def_op(v).map(|id| self.op(id)) {
            Some(op) if op.op == Op::Reshape => self.past_reshapes(op.operands[0]),
            _ => v,
        }
    }

    /// The op that makes `id`, unless it is a parameter.
    pub fn def_op(&self, id: ValueId) -> Option<OpId> {
        match self.value(id).def {
            Def::Param(_) => None,
            Def::Result { op, .. } => Some(op),
        }
    }

    /// Size of the op arena: ids are below it.
    pub fn n_ops(&self) -> usize {
        self.ops.len()
    }

    /// The ops of the body, in order.
    pub fn body_ops(&self) -> impl DoubleEndedIterator<Item = (OpId, &OpData)> {
        self.body.iter().map(|id| (*id, self.op(*id)))
    }

    pub fn add_param(&mut self, name: &str, ty: Type) -> ValueId {
        let name = self.fresh_value_name(name);
        let idx = self.params.len() as u32;
        let id = self.add_value(ValueData { ty, name: Some(name), def: Def::Param(idx) });
        self.params.push(id);
        id
    }

    /// Append an op whose result types are known; `Builder` infers them.
    pub fn push_op(
        &mut self,
        op: Op,
        operands: Vec<ValueId>,
        attrs: Attrs,
        types: Vec<Type>,
        spans: Vec<Span>,
    ) -> OpId {
        let id = OpId(self.ops.len() as u32);
        let results = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                let def = Def::Result { op: id, idx: i as u32 };
                self.add_value(ValueData { ty, name: None, def })
            })
            .collect();
        self.ops.push(OpData { op, operands, attrs, results, spans });
        self.body.push(id);
        id
    }

    /// Name a value; a name in use gets a suffix.
    pub fn set_name(&mut self, id: ValueId, name: &str) {
        let name = self.fresh_value_name(name);
        self.value_mut(id).name = Some(name);
    }

    fn add_value(&mut self, data: ValueData) -> ValueId {
        self.values.push(data);
        ValueId(self.values.len() as u32 - 1)
    }

    fn fresh_value_name(&self, base: &str) -> String {
        fresh(base, &|n| self.values.iter().any(|v| v.name.as_deref() == Some(n)))
    }

    /// For each value, the number of operands and results that read it.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut n = vec![0; self.values.len()];
        for (_, op) in self.body_ops() {
            op.operands.iter().for_each(|v| n[v.0 as usize] += 1);
        }
        self.results.iter().for_each(|v| n[v.0 as usize] += 1);
        n
    }
}

fn fresh(base: &str, taken: &dyn Fn(&str) -> bool) -> String {
    if !taken(base) {
        return base.to_string();
    }
    (2..).map(|i| format!("{base}.{i}")).find(|n| !taken(n)).expect("some number is free")
}
