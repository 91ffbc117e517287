//! Barriers in shared memory that count arrivals and bytes.

use weft_codegen::emit::{Cg, Effect, Val};

/// Bytes of an mbarrier, and what it is aligned to.
pub const MBARRIER_BYTES: u32 = 8;

/// Makes the mbarrier at `address` wait for `arrivals` a phase. [`super::sync::fence_init`] and a
/// barrier of the CTA come before its first use by others.
pub fn init<'c>(cg: &Cg<'c>, address: Val<'c>, arrivals: u32) {
    let text = format!("mbarrier.init.shared::cta.b64 [$0], {arrivals};");
    cg.asm(&text, &[], &[address], 0, Effect::Memory);
}

/// Waits until the phase of this parity has ended.
pub fn wait<'c>(cg: &Cg<'c>, address: Val<'c>, parity: Val<'c>) {
    let text = "{\n\t.reg .pred done;\n\
        wait_${:uid}:\n\
        \tmbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;\n\
        \t@!done bra wait_${:uid};\n\t}";
    cg.asm(text, &[], &[address, parity], 0, Effect::Memory);
}

/// Arrives, where `when` holds.
pub fn arrive_if<'c>(cg: &Cg<'c>, when: Val<'c>, address: Val<'c>) {
    let text = "@$0 mbarrier.arrive.shared::cta.b64 _, [$1];";
    cg.asm(text, &[], &[when, address], 0, Effect::Memory);
}

/// Arrives, where `when` holds, at an mbarrier of any CTA of the cluster
/// ([`super::cluster::address_in`]). It tells that CTA of reads that have ended, not of what this
/// one has written: the assembler would have it wait for all of the device's memory
/// (`.release.cluster`).
pub fn arrive_in_cluster_if<'c>(cg: &Cg<'c>, when: Val<'c>, address: Val<'c>) {
    let text = "@$0 mbarrier.arrive.shared::cluster.b64 _, [$1];";
    cg.asm(text, &[], &[when, address], 0, Effect::Memory);
}

/// Arrives, and lets the phase end only when `n_bytes` more have been copied.
pub fn arrive_expecting<'c>(cg: &Cg<'c>, address: Val<'c>, n_bytes: u32) {
    let text = format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {n_bytes};");
    cg.asm(&text, &[], &[address], 0, Effect::Memory);
}
