//! Streams and events: which launches may run at once, and whether they touch the same memory.
//!
//! Launches run to their end, one after the other, in the order in which they are asked for; what
//! hardware could do is told by clocks. A stream has a time, one more for each thing it does, and
//! knows times of other streams by the events it has waited for. Two things touch the same four
//! bytes, one of them writing: the later must know the time of the earlier. Nothing is remembered
//! before the first event is recorded.

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Memory;
use std::collections::BTreeMap;

/// By stream.
type Times = Vec<u32>;

/// A moment of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    stream: u32,
    time: u32,
}

/// What was done to four bytes since they were last written.
#[derive(Clone, Default)]
struct Cell {
    write: Moment,
    reads: Vec<Moment>,
}

const PAGE_BYTES: u64 = 1024;

#[derive(Default)]
pub struct Streams {
    /// For each stream the times it knows, its own among them.
    known: Vec<Times>,
    events: BTreeMap<u64, Times>,
    /// From when on touches are remembered: the time of stream 0 then. All before is one write of
    /// everything.
    since: Option<u32>,
    /// By address.
    pages: BTreeMap<u64, Vec<Cell>>,
    /// What was done when.
    names: BTreeMap<Moment, String>,
}

impl Streams {
    fn known(&mut self, stream: u32) -> &mut Times {
        let n = self.known.len().max(stream as usize + 1);
        self.known.resize_with(n, Vec::new);
        self.known.iter_mut().for_each(|times| times.resize(n, 0));
        &mut self.known[stream as usize]
    }

    fn time(&mut self, stream: u32) -> u32 {
        self.known(stream)[stream as usize]
    }

    fn watch(&mut self) {
        let time = self.time(0);
        self.since.get_or_insert(time);
    }

    /// What the stream has done so far, under the event's number.
    pub fn record(&mut self, event: u64, stream: u32) {
        self.watch();
        let times = self.known(stream).clone();
        self.events.insert(event, times);
    }

    /// The stream goes on when the event is there.
    pub fn wait(&mut self, event: u64, stream: u32) -> Result<()> {
        let Some(times) = self.events.get(&event).cloned() else {
            let message = format!("stream {stream} waits for an event that was never recorded");
            return Err(Error::new(ErrorKind::Launch, message));
        };
        let known = self.known(stream);
        known.iter_mut().zip(times).for_each(|(a, b)| *a = (*a).max(b));
        Ok(())
    }

    /// The host waits for a stream: whatever it asks for from here on, of any stream, comes after
    /// what that stream knows. If that is all there was, nothing before needs to be remembered.
    pub fn synchronize(&mut self, stream: u32) {
        let of = self.known(stream).clone();
        let all = (0..self.known.len()).all(|s| of[s] >= self.known[s][s]);
        for times in &mut self.known {
            times.iter_mut().zip(&of).for_each(|(a, b)| *a = (*a).max(*b));
        }
        if all {
            self.since = self.since.map(|_| of[0]);
            self.pages.clear();
            self.names.clear();
        }
    }

    /// A launch has run on a stream; what it touched is in the shadows of `memory`.
    pub fn launched(&mut self, stream: u32, name: &str, memory: &Memory) -> Result<()> {
        let Some(now) = self.begin(stream, name) else { return Ok(()) };
        for segment in memory.segments() {
            segment.shadow.touched(&mut |offset, reads, writes| {
                self.touch(now, segment.address + offset, reads, writes)
            })?;
        }
        Ok(())
    }

    /// The bytes are read or written on a stream, not by a launch.
    pub fn moved(&mut self, stream: u32, address: u64, n: u64, writes: bool) -> Result<()> {
        let what = if writes { "a copy to it" } else { "a copy from it" };
        let Some(now) = self.begin(stream, what) else { return Ok(()) };
        let cells = address / 4..(address + n).div_ceil(4);
        cells.into_iter().try_for_each(|cell| self.touch(now, 4 * cell, !writes, writes))
    }

    /// The moment of what is done next, if touches are remembered.
    fn begin(&mut self, stream: u32, name: &str) -> Option<Moment> {
        if stream > 0 {
            self.watch();
        }
        let own = &mut self.known(stream)[stream as usize];
        *own += 1;
        let now = Moment { stream, time: *own };
        self.since?;
        self.names.insert(now, name.into());
        Some(now)
    }

    fn touch(&mut self, now: Moment, address: u64, reads: bool, writes: bool) -> Result<()> {
        let known = &self.known[now.stream as usize];
        let knows = |m: &Moment| known[m.stream as usize] >= m.time;
        let start = Moment { stream: 0, time: self.since.unwrap_or(0) };
        let page = self.pages.entry(address / PAGE_BYTES);
        let page = page
            .or_insert_with(|| vec![Cell { write: start, reads: vec![] }; PAGE_BYTES as usize / 4]);
        let cell = &mut page[(address % PAGE_BYTES / 4) as usize];
        let conflict = match writes {
            _ if !knows(&cell.write) => Some((cell.write, "wrote")),
            true => cell.reads.iter().find(|m| !knows(m)).map(|m| (*m, "read")),
            false => None,
        };
        if let Some((before, did)) = conflict {
            let does = if writes { "overwrites" } else { "reads" };
            let of = |m: &Moment| self.names.get(m).map_or("what came before", String::as_str);
            let message = format!(
                "{} on stream {} {does} {address:#x}, which {} on stream {} {did}, and no event \
                 orders them",
                of(&now),
                now.stream,
                of(&before),
                before.stream
            );
            return Err(Error::new(ErrorKind::Race, message));
        }
        if writes {
            *cell = Cell { write: now, reads: vec![] };
        } else if reads {
            cell.reads.retain(|m| m.stream != now.stream);
            cell.reads.push(now);
        }
        Ok(())
    }
}
