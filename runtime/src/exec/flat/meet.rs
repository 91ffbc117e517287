//! Steps that several ranks do together: collectives and messages, on memory of the host or of a
//! device.

use std::ops::Range;

use super::{ExecError, FlatCollective, FlatMessage, Run, move_buffers};
use crate::device::DeviceError;
use crate::ranks::collective;
use crate::ranks::exchange::Offsets;
use crate::ranks::on_device::{self, Fault, Operands, Stream};
use crate::ranks::{Meeting, RankError};
use weft_graph::{CollectiveKind, End, Half};

/// A collective that has begun.
pub(super) enum Flight {
    Host(collective::Flight),
    Device(on_device::Flight),
}

impl<'a> Run<'a> {
    /// Where a step's buffers are in this turn of the loops around it.
    fn moved(&mut self, buffers: &Range<usize>, strides: &Range<usize>) -> Vec<*mut u8> {
        let fixed = &self.flat.buffers[buffers.clone()];
        let strides = &self.flat.strides[strides.clone()];
        move_buffers(&mut self.buffers, fixed, strides, &self.indices);
        if strides.is_empty() { fixed } else { &self.buffers }.to_vec()
    }

    /// # Safety
    /// As `Flat::run`.
    pub(super) unsafe fn collective(
        &mut self,
        step: &FlatCollective,
        stream: u32,
    ) -> Result<(), ExecError> {
        let Some(rank) = self.rank else {
            return Err(ExecError::NoRanks { label: step.label.clone() });
        };
        let buffers = self.moved(&step.buffers, &step.strides);
        let ranks = step.group.ranks(rank.rank());
        let meeting = match step.half {
            Some(Half::Done(_)) => rank.resume(step.kind.name(), &step.label, ranks),
            _ => rank.begin(step.kind.name(), &step.label, ranks),
        };
        // SAFETY: the caller's promise; extents were checked when the list was built, and the two
        // are different buffers.
        unsafe {
            match self.kernels.is_host() {
                true => self.between_hosts(step, &meeting, &buffers),
                false => self.between_devices(step, &meeting, &buffers, stream),
            }
        }
        .map_err(|stop| match stop {
            Stop::Rank(e) => from_rank(e),
            Stop::Fault(fault) => from_fault(&step.label, fault),
            Stop::NoRoom { rows, room } => {
                ExecError::NoRoom { label: step.label.clone(), rank: rank.rank(), rows, room }
            }
        })
    }

    /// # Safety
    /// As `collective`, on addresses of the host.
    unsafe fn between_hosts(
        &mut self,
        step: &FlatCollective,
        meeting: &Meeting<'_>,
        buffers: &[*mut u8],
    ) -> Result<(), Stop> {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(buffers[0], step.from_bytes),
                std::slice::from_raw_parts_mut(buffers[1], step.to_bytes),
            )
        };
        // SAFETY: as above.
        let numbers = |p: &*mut u8| unsafe { std::slice::from_raw_parts(*p, step.offsets_bytes) };
        let offsets = match buffers {
            [_, _, sent, got] => Some(Offsets::read(numbers(sent), numbers(got))),
            _ => None,
        };
        has_room(step, offsets.as_ref())?;
        let (kind, blocks, offsets) = (step.kind, step.blocks, offsets.as_ref());
        let done = match step.half {
            None => collective::run(kind, meeting, blocks, offsets, from, to),
            Some(Half::Start(n)) => collective::start(kind, meeting, blocks, offsets, from)
                .map(|flight| drop(self.flights.insert(n, Flight::Host(flight)))),
            Some(Half::Done(n)) => {
                let flight = match self.flights.remove(&n) {
                    Some(Flight::Host(flight)) => flight,
                    _ => collective::Flight::default(),
                };
                collective::finish(kind, meeting, blocks, offsets, flight, from, to)
            }
        };
        Ok(done?)
    }

    /// # Safety
    /// As `collective`, on addresses of the device.
    unsafe fn between_devices(
        &mut self,
        step: &FlatCollective,
        meeting: &Meeting<'_>,
        buffers: &[*mut u8],
        stream: u32,
    ) -> Result<(), Stop> {
        let on = self.stream_of(stream);
        // SAFETY: the caller's promise, here and below.
        let offsets = match buffers {
            [_, _, sent, got] => unsafe {
                let fetch = |at: *mut u8| on.fetch(at, step.offsets_bytes).map_err(Fault::from);
                Some(Offsets::read(&fetch(*sent)?, &fetch(*got)?))
            },
            _ => None,
        };
        has_room(step, offsets.as_ref())?;
        let x = Operands {
            kind: step.kind,
            blocks: step.blocks,
            offsets: offsets.as_ref(),
            from: buffers[0],
            to: buffers[1],
            from_bytes: step.from_bytes,
            to_bytes: step.to_bytes,
        };
        let link = meeting.link();
        // SAFETY: as above.
        unsafe {
            let flight = match step.half {
                Some(Half::Done(n)) => match self.flights.remove(&n) {
                    Some(Flight::Device(flight)) => flight,
                    _ => on_device::Flight::default(),
                },
                _ => on_device::start(link, meeting, &on, x)?,
            };
            match step.half {
                Some(Half::Start(n)) => {
                    self.flights.insert(n, Flight::Device(flight));
                    Ok(())
                }
                _ => Ok(on_device::finish(link, meeting, &on, x, flight)?),
            }
        }
    }

    /// # Safety
    /// As `Flat::run`.
    pub(super) unsafe fn message(
        &mut self,
        step: &FlatMessage,
        stream: u32,
    ) -> Result<(), ExecError> {
        let Some(rank) = self.rank else {
            return Err(ExecError::NoRanks { label: step.label.clone() });
        };
        let at = self.moved(&step.buffers, &step.strides)[0];
        let ranks = step.group.ranks(rank.rank());
        let meeting = rank.begin(step.end.name(), &step.label, ranks);
        if self.kernels.is_host() {
            // SAFETY: the caller's promise; the extent was checked when the list was built.
            let bytes = unsafe { std::slice::from_raw_parts_mut(at, step.bytes) };
            let done = match step.end {
                End::Send => meeting.send(step.peer, bytes),
                End::Recv => meeting.recv(step.peer, bytes),
            };
            return done.map_err(from_rank);
        }
        let on = self.stream_of(stream);
        let failed = |error: DeviceError| from_fault(&step.label, error.into());
        match step.end {
            End::Send => {
                // SAFETY: as above.
                let bytes = unsafe { on.fetch(at, step.bytes) }.map_err(failed)?;
                meeting.send(step.peer, &bytes).map_err(from_rank)
            }
            End::Recv => {
                let mut bytes = vec![0; step.bytes];
                meeting.recv(step.peer, &mut bytes).map_err(from_rank)?;
                // SAFETY: as above.
                unsafe { self.kernels.store(at, &bytes, stream) }.map_err(failed)
            }
        }
    }

    fn stream_of(&self, stream: u32) -> Stream<'a> {
        let super::On { device, kernels, room } = self.on;
        Stream { device, kernels, room, stream }
    }
}

/// Why a collective does not end.
enum Stop {
    Rank(RankError),
    Fault(Fault),
    NoRoom { rows: usize, room: usize },
}

impl From<RankError> for Stop {
    fn from(e: RankError) -> Stop {
        Stop::Rank(e)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

/// Whether the rows that come fit where they go.
fn has_room(step: &FlatCollective, offsets: Option<&Offsets>) -> Result<(), Stop> {
    let Some(offsets) = offsets.filter(|_| step.kind == CollectiveKind::Exchange) else {
        return Ok(());
    };
    let (rows, room) = (offsets.end(false), step.to_bytes / step.blocks.block_bytes.max(1));
    if rows > room { Err(Stop::NoRoom { rows, room }) } else { Ok(()) }
}

fn from_rank(e: RankError) -> ExecError {
    Box::new(e).into()
}

fn from_fault(label: &str, fault: Fault) -> ExecError {
    match fault {
        Fault::Rank(e) => from_rank(e),
        Fault::Device(error) => ExecError::Step { label: label.into(), error },
    }
}
