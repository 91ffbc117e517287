//! mbarriers: phases that complete when every expected arrival has come and every expected byte.

use crate::error::{Error, ErrorKind, Result};
use crate::exec::Next;
use crate::machine::Machine;
use crate::program::{AddressSpace, Inst};
use crate::race::{Agent, AgentKind, Epoch, Knowledge};
use crate::warp::{LANES, Warp};

/// Arrivals and bytes that a phase may count, by PTX.
const COUNT_MAX: i64 = (1 << 20) - 1;

pub struct Mbarrier {
    /// Arrivals of each phase.
    expected: i64,
    pending: i64,
    /// Bytes expected and not yet come.
    tx_bytes: i64,
    /// Phases completed.
    phase: u32,
    pub agent: Agent,
    init: Epoch,
    pub init_is_fenced: bool,
    gathering: Knowledge,
    completed: Knowledge,
}

#[derive(Clone, Copy, Debug)]
pub enum MbarrierAction {
    Init,
    Inval,
    /// `counted`: an operand says how many arrive. `expects`: an operand adds bytes first.
    Arrive {
        counted: bool,
        expects: bool,
        drops: bool,
    },
    ExpectTx,
    CompleteTx,
    /// Whether a phase, by its parity or a state token, has completed.
    Test {
        parity: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct MbarrierOp {
    pub action: MbarrierAction,
    pub space: AddressSpace,
}

impl Mbarrier {
    pub fn describe(&self) -> String {
        let mut out = format!(
            "phase {}, {} of {} arrivals pending, {} bytes expected and not come",
            self.phase, self.pending, self.expected, self.tx_bytes
        );
        if self.pending == 0 && self.tx_bytes != 0 {
            out += "; the bytes of `expect_tx` are not those that the copies bring";
        }
        out
    }

    pub fn phase(&self) -> u32 {
        self.phase
    }

    fn settle(&mut self) -> Result<bool> {
        if self.pending < 0 {
            let message = format!(
                "more arrivals than the {} that the mbarrier was initialised for; a phase is \
                 arrived at before it is waited for, or the count is wrong",
                self.expected
            );
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        if self.tx_bytes.abs() > COUNT_MAX {
            let message = format!("{} bytes expected, over {COUNT_MAX}", self.tx_bytes);
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        if self.pending == 0 && self.tx_bytes < 0 {
            let message = format!(
                "{} bytes more have come than `expect_tx` told the mbarrier of",
                -self.tx_bytes
            );
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        if self.pending > 0 || self.tx_bytes != 0 {
            return Ok(false);
        }
        self.phase += 1;
        self.pending = self.expected;
        let gathered = std::mem::take(&mut self.gathering);
        self.completed.join(&gathered);
        self.completed.generic.learn(Epoch { agent: self.agent, time: self.phase });
        Ok(true)
    }
}

impl Machine<'_> {
    /// The CTA and offset of the mbarrier at an address, in bounds and aligned.
    pub fn mbarrier_place(
        &self,
        cta: usize,
        space: AddressSpace,
        address: u64,
    ) -> Result<(usize, u32)> {
        crate::exec::memory::aligned(address, 8)?;
        match self.place(cta, space, address, 8)? {
            crate::exec::memory::Place::Shared { cta, offset } => Ok((cta, offset)),
            _ => {
                let message = format!("{address:#x}: an mbarrier lies in shared memory");
                Err(Error::new(ErrorKind::OutOfBounds, message))
            }
        }
    }

    /// The mbarrier, initialised where this warp can know it.
    pub fn mbarrier_at(&mut self, cta: usize, at: u32, known: &Knowledge) -> Result<&mut Mbarrier> {
        let checks = self.launch.check_races;
        let Some(barrier) = self.cta(cta).mbarriers.get_mut(&at) else {
            let message = format!("no mbarrier has been initialised at {at:#x}");
            return Err(Error::new(ErrorKind::Barrier, message));
        };
        if checks && !known.generic.knows(barrier.init) {
            let message = format!(
                "the mbarrier at {at:#x} is used before its initialisation is known here; \
                 a barrier of the CTA or cluster comes between"
            );
            return Err(Error::new(ErrorKind::Race, message));
        }
        Ok(barrier)
    }

    /// Counts bytes that a copy has brought. `phase` is that in which it was started.
    pub fn complete_tx(&mut self, cta: usize, at: u32, n_bytes: u64, phase: u32) -> Result<()> {
        let Some(barrier) = self.cta(cta).mbarriers.get_mut(&at) else {
            let message =
                format!("the mbarrier at {at:#x} is gone while a copy still reports to it");
            return Err(Error::new(ErrorKind::Barrier, message));
        };
        if barrier.phase != phase {
            let message = format!(
                "a copy started in phase {phase} of the mbarrier at {at:#x} arrives in phase {}: \
                 `expect_tx` told it of fewer bytes than the copies bring",
                barrier.phase
            );
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        barrier.tx_bytes -= n_bytes as i64;
        barrier.settle()?;
        self.n_events += 1;
        Ok(())
    }

    pub(crate) fn mbarrier(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        op: &MbarrierOp,
        mask: u32,
    ) -> Result<Next> {
        let sources: Vec<_> = inst.src.iter().map(|&s| self.fetch(cta, warp, s)).collect();
        let mut polls = false;
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let (there, at) = self.mbarrier_place(cta, op.space, sources[0][lane])?;
            let operand = |i: usize| sources.get(i).map_or(0, |lanes| lanes[lane]);
            match op.action {
                MbarrierAction::Init => self.mbarrier_init(cta, there, at, operand(1), warp)?,
                MbarrierAction::Inval => {
                    self.mbarrier_at(there, at, &warp.knowledge)?;
                    self.cta(there).mbarriers.remove(&at);
                }
                MbarrierAction::Arrive { counted, expects, drops } => {
                    let known = warp.release();
                    let barrier = self.mbarrier_at(there, at, &known)?;
                    let state = u64::from(barrier.phase) << 32 | barrier.pending as u64;
                    if expects {
                        barrier.tx_bytes += operand(1) as u32 as i64;
                    }
                    let n = if counted { operand(1) as u32 as i64 } else { 1 };
                    barrier.pending -= n;
                    barrier.expected -= if drops { n } else { 0 };
                    barrier.gathering.join(&known);
                    barrier.settle()?;
                    self.n_events += 1;
                    if let Some(&dst) = inst.dst.first() {
                        warp.put_lane(dst, lane, state);
                    }
                }
                MbarrierAction::ExpectTx | MbarrierAction::CompleteTx => {
                    let sign = if matches!(op.action, MbarrierAction::ExpectTx) { 1 } else { -1 };
                    let barrier = self.mbarrier_at(there, at, &warp.knowledge)?;
                    barrier.tx_bytes += sign * operand(1) as u32 as i64;
                    barrier.settle()?;
                    self.n_events += 1;
                }
                MbarrierAction::Test { parity } => {
                    let barrier = self.mbarrier_at(there, at, &warp.knowledge)?;
                    let done = if parity {
                        u64::from(barrier.phase) & 1 != operand(1) & 1
                    } else {
                        operand(1) >> 32 != u64::from(barrier.phase)
                    };
                    if done {
                        let completed = &barrier.completed;
                        warp.knowledge.join(completed);
                    }
                    polls |= !done;
                    warp.put_lane(inst.dst[0], lane, u64::from(done));
                }
            }
        }
        Ok(if polls { Next::Yield } else { Next::Following })
    }

    fn mbarrier_init(
        &mut self,
        cta: usize,
        there: usize,
        at: u32,
        count: u64,
        warp: &mut Warp,
    ) -> Result<()> {
        if there != cta {
            let message = "an mbarrier is initialised by its own CTA";
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        let expected = i64::from(count as u32);
        if !(1..=COUNT_MAX).contains(&expected) {
            let message = format!("a count of {expected}, not in 1..={COUNT_MAX}");
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        let agent = Agent::new(AgentKind::Mbarrier, self.new_agent());
        let barrier = Mbarrier {
            expected,
            pending: expected,
            tx_bytes: 0,
            phase: 0,
            agent,
            init: warp.epoch(),
            init_is_fenced: false,
            gathering: Knowledge::default(),
            completed: Knowledge::default(),
        };
        if self.cta(cta).mbarriers.insert(at, barrier).is_some() {
            let message = format!("the mbarrier at {at:#x} is initialised twice without `inval`");
            return Err(Error::new(ErrorKind::Barrier, message));
        }
        warp.unfenced_inits.push(at);
        Ok(())
    }
}
