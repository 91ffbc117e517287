//! Make codes and scales values of their own.
//!
//! ```text
//! %1 = quantize %x {dtype = e4m3, group = [1, 128], scale = f32} : e4m3<1x128, f32>[B, 256]
//! %y = matmul %1, %2 {dtype = bf16, promote = 128}
//! =>
//! %c, %s = encode %x {dtype = e4m3, group = [1, 128], scale = f32} : e4m3[B, 256], f32[B, 2]
//! %y = matmul %c, %d, %s, %t {dtype = bf16, promote = 128, x_group = [1, 128], ..}
//! ```
//!
//! Why: from here on a quantized value is two ordinary ones, so that regions compute them where
//! their source is made, and loops, calls and buffers need to know nothing of groups. Ragged dims
//! whose total is a number become that number, since groups of rows count from the first. No
//! machine multiplies codes of 12 bits: a product's are widened to bf16, which holds each of them.
//! Codes of what was codes, in other groups, are made of those (`recode`): rows with scales of
//! their own become columns with theirs without lying in memory as values.
//! Cost: one walk. Requires: `quantize` has run.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymId, SymKind};
use weft_ir::module::{Func, Module, OpData, Part, Store, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::rules::grid;
use weft_ir::ty::{DType, Quant, Type};

use crate::rewrite::{callee, carry, stacked};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "split_quantized", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let has = |f: &Func| (0..f.n_values() as u32).any(|v| f.ty(ValueId(v)).quant.is_some());
    if !module.funcs.iter().any(has) {
        return Ok(Stats::default());
    }
    count_rows(module);
    let mut split = 0;
    for i in 0..module.funcs.len() {
        let func = Splitter::new(module, &module.funcs[i]).run(&mut split)?;
        module.funcs[i] = func;
    }
    split_stores(module)?;
    Ok(Stats::one("values split", split))
}

/// Replace ragged symbols whose total is a number.
fn count_rows(module: &mut Module) {
    let totals: Vec<(SymId, Dim)> = (0..module.syms.len() as u32)
        .map(SymId)
        .filter_map(|id| match module.sym(id).kind {
            SymKind::Ragged { total, .. } if total.as_fixed().is_some() => Some((id, total)),
            _ => None,
        })
        .collect();
    let total = |sym: SymId| totals.iter().find(|(s, _)| *s == sym).map(|(_, total)| *total);
    let counted =
        |dim: Dim| dim.substitute(&|s| Some(total(s).unwrap_or(Dim::sym(s)))).unwrap_or(dim);
    for func in &mut module.funcs {
        func.map_dims(&counted);
    }
}

/// A store of a quantized type becomes one of its codes and, behind it, one of its scales.
fn split_stores(module: &mut Module) -> Result<(), PassError> {
    for (name, store) in std::mem::take(&mut module.stores) {
        let Some(quant) = store.ty.quant.clone() else {
            module.stores.insert(name, store);
            continue;
        };
        let of = |part, ty| Store { ty, part: Some((part, store.ty.clone())), ..store.clone() };
        let scales = of(Part::Scales, stored_scales(&store.ty, &quant)?);
        let codes = of(Part::Codes, plain(&store.ty));
        module.stores.insert(name.clone(), codes);
        module.stores.insert(format!("{name}.scales"), scales);
    }
    Ok(())
}

/// Codes, and the scales of a value that was quantized.
type Parts = (ValueId, Option<ValueId>);

struct Splitter<'a> {
    module: &'a Module,
    from: &'a Func,
    to: Builder,
    parts: Vec<Option<Parts>>,
}

impl<'a> Splitter<'a> {
    fn new(module: &'a Module, from: &'a Func) -> Splitter<'a> {
        let to = Builder::new(&from.name);
        Splitter { module, from, to, parts: vec![None; from.n_values()] }
    }

    fn run(mut self, split: &mut usize) -> Result<Func, PassError> {
        let mut donated_from = vec![];
        for p in &self.from.params {
            let (ty, name) = (self.from.ty(*p).clone(), self.from.value(*p).name.clone());
            let name = name.unwrap_or_else(|| "p".into());
            donated_from.push(self.to.func.params.len() as u32);
            let parts = match &ty.quant {
                None => (self.to.param(&name, ty), None),
                Some(quant) => {
                    *split += 1;
                    let scales = stored_scales(&ty, quant)?;
                    let codes = self.to.param(&name, plain(&ty));
                    (codes, Some(self.to.param(&format!("{name}.scales"), scales)))
                }
            };
            self.parts[p.0 as usize] = Some(parts);
        }
        for (_, op) in self.from.body_ops() {
            self.to.at(&op.spans);
            self.op(op, split).map_err(|e| e.at(self.from, op))?;
        }
        let (mut results, mut names, mut donated_to) = (vec![], vec![], vec![]);
        for (i, r) in self.from.results.iter().enumerate() {
            donated_to.push(results.len() as u32);
            let (codes, scales) = self.get(*r);
            let name = self.from.result_names.get(i);
            names.extend(name.cloned());
            results.push(codes);
            if let Some(scales) = scales {
                names.extend(name.map(|n| format!("{n}.scales")));
                results.push(scales);
            }
        }
        let (donated, from) = (self.from.donated.clone(), self.from);
        let mut func = self.to.finish(results);
        func.result_names = if from.result_names.is_empty() { vec![] } else { names };
        func.donated = donated
            .iter()
            .map(|(p, r)| (donated_from[*p as usize], donated_to[*r as usize]))
            .collect();
        Ok(func)
    }

    fn get(&self, v: ValueId) -> Parts {
        self.parts[v.0 as usize].expect("values are split in order")
    }

    fn set(&mut self, from: ValueId, parts: Parts) {
        if let (Some(name), None) = (&self.from.value(from).name, &self.to.func.value(parts.0).name)
        {
            self.to.name(parts.0, name);
        }
        self.parts[from.0 as usize] = Some(parts);
    }

    fn op(&mut self, op: &OpData, split: &mut usize) -> Result<(), PassError> {
        match op.op {
            Op::Quantize => {
                *split += 1;
                let parts = match self.recoded(op) {
                    Some((xs, attrs)) => self.to.emit_all(Op::Recode, &xs, attrs)?,
                    None => {
                        let (x, _) = self.get(op.operands[0]);
                        self.to.emit_all(Op::Encode, &[x], op.attrs.clone())?
                    }
                };
                let [codes, scales] = parts[..] else {
                    return Err(PassError::new("it makes codes and scales"));
                };
                self.set(op.results[0], (codes, Some(scales)));
            }
            Op::Dequantize => {
                let ty = self.from.ty(op.operands[0]).clone();
                let (codes, scales) = self.get(op.operands[0]);
                let (Some(scales), Some(quant)) = (scales, &ty.quant) else {
                    return Err(PassError::new("its operand is plain"));
                };
                let to = self.from.ty(op.results[0]).dtype;
                let value = dequantize(&mut self.to, codes, scales, quant, to)?;
                self.set(op.results[0], (value, None));
            }
            Op::Exchange | Op::Dispatch if self.from.ty(op.operands[0]).quant.is_some() => {
                self.rows(op)?;
            }
            _ if op.op.has(Trait::Contraction) => self.contraction(op)?,
            _ if callee(op).is_some() => self.calling(op)?,
            _ => {
                let operands = op.operands.iter().map(|x| self.get(*x).0).collect();
                let types = op.results.iter().map(|r| self.from.ty(*r).clone()).collect();
                let id = self.to.func.push_op(
                    op.op,
                    operands,
                    op.attrs.clone(),
                    types,
                    op.spans.clone(),
                );
                let made = self.to.func.op(id).results.clone();
                for (r, value) in op.results.iter().zip(made) {
                    self.set(*r, (value, None));
                }
            }
        }
        Ok(())
    }

    /// Other groups of what is codes already: those, with their scales, in place of the value.
    /// Groups within rows are encoded where rows are made, and stay as they are.
    fn recoded(&mut self, op: &OpData) -> Option<([ValueId; 2], Attrs)> {
        let along_rows = matches!(op.attrs.get_ints("group"), Some([rows, _]) if *rows > 1);
        let to = self.from.ty(op.operands[0]);
        let decoded = self.from.past_reshapes(op.operands[0]);
        let decoded = self.from.op(self.from.def_op(decoded)?);
        let codes = *decoded.operands.first()?;
        let ty = self.from.ty(codes);
        let quant = ty.quant.as_ref().filter(|_| decoded.op == Op::Dequantize && along_rows)?;
        let bytes = matches!(ty.dtype, DType::E4m3 | DType::E5m2);
        let whole_rows = ty.dims == to.dims || quant.group[0] == 1 && ty.last() == to.last();
        let (codes, Some(scales)) = self.get(codes) else { return None };
        if !bytes || !whole_rows {
            return None;
        }
        let codes = self.to.reshape(codes, &to.dims).ok()?;
        let scales = self.to.reshape(scales, &grid(&to.dims, quant.group.map(u64::from))?).ok()?;
        let attrs = op.attrs.clone().ints("x_group", quant.group.map(i64::from));
        Some(([codes, scales], attrs.with("through", Attr::DType(to.dtype))))
    }

    fn contraction(&mut self, op: &OpData) -> Result<(), PassError> {
        let all: Vec<Parts> = op.operands.iter().map(|x| self.get(*x)).collect();
        let mut operands: Vec<ValueId> = all.iter().map(|p| p.0).collect();
        let mut attrs = op.attrs.clone();
        for (i, name) in ["x_group", "y_group"].into_iter().enumerate() {
            let quant = &self.from.ty(op.operands[i]).quant;
            if let (Some(scales), Some(quant)) = (all[i].1, quant) {
                if self.to.ty(operands[i]).dtype == DType::E5m6 {
                    operands[i] = self.to.convert(operands[i], DType::Bf16)?;
                }
                operands.push(scales);
                attrs = attrs.ints(name, quant.group.map(i64::from));
            }
        }
        let value = self.to.emit(op.op, &operands, attrs)?;
        self.set(op.results[0], (value, None));
        Ok(())
    }

    /// Codes and scales of rows travel one after the other.
    fn rows(&mut self, op: &OpData) -> Result<(), PassError> {
        let (codes, scales) = self.get(op.operands[0]);
        let others: Vec<ValueId> = op.operands[1..].iter().map(|x| self.get(*x).0).collect();
        let mut sent = vec![];
        for x in std::iter::once(codes).chain(scales) {
            let xs = [&[x][..], &others].concat();
            let made = self.to.emit_calling(self.module, op.op, &xs, op.attrs.clone())?;
            sent.extend(made);
        }
        self.set(op.results[0], (sent[0], sent.get(1).copied()));
        Ok(())
    }

    /// A call or a repeat: each quantized operand and result becomes two, side by side.
    fn calling(&mut self, op: &OpData) -> Result<(), PassError> {
        let (first, last) = (carry(op), carry(op) + stacked(op));
        let (mut operands, mut counts) = (vec![], [0usize; 2]);
        for (i, x) in op.operands.iter().enumerate() {
            let (codes, scales) = self.get(*x);
            let before = operands.len();
            operands.push(codes);
            operands.extend(scales);
            let more = operands.len() - before;
            counts[0] += if i < first { more } else { 0 };
            counts[1] += if (first..last).contains(&i) { more } else { 0 };
        }
        let mut attrs = op.attrs.clone();
        if op.op == Op::Repeat {
            attrs = attrs.int("carry", counts[0] as i64).int("xs", counts[1] as i64);
        }
        let mut made = self.to.emit_calling(self.module, op.op, &operands, attrs)?.into_iter();
        for r in &op.results {
            let codes = made.next().ok_or_else(|| PassError::new("it has fewer results"))?;
            let scales = self.from.ty(*r).quant.is_some().then(|| made.next()).flatten();
            self.set(*r, (codes, scales));
        }
        Ok(())
    }
}

fn plain(ty: &Type) -> Type {
    Type { quant: None, ..ty.clone() }
}

/// The same for what lasts, of which ranks may have parts: whole groups of them.
fn stored_scales(ty: &Type, quant: &Quant) -> Result<Type, PassError> {
    Ok(Type { axes: ty.axes.clone(), ..scales_type(ty, quant)? })
}

fn scales_type(ty: &Type, quant: &Quant) -> Result<Type, PassError> {
    let dims = grid(&ty.dims, quant.group.map(u64::from));
    let dims = dims.ok_or_else(|| PassError::new("a dim that groups cut has no fixed size"))?;
    Ok(Type::new(quant.scale, dims))
}

/// How the two last dims are cut: whole groups, the rest of the last one zeros.
struct Cut {
    /// Elements added to each dim.
    added: [i64; 2],
    /// `[.., groups, side, groups, side]` of the padded value.
    blocks: Vec<Dim>,
    /// The padded value.
    padded: Vec<Dim>,
    /// Places in `blocks` of all but the sides.
    others: Vec<i64>,
}

fn cut(dims: &[Dim], quant: &Quant) -> Result<Cut, PassError> {
    let lead = dims.len() - 2;
    let (mut added, mut blocks, mut padded) =
        ([0; 2], dims[..lead].to_vec(), dims[..lead].to_vec());
    for (i, (dim, side)) in dims[lead..].iter().zip(quant.group).enumerate() {
        if side == 1 {
            blocks.extend([*dim, Dim::fixed(1)]);
            padded.push(*dim);
            continue;
        }
        let Some(n) = dim.as_fixed() else {
            return Err(PassError::new("a dim that groups cut has no fixed size"));
        };
        // One group that is not full is a smaller one.
        let side = u64::from(side).min(n);
        let groups = n.div_ceil(side);
        added[i] = (groups * side - n) as i64;
        blocks.extend([Dim::fixed(groups), Dim::fixed(side)]);
        padded.push(Dim::fixed(groups * side));
    }
    let at = lead as i64;
    let others = (0..at).chain([at, at + 2]).collect();
    Ok(Cut { added, blocks, padded, others })
}

/// A scale for each group, repeated for each of its elements; `dims` are those of the value.
fn spread(b: &mut Builder, scales: ValueId, dims: &[Dim], cut: &Cut) -> Result<ValueId, PassError> {
    let scales = b.convert(scales, DType::F32)?;
    let attrs = Attrs::new().dims("shape", cut.blocks.clone()).ints("dims", cut.others.clone());
    let blocks = b.emit(Op::Broadcast, &[scales], attrs)?;
    let mut all = b.reshape(blocks, &cut.padded)?;
    let lead = dims.len() as i64 - 2;
    for (i, _) in cut.added.into_iter().enumerate().filter(|(_, n)| *n > 0) {
        let len = dims[lead as usize + i].as_fixed().unwrap_or(1) as i64;
        let attrs = Attrs::new().int("dim", lead + i as i64).int("start", 0).int("len", len);
        all = b.emit(Op::Slice, &[all], attrs)?;
    }
    Ok(all)
}

fn dequantize(
    b: &mut Builder,
    codes: ValueId,
    scales: ValueId,
    quant: &Quant,
    to: DType,
) -> Result<ValueId, PassError> {
    let dims = b.dims(codes);
    let cut = cut(&dims, quant)?;
    let each = spread(b, scales, &dims, &cut)?;
    let codes = b.convert(codes, DType::F32)?;
    let value = b.binary(Op::Mul, codes, each)?;
    Ok(b.convert(value, to)?)
}
