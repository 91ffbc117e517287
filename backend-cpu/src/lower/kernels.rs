//! The kernels of a graph: one of each name, whatever launches it.

use indexmap::IndexMap;
use weft_codegen::object::{KernelSource, ObjectError, compile_all};
use weft_graph::{CpuVariant, Kernel, KernelId, KernelVariant, ObjectId};

use crate::target::target;

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

    pub fn sources(&self) -> impl Iterator<Item = &KernelSource> {
        self.of.values().map(|(source, _)| source)
    }

    /// Machine code of every kernel for every variant.
    pub fn compile(
        &self,
        variants: &[CpuVariant],
        threads: usize,
    ) -> Result<(Vec<Kernel>, Vec<Vec<u8>>), ObjectError> {
        let sources: Vec<KernelSource> = self.sources().cloned().collect();
        let mut kernels: Vec<Kernel> = self
            .of
            .values()
            .map(|(source, scratch_bytes)| Kernel {
                name: source.name.clone(),
                scratch_bytes: *scratch_bytes,
                variants: vec![],
            })
            .collect();
        let mut objects = vec![];
        for cpu in variants {
            for object in compile_all(&target(*cpu), &sources, threads)? {
                let id = ObjectId(objects.len() as u32);
                for name in &object.kernels {
                    if let Some(at) = self.of.get_index_of(name) {
                        kernels[at].variants.push(KernelVariant { cpu: *cpu, object: id });
                    }
                }
                objects.push(object.bytes);
            }
        }
        Ok((kernels, objects))
    }
}
