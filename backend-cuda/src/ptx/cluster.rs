//! CTAs that are resident together and reach each other's shared memory.

use weft_codegen::emit::{Cg, Effect, Ty, Val};

/// The CTA's number in its cluster.
pub fn rank<'c>(cg: &Cg<'c>) -> Val<'c> {
    cg.intrinsic("llvm.nvvm.read.ptx.sreg.cluster.ctarank", &[], &[], Ty::I32)
}

/// The cluster's number along x, and how many there are.
pub fn index<'c>(cg: &Cg<'c>) -> [Val<'c>; 2] {
    ["clusterid", "nclusterid"]
        .map(|name| cg.intrinsic(&format!("llvm.nvvm.read.ptx.sreg.{name}.x"), &[], &[], Ty::I32))
}

/// Where CTA `rank` of the cluster has what lies at `address` of this one's shared memory.
pub fn address_in<'c>(cg: &Cg<'c>, rank: Val<'c>, address: Val<'c>) -> Val<'c> {
    let text = "mapa.shared::cluster.u32 $0, $1, $2;";
    cg.asm(text, &[Ty::I32], &[address, rank], 0, Effect::Ordered)[0]
}

/// Waits for all threads of the cluster, whose accesses before are then known to each other. Warps
/// come whole.
pub fn barrier(cg: &Cg<'_>) {
    let text = "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;";
    cg.asm(text, &[], &[], 0, Effect::Memory);
}

/// As [`barrier`], for threads that have nothing to tell each other but that they are here: it does
/// not wait for what they wrote.
pub fn meet(cg: &Cg<'_>) {
    let text = "barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;";
    cg.asm(text, &[], &[], 0, Effect::Memory);
}
