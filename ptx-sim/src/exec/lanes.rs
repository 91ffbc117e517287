//! Between the lanes of a warp: shuffles, votes, reductions, election.

use super::Next;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::Machine;
use crate::program::{Fn2, Inst, ShflMode, VoteMode};
use crate::warp::{LANES, Lanes, Warp};

impl Machine<'_> {
    pub(super) fn shfl(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mode: ShflMode,
        mask: u32,
    ) -> Result<Next> {
        let values = self.fetch(cta, warp, inst.src[0]);
        let by = self.fetch(cta, warp, inst.src[1]);
        let clamp = self.fetch(cta, warp, inst.src[2]);
        let (mut out, mut valid) = (values, [0; LANES]);
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let (b, c) = (by[lane] as i64 & 31, clamp[lane] as i64);
            let segment = (c >> 8) & 31;
            let i = lane as i64;
            let last = (i & segment) | (c & 31 & !segment);
            let first = i & segment;
            let (from, inside) = match mode {
                ShflMode::Up => (i - b, i - b >= last),
                ShflMode::Down => (i + b, i + b <= last),
                ShflMode::Bfly => (i ^ b, i ^ b <= last),
                ShflMode::Idx => (first | (b & !segment), first | (b & !segment) <= last),
            };
            valid[lane] = u64::from(inside);
            let from = if inside { from as usize } else { lane };
            if mask >> from & 1 == 0 {
                let message = format!("lane {lane} reads lane {from}, which takes no part");
                return Err(Error::new(ErrorKind::Divergence, message));
            }
            out[lane] = values[from];
        }
        warp.put(inst.dst[0], mask, &out);
        if let Some(&dst) = inst.dst.get(1) {
            warp.put(dst, mask, &valid);
        }
        Ok(Next::Following)
    }

    pub(super) fn vote(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mode: VoteMode,
        mask: u32,
    ) -> Result<Next> {
        let values = self.fetch(cta, warp, inst.src[0]);
        let yes = ballot(&values, mask);
        let out = match mode {
            VoteMode::Ballot => u64::from(yes),
            VoteMode::All => u64::from(yes == mask),
            VoteMode::Any => u64::from(yes != 0),
            VoteMode::Uni => u64::from(yes == mask || yes == 0),
        };
        warp.put(inst.dst[0], mask, &[out; LANES]);
        Ok(Next::Following)
    }

    pub(super) fn redux(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        f: Fn2,
        mask: u32,
    ) -> Result<Next> {
        let values = self.fetch(cta, warp, inst.src[0]);
        let lanes = (0..LANES).filter(|&i| mask >> i & 1 == 1);
        let out = lanes.map(|i| values[i]).reduce(f).unwrap_or(0);
        warp.put(inst.dst[0], mask, &[out; LANES]);
        Ok(Next::Following)
    }

    /// For each lane the lanes that hold its value.
    pub(super) fn match_any(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mask: u32,
    ) -> Result<Next> {
        let values = self.fetch(cta, warp, inst.src[0]);
        let same = |v: u64| {
            let lanes = (0..LANES).filter(|&i| mask >> i & 1 == 1 && values[i] == v);
            lanes.fold(0u64, |m, i| m | 1 << i)
        };
        warp.put(inst.dst[0], mask, &values.map(same));
        Ok(Next::Following)
    }

    /// The lowest lane, which is one of the choices that hardware may make.
    pub(super) fn elect(&mut self, warp: &mut Warp, inst: &Inst, mask: u32) -> Result<Next> {
        let leader = mask.trailing_zeros() as usize;
        warp.put(inst.dst[0], mask, &[leader as u64; LANES]);
        let chosen: Lanes = std::array::from_fn(|i| u64::from(i == leader));
        warp.put(inst.dst[1], mask, &chosen);
        Ok(Next::Following)
    }
}

pub fn ballot(values: &Lanes, mask: u32) -> u32 {
    (0..LANES).filter(|&i| values[i] & 1 == 1).fold(0, |m, i| m | 1 << i) & mask
}
