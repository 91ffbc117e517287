//! Device memory as separate allocations, and the map of addresses.
//!
//! Generic addresses tell the space by their high bits. Only shared memory has addresses of its own
//! as well: 32 bits, `rank in the cluster << 24 | offset`, where the first kilobyte is reserved.

use crate::error::{Error, ErrorKind, Result};
use crate::race::Shadow;

/// Where a CTA's variables begin in its shared window.
pub const SHARED_START: u32 = 1024;
/// Bits of an offset in a CTA's shared window.
pub const SHARED_RANK_SHIFT: u32 = 24;
/// What a CTA may have in all, in bytes.
pub const SHARED_MAX_BYTES: u32 = 227 * 1024;

pub const SHARED_BASE: u64 = 0x1000_0000_0000;
pub const LOCAL_BASE: u64 = 0x2000_0000_0000;
pub const PARAM_BASE: u64 = 0x3000_0000_0000;
/// Globals and constants of modules, 4 GiB apart.
pub const MODULE_BASE: u64 = 0x5000_0000_0000;
pub const GLOBAL_BASE: u64 = 0x7000_0000_0000;

/// Space between allocations, so that a step over an end is noticed.
const GUARD_BYTES: u64 = 4096;

pub struct Segment {
    pub address: u64,
    pub bytes: Vec<u8>,
    /// Accesses of the launch in progress.
    pub shadow: Shadow,
}

#[derive(Default)]
pub struct Memory {
    /// In order of their addresses.
    segments: Vec<Segment>,
    next: u64,
}

impl Memory {
    pub fn alloc(&mut self, n_bytes: u64) -> u64 {
        let address = GLOBAL_BASE + self.next;
        self.next = (self.next + n_bytes).next_multiple_of(256) + GUARD_BYTES;
        self.map(address, vec![0; n_bytes as usize]);
        address
    }

    pub fn map(&mut self, address: u64, bytes: Vec<u8>) {
        let at = self.segments.partition_point(|s| s.address < address);
        self.segments.insert(at, Segment { address, bytes, shadow: Shadow::default() });
    }

    pub fn is_mapped(&self, address: u64) -> bool {
        self.segments.binary_search_by_key(&address, |s| s.address).is_ok()
    }

    pub fn free(&mut self, address: u64) -> Result<()> {
        match self.segments.binary_search_by_key(&address, |s| s.address) {
            Ok(at) => {
                self.segments.remove(at);
                Ok(())
            }
            Err(_) => {
                let message = format!("{address:#x} is not the start of an allocation");
                Err(Error::new(ErrorKind::OutOfBounds, message))
            }
        }
    }

    /// The allocation and the offset of `n_bytes` at `address`.
    pub fn locate(&self, address: u64, n_bytes: u64) -> Result<(usize, usize)> {
        let after = self.segments.partition_point(|s| s.address <= address);
        let found = after.checked_sub(1).map(|i| (i, &self.segments[i]));
        let inside = |s: &Segment| {
            let offset = address - s.address;
            offset.checked_add(n_bytes).is_some_and(|end| end <= s.bytes.len() as u64)
        };
        if let Some((i, segment)) = found
            && inside(segment)
        {
            return Ok((i, (address - segment.address) as usize));
        }
        let near = match found {
            Some((_, s)) => format!(
                "the nearest allocation below holds {} bytes from {:#x}",
                s.bytes.len(),
                s.address
            ),
            None => "no allocation lies below".to_string(),
        };
        let message = format!("{n_bytes} bytes at {address:#x} are not allocated; {near}");
        Err(Error::new(ErrorKind::OutOfBounds, message))
    }

    pub fn segment_ref(&self, index: usize) -> &Segment {
        &self.segments[index]
    }

    pub fn segment(&mut self, index: usize) -> &mut Segment {
        &mut self.segments[index]
    }

    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    pub fn bytes(&self, address: u64, n_bytes: u64) -> Result<&[u8]> {
        let (segment, at) = self.locate(address, n_bytes)?;
        Ok(&self.segments[segment].bytes[at..at + n_bytes as usize])
    }

    pub fn bytes_mut(&mut self, address: u64, n_bytes: u64) -> Result<&mut [u8]> {
        let (segment, at) = self.locate(address, n_bytes)?;
        Ok(&mut self.segments[segment].bytes[at..at + n_bytes as usize])
    }

    /// Forgets the accesses of the last launch: launches follow one another.
    pub fn start_launch(&mut self) {
        for segment in &mut self.segments {
            segment.shadow = Shadow::default();
        }
    }
}
