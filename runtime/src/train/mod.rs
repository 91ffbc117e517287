//! What a training run is made of besides the graph: random numbers, schedules, metrics, pictures.

pub mod metrics;
pub mod philox;
pub mod plot;
pub mod schedule;
