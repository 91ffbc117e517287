//! `fence` and `membar`.

use crate::program::Scope;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Orders memory accesses of the generic proxy.
    Memory(Scope),
    /// Generic accesses before it are seen by asynchronous work after it.
    ProxyAsync,
    MbarrierInit,
    TensormapRelease,
    /// Of the 128 bytes at an address.
    TensormapAcquire,
}
