//! Who may touch what, by happens-before.
//!
//! Every warp, mbarrier, bulk group and chain of wgmma groups is an *agent* with a clock. A
//! [`Clock`] says how much of each agent's past is known; synchronisation joins clocks. A
//! [`Shadow`] keeps for every four bytes the last write and the reads since: an access conflicts
//! with one it does not know of, in whatever order the interpreter happened to run them.

use crate::error::{Error, ErrorKind, Result};

/// An agent: its kind in the low three bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Agent(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKind {
    /// Nobody yet.
    None,
    Warp,
    /// The part of a bulk copy that reads its source; of one thread, in groups.
    BulkRead,
    /// All of a bulk copy; of one thread, in groups.
    Bulk,
    /// A warp's wgmma groups.
    Wgmma,
    /// Copies that complete on one mbarrier, by phase.
    Mbarrier,
}

impl Agent {
    pub fn new(kind: AgentKind, index: u32) -> Agent {
        Agent(index << 3 | kind as u32)
    }

    pub fn kind(self) -> AgentKind {
        match self.0 & 7 {
            1 => AgentKind::Warp,
            2 => AgentKind::BulkRead,
            3 => AgentKind::Bulk,
            4 => AgentKind::Wgmma,
            5 => AgentKind::Mbarrier,
            _ => AgentKind::None,
        }
    }
}

/// A moment of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    pub agent: Agent,
    pub time: u32,
}

/// Known moments, sorted by agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    known: Vec<Epoch>,
}

impl Clock {
    pub fn knows(&self, epoch: Epoch) -> bool {
        let found = self.known.binary_search_by_key(&epoch.agent, |e| e.agent);
        found.is_ok_and(|i| self.known[i].time >= epoch.time)
    }

    pub fn learn(&mut self, epoch: Epoch) {
        match self.known.binary_search_by_key(&epoch.agent, |e| e.agent) {
            Ok(i) => self.known[i].time = self.known[i].time.max(epoch.time),
            Err(i) => self.known.insert(i, epoch),
        }
    }

    pub fn join(&mut self, other: &Clock) {
        if self.known.is_empty() {
            self.known.clone_from(&other.known);
            return;
        }
        let mine = std::mem::take(&mut self.known);
        let (mut a, mut b) = (mine.iter().peekable(), other.known.iter().peekable());
        self.known.reserve(mine.len().max(other.known.len()));
        loop {
            let next = match (a.peek(), b.peek()) {
                (None, None) => return,
                (Some(_), None) => a.next(),
                (None, Some(_)) => b.next(),
                (Some(x), Some(y)) if x.agent < y.agent => a.next(),
                (Some(x), Some(y)) if x.agent > y.agent => b.next(),
                (Some(x), Some(y)) => {
                    let later = if x.time >= y.time { a.peek() } else { b.peek() }.copied();
                    a.next();
                    b.next();
                    later
                }
            };
            self.known.extend(next);
        }
    }
}

/// What a thread knows: of everything, and of what asynchronous work it starts may see.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    pub generic: Clock,
    /// Generic writes that a proxy fence has made visible to the async proxy.
    pub fenced: Clock,
}

impl Knowledge {
    pub fn join(&mut self, other: &Knowledge) {
        self.generic.join(&other.generic);
        self.fenced.join(&other.fenced);
    }
}

/// One access that is checked and remembered.
#[derive(Clone, Copy)]
pub struct Touch<'a> {
    pub epoch: Epoch,
    pub knowledge: &'a Knowledge,
    /// Through the async proxy.
    pub is_async: bool,
    /// Atomic and strong accesses do not race with one another.
    pub is_atomic: bool,
    pub line: u32,
}

#[derive(Clone, Copy, Default)]
struct Record {
    epoch: Epoch,
    line: u32,
    /// Bytes of the four.
    mask: u8,
    is_async: bool,
    is_atomic: bool,
}

#[derive(Clone, Default)]
struct Cell {
    write: Record,
    read: Record,
    /// Further reads that do not know of one another; the oldest go when there are many.
    more_reads: Vec<Record>,
}

const PAGE_CELLS: usize = 256;
const READS_MAX: usize = 16;

/// The cells of one memory, made as they are touched.
#[derive(Default)]
pub struct Shadow {
    pages: Vec<Option<Box<[Cell]>>>,
}

impl Shadow {
    fn cells(
        &mut self,
        offset: usize,
        n_bytes: usize,
        mut each: impl FnMut(&mut Cell, u8) -> Result<()>,
    ) -> Result<()> {
        let (first, last) = (offset / 4, (offset + n_bytes - 1) / 4);
        for index in first..=last {
            let mut mask = 0xfu8;
            if index == first {
                mask &= 0xf << (offset % 4);
            }
            if index == last {
                mask &= 0xf >> (3 - (offset + n_bytes - 1) % 4);
            }
            let (page, at) = (index / PAGE_CELLS, index % PAGE_CELLS);
            if page >= self.pages.len() {
                self.pages.resize_with(page + 1, || None);
            }
            let cells = self.pages[page]
                .get_or_insert_with(|| vec![Cell::default(); PAGE_CELLS].into_boxed_slice());
            each(&mut cells[at], mask)?;
        }
        Ok(())
    }

    pub fn read(&mut self, offset: usize, n_bytes: usize, touch: Touch) -> Result<()> {
        self.cells(offset, n_bytes, |cell, mask| {
            check(&cell.write, mask, &touch, "written", "reads")?;
            let record = touch.record(mask);
            let same = cell.read.epoch.agent == touch.epoch.agent;
            if same || cell.read.mask == 0 || touch.knowledge.generic.knows(cell.read.epoch) {
                let mask = if same { cell.read.mask } else { 0 };
                cell.read = Record { mask: mask | record.mask, ..record };
                return Ok(());
            }
            let known = |r: &Record| {
                r.epoch.agent == touch.epoch.agent || touch.knowledge.generic.knows(r.epoch)
            };
            cell.more_reads.retain(|r| !known(r));
            if cell.more_reads.len() == READS_MAX {
                cell.more_reads.remove(0);
            }
            cell.more_reads.push(record);
            Ok(())
        })
    }

    pub fn write(&mut self, offset: usize, n_bytes: usize, touch: Touch) -> Result<()> {
        self.cells(offset, n_bytes, |cell, mask| {
            check(&cell.write, mask, &touch, "written", "overwrites")?;
            check(&cell.read, mask, &touch, "read", "overwrites")?;
            for read in &cell.more_reads {
                check(read, mask, &touch, "read", "overwrites")?;
            }
            cell.read = Record::default();
            cell.more_reads.clear();
            cell.write = touch.record(mask);
            Ok(())
        })
    }

    /// Calls `each` for every four bytes that this launch has touched: with the offset, and whether
    /// it read and whether it wrote there.
    pub fn touched(&self, each: &mut dyn FnMut(u64, bool, bool) -> Result<()>) -> Result<()> {
        let pages = self.pages.iter().enumerate();
        for (page, cells) in pages.filter_map(|(i, p)| p.as_ref().map(|p| (i, p))) {
            for (at, cell) in cells.iter().enumerate() {
                let (reads, writes) = (cell.read.mask != 0, cell.write.mask != 0);
                if reads || writes {
                    each(4 * (page * PAGE_CELLS + at) as u64, reads, writes)?;
                }
            }
        }
        Ok(())
    }

    /// Whether this launch has written any of these bytes.
    pub fn is_written(&mut self, offset: usize, n_bytes: usize) -> bool {
        let mut written = false;
        let look = |cell: &mut Cell, mask: u8| {
            written |= cell.write.mask & mask != 0;
            Ok(())
        };
        self.cells(offset, n_bytes, look).is_ok() && written
    }

    /// Whether `clock` knows every generic write to these bytes.
    pub fn writes_known(&mut self, offset: usize, n_bytes: usize, clock: &Clock) -> bool {
        let mut known = true;
        let look = |cell: &mut Cell, mask: u8| {
            known &= cell.write.mask & mask == 0 || clock.knows(cell.write.epoch);
            Ok(())
        };
        self.cells(offset, n_bytes, look).is_ok() && known
    }
}

impl Touch<'_> {
    fn record(&self, mask: u8) -> Record {
        Record {
            epoch: self.epoch,
            line: self.line,
            mask,
            is_async: self.is_async,
            is_atomic: self.is_atomic,
        }
    }
}

fn check(before: &Record, mask: u8, touch: &Touch, did: &str, does: &str) -> Result<()> {
    if before.mask & mask == 0 || (before.is_atomic && touch.is_atomic) {
        return Ok(());
    }
    let known = before.epoch.agent == touch.epoch.agent && !touch.is_async
        || before.epoch == touch.epoch
        || touch.knowledge.generic.knows(before.epoch);
    if !known {
        return Err(conflict(before, did, does));
    }
    let crosses = touch.is_async && !before.is_async && did == "written";
    if crosses && !touch.knowledge.fenced.knows(before.epoch) {
        let message = format!(
            "asynchronous work {does} memory that the generic store of line {} has {did}, with no \
             `fence.proxy.async` between; the writer must fence before it synchronises",
            before.line
        );
        return Err(Error::new(ErrorKind::MissingFence, message));
    }
    Ok(())
}

fn conflict(before: &Record, did: &str, does: &str) -> Error {
    let line = before.line;
    let (kind, message) = match before.epoch.agent.kind() {
        AgentKind::Mbarrier => (
            ErrorKind::MissingWait,
            format!("{does} memory that the copy of line {line} fills; wait on its mbarrier first"),
        ),
        AgentKind::Bulk | AgentKind::BulkRead => (
            ErrorKind::MissingWait,
            format!(
                "{does} memory {did} by the bulk copy of line {line}; \
                 `cp.async.bulk.wait_group` comes first"
            ),
        ),
        AgentKind::Wgmma => (
            ErrorKind::MissingWait,
            format!(
                "{does} memory that the wgmma of line {line} may still be reading; \
                 `wgmma.wait_group` and a barrier come first"
            ),
        ),
        AgentKind::Warp | AgentKind::None => (
            ErrorKind::Race,
            format!("{does} memory {did} at line {line} by another warp with nothing between"),
        ),
    };
    Error::new(kind, message)
}
