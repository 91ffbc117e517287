//! A run's settings, as the compiler leaves them in the graph.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use weft_graph::Entry;

use super::TrainError;
use super::schedule::Schedule;

/// Key of an entry's meta that holds [`TrainSettings`].
pub const TRAIN: &str = "train";
/// Key of an entry's meta that holds what a checkpoint's `config.json` says.
pub const CONFIG: &str = "config";
/// Key of an entry's meta that holds the model's name.
pub const MODEL: &str = "model";
/// Key of an entry's meta that holds the mesh of ranks it is for: of each axis its name, its size
/// and how far apart neighbours' ranks are. Absent for one rank.
pub const MESH: &str = "mesh";
/// The axis whose ranks take turns at the batch.
pub const DATA: &str = "data";
/// The axis whose ranks have stages of the model, each with a program of its own.
pub const PIPELINE: &str = "pipeline";
/// Key of an entry's meta that holds the number of ids that the model has a row for.
pub const VOCAB: &str = "vocab";

/// What a `train` block says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    pub name: String,
    /// The precision block it is computed by; compiled into the step.
    #[serde(default = "f32")]
    pub precision: String,
    /// Compiled into the step; here to be compared when a run goes on.
    pub optimizer: AdamW,
    /// Compiled into the step, too.
    pub clip: Option<f64>,
    /// Standard deviation of the weights that are drawn.
    pub init: f64,
    pub sequence: u64,
    /// Sequences in an optimizer step.
    pub batch: Schedule,
    pub micro_batch: u64,
    pub steps: Option<u64>,
    pub lr: Schedule,
    /// By the name of the step's input.
    pub schedules: IndexMap<String, Schedule>,
    pub fim: f64,
    pub attend_across_documents: bool,
    pub held_out: f64,
    pub held_out_every: u64,
    pub held_out_batches: u64,
    pub checkpoint_every: u64,
    /// Checkpoints kept; 0 keeps all.
    pub keep: u64,
    /// What the step computes again for its backward pass; compiled into it.
    #[serde(default = "cheap")]
    pub recompute: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub decay: f64,
}

/// The mesh of ranks that an entry is for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh(Vec<(String, u64, u64)>);

impl Mesh {
    pub fn of(entry: &Entry) -> Result<Mesh, TrainError> {
        let Some(value) = entry.meta.get(MESH) else { return Ok(Mesh::default()) };
        let wrong = |reason: String| TrainError::Settings { entry: entry.name.clone(), reason };
        let axes: Vec<(String, u64, u64)> =
            serde_json::from_value(value.clone()).map_err(|e| wrong(e.to_string()))?;
        let fits = |n: Option<u64>| matches!(n, Some(1..=4096));
        match axes.iter().all(|(_, size, stride)| fits(size.checked_mul(*stride))) {
            true => Ok(Mesh(axes)),
            false => Err(wrong(format!("a mesh of {axes:?}"))),
        }
    }

    /// The slowest axis spans all ranks.
    pub fn n_ranks(&self) -> usize {
        self.0.iter().map(|(_, size, stride)| (size * stride) as usize).max().unwrap_or(1)
    }

    /// The number of places along an axis, and the place of `rank`; one place where there is no
    /// such axis.
    pub fn place(&self, axis: &str, rank: usize) -> (usize, usize) {
        let Some((_, size, stride)) = self.0.iter().find(|(name, ..)| name == axis) else {
            return (1, 0);
        };
        (*size as usize, rank / *stride as usize % *size as usize)
    }
}

impl std::fmt::Display for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let axes: Vec<String> = self.0.iter().map(|(name, n, _)| format!("{name} = {n}")).collect();
        f.write_str(&axes.join(", "))
    }
}

/// What runs were computed in before they could say so.
fn f32() -> String {
    "f32".into()
}

/// What runs computed again before they could say so.
fn cheap() -> String {
    "cheap".into()
}

/// Settings that a resumed run may change: they do not change what is computed.
const FREE: &[&str] = &["steps", "held_out_every", "held_out_batches", "checkpoint_every", "keep"];

impl TrainSettings {
    /// Those of an entry that was compiled for training.
    pub fn of(entry: &Entry) -> Result<TrainSettings, TrainError> {
        let Some(value) = entry.meta.get(TRAIN) else {
            return Err(TrainError::NotForTraining { entry: entry.name.clone() });
        };
        serde_json::from_value(value.clone())
            .map_err(|e| TrainError::Settings { entry: entry.name.clone(), reason: e.to_string() })
    }

    /// Refuses to go on with a run that was started with other settings.
    pub fn check_same(&self, saved: &TrainSettings) -> Result<(), TrainError> {
        let object = |s: &TrainSettings| serde_json::to_value(s).unwrap_or_default();
        let (now, saved) = (object(self), object(saved));
        for key in now.as_object().into_iter().flat_map(|o| o.keys()) {
            if !FREE.contains(&key.as_str()) && now[key] != saved[key] {
                return Err(TrainError::OtherSettings {
                    key: key.clone(),
                    saved: saved[key].to_string(),
                    now: now[key].to_string(),
                });
            }
        }
        Ok(())
    }
}
