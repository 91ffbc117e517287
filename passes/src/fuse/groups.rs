//! Which ops go together.
//!
//! From the last op to the first, each joins the groups that read it, if the whole may run as one
//! loop nest over the elements of one shape:
//! - between its ops stand reshapes and broadcasts of a row's value along the row, nothing else:
//!   an element is needed where it is made, and once (a value that a broadcast repeats over rows
//!   would be computed again for each);
//! - every op runs over that shape or over its leading dims; ops that look at whole rows have rows
//!   of one length;
//! - a sum over other dims than the last ends a group; then nothing else leaves it, and nothing in
//!   it looks at rows;
//! - what leaves it has the shape, or is a value of each row;
//! - no path leads out of it and back.
//!
//! Codes in groups within rows are made with the rows. Where a kernel of another kind made those,
//! or they come from outside, codes join a region that reads them too. Rows of attention's result
//! become codes where it ends: it and its codes are a region, and only they; whether a machine's
//! kernel does both or a second one encodes is its backend's to say.

use std::collections::BTreeSet;

use weft_ir::attr::Attrs;
use weft_ir::dim::{Dim, product};
use weft_ir::module::{Def, Func, Module, OpData, OpId, ValueId};
use weft_ir::op::{CostRule, Op, Trait};

/// Ops of a region: more would not fit registers and take long to compile.
const OPS_MAX: usize = 48;
/// Operands and results of a region together.
const BUFFERS_MAX: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// May be part of a region.
    Fuses,
    /// Movement and constants: copied to where they are read.
    Moves,
    Apart,
}

/// An op that reads a value, past movement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    /// Place in the body; `None` where the function returns it.
    by: Option<usize>,
    value: ValueId,
    /// Element for element, or row for row.
    plain: bool,
}

/// What an op runs over.
#[derive(Clone)]
struct Reach {
    shape: Vec<Dim>,
    /// The length of the rows it looks at as a whole.
    row: Option<Dim>,
    /// Sums over other dims than the last.
    sums: bool,
}

/// A function body as fusion sees it.
pub struct Graph<'a> {
    pub func: &'a Func,
    kinds: Vec<Kind>,
    reach: Vec<Option<Reach>>,
    uses: Vec<Vec<Use>>,
    /// Of what comes from outside.
    uses_of_params: Vec<Use>,
    /// Ops that must run after each op.
    after: Vec<BTreeSet<usize>>,
    /// What must run before an op whatever it reads: who reads the state that it changes, and the
    /// message before it.
    before: Vec<BTreeSet<usize>>,
    place: Vec<Option<usize>>,
}

impl<'a> Graph<'a> {
    pub fn new(module: &Module, func: &'a Func) -> Graph<'a> {
        let n = func.body.len();
        let mut place = vec![None; func.n_ops()];
        for (at, id) in func.body.iter().enumerate() {
            place[id.0 as usize] = Some(at);
        }
        let ops: Vec<&OpData> = func.body.iter().map(|id| func.op(*id)).collect();
        let mut graph = Graph {
            func,
            kinds: ops.iter().map(|op| kind(op)).collect(),
            reach: ops.iter().map(|op| reach(func, op)).collect(),
            uses: vec![vec![]; n],
            uses_of_params: vec![],
            after: vec![BTreeSet::new(); n],
            before: vec![BTreeSet::new(); n],
            place,
        };
        graph.find_uses();
        graph.find_readers(module);
        graph.order_messages();
        for at in 0..n {
            let users: Vec<usize> = graph.uses[at].iter().filter_map(|u| u.by).collect();
            graph.after[at].extend(users);
            for earlier in graph.before[at].clone() {
                graph.after[earlier].insert(at);
            }
        }
        graph
    }

    pub fn kind(&self, at: usize) -> Kind {
        self.kinds[at]
    }

    /// Who makes a value: place in the body, and op.
    pub fn maker(&self, v: ValueId) -> Option<(usize, OpId)> {
        let Def::Result { op, .. } = self.func.value(v).def else { return None };
        Some((self.place[op.0 as usize]?, op))
    }

    /// Who reads, element for element, what an op without other operands reads.
    fn readers_beside(&self, at: usize) -> Vec<usize> {
        let own = |u: &&Use| u.by == Some(at) && u.plain;
        let uses = || self.uses.iter().flatten().chain(&self.uses_of_params);
        let values: BTreeSet<ValueId> = uses().filter(own).map(|u| u.value).collect();
        let same = |u: &&Use| u.plain && values.contains(&u.value) && u.by != Some(at);
        uses().filter(same).filter_map(|u| u.by).collect()
    }

    pub fn before(&self, at: usize) -> &BTreeSet<usize> {
        &self.before[at]
    }

    /// Hands every use of a value to the op that makes it, past movement.
    fn find_uses(&mut self) {
        for at in 0..self.func.body.len() {
            if self.kinds[at] == Kind::Moves {
                continue;
            }
            for x in &self.func.op(self.func.body[at]).operands {
                self.add_use(*x, Some(at), true);
            }
        }
        for r in &self.func.results {
            self.add_use(*r, None, true);
        }
    }

    fn add_use(&mut self, value: ValueId, by: Option<usize>, plain: bool) {
        let Some((at, id)) = self.maker(value) else {
            self.uses_of_params.push(Use { by, value, plain });
            return;
        };
        let op = self.func.op(id);
        if self.kinds[at] == Kind::Moves {
            let plain = plain && is_plain(self.func, op);
            for x in op.operands.clone() {
                self.add_use(x, by, plain);
            }
            return;
        }
        let new = Use { by, value, plain };
        if !self.uses[at].contains(&new) {
            self.uses[at].push(new);
        }
    }

    /// Who reads a state must run before it changes.
    fn find_readers(&mut self, module: &Module) {
        for at in 0..self.func.body.len() {
            for state in consumed(module, self.func, self.func.op(self.func.body[at])) {
                for read in 0..self.func.body.len() {
                    let op = self.func.op(self.func.body[read]);
                    if op.op == Op::Read && op.operands[0] == state {
                        let users = self.uses[read].iter().filter_map(|u| u.by);
                        let others: Vec<usize> = users.filter(|u| *u != at).collect();
                        self.before[at].extend(others);
                        self.before[at].insert(read);
                    }
                }
                // What the op that made the state returned beside it.
                if let Some((maker, _)) = self.maker(state) {
                    let shown = self.uses[maker].iter().filter(|u| u.value != state);
                    let others: Vec<usize> =
                        shown.filter_map(|u| u.by).filter(|u| *u != at).collect();
                    self.before[at].extend(others);
                }
            }
        }
    }

    /// What a rank sends first is received first.
    fn order_messages(&mut self) {
        let func = self.func;
        let is_message = |at: &usize| func.op(func.body[*at]).op.has(Trait::Message);
        let messages: Vec<usize> = (0..func.body.len()).filter(is_message).collect();
        for pair in messages.windows(2) {
            self.before[pair[1]].insert(pair[0]);
        }
    }

    /// The values of a group that are used outside it, each with its dims as a result of the
    /// region.
    pub fn results_of(&self, members: &[usize]) -> Vec<(ValueId, Vec<Dim>)> {
        let set: BTreeSet<usize> = members.iter().copied().collect();
        // Attention's results lie as they are.
        let attends =
            members.iter().any(|at| self.func.op(self.func.body[*at]).op == Op::Attention);
        let shape = self.shape(members).unwrap_or_default();
        let mut out: Vec<(ValueId, Vec<Dim>)> = vec![];
        for at in members {
            for r in &self.func.op(self.func.body[*at]).results {
                let leaves = |u: &&Use| u.value == *r && u.by.is_none_or(|b| !set.contains(&b));
                if self.uses[*at].iter().any(|u| leaves(&u)) {
                    let own = &self.func.ty(*r).dims;
                    let sums = self.reach[*at].as_ref().is_some_and(|x| x.sums);
                    let dims = if sums || attends { None } else { leading(own, &shape) };
                    out.push((*r, dims.unwrap_or_else(|| own.clone())));
                }
            }
        }
        out
    }

    /// The shape a group runs over: that of an op that looks at rows, else the largest of the last
    /// op that has it.
    fn shape(&self, members: &[usize]) -> Option<Vec<Dim>> {
        let all: Vec<&Reach> = members.iter().filter_map(|m| self.reach[*m].as_ref()).collect();
        if let Some(rows) = all.iter().find(|r| r.row.is_some()) {
            return Some(rows.shape.clone());
        }
        let last = all.iter().rev().find(|r| all.iter().all(|o| fits(&o.shape, &r.shape)));
        last.map(|r| r.shape.clone())
    }

    fn may_fuse(&self, members: &BTreeSet<usize>, groups: &[Option<usize>]) -> bool {
        let list: Vec<usize> = members.iter().copied().collect();
        let inside = |u: &Use| u.by.is_some_and(|b| members.contains(&b));
        let Some(shape) = self.shape(&list) else { return false };
        let row = list.iter().find_map(|m| self.reach[*m].as_ref().and_then(|r| r.row));
        for at in &list {
            let Some(reach) = &self.reach[*at] else { return false };
            let same = product(&reach.shape) == product(&shape);
            let fitting = same || fits(&reach.shape, &shape);
            let rows = reach.row.is_none() || same && reach.row == row;
            let plain = self.uses[*at].iter().filter(|u| inside(u)).all(|u| u.plain);
            if !fitting || !rows || !plain || reach.sums && self.uses[*at].iter().any(inside) {
                return false;
            }
        }
        let results = self.results_of(&list);
        let sums = list.iter().filter(|m| self.reach[**m].as_ref().is_some_and(|r| r.sums));
        let leave = match sums.count() {
            0 => results.iter().all(|(v, _)| self.leaves_well(*v, &shape, row)),
            // A row's value would be computed again for each of its elements.
            1 => results.len() == 1 && row.is_none(),
            _ => false,
        };
        leave
            && members.len() <= OPS_MAX
            && self.n_operands(members) + results.len() <= BUFFERS_MAX
            && !self.returns(members, groups)
    }

    /// May a value of this shape, or of a row, be a result?
    fn leaves_well(&self, v: ValueId, shape: &[Dim], row: Option<Dim>) -> bool {
        let dims = &self.func.ty(v).dims;
        let (own, all) = (product(dims), product(shape));
        if self.maker(v).is_some_and(|(_, id)| encodes_rows(self.func.op(id))) {
            // Codes, or the scales of a row's groups.
            return true;
        }
        let of_row = row.and_then(|row| own?.checked_mul(row));
        (own == all || of_row.is_some() && of_row == all) && leading(dims, shape).is_some()
    }

    fn n_operands(&self, members: &BTreeSet<usize>) -> usize {
        let mut seen = BTreeSet::new();
        let mut open: Vec<ValueId> = vec![];
        for at in members {
            open.extend(&self.func.op(self.func.body[*at]).operands);
        }
        while let Some(v) = open.pop() {
            match self.maker(v) {
                Some((at, _)) if members.contains(&at) => {}
                Some((at, id)) if self.kinds[at] == Kind::Moves => {
                    open.extend(&self.func.op(id).operands);
                }
                _ => {
                    seen.insert(v);
                }
            }
        }
        seen.len()
    }

    /// Does a path lead out of the group and back, groups being one op each?
    fn returns(&self, members: &BTreeSet<usize>, groups: &[Option<usize>]) -> bool {
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut open: Vec<usize> = vec![];
        let outside = |from: usize| {
            let next = self.after[from].iter().copied();
            next.filter(|n| !members.contains(n)).collect::<Vec<_>>()
        };
        members.iter().for_each(|m| open.extend(outside(*m)));
        while let Some(at) = open.pop() {
            if !seen.insert(at) {
                continue;
            }
            let own = groups[at].is_some();
            let together = (0..groups.len()).filter(|o| own && groups[*o] == groups[at]);
            let mates: Vec<usize> = if own { together.collect() } else { vec![at] };
            for mate in mates {
                seen.insert(mate);
                for next in &self.after[mate] {
                    if members.contains(next) {
                        return true;
                    }
                    open.push(*next);
                }
            }
        }
        false
    }
}

/// The encodings of an attention's whole rows.
fn codes_of_rows(graph: &Graph, at: usize) -> Vec<usize> {
    let op = |at: usize| graph.func.op(graph.func.body[at]);
    let o = op(at).results[0];
    let row = graph.func.ty(o).dims.get(2..).and_then(product);
    let of_rows = |by: usize| {
        let x = op(by).operands[0];
        encodes_rows(op(by)) && graph.func.ty(x).last() == row && graph.func.past_reshapes(x) == o
    };
    let uses = graph.uses[at].iter().filter(|u| u.value == o).filter_map(|u| u.by);
    uses.filter(|by| of_rows(*by)).collect()
}

/// Groups of ops by their places in the body, each ascending.
pub fn group(graph: &Graph) -> Vec<Vec<usize>> {
    let n = graph.func.body.len();
    let mut groups: Vec<Option<usize>> = vec![None; n];
    for at in (0..n).filter(|at| graph.func.op(graph.func.body[*at]).op == Op::Attention) {
        let codes = codes_of_rows(graph, at);
        let members: BTreeSet<usize> = codes.into_iter().chain([at]).collect();
        if members.len() > 1 && !graph.returns(&members, &groups) {
            members.iter().for_each(|m| groups[*m] = Some(at));
        }
    }
    for at in (0..n).rev().filter(|at| graph.kinds[*at] == Kind::Fuses) {
        if groups[at].is_some() {
            continue;
        }
        groups[at] = Some(at);
        let readers: BTreeSet<usize> =
            graph.uses[at].iter().filter_map(|u| u.by.and_then(|b| groups[b])).collect();
        for reader in readers {
            // The group may have been joined by way of another.
            let theirs = (0..n).filter(|o| groups[*o] == Some(reader));
            let ours = (0..n).filter(|o| groups[*o] == groups[at]);
            let members: BTreeSet<usize> = theirs.chain(ours).collect();
            if groups[at] != Some(reader) && graph.may_fuse(&members, &groups) {
                members.iter().for_each(|m| groups[*m] = Some(reader));
            }
        }
    }
    // What a kernel of another kind made, or comes from outside, is read once for codes of it and
    // for a region that needs it anyway.
    for at in (0..n).filter(|at| encodes_rows(graph.func.op(graph.func.body[*at]))) {
        for other in graph.readers_beside(at).into_iter().filter_map(|o| groups[o]) {
            let ours = (0..n).filter(|o| groups[*o] == groups[at] || groups[*o] == Some(other));
            let members: BTreeSet<usize> = ours.collect();
            if groups[at] != Some(other) && graph.may_fuse(&members, &groups) {
                members.iter().for_each(|m| groups[*m] = Some(other));
                break;
            }
        }
    }
    let names: BTreeSet<usize> = groups.iter().flatten().copied().collect();
    let members = |g: usize| (0..n).filter(|at| groups[*at] == Some(g)).collect();
    names.into_iter().map(members).collect()
}

fn kind(op: &OpData) -> Kind {
    let def = op.op.def();
    let counted = matches!(def.cost, CostRule::PerElement(_) | CostRule::PerInput(_));
    let of_rows = def.has(Trait::Composite) && op.op.is_pure() && counted;
    if def.operands.is_empty() && op.op.is_pure() {
        Kind::Moves
    } else if def.has(Trait::Movement) {
        // Concat, pad and shift choose between elements, which a kernel can do and strides cannot.
        let strided = matches!(op.op, Op::Reshape | Op::Transpose | Op::Slice | Op::Broadcast);
        if strided { Kind::Moves } else { Kind::Fuses }
    } else if def.has(Trait::Pointwise)
        || def.has(Trait::Reduction)
        || of_rows && !def.has(Trait::Blocks)
        || encodes_rows(op)
    {
        Kind::Fuses
    } else {
        Kind::Apart
    }
}

/// Does it make codes in groups that lie within rows?
fn encodes_rows(op: &OpData) -> bool {
    op.op == Op::Encode && matches!(op.attrs.get_ints("group"), Some([1, _]))
}

fn reach(func: &Func, op: &OpData) -> Option<Reach> {
    if kind(op) != Kind::Fuses {
        return None;
    }
    let dims = |v: ValueId| func.ty(v).dims.clone();
    let def = op.op.def();
    if def.has(Trait::Reduction) {
        let shape = dims(op.operands[0]);
        let folded = op.attrs.get_ints("dims").unwrap_or(&[]);
        let first = shape.len().saturating_sub(folded.len());
        let last = (first..shape.len()).all(|d| folded.contains(&(d as i64)));
        let row = product(&shape[first..])?;
        // A sum of everything has one row, and rows run on different threads.
        let sums = !last || first == 0;
        return Some(Reach { row: (!sums).then_some(row), shape, sums });
    }
    if def.has(Trait::Composite) || encodes_rows(op) {
        let shape = dims(op.operands[0]);
        let row = shape.last().copied();
        return Some(Reach { shape, row, sums: false });
    }
    Some(Reach { shape: dims(op.results[0]), row: None, sums: false })
}

/// Does movement leave each element, or each row's value, in its place?
fn is_plain(func: &Func, op: &OpData) -> bool {
    match op.op {
        Op::Reshape => true,
        Op::Broadcast => spreads_rows(func, op),
        _ => op.operands.is_empty(),
    }
}

/// Is this a broadcast of values along trailing dims?
fn spreads_rows(func: &Func, op: &OpData) -> bool {
    let (from, to) = (&func.ty(op.operands[0]).dims, &func.ty(op.results[0]).dims);
    let map: &Attrs = &op.attrs;
    let places = map.get_ints("dims").unwrap_or(&[]);
    let long =
        |dims: &[Dim]| -> Vec<usize> { (0..dims.len()).filter(|d| !dims[*d].is_one()).collect() };
    let kept = long(from);
    let lead = long(to);
    kept.iter().zip(&lead).all(|(f, t)| places.get(*f) == Some(&(*t as i64)) && from[*f] == to[*t])
        && kept.len() <= lead.len()
}

/// Is `dims`, but for how it is cut, leading dims of `shape`?
fn fits(dims: &[Dim], shape: &[Dim]) -> bool {
    let all = product(dims);
    (0..=shape.len()).any(|k| all.is_some() && product(&shape[..k]) == all)
}

/// The leading dims of `shape` that hold as many elements as `dims`.
fn leading(dims: &[Dim], shape: &[Dim]) -> Option<Vec<Dim>> {
    let all = product(dims)?;
    // As many dims as may be: a dim of one element more is a dim of the shape still.
    let k = (0..=shape.len()).rev().find(|k| product(&shape[..*k]) == Some(all))?;
    let whole = dims == &shape[..k];
    let shorter = (0..k).find(|k| dims == &shape[..*k]);
    let k = if whole { k } else { shorter.unwrap_or(k) };
    Some(shape[..k].to_vec())
}

/// The states an op changes.
fn consumed(module: &Module, func: &Func, op: &OpData) -> Vec<ValueId> {
    if op.op.has(Trait::State) {
        return op.operands.iter().copied().filter(|v| func.ty(*v).state).collect();
    }
    let Some(callee) = crate::rewrite::callee(op) else { return vec![] };
    let donated = &module.func(callee).donated;
    donated.iter().map(|(p, _)| op.operands[*p as usize]).collect()
}
