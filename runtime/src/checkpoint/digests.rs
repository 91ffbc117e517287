//! `digests.json`: size and blake3 of every file of a checkpoint, so that a torn or altered one is
//! named instead of read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CONFIG, CheckpointError, DIGESTS, STATE};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Digests {
    files: BTreeMap<String, FileDigest>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDigest {
    n_bytes: u64,
    blake3: String,
}

/// Writes the digests of the named files of `folder`.
pub fn write(folder: &Path, names: &[&str]) -> Result<(), CheckpointError> {
    let mut files = BTreeMap::new();
    for &name in names {
        files.insert(name.to_owned(), digest(&folder.join(name))?);
    }
    let path = folder.join(DIGESTS);
    let text =
        serde_json::to_string_pretty(&Digests { files }).map_err(CheckpointError::json(&path))?;
    fs::write(&path, text + "\n").map_err(CheckpointError::io("write", &path))
}

/// Whether `folder` has digests at all. One fetched from elsewhere has none.
pub fn present(folder: &Path) -> bool {
    folder.join(DIGESTS).exists()
}

/// Reads every file the digests name and refuses the folder at the first that differs. Files that
/// were put beside them are not looked at.
pub fn verify(folder: &Path) -> Result<(), CheckpointError> {
    if !present(folder) {
        return Err(CheckpointError::NoDigests { folder: folder.to_owned() });
    }
    let damaged = |file: &str, expected: String, found: String| CheckpointError::Damaged {
        folder: folder.to_owned(),
        file: file.to_owned(),
        expected,
        found,
    };
    let path = folder.join(DIGESTS);
    let bytes = fs::read(&path).map_err(CheckpointError::io("read", &path))?;
    let digests: Digests = serde_json::from_slice(&bytes)
        .map_err(|e| damaged(DIGESTS, "sizes and digests".to_owned(), e.to_string()))?;
    for required in [CONFIG, STATE] {
        if !digests.files.contains_key(required) {
            return Err(damaged(DIGESTS, format!("an entry for {required}"), "none".to_owned()));
        }
    }
    for (name, expected) in &digests.files {
        // Names that training writes are plain; another could point outside the folder.
        if name.contains(['/', '\\']) {
            return Err(damaged(DIGESTS, "plain file names".to_owned(), format!("`{name}`")));
        }
        let path = folder.join(name);
        let Ok(metadata) = fs::metadata(&path) else {
            return Err(damaged(name, "the file".to_owned(), "none".to_owned()));
        };
        if metadata.len() != expected.n_bytes {
            let expected = format!("{} bytes", expected.n_bytes);
            return Err(damaged(name, expected, format!("{} bytes", metadata.len())));
        }
        let found = digest(&path)?;
        if found != *expected {
            let of = |d: &FileDigest| format!("blake3 {}", d.blake3.get(..16).unwrap_or(&d.blake3));
            return Err(damaged(name, of(expected), of(&found)));
        }
    }
    Ok(())
}

fn digest(path: &Path) -> Result<FileDigest, CheckpointError> {
    let mut file = File::open(path).map_err(CheckpointError::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let n_bytes =
        std::io::copy(&mut file, &mut hasher).map_err(CheckpointError::io("read", path))?;
    Ok(FileDigest { n_bytes, blake3: hasher.finalize().to_hex().to_string() })
}
