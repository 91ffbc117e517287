//! Checkpoints are Hugging Face folders; a training run's add the optimizer, the run's state and
//! digests.
//!
//! | file | holds |
//! |---|---|
//! | `config.json` | the model's dims, in the published spelling |
//! | `model.safetensors` | weights under the published names; read also as shards with an index |
//! | `optimizer.safetensors` | moments and whatever else the step carries, same naming |
//! | `state.json` | step, tokens, seed, loader state |
//! | `digests.json` | blake3 of every other file, checked whenever it is there |
//!
//! A checkpoint appears under its name only when all of it is on disk: see [`writer`].

pub mod digests;
pub mod fp8;
pub mod reader;
pub mod run_folder;
pub mod shards;
pub mod tensor_file;
pub mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The element types of safetensors files.
pub use safetensors::Dtype;

pub const CONFIG: &str = "config.json";
pub const WEIGHTS: &str = "model.safetensors";
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
pub const OPTIMIZER: &str = "optimizer.safetensors";
pub const STATE: &str = "state.json";
pub const DIGESTS: &str = "digests.json";

/// What can be wrong with a checkpoint. Each message names the file, the tensor if there is one,
/// what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{} is there already: give another name, or remove it", folder.display())]
    Exists { folder: PathBuf },

    #[error("{} is not a whole safetensors file: {reason}", path.display())]
    Safetensors { path: PathBuf, reason: String },

    #[error("{} is not the JSON expected: {reason}", path.display())]
    Json { path: PathBuf, reason: String },

    #[error("{}: expected {WEIGHTS} or {WEIGHTS_INDEX}, found neither; give the folder of a \
             Hugging Face checkpoint", folder.display())]
    NoWeights { folder: PathBuf },

    #[error("{}: expected tensor `{tensor}`, found none of that name", path.display())]
    NoTensor { path: PathBuf, tensor: String },

    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", path.display())]
    Tensor { path: PathBuf, tensor: String, expected: String, found: String },

    #[error("the checkpoint {} is damaged: {file}: expected {expected}, found {found}; delete the \
             folder and resume from an older one, or copy it again", folder.display())]
    Damaged { folder: PathBuf, file: String, expected: String, found: String },

    #[error("{} has no {DIGESTS}, so it cannot be told whether it is whole; give a checkpoint that \
             training wrote", folder.display())]
    NoDigests { folder: PathBuf },
}

impl CheckpointError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { action, path: path.to_owned(), error }
    }

    fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |error| Self::Json { path: path.to_owned(), reason: error.to_string() }
    }
}

/// A tensor as a file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

impl TensorInfo {
    /// Fits in u64: a file that declares more is refused when opened.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}
