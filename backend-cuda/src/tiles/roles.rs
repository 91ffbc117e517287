//! Who does what in a CTA: two warpgroups multiply what one thread of a third copies.

use weft_codegen::emit::{Cg, Cmp, Val};

use super::fragment::Lanes;
use crate::ptx::{cluster, sync};

/// Warps that multiply, and let go of stages.
pub const CONSUMER_WARPS: u32 = 8;
/// Of both consumer warpgroups.
pub const CONSUMER_THREADS: u32 = 32 * CONSUMER_WARPS;
/// Of a CTA.
pub const THREADS: u32 = CONSUMER_THREADS + 128;
/// What a kernel is allowed a thread at its entry, before registers move to those that multiply.
pub const ENTRY_REGISTERS: u32 = 168;

/// Registers that a CTA's threads share.
const REGISTERS: u32 = 65_536;

/// Registers of a thread of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub producer: u32,
    pub consumer: u32,
}

impl Registers {
    pub const fn fit(self) -> bool {
        let copying = (THREADS - CONSUMER_THREADS) * self.producer;
        copying + CONSUMER_THREADS * self.consumer <= REGISTERS
    }
}

/// Who a consumer thread is.
pub struct Consumer<'c> {
    pub thread: Val<'c>,
    /// Its warpgroup: 0 or 1.
    pub warpgroup: Val<'c>,
    /// Its warp within the warpgroup, and its lane.
    pub warp: Val<'c>,
    pub lane: Val<'c>,
    /// First row of a tile of 128 that its warpgroup has: 0 or 64.
    pub first_row: Val<'c>,
    pub lanes: Lanes<'c>,
    /// One thread of each warp.
    pub leads: Val<'c>,
}

impl<'c> Consumer<'c> {
    fn new(cg: &Cg<'c>, thread: Val<'c>, warp: Val<'c>) -> Consumer<'c> {
        let lane = cg.and(thread, 31);
        let (warpgroup, warp) = (cg.lshr(warp, 2), cg.and(warp, 3));
        Consumer {
            thread,
            warpgroup,
            warp,
            lane,
            first_row: cg.mul(warpgroup, 64),
            lanes: Lanes::new(cg, warp, lane),
            leads: cg.cmp(Cmp::Eq, lane, 0),
        }
    }
}

/// Whose barriers the threads of a CTA use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Cta,
    /// Those of the cluster: its CTAs begin when all barriers are ready, and end together.
    Cluster,
}

/// The body of a kernel of [`THREADS`] threads: one thread runs `init`, which prepares barriers,
/// then one produces and the consumers consume.
pub fn specialised<'c>(
    cg: &Cg<'c>,
    reach: Reach,
    registers: Registers,
    init: impl FnOnce(),
    produce: impl FnOnce(),
    consume: impl FnOnce(&Consumer<'c>),
) {
    assert!(registers.fit(), "{registers:?} a thread");
    let thread = cg.thread_index();
    let warp = sync::uniform(cg, cg.lshr(thread, 5));
    cg.when(cg.cmp(Cmp::Eq, thread, 0), || {
        init();
        sync::fence_init(cg);
    });
    match reach {
        Reach::Cta => sync::cta_barrier(cg),
        Reach::Cluster => cluster::barrier(cg),
    }
    cg.if_else(
        cg.cmp(Cmp::Ge, warp, CONSUMER_WARPS as i32),
        || {
            sync::release_registers(cg, registers.producer);
            cg.when(cg.cmp(Cmp::Eq, warp, CONSUMER_WARPS as i32), || {
                cg.when(sync::elect(cg), produce);
            });
            vec![]
        },
        || {
            sync::take_registers(cg, registers.consumer);
            consume(&Consumer::new(cg, thread, warp));
            vec![]
        },
    );
    if reach == Reach::Cluster {
        // A peer's warps may yet arrive at this CTA's barriers.
        sync::warp_barrier(cg);
        cluster::meet(cg);
    }
}

const _: () = assert!(!Registers { producer: 40, consumer: 240 }.fit());
