//! Several requests at once, over caches in pages.
//!
//! A request is read when there is a place in the batch and pages for its prompt; from then on
//! every step gives each request that is open a token, and takes a page of the pool for one that
//! needs it. A request that ends gives its pages back, and the next one is read. A request's tokens
//! do not depend on the others, nor on which pages it gets.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pages::{Pool, Use};
use super::unit::Work;
use super::{DECODE, Entries, GenerateError, Generated, Sampler};
use crate::checkpoint::reader::CheckpointReader;
use crate::exec::{Program, Session, Store};

/// The input that says which pages requests have, i32 `[requests, pages of a request]`; -1 for
/// those it has not yet.
pub const PAGES: &str = "pages";

/// A model with its weights and pools of pages.
pub struct Batch {
    entries: Entries,
    pool: Pool,
    /// Requests at once.
    places: usize,
    /// Pages of a request at most.
    n_pages: usize,
    /// Bytes of a page in all caches.
    page_bytes: u64,
}

/// What a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Token(u32),
    End,
}

/// What requests took of the caches.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub used: Use,
    /// Bytes of a page in all caches.
    pub page_bytes: u64,
    /// Requests at once, at most, and positions that each could have had.
    pub requests: usize,
    pub context: usize,
}

/// `caches: 7 of 12 pages of 16 positions in use at most, 0.9 MiB of 1.5 MiB, 19 handed out; in one
/// piece, 3 of 512 positions, they would take 24.0 MiB`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Use { size, n_pages, n_used_max, n_handed_out } = self.used;
        let mib = |pages: usize| (pages as u64 * self.page_bytes) as f64 / f64::from(1 << 20);
        write!(
            f,
            "caches: {n_used_max} of {n_pages} pages of {size} positions in use at most, \
             {:.3} MiB of {:.3} MiB, {n_handed_out} handed out; in one piece, {} of {} positions, \
             they would take {:.3} MiB",
            mib(n_used_max),
            mib(n_pages),
            self.requests,
            self.context,
            mib(self.requests * self.context.div_ceil(size.max(1)))
        )
    }
}

/// A request that has a place in the batch.
struct Request {
    /// Its place among the prompts.
    number: usize,
    prompt: Vec<u32>,
    made: Vec<u32>,
    pages: Vec<u32>,
    open: bool,
    began: Instant,
    /// When its first token was there.
    first: Option<Instant>,
}

impl Request {
    /// The token to be read next, and where it stands.
    fn next(&self) -> (u32, usize) {
        let id = self.made.last().or(self.prompt.last()).copied().unwrap_or(0);
        (id, self.prompt.len() + self.made.len() - 1)
    }

    /// What came of it; now is its end.
    fn generated(self) -> (usize, Generated) {
        let first = self.first.unwrap_or(self.began);
        let decoded: (usize, Duration) = (self.made.len().saturating_sub(1), first.elapsed());
        let prompt = (self.prompt.len(), first - self.began);
        (self.number, Generated { ids: self.made, prompt, decoded })
    }
}

impl Batch {
    /// Whether a program has caches in pages.
    pub fn takes(program: &Program) -> bool {
        let entry = program.graph().entry(DECODE);
        entry.is_some_and(|entry| entry.find_buffer(PAGES).is_some())
    }

    /// Reads the weights of `checkpoint` for the entries of `program`.
    pub fn load(
        program: &Arc<Program>,
        checkpoint: &CheckpointReader,
    ) -> Result<Batch, GenerateError> {
        let store = Store::new(Arc::clone(program.device()));
        let entries = Entries::load(program, checkpoint, &store, "logits")?;
        let entry = entries.decode.entry();
        let not = || GenerateError::NotForGeneration { entry: entry.name.clone() };
        let dims = entry.dims_max();
        let sizes = |name: &str| -> Option<Vec<i64>> {
            let buffer = entry.buffers.iter().find(|b| b.name == name)?;
            Some(buffer.dims.iter().map(|d| d.eval(&dims)).collect())
        };
        let [places, n_pages] = sizes(PAGES).ok_or_else(not)?[..] else { return Err(not()) };
        let number = |key| entry.meta.get(key)?.as_u64().filter(|n| *n > 0);
        let [n, size] = [super::POOL, super::PAGE].map(number);
        let (n, size) = (n.ok_or_else(not)?, size.ok_or_else(not)?);
        // Of all states the caches are those that the entry changes.
        let caches = entry.buffers.iter().filter_map(|b| b.alias).map(|id| entry.buffer(id));
        let bytes: u64 = caches.map(|b| b.size_bytes().eval(&dims) as u64).sum();
        Ok(Batch {
            pool: Pool::new(n as usize, size as usize),
            places: places as usize,
            n_pages: n_pages as usize,
            page_bytes: bytes / n,
            entries,
        })
    }

    /// Continues all prompts; what came of each, in their order, and what caches it took. `each`
    /// is told of every token as it comes, with the place of its prompt, and of every end.
    pub fn run(
        &mut self,
        work: &Work,
        each: &mut dyn FnMut(usize, Event),
    ) -> Result<(Vec<Generated>, Report), GenerateError> {
        work.prompts.iter().try_for_each(|prompt| self.entries.check(prompt))?;
        let sampler = Sampler::new(work.sampling)?;
        let mut waiting: VecDeque<usize> = (0..work.prompts.len()).collect();
        let (mut open, mut made): (Vec<Request>, Vec<(usize, Generated)>) = (vec![], vec![]);
        let mut requests = 0;
        while !waiting.is_empty() || !open.is_empty() {
            while let Some(number) = waiting.front().copied().filter(|_| open.len() < self.places) {
                let prompt = work.prompts[number].clone();
                if self.pool.n_for(prompt.len()) > self.pool.n_free() {
                    // Those that are open give theirs back some time.
                    if open.is_empty() {
                        return Err(self.pool.exhausted(number, prompt.len(), 0));
                    }
                    break;
                }
                waiting.pop_front();
                open.push(self.read(number, prompt, work)?);
            }
            requests = requests.max(open.len());
            self.step(&mut open, &sampler, work)?;
            for request in &open {
                request.made.last().iter().for_each(|id| each(request.number, Event::Token(**id)));
            }
            let (still, mut ended): (Vec<Request>, Vec<Request>) =
                open.into_iter().partition(|r| r.open);
            for request in &mut ended {
                self.pool.take_back(&mut request.pages);
                each(request.number, Event::End);
            }
            made.extend(ended.into_iter().map(Request::generated));
            open = still;
        }
        made.sort_by_key(|(number, _)| *number);
        let (used, page_bytes) = (self.pool.used(), self.page_bytes);
        let report = Report { used, page_bytes, requests, context: self.entries.context };
        Ok((made.into_iter().map(|(_, made)| made).collect(), report))
    }

    /// A request with all tokens of its prompt but the last in its pages.
    fn read(
        &mut self,
        number: usize,
        prompt: Vec<u32>,
        work: &Work,
    ) -> Result<Request, GenerateError> {
        let (began, mut pages) = (Instant::now(), vec![]);
        if self.pool.grow(&mut pages, prompt.len()).is_none() {
            return Err(self.pool.exhausted(number, prompt.len(), 0));
        }
        let before = &prompt[..prompt.len() - 1];
        if !before.is_empty() {
            let ids: Vec<i32> = before.iter().map(|id| *id as i32).collect();
            let table = row(&pages, self.n_pages);
            let session = &mut self.entries.prefill;
            if session.entry().find_dim("S").is_some() {
                session.set_dim("S", ids.len() as i64)?;
            }
            session.write_input("tokens", &ids)?;
            session.write_input("start", &[0i32])?;
            session.write_input(PAGES, &table)?;
            session.run()?;
        }
        let open = work.max_new > 0;
        Ok(Request { number, prompt, made: vec![], pages, open, began, first: None })
    }

    /// A token for each request that is open.
    fn step(
        &mut self,
        open: &mut [Request],
        sampler: &Sampler,
        work: &Work,
    ) -> Result<(), GenerateError> {
        if work.max_new == 0 {
            open.iter_mut().for_each(|r| r.first = Some(Instant::now()));
            return Ok(());
        }
        let n = open.len();
        let (mut ids, mut starts, mut table) = (vec![], vec![], vec![]);
        for request in open.iter_mut() {
            let (id, place) = request.next();
            if self.pool.grow(&mut request.pages, place + 1).is_none() {
                return Err(self.pool.exhausted(request.number, place + 1, n));
            }
            ids.push(id as i32);
            starts.push(place as i32);
            table.extend(row(&request.pages, self.n_pages));
        }
        let session: &mut Session = &mut self.entries.decode;
        if session.entry().find_dim("B").is_some() {
            session.set_dim("B", n as i64)?;
        }
        session.write_input("tokens", &ids)?;
        session.write_input("start", &starts)?;
        session.write_input(PAGES, &table)?;
        session.run()?;
        let mut logits = vec![0f32; n * self.entries.vocab];
        session.read_into("logits", &mut logits)?;
        for (request, logits) in open.iter_mut().zip(logits.chunks(self.entries.vocab)) {
            let id = sampler.choose(logits, request.made.len() as u64);
            request.made.push(id);
            request.first.get_or_insert_with(Instant::now);
            let full = request.next().1 >= self.entries.context;
            request.open = request.made.len() < work.max_new && !full && work.end != Some(id);
        }
        Ok(())
    }
}

/// A request's row of the table.
fn row(pages: &[u32], n: usize) -> Vec<i32> {
    let held = pages.iter().map(|page| *page as i32);
    held.chain(std::iter::repeat(-1)).take(n).collect()
}
