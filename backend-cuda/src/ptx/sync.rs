//! Who a warp is, barriers of threads, fences, and the registers of a warpgroup.

use weft_codegen::emit::{Cg, Effect, Ty, Val};

/// True in one lane of the warp, the same one each time. The assembler knows that a branch on it is
/// taken by a single thread, which lets it keep addresses in uniform registers; a comparison of
/// thread numbers does not tell it.
pub fn elect<'c>(cg: &Cg<'c>) -> Val<'c> {
    cg.asm("elect.sync _|$0, 0xffffffff;", &[Ty::I1], &[], 0, Effect::Ordered)[0]
}

/// The value of lane 0, which the assembler then knows to be uniform.
pub fn uniform<'c>(cg: &Cg<'c>, v: Val<'c>) -> Val<'c> {
    let text = "shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;";
    cg.asm(text, &[Ty::I32], &[v], 0, Effect::Ordered)[0]
}

/// The value of the lane whose number differs in the bits of `mask`.
pub fn butterfly<'c>(cg: &Cg<'c>, v: Val<'c>, mask: u32) -> Val<'c> {
    let text = format!("shfl.sync.bfly.b32 $0, $1, {mask}, 31, 0xffffffff;");
    cg.asm(&text, &[v.ty], &[v], 0, Effect::Ordered)[0]
}

/// The value of an i32, from here on: what is made of it cannot be moved before, out of a loop,
/// where it would hold registers through what comes first.
pub fn from_here<'c>(cg: &Cg<'c>, v: Val<'c>) -> Val<'c> {
    cg.asm("mov.b32 $0, $1;", &[v.ty], &[v], 0, Effect::Ordered)[0]
}

/// Lets no wait that follows begin before all of `values` (f32) are known. Waits for products name
/// no registers: the assembler moves them before arithmetic that the products are to hide. Over a
/// barrier of the warp under a condition made of `values` it does not; what is left of that is a
/// vote.
pub fn settle<'c>(cg: &Cg<'c>, values: &[Val<'c>]) {
    let bits = values.iter().map(|v| cg.bitcast(*v, Ty::I32));
    let Some(all) = bits.reduce(|a, b| cg.or(a, b)) else { return };
    let text = "{\n\t.reg .pred some;\n\
        \tsetp.ne.s32 some, $0, 0;\n\
        \tvote.sync.any.pred some, some, 0xffffffff;\n\
        \t@some bar.warp.sync 0xffffffff;\n\t}";
    cg.asm(text, &[], &[all], 0, Effect::Memory);
}

/// Waits for all threads of the CTA.
pub fn cta_barrier(cg: &Cg<'_>) {
    cg.asm("bar.sync 0;", &[], &[], 0, Effect::Memory);
}

/// Waits for `threads` threads, whole warps, at the named barrier `id` (1 to 15).
pub fn named_barrier<'c>(cg: &Cg<'c>, id: Val<'c>, threads: u32) {
    let text = format!("bar.sync $0, {threads};");
    cg.asm(&text, &[], &[id], 0, Effect::Memory);
}

/// Arrives at the named barrier without waiting; `threads` counts those that wait too.
pub fn named_arrive<'c>(cg: &Cg<'c>, id: Val<'c>, threads: u32) {
    let text = format!("bar.arrive $0, {threads};");
    cg.asm(&text, &[], &[id], 0, Effect::Memory);
}

/// Waits for the lanes of the warp, whose accesses before are then known to each other.
pub fn warp_barrier(cg: &Cg<'_>) {
    cg.asm("bar.warp.sync 0xffffffff;", &[], &[], 0, Effect::Memory);
}

/// Makes initialised mbarriers known to the copies that report to them.
pub fn fence_init(cg: &Cg<'_>) {
    cg.asm("fence.mbarrier_init.release.cluster;", &[], &[], 0, Effect::Memory);
}

/// Makes this thread's writes to shared memory visible to copies and matrix products that are
/// started after a following barrier.
pub fn fence_async(cg: &Cg<'_>) {
    cg.asm("fence.proxy.async.shared::cta;", &[], &[], 0, Effect::Memory);
}

/// Gives registers of the calling warpgroup back, down to `n` a thread.
pub fn release_registers(cg: &Cg<'_>, n: u32) {
    cg.asm(&format!("setmaxnreg.dec.sync.aligned.u32 {n};"), &[], &[], 0, Effect::Memory);
}

/// Takes registers for the calling warpgroup, up to `n` a thread; waits until there are as many.
pub fn take_registers(cg: &Cg<'_>, n: u32) {
    cg.asm(&format!("setmaxnreg.inc.sync.aligned.u32 {n};"), &[], &[], 0, Effect::Memory);
}
