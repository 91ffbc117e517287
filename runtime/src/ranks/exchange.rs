//! Rows to the ranks that have their experts, and back: an all_to_all whose sizes are data.
//!
//! `n` places have `E` experts between them, the same number each. Offsets `[E + 1]` say where rows
//! begin: `sent` of a rank's own rows by expert, `got` of the rows that come to it, by its expert
//! and the place they come from. Both sides of a message know its length from them.

use super::collective::Flight;
use super::{Meeting, RankError};
use crate::memory::as_bytes;

/// Where rows begin, at the source and with the experts.
#[derive(Clone, Debug)]
pub struct Offsets {
    pub sent: Vec<usize>,
    pub got: Vec<usize>,
}

impl Offsets {
    /// As kernels leave them.
    pub fn read(sent: &[u8], got: &[u8]) -> Offsets {
        Offsets { sent: numbers(sent), got: numbers(got) }
    }
}

fn numbers(bytes: &[u8]) -> Vec<usize> {
    let of = |b: &[u8]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).max(0) as usize;
    bytes.chunks_exact(4).map(of).collect()
}

impl Offsets {
    /// Experts of each of `n` places.
    fn own(&self, n: usize) -> usize {
        (self.sent.len() - 1) / n
    }

    /// The segments of `got` that come from place `of`.
    fn segments(&self, n: usize, of: usize) -> impl Iterator<Item = usize> + Clone {
        (0..self.own(n)).map(move |expert| expert * n + of)
    }

    /// Rows of this place that are for the experts of place `of`.
    fn sent_to(&self, n: usize, of: usize) -> std::ops::Range<usize> {
        let own = self.own(n);
        self.sent[of * own]..self.sent[(of + 1) * own]
    }

    /// How many rows go to place `of`, and how many come from there.
    pub fn rows_between(&self, n: usize, of: usize, back: bool) -> (usize, usize) {
        let there = self.sent_to(n, of).len();
        let here = self.segments(n, of).map(|s| self.got[s + 1] - self.got[s]).sum();
        if back { (here, there) } else { (there, here) }
    }

    /// The rows that go to place `of`, in the order in which they go.
    pub fn runs(&self, n: usize, of: usize, back: bool) -> Vec<std::ops::Range<usize>> {
        match back {
            false => vec![self.sent_to(n, of)],
            true => self.segments(n, of).map(|s| self.got[s]..self.got[s + 1]).collect(),
        }
    }

    /// The first row that an exchange brings.
    pub fn first(&self, back: bool) -> usize {
        let offsets = if back { &self.sent } else { &self.got };
        offsets.first().copied().unwrap_or(0)
    }

    /// One behind the last row that an exchange brings.
    pub fn end(&self, back: bool) -> usize {
        let offsets = if back { &self.sent } else { &self.got };
        offsets.last().copied().unwrap_or(0)
    }

    /// The rows that go to place `of`.
    pub fn part(&self, n: usize, of: usize, row_bytes: usize, from: &[u8], back: bool) -> Vec<u8> {
        let rows = self.runs(n, of, back).into_iter();
        let rows = rows.map(|rows| &from[rows.start * row_bytes..rows.end * row_bytes]);
        rows.flatten().copied().collect()
    }
}

/// How many rows of each of its experts a place gets, of those that begin at `from`.
pub fn counts(from: &[u8], n: usize, of: usize) -> Vec<i32> {
    let sent = numbers(from);
    let own = (sent.len() - 1) / n;
    let offsets = &sent[of * own..(of + 1) * own + 1];
    offsets.windows(2).map(|w| w[1] as i32 - w[0] as i32).collect()
}

/// `got` of all ranks' `sent`.
pub(super) fn offsets(
    meeting: &Meeting<'_>,
    flight: &mut Flight,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let own = counts(from, n, place);
    let mut all = vec![];
    for of in 0..n {
        let mut bytes = as_bytes(&own).to_vec();
        if of != place {
            flight.take(meeting, of, &mut bytes)?;
        }
        all.push(numbers(&bytes));
    }
    let mut got = vec![0i32];
    for expert in 0..own.len() {
        for counts in &all {
            got.push(got[got.len() - 1] + counts[expert] as i32);
        }
    }
    to.copy_from_slice(as_bytes(&got));
    Ok(())
}

/// Rows of `row_bytes` to their experts; `to` is filled up with zeros.
pub(super) fn rows(
    meeting: &Meeting<'_>,
    flight: &mut Flight,
    row_bytes: usize,
    offsets: &Offsets,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let got = &offsets.got;
    let end = got[got.len() - 1] * row_bytes;
    to[end..].fill(0);
    for of in 0..n {
        let (_, n_rows) = offsets.rows_between(n, of, false);
        let mut bytes = vec![];
        if of == place {
            bytes = offsets.part(n, of, row_bytes, from, false);
        } else if n_rows > 0 {
            bytes.resize(n_rows * row_bytes, 0);
            flight.take(meeting, of, &mut bytes)?;
        }
        let mut rest = &bytes[..];
        for s in offsets.segments(n, of) {
            let segment = &mut to[got[s] * row_bytes..got[s + 1] * row_bytes];
            let (own, others) = rest.split_at(segment.len());
            segment.copy_from_slice(own);
            rest = others;
        }
    }
    Ok(())
}

/// Rows of `row_bytes` from their experts back to where they came from.
pub(super) fn back(
    meeting: &Meeting<'_>,
    flight: &mut Flight,
    row_bytes: usize,
    offsets: &Offsets,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let end = offsets.sent[offsets.sent.len() - 1] * row_bytes;
    to[..offsets.sent[0] * row_bytes].fill(0);
    to[end..].fill(0);
    for of in 0..n {
        let rows = offsets.sent_to(n, of);
        let rows = &mut to[rows.start * row_bytes..rows.end * row_bytes];
        if of == place {
            rows.copy_from_slice(&offsets.part(n, of, row_bytes, from, true));
        } else if !rows.is_empty() {
            flight.take(meeting, of, rows)?;
        }
    }
    Ok(())
}
