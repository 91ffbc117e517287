//! Tokens per second of a graph compiled with `--for decode`: a prompt of 512 tokens, and tokens
//! one by one after a prompt of 16. After a run to warm up; each the best of several.
//!
//!     weft compile models/small.model --for decode --sequence 1024 -o small.weft
//!     cargo bench -p weft-runtime --bench generate -- small.weft CHECKPOINT
//!         [--runs 5] [--threads N]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_graph::Graph;
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::device::Cpu;
use weft_runtime::exec::Program;
use weft_runtime::generate::{Generator, Sampling};

const SHORT: usize = 16;
const LONG: usize = 512;
const NEW: usize = 256;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [graph, checkpoint, ..] = &args[..] else {
        println!("no graph given: see the head of bench/generate.rs");
        return;
    };
    let number = |name: &str, otherwise: usize| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(otherwise)
    };
    let threads = number("--threads", Cpu::threads_here());
    let graph = Graph::open(&PathBuf::from(graph)).expect("the graph opens");
    let checkpoint = CheckpointReader::open(&PathBuf::from(checkpoint)).expect("a checkpoint");
    let device = Arc::new(Cpu::new(threads).expect("threads start"));
    let program = Program::load(graph, device).expect("it loads");
    let mut generator = Generator::load(&program, &checkpoint).expect("its weights fit");
    let prompt = |len: usize| (0..len as u32).map(|i| i * 37 % 251).collect::<Vec<u32>>();
    let mut run = |len: usize, new: usize| {
        let go_on = &mut |_| ControlFlow::Continue(());
        generator.run(&prompt(len), new, Sampling::Greedy, go_on).expect("it runs")
    };
    run(SHORT, NEW);
    let (mut long, mut decoded) = (Duration::MAX, Duration::MAX);
    for _ in 0..number("--runs", 5) {
        long = long.min(run(LONG, 1).prompt.1);
        decoded = decoded.min(run(SHORT, NEW).decoded.1);
    }
    println!("prompt {:.0} tokens/s", LONG as f64 / long.as_secs_f64());
    println!("decode {:.0} tokens/s", (NEW - 1) as f64 / decoded.as_secs_f64());
}
