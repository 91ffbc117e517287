//! Machine code of every kernel for every variant.

use weft_codegen::object::{KernelSource, Made, ObjectError, compile_all};
use weft_graph::{CpuVariant, Kernel, KernelVariant, ObjectId};
use weft_lower::Kernels;

use crate::target::target;

/// The kernels of a graph and the objects they are functions of, some of them made `before`.
pub fn compile(
    kernels: &Kernels,
    variants: &[CpuVariant],
    threads: usize,
    before: Option<&dyn Made>,
) -> Result<(Vec<Kernel>, Vec<Vec<u8>>), ObjectError> {
    let sources: Vec<KernelSource> = kernels.sources().cloned().collect();
    let kernel = |(source, scratch_bytes): (&KernelSource, u64)| Kernel {
        name: source.name.clone(),
        scratch_bytes,
        variants: vec![],
        ptx: None,
    };
    let mut made: Vec<Kernel> = sources.iter().zip(kernels.scratch_bytes()).map(kernel).collect();
    let mut objects = vec![];
    for cpu in variants {
        for object in compile_all(&target(*cpu), &sources, threads, before)? {
            let id = ObjectId(objects.len() as u32);
            for at in object.kernels.iter().filter_map(|name| kernels.find(name)) {
                made[at.0 as usize].variants.push(KernelVariant { cpu: *cpu, object: id });
            }
            objects.push(object.bytes);
        }
    }
    Ok((made, objects))
}
