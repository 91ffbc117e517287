//! Compiled graphs on disk, found again by what they were compiled from.
//!
//! The key is a digest of the compiler, the options and the module's text after the passes. An
//! entry is a `.weft` file, written whole or not at all; one that cannot be read is compiled again.

use std::path::{Path, PathBuf};

use weft_graph::Graph;
use weft_ir::module::Module;
use weft_ir::text;

use super::{COMPILER, CompileError, Options, compile};

/// Where graphs are kept: `$WEFT_CACHE`, or `weft` in the user's cache folder. `None` where there
/// is neither.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("WEFT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("weft")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("weft")))
}

/// A graph, and whether it was in the cache.
pub struct Cached {
    pub graph: Graph,
    pub hit: bool,
}

/// As [`compile`], but a graph compiled before from the same module and options is read from the
/// cache. A cache that cannot be written costs time, not the result.
pub fn compile_cached(
    module: &Module,
    entries: &[&str],
    options: &Options,
) -> Result<Cached, CompileError> {
    match folder() {
        Some(folder) => compile_cached_in(&folder, module, entries, options),
        None => Ok(Cached { graph: compile(module, entries, options)?, hit: false }),
    }
}

/// As [`compile_cached`], in a folder of the caller's choice.
pub fn compile_cached_in(
    folder: &Path,
    module: &Module,
    entries: &[&str],
    options: &Options,
) -> Result<Cached, CompileError> {
    let path = folder.join(format!("{}.weft", key(module, entries, options)));
    if let Ok(graph) = Graph::open(&path) {
        return Ok(Cached { graph, hit: true });
    }
    let graph = compile(module, entries, options)?;
    if std::fs::create_dir_all(folder).is_ok() {
        // The next compile is slower; nothing is lost.
        let _ = graph.save(&path);
    }
    Ok(Cached { graph, hit: false })
}

/// The name of a graph in the cache.
pub fn key(module: &Module, entries: &[&str], options: &Options) -> String {
    let mut digest = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(COMPILER.as_bytes());
    part(&build_id());
    part(&weft_graph::FORMAT_VERSION.to_le_bytes());
    for entry in entries {
        part(entry.as_bytes());
    }
    for variant in &options.variants {
        part(variant.name().as_bytes());
    }
    part(options.source.as_bytes());
    part(options.command.as_bytes());
    part(text::print(module).as_bytes());
    digest.finalize().to_hex().to_string()
}

/// Size and time of the running program: another build may compile otherwise.
fn build_id() -> Vec<u8> {
    let described = std::env::current_exe().and_then(std::fs::metadata).map(|data| {
        let time = data.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        format!("{} {}", data.len(), time.map_or(0, |t| t.as_nanos()))
    });
    described.unwrap_or_default().into_bytes()
}
