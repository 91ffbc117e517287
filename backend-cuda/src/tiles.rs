//! What templates are made of: tiles in shared memory, the ring of stages between producer and
//! consumers, and the fragments in which warps hold sums.

pub mod fragment;
pub mod ring;
pub mod roles;
pub mod shared;
