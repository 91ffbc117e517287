//! Steps that ranks do together, and whether ranks agree on them.
//!
//! A collective of one rank is one of every rank of its group. Ranks whose sequences differ would
//! wait for each other for ever, or worse, add up what does not belong together: [`agree`] compares
//! them before anything runs.

use crate::{Arg, DType, DimExpr, Entry, Step};
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
    pub group: Group,
    pub from: Arg,
    pub to: Arg,
    /// Of an exchange, whose blocks are rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    pub outer: DimExpr,
    pub block: DimExpr,
    pub dtype: DType,
    pub label: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
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
        let to = match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::ExchangeOffsets => one.clone(),
            CollectiveKind::ReduceScatter | CollectiveKind::ExchangeBack => one.clone().ceil_div(n),
            CollectiveKind::AllGather | CollectiveKind::Exchange => one.clone() * n,
        };
        (one, to)
    }
}

/// Every collective of an entry in order, one line each, loops with their counts: what all ranks
/// must have in common.
pub fn sequence(entry: &Entry) -> Vec<String> {
    let mut lines = vec![];
    collect(entry, &entry.steps, &mut lines);
    lines
}

fn collect(entry: &Entry, steps: &[Step], lines: &mut Vec<String>) {
    for step in steps {
        match step {
            Step::Launch(_) | Step::Copy(_) => {}
            Step::Loop(repeat) => {
                let mut inner = vec![];
                collect(entry, &repeat.body, &mut inner);
                if !inner.is_empty() {
                    let count = repeat.count.display(&entry.dims);
                    lines.push(format!("{count} times {} {{", repeat.label));
                    lines.append(&mut inner);
                    lines.push("}".into());
                }
            }
            Step::Collective(c) => {
                let (outer, block) = (c.outer.display(&entry.dims), c.block.display(&entry.dims));
                let Group { axis, size, stride } = &c.group;
                lines.push(format!(
                    "{} of {} over {axis} ({size}, {stride} apart), {outer} x {block} {}",
                    c.kind.name(),
                    c.label,
                    c.dtype
                ));
            }
        }
    }
}

/// Whether ranks do the same collectives in the same order; says where the first differs.
pub fn agree(sequences: &[Vec<String>]) -> Result<(), String> {
    let Some(first) = sequences.first() else { return Ok(()) };
    for (rank, other) in sequences.iter().enumerate().skip(1) {
        let n = first.len().max(other.len());
        let differs = (0..n).find(|i| first.get(*i) != other.get(*i));
        if let Some(i) = differs {
            let at = |s: &[String]| s.get(i).map_or("nothing more".into(), String::clone);
            return Err(format!(
                "collective {i} differs between ranks: rank 0 does {}, rank {rank} does {}; \
                 compile all ranks from one source with one version",
                at(first),
                at(other)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BufferId;

    fn sum(label: &str) -> Step {
        Step::Collective(Collective {
            kind: CollectiveKind::AllReduce,
            group: Group { axis: "data".into(), size: 2, stride: 1 },
            from: Arg::whole(BufferId(0)),
            to: Arg::whole(BufferId(1)),
            segments: None,
            outer: 1.into(),
            block: 8.into(),
            dtype: DType::F32,
            label: label.into(),
            source: vec![],
        })
    }

    #[test]
    fn a_swap_on_one_rank_is_told_with_both_collectives() {
        let entry = |labels: [&str; 3]| Entry { steps: labels.map(sum).into(), ..Entry::default() };
        let (one, other) = (sequence(&entry(["a", "b", "c"])), sequence(&entry(["a", "c", "b"])));
        assert_eq!(agree(&[one.clone(), one.clone()]), Ok(()));
        let why = agree(&[one.clone(), one.clone(), other]).expect_err("they differ");
        let b = "rank 0 does all_reduce of b over data (2, 1 apart), 1 x 8 f32";
        assert!(why.contains("collective 1 differs between ranks") && why.contains(b), "{why}");
        assert!(why.contains("rank 2 does all_reduce of c"), "{why}");
        let why = agree(&[one.clone(), one[..2].to_vec()]).expect_err("one is shorter");
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
