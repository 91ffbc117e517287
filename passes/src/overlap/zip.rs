//! Two loops that need nothing of each other as one.
//!
//! ```text
//! %a = repeat %x, %ws {func = @f, count = 3, carry = 1, xs = 1}
//! %b = repeat %y, %vs {func = @g, count = 3, carry = 1, xs = 1, reverse = true}
//!                 =>
//! %a, %b = repeat %x, %y, %ws, %vs {func = @f.g, count = 3, carry = 2, xs = 2, back_xs = 1}
//! ```
//!
//! A turn does one of each. Stacks of the second loop run the other way where it does. If the one
//! has more turns, its last ones are a loop behind, and the stacks that it makes in both are put
//! together.

use std::collections::BTreeSet;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use super::meets;
use super::schedule::needs;
use crate::PassError;
use crate::inline::splice;
use crate::rewrite::{Copier, callee, carry, retarget, stacked};

/// Zips what there is; how many pairs.
pub fn run(module: &mut Module) -> Result<usize, PassError> {
    let (mut n, mut at) = (0, 0);
    let mut bodies: BTreeSet<String> = BTreeSet::new();
    while at < module.funcs.len() {
        match pair(module, &module.funcs[at]) {
            // The body stands where the function stood, which is looked at again.
            Some((a, b)) => {
                let of = |id: OpId| callee(module.funcs[at].op(id)).map(|f| &module.func(f).name);
                bodies.extend([a, b].into_iter().filter_map(of).cloned());
                zip(module, FuncId(at as u32), a, b)?;
                n += 1;
            }
            None => at += 1,
        }
    }
    bodies.iter().for_each(|name| drop_uncalled(module, name));
    Ok(n)
}

/// Removes a body that no loop runs any more.
pub(super) fn drop_uncalled(module: &mut Module, name: &str) {
    let Some(id) = module.find(name) else { return };
    let called = module.funcs.iter().any(|f| f.body_ops().any(|(_, op)| callee(op) == Some(id)));
    if called {
        return;
    }
    module.funcs.remove(id.0 as usize);
    for f in &mut module.funcs {
        retarget(f, &|g| FuncId(g.0 - u32::from(g > id)));
    }
}

/// Two loops to make one of: such that both meet other ranks, else such that one does.
pub(super) fn pair(module: &Module, func: &Func) -> Option<(OpId, OpId)> {
    let loops: Vec<(OpId, bool)> = func
        .body_ops()
        .filter(|(_, op)| op.op == Op::Repeat)
        .map(|(id, op)| (id, callee(op).is_some_and(|f| meets(module, f))))
        .collect();
    let fits = |both: bool| {
        loops.iter().enumerate().find_map(|(i, (a, a_meets))| {
            let other = loops[i + 1..].iter().find(|(b, b_meets)| {
                let meet = if both { *a_meets && *b_meets } else { *a_meets || *b_meets };
                meet && apart(module, func, *a, *b)
            });
            other.map(|(b, _)| (*a, *b))
        })
    };
    fits(true).or_else(|| fits(false))
}

/// The ops after `a` that stand behind it, up to `b`.
pub(super) fn after(module: &Module, func: &Func, a: OpId, b: OpId) -> BTreeSet<OpId> {
    let mut ops = BTreeSet::new();
    for (id, needs) in func.body.iter().zip(needs(module, func)) {
        let behind = needs.iter().any(|n| func.body[*n] == a || ops.contains(&func.body[*n]));
        if behind {
            ops.insert(*id);
        }
        if *id == b {
            break;
        }
    }
    ops
}

/// May two loops be done turn by turn? Neither needs the other, no message between them would come
/// earlier or later, and their stacks can be cut where they have other counts.
fn apart(module: &Module, func: &Func, a: OpId, b: OpId) -> bool {
    let mut between =
        func.body.iter().skip_while(|id| **id != a).skip(1).take_while(|id| **id != b);
    if between.any(|id| func.op(*id).op.has(Trait::Message)) {
        return false;
    }
    if after(module, func, a, b).contains(&b) {
        return false;
    }
    let (a, b) = (func.op(a), func.op(b));
    let state = |op: &OpData| op.operands.iter().any(|x| func.ty(*x).state);
    let shared = a.operands.iter().any(|x| func.ty(*x).state && b.operands.contains(x));
    // How many turns there are is known when they run, or they are staggered already.
    let special = |op: &OpData| op.attrs.get_flag("early") || op.attrs.get_ints("skip").is_some();
    if special(a) || special(b) {
        return false;
    }
    let turned = |op: &OpData| {
        let back = ["back_xs", "back_ys"];
        back.iter().any(|name| op.attrs.get_int(name).unwrap_or(0) > 0)
    };
    let other_way = reverse(a) != reverse(b);
    // Stacks of elements that share a byte are not cut.
    let packed = |op: &OpData| {
        let mut all = op.operands.iter().chain(&op.results);
        all.any(|v| func.ty(*v).dtype.bits() % 8 != 0)
    };
    let cut = count(a) != count(b);
    let stays = (cut || other_way) && (state(a) || state(b));
    let whole = cut && (packed(a) || packed(b));
    !shared && !turned(a) && !turned(b) && !stays && !whole
}

pub(super) fn reverse(op: &OpData) -> bool {
    op.attrs.get_flag("reverse")
}

pub(super) fn count(op: &OpData) -> i64 {
    op.attrs.get_int("count").unwrap_or(0)
}

fn zip(module: &mut Module, id: FuncId, a: OpId, b: OpId) -> Result<(), PassError> {
    let func = module.func(id).clone();
    let [of_a, of_b] = [a, b].map(|op| func.op(op).clone());
    let body = body(module, &of_a, &of_b)?;
    insert(module, id, body);
    let (body, id) = (id, FuncId(id.0 + 1));
    in_place_of(module, id, (a, b), &|module, copy| both(module, copy, a, b, body))
}

/// What `put` emits in the place of two loops: where the second stood, before what needs the first.
pub(super) fn in_place_of(
    module: &mut Module,
    id: FuncId,
    (a, b): (OpId, OpId),
    put: &dyn Fn(&Module, &mut Copier) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let func = module.func(id).clone();
    let behind = after(module, &func, a, b);
    let mut copy = Copier::new(&func, &func.name);
    copy.params();
    for op in &func.body {
        if *op == b {
            copy.to.at(&[&func.op(a).spans[..], &func.op(b).spans[..]].concat());
            put(module, &mut copy).map_err(|e| e.at(&func, func.op(b)))?;
            behind.iter().filter(|late| **late != b).for_each(|late| copy.op(*late));
        } else if *op != a && !behind.contains(op) {
            copy.op(*op);
        }
    }
    *module.func_mut(id) = copy.finish();
    Ok(())
}

/// Puts a function in front of `id`.
pub(super) fn insert(module: &mut Module, id: FuncId, func: Func) {
    for f in &mut module.funcs {
        retarget(f, &|g| FuncId(g.0 + u32::from(g >= id)));
    }
    module.funcs.insert(id.0 as usize, func);
}

/// For each loop, what a turn takes and gives: carried values, slices of stacks, and the rest.
fn shares<T: Copy>(all: &[T], carry: usize, stacked: usize) -> [&[T]; 3] {
    let (carried, rest) = all.split_at(carry);
    let (stacks, shared) = rest.split_at(stacked);
    [carried, stacks, shared]
}

/// One turn of each.
fn body(module: &Module, a: &OpData, b: &OpData) -> Result<Func, PassError> {
    let none = || PassError::new("a loop names no function");
    let funcs = [a, b].map(|op| callee(op).map(|f| module.func(f)));
    let [Some(f), Some(g)] = funcs else { return Err(none()) };
    let mut to = Builder::new(&module.fresh_func_name(&format!("{}.{}", f.name, g.name)));
    let sides = [(f, a), (g, b)];
    // By loop, in the order of its own parameters.
    let mut given: [Vec<ValueId>; 2] = [vec![], vec![]];
    let mut places: [Vec<u32>; 2] = [vec![], vec![]];
    for kind in 0..3 {
        for (side, (func, op)) in sides.iter().enumerate() {
            for p in shares(&func.params, carry(op), stacked(op))[kind] {
                let name = func.value(*p).name.as_deref().unwrap_or("p");
                places[side].push(to.func.params.len() as u32);
                given[side].push(to.param(name, func.ty(*p).clone()));
            }
        }
    }
    let (to, of_f) = splice(f, to, &given[0]);
    let (to, of_g) = splice(g, to, &given[1]);
    let made = [of_f, of_g];
    let (mut results, mut became): (Vec<ValueId>, [Vec<u32>; 2]) = (vec![], [vec![], vec![]]);
    for carried in [true, false] {
        for (side, (_, op)) in sides.iter().enumerate() {
            let (first, rest) = made[side].split_at(carry(op));
            for r in if carried { first } else { rest } {
                became[side].push(results.len() as u32);
                results.push(*r);
            }
        }
    }
    let mut func = to.finish(results);
    for (side, (of, _)) in sides.iter().enumerate() {
        let pairs = of.donated.iter();
        func.donated
            .extend(pairs.map(|(p, r)| (places[side][*p as usize], became[side][*r as usize])));
    }
    Ok(func)
}

/// A loop's operands in the copy, and how many of its turns are done together with another.
struct Side<'a> {
    op: &'a OpData,
    xs: Vec<ValueId>,
    together: i64,
}

impl Side<'_> {
    /// Its stacks for the turns that are together, or for the others.
    fn stacks(&self, to: &mut Builder, together: bool) -> Result<Vec<ValueId>, PassError> {
        let stacks = shares(&self.xs, carry(self.op), stacked(self.op))[1].to_vec();
        let (n, all) = (self.together, count(self.op));
        if n == all {
            return Ok(stacks);
        }
        // The turns together are the first, which in a reversed loop have the last slices.
        let (start, len) = match (together, reverse(self.op)) {
            (true, false) => (0, n),
            (true, true) => (all - n, n),
            (false, false) => (n, all - n),
            (false, true) => (0, all - n),
        };
        let mut parts = vec![];
        for x in stacks {
            let attrs = Attrs::new().int("dim", 0).int("start", start).int("len", len);
            parts.push(to.emit(Op::Slice, &[x], attrs)?);
        }
        Ok(parts)
    }
}

fn both(
    module: &Module,
    copy: &mut Copier,
    a: OpId,
    b: OpId,
    body: FuncId,
) -> Result<(), PassError> {
    let func = copy.from;
    let together = count(func.op(a)).min(count(func.op(b)));
    let sides = [a, b].map(|id| Side { op: func.op(id), xs: copy.mapped(id).operands, together });
    let mut xs = vec![];
    for kind in 0..3 {
        for side in &sides {
            match kind {
                1 => xs.extend(side.stacks(&mut copy.to, true)?),
                _ => xs.extend(shares(&side.xs, carry(side.op), stacked(side.op))[kind]),
            }
        }
    }
    let [of_a, of_b] = [sides[0].op, sides[1].op];
    let made_b = of_b.results.len() - carry(of_b);
    let mut attrs = Attrs::new()
        .func("func", body)
        .int("count", together)
        .int("carry", (carry(of_a) + carry(of_b)) as i64)
        .int("xs", (stacked(of_a) + stacked(of_b)) as i64);
    if reverse(of_a) {
        attrs = attrs.flag("reverse", true);
    }
    if reverse(of_a) != reverse(of_b) {
        attrs = attrs.int("back_xs", stacked(of_b) as i64).int("back_ys", made_b as i64);
    }
    let made = copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?;
    let (carried, stacks) = made.split_at(carry(of_a) + carry(of_b));
    let (carried_a, carried_b) = carried.split_at(carry(of_a));
    let (stacks_a, stacks_b) = stacks.split_at(of_a.results.len() - carry(of_a));
    let parts = [(carried_a, stacks_a), (carried_b, stacks_b)];
    for (side, (carried, stacks)) in sides.iter().zip(parts) {
        let results = match count(side.op) > together {
            true => rest(module, copy, side, carried, stacks)?,
            false => [carried, stacks].concat(),
        };
        side.op.results.iter().zip(results).for_each(|(r, x)| copy.bind(*r, x));
    }
    Ok(())
}

/// The turns of a loop that the other has not; the results of all of its turns.
fn rest(
    module: &Module,
    copy: &mut Copier,
    side: &Side,
    carried: &[ValueId],
    stacks: &[ValueId],
) -> Result<Vec<ValueId>, PassError> {
    let op = side.op;
    let mut xs = carried.to_vec();
    xs.extend(side.stacks(&mut copy.to, false)?);
    xs.extend(shares(&side.xs, carry(op), stacked(op))[2]);
    let attrs = op.attrs.clone().int("count", count(op) - side.together);
    let made = copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?;
    let (carried, later) = made.split_at(carry(op));
    let mut results = carried.to_vec();
    for (first, later) in stacks.iter().zip(later) {
        let parts = if reverse(op) { [*later, *first] } else { [*first, *later] };
        results.push(copy.to.emit(Op::Concat, &parts, Attrs::new().int("dim", 0))?);
    }
    Ok(results)
}
