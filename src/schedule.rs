//! `weft schedule`: pipeline schedules as tables: made, checked, drawn.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weft_schedule::generate::Name;
use weft_schedule::program::Step;
use weft_schedule::{Cell, Program, Report, Size, Table, UnitCosts, check, csv, generate, picture};

/// Print, check or draw the table of a pipeline schedule
#[derive(clap::Args)]
pub struct Args {
    /// gpipe, 1f1b, interleaved, interleaved-pairs, zb-h1, zb-interleaved, zb-v, dualpipe or
    /// dualpipe-v
    name: Option<String>,
    /// Ranks of the pipeline
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Micro-batches of a step, of both directions together
    #[arg(long, value_name = "N")]
    micro_batches: Option<usize>,
    /// Stages on a rank [default: what the schedule is made for; 2 if it takes several numbers]
    #[arg(long, value_name = "N")]
    stages_per_rank: Option<usize>,
    /// The table alone, as CSV: a line for each rank
    #[arg(long, conflicts_with = "messages")]
    csv: bool,
    /// Prove that the table, or that of FILE, is a training step, and say what it costs
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    check: Option<Option<PathBuf>>,
    /// Each rank's steps with what it receives and sends
    #[arg(long)]
    messages: bool,
    /// Draw the table as it runs
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// What a forward, an input gradient, a weight gradient and an overlapped pair take
    #[arg(long, value_name = "F,I,W,PAIR", value_delimiter = ',', default_value = "1,1,1,3")]
    times: Vec<f64>,
}

pub fn run(args: Args) -> Result<()> {
    let costs = times(&args.times)?;
    let (title, table) = table(&args)?;
    let report = match check(&table, &costs) {
        Ok(report) => report,
        Err(e) => bail!("{title}: {e}"),
    };
    if let Some(path) = &args.svg {
        let text = picture::svg(&table, &report.timeline, &title, "units");
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("picture: {}", path.display());
    }
    if args.csv {
        print!("{}", csv::write(&table));
        return Ok(());
    }
    if args.messages {
        print!("{}", steps(&table));
        return Ok(());
    }
    if args.check.is_none() && args.svg.is_none() {
        for rank in 0..table.n_ranks() {
            println!("rank {rank}: {}", table.row_text(rank));
        }
    }
    print!("{}", summary(&title, &table, &report));
    Ok(())
}

fn times(given: &[f64]) -> Result<UnitCosts> {
    match given {
        &[forward, input, weight, pair]
            if given.iter().all(|t| t.is_finite() && (0.0..1e12).contains(t)) =>
        {
            Ok(UnitCosts { forward, input, weight, pair })
        }
        _ => bail!("--times: expected four times from 0 on, such as 1,1,1,3, found {given:?}"),
    }
}

/// The table that is asked for, and what to call it.
fn table(args: &Args) -> Result<(String, Table)> {
    if let Some(Some(path)) = &args.check {
        if let Some(name) = &args.name {
            bail!("either a schedule ({name}) or a file ({}), not both", path.display());
        }
        return Ok((path.display().to_string(), read(path)?));
    }
    let Some(name) = &args.name else {
        bail!("which schedule? give its name, or a table with --check FILE");
    };
    let name = Name::parse(name)?;
    let (Some(n_ranks), Some(n_micro_batches)) = (args.ranks, args.micro_batches) else {
        bail!("{name}: give --ranks and --micro-batches");
    };
    let stages_per_rank = args.stages_per_rank.or(name.stages_per_rank()).unwrap_or(2);
    let size = Size { n_ranks, n_micro_batches, stages_per_rank };
    let stages = match stages_per_rank {
        1 => "1 stage".to_string(),
        n => format!("{n} stages"),
    };
    let title =
        format!("{name}, {n_ranks} ranks, {n_micro_batches} micro-batches, {stages} a rank");
    Ok((title, generate(name, size)?))
}

fn read(path: &Path) -> Result<Table> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    csv::read(&text).with_context(|| path.display().to_string())
}

/// What a table costs and how its channels are used.
fn summary(title: &str, table: &Table, report: &Report) -> String {
    let timeline = &report.timeline;
    let (makespan, bubble) = (timeline.makespan(), timeline.bubble());
    let live: Vec<String> = timeline.live_max.iter().map(usize::to_string).collect();
    let most = timeline.live_max.iter().max().copied().unwrap_or(0);
    let order = if report.in_order { "in the order sent" } else { "not in the order sent" };
    let capacity = match report.capacity_min {
        0 => "there are none".to_string(),
        n => format!("channels need room for {n}"),
    };
    format!(
        "{title}: a training step\n  \
         {} stages, {} cells, {} of them pairs; {} idle cells written\n  \
         makespan {makespan}, bubble {bubble} ({:.1} %)\n  \
         live activations, at most: {most} (by rank: {})\n  \
         {} messages, received {order}; at most {} in a channel; {capacity}\n",
        table.n_stages(),
        timeline.spans.iter().map(Vec::len).sum::<usize>(),
        report.n_pairs,
        report.n_idle,
        100.0 * bubble / makespan.max(f64::MIN_POSITIVE),
        live.join(" "),
        timeline.n_messages,
        timeline.channel_max,
    )
}

/// Every rank's receives, cells and sends, a line each.
fn steps(table: &Table) -> String {
    let mut out = String::new();
    for (rank, steps) in Program::of(table).ranks.iter().enumerate() {
        out += &format!("rank {rank}\n");
        for step in steps {
            out += &match *step {
                Step::Receive { from, message } => format!("  receive {message}, from {from}\n"),
                Step::Send { to, message } => format!("  send {message}, to {to}\n"),
                Step::Compute { cell } => match table.rows[rank][cell] {
                    Cell::Pair { forward, backward } => format!("  {forward} & {backward}\n"),
                    Cell::One(a) => format!("  {a}\n"),
                    Cell::Idle => String::new(),
                },
            };
        }
    }
    out
}
