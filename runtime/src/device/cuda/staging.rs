//! Copies between the host and a GPU, through page-locked memory.
//!
//! A copy from or to memory that may be paged out makes the driver wait; through page-locked slots
//! it runs while the host fills or empties another slot. A write is done for its caller as soon as
//! the last byte lies in a slot. It is still in the order of its stream; a slot is filled again
//! when the event behind its copy is there.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdeviceptr, CUstream};

use super::context::{Context, check};
use super::events::Event;
use crate::device::DeviceError;

/// Some milliseconds of a link's time, far more than what a copy costs by itself.
const SLOT_BYTES: usize = 4 << 20;
const N_SLOTS: usize = 2;

/// The slots of a GPU, made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Staging {
    slots: Mutex<Vec<Slot>>,
}

#[derive(Debug)]
struct Slot {
    context: Arc<Context>,
    bytes: *mut u8,
    /// Behind the last copy from or to it.
    event: Event,
}

// SAFETY: page-locked memory may be used by any thread; the mutex keeps it to one.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<Context>) -> Result<Slot, DeviceError> {
        let event = Event::of_host(context)?;
        let mut bytes: *mut c_void = std::ptr::null_mut();
        // SAFETY: the context is this thread's; writes one address.
        check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut bytes, SLOT_BYTES) })?;
        Ok(Slot { context: Arc::clone(context), bytes: bytes.cast(), event })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What cannot be waited for cannot be freed safely either.
        if self.context.enter().is_ok() && self.event.wait().is_ok() {
            // SAFETY: allocated in `new`; the last copy is done.
            let _ = unsafe { sys::cuMemFreeHost(self.bytes.cast()) };
        }
    }
}

impl Staging {
    fn with<T>(
        &self,
        context: &Arc<Context>,
        run: impl FnOnce(&[Slot]) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        context.enter()?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        while slots.len() < N_SLOTS {
            slots.push(Slot::new(context)?);
        }
        run(&slots)
    }

    /// Writes in the order of a stream, without waiting for it.
    pub fn write(
        &self,
        context: &Arc<Context>,
        stream: CUstream,
        to: CUdeviceptr,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        self.with(context, |slots| {
            for (i, part) in bytes.chunks(SLOT_BYTES).enumerate() {
                let slot = &slots[i % N_SLOTS];
                slot.event.wait()?;
                // SAFETY: a slot holds that much, and no copy uses it.
                unsafe { slot.bytes.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
                let (to, from) = (to + (i * SLOT_BYTES) as u64, slot.bytes.cast::<c_void>());
                // SAFETY: both places hold the part; the slot is kept until the event is there.
                check("cuMemcpyHtoDAsync", unsafe {
                    sys::cuMemcpyHtoDAsync_v2(to, from, part.len(), stream)
                })?;
                slot.event.record(stream)?;
            }
            Ok(())
        })
    }

    /// Reads in the order of a stream, and waits for that.
    pub fn read(
        &self,
        context: &Arc<Context>,
        stream: CUstream,
        from: CUdeviceptr,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.with(context, |slots| {
            let mut parts: Vec<&mut [u8]> = bytes.chunks_mut(SLOT_BYTES).collect();
            // A slot is emptied while the next one is filled.
            for i in 0..parts.len() + 1 {
                if let Some(part) = parts.get(i) {
                    let slot = &slots[i % N_SLOTS];
                    slot.event.wait()?;
                    let (from, to) = (from + (i * SLOT_BYTES) as u64, slot.bytes.cast::<c_void>());
                    // SAFETY: both places hold the part, and no other copy uses the slot.
                    check("cuMemcpyDtoHAsync", unsafe {
                        sys::cuMemcpyDtoHAsync_v2(to, from, part.len(), stream)
                    })?;
                    slot.event.record(stream)?;
                }
                let Some(part) = i.checked_sub(1).and_then(|i| parts.get_mut(i)) else { continue };
                let slot = &slots[(i - 1) % N_SLOTS];
                slot.event.wait()?;
                // SAFETY: the copy into the slot is done, and it holds the part.
                unsafe { part.as_mut_ptr().copy_from_nonoverlapping(slot.bytes, part.len()) };
            }
            Ok(())
        })
    }
}
