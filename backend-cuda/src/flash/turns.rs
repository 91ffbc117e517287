//! Turns of the two warpgroups at the tensor cores, where a block's products are short beside its
//! softmax: each starts its products when the other has started its own, so that they fall apart
//! and one weighs while the other multiplies.
//!
//! There are two named barriers, one of each warpgroup: it waits at its own, and the other arrives.
//! Where heads are wide, products are long enough to hide a softmax that is in no order, and turns
//! cost more than they give: so it was measured of FlashAttention 3, on an H200 (its change 2294).

use weft_codegen::emit::{Cg, Cmp};

use super::Attention;
use crate::ptx::sync;
use crate::tiles::roles::{CONSUMER_THREADS, Consumer};

/// Width of q and k from which on there are none.
const WIDE: u32 = 128;

impl Attention {
    pub(super) fn takes_turns(&self) -> bool {
        self.parts.iter().sum::<u32>() < WIDE
    }

    /// Before the first turn, which is warpgroup 0's.
    pub(super) fn begin_turns<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>) {
        if self.takes_turns() {
            let gives = cg.cmp(Cmp::Eq, consumer.warpgroup, 1);
            cg.when(gives, || self.give_turn(cg, consumer));
        }
    }

    /// Takes the turn that is left when both have had as many.
    pub(super) fn end_turns<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>) {
        if self.takes_turns() {
            let takes = cg.cmp(Cmp::Eq, consumer.warpgroup, 0);
            cg.when(takes, || self.take_turn(cg, consumer));
        }
    }

    pub(super) fn take_turn<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>) {
        if self.takes_turns() {
            sync::named_barrier(cg, cg.add(consumer.warpgroup, 1), CONSUMER_THREADS);
        }
    }

    pub(super) fn give_turn<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>) {
        if self.takes_turns() {
            sync::named_arrive(cg, cg.sub(cg.i32(2), consumer.warpgroup), CONSUMER_THREADS);
        }
    }
}
