//! Bytes kept on disk, to be found again by a name made of what they were made from.
//!
//! A file begins with the digest of the rest, and is written whole or not at all: what is damaged
//! or was cut off is not found, and is made again. A cache that cannot be written costs time, not
//! results. A file's time is that of its last use: when there is more than the limit, what was not
//! used for longest goes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// What a cache may take, unless `$WEFT_CACHE_MIB` says otherwise: some hundred graphs of small
/// models.
const LIMIT_MIB: u64 = 1024;

const DIGEST_BYTES: usize = 32;

/// Names of files that are kept end so.
const KINDS: [&str; 3] = ["weft", "o", "cubin"];

/// `$WEFT_CACHE`, or `weft` in the user's cache folder. `None` where there is neither.
pub fn user_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("WEFT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("weft")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("weft")))
}

/// What the user's cache may take.
pub fn user_limit_bytes() -> u64 {
    let mib = std::env::var("WEFT_CACHE_MIB").ok().and_then(|v| v.trim().parse::<u64>().ok());
    mib.unwrap_or(LIMIT_MIB).saturating_mul(1 << 20)
}

/// What was kept as this file, if it is whole.
pub fn find(path: &Path) -> Option<Vec<u8>> {
    let mut file = std::fs::read(path).ok()?;
    let bytes = (file.len() >= DIGEST_BYTES).then(|| file.split_off(DIGEST_BYTES))?;
    let whole = blake3::hash(&bytes).as_bytes()[..] == file[..];
    use_now(path);
    whole.then_some(bytes)
}

/// Keeps bytes as this file, if that can be.
pub fn keep(path: &Path, bytes: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let file = [&blake3::hash(bytes).as_bytes()[..], bytes].concat();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!(".{}.{number}.part", std::process::id()));
    // Nothing waits for the disk: what a power cut leaves is told by its digest.
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&partial, file));
    if made.and_then(|()| std::fs::rename(&partial, path)).is_err() {
        let _ = std::fs::remove_file(&partial);
    }
}

/// Where the time cannot be set, the file goes earlier than it would.
pub fn use_now(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes what was not used for longest, in the folder and those in it, until the rest fits; never
/// `keep`. A file that someone has open stays readable to them.
pub fn trim(folder: &Path, limit_bytes: u64, keep: &Path) {
    let entries = |folder: &Path| folder.read_dir().into_iter().flatten().flatten();
    let inner = entries(folder).map(|entry| entry.path()).filter(|path| path.is_dir());
    let folders: Vec<PathBuf> = inner.chain([folder.to_owned()]).collect();
    let ours = |path: &Path| {
        path.extension().is_some_and(|e| KINDS.iter().any(|kind| e == std::ffi::OsStr::new(kind)))
    };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = folders
        .iter()
        .flat_map(|folder| entries(folder))
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
