//! Several ranks that continue texts together: their experts lie between them, and each has two
//! texts at a time, one in either half of its batch.
//!
//! All ranks go in step, since they meet in every layer: prompts are read at once, padded to the
//! longest (what pads leave in a cache lies behind what is read of it, until it is written over),
//! then each text gets a token a step, until all have theirs. A half without a text, or with one
//! that is done, goes along on token 0. So texts are continued in turns of two for each rank.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Entries, GenerateError, Generated, Sampler, Sampling};
use crate::checkpoint::reader::CheckpointReader;
use crate::exec::{Program, Store};
use crate::ranks::{Rank, collective};

/// What the inputs and results of a half begin with.
const HALVES: [&str; 2] = ["a.", "b."];

/// What is to be continued, and how.
#[derive(Clone, Debug)]
pub struct Work {
    pub prompts: Vec<Vec<u32>>,
    pub max_new: usize,
    pub sampling: Sampling,
    /// The token that ends a text.
    pub end: Option<u32>,
}

/// One rank.
pub struct Unit {
    entries: Entries,
    rank: Arc<Rank>,
}

/// A text in a half.
struct Text {
    /// Its place among the prompts.
    number: usize,
    prompt: Vec<u32>,
    made: Vec<u32>,
    open: bool,
}

impl Unit {
    /// Reads what the rank has of the weights.
    pub fn load(
        program: &Arc<Program>,
        checkpoint: &CheckpointReader,
        rank: Rank,
    ) -> Result<Unit, GenerateError> {
        let store = Store::at(Arc::clone(program.device()), rank.rank());
        let logits = format!("{}logits", HALVES[0]);
        let mut entries = Entries::load(program, checkpoint, &store, &logits)?;
        let rank = Arc::new(rank);
        entries.prefill.join(&rank);
        entries.decode.join(&rank);
        Ok(Unit { entries, rank })
    }

    /// Continues the texts; what all ranks made of them, in the order of their prompts.
    pub fn run(&mut self, work: &Work) -> Result<Vec<(usize, Generated)>, GenerateError> {
        work.prompts.iter().try_for_each(|prompt| self.entries.check(prompt))?;
        let sampler = Sampler::new(work.sampling)?;
        let (n, own) = (self.rank.n_ranks(), self.rank.rank());
        let mut all = vec![];
        for (turn, prompts) in work.prompts.chunks(HALVES.len() * n).enumerate() {
            let text = |half: usize| {
                let at = half * n + own;
                let number = turn * HALVES.len() * n + at;
                let prompt = prompts.get(at)?.clone();
                Some(Text { number, prompt, made: vec![], open: work.max_new > 0 })
            };
            let mut texts = [text(0), text(1)];
            let start = Instant::now();
            // Every rank knows all prompts, and so how far the longest reaches.
            let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
            self.read(&texts, longest - 1)?;
            let mut first = None;
            while self.goes_on(texts.iter().flatten().any(|t| t.open))? {
                self.next(&mut texts, &sampler, work)?;
                first.get_or_insert_with(Instant::now);
            }
            let prefilled = first.unwrap_or(start);
            let took = |t: Text| {
                let prompt = (t.prompt.len(), prefilled - start);
                let n_decoded = t.made.len().saturating_sub(1);
                let decoded: (usize, Duration) = (n_decoded, prefilled.elapsed());
                (t.number, Generated { ids: t.made, prompt, decoded })
            };
            all.extend(texts.into_iter().flatten().map(took));
        }
        self.exchange(&all)
    }

    /// Every rank's texts, for each.
    fn exchange(
        &self,
        own: &[(usize, Generated)],
    ) -> Result<Vec<(usize, Generated)>, GenerateError> {
        let meeting = self.rank.begin("gather", "texts", (0..self.rank.n_ranks()).collect());
        let all = collective::gather_uneven(&meeting, &told(own)).map_err(Box::new)?;
        let mut texts: Vec<(usize, Generated)> = all.iter().flat_map(|b| read(b)).collect();
        texts.sort_by_key(|(number, _)| *number);
        Ok(texts)
    }

    /// Whether any rank has a text that goes on.
    fn goes_on(&self, own: bool) -> Result<bool, GenerateError> {
        let everyone = (0..self.rank.n_ranks()).collect();
        let meeting = self.rank.begin("gather", "whether texts go on", everyone);
        let all = collective::gather_uneven(&meeting, &[u8::from(own)]).map_err(Box::new)?;
        Ok(all.iter().flatten().any(|open| *open > 0))
    }

    /// All tokens of the prompts but the last, into the caches.
    fn read(&mut self, texts: &[Option<Text>; 2], n: usize) -> Result<(), GenerateError> {
        if n == 0 {
            return Ok(());
        }
        let session = &mut self.entries.prefill;
        if session.entry().find_dim("S").is_some() {
            session.set_dim("S", n as i64)?;
        }
        for (half, text) in HALVES.iter().zip(texts) {
            let mut ids = vec![0i32; n];
            if let Some(text) = text {
                let before = &text.prompt[..text.prompt.len() - 1];
                ids.iter_mut().zip(before).for_each(|(to, id)| *to = *id as i32);
            }
            session.write_input(&format!("{half}tokens"), &ids)?;
            session.write_input(&format!("{half}start"), &[0i32])?;
        }
        Ok(session.run()?)
    }

    /// A token of each text, chosen after what it has.
    fn next(
        &mut self,
        texts: &mut [Option<Text>; 2],
        sampler: &Sampler,
        work: &Work,
    ) -> Result<(), GenerateError> {
        let session = &mut self.entries.decode;
        for (half, text) in HALVES.iter().zip(&*texts) {
            let text = text.as_ref().filter(|t| t.open);
            let id = text.and_then(|t| t.made.last().or(t.prompt.last())).copied().unwrap_or(0);
            let place = text.map_or(0, |t| t.prompt.len() + t.made.len() - 1);
            session.write_input(&format!("{half}tokens"), &[id as i32])?;
            session.write_input(&format!("{half}start"), &[place as i32])?;
        }
        session.run()?;
        let mut logits = vec![0f32; self.entries.vocab];
        for (half, text) in HALVES.iter().zip(texts) {
            let Some(text) = text.as_mut().filter(|t| t.open) else { continue };
            session.read_into(&format!("{half}logits"), &mut logits)?;
            let id = sampler.choose(&logits, text.made.len() as u64);
            text.made.push(id);
            let full = text.prompt.len() + text.made.len() > self.entries.context;
            text.open = text.made.len() < work.max_new && !full && work.end != Some(id);
        }
        Ok(())
    }
}

/// Texts as ranks tell them to each other: of each five numbers, how many ids, the ids; all of
/// eight bytes. Times are in nanoseconds.
fn told(texts: &[(usize, Generated)]) -> Vec<u8> {
    let took = |(n, time): (usize, Duration)| [n as u64, time.as_nanos() as u64];
    let mut words = vec![];
    for (number, made) in texts {
        words.push(*number as u64);
        words.extend([made.prompt, made.decoded].map(took).concat());
        words.push(made.ids.len() as u64);
        words.extend(made.ids.iter().map(|id| u64::from(*id)));
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn read(bytes: &[u8]) -> Vec<(usize, Generated)> {
    let mut words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    let mut all = vec![];
    while let Some(number) = words.next() {
        let mut next = || words.next().unwrap_or(0);
        let mut took = || (next() as usize, Duration::from_nanos(next()));
        let (prompt, decoded) = (took(), took());
        let n = next() as usize;
        let ids = words.by_ref().take(n).map(|id| id as u32).collect();
        all.push((number as usize, Generated { ids, prompt, decoded }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_and_read() {
        let made = |ids: &[u32]| Generated {
            ids: ids.to_vec(),
            prompt: (ids.len() + 3, Duration::from_micros(5)),
            decoded: (1, Duration::from_nanos(7)),
        };
        let all = [(4, made(&[7, 0, u32::MAX])), (1, made(&[])), (2, made(&[5]))];
        assert_eq!(format!("{:?}", read(&told(&all))), format!("{all:?}"));
    }
}
