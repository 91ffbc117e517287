//! Thirty-two lanes: registers, places in the code, and what asynchronous work they have started.

use crate::program::{Dst, Kernel, Src};
use crate::race::{Agent, AgentKind, Clock, Epoch, Knowledge};
use crate::tma::BulkState;
use crate::wgmma::WgmmaState;
use std::collections::BTreeMap;

pub const LANES: usize = 32;
pub type Lanes = [u64; LANES];

/// A register that nothing has written yet: a NaN as f32, far out as an address.
const POISON: u64 = 0xdead_beef_7fff_dead;

/// Lanes that are at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// On a named barrier, until its generation passes this one.
    Bar {
        id: u8,
        generation: u32,
    },
    Cluster {
        generation: u32,
    },
}

pub struct Warp {
    /// Within its CTA; and among all warps of the launch.
    pub index: u32,
    pub id: u32,
    registers: Vec<Lanes>,
    /// Sorted by place, without gaps: the first runs.
    pub groups: Vec<Group>,
    pub live: u32,
    /// Of each lane: where to go on, and the call.
    pub stack: Vec<Vec<(u32, u32)>>,
    pub local: Vec<u8>,
    pub blocked: Option<Blocked>,
    /// Advances at every release.
    pub time: u32,
    pub knowledge: Knowledge,
    /// What relaxed stores publish: all that was known at the last memory fence.
    pub at_fence: Knowledge,
    /// The same, fences of CTA scope included.
    pub at_fence_cta: Knowledge,
    /// What relaxed loads have seen, learnt at the next fence.
    pub seen: Knowledge,
    pub wgmma: WgmmaState,
    pub bulk: BulkState,
    /// Tensor maps acquired by fence, by address, with what was known then.
    pub tensormaps: BTreeMap<u64, Clock>,
    /// mbarriers initialised and not yet fenced.
    pub unfenced_inits: Vec<u32>,
    /// Generation of the cluster barrier at which the warp has arrived.
    pub arrived_cluster: Option<u32>,
    /// A reducing barrier whose result is to be fetched: its place, and the generation after it.
    pub reducing: Option<(u32, u32)>,
    /// Count per register of asynchronous uses.
    pub in_flight: Vec<u32>,
    pub n_in_flight: u32,
    /// When each register was last written by an ordinary instruction.
    written: Vec<u32>,
    pub instant: u32,
    /// Where the warp last looked for something that was not there.
    pub poll_place: Option<u32>,
    /// The last values that a polling load saw, by instruction.
    pub polled: Option<(u32, u64)>,
}

impl Warp {
    pub fn new(kernel: &Kernel, index: u32, id: u32, live: u32) -> Warp {
        let n_registers = kernel.n_registers as usize;
        let mut knowledge = Knowledge::default();
        let agent = Agent::new(AgentKind::Warp, id);
        knowledge.generic.learn(Epoch { agent, time: 1 });
        Warp {
            index,
            id,
            registers: vec![[POISON; LANES]; n_registers],
            groups: vec![Group { pc: 0, mask: live }],
            live,
            stack: vec![vec![]; LANES],
            local: vec![0; kernel.local_bytes as usize * LANES],
            blocked: None,
            time: 1,
            knowledge,
            at_fence: Knowledge::default(),
            at_fence_cta: Knowledge::default(),
            seen: Knowledge::default(),
            wgmma: WgmmaState::default(),
            bulk: BulkState::default(),
            tensormaps: BTreeMap::new(),
            unfenced_inits: vec![],
            arrived_cluster: None,
            reducing: None,
            in_flight: vec![0; n_registers],
            n_in_flight: 0,
            written: vec![0; n_registers],
            instant: 1,
            poll_place: None,
            polled: None,
        }
    }

    pub fn agent(&self) -> Agent {
        Agent::new(AgentKind::Warp, self.id)
    }

    pub fn epoch(&self) -> Epoch {
        Epoch { agent: self.agent(), time: self.time }
    }

    /// What others learn at this moment; what comes after it they do not.
    pub fn release(&mut self) -> Knowledge {
        let out = self.knowledge.clone();
        self.time += 1;
        self.knowledge.generic.learn(self.epoch());
        out
    }

    pub fn register(&self, register: u32) -> &Lanes {
        &self.registers[register as usize]
    }

    /// Written by asynchronous work, so not counted as a write of the program.
    pub fn register_mut(&mut self, register: u32) -> &mut Lanes {
        &mut self.registers[register as usize]
    }

    pub fn is_touched_since(&self, register: u32, instant: u32) -> bool {
        self.written[register as usize] > instant
    }

    pub fn put(&mut self, dst: Dst, mask: u32, values: &Lanes) {
        if dst.is_sink() {
            return;
        }
        let lanes = &mut self.registers[dst.register as usize];
        self.written[dst.register as usize] = self.instant;
        if mask == u32::MAX {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = value & dst.mask;
            }
            return;
        }
        for (i, (lane, value)) in lanes.iter_mut().zip(values).enumerate() {
            if mask >> i & 1 == 1 {
                *lane = value & dst.mask;
            }
        }
    }

    pub fn put_lane(&mut self, dst: Dst, lane: usize, value: u64) {
        if !dst.is_sink() {
            self.registers[dst.register as usize][lane] = value & dst.mask;
            self.written[dst.register as usize] = self.instant;
        }
    }

    /// Of sources that need no launch: registers and numbers.
    pub fn plain(&self, src: Src) -> Option<Lanes> {
        Some(match src {
            Src::Register(r) => self.registers[r as usize],
            Src::Imm(value) => [value; LANES],
            Src::Offset(r, offset) => {
                let mut lanes = self.registers[r as usize];
                for lane in &mut lanes {
                    *lane = lane.wrapping_add(offset as u64);
                }
                lanes
            }
            Src::Not(r) => {
                let mut lanes = self.registers[r as usize];
                for lane in &mut lanes {
                    *lane ^= 1;
                }
                lanes
            }
            Src::Special(_) | Src::Shared(_) => return None,
        })
    }

    /// The running lanes go on at `pc`.
    pub fn jump(&mut self, pc: u32) {
        self.groups[0].pc = pc;
        if self.groups.len() > 1 {
            self.settle();
        }
    }

    /// Of the running lanes those in `taken` go to `target`, the others to `next`.
    pub fn split(&mut self, taken: u32, target: u32, next: u32) {
        let here = self.groups.remove(0);
        let others = here.mask & !taken;
        if taken != 0 {
            self.groups.push(Group { pc: target, mask: taken });
        }
        if others != 0 {
            self.groups.push(Group { pc: next, mask: others });
        }
        self.settle();
    }

    pub fn exit(&mut self, lanes: u32, next: u32) {
        self.live &= !lanes;
        self.groups[0].mask &= !lanes;
        self.groups[0].pc = next;
        self.settle();
    }

    /// Sorts groups by place and joins those that meet.
    pub fn settle(&mut self) {
        self.groups.retain(|g| g.mask != 0);
        self.groups.sort_by_key(|g| g.pc);
        self.groups.dedup_by(|b, a| {
            let same = a.pc == b.pc;
            if same {
                a.mask |= b.mask;
            }
            same
        });
    }
}
