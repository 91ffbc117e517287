//! An entry with its memory, ready to be run again and again.

use super::flat::{Flat, On};
use super::store::check_elements;
use super::{ExecError, Profile, Program, Store};
use crate::device::{Memory, Recording};
use crate::memory::{Element, as_bytes, as_bytes_mut};
use crate::ranks::Rank;
use crate::ranks::on_device::Room;
use std::sync::Arc;
use weft_graph::{Buffer, BufferId, Entry, Role, Step};

#[derive(Debug)]
pub struct Session {
    program: Arc<Program>,
    store: Arc<Store>,
    /// Position of the entry in the graph.
    entry: usize,
    /// One value per dim of the entry.
    dims: Vec<i64>,
    /// The memory each buffer lies in; temps all in the arena.
    memory: Vec<Arc<dyn Memory>>,
    flat: Flat,
    /// `flat` is not of the dims and memory at hand.
    stale: bool,
    /// The steps of `flat`, where the device has recorded them.
    recording: Option<Box<dyn Recording>>,
    rank: Option<Arc<Rank>>,
    /// Memory for what ranks send each other.
    room: Room,
    profile: Option<Profile>,
}

impl Session {
    /// Allocates what the entry needs with every dim at its bound, which is where dims start.
    pub fn new(
        program: &Arc<Program>,
        entry: &str,
        store: &Arc<Store>,
    ) -> Result<Session, ExecError> {
        let entries = &program.graph.entries;
        let Some(position) = entries.iter().position(|known| known.name == entry) else {
            let known = entries.iter().map(|known| known.name.clone()).collect();
            return Err(ExecError::NoEntry { name: entry.into(), known });
        };
        Ok(Session {
            memory: allocate(program, &entries[position], store)?,
            program: Arc::clone(program),
            store: Arc::clone(store),
            entry: position,
            dims: entries[position].dims_max(),
            flat: Flat::default(),
            stale: true,
            recording: None,
            rank: None,
            room: Room::default(),
            profile: None,
        })
    }

    pub fn entry(&self) -> &Entry {
        &self.program.graph.entries[self.entry]
    }

    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The values of the entry's dims, in its order.
    pub fn dims(&self) -> &[i64] {
        &self.dims
    }

    pub fn set_dim(&mut self, name: &str, value: i64) -> Result<(), ExecError> {
        let entry = self.entry();
        let Some(id) = entry.find_dim(name) else {
            return Err(ExecError::NoDim { entry: entry.name.clone(), name: name.into() });
        };
        let max = entry.dims[id.0 as usize].max;
        if !(0..=max).contains(&value) {
            return Err(ExecError::DimRange { name: name.into(), value, max });
        }
        let dim = &mut self.dims[id.0 as usize];
        self.stale |= *dim != value;
        *dim = value;
        Ok(())
    }

    /// Puts a buffer into other memory, which must hold it at the bounds: an input that is another
    /// session's output. Two sessions that share memory this way must not run at the same time.
    pub fn bind(&mut self, name: &str, memory: Arc<dyn Memory>) -> Result<(), ExecError> {
        let id = self.find(name)?;
        let entry = self.entry();
        let expected = entry.buffer(id).size_bytes().eval(&entry.dims_max()) as u64;
        let found = memory.size_bytes() as u64;
        if matches!(entry.buffer(id).role, Role::Temp { .. }) || found < expected {
            return Err(ExecError::WrongSize { name: name.into(), found, expected });
        }
        let storage = entry.storage_of(id);
        let sharers: Vec<usize> = (0..entry.buffers.len())
            .filter(|&other| entry.storage_of(BufferId(other as u32)) == storage)
            .collect();
        for sharer in sharers {
            self.memory[sharer] = Arc::clone(&memory);
        }
        self.stale = true;
        Ok(())
    }

    /// The memory a buffer lies in, to bind it elsewhere.
    pub fn memory(&self, name: &str) -> Result<Arc<dyn Memory>, ExecError> {
        Ok(Arc::clone(&self.memory[self.find(name)?.0 as usize]))
    }

    /// Number of elements of a buffer at the dims that are set.
    pub fn len_of(&self, name: &str) -> Result<usize, ExecError> {
        Ok(self.len_at(self.entry().buffer(self.find(name)?)))
    }

    /// The sizes of a buffer at the dims that are set.
    pub fn shape_of(&self, name: &str) -> Result<Vec<usize>, ExecError> {
        let buffer = self.entry().buffer(self.find(name)?);
        Ok(buffer.dims.iter().map(|dim| dim.eval(&self.dims).max(0) as usize).collect())
    }

    /// Writes all elements of a buffer, as many as it has at the dims that are set.
    pub fn write_input<T: Element>(&mut self, name: &str, values: &[T]) -> Result<(), ExecError> {
        let (id, len) = (self.find_kept(name)?, self.len_of(name)?);
        check_elements::<T>(name, self.entry().buffer(id).dtype, len, values.len())?;
        let _busy = self.store.hold();
        self.program.device.write(&*self.memory[id.0 as usize], 0, as_bytes(values))?;
        Ok(())
    }

    /// Reads all elements of a buffer, as many as it has at the dims that are set.
    pub fn read_output<T: Element>(&self, name: &str) -> Result<Vec<T>, ExecError> {
        let buffer = self.entry().buffer(self.find_kept(name)?);
        let bits = self.len_at(buffer) * buffer.dtype.bits() as usize;
        let mut values = vec![T::default(); bits.div_ceil(8 * size_of::<T>())];
        self.read_into(name, &mut values)?;
        Ok(values)
    }

    /// As `read_output`, into memory that is there.
    pub fn read_into<T: Element>(&self, name: &str, values: &mut [T]) -> Result<(), ExecError> {
        let (id, len) = (self.find_kept(name)?, self.len_of(name)?);
        check_elements::<T>(name, self.entry().buffer(id).dtype, len, values.len())?;
        let _busy = self.store.hold();
        self.program.device.read(&*self.memory[id.0 as usize], 0, as_bytes_mut(values))?;
        Ok(())
    }

    /// The rank that runs are of, where steps are done by several together.
    pub fn join(&mut self, rank: &Arc<Rank>) {
        self.rank = Some(Arc::clone(rank));
    }

    /// Carries out the steps of the entry.
    pub fn run(&mut self) -> Result<(), ExecError> {
        if self.stale {
            self.flatten()?;
        }
        let _busy = self.store.hold();
        let kernels = &*self.program.kernels;
        let on = On { device: &*self.program.device, kernels, room: &self.room };
        // What is recorded is the same in every run.
        let alone = self.rank.is_none() && self.profile.is_none() && !self.flat.ends_early;
        if alone && self.recording.is_none() {
            self.flat.reserve(kernels)?;
        }
        if alone && self.recording.is_none() && kernels.start_recording()? {
            // SAFETY: nothing is done with the memory but to name it.
            let recorded = unsafe { self.flat.run(on, None, None) };
            let recording = kernels.end_recording();
            recorded?;
            self.recording = Some(recording?);
        }
        if let Some(recording) = self.recording.as_ref().filter(|_| alone) {
            // SAFETY: as below.
            return Ok(unsafe { recording.replay() }?);
        }
        // SAFETY: the memory is owned by the session, or by the store, which `_busy` keeps others
        // from; `bind` hands the same duty to its caller.
        unsafe { self.flat.run(on, self.rank.as_deref(), self.profile.as_mut()) }
    }

    /// Measures each step of the runs from here on.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::new(&self.program.graph, self.entry()));
    }

    /// What was measured, and an end to it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }

    fn flatten(&mut self) -> Result<(), ExecError> {
        let entry = &self.program.graph.entries[self.entry];
        let address = |(buffer, memory): (&Buffer, &Arc<dyn Memory>)| match buffer.role {
            Role::Temp { offset } => memory.address().wrapping_add(offset as usize),
            _ => memory.address(),
        };
        let addresses: Vec<*mut u8> = entry.buffers.iter().zip(&self.memory).map(address).collect();
        self.check_collectives(entry)?;
        self.recording = None;
        self.flat.rebuild(entry, &self.dims, &addresses)?;
        self.flat.ends_early = ends_early(&entry.steps);
        self.stale = false;
        Ok(())
    }

    /// Whether there are the ranks that do together what the entry asks for.
    fn check_collectives(&self, entry: &Entry) -> Result<(), ExecError> {
        let Some(label) = first_collective(&entry.steps) else { return Ok(()) };
        match self.rank {
            Some(_) => Ok(()),
            None => Err(ExecError::NoRanks { label }),
        }
    }

    fn len_at(&self, buffer: &Buffer) -> usize {
        buffer.len().eval(&self.dims).max(0) as usize
    }

    fn find(&self, name: &str) -> Result<BufferId, ExecError> {
        let entry = self.entry();
        entry.find_buffer(name).ok_or_else(|| ExecError::NoBuffer {
            owner: format!("entry {}", entry.name),
            name: name.into(),
        })
    }

    /// A buffer whose value is still there after a run: all but temps.
    fn find_kept(&self, name: &str) -> Result<BufferId, ExecError> {
        let id = self.find(name)?;
        match self.entry().buffer(id).role {
            Role::Temp { .. } => Err(ExecError::WrongType {
                name: name.into(),
                found: "a temp".into(),
                expected: "an input, output, weight or state".into(),
            }),
            _ => Ok(id),
        }
    }
}

/// Is there a loop whose end the host must see?
fn ends_early(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Loop(repeat) => repeat.left.is_some() || ends_early(&repeat.body),
        _ => false,
    })
}

fn first_collective(steps: &[Step]) -> Option<String> {
    steps.iter().find_map(|step| match step {
        Step::Launch(_) | Step::Copy(_) => None,
        Step::Loop(repeat) => first_collective(&repeat.body),
        Step::Collective(c) => Some(c.label.clone()),
        Step::Message(m) => Some(m.label.clone()),
    })
}

fn allocate(
    program: &Program,
    entry: &Entry,
    store: &Store,
) -> Result<Vec<Arc<dyn Memory>>, ExecError> {
    let device = &program.device;
    let dims = entry.dims_max();
    let arena = device.allocate(entry.arena_bytes)?;
    let mut memory: Vec<Arc<dyn Memory>> = Vec::with_capacity(entry.buffers.len());
    for buffer in &entry.buffers {
        let size_bytes = buffer.size_bytes().eval(&dims) as u64;
        memory.push(match buffer.role {
            Role::Temp { .. } => Arc::clone(&arena),
            Role::Constant(id) => Arc::clone(&program.constants[id.0 as usize]),
            Role::Weight | Role::State => {
                let sizes = buffer.dims.iter().map(|dim| dim.eval(&dims)).collect();
                store.keep(&buffer.name, buffer.dtype, sizes, buffer.weight.as_ref())?
            }
            // Put into the memory of its state below, which may come later in the list.
            Role::Output if buffer.alias.is_some() => Arc::clone(&arena),
            Role::Input | Role::Output => device.allocate(size_bytes)?,
        });
    }
    for (position, buffer) in entry.buffers.iter().enumerate() {
        if let Some(state) = buffer.alias {
            memory[position] = Arc::clone(&memory[state.0 as usize]);
        }
    }
    Ok(memory)
}
