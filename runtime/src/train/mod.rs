//! What a training run is made of besides the graph: random numbers, schedules, metrics, pictures.

pub mod philox;
