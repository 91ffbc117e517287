//! Entries: `@loss` (forward, loss block, side outputs), `@update`, and `@forward` with or without a cache.
//!
//! Parameters that are stores have the store's name; results of `@loss` are `objective`, `metric.NAME`, `logits` (what the
//! model's forward returns) and `emit.PATH.NAME`.

use indexmap::IndexMap;
use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::{Dim, SymKind};
use weft_ir::module::{Func, Module, Store, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::Type;

use super::function::{Class, Function, Key};
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::consts::Const;
use crate::elaborate::tree::Body;
use crate::elaborate::{Reported, Tree};
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
    /// The number that the first instance of each stack has in published names; one for each stacked dim.
    pub starts: Vec<u64>,
}

#[derive(Debug)]
pub struct Lowered {
    pub module: Module,
    pub emits: Vec<EmitInfo>,
    /// The share of a store that one token uses, where that is not all of it: (active, of).
    pub active: IndexMap<String, (u64, u64)>,
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
        active: IndexMap::new(),
        batch,
        seq,
        seen,
    };
    let emits = match purpose {
        Purpose::Train => lower.loss(),
        Purpose::Infer => lower.forward(),
    };
    let failed = lower.diags.iter().any(Diag::is_error);
    match emits {
        Ok(emits) if !failed => Some(Lowered { module: lower.module, emits, active: lower.active }),
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
            function.params.insert(Key::Input(i), (id, Class::Carry));
            let mut t = self.tensor(id);
            t.labels = arg.ty.dims.iter().map(|d| dim_span(d)).collect();
            env.locals.insert(arg.name.text.clone(), Value::Tensor(t));
        }
        if self.settings.segments {
            self.implicit(Key::Segments, forward.span)?;
        }
        let results = self.body(&forward.body, &mut env)?;
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
        self.f().positions = Some(id);
        Ok(id)
    }

    /// Close the entry with named results.
    fn close(&mut self, results: Vec<(String, ValueId)>) -> Func {
        let function = self.functions.pop().expect("an entry is being lowered");
        let (names, ids) = results.into_iter().unzip();
        let (mut func, _) = function.finish(ids);
        func.result_names = names;
        func
    }

    fn forward(&mut self) -> Lowering<Vec<EmitInfo>> {
        let (_, values) = self.trunk("forward")?;
        let span = self.model().name.span;
        let mut results = vec![];
        for (i, v) in values.into_iter().enumerate() {
            let name = if i == 0 { "logits".to_string() } else { format!("result.{i}") };
            results.push((name, self.as_tensor(v, span)?.id));
        }
        let first_cache = results.len();
        let caches: Vec<(String, ValueId)> =
            self.f().caches.iter().map(|(p, v)| (p.clone(), *v)).collect();
        results.extend(caches);
        let mut func = self.close(results);
        for (r, name) in func.result_names.iter().enumerate().skip(first_cache) {
            let own = |p: &ValueId| func.value(*p).name.as_deref() == Some(name);
            let param = func.params.iter().position(own).expect("a cache is a parameter");
            func.donated.push((param as u32, r as u32));
        }
        self.module.add_func(func);
        Ok(vec![])
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
        let before: Vec<String> = env.locals.keys().cloned().collect();
        let objective = self.body(&block.body, &mut env)?;
        let objective = match objective.into_iter().next() {
            Some(v) => self.as_tensor(v, block.span)?,
            None => return self.error(block.span, "a loss ends with the objective's expression"),
        };
        if self.ty(objective.id) != Type::scalar(weft_ir::ty::DType::F32) {
            return self.error(block.span, "the objective is a scalar");
        }
        let mut results = vec![("objective".to_string(), objective.id)];
        for (name, value) in &env.locals {
            if let (Value::Tensor(t), false) = (value, before.contains(name))
                && self.ty(t.id).rank() == 0
            {
                results.push((format!("metric.{name}"), t.id));
            }
        }
        for (i, v) in values.into_iter().enumerate() {
            let name = if i == 0 { "logits".to_string() } else { format!("result.{i}") };
            results.push((name, self.as_tensor(v, block.span)?.id));
        }
        let mut emits = vec![];
        let made = std::mem::take(&mut self.f().emits);
        for e in made {
            let result = match e.path.as_str() {
                "" => format!("emit.{}", e.name),
                p => format!("emit.{p}.{}", e.name),
            };
            results.push((result.clone(), e.value));
            emits.push(EmitInfo { result, name: e.name, starts: e.starts });
        }
        let func = self.close(results);
        let id = self.module.add_func(func);
        let types: IndexMap<String, Type> = {
            let f = self.module.func(id);
            let types = f.results.iter().map(|r| f.ty(*r).clone());
            f.result_names.iter().cloned().zip(types).collect()
        };
        self.update(&types)?;
        Ok(emits)
    }

    /// `@update`: every instance's update blocks, on whole stacks.
    fn update(&mut self, emitted: &IndexMap<String, Type>) -> Lowering<()> {
        let tree = self.tree;
        if tree.instances.iter().all(|i| i.updates.is_empty()) {
            return Ok(());
        }
        self.functions.push(Function::new("update", None));
        let mut results: IndexMap<String, ValueId> = IndexMap::new();
        let mut n_inputs = 0;
        for (i, inst) in tree.instances.iter().enumerate() {
            if inst.updates.is_empty() {
                continue;
            }
            let mut env = self.env(crate::elaborate::InstId(i as u32));
            env.lead = inst.levels.len();
            for (name, ty) in emitted {
                let own = name
                    .strip_prefix("emit.")
                    .and_then(|n| n.strip_prefix(&inst.path))
                    .map(|n| n.trim_start_matches('.'))
                    .filter(|n| !n.is_empty() && !n.contains('.'));
                let Some(own) = own else { continue };
                let function = self.f();
                let id = function.builder.param(name, ty.clone());
                function.params.insert(Key::Input(n_inputs), (id, Class::Carry));
                n_inputs += 1;
                let rank = ty.rank();
                env.locals.insert(own.to_string(), Value::Tensor(Tensor::new(id, rank)));
            }
            for rule in inst.updates.iter().flat_map(|u| &u.rules) {
                self.update_rule(rule, &mut env, &mut results)?;
            }
        }
        let unused: Vec<Key> = {
            let func = &self.f().builder.func;
            let counts = func.use_counts();
            let params = &self.functions.last().expect("pushed above").params;
            let inputs = params.iter().filter(|(k, _)| matches!(k, Key::Input(_)));
            inputs
                .filter(|(_, (id, _))| counts[id.0 as usize] == 0)
                .map(|(k, _)| k.clone())
                .collect()
        };
        for key in unused {
            self.f().params.shift_remove(&key);
        }
        let func = self.close(results.into_iter().collect());
        self.module.add_func(func);
        Ok(())
    }

    fn update_rule(
        &mut self,
        rule: &'a ast::UpdateRule,
        env: &mut Env,
        results: &mut IndexMap<String, ValueId>,
    ) -> Lowering<()> {
        use crate::elaborate::Member;
        let inst = self.tree.get(env.inst);
        let path = match inst.members.get(&rule.target.text) {
            Some(Member::Store(path)) => path.clone(),
            _ => {
                let known = inst.members.keys().map(String::as_str);
                let diag =
                    Diag::error(rule.target.span, format!("no state `{}`", rule.target.text))
                        .did_you_mean(&rule.target.text, known);
                self.diags.push(diag);
                return Err(Reported);
            }
        };
        if self.tree.stores[&path].kind != weft_ir::module::StoreKind::State {
            let why = format!("`{}` is not a state", rule.target.text);
            return self.error(rule.target.span, why);
        }
        let old = match results.get(&path) {
            Some(id) => *id,
            None => self.store(&path, false),
        };
        let value = self.expr(&rule.value, env)?;
        let old = self.tensor(old);
        let sum = self.pointwise(Op::Add, Value::Tensor(old), value, rule.span)?;
        let sum = self.as_tensor(sum, rule.span)?;
        results.insert(path, sum.id);
        Ok(())
    }

    /// A side output by name in the loss block: summed over everything it was stacked over.
    pub fn emitted(&mut self, name: &str, span: Span) -> Lowering<Option<Value>> {
        let all: Vec<ValueId> =
            self.f().emits.iter().filter(|e| e.name == name).map(|e| e.value).collect();
        if all.is_empty() {
            let bodies = self.modules.iter().flat_map(|m| forwards(&m.members));
            let declared = bodies.flat_map(|f| &f.body).any(|s| emits(s, name));
            return Ok(declared.then_some(Value::Const(Const::Num(0.0))));
        }
        let mut total: Option<Value> = None;
        for id in all {
            let rank = self.ty(id).rank() as i64;
            let dims: Vec<i64> = (0..rank).collect();
            let sum = match rank {
                0 => id,
                _ => self.emit(span, Op::ReduceSum, &[id], Attrs::new().ints("dims", dims))?,
            };
            let sum = self.value(sum);
            total = Some(match total {
                None => sum,
                Some(t) => self.pointwise(Op::Add, t, sum, span)?,
            });
        }
        Ok(total)
    }
}

fn dim_span(dim: &ast::Dim) -> Option<Span> {
    match dim {
        ast::Dim::Rest(_) => None,
        ast::Dim::Expr(e) => Some(e.span),
    }
}

/// Every forward among members, under any condition.
fn forwards(members: &[ast::Member]) -> Vec<&ast::Forward> {
    members
        .iter()
        .flat_map(|m| match m {
            ast::Member::Forward(f) => vec![f],
            ast::Member::If(i) => {
                let mut all = forwards(&i.then);
                all.extend(forwards(&i.otherwise));
                all
            }
            _ => vec![],
        })
        .collect()
}

fn emits(stmt: &ast::Stmt, name: &str) -> bool {
    match stmt {
        ast::Stmt::Emit(e) => e.name.text == name,
        ast::Stmt::If(i) => i.then.iter().chain(&i.otherwise).any(|s| emits(s, name)),
        _ => false,
    }
}
