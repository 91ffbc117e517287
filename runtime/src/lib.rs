//! Runs executable graphs.

pub mod checkpoint;
pub mod data;
pub mod device;
pub mod elf;
pub mod exec;
pub mod generate;
pub mod memory;
pub mod pool;
pub mod quantize;
pub mod ranks;
pub mod train;
pub mod weights;
