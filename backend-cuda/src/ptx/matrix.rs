//! Tiles of 8 x 8 16-bit elements between the registers of a warp and shared memory.

use weft_codegen::emit::{Cg, Effect, Ty, Val};

/// Stores four tiles, two elements of each a lane; lane `8 i + r` gives the address of row `r` of
/// tile `i`.
pub fn store_tiles<'c>(cg: &Cg<'c>, row: Val<'c>, tiles: [Val<'c>; 4]) {
    let text = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1,$2,$3,$4};";
    let operands: Vec<Val> = [row].into_iter().chain(tiles).collect();
    cg.asm(text, &[], &operands, 0, Effect::Memory);
}

/// The same, each tile transposed on its way.
pub fn store_tiles_transposed<'c>(cg: &Cg<'c>, row: Val<'c>, tiles: [Val<'c>; 4]) {
    let text = "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [$0], {$1,$2,$3,$4};";
    let operands: Vec<Val> = [row].into_iter().chain(tiles).collect();
    cg.asm(text, &[], &operands, 0, Effect::Memory);
}

/// Loads four tiles, two elements of each a lane.
pub fn load_tiles<'c>(cg: &Cg<'c>, row: Val<'c>) -> Vec<Val<'c>> {
    let text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];";
    cg.asm(text, &[Ty::I32; 4], &[row], 0, Effect::Memory)
}
