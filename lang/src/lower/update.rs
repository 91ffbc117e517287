//! `@update`, and side outputs where `update` and `loss` blocks read them.

use indexmap::IndexMap;
use weft_ir::attr::Attrs;
use weft_ir::module::{StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::function::{Class, Function, Key};
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::diag::Diag;
use crate::elaborate::consts::Const;
use crate::elaborate::{InstId, Member, Reported};
use crate::source::Span;

/// A side output as an entry returns it.
pub struct Emitted {
    /// The instance that emits it.
    pub path: String,
    pub name: String,
    /// The entry's result.
    pub result: String,
    pub ty: Type,
}

impl<'a> Lower<'a, '_> {
    /// `@update`: every instance's update blocks, on whole stacks.
    pub fn update(&mut self, emitted: &[Emitted]) -> Lowering<()> {
        let tree = self.tree;
        if tree.instances.iter().all(|i| i.updates.is_empty()) {
            return Ok(());
        }
        self.functions.push(Function::new("update", None));
        let mut results: IndexMap<String, ValueId> = IndexMap::new();
        let mut failed = false;
        for (i, inst) in tree.instances.iter().enumerate() {
            if inst.updates.is_empty() {
                continue;
            }
            let mut env = self.env(InstId(i as u32));
            env.lead = inst.levels.len();
            env.compute = DType::F32;
            self.read_emitted(emitted, &mut env);
            for rule in inst.updates.iter().flat_map(|u| &u.rules) {
                failed |= self.update_rule(rule, &mut env, &mut results).is_err();
            }
        }
        self.drop_unread_inputs();
        let func = self.close(results.into_iter().collect());
        self.module.add_func(func);
        if failed { Err(Reported) } else { Ok(()) }
    }

    /// What the instance emits, as inputs under the names it emits them by.
    fn read_emitted(&mut self, emitted: &[Emitted], env: &mut Env) {
        let path = &self.tree.get(env.inst).path;
        for e in emitted.iter().filter(|e| e.path == *path) {
            let function = self.f();
            let id = function.builder.param(&e.result, e.ty.clone());
            let place = function.params.len();
            function.params.insert(Key::Input(place), (id, Class::Carry));
            let t = Tensor::new(id, e.ty.rank());
            env.locals.insert(e.name.clone(), Value::Tensor(t));
        }
    }

    fn drop_unread_inputs(&mut self) {
        let function = self.f();
        let counts = function.builder.func.use_counts();
        function
            .params
            .retain(|key, (id, _)| !matches!(key, Key::Input(_)) || counts[id.0 as usize] > 0);
    }

    fn update_rule(
        &mut self,
        rule: &'a ast::UpdateRule,
        env: &mut Env,
        results: &mut IndexMap<String, ValueId>,
    ) -> Lowering<()> {
        let path = self.updated_state(&rule.target, env)?;
        let old = match results.get(&path) {
            Some(id) => *id,
            None => self.store(&path, false),
        };
        let value = self.expr(&rule.value, env)?;
        let labels = self.tree.stores[&path].labels.iter().map(|s| Some(*s));
        let mut old = self.tensor(old);
        let skip = old.labels.len() - labels.len();
        old.labels.splice(skip.., labels);
        let ty = self.ty(old.id);
        let sum = self.pointwise(Op::Add, Value::Tensor(old), value, rule.span)?;
        let sum = self.as_tensor(sum, rule.span)?;
        let found = self.ty(sum.id);
        if found != ty {
            let shown = |ty: &Type| {
                let dims = &ty.dims[env.lead.min(ty.rank())..];
                format!("{}{}", ty.dtype.name(), self.show_dims(dims))
            };
            let why = format!("`{}` is {}", rule.target.text, shown(&ty));
            let hint = format!("with what is added it would be {}", shown(&found));
            self.diags.push(Diag::error(rule.span, why).hint(hint));
            return Err(Reported);
        }
        self.name_value(sum.id, &rule.target.text);
        results.insert(path, sum.id);
        Ok(())
    }

    /// The path of the state that an update names.
    fn updated_state(&mut self, target: &ast::Name, env: &Env) -> Lowering<String> {
        let inst = self.tree.get(env.inst);
        if inst.failed.contains(&target.text) {
            return Err(Reported);
        }
        let states = |member: &Member| match member {
            Member::Store(path) => self.tree.stores[path].kind == StoreKind::State,
            Member::One(_) | Member::Stack(_) => false,
        };
        let diag = match inst.members.get(&target.text) {
            Some(Member::Store(path)) => {
                let decl = &self.tree.stores[path];
                if decl.kind == StoreKind::State {
                    return Ok(path.clone());
                }
                Diag::error(target.span, format!("`{}` is not a state", target.text))
                    .label(decl.span, "declared here")
                    .hint("gradients change a weight, and the train block a schedule")
            }
            _ => {
                let known = inst.members.iter().filter(|(_, m)| states(m));
                Diag::error(target.span, format!("no state `{}` here", target.text))
                    .did_you_mean(&target.text, known.map(|(name, _)| name.as_str()))
            }
        };
        self.diags.push(diag);
        Err(Reported)
    }

    /// A side output by name in the loss block: summed over everything it was stacked over. One
    /// that some module could emit and none does is 0.
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
            let id = self.id_in_f32(id, span)?;
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
