//! `generate` on a graph, for `weft` and `weft-run` alike.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_graph::Graph;

use super::batch::{Batch, Event};
use super::shown::Shown;
use super::unit::{Unit, Work};
use super::{DECODE, GenerateError, Generated, Generator, RANKS, Sampling, tokenizer};
use crate::checkpoint::reader::CheckpointReader;
use crate::checkpoint::{CONFIG, run_folder};
use crate::data::tokenizer::Tokenizer;
use crate::device::{Cpu, DeviceKind};
use crate::exec::{ExecError, Program};
use crate::ranks::fault::Fault;
use crate::ranks::start::{self, RankArgs};
use crate::ranks::{Rank, last_action};

/// What to continue and how.
#[derive(clap::Args, Clone, Debug)]
pub struct TextArgs {
    /// A Hugging Face folder, or the folder of a run, whose newest checkpoint is taken
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Text to continue; may be repeated
    #[arg(long, required_unless_present = "token_ids")]
    pub prompt: Vec<String>,
    /// Token ids to continue; ids are printed; may be repeated
    #[arg(long, value_name = "ID,..", conflicts_with = "prompt")]
    pub token_ids: Vec<Ids>,
    /// Tokens to make at most
    #[arg(long, default_value_t = 128)]
    pub max_new: usize,
    /// Take the likeliest token each time
    #[arg(long, conflicts_with_all = ["temperature", "top_p"])]
    pub greedy: bool,
    /// Logits are divided by this; 0 is greedy
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Draw among the likeliest tokens that have this share together
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f64,
    /// What draws follow from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A Hugging Face tokenizer.json, or its folder; without, the checkpoint's, else bytes
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceKind,
    /// Threads to compute on; the numbers do not depend on it [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub ranks: RankArgs,
}

/// Token ids between commas.
#[derive(Clone, Debug)]
pub struct Ids(pub Vec<u32>);

impl std::str::FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> Result<Ids, String> {
        let id = |word: &str| word.trim().parse().map_err(|e| format!("`{word}`: {e}"));
        text.split(',').map(id).collect::<Result<_, String>>().map(Ids)
    }
}

/// The folder with the weights: `folder` itself, or the newest checkpoint of the run in it.
pub fn checkpoint_folder(folder: &Path) -> Result<PathBuf, GenerateError> {
    if folder.join(CONFIG).exists() {
        return Ok(folder.to_owned());
    }
    let latest = run_folder::find_latest(folder)?;
    Ok(latest.map_or_else(|| folder.to_owned(), |l| l.folder))
}

impl TextArgs {
    /// The prompts' ids.
    pub fn prompt_ids(&self, folder: &Path) -> Result<Vec<Vec<u32>>, GenerateError> {
        if !self.token_ids.is_empty() {
            return Ok(self.token_ids.iter().map(|ids| ids.0.clone()).collect());
        }
        let tokenizer = tokenizer(self.tokenizer.as_deref(), folder)?;
        let ids = |text: &String| {
            let mut ids: Vec<u32> = tokenizer.special().bos.into_iter().collect();
            ids.extend(tokenizer.encode(text)?);
            Ok(ids)
        };
        self.prompt.iter().map(ids).collect()
    }

    fn sampling(&self) -> Sampling {
        match self.greedy {
            true => Sampling::Greedy,
            false => Sampling::Random {
                temperature: self.temperature,
                top_p: self.top_p,
                seed: self.seed,
            },
        }
    }
}

/// Continues the prompts, printing each token's text as it comes, or all ids at the end.
pub fn generate(graph: Graph, args: &TextArgs) -> Result<(), GenerateError> {
    if start::reports() {
        last_action::warn(&args.checkpoint);
    }
    let folder = checkpoint_folder(&args.checkpoint)?;
    let (compiled, given) = (n_ranks(&graph), args.ranks.n_ranks()?);
    if given != compiled {
        return Err(GenerateError::OtherRanks { compiled, given });
    }
    args.ranks.check_transport(given, args.device)?;
    if compiled > 1 {
        return together(graph, args, &folder, compiled);
    }
    let checkpoint = CheckpointReader::open(&folder)?;
    let threads = args.threads.unwrap_or_else(Cpu::threads_here).max(1);
    let device = args.device.open(threads).map_err(ExecError::from)?;
    let program = Program::load(graph, device)?;
    if Batch::takes(&program) {
        return at_once(&program, args, &checkpoint);
    }
    let mut generator = Generator::load(&program, &checkpoint)?;
    let prompts = args.prompt_ids(&folder)?;
    if args.prompt.is_empty() {
        for prompt in &prompts {
            let go_on = &mut |_| ControlFlow::Continue(());
            let made = generator.run(prompt, args.max_new, args.sampling(), go_on)?;
            println!("{}", list(&made.ids));
            eprintln!("{made}");
        }
        return Ok(());
    }
    let tokenizer = tokenizer(args.tokenizer.as_deref(), &folder)?;
    let eos = end(&tokenizer, &checkpoint);
    let mut out = std::io::stdout().lock();
    for (text, prompt) in args.prompt.iter().zip(&prompts) {
        let mut decoder = tokenizer.decoder();
        // A reader that closed the pipe has seen enough.
        let mut show =
            |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
        let mut open = show(text);
        let made = generator.run(prompt, args.max_new, args.sampling(), &mut |id| {
            if Some(id) == eos || !open {
                return ControlFlow::Break(());
            }
            open = show(&decoder.push(id));
            ControlFlow::Continue(())
        })?;
        let rest = decoder.finish() + "\n";
        show(&rest);
        eprintln!("{made}");
    }
    Ok(())
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The token that ends a text.
fn end(tokenizer: &Tokenizer, checkpoint: &CheckpointReader) -> Option<u32> {
    tokenizer.special().eos.or_else(|| {
        let id = checkpoint.config().get("eos_token_id")?.as_u64()?;
        u32::try_from(id).ok()
    })
}

/// The ranks that a graph is for.
fn n_ranks(graph: &Graph) -> usize {
    let meta = graph.entry(DECODE).and_then(|entry| entry.meta.get(RANKS)?.as_u64());
    meta.map_or(1, |n| n as usize)
}

/// The same on several ranks; the first process shows all texts when all are there, in the order of
/// their prompts.
fn together(graph: Graph, args: &TextArgs, folder: &Path, n: usize) -> Result<(), GenerateError> {
    let checkpoint = CheckpointReader::open(folder)?;
    let (work, tokenizer) = work(args, &checkpoint)?;
    let threads = (args.threads.unwrap_or_else(Cpu::threads_here) / n).max(1);
    let (limit, stop) = (args.ranks.limit()?, work.end);
    let (device, transport, of) = (args.device, args.ranks.transport, folder.to_owned());
    let fault = Fault::from_env().map_err(GenerateError::Fault)?;
    let all = start::run(n, limit, move |comm| -> Result<_, GenerateError> {
        let device = device.open_for(threads, comm.rank()).map_err(ExecError::from)?;
        let link = transport.link(&*comm, limit)?;
        let program = Program::load(graph.clone(), device)?;
        let checkpoint = CheckpointReader::open(&of)?;
        let rank = Rank::new(comm, 0, None, fault.clone());
        let rank = match link {
            Some(link) => rank.with_link(link),
            None => rank,
        };
        Unit::load(&program, &checkpoint, rank)?.run(&work)
    })?;
    if !start::reports() {
        return Ok(());
    }
    // Every rank has the texts of all.
    let made = all.into_iter().next().unwrap_or_default();
    let made: Vec<Generated> = made.into_iter().map(|(_, made)| made).collect();
    show(&made, args, tokenizer.as_ref(), stop);
    Ok(())
}

/// Several requests over caches in pages; texts are shown in the order of their prompts, as they
/// come.
fn at_once(
    program: &Arc<Program>,
    args: &TextArgs,
    checkpoint: &CheckpointReader,
) -> Result<(), GenerateError> {
    let (work, tokenizer) = work(args, checkpoint)?;
    let heads = match &tokenizer {
        Some(_) => args.prompt.clone(),
        None => vec![String::new(); work.prompts.len()],
    };
    let mut batch = Batch::load(program, checkpoint)?;
    let out = std::io::stdout().lock();
    let mut shown = Shown::new(out, &heads, tokenizer.as_ref(), work.end);
    let (made, report) = batch.run(&work, &mut |number, event| match event {
        Event::Token(id) => shown.token(number, id),
        Event::End => shown.end(number),
    })?;
    made.iter().for_each(|made| eprintln!("{made}"));
    eprintln!("{report}");
    Ok(())
}

/// What is asked for, and the tokenizer that texts need.
fn work(
    args: &TextArgs,
    checkpoint: &CheckpointReader,
) -> Result<(Work, Option<Tokenizer>), GenerateError> {
    let folder = checkpoint.folder();
    let prompts = args.prompt_ids(folder)?;
    let tokenizer = match args.prompt.is_empty() {
        true => None,
        false => Some(tokenizer(args.tokenizer.as_deref(), folder)?),
    };
    let work = Work {
        prompts,
        max_new: args.max_new,
        sampling: args.sampling(),
        end: tokenizer.as_ref().and_then(|t| end(t, checkpoint)),
    };
    Ok((work, tokenizer))
}

/// Prints what came of each prompt, in their order.
fn show(made: &[Generated], args: &TextArgs, tokenizer: Option<&Tokenizer>, stop: Option<u32>) {
    let mut out = std::io::stdout().lock();
    for (number, made) in made.iter().enumerate() {
        let line = match tokenizer {
            None => list(&made.ids),
            Some(tokenizer) => {
                let mut decoder = tokenizer.decoder();
                let ids = made.ids.iter().filter(|id| Some(**id) != stop);
                let text: String = ids.map(|id| decoder.push(*id)).collect();
                format!("{}{text}{}", args.prompt[number], decoder.finish())
            }
        };
        // A reader that closed the pipe has seen enough.
        if writeln!(out, "{line}").is_err() {
            break;
        }
        eprintln!("{made}");
    }
}
