//! What the driver keeps: memory, modules, what is being captured and what was.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ptx_sim::{Arg, Device, Launch, Module};

use crate::result;

/// The handle of the first GPU's context; others' follow.
pub const CONTEXT: usize = 0x1000;
const GPUS_MAX: usize = 8;

/// Shared memory that a launch has without asking.
const SHARED_PLAIN_BYTES: u32 = 48 << 10;

/// What a stream does later, or again.
#[derive(Clone)]
pub enum Deed {
    Record {
        event: usize,
    },
    Wait {
        event: usize,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Launch {
        function: usize,
        grid: [u32; 3],
        block: [u32; 3],
        cluster: [u32; 3],
        shared_bytes: u32,
        params: Vec<Vec<u8>>,
    },
}

/// What an event is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// To time what is between two.
    Time,
    /// For one stream to wait for another.
    Order,
    /// For the host to wait for a stream.
    Host,
}

/// What is being captured, from one stream and those that wait for its events.
struct Capture {
    origin: usize,
    /// Deeds with their streams.
    deeds: Vec<(usize, Deed)>,
    /// By stream, how many of the deeds of each stream come before what it does next; of the
    /// streams that belong to it.
    known: BTreeMap<usize, BTreeMap<usize, usize>>,
    /// The same, of events recorded in it.
    events: BTreeMap<usize, BTreeMap<usize, usize>>,
}

struct Function {
    module: usize,
    name: String,
    shared_max_bytes: u32,
}

#[derive(Default)]
pub struct State {
    pub device: Device,
    /// By handle, as all that follows.
    modules: BTreeMap<usize, Module>,
    functions: BTreeMap<usize, Function>,
    recorded: BTreeMap<usize, Vec<(usize, Deed)>>,
    capture: Option<Capture>,
    /// The interpreter's numbers of streams.
    streams: BTreeMap<usize, u32>,
    n_streams: u32,
    /// What each is for, and when it was last recorded: work is done when it is asked for.
    events: BTreeMap<usize, (EventKind, Option<Instant>)>,
    /// The log of each, and what it has assembled.
    links: BTreeMap<usize, ((usize, usize), Vec<u8>)>,
    /// Page-locked memory of the host, by address.
    host: BTreeMap<usize, Box<[u8]>>,
    n_handles: usize,
}

/// Of each GPU, by its context.
static STATES: Mutex<BTreeMap<usize, State>> = Mutex::new(BTreeMap::new());

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Makes a context the thread's.
pub fn enter(context: usize) -> i32 {
    if !(CONTEXT..CONTEXT + GPUS_MAX).contains(&context) {
        return result::INVALID_CONTEXT;
    }
    CURRENT.set(context);
    result::SUCCESS
}

pub fn with(f: impl FnOnce(&mut State) -> i32) -> i32 {
    let mut states = STATES.lock().unwrap_or_else(PoisonError::into_inner);
    f(states.entry(CURRENT.get()).or_default())
}

/// For calls that need a current context.
pub fn with_context(f: impl FnOnce(&mut State) -> i32) -> i32 {
    if CURRENT.get() == 0 {
        return result::INVALID_CONTEXT;
    }
    with(f)
}

/// The interpreter's errors go to stderr.
pub fn told<T>(done: ptx_sim::Result<T>) -> i32 {
    match done {
        Ok(_) => result::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            result::ILLEGAL_ADDRESS
        }
    }
}

impl State {
    fn handle(&mut self) -> usize {
        self.n_handles += 1;
        0x10_0000 + 16 * self.n_handles
    }

    pub fn new_stream(&mut self) -> usize {
        let handle = self.handle();
        self.streams.insert(handle, self.n_streams);
        self.n_streams += 1;
        handle
    }

    pub fn drop_stream(&mut self, stream: usize) -> i32 {
        match self.streams.remove(&stream) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }

    /// What belongs to a stream and cannot be captured.
    pub fn at_once(&mut self, stream: usize, f: impl FnOnce(&mut State, u32) -> i32) -> i32 {
        match (&self.capture, self.streams.get(&stream)) {
            (Some(_), _) => result::STREAM_CAPTURE_UNSUPPORTED,
            (None, Some(number)) => f(self, *number),
            (None, None) => result::INVALID_HANDLE,
        }
    }

    pub fn new_event(&mut self, kind: EventKind) -> usize {
        let handle = self.handle();
        self.events.insert(handle, (kind, None));
        handle
    }

    /// One that was never recorded is there at once.
    pub fn wait_on_host(&self, event: usize) -> i32 {
        match self.events.get(&event) {
            Some((EventKind::Time | EventKind::Host, _)) => result::SUCCESS,
            Some((EventKind::Order, _)) => result::INVALID_VALUE,
            None => result::INVALID_HANDLE,
        }
    }

    pub fn new_link(&mut self, log: (usize, usize)) -> usize {
        let handle = self.handle();
        self.links.insert(handle, (log, vec![]));
        handle
    }

    pub fn log(&self, link: usize) -> Option<(usize, usize)> {
        self.links.get(&link).map(|(log, _)| *log)
    }

    pub fn assembled(&mut self, link: usize, code: Vec<u8>) -> i32 {
        match self.links.get_mut(&link) {
            Some((_, of)) => *of = code,
            None => return result::INVALID_HANDLE,
        }
        result::SUCCESS
    }

    /// Where the code of a link lies, and its size.
    pub fn code(&self, link: usize) -> Option<(usize, usize)> {
        let (_, code) = self.links.get(&link)?;
        (!code.is_empty()).then(|| (code.as_ptr() as usize, code.len()))
    }

    pub fn drop_link(&mut self, link: usize) -> i32 {
        match self.links.remove(&link) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }

    pub fn alloc_host(&mut self, n_bytes: usize) -> usize {
        let bytes = vec![0; n_bytes].into_boxed_slice();
        let at = bytes.as_ptr() as usize;
        self.host.insert(at, bytes);
        at
    }

    pub fn free_host(&mut self, at: usize) -> i32 {
        match self.host.remove(&at) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_VALUE,
        }
    }

    /// Whether so many bytes of the host are page-locked.
    pub fn is_locked(&self, at: usize, n_bytes: usize) -> bool {
        let below = self.host.range(..=at).next_back();
        below.is_some_and(|(start, bytes)| at + n_bytes <= start + bytes.len())
    }

    pub fn record_event(&mut self, event: usize, stream: usize) -> i32 {
        let Some((kind, at)) = self.events.get_mut(&event) else {
            return result::INVALID_HANDLE;
        };
        if *kind != EventKind::Order {
            *at = Some(Instant::now());
            return self.at_once(stream, |_, _| result::SUCCESS);
        }
        if let Some(capture) = &mut self.capture
            && let Some(known) = capture.known.get(&stream)
        {
            capture.events.insert(event, known.clone());
        }
        self.deed(stream, Deed::Record { event })
    }

    pub fn wait(&mut self, stream: usize, event: usize) -> i32 {
        if !self.events.get(&event).is_some_and(|(kind, _)| *kind == EventKind::Order) {
            return result::INVALID_HANDLE;
        }
        if let Some(capture) = &mut self.capture {
            // One recorded outside says nothing in here.
            let Some(of) = capture.events.get(&event) else {
                return result::STREAM_CAPTURE_ISOLATION;
            };
            let known = capture.known.entry(stream).or_default();
            for (stream, n) in of {
                let own = known.entry(*stream).or_default();
                *own = (*own).max(*n);
            }
        }
        self.deed(stream, Deed::Wait { event })
    }

    /// When it was recorded, if it is one and was.
    pub fn event(&self, event: usize) -> Option<Instant> {
        self.events.get(&event)?.1
    }

    pub fn drop_event(&mut self, event: usize) -> i32 {
        match self.events.remove(&event) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }

    pub fn load(&mut self, text: &str) -> ptx_sim::Result<usize> {
        let module = Module::load(text)?;
        let handle = self.handle();
        self.modules.insert(handle, module);
        Ok(handle)
    }

    pub fn unload(&mut self, module: usize) -> i32 {
        self.functions.retain(|_, f| f.module != module);
        match self.modules.remove(&module) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }

    pub fn function(&mut self, module: usize, name: &str) -> Result<usize, i32> {
        let found = self.modules.get(&module).ok_or(result::INVALID_HANDLE)?;
        if !found.kernels().any(|k| k == name) {
            return Err(result::NOT_FOUND);
        }
        let handle = self.handle();
        let function = Function { module, name: name.into(), shared_max_bytes: SHARED_PLAIN_BYTES };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    pub fn allow_shared(&mut self, function: usize, bytes: u32) -> i32 {
        match self.functions.get_mut(&function) {
            Some(f) => {
                f.shared_max_bytes = bytes;
                result::SUCCESS
            }
            None => result::INVALID_HANDLE,
        }
    }

    /// Bytes of each parameter of an entry.
    pub fn param_bytes(&self, function: usize) -> Result<Vec<u64>, i32> {
        let f = self.functions.get(&function).ok_or(result::INVALID_HANDLE)?;
        let module = self.modules.get(&f.module).ok_or(result::INVALID_HANDLE)?;
        let params = module.params(&f.name).map_err(|_| result::NOT_FOUND)?;
        Ok(params.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// Does it, or keeps it for later.
    pub fn deed(&mut self, stream: usize, deed: Deed) -> i32 {
        let Some(number) = self.streams.get(&stream).copied() else {
            return result::INVALID_HANDLE;
        };
        let Some(capture) = &mut self.capture else { return self.perform(number, &deed) };
        let Some(known) = capture.known.get_mut(&stream) else {
            return result::STREAM_CAPTURE_UNSUPPORTED;
        };
        if !matches!(deed, Deed::Record { .. } | Deed::Wait { .. }) {
            *known.entry(stream).or_default() += 1;
        }
        capture.deeds.push((stream, deed));
        result::SUCCESS
    }

    fn perform(&mut self, stream: u32, deed: &Deed) -> i32 {
        match deed {
            Deed::Record { event } => {
                self.device.record(*event as u64, stream);
                result::SUCCESS
            }
            Deed::Wait { event } => told(self.device.wait(*event as u64, stream)),
            Deed::Copy { to, from, bytes } => {
                let read = self.device.read_on(stream, *from, *bytes);
                told(read.and_then(|bytes| self.device.write_on(stream, *to, &bytes)))
            }
            Deed::Launch { function, grid, block, cluster, shared_bytes, params } => {
                let Some(f) = self.functions.get(function) else { return result::INVALID_HANDLE };
                if *shared_bytes > f.shared_max_bytes {
                    return result::INVALID_VALUE;
                }
                let launch = Launch {
                    grid: *grid,
                    block: *block,
                    cluster: *cluster,
                    stream,
                    dynamic_shared_bytes: *shared_bytes,
                    ..Launch::new(1, 1)
                };
                let args: Vec<Arg> = params.iter().cloned().map(Arg::Bytes).collect();
                let module = &self.modules[&f.module];
                match self.device.launch(module, &f.name, &launch, &args) {
                    Ok(_) => result::SUCCESS,
                    Err(e) => {
                        eprintln!("{}: {e}", f.name);
                        result::LAUNCH_FAILED
                    }
                }
            }
        }
    }

    pub fn begin_capture(&mut self, stream: usize) -> i32 {
        self.at_once(stream, |s, _| {
            let known = BTreeMap::from([(stream, BTreeMap::new())]);
            let (deeds, events) = (vec![], BTreeMap::new());
            s.capture = Some(Capture { origin: stream, deeds, known, events });
            result::SUCCESS
        })
    }

    /// All streams of a capture must have come back to the one it began with.
    pub fn end_capture(&mut self, stream: usize) -> Result<usize, i32> {
        let capture = self.capture.take().ok_or(result::INVALID_VALUE)?;
        let back = capture.known.get(&stream).filter(|_| stream == capture.origin);
        let back = back.ok_or(result::INVALID_VALUE)?;
        let joined = capture.known.iter().all(|(stream, known)| {
            back.get(stream).copied().unwrap_or(0) >= known.get(stream).copied().unwrap_or(0)
        });
        if !joined {
            return Err(result::STREAM_CAPTURE_UNJOINED);
        }
        let handle = self.handle();
        self.recorded.insert(handle, capture.deeds);
        Ok(handle)
    }

    pub fn instantiate(&mut self, graph: usize) -> Result<usize, i32> {
        let deeds = self.recorded.get(&graph).cloned().ok_or(result::INVALID_HANDLE)?;
        let handle = self.handle();
        self.recorded.insert(handle, deeds);
        Ok(handle)
    }

    /// What was captured from the first stream is done on `stream`.
    pub fn replay(&mut self, exec: usize, stream: u32) -> i32 {
        let Some(deeds) = self.recorded.get(&exec).cloned() else { return result::INVALID_HANDLE };
        let number = |s: &State, on: &usize| match deeds.first() {
            Some((origin, _)) if origin == on => stream,
            _ => s.streams.get(on).copied().unwrap_or(stream),
        };
        let mut codes = deeds.iter().map(|(on, deed)| {
            let on = number(self, on);
            self.perform(on, deed)
        });
        codes.find(|code| *code != result::SUCCESS).unwrap_or(result::SUCCESS)
    }

    pub fn forget(&mut self, recorded: usize) -> i32 {
        match self.recorded.remove(&recorded) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }
}
