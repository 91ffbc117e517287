//! A ring of stages in shared memory: a producer fills one while consumers read others.
//!
//! Each stage has two mbarriers. `full` ends a phase when the stage's bytes have come, `empty` when
//! every consumer warp has let go of it. Both sides walk the ring by themselves; a [`Place`] is
//! where one of them is.
//!
//! Rings of two CTAs of a cluster may be filled together, each producer copying a part of what both
//! need into both. A stage is then free once the consumers of both CTAs have let go of it, so each
//! warp arrives at its own ring's `empty` and at the peer's; `full` still counts the bytes that
//! come to its own stage, whoever copied them.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};

use crate::ptx::mbarrier::{self, MBARRIER_BYTES};

/// A ring; addresses are of shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'c> {
    /// Of the first stage.
    pub stages: Val<'c>,
    /// Of the `full` barriers, then the `empty` ones.
    pub barriers: Val<'c>,
    pub n_stages: u32,
    pub stage_bytes: u32,
    /// Warps that let go of a stage, of each CTA.
    pub consumers: u32,
    /// The barriers of the CTA whose ring is filled together with this one.
    pub peer_barriers: Option<Val<'c>>,
}

/// A stage, and the parity of the phase it is in.
#[derive(Clone, Copy, Debug)]
pub struct Place<'c> {
    pub stage: Val<'c>,
    pub parity: Val<'c>,
}

impl<'c> Place<'c> {
    pub fn first(cg: &Cg<'c>) -> Place<'c> {
        Place { stage: cg.i32(0), parity: cg.i32(0) }
    }

    pub fn of(values: &[Val<'c>]) -> Place<'c> {
        Place { stage: values[0], parity: values[1] }
    }

    pub fn values(self) -> [Val<'c>; 2] {
        [self.stage, self.parity]
    }
}

impl<'c> Ring<'c> {
    /// Bytes of the barriers of a ring.
    pub fn barriers_bytes(n_stages: u32) -> u32 {
        2 * n_stages * MBARRIER_BYTES
    }

    /// Initialises the barriers; of one thread.
    pub fn init(&self, cg: &Cg<'c>) {
        let ctas = 1 + u32::from(self.peer_barriers.is_some());
        for stage in 0..self.n_stages {
            let stage = cg.i32(stage as i32);
            mbarrier::init(cg, self.full(cg, stage), 1);
            mbarrier::init(cg, self.empty(cg, stage), ctas * self.consumers);
        }
    }

    fn full(&self, cg: &Cg<'c>, stage: Val<'c>) -> Val<'c> {
        cg.add(self.barriers, cg.mul(stage, MBARRIER_BYTES as i32))
    }

    fn empty(&self, cg: &Cg<'c>, stage: Val<'c>) -> Val<'c> {
        self.empty_of(cg, self.barriers, stage)
    }

    fn empty_of(&self, cg: &Cg<'c>, barriers: Val<'c>, stage: Val<'c>) -> Val<'c> {
        let full = cg.add(barriers, cg.mul(stage, MBARRIER_BYTES as i32));
        cg.add(full, (self.n_stages * MBARRIER_BYTES) as i32)
    }

    pub fn stage(&self, cg: &Cg<'c>, stage: Val<'c>) -> Val<'c> {
        cg.add(self.stages, cg.mul(stage, self.stage_bytes as i32))
    }

    /// The producer's turn: waits until the stage is free, in the peer's ring too, and gives its
    /// address and the barrier that `n_bytes` of copies must be reported to.
    pub fn acquire(&self, cg: &Cg<'c>, at: Place<'c>, n_bytes: u32) -> (Val<'c>, Val<'c>) {
        let full = self.full(cg, at.stage);
        mbarrier::wait(cg, self.empty(cg, at.stage), cg.xor(at.parity, 1));
        mbarrier::arrive_expecting(cg, full, n_bytes);
        (self.stage(cg, at.stage), full)
    }

    /// A consumer's turn: waits until the stage is full, and gives its address.
    pub fn wait(&self, cg: &Cg<'c>, at: Place<'c>) -> Val<'c> {
        mbarrier::wait(cg, self.full(cg, at.stage), at.parity);
        self.stage(cg, at.stage)
    }

    /// Lets go of a stage, in the threads where `when` holds: one of each consumer warp.
    pub fn release_if(&self, cg: &Cg<'c>, when: Val<'c>, stage: Val<'c>) {
        mbarrier::arrive_if(cg, when, self.empty(cg, stage));
        if let Some(barriers) = self.peer_barriers {
            mbarrier::arrive_in_cluster_if(cg, when, self.empty_of(cg, barriers, stage));
        }
    }

    /// Lets go of the stage before `stage`: that whose products have ended when those of `stage`
    /// are all that is under way.
    pub fn release_before_if(&self, cg: &Cg<'c>, when: Val<'c>, stage: Val<'c>) {
        self.release_if(cg, when, self.previous(cg, stage));
    }

    pub fn next(&self, cg: &Cg<'c>, at: Place<'c>) -> Place<'c> {
        let after = cg.add(at.stage, 1);
        let wraps = cg.cmp(Cmp::Eq, after, self.n_stages as i32);
        let parity = cg.xor(at.parity, cg.zext(wraps, Elem::I32));
        Place { stage: cg.select(wraps, cg.i32(0), after), parity }
    }

    /// The stage before `stage`.
    pub fn previous(&self, cg: &Cg<'c>, stage: Val<'c>) -> Val<'c> {
        let wraps = cg.cmp(Cmp::Eq, stage, 0);
        cg.select(wraps, cg.i32(self.n_stages as i32 - 1), cg.sub(stage, 1))
    }
}
