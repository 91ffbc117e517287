//! Random well-typed IR: a function that may call and repeat another.
#![allow(dead_code, reason = "each test file uses its own part")]

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, Span, ValueId};
use weft_ir::op::{Arity, OPS, Op, Trait};
use weft_ir::ty::{DType, Type};

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, xs: &[T]) -> T {
        xs[self.below(xs.len())]
    }

    fn int(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low) as usize) as i64
    }
}

fn dims(sizes: &[u64]) -> Vec<Dim> {
    sizes.iter().map(|n| Dim::fixed(*n)).collect()
}

const SHAPES: &[&[u64]] = &[&[2, 3], &[3, 2], &[6], &[2, 2, 3], &[2], &[], &[1, 3], &[3]];

/// Ops that are tried: pure, of any operands the generator can make, and with attributes it can
/// draw.
pub fn candidates() -> Vec<Op> {
    let no = [
        Op::Extent,
        Op::BatchSum,
        Op::Rotary,
        Op::Attention,
        Op::AttentionGrad,
        Op::Route,
        Op::GroupedMatmul,
        Op::GroupedOuter,
        Op::CrossEntropyGrad,
        Op::RmsNormGrad,
        Op::Dispatch,
        Op::Combine,
        Op::CombineDot,
        Op::Read,
        // Codes jump where their source moves a little: `lower/tests/quantized.rs` has these.
        Op::Quantize,
        Op::Dequantize,
        Op::Encode,
        Op::Recode,
        // Their indices would have to be in range.
        Op::Gather,
        Op::Take,
        Op::ScatterAdd,
        Op::Put,
        Op::CrossEntropy,
        Op::OneHot,
    ];
    // One rank has no one to meet.
    let fits = |op: &Op| op.is_pure() && !op.has(Trait::Collective) && !no.contains(op);
    OPS.iter().map(|d| d.op).filter(fits).collect()
}

fn attrs(rng: &mut Rng, op: Op, b: &Builder, xs: &[ValueId]) -> Attrs {
    let rank = xs.first().map_or(2, |x| b.ty(*x).rank());
    let dim = rng.int(0, rank.max(1) as i64);
    let mut all = Attrs::new();
    for spec in op.def().attrs {
        let value = match (op, spec.name) {
            // Of products of codes.
            (_, "promote" | "accumulate" | "x_group" | "y_group" | "site" | "role") => continue,
            (_, "value") => Attr::Float(rng.of(&[0.0, 1.0, -1.0, 2.0, 0.5, 3.0])),
            (_, "type") => Attr::Type(Type::new(
                rng.of(&[DType::F32, DType::F32, DType::I32]),
                dims(SHAPES[rng.below(5)]),
            )),
            (_, "dtype") => Attr::DType(rng.of(&[DType::F32, DType::I32, DType::F32])),
            (_, "eps") => Attr::Float(0.01),
            (_, "fill") => Attr::Float(rng.of(&[0.0, 1.0])),
            (_, "dim") => Attr::Int(dim),
            (_, "by") => Attr::Int(rng.int(-1, 2)),
            (Op::Slice, "len") => Attr::Int(rng.int(1, 4)),
            (_, "shape") => Attr::Dims(dims(rng.of(SHAPES))),
            (_, "perm") => {
                let mut perm: Vec<i64> = (0..rank as i64).collect();
                for i in (1..rank).rev() {
                    perm.swap(i, rng.below(i + 1));
                }
                Attr::Ints(perm)
            }
            (Op::Broadcast, "dims") => {
                let all: Vec<i64> = (0..3).filter(|_| rng.below(2) == 0).collect();
                Attr::Ints(all)
            }
            (_, "dims") => Attr::Ints((0..rank as i64).filter(|_| rng.below(2) == 0).collect()),
            (_, "tx" | "ty") => Attr::Bool(rng.below(2) == 0),
            (_, "k" | "kept") => Attr::Int(1),
            (_, "group_score") => Attr::Word("max".into()),
            _ => Attr::Int(rng.int(0, 2)),
        };
        all = all.with(spec.name, value);
    }
    all
}

/// A function over `params` with about `n` ops; its results are all values no op reads, and the
/// last of type `first`.
fn function(
    rng: &mut Rng,
    m: &Module,
    name: &str,
    params: &[Type],
    n: usize,
    first: Option<&Type>,
) -> Func {
    let mut b = Builder::new(name);
    let mut values: Vec<ValueId> = params.iter().map(|ty| b.param("x", ty.clone())).collect();
    let ops = candidates();
    for i in 0..n {
        b.at(&[Span { file: 0, line: i as u32 + 1, col: 1 }]);
        for _ in 0..40 {
            if rng.below(12) == 0 && call(rng, m, &mut b, &mut values) {
                break;
            }
            let op = rng.of(&ops);
            let n_xs = match op.def().arity() {
                Arity::Exactly(n) => n,
                Arity::AtLeast(n) => n + rng.below(2),
            };
            let xs: Vec<ValueId> = (0..n_xs).map(|_| recent(rng, &values)).collect();
            // A softmax has a last dim, and integers have no quotient by zero.
            let ty = xs.first().map(|x| b.ty(*x));
            let no_value = ty.is_some_and(|ty| match op {
                Op::Softmax => ty.rank() == 0,
                Op::Div => ty.dtype.is_int(),
                _ => false,
            });
            if no_value {
                continue;
            }
            let attrs = attrs(rng, op, &b, &xs);
            if let Ok(results) = b.emit_all(op, &xs, attrs) {
                values.extend(results);
                break;
            }
        }
    }
    let mut results = vec![];
    if let Some(ty) = first {
        results.extend(values.iter().rev().find(|v| b.ty(**v) == ty));
    }
    let mut read = vec![false; b.func.n_values()];
    b.func.body_ops().flat_map(|(_, op)| &op.operands).for_each(|v| read[v.0 as usize] = true);
    let unread = |v: &&ValueId| !read[v.0 as usize] && b.func.def_op(**v).is_some();
    results.extend(values.iter().filter(unread).take(4));
    if results.is_empty() {
        results.push(values[0]);
    }
    b.finish(results)
}

/// New values more often than old ones.
fn recent(rng: &mut Rng, values: &[ValueId]) -> ValueId {
    let back = rng.below(values.len()).min(rng.below(values.len()));
    values[values.len() - 1 - back]
}

/// A call or a repeat of the module's first function, if operands of its types are there.
fn call(rng: &mut Rng, m: &Module, b: &mut Builder, values: &mut Vec<ValueId>) -> bool {
    let Some(f) = m.funcs.first() else { return false };
    let count = rng.int(1, 4) as u64;
    let repeated = rng.below(2) == 0;
    let mut xs = vec![];
    for (i, p) in f.params.iter().enumerate() {
        let mut ty = f.ty(*p).clone();
        let found = values.iter().rev().find(|v| *b.ty(**v) == ty).copied();
        let Some(mut x) = found else { return false };
        if repeated && i == 1 {
            ty.dims.insert(0, Dim::fixed(count));
            x = b.broadcast_to(x, &ty.dims).expect("a dim is added");
        }
        xs.push(x);
    }
    let attrs = Attrs::new().func("func", FuncId(0));
    let (op, attrs) = match repeated {
        true => (
            Op::Repeat,
            attrs
                .int("count", count as i64)
                .int("carry", 1)
                .int("xs", 1)
                .flag("reverse", rng.below(2) == 0),
        ),
        false => (Op::Call, attrs),
    };
    values.extend(b.emit_calling(m, op, &xs, attrs).expect("operands are of its types"));
    true
}

/// `@layer(carry, slice, shared)` and `@f`, which may call and repeat it.
pub fn generate(seed: u64, n_ops: usize) -> Module {
    let mut m = Module { name: "random".into(), ..Module::default() };
    m.files.push("random.model".into());
    let mut rng = Rng(seed);
    let carry = Type::f32(dims(&[2, 3]));
    let params = [carry.clone(), Type::f32(dims(&[3])), Type::f32(dims(&[3, 2]))];
    let layer = function(&mut rng, &m, "layer", &params, 4, Some(&carry));
    m.add_func(layer);
    let params: Vec<Type> =
        [&[2, 3][..], &[3], &[3, 2], &[6], &[]].iter().map(|s| Type::f32(dims(s))).collect();
    let params = [params, vec![Type::i32(dims(&[2, 3]))]].concat();
    let f = function(&mut rng, &m, "f", &params, n_ops, None);
    m.add_func(f);
    m
}

/// Checks modules of many seeds; a failure is shown with as few ops as still fail. `WEFT_SEED=n` is
/// one seed, `WEFT_SEEDS=n` so many instead of `count`.
pub fn for_seeds(count: u64, check: fn(&Module) -> Result<(), String>) {
    let set = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = match set("WEFT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..set("WEFT_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let n_ops = 5 + (seed % 25) as usize;
        if check(&generate(seed, n_ops)).is_ok() {
            continue;
        }
        let least = (0..=n_ops).find_map(|n| {
            let m = generate(seed, n);
            check(&m).err().map(|e| (m, e))
        });
        let (m, e) = least.expect("n_ops itself fails");
        panic!("WEFT_SEED={seed}: {e}\n{}", weft_ir::text::print(&m));
    }
}
