//! One instruction of one warp.

pub mod atomic;
mod barrier;
pub mod fence;
mod lanes;
pub mod memory;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Machine, Turn};
use crate::memory::{SHARED_BASE, SHARED_RANK_SHIFT};
use crate::program::{AddressSpace, Inst, Op, Special, Src};
use crate::warp::{LANES, Lanes, Warp};

/// Where the running lanes go after an instruction.
pub enum Next {
    Following,
    /// The instruction placed the lanes itself.
    Placed,
    /// To the following one, after a turn of the others.
    Yield,
    /// To the following one, once what blocks the warp is gone.
    Wait,
    /// Again to this one, once what blocks the warp is gone.
    Stay,
}

impl Machine<'_> {
    pub fn step(&mut self, cta: usize, warp: &mut Warp) -> Result<Turn> {
        if warp.live == 0 {
            return Ok(Turn::Done);
        }
        self.gather(cta, warp)?;
        let group = warp.groups[0];
        let inst = &self.kernel.code[group.pc as usize];
        let mask = match inst.guard {
            None => group.mask,
            Some(guard) => {
                let values = warp.register(guard.register);
                let wanted = u64::from(!guard.negated);
                let chosen = (0..LANES).filter(|&i| values[i] & 1 == wanted);
                chosen.fold(0, |m, i| m | 1 << i) & group.mask
            }
        };
        self.stats.n_instructions += 1;
        self.counts[inst.opcode as usize] += 1;
        self.stats.ran_primitives.insert(inst.primitive);
        if self.stats.n_instructions > self.launch.instructions_max {
            let message = format!(
                "more than {} instructions; raise `instructions_max` if that is meant",
                self.launch.instructions_max
            );
            return Err(Error::new(ErrorKind::Limit, message));
        }
        warp.instant += 1;
        let next = self.execute(cta, warp, inst, mask)?;
        if matches!(next, Next::Yield) {
            warp.poll_place = Some(group.pc);
        }
        match next {
            Next::Placed | Next::Stay => {}
            Next::Following | Next::Yield | Next::Wait => warp.jump(group.pc + 1),
        }
        Ok(match next {
            _ if warp.live == 0 => Turn::Done,
            Next::Yield => Turn::Polling,
            Next::Wait | Next::Stay => Turn::Blocked,
            _ => Turn::Busy,
        })
    }

    /// Brings a group to the front that may run: at an instruction for several lanes, all of them
    /// must have come.
    fn gather(&mut self, cta: usize, warp: &mut Warp) -> Result<()> {
        if warp.groups.len() == 1 && !self.kernel.code[warp.groups[0].pc as usize].aligned {
            return Ok(());
        }
        for i in 0..warp.groups.len() {
            let group = warp.groups[i];
            let inst = &self.kernel.code[group.pc as usize];
            if inst.aligned {
                let needed = self.needed_lanes(cta, warp, inst, group.mask)?;
                if needed & !group.mask != 0 {
                    if i == 0 {
                        self.stats.n_late_convergences += 1;
                    }
                    continue;
                }
            }
            warp.groups.swap(0, i);
            return Ok(());
        }
        let group = warp.groups[0];
        let others: Vec<u32> =
            warp.groups[1..].iter().map(|g| self.kernel.code[g.pc as usize].line).collect();
        let message = if others.is_empty() {
            let absent = !group.mask;
            format!("lanes {absent:#x} of its mask have exited, the others wait for them")
        } else {
            format!("lanes {:#x} are here, others wait at lines {others:?}", group.mask)
        };
        Err(Error::new(ErrorKind::Divergence, message))
    }

    /// Lanes that must be together at an instruction.
    fn needed_lanes(&self, cta: usize, warp: &Warp, inst: &Inst, mask: u32) -> Result<u32> {
        let member = match inst.op {
            Op::Shfl(_) => inst.src[3],
            Op::Vote(_) | Op::Redux(_) | Op::MatchAny => inst.src[1],
            Op::Elect | Op::WarpSync => inst.src[0],
            _ => return Ok(warp.live),
        };
        let lane = mask.trailing_zeros() as usize;
        let member = self.fetch(cta, warp, member)[lane] as u32;
        if member >> lane & 1 == 0 {
            let message = format!("lane {lane} is not in its own member mask {member:#x}");
            return Err(Error::new(ErrorKind::Divergence, message));
        }
        Ok(member & warp.live)
    }

    pub fn fetch(&self, cta: usize, warp: &Warp, src: Src) -> Lanes {
        if let Some(lanes) = warp.plain(src) {
            return lanes;
        }
        let here = self.ctas[cta].as_ref().expect("the running CTA is resident");
        let special = match src {
            Src::Special(special) => special,
            Src::Shared(offset) => {
                return [u64::from(here.rank << SHARED_RANK_SHIFT | offset); LANES];
            }
            _ => return [0; LANES],
        };
        let block = self.launch.block;
        let of = |axis: u8, xyz: [u32; 3]| [u64::from(xyz[usize::from(axis)]); LANES];
        let [cx, cy, cz] = self.launch.cluster;
        let by_lane = |f: &dyn Fn(u64) -> u64| std::array::from_fn(|i| f(i as u64));
        let grid = self.launch.grid;
        match special {
            Special::Tid(axis) => std::array::from_fn(|i| {
                let linear = warp.index * 32 + i as u32;
                let xyz =
                    [linear % block[0], linear / block[0] % block[1], linear / block[0] / block[1]];
                u64::from(xyz[usize::from(axis)])
            }),
            Special::Ntid(axis) => of(axis, block),
            Special::Ctaid(axis) => of(axis, here.id),
            Special::Nctaid(axis) => of(axis, grid),
            Special::Clusterid(axis) => of(axis, self.clusters[here.cluster].id),
            Special::Nclusterid(axis) => of(axis, [grid[0] / cx, grid[1] / cy, grid[2] / cz]),
            Special::ClusterCtaid(axis) => {
                of(axis, [here.rank % cx, here.rank / cx % cy, here.rank / cx / cy])
            }
            Special::ClusterNctaid(axis) => of(axis, self.launch.cluster),
            Special::ClusterCtarank => [u64::from(here.rank); LANES],
            Special::ClusterNctarank => [u64::from(cx * cy * cz); LANES],
            Special::Laneid => by_lane(&|i| i),
            Special::Warpid => [u64::from(warp.index); LANES],
            Special::Nwarpid => [here.warps.len() as u64; LANES],
            Special::LanemaskEq => by_lane(&|i| 1 << i),
            Special::LanemaskLt => by_lane(&|i| (1 << i) - 1),
            Special::LanemaskLe => by_lane(&|i| (2 << i) - 1),
            Special::LanemaskGt => by_lane(&|i| 0xffff_ffff & !((2 << i) - 1)),
            Special::LanemaskGe => by_lane(&|i| 0xffff_ffff & !((1 << i) - 1)),
            Special::Smid => [cta as u64 % u64::from(self.launch.resident_ctas_max.max(1)); LANES],
            Special::Nsmid => [u64::from(self.launch.resident_ctas_max.max(1)); LANES],
            Special::Gridid => [0; LANES],
            Special::Clock => [self.stats.n_instructions; LANES],
            Special::DynamicSmemSize => [u64::from(self.launch.dynamic_shared_bytes); LANES],
            Special::TotalSmemSize => [u64::from(self.shared_end()); LANES],
        }
    }

    /// A source of the lowest lane in `mask`, for operands that are one for the warp.
    pub fn uniform(&self, cta: usize, warp: &Warp, src: Src, mask: u32) -> u64 {
        self.fetch(cta, warp, src)[mask.trailing_zeros().min(31) as usize]
    }

    fn execute(&mut self, cta: usize, warp: &mut Warp, inst: &Inst, mask: u32) -> Result<Next> {
        if warp.n_in_flight > 0 && mask != 0 {
            check_in_flight(warp, inst)?;
        }
        let src = |m: &Self, w: &Warp, i: usize| m.fetch(cta, w, inst.src[i]);
        let out: Lanes = match &inst.op {
            Op::Map1(f) => src(self, warp, 0).map(f),
            Op::Map2(f) => {
                let (a, b) = (src(self, warp, 0), src(self, warp, 1));
                std::array::from_fn(|i| f(a[i], b[i]))
            }
            Op::Map3(f) => {
                let (a, b, c) = (src(self, warp, 0), src(self, warp, 1), src(self, warp, 2));
                std::array::from_fn(|i| f(a[i], b[i], c[i]))
            }
            Op::Map4(f) => {
                let (a, b) = (src(self, warp, 0), src(self, warp, 1));
                let (c, d) = (src(self, warp, 2), src(self, warp, 3));
                std::array::from_fn(|i| f(a[i], b[i], c[i], d[i]))
            }
            Op::Convert(convert) if inst.src.len() == 2 => {
                let (a, b) = (src(self, warp, 0), src(self, warp, 1));
                std::array::from_fn(|i| convert.apply_pair(a[i], b[i]))
            }
            Op::Convert(convert) => src(self, warp, 0).map(|a| convert.apply(a)),
            Op::SetpPair(f) => {
                let (a, b) = (src(self, warp, 0), src(self, warp, 1));
                let out: Lanes = std::array::from_fn(|i| f(a[i], b[i]));
                warp.put(inst.dst[1], mask, &out.map(|p| p ^ 1));
                out
            }
            Op::SetpJoin(f, join) => {
                let (a, b, c) = (src(self, warp, 0), src(self, warp, 1), src(self, warp, 2));
                std::array::from_fn(|i| join(f(a[i], b[i]), c[i] & 1))
            }
            Op::Pack(bits) => {
                let part = u64::MAX >> (64 - bits);
                let mut out = [0; LANES];
                for (n, &s) in inst.src.iter().enumerate() {
                    let values = self.fetch(cta, warp, s);
                    for i in 0..LANES {
                        out[i] |= (values[i] & part) << (usize::from(*bits) * n);
                    }
                }
                out
            }
            Op::Unpack(bits) => {
                let values = src(self, warp, 0);
                for (n, &dst) in inst.dst.iter().enumerate() {
                    warp.put(dst, mask, &values.map(|v| v >> (usize::from(*bits) * n)));
                }
                return Ok(Next::Following);
            }
            Op::CvtaShared { to_generic: true } => {
                src(self, warp, 0).map(|a| (a & 0xffff_ffff) + SHARED_BASE)
            }
            Op::CvtaShared { to_generic: false } => {
                let values = src(self, warp, 0);
                let outside = |&i: &usize| mask >> i & 1 == 1 && !is_shared(values[i]);
                if let Some(i) = (0..LANES).find(outside) {
                    let message = format!("{:#x} is not in shared memory", values[i]);
                    return Err(Error::new(ErrorKind::OutOfBounds, message));
                }
                values.map(|a| a & 0xffff_ffff)
            }
            Op::IsSpace(space) => {
                let rank = self.ctas[cta].as_ref().map_or(0, |c| c.rank);
                src(self, warp, 0).map(|a| u64::from(space_has(*space, a, rank)))
            }
            Op::Mapa { generic } => {
                let (a, rank) = (src(self, warp, 0), src(self, warp, 1));
                let high = if *generic { SHARED_BASE } else { 0 };
                let offset = (1 << SHARED_RANK_SHIFT) - 1;
                std::array::from_fn(|i| (a[i] & offset) + high + (rank[i] << SHARED_RANK_SHIFT))
            }
            Op::GetCtaRank => src(self, warp, 0).map(|a| (a & 0xffff_ffff) >> SHARED_RANK_SHIFT),
            Op::Activemask => [u64::from(mask); LANES],
            other => return self.execute_other(cta, warp, inst, other, mask),
        };
        warp.put(inst.dst[0], mask, &out);
        Ok(Next::Following)
    }

    /// What moves lanes, or reaches beyond them.
    fn execute_other(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        op: &Op,
        mask: u32,
    ) -> Result<Next> {
        let pc = warp.groups[0].pc;
        match op {
            Op::Nop | Op::WarpSync => Ok(Next::Following),
            Op::Bra(target) => {
                if mask == warp.groups[0].mask {
                    warp.jump(*target);
                } else {
                    warp.split(mask, *target, pc + 1);
                }
                Ok(Next::Placed)
            }
            Op::BraIndexed(targets) => self.branch_indexed(cta, warp, inst, targets, mask),
            Op::Call(call) => {
                self.enter(warp, *call, mask);
                Ok(Next::Placed)
            }
            Op::Ret => {
                self.leave(warp, mask);
                Ok(Next::Placed)
            }
            Op::Exit => {
                warp.exit(mask, pc + 1);
                Ok(Next::Placed)
            }
            Op::Trap if mask == 0 => Ok(Next::Following),
            Op::Trap => Err(Error::new(ErrorKind::Operand, "the kernel trapped")),
            Op::Shfl(mode) => self.shfl(cta, warp, inst, *mode, mask),
            Op::Vote(mode) => self.vote(cta, warp, inst, *mode, mask),
            Op::Redux(f) => self.redux(cta, warp, inst, *f, mask),
            Op::MatchAny => self.match_any(cta, warp, inst, mask),
            Op::Elect => self.elect(warp, inst, mask),
            Op::Load(access) => self.load(cta, warp, inst, access, mask),
            Op::Store(access) => self.store(cta, warp, inst, access, mask),
            Op::Atomic(atomic) => self.atomic(cta, warp, inst, atomic, mask),
            Op::Bar(mode) => self.bar(cta, warp, inst, *mode, mask),
            Op::ClusterArrive { releases } => self.cluster_arrive(cta, warp, *releases),
            Op::ClusterWait => self.cluster_wait(warp),
            Op::Fence(fence) => self.fence(cta, warp, inst, *fence, mask),
            Op::Mbarrier(op) => self.mbarrier(cta, warp, inst, op, mask),
            Op::TensorCopy(copy) => self.tensor_copy(cta, warp, inst, copy, mask),
            Op::BulkCopy(copy) => self.bulk_copy(cta, warp, inst, copy, mask),
            Op::BulkCommit => self.bulk_commit(warp, mask),
            Op::BulkWait { read } => self.bulk_wait(cta, warp, inst, *read, mask),
            Op::TensormapReplace(field, space) => {
                self.tensormap_replace(cta, warp, inst, *field, *space, mask)
            }
            Op::Wgmma(shape) => self.wgmma(cta, warp, inst, shape, mask),
            Op::WgmmaFence => self.wgmma_fence(warp),
            Op::WgmmaCommit => self.wgmma_commit(warp),
            Op::WgmmaWait => self.wgmma_wait(cta, warp, inst, mask),
            Op::Ldmatrix(matrix) => self.ldmatrix(cta, warp, inst, *matrix, mask),
            Op::Stmatrix(matrix) => self.stmatrix(cta, warp, inst, *matrix, mask),
            Op::Setmaxnreg => self.setmaxnreg(cta, warp, inst, mask),
            _ => Err(Error::new(ErrorKind::Unsupported, "no way to run it")),
        }
    }

    fn branch_indexed(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        targets: &[u32],
        mask: u32,
    ) -> Result<Next> {
        let index = self.fetch(cta, warp, inst.src[0]);
        let here = warp.groups.remove(0);
        for lane in (0..LANES).filter(|&i| here.mask >> i & 1 == 1) {
            let mut pc = here.pc + 1;
            if mask >> lane & 1 == 1 {
                let Some(&target) = targets.get(index[lane] as usize) else {
                    warp.groups.insert(0, here);
                    let message = format!("index {} of {} targets", index[lane], targets.len());
                    return Err(Error::new(ErrorKind::Operand, message));
                };
                pc = target;
            }
            warp.groups.push(crate::warp::Group { pc, mask: 1 << lane });
        }
        warp.settle();
        Ok(Next::Placed)
    }

    fn copy_slots(warp: &mut Warp, slots: &[crate::program::Slot], frame: usize, lane: usize) {
        for slot in slots {
            let (from, to) = (lane * frame + slot.from as usize, lane * frame + slot.to as usize);
            warp.local.copy_within(from..from + slot.size_bytes as usize, to);
        }
    }

    fn enter(&mut self, warp: &mut Warp, index: u32, mask: u32) {
        let call = &self.kernel.calls[index as usize];
        let next = warp.groups[0].pc + 1;
        let frame = self.kernel.local_bytes as usize;
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            Self::copy_slots(warp, &call.arguments, frame, lane);
            warp.stack[lane].push((next, index));
        }
        warp.split(mask, call.target, next);
    }

    /// From a function to its caller; from the entry, out.
    fn leave(&mut self, warp: &mut Warp, mask: u32) {
        let here = warp.groups.remove(0);
        let frame = self.kernel.local_bytes as usize;
        for lane in (0..LANES).filter(|&i| here.mask >> i & 1 == 1) {
            let mut pc = here.pc + 1;
            if mask >> lane & 1 == 1 {
                match warp.stack[lane].pop() {
                    None => {
                        warp.live &= !(1 << lane);
                        continue;
                    }
                    Some((next, index)) => {
                        let call = &self.kernel.calls[index as usize];
                        Self::copy_slots(warp, &call.results, frame, lane);
                        pc = next;
                    }
                }
            }
            warp.groups.push(crate::warp::Group { pc, mask: 1 << lane });
        }
        warp.settle();
    }
}

pub fn is_shared(address: u64) -> bool {
    (SHARED_BASE..SHARED_BASE + (1 << 32)).contains(&address)
}

fn space_has(space: AddressSpace, address: u64, rank: u32) -> bool {
    use crate::memory::{LOCAL_BASE, MODULE_BASE, PARAM_BASE};
    let within = |from: u64, to: u64| (from..to).contains(&address);
    match space {
        AddressSpace::SharedCluster => is_shared(address),
        AddressSpace::SharedCta => {
            is_shared(address) && (address & 0xffff_ffff) >> SHARED_RANK_SHIFT == u64::from(rank)
        }
        AddressSpace::Local => within(LOCAL_BASE, PARAM_BASE),
        AddressSpace::Param => within(PARAM_BASE, MODULE_BASE),
        AddressSpace::Global => address >= MODULE_BASE,
        AddressSpace::Generic | AddressSpace::Const => false,
    }
}

/// No instruction but wgmma may name a register that one in flight uses.
fn check_in_flight(warp: &Warp, inst: &Inst) -> Result<()> {
    if matches!(inst.op, Op::Wgmma(_)) {
        return Ok(());
    }
    let of_src = inst.src.iter().filter_map(|s| match s {
        Src::Register(r) | Src::Not(r) | Src::Offset(r, _) => Some((*r, "reads")),
        _ => None,
    });
    let of_dst = inst.dst.iter().filter(|d| !d.is_sink()).map(|d| (d.register, "writes"));
    for (register, does) in of_src.chain(of_dst) {
        if warp.in_flight[register as usize] > 0 && (does == "writes" || warp.wgmma.fills(register))
        {
            let line = warp.wgmma.line_of(register).unwrap_or(0);
            let message = format!(
                "{does} a register of the wgmma of line {line}, which is in flight; \
                 `wgmma.wait_group` first"
            );
            return Err(Error::new(ErrorKind::MissingWait, message));
        }
    }
    Ok(())
}
