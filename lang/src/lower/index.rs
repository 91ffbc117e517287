//! Indexing, top-k, and tokens to experts and back.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::{Dim, SymKind, product};
use weft_ir::op::Op;

use super::args::Args;
use super::value::{Ragged, Tensor, Value};
use super::{Env, Lower, Lowering};

impl<'a> Lower<'a, '_> {
    pub fn gather(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let table = self.tensor_arg(args, env)?;
        let ids = self.tensor_arg(args, env)?;
        let id = self.emit(args.span, Op::Gather, &[table.id, ids.id], Attrs::new())?;
        let mut labels = ids.labels;
        labels.extend(table.labels.last().copied());
        // Rounded behind the table's rows, not the table: its derivative stays f32.
        let rows = Tensor { id, labels, batched: false };
        Ok(Value::Tensor(self.named(rows, env.compute, args.span)?))
    }

    pub fn take(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = self.tensor_arg(args, env)?;
        let ids = self.tensor_arg(args, env)?;
        let id = self.emit(args.span, Op::Take, &[x.id, ids.id], Attrs::new())?;
        Ok(Value::Tensor(Tensor { id, ..ids }))
    }

    pub fn one_hot(&mut self, count: bool, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let ids = self.tensor_arg(args, env)?;
        let n = self.size_arg(args, "n", env)?;
        let attrs = Attrs::new().int("size", n as i64);
        let id = self.emit(args.span, Op::OneHot, &[ids.id], attrs)?;
        if !count {
            return Ok(self.value(id));
        }
        let rank = self.ty(id).rank() as i64;
        let over: Vec<i64> = (0..rank - 1).collect();
        let id = self.emit(args.span, Op::ReduceSum, &[id], Attrs::new().ints("dims", over))?;
        Ok(self.value(id))
    }

    pub fn topk(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = self.tensor_arg(args, env)?;
        let x = self.in_f32(x, args.span)?;
        let k = self.size_arg(args, "k", env)?;
        let id = self.emit(args.span, Op::Topk, &[x.id], Attrs::new().int("k", k as i64))?;
        Ok(self.value(id))
    }

    pub fn grouped_topk(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let x = self.tensor_arg(args, env)?;
        let x = self.in_f32(x, args.span)?;
        let k = self.size_arg(args, "k", env)?;
        let groups = self.size_arg(args, "groups", env)?;
        let kept = self.size_arg(args, "kept", env)?;
        let score = self.word_arg(args, "group_score", &["max", "top2"], env)?;
        let attrs = Attrs::new()
            .int("k", k as i64)
            .int("groups", groups as i64)
            .int("kept", kept as i64)
            .word("group_score", &score);
        let id = self.emit(args.span, Op::GroupedTopk, &[x.id], attrs)?;
        Ok(self.value(id))
    }

    /// Tokens to rows ordered by expert; the rows remember how to go back.
    pub fn dispatch(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let x = self.tensor_arg(args, env)?;
        let choice = self.tensor_arg(args, env)?;
        let experts = self.size_arg(args, "n", env)?;
        let (xd, cd) = (self.dims(&x), self.dims(&choice));
        let active = cd.last().and_then(|d| d.as_fixed());
        let (Some(active), Some((_, tokens))) = (active, xd.split_last()) else {
            return self.error(span, "`dispatch` takes x [.., d] and choice i32[.., active]");
        };
        if cd[..cd.len() - 1] != *tokens {
            let why = format!(
                "x has the tokens {}, choice {}",
                self.show_dims(tokens),
                self.show_dims(&cd[..cd.len() - 1])
            );
            return self.error(span, why);
        }
        let total = product(&cd);
        let Some(total) = total else { return self.error(span, "too many rows to count") };
        let sym = self.fresh_sym("R", SymKind::Ragged { segments: experts, total });
        let attrs =
            Attrs::new().int("experts", experts as i64).with("rows", Attr::Dim(Dim::sym(sym)));
        let routed = self.emit_all(span, Op::Route, &[choice.id], attrs)?;
        let (offsets, order) = (routed[0], routed[1]);
        self.b().name(offsets, "offsets");
        self.b().name(order, "order");
        let ragged = Ragged { offsets, order, tokens: tokens.to_vec(), active, experts };
        self.f().ragged.insert(sym, ragged);
        let attrs = Attrs::new().int("active", active as i64);
        let x = self.operand(x, env, span)?;
        let rows = self.emit(span, Op::Dispatch, &[x.id, order], attrs)?;
        let labels = vec![None, x.labels.last().copied().flatten()];
        Ok(Value::Tensor(Tensor { id: rows, labels, batched: false }))
    }

    /// What a `dispatch` in this function made the rows' first dim, if it is one.
    pub fn ragged_of(&mut self, t: &Tensor) -> Option<(weft_ir::dim::SymId, Ragged)> {
        let first = *self.dims(t).first()?;
        let sym = first.symbols().next().filter(|s| first == Dim::sym(*s))?;
        self.f().ragged.get(&sym).map(|r| (sym, r.clone()))
    }

    pub fn combine(&mut self, args: &mut Args<'a>, env: &mut Env) -> Lowering<Value> {
        let span = args.span;
        let rows = self.tensor_arg(args, env)?;
        let choice = self.tensor_arg(args, env)?;
        let weights = self.tensor_arg(args, env)?;
        let Some((_, ragged)) = self.ragged_of(&rows) else {
            return self.error(span, "`combine` takes rows that a `dispatch` here made");
        };
        let mut expected = ragged.tokens.clone();
        expected.push(Dim::fixed(ragged.active));
        if self.dims(&choice) != expected {
            return self.error(span, "`combine` takes the choice that the rows were made with");
        }
        let (rows, weights) = (self.operand(rows, env, span)?, self.operand(weights, env, span)?);
        let attrs =
            Attrs::new().dims("tokens", ragged.tokens.clone()).int("active", ragged.active as i64);
        let id = self.emit(span, Op::Combine, &[rows.id, ragged.order, weights.id], attrs)?;
        let mut labels = vec![None; ragged.tokens.len()];
        labels.push(rows.labels.last().copied().flatten());
        Ok(Value::Tensor(Tensor { id, labels, batched: false }))
    }
}
