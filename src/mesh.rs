//! `--mesh` and `--parallel`: how many ranks share a training step, and how.

use std::path::Path;

use anyhow::{Result, bail};
use weft_ir::module::Module;
use weft_lang::elaborate::Tree;
use weft_lang::settings::{self, GradientSums, Parallel, TrainSettings};
use weft_passes::{Copies, Mesh, PassCx};
use weft_runtime::ranks::start;

use crate::exchange::{ExchangeArgs, contracted};
use crate::frontend::{self, Source};
use crate::placement;
use crate::stages::{Stages, StagesArgs};

/// The ranks that a step is compiled for.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct MeshArgs {
    #[command(flatten)]
    axes: AxesArgs,
    #[command(flatten)]
    exchange: ExchangeArgs,
    #[command(flatten)]
    stages: StagesArgs,
}

/// How many ranks there are, and what they divide.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AxesArgs {
    /// Ranks along each axis of the mesh. `data`: each has its part of the micro-batches [default:
    /// all --ranks along data]; `experts`: so many neighbours along data have the experts of a
    /// layer between them; `tensor`: they share each product; `sequence`, as many as `tensor`:
    /// those divide the tokens of the rest, too; `pipeline`: each has stages of the model
    #[arg(long, value_name = "AXIS=N", value_delimiter = ',')]
    mesh: Vec<String>,
    /// The same from a parallel block of the model
    #[arg(long, value_name = "NAME", conflicts_with_all = ["mesh", "zero"])]
    parallel: Option<String>,
    /// What ranks along data divide: 0 nothing; 1 weights and the optimizer's states, gathered for
    /// each step (ZeRO-1)
    #[arg(long, value_name = "STAGE", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=1))]
    zero: u8,
}

const AXES: &[&str] = &["data", "experts", "tensor", "sequence", "pipeline"];

/// Those that ranks are counted along, outermost first.
const ORDER: &[&str] = &["pipeline", "data", "context", "tensor"];

impl MeshArgs {
    pub fn is_given(&self) -> bool {
        self.axes.is_given() || self.exchange.is_given() || self.stages.is_given()
    }

    /// That the model has what the parallel block divides; `entry` is the function with the layers.
    pub fn check_model(
        &self,
        source: &Source,
        tree: &Tree,
        module: &Module,
        entry: &str,
    ) -> Result<()> {
        let Some(chosen) = &self.axes.parallel else { return Ok(()) };
        let mut diags = vec![];
        settings::parallel::check_model(tree, module, entry, Some(chosen), &mut diags);
        frontend::show(&source.map, &diags)
    }

    /// The ranks of entries that serve, `experts=N`, each with requests of its own, and the copies
    /// of experts that they have between them; `ranks` is how many there will be, if the command
    /// says so.
    pub fn serving(
        &self,
        ranks: Option<usize>,
        source: &Source,
        tree: &Tree,
    ) -> Result<Option<Serving>> {
        let hint = "give --mesh experts=N: each rank has requests of its own, and its experts";
        if self.axes.zero > 0 || self.exchange.sums() || self.stages.is_given() {
            bail!("ranks that serve have no stages, no gradients and no optimizer: {hint}");
        }
        let mut serving = Serving::default();
        if let Some(name) = &self.axes.parallel {
            let mut diags = vec![];
            let layout = settings::parallel(tree, name, &mut diags);
            frontend::show(&source.map, &diags)?;
            if let Some(layout) = layout {
                serving = serves(&layout)?;
            }
        } else if let (true, Some(n)) = (self.axes.mesh.is_empty(), ranks) {
            (serving.mesh.data, serving.mesh.experts) = (n as u64, n as u64);
        } else if !self.axes.mesh.is_empty() {
            let [text] = &self.axes.mesh[..] else { bail!("ranks that serve: {hint}") };
            let Some(n) = text.strip_prefix("experts=") else { bail!("--mesh {text}: {hint}") };
            let n = number(text, n)?;
            (serving.mesh.data, serving.mesh.experts) = (n, n);
        }
        self.exchange.put(&mut serving.mesh)?;
        let n = serving.mesh.n_ranks();
        match ranks {
            Some(given) if given as u64 != n => bail!(
                "{} has {n} ranks, and {}",
                self.axes.name(),
                start::other(usize::try_from(n)?, given)
            ),
            _ => {}
        }
        Ok((n > 1 || serving.copies.is_some()).then_some(serving))
    }

    /// The mesh and the order of its pipeline, where there is more than one rank; `ranks` is how
    /// many there will be, if the command says so.
    pub fn mesh(
        &self,
        ranks: Option<usize>,
        source: &Source,
        tree: &Tree,
        train: &TrainSettings,
    ) -> Result<Option<(Mesh, Option<Stages>)>> {
        let mut block = None;
        let mut mesh = Mesh { zero: self.axes.zero > 0, ..Mesh::default() };
        if let Some(name) = &self.axes.parallel {
            let mut diags = vec![];
            let layout = settings::parallel(tree, name, &mut diags);
            frontend::show(&source.map, &diags)?;
            if let Some(layout) = layout {
                mesh = runnable(&layout, train)?;
                block = Some(layout);
            }
        } else if let (true, Some(n)) = (self.axes.mesh.is_empty(), ranks) {
            mesh.data = n.max(1) as u64;
        }
        self.axes.given(&mut mesh)?;
        self.exchange.put(&mut mesh)?;
        check_experts(&mesh)?;
        match ranks {
            Some(given) if given as u64 != mesh.n_ranks() => bail!(
                "{} has {} ranks, and {}",
                self.axes.name(),
                mesh.n_ranks(),
                start::other(usize::try_from(mesh.n_ranks())?, given)
            ),
            _ => {}
        }
        let stages = self.stages.stages(&mesh, block.as_ref(), train)?;
        Ok((mesh.n_ranks() > 1).then_some((mesh, stages)))
    }
}

impl AxesArgs {
    pub fn is_given(&self) -> bool {
        !self.mesh.is_empty() || self.parallel.is_some() || self.zero > 0
    }

    /// Who says what ranks there are.
    fn name(&self) -> String {
        self.parallel.as_ref().map_or("--mesh".into(), |name| format!("`{name}`"))
    }

    /// The axes of `--mesh`.
    fn given(&self, mesh: &mut Mesh) -> Result<()> {
        let mut sequence = 1;
        for (i, text) in self.mesh.iter().enumerate() {
            let Some((axis, n)) = text.split_once('=') else {
                bail!("--mesh {text}: expected AXIS=N");
            };
            let n = number(text, n)?;
            let again = |t: &String| t.split_once('=').is_some_and(|(a, _)| a == axis);
            if self.mesh[..i].iter().any(again) {
                bail!("--mesh {text}: {axis} is given twice");
            }
            match axis {
                "data" => mesh.data = n,
                "experts" => mesh.experts = n,
                "tensor" => mesh.tensor = n,
                "sequence" => sequence = n,
                "pipeline" => mesh.pipeline = n,
                _ => bail!("--mesh {text}: no axis {axis}; there are: {}", AXES.join(", ")),
            }
        }
        if sequence > 1 {
            let tensor = mesh.tensor;
            if sequence != tensor {
                bail!(
                    "--mesh sequence={sequence}: tokens are divided among the ranks along tensor, \
                     which are {tensor}; give sequence={tensor}, or leave it out"
                );
            }
            mesh.sequence = true;
        }
        Ok(())
    }

    /// The mesh alone, whatever it trains with. Ranks along experts are among those along data, so
    /// there are as many of these where nothing is said of them.
    pub fn explained(&self, source: &Source, tree: &Tree) -> Result<Mesh> {
        let mut mesh = Mesh { zero: self.zero > 0, ..Mesh::default() };
        if let Some(name) = &self.parallel {
            let mut diags = vec![];
            let layout = settings::parallel(tree, name, &mut diags);
            frontend::show(&source.map, &diags)?;
            if let Some(layout) = layout {
                mesh = divided(&layout)?;
            }
        }
        self.given(&mut mesh)?;
        if !self.mesh.iter().any(|text| text.starts_with("data=")) {
            mesh.data = mesh.data.max(mesh.experts);
        }
        check_experts(&mesh)?;
        Ok(mesh)
    }
}

/// How a unit of ranks serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Serving {
    pub mesh: Mesh,
    pub copies: Option<Copies>,
}

impl Serving {
    /// What the passes are told; the second half of a batch is half a layer behind in decoding.
    pub fn cx(&self, decodes: bool) -> PassCx {
        let mesh = (self.mesh.n_ranks() > 1).then_some(self.mesh);
        PassCx {
            two_batches: mesh.is_some(),
            staggered: decodes,
            copies: self.copies.clone(),
            mesh,
            ..PassCx::default()
        }
    }
}

/// The unit that a layout describes.
fn serves(layout: &Parallel) -> Result<Serving> {
    let name = &layout.name;
    let (data, experts) = (layout.data, layout.experts);
    let other = layout.axes().into_iter().find(|(axis, _)| !["data", "experts"].contains(axis));
    if let Some((axis, n)) = other {
        bail!(
            "not available yet: serving with ranks along {axis} (`{name}` has {axis} = {n}); \
             `weft plan` simulates training with it"
        );
    }
    if data != experts {
        bail!(
            "ranks that serve share their experts among all, and `{name}` has data = {data}, \
             experts = {experts}; give both the same"
        );
    }
    let redundant = layout.redundant_experts;
    let lines = layout.placement.as_deref().map(|p| placement::read(Path::new(p))).transpose()?;
    let copies = Copies { redundant, lines: lines.unwrap_or_default() };
    Ok(Serving {
        mesh: Mesh {
            data,
            experts,
            exchange_capacity: layout.exchange_capacity,
            communication_sms: layout.communication_sms,
            ..Mesh::default()
        },
        copies: (redundant > 0 || layout.placement.is_some()).then_some(copies),
    })
}

/// The number that an axis of `--mesh` is given.
fn number(text: &str, n: &str) -> Result<u64> {
    match n.parse::<u64>() {
        Ok(n @ 1..=4096) => Ok(n),
        _ => bail!("--mesh {text}: expected a number of ranks from 1 to 4096, found {n}"),
    }
}

/// The mesh of a layout, if a step can be compiled for it.
fn runnable(layout: &Parallel, train: &TrainSettings) -> Result<Mesh> {
    let name = &layout.name;
    let mesh = divided(layout)?;
    let of = |axis: &String| layout.axes().into_iter().find(|(name, _)| name == axis);
    let own: Vec<&str> = layout.mesh.iter().filter_map(of).map(|(axis, _)| axis).collect();
    let order = ORDER.iter().copied().filter(|axis| own.contains(axis));
    if let Some((outer, inner)) = own.iter().copied().zip(order).find(|(own, axis)| own != axis) {
        bail!(
            "not available yet: ranks numbered with {outer} outside {inner} (`{name}` has mesh = \
             [{}]); write {inner} first, or leave mesh out",
            layout.mesh.join(", ")
        );
    }
    let batch = train.batch.ends().fold(0.0, f64::max) as u64;
    let n_micro = (batch / train.micro_batch / layout.data).max(1);
    let same = [
        ("micro_batch", layout.micro_batch, train.micro_batch),
        ("micro_batches", layout.micro_batches, n_micro),
    ];
    for (key, given, has) in same {
        if let Some(given) = given.filter(|given| *given != has) {
            bail!(
                "`{name}` has {key} = {given}, and train block `{}` makes it {has}; change one",
                train.name
            );
        }
    }
    Ok(mesh)
}

/// The mesh of a layout.
fn divided(layout: &Parallel) -> Result<Mesh> {
    let name = &layout.name;
    let hint = "`weft plan` simulates it";
    if let Some((axis, n)) = layout.axes().into_iter().find(|(axis, _)| !AXES.contains(axis)) {
        bail!("not available yet: ranks along {axis} (`{name}` has {axis} = {n}); {hint}");
    }
    Ok(Mesh {
        pipeline: layout.pipeline,
        data: layout.data,
        tensor: layout.tensor,
        sequence: layout.sequence > 1,
        experts: layout.experts,
        expert_gradients: contracted(layout.expert_gradients),
        exchange_capacity: layout.exchange_capacity,
        sums_in_order: layout.gradient_sums == GradientSums::InOrder,
        zero: layout.zero > 0,
        communication_sms: layout.communication_sms,
    })
}

/// Refuses ranks along experts that are not among those along data.
fn check_experts(mesh: &Mesh) -> Result<()> {
    let (data, experts) = (mesh.data, mesh.experts);
    if data.is_multiple_of(experts) {
        return Ok(());
    }
    let legal = (1..=experts.min(data)).rev().find(|n| data.is_multiple_of(*n)).unwrap_or(1);
    bail!(
        "{experts} ranks along experts do not divide the {data} along data; the nearest is \
         experts = {legal}"
    );
}

/// Refuses a batch that the ranks cannot share evenly.
pub fn check_batch(mesh: &Mesh, train: &TrainSettings) -> Result<()> {
    let data = mesh.data;
    if data == 1 {
        return Ok(());
    }
    let Some(batch) = train.batch.as_constant() else {
        bail!("not available yet: ranks along data ({data}) with a batch that changes on the way");
    };
    let n_micro = (batch as u64 / train.micro_batch).max(1);
    // What a binary tree of micro-batches can be cut into.
    let most = 1 << n_micro.trailing_zeros();
    if !data.is_power_of_two() || data > most {
        let legal = (1 << data.ilog2()).min(most);
        bail!(
            "{data} ranks along data cannot share {n_micro} micro-batches (batch = {batch}, \
             micro_batch = {}): these are added in halves, so the ranks are a power of two that \
             divides them; the nearest is data = {legal}",
            train.micro_batch
        );
    }
    Ok(())
}
