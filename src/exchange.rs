//! `--expert-gradients`, `--gradient-sums` and `--exchange-capacity`: how ranks sum and exchange,
//! whatever they divide. A parallel block says the same.

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use weft_lang::settings::{ExpertGradients, GradientSums};
use weft_passes::{self as passes, Mesh};

#[derive(clap::Args, Clone, Debug, Default)]
pub struct ExchangeArgs {
    /// Where ranks along experts contract rows to gradients of experts' weights: where the rows
    /// come from, which gives the bits of one rank; or with the experts, which takes less memory
    /// and fewer transfers [default: at_source]
    #[arg(long, value_name = "PLACE", conflicts_with = "parallel",
          value_parser = PossibleValuesParser::new(ExpertGradients::WORDS.map(|w| w.0)))]
    expert_gradients: Option<String>,
    /// How each of several ranks adds its micro-batches: in halves of halves, which gives the bits
    /// of one rank, or one after the other, with one sum in memory [default: tree]
    #[arg(long, value_name = "ORDER", conflicts_with = "parallel",
          value_parser = PossibleValuesParser::new(GradientSums::WORDS.map(|w| w.0)))]
    gradient_sums: Option<String>,
    /// Room for rows that come to the experts of a rank, as a multiple of those that it sends, from
    /// 1. What comes above it takes further rounds where ranks serve, and stops a step of training
    /// with an error [default: room for all]
    #[arg(long, value_name = "N", conflicts_with = "parallel")]
    exchange_capacity: Option<f64>,
}

impl ExchangeArgs {
    pub fn is_given(&self) -> bool {
        self.sums() || self.exchange_capacity.is_some()
    }

    /// Whether anything is said of gradients, which ranks that serve have none of.
    pub fn sums(&self) -> bool {
        self.expert_gradients.is_some() || self.gradient_sums.is_some()
    }

    /// Puts what is given in the mesh, which has to have the ranks for it.
    pub fn put(&self, mesh: &mut Mesh) -> Result<()> {
        if let Some(order) = &self.gradient_sums {
            let order = GradientSums::WORDS.iter().find(|w| w.0 == order).map(|w| w.1);
            mesh.sums_in_order = order == Some(GradientSums::InOrder);
            if mesh.n_ranks() == 1 {
                bail!("--gradient-sums is for several ranks; give --ranks N or --mesh");
            }
        }
        if let Some(n) = self.exchange_capacity {
            if !(1.0..=1024.0).contains(&n) {
                bail!("--exchange-capacity {n}: expected a number from 1 to 1024");
            }
            has_experts(mesh, "--exchange-capacity", &n.to_string())?;
            mesh.exchange_capacity = Some(n);
        }
        if let Some(place) = &self.expert_gradients {
            has_experts(mesh, "--expert-gradients", place)?;
            let place = ExpertGradients::WORDS.iter().find(|w| w.0 == place);
            mesh.expert_gradients = contracted(place.map_or(Default::default(), |w| w.1));
        }
        Ok(())
    }
}

fn has_experts(mesh: &Mesh, option: &str, value: &str) -> Result<()> {
    if mesh.experts == 1 {
        bail!(
            "{option} {value}: no ranks have the experts between them; give --mesh \
             data=N,experts=N, or leave it out"
        );
    }
    Ok(())
}

/// What the passes call the place where gradients of experts are contracted.
pub fn contracted(place: ExpertGradients) -> passes::ExpertGradients {
    match place {
        ExpertGradients::AtSource => passes::ExpertGradients::AtSource,
        ExpertGradients::AtExperts => passes::ExpertGradients::AtExperts,
    }
}
