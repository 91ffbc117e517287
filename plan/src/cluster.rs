//! A cluster as data: what its GPUs and links do, and how long kernels of each kind take on them.
//!
//! A description is a JSON file. Kernel times follow a few rules, each with the numbers of its
//! kind in the file, so that a table of measurements calibrates a cluster and no code changes:
//! - a *product* goes in waves of tiles, one tile a multiprocessor; a tile takes `tile_us` and
//!   `block_us` for every 128 terms of its sums;
//! - *attention* goes at so many operations a second;
//! - *rows* (everything that moves more than it computes) go at a share of the memory's speed;
//! - an *exchange* of tokens with experts takes its bytes over the slowest link on its way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::PlanError;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub name: String,
    /// Where the numbers come from.
    pub source: String,
    /// Multiprocessors of a GPU.
    pub sms: u64,
    /// GPUs of a node.
    pub node: u64,
    pub memory_bytes: f64,
    pub memory_bytes_per_s: f64,
    /// Between GPUs of a node, one way, as kernels reach it.
    pub node_bytes_per_s: f64,
    /// Between nodes, of each GPU, one way, as kernels reach it.
    pub network_bytes_per_s: f64,
    /// The same of exchanges, where they were measured, by the number of ranks with experts.
    #[serde(default)]
    pub exchange_bytes_per_s: BTreeMap<u64, f64>,
    pub fp8: Product,
    /// The weight gradient in FP8: both operands scaled along the sum, the result added in f32.
    pub fp8_weight_gradient: Product,
    pub bf16: Product,
    pub f32: Product,
    pub attention: Attention,
    pub low_latency: LowLatency,
    /// Share of `memory_bytes_per_s` at which products read their weights, where that takes longer
    /// than the tiles.
    pub product_memory: f64,
    /// Whether kernels of rows also encode what they make, as they are compiled here. Where a
    /// file's numbers come from kernels that encode apart, theirs are compared with those.
    pub encodes_in_regions: bool,
    /// Share of `memory_bytes_per_s` that row kernels reach with all multiprocessors.
    pub rows: f64,
    /// From the end of a kernel to the start of the next.
    pub launch_us: f64,
    pub overlap: Overlap,
}

/// Products in one format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Rows and columns of a tile.
    pub tile: [u64; 2],
    pub tile_us: f64,
    /// For 128 terms.
    pub block_us: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    pub forward_flops_per_s: f64,
    pub backward_flops_per_s: f64,
    /// Of one query a sequence over a long cache.
    pub decode_flops_per_s: f64,
    pub decode_bytes_per_s: f64,
}

/// Exchanges that take no multiprocessors: every row goes to its expert's rank by itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowLatency {
    pub latency_us: f64,
    /// Between nodes, of each GPU; inside a node rows go beside it.
    pub network_bytes_per_s: f64,
    pub node_bytes_per_s: f64,
}

/// What compute and communication that run at once cost each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// How much longer products take beside an exchange, their fewer multiprocessors apart.
    pub product: f64,
    /// The same of attention and of rows.
    pub attention: f64,
    pub rows: f64,
    /// How much longer an exchange takes beside compute: to experts the first time, again along a
    /// known way, and back.
    pub dispatch: f64,
    pub dispatch_again: f64,
    pub combine: f64,
    /// What an exchange beside compute waits for its peers.
    pub wait_us: f64,
}

/// A change that the report of DeepSeek-V3 wishes for, or its users do: of the hardware, but for
/// the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhatIf {
    EncodesInRegions,
    CommunicationWithoutSms,
    FullAccumulation,
    TensorCoreScales,
    FusedQuantization,
    TransposedReads,
    OneDomain,
    AsynchronousTensor,
}

impl WhatIf {
    pub const ALL: [WhatIf; 8] = [
        WhatIf::EncodesInRegions,
        WhatIf::CommunicationWithoutSms,
        WhatIf::FullAccumulation,
        WhatIf::TensorCoreScales,
        WhatIf::FusedQuantization,
        WhatIf::TransposedReads,
        WhatIf::OneDomain,
        WhatIf::AsynchronousTensor,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            WhatIf::EncodesInRegions => "encodes-in-regions",
            WhatIf::CommunicationWithoutSms => "communication-without-sms",
            WhatIf::FullAccumulation => "full-accumulation",
            WhatIf::TensorCoreScales => "tensor-core-scales",
            WhatIf::FusedQuantization => "fused-quantization",
            WhatIf::TransposedReads => "transposed-reads",
            WhatIf::OneDomain => "one-domain",
            WhatIf::AsynchronousTensor => "asynchronous-tensor",
        }
    }

    pub fn parse(text: &str) -> Result<WhatIf, PlanError> {
        WhatIf::ALL.into_iter().find(|w| w.as_str() == text).ok_or_else(|| {
            let names = WhatIf::ALL.map(WhatIf::as_str).join(", ");
            PlanError(format!("there is no what-if {text}; there are: {names}"))
        })
    }

    /// What the simulation does with it.
    pub fn meaning(self) -> &'static str {
        match self {
            WhatIf::EncodesInRegions => "no hardware: kernels of rows encode, as compiled here",
            WhatIf::CommunicationWithoutSms => "compute has all multiprocessors",
            WhatIf::FullAccumulation => {
                "exact sums, but scales of 128 terms still leave the tensor core: no time"
            }
            WhatIf::TensorCoreScales => "products at 90 % of the FP8 peak: nothing is promoted",
            WhatIf::FusedQuantization => "no kernels that encode by rows: casts happen on loads",
            WhatIf::TransposedReads => "no kernels that encode by columns: codes are read across",
            WhatIf::OneDomain => "exchanges go at the speed of a node's links",
            WhatIf::AsynchronousTensor => "collectives of tensor parallelism lie under products",
        }
    }
}

impl Cluster {
    pub fn parse(text: &str) -> Result<Cluster, PlanError> {
        let cluster: Cluster = serde_json::from_str(text)
            .map_err(|e| PlanError(format!("not a cluster description: {e}")))?;
        let c = &cluster;
        let products = [c.fp8, c.fp8_weight_gradient, c.bf16, c.f32];
        let positive = [
            ("memory_bytes", c.memory_bytes),
            ("memory_bytes_per_s", c.memory_bytes_per_s),
            ("node_bytes_per_s", c.node_bytes_per_s),
            ("network_bytes_per_s", c.network_bytes_per_s),
            ("forward_flops_per_s", c.attention.forward_flops_per_s),
            ("backward_flops_per_s", c.attention.backward_flops_per_s),
            ("decode_flops_per_s", c.attention.decode_flops_per_s),
            ("decode_bytes_per_s", c.attention.decode_bytes_per_s),
            ("low_latency.network_bytes_per_s", c.low_latency.network_bytes_per_s),
            ("low_latency.node_bytes_per_s", c.low_latency.node_bytes_per_s),
            ("product_memory", c.product_memory),
            ("rows", c.rows),
            ("overlap.product", c.overlap.product),
            ("overlap.attention", c.overlap.attention),
            ("overlap.rows", c.overlap.rows),
            ("overlap.dispatch", c.overlap.dispatch),
            ("overlap.dispatch_again", c.overlap.dispatch_again),
            ("overlap.combine", c.overlap.combine),
        ];
        let rates = c.exchange_bytes_per_s.values().map(|rate| ("exchange_bytes_per_s", *rate));
        for (key, value) in positive.into_iter().chain(rates) {
            if !(value > 0.0 && value.is_finite()) {
                return Err(PlanError(format!("{key} is above 0, found {value}")));
            }
        }
        let whole = [c.sms, c.node].into_iter().chain(products.iter().flat_map(|p| p.tile));
        if whole.into_iter().any(|n| n == 0) {
            return Err(PlanError("sms, node and tiles are at least 1, found 0".to_string()));
        }
        let times = products.iter().flat_map(|p| [p.tile_us, p.block_us]);
        let times = times.chain([c.launch_us, c.overlap.wait_us, c.low_latency.latency_us]);
        if let Some(t) = times.into_iter().find(|t| !(*t >= 0.0 && t.is_finite())) {
            return Err(PlanError(format!("times are from 0, found {t}")));
        }
        Ok(cluster)
    }

    /// What an exchange among so many ranks reaches between nodes: as measured with
    /// as many, or with the next fewer.
    pub fn exchange_rate(&self, ranks: u64) -> f64 {
        let measured = self.exchange_bytes_per_s.range(..=ranks).next_back();
        measured.map_or(self.network_bytes_per_s, |(_, rate)| *rate)
    }
}
