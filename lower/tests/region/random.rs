//! Random regions: chains of moves, pointwise ops, folds and lookups over small shapes, some of
//! them symbolic. Ops are smooth, so that rounding cannot flip a choice.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymKind, product};
use weft_ir::module::{Module, Span, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::Type;

/// SplitMix64, the generator of the interpreter's arguments.
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

const ELEMENTS_MAX: u64 = 6000;

/// A module of one function of about `n` ops.
pub fn module(seed: u64, n: usize) -> Module {
    let mut draw = Draw(seed);
    let mut module = Module { name: "random".into(), ..Module::default() };
    module.files.push("random.model".into());
    let b = Dim::sym(module.add_sym("B", SymKind::Bounded { max: 5 }));
    let s = Dim::sym(module.add_sym("S", SymKind::Bounded { max: 9 }));
    let sizes = [b, s, Dim::fixed(1), Dim::fixed(3), Dim::fixed(8), Dim::fixed(24), Dim::fixed(17)];
    let mut builder = Builder::new("f");
    builder.at(&[Span { file: 0, line: 1, col: 1 }]);
    let mut values: Vec<ValueId> = vec![];
    for i in 0..1 + draw.below(3) {
        let dims: Vec<Dim> = (0..1 + draw.below(3)).map(|_| *draw.of(&sizes)).collect();
        values.push(builder.param(&format!("x{i}"), Type::f32(dims)));
    }
    for _ in 0..n {
        let x = *draw.of(&values);
        let made = step(&mut builder, &mut draw, &values, x, &sizes);
        let small = |v: &ValueId| {
            let n = product(&builder.dims(*v)).map_or(u64::MAX, |d| module.dim_max(d));
            n <= ELEMENTS_MAX
        };
        values.extend(made.filter(small));
    }
    let mut results = vec![];
    for _ in 0..1 + draw.below(3) {
        results.push(values[values.len() - 1 - draw.below(values.len().min(4))]);
    }
    results.dedup();
    module.add_func(builder.finish(results));
    module
}

fn step(
    b: &mut Builder,
    draw: &mut Draw,
    values: &[ValueId],
    x: ValueId,
    sizes: &[Dim],
) -> Option<ValueId> {
    let dims = b.dims(x);
    let rank = dims.len();
    let fixed: Vec<usize> = (0..rank).filter(|d| dims[*d].as_fixed().is_some()).collect();
    let dim = |d: usize| Attrs::new().int("dim", d as i64);
    let made = match draw.below(14) {
        0 | 1 => b.unary(*draw.of(&[Op::Tanh, Op::Sigmoid, Op::Neg, Op::Sin, Op::Abs]), x),
        2 | 3 => {
            let same: Vec<ValueId> =
                values.iter().copied().filter(|v| b.dims(*v) == dims).collect();
            let op = *draw.of(&[Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min]);
            b.binary(op, x, *draw.of(&same))
        }
        4 if rank < 4 => {
            let mut wide = dims.clone();
            let at = draw.below(rank + 1);
            wide.insert(at, *draw.of(sizes));
            let map: Vec<i64> = (0..=rank as i64).filter(|d| *d != at as i64).collect();
            b.emit(Op::Broadcast, &[x], Attrs::new().dims("shape", wide).ints("dims", map))
        }
        5 if rank > 1 => {
            let at = draw.below(rank - 1);
            let mut flat = dims.clone();
            flat[at] = dims[at].checked_mul(dims[at + 1])?;
            flat.remove(at + 1);
            b.reshape(x, &flat)
        }
        6 if rank > 0 && rank < 5 => {
            let at = draw.below(rank);
            let inner = Dim::fixed(*draw.of(&[2, 3, 4, 8]));
            let mut cut = dims.clone();
            cut[at] = dims[at].checked_div(inner)?;
            cut.insert(at + 1, inner);
            b.reshape(x, &cut)
        }
        7 if rank > 1 => {
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            perm.swap(draw.below(rank), draw.below(rank));
            b.emit(Op::Transpose, &[x], Attrs::new().ints("perm", perm))
        }
        8 if !fixed.is_empty() => {
            let d = *draw.of(&fixed);
            let n = dims[d].coeff() as usize;
            let start = draw.below(n);
            let len = 1 + draw.below(n - start);
            let attrs = dim(d).int("start", start as i64).int("len", len as i64);
            b.emit(Op::Slice, &[x], attrs)
        }
        9 if !fixed.is_empty() => {
            let d = *draw.of(&fixed);
            let attrs = dim(d).int("low", draw.below(3) as i64).int("high", draw.below(3) as i64);
            b.emit(Op::Pad, &[x], attrs)
        }
        10 if rank > 0 => {
            let by = draw.below(7) as i64 - 3;
            let attrs = dim(draw.below(rank)).int("by", by).float("fill", 0.5);
            b.emit(Op::Shift, &[x], attrs)
        }
        11 if !fixed.is_empty() => {
            let same: Vec<ValueId> =
                values.iter().copied().filter(|v| b.dims(*v) == dims).collect();
            let other = *draw.of(&same);
            b.emit(Op::Concat, &[x, other], dim(*draw.of(&fixed)))
        }
        12 if rank > 0 => {
            let d = draw.below(rank) as i64;
            let op = *draw.of(&[Op::ReduceSum, Op::ReduceMax]);
            let sum = b.emit(op, &[x], Attrs::new().ints("dims", [d])).ok()?;
            // Kept near one, so that products do not run away.
            b.unary(Op::Tanh, sum)
        }
        13 if rank > 0 && draw.below(2) == 0 => b.unary(Op::Softmax, x),
        13 if rank > 0 => {
            let ty = Type::i32(dims.clone());
            let attrs = dim(draw.below(rank)).with("type", Attr::Type(ty.clone()));
            let i = b.emit(Op::Iota, &[], attrs).ok()?;
            let j = b.constant(2.0, ty).ok()?;
            let c = b.binary(Op::Lt, i, j).ok()?;
            let zero = b.constant_like(0.25, x).ok()?;
            b.emit(Op::Select, &[c, x, zero], Attrs::new())
        }
        _ => return None,
    };
    made.ok()
}
