//! `weft eplb`: experts placed on GPUs by loads that were recorded.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_schedule::experts::{Balance, Places, balance};

/// Place copies of experts on GPUs so that recorded loads are spread evenly
#[derive(clap::Args)]
pub struct Args {
    /// Loads: a line for each layer, a number for each expert, between commas or blanks; or JSON,
    /// [[..], ..]
    loads: PathBuf,
    /// Copies of experts, all together [default: one each]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
    /// Groups of experts that a token's choice is limited to
    #[arg(long, value_name = "N", default_value_t = 1)]
    groups: usize,
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    #[arg(long, value_name = "N")]
    gpus: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let layers = read(&args.loads)?;
    let n_experts = layers.first().map_or(0, Vec::len);
    let places = Places {
        n_replicas: args.replicas.unwrap_or(n_experts),
        n_groups: args.groups,
        n_nodes: args.nodes,
        n_gpus: args.gpus,
    };
    let mut all = vec![];
    for (i, loads) in layers.iter().enumerate() {
        all.push(balance(loads, places).with_context(|| format!("layer {i}"))?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&all))?);
        return Ok(());
    }
    let policy = match (places.hierarchical(), places.n_nodes) {
        (true, 1) => "on one node".to_string(),
        (true, n) => format!("{} groups to each of {n} nodes", places.n_groups / n),
        (false, n) => format!("groups across nodes: {} do not divide among {n}", places.n_groups),
    };
    println!(
        "{} replicas of {n_experts} experts on {} GPUs, {policy}",
        places.n_replicas, args.gpus
    );
    for (i, (loads, b)) in layers.iter().zip(&all).enumerate() {
        let gpus = b.gpu_loads(loads, places.n_gpus);
        let mean = gpus.iter().sum::<f64>() / gpus.len().max(1) as f64;
        let most = gpus.iter().copied().fold(0.0, f64::max);
        let over = if mean > 0.0 { most / mean } else { 1.0 };
        println!("layer {i}: the fullest GPU has {over:.3} of the mean");
        let per_gpu = places.n_replicas / places.n_gpus;
        for (gpu, experts) in b.experts.chunks(per_gpu).enumerate() {
            let list: Vec<String> = experts.iter().map(usize::to_string).collect();
            println!("  gpu {gpu}: {}", list.join(" "));
        }
    }
    Ok(())
}

/// The maps of the published tool: the expert of each place, the places of each expert, the copies.
fn as_json(all: &[Balance]) -> Value {
    let layer = |b: &Balance| {
        json!({
            "physical_to_logical": b.experts,
            "logical_to_physical": b.places(),
            "logical_count": b.n_copies,
        })
    };
    all.iter().map(layer).collect()
}

/// Loads of each layer's experts.
pub fn read(path: &Path) -> Result<Vec<Vec<f64>>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let layers: Vec<Vec<f64>> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text)
            .with_context(|| format!("{shown}: expected a list of numbers for each layer"))?
    } else {
        let mut layers = vec![];
        for (i, line) in text.lines().enumerate() {
            let words = line.split(|c: char| c == ',' || c.is_whitespace());
            let numbers: Vec<&str> = words.filter(|w| !w.is_empty()).collect();
            if numbers.is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let number = |w: &&str| match w.parse::<f64>() {
                Ok(n) => Ok(n),
                Err(_) => bail!("{shown}, line {}: expected a load, found {w}", i + 1),
            };
            layers.push(numbers.iter().map(number).collect::<Result<_>>()?);
        }
        layers
    };
    let n = layers.first().map_or(0, Vec::len);
    if n == 0 {
        bail!("{shown}: no loads; expected a line for each layer with a number for each expert");
    }
    if let Some(i) = layers.iter().position(|l| l.len() != n) {
        bail!("{shown}: layer 0 has {n} experts, and layer {i} has {}", layers[i].len());
    }
    Ok(layers)
}
