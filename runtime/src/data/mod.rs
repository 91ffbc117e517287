//! From files of text to batches of token ids.
//!
//! ```text
//! files -> documents -> shuffled -> token ids (fim) -> packed rows -> batches
//! source   source       shuffle     tokenizer, fim     pack           loader
//! ```
//!
//! Every stage is a function of the seed and of a position, never of what was drawn before, so a
//! restored run needs three numbers to continue with exactly the batches it would have seen.

pub mod fim;
pub mod loader;
pub mod pack;
mod shuffle;
pub mod source;
pub mod tokenizer;

use std::io;
use std::path::PathBuf;

/// What can go wrong between a path and a batch. Each message names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read {}: {error}; give files or folders of text that exist", path.display())]
    Path { path: PathBuf, error: io::Error },

    #[error("{} changed while it was read: expected {expected} bytes or more, found {found}; \
             keep training data as it is during a run", path.display())]
    Changed { path: PathBuf, expected: u64, found: u64 },

    #[error("no usable text in {paths}: {found}; give files or folders of UTF-8 text")]
    NoText { paths: String, found: String },

    #[error(
        "no held-out text in {paths}: none of {n_documents} documents falls into the held-out \
             fraction {fraction}; raise the fraction or add text"
    )]
    NoHeldOut { paths: String, n_documents: u64, fraction: f64 },

    #[error("cannot load the tokenizer {}: {reason}; give a Hugging Face tokenizer.json, or \
             leave it out to train on bytes", path.display())]
    Tokenizer { path: PathBuf, reason: String },

    #[error(
        "{tokenizer} has no token for {missing}, which fill-in-the-middle needs; use a \
             tokenizer that has it or set the rate to 0"
    )]
    NoFimTokens { tokenizer: String, missing: &'static str },

    #[error("{tokenizer} failed on a document of {n_bytes} bytes: {reason}")]
    Encode { tokenizer: String, n_bytes: usize, reason: String },

    #[error("{name} must be {expected}, found {found}")]
    Option { name: &'static str, expected: &'static str, found: String },

    #[error(
        "cannot continue the data where the checkpoint stopped: {what} was {saved} and is now \
             {now}; restore it, or start a new run"
    )]
    Resume { what: &'static str, saved: String, now: String },
}
