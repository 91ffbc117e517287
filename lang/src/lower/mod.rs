//! From the elaborated model to IR: one function an entry, one for each group of a stack that
//! `repeat` runs.
//!
//! Calls of single members are inlined; `each` runs a stack on the rows of its segments without a
//! function of its own.

mod args;
mod arith;
mod builtin;
mod call;
mod composite;
mod compute;
mod entry;
mod expr;
mod function;
mod index;
mod repeat;
mod shape;
mod site;
mod stmt;
mod tokens;
mod update;
mod value;

pub use entry::{EmitInfo, Lowered, Purpose, Settings, Size, lower};
pub use site::{Site, Weight};

use indexmap::IndexMap;
use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymId, SymKind};
use weft_ir::module::{Module, ValueId};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;
use weft_ir::ty::{DType, Type};

use crate::ast;
use crate::diag::Diag;
use crate::elaborate::{InstId, Reported, Tree};
use crate::source::{SourceMap, Span};
use function::{Class, Function, Key};
use value::{Tensor, Value};

/// Calls within calls deeper than this are a cycle.
const DEPTH_MAX: usize = 80;

/// Expressions within expressions, through all calls, deeper than this would overflow the stack.
const EXPR_DEPTH_MAX: usize = 500;

/// A model that calls more modules than this calls one twice at every level.
const CALLS_MAX: usize = 50_000;

/// The lowering of one entry.
struct Lower<'a, 't> {
    tree: &'t Tree<'a>,
    modules: Vec<&'a ast::Module>,
    map: &'t SourceMap,
    diags: &'t mut Vec<Diag>,
    module: Module,
    settings: Settings,
    /// Functions under construction, the innermost last.
    functions: Vec<Function>,
    /// Call sites of the bodies being inlined, the innermost last.
    sites: Vec<Span>,
    /// Bodies inlined so far.
    n_calls: usize,
    /// Expressions around the one being lowered, through all bodies.
    depth: usize,
    /// Shares of a stack's weights that one token uses, by store: `active / experts`.
    active: IndexMap<String, (u64, u64)>,
    /// Products met so far.
    gemms: Vec<Site>,
    batch: Dim,
    seq: Dim,
    /// Positions that attention sees.
    seen: Dim,
}

/// What names mean in the body being lowered.
struct Env {
    inst: InstId,
    locals: IndexMap<String, Value>,
    /// Dims that the call's arguments gave a name.
    dims: IndexMap<String, Dim>,
    /// The segments this body runs on: inside `each`.
    each: Option<SymId>,
    /// Leading dims of every value that the text does not see: inside `update`.
    lead: usize,
    /// Names of the loss block may be emits.
    emits_visible: bool,
    /// What values with a name are stored as.
    compute: DType,
    /// Products of this body so far.
    n_products: u32,
}

type Lowering<T> = Result<T, Reported>;

impl<'a> Lower<'a, '_> {
    fn error<T>(&mut self, span: Span, message: impl Into<String>) -> Lowering<T> {
        self.diags.push(Diag::error(span, message));
        Err(Reported)
    }

    fn typed<T>(&mut self, span: Span, result: Result<T, TypeError>) -> Lowering<T> {
        result.or_else(|e| self.error(span, e.0))
    }

    fn f(&mut self) -> &mut Function {
        self.functions.last_mut().expect("an entry is being lowered")
    }

    fn b(&mut self) -> &mut Builder {
        &mut self.f().builder
    }

    /// The builder, its next ops coming from `span`.
    fn at(&mut self, span: Span) -> &mut Builder {
        let place = |map: &SourceMap, s: Span| {
            let lc = map.line_column(s.file, s.start);
            let (line, col) = (lc.line as u32, lc.column as u32);
            weft_ir::module::Span { file: s.file.0, line, col }
        };
        let mut spans = vec![place(self.map, span)];
        spans.extend(self.sites.last().map(|s| place(self.map, *s)));
        self.b().at(&spans)
    }

    fn emit(&mut self, span: Span, op: Op, xs: &[ValueId], attrs: Attrs) -> Lowering<ValueId> {
        let result = self.at(span).emit(op, xs, attrs);
        self.fitting(span, xs, result)
    }

    fn emit_all(
        &mut self,
        span: Span,
        op: Op,
        xs: &[ValueId],
        attrs: Attrs,
    ) -> Lowering<Vec<ValueId>> {
        let result = self.at(span).emit_all(op, xs, attrs);
        self.fitting(span, xs, result)
    }

    /// The result of an op on `xs`; if its rule is broken, what they are is said with it.
    fn fitting<T>(
        &mut self,
        span: Span,
        xs: &[ValueId],
        result: Result<T, TypeError>,
    ) -> Lowering<T> {
        result.map_err(|e| {
            let types: Vec<Type> = xs.iter().map(|x| self.ty(*x)).collect();
            let shown = |t: &Type| format!("{}{}", t.dtype.name(), self.show_dims(&t.dims));
            let found: Vec<String> = types.iter().map(shown).collect();
            self.diags.push(Diag::error(span, e.0).hint(format!("found {}", found.join(", "))));
            Reported
        })
    }

    fn ty(&mut self, id: ValueId) -> Type {
        self.b().ty(id).clone()
    }

    /// The dims that the text sees.
    fn dims(&mut self, t: &Tensor) -> Vec<Dim> {
        let skip = usize::from(t.batched);
        self.ty(t.id).dims[skip..].to_vec()
    }

    fn tensor(&mut self, id: ValueId) -> Tensor {
        let rank = self.ty(id).rank();
        Tensor::new(id, rank)
    }

    fn value(&mut self, id: ValueId) -> Value {
        Value::Tensor(self.tensor(id))
    }

    /// Name a value after what the text calls it; a name it has from a call it came through gives
    /// way.
    fn name_value(&mut self, id: ValueId, name: &str) {
        let function = self.f();
        let passing = function.passing_names.remove(&id);
        if passing || function.builder.func.value(id).name.is_none() {
            function.builder.name(id, name);
        }
    }

    /// Name a value after the member whose call made it, until the text names it.
    fn name_passing(&mut self, id: ValueId, name: &str) {
        let function = self.f();
        if function.builder.func.value(id).name.is_none() {
            function.builder.name(id, name);
            function.passing_names.insert(id);
        }
    }

    /// A dim in the author's terms: `S`, `4*B`, `7168`.
    fn show_dim(&self, d: Dim) -> String {
        let names: Vec<String> = d.symbols().map(|s| self.module.sym(s).name.clone()).collect();
        match (d.coeff(), names.is_empty()) {
            (n, true) => n.to_string(),
            (1, _) => names.join("*"),
            (n, _) => format!("{n}*{}", names.join("*")),
        }
    }

    /// `heads * value = 4096` where the author named the dim, else its value.
    fn named_dim(&self, label: Option<Span>, d: Dim) -> String {
        let value = self.show_dim(d);
        match label.map(|s| self.map.slice(s)) {
            Some(name) if name != value => format!("{name} = {value}"),
            _ => value,
        }
    }

    fn show_dims(&self, dims: &[Dim]) -> String {
        let all: Vec<String> = dims.iter().map(|d| self.show_dim(*d)).collect();
        format!("[{}]", all.join(", "))
    }

    /// How many levels of `store` the function at `depth` no longer sees.
    fn peeled(&self, depth: usize, path: &str) -> usize {
        let above = |id: &InstId| {
            let inst = self.tree.get(*id);
            path.starts_with(&format!("{}.", inst.path)).then_some(inst.levels.len())
        };
        let functions = self.functions[..=depth].iter();
        functions.filter_map(|f| f.inst.as_ref().and_then(above)).max().unwrap_or(0)
    }

    /// The parameter of the innermost function that holds store `path`; added if it is new.
    fn store(&mut self, path: &str, state: bool) -> ValueId {
        let depth = self.functions.len() - 1;
        self.store_in(depth, path, state)
    }

    fn store_in(&mut self, depth: usize, path: &str, state: bool) -> ValueId {
        let key = Key::Store(path.to_string());
        if let Some((id, _)) = self.functions[depth].params.get(&key) {
            return *id;
        }
        let store = &self.module.stores[path];
        let n_levels = self.levels_of(path);
        let peeled = self.peeled(depth, path).min(n_levels);
        let mut ty = store.ty.with_dims(&store.ty.dims[peeled..]);
        ty.state = state;
        let own = self.functions[depth].inst.filter(|id| {
            let inst = self.tree.get(*id);
            path.starts_with(&format!("{}.", inst.path))
        });
        let (class, name) = match own {
            Some(id) => (Class::Stacked, path[self.tree.get(id).path.len() + 1..].to_string()),
            None => (Class::Shared, path.to_string()),
        };
        let function = &mut self.functions[depth];
        let id = function.builder.param(&name, ty);
        function.params.insert(key, (id, class));
        id
    }

    fn levels_of(&self, path: &str) -> usize {
        match self.tree.stores.get(path) {
            Some(s) => s.levels.len(),
            // A cache: its instance's levels.
            None => {
                let owner = path.rsplit_once('.').map_or("", |(p, _)| p);
                let inst = self.tree.instances.iter().find(|i| i.path == owner);
                inst.map_or(0, |i| i.levels.len())
            }
        }
    }

    /// `positions`, `segments` or `start`, as a parameter of the function at `depth`.
    fn implicit_in(&mut self, depth: usize, key: Key) -> ValueId {
        if let Some((id, _)) = self.functions[depth].params.get(&key) {
            return *id;
        }
        let (name, dims) = match key {
            Key::Start => ("start", vec![self.batch]),
            Key::Segments => ("segments", vec![self.batch, self.seq]),
            _ => ("positions", vec![self.batch, self.seq]),
        };
        let n_dims = dims.len();
        let function = &mut self.functions[depth];
        let id = function.builder.param(name, Type::i32(dims));
        function.token_dims.set(id, vec![true; n_dims]);
        function.params.insert(key, (id, Class::Shared));
        id
    }

    /// `segments` and `start` are inputs of an entry; `positions` is computed there once.
    fn implicit(&mut self, key: Key, span: Span) -> Lowering<ValueId> {
        let depth = self.functions.len() - 1;
        self.implicit_at(depth, key, span)
    }

    fn implicit_at(&mut self, depth: usize, key: Key, span: Span) -> Lowering<ValueId> {
        if depth > 0 || key != Key::Positions {
            return Ok(self.implicit_in(depth, key));
        }
        match self.functions[0].positions {
            Some(id) => Ok(id),
            None => self.make_positions(span),
        }
    }

    fn fresh_sym(&mut self, base: &str, kind: SymKind) -> SymId {
        let taken = |m: &Module, n: &str| m.find_sym(n).is_some();
        let mut name = base.to_string();
        let mut n = 2;
        while taken(&self.module, &name) {
            name = format!("{base}{n}");
            n += 1;
        }
        self.module.add_sym(&name, kind)
    }
}
