//! Entries: `@loss` (forward, loss block, side outputs), `@update`, and `@forward` with or without
//! a cache.
//!
//! Parameters that are stores have the store's name; results of `@loss` are `objective`,
//! `metric.NAME`, `logits` (what the model's forward returns) and `emit.PATH.NAME`. `@forward`
//! holds only what its results need: what a model computes for its loss alone costs nothing there.

use indexmap::IndexMap;
use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::{Dim, SymKind};
use weft_ir::module::{Func, Module, Store, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::function::{Class, Function, Key};
use super::site::Site;
use super::update::Emitted;
use super::value::Value;
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::{self, Diag};
use crate::elaborate::tree::Body;
use crate::elaborate::{Reported, Tree};
use crate::settings::recipe::{self, Recipe};
use crate::source::{SourceMap, Span};

/// A size that is decided now or at launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    Fixed(u64),
    Bounded(u64),
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub batch: Size,
    pub seq: Size,
    /// The batch says which document each token belongs to, and documents do not see each other.
    pub segments: bool,
    /// Keep what `cache` marks, for so many positions.
    pub cache: Option<Size>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// `@loss` and `@update`.
    Train,
    /// `@forward`: logits, and the caches if there are any.
    Infer,
}

/// A side output of `@loss`.
#[derive(Clone, Debug)]
pub struct EmitInfo {
    /// The entry's result: `emit.layers.1.mlp.gate.load`.
    pub result: String,
    pub name: String,
    /// The number that the first instance of each stack has in published names; one for each
    /// stacked dim.
    pub starts: Vec<u64>,
}

#[derive(Debug)]
pub struct Lowered {
    pub module: Module,
    pub emits: Vec<EmitInfo>,
    /// The share of a store that one token uses, where that is not all of it: (active, of).
    pub active: IndexMap<String, (u64, u64)>,
    /// Every product of the text, also those that only training needs.
    pub sites: Vec<Site>,
    /// What the precision block makes of each, in their order.
    pub recipes: Vec<Recipe>,
}

/// Lower the model's entries for `purpose`; `None` if anything was wrong (see `diags`).
pub fn lower(
    program: &ast::Program,
    tree: &Tree,
    map: &SourceMap,
    purpose: Purpose,
    settings: Settings,
    diags: &mut Vec<Diag>,
) -> Option<Lowered> {
    let modules = program
        .files
        .iter()
        .flat_map(|f| &f.items)
        .filter_map(|i| match i {
            ast::Item::Module(m) => Some(m),
            _ => None,
        })
        .collect();
    let mut module = Module { name: tree.name.clone(), ..Module::default() };
    module.files = map
        .files()
        .map(|(_, s)| {
            let name = s.path.file_name().unwrap_or(s.path.as_os_str());
            name.to_string_lossy().into_owned()
        })
        .collect();
    let mut size = |name: &str, size: Size| match size {
        Size::Fixed(n) => Dim::fixed(n),
        Size::Bounded(max) => Dim::sym(module.add_sym(name, SymKind::Bounded { max })),
    };
    let (batch, seq) = (size("B", settings.batch), size("S", settings.seq));
    let seen = settings.cache.map_or(seq, |t| size("T", t));
    for (name, decl) in &tree.stores {
        let store = Store {
            ty: Type::new(decl.dtype, decl.stacked_dims()),
            kind: decl.kind,
            templates: decl.templates.clone(),
            starts: decl.prefix.starts.clone(),
            init: decl.init,
            part: None,
            placed: None,
        };
        module.stores.insert(name.clone(), store);
    }
    let mut lower = Lower {
        tree,
        modules,
        map,
        diags,
        module,
        settings,
        functions: vec![],
        sites: vec![],
        n_calls: 0,
        depth: 0,
        active: IndexMap::new(),
        gemms: vec![],
        batch,
        seq,
        seen,
    };
    let emits = match purpose {
        Purpose::Train => lower.loss(),
        Purpose::Infer => lower.forward(),
    };
    let (module, active, sites) = (lower.module, lower.active, lower.gemms);
    let recipes = recipe::recipes(&tree.precision, &sites, diags);
    diag::drop_repeated(diags);
    let failed = diags.iter().any(Diag::is_error);
    match emits {
        Ok(emits) if !failed => Some(Lowered { module, emits, active, sites, recipes }),
        _ => None,
    }
}

impl<'a> Lower<'a, '_> {
    fn model(&self) -> &'a ast::Model {
        match self.tree.root().body {
            Body::Model(m) => m,
            Body::Module(_) => unreachable!("the root is the model"),
        }
    }

    /// The model's forward in a new entry; its names and results.
    fn trunk(&mut self, name: &str) -> Lowering<(Env, Vec<Value>)> {
        let model = self.model();
        let Some(forward) = self.tree.root().forward else {
            return self.error(model.name.span, format!("`{}` has no forward", model.name.text));
        };
        self.functions.push(Function::new(name, None));
        let mut env = self.env(self.tree.root);
        for (i, arg) in forward.args.iter().enumerate() {
            let ty = self.entry_type(arg, &env)?;
            let function = self.f();
            let id = function.builder.param(&arg.name.text, ty);
            function.token_dims.set(id, arg.ty.dims.iter().map(counts_tokens).collect());
            function.params.insert(Key::Input(i), (id, Class::Carry));
            let mut t = self.tensor(id);
            t.labels = arg.ty.dims.iter().map(dim_span).collect();
            env.locals.insert(arg.name.text.clone(), Value::Tensor(t));
        }
        if self.settings.segments {
            self.implicit(Key::Segments, forward.span)?;
        }
        let results = self.body(&forward.body, &mut env)?;
        let results = self.check_results(forward, self.tree.root, results, &mut env)?;
        Ok((env, results))
    }

    fn entry_type(&mut self, arg: &'a ast::Arg, env: &Env) -> Lowering<Type> {
        let dtype = match &arg.ty.dtype {
            None => weft_ir::ty::DType::F32,
            Some(n) => match weft_ir::ty::DType::from_name(&n.text) {
                Some(d) => d,
                None => return self.error(n.span, format!("unknown element type `{}`", n.text)),
            },
        };
        let mut dims = vec![];
        for dim in &arg.ty.dims {
            match dim {
                ast::Dim::Rest(s) => return self.error(*s, "a model's input has all dims named"),
                ast::Dim::Expr(e) => dims.push(self.dim_expr(e, env)?),
            }
        }
        Ok(Type::new(dtype, dims))
    }

    pub fn make_positions(&mut self, span: Span) -> Lowering<ValueId> {
        let ty = Type::i32([self.batch, self.seq]);
        let dims = ty.dims.clone();
        let attrs = Attrs::new().int("dim", 1).with("type", Attr::Type(ty));
        // Only entries make positions, and an entry is the outermost function.
        debug_assert_eq!(self.functions.len(), 1);
        let mut id = self.emit(span, Op::Iota, &[], attrs)?;
        if self.settings.cache.is_some() {
            let start = self.implicit(Key::Start, span)?;
            let attrs = Attrs::new().dims("shape", dims).ints("dims", [0]);
            let start = self.emit(span, Op::Broadcast, &[start], attrs)?;
            id = self.emit(span, Op::Add, &[id, start], Attrs::new())?;
        }
        self.b().name(id, "positions");
        self.f().token_dims.set(id, vec![true, true]);
        self.f().positions = Some(id);
        Ok(id)
    }

    /// Close the entry with named results.
    pub fn close(&mut self, results: Vec<(String, ValueId)>) -> Func {
        let function = self.functions.pop().expect("an entry is being lowered");
        let (names, ids) = results.into_iter().unzip();
        let (mut func, _) = function.finish(ids);
        func.result_names = names;
        func
    }

    fn forward(&mut self) -> Lowering<Vec<EmitInfo>> {
        let (_, values) = self.trunk("forward")?;
        let span = self.model().name.span;
        let mut results = self.forward_results(values, span)?;
        self.keep_what_feeds(&results);
        let first_cache = results.len();
        results.extend(self.f().caches.iter().map(|(p, v)| (p.clone(), *v)));
        let mut func = self.close(results);
        for (r, name) in func.result_names.iter().enumerate().skip(first_cache) {
            let own = |p: &ValueId| func.value(*p).name.as_deref() == Some(name);
            let param = func.params.iter().position(own).expect("a cache is a parameter");
            func.donated.push((param as u32, r as u32));
        }
        self.module.add_func(func);
        Ok(vec![])
    }

    /// What the model's forward returns, by the names an entry gives it.
    fn forward_results(
        &mut self,
        values: Vec<Value>,
        span: Span,
    ) -> Lowering<Vec<(String, ValueId)>> {
        let mut results = vec![];
        for (i, v) in values.into_iter().enumerate() {
            let name = if i == 0 { "logits".to_string() } else { format!("result.{i}") };
            let t = self.as_tensor(v, span)?;
            results.push((name, self.in_f32(t, span)?.id));
        }
        Ok(results)
    }

    /// Drop the entry's ops, parameters and caches that nothing in `results` depends on.
    fn keep_what_feeds(&mut self, results: &[(String, ValueId)]) {
        let function = self.functions.last_mut().expect("an entry is being lowered");
        let func = &mut function.builder.func;
        let mut needed = vec![false; func.n_values()];
        results.iter().for_each(|(_, id)| needed[id.0 as usize] = true);
        let mut body = vec![];
        for (id, op) in func.body_ops().rev() {
            if op.results.iter().any(|r| needed[r.0 as usize]) {
                op.operands.iter().for_each(|x| needed[x.0 as usize] = true);
                body.push(id);
            }
        }
        body.reverse();
        func.body = body;
        let inputs = |key: &Key| matches!(key, Key::Input(_) | Key::Segments | Key::Start);
        function.params.retain(|key, (id, _)| inputs(key) || needed[id.0 as usize]);
        let params = &function.params;
        let kept = |path: &String| params.contains_key(&Key::Store(path.clone()));
        let dropped: Vec<String> =
            function.caches.keys().filter(|path| !kept(path)).cloned().collect();
        for path in dropped {
            function.caches.shift_remove(&path);
            self.module.stores.shift_remove(&path);
        }
    }

    fn loss(&mut self) -> Lowering<Vec<EmitInfo>> {
        let (mut env, values) = self.trunk("loss")?;
        let model = self.model();
        let Some(block) = self.tree.loss else {
            let diag = Diag::error(model.name.span, format!("`{}` has no loss", model.name.text));
            self.diags.push(diag.hint("training needs a `loss { ... }` block"));
            return Err(Reported);
        };
        let result = match &values[..] {
            [one] => one.clone(),
            _ => Value::Tuple(values.clone()),
        };
        env.locals.insert("result".into(), result);
        env.emits_visible = true;
        env.compute = DType::F32;
        let before: Vec<String> = env.locals.keys().cloned().collect();
        let objective = self.body(&block.body, &mut env)?;
        let objective = self.objective(objective, block)?;
        let mut results = vec![("objective".to_string(), objective)];
        for (name, value) in &env.locals {
            if let (Value::Tensor(t), false) = (value, before.contains(name))
                && self.ty(t.id).rank() == 0
            {
                results.push((format!("metric.{name}"), t.id));
            }
        }
        results.extend(self.forward_results(values, block.span)?);
        let (mut emits, mut emitted) = (vec![], vec![]);
        for e in std::mem::take(&mut self.f().emits) {
            let result = match e.path.as_str() {
                "" => format!("emit.{}", e.name),
                p => format!("emit.{p}.{}", e.name),
            };
            let value = self.id_in_f32(e.value, e.span)?;
            let (name, ty) = (e.name.clone(), self.ty(value));
            emitted.push(Emitted { path: e.path, name, result: result.clone(), ty });
            results.push((result.clone(), value));
            emits.push(EmitInfo { result, name: e.name, starts: e.starts });
        }
        let func = self.close(results);
        self.module.add_func(func);
        self.update(&emitted)?;
        Ok(emits)
    }

    /// The last expression of the loss block, a scalar.
    fn objective(&mut self, values: Vec<Value>, block: &ast::Loss) -> Lowering<ValueId> {
        let (span, value) = match (block.body.last(), values.into_iter().next()) {
            (Some(last), Some(value)) => (last.span(), value),
            _ => {
                let why = "a loss ends with an expression, its objective";
                return self.error(block.span, why);
            }
        };
        let id = self.as_tensor(value, span)?.id;
        let ty = self.ty(id);
        if ty != Type::scalar(weft_ir::ty::DType::F32) {
            let found = format!("found {}{}", ty.dtype.name(), self.show_dims(&ty.dims));
            let diag = Diag::error(span, format!("the objective is a scalar, {found}"));
            self.diags.push(diag.hint("`mean(...)` or `sum(...)` makes one of a tensor"));
            return Err(Reported);
        }
        Ok(id)
    }
}

/// Whether an input's dim is the batch or the positions.
fn counts_tokens(dim: &ast::Dim) -> bool {
    let name = |e: &ast::Expr| match &e.kind {
        ast::ExprKind::Path(p) => p.single().map(|n| n.text.clone()),
        _ => None,
    };
    match dim {
        ast::Dim::Rest(_) => false,
        ast::Dim::Expr(e) => matches!(name(e).as_deref(), Some("B" | "S" | "T")),
    }
}

fn dim_span(dim: &ast::Dim) -> Option<Span> {
    match dim {
        ast::Dim::Rest(_) => None,
        ast::Dim::Expr(e) => Some(e.span),
    }
}
