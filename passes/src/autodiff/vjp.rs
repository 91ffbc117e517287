//! The derivative of every op: from the derivatives `dy` of its results to those of its operands,
//! in one match. `None` means that none flows. Calls and repeats are in `halves.rs`.

#![deny(clippy::wildcard_enum_match_arm)]

use crate::rewrite::whole;
use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, product};
use weft_ir::module::{Def, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::rules::TypeError;
use weft_ir::ty::DType;

type One = Result<ValueId, TypeError>;
type Grads = Result<Vec<Option<ValueId>>, TypeError>;

/// What `vjp` is given, with the arithmetic it needs.
struct Cx<'a> {
    b: &'a mut Builder,
    o: &'a OpData,
    /// By operand: whether its derivative is wanted.
    want: &'a [bool],
}

/// Append the derivatives of the operands of `o`, whose results have the derivatives `dys`.
#[rustfmt::skip]
pub fn vjp(b: &mut Builder, o: &OpData, dys: &[Option<ValueId>], want: &[bool]) -> Grads {
    let c = &mut Cx { b, o, want };
    let Some(dy) = dys.iter().copied().flatten().next() else { return Ok(vec![None; want.len()]) };
    let x = |i: usize| o.operands[i];
    let y = o.results[0];
    match o.op {
        Op::Neg       => { let a = c.neg(dy)?; one(a) }
        Op::Abs       => { let s = c.b.unary(Op::Sign, x(0))?; one(c.mul(dy, s)?) }
        Op::Exp       => one(c.mul(dy, y)?),
        Op::Log       => one(c.b.binary(Op::Div, dy, x(0))?),
        Op::Sqrt      => { let h = c.scale(dy, 0.5)?; one(c.b.binary(Op::Div, h, y)?) }
        // -1/2 y³
        Op::Rsqrt     => { let y2 = c.mul(y, y)?; let y3 = c.mul(y2, y)?; let a = c.mul(dy, y3)?; one(c.scale(a, -0.5)?) }
        // y (1 - y)
        Op::Sigmoid   => { let n = c.one_minus(y)?; let d = c.mul(y, n)?; one(c.mul(dy, d)?) }
        // 1 - y²
        Op::Tanh      => { let s = c.mul(y, y)?; let n = c.one_minus(s)?; one(c.mul(dy, n)?) }
        Op::Sin       => { let d = c.b.unary(Op::Cos, x(0))?; one(c.mul(dy, d)?) }
        Op::Cos       => { let d = c.b.unary(Op::Sin, x(0))?; let a = c.mul(dy, d)?; one(c.neg(a)?) }
        // 2/√π e^(-x²)
        Op::Erf       => {
            let s = c.mul(x(0), x(0))?; let n = c.neg(s)?; let e = c.b.unary(Op::Exp, n)?;
            let d = c.scale(e, std::f64::consts::FRAC_2_SQRT_PI)?; one(c.mul(dy, d)?)
        }
        Op::Add       => Ok(vec![Some(dy), Some(dy)]),
        Op::Sub       => { let n = c.neg(dy)?; Ok(vec![Some(dy), Some(n)]) }
        Op::Mul       => { let (a, b) = (c.mul(dy, x(1))?, c.mul(dy, x(0))?); two(a, b) }
        // dy / b and -y dy / b
        Op::Div       => { let a = c.b.binary(Op::Div, dy, x(1))?; let p = c.mul(a, y)?; let n = c.neg(p)?; two(a, n) }
        Op::Max       => { let p = c.b.binary(Op::Le, x(1), x(0))?; c.branches(p, dy) }
        Op::Min       => { let p = c.b.binary(Op::Le, x(0), x(1))?; c.branches(p, dy) }
        Op::Select    => { let mut g = c.branches(x(0), dy)?; g.insert(0, None); Ok(g) }
        Op::Convert   => one(c.unconvert(dy)?),

        Op::Reshape   => one(c.reshape_like(dy, x(0))?),
        Op::Transpose => one(c.untranspose(dy)?),
        Op::Broadcast => one(c.unbroadcast(dy)?),
        Op::Slice     => one(c.unslice(dy)?),
        Op::Pad       => one(c.unpad(dy)?),
        Op::Concat    => c.parts(dy),
        Op::Shift     => { let a = c.ints(&["dim", "by"]); one(c.b.emit(Op::Shift, &[dy], dim(a[0]).int("by", -a[1]).float("fill", 0.0))?) }
        Op::ReduceSum => one(c.unreduce(dy)?),

        Op::Matmul        => c.matmul(dy),
        Op::GroupedMatmul => {
            let ty = o.attrs.get_flag("ty");
            let dy = c.as_operand(dy)?;
            let attrs = c.role("input_grad").flag("ty", !ty);
            let dx = c.b.emit(Op::GroupedMatmul, &[dy, x(1), x(2)], attrs)?;
            let dw = c.grouped_weight_grad(dy, ty)?;
            Ok(vec![Some(dx), Some(dw), None])
        }
        Op::GroupedOuter  => {
            let dy = c.as_operand(dy)?;
            let dx = c.b.emit(Op::GroupedMatmul, &[x(1), dy, x(2)], Attrs::new().flag("ty", true))?;
            let dn = c.b.emit(Op::GroupedMatmul, &[x(0), dy, x(2)], Attrs::new())?;
            Ok(vec![Some(dx), Some(dn), None])
        }

        Op::Gather     => { let rows = c.b.dims(x(0))[0]; first(c.b.emit(Op::ScatterAdd, &[dy, x(1)], Attrs::new().with("rows", Attr::Dim(rows)))?, 2) }
        Op::ScatterAdd => first(c.b.emit(Op::Gather, &[dy, x(1)], Attrs::new())?, 2),
        Op::Take       => { let n = c.last(x(0))?; first(c.b.emit(Op::Put, &[dy, x(1)], Attrs::new().int("size", n))?, 2) }
        Op::Put        => first(c.b.emit(Op::Take, &[dy, x(1)], Attrs::new())?, 2),

        // y = rows of x, weighted: their combination; the weights' derivative is the product of
        // both ends.
        Op::Dispatch   => {
            let tokens = c.lead(x(0)); let active = c.active();
            let dx = c.b.emit(Op::Combine, &c.swap_first(dy), active.clone().dims("tokens", tokens))?;
            let mut g = vec![Some(dx), None];
            if o.operands.len() == 3 { g.push(Some(c.dot(&[dy, x(1), x(0)], active)?)) }
            Ok(g)
        }
        Op::Combine    => {
            let active = c.active();
            let drows = c.b.emit(Op::Dispatch, &c.swap_first(dy), active.clone())?;
            let mut g = vec![Some(drows), None];
            if o.operands.len() == 3 { g.push(Some(c.dot(&[x(0), x(1), dy], active)?)) }
            Ok(g)
        }
        Op::CombineDot => {
            let tokens = c.lead(x(2)); let active = c.active();
            let drows = c.b.emit(Op::Dispatch, &[x(2), x(1), dy], active.clone())?;
            let ddy = c.b.emit(Op::Combine, &[x(0), x(1), dy], active.dims("tokens", tokens))?;
            Ok(vec![Some(drows), None, Some(ddy)])
        }

        Op::RmsNorm      => c.rms_norm(dys),
        // y (dy - Σ y dy)
        Op::Softmax      => {
            let p = c.mul(dy, y)?; let s = c.sum_last(p)?; let s = c.stretch_last(s, y)?;
            let d = c.b.binary(Op::Sub, dy, s)?; one(c.mul(y, d)?)
        }
        Op::Rotary       => {
            if want[2] { return c.refuse("no derivative for its frequencies") }
            let inverse = !o.attrs.get_flag("inverse");
            first(c.b.emit(Op::Rotary, &[dy, x(1), x(2)], o.attrs.clone().flag("inverse", inverse))?, 3)
        }
        Op::Attention    => c.attention(dys),
        Op::CrossEntropy => c.cross_entropy(dys),
        Op::RmsNormGrad | Op::AttentionGrad | Op::CrossEntropyGrad => c.refuse("no second derivative"),

        Op::Read | Op::Assign | Op::CacheAppend | Op::AdamW => c.refuse("no derivative flows through a state"),
        Op::Call | Op::Repeat => c.refuse("the derivative of a call is made of its callee's"),
        Op::AllReduce => one(dy),
        Op::Spread => one(c.sum_over_ranks(dy)?),
        Op::Part => one(c.between_ranks(Op::AllGather, dy)?),
        Op::AllGather => one(c.between_ranks(Op::Part, dy)?),
        Op::ReduceScatter | Op::ExchangeOffsets | Op::Exchange | Op::Send | Op::Recv
        | Op::AllReduceStart | Op::ReduceScatterStart | Op::AllGatherStart
        | Op::ExchangeStart | Op::Done => {
            c.refuse("derivatives are taken before ops are sharded")
        }
        Op::Fused => c.refuse("derivatives are taken before ops are fused"),

        Op::Quantize | Op::Encode | Op::Recode | Op::Dequantize
        | Op::Constant | Op::Iota | Op::Extent | Op::Sign | Op::Floor | Op::Eq | Op::Lt | Op::Le | Op::And | Op::Or
        | Op::Not | Op::StopGradient | Op::ReduceMax | Op::BatchSum | Op::OneHot | Op::Topk | Op::GroupedTopk
        | Op::Route => Ok(vec![None; want.len()]),
    }
}

fn one(g: ValueId) -> Grads {
    Ok(vec![Some(g)])
}

fn two(a: ValueId, b: ValueId) -> Grads {
    Ok(vec![Some(a), Some(b)])
}

/// The derivative of the first of `n` operands; the others are indices.
fn first(g: ValueId, n: usize) -> Grads {
    let mut all = vec![None; n];
    all[0] = Some(g);
    Ok(all)
}

fn dim(d: i64) -> Attrs {
    Attrs::new().int("dim", d)
}

impl Cx<'_> {
    fn refuse(&self, why: &str) -> Grads {
        Err(TypeError(why.to_string()))
    }

    fn x(&self, i: usize) -> ValueId {
        self.o.operands[i]
    }

    fn ints(&self, names: &[&str]) -> Vec<i64> {
        names.iter().map(|n| self.o.attrs.get_int(n).unwrap_or(0)).collect()
    }

    fn active(&self) -> Attrs {
        Attrs::new().int("active", self.o.attrs.get_int("active").unwrap_or(0))
    }

    /// The operands with `dy` in the place of the first.
    fn swap_first(&self, dy: ValueId) -> Vec<ValueId> {
        let mut xs = self.o.operands.clone();
        xs[0] = dy;
        xs
    }

    fn lead(&self, v: ValueId) -> Vec<Dim> {
        let mut dims = self.b.dims(v);
        dims.pop();
        dims
    }

    fn last(&self, v: ValueId) -> Result<i64, TypeError> {
        let n = self.b.ty(v).last().and_then(Dim::as_fixed);
        n.map(|n| n as i64).ok_or_else(|| TypeError("the last dim must have a fixed size".into()))
    }

    /// The sum of what the ranks along the op's axis have, in the type of `x`.
    fn sum_over_ranks(&mut self, x: ValueId) -> One {
        let dtype = self.b.ty(x).dtype;
        let wide = self.b.convert(x, DType::F32)?;
        // The rule asks the module for the axis; `spread` was typed with it.
        let (ty, spans) = (self.b.ty(wide).clone(), self.b.spans.clone());
        let attrs = self.o.attrs.clone();
        let id = self.b.func.push_op(Op::AllReduce, vec![wide], attrs, vec![ty], spans);
        let sum = self.b.func.op(id).results[0];
        self.b.convert(sum, dtype)
    }

    /// What a collective, along the op's axis and dim, makes of `dy`: it is as the operand is.
    fn between_ranks(&mut self, op: Op, dy: ValueId) -> One {
        let ty = self.b.ty(self.x(0)).as_value().with_dtype(self.b.ty(dy).dtype);
        let (spans, attrs) = (self.b.spans.clone(), self.o.attrs.clone());
        let id = self.b.func.push_op(op, vec![dy], attrs, vec![ty], spans);
        Ok(self.b.func.op(id).results[0])
    }

    fn neg(&mut self, x: ValueId) -> One {
        self.b.unary(Op::Neg, x)
    }

    fn mul(&mut self, x: ValueId, y: ValueId) -> One {
        self.b.binary(Op::Mul, x, y)
    }

    fn scale(&mut self, x: ValueId, by: f64) -> One {
        let by = self.b.constant_like(by, x)?;
        self.mul(x, by)
    }

    fn one_minus(&mut self, x: ValueId) -> One {
        let one = self.b.constant_like(1.0, x)?;
        self.b.binary(Op::Sub, one, x)
    }

    /// `dy` where `p`, else 0; and the other way round.
    fn branches(&mut self, p: ValueId, dy: ValueId) -> Grads {
        let zero = self.b.constant_like(0.0, dy)?;
        let a = self.b.emit(Op::Select, &[p, dy, zero], Attrs::new())?;
        let b = self.b.emit(Op::Select, &[p, zero, dy], Attrs::new())?;
        two(a, b)
    }

    fn reshape_like(&mut self, dy: ValueId, x: ValueId) -> One {
        let dims = self.b.dims(x);
        self.b.reshape(dy, &dims)
    }

    fn sum_last(&mut self, x: ValueId) -> One {
        let last = self.b.ty(x).rank() as i64 - 1;
        self.b.reduce_sum(x, &[last])
    }

    /// A value without the last dim of `like`, repeated along it.
    fn stretch_last(&mut self, x: ValueId, like: ValueId) -> One {
        let dims = self.b.dims(like);
        let map: Vec<i64> = (0..dims.len() as i64 - 1).collect();
        self.b.emit(Op::Broadcast, &[x], Attrs::new().dims("shape", dims).ints("dims", map))
    }

    fn untranspose(&mut self, dy: ValueId) -> One {
        let perm = self.o.attrs.get_ints("perm").unwrap_or(&[]);
        let mut inverse = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(i, p)| inverse[*p as usize] = i as i64);
        self.b.emit(Op::Transpose, &[dy], Attrs::new().ints("perm", inverse))
    }

    /// Sum over the dims that `broadcast` made or stretched.
    fn unbroadcast(&mut self, dy: ValueId) -> One {
        let from = self.b.dims(self.x(0));
        let to = self.b.dims(dy);
        let map = self.o.attrs.get_ints("dims").unwrap_or(&[]);
        let stays = |d: usize| {
            let source = map.iter().position(|m| *m as usize == d);
            source.is_some_and(|s| from[s] == to[d])
        };
        let gone: Vec<i64> = (0..to.len()).filter(|d| !stays(*d)).map(|d| d as i64).collect();
        let sum = if gone.is_empty() { dy } else { self.b.reduce_sum(dy, &gone)? };
        self.b.reshape(sum, &from)
    }

    /// In the type of what was converted. The derivative of a rounded parameter, a master weight, or
    /// of a layer of it, is not rounded in turn: if it is one contraction, its sum stays as wide as
    /// the parameter.
    fn unconvert(&mut self, dy: ValueId) -> One {
        let (x, made) = (self.x(0), self.b.func.def_op(dy));
        let to = self.b.ty(x).dtype;
        let whole = whole(&self.b.func, x);
        let of_master = matches!(self.b.func.value(whole).def, Def::Param(_)) && to == DType::F32;
        let made = made.map(|id| self.b.func.op(id).clone());
        match made.filter(|op| of_master && op.op.has(Trait::Contraction)) {
            Some(sum) => {
                let attrs = sum.attrs.with("dtype", Attr::DType(to));
                self.b.emit(sum.op, &sum.operands, attrs)
            }
            _ => self.b.convert(dy, to),
        }
    }

    /// `combine_dot`, in the type of the weights it is the derivative for.
    fn dot(&mut self, xs: &[ValueId], active: Attrs) -> One {
        let sums = self.b.emit(Op::CombineDot, xs, active)?;
        let to = self.b.ty(self.x(2)).dtype;
        self.b.convert(sums, to)
    }

    fn unslice(&mut self, dy: ValueId) -> One {
        let a = self.ints(&["dim", "start", "len"]);
        let size = self.b.dims(self.x(0))[a[0] as usize].coeff() as i64;
        let attrs = dim(a[0]).int("low", a[1]).int("high", size - a[1] - a[2]);
        self.b.emit(Op::Pad, &[dy], attrs)
    }

    fn unpad(&mut self, dy: ValueId) -> One {
        let a = self.ints(&["dim", "low"]);
        let size = self.b.dims(self.x(0))[a[0] as usize].coeff() as i64;
        self.b.emit(Op::Slice, &[dy], dim(a[0]).int("start", a[1]).int("len", size))
    }

    /// Slices of the derivative of a concatenation. A dim `n F`, F symbols, is sliced as `[n, F]`.
    fn parts(&mut self, dy: ValueId) -> Grads {
        let d = self.ints(&["dim"])[0];
        let dims = self.b.dims(dy);
        let n = Dim::fixed(dims[d as usize].coeff());
        let unit = dims[d as usize].checked_div(n).expect("a dim divides by its coefficient");
        let mut split = dims.clone();
        split.splice(d as usize..=d as usize, [n, unit]);
        let fixed = unit.is_one();
        let whole = if fixed { dy } else { self.b.reshape(dy, &split)? };
        let (mut start, mut grads) = (0, vec![]);
        for x in &self.o.operands {
            let to = self.b.dims(*x);
            let len = to[d as usize].coeff() as i64;
            let part = dim(d).int("start", start).int("len", len);
            let part = self.b.emit(Op::Slice, &[whole], part)?;
            grads.push(Some(self.b.reshape(part, &to)?));
            start += len;
        }
        Ok(grads)
    }

    fn unreduce(&mut self, dy: ValueId) -> One {
        let dims = self.b.dims(self.x(0));
        let gone = self.o.attrs.get_ints("dims").unwrap_or(&[]);
        let kept: Vec<i64> = (0..dims.len() as i64).filter(|d| !gone.contains(d)).collect();
        self.b.emit(Op::Broadcast, &[dy], Attrs::new().dims("shape", dims).ints("dims", kept))
    }

    /// The derivative of a contraction's sums, to be multiplied with its operands: of their type.
    fn as_operand(&mut self, dz: ValueId) -> One {
        let to = self.b.ty(self.x(0)).dtype;
        self.b.convert(dz, to)
    }

    /// Rows of `dy` and x, summed by segment.
    fn grouped_weight_grad(&mut self, dy: ValueId, ty: bool) -> One {
        let (x, offsets, role) = (self.x(0), self.x(2), self.role("weight_grad"));
        if ty || role == Attrs::new() {
            let (m, n) = if ty { (dy, x) } else { (x, dy) };
            return self.b.emit(Op::GroupedOuter, &[m, n, offsets], role);
        }
        // A recipe speaks of dy, then x.
        let transposed = self.b.emit(Op::GroupedOuter, &[dy, x, offsets], role)?;
        self.swap_last(transposed)
    }

    /// The attributes of a derivative of the product at hand: its site, if it has one.
    fn role(&self, role: &str) -> Attrs {
        match self.o.attrs.get_word("site") {
            Some(site) => Attrs::new().word("site", site).word("role", role),
            None => Attrs::new(),
        }
    }

    fn product(&mut self, xy: [ValueId; 2], flags: [bool; 2], role: &str) -> One {
        let attrs = Attrs::new().flag("tx", flags[0]).flag("ty", flags[1]);
        self.b.emit(Op::Matmul, &xy, attrs.and(self.role(role)))
    }

    /// For `Z = X Y`: `dX = dZ Yᵀ` and `dY = Xᵀ dZ`, each written so that no operand is transposed
    /// first. Where one Y serves every batch, its derivative contracts all rows at once.
    fn matmul(&mut self, dz: ValueId) -> Grads {
        let dz = self.as_operand(dz)?;
        let (mut x, y) = (self.x(0), self.x(1));
        let (mut tx, ty) = (self.o.attrs.get_flag("tx"), self.o.attrs.get_flag("ty"));
        let rank = self.b.ty(x).rank();
        let shared = self.b.ty(y).rank() == 2 && rank > 2;
        let mut grads = vec![None, None];
        if self.want[0] {
            grads[0] = Some(match (tx, shared) {
                (false, _) => self.product([dz, y], [false, !ty], "input_grad")?,
                (true, false) => self.product([y, dz], [ty, true], "input_grad")?,
                (true, true) => {
                    let dx = self.product([dz, y], [false, !ty], "input_grad")?;
                    self.swap_last(dx)?
                }
            });
        }
        if self.want[1] {
            let mut rows = dz;
            if shared {
                if tx {
                    x = self.swap_last(x)?;
                    tx = false;
                }
                x = self.flatten(x)?;
                rows = self.flatten(rows)?;
            }
            let has_site = self.o.attrs.get_word("site").is_some();
            grads[1] = Some(match (ty, has_site) {
                (false, false) => self.product([x, rows], [!tx, false], "weight_grad")?,
                (true, _) => self.product([rows, x], [true, tx], "weight_grad")?,
                // A recipe speaks of dy, then x.
                (false, true) => {
                    let transposed = self.product([rows, x], [true, tx], "weight_grad")?;
                    self.swap_last(transposed)?
                }
            });
        }
        Ok(grads)
    }

    fn swap_last(&mut self, x: ValueId) -> One {
        let n = self.b.ty(x).rank();
        let mut perm: Vec<i64> = (0..n as i64).collect();
        perm.swap(n - 1, n - 2);
        self.b.emit(Op::Transpose, &[x], Attrs::new().ints("perm", perm))
    }

    /// All dims but the last as one.
    fn flatten(&mut self, x: ValueId) -> One {
        let dims = self.b.dims(x);
        let (last, lead) = dims.split_last().expect("a matmul's operand has two dims");
        let rows = product(lead).ok_or_else(|| TypeError("too many rows to count".into()))?;
        self.b.reshape(x, &[rows, *last])
    }

    /// `y = g x r`: for x, `rms_norm_grad`; for g, the sum of `dy x r` over the rows; for r,
    /// `-r³ x / n`.
    fn rms_norm(&mut self, dys: &[Option<ValueId>]) -> Grads {
        let (x, g, r) = (self.x(0), self.x(1), self.o.results[1]);
        let dtype = self.b.ty(x).dtype;
        let (mut dx, mut dg) = (None, None);
        if let Some(dy) = dys[0] {
            if self.want[0] {
                dx = Some(self.b.emit(Op::RmsNormGrad, &[x, g, r, dy], Attrs::new())?);
            }
            if self.want[1] {
                let r = self.b.convert(r, dtype)?;
                let r = self.stretch_last(r, x)?;
                let n = self.mul(x, r)?;
                let p = self.mul(dy, n)?;
                let rows: Vec<i64> = (0..self.b.ty(x).rank() as i64 - 1).collect();
                dg = Some(if rows.is_empty() { p } else { self.b.reduce_sum(p, &rows)? });
            }
        }
        if let (Some(dr), true) = (dys[1], self.want[0]) {
            let n = self.last(x)? as f64;
            let r2 = self.mul(r, r)?;
            let r3 = self.mul(r2, r)?;
            let s = self.mul(dr, r3)?;
            let s = self.scale(s, -1.0 / n)?;
            let s = self.b.convert(s, dtype)?;
            let s = self.stretch_last(s, x)?;
            let by_r = self.mul(s, x)?;
            dx = Some(match dx {
                Some(dx) => self.b.binary(Op::Add, dx, by_r)?,
                None => by_r,
            });
        }
        Ok(vec![dx, dg])
    }

    fn attention(&mut self, dys: &[Option<ValueId>]) -> Grads {
        if dys[1].is_some() {
            return self.refuse("no derivative for the log of its denominator");
        }
        if self.o.attrs.get_flag("pages") {
            return self.refuse("no derivative flows into caches in pages");
        }
        let n = 2 * self.ints(&["parts"])[0] as usize + 1;
        let dy = dys[0].ok_or_else(|| TypeError("no derivative to go on with".into()))?;
        let mut xs = self.o.operands[..n].to_vec();
        xs.extend([self.o.results[0], self.o.results[1], dy]);
        xs.extend(&self.o.operands[n..]);
        let grads = self.b.emit_all(Op::AttentionGrad, &xs, self.o.attrs.clone())?;
        let masks = self.o.operands.len() - n;
        Ok(grads.into_iter().map(Some).chain(vec![None; masks]).collect())
    }

    /// For the loss, `cross_entropy_grad`; for the log of the sum, the softmax.
    fn cross_entropy(&mut self, dys: &[Option<ValueId>]) -> Grads {
        let (x, ids, lse) = (self.x(0), self.x(1), self.o.results[1]);
        let mut dx = None;
        if let Some(dloss) = dys[0] {
            dx = Some(self.b.emit(Op::CrossEntropyGrad, &[x, ids, lse, dloss], Attrs::new())?);
        }
        if let Some(dlse) = dys[1] {
            let p = self.b.unary(Op::Softmax, x)?;
            let dlse = self.b.convert(dlse, self.b.ty(x).dtype)?;
            let s = self.stretch_last(dlse, x)?;
            let by_lse = self.mul(p, s)?;
            dx = Some(match dx {
                Some(dx) => self.b.binary(Op::Add, dx, by_lse)?,
                None => by_lse,
            });
        }
        Ok(vec![dx, None])
    }
}
