//! A launch: clusters of CTAs made resident in order, their warps run in turns, asynchronous copies
//! completed between turns, and what it means that nothing can go on.

use crate::device::{Completion, Launch, Stats};
use crate::error::{Error, ErrorKind, Result};
use crate::mbarrier::Mbarrier;
use crate::memory::{Memory, SHARED_RANK_SHIFT};
use crate::program::Kernel;
use crate::race::{Knowledge, Shadow};
use crate::tma::PendingCopy;
use crate::warp::{Blocked, LANES, Warp};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Instructions a warp runs before another has its turn.
const SLICE: u32 = 128;
/// Rounds in which every warp only polled, after which nothing will change.
const IDLE_ROUNDS_MAX: u32 = 64;

#[derive(Default)]
pub struct NamedBarrier {
    pub n_threads: u32,
    pub n_arrived: u32,
    pub generation: u32,
    pub gathering: Knowledge,
    pub released: Knowledge,
    /// For reductions: lanes with a true predicate, so far and of the last generation.
    pub n_true: u32,
    pub n_true_last: u32,
    pub n_arrived_last: u32,
}

pub struct Cta {
    pub id: [u32; 3],
    pub cluster: usize,
    pub rank: u32,
    pub shared: Vec<u8>,
    pub shadow: Shadow,
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    pub bars: Vec<NamedBarrier>,
    pub warps: Vec<Option<Box<Warp>>>,
    pub n_live_warps: u32,
}

/// CTAs that start and end together.
#[derive(Default)]
pub struct Cluster {
    pub id: [u32; 3],
    pub ctas: Vec<usize>,
    pub n_live_warps: u32,
    pub n_arrived: u32,
    pub generation: u32,
    pub gathering: Knowledge,
    pub released: Knowledge,
}

pub struct Machine<'a> {
    pub kernel: &'a Kernel,
    pub memory: &'a mut Memory,
    pub launch: &'a Launch,
    pub params: &'a [u8],
    pub ctas: Vec<Option<Box<Cta>>>,
    pub clusters: Vec<Cluster>,
    pub copies: Vec<PendingCopy>,
    /// What strong accesses have published, by address.
    pub published: BTreeMap<u64, Published>,
    pub tick: u64,
    /// Things that may let a waiting warp go on.
    pub n_events: u64,
    pub n_agents: u32,
    pub stats: Stats,
    pub counts: Vec<u64>,
    random: u64,
    next_cluster: u32,
    n_clusters: u32,
    n_resident: u32,
    pub n_warps: u32,
}

/// What strong writes of a place have made known: to everyone, and within a CTA.
#[derive(Default)]
pub struct Published {
    pub wide: Knowledge,
    pub within: BTreeMap<usize, Knowledge>,
}

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Ran its slice.
    Busy,
    /// Looked for something that is not there yet.
    Polling,
    Blocked,
    Done,
}

impl<'a> Machine<'a> {
    pub fn new(
        kernel: &'a Kernel,
        memory: &'a mut Memory,
        launch: &'a Launch,
        params: &'a [u8],
    ) -> Self {
        let n_ctas: u32 = launch.grid.iter().product();
        let cluster_ctas: u32 = launch.cluster.iter().product();
        let seed = match launch.completion {
            Completion::Random { seed, .. } => seed,
            _ => 0,
        };
        Machine {
            kernel,
            memory,
            launch,
            params,
            ctas: (0..n_ctas).map(|_| None).collect(),
            clusters: vec![],
            copies: vec![],
            published: BTreeMap::new(),
            tick: 0,
            n_events: 0,
            n_agents: 0,
            stats: Stats::default(),
            counts: vec![0; kernel.opcodes.len()],
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            next_cluster: 0,
            n_clusters: n_ctas / cluster_ctas,
            n_resident: 0,
            n_warps: 0,
        }
    }

    pub fn run(mut self) -> Result<Stats> {
        let cluster_ctas: u32 = self.launch.cluster.iter().product();
        let resident_max = (self.launch.resident_ctas_max / cluster_ctas).max(1);
        let mut n_idle = 0;
        loop {
            while self.n_resident < resident_max && self.next_cluster < self.n_clusters {
                self.start_cluster();
            }
            if self.n_resident == 0 {
                break;
            }
            let events = self.n_events;
            let busy = self.round()?;
            self.tick += 1;
            let completed = self.complete_due()?;
            if busy || completed || events != self.n_events {
                n_idle = 0;
                continue;
            }
            // Lazy copies come only when nothing else can.
            if self.complete_oldest()? {
                continue;
            }
            n_idle += 1;
            if n_idle > IDLE_ROUNDS_MAX {
                return Err(self.deadlock());
            }
        }
        while self.complete_oldest()? {}
        for (index, &n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            self.stats.n_by_opcode.insert(self.kernel.opcodes[index].clone(), n);
        }
        Ok(self.stats)
    }

    fn start_cluster(&mut self) {
        let [cx, cy, cz] = self.launch.cluster;
        let [gx, gy, _] = self.launch.grid;
        let (nx, ny) = (gx / cx, gy / cy);
        let index = self.next_cluster;
        self.next_cluster += 1;
        self.n_resident += 1;
        let id = [index % nx, index / nx % ny, index / nx / ny];
        let cluster = self.clusters.len();
        let mut ctas = vec![];
        let n_threads: u32 = self.launch.block.iter().product();
        let n_warps = n_threads.div_ceil(LANES as u32);
        for rank in 0..cx * cy * cz {
            let local = [rank % cx, rank / cx % cy, rank / cx / cy];
            let at = [id[0] * cx + local[0], id[1] * cy + local[1], id[2] * cz + local[2]];
            let linear = (at[2] * gy + at[1]) * gx + at[0];
            let warps = (0..n_warps).map(|w| {
                let n_lanes = (n_threads - w * 32).min(32);
                let live = u32::MAX >> (32 - n_lanes);
                let id = self.n_warps + w;
                Some(Box::new(Warp::new(self.kernel, w, id, live)))
            });
            let cta = Cta {
                id: at,
                cluster,
                rank,
                shared: vec![0xcd; self.shared_end() as usize],
                shadow: Shadow::default(),
                mbarriers: BTreeMap::new(),
                bars: (0..16).map(|_| NamedBarrier::default()).collect(),
                warps: warps.collect(),
                n_live_warps: n_warps,
            };
            self.n_warps += n_warps;
            self.ctas[linear as usize] = Some(Box::new(cta));
            ctas.push(linear as usize);
        }
        let n_live_warps = n_warps * ctas.len() as u32;
        self.clusters.push(Cluster { id, ctas, n_live_warps, ..Cluster::default() });
    }

    pub fn shared_end(&self) -> u32 {
        self.kernel.static_shared_end + self.launch.dynamic_shared_bytes
    }

    /// A turn for every warp; whether any did more than poll.
    fn round(&mut self) -> Result<bool> {
        let mut busy = false;
        for cluster in 0..self.clusters.len() {
            if self.clusters[cluster].n_live_warps == 0 {
                continue;
            }
            for i in 0..self.clusters[cluster].ctas.len() {
                let cta = self.clusters[cluster].ctas[i];
                let n_warps = self.ctas[cta].as_ref().map_or(0, |c| c.warps.len());
                for w in 0..n_warps {
                    busy |= self.turn(cta, w)? == Turn::Busy;
                }
            }
            if self.clusters[cluster].n_live_warps == 0 {
                self.end_cluster(cluster);
                busy = true;
            }
        }
        Ok(busy)
    }

    fn end_cluster(&mut self, cluster: usize) {
        self.n_resident -= 1;
        for &cta in &self.clusters[cluster].ctas {
            self.ctas[cta] = None;
        }
    }

    fn turn(&mut self, cta: usize, index: usize) -> Result<Turn> {
        let Some(mut warp) = self.cta(cta).warps[index].take() else { return Ok(Turn::Done) };
        if !self.unblock(cta, &mut warp) {
            self.cta(cta).warps[index] = Some(warp);
            return Ok(Turn::Blocked);
        }
        let slice = match self.launch.completion {
            Completion::Random { .. } => 1 + (self.next_random() % u64::from(SLICE)) as u32,
            _ => SLICE,
        };
        let mut turn = Turn::Busy;
        for _ in 0..slice {
            turn = self.step(cta, &mut warp).map_err(|e| self.locate(e, &warp))?;
            if turn != Turn::Busy {
                break;
            }
        }
        if turn == Turn::Done {
            self.end_warp(cta, &mut warp).map_err(|e| self.locate(e, &warp))?;
        } else {
            self.cta(cta).warps[index] = Some(warp);
        }
        Ok(turn)
    }

    fn end_warp(&mut self, cta: usize, warp: &mut Warp) -> Result<()> {
        self.finish_bulk(cta, warp)?;
        warp.wgmma.check_end()?;
        self.n_events += 1;
        let cluster = self.cta(cta).cluster;
        self.cta(cta).n_live_warps -= 1;
        self.clusters[cluster].n_live_warps -= 1;
        // Barriers that counted on all threads of the CTA no longer wait for this warp.
        self.release_cluster_if_full(cluster);
        self.release_full_bars(cta);
        Ok(())
    }

    /// Whether the warp may run.
    fn unblock(&mut self, cta: usize, warp: &mut Warp) -> bool {
        match warp.blocked {
            None => return true,
            Some(Blocked::Bar { id, generation }) => {
                let bar = &self.cta(cta).bars[usize::from(id)];
                if bar.generation == generation {
                    return false;
                }
                warp.knowledge.join(&bar.released);
            }
            Some(Blocked::Cluster { generation }) => {
                let cluster = self.cta(cta).cluster;
                let cluster = &self.clusters[cluster];
                if cluster.generation == generation {
                    return false;
                }
                warp.knowledge.join(&cluster.released);
            }
        }
        warp.blocked = None;
        true
    }

    pub fn release_cluster_if_full(&mut self, cluster: usize) {
        let cluster = &mut self.clusters[cluster];
        if cluster.n_arrived > 0 && cluster.n_arrived >= cluster.n_live_warps {
            cluster.n_arrived = 0;
            cluster.generation += 1;
            cluster.released = std::mem::take(&mut cluster.gathering);
            self.n_events += 1;
        }
    }

    pub fn cta(&mut self, cta: usize) -> &mut Cta {
        self.ctas[cta].as_mut().expect("a CTA that runs is resident")
    }

    /// The CTA that a shared address of `cta`'s cluster points into, and the offset there.
    pub fn shared_place(&self, cta: usize, address: u32) -> Result<(usize, u32)> {
        let rank = address >> SHARED_RANK_SHIFT;
        let offset = address & ((1 << SHARED_RANK_SHIFT) - 1);
        let here = self.ctas[cta].as_ref();
        let cluster = here.map_or(0, |c| c.cluster);
        let Some(&there) = self.clusters[cluster].ctas.get(rank as usize) else {
            let message = format!(
                "the shared address {address:#x} names CTA {rank} of a cluster of {}",
                self.clusters[cluster].ctas.len()
            );
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        };
        if self.ctas[there].as_ref().is_none_or(|c| c.n_live_warps == 0) {
            let message = format!("CTA {rank} of the cluster has exited; a cluster barrier first");
            return Err(Error::new(ErrorKind::Race, message));
        }
        Ok((there, offset))
    }

    pub fn new_agent(&mut self) -> u32 {
        self.n_agents += 1;
        self.n_agents
    }

    pub fn next_random(&mut self) -> u64 {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn locate(&self, mut error: Error, warp: &Warp) -> Error {
        if error.line == 0
            && let Some(group) = warp.groups.first()
            && let Some(inst) = self.kernel.code.get(group.pc as usize)
        {
            error.line = inst.line;
            error.source_line = inst.source.map(|s| self.kernel.sources[s as usize].clone());
            let opcode = &self.kernel.opcodes[inst.opcode as usize];
            error.message = format!("{}: `{opcode}`: {}", self.kernel.name, error.message);
        }
        error
    }

    fn deadlock(&mut self) -> Error {
        let mut out = format!("{}: deadlock, nothing can go on\n", self.kernel.name);
        let mut first_line = 0;
        for cta in self.ctas.iter().flatten() {
            let _ = writeln!(out, "CTA {:?}", cta.id);
            for (at, barrier) in &cta.mbarriers {
                let _ = writeln!(out, "  mbarrier {at:#x}: {}", barrier.describe());
            }
            for (id, bar) in cta.bars.iter().enumerate().filter(|(_, b)| b.n_arrived > 0) {
                let (n, of) = (bar.n_arrived, bar.n_threads);
                let _ = writeln!(out, "  barrier {id}: {n} of {of} threads arrived");
            }
            for warp in cta.warps.iter().flatten() {
                let _ = write!(out, "  warp {}:", warp.index);
                let polls = warp.poll_place.filter(|_| warp.blocked.is_none());
                let waiting = warp.groups.iter().map(|g| (g.mask, polls.unwrap_or(g.pc)));
                for (i, (mask, pc)) in
                    waiting.take(if polls.is_some() { 1 } else { 32 }).enumerate()
                {
                    let inst = &self.kernel.code[pc as usize];
                    let opcode = &self.kernel.opcodes[inst.opcode as usize];
                    if first_line == 0 {
                        first_line = inst.line;
                    }
                    let verb = if polls.is_some() { "poll" } else { "stand" };
                    let comma = if i > 0 { "," } else { "" };
                    let line = inst.line;
                    let _ = write!(out, "{comma} lanes {mask:#x} {verb} at line {line} `{opcode}`");
                }
                out.push('\n');
            }
        }
        Error::at(ErrorKind::Deadlock, first_line, out.trim_end())
    }
}
