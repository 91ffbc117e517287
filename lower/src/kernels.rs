//! The kernels of a graph: one of each name, whatever launches it.

use indexmap::IndexMap;
use weft_codegen::object::KernelSource;
use weft_graph::KernelId;

/// Equal names mean equal code, so a kernel is kept once.
#[derive(Default)]
pub struct Kernels {
    of: IndexMap<String, (KernelSource, u64)>,
}

impl Kernels {
    /// The kernel's id; it gets the most scratch anyone asks for under its name.
    pub fn add(&mut self, source: KernelSource, scratch_bytes: u64) -> KernelId {
        let entry = self.of.entry(source.name.clone());
        let id = KernelId(entry.index() as u32);
        let kept = entry.or_insert_with(|| (source, 0));
        kept.1 = kept.1.max(scratch_bytes);
        id
    }

    pub fn len(&self) -> usize {
        self.of.len()
    }

    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub fn sources(&self) -> impl Iterator<Item = &KernelSource> {
        self.of.values().map(|(source, _)| source)
    }

    /// Bytes of scratch by the kernels' ids.
    pub fn scratch_bytes(&self) -> impl Iterator<Item = u64> {
        self.of.values().map(|(_, scratch_bytes)| *scratch_bytes)
    }

    pub fn find(&self, name: &str) -> Option<KernelId> {
        self.of.get_index_of(name).map(|at| KernelId(at as u32))
    }
}
