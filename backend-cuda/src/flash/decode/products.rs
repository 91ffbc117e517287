//! The products of a warpgroup: scores of its blocks, and what they and the other's are worth to
//! its half of the values' columns.

use weft_codegen::emit::{Ty, Val};

use super::consume::Kept;
use super::{BLOCK_KEYS, Decode};
use crate::ptx::wgmma::{self, Kind, Products};
use crate::tiles::fragment::n_sums;
use crate::tiles::ring::Place;

impl Decode {
    /// Scores of the block at `place`, which is warpgroup `own`'s.
    pub(super) fn scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
    ) -> Vec<Val<'c>> {
        let s = self.start_near_scores(kept, own, place);
        self.end_scores(kept, own, place, &s)
    }

    /// Starts what the near half gives of them, as soon as it has come.
    pub(super) fn start_near_scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
    ) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let stage = kept.shared.halves[own as usize].wait(cg, place);
        let zeros = vec![cg.zero(Ty::F32); n_sums(BLOCK_KEYS)];
        match self.half_steps(own) {
            steps if steps.is_empty() => zeros,
            steps => self.start_scores(kept, stage, &zeros, cg.i1(false), steps),
        }
    }

    /// Adds what the rest of the block gives, and waits for all.
    pub(super) fn end_scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
        s: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let stage = kept.shared.halves[1 - own as usize].wait(cg, place);
        let adds = cg.i1(!self.half_steps(own).is_empty());
        let mut steps = self.half_steps(1 - own);
        steps.extend(self.rest_steps());
        wgmma::wait(cg, 0, &self.start_scores(kept, stage, s, adds, steps))
    }

    fn start_scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        s: &[Val<'c>],
        adds: Val<'c>,
        steps: Vec<[u32; 2]>,
    ) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let operands =
            [self.q_tile(0).descriptor(cg, kept.q), self.k_tile(0).descriptor(cg, stage)];
        let (n, transposed) = (BLOCK_KEYS, [false; 2]);
        let products = Products { kind: Kind::Bf16, n, transposed, steps };
        products.start(cg, s, operands, adds, None)
    }

    /// What the products of a half of the first part's columns begin with in q and k; none where
    /// that half is beyond the width.
    fn half_steps(&self, half: u32) -> Vec<[u32; 2]> {
        let first = half * self.half_width();
        let end = (first + self.half_width()).min(self.parts[0]);
        let step = |k: u32| [self.q_tile(0).descriptor_step(k), self.k_tile(0).descriptor_step(k)];
        (first..end).step_by(Kind::Bf16.k() as usize).map(step).collect()
    }

    /// The same of the other parts.
    fn rest_steps(&self) -> Vec<[u32; 2]> {
        let mut steps = vec![];
        let [mut q, mut k] = [self.q_tile(0), self.k_tile(0)].map(|tile| tile.bytes() / 16);
        for (part, width) in self.parts.iter().enumerate().skip(1) {
            let (of_q, of_k) = (self.q_tile(part), self.k_tile(part));
            let step = |at: u32| [q + of_q.descriptor_step(at), k + of_k.descriptor_step(at)];
            steps.extend((0..*width).step_by(Kind::Bf16.k() as usize).map(step));
            q += of_q.bytes() / 16;
            k += of_k.bytes() / 16;
        }
        steps
    }

    /// Starts `o + p · v` of the warpgroup's half of the columns and its own weights; gives the
    /// registers of those, too, which are in use.
    pub(super) fn start_near<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
        o: &[Val<'c>],
        p: &[Val<'c>],
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let (products, v) = self.values(kept, own, place);
        products.start_registers(kept.cg, o, p, v)
    }

    /// The same with the weights of the other one, whose block is at `place`.
    pub(super) fn start_far<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
        o: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let (products, v) = self.values(kept, own, place);
        let p = cg.add(kept.shared.stage(cg, place), self.p_offset_bytes() as i32);
        products.start(cg, o, [self.p_tile().descriptor(cg, p), v], cg.i1(true), None)
    }

    /// Products of weights with half of the block's columns, and the descriptor of that half.
    fn values<'c>(&self, kept: &Kept<'_, 'c>, half: u32, place: Place<'c>) -> (Products, Val<'c>) {
        let (cg, p, v) = (kept.cg, self.p_tile(), self.v_tile());
        let stage = kept.shared.stage(cg, place);
        let at = cg.add(stage, (half * self.half_bytes()) as i32);
        let step = |k: u32| [p.descriptor_step(k), v.descriptor_step(k)];
        let steps = (0..BLOCK_KEYS).step_by(Kind::Bf16.k() as usize).map(step).collect();
        let (n, transposed) = (self.half_width(), [false, true]);
        (Products { kind: Kind::Bf16, n, transposed, steps }, v.descriptor(cg, at))
    }
}
