//! Several ranks in one process: each runs the function on arguments of its own, in a thread of its
//! own, and they meet in collective ops.
//!
//! A rank is a place on the mesh of the module's axes, numbered with the last axis fastest. All
//! ranks meet in every collective, also those of other groups, and must come with the same op on
//! the same type: whoever finds another op there than its own ends the run.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
}

impl Interp<'_> {
    /// The results of every rank; `args` and the answer are by rank.
    pub fn run_ranks(
        &self,
        func: FuncId,
        args: Vec<Vec<Tensor>>,
        sizes: &Sizes,
    ) -> Result<Vec<Vec<Tensor>>, RunError> {
        let (module, precision) = (self.module, self.precision);
        let n = module.n_ranks() as usize;
        if args.len() != n {
            let why = format!("the mesh has {n} ranks, and there are arguments for {}", args.len());
            let func = module.funcs.get(func.0 as usize).map_or("?", |f| &f.name).to_string();
            return Err(RunError { func, op: None, place: None, why });
        }
        let meeting = Meeting::new(n);
        let all: Vec<Result<Vec<Tensor>, RunError>> = std::thread::scope(|scope| {
            let ranks: Vec<_> = args
                .into_iter()
                .enumerate()
                .map(|(rank, args)| {
                    let meeting = &meeting;
                    scope.spawn(move || {
                        let rank = Some(Rank { rank, meeting });
                        let interp = Interp::new(module, precision);
                        let results = interp.run_as(func, args, sizes, rank);
                        meeting.leave();
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
}

const LEFT: &str = "another rank has ended";

/// Where ranks hand each other their operands.
struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    /// What each rank brought, and to which op.
    brought: Vec<Option<(String, Tensor)>>,
    /// Everything that was brought, once all are there.
    whole: Option<Arc<Vec<(String, Tensor)>>>,
    n_taken: usize,
    n_left: usize,
}

impl Meeting {
    fn new(n: usize) -> Meeting {
        let brought = (0..n).map(|_| None).collect();
        let table = Mutex::new(Table { brought, ..Table::default() });
        Meeting { table, changed: Condvar::new() }
    }

    /// The operands of all ranks at this op, by rank.
    fn meet(&self, rank: usize, op: String, x: Tensor) -> Result<Vec<Tensor>, Fault> {
        // The last to take clears the table; who is early for the next op waits for that.
        let mut table = self.wait(|t| t.whole.is_none())?;
        table.brought[rank] = Some((op.clone(), x));
        if table.brought.iter().all(Option::is_some) {
            let all = table.brought.iter_mut().filter_map(Option::take).collect();
            table.whole = Some(Arc::new(all));
            self.changed.notify_all();
        }
        drop(table);
        let mut table = self.wait(|t| t.whole.is_some())?;
        let all = table.whole.clone().ok_or("nothing was brought")?;
        table.n_taken += 1;
        if table.n_taken == all.len() {
            (table.whole, table.n_taken) = (None, 0);
            self.changed.notify_all();
        }
        drop(table);
        if let Some((other, (theirs, _))) = all.iter().enumerate().find(|(_, (o, _))| *o != op) {
            return Err(format!("rank {rank} is at {op}, and rank {other} at {theirs}"));
        }
        Ok(all.iter().map(|(_, x)| x.clone()).collect())
    }

    fn wait(&self, ready: impl Fn(&Table) -> bool) -> Result<MutexGuard<'_, Table>, Fault> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        while !ready(&table) {
            if table.n_left > 0 && table.whole.is_none() {
                return Err(format!("{LEFT}, which this op needs"));
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table)
    }

    fn leave(&self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).n_left += 1;
        self.changed.notify_all();
    }
}

/// The rank's place along the op's axis, and what all brought there, by place.
pub(super) fn of_group(run: &Run, op: &OpData, x: &Tensor) -> Result<(usize, Vec<Tensor>), Fault> {
    let axis = op.attrs.get_axis("axis").ok_or("names no mesh axis")?;
    let n = run.module.n_ranks() as usize;
    let (rank, all) = match &run.rank {
        Some(Rank { rank, meeting }) => {
            let attrs = op.attrs.iter();
            let attrs = attrs.map(|(n, v)| format!("{n} = {}", text::print_attr(run.module, v)));
            let attrs = attrs.collect::<Vec<_>>().join(", ");
            let what = format!("{} {{{attrs}}} of {}{:?}", op.op.name(), x.dtype.name(), x.dims);
            (*rank, meeting.meet(*rank, what, x.clone())?)
        }
        None if n == 1 => (0, vec![x.clone()]),
        None => return Err(format!("needs the {n} ranks of the mesh to run")),
    };
    let group = group(run.module, axis, rank);
    let place = group.iter().position(|r| *r == rank).ok_or("a rank lies outside its group")?;
    Ok((place, group.iter().map(|r| all[*r].clone()).collect()))
}

pub(super) fn run(run: &Run, op: &OpData, x: &Tensor) -> Result<Tensor, Fault> {
    let (place, all) = of_group(run, op, x)?;
    let all: Vec<&Tensor> = all.iter().collect();
    let dim = op.attrs.get_int("dim").unwrap_or(0) as usize;
    match op.op {
        Op::AllGather => concat(&all, dim),
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
