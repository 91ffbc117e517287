//! Copies of tensor tiles between global and shared memory (TMA): one thread starts them.

use weft_codegen::emit::{Cg, Effect, Val};

/// Copies the box at `coordinates` (innermost first) of the tensor behind `map` to shared memory at
/// `to`; its bytes are reported to the mbarrier `barrier`. What lies outside the tensor is zero.
pub fn load<'c>(cg: &Cg<'c>, to: Val<'c>, map: Val<'c>, barrier: Val<'c>, coordinates: &[Val<'c>]) {
    let text = format!(
        "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes \
         [$0], [$1, {{{}}}], [$2];",
        coordinates.len(),
        operands(3, coordinates.len())
    );
    let args: Vec<Val> = [to, map, barrier].into_iter().chain(coordinates.to_vec()).collect();
    cg.asm(&text, &[], &args, 0, Effect::Memory);
}

/// As [`load`], to each CTA of the cluster that has its bit in `ctas`, at the place that `to` has
/// in its shared memory; each one's bytes are reported to its own mbarrier at the place of
/// `barrier`.
pub fn load_multicast<'c>(
    cg: &Cg<'c>,
    to: Val<'c>,
    map: Val<'c>,
    barrier: Val<'c>,
    coordinates: &[Val<'c>],
    ctas: u16,
) {
    let text = format!(
        "{{\n\t.reg .b16 ctas;\n\tmov.b16 ctas, {ctas};\n\t\
         cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes\
         .multicast::cluster [$0], [$1, {{{}}}], [$2], ctas;\n\t}}",
        coordinates.len(),
        operands(3, coordinates.len())
    );
    let args: Vec<Val> = [to, map, barrier].into_iter().chain(coordinates.to_vec()).collect();
    cg.asm(&text, &[], &args, 0, Effect::Memory);
}

/// Copies `n_bytes` of consecutive global memory; all of both addresses and it are multiples of 16.
pub fn load_line<'c>(cg: &Cg<'c>, to: Val<'c>, from: Val<'c>, n_bytes: u32, barrier: Val<'c>) {
    let text = format!(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes \
         [$0], [$1], {n_bytes}, [$2];"
    );
    cg.asm(&text, &[], &[to, from, barrier], 0, Effect::Memory);
}

/// Copies a box of shared memory into the tensor, as part of the open bulk group; what lies outside
/// the tensor is dropped.
pub fn store<'c>(cg: &Cg<'c>, map: Val<'c>, from: Val<'c>, coordinates: &[Val<'c>]) {
    let text = format!(
        "cp.async.bulk.tensor.{}d.global.shared::cta.bulk_group [$0, {{{}}}], [$1];",
        coordinates.len(),
        operands(2, coordinates.len())
    );
    let args: Vec<Val> = [map, from].into_iter().chain(coordinates.to_vec()).collect();
    cg.asm(&text, &[], &args, 0, Effect::Memory);
}

/// Closes the thread's open bulk group.
pub fn commit(cg: &Cg<'_>) {
    cg.asm("cp.async.bulk.commit_group;", &[], &[], 0, Effect::Memory);
}

/// Waits until at most `left` of the thread's bulk groups still read shared memory.
pub fn wait_read(cg: &Cg<'_>, left: u32) {
    let text = format!("cp.async.bulk.wait_group.read {left};");
    cg.asm(&text, &[], &[], 0, Effect::Memory);
}

fn operands(first: usize, n: usize) -> String {
    (first..first + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}
