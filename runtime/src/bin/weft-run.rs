//! `weft-run COMMAND GRAPH.weft`: all a machine needs that only runs executable graphs.

use clap::{Parser, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use weft_graph::{Entry, Graph, Role};
use weft_runtime::device::list::{DevicesArgs, devices};
use weft_runtime::generate::command::{TextArgs, generate};
use weft_runtime::train::command::{RunArgs, train};
use weft_runtime::train::pictures::Runs;

/// Run executable graphs.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what the graph holds: entries with their dims and buffers, kernels
    Info {
        /// The graph, as `weft compile` writes it
        graph: PathBuf,
        /// Print the steps of each entry too
        #[arg(long)]
        steps: bool,
    },
    /// Train a graph that was compiled with --for train
    Train {
        /// The graph, as `weft compile` writes it
        graph: PathBuf,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Draw the losses and the expert load of several runs side by side
    Plot {
        /// Folders of runs
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Folder for the pictures
        #[arg(short, long, default_value = ".")]
        output: PathBuf,
    },
    /// Continue a text with a graph that was compiled with --for decode
    Generate {
        /// The graph, as `weft compile` writes it
        graph: PathBuf,
        #[command(flatten)]
        text: TextArgs,
    },
    /// List what could run a graph on this machine, and why the rest could not
    Devices(DevicesArgs),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    match &args.command {
        Command::Info { graph, steps } => {
            info(&Graph::inspect(graph)?, *steps, &mut io::stdout().lock())?;
        }
        Command::Train { graph, run } => {
            train(vec![Graph::open(graph)?], run)?;
        }
        Command::Plot { runs, output } => {
            let runs = Runs::read(runs)?;
            print!("{}", runs.table(200));
            for picture in runs.draw(output)? {
                println!("picture: {}", picture.display());
            }
        }
        Command::Devices(args) => devices(args, &mut io::stdout().lock())?,
        Command::Generate { graph, text } => generate(Graph::open(graph)?, text)?,
    }
    Ok(())
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn info(graph: &Graph, steps: bool, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "compiler  {}", graph.compiler)?;
    writeln!(out, "source    {}", graph.source)?;
    writeln!(out, "command   {}", graph.command)?;
    match graph.check_cpu() {
        Ok(()) => writeln!(out, "runs here yes")?,
        Err(reason) => writeln!(out, "runs here no: {reason}")?,
    }
    for entry in &graph.entries {
        writeln!(out)?;
        if steps {
            write!(out, "{}", graph.display(entry))?;
        } else {
            write!(out, "{}", graph.display_buffers(entry))?;
        }
        writeln!(out, "  bytes at the bounds: {}", sizes_text(entry))?;
    }
    writeln!(out, "\nkernels")?;
    for kernel in &graph.kernels {
        let variants: Vec<String> = kernel
            .variants
            .iter()
            .map(|variant| format!("{} in object {}", variant.cpu.name(), variant.object.0))
            .collect();
        let ptx = kernel
            .ptx
            .as_ref()
            .map(|code| format!("{} threads in PTX {}", code.threads, code.object.0));
        let variants: Vec<String> = variants.into_iter().chain(ptx).collect();
        let (name, scratch_bytes) = (&kernel.name, kernel.scratch_bytes);
        writeln!(out, "  {name}: {}; scratch {scratch_bytes} bytes", variants.join(", "))?;
    }
    writeln!(out, "\nobjects")?;
    for (position, object) in graph.objects.iter().enumerate() {
        writeln!(out, "  {position}: {} bytes", object.len())?;
    }
    Ok(())
}

/// Sums over the buffers of each role that have memory of their own.
fn sizes_text(entry: &Entry) -> String {
    let dims = entry.dims_max();
    let mut texts = vec![format!("arena {}", entry.arena_bytes)];
    for role in [Role::Input, Role::Output, Role::Weight, Role::State] {
        let of_role = |buffer: &&weft_graph::Buffer| buffer.role == role && buffer.alias.is_none();
        let sizes = entry.buffers.iter().filter(of_role).map(|b| b.size_bytes().eval(&dims));
        texts.push(format!("{}s {}", role.name(), sizes.fold(0, i64::saturating_add)));
    }
    texts.join(", ")
}
