//! A step that hands bytes from one rank to another: each of the two has one end of it.

use crate::order::is_default;
use crate::{Arg, DimExpr, Group, Order};
use serde::{Deserialize, Serialize};

/// One end of a message along a mesh axis. What a rank sends to another arrives in the order in
/// which it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub end: End,
    pub group: Group,
    /// The place in the group of the rank at the other end.
    pub peer: u32,
    /// What is sent, or where it is received.
    pub at: Arg,
    pub bytes: DimExpr,
    pub label: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Send,
    Recv,
}

impl End {
    pub const fn name(self) -> &'static str {
        match self {
            End::Send => "send",
            End::Recv => "recv",
        }
    }
}

impl Message {
    /// The ranks at its two ends, the sender first, if `rank` is the one that has this end.
    pub fn ranks(&self, rank: usize) -> (usize, usize) {
        let peer = self.group.ranks(rank)[self.peer as usize];
        match self.end {
            End::Send => (rank, peer),
            End::Recv => (peer, rank),
        }
    }
}
