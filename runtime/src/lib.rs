//! Runs executable graphs.

pub mod data;
pub mod train;
