//! What a user reads of the kernels: for each its LLVM IR and its assembly, for one target.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use weft_codegen::emit::Target;
use weft_codegen::object::{self, KernelSource, ObjectError};
use weft_ir::module::Module;

use crate::Backend;
use crate::compile::{self, CompileError};

/// One kernel as text.
#[derive(Clone, Debug)]
pub struct Listing {
    pub name: String,
    /// After LLVM's passes.
    pub llvm_ir: String,
    pub assembly: String,
}

/// Every kernel that `entries` launch, in the order of the graph.
pub fn listings(
    backend: &dyn Backend,
    target: &Target,
    module: &Module,
    entries: &[&str],
    threads: usize,
) -> Result<Vec<Listing>, CompileError> {
    let (_, kernels) = compile::entries(backend, module, entries, &mut |_| {})?;
    let sources: Vec<KernelSource> = kernels.sources().cloned().collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(at) else { break };
                    let made = listing(source, target);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((at, made));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(at, _)| *at);
    let all: Result<Vec<Listing>, ObjectError> = done.into_iter().map(|(_, made)| made).collect();
    Ok(all?)
}

fn listing(source: &KernelSource, target: &Target) -> Result<Listing, ObjectError> {
    let one = std::slice::from_ref(source);
    Ok(Listing {
        name: source.name.clone(),
        llvm_ir: object::llvm_ir(target, one)?,
        assembly: object::assembly(target, one)?,
    })
}
