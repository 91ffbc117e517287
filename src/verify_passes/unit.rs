//! What a unit of ranks that serves is given: each half of each rank's batch is a request of its
//! own, and weights are those of one rank, a part or a place each.
//!
//! Before `shard` one program answers all requests one by one, then the ranks do together, and
//! behind `two_batches` both halves at once; a result is told apart by its request.

use anyhow::{Context, Result, bail};
use indexmap::IndexMap;
use weft_ir::dim::Dim;
use weft_ir::interp::{Data, Interp, Precision, Tensor};
use weft_ir::module::{FuncId, Module, Placed, Store, StoreKind};
use weft_ir::ty::Type;

use super::drawn_as;

/// What the names of a half begin with, once there are two.
const HALVES: [&str; 2] = ["a.", "b."];

/// A unit: how many ranks, each with a batch in two halves.
#[derive(Clone, Copy)]
pub struct Unit {
    pub n_ranks: usize,
}

impl Unit {
    /// The results of an entry for every request, by name and request.
    pub fn results(self, module: &Module, id: FuncId) -> Result<IndexMap<String, Tensor>> {
        let func = module.func(id);
        let names = func.params.iter().map(|p| func.value(*p).name.clone().unwrap_or_default());
        let names: Vec<String> = names.collect();
        let types: Vec<&Type> = func.params.iter().map(|p| func.ty(*p)).collect();
        let halved = func.result_names.iter().all(|n| HALVES.iter().any(|h| n.starts_with(h)));
        let shared = module.n_ranks() > 1;
        let interp = Interp::new(module, Precision::F64);
        let mut all = IndexMap::new();
        // Runs of the program: of one rank or of all, for one half or for both.
        for half in 0..if halved { 1 } else { HALVES.len() } {
            let args = |rank: usize| -> Result<Vec<Tensor>> {
                let pairs = names.iter().zip(&types);
                pairs.map(|(name, ty)| given(module, name, ty, rank, half)).collect()
            };
            let by_rank = match shared {
                true => {
                    let args: Vec<_> = (0..self.n_ranks).map(args).collect::<Result<_>>()?;
                    interp.run_ranks(id, args, &Default::default())?
                }
                false => {
                    let one = |rank| Ok(interp.run(id, args(rank)?)?);
                    (0..self.n_ranks).map(one).collect::<Result<_>>()?
                }
            };
            for (rank, results) in by_rank.into_iter().enumerate() {
                for (name, result) in func.result_names.iter().zip(results) {
                    let (name, half) = of_half(name, half);
                    all.insert(format!("{name} of request {half} on rank {rank}"), result);
                }
            }
        }
        Ok(all)
    }
}

/// A name without its half, and which that is; `half` where the name does not say.
fn of_half(name: &str, half: usize) -> (&str, usize) {
    let said = HALVES.iter().enumerate().find_map(|(i, h)| Some((name.strip_prefix(h)?, i)));
    said.unwrap_or((name, half))
}

/// What a rank is given as an argument: a request's own, or what it has of a weight.
fn given(module: &Module, name: &str, ty: &Type, rank: usize, half: usize) -> Result<Tensor> {
    let store = module.stores.get(name);
    let weight = store.filter(|s| !ty.state && s.kind != StoreKind::Schedule);
    let Some(store) = weight else {
        let (name, half) = of_half(name, half);
        return drawn_as(module, name, &format!("{name} {half} {rank}"), ty, None);
    };
    if let Some(Placed::Table(first)) = store.placed {
        return turns(module, ty, first as usize, rank);
    }
    let mut places = None;
    let mut n_experts = None;
    if let Some(Placed::Weights(first)) = store.placed {
        let at = store.starts.len() - 1;
        let line = module.placement.get(first as usize).context("a store has its lines")?;
        n_experts = Some((at, line.iter().max().map_or(0, |most| most + 1)));
        places = Some((at, first as usize));
    }
    // What one rank has, with one copy of each expert.
    let of_one = |ty: &Type| {
        let mut whole = whole(module, ty);
        if let Some((at, n)) = n_experts {
            whole.dims[at] = Dim::fixed(n);
        }
        whole
    };
    let part = store.part.as_ref().map(|(part, of)| (*part, of_one(of)));
    let mut own = drawn_as(module, name, name, &of_one(ty), part)?;
    if let Some((at, first)) = places {
        own = placed(module, &own, at, first);
    }
    Ok(cut(module, store, own, rank))
}

/// A type with all ranks' parts.
fn whole(module: &Module, ty: &Type) -> Type {
    let mut whole = ty.clone();
    for (dim, axis) in ty.axes.iter().enumerate() {
        if let (Some(axis), Some(n)) = (axis, ty.dims[dim].as_fixed()) {
            whole.dims[dim] = Dim::fixed(n * module.axes[axis.0 as usize].size);
        }
    }
    whole.axes.clear();
    whole
}

/// A rank's part; scales are cut as what they are of.
fn cut(module: &Module, store: &Store, whole: Tensor, rank: usize) -> Tensor {
    let mut own = whole;
    own.scales = own.scales.map(|scales| Box::new(cut(module, store, *scales, rank)));
    for (dim, axis) in store.ty.axes.iter().enumerate() {
        let Some(axis) = *axis else { continue };
        let n = module.axes[axis.0 as usize].size as usize;
        let place = rank / module.stride(axis) as usize % n;
        let inner: usize = own.dims[dim..].iter().product();
        let part = inner / n;
        own = blocks(&own, inner, &|_| vec![place * part..(place + 1) * part]);
        own.dims[dim] /= n;
    }
    own
}

/// A stack of experts with those at each place, along dim `at`.
fn placed(module: &Module, experts: &Tensor, at: usize, first: usize) -> Tensor {
    let size: usize = experts.dims[at + 1..].iter().product();
    let line = |layer: usize| {
        let experts = module.placement[first + layer].iter().map(|e| *e as usize);
        experts.map(|e| e * size..(e + 1) * size).collect()
    };
    let mut made = blocks(experts, experts.dims[at] * size, &line);
    made.dims[at] = module.placement[first].len();
    let scales = experts.scales.as_deref();
    made.scales = scales.map(|scales| Box::new(placed(module, scales, at, first)));
    made
}

/// Of each block of `inner` elements, by its number, the parts that `of` names.
fn blocks(
    from: &Tensor,
    inner: usize,
    of: &dyn Fn(usize) -> Vec<std::ops::Range<usize>>,
) -> Tensor {
    let numbers = from.numbers();
    let pick = |(i, block): (usize, &[f64])| {
        of(i).into_iter().flat_map(|r| block[r].to_vec()).collect::<Vec<_>>()
    };
    let picked = numbers.chunks(inner.max(1)).enumerate().flat_map(pick);
    let data = match &from.data {
        Data::Int(_) => Data::Int(picked.map(|x| x as i64).collect()),
        _ => Data::Float(picked.collect()),
    };
    Tensor { data, ..from.clone() }
}

/// A table of the places of each expert, in turn.
fn turns(module: &Module, ty: &Type, first: usize, rank: usize) -> Result<Tensor> {
    let dims: Option<Vec<usize>> = ty.dims.iter().map(|d| Some(d.as_fixed()? as usize)).collect();
    let dims = dims.context("a table has a fixed size")?;
    let [before @ .., n_experts, n_turns] = &dims[..] else { bail!("a table has experts") };
    let mut all = vec![];
    for line in module.placement.iter().skip(first).take(before.iter().product()) {
        for expert in 0..*n_experts as u64 {
            let places: Vec<usize> = (0..line.len()).filter(|p| line[*p] == expert).collect();
            let turn = |turn| places[(rank + turn) % places.len()] as i64;
            all.extend((0..*n_turns).map(turn));
        }
    }
    Ok(Tensor::i32(&dims, all))
}
