//! Rules of movement: what moves nothing goes, what moves twice moves once.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{OpData, ValueId};
use weft_ir::op::Op;

use super::{Cx, Node, Rule, ints, places, when};

#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    // to the dims it has
    (Op::Reshape,   "reshape.same",     |c, n| when(n.attrs.get_dims("shape")? == c.dims(n.x[0]), n.x[0])),
    // the last shape counts
    (Op::Reshape,   "reshape.reshape",  |c, n| { let x = c.def(n.x[0], Op::Reshape)?.operands[0]; c.reshape(x, n.attrs.get_dims("shape")?) }),
    // a broadcast that only adds dims of 1, reshaped
    (Op::Reshape,   "reshape.expand",   |c, n| { let b = c.def(n.x[0], Op::Broadcast)?; let x = when(c.ty(b.operands[0]).elements()? == c.ty(n.x[0]).elements()?, b.operands[0])?; c.reshape(x, n.attrs.get_dims("shape")?) }),
    // no dim moves
    (Op::Transpose, "transpose.same",   |_, n| when(n.attrs.get_ints("perm")?.is_sorted(), n.x[0])),
    // dims of 1 move: nothing in memory does
    (Op::Transpose, "transpose.ones",   transpose_of_ones),
    // dim i is dim q[p[i]]
    (Op::Transpose, "transpose.transpose", |c, n| {
        let inner = c.def(n.x[0], Op::Transpose)?;
        let (p, q) = (places(n.attrs, "perm")?, places(&inner.attrs, "perm")?);
        let perm: Vec<i64> = p.iter().map(|i| q[*i] as i64).collect();
        c.make(Op::Transpose, &[inner.operands[0]], Attrs::new().ints("perm", perm))
    }),
    // what is done to each element is done before it moves: a product takes the transpose
    (Op::Convert,   "convert.transpose", convert_of_transpose),
    // nothing repeats
    (Op::Broadcast, "broadcast.same",   |c, n| when(n.attrs.get_dims("shape")? == c.dims(n.x[0]), n.x[0])),
    // dims of 1 are added: a reshape
    (Op::Broadcast, "broadcast.expand", |c, n| { let shape = n.attrs.get_dims("shape")?; when(weft_ir::dim::product(shape)? == c.ty(n.x[0]).elements()?, ())?; c.reshape(n.x[0], shape) }),
    // dim i becomes dim q[p[i]]
    (Op::Broadcast, "broadcast.broadcast", |c, n| {
        let inner = c.def(n.x[0], Op::Broadcast)?;
        let (outer, q) = (places(n.attrs, "dims")?, places(&inner.attrs, "dims")?);
        let dims: Vec<i64> = q.iter().map(|i| outer[*i] as i64).collect();
        c.make(Op::Broadcast, &[inner.operands[0]], n.attrs.clone().ints("dims", dims))
    }),
    // dims of 1 that a reshape adds, or takes, need not be there to be stretched
    (Op::Broadcast, "broadcast.reshape", broadcast_of_reshape),
    // all of it
    (Op::Slice,     "slice.all",        |c, n| when(c.dims(n.x[0])[n.attrs.get_int("dim")? as usize] == Dim::fixed(n.attrs.get_int("len")? as u64), n.x[0])),
    // a slice of a slice of one dim
    (Op::Slice,     "slice.slice",      |c, n| {
        let inner = c.def(n.x[0], Op::Slice)?;
        when(inner.attrs.get_int("dim") == n.attrs.get_int("dim"), ())?;
        let start = n.attrs.get_int("start")? + inner.attrs.get_int("start")?;
        c.make(Op::Slice, &[inner.operands[0]], n.attrs.clone().int("start", start))
    }),
    // one operand of a concatenation
    (Op::Slice,     "slice.concat",     slice_of_concat),
    // no zeros
    (Op::Pad,       "pad.none",         |_, n| when(n.attrs.get_int("low") == Some(0) && n.attrs.get_int("high") == Some(0), n.x[0])),
    // one after nothing
    (Op::Concat,    "concat.one",       |_, n| when(n.x.len() == 1, n.x[0])),
    // all slices of one value, in order
    (Op::Concat,    "concat.slices",    concat_of_slices),
    // the derivatives of two slices that make up a whole: one after the other
    (Op::Add,       "pad.pad",          add_of_pads),
    // by nothing
    (Op::Shift,     "shift.none",       |_, n| when(n.attrs.get_int("by") == Some(0), n.x[0])),
    // over dims of 1
    (Op::ReduceSum, "sum.ones",         reduce_of_ones),
    (Op::ReduceMax, "max.ones",         reduce_of_ones),
    // Σ_i Σ_j = Σ_ij
    (Op::ReduceMax, "max.max",          reduce_of_reduce),
];

fn transpose_of_ones(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let perm = places(n.attrs, "perm")?;
    let dims = c.dims(n.x[0]);
    let moved: Vec<usize> = perm.iter().copied().filter(|p| !dims[*p].is_one()).collect();
    when(moved.is_sorted(), ())?;
    let shape: Vec<Dim> = perm.iter().map(|p| dims[*p]).collect();
    c.reshape(n.x[0], &shape)
}

fn convert_of_transpose(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let t = c.def(n.x[0], Op::Transpose)?;
    let x = c.make(Op::Convert, &t.operands, n.attrs.clone())?;
    c.make(Op::Transpose, &[x], t.attrs)
}

/// The operand's dims that are not 1 are those of the reshape's source, in order: broadcast the
/// source.
fn broadcast_of_reshape(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let source = c.def(n.x[0], Op::Reshape)?.operands[0];
    let (from, via) = (c.dims(source), c.dims(n.x[0]));
    let map = places(n.attrs, "dims")?;
    let solid: Vec<usize> = (0..via.len()).filter(|i| !via[*i].is_one()).collect();
    let kept: Vec<Dim> = solid.iter().map(|i| via[*i]).collect();
    when(from == kept, ())?;
    let dims: Vec<i64> = solid.iter().map(|i| map[*i] as i64).collect();
    c.make(Op::Broadcast, &[source], n.attrs.clone().ints("dims", dims))
}

fn slice_of_concat(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let concat = c.def(n.x[0], Op::Concat)?;
    let d = n.attrs.get_int("dim")?;
    when(concat.attrs.get_int("dim")? == d, ())?;
    let (start, len) = (n.attrs.get_int("start")?, n.attrs.get_int("len")?);
    let mut at = 0;
    for x in &concat.operands {
        let size = c.dims(*x)[d as usize].as_fixed()? as i64;
        if at <= start && start + len <= at + size {
            return c.make(Op::Slice, &[*x], n.attrs.clone().int("start", start - at));
        }
        at += size;
    }
    None
}

fn concat_of_slices(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let d = n.attrs.get_int("dim")?;
    let (mut at, mut source) = (0, None);
    for x in n.x {
        let s = c.def(*x, Op::Slice)?;
        let next = s.attrs.get_int("dim")? == d && s.attrs.get_int("start")? == at;
        when(next && source.is_none_or(|v| v == s.operands[0]), ())?;
        source = Some(s.operands[0]);
        at += s.attrs.get_int("len")?;
    }
    source.filter(|v| c.dims(*v)[d as usize] == Dim::fixed(at as u64))
}

/// `[a, 0] + [0, b] = [a, b]`
fn add_of_pads(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let (a, b) = (c.def(n.x[0], Op::Pad)?, c.def(n.x[1], Op::Pad)?);
    let d = a.attrs.get_int("dim")?;
    when(b.attrs.get_int("dim")? == d, ())?;
    let zeros = |p: &OpData| Some((p.attrs.get_int("low")?, p.attrs.get_int("high")?));
    let size = |c: &Cx, p: &OpData| Some(c.dims(p.operands[0])[d as usize].as_fixed()? as i64);
    let (first, second) = if zeros(&a)?.0 == 0 { (&a, &b) } else { (&b, &a) };
    let before = zeros(first)? == (0, size(c, second)?);
    let after = zeros(second)? == (size(c, first)?, 0);
    let xs = [first.operands[0], second.operands[0]];
    when(before && after, ())?;
    c.make(Op::Concat, &xs, Attrs::new().int("dim", d))
}

fn reduce_of_ones(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let gone = places(n.attrs, "dims")?;
    let dims = c.dims(n.x[0]);
    when(gone.iter().all(|d| dims[*d].is_one()), ())?;
    let kept: Vec<Dim> = (0..dims.len()).filter(|d| !gone.contains(d)).map(|d| dims[d]).collect();
    c.reshape(n.x[0], &kept)
}

fn reduce_of_reduce(c: &mut Cx, n: &Node) -> Option<ValueId> {
    let inner = c.def(n.x[0], n.op)?;
    let (outer, first) = (places(n.attrs, "dims")?, places(&inner.attrs, "dims")?);
    let rank = c.ty(inner.operands[0]).rank();
    let left: Vec<usize> = (0..rank).filter(|d| !first.contains(d)).collect();
    let mut gone: Vec<usize> =
        first.iter().copied().chain(outer.iter().map(|d| left[*d])).collect();
    gone.sort();
    c.make(n.op, &[inner.operands[0]], Attrs::new().ints("dims", ints(&gone)))
}
