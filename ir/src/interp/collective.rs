//! Several ranks in one process: each runs the function on arguments of its own, in a thread of its
//! own, and they meet in collective ops and hand each other messages.
//!
//! A rank is a place on the mesh of the module's axes, numbered with the last axis fastest. From
//! each rank to each other goes one queue. In a collective every rank of a group hands its operand
//! to all others, with what op it is for: whoever finds another op there than its own ends the run.
//! What a `_start` hands over is numbered along its axis, and lies there until its `done` takes it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

use super::{Data, Fault, Interp, Precision, Run, RunError, Sizes, Tensor};
use crate::formats;
use crate::module::{FuncId, Module, OpData};
use crate::op::Op;
use crate::text;
use crate::ty::{AxisId, DType};

/// The ranks of a mesh that lie with `rank` along `axis`, in the order of their places.
pub fn group(module: &Module, axis: AxisId, rank: usize) -> Vec<usize> {
    let (size, stride) = (module.axes[axis.0 as usize].size as usize, module.stride(axis) as usize);
    let place = rank / stride % size;
    (0..size).map(|i| rank + i * stride - place * stride).collect()
}

/// One of several ranks in a run.
pub(super) struct Rank<'a> {
    rank: usize,
    meeting: &'a Meeting,
    /// Collectives begun in two halves so far, by axis.
    begun: RefCell<BTreeMap<AxisId, u64>>,
}

/// Which of the collectives in two halves along an axis.
pub(super) type Flight = (AxisId, u64);

impl Interp<'_> {
    /// The results of every rank; `args` and the answer are by rank.
    pub fn run_ranks(
        &self,
        func: FuncId,
        args: Vec<Vec<Tensor>>,
        sizes: &Sizes,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let (module, precision) = (self.module, self.precision);
        run_programs(&vec![(module, func); module.n_ranks() as usize], precision, args, sizes)
    }
}

/// As [`Interp::run_ranks`], where each rank has a module and a function of its own; their meshes
/// are the same.
pub fn run_programs(
    programs: &[(&Module, FuncId)],
    precision: Precision,
    args: Vec<Vec<Tensor>>,
    sizes: &Sizes,
) -> Result<Vec<Vec<Tensor>>, RunError> {
    let n = programs.len();
    let at = |(module, f): &(&Module, FuncId)| {
        module.funcs.get(f.0 as usize).map_or("?", |f| &f.name).to_string()
    };
    let odd = programs.iter().find(|(module, _)| module.n_ranks() != n as u64);
    if args.len() != n || odd.is_some() {
        let mesh = programs.first().map_or(0, |(module, _)| module.n_ranks());
        let why = format!("the mesh has {mesh} ranks, and there are arguments for {}", args.len());
        let func = programs.first().map_or("?".into(), at);
        return Err(RunError { func, op: None, place: None, why });
    }
    let meeting = Meeting::new(n);
    let all: Vec<Result<Vec<Tensor>, RunError>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = args
            .into_iter()
            .zip(programs)
            .enumerate()
            .map(|(rank, (args, (module, func)))| {
                let meeting = &meeting;
                scope.spawn(move || {
                    let interp = Interp::new(module, precision);
                    let own = Rank { rank, meeting, begun: RefCell::default() };
                    let results = interp.run_as(*func, args, sizes, Some(own));
                    meeting.leave(rank);
                    results
                })
            })
            .collect();
        // The interpreter does not panic on verified IR; if it does, so does this.
        ranks.into_iter().map(|r| r.join().expect("a rank does not panic")).collect()
    });
    // Of several failures the one that is not about another rank says why.
    let about_others = |e: &RunError| e.why.starts_with(LEFT);
    let mut errors: Vec<&RunError> = all.iter().filter_map(|r| r.as_ref().err()).collect();
    errors.sort_by_key(|e| about_others(e));
    match errors.first() {
        Some(e) => Err((*e).clone()),
        None => all.into_iter().collect(),
    }
}

const LEFT: &str = "another rank has ended";

/// A value and what it was brought to: an op and its attributes.
struct Brought {
    flight: Option<Flight>,
    what: String,
    x: Tensor,
}

/// Where ranks hand each other values.
struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
}

struct Table {
    /// From rank `i` to rank `j` at `i * n + j`.
    queues: Vec<VecDeque<Brought>>,
    left: Vec<bool>,
}

impl Meeting {
    fn new(n: usize) -> Meeting {
        let queues = (0..n * n).map(|_| VecDeque::new()).collect();
        let table = Mutex::new(Table { queues, left: vec![false; n] });
        Meeting { table, changed: Condvar::new() }
    }

    fn send(&self, from: usize, to: usize, what: Brought) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let n = table.left.len();
        table.queues[from * n + to].push_back(what);
        self.changed.notify_all();
    }

    /// The next value of a rank: of a flight, or of what is not in two halves.
    fn recv(&self, from: usize, to: usize, flight: Option<Flight>) -> Result<Brought, Fault> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let n = table.left.len();
        loop {
            let queue = &mut table.queues[from * n + to];
            let next = queue.iter().position(|b| b.flight == flight);
            if let Some(brought) = next.and_then(|i| queue.remove(i)) {
                return Ok(brought);
            }
            if table.left[from] {
                return Err(format!("{LEFT}, which this op needs"));
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands the operand of an op to the others of `group`.
    fn bring(&self, rank: usize, group: &[usize], op: &str, flight: Option<Flight>, x: &Tensor) {
        for other in group.iter().filter(|other| **other != rank) {
            self.send(rank, *other, Brought { flight, what: op.to_string(), x: x.clone() });
        }
    }

    /// The operands of all ranks of `group` at this op, in its order.
    fn collect(
        &self,
        rank: usize,
        group: &[usize],
        op: &str,
        flight: Option<Flight>,
        x: &Tensor,
    ) -> Result<Vec<Tensor>, Fault> {
        let mut all = vec![];
        for other in group {
            if *other == rank {
                all.push(x.clone());
                continue;
            }
            let theirs = self.recv(*other, rank, flight)?;
            if theirs.what != op {
                let theirs = theirs.what;
                return Err(format!("rank {rank} is at {op}, and rank {other} at {theirs}"));
            }
            all.push(theirs.x);
        }
        Ok(all)
    }

    fn leave(&self, rank: usize) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).left[rank] = true;
        self.changed.notify_all();
    }
}

/// One end of a message: what it brings, if it is the receiving one.
pub(super) fn message(run: &Run, op: &OpData, x: Option<Tensor>) -> Result<Vec<Tensor>, Fault> {
    let axis = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
    let Some(Rank { rank, meeting, .. }) = &run.rank else {
        return Err(format!("needs the {} ranks of the mesh to run", run.module.n_ranks()));
    };
    let group = group(run.module, axis, *rank);
    let end = |name: &str| {
        let place = op.attrs.get_int(name).and_then(|p| group.get(p as usize));
        place.copied().ok_or("names no place along the axis")
    };
    match x {
        Some(x) => {
            let what = op.op.name().into();
            meeting.send(*rank, end("to")?, Brought { flight: None, what, x });
            Ok(vec![])
        }
        None => {
            let from = end("from")?;
            match meeting.recv(from, *rank, None)? {
                Brought { what, x, .. } if what == Op::Send.name() => Ok(vec![x]),
                Brought { what, .. } => {
                    Err(format!("rank {rank} receives, and rank {from} is at {what}"))
                }
            }
        }
    }
}

/// What an operand is brought to, as all ranks must say it alike.
fn what(run: &Run, op: &OpData, x: &Tensor) -> String {
    let attrs = op.attrs.iter();
    let attrs = attrs.map(|(n, v)| format!("{n} = {}", text::print_attr(run.module, v)));
    let attrs = attrs.collect::<Vec<_>>().join(", ");
    format!("{} {{{attrs}}} of {}{:?}", op.op.name(), x.dtype.name(), x.dims)
}

/// Hands the operands of a collective's first half to the others.
pub(super) fn begin(run: &Run, op: &OpData, xs: &[&Tensor]) -> Result<Flight, Fault> {
    let axis = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
    let Some(Rank { rank, meeting, begun }) = &run.rank else { return Ok((axis, 0)) };
    let mut begun = begun.borrow_mut();
    let n = begun.entry(axis).or_default();
    *n += 1;
    let group = group(run.module, axis, *rank);
    for x in xs {
        meeting.bring(*rank, &group, &what(run, op, x), Some((axis, *n)), x);
    }
    Ok((axis, *n))
}

/// The rank's place along the op's axis, and what all brought there, by place. What is of a flight
/// has been brought by its `begin`.
pub(super) fn of_group(
    run: &Run,
    op: &OpData,
    flight: Option<Flight>,
    x: &Tensor,
) -> Result<(usize, Vec<Tensor>), Fault> {
    let axis = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
    let n = run.module.n_ranks();
    let (place, all) = match &run.rank {
        Some(Rank { rank, meeting, .. }) => {
            let what = what(run, op, x);
            let group = group(run.module, axis, *rank);
            let place = group.iter().position(|r| r == rank);
            let place = place.ok_or("a rank lies outside its group")?;
            if flight.is_none() {
                meeting.bring(*rank, &group, &what, None, x);
            }
            (place, meeting.collect(*rank, &group, &what, flight, x)?)
        }
        None if n == 1 => (0, vec![x.clone()]),
        None => return Err(format!("needs the {n} ranks of the mesh to run")),
    };
    Ok((place, all))
}

pub(super) fn run(
    run: &Run,
    op: &OpData,
    flight: Option<Flight>,
    x: &Tensor,
) -> Result<Tensor, Fault> {
    if op.op == Op::Spread {
        return Ok(x.clone());
    }
    let (place, all) = of_group(run, op, flight, x)?;
    let all: Vec<&Tensor> = all.iter().collect();
    let dim = op.attrs.get_int("dim").unwrap_or(0) as usize;
    match op.op.started().unwrap_or(op.op) {
        Op::AllGather => concat(&all, dim),
        Op::Part => part(all[place], dim, place, all.len()),
        Op::ReduceScatter => part(&sum(run, &all)?, dim, place, all.len()),
        _ => sum(run, &all),
    }
}

/// In a binary tree over places, from zero: a sum is never -0.
fn sum(run: &Run, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let round = |x: f64| match run.precision {
        Precision::F64 => x,
        Precision::Stated => formats::round(DType::F32, x as f32) as f64,
    };
    let [one] = xs else {
        let (left, right) = xs.split_at(xs.len().next_power_of_two() / 2);
        let (left, right) = (sum(run, left)?, sum(run, right)?);
        let both = left.floats()?.iter().zip(right.floats()?);
        let data = Data::Float(both.map(|(x, y)| round(x + y)).collect());
        return Ok(Tensor { data, ..left.clone() });
    };
    let data = Data::Float(one.floats()?.iter().map(|x| 0.0 + x).collect());
    Ok(Tensor { data, ..(*one).clone() })
}

/// Blocks of `dim` and what lies inside it, for each index of the dims before.
fn blocks(x: &Tensor, dim: usize) -> (usize, usize) {
    (x.dims[..dim].iter().product(), x.dims[dim..].iter().product())
}

fn concat(xs: &[&Tensor], dim: usize) -> Result<Tensor, Fault> {
    let (outer, block) = blocks(xs[0], dim);
    let mut data = xs[0].data.none();
    for i in 0..outer {
        for x in xs {
            data.append(&x.data, i * block, block)?;
        }
    }
    let mut dims = xs[0].dims.clone();
    dims[dim] *= xs.len();
    Ok(Tensor { dtype: xs[0].dtype, dims, data, scales: None })
}

fn part(x: &Tensor, dim: usize, place: usize, n: usize) -> Result<Tensor, Fault> {
    let (outer, block) = blocks(x, dim);
    let mut data = x.data.none();
    for i in 0..outer {
        data.append(&x.data, i * block + place * (block / n), block / n)?;
    }
    let mut dims = x.dims.clone();
    dims[dim] /= n;
    Ok(Tensor { dtype: x.dtype, dims, data, scales: None })
}
