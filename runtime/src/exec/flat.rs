//! The steps of an entry at given dims: addresses, grids and counts, with loops still rolled.
//!
//! A launch without strides passes slices of `Flat` as they are; one inside a loop copies its few
//! addresses and moves them. Events are numbered through all bodies.

use super::{ExecError, Profile};
use crate::device::{Clock, Device, Kernels};
use crate::ranks::Rank;
use crate::ranks::collective::Blocks;
use crate::ranks::on_device::Room;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
mod meet;

use meet::Flight;
use weft_graph::order::n_streams;
use weft_graph::{
    Arg, Collective, CollectiveKind, End, Entry, Group, Half, KernelId, Launch, Message, Order,
    Scalar, Step, offset_range,
};

#[derive(Debug, Default)]
pub(super) struct Flat {
    steps: Vec<FlatStep>,
    /// Of each of `steps`.
    orders: Vec<Order>,
    /// Streams and events of all steps.
    n_streams: u32,
    n_events: u32,
    /// Of the steps outside of loops.
    beside: Beside,
    /// How often some loop turns is for a run to say.
    pub(super) ends_early: bool,
    buffers: Vec<*mut u8>,
    strides: Vec<Stride>,
    scalars: Vec<i64>,
    indices: Vec<IndexSlot>,
}

#[derive(Debug)]
enum FlatStep {
    Launch(FlatLaunch),
    Copy(FlatCopy),
    Collective(FlatCollective),
    Message(FlatMessage),
    /// The steps up to `end` are the body.
    Loop {
        count: i64,
        reverse: bool,
        /// One of `buffers`, if it may end early.
        left: Option<(Range<usize>, Range<usize>)>,
        end: usize,
        beside: Beside,
    },
}

/// The streams of a body beside the first, and the events that part and join them: one where the
/// body begins, and for each of the streams one where it ends, from `event` on.
#[derive(Clone, Debug, Default)]
struct Beside {
    streams: Vec<u32>,
    event: u32,
}

#[derive(Debug)]
struct FlatLaunch {
    /// What it is called, and where it comes from.
    label: String,
    kernel: KernelId,
    grid: i64,
    buffers: Range<usize>,
    strides: Range<usize>,
    scalars: Range<usize>,
    indices: Range<usize>,
    flops: i64,
    bytes: i64,
    /// Position among the launches and copies of the entry.
    row: usize,
}

#[derive(Debug)]
struct FlatCopy {
    /// Two of `buffers`: from and to.
    buffers: Range<usize>,
    strides: Range<usize>,
    bytes: i64,
    row: usize,
}

#[derive(Debug)]
struct FlatCollective {
    kind: CollectiveKind,
    half: Option<Half>,
    group: Group,
    label: String,
    /// Two of `buffers`, from and to, or four: offsets of an exchange.
    buffers: Range<usize>,
    strides: Range<usize>,
    blocks: Blocks,
    offsets_bytes: usize,
    from_bytes: usize,
    to_bytes: usize,
    row: usize,
}

#[derive(Debug)]
struct FlatMessage {
    end: End,
    group: Group,
    peer: usize,
    label: String,
    /// One of `buffers`.
    buffers: Range<usize>,
    strides: Range<usize>,
    bytes: usize,
    row: usize,
}

/// `buffers[slot]`, counted within the step, moves by `bytes` per index of the loop at `depth`.
#[derive(Debug)]
struct Stride {
    slot: usize,
    depth: usize,
    bytes: i64,
}

/// `scalars[slot]`, counted within the step, is the index of the loop at `depth`.
#[derive(Debug)]
struct IndexSlot {
    slot: usize,
    depth: usize,
}

// SAFETY: the addresses are of memory that the session owns together with the `Flat`, and that any
// thread may use.
unsafe impl Send for Flat {}

impl Flat {
    /// The steps of `entry` at `dims`; `addresses` are those of its buffers.
    pub(super) fn rebuild(
        &mut self,
        entry: &Entry,
        dims: &[i64],
        addresses: &[*mut u8],
    ) -> Result<(), ExecError> {
        let mut build = Build { flat: std::mem::take(self), entry, dims, addresses, rows: 0 };
        build.flat.clear();
        build.flat.n_streams = n_streams(&entry.steps);
        build.flat.beside = build.steps(&entry.steps, &mut Vec::new())?;
        *self = build.flat;
        Ok(())
    }

    /// # Safety
    /// The memory behind the addresses is live and used by no one else.
    pub(super) unsafe fn run(
        &self,
        on: On<'_>,
        rank: Option<&Rank>,
        profile: Option<&mut Profile>,
    ) -> Result<(), ExecError> {
        let kernels = on.kernels;
        let clock = match profile {
            Some(_) => kernels.clock()?,
            None => None,
        };
        // What is measured runs one after the other.
        let streams = self.n_streams > 1 && profile.is_none();
        let streams = streams && kernels.reserve(self.n_streams, self.n_events)?;
        let mut run = Run {
            flat: self,
            on,
            kernels,
            streams,
            rank,
            profile,
            clock,
            indices: Vec::new(),
            buffers: Vec::new(),
            scalars: Vec::new(),
            flights: BTreeMap::new(),
        };
        run.part(&self.beside)?;
        // SAFETY: the caller's promise.
        unsafe { run.steps(0..self.steps.len()) }?;
        run.join(&self.beside)
    }

    /// Makes ready what a run needs of streams and events, so that a recording may begin.
    pub(super) fn reserve(&self, kernels: &dyn Kernels) -> Result<(), ExecError> {
        if self.n_streams > 1 {
            kernels.reserve(self.n_streams, self.n_events)?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.steps.clear();
        self.orders.clear();
        self.n_events = 0;
        self.buffers.clear();
        self.strides.clear();
        self.scalars.clear();
        self.indices.clear();
    }
}

struct Build<'a> {
    flat: Flat,
    entry: &'a Entry,
    dims: &'a [i64],
    addresses: &'a [*mut u8],
    rows: usize,
}

impl Build<'_> {
    /// `counts` are those of the enclosing loops.
    fn steps(&mut self, steps: &[Step], counts: &mut Vec<i64>) -> Result<Beside, ExecError> {
        let beside = self.events(steps);
        // Events of the body come behind those that part and join it.
        let first = beside.event + 1 + beside.streams.len() as u32;
        for step in steps {
            let Order { stream, waits, signal } = step.order();
            let waits = waits.iter().map(|event| first + event).collect();
            let signal = signal.map(|event| first + event);
            self.flat.orders.push(Order { stream: *stream, waits, signal });
            match step {
                Step::Launch(launch) => self.launch(launch, counts)?,
                Step::Copy(copy) => {
                    let bytes = copy.bytes.eval(self.dims).max(0);
                    let (buffers, strides) = (self.flat.buffers.len(), self.flat.strides.len());
                    for (slot, arg) in [&copy.from, &copy.to].into_iter().enumerate() {
                        self.arg(&copy.label, arg, slot, bytes, counts)?;
                    }
                    let flat = FlatCopy {
                        buffers: buffers..self.flat.buffers.len(),
                        strides: strides..self.flat.strides.len(),
                        bytes,
                        row: self.next_row(),
                    };
                    self.flat.steps.push(FlatStep::Copy(flat));
                }
                Step::Collective(collective) => self.collective(collective, counts)?,
                Step::Message(message) => self.message(message, counts)?,
                Step::Loop(repeat) => {
                    let (count, reverse) = (repeat.count.eval(self.dims), repeat.reverse);
                    let mut left = None;
                    if let Some(arg) = &repeat.left {
                        let (buffers, strides) = (self.flat.buffers.len(), self.flat.strides.len());
                        self.arg(&repeat.label, arg, 0, 4, counts)?;
                        let strides = strides..self.flat.strides.len();
                        left = Some((buffers..self.flat.buffers.len(), strides));
                    }
                    let at = self.flat.steps.len();
                    let of = |end, beside| {
                        let left = left.clone();
                        FlatStep::Loop { count, reverse, left, end, beside }
                    };
                    self.flat.steps.push(of(at, Beside::default()));
                    counts.push(count);
                    let beside = self.steps(&repeat.body, counts)?;
                    counts.pop();
                    let end = self.flat.steps.len();
                    self.flat.steps[at] = of(end, beside);
                }
            }
        }
        Ok(beside)
    }

    /// Takes the numbers of a body's events.
    fn events(&mut self, steps: &[Step]) -> Beside {
        let mut streams: Vec<u32> = steps.iter().map(|step| step.order().stream).collect();
        streams.sort_unstable();
        streams.dedup();
        streams.retain(|stream| *stream > 0);
        let own = steps.iter().filter_map(|step| step.order().signal).max();
        let event = self.flat.n_events;
        self.flat.n_events += 1 + streams.len() as u32 + own.map_or(0, |most| most + 1);
        Beside { streams, event }
    }

    fn collective(&mut self, step: &Collective, counts: &[i64]) -> Result<(), ExecError> {
        let (from_bytes, to_bytes) = step.size_bytes();
        let sizes = [&from_bytes, &to_bytes].map(|size| size.eval(self.dims).max(0));
        let (buffers, strides) = (self.flat.buffers.len(), self.flat.strides.len());
        let offsets_bytes = step.segments.as_ref().map_or(0, |s| 4 * (i64::from(s.n) + 1));
        let offsets = step.segments.iter().flat_map(|s| [&s.sent, &s.got]);
        let offsets = offsets.map(|arg| (arg, offsets_bytes));
        let args = [&step.from, &step.to].into_iter().zip(sizes).chain(offsets);
        for (slot, (arg, bytes)) in args.enumerate() {
            self.arg(&step.label, arg, slot, bytes, counts)?;
        }
        let bits = step.block.eval(self.dims).max(0) * i64::from(step.dtype.bits());
        let flat = FlatCollective {
            kind: step.kind,
            half: step.half,
            group: step.group.clone(),
            label: step.label.clone(),
            buffers: buffers..self.flat.buffers.len(),
            strides: strides..self.flat.strides.len(),
            blocks: Blocks {
                outer: step.outer.eval(self.dims).max(0) as usize,
                block_bytes: bits as usize / 8,
            },
            offsets_bytes: offsets_bytes as usize,
            from_bytes: sizes[0] as usize,
            to_bytes: sizes[1] as usize,
            row: self.next_row(),
        };
        self.flat.steps.push(FlatStep::Collective(flat));
        Ok(())
    }

    fn message(&mut self, step: &Message, counts: &[i64]) -> Result<(), ExecError> {
        let bytes = step.bytes.eval(self.dims).max(0);
        let (buffers, strides) = (self.flat.buffers.len(), self.flat.strides.len());
        self.arg(&step.label, &step.at, 0, bytes, counts)?;
        let flat = FlatMessage {
            end: step.end,
            group: step.group.clone(),
            peer: step.peer as usize,
            label: step.label.clone(),
            buffers: buffers..self.flat.buffers.len(),
            strides: strides..self.flat.strides.len(),
            bytes: bytes as usize,
            row: self.next_row(),
        };
        self.flat.steps.push(FlatStep::Message(flat));
        Ok(())
    }

    fn launch(&mut self, launch: &Launch, counts: &[i64]) -> Result<(), ExecError> {
        let grid = launch.grid.eval(self.dims);
        let grid = launch.sms.map_or(grid, |most| grid.min(most.into()));
        let (buffers, strides) = (self.flat.buffers.len(), self.flat.strides.len());
        let (scalars, indices) = (self.flat.scalars.len(), self.flat.indices.len());
        let counts = if grid > 0 { counts } else { &[0] };
        for (slot, arg) in launch.args.iter().enumerate() {
            self.arg(&launch.label, arg, slot, 0, counts)?;
        }
        for (slot, scalar) in launch.scalars.iter().enumerate() {
            let value = match scalar {
                Scalar::Dim(expr) => expr.eval(self.dims),
                Scalar::F32(bits) => i64::from(*bits),
                Scalar::LoopIndex(depth) => {
                    self.flat.indices.push(IndexSlot { slot, depth: *depth as usize });
                    0
                }
            };
            self.flat.scalars.push(value);
        }
        let label = match launch.source.first() {
            Some(place) => format!("{} ({place})", launch.label),
            None => launch.label.clone(),
        };
        let flat = FlatLaunch {
            label,
            kernel: launch.kernel,
            grid,
            buffers: buffers..self.flat.buffers.len(),
            strides: strides..self.flat.strides.len(),
            scalars: scalars..self.flat.scalars.len(),
            indices: indices..self.flat.indices.len(),
            flops: launch.flops.eval(self.dims),
            bytes: launch.bytes.eval(self.dims),
            row: self.next_row(),
        };
        self.flat.steps.push(FlatStep::Launch(flat));
        Ok(())
    }

    fn arg(
        &mut self,
        label: &str,
        arg: &Arg,
        slot: usize,
        extent_bytes: i64,
        counts: &[i64],
    ) -> Result<(), ExecError> {
        let offset = arg.byte_offset.eval(self.dims);
        let first_stride = self.flat.strides.len();
        for stride in &arg.strides {
            let (depth, bytes) = (stride.loop_depth as usize, stride.bytes.eval(self.dims));
            self.flat.strides.push(Stride { slot, depth, bytes });
        }
        // What is never run has no places to check, and its address is never used.
        let runs = counts.iter().all(|&count| count > 0);
        if runs {
            let strides = self.flat.strides[first_stride..].iter();
            let strides = strides.map(|stride| (stride.bytes, counts[stride.depth]));
            let (least, greatest) = offset_range(offset, strides);
            let greatest = greatest.saturating_add(extent_bytes);
            let buffer = self.entry.buffer(arg.buffer);
            // Storage has the size at the bounds; what a run may use is its size at these dims.
            let size_bytes = buffer.size_bytes().eval(self.dims);
            if least < 0 || greatest > size_bytes {
                let (label, buffer) = (label.to_owned(), buffer.name.clone());
                return Err(ExecError::OutOfBuffer { label, buffer, least, greatest, size_bytes });
            }
        }
        let address = self.addresses[arg.buffer.0 as usize];
        self.flat.buffers.push(address.wrapping_offset(if runs { offset as isize } else { 0 }));
        Ok(())
    }

    fn next_row(&mut self) -> usize {
        self.rows += 1;
        self.rows - 1
    }
}

/// What steps run on.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub device: &'a dyn Device,
    pub kernels: &'a dyn Kernels,
    /// Memory for what ranks send each other.
    pub room: &'a Room,
}

struct Run<'a> {
    flat: &'a Flat,
    on: On<'a>,
    kernels: &'a dyn Kernels,
    /// Steps run on the streams they name.
    streams: bool,
    rank: Option<&'a Rank>,
    profile: Option<&'a mut Profile>,
    /// The device's, where steps are measured and it has one.
    clock: Option<Box<dyn Clock>>,
    /// Of the enclosing loops.
    indices: Vec<i64>,
    /// Addresses and scalars of the launch at hand, where a loop moves them.
    buffers: Vec<*mut u8>,
    scalars: Vec<i64>,
    /// Collectives that have begun, by number.
    flights: BTreeMap<u32, Flight>,
}

impl Run<'_> {
    /// When a step begins, if steps are measured.
    fn start(&mut self) -> Result<Option<Instant>, ExecError> {
        if let Some(clock) = &mut self.clock {
            clock.start()?;
        }
        Ok(self.profile.is_some().then(Instant::now))
    }

    /// How long the device worked since then.
    fn elapsed(&mut self, start: Instant) -> Result<Duration, ExecError> {
        match &mut self.clock {
            Some(clock) => Ok(clock.stop()?),
            None => {
                self.kernels.wait()?;
                Ok(start.elapsed())
            }
        }
    }

    fn note(&mut self, row: usize, time: Duration, flops: i64, bytes: i64) {
        if let Some(profile) = &mut self.profile {
            profile.add(row, time, flops, bytes);
        }
    }

    /// The other streams of a body begin where the first is.
    fn part(&self, beside: &Beside) -> Result<(), ExecError> {
        if !self.streams || beside.streams.is_empty() {
            return Ok(());
        }
        self.kernels.record(beside.event, 0)?;
        let mut streams = beside.streams.iter();
        Ok(streams.try_for_each(|stream| self.kernels.wait_for(beside.event, *stream))?)
    }

    /// The first goes on when the others are done.
    fn join(&self, beside: &Beside) -> Result<(), ExecError> {
        for (stream, event) in beside.streams.iter().zip(beside.event + 1..) {
            if self.streams {
                self.kernels.record(event, *stream)?;
                self.kernels.wait_for(event, 0)?;
            }
        }
        Ok(())
    }

    /// The stream of a step, which has waited for what the step follows.
    fn stream(&self, at: usize) -> Result<u32, ExecError> {
        if !self.streams {
            return Ok(0);
        }
        let Order { stream, waits, .. } = &self.flat.orders[at];
        waits.iter().try_for_each(|event| self.kernels.wait_for(*event, *stream))?;
        Ok(*stream)
    }

    /// Says that a step is done.
    fn signal(&self, at: usize) -> Result<(), ExecError> {
        let Order { stream, signal, .. } = &self.flat.orders[at];
        match signal.filter(|_| self.streams) {
            Some(event) => Ok(self.kernels.record(event, *stream)?),
            None => Ok(()),
        }
    }

    /// # Safety
    /// As `Flat::run`.
    unsafe fn steps(&mut self, range: Range<usize>) -> Result<(), ExecError> {
        let flat = self.flat;
        let mut at = range.start;
        while at < range.end {
            let start = self.start()?;
            let stream = self.stream(at)?;
            match &flat.steps[at] {
                FlatStep::Launch(launch) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.launch(launch, stream) }?;
                    if let Some(start) = start {
                        let time = self.elapsed(start)?;
                        self.note(launch.row, time, launch.flops, launch.bytes);
                    }
                }
                FlatStep::Copy(copy) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.copy(copy, stream) }?;
                    if let Some(start) = start {
                        let time = self.elapsed(start)?;
                        self.note(copy.row, time, 0, 2 * copy.bytes);
                    }
                }
                FlatStep::Collective(collective) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.collective(collective, stream) }?;
                    if let Some(start) = start {
                        let bytes = collective.from_bytes + collective.to_bytes;
                        self.note(collective.row, start.elapsed(), 0, bytes as i64);
                    }
                }
                FlatStep::Message(message) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.message(message, stream) }?;
                    if let (Some(start), Some(profile)) = (start, &mut self.profile) {
                        profile.add(message.row, start.elapsed(), 0, message.bytes as i64);
                    }
                }
                FlatStep::Loop { count, reverse, left, end, beside } => {
                    for turn in 0..*count {
                        if let Some(left) = left
                            // SAFETY: the caller's promise.
                            && unsafe { self.is_over(left) }?
                        {
                            break;
                        }
                        self.indices.push(if *reverse { count - 1 - turn } else { turn });
                        self.part(beside)?;
                        // SAFETY: the caller's promise.
                        unsafe { self.steps(at + 1..*end) }?;
                        self.join(beside)?;
                        self.indices.pop();
                    }
                    self.signal(at)?;
                    at = *end;
                    continue;
                }
            }
            self.signal(at)?;
            at += 1;
        }
        Ok(())
    }

    /// Whether nothing is left for a loop that may end early.
    ///
    /// # Safety
    /// As `Flat::run`.
    unsafe fn is_over(
        &mut self,
        (buffers, strides): &(Range<usize>, Range<usize>),
    ) -> Result<bool, ExecError> {
        let fixed = &self.flat.buffers[buffers.clone()];
        let strides = &self.flat.strides[strides.clone()];
        move_buffers(&mut self.buffers, fixed, strides, &self.indices);
        let at = if strides.is_empty() { fixed[0] } else { self.buffers[0] };
        let mut word = [0u8; 4];
        // SAFETY: the caller's promise; the place was checked when the list was built.
        unsafe {
            match self.kernels.is_host() {
                true => word.copy_from_slice(std::slice::from_raw_parts(at, 4)),
                false => self.kernels.fetch(at, &mut word, 0)?,
            }
        }
        Ok(i32::from_le_bytes(word) <= 0)
    }

    /// # Safety
    /// As `Flat::run`.
    unsafe fn launch(&mut self, launch: &FlatLaunch, stream: u32) -> Result<(), ExecError> {
        if launch.grid <= 0 {
            return Ok(());
        }
        let flat = self.flat;
        let mut scalars = &flat.scalars[launch.scalars.clone()];
        if !launch.indices.is_empty() {
            self.scalars.clear();
            self.scalars.extend_from_slice(scalars);
            for IndexSlot { slot, depth } in &flat.indices[launch.indices.clone()] {
                self.scalars[*slot] = self.indices[*depth];
            }
            scalars = &self.scalars;
        }
        move_buffers(
            &mut self.buffers,
            &flat.buffers[launch.buffers.clone()],
            &flat.strides[launch.strides.clone()],
            &self.indices,
        );
        let buffers = if launch.strides.is_empty() {
            &flat.buffers[launch.buffers.clone()]
        } else {
            &self.buffers
        };
        // SAFETY: the caller's promise; the places were checked when the list was built.
        let done =
            unsafe { self.kernels.launch(launch.kernel, buffers, scalars, launch.grid, stream) };
        done.map_err(|error| ExecError::Step { label: launch.label.clone(), error })
    }

    /// # Safety
    /// As `Flat::run`.
    unsafe fn copy(&mut self, copy: &FlatCopy, stream: u32) -> Result<(), ExecError> {
        let fixed = &self.flat.buffers[copy.buffers.clone()];
        let strides = &self.flat.strides[copy.strides.clone()];
        move_buffers(&mut self.buffers, fixed, strides, &self.indices);
        let buffers = if strides.is_empty() { fixed } else { &self.buffers };
        // SAFETY: the caller's promise; both extents were checked when the list was built.
        unsafe { self.kernels.copy(buffers[0], buffers[1], copy.bytes as usize, stream) }?;
        Ok(())
    }
}

/// Writes to `moved` the addresses `fixed` at the loop indices; nothing where nothing moves.
fn move_buffers(moved: &mut Vec<*mut u8>, fixed: &[*mut u8], strides: &[Stride], indices: &[i64]) {
    if strides.is_empty() {
        return;
    }
    moved.clear();
    moved.extend_from_slice(fixed);
    for Stride { slot, depth, bytes } in strides {
        moved[*slot] = moved[*slot].wrapping_offset((bytes * indices[*depth]) as isize);
    }
}
