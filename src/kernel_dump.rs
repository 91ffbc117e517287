//! The part of a dump below the IR: `graph.txt`, the steps of every entry, and `kernels/NAME.ll`
//! and `.s`.

use std::path::Path;

use anyhow::{Context, Result};
use weft_backend_cpu::compile::listing;
use weft_graph::{CpuVariant, Graph};
use weft_ir::module::Module;

/// Write the steps of `graph` and the kernels that `entries` of `module` launch into the dump
/// folder.
pub fn write(dir: &Path, module: &Module, entries: &[&str], graph: &Graph) -> Result<()> {
    let folder = dir.join("kernels");
    let put = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    put(&dir.join(format!("graph-{}.txt", entries.join("-"))), &graph.to_string())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = CpuVariant::best_here().unwrap_or(CpuVariant::Avx2);
    for kernel in listing::listings(module, entries, cpu, threads)? {
        put(&folder.join(format!("{}.ll", kernel.name)), &kernel.llvm_ir)?;
        put(&folder.join(format!("{}.s", kernel.name)), &kernel.assembly)?;
    }
    Ok(())
}
