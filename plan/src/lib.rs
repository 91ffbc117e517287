//! `weft plan`: what a training step takes on a cluster that nobody has rented yet.
//!
//! What is simulated is what the compiler made: the kernels are the ops of the differentiated,
//! quantized and fused IR ([`unit`], [`kernel`]), the order is the pipeline's table
//! (`weft-schedule`), and a [`Cluster`] says how long a kernel of each kind takes. Two
//! [`streams`] of a GPU are woven by [`weave`], the ranks of a pipeline run by [`step`]; [`show`]
//! writes it down. [`compiled`] times the program of a rank as it stands, [`compiled_step`] the
//! step of such programs.
//! This crate does no IO.
//!
//! # What is assumed
//! - A dispatch whose rows the weight gradient needs again is saved, not repeated.
//! - What a weight gradient computes again runs with the input gradient, but for the encodings of
//!   dispatched rows.
//! - Experts are evenly loaded. Ranks of a data-parallel group do not differ.
//! - Weight gradients of experts are contracted where the experts are, as a block with
//!   `expert_gradients = at_experts` is compiled. (One without contracts them where the rows come
//!   from, for the bits of one rank: it sends three more values of the inner width back for each
//!   row, and keeps gradients of all experts until the end of the step.)
//! - A rank holds one sum of each gradient, as with `gradient_sums = in_order`, to which products
//!   add as they end (a compiled step adds behind them), and room for as many rows of an exchange
//!   as come on average, whatever `exchange_capacity` says.
//! - Rows that travel plain (`dispatched = bf16`) are encoded where they arrive. (A compiled step
//!   encodes each copy and sends codes: the same bits.)
//! - Further rounds of an exchange (`rounds`) take their time on average, with nothing under them.
//! - An exchange moves a token once to each node; the compiled step hands its transport each row.
//! - Gradients are summed, weights gathered and the optimizer run after the last micro-batch.

pub mod cluster;
pub mod compiled;
pub mod compiled_step;
pub mod kernel;
pub mod rounds;
pub mod search;
pub mod serve;
pub mod show;
pub mod step;
pub mod streams;
pub mod unit;
pub mod weave;

pub use cluster::{Cluster, WhatIf};
pub use step::{Layout, Memory, Plan, plan};
pub use unit::{Unit, units};

/// Why there is no plan, in one line for its reader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(pub String);
