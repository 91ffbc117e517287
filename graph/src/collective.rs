//! Steps that ranks do together, and whether ranks agree on them.
//!
//! A collective of one rank is one of every rank of its group. Ranks whose sequences differ would
//! wait for each other for ever, or worse, add up what does not belong together: [`agree`] compares
//! them before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::order::is_default;
use crate::{Arg, DType, DimExpr, Entry, Order, Step};
use serde::{Deserialize, Serialize};

/// What ranks do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Each gets the sum of all.
    AllReduce,
    /// Each gets its part of the sum of all.
    ReduceScatter,
    /// Each gets all, one after the other.
    AllGather,
    /// Each keeps its part of what all have alike.
    Part,
    /// Each gets the rows for its part of the segments, where `segments` says.
    Exchange,
    /// Each gets its rows back from where `Exchange` sent them.
    ExchangeBack,
    /// Each gets, of where everyone's segments begin, where those begin that come to it.
    ExchangeOffsets,
}

/// One operand from each rank of a group. It lies as `outer` blocks of `block` elements: a
/// gathering puts the blocks of all ranks side by side, a scattering cuts each block into a part
/// for each rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collective {
    pub kind: CollectiveKind,
    /// Which half of it, if it is done in two; both name the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half: Option<Half>,
    pub group: Group,
    pub from: Arg,
    pub to: Arg,
    /// Of an exchange, whose blocks are rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// Of an exchange: rows in the result, if not all that could come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<DimExpr>,
    pub outer: DimExpr,
    pub block: DimExpr,
    pub dtype: DType,
    pub label: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

/// A collective in two halves has a number within its entry. Both stand in the same loop, and
/// between them nothing changes what it reads or reads what it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// Hands over what needs nothing of other ranks, without waiting.
    Start(u32),
    /// Waits for the rest.
    Done(u32),
}

impl Half {
    pub const fn flight(self) -> u32 {
        match self {
            Half::Start(n) | Half::Done(n) => n,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Half::Start(_) => ", begun",
            Half::Done(_) => ", done",
        }
    }
}

/// Where rows begin by segment, i32[n + 1] each: those that a rank sends, and those that come to
/// it, by its own segments and for each by the places they come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segments {
    pub n: u32,
    pub sent: Arg,
    pub got: Arg,
}

/// Ranks that lie along a mesh axis: `size` of them, `stride` apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub axis: String,
    pub size: u32,
    pub stride: u32,
}

impl CollectiveKind {
    pub const fn name(self) -> &'static str {
        match self {
            CollectiveKind::AllReduce => "all_reduce",
            CollectiveKind::ReduceScatter => "reduce_scatter",
            CollectiveKind::AllGather => "all_gather",
            CollectiveKind::Part => "part",
            CollectiveKind::Exchange => "exchange",
            CollectiveKind::ExchangeBack => "exchange_back",
            CollectiveKind::ExchangeOffsets => "exchange_offsets",
        }
    }
}

impl Group {
    /// The place of `rank` in its group.
    pub fn place(&self, rank: usize) -> usize {
        rank / self.stride as usize % self.size as usize
    }

    /// The ranks that `rank` does it with, itself included, in the order of their places.
    pub fn ranks(&self, rank: usize) -> Vec<usize> {
        let first = rank - self.place(rank) * self.stride as usize;
        (0..self.size as usize).map(|i| first + i * self.stride as usize).collect()
    }
}

impl Collective {
    /// Bytes of the operand, and of the result.
    pub fn size_bytes(&self) -> (DimExpr, DimExpr) {
        let elements = DimExpr::product([self.outer.clone(), self.block.clone()]);
        let one = (elements * i64::from(self.dtype.bits())).ceil_div(8);
        let n = i64::from(self.group.size);
        if let Some(room) = &self.room {
            let elements = DimExpr::product([room.clone(), self.block.clone()]);
            return (one, (elements * i64::from(self.dtype.bits())).ceil_div(8));
        }
        let to = match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::ExchangeOffsets => one.clone(),
            CollectiveKind::ReduceScatter | CollectiveKind::Part | CollectiveKind::ExchangeBack => {
                one.clone().ceil_div(n)
            }
            CollectiveKind::AllGather | CollectiveKind::Exchange => one.clone() * n,
        };
        (one, to)
    }
}

/// Every collective of an entry in order, and every end of a message, one line each: what ranks
/// must have in common, as `rank` sees it. A line begins with the ranks it concerns, `0,2` or
/// `0>2`.
pub fn sequence(entry: &Entry, rank: usize) -> Vec<String> {
    let mut lines = vec![];
    collect(entry, rank, &entry.steps, "", &mut lines);
    lines
}

/// `within` says how often it is done.
fn collect(entry: &Entry, rank: usize, steps: &[Step], within: &str, lines: &mut Vec<String>) {
    for step in steps {
        match step {
            Step::Launch(_) | Step::Copy(_) => {}
            Step::Loop(repeat) => {
                let count = repeat.count.display(&entry.dims);
                let within = format!(", {count} times in {}{within}", repeat.label);
                collect(entry, rank, &repeat.body, &within, lines);
            }
            Step::Collective(c) => {
                let (outer, block) = (c.outer.display(&entry.dims), c.block.display(&entry.dims));
                let Group { axis, size, stride } = &c.group;
                let ranks = c.group.ranks(rank);
                let ranks = ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
                lines.push(format!(
                    "{ranks}|{} of {} over {axis} ({size}, {stride} apart), {outer} x \
                     {block} {}{within}{}",
                    c.kind.name(),
                    c.label,
                    c.dtype,
                    c.half.map_or("", Half::name)
                ));
            }
            Step::Message(m) => {
                let (from, to) = m.ranks(rank);
                let (bytes, label) = (m.bytes.display(&entry.dims), &m.label);
                lines.push(format!("{from}>{to}|{bytes} bytes{within}|{label}"));
            }
        }
    }
}

/// A line of a sequence: whom it concerns, what all of them must say alike, and what it is called.
fn parts(line: &str) -> (&str, &str, Option<&str>) {
    let (ranks, rest) = line.split_once('|').unwrap_or(("", line));
    match rest.split_once('|') {
        Some((same, label)) => (ranks, same, Some(label)),
        None => (ranks, rest, None),
    }
}

/// Whether the ranks of each group do the same collectives in the same order, and each receives
/// what others send to it; says where the first differs. `sequences` are by rank.
pub fn agree(sequences: &[Vec<String>]) -> Result<(), String> {
    // Of each rank its lines by whom they concern.
    let sorted: Vec<BTreeMap<&str, Vec<&str>>> = sequences
        .iter()
        .map(|lines| {
            let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            lines.iter().for_each(|l| of.entry(parts(l).0).or_default().push(l));
            of
        })
        .collect();
    let keys: BTreeSet<&str> = sorted.iter().flat_map(|of| of.keys().copied()).collect();
    for key in keys {
        let ranks = key.split([',', '>']).filter_map(|r| r.parse::<usize>().ok());
        let ranks: Vec<usize> = ranks.filter(|r| *r < sequences.len()).collect();
        let Some((first, others)) = ranks.split_first() else { continue };
        let of = |rank: usize| sorted[rank].get(key).map_or(&[][..], Vec::as_slice);
        for other in others {
            let (a, b) = (of(*first), of(*other));
            let same = |i: &usize| a.get(*i).map(|l| parts(l).1) == b.get(*i).map(|l| parts(l).1);
            if let Some(i) = (0..a.len().max(b.len())).find(|i| !same(i)) {
                let what = if key.contains('>') { "message" } else { "collective" };
                return Err(format!(
                    "{what} {i} differs between ranks: rank {first} {}, rank {other} {}; compile \
                     all ranks from one source with one version",
                    told(key, a.get(i), true),
                    told(key, b.get(i), false),
                ));
            }
        }
    }
    Ok(())
}

fn told(key: &str, line: Option<&&str>, first: bool) -> String {
    let Some((_, same, label)) = line.map(|l| parts(l)) else { return "does nothing more".into() };
    match (key.split_once('>'), label) {
        (Some((_, to)), Some(label)) if first => format!("sends {label}, {same}, to {to}"),
        (Some((from, _)), Some(label)) => format!("receives {label}, {same}, from {from}"),
        _ => format!("does {same}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BufferId, End, Message};

    fn sum(label: &str) -> Step {
        Step::Collective(Collective {
            kind: CollectiveKind::AllReduce,
            half: None,
            group: Group { axis: "data".into(), size: 3, stride: 1 },
            from: Arg::whole(BufferId(0)),
            to: Arg::whole(BufferId(1)),
            segments: None,
            room: None,
            outer: 1.into(),
            block: 8.into(),
            dtype: DType::F32,
            label: label.into(),
            source: vec![],
            order: Order::default(),
        })
    }

    #[test]
    fn a_swap_on_one_rank_is_told_with_both_collectives() {
        let entry = |labels: [&str; 3]| Entry { steps: labels.map(sum).into(), ..Entry::default() };
        let one = sequence(&entry(["a", "b", "c"]), 0);
        let other = sequence(&entry(["a", "c", "b"]), 2);
        assert_eq!(agree(&[one.clone(), one.clone()]), Ok(()));
        let why = agree(&[one.clone(), one.clone(), other]).expect_err("they differ");
        let b = "rank 0 does all_reduce of b over data (3, 1 apart), 1 x 8 f32";
        assert!(why.contains("collective 1 differs between ranks") && why.contains(b), "{why}");
        assert!(why.contains("rank 2 does all_reduce of c"), "{why}");
        let why = agree(&[one.clone(), one[..2].to_vec()]).expect_err("one is shorter");
        assert!(why.contains("rank 1 does nothing more"), "{why}");
    }

    #[test]
    fn what_one_sends_another_receives_in_one_order() {
        let end = |end: End, peer: u32, bytes: i64, label: &str| {
            let group = Group { axis: "pipeline".into(), size: 2, stride: 1 };
            let (at, label) = (Arg::whole(BufferId(0)), label.to_string());
            Step::Message(Message {
                end,
                group,
                peer,
                at,
                bytes: bytes.into(),
                label,
                source: vec![],
                order: Order::default(),
            })
        };
        let of =
            |rank: usize, steps: Vec<Step>| sequence(&Entry { steps, ..Entry::default() }, rank);
        let sender = of(0, vec![end(End::Send, 1, 8, "x"), end(End::Send, 1, 4, "y")]);
        let receiver = of(1, vec![end(End::Recv, 0, 8, "p"), end(End::Recv, 0, 4, "q")]);
        assert_eq!(agree(&[sender.clone(), receiver]), Ok(()));
        let swapped = of(1, vec![end(End::Recv, 0, 4, "q"), end(End::Recv, 0, 8, "p")]);
        let why = agree(&[sender.clone(), swapped]).expect_err("they differ");
        assert!(
            why.contains("message 0 differs between ranks: rank 0 sends x, 8 bytes, to 1"),
            "{why}"
        );
        assert!(why.contains("rank 1 receives q, 4 bytes, from 0"), "{why}");
        let why = agree(&[sender, vec![]]).expect_err("nobody receives");
        assert!(why.contains("rank 1 does nothing more"), "{why}");
    }

    #[test]
    fn groups_lie_along_their_axis() {
        let group = Group { axis: "data".into(), size: 3, stride: 2 };
        let all: Vec<(usize, Vec<usize>)> =
            (6..10).map(|rank| (group.place(rank), group.ranks(rank))).collect();
        let (even, odd) = (vec![6, 8, 10], vec![7, 9, 11]);
        assert_eq!(all, [(0, even.clone()), (0, odd.clone()), (1, even), (1, odd)]);
    }
}
