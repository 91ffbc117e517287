//! Compiled graphs on disk, found again by what they were compiled from.
//!
//! The key is a digest of the compiler, what it was asked for and the module's text after the
//! passes. An entry is a `.weft` file, written whole or not at all; one that cannot be read is
//! compiled again. Beside them lie the kernels of a CPU, an object each, for graphs that share
//! some: the ranks of a pipeline, or a model before and after an edit.
//! A file's time is that of its last use: when the cache grows beyond its limit, those unused
//! longest go.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use weft_codegen::emit::Target;
use weft_codegen::object::Made;
use weft_graph::Graph;
use weft_ir::module::Module;
use weft_ir::text;

use crate::compile::{COMPILER, CompileError};

/// A folder of graphs and what it may take.
#[derive(Clone, Debug)]
pub struct Cache {
    pub folder: PathBuf,
    pub limit_bytes: u64,
}

/// What the cache may take, unless `$WEFT_CACHE_MIB` says otherwise: some hundred graphs of small
/// models.
const LIMIT_MIB: u64 = 1024;

impl Cache {
    /// In `$WEFT_CACHE`, or `weft` in the user's cache folder. `None` where there is neither.
    pub fn of_user() -> Option<Cache> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = set("WEFT_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("weft")))
            .or_else(|| set("HOME").map(|d| d.join(".cache").join("weft")))?;
        let mib = std::env::var("WEFT_CACHE_MIB").ok().and_then(|v| v.trim().parse::<u64>().ok());
        let limit_bytes = mib.unwrap_or(LIMIT_MIB).saturating_mul(1 << 20);
        Some(Cache { folder, limit_bytes })
    }

    fn kernel(&self, target: &Target, kernel: &str) -> PathBuf {
        let mut digest = blake3::Hasher::new();
        let described = format!("{target:?}");
        for part in [COMPILER.as_bytes(), &build_id(), described.as_bytes(), kernel.as_bytes()] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        self.folder.join(KERNELS).join(format!("{}.o", digest.finalize().to_hex()))
    }
}

/// The folder of kernels in a cache.
const KERNELS: &str = "kernels";

/// A graph, and whether it was in the cache.
pub struct Cached {
    pub graph: Graph,
    pub hit: bool,
}

/// The graph of this key in `cache`, or what `compile` makes. A cache that cannot be written costs
/// time, not the result.
pub fn find_or(
    cache: Option<&Cache>,
    key: &str,
    compile: impl FnOnce() -> Result<Graph, CompileError>,
) -> Result<Cached, CompileError> {
    let Some(cache) = cache else { return Ok(Cached { graph: compile()?, hit: false }) };
    let path = cache.folder.join(format!("{key}.weft"));
    if let Ok(graph) = Graph::open(&path) {
        // Where the time cannot be set, the graph goes earlier than it would.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok(Cached { graph, hit: true });
    }
    let graph = compile()?;
    // Where it cannot be written, the next compile is slower; nothing is lost.
    if std::fs::create_dir_all(&cache.folder).is_ok() && graph.save(&path).is_ok() {
        trim(&cache.folder, cache.limit_bytes, &path);
    }
    Ok(Cached { graph, hit: false })
}

/// Bytes of the digest that a kernel's file begins with.
const DIGEST_BYTES: usize = 32;

impl Made for Cache {
    fn find(&self, target: &Target, kernel: &str) -> Option<Vec<u8>> {
        let path = self.kernel(target, kernel);
        let mut file = std::fs::read(&path).ok()?;
        let object = (file.len() >= DIGEST_BYTES).then(|| file.split_off(DIGEST_BYTES))?;
        let whole = blake3::hash(&object).as_bytes()[..] == file[..];
        // As for a graph: where the time cannot be set, it goes earlier than it would.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        whole.then_some(object)
    }

    fn keep(&self, target: &Target, kernel: &str, object: &[u8]) {
        let path = self.kernel(target, kernel);
        let Some(folder) = path.parent() else { return };
        let file = [&blake3::hash(object).as_bytes()[..], object].concat();
        // Half a file is told by its digest, and one that cannot be written costs a compile.
        if std::fs::create_dir_all(folder).is_ok() {
            let _ = std::fs::write(&path, file);
        }
    }
}

/// Removes what was not used for longest until the rest fits; never `keep`. A file that someone has
/// open stays readable to them.
fn trim(folder: &Path, limit_bytes: u64, keep: &Path) {
    let folders = [folder.to_owned(), folder.join(KERNELS)];
    let folders = folders.into_iter().filter_map(|f| f.read_dir().ok());
    let ours = |path: &Path| path.extension().is_some_and(|e| e == "weft" || e == "o");
    let mut files: Vec<(SystemTime, u64, PathBuf)> = folders
        .flatten()
        .flatten()
        .filter(|file| ours(&file.path()))
        .filter_map(|file| {
            let data = file.metadata().ok()?;
            Some((data.modified().ok()?, data.len(), file.path()))
        })
        .collect();
    files.sort();
    let mut size_bytes: u64 = files.iter().map(|g| g.1).sum();
    for (_, bytes, path) in files {
        if size_bytes <= limit_bytes {
            break;
        }
        // Another process may have been quicker.
        if path != keep && std::fs::remove_file(&path).is_ok() {
            size_bytes -= bytes;
        }
    }
}

/// The name of a graph in the cache: `asked` is what beside the module decides its bytes.
pub fn key(module: &Module, entries: &[&str], asked: &[&str]) -> String {
    let mut digest = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(COMPILER.as_bytes());
    part(&build_id());
    part(&weft_graph::FORMAT_VERSION.to_le_bytes());
    for list in [entries, asked] {
        part(&(list.len() as u64).to_le_bytes());
        list.iter().for_each(|text| part(text.as_bytes()));
    }
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
