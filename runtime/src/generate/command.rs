//! `generate` on a graph, for `weft` and `weft-run` alike.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use weft_graph::Graph;

use super::{GenerateError, Generator, Sampling, tokenizer};
use crate::checkpoint::reader::CheckpointReader;
use crate::checkpoint::{CONFIG, run_folder};
use crate::device::{Cpu, DeviceKind};
use crate::exec::{ExecError, Program};
use crate::ranks::last_action;

/// What to continue and how.
#[derive(clap::Args, Clone, Debug)]
pub struct TextArgs {
    /// A Hugging Face folder, or the folder of a run, whose newest checkpoint is taken
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Text to continue
    #[arg(long, required_unless_present = "token_ids")]
    pub prompt: Option<String>,
    /// Token ids to continue; ids are printed
    #[arg(long, value_delimiter = ',', value_name = "ID,..", conflicts_with = "prompt")]
    pub token_ids: Option<Vec<u32>>,
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
    /// The prompt's ids.
    pub fn prompt_ids(&self, folder: &Path) -> Result<Vec<u32>, GenerateError> {
        if let Some(ids) = &self.token_ids {
            return Ok(ids.clone());
        }
        let tokenizer = tokenizer(self.tokenizer.as_deref(), folder)?;
        let text = self.prompt.as_deref().unwrap_or("");
        let mut ids: Vec<u32> = tokenizer.special().bos.into_iter().collect();
        ids.extend(tokenizer.encode(text)?);
        Ok(ids)
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

/// Continues the prompt, printing each token's text as it comes, or all ids at the end.
pub fn generate(graph: Graph, args: &TextArgs) -> Result<(), GenerateError> {
    last_action::warn(&args.checkpoint);
    let folder = checkpoint_folder(&args.checkpoint)?;
    let checkpoint = CheckpointReader::open(&folder)?;
    let threads = args.threads.unwrap_or_else(Cpu::threads_here).max(1);
    let device = args.device.open(threads).map_err(ExecError::from)?;
    let program = Program::load(graph, device)?;
    let mut generator = Generator::load(&program, &checkpoint)?;
    let prompt = args.prompt_ids(&folder)?;
    if args.token_ids.is_some() {
        let go_on = &mut |_| ControlFlow::Continue(());
        let made = generator.run(&prompt, args.max_new, args.sampling(), go_on)?;
        let texts: Vec<String> = made.ids.iter().map(u32::to_string).collect();
        println!("{}", texts.join(","));
        eprintln!("{made}");
        return Ok(());
    }
    let tokenizer = tokenizer(args.tokenizer.as_deref(), &folder)?;
    let eos = tokenizer.special().eos.or_else(|| {
        let id = checkpoint.config().get("eos_token_id")?.as_u64()?;
        u32::try_from(id).ok()
    });
    let mut decoder = tokenizer.decoder();
    let mut out = std::io::stdout().lock();
    // A reader that closed the pipe has seen enough.
    let mut show = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok();
    let mut open = show(args.prompt.as_deref().unwrap_or(""));
    let made = generator.run(&prompt, args.max_new, args.sampling(), &mut |id| {
        if Some(id) == eos || !open {
            return ControlFlow::Break(());
        }
        open = show(&decoder.push(id));
        ControlFlow::Continue(())
    })?;
    let rest = decoder.finish() + "\n";
    show(&rest);
    eprintln!("{made}");
    Ok(())
}
