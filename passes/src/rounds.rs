//! Bound the rows that a rank takes at once, and exchange the others in further rounds.
//!
//! ```text
//! %offsets, %order = route %ids {experts = 4}     %offsets, %1 = route %ids {experts = 4}
//! %rows = dispatch %x, %order                     %2 = (round of each choice) * 4 + %ids
//! %got = exchange_offsets %offsets                %of, %order = route %2 {experts = 8}
//! %s = exchange %rows, %offsets, %got             %rows = dispatch %x, %order
//!   : f32[2*R, 8]                                 %sent = slice %of {start = 0, len = 5}
//! %z = grouped_matmul %s, %w, ..              =>  %got = exchange_offsets %sent
//! %back = exchange %z, %offsets, %got {back}      %s = exchange %rows, %sent, %got {room = C}
//! %y = combine %back, %order                      %z = grouped_matmul %s, %w, ..
//!                                                 %3 = exchange %z, %sent, %got {back, room = R}
//!                                                 .., %back = repeat %left, %3, ..
//!                                                   {func = @f.rounds, count = 1, early}
//!                                                 %y = combine %back, %order
//! ```
//!
//! Why: all rows may meet at one rank, and room for that is `n` times what comes on average. With a
//! *capacity* of `C` rows a rank computes the rows that come to it, which are in the order of
//! expert, source, token, `C` at a time: row r in round r / C. Each source knows where its rows lie
//! in that order, from the counts of all (one gathering in the place of one exchange of counts),
//! sorts its rows by round, then expert, and a round's are a segment of them, whose offsets are
//! all that `exchange` needs. Every rank finds the same number of rounds, that of the fullest. The
//! first round stands where the exchange stood, so that it overlaps as it did; the others are a
//! loop that ends early, mostly at once. No row is dropped, each is computed as ever, and a token's
//! are added in the order of its choices: bits do not change. Cost: the expert weights are read
//! once a round; counts of all ranks go to all. Requires: `experts`; before `split_quantized`,
//! since what is sent is one value.

use std::collections::BTreeSet;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymKind, product};
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{AxisId, DType, Type};

use crate::experts::free_room;
use crate::inline::splice;
use crate::rewrite::{Copier, made_of_nothing, retarget};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "rounds", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    // Ranks that train have room for so many rows and no other rounds (`experts`).
    let serves = module.find("train_step").is_none();
    let Some(capacity) = cx.mesh.and_then(|m| m.exchange_capacity).filter(|_| serves) else {
        return Ok(Stats::default());
    };
    let (mut n, mut at) = (0, 0);
    let mut done: BTreeSet<OpId> = BTreeSet::new();
    while at < module.funcs.len() {
        let func = module.funcs[at].clone();
        let next = func.body_ops().find(|(id, op)| {
            op.op == Op::ExchangeOffsets && !done.contains(id) && whole_room(&func, op)
        });
        let Some((id, _)) = next else {
            at += 1;
            done.clear();
            continue;
        };
        let trip = Trip::of(module, &func, id).map_err(|e| e.within(&func))?;
        let Some(round) = trip.bounded(module, capacity)? else {
            done.insert(id);
            continue;
        };
        at += rewrite(module, FuncId(at as u32), &trip, &round).map_err(|e| e.within(&func))?;
        n += 1;
    }
    Ok(Stats::one("exchanges in rounds", n))
}

/// Have the rows that these offsets are of room for all?
fn whole_room(func: &Func, offsets: &OpData) -> bool {
    let mut ops = func.body_ops().map(|(_, op)| op);
    !ops.any(|op| {
        op.op == Op::Exchange
            && op.operands[2] == offsets.results[0]
            && op.attrs.get_dim("room").is_some()
    })
}

/// The way of rows to their experts and back.
struct Trip<'a> {
    func: &'a Func,
    axis: AxisId,
    n: u64,
    route: OpId,
    /// The offsets of a rank's own rows.
    sent: ValueId,
    /// Ops on what has come, in order; the last sends it back.
    there: Vec<OpId>,
    /// What they read besides.
    given: Vec<ValueId>,
    back: ValueId,
}

/// A trip's room in one round.
struct Round {
    /// Rows that may come, and those that a rank sends.
    room: Dim,
    rows: Dim,
    /// How many rows may come in all rounds: what their dims were.
    all: Dim,
    n_max: u64,
}

impl<'a> Trip<'a> {
    fn of(module: &Module, func: &'a Func, offsets: OpId) -> Result<Trip<'a>, PassError> {
        let start = func.op(offsets);
        let other = |why: &str| Err(PassError::new(why).at(func, start));
        let axis = start.attrs.get_axis("axis");
        let Some(axis) = axis else { return other("names no mesh axis") };
        let sent = start.operands[0];
        let route = func.def_op(sent).filter(|id| func.op(*id).op == Op::Route);
        let Some(route) = route else { return other("rows are sent that no choice orders") };
        let (mut there, mut come) = (vec![offsets], BTreeSet::from([start.results[0]]));
        let mut back = vec![];
        for (id, op) in func.body_ops() {
            if id == offsets || !op.operands.iter().any(|x| come.contains(x)) {
                continue;
            }
            if op.op.has(Trait::Calls) || op.op.has(Trait::State) {
                return other("what comes is computed on in a function of its own");
            }
            there.push(id);
            match op.op == Op::Exchange && op.attrs.get_flag("back") {
                true => back.push(op.results[0]),
                false => come.extend(&op.results),
            }
        }
        let outside =
            func.body_ops().any(|(id, op)| op.operands.contains(&sent) && !there.contains(&id));
        let returned = func.results.iter().any(|r| come.contains(r) || *r == sent);
        let [back] = back[..] else { return other("rows come back in several values") };
        if outside || returned {
            return other("what rows are sent by is read elsewhere");
        }
        let mut given: Vec<ValueId> = vec![];
        for x in there.iter().flat_map(|id| &func.op(*id).operands) {
            let own = come.contains(x) || *x == sent || made_of_nothing(func, *x);
            if !own && !given.contains(x) {
                given.push(*x);
            }
        }
        let n = module.axes[axis.0 as usize].size;
        Ok(Trip { func, axis, n, route, sent, there, given, back })
    }

    /// The rounds of a capacity, as a multiple of the rows that a rank sends; none if one holds
    /// all.
    fn bounded(&self, module: &mut Module, capacity: f64) -> Result<Option<Round>, PassError> {
        let rows = self.func.ty(self.back).dims[0];
        let all = rows.checked_mul(Dim::fixed(self.n));
        let sym = rows.symbols().next();
        let total = sym.and_then(|s| match module.sym(s).kind {
            SymKind::Ragged { total, .. } if rows == Dim::sym(s) => Some(total),
            _ => None,
        });
        let (Some(total), Some(all)) = (total, all) else {
            return Err(PassError::new("rows that are sent have another dim than their choice"));
        };
        let wanted = ((total.coeff() as f64) * capacity).ceil() as u64;
        let most = total.coeff() * self.n;
        if wanted >= most {
            return Ok(None);
        }
        let unit = total.checked_div(Dim::fixed(total.coeff()));
        let total = unit.and_then(|unit| unit.checked_mul(Dim::fixed(wanted)));
        let total = total.ok_or_else(|| PassError::new("a capacity that is no number of rows"))?;
        let name = free_room(module);
        let segments = self.n_experts() / self.n;
        let room = Dim::sym(module.add_sym(&name, SymKind::Ragged { segments, total }));
        Ok(Some(Round { room, rows, all, n_max: most.div_ceil(wanted) }))
    }

    fn n_experts(&self) -> u64 {
        self.func.ty(self.sent).dims[0].as_fixed().unwrap_or(1).saturating_sub(1)
    }

    fn along(&self) -> Attrs {
        Attrs::new().axis("axis", self.axis)
    }

    /// One round, given what the trip reads and the offsets of the rows that are sent in it.
    fn round(&self, module: &Module, round: &Round, name: &str) -> Result<Func, PassError> {
        let func = self.func;
        let mut copy = Copier::new(func, name);
        for v in &self.given {
            copy.param(*v, "v");
        }
        let sent = copy.to.param("sent", func.ty(self.sent).clone());
        copy.set(self.sent, sent);
        let in_room = |dim: Dim| -> Dim {
            let times = dim.checked_div(round.all);
            times.and_then(|times| times.checked_mul(round.room)).unwrap_or(dim)
        };
        for id in &self.there {
            let op = func.op(*id);
            copy.to.at(&op.spans);
            for x in &op.operands {
                sources(&mut copy, *x);
            }
            let xs: Vec<ValueId> = op.operands.iter().map(|x| copy.get(*x)).collect();
            let mut attrs = op.attrs.clone();
            for (_, attr) in attrs.iter_mut() {
                match attr {
                    Attr::Dim(d) => *d = in_room(*d),
                    Attr::Dims(dims) => dims.iter_mut().for_each(|d| *d = in_room(*d)),
                    Attr::Type(ty) => ty.dims.iter_mut().for_each(|d| *d = in_room(*d)),
                    _ => {}
                }
            }
            if op.op == Op::Exchange {
                let room = if attrs.get_flag("back") { round.rows } else { round.room };
                attrs = attrs.with("room", Attr::Dim(room));
            }
            let made = copy.to.emit_calling(module, op.op, &xs, attrs);
            let made = made.map_err(|e| PassError::from(e).at(func, op))?;
            op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
        }
        let back = copy.get(self.back);
        Ok(copy.to.finish(vec![back]))
    }

    /// The round after the first, with those that are left before and behind it.
    fn rounds(&self, one: &Func, round: &Round, name: &str) -> Result<Func, PassError> {
        let func = self.func;
        let n_experts = self.n_experts();
        let count = Type::i32([Dim::fixed(1)]);
        let mut b = Builder::new(name);
        b.at(&func.op(self.route).spans);
        let left = b.param("left", count.clone());
        let so_far = b.param("rows", func.ty(self.back).clone());
        let named = |v: &ValueId| func.value(*v).name.as_deref().unwrap_or("v").to_string();
        let given: Vec<ValueId> =
            self.given.iter().map(|v| b.param(&named(v), func.ty(*v).clone())).collect();
        let of = b.param("of", Type::i32([Dim::fixed(round.n_max * n_experts + 1)]));
        let n = b.param("n", count.clone());
        let at = b.binary(Op::Sub, n, left)?;
        let experts = b.constant(n_experts as f64, count.clone())?;
        let first = b.binary(Op::Mul, at, experts)?;
        let segments = Type::i32([Dim::fixed(n_experts + 1)]);
        let place = iota(&mut b, 0, &segments)?;
        let first = b.broadcast_to(first, &segments.dims)?;
        let place = b.binary(Op::Add, place, first)?;
        let sent = b.binary(Op::Take, of, place)?;
        let (mut b, back) = splice(one, b, &[&given[..], &[sent]].concat());
        // The rows of this round, among those of all.
        let ends = [0, n_experts].map(|e| Attrs::new().int("dim", 0).int("start", e as i64));
        let ends = ends.map(|attrs| b.emit(Op::Slice, &[sent], attrs.int("len", 1)));
        let [low, high] = ends;
        let rows = Type::i32([round.rows]);
        let row = iota(&mut b, 0, &rows)?;
        let (low, high) = (b.broadcast_to(low?, &rows.dims)?, b.broadcast_to(high?, &rows.dims)?);
        let (from, to) = (b.binary(Op::Le, low, row)?, b.binary(Op::Lt, row, high)?);
        let here = b.binary(Op::And, from, to)?;
        let dims = b.dims(so_far);
        let attrs = Attrs::new().dims("shape", dims).ints("dims", [0]);
        let here = b.emit(Op::Broadcast, &[here], attrs)?;
        let rows = b.emit(Op::Select, &[here, back[0], so_far], Attrs::new())?;
        let one = b.constant(1.0, count)?;
        let left = b.binary(Op::Sub, left, one)?;
        Ok(b.finish(vec![left, rows]))
    }
}

/// Copies a value that is made of nothing to where it is read.
fn sources(copy: &mut Copier, v: ValueId) {
    let Some(id) = copy.from.def_op(v).filter(|_| copy.try_get(v).is_none()) else { return };
    for x in copy.from.op(id).operands.clone() {
        sources(copy, x);
    }
    copy.op(id);
}

fn iota(b: &mut Builder, dim: i64, ty: &Type) -> Result<ValueId, PassError> {
    let attrs = Attrs::new().int("dim", dim).with("type", Attr::Type(ty.clone()));
    Ok(b.emit(Op::Iota, &[], attrs)?)
}

/// How many functions stand before `id` that did not.
fn rewrite(
    module: &mut Module,
    id: FuncId,
    trip: &Trip,
    round: &Round,
) -> Result<usize, PassError> {
    let func = trip.func;
    let one = trip.round(module, round, &format!("{}.round", func.name))?;
    let name = module.fresh_func_name(&format!("{}.rounds", func.name));
    let body = trip.rounds(&one, round, &name)?;
    for f in &mut module.funcs {
        retarget(f, &|g| FuncId(g.0 + u32::from(g >= id)));
    }
    module.funcs.insert(id.0 as usize, body);
    let (body, id) = (id, FuncId(id.0 + 1));
    // Its callees have other numbers now; values and ops have the same.
    let now = module.func(id).clone();
    let mut copy = Copier::new(&now, &now.name);
    copy.params();
    let mut sorted = None;
    for (at, op) in now.body_ops() {
        copy.to.at(&op.spans);
        if at == trip.route {
            sorted = Some(sort(&mut copy, module, trip, round, op).map_err(|e| e.at(&now, op))?);
        } else if op.results.contains(&trip.back) {
            let sorted = sorted.as_ref().ok_or_else(|| PassError::new("no choice before"))?;
            let back = in_rounds(&mut copy, module, trip, &one, (body, round), sorted)?;
            copy.bind(trip.back, back);
        } else if !trip.there.contains(&at) {
            copy.op(at);
        }
    }
    *module.func_mut(id) = copy.finish();
    Ok(1)
}

/// A choice sorted by round, then expert.
struct Sorted {
    /// Offsets of the rows of every round's experts.
    of: ValueId,
    /// How many rounds there are.
    n: ValueId,
}

/// All rounds, one after the other.
fn in_rounds(
    copy: &mut Copier,
    module: &Module,
    trip: &Trip,
    one: &Func,
    (body, round): (FuncId, &Round),
    sorted: &Sorted,
) -> Result<ValueId, PassError> {
    let given: Vec<ValueId> = trip.given.iter().map(|v| copy.get(*v)).collect();
    let len = trip.n_experts() as i64 + 1;
    let attrs = Attrs::new().int("dim", 0).int("start", 0).int("len", len);
    let sent = copy.to.emit(Op::Slice, &[sorted.of], attrs)?;
    let to = std::mem::replace(&mut copy.to, Builder::new(""));
    let (to, first) = splice(one, to, &[&given[..], &[sent]].concat());
    copy.to = to;
    let number = copy.to.constant(1.0, Type::i32([Dim::fixed(1)]))?;
    let left = copy.to.binary(Op::Sub, sorted.n, number)?;
    let xs = [&[left, first[0]][..], &given, &[sorted.of, sorted.n]].concat();
    let attrs = Attrs::new()
        .func("func", body)
        .int("count", round.n_max as i64 - 1)
        .int("carry", 2)
        .int("xs", 0)
        .flag("early", true);
    Ok(copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?[1])
}

/// The route, and behind it one by round and expert, whose order takes its place.
fn sort(
    copy: &mut Copier,
    module: &Module,
    trip: &Trip,
    round: &Round,
    op: &OpData,
) -> Result<Sorted, PassError> {
    let n_experts = trip.n_experts();
    let ids = copy.get(op.operands[0]);
    let made = copy.to.emit_all(Op::Route, &[ids], op.attrs.clone())?;
    let (sent, order) = (made[0], made[1]);
    let b = &mut copy.to;
    let capacity = b.emit(Op::Extent, &[], Attrs::new().with("of", Attr::Dim(round.room)))?;
    let capacity = b.reshape(capacity, &[Dim::fixed(1)])?;
    let capacity = b.convert(capacity, DType::I32)?;
    let all = b.emit_calling(module, Op::AllGather, &[sent], trip.along().int("dim", 0))?[0];
    let counts = Counts::of(b, module, trip, all)?;

    // Where a rank's rows lie among those that come to an expert's place.
    let dims = b.dims(ids);
    let many = || PassError::new("too many choices of experts to count");
    let choices = product(&dims).ok_or_else(many)?;
    let flat = b.reshape(ids, &[choices])?;
    let rows = Type::i32([round.rows]);
    let expert = b.binary(Op::Take, flat, order)?;
    let begin = b.binary(Op::Take, sent, expert)?;
    let base = b.binary(Op::Take, counts.base, expert)?;
    let row = iota(b, 0, &rows)?;
    let within = b.binary(Op::Sub, row, begin)?;
    let place = b.binary(Op::Add, within, base)?;
    let per_round = b.broadcast_to(capacity, &rows.dims)?;
    let of_row = b.binary(Op::Div, place, per_round)?;

    // From the order of rows to that of choices.
    let of_row = b.convert(of_row, DType::F32)?;
    let of_row = b.reshape(of_row, &[round.rows, Dim::fixed(1)])?;
    let attrs = Attrs::new().with("rows", Attr::Dim(choices));
    let of_choice = b.emit(Op::ScatterAdd, &[of_row, order], attrs)?;
    let of_choice = b.reshape(of_choice, &[choices])?;
    let of_choice = b.convert(of_choice, DType::I32)?;
    let experts = b.constant_like(n_experts as f64, of_choice)?;
    let first = b.binary(Op::Mul, of_choice, experts)?;
    let by_round = b.binary(Op::Add, first, flat)?;
    let by_round = b.reshape(by_round, &dims)?;
    let attrs = op.attrs.clone().int("experts", (round.n_max * n_experts) as i64);
    let made = b.emit_all(Op::Route, &[by_round], attrs)?;

    // The rounds of the fullest.
    let one = b.constant_like(1.0, capacity)?;
    let up = b.binary(Op::Sub, capacity, one)?;
    let most = b.binary(Op::Add, counts.most, up)?;
    let n = b.binary(Op::Div, most, capacity)?;
    copy.bind(op.results[1], made[1]);
    copy.to.name(made[0], "by_round");
    copy.to.name(n, "n_rounds");
    Ok(Sorted { of: made[0], n })
}

/// What follows from the counts of all ranks' rows by expert.
struct Counts {
    /// For each expert: the rows that come to its place before this rank's, i32[E].
    base: ValueId,
    /// The rows that come to the fullest place, i32[1].
    most: ValueId,
}

impl Counts {
    /// From all ranks' offsets, i32[n (E + 1)].
    fn of(
        b: &mut Builder,
        module: &Module,
        trip: &Trip,
        all: ValueId,
    ) -> Result<Counts, PassError> {
        let (n, e) = (trip.n, trip.n_experts());
        let [places, experts, bounds] = [n, e, e + 1].map(Dim::fixed);
        let all = b.reshape(all, &[places, bounds])?;
        let cut = |start: i64| Attrs::new().int("dim", 1).int("start", start).int("len", e as i64);
        let ends = b.emit(Op::Slice, &[all], cut(1))?;
        let begins = b.emit(Op::Slice, &[all], cut(0))?;
        let counts = b.binary(Op::Sub, ends, begins)?;
        let of_all = b.reduce_sum(counts, &[0])?;

        // Of the ranks before this one.
        let each = Type::i32([places, experts]);
        let zeros = b.constant(0.0, each.clone())?;
        let ranks = iota(b, 0, &Type::i32([places]))?;
        let own = b.emit_calling(module, Op::Part, &[ranks], trip.along().int("dim", 0))?[0];
        let own = b.reshape(own, &[Dim::fixed(1), Dim::fixed(1)])?;
        let own = b.broadcast_to(own, &each.dims)?;
        let source = iota(b, 0, &each)?;
        let before = b.binary(Op::Lt, source, own)?;
        let before = b.emit(Op::Select, &[before, counts, zeros], Attrs::new())?;
        let before = b.reduce_sum(before, &[0])?;

        // Of the experts before this one at its place.
        let pairs = Type::i32([experts, experts]);
        let zeros = b.constant(0.0, pairs.clone())?;
        let at_place = b.constant((e / n) as f64, pairs.clone())?;
        let (this, other) = (iota(b, 0, &pairs)?, iota(b, 1, &pairs)?);
        let earlier = b.binary(Op::Lt, other, this)?;
        let places_of = [this, other].map(|x| b.binary(Op::Div, x, at_place));
        let [this, other] = places_of;
        let same = b.binary(Op::Eq, this?, other?)?;
        let counted = b.binary(Op::And, earlier, same)?;
        let attrs = Attrs::new().dims("shape", pairs.dims.clone()).ints("dims", [1]);
        let of_other = b.emit(Op::Broadcast, &[of_all], attrs)?;
        let in_front = b.emit(Op::Select, &[counted, of_other, zeros], Attrs::new())?;
        let in_front = b.reduce_sum(in_front, &[1])?;
        let base = b.binary(Op::Add, in_front, before)?;

        let by_place = b.reshape(of_all, &[places, Dim::fixed(e / n)])?;
        let by_place = b.reduce_sum(by_place, &[1])?;
        let most = b.emit(Op::ReduceMax, &[by_place], Attrs::new().ints("dims", [0]))?;
        let most = b.reshape(most, &[Dim::fixed(1)])?;
        Ok(Counts { base, most })
    }
}
