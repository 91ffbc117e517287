//! Collectives between memories of devices: what `collective` does with the host's, in the same
//! order, with bytes that lie on a device and sums that it adds up itself.
//!
//! A [`Link`] moves bytes between the devices of two ranks. [`Staged`] takes them through the host
//! and any [`Communicator`](super::Communicator); another may go from device to device. What a link
//! cannot change is the order in which sums are made, and so the numbers. Where rows of an exchange
//! begin is data that the host has to know, so those few numbers always go through it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_graph::CollectiveKind;

use super::collective::{self, Blocks};
use super::exchange::Offsets;
use super::{Coming, Meeting, RankError};
use crate::device::{Device, DeviceError, Kernels, Memory};

/// What goes wrong between devices.
#[derive(Debug)]
pub enum Fault {
    Rank(RankError),
    Device(DeviceError),
}

impl From<RankError> for Fault {
    fn from(e: RankError) -> Fault {
        Fault::Rank(e)
    }
}

impl From<DeviceError> for Fault {
    fn from(e: DeviceError) -> Fault {
        Fault::Device(e)
    }
}

/// Bytes for a place, or from it.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub place: usize,
    pub at: *mut u8,
    pub bytes: usize,
}

/// What was begun and is yet to come.
#[derive(Debug, Default)]
pub struct Pending {
    /// Through the host.
    coming: Vec<(Piece, Coming)>,
    /// The place to name, of those that a device waits for itself.
    peer: Option<usize>,
}

impl Pending {
    /// Of what the device waits for.
    pub(super) fn of(mut places: impl Iterator<Item = usize>) -> Pending {
        Pending { coming: vec![], peer: places.next() }
    }

    pub(super) fn peer(&self) -> Option<usize> {
        self.peer
    }
}

/// Bytes between the devices of ranks.
pub trait Link: fmt::Debug + Send + Sync {
    /// Sends, and says what is to be received, in the stream's order; waits for no one.
    ///
    /// # Safety
    /// The pieces are live memory of the device until `end` has returned and the stream is there.
    unsafe fn begin(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        sends: &[Piece],
        recvs: &[Piece],
    ) -> Result<Pending, Fault>;

    /// What the stream does next finds what was to be received.
    ///
    /// # Safety
    /// As `begin`.
    unsafe fn end(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        pending: Pending,
    ) -> Result<(), Fault>;
}

/// Through the host, and the transport of the meeting's rank.
#[derive(Debug)]
pub struct Staged;

impl Link for Staged {
    unsafe fn begin(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        sends: &[Piece],
        recvs: &[Piece],
    ) -> Result<Pending, Fault> {
        for piece in sends {
            // SAFETY: the caller's promise.
            let bytes = unsafe { on.fetch(piece.at, piece.bytes) }?;
            meeting.send(piece.place, &bytes)?;
        }
        let expect = |piece: &Piece| (*piece, meeting.expect(piece.place, piece.bytes));
        Ok(Pending { coming: recvs.iter().map(expect).collect(), peer: None })
    }

    unsafe fn end(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        pending: Pending,
    ) -> Result<(), Fault> {
        for (piece, coming) in pending.coming {
            let mut bytes = vec![0; piece.bytes];
            meeting.take(piece.place, coming, &mut bytes)?;
            // SAFETY: the caller's promise.
            unsafe { on.kernels.store(piece.at, &bytes, on.stream) }?;
        }
        Ok(())
    }
}

/// The stream of a device that a collective is on.
pub struct Stream<'a> {
    pub device: &'a dyn Device,
    pub kernels: &'a dyn Kernels,
    pub room: &'a Room,
    pub stream: u32,
}

/// Memory of a device that collectives use one after the other, by stream and size.
#[derive(Debug, Default)]
pub struct Room {
    free: Mutex<BTreeMap<(u32, usize), Vec<Arc<dyn Memory>>>>,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, usize), Vec<Arc<dyn Memory>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for so many bytes, which nothing but the stream uses.
    fn take(&self, on: &Stream<'_>, n_bytes: usize) -> Result<Arc<dyn Memory>, DeviceError> {
        // Few sizes, so that what was used is used again.
        let size = n_bytes.next_power_of_two().max(64);
        if let Some(known) = self.lock().get_mut(&(on.stream, size)).and_then(Vec::pop) {
            return Ok(known);
        }
        let memory = on.device.allocate(size as u64)?;
        // It is made in the order of stream 0.
        if on.stream > 0 {
            on.kernels.wait()?;
        }
        Ok(memory)
    }

    /// What the stream does next may use it.
    fn give(&self, stream: u32, memory: Arc<dyn Memory>) {
        let size = memory.size_bytes();
        self.lock().entry((stream, size)).or_default().push(memory);
    }
}

impl Stream<'_> {
    /// # Safety
    /// So many bytes at `from` are live memory of the device.
    pub unsafe fn fetch(&self, from: *const u8, n_bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; n_bytes];
        // SAFETY: the caller's promise.
        unsafe { self.kernels.fetch(from, &mut bytes, self.stream) }?;
        Ok(bytes)
    }

    /// Rows of `width` bytes, so far apart in each place.
    ///
    /// # Safety
    /// Both places hold the rows, and do not overlap.
    unsafe fn rows(
        &self,
        (from, from_step): (*const u8, usize),
        (to, to_step): (*mut u8, usize),
        (n, width): (usize, usize),
    ) -> Result<(), DeviceError> {
        let at_once = from_step == width && to_step == width;
        let (n, width) = if at_once { (1, n * width) } else { (n, width) };
        for i in 0..if width > 0 { n } else { 0 } {
            let (from, to) = (from.wrapping_add(i * from_step), to.wrapping_add(i * to_step));
            // SAFETY: the caller's promise.
            unsafe { self.kernels.copy(from, to, width, self.stream) }?;
        }
        Ok(())
    }
}

/// A collective between devices that has begun: what is on its way, and the memory it comes to.
#[derive(Debug, Default)]
pub struct Flight {
    pending: Pending,
    /// By place, what comes from there.
    received: Vec<Piece>,
    scratch: Vec<Arc<dyn Memory>>,
    /// Of what goes through the host: its operand, and what is on its way.
    numbers: Vec<u8>,
    of_host: collective::Flight,
}

impl Flight {
    /// Memory of the device until the collective is done.
    fn room(&mut self, on: &Stream<'_>, n_bytes: usize) -> Result<*mut u8, DeviceError> {
        let memory = on.room.take(on, n_bytes)?;
        let at = memory.address();
        self.scratch.push(memory);
        Ok(at)
    }

    /// Room for what a place sends.
    fn expect(&mut self, on: &Stream<'_>, place: usize, bytes: usize) -> Result<(), DeviceError> {
        let at = self.room(on, bytes)?;
        self.received.push(Piece { place, at, bytes });
        Ok(())
    }

    fn from(&self, place: usize) -> *mut u8 {
        let piece = self.received.iter().find(|piece| piece.place == place);
        piece.expect("begun with a message from there").at
    }
}

/// Operands of a collective on a device, of the sizes that the collective says.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    pub kind: CollectiveKind,
    pub blocks: Blocks,
    pub offsets: Option<&'a Offsets>,
    pub from: *const u8,
    pub to: *mut u8,
    pub from_bytes: usize,
    pub to_bytes: usize,
}

/// The first half.
///
/// # Safety
/// The operands are live memory of the device until the second half is done.
pub unsafe fn start(
    link: &dyn Link,
    meeting: &Meeting<'_>,
    on: &Stream<'_>,
    x: Operands<'_>,
) -> Result<Flight, Fault> {
    let (n, place) = (meeting.n(), meeting.place());
    let others = || (0..n).filter(move |of| *of != place);
    let mut flight = Flight::default();
    if x.kind == CollectiveKind::ExchangeOffsets {
        // SAFETY: the caller's promise.
        flight.numbers = unsafe { on.fetch(x.from, x.from_bytes) }?;
        let numbers = &flight.numbers;
        flight.of_host = collective::start(x.kind, meeting, x.blocks, None, numbers)?;
        return Ok(flight);
    }
    let mut sends = vec![];
    let from = x.from.cast_mut();
    match (x.kind, x.offsets) {
        (CollectiveKind::AllReduce, _) if place % 2 == 1 => {
            let at = flight.room(on, x.from_bytes)?;
            // SAFETY: the caller's promise; the room is as large.
            unsafe { on.kernels.add(at, from, std::ptr::null(), x.from_bytes / 4, on.stream) }?;
            sends.push(Piece { place: place - 1, at, bytes: x.from_bytes });
        }
        (CollectiveKind::AllReduce, _) if place + 1 < n => {
            flight.expect(on, place + 1, x.from_bytes)?;
        }
        (CollectiveKind::ReduceScatter, _) => {
            for of in others() {
                let bytes = x.from_bytes / n;
                let at = flight.room(on, bytes)?;
                // SAFETY: the caller's promise; the room holds a part.
                unsafe { part(on, x, n, of, at) }?;
                sends.push(Piece { place: of, at, bytes });
                flight.expect(on, of, bytes)?;
            }
        }
        (CollectiveKind::AllGather, _) => {
            for of in others() {
                sends.push(Piece { place: of, at: from, bytes: x.from_bytes });
                flight.expect(on, of, x.from_bytes)?;
            }
        }
        (CollectiveKind::Exchange | CollectiveKind::ExchangeBack, Some(offsets)) => {
            let (back, row) = (x.kind == CollectiveKind::ExchangeBack, x.blocks.block_bytes);
            for of in others() {
                let (out, coming) = offsets.rows_between(n, of, back);
                if out > 0 {
                    // SAFETY: the caller's promise.
                    let at = unsafe { gather(on, &mut flight, x, offsets, (n, of)) }?;
                    sends.push(Piece { place: of, at, bytes: out * row });
                }
                if coming > 0 {
                    flight.expect(on, of, coming * row)?;
                }
            }
        }
        _ => {}
    }
    if !sends.is_empty() || !flight.received.is_empty() {
        // SAFETY: the caller's promise; what is received lies in the flight.
        flight.pending = unsafe { link.begin(meeting, on, &sends, &flight.received) }?;
    }
    Ok(flight)
}

/// The second half.
///
/// # Safety
/// As `start`.
pub unsafe fn finish(
    link: &dyn Link,
    meeting: &Meeting<'_>,
    on: &Stream<'_>,
    x: Operands<'_>,
    mut flight: Flight,
) -> Result<(), Fault> {
    let (n, place) = (meeting.n(), meeting.place());
    if x.kind == CollectiveKind::ExchangeOffsets {
        let (numbers, mut to) = (&flight.numbers, vec![0; x.to_bytes]);
        collective::finish(x.kind, meeting, x.blocks, None, flight.of_host, numbers, &mut to)?;
        // SAFETY: the caller's promise.
        return Ok(unsafe { on.kernels.store(x.to, &to, on.stream) }?);
    }
    let pending = std::mem::take(&mut flight.pending);
    // SAFETY: the caller's promise, for all that follows.
    unsafe {
        link.end(meeting, on, pending)?;
        match (x.kind, x.offsets) {
            (CollectiveKind::AllReduce, _) => all_reduce(link, meeting, on, x, &mut flight)?,
            (CollectiveKind::ReduceScatter, _) => {
                let mut parts = vec![];
                for of in 0..n {
                    let at = match of == place {
                        true => {
                            let at = flight.room(on, x.to_bytes)?;
                            part(on, x, n, of, at)?;
                            at
                        }
                        false => flight.from(of),
                    };
                    on.kernels.add(at, at, std::ptr::null(), x.to_bytes / 4, on.stream)?;
                    parts.push(at);
                }
                let sum = tree(on, &parts, x.to_bytes)?;
                on.rows((sum, x.to_bytes), (x.to, x.to_bytes), (1, x.to_bytes))?;
            }
            (CollectiveKind::AllGather, _) => {
                let (size, outer) = (x.blocks.block_bytes, x.blocks.outer);
                for of in 0..n {
                    let from = if of == place { x.from } else { flight.from(of) };
                    let to = (x.to.wrapping_add(of * size), n * size);
                    on.rows((from, size), to, (outer, size))?;
                }
            }
            (CollectiveKind::Part, _) => part(on, x, n, place, x.to)?,
            (CollectiveKind::Exchange | CollectiveKind::ExchangeBack, Some(offsets)) => {
                let (back, row) = (x.kind == CollectiveKind::ExchangeBack, x.blocks.block_bytes);
                let (first, end) = (offsets.first(back) * row, offsets.end(back) * row);
                on.kernels.zero(x.to, first, on.stream)?;
                on.kernels.zero(x.to.wrapping_add(end), x.to_bytes - end, on.stream)?;
                for of in 0..n {
                    if offsets.rows_between(n, of, back).1 == 0 {
                        continue;
                    }
                    let mut from = match of == place {
                        true => gather(on, &mut flight, x, offsets, (n, of))?,
                        false => flight.from(of),
                    };
                    // What comes from a place lies in the order in which it goes back there.
                    for rows in offsets.runs(n, of, !back) {
                        let bytes = rows.len() * row;
                        let to = x.to.wrapping_add(rows.start * row);
                        on.rows((from, bytes), (to, bytes), (1, bytes))?;
                        from = from.wrapping_add(bytes);
                    }
                }
            }
            _ => {}
        }
    }
    flight.scratch.drain(..).for_each(|memory| on.room.give(on.stream, memory));
    Ok(())
}

/// The rows for a place, one behind the other.
///
/// # Safety
/// As `start`.
unsafe fn gather(
    on: &Stream<'_>,
    flight: &mut Flight,
    x: Operands<'_>,
    offsets: &Offsets,
    (n, of): (usize, usize),
) -> Result<*mut u8, DeviceError> {
    let (back, row) = (x.kind == CollectiveKind::ExchangeBack, x.blocks.block_bytes);
    let at = flight.room(on, offsets.rows_between(n, of, back).0 * row)?;
    let mut to = at;
    for rows in offsets.runs(n, of, back) {
        let (from, bytes) = (x.from.wrapping_add(rows.start * row), rows.len() * row);
        // SAFETY: the caller's promise; the room holds all the rows.
        unsafe { on.rows((from, bytes), (to, bytes), (1, bytes)) }?;
        to = to.wrapping_add(bytes);
    }
    Ok(at)
}

/// What belongs to place `of` of `n`, to `to`.
///
/// # Safety
/// As `start`, and there is room for it.
unsafe fn part(
    on: &Stream<'_>,
    x: Operands<'_>,
    n: usize,
    of: usize,
    to: *mut u8,
) -> Result<(), DeviceError> {
    let width = x.blocks.block_bytes / n;
    let from = (x.from.wrapping_add(of * width), x.blocks.block_bytes);
    // SAFETY: the caller's promise.
    unsafe { on.rows(from, (to, width), (x.blocks.outer, width)) }
}

/// The sum of parts, in the tree's order, in the place of the first.
///
/// # Safety
/// Each is live memory of so many bytes.
unsafe fn tree(on: &Stream<'_>, parts: &[*mut u8], bytes: usize) -> Result<*mut u8, DeviceError> {
    if let [one] = parts {
        return Ok(*one);
    }
    let (left, right) = parts.split_at(parts.len().next_power_of_two() / 2);
    // SAFETY: the caller's promise.
    unsafe {
        let (left, right) = (tree(on, left, bytes)?, tree(on, right, bytes)?);
        on.kernels.add(left, left, right, bytes / 4, on.stream)?;
        Ok(left)
    }
}

/// The rest of a sum, whose leaves have come, and its way back to all.
///
/// # Safety
/// As `start`.
unsafe fn all_reduce(
    link: &dyn Link,
    meeting: &Meeting<'_>,
    on: &Stream<'_>,
    x: Operands<'_>,
    flight: &mut Flight,
) -> Result<(), Fault> {
    let (n, place, bytes) = (meeting.n(), meeting.place(), x.from_bytes);
    let own = |place| [Piece { place, at: x.to, bytes }];
    // SAFETY: the caller's promise, for all that follows.
    unsafe {
        on.kernels.add(x.to, x.from, std::ptr::null(), bytes / 4, on.stream)?;
        let mut right = None;
        let mut distance = 1;
        while distance < n {
            let leaf = distance == 1;
            if place & distance != 0 {
                if !leaf {
                    let pending = link.begin(meeting, on, &own(place - distance), &[])?;
                    link.end(meeting, on, pending)?;
                }
                break;
            }
            if place + distance < n {
                let at = match (leaf, right) {
                    (true, _) => flight.from(place + 1),
                    (false, Some(at)) => at,
                    (false, None) => flight.room(on, bytes)?,
                };
                if !leaf {
                    let recv = [Piece { place: place + distance, at, bytes }];
                    let pending = link.begin(meeting, on, &[], &recv)?;
                    link.end(meeting, on, pending)?;
                    right = Some(at);
                }
                on.kernels.add(x.to, x.to, at, bytes / 4, on.stream)?;
            }
            distance *= 2;
        }
        let mut distance = n.next_power_of_two();
        while distance > 1 {
            distance /= 2;
            let pending = if place.is_multiple_of(2 * distance) && place + distance < n {
                link.begin(meeting, on, &own(place + distance), &[])?
            } else if place % (2 * distance) == distance {
                link.begin(meeting, on, &[], &own(place - distance))?
            } else {
                continue;
            };
            link.end(meeting, on, pending)?;
        }
    }
    Ok(())
}
