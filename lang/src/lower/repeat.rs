//! Stacks: `repeat` makes a function for each group and scans it, `each` runs one on the rows of
//! its segments.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::ValueId;
use weft_ir::op::Op;

use super::expr::one_or_tuple;
use super::function::{Class, Emit, Function, Key};
use super::tokens::Counts;
use super::value::{Tensor, Value};
use super::{Env, Lower, Lowering};
use crate::ast;
use crate::elaborate::{InstId, Member};
use crate::source::Span;

impl<'a> Lower<'a, '_> {
    fn stack(&mut self, call: &'a ast::Call, word: &str, env: &Env) -> Lowering<Vec<InstId>> {
        match self.callee(&call.callee, env.inst) {
            Some(Member::Stack(ids)) => Ok(ids),
            Some(Member::One(_)) => {
                let why = format!("`{}` is one module, not a stack", call.callee);
                self.error(call.callee.span, format!("{why}: call it without `{word}`"))
            }
            Some(Member::Store(_)) => {
                self.error(call.callee.span, format!("`{}` is a tensor", call.callee))
            }
            None => self.unknown_function(call, env),
        }
    }

    /// `repeat members(args)`: every instance in turn, all arguments carried.
    pub fn repeat(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Value> {
        if env.each.is_some() {
            return self.error(call.span, "`repeat` does not run inside `each`");
        }
        let groups = self.stack(call, "repeat", env)?;
        let mut carried = self.positional(call, env)?;
        for group in groups {
            carried = self.group(group, carried, call.span)?;
        }
        Ok(one_or_tuple(carried))
    }

    fn group(&mut self, inst: InstId, carried: Vec<Value>, span: Span) -> Lowering<Vec<Value>> {
        let tree_inst = self.tree.get(inst);
        let count = *tree_inst.levels.last().expect("a group of a stack has a level");
        let name = self.module.fresh_func_name(&tree_inst.path);
        let mut handed = vec![];
        let mut function = Function::new(&name, Some(inst));
        let mut inner = vec![];
        let arg_names: Vec<String> = match tree_inst.forward {
            Some(f) => f.args.iter().map(|a| a.name.text.clone()).collect(),
            None => vec![],
        };
        for (i, value) in carried.into_iter().enumerate() {
            let t = self.as_tensor(value, span)?;
            let t = self.handed(t, inst, i, span)?;
            let ty = self.ty(t.id);
            let counts = self.token_dims(t.id);
            let arg = arg_names.get(i).map_or("x", String::as_str);
            let id = function.builder.param(arg, ty);
            function.token_dims.set(id, counts);
            function.params.insert(Key::Input(i), (id, Class::Carry));
            inner.push(Value::Tensor(Tensor { id, ..t.clone() }));
            handed.push(t);
        }
        self.functions.push(function);
        let results = self.call_instance(inst, inner, None, span);
        for r in results.iter().flatten() {
            if let Value::Tensor(t) = r {
                self.name_passing(t.id, "out");
            }
        }
        let mut function = self.functions.pop().expect("pushed above");
        let results = results?;
        if results.len() != handed.len() {
            let why = format!(
                "`repeat` hands {} values on, `{}` returns {}",
                handed.len(),
                self.body_name(inst),
                results.len()
            );
            return self.error(span, why);
        }
        let mut outs: Vec<ValueId> = vec![];
        for r in &results {
            outs.push(match r {
                Value::Tensor(t) => t.id,
                _ => return self.error(span, "`repeat` hands tensors on"),
            });
        }
        let carry = outs.len();
        let emits = function.emits.clone();
        outs.extend(function.emits.iter().map(|e| e.value));
        let counts = outs.iter().map(|v| function.token_dims.of(&function.builder.func, *v));
        let counts: Vec<Counts> = counts.collect();
        let caches: Vec<String> = function.caches.keys().cloned().collect();
        outs.extend(function.caches.values());
        let (mut func, keys) = function.finish(outs);
        for (i, path) in caches.iter().enumerate() {
            let key = Key::Store(path.clone());
            let param = keys.iter().position(|(k, _)| *k == key).expect("a cache is a parameter");
            func.donated.push((param as u32, (carry + emits.len() + i) as u32));
        }
        let state: Vec<bool> = func.params.iter().map(|p| func.ty(*p).state).collect();
        let xs = keys.iter().filter(|(_, c)| *c == Class::Stacked).count();
        let callee = self.module.add_func(func);
        let mut operands = vec![];
        for ((key, _), state) in keys.iter().zip(state) {
            operands.push(match key {
                Key::Input(i) => handed[*i].id,
                Key::Store(path) => self.store(path, state),
                implicit => self.implicit(implicit.clone(), span)?,
            });
        }
        let attrs = Attrs::new()
            .func("func", callee)
            .int("count", count as i64)
            .int("carry", carry as i64)
            .int("xs", xs as i64);
        self.at(span);
        let depth = self.functions.len() - 1;
        let builder = &mut self.functions[depth].builder;
        let made = builder.emit_calling(&self.module, Op::Repeat, &operands, attrs);
        let made = self.typed(span, made)?;
        for (i, (id, mut counts)) in made.iter().zip(counts).enumerate() {
            if i >= carry {
                counts.insert(0, false);
            }
            self.f().token_dims.set(*id, counts);
        }
        let path = self.tree.get(inst).path.clone();
        made[..carry].iter().for_each(|id| self.name_passing(*id, &path));
        for (e, value) in emits.into_iter().zip(&made[carry..]) {
            self.b().name(*value, &format!("{}.{}", e.path, e.name));
            self.f().emits.push(Emit { value: *value, ..e });
        }
        for (path, value) in caches.iter().zip(&made[made.len() - caches.len()..]) {
            self.b().name(*value, &format!("{path}.cache"));
            self.f().caches.insert(path.clone(), *value);
        }
        let labels = results.into_iter().map(|r| match r {
            Value::Tensor(t) => t.labels,
            _ => vec![],
        });
        Ok(made[..carry]
            .iter()
            .zip(labels)
            .map(|(id, labels)| Value::Tensor(Tensor { id: *id, labels, batched: false }))
            .collect())
    }

    /// `each members(rows)`: instance e on the rows of segment e.
    pub fn each(&mut self, call: &'a ast::Call, env: &mut Env) -> Lowering<Value> {
        if env.each.is_some() {
            return self.error(call.span, "`each` does not run inside `each`");
        }
        let groups = self.stack(call, "each", env)?;
        let [inst] = groups[..] else {
            let why = format!("`each` runs one group of equal modules, found {}", groups.len());
            return self.error(call.span, why);
        };
        let args = self.positional(call, env)?;
        let Some(Value::Tensor(first)) = args.first() else {
            return self.error(call.span, "`each` takes rows that a `dispatch` made");
        };
        let Some((sym, ragged)) = self.ragged_of(&first.clone()) else {
            return self.error(call.span, "`each` takes rows that a `dispatch` made");
        };
        let count = *self.tree.get(inst).levels.last().expect("a group of a stack has a level");
        if count != ragged.experts {
            let why = format!(
                "the rows have {} segments, `{}` has {count} modules",
                ragged.experts, call.callee
            );
            return self.error(call.span, why);
        }
        debug_assert_eq!(self.dims(&first.clone())[0], Dim::sym(sym));
        let results = self.call_instance(inst, args, Some(sym), call.span)?;
        Ok(one_or_tuple(results))
    }
}
