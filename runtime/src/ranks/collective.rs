//! Sums and gatherings made of messages between two ranks, in one order whatever the transport.
//!
//! A sum is a binary tree over places: at level k the place with bit k set sends what it has to the
//! place without it, which adds it to its own, `left + right`. The first 2^k places of a group are
//! one summand, and so are the others. It begins at zero, so that a sum is never -0: that is what a
//! loop that adds to zeros gives.

use weft_graph::CollectiveKind;

use super::exchange::{self, Offsets};
use super::{Coming, Meeting, RankError};
use crate::memory::{as_bytes, as_bytes_mut};

/// An operand as `outer` blocks of `block_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    pub outer: usize,
    pub block_bytes: usize,
}

/// A collective that has begun: the messages that it waits for.
#[derive(Debug, Default)]
pub struct Flight {
    /// By place, ascending: what is coming from there.
    coming: Vec<(usize, Coming)>,
}

impl Flight {
    fn expect(&mut self, meeting: &Meeting<'_>, place: usize, bytes: usize) {
        self.coming.push((place, meeting.expect(place, bytes)));
    }

    /// Waits for what comes from a place.
    pub(super) fn take(
        &mut self,
        meeting: &Meeting<'_>,
        place: usize,
        bytes: &mut [u8],
    ) -> Result<(), RankError> {
        let i = self.coming.iter().position(|(p, _)| *p == place);
        let (_, coming) = self.coming.remove(i.expect("begun with a message from there"));
        meeting.take(place, coming, bytes)
    }
}

/// Carries out a collective on host memory; `to` has the size of the result. `offsets` are an
/// exchange's.
pub fn run(
    kind: CollectiveKind,
    meeting: &Meeting<'_>,
    blocks: Blocks,
    offsets: Option<&Offsets>,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let flight = start(kind, meeting, blocks, offsets, from)?;
    finish(kind, meeting, blocks, offsets, flight, from, to)
}

/// The first half: hands over all that needs nothing of other places, and waits for nothing.
pub fn start(
    kind: CollectiveKind,
    meeting: &Meeting<'_>,
    blocks: Blocks,
    offsets: Option<&Offsets>,
    from: &[u8],
) -> Result<Flight, RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let others = || (0..n).filter(move |of| *of != place);
    let mut flight = Flight::default();
    match (kind, offsets) {
        (CollectiveKind::AllReduce, _) => {
            // Leaves of the tree; its other levels wait for these.
            if place % 2 == 1 {
                meeting.send(place - 1, as_bytes(&summand(from)))?;
            } else if place + 1 < n {
                flight.expect(meeting, place + 1, from.len());
            }
        }
        (CollectiveKind::ReduceScatter, _) => {
            for of in others() {
                meeting.send(of, &part(blocks, from, n, of))?;
                flight.expect(meeting, of, from.len() / n);
            }
        }
        (CollectiveKind::AllGather, _) => {
            for of in others() {
                meeting.send(of, from)?;
                flight.expect(meeting, of, from.len());
            }
        }
        // Nobody else has to do with it.
        (CollectiveKind::Part, _) => {}
        (CollectiveKind::ExchangeOffsets, _) => {
            for of in others() {
                let counts = exchange::counts(from, n, of);
                meeting.send(of, as_bytes(&counts))?;
                flight.expect(meeting, of, 4 * counts.len());
            }
        }
        (CollectiveKind::Exchange | CollectiveKind::ExchangeBack, Some(offsets)) => {
            let back = kind == CollectiveKind::ExchangeBack;
            for of in others() {
                let (out, coming) = offsets.rows_between(n, of, back);
                if out > 0 {
                    meeting.send(of, &offsets.part(n, of, blocks.block_bytes, from, back))?;
                }
                if coming > 0 {
                    flight.expect(meeting, of, coming * blocks.block_bytes);
                }
            }
        }
        (CollectiveKind::Exchange | CollectiveKind::ExchangeBack, None) => {
            unreachable!("a graph whose exchanges lack segments does not verify")
        }
    }
    Ok(flight)
}

/// The second half.
pub fn finish(
    kind: CollectiveKind,
    meeting: &Meeting<'_>,
    blocks: Blocks,
    offsets: Option<&Offsets>,
    mut flight: Flight,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let flight = &mut flight;
    match (kind, offsets) {
        (CollectiveKind::AllReduce, _) => {
            let mut sum = reduce(meeting, flight, from)?;
            broadcast(meeting, as_bytes_mut(&mut sum))?;
            to.copy_from_slice(as_bytes(&sum));
            Ok(())
        }
        (CollectiveKind::ReduceScatter, _) => reduce_scatter(meeting, flight, blocks, from, to),
        (CollectiveKind::AllGather, _) => all_gather(meeting, flight, blocks, from, to),
        (CollectiveKind::Part, _) => {
            to.copy_from_slice(&part(blocks, from, meeting.n(), meeting.place()));
            Ok(())
        }
        (CollectiveKind::ExchangeOffsets, _) => exchange::offsets(meeting, flight, from, to),
        (CollectiveKind::Exchange, Some(offsets)) => {
            exchange::rows(meeting, flight, blocks.block_bytes, offsets, from, to)
        }
        (CollectiveKind::ExchangeBack, Some(offsets)) => {
            exchange::back(meeting, flight, blocks.block_bytes, offsets, from, to)
        }
        (CollectiveKind::Exchange | CollectiveKind::ExchangeBack, None) => {
            unreachable!("a graph whose exchanges lack segments does not verify")
        }
    }
}

/// The sum over all places, for each.
pub fn all_reduce(meeting: &Meeting<'_>, from: &[u8]) -> Result<Vec<u8>, RankError> {
    let blocks = Blocks { outer: 1, block_bytes: from.len() };
    let mut to = vec![0; from.len()];
    run(CollectiveKind::AllReduce, meeting, blocks, None, from, &mut to)?;
    Ok(to)
}

/// What a place adds to a sum.
fn summand(from: &[u8]) -> Vec<f32> {
    floats(from).into_iter().map(|x| x + 0.0).collect()
}

/// The sum over all places, at place 0; the others hold parts of it. The leaves are on their way.
fn reduce(meeting: &Meeting<'_>, flight: &mut Flight, from: &[u8]) -> Result<Vec<f32>, RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let mut sum = summand(from);
    let mut right = vec![0.0f32; sum.len()];
    let mut distance = 1;
    while distance < n {
        let leaf = distance == 1;
        if place & distance != 0 {
            if !leaf {
                meeting.send(place - distance, as_bytes(&sum))?;
            }
            break;
        }
        if place + distance < n {
            match leaf {
                true => flight.take(meeting, place + 1, as_bytes_mut(&mut right))?,
                false => meeting.recv(place + distance, as_bytes_mut(&mut right))?,
            }
            sum.iter_mut().zip(&right).for_each(|(x, y)| *x += y);
        }
        distance *= 2;
    }
    Ok(sum)
}

/// What place 0 has, for all: the way of `reduce` back.
pub fn broadcast(meeting: &Meeting<'_>, bytes: &mut [u8]) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let mut distance = n.next_power_of_two();
    while distance > 1 {
        distance /= 2;
        if place.is_multiple_of(2 * distance) && place + distance < n {
            meeting.send(place + distance, bytes)?;
        } else if place % (2 * distance) == distance {
            meeting.recv(place - distance, bytes)?;
        }
    }
    Ok(())
}

/// Each place gets its part of every other's operand and adds them up itself, in the tree's order.
fn reduce_scatter(
    meeting: &Meeting<'_>,
    flight: &mut Flight,
    blocks: Blocks,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let mut parts: Vec<Vec<f32>> = vec![];
    for of in 0..n {
        let mut bytes = vec![0u8; to.len()];
        if of == place {
            bytes = part(blocks, from, n, of);
        } else {
            flight.take(meeting, of, &mut bytes)?;
        }
        parts.push(summand(&bytes));
    }
    to.copy_from_slice(as_bytes(&tree(&parts)));
    Ok(())
}

/// What belongs to place `of` of `n`.
fn part(blocks: Blocks, from: &[u8], n: usize, of: usize) -> Vec<u8> {
    let part_bytes = blocks.block_bytes / n;
    let block = from.chunks_exact(blocks.block_bytes.max(1)).take(blocks.outer);
    block.flat_map(|b| &b[of * part_bytes..(of + 1) * part_bytes]).copied().collect()
}

fn tree(parts: &[Vec<f32>]) -> Vec<f32> {
    let [one] = parts else {
        let (left, right) = parts.split_at(parts.len().next_power_of_two() / 2);
        let mut sum = tree(left);
        sum.iter_mut().zip(tree(right)).for_each(|(x, y)| *x += y);
        return sum;
    };
    one.clone()
}

fn all_gather(
    meeting: &Meeting<'_>,
    flight: &mut Flight,
    blocks: Blocks,
    from: &[u8],
    to: &mut [u8],
) -> Result<(), RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    let mut other = vec![0u8; from.len()];
    let size = blocks.block_bytes;
    for of in 0..n {
        let bytes = if of == place {
            from
        } else {
            flight.take(meeting, of, &mut other)?;
            &other
        };
        for i in 0..blocks.outer {
            let at = (i * n + of) * size;
            to[at..at + size].copy_from_slice(&bytes[i * size..(i + 1) * size]);
        }
    }
    Ok(())
}

/// What each place has, by place, for the first; nothing for the others. Lengths are equal.
pub fn gather(meeting: &Meeting<'_>, own: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
    if meeting.place() != 0 {
        meeting.send(0, own)?;
        return Ok(vec![]);
    }
    let mut all = vec![own.to_vec()];
    for of in 1..meeting.n() {
        let mut bytes = vec![0; own.len()];
        meeting.recv(of, &mut bytes)?;
        all.push(bytes);
    }
    Ok(all)
}

/// What each place has, by place; lengths may differ.
pub fn gather_uneven(meeting: &Meeting<'_>, own: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
    let each: Vec<&[u8]> = vec![own; meeting.n()];
    all_to_all(meeting, &each)
}

/// Part i of every place goes to place i, which gets them by place; lengths may differ.
pub fn all_to_all(meeting: &Meeting<'_>, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, RankError> {
    let (n, place) = (meeting.n(), meeting.place());
    for of in (0..n).filter(|of| *of != place) {
        meeting.send(of, &(parts[of].len() as u64).to_le_bytes())?;
        meeting.send(of, parts[of])?;
    }
    let mut all = vec![];
    for of in 0..n {
        if of == place {
            all.push(parts[of].to_vec());
            continue;
        }
        let mut len = [0; 8];
        meeting.recv(of, &mut len)?;
        let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
        meeting.recv(of, &mut bytes)?;
        all.push(bytes);
    }
    Ok(all)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let of = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    bytes.chunks_exact(4).map(of).collect()
}
