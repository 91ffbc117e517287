//! Writes a checkpoint whose folder is there whole or not at all, whenever the machine stops.
//!
//! Everything goes into `NAME.tmp-<pid>`; each file and the folder are synced; one rename gives the
//! folder its name; the parent is synced. A reader passes over names that contain `tmp-`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::tensor_file::{NewTensor, write_tensors};
use super::{CONFIG, CheckpointError, DIGESTS, OPTIMIZER, STATE, WEIGHTS, digests};

/// What marks a folder that is not a checkpoint yet, or no more; the writer's process id follows.
pub(super) const TEMPORARY: &str = "tmp-";

/// A checkpoint to be written.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    pub config: &'a serde_json::Value,
    /// Under their published names.
    pub weights: Vec<NewTensor<'a>>,
    pub optimizer: Vec<NewTensor<'a>>,
    /// Step, tokens, seed, loader state: all that resuming needs besides tensors.
    pub state: &'a serde_json::Value,
    /// Further files, by plain name (a tokenizer).
    pub files: Vec<(&'a str, &'a [u8])>,
}

/// Writes `contents` as `folder`; when this returns, it is durable. A folder of that name is
/// replaced by two renames, between which neither has the name: other checkpoints of the run stay.
pub fn write(folder: &Path, contents: &Contents<'_>) -> Result<(), CheckpointError> {
    let parent = parent_of(folder);
    fs::create_dir_all(parent).map_err(CheckpointError::io("create", parent))?;
    let temporary = temporary_name(folder, "");
    remove_if_there(&temporary)?;
    fs::create_dir(&temporary).map_err(CheckpointError::io("create", &temporary))?;
    fill(&temporary, contents)?;
    if folder.exists() {
        // A rename does not replace a folder that holds files, so the old one steps aside first.
        let old = temporary_name(folder, "old-");
        remove_if_there(&old)?;
        rename(folder, &old)?;
        rename(&temporary, folder)?;
        sync(parent)?;
        return remove_if_there(&old);
    }
    rename(&temporary, folder)?;
    sync(parent)
}

/// Deletes a checkpoint so that no moment shows half of it under its name.
pub fn remove(folder: &Path) -> Result<(), CheckpointError> {
    let temporary = temporary_name(folder, "");
    remove_if_there(&temporary)?;
    rename(folder, &temporary)?;
    remove_if_there(&temporary)
}

fn fill(folder: &Path, contents: &Contents<'_>) -> Result<(), CheckpointError> {
    let mut names = vec![CONFIG, WEIGHTS, OPTIMIZER, STATE];
    write_json(&folder.join(CONFIG), contents.config)?;
    write_tensors(&folder.join(WEIGHTS), &contents.weights)?;
    write_tensors(&folder.join(OPTIMIZER), &contents.optimizer)?;
    write_json(&folder.join(STATE), contents.state)?;
    for (name, bytes) in &contents.files {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(CheckpointError::io("write", &path))?;
        names.push(name);
    }
    digests::write(folder, &names)?;
    names.push(DIGESTS);
    for name in names {
        sync(&folder.join(name))?;
    }
    sync(folder)
}

pub(super) fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), CheckpointError> {
    let text = serde_json::to_string_pretty(value).map_err(CheckpointError::json(path))?;
    fs::write(path, text + "\n").map_err(CheckpointError::io("write", path))
}

/// Flushes a file's contents, or a folder's entries, to the disk.
pub(super) fn sync(path: &Path) -> Result<(), CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io("open", path))?;
    file.sync_all().map_err(CheckpointError::io("sync", path))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    fs::rename(from, to).map_err(CheckpointError::io("rename", from))
}

pub(super) fn remove_if_there(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CheckpointError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn parent_of(folder: &Path) -> &Path {
    folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn temporary_name(folder: &Path, prefix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(format!(".{prefix}{TEMPORARY}{}", std::process::id()));
    PathBuf::from(name)
}
