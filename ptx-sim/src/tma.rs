//! The copy engine: boxes of tensors and plain runs of bytes, between global and shared memory.
//!
//! Races are checked when a copy is issued, by clocks; bytes move then, later or as late as can be,
//! as the launch asks.

use crate::device::Completion;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Next;
use crate::exec::atomic::Reduction;
use crate::exec::memory::{Place, aligned};
use crate::machine::Machine;
use crate::program::{AddressSpace, Inst};
use crate::race::{Agent, AgentKind, Epoch, Touch};
use crate::tensor_map::{Field, TENSOR_MAP_BYTES, TensorMap};
use crate::warp::{LANES, Warp};
use std::collections::{BTreeMap, VecDeque};

/// `cp.async.bulk.tensor` and `cp.reduce.async.bulk.tensor`.
pub struct TensorCopy {
    pub n_dims: u8,
    pub direction: Direction,
}

/// `cp.async.bulk` and `cp.reduce.async.bulk` of a run of bytes.
pub struct BulkCopy {
    pub direction: Direction,
    /// From the shared memory of this CTA to that of another, instead of from global memory.
    pub from_shared: bool,
    /// Of the element of a reduction.
    pub element_bytes: u8,
}

#[derive(Clone, Copy)]
pub enum Direction {
    /// Into shared memory, reported to an mbarrier.
    In { multicast: bool },
    /// Out of shared memory, in a bulk group.
    Out { reduction: Option<Reduction> },
    /// As `Out`, with the element type that the tensor map names.
    OutTyped { reduction: TensorReduction },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorReduction {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

impl TensorReduction {
    fn name(self) -> &'static str {
        match self {
            TensorReduction::Add => "add",
            TensorReduction::Min => "min",
            TensorReduction::Max => "max",
            TensorReduction::And => "and",
            TensorReduction::Or => "or",
            TensorReduction::Xor => "xor",
        }
    }
}

enum Far {
    Tensor { map: Box<TensorMap>, at: Vec<i64> },
    Global(u64),
    Shared { cta: usize, offset: u32 },
}

/// A copy into shared memory on its way.
pub struct PendingCopy {
    due: u64,
    line: u32,
    from: Far,
    n_bytes: u64,
    targets: Vec<Target>,
}

/// Where a copy goes, and what it reports to.
struct Target {
    cta: usize,
    offset: u32,
    barrier_cta: usize,
    barrier_at: u32,
    /// Of the mbarrier, when the copy was issued.
    phase: u32,
}

/// A copy out of shared memory, not yet done.
struct PendingStore {
    line: u32,
    offset: u32,
    to: Far,
    n_bytes: u64,
    reduction: Option<(Reduction, u8)>,
}

/// Bulk groups, by lane.
#[derive(Default)]
pub struct BulkState {
    lanes: BTreeMap<usize, LaneGroups>,
}

#[derive(Default)]
struct LaneGroups {
    open: Vec<PendingStore>,
    committed: VecDeque<Vec<PendingStore>>,
    n_committed: u32,
    n_read: u32,
    n_done: u32,
    /// Copies not yet in a group.
    n_open: u32,
    last_line: u32,
}

/// A row of a box: where it lies in both memories.
struct Row {
    /// Of the row's first byte in the box.
    box_offset: u64,
    /// Address of the first byte inside the tensor, and the bytes of the row that lie inside.
    inside: Option<(u64, std::ops::Range<u64>)>,
}

/// Rows of the box at `at`, in order.
fn rows(map: &TensorMap, at: &[i64]) -> Vec<Row> {
    let element = map.element.bytes();
    let row_bytes = u64::from(map.box_dims[0]) * element;
    let n_rows: u64 = map.box_dims[1..].iter().map(|&d| u64::from(d)).product();
    let first = at[0].clamp(0, map.dims[0] as i64);
    let last = (at[0] + i64::from(map.box_dims[0])).clamp(0, map.dims[0] as i64);
    let mut out = vec![];
    for row in 0..n_rows {
        let (mut rest, mut address, mut inside) = (row, map.address, first < last);
        for (i, &size) in map.box_dims[1..].iter().enumerate() {
            let index = at[i + 1] + (rest % u64::from(size)) as i64;
            rest /= u64::from(size);
            inside &= (0..map.dims[i + 1] as i64).contains(&index);
            address = address.wrapping_add((index as u64).wrapping_mul(map.strides_bytes[i]));
        }
        let inside = inside.then(|| {
            let begin = (first - at[0]) as u64 * element;
            let end = (last - at[0]) as u64 * element;
            (address + first as u64 * element, begin..end)
        });
        out.push(Row { box_offset: row * row_bytes, inside });
    }
    out
}

impl Machine<'_> {
    /// The tensor map at a generic address.
    fn tensor_map(&mut self, cta: usize, warp: &Warp, address: u64) -> Result<TensorMap> {
        aligned(address, 64)?;
        let place = self.place(cta, AddressSpace::Generic, address, TENSOR_MAP_BYTES as u64)?;
        match place {
            Place::Param { .. } => {}
            Place::Memory { segment, offset } => {
                let shadow = &mut self.memory.segment(segment).shadow;
                let known = warp.tensormaps.get(&address);
                let n = TENSOR_MAP_BYTES;
                let fresh = shadow.is_written(offset, n)
                    && !known.is_some_and(|clock| shadow.writes_known(offset, n, clock));
                if fresh {
                    let message = format!(
                        "the tensor map at {address:#x} was changed by this launch; \
                         `fence.proxy.tensormap::generic.acquire` on it comes first"
                    );
                    return Err(Error::new(ErrorKind::MissingFence, message));
                }
            }
            _ => {
                let message = "a tensor map lies in parameters (as a grid constant) or in global \
                               memory, not in local or shared memory";
                return Err(Error::new(ErrorKind::Operand, message));
            }
        }
        let mut bytes = [0; TENSOR_MAP_BYTES];
        self.load_bytes(warp, 0, place, &mut bytes);
        TensorMap::decode(&bytes)
    }

    pub(crate) fn tensor_copy(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        copy: &TensorCopy,
        mask: u32,
    ) -> Result<Next> {
        let sources: Vec<_> = inst.src.iter().map(|&s| self.fetch(cta, warp, s)).collect();
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let operand = |i: usize| sources[i][lane];
            let map = Box::new(self.tensor_map(cta, warp, operand(1))?);
            if map.dims.len() != usize::from(copy.n_dims) {
                let message = format!("a tensor map of rank {}", map.dims.len());
                return Err(Error::new(ErrorKind::Operand, message));
            }
            let first = sources.len() - usize::from(copy.n_dims);
            let at: Vec<i64> = sources[first..].iter().map(|c| i64::from(c[lane] as i32)).collect();
            let n_bytes = map.box_bytes();
            let shared = operand(0);
            aligned(shared, 128)?;
            let period = map.swizzle.period_bytes();
            if period > 128 && !shared.is_multiple_of(u64::from(period)) {
                let message = format!(
                    "{shared:#x} is not a multiple of the {period} bytes after which the swizzle \
                     repeats"
                );
                return Err(Error::new(ErrorKind::Misaligned, message));
            }
            let element = map.element;
            let far = Far::Tensor { map, at };
            match copy.direction {
                Direction::In { multicast } => {
                    let ctas = multicast.then(|| operand(3) as u16);
                    self.copy_in(cta, warp, inst, far, n_bytes, [shared, operand(2)], ctas)?;
                }
                Direction::Out { .. } => {
                    self.copy_out(cta, warp, inst, lane, shared, far, n_bytes, None)?;
                }
                Direction::OutTyped { reduction } => {
                    let found = Reduction::find(reduction.name(), element.ty());
                    let Some(found) = found else {
                        let message = format!("no {reduction:?} of {element:?}");
                        return Err(Error::new(ErrorKind::Operand, message));
                    };
                    let reduction = Some((found, element.bytes() as u8));
                    self.copy_out(cta, warp, inst, lane, shared, far, n_bytes, reduction)?;
                }
            }
        }
        Ok(Next::Following)
    }

    pub(crate) fn bulk_copy(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        copy: &BulkCopy,
        mask: u32,
    ) -> Result<Next> {
        let sources: Vec<_> = inst.src.iter().map(|&s| self.fetch(cta, warp, s)).collect();
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let operand = |i: usize| sources[i][lane];
            let n_bytes = u64::from(operand(2) as u32);
            aligned(operand(0), 16)?;
            aligned(operand(1), 16)?;
            aligned(n_bytes, 16)?;
            match copy.direction {
                Direction::In { multicast } => {
                    let far = if copy.from_shared {
                        let space = AddressSpace::SharedCta;
                        match self.place(cta, space, operand(1), n_bytes)? {
                            Place::Shared { cta, offset } => Far::Shared { cta, offset },
                            _ => Far::Global(0),
                        }
                    } else {
                        Far::Global(operand(1))
                    };
                    let ctas = multicast.then(|| operand(4) as u16);
                    self.copy_in(cta, warp, inst, far, n_bytes, [operand(0), operand(3)], ctas)?;
                }
                Direction::OutTyped { .. } => {
                    return Err(Error::new(ErrorKind::Operand, "no tensor map names the type"));
                }
                Direction::Out { reduction } => {
                    let far = Far::Global(operand(0));
                    let reduction = reduction.map(|r| (r, copy.element_bytes));
                    self.copy_out(cta, warp, inst, lane, operand(1), far, n_bytes, reduction)?;
                }
            }
        }
        Ok(Next::Following)
    }

    /// Starts a copy into `[destination, mbarrier]`, of one CTA or of those in a mask.
    #[expect(clippy::too_many_arguments, reason = "the operands of the instruction")]
    fn copy_in(
        &mut self,
        cta: usize,
        warp: &Warp,
        inst: &Inst,
        from: Far,
        n_bytes: u64,
        [destination, barrier]: [u64; 2],
        ctas: Option<u16>,
    ) -> Result<()> {
        let space = AddressSpace::SharedCluster;
        let Place::Shared { cta: to, offset } = self.place(cta, space, destination, n_bytes)?
        else {
            return Err(Error::new(ErrorKind::Operand, "the destination is not shared memory"));
        };
        let (bar_cta, bar_at) = self.mbarrier_place(cta, space, barrier)?;
        let own_cluster = self.cta(cta).cluster;
        let everyone = self.clusters[own_cluster].ctas.clone();
        let pairs: Vec<(usize, usize)> = match ctas {
            None => vec![(to, bar_cta)],
            Some(mask) => (0..16)
                .filter(|i| mask >> i & 1 == 1)
                .map(|i| everyone.get(i).map(|&c| (c, c)))
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    let message = format!("the mask {mask:#x} names CTAs beyond the cluster");
                    Error::new(ErrorKind::Operand, message)
                })?,
        };
        let mut targets = vec![];
        for (to, bar_cta) in pairs {
            let barrier = self.mbarrier_at(bar_cta, bar_at, &warp.knowledge)?;
            if !barrier.init_is_fenced {
                let message = format!(
                    "the mbarrier at {bar_at:#x} was initialised with no \
                     `fence.mbarrier_init.release.cluster` or `fence.proxy.async` after it"
                );
                return Err(Error::new(ErrorKind::MissingFence, message));
            }
            let phase = barrier.phase();
            let epoch = Epoch { agent: barrier.agent, time: phase + 1 };
            let knowledge = &warp.knowledge;
            let touch =
                Touch { epoch, knowledge, is_async: true, is_atomic: false, line: inst.line };
            self.touch(Place::Shared { cta: to, offset }, n_bytes as usize, true, touch)?;
            self.touch_far(&from, n_bytes, false, touch)?;
            let (barrier_cta, barrier_at) = (bar_cta, bar_at);
            targets.push(Target { cta: to, offset, barrier_cta, barrier_at, phase });
        }
        let due = match self.launch.completion {
            Completion::Eager => 0,
            Completion::Lazy => u64::MAX,
            Completion::Random { delay_max, .. } => {
                self.tick + self.next_random() % u64::from(delay_max.max(1))
            }
        };
        self.stats.copied_in_bytes += n_bytes;
        let copy = PendingCopy { due, line: inst.line, from, n_bytes, targets };
        if due == 0 {
            return self.complete(copy);
        }
        self.copies.push(copy);
        Ok(())
    }

    /// Checks the far side of a copy against other accesses.
    fn touch_far(&mut self, far: &Far, n_bytes: u64, writes: bool, touch: Touch) -> Result<()> {
        let one = |machine: &mut Self, address: u64, n: u64| {
            let (segment, offset) = machine.memory.locate(address, n)?;
            machine.touch(Place::Memory { segment, offset }, n as usize, writes, touch)
        };
        match far {
            Far::Tensor { map, at } => rows(map, at)
                .into_iter()
                .filter_map(|row| row.inside)
                .try_for_each(|(address, range)| one(self, address, range.end - range.start)),
            Far::Global(address) if n_bytes > 0 => one(self, *address, n_bytes),
            Far::Global(_) => Ok(()),
            Far::Shared { cta, offset } => {
                let place = Place::Shared { cta: *cta, offset: *offset };
                self.touch(place, n_bytes as usize, writes, touch)
            }
        }
    }

    fn complete(&mut self, copy: PendingCopy) -> Result<()> {
        let at_line = |e: Error| e.or_line(copy.line);
        let mut bytes = vec![0u8; copy.n_bytes as usize];
        let mut swizzle = crate::swizzle::Swizzle::None;
        match &copy.from {
            Far::Global(address) => {
                bytes.copy_from_slice(self.memory.bytes(*address, copy.n_bytes).map_err(at_line)?);
            }
            Far::Shared { cta, offset } => {
                let from = &self.cta(*cta).shared[*offset as usize..][..bytes.len()];
                bytes.copy_from_slice(from);
            }
            Far::Tensor { map, at } => {
                swizzle = map.swizzle;
                if map.fills_nan {
                    // All ones is a NaN in every float format.
                    bytes.fill(0xff);
                }
                for row in rows(map, at) {
                    let Some((address, range)) = row.inside else { continue };
                    let n = range.end - range.start;
                    let from = self.memory.bytes(address, n).map_err(at_line)?;
                    bytes[(row.box_offset + range.start) as usize..][..n as usize]
                        .copy_from_slice(from);
                }
            }
        }
        for target in copy.targets {
            let Some(there) = self.ctas[target.cta].as_mut() else {
                let message =
                    "the CTA has exited while a copy into its shared memory is on its way";
                return Err(at_line(Error::new(ErrorKind::MissingWait, message)));
            };
            let shared = &mut there.shared;
            for (i, chunk) in bytes.chunks(16).enumerate() {
                let to = swizzle.apply(target.offset + 16 * i as u32) as usize;
                shared[to..to + chunk.len()].copy_from_slice(chunk);
            }
            let Target { barrier_cta, barrier_at, phase, .. } = target;
            self.complete_tx(barrier_cta, barrier_at, copy.n_bytes, phase).map_err(at_line)?;
        }
        Ok(())
    }

    /// Completes copies whose time has come; whether there were any.
    pub fn complete_due(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(i) = self.copies.iter().position(|c| c.due <= self.tick) {
            let copy = self.copies.remove(i);
            self.complete(copy)?;
            any = true;
        }
        Ok(any)
    }

    pub fn complete_oldest(&mut self) -> Result<bool> {
        if self.copies.is_empty() {
            return Ok(false);
        }
        let copy = self.copies.remove(0);
        self.complete(copy)?;
        Ok(true)
    }

    #[expect(clippy::too_many_arguments, reason = "the operands of the instruction")]
    fn copy_out(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        lane: usize,
        shared: u64,
        to: Far,
        n_bytes: u64,
        reduction: Option<(Reduction, u8)>,
    ) -> Result<()> {
        let place = self.place(cta, AddressSpace::SharedCta, shared, n_bytes)?;
        let Place::Shared { offset, .. } = place else {
            return Err(Error::new(ErrorKind::Operand, "the source is not shared memory"));
        };
        let groups = warp.bulk.lanes.entry(lane).or_default();
        let time = groups.n_committed + 1;
        groups.last_line = inst.line;
        groups.n_open += 1;
        let index = warp.id * LANES as u32 + lane as u32;
        let knowledge = &warp.knowledge;
        let epoch = Epoch { agent: Agent::new(AgentKind::BulkRead, index), time };
        let touch = Touch { epoch, knowledge, is_async: true, is_atomic: false, line: inst.line };
        self.touch(place, n_bytes as usize, false, touch)?;
        let epoch = Epoch { agent: Agent::new(AgentKind::Bulk, index), time };
        let touch = Touch { epoch, is_atomic: reduction.is_some(), ..touch };
        self.touch_far(&to, n_bytes, true, touch)?;
        let store = PendingStore { line: inst.line, offset, to, n_bytes, reduction };
        let late = match self.launch.completion {
            Completion::Eager => false,
            Completion::Lazy => true,
            Completion::Random { .. } => self.next_random() % 2 == 1,
        };
        if late {
            warp.bulk.lanes.entry(lane).or_default().open.push(store);
            return Ok(());
        }
        self.store_out(cta, store)
    }

    fn store_out(&mut self, cta: usize, store: PendingStore) -> Result<()> {
        let mut bytes = vec![0u8; store.n_bytes as usize];
        let swizzle = match &store.to {
            Far::Tensor { map, .. } => map.swizzle,
            _ => crate::swizzle::Swizzle::None,
        };
        for (i, chunk) in bytes.chunks_mut(16).enumerate() {
            let from = swizzle.apply(store.offset + 16 * i as u32) as usize;
            chunk.copy_from_slice(&self.cta(cta).shared[from..from + chunk.len()]);
        }
        let spans: Vec<(u64, std::ops::Range<u64>)> = match &store.to {
            Far::Tensor { map, at } => rows(map, at)
                .into_iter()
                .filter_map(|row| {
                    let (address, range) = row.inside?;
                    Some((address, row.box_offset + range.start..row.box_offset + range.end))
                })
                .collect(),
            Far::Global(address) => vec![(*address, 0..store.n_bytes)],
            Far::Shared { .. } => vec![],
        };
        for (address, range) in spans {
            let from = &bytes[range.start as usize..range.end as usize];
            let to = self.memory.bytes_mut(address, range.end - range.start);
            let to = to.map_err(|e| e.or_line(store.line))?;
            let Some((reduction, element)) = store.reduction else {
                to.copy_from_slice(from);
                continue;
            };
            let n = usize::from(element);
            for (to, from) in to.chunks_mut(n).zip(from.chunks(n)) {
                let word = |bytes: &[u8]| {
                    let mut word = [0; 8];
                    word[..n].copy_from_slice(bytes);
                    u64::from_le_bytes(word)
                };
                let new = reduction.apply(word(to), word(from), 0);
                to.copy_from_slice(&new.to_le_bytes()[..n]);
            }
        }
        self.n_events += 1;
        Ok(())
    }

    pub(crate) fn bulk_commit(&mut self, warp: &mut Warp, mask: u32) -> Result<Next> {
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let groups = warp.bulk.lanes.entry(lane).or_default();
            let group = std::mem::take(&mut groups.open);
            groups.committed.push_back(group);
            groups.n_open = 0;
            groups.n_committed += 1;
        }
        Ok(Next::Following)
    }

    pub(crate) fn bulk_wait(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        read: bool,
        mask: u32,
    ) -> Result<Next> {
        let left = self.fetch(cta, warp, inst.src[0]);
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            let groups = warp.bulk.lanes.entry(lane).or_default();
            let n = left[lane] as usize;
            let mut stores = vec![];
            while groups.committed.len() > n {
                stores.extend(groups.committed.pop_front().unwrap_or_default());
            }
            let done = groups.n_committed.saturating_sub(n as u32);
            groups.n_read = groups.n_read.max(done);
            if !read {
                groups.n_done = groups.n_done.max(done);
            }
            let (n_read, n_done) = (groups.n_read, groups.n_done);
            let index = warp.id * LANES as u32 + lane as u32;
            let agent = Agent::new(AgentKind::BulkRead, index);
            warp.knowledge.generic.learn(Epoch { agent, time: n_read });
            let agent = Agent::new(AgentKind::Bulk, index);
            warp.knowledge.generic.learn(Epoch { agent, time: n_done });
            for store in stores {
                self.store_out(cta, store)?;
            }
        }
        Ok(Next::Following)
    }

    /// At the end of a warp its shared memory must no longer be read.
    pub fn finish_bulk(&mut self, cta: usize, warp: &mut Warp) -> Result<()> {
        for (_, groups) in std::mem::take(&mut warp.bulk.lanes) {
            if groups.n_read < groups.n_committed || groups.n_open > 0 {
                let message = "the thread exits while its bulk copies may still read shared \
                               memory; `cp.async.bulk.wait_group.read 0` comes first";
                return Err(Error::at(ErrorKind::MissingWait, groups.last_line, message));
            }
            for store in groups.committed.into_iter().flatten() {
                self.store_out(cta, store)?;
            }
        }
        Ok(())
    }

    pub(crate) fn tensormap_replace(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        field: Field,
        space: AddressSpace,
        mask: u32,
    ) -> Result<Next> {
        let addresses = self.fetch(cta, warp, inst.src[0]);
        let values = self.fetch(cta, warp, inst.src[1]);
        for lane in (0..LANES).filter(|&i| mask >> i & 1 == 1) {
            aligned(addresses[lane], 64)?;
            let n = TENSOR_MAP_BYTES;
            let place = self.place(cta, space, addresses[lane], n as u64)?;
            let (epoch, line) = (warp.epoch(), inst.line);
            let knowledge = &warp.knowledge;
            let touch = Touch { epoch, knowledge, is_async: false, is_atomic: false, line };
            self.touch(place, n, true, touch)?;
            let mut bytes = [0; TENSOR_MAP_BYTES];
            self.load_bytes(warp, lane, place, &mut bytes);
            field.replace(&mut bytes, values[lane])?;
            self.store_bytes(warp, lane, place, &bytes)?;
        }
        Ok(Next::Following)
    }
}
