//! What the driver keeps: memory, modules, what is being captured and what was.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ptx_sim::{Arg, Device, Launch, Module};

use crate::result;

/// The handles of the one context and the one stream.
pub const CONTEXT: usize = 0x1000;
pub const STREAM: usize = 0x2000;

/// Shared memory that a launch has without asking.
const SHARED_PLAIN_BYTES: u32 = 48 << 10;

/// What a stream does later, or again.
#[derive(Clone)]
pub enum Deed {
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Launch {
        function: usize,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        params: Vec<Vec<u8>>,
    },
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
    recorded: BTreeMap<usize, Vec<Deed>>,
    capture: Option<Vec<Deed>>,
    /// When each was last recorded: work is done when it is asked for.
    events: BTreeMap<usize, Option<Instant>>,
    n_handles: usize,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Makes a context the thread's.
pub fn enter(context: usize) -> i32 {
    if context != CONTEXT {
        return result::INVALID_CONTEXT;
    }
    CURRENT.set(context);
    result::SUCCESS
}

pub fn with(f: impl FnOnce(&mut State) -> i32) -> i32 {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    f(state.get_or_insert_default())
}

/// For calls that need a current context.
pub fn with_context(f: impl FnOnce(&mut State) -> i32) -> i32 {
    if CURRENT.get() != CONTEXT {
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

    /// What belongs to the stream.
    pub fn on(&mut self, stream: usize, f: impl FnOnce(&mut State) -> i32) -> i32 {
        if stream == STREAM { f(self) } else { result::INVALID_HANDLE }
    }

    /// What belongs to it and cannot be captured.
    pub fn at_once(&mut self, stream: usize, f: impl FnOnce(&mut State) -> i32) -> i32 {
        match self.capture {
            Some(_) => result::STREAM_CAPTURE_UNSUPPORTED,
            None => self.on(stream, f),
        }
    }

    pub fn new_event(&mut self) -> usize {
        let handle = self.handle();
        self.events.insert(handle, None);
        handle
    }

    pub fn record_event(&mut self, event: usize) -> i32 {
        match self.events.get_mut(&event) {
            Some(at) => *at = Some(Instant::now()),
            None => return result::INVALID_HANDLE,
        }
        result::SUCCESS
    }

    /// When it was recorded, if it is one and was.
    pub fn event(&self, event: usize) -> Option<Instant> {
        *self.events.get(&event)?
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
    pub fn deed(&mut self, deed: Deed) -> i32 {
        match &mut self.capture {
            Some(deeds) => {
                deeds.push(deed);
                result::SUCCESS
            }
            None => self.perform(&deed),
        }
    }

    fn perform(&mut self, deed: &Deed) -> i32 {
        match deed {
            Deed::Copy { to, from, bytes } => {
                let read = self.device.read(*from, *bytes).map(<[u8]>::to_vec);
                told(read.and_then(|bytes| self.device.write(*to, &bytes)))
            }
            Deed::Launch { function, grid, block, shared_bytes, params } => {
                let Some(f) = self.functions.get(function) else { return result::INVALID_HANDLE };
                if *shared_bytes > f.shared_max_bytes {
                    return result::INVALID_VALUE;
                }
                let launch = Launch {
                    grid: *grid,
                    block: *block,
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

    pub fn begin_capture(&mut self) -> i32 {
        if self.capture.is_some() {
            return result::STREAM_CAPTURE_UNSUPPORTED;
        }
        self.capture = Some(vec![]);
        result::SUCCESS
    }

    pub fn end_capture(&mut self) -> Result<usize, i32> {
        let deeds = self.capture.take().ok_or(result::INVALID_VALUE)?;
        let handle = self.handle();
        self.recorded.insert(handle, deeds);
        Ok(handle)
    }

    pub fn instantiate(&mut self, graph: usize) -> Result<usize, i32> {
        let deeds = self.recorded.get(&graph).cloned().ok_or(result::INVALID_HANDLE)?;
        let handle = self.handle();
        self.recorded.insert(handle, deeds);
        Ok(handle)
    }

    pub fn replay(&mut self, exec: usize) -> i32 {
        let Some(deeds) = self.recorded.get(&exec).cloned() else { return result::INVALID_HANDLE };
        let failed = deeds.iter().map(|d| self.perform(d)).find(|code| *code != result::SUCCESS);
        failed.unwrap_or(result::SUCCESS)
    }

    pub fn forget(&mut self, recorded: usize) -> i32 {
        match self.recorded.remove(&recorded) {
            Some(_) => result::SUCCESS,
            None => result::INVALID_HANDLE,
        }
    }
}
