//! Plans as plain data: pipeline schedules, that is which rank does what to which micro-batch, in
//! which order; beside them which stage has which layers ([`assign`]), and which GPU which experts
//! ([`experts`]).
//!
//! A [`Table`] has a row of cells for each rank. [`generate`] makes the published ones, [`csv`]
//! reads and writes them, [`Program`] adds the messages between ranks, [`check()`] proves that any
//! table is a training step and [`Timeline`] runs one on a clock. This crate does no IO and knows
//! nothing of models: what an action costs is asked of the caller.
//!
//! # What a table must be
//!
//! - **complete**: every stage of every direction has, for every micro-batch, one forward and
//!   either one full backward or one input gradient and one weight gradient, and nothing else;
//! - **in order**: on a rank, backward after forward and weight gradient after input gradient;
//! - **free of deadlock**, with these channels: a message goes straight from the rank that computed
//!   it to the rank that needs it, right after the cell that made it and right before the cell that
//!   reads it; messages are told apart by what they carry, so the order in which they arrive does
//!   not matter; a receive waits for its message; a send waits only while the channel between the
//!   two ranks already holds as many messages as its capacity (without end, unless given).
//!
//! Idle cells say where the authors of a schedule expect a wait. They cost nothing here: a cell
//! begins when its rank is free and its messages are there.

pub mod assign;
pub mod check;
pub mod csv;
pub mod experts;
pub mod generate;
pub mod picture;
pub mod program;
pub mod table;
pub mod timeline;

pub use check::{Report, check};
pub use generate::{Name, Size, generate};
pub use program::{Message, Program};
pub use table::{Action, Cell, Op, Table};
pub use timeline::{Costs, Timeline, UnitCosts};

/// What is wrong with a table, a file or a size, in one line for its reader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(pub String);
