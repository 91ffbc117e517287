//! What can go wrong in a run besides what its parts say themselves.

use std::path::PathBuf;

use super::metrics::MetricsError;
use super::plot::PlotError;
use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::exec::ExecError;
use crate::ranks::start::{self, StartError};
use crate::weights::WeightsError;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Plot(#[from] PlotError),
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    #[error("entry {entry} was not compiled for training; compile it with --for train")]
    NotForTraining { entry: String },
    #[error(
        "entry {entry} holds training settings that this version does not read: {reason}; \
             compile it again"
    )]
    Settings { entry: String, reason: String },
    #[error("the train block has no `steps`; give --steps N")]
    NoSteps,
    #[error(
        "the graph was compiled for batches of one size, and the settings let the batch go from \
             {from} to {to} sequences; compile it again"
    )]
    BatchChanges { from: f64, to: f64 },
    #[error(
        "the graph was compiled for batches of {compiled} sequences, and the settings say \
             {wanted}; compile it again"
    )]
    Batch { compiled: usize, wanted: f64 },
    #[error(
        "the graph is for {compiled} ranks ({mesh}), and {}",
        start::other(*compiled, *given)
    )]
    Ranks { compiled: usize, mesh: String, given: usize },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the ranks' programs do not fit together: {0}")]
    OtherProgram(String),
    #[error(transparent)]
    Rank(#[from] Box<crate::ranks::RankError>),
    #[error("{0}")]
    Fault(String),
    #[error("the step has the input {name}, which no schedule gives")]
    UnknownInput { name: String },
    #[error(
        "{tokenizer} has {n_ids} ids and the model a vocabulary of {vocab}; \
             set the vocabulary to at least {n_ids}"
    )]
    Vocabulary { tokenizer: String, n_ids: u32, vocab: u64 },
    #[error(
        "{} holds a run already; give --resume to continue it, or another --out",
        out.display()
    )]
    RunExists { out: PathBuf },
    #[error(
        "{} holds no checkpoint to resume from; leave --resume out to start there",
        out.display()
    )]
    NothingToResume { out: PathBuf },
    #[error(
        "the run was started with {key} = {saved}, and now {key} = {now}; \
             give what it was started with, or start a new run"
    )]
    OtherSettings { key: String, saved: String, now: String },
    #[error(
        "{name} is {value} at step {step}; lower the learning rate or clip gradients. \
             The last checkpoint is from before"
    )]
    NotFinite { name: String, value: f32, step: u64 },
}

impl TrainError {
    pub(super) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> TrainError {
        move |error| TrainError::Io { action, path: path.to_owned(), error }
    }
}
