//! The checkpoints of a run: `RUN/step-000100/`, the newest of which a resumed run continues.

use std::fs;
use std::path::{Path, PathBuf};

use super::writer::{self, Contents, TEMPORARY};
use super::{CheckpointError, digests};

const PREFIX: &str = "step-";

/// A whole checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    pub step: u64,
    pub folder: PathBuf,
}

/// Where the checkpoint of `step` stands.
pub fn step_folder(run: &Path, step: u64) -> PathBuf {
    run.join(format!("{PREFIX}{step:06}"))
}

/// The newest checkpoint, its digests checked; none when the run has not written one. A damaged
/// newest is refused rather than passed over: what it lost is for a person to judge.
pub fn find_latest(run: &Path) -> Result<Option<Latest>, CheckpointError> {
    let Some((step, folder)) = checkpoints(run)?.pop() else { return Ok(None) };
    digests::verify(&folder)?;
    Ok(Some(Latest { step, folder }))
}

/// Whether the run has written a checkpoint, damaged or not.
pub fn has_checkpoint(run: &Path) -> Result<bool, CheckpointError> {
    Ok(!checkpoints(run)?.is_empty())
}

/// Writes the checkpoint of `step`, then deletes all but the last `n_keep` and what dead writers
/// left. Nothing is deleted before the new checkpoint is durable. `n_keep` 0 keeps all.
pub fn save(
    run: &Path,
    step: u64,
    contents: &Contents<'_>,
    n_keep: usize,
) -> Result<PathBuf, CheckpointError> {
    let folder = step_folder(run, step);
    writer::write(&folder, contents)?;
    if n_keep > 0 {
        let mut older = checkpoints(run)?;
        // A run resumed from an older checkpoint may write below the newest: keep what it wrote.
        older.retain(|(s, _)| *s < step);
        let n_delete = (older.len() + 1).saturating_sub(n_keep);
        for (_, old) in older.iter().take(n_delete) {
            writer::remove(old)?;
        }
    }
    remove_leftovers(run)?;
    Ok(folder)
}

/// Complete checkpoints by name, in order of step.
fn checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found = Vec::new();
    for name in names(run)? {
        if let Some(digits) = name.strip_prefix(PREFIX)
            && digits.bytes().all(|b| b.is_ascii_digit())
            && let Ok(step) = digits.parse()
        {
            found.push((step, run.join(name)));
        }
    }
    found.sort();
    Ok(found)
}

/// Deletes temporary folders whose writer no longer runs.
fn remove_leftovers(run: &Path) -> Result<(), CheckpointError> {
    for name in names(run)? {
        let Some((stem, pid)) = name.rsplit_once(TEMPORARY) else { continue };
        let is_alive = Path::new("/proc").join(pid).exists();
        if stem.starts_with(PREFIX) && pid.parse::<u32>().is_ok() && !is_alive {
            let folder = run.join(&name);
            fs::remove_dir_all(&folder).map_err(CheckpointError::io("remove", &folder))?;
        }
    }
    Ok(())
}

/// Names in the run's folder; none when there is no folder yet.
fn names(run: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(run) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CheckpointError::io("read", run))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CheckpointError::io("read", run))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
