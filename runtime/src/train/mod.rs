//! Training: the loop, and what a run is made of besides the graph.

pub mod command;
pub mod difference;
mod error;
pub mod metrics;
pub mod philox;
pub mod pictures;
pub mod plot;
mod progress;
pub mod run;
pub mod schedule;
pub mod settings;

pub use error::TrainError;
