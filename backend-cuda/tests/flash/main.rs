//! Attention of the Hopper templates on the interpreter, with its checks on, against sums in f64
//! written apart.

mod backward;
mod decode;
mod forward;
mod problem;
