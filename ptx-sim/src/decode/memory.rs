//! Loads, stores, atomics, addresses.

use super::form::Form;
use crate::error::Result;
use crate::exec::atomic::{Atomic, Reduction};
use crate::program::{Access, AddressSpace, Op, Order, Scope};
use crate::scalar::Ty;

const WIDTHS: &[(&str, u8)] = &[("v2", 2), ("v4", 4), ("v8", 8)];

/// Cache hints and the like: they change no value.
fn hints(form: &mut Form) {
    for name in ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified"] {
        form.flag(name);
    }
    while form
        .take(|m| {
            let evict = m.starts_with("L1::") || m.starts_with("L2::evict");
            (evict || m == "L2::64B" || m == "L2::128B" || m == "L2::256B").then_some(())
        })
        .is_some()
    {}
}

fn access(form: &mut Form) -> Result<Access> {
    let ty = form.ty()?;
    let order = if form.flag("volatile") {
        Order::Relaxed
    } else {
        let orders = [
            ("relaxed", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("weak", Order::Weak),
        ];
        form.one_of(&orders).unwrap_or(Order::Weak)
    };
    let scope = form.scope().unwrap_or(Scope::Sys);
    let space = form.space().unwrap_or(AddressSpace::Generic);
    let read_only = form.flag("nc");
    let n = form.one_of(WIDTHS).unwrap_or(1);
    hints(form);
    if usize::from(n) * usize::from(ty.bits()) > 128 {
        return Err(form.unsupported("an access of more than 16 bytes (Blackwell's)"));
    }
    let bytes = ty.bits() / 8;
    Ok(Access { space, bytes, n, signed: ty.is_signed(), order, scope, read_only })
}

pub fn ld(form: &mut Form) -> Result<Op> {
    let access = access(form)?;
    let registers = form.vector()?;
    if registers.len() != usize::from(access.n) {
        return Err(form.bad("another number of registers than elements"));
    }
    for register in registers {
        let dst = form.dst_of(register)?;
        form.dst.push(dst);
    }
    form.add_address()?;
    Ok(Op::Load(access))
}

pub fn ldu(form: &mut Form) -> Result<Op> {
    ld(form)
}

pub fn st(form: &mut Form) -> Result<Op> {
    let access = access(form)?;
    form.add_address()?;
    let values = form.vector()?;
    if values.len() != usize::from(access.n) {
        return Err(form.bad("another number of registers than elements"));
    }
    for value in values {
        let src = form.src_of(value)?;
        form.src.push(src);
    }
    Ok(Op::Store(access))
}

fn order(form: &mut Form) -> Order {
    let orders = [
        ("relaxed", Order::Relaxed),
        ("acquire", Order::Acquire),
        ("release", Order::Release),
        ("acq_rel", Order::AcqRel),
    ];
    form.one_of(&orders).unwrap_or(Order::Relaxed)
}

fn atomic(form: &mut Form, returns: bool) -> Result<Op> {
    let ty = form.ty()?;
    let order = order(form);
    let scope = form.scope().unwrap_or(Scope::Gpu);
    let space = form.space().unwrap_or(AddressSpace::Generic);
    form.flag("noftz");
    let n = form.one_of(WIDTHS).unwrap_or(1);
    hints(form);
    let name = form.take(|m| Some(m.to_string()));
    let name = name.ok_or_else(|| form.bad("the operation is missing"))?;
    let reduction = Reduction::find(&name, ty)
        .ok_or_else(|| form.unsupported(&format!("the operation `.{name}` on {ty:?}")))?;
    if n > 1 && !(ty.is_float() && matches!(reduction, Reduction::Two(_))) {
        return Err(form.unsupported("a vector of integers"));
    }
    let bytes = ty.bits() / 8;
    let mut op = Atomic { space, bytes, n, reduction, order, scope, returns };
    if returns {
        for register in form.vector()? {
            let dst = form.dst_of(register)?;
            form.dst.push(dst);
        }
        // A result that nobody reads is written as `_`.
        op.returns = !form.dst[0].is_sink();
    }
    form.add_address()?;
    for value in form.vector()? {
        let src = form.src_of(value)?;
        form.src.push(src);
    }
    if matches!(reduction, Reduction::Cas) {
        form.add_src()?;
    }
    Ok(Op::Atomic(Box::new(op)))
}

pub fn atom(form: &mut Form) -> Result<Op> {
    atomic(form, true)
}

pub fn red(form: &mut Form) -> Result<Op> {
    atomic(form, false)
}

pub fn cvta(form: &mut Form) -> Result<Op> {
    let to_generic = !form.flag("to");
    let space = form.space().ok_or_else(|| form.bad("the state space is missing"))?;
    let ty = form.ty()?;
    if ty != Ty::U64 {
        return Err(form.unsupported("an address of 32 bits"));
    }
    // Only shared memory has addresses of its own; elsewhere they are generic already.
    let op = match space {
        AddressSpace::SharedCta | AddressSpace::SharedCluster => Op::CvtaShared { to_generic },
        _ => Op::Map1(|a| a),
    };
    form.add_dst()?;
    form.add_src()?;
    if let Some(crate::program::Src::Offset(..)) = form.src.last() {
        return Err(form.bad("expected an address without brackets"));
    }
    Ok(op)
}

pub fn isspacep(form: &mut Form) -> Result<Op> {
    let space = form.space().ok_or_else(|| form.bad("the state space is missing"))?;
    form.shape(Op::IsSpace(space), 1)
}

fn is_generic(form: &mut Form) -> Result<bool> {
    let generic = form.flag("shared::cluster");
    form.ty()?;
    Ok(!generic)
}

pub fn mapa(form: &mut Form) -> Result<Op> {
    let generic = is_generic(form)?;
    form.shape(Op::Mapa { generic }, 2)
}

pub fn getctarank(form: &mut Form) -> Result<Op> {
    is_generic(form)?;
    form.shape(Op::GetCtaRank, 1)
}

/// `prefetch.global.L2 [a]`, `prefetch.tensormap [map]`: nothing to do, but the address is read.
pub fn prefetch(form: &mut Form) -> Result<Op> {
    form.space();
    form.need("what to prefetch", &[("L1", ()), ("L2", ()), ("tensormap", ())])?;
    hints(form);
    form.add_address()?;
    Ok(Op::Nop)
}
