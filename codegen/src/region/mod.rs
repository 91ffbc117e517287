//! Regions: pointwise, movement, row and index ops as one kernel, for any target.
//!
//! ```text
//! IR function ──lower──▶ Graph ──trace──▶ Nest ──emit──▶ LLVM, through `Cg`
//! ```
//!
//! [`graph`] holds what is computed, composites written out; [`trace`](trace::trace) follows the
//! elements of some roots back to loads, which turns movement into index polynomials; [`emit`]
//! writes the loops. How the loops are cut into blocks is a [`emit::Schedule`], a backend's choice.
//!
//! Numbers: every op's result is rounded to its element type as if it were alone, so fusing changes
//! no value. The folds of a row keep one partial a lane and add the lanes in a fixed tree: neither
//! threads nor the number of rows matter.

pub mod columns;
pub mod emit;
pub mod graph;
mod groups;
pub mod index;
mod lower;
mod merge;
pub(crate) mod pack12;
pub mod scalar;
pub mod trace;
mod warps;
pub mod whole;

pub use lower::{lower, supports};

/// Why something cannot be a region.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct Unsupported {
    pub op: &'static str,
    pub reason: String,
}

impl Unsupported {
    pub fn new(op: &'static str, reason: impl Into<String>) -> Unsupported {
        Unsupported { op, reason: reason.into() }
    }
}
