//! What a step adds up over its micro-batches, in the order in which `train_step`'s loops add it.

use std::collections::BTreeMap;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{FuncId, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::Type;

use super::flat::{Half, Work, broken};
use super::row::Row;
use crate::PassError;

/// Results of a micro-batch that are there at the same time, added up together.
pub struct Group {
    /// Where and when they are made; on every rank if by no stage.
    pub home: Option<Work>,
    pub values: Vec<ValueId>,
    /// Whole sums by level (0 is all of it) and place.
    parts: BTreeMap<(usize, usize), Vec<ValueId>>,
    /// Begun ones, and how many of their summands they have, which are added in order.
    begun: BTreeMap<(usize, usize), (usize, Vec<ValueId>)>,
    adders: BTreeMap<(bool, usize), FuncId>,
}

impl Group {
    pub fn new(home: Option<Work>) -> Group {
        Group {
            home,
            values: vec![],
            parts: BTreeMap::new(),
            begun: BTreeMap::new(),
            adders: BTreeMap::new(),
        }
    }

    /// Adds what a micro-batch gives, and every sum that is complete with it. Of a sum of many
    /// summands there is one so far, and those that came before their turn.
    pub fn add(&mut self, row: &mut Row, turns: &[usize], micro: usize) -> Result<(), PassError> {
        let mut own = vec![];
        for v in &self.values {
            own.push(row.value((*v, micro))?);
        }
        let (mut level, mut place) = (turns.len(), micro);
        self.parts.insert((level, place), own);
        while level > 0 {
            let (n, parent) = (turns[level - 1], place / turns[level - 1]);
            let above = (level - 1, parent);
            let (mut n_added, mut sum) = self.begun.remove(&above).unwrap_or_default();
            while n_added < n
                && let Some(next) = self.next(level, parent * n, n_added)
            {
                let of_micro = level == turns.len() && n_added == 0;
                let so_far = (n_added > 0).then_some(sum);
                n_added += next.len();
                let summands: Vec<_> = so_far.into_iter().chain(next).collect();
                sum = self.sum(row, of_micro, &summands)?;
            }
            if n_added < n {
                if n_added > 0 {
                    self.begun.insert(above, (n_added, sum));
                }
                break;
            }
            (level, place) = above;
            self.parts.insert(above, sum);
        }
        Ok(())
    }

    /// The summands that a sum over places from `first` on takes next: two to begin with, then one.
    fn next(&mut self, level: usize, first: usize, n_added: usize) -> Option<Vec<Vec<ValueId>>> {
        let places = match n_added {
            0 => first..first + 2,
            _ => first + n_added..first + n_added + 1,
        };
        if !places.clone().all(|p| self.parts.contains_key(&(level, p))) {
            return None;
        }
        Some(places.filter_map(|p| self.parts.remove(&(level, p))).collect())
    }

    /// The whole sums, where the rank has a part in them. Of a stage that two ranks have, each with
    /// its half of the micro-batches, both exchange theirs.
    pub fn total(
        &mut self,
        row: &mut Row,
        turns: &[usize],
    ) -> Result<Option<Vec<ValueId>>, PassError> {
        let holders = self.home.map(|w| row.plan.holders(w.stage));
        let own = holders.as_ref().and_then(|h| h.iter().position(|r| *r == row.plan.place));
        match (holders.as_deref(), own) {
            (Some([_, _]), None) | (Some([_]), None) => return Ok(None),
            (Some(both @ [_, _]), Some(own)) => {
                let [half] = [self.parts.remove(&(1, own))];
                let half = half.ok_or_else(|| broken("half of the micro-batches are missing"))?;
                let other = both[1 - own];
                for x in &half {
                    row.send(*x, other)?;
                }
                let mut theirs = vec![];
                for (x, v) in half.iter().zip(&self.values) {
                    let ty = row.b.ty(*x).clone();
                    let name = row.plan.flat.func.value(*v).name.clone().unwrap_or_default();
                    theirs.push(row.recv(&ty, other, &format!("{name}.half"))?);
                }
                let halves = if own == 0 { [half, theirs] } else { [theirs, half] };
                let sum = self.sum(row, turns.len() == 1, &halves)?;
                self.parts.insert((0, 0), sum);
            }
            _ => {}
        }
        let whole = self.parts.remove(&(0, 0));
        whole.map(Some).ok_or_else(|| broken("not all micro-batches are added"))
    }

    /// The sums of several summands, in their order. Micro-batches begin at zero, so that a sum is
    /// never -0; sums of them are none already.
    fn sum(
        &mut self,
        row: &mut Row,
        of_micro: bool,
        all: &[Vec<ValueId>],
    ) -> Result<Vec<ValueId>, PassError> {
        let f = match self.adders.get(&(of_micro, all.len())) {
            Some(f) => *f,
            None => {
                let f = self.adder(row, of_micro, all)?;
                self.adders.insert((of_micro, all.len()), f);
                f
            }
        };
        let mut xs: Vec<ValueId> = all.iter().flatten().copied().collect();
        if of_micro {
            xs.push(row.b.constant(0.0, Type::f32([]))?);
        }
        let attrs = Attrs::new().func("func", f).flag("noinline", true);
        Ok(row.b.emit_calling(row.module, Op::Call, &xs, attrs)?)
    }

    fn adder(
        &self,
        row: &mut Row,
        of_micro: bool,
        all: &[Vec<ValueId>],
    ) -> Result<FuncId, PassError> {
        let of = match self.home {
            Some(Work { stage, half: Half::Forward }) => format!("stage.{stage}.sum"),
            Some(Work { stage, .. }) => format!("stage.{stage}.sum_grads"),
            None => "sum".into(),
        };
        let mut b = Builder::new(&row.module.fresh_func_name(&of));
        b.spans = row.b.spans.clone();
        let mut xs: Vec<Vec<ValueId>> = vec![];
        for summand in all {
            let mut own = vec![];
            for x in summand {
                own.push(b.param("x", row.b.ty(*x).as_value()));
            }
            xs.push(own);
        }
        // Given, not written here, where it would be simplified away.
        let zero = of_micro.then(|| b.param("zero", Type::f32([])));
        let mut sums = vec![];
        for i in 0..self.values.len() {
            let mut summands = xs.iter().map(|x| x[i]);
            let mut sum = summands.next().ok_or_else(|| broken("a sum of nothing"))?;
            if let Some(zero) = zero {
                let dims = b.dims(sum);
                let zeros = b.convert(zero, b.ty(sum).dtype)?;
                let zeros = b.broadcast_to(zeros, &dims)?;
                sum = b.binary(Op::Add, zeros, sum)?;
            }
            for x in summands {
                sum = b.binary(Op::Add, sum, x)?;
            }
            sums.push(sum);
        }
        Ok(row.module.add_func(b.finish(sums)))
    }
}
