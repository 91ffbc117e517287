//! Branches, returns and what only guides the hardware.

use super::form::Form;
use crate::error::Result;
use crate::program::Op;

pub fn bra(form: &mut Form) -> Result<Op> {
    form.flag("uni");
    let target = form.label()?;
    Ok(Op::Bra(target))
}

/// `brx.idx index, list;` where the list is `list: .branchtargets A, B;`
pub fn brx(form: &mut Form) -> Result<Op> {
    form.need("`.idx`", &[("idx", ())])?;
    form.flag("uni");
    form.add_src()?;
    let list = form.name()?;
    let labels = form.names.branch_targets.get(list);
    let labels = labels.ok_or_else(|| form.bad(&format!("`{list}` lists no targets")))?;
    let targets = labels.iter().map(|l| {
        form.names.label(l).ok_or_else(|| form.bad(&format!("the label `{l}` is unknown")))
    });
    Ok(Op::BraIndexed(targets.collect::<Result<_>>()?))
}

pub fn ret(form: &mut Form) -> Result<Op> {
    form.flag("uni");
    Ok(Op::Ret)
}

pub fn exit(_: &mut Form) -> Result<Op> {
    Ok(Op::Exit)
}

pub fn trap(_: &mut Form) -> Result<Op> {
    Ok(Op::Trap)
}

/// Calls are decoded by the linker, which knows the functions.
pub fn call(form: &mut Form) -> Result<Op> {
    Err(form.unsupported("a call here"))
}

pub fn setmaxnreg(form: &mut Form) -> Result<Op> {
    form.need("`.inc` or `.dec`", &[("inc", ()), ("dec", ())])?;
    form.need("`.sync`", &[("sync", ())])?;
    form.need("`.aligned`", &[("aligned", ())])?;
    form.need("`.u32`", &[("u32", ())])?;
    form.add_src()?;
    Ok(Op::Setmaxnreg)
}

/// Dependent grids run one after the other here, so there is nothing to wait for.
pub fn griddepcontrol(form: &mut Form) -> Result<Op> {
    form.need("what to do", &[("wait", ()), ("launch_dependents", ())])?;
    Ok(Op::Nop)
}

pub fn nanosleep(form: &mut Form) -> Result<Op> {
    form.need("`.u32`", &[("u32", ())])?;
    form.add_src()?;
    Ok(Op::Nop)
}
