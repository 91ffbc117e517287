//! Within a warp, a CTA and a cluster: shuffles, votes, barriers, fences.

use super::form::Form;
use crate::error::Result;
use crate::exec::fence::Fence;
use crate::parse::ast::Operand;
use crate::program::{BarMode, Op, Scope, ShflMode, Src, VoteMode};
use crate::scalar::{Ty, int};

pub fn shfl(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    let mode = form.need(
        "the mode",
        &[
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ],
    )?;
    form.need("`.b32`", &[("b32", ())])?;
    pair_dst(form)?;
    form.add_srcs(4)?;
    Ok(Op::Shfl(mode))
}

/// `d|p`, or `d` alone.
fn pair_dst(form: &mut Form) -> Result<()> {
    match form.operand()? {
        Operand::Pair(first, second) => {
            let pair = [form.dst_of(first)?, form.dst_of(second)?];
            form.dst.extend(pair);
        }
        single => {
            let dst = form.dst_of(single)?;
            form.dst.push(dst);
        }
    }
    Ok(())
}

pub fn vote(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    let mode = form.need(
        "the mode",
        &[
            ("all", VoteMode::All),
            ("any", VoteMode::Any),
            ("uni", VoteMode::Uni),
            ("ballot", VoteMode::Ballot),
        ],
    )?;
    form.ty()?;
    form.shape(Op::Vote(mode), 2)
}

pub fn redux(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    let ty = form.ty()?;
    let name = form.take(|m| Some(m.to_string())).unwrap_or_default();
    let function = match (name.as_str(), ty) {
        ("add", Ty::U32 | Ty::S32) => int::add(ty),
        ("min", Ty::U32 | Ty::S32) => int::min(ty),
        ("max", Ty::U32 | Ty::S32) => int::max(ty),
        ("and", Ty::B32) => Some(int::and()),
        ("or", Ty::B32) => Some(int::or()),
        ("xor", Ty::B32) => Some(int::xor()),
        _ => None,
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Redux(function), 2)
}

pub fn match_sync(form: &mut Form) -> Result<Op> {
    form.need("`.any`", &[("any", ())])?;
    form.need("`.sync`", &[("sync", ())])?;
    form.ty()?;
    form.shape(Op::MatchAny, 2)
}

pub fn activemask(form: &mut Form) -> Result<Op> {
    form.need("`.b32`", &[("b32", ())])?;
    form.shape(Op::Activemask, 0)
}

pub fn elect(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    let Operand::Pair(lane, chosen) = form.operand()? else {
        return Err(form.bad("expected `lane|predicate`"));
    };
    let pair = [form.dst_of(lane)?, form.dst_of(chosen)?];
    form.dst.extend(pair);
    form.add_src()?;
    Ok(Op::Elect)
}

pub fn bar_warp(form: &mut Form) -> Result<Op> {
    form.need("`.sync`", &[("sync", ())])?;
    form.add_src()?;
    Ok(Op::WarpSync)
}

/// `bar{.cta}` and `barrier{.cta}`, of the threads of a CTA.
pub fn bar(form: &mut Form) -> Result<Op> {
    form.flag("cta");
    form.flag("aligned");
    let mode = form.need(
        "what to do",
        &[("sync", BarMode::Sync), ("arrive", BarMode::Arrive), ("red", BarMode::Popc)],
    )?;
    if mode == BarMode::Popc {
        let mode = form.need(
            "the reduction",
            &[("popc", BarMode::Popc), ("and", BarMode::And), ("or", BarMode::Or)],
        )?;
        form.ty()?;
        form.add_dst()?;
        form.add_src()?;
        let with_count = form.n_left() == 2;
        if with_count {
            form.add_src()?;
        } else {
            form.src.push(Src::Imm(0));
        }
        form.add_src()?;
        return Ok(Op::Bar(mode));
    }
    form.add_src()?;
    if form.n_left() > 0 {
        form.add_src()?;
    } else {
        form.src.push(Src::Imm(0));
    }
    Ok(Op::Bar(mode))
}

pub fn cluster_barrier(form: &mut Form) -> Result<Op> {
    form.flag("aligned");
    if form.flag("arrive") {
        let relaxed = form.flag("relaxed");
        form.flag("release");
        return Ok(Op::ClusterArrive { releases: !relaxed });
    }
    form.need("`.arrive` or `.wait`", &[("wait", ())])?;
    form.flag("acquire");
    Ok(Op::ClusterWait)
}

pub fn membar(form: &mut Form) -> Result<Op> {
    let scopes = [
        ("cta", Scope::Cta),
        ("gl", Scope::Gpu),
        ("sys", Scope::Sys),
        ("gpu", Scope::Gpu),
        ("cluster", Scope::Cluster),
    ];
    let scope = form.need("the scope", &scopes)?;
    Ok(Op::Fence(Fence::Memory(scope)))
}

pub fn fence(form: &mut Form) -> Result<Op> {
    form.one_of(&[("acq_rel", ()), ("sc", ()), ("acquire", ()), ("release", ())]);
    let scope = form.scope().unwrap_or(Scope::Sys);
    Ok(Op::Fence(Fence::Memory(scope)))
}

pub fn fence_mbarrier_init(form: &mut Form) -> Result<Op> {
    form.need("`.release`", &[("release", ())])?;
    form.need("`.cluster`", &[("cluster", ())])?;
    Ok(Op::Fence(Fence::MbarrierInit))
}

pub fn fence_proxy(form: &mut Form) -> Result<Op> {
    if form.flag("async") {
        form.one_of(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())]);
        return Ok(Op::Fence(Fence::ProxyAsync));
    }
    if form.flag("alias") {
        return Ok(Op::Fence(Fence::Memory(Scope::Sys)));
    }
    form.need("the proxy", &[("tensormap::generic", ()), ("tensormap", ())])?;
    let acquires = form.need("the order", &[("acquire", true), ("release", false)])?;
    form.scope();
    if acquires {
        form.add_address()?;
        form.add_src()?;
        return Ok(Op::Fence(Fence::TensormapAcquire));
    }
    Ok(Op::Fence(Fence::TensormapRelease))
}
