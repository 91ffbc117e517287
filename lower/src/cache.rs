//! Compiled graphs on disk, found again by what they were compiled from.
//!
//! The key is a digest of the compiler, what it was asked for and the module's text after the
//! passes. An entry is a `.weft` file, written whole or not at all; one that cannot be read is
//! compiled again. Beside them lie the kernels of a CPU, an object each, for graphs that share
//! some: the ranks of a pipeline, or a model before and after an edit. How files are kept, and for
//! how long, stands in `weft_graph::kept`.

use std::path::PathBuf;

use weft_codegen::emit::Target;
use weft_codegen::object::Made;
use weft_graph::{Graph, kept};
use weft_ir::module::Module;
use weft_ir::text;

use crate::compile::{COMPILER, CompileError};

/// A folder of graphs and what it may take.
#[derive(Clone, Debug)]
pub struct Cache {
    pub folder: PathBuf,
    pub limit_bytes: u64,
}

impl Cache {
    /// The user's. `None` where there is no folder for it.
    pub fn of_user() -> Option<Cache> {
        Some(Cache { folder: kept::user_folder()?, limit_bytes: kept::user_limit_bytes() })
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
        kept::use_now(&path);
        return Ok(Cached { graph, hit: true });
    }
    let graph = compile()?;
    // Where it cannot be written, the next compile is slower; nothing is lost.
    if std::fs::create_dir_all(&cache.folder).is_ok() && graph.save(&path).is_ok() {
        kept::trim(&cache.folder, cache.limit_bytes, &path);
    }
    Ok(Cached { graph, hit: false })
}

impl Made for Cache {
    fn find(&self, target: &Target, kernel: &str) -> Option<Vec<u8>> {
        kept::find(&self.kernel(target, kernel))
    }

    fn keep(&self, target: &Target, kernel: &str, object: &[u8]) {
        kept::keep(&self.kernel(target, kernel), object);
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
