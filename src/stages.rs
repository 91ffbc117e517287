//! `--schedule`: the order in which the ranks of a pipeline do their micro-batches.

use anyhow::{Context, Result, bail};
use weft_lang::settings::{Parallel, TrainSettings};
use weft_passes::Mesh;
use weft_schedule::{Name, Size, Table, UnitCosts, check, csv, generate};

use crate::plan;

/// The schedule of a pipeline.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct StagesArgs {
    /// Order of a pipeline's micro-batches: a schedule's name (`weft schedule`), or a table as CSV
    /// [default: 1f1b]
    #[arg(long, value_name = "NAME|FILE.csv")]
    schedule: Option<String>,
    /// Stages of a rank, for schedules that take any number [default: 2]
    #[arg(long, value_name = "K")]
    stages_per_rank: Option<usize>,
    /// How many layers each stage has, in order [default: the slowest rank as fast as can be]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    stage_layers: Vec<usize>,
}

/// The stages of a pipeline.
pub struct Stages {
    /// What each rank does, proved.
    pub table: Table,
    /// How many layers each stage has, where somebody said so.
    pub layers: Option<Vec<usize>>,
}

impl StagesArgs {
    pub fn is_given(&self) -> bool {
        self.schedule.is_some() || self.stages_per_rank.is_some() || !self.stage_layers.is_empty()
    }

    /// Those of the mesh's pipeline; of the parallel block, if there is one.
    pub fn stages(
        &self,
        mesh: &Mesh,
        layout: Option<&Parallel>,
        train: &TrainSettings,
    ) -> Result<Option<Stages>> {
        if mesh.pipeline == 1 {
            if self.is_given() {
                bail!(
                    "--schedule is for ranks along pipeline, and so is what its stages have: give \
                     --mesh pipeline=N"
                );
            }
            return Ok(None);
        }
        let Some(batch) = train.batch.as_constant() else {
            bail!("not available yet: a pipeline with a batch that changes on the way");
        };
        let n_ranks = usize::try_from(mesh.pipeline)?;
        let n = batch as u64 / train.micro_batch / mesh.data;
        let n_micro_batches = usize::try_from(n.max(1))?;
        let table = match (layout, self.schedule.as_deref()) {
            (Some(layout), _) => {
                let layout = Parallel { micro_batches: Some(n), ..layout.clone() };
                plan::table(&layout, train)?
            }
            (None, Some(path)) if path.ends_with(".csv") => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
                let table = csv::read(&text).with_context(|| path.to_string())?;
                check(&table, &UnitCosts::default()).with_context(|| path.to_string())?;
                table
            }
            (None, name) => {
                let name = Name::parse(name.unwrap_or(Name::OneFOneB.as_str()))?;
                let stages_per_rank = self.stages_per_rank.or(name.stages_per_rank()).unwrap_or(2);
                generate(name, Size { n_ranks, n_micro_batches, stages_per_rank })?
            }
        };
        if table.n_ranks() != n_ranks {
            let has = table.n_ranks();
            bail!(
                "the schedule has {has} ranks, and pipeline = {n_ranks}; give --mesh \
                 pipeline={has}"
            );
        }
        if table.n_micro_batches() != n_micro_batches {
            let has = table.n_micro_batches();
            bail!(
                "the schedule has {has} micro-batches, and train block `{}` makes it \
                 {n_micro_batches} for each pipeline (batch = {batch}, micro_batch = {}, data = \
                 {}); change one",
                train.name,
                train.micro_batch,
                mesh.data
            );
        }
        let own = (!self.stage_layers.is_empty()).then(|| self.stage_layers.clone());
        let layers = own.or_else(|| layout.and_then(|l| l.stage_layers.clone()));
        Ok(Some(Stages { table, layers }))
    }
}
