//! Compiled graphs on disk, found again by what they were compiled from.
//!
//! The key is a digest of the compiler, the options and the module's text after the passes. An
//! entry is a `.weft` file, written whole or not at all; one that cannot be read is compiled again.
//! A file's time is that of its last use: when the cache grows beyond its limit, those unused
//! longest go.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use weft_graph::Graph;
use weft_ir::module::Module;
use weft_ir::text;

use super::{COMPILER, CompileError, Options, Stage, compile_observed};

/// Where graphs are kept: `$WEFT_CACHE`, or `weft` in the user's cache folder. `None` where there
/// is neither.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("WEFT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("weft")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("weft")))
}

/// What the cache may take, unless `$WEFT_CACHE_MIB` says otherwise: some hundred graphs of small
/// models.
const LIMIT_MIB: u64 = 1024;

fn limit_bytes() -> u64 {
    let set = std::env::var("WEFT_CACHE_MIB").ok().and_then(|v| v.trim().parse::<u64>().ok());
    set.unwrap_or(LIMIT_MIB).saturating_mul(1 << 20)
}

/// A graph, and whether it was in the cache.
pub struct Cached {
    pub graph: Graph,
    pub hit: bool,
}

/// As [`compile`](super::compile), but a graph compiled before from the same module and options is
/// read from the cache. A cache that cannot be written costs time, not the result.
pub fn compile_cached(
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: &mut dyn FnMut(Stage),
) -> Result<Cached, CompileError> {
    match folder() {
        Some(folder) => {
            compile_cached_in(&folder, limit_bytes(), module, entries, options, observe)
        }
        None => {
            Ok(Cached { graph: compile_observed(module, entries, options, observe)?, hit: false })
        }
    }
}

/// As [`compile_cached`], in a folder and under a limit of the caller's choice.
pub fn compile_cached_in(
    folder: &Path,
    limit_bytes: u64,
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: &mut dyn FnMut(Stage),
) -> Result<Cached, CompileError> {
    let path = folder.join(format!("{}.weft", key(module, entries, options)));
    if let Ok(graph) = Graph::open(&path) {
        // Where the time cannot be set, the graph goes earlier than it would.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(Cached { graph, hit: true });
    }
    let graph = compile_observed(module, entries, options, observe)?;
    // Where it cannot be written, the next compile is slower; nothing is lost.
    if std::fs::create_dir_all(folder).is_ok() && graph.save(&path).is_ok() {
        trim(folder, limit_bytes, &path);
    }
    Ok(Cached { graph, hit: false })
}

/// Removes graphs that were not used for longest until the rest fits; never `keep`. A graph that
/// someone has open stays readable to them.
fn trim(folder: &Path, limit_bytes: u64, keep: &Path) {
    let Ok(files) = std::fs::read_dir(folder) else { return };
    let graph = |path: &Path| path.extension().is_some_and(|e| e == "weft");
    let mut graphs: Vec<(SystemTime, u64, PathBuf)> = files
        .flatten()
        .filter(|file| graph(&file.path()))
        .filter_map(|file| {
            let data = file.metadata().ok()?;
            Some((data.modified().ok()?, data.len(), file.path()))
        })
        .collect();
    graphs.sort();
    let mut size_bytes: u64 = graphs.iter().map(|g| g.1).sum();
    for (_, bytes, path) in graphs {
        if size_bytes <= limit_bytes {
            break;
        }
        // Another process may have been quicker.
        if path != keep && std::fs::remove_file(&path).is_ok() {
            size_bytes -= bytes;
        }
    }
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
