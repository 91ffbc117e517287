//! From values to the scalars of one element: the expressions a loop nest evaluates.
//!
//! The elements of the roots at the loop variables are followed back to loads. Moves become index
//! polynomials and guards; what two roots share is one expression. Where an index does not divide
//! as needed, the loop variable is cut in two and tracing starts again; in the end variables that
//! always step together are merged, so an elementwise region is one flat loop whatever its rank.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_ir::dim::Dim;
use weft_ir::ty::DType;

use super::Unsupported;
use super::graph::{Buf, Coord, Graph, Kind, NodeId, Scalar};
use super::index::{Atom, Division, Ix, Split, Var, Vars, linear};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExprId(pub u32);

/// `0 <= at < below`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Guard {
    pub at: Ix,
    pub below: Dim,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// Zero where a guard fails; then memory is not touched.
    Load {
        buf: Buf,
        at: Ix,
        guards: Vec<Guard>,
    },
    Constant(f64),
    Index(Ix),
    Extent(Dim),
    Scalar(Scalar, Vec<ExprId>),
    Choose {
        guard: Guard,
        then: ExprId,
        other: ExprId,
    },
    Fold {
        x: ExprId,
        vars: Vec<Var>,
        max: bool,
    },
    /// `x` of the neighbour along `var`; `partner` is the same where `var` is not the one in lanes.
    Swap {
        x: ExprId,
        var: Var,
        partner: ExprId,
    },
}

/// Index values that are no polynomials.
#[derive(Clone, PartialEq, Debug)]
pub enum Opaque {
    Quotient(Ix, Dim),
    Remainder(Ix, Dim),
    Data(ExprId),
}

#[derive(Clone, PartialEq, Debug)]
pub struct ExprData {
    pub expr: Expr,
    pub dtype: DType,
    /// The variables its value depends on.
    pub deps: BTreeSet<Var>,
}

/// A value and where its elements are stored.
#[derive(Clone, PartialEq, Debug)]
pub struct Root {
    pub node: NodeId,
    pub value: ExprId,
    pub buf: Buf,
    pub at: Ix,
    pub dtype: DType,
    pub deps: BTreeSet<Var>,
}

/// A traced loop nest.
#[derive(Clone, Debug, Default)]
pub struct Nest {
    pub vars: Vars,
    /// The variables of the roots, outermost first.
    pub main: Vec<Var>,
    pub exprs: Vec<ExprData>,
    pub opaques: Vec<(Opaque, BTreeSet<Var>)>,
    pub roots: Vec<Root>,
    /// The nodes that folds come from.
    pub folds: Vec<(ExprId, NodeId)>,
    /// The variable that counts the parts of the root's fold.
    pub part: Option<Var>,
}

impl Nest {
    /// The variables in use.
    pub fn all_vars(&self) -> BTreeSet<Var> {
        let of_exprs = self.exprs.iter().flat_map(|e| match &e.expr {
            Expr::Fold { vars, .. } => e.deps.iter().chain(vars).copied().collect(),
            _ => e.deps.clone(),
        });
        of_exprs.chain(self.main.iter().copied()).collect()
    }

    /// Which expressions others read, or an index.
    pub fn read(&self) -> Vec<bool> {
        let mut read = vec![false; self.exprs.len()];
        let mut mark = |e: &ExprId| read[e.0 as usize] = true;
        for data in &self.exprs {
            match &data.expr {
                Expr::Scalar(_, xs) => xs.iter().for_each(&mut mark),
                Expr::Choose { then, other, .. } => [then, other].into_iter().for_each(&mut mark),
                Expr::Fold { x, .. } => mark(x),
                Expr::Swap { x, partner, .. } => [x, partner].into_iter().for_each(&mut mark),
                Expr::Load { .. } | Expr::Constant(_) | Expr::Index(_) | Expr::Extent(_) => {}
            }
        }
        for (opaque, _) in &self.opaques {
            if let Opaque::Data(e) = opaque {
                mark(e);
            }
        }
        // Two roots of one value share it.
        for (i, root) in self.roots.iter().enumerate() {
            if self.roots[..i].iter().any(|r| r.value == root.value) {
                mark(&root.value);
            }
        }
        read
    }

    /// Every index polynomial.
    pub fn indices(&self) -> impl Iterator<Item = &Ix> {
        let of_exprs = self.exprs.iter().flat_map(|e| match &e.expr {
            Expr::Load { at, guards, .. } => {
                std::iter::once(at).chain(guards.iter().map(|g| &g.at)).collect()
            }
            Expr::Index(ix) => vec![ix],
            Expr::Choose { guard, .. } => vec![&guard.at],
            Expr::Constant(_)
            | Expr::Extent(_)
            | Expr::Scalar(..)
            | Expr::Fold { .. }
            | Expr::Swap { .. } => vec![],
        });
        let of_opaques = self.opaques.iter().filter_map(|(o, _)| match o {
            Opaque::Quotient(ix, _) | Opaque::Remainder(ix, _) => Some(ix),
            Opaque::Data(_) => None,
        });
        of_exprs.chain(of_opaques).chain(self.roots.iter().map(|r| &r.at))
    }

    /// The expressions that an index takes data from.
    pub fn data(&self, ix: &Ix) -> Vec<ExprId> {
        let of = |atom: Atom| match atom {
            Atom::Opaque(o) => match &self.opaques[o as usize].0 {
                Opaque::Data(e) => vec![*e],
                Opaque::Quotient(ix, _) | Opaque::Remainder(ix, _) => self.data(ix),
            },
            Atom::One | Atom::Var(_) => vec![],
        };
        ix.atoms().into_iter().flat_map(of).collect()
    }

    /// Every size that is not a loop's.
    pub fn sizes(&self) -> impl Iterator<Item = Dim> {
        let of_exprs = self.exprs.iter().flat_map(|e| match &e.expr {
            Expr::Load { guards, .. } => guards.iter().map(|g| g.below).collect(),
            Expr::Choose { guard, .. } => vec![guard.below],
            Expr::Extent(d) => vec![*d],
            Expr::Constant(_)
            | Expr::Index(_)
            | Expr::Scalar(..)
            | Expr::Fold { .. }
            | Expr::Swap { .. } => vec![],
        });
        let of_opaques = self.opaques.iter().filter_map(|(o, _)| match o {
            Opaque::Quotient(_, by) | Opaque::Remainder(_, by) => Some(*by),
            Opaque::Data(_) => None,
        });
        of_exprs.chain(of_opaques)
    }
}

/// What is to be computed: nodes of one shape, or of leading dims of it.
pub struct Request<'a> {
    pub dims: &'a [Dim],
    pub roots: &'a [(NodeId, Buf)],
    /// Nodes that are in memory already.
    pub stored: &'a BTreeMap<NodeId, Buf>,
    /// The one root is a fold, of which a part is to be stored for each index of the first of
    /// `dims`.
    pub parts: bool,
}

/// A run of loop variables that stands for a dim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Slot {
    Main(usize),
    Fold(NodeId, usize),
}

/// Why tracing stopped.
enum Stop {
    Split(Split),
    Unsupported(Unsupported),
}

/// Cuts finer than this leave vectors with few lanes: such an index stays opaque.
const INNER_MIN: u64 = 8;

/// Traces until no variable needs to be cut any more.
pub fn trace(graph: &Graph, request: &Request) -> Result<Nest, Unsupported> {
    let mut extents: BTreeMap<Slot, Vec<Dim>> = BTreeMap::new();
    loop {
        let mut tracer = Tracer {
            graph,
            request,
            extents: &mut extents,
            slots: BTreeMap::new(),
            nest: Nest::default(),
            memo: HashMap::new(),
            folding: vec![],
        };
        match tracer.roots() {
            Ok(()) => {
                let mut nest = tracer.nest;
                super::merge::merge(&mut nest);
                return Ok(nest);
            }
            Err(Stop::Unsupported(u)) => return Err(u),
            Err(Stop::Split(split)) => {
                let at = tracer.slots.iter().find_map(|(slot, vars)| {
                    vars.iter().position(|v| *v == split.var).map(|i| (*slot, i))
                });
                let outer = tracer.nest.vars.extent(split.var).checked_div(split.inner);
                let (Some((slot, i)), Some(outer)) = (at, outer) else {
                    return Err(Unsupported::new("reshape", "its index cannot be told"));
                };
                let list = extents.get_mut(&slot).expect("the slot was used");
                list.splice(i..=i, [outer, split.inner]);
            }
        }
    }
}

struct Tracer<'a, 'b> {
    graph: &'a Graph,
    request: &'a Request<'a>,
    extents: &'b mut BTreeMap<Slot, Vec<Dim>>,
    slots: BTreeMap<Slot, Vec<Var>>,
    nest: Nest,
    memo: HashMap<(NodeId, Vec<Ix>, Vec<Guard>), ExprId>,
    /// Variables of the folds around the point being traced.
    folding: Vec<Var>,
}

impl Tracer<'_, '_> {
    fn roots(&mut self) -> Result<(), Stop> {
        let dims = self.request.dims;
        let at: Vec<Ix> = (0..dims.len()).map(|d| self.slot(Slot::Main(d), dims[d])).collect();
        let vars = (0..dims.len()).flat_map(|d| self.slots[&Slot::Main(d)].clone());
        self.nest.main = vars.collect();
        if self.request.parts {
            return self.part(&at);
        }
        for (node, buf) in self.request.roots {
            let shape = &self.graph.node(*node).dims;
            let index = prefix(&at, dims, shape);
            let value = self.trace(*node, index.clone(), vec![])?;
            let place = linear(&index, shape).ok_or_else(too_large)?;
            let mut deps = self.vars_of(&place);
            deps.extend(self.nest.exprs[value.0 as usize].deps.iter().copied());
            let dtype = self.graph.node(*node).dtype;
            self.nest.roots.push(Root { node: *node, value, buf: *buf, at: place, dtype, deps });
        }
        Ok(())
    }

    fn part(&mut self, at: &[Ix]) -> Result<(), Stop> {
        let [(node, buf)] = self.request.roots else { return Err(too_large()) };
        let part = self.nest.main[0];
        self.nest.part = Some(part);
        self.folding.push(part);
        let value = self.trace(*node, at[1..].to_vec(), vec![])?;
        self.nest.exprs[value.0 as usize].deps.insert(part);
        let place = linear(at, self.request.dims).ok_or_else(too_large)?;
        let mut deps = self.vars_of(&place);
        deps.extend(self.nest.exprs[value.0 as usize].deps.iter().copied());
        let dtype = self.graph.node(*node).dtype;
        self.nest.roots.push(Root { node: *node, value, buf: *buf, at: place, dtype, deps });
        Ok(())
    }

    /// The index along a dim whose variables are those of `slot`.
    fn slot(&mut self, slot: Slot, dim: Dim) -> Ix {
        let extents = self.extents.entry(slot).or_insert_with(|| vec![dim]).clone();
        let vars = match self.slots.get(&slot) {
            Some(vars) => vars.clone(),
            None => {
                // A dim of one element needs no variable.
                let long = extents.iter().filter(|e| !e.is_one());
                let vars: Vec<Var> = long.map(|e| self.nest.vars.add(*e)).collect();
                self.slots.insert(slot, vars.clone());
                vars
            }
        };
        vars.iter()
            .fold(Ix::default(), |sum, v| sum.scaled(self.nest.vars.extent(*v)).plus(&Ix::var(*v)))
    }

    fn vars_of(&self, ix: &Ix) -> BTreeSet<Var> {
        let mut vars = BTreeSet::new();
        for atom in ix.atoms() {
            match atom {
                Atom::One => {}
                Atom::Var(v) => {
                    vars.insert(v);
                }
                Atom::Opaque(o) => vars.extend(self.nest.opaques[o as usize].1.iter().copied()),
            }
        }
        vars
    }

    fn vars_of_guards(&self, guards: &[Guard]) -> BTreeSet<Var> {
        guards.iter().flat_map(|g| self.vars_of(&g.at)).collect()
    }

    fn add(&mut self, expr: Expr, dtype: DType) -> ExprId {
        let of = |e: &ExprId| self.nest.exprs[e.0 as usize].deps.clone();
        let deps = match &expr {
            Expr::Load { at, guards, .. } => {
                let mut deps = self.vars_of(at);
                deps.extend(self.vars_of_guards(guards));
                deps
            }
            Expr::Constant(_) | Expr::Extent(_) => BTreeSet::new(),
            Expr::Index(ix) => self.vars_of(ix),
            Expr::Scalar(_, xs) => xs.iter().flat_map(of).collect(),
            Expr::Choose { guard, then, other } => {
                let mut deps = self.vars_of(&guard.at);
                deps.extend(of(then));
                deps.extend(of(other));
                deps
            }
            Expr::Fold { x, vars, .. } => of(x).into_iter().filter(|v| !vars.contains(v)).collect(),
            Expr::Swap { x, var, partner } => {
                let mut deps = of(x);
                deps.extend(of(partner));
                deps.insert(*var);
                deps
            }
        };
        self.nest.exprs.push(ExprData { expr, dtype, deps });
        ExprId(self.nest.exprs.len() as u32 - 1)
    }

    fn opaque(&mut self, opaque: Opaque) -> Ix {
        let deps = match &opaque {
            Opaque::Quotient(ix, _) | Opaque::Remainder(ix, _) => self.vars_of(ix),
            Opaque::Data(e) => self.nest.exprs[e.0 as usize].deps.clone(),
        };
        let known = self.nest.opaques.iter().position(|(o, _)| *o == opaque);
        let at = known.unwrap_or_else(|| {
            self.nest.opaques.push((opaque, deps));
            self.nest.opaques.len() - 1
        });
        Ix::term(Atom::Opaque(at as u32), Dim::fixed(1))
    }

    fn trace(&mut self, id: NodeId, at: Vec<Ix>, guards: Vec<Guard>) -> Result<ExprId, Stop> {
        let key = (id, at, guards);
        if let Some(known) = self.memo.get(&key) {
            return Ok(*known);
        }
        let (_, at, guards) = key.clone();
        let expr = self.trace_new(id, at, guards)?;
        self.memo.insert(key, expr);
        Ok(expr)
    }

    fn trace_new(&mut self, id: NodeId, at: Vec<Ix>, guards: Vec<Guard>) -> Result<ExprId, Stop> {
        let node = self.graph.node(id);
        let dtype = node.dtype;
        // A parameter may have a copy, made before its storage is overwritten.
        let buf = match (self.request.stored.get(&id), &node.kind) {
            (Some(buf), _) | (None, Kind::Load(buf)) => Some(*buf),
            (None, _) => None,
        };
        if let Some(buf) = buf {
            let at = linear(&at, &node.dims).ok_or_else(too_large)?;
            return Ok(self.add(Expr::Load { buf, at, guards }, dtype));
        }
        match &node.kind {
            Kind::Load(_) => unreachable!("a load has a buffer"),
            Kind::Constant(value) => Ok(self.add(Expr::Constant(*value), dtype)),
            Kind::Iota(dim) => Ok(self.add(Expr::Index(at[*dim].clone()), dtype)),
            Kind::Extent(dim) => Ok(self.add(Expr::Extent(*dim), dtype)),
            Kind::Scalar(scalar, xs) => {
                let xs: Result<Vec<ExprId>, Stop> =
                    xs.iter().map(|x| self.trace(*x, at.clone(), guards.clone())).collect();
                Ok(self.add(Expr::Scalar(*scalar, xs?), dtype))
            }
            Kind::Transpose(x, perm) => {
                let mut from = vec![Ix::default(); perm.len()];
                perm.iter().zip(at).for_each(|(p, ix)| from[*p] = ix);
                self.trace(*x, from, guards)
            }
            Kind::Broadcast(x, map) => {
                let dims = &self.graph.node(*x).dims;
                let of = |(d, to): (&Dim, &usize)| {
                    if d.is_one() { Ix::default() } else { at[*to].clone() }
                };
                let from = dims.iter().zip(map).map(of).collect();
                self.trace(*x, from, guards)
            }
            Kind::Reshape(x) => {
                let from = self.reshaped(&at, &node.dims, &self.graph.node(*x).dims)?;
                self.trace(*x, from, guards)
            }
            Kind::Moved { x, dim, by, fill, inside } => {
                let mut from = at;
                from[*dim] = std::mem::take(&mut from[*dim]).plus_const(*by);
                if *inside {
                    return self.trace(*x, from, guards);
                }
                let guard = Guard { at: from[*dim].clone(), below: self.graph.node(*x).dims[*dim] };
                self.guarded(*x, from, guards, guard, *fill)
            }
            Kind::Concat(xs, dim) => self.concat(xs, *dim, at, guards, dtype),
            Kind::Swap(x) => self.swap(*x, at, guards, dtype),
            Kind::Fold { x, dims, max } => self.fold(id, *x, dims, *max, at, guards),
            Kind::Lookup(x, coords) => {
                let mut from = vec![];
                let mut data = None;
                let dims = self.graph.node(*x).dims.clone();
                for (coord, size) in coords.iter().zip(dims) {
                    match coord {
                        Coord::Out(d) => from.push(at[*d].clone()),
                        Coord::Data(ids, along) => {
                            let place = along.iter().map(|d| at[*d].clone()).collect();
                            let ids = self.trace(*ids, place, guards.clone())?;
                            let ix = self.opaque(Opaque::Data(ids));
                            data = Some(Guard { at: ix.clone(), below: size });
                            from.push(ix);
                        }
                    }
                }
                match data {
                    Some(guard) => self.guarded(*x, from, guards, guard, 0.0),
                    None => self.trace(*x, from, guards),
                }
            }
            Kind::Whole { .. } => Err(Stop::Unsupported(Unsupported::new(
                "region",
                "the result of a whole op is read before it is stored",
            ))),
        }
    }

    /// `x` at `from` where `guard` holds, else `fill`.
    fn guarded(
        &mut self,
        x: NodeId,
        from: Vec<Ix>,
        mut guards: Vec<Guard>,
        guard: Guard,
        fill: f64,
    ) -> Result<ExprId, Stop> {
        if let (Some((low, high)), Some(size)) =
            (self.nest.vars.range(&guard.at), guard.below.as_fixed())
            && low >= 0
            && high < size as i64
        {
            return self.trace(x, from, guards);
        }
        guards.push(guard.clone());
        guards.sort();
        guards.dedup();
        let then = self.trace(x, from, guards)?;
        let data = &self.nest.exprs[then.0 as usize];
        if fill == 0.0 && matches!(data.expr, Expr::Load { .. }) {
            return Ok(then);
        }
        let dtype = data.dtype;
        let other = self.add(Expr::Constant(fill), dtype);
        Ok(self.add(Expr::Choose { guard, then, other }, dtype))
    }

    fn concat(
        &mut self,
        xs: &[NodeId],
        dim: usize,
        at: Vec<Ix>,
        guards: Vec<Guard>,
        dtype: DType,
    ) -> Result<ExprId, Stop> {
        let mut start = Ix::default();
        let mut parts = vec![];
        for x in xs {
            let size = self.graph.node(*x).dims[dim];
            let mut from = at.clone();
            from[dim] = at[dim].clone().minus(&start);
            let guard = Guard { at: from[dim].clone(), below: size };
            let mut inner = guards.clone();
            if xs.len() > 1 {
                inner.push(guard.clone());
                inner.sort();
                inner.dedup();
            }
            parts.push((guard, self.trace(*x, from, inner)?));
            start = start.plus(&Ix::dim(size));
        }
        let (_, mut value) = parts.pop().ok_or_else(too_large)?;
        while let Some((guard, then)) = parts.pop() {
            value = self.add(Expr::Choose { guard, then, other: value }, dtype);
        }
        Ok(value)
    }

    fn swap(
        &mut self,
        x: NodeId,
        at: Vec<Ix>,
        guards: Vec<Guard>,
        dtype: DType,
    ) -> Result<ExprId, Stop> {
        let last = at.last().cloned().unwrap_or_default();
        let side = self.opaque(Opaque::Remainder(last.clone(), Dim::fixed(2)));
        let mut other = at.clone();
        if let Some(ix) = other.last_mut() {
            *ix = last.clone().plus_const(1).minus(&side.scaled(Dim::fixed(2)));
        }
        let partner = self.trace(x, other, guards.clone())?;
        let plain = last.atoms().into_iter().next_back();
        match plain {
            Some(Atom::Var(var)) if last == Ix::var(var) => {
                let x = self.trace(x, at, guards)?;
                Ok(self.add(Expr::Swap { x, var, partner }, dtype))
            }
            _ => Ok(partner),
        }
    }

    fn fold(
        &mut self,
        id: NodeId,
        x: NodeId,
        dims: &[usize],
        max: bool,
        at: Vec<Ix>,
        guards: Vec<Guard>,
    ) -> Result<ExprId, Stop> {
        let shape = self.graph.node(x).dims.clone();
        let mut taken: BTreeSet<Var> = at.iter().flat_map(|ix| self.vars_of(ix)).collect();
        taken.extend(self.vars_of_guards(&guards));
        taken.extend(self.folding.iter().copied());
        let mut kept = at.into_iter();
        let (mut from, mut vars) = (vec![], vec![]);
        for (d, size) in shape.iter().enumerate() {
            if !dims.contains(&d) {
                from.push(kept.next().unwrap_or_default());
                continue;
            }
            // Folding along a variable of the roots lets a row's values be computed once for both.
            let twin = (0..self.request.dims.len()).rev().map(Slot::Main).find(|slot| {
                let Slot::Main(m) = slot else { return false };
                self.request.dims[*m] == *size
                    && self.slots[slot].iter().all(|v| !taken.contains(v))
            });
            let slot = twin.unwrap_or(Slot::Fold(id, d));
            let ix = self.slot(slot, *size);
            let mut of_slot = self.slots[&slot].clone();
            if of_slot.iter().any(|v| taken.contains(v)) {
                // The same fold inside itself: fresh variables.
                of_slot = vec![self.nest.vars.add(*size)];
                from.push(Ix::var(of_slot[0]));
            } else {
                from.push(ix);
            }
            taken.extend(of_slot.iter().copied());
            vars.extend(of_slot);
        }
        let n = self.folding.len();
        self.folding.extend(vars.iter().copied());
        let x = self.trace(x, from, guards)?;
        self.folding.truncate(n);
        let dtype = self.graph.node(id).dtype;
        let fold = self.add(Expr::Fold { x, vars, max }, dtype);
        self.nest.folds.push((fold, id));
        Ok(fold)
    }

    /// The index in dims `from` of the element at `at` in dims `to`.
    fn reshaped(&mut self, at: &[Ix], to: &[Dim], from: &[Dim]) -> Result<Vec<Ix>, Stop> {
        let (mut t, mut f) = (to.len(), from.len());
        let mut out = vec![Ix::default(); from.len()];
        // From the end, the shortest runs of dims with one product are reshaped by themselves.
        while f > 0 {
            let (t_end, f_end) = (t, f);
            let (mut have, mut want) = (Dim::fixed(1), Dim::fixed(1));
            loop {
                if f < f_end && have == want {
                    break;
                }
                if f > 0 && (want.checked_div(have).is_none() || f == f_end) || t == 0 {
                    let Some(dim) = f.checked_sub(1).map(|i| from[i]) else { break };
                    f -= 1;
                    want = want.checked_mul(dim).ok_or_else(too_large)?;
                } else {
                    t -= 1;
                    have = have.checked_mul(to[t]).ok_or_else(too_large)?;
                }
            }
            let place = linear(&at[t..t_end], &to[t..t_end]).ok_or_else(too_large)?;
            self.delinearize(place, &from[f..f_end], &mut out[f..f_end])?;
        }
        Ok(out)
    }

    fn delinearize(&mut self, place: Ix, dims: &[Dim], out: &mut [Ix]) -> Result<(), Stop> {
        let mut rest = place;
        for d in (1..dims.len()).rev() {
            if dims[d].is_one() {
                continue;
            }
            let (quotient, remainder) = match self.nest.vars.div_rem(&rest, dims[d]) {
                Division::Exact(q, r) => (q, r),
                Division::Needs(split)
                    if split.inner.as_fixed().is_none_or(|n| n >= INNER_MIN)
                        || dims[d].as_fixed().is_none_or(|n| n >= INNER_MIN) =>
                {
                    return Err(Stop::Split(split));
                }
                Division::Needs(_) | Division::Opaque => {
                    let q = self.opaque(Opaque::Quotient(rest.clone(), dims[d]));
                    (q, self.opaque(Opaque::Remainder(rest, dims[d])))
                }
            };
            out[d] = remainder;
            rest = quotient;
        }
        if let Some(first) = out.first_mut() {
            *first = rest;
        }
        Ok(())
    }
}

fn too_large() -> Stop {
    Stop::Unsupported(Unsupported::new("region", "a size overflows"))
}

/// The index of a root whose dims, ones aside, are leading dims of `dims`.
fn prefix(at: &[Ix], dims: &[Dim], shape: &[Dim]) -> Vec<Ix> {
    let mut main = at.iter().zip(dims).filter(|(_, d)| !d.is_one());
    let next = |d: &Dim| {
        if d.is_one() {
            return Ix::default();
        }
        main.next().map(|(ix, _)| ix.clone()).unwrap_or_default()
    };
    shape.iter().map(next).collect()
}
