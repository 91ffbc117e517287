//! Rules of contraction: transposes become flags, leading dims become rows.

use weft_ir::attr::Attrs;
use weft_ir::dim::{Dim, product};
use weft_ir::module::ValueId;
use weft_ir::op::Op;

use super::{Cx, Node, Rule, places, when};

#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    // (xᵀ)ᵀ y
    (Op::Matmul, "matmul.tx", |c, n| { let x = untransposed(c, n.x[0])?; c.make(Op::Matmul, &[x, n.x[1]], toggle(n.attrs, "tx")) }),
    // x (yᵀ)ᵀ
    (Op::Matmul, "matmul.ty", |c, n| { let y = untransposed(c, n.x[1])?; c.make(Op::Matmul, &[n.x[0], y], toggle(n.attrs, "ty")) }),
    // x (wᵀ)ᵀ in each segment
    (Op::GroupedMatmul, "grouped_matmul.ty", |c, n| { let w = untransposed(c, n.x[1])?; c.make(Op::GroupedMatmul, &[n.x[0], w, n.x[2]], toggle(n.attrs, "ty")) }),
    // (x y)ᵀ = yᵀ xᵀ
    (Op::Transpose, "transpose.matmul", transpose_of_matmul),
    // [b.., m, k] [k, n]: all of b and m are rows
    (Op::Matmul, "matmul.rows",  |c, n| when(c.ty(n.x[1]).rank() == 2 && !n.attrs.get_flag("tx"), 1).and_then(|keep| flat(c, n, keep))),
    // [a, b, m, k] [a, b, k, n]: one batch
    (Op::Matmul, "matmul.batch", |c, n| when(c.ty(n.x[1]).rank() > 3, 2).and_then(|keep| flat(c, n, keep))),
];

fn toggle(attrs: &Attrs, flag: &'static str) -> Attrs {
    let now = attrs.get_flag(flag);
    attrs.clone().flag(flag, !now)
}

/// What `v` is the transpose of, two last dims swapped.
fn untransposed(c: &Cx, v: ValueId) -> Option<ValueId> {
    let t = c.def(v, Op::Transpose)?;
    when(swaps_last(&places(&t.attrs, "perm")?), t.operands[0])
}

fn swaps_last(perm: &[usize]) -> bool {
    let n = perm.len();
    let lead = n >= 2 && perm[..n - 2].iter().enumerate().all(|(i, p)| i == *p);
    lead && perm[n - 2..] == [n - 1, n - 2]
}

fn transpose_of_matmul(c: &mut Cx, n: &Node) -> Option<ValueId> {
    when(swaps_last(&places(n.attrs, "perm")?), ())?;
    let m = c.def(n.x[0], Op::Matmul)?;
    let (x, y) = (m.operands[0], m.operands[1]);
    // The order of operands is that of a recipe, where one is asked for.
    when(c.ty(x).rank() == c.ty(y).rank() && m.attrs.get_word("site").is_none(), ())?;
    let (tx, ty) = (m.attrs.get_flag("tx"), m.attrs.get_flag("ty"));
    c.make(Op::Matmul, &[y, x], m.attrs.flag("tx", !ty).flag("ty", !tx))
}

/// The product with every dim of x but the last `keep` as one; y's too, if it has them.
fn flat(c: &mut Cx, n: &Node, keep: usize) -> Option<ValueId> {
    let (x, y) = (n.x[0], n.x[1]);
    let dims = c.dims(x).to_vec();
    when(dims.len() > keep + 1, ())?;
    let mut out = dims.clone();
    let ydims = c.dims(y).to_vec();
    let (k, m) = (out.len() - 1, out.len() - 2);
    out[k] = ydims[ydims.len() - if n.attrs.get_flag("ty") { 2 } else { 1 }];
    out[m] = if n.attrs.get_flag("tx") { dims[k] } else { dims[m] };
    let fx = flattened(c, x, &dims, keep)?;
    let fy = if keep == 1 { y } else { flattened(c, y, &ydims, keep)? };
    let z = c.make(Op::Matmul, &[fx, fy], n.attrs.clone())?;
    c.reshape(z, &out)
}

fn flattened(c: &mut Cx, x: ValueId, dims: &[Dim], keep: usize) -> Option<ValueId> {
    let (lead, rest) = dims.split_at(dims.len() - keep);
    let mut shape = vec![product(lead)?];
    shape.extend(rest);
    c.reshape(x, &shape)
}
