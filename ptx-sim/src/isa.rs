//! The table of primitives: every opcode that can run, with its section of the PTX ISA 8.3.
//!
//! To add an instruction: a row here, its decoder in `decode/`, and what it does in `exec/` if it
//! is not a function of one lane's registers.

use crate::decode::form::Form;
use crate::decode::{arith, control, hopper, memory, sync};
use crate::error::Result;
use crate::program::Op;

pub struct Primitive {
    /// The opcode up to its modifiers.
    pub name: &'static str,
    /// Chapters of the PTX ISA 8.3 that describe it, under its name.
    pub section: &'static str,
    /// Lanes must come together for it: all of the warp, or those of its member mask.
    pub converges: bool,
    /// Whether its results here have been compared with those of a GPU.
    pub ran_on_gpu: bool,
    pub(crate) decode: fn(&mut Form) -> Result<Op>,
}

const fn row(
    name: &'static str,
    section: &'static str,
    converges: bool,
    decode: fn(&mut Form) -> Result<Op>,
) -> Primitive {
    Primitive { name, section, converges, ran_on_gpu: false, decode }
}

pub static PRIMITIVES: &[Primitive] = &[
    row("add", "9.7.1, 9.7.3, 9.7.4", false, arith::add),
    row("sub", "9.7.1, 9.7.3, 9.7.4", false, arith::sub),
    row("mul", "9.7.1, 9.7.3, 9.7.4", false, arith::mul),
    row("mad", "9.7.1, 9.7.3", false, arith::mad),
    row("div", "9.7.1, 9.7.3", false, arith::div),
    row("rem", "9.7.1", false, arith::rem),
    row("abs", "9.7.1, 9.7.3, 9.7.4", false, arith::abs),
    row("neg", "9.7.1, 9.7.3, 9.7.4", false, arith::neg),
    row("min", "9.7.1, 9.7.3, 9.7.4", false, arith::min),
    row("max", "9.7.1, 9.7.3, 9.7.4", false, arith::max),
    row("popc", "9.7.1", false, arith::popc),
    row("clz", "9.7.1", false, arith::clz),
    row("bfind", "9.7.1", false, arith::bfind),
    row("brev", "9.7.1", false, arith::brev),
    row("bfe", "9.7.1", false, arith::bfe),
    row("bfi", "9.7.1", false, arith::bfi),
    row("fma", "9.7.3, 9.7.4", false, arith::fma),
    row("copysign", "9.7.3", false, arith::copysign),
    row("testp", "9.7.3", false, arith::testp),
    row("rcp", "9.7.3", false, arith::rcp),
    row("sqrt", "9.7.3", false, arith::sqrt),
    row("rsqrt", "9.7.3", false, arith::rsqrt),
    row("sin", "9.7.3", false, arith::sin),
    row("cos", "9.7.3", false, arith::cos),
    row("lg2", "9.7.3", false, arith::lg2),
    row("ex2", "9.7.3, 9.7.4", false, arith::ex2),
    row("tanh", "9.7.3, 9.7.4", false, arith::tanh),
    row("setp", "9.7.5, 9.7.6", false, arith::setp),
    row("selp", "9.7.5", false, arith::selp),
    row("and", "9.7.7", false, arith::and),
    row("or", "9.7.7", false, arith::or),
    row("xor", "9.7.7", false, arith::xor),
    row("not", "9.7.7", false, arith::not),
    row("cnot", "9.7.7", false, arith::cnot),
    row("lop3", "9.7.7", false, arith::lop3),
    row("shf", "9.7.7", false, arith::shf),
    row("shl", "9.7.7", false, arith::shl),
    row("shr", "9.7.7", false, arith::shr),
    row("mov", "9.7.8", false, arith::mov),
    row("prmt", "9.7.8", false, arith::prmt),
    row("cvt", "9.7.8", false, arith::cvt),
    row("ld", "9.7.8", false, memory::ld),
    row("ldu", "9.7.8", false, memory::ldu),
    row("st", "9.7.8", false, memory::st),
    row("isspacep", "9.7.8", false, memory::isspacep),
    row("cvta", "9.7.8", false, memory::cvta),
    row("mapa", "9.7.8", false, memory::mapa),
    row("getctarank", "9.7.8", false, memory::getctarank),
    row("prefetch", "9.7.8", false, memory::prefetch),
    row("shfl", "9.7.8", true, sync::shfl),
    row("cp.async.bulk.tensor", "9.7.8", false, hopper::tensor_copy),
    row("cp.reduce.async.bulk.tensor", "9.7.8", false, hopper::tensor_reduce),
    row("cp.async.bulk.prefetch.tensor", "9.7.8", false, hopper::tensor_prefetch),
    row("cp.async.bulk", "9.7.8", false, hopper::bulk_copy),
    row("cp.reduce.async.bulk", "9.7.8", false, hopper::bulk_reduce),
    row("cp.async.bulk.prefetch", "9.7.8", false, hopper::bulk_prefetch),
    row("cp.async.bulk.commit_group", "9.7.8", false, hopper::bulk_commit),
    row("cp.async.bulk.wait_group", "9.7.8", false, hopper::bulk_wait),
    row("tensormap.replace", "9.7.8", false, hopper::tensormap_replace),
    row("bra", "9.7.11", false, control::bra),
    row("brx", "9.7.11", false, control::brx),
    row("call", "9.7.11", false, control::call),
    row("ret", "9.7.11", false, control::ret),
    row("exit", "9.7.11", false, control::exit),
    row("bar", "9.7.12", true, sync::bar),
    row("barrier", "9.7.12", false, sync::bar),
    row("bar.warp", "9.7.12", true, sync::bar_warp),
    row("barrier.cluster", "9.7.12", false, sync::cluster_barrier),
    row("membar", "9.7.12", false, sync::membar),
    row("fence", "9.7.12", false, sync::fence),
    row("fence.proxy", "9.7.12", false, sync::fence_proxy),
    row("fence.mbarrier_init", "9.7.12", false, sync::fence_mbarrier_init),
    row("atom", "9.7.12", false, memory::atom),
    row("red", "9.7.12", false, memory::red),
    row("vote", "9.7.12", true, sync::vote),
    row("match", "9.7.12", true, sync::match_sync),
    row("activemask", "9.7.12", false, sync::activemask),
    row("redux", "9.7.12", true, sync::redux),
    row("griddepcontrol", "9.7.12", false, control::griddepcontrol),
    row("elect", "9.7.12", true, sync::elect),
    row("mbarrier.init", "9.7.12", false, hopper::mbarrier_init),
    row("mbarrier.inval", "9.7.12", false, hopper::mbarrier_inval),
    row("mbarrier.arrive", "9.7.12", false, hopper::mbarrier_arrive),
    row("mbarrier.arrive_drop", "9.7.12", false, hopper::mbarrier_arrive_drop),
    row("mbarrier.expect_tx", "9.7.12", false, hopper::mbarrier_expect_tx),
    row("mbarrier.complete_tx", "9.7.12", false, hopper::mbarrier_complete_tx),
    row("mbarrier.test_wait", "9.7.12", false, hopper::mbarrier_wait),
    row("mbarrier.try_wait", "9.7.12", false, hopper::mbarrier_wait),
    row("ldmatrix", "9.7.13", true, hopper::ldmatrix),
    row("stmatrix", "9.7.13", true, hopper::stmatrix),
    row("wgmma.mma_async", "9.7.14", true, hopper::wgmma),
    row("wgmma.fence", "9.7.14", true, hopper::wgmma_fence),
    row("wgmma.commit_group", "9.7.14", true, hopper::wgmma_commit),
    row("wgmma.wait_group", "9.7.14", true, hopper::wgmma_wait),
    row("nanosleep", "9.7.17", false, control::nanosleep),
    row("trap", "9.7.17", false, control::trap),
    row("setmaxnreg", "9.7.17", true, control::setmaxnreg),
];

/// The row with the longest name that the opcode begins with, at a dot.
pub fn find(opcode: &str) -> Option<(u16, &'static Primitive)> {
    let begins = |p: &Primitive| {
        opcode.strip_prefix(p.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let rows = PRIMITIVES.iter().enumerate().filter(|(_, p)| begins(p));
    rows.max_by_key(|(_, p)| p.name.len()).map(|(i, p)| (i as u16, p))
}
