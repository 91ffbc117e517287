//! Weights and states: what lasts from run to run, shared between entries and graphs by name.

use super::ExecError;
use crate::device::{Device, Memory};
use crate::memory::{Element, as_bytes, as_bytes_mut};
use indexmap::IndexMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_graph::{DType, WeightInfo};

#[derive(Debug)]
pub struct Store {
    device: Arc<dyn Device>,
    kept: Mutex<IndexMap<String, Kept>>,
    /// Held by whoever reads or writes what is kept: runs of sessions, and the methods here.
    busy: Mutex<()>,
    /// Whose store it is.
    rank: usize,
}

/// A weight or state; its shape is the one at the bounds of the entries' dims.
#[derive(Debug, Clone)]
pub struct Kept {
    pub dtype: DType,
    pub dims: Vec<i64>,
    pub weight: Option<WeightInfo>,
    pub memory: Arc<dyn Memory>,
}

impl Kept {
    pub fn len(&self) -> usize {
        self.dims.iter().product::<i64>() as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn size_bytes(&self) -> usize {
        (self.len() * self.dtype.bits() as usize).div_ceil(8)
    }
}

impl Store {
    pub fn new(device: Arc<dyn Device>) -> Arc<Store> {
        Store::at(device, 0)
    }

    /// The store of a rank, which keeps its parts of what is divided along a mesh axis.
    pub fn at(device: Arc<dyn Device>, rank: usize) -> Arc<Store> {
        Arc::new(Store { device, kept: Mutex::default(), busy: Mutex::default(), rank })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What is kept under a name.
    pub fn get(&self, name: &str) -> Result<Kept, ExecError> {
        self.lock()
            .get(name)
            .cloned()
            .ok_or_else(|| ExecError::NoBuffer { owner: "the store".into(), name: name.into() })
    }

    /// Everything that is kept, in the order it was first asked for.
    pub fn list(&self) -> Vec<(String, Kept)> {
        self.lock().iter().map(|(name, kept)| (name.clone(), kept.clone())).collect()
    }

    /// Writes all elements.
    pub fn write<T: Element>(&self, name: &str, values: &[T]) -> Result<(), ExecError> {
        let kept = self.typed::<T>(name, values.len())?;
        let _busy = self.hold();
        self.device.write(&*kept.memory, 0, as_bytes(values))?;
        Ok(())
    }

    /// Reads all elements.
    pub fn read<T: Element>(&self, name: &str) -> Result<Vec<T>, ExecError> {
        let len = self.get(name)?.len();
        let kept = self.typed::<T>(name, len)?;
        let mut values = vec![T::default(); len];
        let _busy = self.hold();
        self.device.read(&*kept.memory, 0, as_bytes_mut(&mut values))?;
        Ok(values)
    }

    /// Writes bytes as they lie in memory, from an offset on.
    pub fn write_bytes(&self, name: &str, offset: usize, bytes: &[u8]) -> Result<(), ExecError> {
        let kept = self.spanned(name, offset, bytes.len())?;
        let _busy = self.hold();
        self.device.write(&*kept.memory, offset, bytes)?;
        Ok(())
    }

    /// Reads bytes as they lie in memory, from an offset on.
    pub fn read_bytes(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ExecError> {
        let kept = self.spanned(name, offset, out.len())?;
        let _busy = self.hold();
        self.device.read(&*kept.memory, offset, out)?;
        Ok(())
    }

    /// Keeps what is there under the name, or zeroed memory.
    pub(super) fn keep(
        &self,
        name: &str,
        dtype: DType,
        dims: Vec<i64>,
        weight: Option<&WeightInfo>,
    ) -> Result<Arc<dyn Memory>, ExecError> {
        let mut all = self.lock();
        if let Some(kept) = all.get_mut(name) {
            if (kept.dtype, &kept.dims) != (dtype, &dims) {
                return Err(ExecError::WrongType {
                    name: name.into(),
                    found: format!("{}{:?}", kept.dtype, kept.dims),
                    expected: format!("{dtype}{dims:?}"),
                });
            }
            if kept.weight.is_none() {
                kept.weight = weight.cloned();
            }
            return Ok(Arc::clone(&kept.memory));
        }
        let count: i64 = dims.iter().product();
        let size_bytes = (count as u64 * u64::from(dtype.bits())).div_ceil(8);
        let memory = self.device.allocate(size_bytes)?;
        let kept = Kept { dtype, dims, weight: weight.cloned(), memory: Arc::clone(&memory) };
        all.insert(name.into(), kept);
        Ok(memory)
    }

    /// Keeps everyone else from what is kept, until dropped.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn typed<T: Element>(&self, name: &str, len: usize) -> Result<Kept, ExecError> {
        let kept = self.get(name)?;
        check_elements::<T>(name, kept.dtype, kept.len(), len)?;
        Ok(kept)
    }

    fn spanned(&self, name: &str, offset: usize, size_bytes: usize) -> Result<Kept, ExecError> {
        let kept = self.get(name)?;
        let end = offset.saturating_add(size_bytes);
        if end > kept.size_bytes() {
            let (found, expected) = (end as u64, kept.size_bytes() as u64);
            return Err(ExecError::WrongSize { name: name.into(), found, expected });
        }
        Ok(kept)
    }

    fn lock(&self) -> MutexGuard<'_, IndexMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `found` values of `T` are all `expected` elements of a buffer.
pub(super) fn check_elements<T: Element>(
    name: &str,
    dtype: DType,
    expected: usize,
    found: usize,
) -> Result<(), ExecError> {
    if !T::DTYPES.contains(&dtype) {
        return Err(ExecError::WrongType {
            name: name.into(),
            found: dtype.name().into(),
            expected: std::any::type_name::<T>().into(),
        });
    }
    // Elements of 12 bits are counted in the bytes they pack into.
    let expected = (expected * dtype.bits() as usize).div_ceil(8 * size_of::<T>());
    if found != expected {
        return Err(ExecError::WrongLength { name: name.into(), found, expected });
    }
    Ok(())
}
