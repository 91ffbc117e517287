//! `--mesh`: how many ranks share a training step, and how.

use anyhow::{Result, bail};
use weft_lang::settings::TrainSettings;
use weft_passes::Mesh;

/// The ranks that a step is compiled for.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct MeshArgs {
    /// Ranks along each axis of the mesh. `data`: each has its part of the micro-batches
    /// [default: all --ranks along data]
    #[arg(long, value_name = "AXIS=N", value_delimiter = ',')]
    mesh: Vec<String>,
}

const AXES: &[&str] = &["data"];

impl MeshArgs {
    pub fn is_given(&self) -> bool {
        !self.mesh.is_empty()
    }

    /// The mesh, where there is more than one rank; `ranks` is how many there will be, if the
    /// command says so.
    pub fn mesh(&self, ranks: Option<usize>) -> Result<Option<Mesh>> {
        let mut mesh = Mesh { data: 1 };
        if let (true, Some(n)) = (self.mesh.is_empty(), ranks) {
            mesh.data = n.max(1) as u64;
        }
        for (i, text) in self.mesh.iter().enumerate() {
            let Some((axis, n)) = text.split_once('=') else {
                bail!("--mesh {text}: expected AXIS=N");
            };
            let n = match n.parse::<u64>() {
                Ok(n @ 1..=4096) => n,
                _ => bail!("--mesh {text}: expected a number of ranks from 1 to 4096, found {n}"),
            };
            let again = |t: &String| t.split_once('=').is_some_and(|(a, _)| a == axis);
            if self.mesh[..i].iter().any(again) {
                bail!("--mesh {text}: {axis} is given twice");
            }
            match axis {
                "data" => mesh.data = n,
                _ => bail!("--mesh {text}: no axis {axis}; there are: {}", AXES.join(", ")),
            }
        }
        match ranks {
            Some(given) if given as u64 != mesh.n_ranks() => bail!(
                "--mesh has {} ranks, and --ranks is {given}; give --ranks {0}",
                mesh.n_ranks()
            ),
            _ => Ok((mesh.n_ranks() > 1).then_some(mesh)),
        }
    }
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
