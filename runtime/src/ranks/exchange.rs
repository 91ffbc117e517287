//! Rows to the ranks that have their experts, and back: an all_to_all whose sizes are data.
//!
//! `n` places have `E` experts between them, the same number each. Offsets `[E + 1]` say where rows
//! begin: `sent` of a rank's own rows by expert, `got` of the rows that come to it, by its expert
//! and the place they come from. Both sides of a message know its length from them.

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

/// `got` of all ranks' `sent`.
pub fn offsets(meeting: &Meeting<'_>, from: &[u8], to: &mut [u8]) -> Result<(), RankError> {
    let (n, place, sent) = (meeting.n(), meeting.place(), numbers(from));
    let own = (sent.len() - 1) / n;
    let counts = |of: usize| -> Vec<i32> {
        let offsets = &sent[of * own..(of + 1) * own + 1];
        offsets.windows(2).map(|w| w[1] as i32 - w[0] as i32).collect()
    };
    for of in (0..n).filter(|of| *of != place) {
        meeting.send(of, as_bytes(&counts(of)))?;
    }
    let mut all = vec![];
    for of in 0..n {
        let mut bytes = vec![0; 4 * own];
        if of == place {
            bytes.copy_from_slice(as_bytes(&counts(of)));
        } else {
            meeting.recv(of, &mut bytes)?;
        }
        all.push(numbers(&bytes));
    }
    let mut got = vec![0i32];
    for expert in 0..own {
        for counts in &all {
            got.push(got[got.len() - 1] + counts[expert] as i32);
        }
    }
    to.copy_from_slice(as_bytes(&got));
    Ok(())
}

/// Rows of `row_bytes` to their experts; `to` is filled up with zeros.
pub fn rows(
    meeting: &Meeting<'_>,
    row_bytes: usize,
    offsets: &Offsets,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let Offsets { sent, got } = offsets;
    let own = (sent.len() - 1) / n;
    let part = |of: usize| &from[sent[of * own] * row_bytes..sent[(of + 1) * own] * row_bytes];
    for of in (0..n).filter(|of| *of != place && !part(*of).is_empty()) {
        meeting.send(of, part(of))?;
    }
    let end = got[got.len() - 1] * row_bytes;
    to[end..].fill(0);
    let mut bytes = vec![];
    for of in 0..n {
        let segments = (0..own).map(|expert| expert * n + of);
        let n_rows: usize = segments.clone().map(|s| got[s + 1] - got[s]).sum();
        bytes.resize(n_rows * row_bytes, 0);
        if of == place {
            bytes.copy_from_slice(part(of));
        } else if n_rows > 0 {
            meeting.recv(of, &mut bytes)?;
        }
        let mut rest = &bytes[..];
        for s in segments {
            let segment = &mut to[got[s] * row_bytes..got[s + 1] * row_bytes];
            let (own, others) = rest.split_at(segment.len());
            segment.copy_from_slice(own);
            rest = others;
        }
    }
    Ok(())
}

/// Rows of `row_bytes` from their experts back to where they came from.
pub fn back(
    meeting: &Meeting<'_>,
    row_bytes: usize,
    offsets: &Offsets,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let Offsets { sent, got } = offsets;
    let own = (sent.len() - 1) / n;
    let part = |of: usize| -> Vec<u8> {
        let segments = (0..own).map(|expert| expert * n + of);
        let rows = segments.map(|s| &from[got[s] * row_bytes..got[s + 1] * row_bytes]);
        rows.flatten().copied().collect()
    };
    for of in (0..n).filter(|of| *of != place) {
        let part = part(of);
        if !part.is_empty() {
            meeting.send(of, &part)?;
        }
    }
    let end = sent[sent.len() - 1] * row_bytes;
    to[end..].fill(0);
    for of in 0..n {
        let rows = &mut to[sent[of * own] * row_bytes..sent[(of + 1) * own] * row_bytes];
        if of == place {
            rows.copy_from_slice(&part(of));
        } else if !rows.is_empty() {
            meeting.recv(of, rows)?;
        }
    }
    Ok(())
}
