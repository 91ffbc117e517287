//! Text from a model: the prompt in one go, then a token at a time, over caches that both entries
//! share.
//!
//! `prefill` reads up to as many tokens as the cache holds and leaves what `cache` marks; `decode`
//! reads one and gives its logits too. Both take `start`, the place of their first token. The last
//! token of a prompt is decoded, since the logits of those before are of no use. Where caches lie
//! in pages, both take those of each request, and `decode` a token of several requests (`batch`).

pub mod batch;
pub mod command;
pub mod pages;
mod sample;
mod shown;
pub mod unit;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use sample::{Sampler, Sampling};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::reader::CheckpointReader;
use crate::data::DataError;
use crate::data::tokenizer::Tokenizer;
use crate::exec::{ExecError, Program, Session, Store};
use crate::ranks::start::{self, StartError};
use crate::weights::{self, WeightsError};

pub const PREFILL: &str = "prefill";
pub const DECODE: &str = "decode";
/// Key of an entry's meta: positions the cache holds.
pub const CONTEXT: &str = "context";
/// Keys of an entry's meta: positions of a page, and pages of a pool, where caches lie in pages.
pub const PAGE: &str = "page";
pub const POOL: &str = "pool";
/// Key of an entry's meta: the ranks that generate together.
pub const RANKS: &str = "ranks";
/// Key of an entry's meta: the dims that `config.json` gave when the graph was compiled.
pub const CONFIG: &str = "config";

#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("entry {entry} was not compiled for generation; compile the model again")]
    NotForGeneration { entry: String },
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    #[error(
        "the prompt has {prompt} tokens and the cache holds {context}; \
             give a shorter prompt or a larger --context"
    )]
    PromptTooLong { prompt: usize, context: usize },
    #[error("token {id} is outside the vocabulary of {vocab}")]
    OutsideVocabulary { id: i64, vocab: usize },
    #[error("the graph was compiled for {key} = {compiled}, and {} says {key} = {found}; \
             compile it with --checkpoint {}", folder.display(), folder.display())]
    OtherConfig { key: String, compiled: String, found: String, folder: PathBuf },
    #[error(
        "the graph was compiled for {compiled} ranks, and {}",
        start::other(*compiled, *given)
    )]
    OtherRanks { compiled: usize, given: usize },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Fault(String),
    #[error(
        "request {request} needs {needed} pages of {size} positions to reach position {position}, \
             and none is left: the pool has {n_pages}, and {open} requests are open; \
             give more --pages, a smaller --batch or fewer tokens (--max-new)"
    )]
    NoPage {
        /// Its place among the prompts, from 1 on.
        request: usize,
        /// The position that it has no page for, from 1 on, and the pages it would then have.
        position: usize,
        needed: usize,
        size: usize,
        n_pages: usize,
        open: usize,
    },
    #[error("the graph has caches in pages, which several requests share; run it as a `Batch`")]
    Paged,
    #[error(transparent)]
    Rank(#[from] Box<crate::ranks::RankError>),
    #[error("{name}: expected {expected}, found {found}")]
    Option { name: &'static str, expected: &'static str, found: String },
}

/// A continuation, and what it took.
#[derive(Clone, Debug)]
pub struct Generated {
    pub ids: Vec<u32>,
    /// Tokens of the prompt and the time until their logits were there.
    pub prompt: (usize, Duration),
    /// Tokens that were read back one by one, and the time they took with choosing and showing.
    pub decoded: (usize, Duration),
}

/// `prompt of 16 tokens: 4100 tokens/s, then 127 tokens: 1500 tokens/s`.
impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |(n, time): (usize, Duration)| n as f64 / time.as_secs_f64().max(1e-9);
        write!(f, "prompt of {} tokens: {:.0} tokens/s", self.prompt.0, rate(self.prompt))?;
        match self.decoded {
            (0, _) => Ok(()),
            decoded => write!(f, ", then {} tokens: {:.0} tokens/s", decoded.0, rate(decoded)),
        }
    }
}

/// The two entries over one store.
struct Entries {
    prefill: Session,
    decode: Session,
    context: usize,
    vocab: usize,
}

impl Entries {
    /// Reads the weights of `checkpoint`; `logits` is what `decode` calls those that it gives.
    fn load(
        program: &Arc<Program>,
        checkpoint: &CheckpointReader,
        store: &Arc<Store>,
        logits: &str,
    ) -> Result<Entries, GenerateError> {
        let prefill = Session::new(program, PREFILL, store)?;
        let decode = Session::new(program, DECODE, store)?;
        let entry = prefill.entry();
        let not = || GenerateError::NotForGeneration { entry: entry.name.clone() };
        let context = entry.meta.get(CONTEXT).and_then(Value::as_u64).ok_or_else(not)? as usize;
        let mut buffers = decode.entry().buffers.iter();
        let logits = buffers.find(|b| b.name == logits).ok_or_else(not)?;
        let vocab = logits.dims.last().and_then(|d| d.as_constant()).ok_or_else(not)? as usize;
        check_config(entry.meta.get(CONFIG), checkpoint)?;
        weights::load(store, checkpoint)?;
        Ok(Entries { prefill, decode, context, vocab })
    }

    fn check(&self, prompt: &[u32]) -> Result<(), GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() > self.context {
            let (prompt, context) = (prompt.len(), self.context);
            return Err(GenerateError::PromptTooLong { prompt, context });
        }
        match prompt.iter().find(|id| **id as usize >= self.vocab) {
            Some(id) => {
                let (id, vocab) = (i64::from(*id), self.vocab);
                Err(GenerateError::OutsideVocabulary { id, vocab })
            }
            None => Ok(()),
        }
    }
}

/// A model with its weights, ready to continue texts.
pub struct Generator {
    entries: Entries,
}

impl Generator {
    /// Reads the weights of `checkpoint` for the entries of `program`.
    pub fn load(
        program: &Arc<Program>,
        checkpoint: &CheckpointReader,
    ) -> Result<Generator, GenerateError> {
        if batch::Batch::takes(program) {
            return Err(GenerateError::Paged);
        }
        let store = Store::new(Arc::clone(program.device()));
        Ok(Generator { entries: Entries::load(program, checkpoint, &store, "logits")? })
    }

    /// Positions that a prompt and its continuation may have together.
    pub fn context(&self) -> usize {
        self.entries.context
    }

    /// Up to `max_new` tokens after `prompt`, each given to `each` as it comes, until that breaks
    /// or the cache is full.
    pub fn run(
        &mut self,
        prompt: &[u32],
        max_new: usize,
        sampling: Sampling,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        self.entries.check(prompt)?;
        let sampler = Sampler::new(sampling)?;
        let start = Instant::now();
        let [before @ .., last] = prompt else { return Err(GenerateError::EmptyPrompt) };
        let mut logits = vec![0f32; self.entries.vocab];
        self.read(before)?;
        self.next(*last, before.len(), &mut logits)?;
        let prefilled = Instant::now();
        let mut made = vec![];
        let mut decoded = 0;
        while made.len() < max_new {
            let id = sampler.choose(&logits, made.len() as u64);
            made.push(id);
            let place = prompt.len() + made.len() - 1;
            if each(id).is_break() || made.len() == max_new || place >= self.entries.context {
                break;
            }
            self.next(id, place, &mut logits)?;
            decoded += 1;
        }
        Ok(Generated {
            ids: made,
            prompt: (prompt.len(), prefilled - start),
            decoded: (decoded, prefilled.elapsed()),
        })
    }

    /// The first tokens of a text, into the caches.
    fn read(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let ids: Vec<i32> = tokens.iter().map(|id| *id as i32).collect();
        if self.entries.prefill.entry().find_dim("S").is_some() {
            self.entries.prefill.set_dim("S", ids.len() as i64)?;
        }
        self.entries.prefill.write_input("tokens", &ids)?;
        self.entries.prefill.write_input("start", &[0i32])?;
        Ok(self.entries.prefill.run()?)
    }

    /// The token at `place`, into the caches; the logits of what follows it.
    fn next(&mut self, id: u32, place: usize, logits: &mut [f32]) -> Result<(), GenerateError> {
        self.entries.decode.write_input("tokens", &[id as i32])?;
        self.entries.decode.write_input("start", &[place as i32])?;
        self.entries.decode.run()?;
        Ok(self.entries.decode.read_into("logits", logits)?)
    }
}

/// The dims compiled in must be the checkpoint's; keys that only one of them has are not compared.
fn check_config(
    compiled: Option<&Value>,
    checkpoint: &CheckpointReader,
) -> Result<(), GenerateError> {
    let compiled = compiled.and_then(Value::as_object);
    for (key, value) in compiled.into_iter().flatten() {
        let Some(found) = checkpoint.config().get(key) else { continue };
        if !same(value, found) {
            return Err(GenerateError::OtherConfig {
                key: key.clone(),
                compiled: value.to_string(),
                found: found.to_string(),
                folder: checkpoint.folder().to_owned(),
            });
        }
    }
    Ok(())
}

/// Equal where both say something: `10000` is `10000.0`, and an object may have more keys.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(k, v)| b.get(k).is_none_or(|other| same(v, other)))
        }
        (Value::Null, _) | (_, Value::Null) => true,
        _ => a == b,
    }
}

/// The tokenizer of a checkpoint: `given`, or its own file, or bytes.
pub fn tokenizer(given: Option<&Path>, folder: &Path) -> Result<Tokenizer, DataError> {
    match given {
        Some(path) => Tokenizer::from_file(path),
        None if folder.join("tokenizer.json").exists() => Tokenizer::from_file(folder),
        None => Ok(Tokenizer::bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::same;
    use serde_json::json;

    #[test]
    fn configs_are_compared_where_both_speak() {
        assert!(same(&json!(10000), &json!(10000.0)));
        assert!(same(&json!({"rope_theta": 1}), &json!({"rope_theta": 1, "rope_type": "default"})));
        assert!(!same(&json!({"rope_theta": 1}), &json!({"rope_theta": 2})));
        assert!(!same(&json!("sigmoid"), &json!("softmax")));
        assert!(same(&json!(null), &json!(3)));
    }
}
