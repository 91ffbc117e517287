//! What each rank did last, in a file of the run's folder: `ranks/rank-0`, one line that is
//! overwritten in place. It outlives the process, however that ends, and is removed by a rank that
//! finishes; so a file that is there tells the next command where a run broke off.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// In the run's folder.
pub const FOLDER: &str = "ranks";
/// A line is padded to this, so that a shorter one covers a longer one.
const LINE_BYTES: usize = 240;

#[derive(Debug)]
pub struct LastAction {
    path: PathBuf,
    file: File,
}

impl LastAction {
    pub fn create(run: &Path, rank: usize) -> std::io::Result<LastAction> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("rank-{rank}"));
        Ok(LastAction { file: File::create(&path)?, path })
    }

    /// Without a peer the rank has only begun.
    pub(super) fn write(&self, step: u64, op: &str, what: &str, stage: usize, peer: Option<usize>) {
        let peer = peer.map_or("begins".into(), |p| format!("waits for rank {p}"));
        let mut line = format!("step {step}: {op} {what} of stage {stage}, {peer}").into_bytes();
        line.resize(LINE_BYTES - 1, b' ');
        line.push(b'\n');
        // A run does not end because its diary cannot be written.
        let _ = self.file.write_at(&line, 0);
    }

    /// Removes the file, and the folder with the last one.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// What the ranks of a run that broke off did last, one line a rank; nothing for one that finished.
pub fn left_behind(run: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(run.join(FOLDER)) else { return vec![] };
    let mut all: Vec<(usize, String)> = vec![];
    for entry in entries.flatten() {
        let name = entry.file_name();
        let rank = name.to_str().and_then(|n| n.strip_prefix("rank-")?.parse().ok());
        if let (Some(rank), Ok(line)) = (rank, fs::read_to_string(entry.path())) {
            let line = line.trim();
            let did = if line.is_empty() { "had done nothing yet" } else { line };
            all.push((rank, format!("rank {rank}, {did}")));
        }
    }
    all.sort();
    all.into_iter().map(|(_, line)| line).collect()
}

/// Tells whoever uses the run's folder next.
pub fn warn(run: &Path) {
    let lines = left_behind(run);
    if !lines.is_empty() {
        eprintln!("the last run in {} broke off; what its ranks did last:", run.display());
        lines.iter().for_each(|line| eprintln!("  {line}"));
    }
}
