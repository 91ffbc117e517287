//! Barriers of a CTA and of a cluster, and fences.

use super::Next;
use super::fence::Fence;
use super::lanes::ballot;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::Machine;
use crate::program::{BarMode, Inst, Scope};
use crate::warp::{Blocked, LANES, Warp};

impl Machine<'_> {
    pub(super) fn bar(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mode: BarMode,
        mask: u32,
    ) -> Result<Next> {
        if mask == 0 {
            return Ok(Next::Following);
        }
        let id = self.uniform(cta, warp, inst.src[0], mask) as usize;
        let count = self.uniform(cta, warp, inst.src[1], mask) as u32;
        if id > 15 {
            let message = format!("barrier {id}; there are 16");
            return Err(Error::new(ErrorKind::Operand, message));
        }
        if !count.is_multiple_of(32) {
            let message = format!("a count of {count} threads, not whole warps");
            return Err(Error::new(ErrorKind::Operand, message));
        }
        let reduces = matches!(mode, BarMode::And | BarMode::Or | BarMode::Popc);
        // A reduction runs twice: to arrive, and with the result once all have.
        let generation = self.cta(cta).bars[id].generation;
        if reduces && warp.reducing == Some((warp.groups[0].pc, generation)) {
            let bar = &self.cta(cta).bars[id];
            let (n_true, n) = (bar.n_true_last, bar.n_arrived_last);
            let out = match mode {
                BarMode::And => u64::from(n_true == n),
                BarMode::Or => u64::from(n_true > 0),
                _ => u64::from(n_true),
            };
            warp.reducing = None;
            warp.put(inst.dst[0], mask, &[out; LANES]);
            return Ok(Next::Following);
        }
        let released = warp.release();
        let bar = &mut self.ctas[cta].as_mut().expect("the running CTA is resident").bars[id];
        if bar.n_arrived == 0 {
            bar.n_threads = count;
        } else if bar.n_threads != count {
            let message = format!(
                "barrier {id} is used with {} and with {count} threads at once",
                bar.n_threads
            );
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        bar.n_arrived += 32;
        bar.gathering.join(&released);
        if count > 0 && bar.n_arrived > count {
            let message = format!("{} threads at barrier {id} of {count}", bar.n_arrived);
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        if reduces {
            let values = self.fetch(cta, warp, inst.src[2]);
            let n_true = ballot(&values, mask).count_ones();
            self.cta(cta).bars[id].n_true += n_true;
        }
        self.n_events += 1;
        self.release_full_bars(cta);
        if mode == BarMode::Arrive {
            return Ok(Next::Following);
        }
        warp.blocked = Some(Blocked::Bar { id: id as u8, generation });
        if reduces {
            warp.reducing = Some((warp.groups[0].pc, generation + 1));
            return Ok(Next::Stay);
        }
        Ok(Next::Wait)
    }

    /// Lets go every barrier of the CTA at which enough threads have arrived.
    pub fn release_full_bars(&mut self, cta: usize) {
        let Some(here) = self.ctas[cta].as_mut() else { return };
        let all = here.n_live_warps * 32;
        for bar in &mut here.bars {
            let needed = if bar.n_threads == 0 { all } else { bar.n_threads };
            if bar.n_arrived > 0 && bar.n_arrived >= needed {
                bar.n_arrived_last = bar.n_arrived;
                bar.n_true_last = std::mem::take(&mut bar.n_true);
                bar.n_arrived = 0;
                bar.generation += 1;
                bar.released = std::mem::take(&mut bar.gathering);
                self.n_events += 1;
            }
        }
    }

    pub(super) fn cluster_arrive(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        releases: bool,
    ) -> Result<Next> {
        if warp.arrived_cluster.is_some() {
            let message = "the warp arrives a second time without `barrier.cluster.wait`";
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        let released = if releases { Some(warp.release()) } else { None };
        let cluster = self.cta(cta).cluster;
        self.clusters[cluster].n_arrived += 1;
        if let Some(released) = released {
            self.clusters[cluster].gathering.join(&released);
        }
        warp.arrived_cluster = Some(self.clusters[cluster].generation);
        self.n_events += 1;
        self.release_cluster_if_full(cluster);
        Ok(Next::Following)
    }

    pub(super) fn cluster_wait(&mut self, warp: &mut Warp) -> Result<Next> {
        let Some(generation) = warp.arrived_cluster.take() else {
            let message = "the warp waits without having arrived";
            return Err(Error::new(ErrorKind::Barrier, message));
        };
        warp.blocked = Some(Blocked::Cluster { generation });
        Ok(Next::Wait)
    }

    pub(super) fn fence(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        fence: Fence,
        mask: u32,
    ) -> Result<Next> {
        if mask == 0 {
            return Ok(Next::Following);
        }
        match fence {
            Fence::Memory(scope) => {
                let seen = std::mem::take(&mut warp.seen);
                warp.knowledge.join(&seen);
                warp.at_fence_cta = warp.release();
                if scope > Scope::Cta {
                    warp.at_fence = warp.at_fence_cta.clone();
                }
            }
            Fence::ProxyAsync => {
                let known = warp.knowledge.generic.clone();
                warp.knowledge.fenced.join(&known);
                self.mark_inits_fenced(cta, warp);
                // Later writes are not covered.
                warp.release();
            }
            Fence::MbarrierInit => self.mark_inits_fenced(cta, warp),
            Fence::TensormapRelease => {
                warp.at_fence = warp.release();
                warp.at_fence_cta = warp.at_fence.clone();
            }
            Fence::TensormapAcquire => {
                let seen = std::mem::take(&mut warp.seen);
                warp.knowledge.join(&seen);
                let address = self.uniform(cta, warp, inst.src[0], mask);
                warp.tensormaps.insert(address, warp.knowledge.generic.clone());
                warp.release();
            }
        }
        Ok(Next::Following)
    }

    fn mark_inits_fenced(&mut self, cta: usize, warp: &mut Warp) {
        for at in std::mem::take(&mut warp.unfenced_inits) {
            if let Some(barrier) = self.cta(cta).mbarriers.get_mut(&at) {
                barrier.init_is_fenced = true;
            }
        }
    }
}
