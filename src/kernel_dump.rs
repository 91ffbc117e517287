//! The part of a dump below the IR: `graph.txt`, the steps of every entry, and `kernels/NAME.ll`
//! and `.s`, or `.ptx`.

use std::path::Path;

use anyhow::{Context, Result};
use weft_backend_cpu::Cpu;
use weft_graph::{CpuVariant, Graph};
use weft_ir::module::Module;
use weft_lower::listing::listings;

use crate::graphs::Target;

/// Write the steps of `graph` and the kernels that `entries` of `module` launch into the dump
/// folder.
pub fn write(
    dir: &Path,
    module: &Module,
    entries: &[&str],
    graph: &Graph,
    target: Target,
) -> Result<()> {
    let folder = dir.join("kernels");
    let put = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    put(&dir.join(format!("graph-{}.txt", entries.join("-"))), &graph.to_string())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (kernels, assembly) = match target {
        Target::Cuda(machine) => {
            let target = weft_backend_cuda::target::hopper();
            (listings(&machine, &target, module, entries, threads)?, "ptx")
        }
        Target::Here | Target::Any => {
            let best = CpuVariant::best_here().unwrap_or(CpuVariant::Avx2);
            let target = weft_backend_cpu::target::target(best);
            (listings(&Cpu, &target, module, entries, threads)?, "s")
        }
    };
    for kernel in kernels {
        put(&folder.join(format!("{}.ll", kernel.name)), &kernel.llvm_ir)?;
        put(&folder.join(format!("{}.{assembly}", kernel.name)), &kernel.assembly)?;
    }
    Ok(())
}
