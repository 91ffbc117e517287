//! Batches of packed rows, in an order that follows from the seed, with a state small enough to
//! write into every checkpoint.
//!
//! The documents of an epoch come in a random order and are taken in windows of about
//! `window_tokens`; a window is packed as a whole and its rows are shuffled. A window is a function
//! of (seed, epoch, first document), so the state names a window and how many of its rows were
//! taken.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::DataError;
use super::fim::FillInMiddle;
use super::pack::{Row, pack};
use super::shuffle::Permutation;
use super::source::TextSource;
use super::tokenizer::Tokenizer;

/// Which side of the held-out split a loader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    Train,
    HeldOut,
}

/// What a loader reads and how.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Files or folders of UTF-8 text.
    pub paths: Vec<PathBuf>,
    /// Tokens in a row.
    pub sequence: usize,
    pub seed: u64,
    /// Share of documents rearranged for fill-in-the-middle.
    pub fim_rate: f64,
    /// Share of documents kept from training. A document's side follows from its text alone, so
    /// copies of a text are on one side, whatever the seed and whatever else is there.
    pub held_out: f64,
    pub split: Split,
    /// Tokens packed and shuffled together: memory and the time to the first batch grow with it.
    pub window_tokens: usize,
}

impl LoaderOptions {
    /// Training data without fill-in-the-middle or held-out text.
    pub fn new(paths: Vec<PathBuf>, sequence: usize, seed: u64) -> Self {
        let window_tokens = (1 << 20).max(64 * sequence);
        let (fim_rate, held_out, split) = (0.0, 0.0, Split::Train);
        Self { paths, sequence, seed, fim_rate, held_out, split, window_tokens }
    }

    /// The other side of the split: text as it is, in small windows since few rows are needed.
    pub fn for_held_out(&self) -> Self {
        let window_tokens = (1 << 15).max(16 * self.sequence);
        Self { split: Split::HeldOut, fim_rate: 0.0, window_tokens, ..self.clone() }
    }
}

/// Rows that are computed on together, `[batch, sequence]` with the sequence innermost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub batch: usize,
    pub sequence: usize,
    /// Token ids; -1 where padded.
    pub tokens: Vec<i32>,
    /// Index of the token's document within its row; -1 where padded.
    pub segments: Vec<i32>,
}

impl Batch {
    /// Tokens that are not padding.
    pub fn n_tokens(&self) -> u64 {
        self.tokens.iter().filter(|&&t| t >= 0).count() as u64
    }
}

/// Where a loader stands, and what it was made from, so that another text, tokenizer or setting is
/// refused instead of continuing with other batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoaderState {
    pub epoch: u64,
    /// Position, in the epoch's order, of the first document of the current window.
    pub window_start: u64,
    /// Rows of the window already given out.
    pub rows_taken: u64,
    made_from: MadeFrom,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MadeFrom {
    data: String,
    tokenizer: String,
    seed: u64,
    sequence: usize,
    fim_rate: f64,
    held_out: f64,
    split: Split,
    window_tokens: usize,
}

/// Endless batches; epochs follow one another in new orders.
#[derive(Debug)]
pub struct Loader {
    options: LoaderOptions,
    tokenizer: Arc<Tokenizer>,
    source: TextSource,
    fim: Option<FillInMiddle>,
    window: Window,
    /// Rows the current epoch gave so far: an epoch that ends with none has no usable text.
    epoch_rows: u64,
}

/// Documents `start..end` of an epoch's order, packed.
#[derive(Debug)]
struct Window {
    epoch: u64,
    start: u64,
    end: u64,
    rows: Vec<Row>,
    /// The order in which rows are given out, and how many were.
    order: Permutation,
    n_taken: u64,
}

impl Loader {
    pub fn open(options: LoaderOptions, tokenizer: Arc<Tokenizer>) -> Result<Self, DataError> {
        check_options(&options)?;
        let piece_bytes = (64 << 10).max(16 * options.sequence as u64);
        let source = TextSource::open(&options.paths, piece_bytes)?;
        let fim = FillInMiddle::new(options.fim_rate, options.seed, &tokenizer)?;
        let order = Permutation::new(0, 0, 0);
        let window = Window { epoch: 0, start: 0, end: 0, rows: Vec::new(), order, n_taken: 0 };
        let mut loader = Self { options, tokenizer, source, fim, window, epoch_rows: 0 };
        loader.next_window()?;
        Ok(loader)
    }

    /// The next `batch` rows.
    pub fn next_batch(&mut self, batch: usize) -> Result<Batch, DataError> {
        let sequence = self.options.sequence;
        let mut tokens = Vec::with_capacity(batch * sequence);
        let mut segments = Vec::with_capacity(batch * sequence);
        for _ in 0..batch {
            let row = self.next_row()?;
            tokens.extend_from_slice(&row.tokens);
            segments.extend_from_slice(&row.segments);
        }
        Ok(Batch { batch, sequence, tokens, segments })
    }

    /// Complete passes over the text before the next row's.
    pub fn epoch(&self) -> u64 {
        self.window.epoch
    }

    /// Files that gave no text, of those read so far, and files in all.
    pub fn files_skipped(&self) -> (usize, usize) {
        (self.source.n_files_skipped(), self.source.n_files())
    }

    /// Goes back to the first batch.
    pub fn rewind(&mut self) -> Result<(), DataError> {
        self.enter_window(0, 0, 0)
    }

    pub fn state(&self) -> LoaderState {
        LoaderState {
            epoch: self.window.epoch,
            window_start: self.window.start,
            rows_taken: self.window.n_taken,
            made_from: self.made_from(),
        }
    }

    /// Continues where `state` was taken, with the batches that followed there.
    pub fn restore(&mut self, state: &LoaderState) -> Result<(), DataError> {
        self.made_from().check_same(&state.made_from)?;
        self.enter_window(state.epoch, state.window_start, state.rows_taken)
    }

    fn made_from(&self) -> MadeFrom {
        let o = &self.options;
        MadeFrom {
            data: self.source.fingerprint().to_owned(),
            tokenizer: self.tokenizer.fingerprint().to_owned(),
            seed: o.seed,
            sequence: o.sequence,
            fim_rate: o.fim_rate,
            held_out: o.held_out,
            split: o.split,
            window_tokens: o.window_tokens,
        }
    }

    fn next_row(&mut self) -> Result<&Row, DataError> {
        while self.window.n_taken == self.window.rows.len() as u64 {
            self.next_window()?;
        }
        let at = self.window.order.at(self.window.n_taken);
        self.window.n_taken += 1;
        self.epoch_rows += 1;
        Ok(&self.window.rows[at as usize])
    }

    /// Moves past the current window, into the next epoch when the current one is used up.
    fn next_window(&mut self) -> Result<(), DataError> {
        loop {
            let (mut epoch, mut start) = (self.window.epoch, self.window.end);
            if start >= self.source.n_documents() {
                if self.epoch_rows == 0 {
                    return Err(self.no_text());
                }
                (epoch, start, self.epoch_rows) = (epoch + 1, 0, 0);
            }
            self.window = self.read_window(epoch, start)?;
            if !self.window.rows.is_empty() {
                return Ok(());
            }
        }
    }

    fn enter_window(&mut self, epoch: u64, start: u64, n_taken: u64) -> Result<(), DataError> {
        self.window = self.read_window(epoch, start)?;
        let n_rows = self.window.rows.len() as u64;
        if n_taken > n_rows {
            let (saved, now) = (format!("{n_taken} rows used"), format!("{n_rows} rows long"));
            return Err(DataError::Resume { what: "the window of rows", saved, now });
        }
        self.window.n_taken = n_taken;
        // A saved window had rows, so its epoch is not empty.
        self.epoch_rows = n_rows;
        Ok(())
    }

    fn read_window(&mut self, epoch: u64, start: u64) -> Result<Window, DataError> {
        let n_documents = self.source.n_documents();
        let order = Permutation::new(n_documents, self.options.seed, epoch);
        let mut documents = Vec::new();
        let mut n_tokens = 0;
        let mut end = start;
        while end < n_documents && n_tokens < self.options.window_tokens {
            if let Some(ids) = self.read_document(epoch, order.at(end))? {
                n_tokens += ids.len();
                documents.push(ids);
            }
            end += 1;
        }
        let rows = pack(&documents, self.options.sequence);
        // Epoch and start make the order of rows differ between windows; the high bit keeps it
        // apart from the order of documents.
        let row_seed = self.options.seed ^ (1 << 63) ^ start.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let order = Permutation::new(rows.len() as u64, row_seed, epoch);
        Ok(Window { epoch, start, end, rows, order, n_taken: 0 })
    }

    fn read_document(&mut self, epoch: u64, document: u64) -> Result<Option<Vec<u32>>, DataError> {
        let Some(text) = self.source.read(document)? else { return Ok(None) };
        if split_of(&text, self.options.held_out) != self.options.split {
            return Ok(None);
        }
        if let Some(fim) = &self.fim
            && let Some(ids) = fim.encode(&text, &self.tokenizer, epoch, document)?
        {
            return Ok(Some(ids));
        }
        self.tokenizer.encode_document(&text).map(Some)
    }

    fn no_text(&self) -> DataError {
        let paths = self.source.describe();
        let (n_files, n_skipped) = (self.source.n_files(), self.source.n_files_skipped());
        if self.options.split == Split::HeldOut && n_skipped < n_files {
            let n_documents = self.source.n_documents();
            return DataError::NoHeldOut { paths, n_documents, fraction: self.options.held_out };
        }
        let mut found = format!("files found: {n_files}, not text: {n_skipped}");
        if self.options.held_out > 0.0 && n_skipped < n_files {
            found += &format!(", and a held-out fraction of {} leaves none", self.options.held_out);
        }
        DataError::NoText { paths, found }
    }
}

impl MadeFrom {
    fn check_same(&self, saved: &Self) -> Result<(), DataError> {
        let differ = |what, saved: String, now: String| DataError::Resume { what, saved, now };
        let pairs = [
            ("the text (names and sizes of files)", saved.data.clone(), self.data.clone()),
            ("the tokenizer", saved.tokenizer.clone(), self.tokenizer.clone()),
            ("the seed", saved.seed.to_string(), self.seed.to_string()),
            ("the sequence length", saved.sequence.to_string(), self.sequence.to_string()),
            ("the fill-in-the-middle rate", saved.fim_rate.to_string(), self.fim_rate.to_string()),
            ("the held-out fraction", saved.held_out.to_string(), self.held_out.to_string()),
            ("the split", format!("{:?}", saved.split), format!("{:?}", self.split)),
            ("the window", saved.window_tokens.to_string(), self.window_tokens.to_string()),
        ];
        match pairs.into_iter().find(|(_, saved, now)| saved != now) {
            Some((what, saved, now)) => Err(differ(what, saved, now)),
            None => Ok(()),
        }
    }
}

fn check_options(options: &LoaderOptions) -> Result<(), DataError> {
    let wrong = |name, expected, found: String| Err(DataError::Option { name, expected, found });
    if options.sequence == 0 {
        return wrong("the sequence length", "at least 1", "0".to_owned());
    }
    if !(0.0..1.0).contains(&options.held_out) {
        let found = options.held_out.to_string();
        return wrong("the held-out fraction", "at least 0 and below 1", found);
    }
    Ok(())
}

/// The side of a text: its hash, read as a number in [0, 1), against the fraction.
fn split_of(text: &str, held_out: f64) -> Split {
    let hash = blake3::hash(text.as_bytes());
    let word = u32::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]));
    if f64::from(word) / 4_294_967_296.0 < held_out { Split::HeldOut } else { Split::Train }
}
