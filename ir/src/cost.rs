//! What an op or a function costs: operations and bytes, counted from types and sizes alone.
//! Whoever compares, plans or explains asks here; a device's description turns the counts into
//! time.
//!
//! A multiply-add is two operations. Bytes are those of an op that runs by itself: all it reads and
//! all it writes.
//!
//! # Published counts
//! Papers count a model's matmuls and attention alone, causal attention at half of `S T` pairs, and
//! a backward pass as two forward passes. [`Cost::model_flops`] and [`Cost::training_flops`] follow
//! them: DeepSeek-V3 at sequence 4096 trains at `6 * 36,624,596,992 + 3 * 61 * 2 * 128 * (192 +
//! 128) * 4096 / 2` = 250.4 GFLOP a token. [`Cost::flops`] counts what is executed.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Mul};

use crate::dim::{Dim, SymId, product};
use crate::module::{Func, FuncId, Module, OpData, ValueId};
use crate::op::{CostRule, Op};
use crate::ty::Type;

/// Counts; `u128` because a training step of a large model passes 2^64 operations.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cost {
    /// Everything executed, the parts below included.
    pub flops: u128,
    /// Of dense and grouped matmuls.
    pub matmul_flops: u128,
    /// Of attention's scores and sums, without what its derivative computes again.
    pub attention_flops: u128,
    pub bytes_read: u128,
    pub bytes_written: u128,
    /// What a rank sends to others: `(n - 1) / n` of the whole for each gathering or scattering
    /// among `n`, and a sum that all get is both.
    pub link_bytes: u128,
}

/// The module with as many rows behind an `exchange` as before it, to be counted, not to be run: a
/// program has room there for more rows than it sends, for those of all places where no capacity
/// bounds it, and has as many as it sends if experts are evenly loaded.
pub fn evenly(module: &Module) -> Module {
    let mut rows: BTreeMap<Dim, Dim> = BTreeMap::new();
    for f in &module.funcs {
        let exchanges = |op: &OpData| matches!(op.op, Op::Exchange | Op::ExchangeStart);
        for (_, op) in f.body_ops().filter(|(_, op)| exchanges(op)) {
            let [sent, got] = [op.operands[0], op.results[0]].map(|v| f.ty(v).dims[0]);
            let (few, most) = if op.attrs.get_flag("back") { (got, sent) } else { (sent, got) };
            // Rows that are data may stand as symbols; their totals say how many there are at most.
            let total = |dim| module.eval_dim(dim, &|_| None);
            if most != few && total(most) > total(few) {
                rows.insert(most, few);
            }
        }
    }
    let mut even = module.clone();
    for f in even.funcs.iter_mut().filter(|_| !rows.is_empty()) {
        for v in (0..f.n_values() as u32).map(ValueId) {
            if let Some(first) = f.value_mut(v).ty.dims.first_mut() {
                *first = rows.get(first).copied().unwrap_or(*first);
            }
        }
    }
    even
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CostError(pub String);

/// The size of each bounded symbol.
pub type SizeOf<'a> = &'a dyn Fn(SymId) -> Option<u64>;

impl Cost {
    /// Matmuls and attention, as papers count them.
    pub fn model_flops(self) -> u128 {
        self.matmul_flops + self.attention_flops
    }

    /// Of a training step whose forward pass this is: the backward pass does twice as much.
    pub fn training_flops(self) -> u128 {
        3 * self.model_flops()
    }

    pub fn bytes(self) -> u128 {
        self.bytes_read + self.bytes_written
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            matmul_flops: self.matmul_flops + other.matmul_flops,
            attention_flops: self.attention_flops + other.attention_flops,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
            link_bytes: self.link_bytes + other.link_bytes,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

impl Mul<u128> for Cost {
    type Output = Cost;

    fn mul(self, n: u128) -> Cost {
        Cost {
            flops: self.flops * n,
            matmul_flops: self.matmul_flops * n,
            attention_flops: self.attention_flops * n,
            bytes_read: self.bytes_read * n,
            bytes_written: self.bytes_written * n,
            link_bytes: self.link_bytes * n,
        }
    }
}

/// One run of `func`, with all it calls.
pub fn of_func(module: &Module, func: FuncId, sizes: SizeOf) -> Result<Cost, CostError> {
    let f = module.funcs.get(func.0 as usize).ok_or(CostError("no such function".into()))?;
    let mut total = Cost::default();
    for (_, op) in f.body_ops() {
        total += of_op(module, f, op, sizes)?;
    }
    Ok(total)
}

/// One run of an op of `f`.
pub fn of_op(module: &Module, f: &Func, op: &OpData, sizes: SizeOf) -> Result<Cost, CostError> {
    let of = Sizes { module, sizes };
    let operands: Vec<Type> = op.operands.iter().map(|v| f.ty(*v).clone()).collect();
    let operands = without_pages(op, operands)?;
    let operands: Vec<&Type> = operands.iter().collect();
    let results: Vec<&Type> = op.results.iter().map(|v| f.ty(*v)).collect();
    let mut cost = match op.op.def().cost {
        CostRule::Free => Cost::default(),
        CostRule::PerElement(n) => work(n as u128 * of.elements(results[0])?),
        CostRule::PerInput(n) => work(n as u128 * of.elements(operands[0])?),
        CostRule::Matmul => {
            matmul_work(2 * of.elements(results[0])? * of.contracted(op, operands[0])?)
        }
        // Rows times K times N, whichever of the three the result lacks.
        CostRule::GroupedMatmul => {
            matmul_work(2 * of.elements(operands[0])? * of.last(results[0])?)
        }
        CostRule::Attention | CostRule::AttentionGrad => attention(&of, op, &operands)?,
        CostRule::Collective => collective(&of, op, operands[0], results[0])?,
        CostRule::Message => {
            let link_bytes = operands.first().map_or(Ok(0), |x| of.bytes(x))?;
            Cost { link_bytes, ..Cost::default() }
        }
        CostRule::Callee => return callee(module, op, sizes),
    };
    (cost.bytes_read, cost.bytes_written) = traffic(&of, op.op, &operands, &results)?;
    Ok(cost)
}

/// Attention reads the pages of its requests, whatever else is in the pool: keys and values as
/// without pages.
fn without_pages(op: &OpData, mut operands: Vec<Type>) -> Result<Vec<Type>, CostError> {
    if !op.attrs.get_flag("pages") {
        return Ok(operands);
    }
    let n = op.attrs.get_int("parts").unwrap_or(0).max(0) as usize;
    let pages = operands[operands.len() - 1].dims.clone();
    for pool in &mut operands[n..2 * n + 1] {
        let positions = product(&[pages[1], pool.dims[1]]);
        pool.dims[0] = pages[0];
        pool.dims[1] = positions.ok_or(CostError("too many positions to count".into()))?;
    }
    Ok(operands)
}

fn work(flops: u128) -> Cost {
    Cost { flops, ..Cost::default() }
}

fn matmul_work(flops: u128) -> Cost {
    Cost { flops, matmul_flops: flops, ..Cost::default() }
}

fn callee(module: &Module, op: &OpData, sizes: SizeOf) -> Result<Cost, CostError> {
    let func = op.attrs.get_func("func").ok_or(CostError("a call without a function".into()))?;
    let count = op.attrs.get_int("count").map_or(1, |n| n.max(0) as u128);
    Ok(of_func(module, func, sizes)? * count)
}

/// Among `n` ranks the whole is the larger side; a rank adds up its n-th of it.
fn collective(of: &Sizes, op: &OpData, x: &Type, y: &Type) -> Result<Cost, CostError> {
    let axis = op.attrs.get_axis("axis").and_then(|a| of.module.axes.get(a.0 as usize));
    let n = axis.ok_or(CostError("a collective without a mesh axis".into()))?.size as u128;
    let kind = op.op.started().unwrap_or(op.op);
    let (whole, sum) = match kind {
        Op::AllGather => (of.bytes(y)?, 0),
        // Of the room for all rows a rank needs its own on average.
        Op::Exchange => (of.bytes(x)?.min(of.bytes(y)?), 0),
        Op::ExchangeOffsets => (of.bytes(x)?, 0),
        _ => (of.bytes(x)?, of.elements(x)? * (n - 1) / n),
    };
    let times = if kind == Op::AllReduce { 2 } else { 1 };
    Ok(Cost { flops: sum, link_bytes: times * whole * (n - 1) / n, ..Cost::default() })
}

/// Operations of `B H` heads over the pairs that see each other, for score widths D and value width
/// Dv: the forward pass makes the products of widths `ΣD + Dv`; the derivative makes `2 ΣD + 2 Dv`
/// and the scores again.
fn attention(of: &Sizes, op: &OpData, operands: &[&Type]) -> Result<Cost, CostError> {
    let parts = op.attrs.get_int("parts").unwrap_or(0).max(0) as usize;
    let (q, v) = (operands[0], operands[2 * parts]);
    let (b, s, h) = (of.dim(q.dims[0])?, of.dim(q.dims[1])?, of.dim(q.dims[2])?);
    let (t, dv) = (of.dim(v.dims[1])?, of.dim(v.dims[3])?);
    let widths = operands[..parts].iter().map(|q| of.dim(q.dims[3]));
    let d: u128 = widths.sum::<Result<u128, _>>()?;
    let twice_pairs = b * h * twice_pairs(s, t, op);
    let forward = twice_pairs * (d + dv);
    Ok(match op.op.def().cost {
        CostRule::AttentionGrad => Cost {
            flops: 2 * forward + twice_pairs * d,
            attention_flops: 2 * forward,
            ..Cost::default()
        },
        _ => Cost { flops: forward, attention_flops: forward, ..Cost::default() },
    })
}

/// Twice the pairs of a query and a key that see each other. Causal: half of `S T` where `S = T`;
/// with an offset the queries are the last `S` of the `T` positions.
fn twice_pairs(s: u128, t: u128, op: &OpData) -> u128 {
    let square = s.min(t) * s.min(t);
    if !op.attrs.get_flag("causal") {
        2 * s * t
    } else if s > t || op.attrs.get_flag("offset") {
        2 * s * t - square
    } else {
        square
    }
}

/// Bytes read and written. An op that only renames moves none; one that picks rows reads those it
/// returns; a cache is changed in place.
fn traffic(
    of: &Sizes,
    op: Op,
    operands: &[&Type],
    results: &[&Type],
) -> Result<(u128, u128), CostError> {
    let read = of.bytes_of_all(operands)?;
    let written = of.bytes_of_all(results)?;
    Ok(match op {
        Op::Reshape | Op::StopGradient | Op::BatchSum | Op::Read | Op::Done => (0, 0),
        Op::Slice => (written, written),
        Op::Gather | Op::Take => (written + of.bytes(operands[1])?, written),
        Op::CacheAppend => (of.bytes_of_all(&operands[1..])?, of.bytes(operands[1])?),
        Op::Assign => (of.bytes(operands[1])?, written),
        _ => (read, written),
    })
}

/// Types with numbers for their symbols.
struct Sizes<'a> {
    module: &'a Module,
    sizes: SizeOf<'a>,
}

impl Sizes<'_> {
    fn dim(&self, dim: Dim) -> Result<u128, CostError> {
        let n = self.module.eval_dim(dim, self.sizes);
        n.map(u128::from).ok_or(CostError(format!("the dim {dim:?} has no size")))
    }

    fn elements(&self, ty: &Type) -> Result<u128, CostError> {
        self.dim(product(&ty.dims).ok_or(CostError("too many elements to count".into()))?)
    }

    fn last(&self, ty: &Type) -> Result<u128, CostError> {
        self.dim(ty.last().ok_or(CostError("needs at least one dim".into()))?)
    }

    /// The dim a matmul sums over.
    fn contracted(&self, op: &OpData, x: &Type) -> Result<u128, CostError> {
        let from_end = if op.attrs.get_flag("tx") { 2 } else { 1 };
        self.dim(x.dims[x.rank() - from_end])
    }

    /// Storage, scales included.
    fn bytes(&self, ty: &Type) -> Result<u128, CostError> {
        let data = (self.elements(ty)? * ty.dtype.bits() as u128).div_ceil(8);
        let Some(quant) = &ty.quant else { return Ok(data) };
        let mut scales = 1;
        for (i, dim) in ty.dims.iter().rev().enumerate() {
            let group = quant.group.iter().rev().nth(i).map_or(1, |g| (*g).max(1) as u128);
            scales *= self.dim(*dim)?.div_ceil(group);
        }
        Ok(data + (scales * quant.scale.bits() as u128).div_ceil(8))
    }

    fn bytes_of_all(&self, types: &[&Type]) -> Result<u128, CostError> {
        types.iter().map(|ty| self.bytes(ty)).sum()
    }
}
