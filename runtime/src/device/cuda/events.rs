//! Events: what orders two streams, and what times one.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent, CUevent_flags_enum, CUstream};

use super::context::{Context, check};
use crate::device::{Clock, DeviceError};

/// Whoever waits leaves the core to others.
const SLEEPS: CUevent_flags_enum = CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC;

/// An event that orders streams.
#[derive(Debug)]
pub(super) struct Event(Handle);

impl Event {
    pub fn new(context: &Arc<Context>) -> Result<Event, DeviceError> {
        // What keeps no time is cheaper to wait for.
        Handle::new(context, CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32).map(Event)
    }

    /// One that this thread waits for, and no stream.
    pub fn of_host(context: &Arc<Context>) -> Result<Event, DeviceError> {
        let flags = [CUevent_flags_enum::CU_EVENT_DISABLE_TIMING, SLEEPS].map(|f| f as u32);
        Handle::new(context, flags[0] | flags[1]).map(Event)
    }

    pub fn record(&self, stream: CUstream) -> Result<(), DeviceError> {
        self.0.record(stream)
    }

    /// Waits on this thread for what was recorded last.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.0.wait()
    }

    /// Lets a stream go on when what was recorded last is there.
    pub fn hold_up(&self, stream: CUstream) -> Result<(), DeviceError> {
        self.0.context.enter()?;
        // SAFETY: event and stream live as long as the context.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, self.0.event, 0) })
    }
}

/// Two events of the first stream.
pub(super) struct Events {
    start: Handle,
    stop: Handle,
}

impl Events {
    pub fn new(context: &Arc<Context>) -> Result<Events, DeviceError> {
        Ok(Events { start: Handle::new(context, 0)?, stop: Handle::new(context, 0)? })
    }
}

impl Clock for Events {
    fn start(&mut self) -> Result<(), DeviceError> {
        self.start.record(self.start.context.main())
    }

    fn stop(&mut self) -> Result<Duration, DeviceError> {
        self.stop.record(self.stop.context.main())?;
        self.stop.wait()?;
        let mut milliseconds = 0f32;
        // SAFETY: both were recorded; writes one number.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut milliseconds, self.start.event, self.stop.event)
        })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

#[derive(Debug)]
struct Handle {
    context: Arc<Context>,
    event: CUevent,
}

// SAFETY: the driver's handles may be used by any thread that has entered the context.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn new(context: &Arc<Context>, flags: u32) -> Result<Handle, DeviceError> {
        context.enter()?;
        let mut made = Handle { context: Arc::clone(context), event: std::ptr::null_mut() };
        // SAFETY: the context is this thread's; writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut made.event, flags) })?;
        Ok(made)
    }

    fn record(&self, stream: CUstream) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: event and stream live as long as the context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, stream) })
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.event.is_null() && self.context.enter().is_ok() {
            // SAFETY: made in `new`, used by nothing after.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}
