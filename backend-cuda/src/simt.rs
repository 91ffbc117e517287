//! Kernels of plain threads, without tensor cores: they take any shape and stride, and are what
//! runs where no template fits.
//!
//! A block of work is a warp's, as in regions. Sums are chains of fused multiply-adds in f32.

pub mod attention;
pub mod combine;
pub mod product;
pub mod sum_heads;

use weft_codegen::emit::{Cg, Elem, Frame, Kernel, Val, WARP};

/// Warps of a CTA.
pub const WARPS: u32 = 4;

/// A warp at work.
pub struct Warp<'c> {
    /// Its place in the grid.
    pub index: Val<'c>,
    /// The thread's place in it.
    pub lane: Val<'c>,
}

/// Emits a kernel from what a warp does; the launch has a CTA for each [`WARPS`] of them, the last
/// of which may find nothing to do.
pub fn warp_kernel<'c>(
    cg: &Cg<'c>,
    name: &str,
    n_buffers: usize,
    n_scalars: usize,
    body: impl FnOnce(&Kernel<'c>, &Warp<'c>),
) {
    cg.framed_kernel(name, Frame::ctas(WARPS * WARP), n_buffers, n_scalars, |k| {
        let thread = cg.cast(cg.thread_index(), Elem::I64);
        let in_cta = cg.lshr(thread, i64::from(WARP.trailing_zeros()));
        let index = cg.add(cg.mul(k.begin, i64::from(WARPS)), in_cta);
        let lane = cg.and(thread, i64::from(WARP) - 1);
        body(k, &Warp { index, lane });
    });
}

/// Names of kernels of this module start so.
pub fn named(what: &str) -> String {
    format!("sm90_simt_{what}")
}
