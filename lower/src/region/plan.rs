//! From a region's graph to launches: what goes through memory, in which order.
//!
//! A launch computes values of one shape (or of leading dims of it). Stored before, by launches of
//! their own, are the operands of whole ops, sums too long for one block, folds that a loop would
//! do over and over, and values that read a state which an earlier launch has overwritten. Planning
//! starts again whenever it finds one more of those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_codegen::emit::{WARP, reduce_cta_bytes};
use weft_codegen::object::KernelSource;
use weft_codegen::region::emit::{self, Signature};
use weft_codegen::region::graph::{Buf, Graph, Kind, NodeId, Whole};
use weft_codegen::region::trace::{self, Expr, Nest, Request};
use weft_codegen::region::whole::{Pages, WholeKernel};
use weft_codegen::region::{Unsupported, lower};
use weft_graph::{DimExpr, Scalar};
use weft_ir::dim::{Dim, SymId, product};
use weft_ir::module::{Func, Module};
use weft_ir::ty::DType;

use super::{Region, RegionLaunch};
use crate::Backend;

/// A sum of at least so many terms for few results is done in parts.
const PARTED_MIN: u64 = 1024;
/// Results up to which a sum is parted: more of them are blocks enough.
const PARTED_RESULTS_MAX: u64 = 1 << 14;
/// Parts of a sum: a fixed number, so that its order does not depend on threads.
const PARTS: u64 = 32;

pub fn plan(
    backend: &dyn Backend,
    module: &Module,
    func: &Func,
    (hint, label): (&str, &str),
    size: &dyn Fn(Dim) -> DimExpr,
    aligned: &dyn Fn(Buf) -> bool,
) -> Result<Region, Unsupported> {
    let mut graph = lower(func)?;
    share_rows(&mut graph);
    let mut cuts = BTreeSet::new();
    loop {
        let max = |d: Dim| module.dim_max(d);
        let mut planner = Planner {
            backend,
            graph: graph.clone(),
            max: &max,
            size,
            hint,
            label,
            aligned,
            stored: BTreeMap::new(),
            workspaces: vec![],
            aliases: graph.donated.iter().map(|(p, r)| (*r, *p)).collect(),
            overwritten: BTreeSet::new(),
            launches: vec![],
        };
        match planner.run(&cuts) {
            Ok(()) => {
                return Ok(Region {
                    launches: planner.launches,
                    workspaces: planner.workspaces,
                    aliases: planner.aliases,
                });
            }
            Err(Stop::Cut(node)) => {
                if !cuts.insert(node) {
                    return Err(Unsupported::new("region", "a value cannot be stored in time"));
                }
            }
            Err(Stop::Unsupported(u)) => return Err(u),
        }
    }
}

/// Why planning stopped.
enum Stop {
    /// A node that must be stored before.
    Cut(NodeId),
    Unsupported(Unsupported),
}

impl From<Unsupported> for Stop {
    fn from(u: Unsupported) -> Stop {
        Stop::Unsupported(u)
    }
}

struct Planner<'a> {
    backend: &'a dyn Backend,
    graph: Graph,
    max: &'a dyn Fn(Dim) -> u64,
    size: &'a dyn Fn(Dim) -> DimExpr,
    hint: &'a str,
    label: &'a str,
    /// Which buffers begin at multiples of 16 bytes.
    aligned: &'a dyn Fn(Buf) -> bool,
    stored: BTreeMap<NodeId, Buf>,
    workspaces: Vec<DimExpr>,
    aliases: Vec<(u32, u32)>,
    /// Operands whose storage holds a result already.
    overwritten: BTreeSet<u32>,
    launches: Vec<RegionLaunch>,
}

/// What is launched before the results: in the order of the nodes.
enum Task {
    Store(NodeId),
    Parts(NodeId),
    Whole(usize),
}

impl Planner<'_> {
    fn run(&mut self, cuts: &BTreeSet<NodeId>) -> Result<(), Stop> {
        for (_, task) in self.tasks(cuts)? {
            match task {
                Task::Store(node) => {
                    let buf = self.workspace(node)?;
                    self.nest(&[(node, buf)])?;
                    self.stored.insert(node, buf);
                }
                Task::Parts(node) => self.parts(node)?,
                Task::Whole(op) => self.whole(op)?,
            }
        }
        self.results()
    }

    /// The results, those that overwrite operands last; results of one shape in one launch.
    fn results(&mut self) -> Result<(), Stop> {
        let mut groups: Vec<(bool, Vec<(NodeId, Buf)>)> = vec![];
        for (r, node) in self.graph.results.clone().into_iter().enumerate() {
            let buf = Buf::Result(r as u32);
            let alias = self.aliases.iter().find(|(result, _)| *result == r as u32);
            let itself = match alias {
                Some((_, p)) => self.graph.node(node).kind == Kind::Load(Buf::Operand(*p)),
                None => false,
            };
            if itself || self.is_stored_in(node, r as u32) {
                continue;
            }
            let dims = self.graph.node(node).dims.clone();
            let donates = alias.is_some();
            let fits = groups.iter_mut().find(|(d, group)| {
                let same = is_prefix(&dims, &self.graph.node(group[0].0).dims)
                    && is_prefix(&self.graph.node(group[0].0).dims, &dims);
                *d == donates && (same || !donates) && {
                    let first = &self.graph.node(group[0].0).dims;
                    is_prefix(&dims, first) || is_prefix(first, &dims)
                }
            });
            match fits {
                Some((_, group)) if is_prefix(&dims, &self.graph.node(group[0].0).dims) => {
                    group.push((node, buf));
                }
                // The larger shape leads the group; the others must fit it too.
                Some((_, group))
                    if group.iter().all(|(n, _)| is_prefix(&self.graph.node(*n).dims, &dims)) =>
                {
                    group.insert(0, (node, buf));
                }
                _ => groups.push((donates, vec![(node, buf)])),
            }
        }
        groups.sort_by_key(|(donates, _)| *donates);
        groups.into_iter().try_for_each(|(_, group)| self.nest(&group))
    }

    /// Is `node` in the storage of result `r` already?
    fn is_stored_in(&self, node: NodeId, r: u32) -> bool {
        match self.stored.get(&node) {
            Some(Buf::Result(s)) if *s == r => true,
            Some(Buf::Result(s)) => {
                let operand = |r: u32| self.aliases.iter().find(|(x, _)| *x == r).map(|(_, p)| *p);
                operand(*s).is_some() && operand(*s) == operand(r)
            }
            _ => false,
        }
    }

    fn tasks(&mut self, cuts: &BTreeSet<NodeId>) -> Result<Vec<(u32, Task)>, Stop> {
        let mut store = cuts.clone();
        for op in &self.graph.wholes {
            let operands = match op.whole {
                Whole::CacheAppend => &op.operands[1..],
                _ => &op.operands[..],
            };
            let in_memory = |n: &&NodeId| {
                matches!(self.graph.node(**n).kind, Kind::Load(_) | Kind::Whole { .. })
            };
            store.extend(operands.iter().filter(|n| !in_memory(n)));
        }
        let mut tasks: Vec<(u32, Task)> = vec![];
        tasks.extend(
            self.graph.wholes.iter().enumerate().map(|(i, op)| (op.position, Task::Whole(i))),
        );
        for i in 0..self.graph.nodes.len() as u32 {
            if self.is_parted(NodeId(i)) {
                tasks.push((i, Task::Parts(NodeId(i))));
            }
        }
        tasks.extend(store.into_iter().map(|n| (n.0, Task::Store(n))));
        // Stable: the parts of a sum before the sum.
        tasks.sort_by_key(|(at, _)| *at);
        Ok(tasks)
    }

    fn elements(&self, dims: &[Dim]) -> u64 {
        product(dims).map_or(u64::MAX, self.max)
    }

    /// Is this a long sum with few results?
    fn is_parted(&self, node: NodeId) -> bool {
        let Kind::Fold { x, dims, .. } = &self.graph.node(node).kind else { return false };
        let shape = &self.graph.node(*x).dims;
        let folded: Vec<Dim> = dims.iter().map(|d| shape[*d]).collect();
        let terms = self.elements(&folded);
        let results = self.elements(&self.graph.node(node).dims);
        let rows = dims.contains(&(shape.len().wrapping_sub(1)));
        let shared = rows && dims.len() == 1 && terms <= self.backend.shared_row_max();
        // A fold along rows has as many blocks as rows.
        let few = if rows { results <= PARTS && !shared } else { results <= PARTED_RESULTS_MAX };
        terms >= PARTED_MIN && few
    }

    fn allocate(&mut self, dims: &[Dim], dtype: DType) -> Result<Buf, Stop> {
        let n = product(dims).ok_or_else(|| Unsupported::new("region", "a size overflows"))?;
        self.workspaces.push(bytes((self.size)(n), dtype));
        Ok(Buf::Workspace(self.workspaces.len() as u32 - 1))
    }

    /// Where a node is stored: in a result that wants just it and aliases nothing, else in
    /// workspace.
    fn workspace(&mut self, node: NodeId) -> Result<Buf, Stop> {
        let wants = |(r, n): &(usize, &NodeId)| {
            **n == node && self.aliases.iter().all(|(result, _)| *result != *r as u32)
        };
        if let Some((r, _)) = self.graph.results.iter().enumerate().find(wants) {
            return Ok(Buf::Result(r as u32));
        }
        let (dims, dtype) = (self.graph.node(node).dims.clone(), self.graph.node(node).dtype);
        self.allocate(&dims, dtype)
    }

    /// Stores the parts of a sum and makes the node their sum.
    fn parts(&mut self, node: NodeId) -> Result<(), Stop> {
        let data = self.graph.node(node).clone();
        let Kind::Fold { x, dims, max } = data.kind else { return Ok(()) };
        let float = data.dtype.is_float();
        let dtype = if float { DType::F32 } else { data.dtype };
        let part = self.graph.push(Kind::Fold { x, dims, max }, &data.dims, dtype);
        let mut wide = vec![Dim::fixed(PARTS)];
        wide.extend(&data.dims);
        let buf = self.allocate(&wide, dtype)?;
        let request =
            Request { dims: &wide, roots: &[(part, buf)], stored: &self.stored, parts: true };
        let nest = trace::trace(&self.graph, &request)?;
        self.launch(nest)?;
        let all = self.graph.push(Kind::Load(buf), &wide, dtype);
        self.graph.nodes[node.0 as usize].kind = Kind::Fold { x: all, dims: vec![0], max };
        Ok(())
    }

    /// One launch for roots whose dims are leading dims of the first one's.
    fn nest(&mut self, roots: &[(NodeId, Buf)]) -> Result<(), Stop> {
        let dims = self.graph.node(roots[0].0).dims.clone();
        let request = Request { dims: &dims, roots, stored: &self.stored, parts: false };
        let nest = trace::trace(&self.graph, &request)?;
        self.check_states(&nest, roots)?;
        self.launch(nest)
    }

    /// A state may be overwritten only where its old value is not needed any more.
    fn check_states(&mut self, nest: &Nest, roots: &[(NodeId, Buf)]) -> Result<(), Stop> {
        let operand = |buf: Buf| match buf {
            Buf::Result(r) => self.aliases.iter().find(|(x, _)| *x == r).map(|(_, p)| *p),
            Buf::Operand(_) | Buf::Workspace(_) => None,
        };
        for e in &nest.exprs {
            let Expr::Load { buf: Buf::Operand(p), at, .. } = &e.expr else { continue };
            if self.overwritten.contains(p) {
                return Err(Stop::Cut(roots[0].0));
            }
            for ((node, buf), root) in roots.iter().zip(&nest.roots) {
                if operand(*buf) == Some(*p) && *at != root.at {
                    return Err(Stop::Cut(*node));
                }
            }
        }
        let written: Vec<u32> = roots.iter().filter_map(|(_, buf)| operand(*buf)).collect();
        self.overwritten.extend(written);
        Ok(())
    }

    fn launch(&mut self, nest: Nest) -> Result<(), Stop> {
        let planned = self.backend.schedule(&nest, self.max).map_err(Stop::Cut)?;
        let signature = Signature::of(&nest);
        let mut grid = DimExpr::product(planned.grid.iter().map(|d| (self.size)(*d)));
        if let Some((dim, n)) = planned.chunked {
            grid = grid * (self.size)(dim).ceil_div(n);
        }
        let warps = planned.schedule.warps;
        let threads = warps.map_or(1, |n| n * WARP);
        let together = planned.schedule.together;
        if let Some(warps) = warps.filter(|n| *n > 1 && !together) {
            grid = grid.ceil_div(warps.into());
        }
        let per_element = nest.exprs.iter().filter(|e| matches!(e.expr, Expr::Scalar(..))).count();
        let main = DimExpr::product(nest.main.iter().map(|v| (self.size)(nest.vars.extent(*v))));
        let bytes = self.bytes(&nest);
        let mut schedule = planned.schedule;
        if let Some(vector) = &mut schedule.vector {
            let buffers = signature.buffers.iter().copied();
            vector.unaligned = buffers.filter(|buf| !(self.aligned)(*buf)).collect();
        }
        let code = format!("{nest:?}{schedule:?}");
        let args = signature.buffers.clone();
        let symbols = signature.scalars.clone();
        let nest = Arc::new(nest);
        let traced = Some(nest.clone());
        let emit = move |cg: &weft_codegen::emit::Cg, name: &str| {
            emit::kernel(cg, name, &nest, &schedule, &signature);
        };
        let mut kernel = self.source(&code, emit).with_threads(threads);
        if together {
            kernel.cta.dynamic_shared_bytes = reduce_cta_bytes(threads / WARP);
        }
        self.launches.push(RegionLaunch {
            kernel,
            args,
            scalars: self.scalars(&symbols),
            grid,
            scratch_bytes: planned.scratch_bytes,
            flops: main * per_element as i64,
            bytes,
            nest: traced,
        });
        Ok(())
    }

    fn source(
        &self,
        code: &str,
        emit: impl Fn(&weft_codegen::emit::Cg, &str) + Send + Sync + 'static,
    ) -> KernelSource {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let hint: String = self.hint.chars().map(legal).collect();
        let name = format!("{hint}_{:016x}", fingerprint(code));
        let symbol = name.clone();
        KernelSource::new(name, self.label, move |cg| emit(cg, &symbol))
    }

    fn scalars(&self, symbols: &[Vec<SymId>]) -> Vec<Scalar> {
        scalars(self.size, symbols)
    }

    /// What a nest's buffers hold together, each read or written once.
    fn bytes(&self, nest: &Nest) -> DimExpr {
        let mut buffers: BTreeMap<Buf, DimExpr> = BTreeMap::new();
        let mut add = |buf: Buf, dims: &[Dim], dtype: DType| {
            let n = DimExpr::product(dims.iter().map(|d| (self.size)(*d)));
            buffers.insert(buf, self::bytes(n, dtype));
        };
        for node in &self.graph.nodes {
            if let Kind::Load(buf) = node.kind {
                add(buf, &node.dims, node.dtype);
            }
        }
        for (id, buf) in &self.stored {
            let node = self.graph.node(*id);
            add(*buf, &node.dims, node.dtype);
        }
        let loads = nest.exprs.iter().filter_map(|e| match &e.expr {
            Expr::Load { buf, .. } => Some(*buf),
            _ => None,
        });
        let used: BTreeSet<Buf> = loads.collect();
        let read = used.iter().filter_map(|b| buffers.get(b)).cloned();
        let width = |v: &weft_codegen::region::index::Var| (self.size)(nest.vars.extent(*v));
        let written = nest.roots.iter().map(|r| {
            let dims = nest.main.iter().filter(|v| r.deps.contains(v)).map(width);
            self::bytes(DimExpr::product(dims), r.dtype)
        });
        read.chain(written).fold(DimExpr::zero(), |sum, n| sum + n)
    }

    fn whole(&mut self, op: usize) -> Result<(), Stop> {
        let op = self.graph.wholes[op].clone();
        let dims = |s: &Self, n: NodeId| s.graph.node(n).dims.clone();
        let (dtype, first) = (self.graph.node(op.operands[0]).dtype, dims(self, op.operands[0]));
        let all = |dims: &[Dim]| {
            product(dims).ok_or_else(|| Unsupported::new("region", "a size overflows"))
        };
        let kernel = match &op.whole {
            Whole::Sort { groups } => WholeKernel::Sort { n: all(&first)?, groups: *groups },
            Whole::Invert => WholeKernel::Invert { n: all(&first)? },
            Whole::EncodeColumns(e) => {
                e.units().ok_or_else(|| Unsupported::new("encode", "a size overflows"))?;
                WholeKernel::EncodeColumns(e.clone())
            }
            Whole::Pack12 => WholeKernel::Pack12 { n: all(&first)? },
            Whole::Unpack12 => WholeKernel::Unpack12 { n: all(&first)? },
            Whole::SegmentSum => {
                let out = dims(self, op.outs[0]);
                WholeKernel::SegmentSum { groups: out[0], width: out[1], dtype }
            }
            Whole::Topk { n, k, groups } => {
                let rows = all(&first[..first.len() - 1])?;
                WholeKernel::Topk { rows, n: *n, k: *k, groups: *groups, dtype }
            }
            Whole::CacheAppend => {
                let x = dims(self, op.operands[1]);
                let rows = all(&x[..2])?;
                let (s, positions, width) = (x[1], first[1], all(&x[2..])?);
                let pages = op.operands.get(3).map(|pages| {
                    let of_request = dims(self, *pages)[1];
                    Pages { of_request, pool: first[0] }
                });
                WholeKernel::CacheAppend { rows, s, positions, width, dtype, pages }
            }
        };
        let mut args = vec![];
        let append = op.whole == Whole::CacheAppend;
        for x in &op.operands[usize::from(append)..] {
            args.push(self.buffer_of(*x)?);
        }
        if append {
            args.push(self.append_to(op.operands[0], &op.outs)?);
        } else {
            for out in &op.outs {
                let buf = self.workspace(*out)?;
                self.stored.insert(*out, buf);
                args.push(buf);
            }
        }
        let whole = self.backend.whole_grid(&kernel);
        let grid = (self.size)(whole.units).ceil_div(whole.per_block);
        let n_elements = |s: &Self, x: &NodeId| {
            let dims = dims(s, *x);
            let n = DimExpr::product(dims.iter().map(|d| (s.size)(*d)));
            self::bytes(n, s.graph.node(*x).dtype)
        };
        let moved =
            op.operands[usize::from(append)..].iter().chain(&op.outs[usize::from(append)..]);
        let bytes = moved.fold(DimExpr::zero(), |sum, x| sum + n_elements(self, x));
        let (symbols, scratch_bytes) = (kernel.scalars(), kernel.scratch_bytes());
        let code = format!("{kernel:?}");
        let source = self.source(&code, move |cg, name| kernel.emit(cg, name));
        let source = source.with_threads(whole.threads);
        self.launches.push(RegionLaunch {
            kernel: source,
            args,
            scalars: self.scalars(&symbols),
            grid,
            scratch_bytes,
            flops: DimExpr::zero(),
            bytes,
            nest: None,
        });
        Ok(())
    }

    fn buffer_of(&self, node: NodeId) -> Result<Buf, Stop> {
        if let Some(buf) = self.stored.get(&node) {
            return Ok(*buf);
        }
        match self.graph.node(node).kind {
            Kind::Load(Buf::Operand(p)) if self.overwritten.contains(&p) => Err(Stop::Cut(node)),
            Kind::Load(buf) => Ok(buf),
            _ => Err(Unsupported::new("region", "an operand is not stored").into()),
        }
    }

    /// The storage of a cache that is appended to; both outcomes of the op are in it.
    fn append_to(&mut self, cache: NodeId, outs: &[NodeId]) -> Result<Buf, Stop> {
        let Kind::Load(Buf::Operand(p)) = self.graph.node(cache).kind else {
            return Err(Unsupported::new("cache_append", "the cache is not a parameter").into());
        };
        let results = self.graph.results.iter().enumerate();
        let of_cache: Vec<u32> =
            results.filter(|(_, n)| outs.contains(n)).map(|(r, _)| r as u32).collect();
        for r in &of_cache {
            if !self.aliases.contains(&(*r, p)) {
                self.aliases.push((*r, p));
            }
        }
        let Some(r) = of_cache.first() else {
            return Err(Unsupported::new("cache_append", "the cache is not a result").into());
        };
        let buf = Buf::Result(*r);
        outs.iter().for_each(|out| {
            self.stored.insert(*out, buf);
        });
        self.overwritten.insert(p);
        Ok(buf)
    }
}

/// Gives results whose rows are cut into groups somewhere in the region the groups' shape, where
/// another result has one element for each group: codes and scales then come out of one loop. In
/// memory nothing moves.
fn share_rows(graph: &mut Graph) {
    let dims = |graph: &Graph, n: NodeId| graph.node(n).dims.clone();
    let shapes = graph.nodes.iter().map(|n| &n.dims);
    let cut = shapes.into_iter().find(|grouped| {
        let cuts = |r: &NodeId| {
            let now = &graph.node(*r).dims;
            now != *grouped && product(now) == product(grouped) && {
                let of_groups = |other: &NodeId| {
                    let of = &graph.node(*other).dims;
                    is_prefix(of, grouped) && !is_prefix(of, now) && !is_prefix(grouped, of)
                };
                graph.results.iter().any(of_groups)
            }
        };
        graph.results.iter().any(cuts)
    });
    let Some(grouped) = cut.cloned() else { return };
    for r in 0..graph.results.len() {
        let node = graph.results[r];
        let (now, dtype) = (dims(graph, node), graph.node(node).dtype);
        if now == grouped || product(&now) != product(&grouped) {
            continue;
        }
        graph.results[r] = match graph.node(node).kind {
            Kind::Reshape(x) if dims(graph, x) == grouped => x,
            // What has a place in memory already keeps it.
            Kind::Load(_) | Kind::Whole { .. } => node,
            _ => graph.push(Kind::Reshape(node), &grouped, dtype),
        };
    }
}

/// Bytes of `n` elements.
fn bytes(n: DimExpr, dtype: DType) -> DimExpr {
    (n * dtype.bits() as i64).ceil_div(8)
}

/// Are the dims of `shape`, ones aside, leading dims of `of`?
fn is_prefix(shape: &[Dim], of: &[Dim]) -> bool {
    let long =
        |dims: &[Dim]| -> Vec<Dim> { dims.iter().copied().filter(|d| !d.is_one()).collect() };
    long(of).starts_with(&long(shape))
}

/// The scalars of a kernel with this signature.
pub fn scalars(size: &dyn Fn(Dim) -> DimExpr, symbols: &[Vec<SymId>]) -> Vec<Scalar> {
    let of = |symbols: &Vec<SymId>| {
        let dims = symbols.iter().map(|s| size(Dim::sym(*s)));
        Scalar::Dim(DimExpr::product(dims))
    };
    symbols.iter().map(of).collect()
}

/// 64-bit FNV-1a.
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
