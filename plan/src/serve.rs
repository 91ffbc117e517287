//! Prefill and decoding of a unit of GPUs: experts shared by all of them, everything else by each
//! for its own requests.
//!
//! Requests go in two micro-batches, so that the exchanges of one lie under the compute of the
//! other. *Prefill* gives exchanges some multiprocessors:
//!
//! ```text
//! compute   attn(B) shared(A) attn(A)     mlp(B)      mlp(A) shared(B)
//! exchange  combine(A)        dispatch(B) dispatch(A) combine(B)
//! ```
//!
//! *Decoding* gives them none, and cuts attention before its core:
//!
//! ```text
//! compute   shared(A) attn-0(B)  mlp(A)  attn-1(B)   and the same with A and B exchanged
//! exchange  dispatch(A)                  combine(A)
//! ```

use std::collections::BTreeSet;

use weft_ir::module::{Def, Func, Module, StoreKind};
use weft_ir::op::Op;

use crate::PlanError;
use crate::cluster::{Cluster, Overlap};
use crate::kernel::{self, Kernel, Place, Work};
use crate::rounds::{Round, Rounds};
use crate::streams::{Streams, Transfer};
use crate::unit::{self, Part, Passes};
use crate::weave::transfer;

/// What is asked of the unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Serving {
    pub n_gpus: u64,
    pub node: u64,
    pub redundant_experts: u64,
    pub nodes_per_token: Option<u64>,
    pub communication_sms: u64,
    /// One token of each request, not all of a prompt.
    pub decode: bool,
    /// Requests of both micro-batches on a GPU, and tokens of each in a step.
    pub requests: u64,
    pub tokens_per_request: u64,
}

/// Equal layers of a forward.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    pub name: String,
    pub count: usize,
    pub passes: Passes,
}

/// The forward of one micro-batch on one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    pub layers: Vec<Layers>,
    /// Embedding and head.
    pub ends: Part,
    pub dense_bytes: f64,
    pub expert_bytes: f64,
    pub experts: u64,
    /// What the requests keep.
    pub cache_bytes: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    pub step_seconds: f64,
    pub tokens_per_s_per_gpu: f64,
    pub tokens_per_s_per_node: f64,
    pub weight_bytes: f64,
    pub cache_bytes: f64,
    /// Of a layer of the largest group: attention before and from its core, shared, mlp, dispatch,
    /// combine; of one micro-batch.
    pub layer: [f64; 6],
    pub exchange_seconds: f64,
    pub covered_seconds: f64,
    /// What further rounds of exchanges add to the step on average.
    pub rounds_seconds: f64,
    pub fits: bool,
}

impl Forward {
    pub fn layers_with_experts(&self) -> usize {
        let with = self.layers.iter().filter(|l| !l.passes.dispatch.is_empty());
        with.map(|l| l.count).sum()
    }
}

/// The layers and ends of `@forward`.
pub fn forward(module: &Module) -> Result<Forward, PlanError> {
    let main = module.find("forward").ok_or(PlanError("the module has no @forward".into()))?;
    let main = module.func(main);
    let mut all = Forward {
        layers: vec![],
        ends: vec![],
        dense_bytes: 0.0,
        expert_bytes: 0.0,
        experts: 0,
        cache_bytes: 0.0,
    };
    for (_, op) in main.body_ops() {
        let func = op.attrs.get_func("func").filter(|_| op.op == Op::Repeat);
        let Some(func) = func else {
            all.ends.extend(kernel::of_op(module, main, op)?);
            continue;
        };
        let body = module.func(func);
        let count = op.attrs.get_int("count").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        all.layers.push(Layers {
            name: body.name.clone(),
            count,
            passes: unit::split(module, body, None)?,
        });
        let experts = unit::expert_params(body);
        for (i, v) in op.operands.iter().enumerate() {
            if !matches!(main.value(*v).def, Def::Param(_)) {
                continue;
            }
            let bytes = kernel::bytes(module, main.ty(*v))?;
            match (kind(module, main, *v), experts.contains(&(i as u32))) {
                (Some(StoreKind::Weight), true) => all.expert_bytes += bytes,
                (Some(StoreKind::Weight), false) => all.dense_bytes += bytes,
                (Some(StoreKind::State), _) => all.cache_bytes += bytes,
                _ => {}
            }
        }
    }
    let at_ends: BTreeSet<_> = main
        .body_ops()
        .filter(|(_, o)| o.op != Op::Repeat)
        .flat_map(|(_, o)| o.operands.iter().copied())
        .collect();
    for v in at_ends {
        if kind(module, main, v) == Some(StoreKind::Weight) {
            all.dense_bytes += kernel::bytes(module, main.ty(v))?;
        }
    }
    all.experts = unit::heads_and_experts(module).1.last().copied().unwrap_or(0);
    if all.layers.is_empty() {
        return Err(PlanError("@forward has no layers".into()));
    }
    Ok(all)
}

/// What kind of store a parameter is, or is made of once (`NAME.e4m3`, `NAME.scales`).
fn kind(module: &Module, f: &Func, v: weft_ir::module::ValueId) -> Option<StoreKind> {
    let Def::Param(_) = f.value(v).def else { return None };
    let name = f.value(v).name.as_deref()?;
    let of = |s: &str| name.strip_prefix(s).is_some_and(|r| r.is_empty() || r.starts_with('.'));
    // `weight.scales` also starts with the store `weight`.
    let found = module.stores.iter().filter(|(s, _)| of(s)).max_by_key(|(s, _)| s.len());
    let (store, data) = found?;
    // What products read of a weight may be a store of its own.
    let weights = module.stores.iter().filter(|(_, d)| d.kind == StoreKind::Weight);
    let made = weights
        .map(|(s, _)| s)
        .any(|s| store.strip_prefix(s.as_str()).is_some_and(|r| r.starts_with('.')));
    Some(if made { StoreKind::Weight } else { data.kind })
}

/// Seconds of a layer's parts.
#[derive(Clone, Copy, Default)]
struct Parts {
    /// Before the core of attention, and from there.
    attention: [f64; 2],
    shared: f64,
    mlp: f64,
    dispatch: Transfer,
    combine: Transfer,
    /// On average, in further rounds.
    rounds: f64,
}

impl Parts {
    fn of(p: &Passes, cluster: &Cluster, at: &Place) -> Parts {
        let one = |k: &Kernel| k.seconds(cluster, at);
        let sum = |part: &[Kernel]| part.iter().map(one).fold(0.0, |a, b| a + b);
        let core = |k: &Kernel| matches!(k.work, Work::Attention { .. });
        let cut = p.attention.iter().position(core).unwrap_or(p.attention.len());
        let local = p.dispatch.iter().chain(&p.combine).map(|k| k.local_seconds(cluster, at));
        let o = &cluster.overlap;
        // What takes no multiprocessors does not slow down beside compute, nor wait.
        let background = Overlap { dispatch: 1.0, combine: 1.0, wait_us: 0.0, ..*o };
        let o = if at.low_latency { &background } else { o };
        Parts {
            attention: [sum(&p.attention[..cut]), sum(&p.attention[cut..])],
            shared: sum(&p.beside),
            mlp: sum(&p.mlp) + local.fold(0.0, |a, b| a + b),
            dispatch: transfer(&p.dispatch, cluster, at, o.dispatch, o),
            combine: transfer(&p.combine, cluster, at, o.combine, o),
            rounds: 0.0,
        }
    }

    /// With what further rounds take on average, where a rank gets `rows` in all. A round goes
    /// there and back and reads the weights of its experts again; nothing lies under it.
    fn with_rounds(
        mut self,
        p: &Passes,
        further: &[Round],
        rows: u64,
        (cluster, at): (&Cluster, &Place),
    ) -> Parts {
        let round = |r: &Round| {
            let part = |all: &Part| all.iter().map(|k| k.share(r.rows / rows as f64, at)).collect();
            let (dispatch, combine) = (part(&p.dispatch), part(&p.combine));
            let few = Passes { mlp: part(&p.mlp), dispatch, combine, ..Passes::default() };
            let t = Parts::of(&few, cluster, at);
            r.odds * (t.dispatch.span() + t.mlp + t.combine.span())
        };
        self.rounds = further.iter().map(round).sum();
        self
    }
}

/// Layers of two micro-batches, as the head of this file has them.
fn run(layers: &[Parts], decode: bool) -> Streams {
    if decode { decoding(layers) } else { prefill(layers) }
}

fn prefill(layers: &[Parts]) -> Streams {
    let mut s = Streams::default();
    // When B is back from its last layer, and what is left of that layer to do.
    let mut back = 0.0;
    let (mut shared, mut combine, mut computed) = (0.0, Transfer::default(), 0.0);
    for (i, l) in layers.iter().enumerate() {
        let attention = l.attention[0] + l.attention[1];
        // A's last layer comes back while B begins this one.
        let a = s.exchange("combine(A)", i, combine, computed);
        let b = s.compute("attn(B)", i, attention, back);
        s.compute("shared(A)", i, shared, 0.0);
        let a = s.compute("attn(A)", i, attention, a);
        let b = s.exchange("dispatch(B)", i, l.dispatch, b);
        let a = s.exchange("dispatch(A)", i, l.dispatch, a);
        let b = s.compute("mlp(B)", i, l.mlp, b);
        let b = s.compute("rounds(B)", i, l.rounds, b);
        back = s.exchange("combine(B)", i, l.combine, b);
        let a = s.compute("mlp(A)", i, l.mlp, a);
        computed = s.compute("rounds(A)", i, l.rounds, a);
        s.compute("shared(B)", i, l.shared, 0.0);
        (shared, combine) = (l.shared, l.combine);
    }
    s.exchange("combine(A)", layers.len(), combine, computed);
    s.compute("shared(A)", layers.len(), shared, 0.0);
    s
}

fn decoding(layers: &[Parts]) -> Streams {
    let mut s = Streams::default();
    // B is half a layer behind A.
    let (mut back, mut in_core) = ([0.0f64; 2], [0.0f64; 2]);
    for (i, l) in layers.iter().enumerate() {
        for x in [0, 1] {
            let other = 1 - x;
            if i == 0 && x == 0 {
                let ready = s.compute("attn-0", i, l.attention[0], back[0]);
                in_core[0] = s.compute("attn-1", i, l.attention[1], ready);
            }
            // The other's next layer is that behind, or the one after.
            let next = if x == 0 { Some(l) } else { layers.get(i + 1) };
            let sent = s.exchange("dispatch", i, l.dispatch, in_core[x]);
            s.compute("shared", i, l.shared, in_core[x]);
            let ready = next.map(|n| s.compute("attn-0", i, n.attention[0], back[other]));
            let done = s.compute("mlp", i, l.mlp, sent);
            let done = s.compute("rounds", i, l.rounds, done);
            back[x] = s.exchange("combine", i, l.combine, done);
            if let (Some(n), Some(ready)) = (next, ready) {
                in_core[other] = s.compute("attn-1", i, n.attention[1], ready);
            }
        }
    }
    s
}

/// Simulates one step of both micro-batches; `rounds` says how often rows do not fit, for each
/// layer with experts, or for all of them in one.
pub fn serve(f: &Forward, cluster: &Cluster, of: &Serving, rounds: Option<&Rounds>) -> Served {
    let taken = if of.decode { 0 } else { of.communication_sms };
    let at = Place {
        sms: cluster.sms.saturating_sub(taken).max(1),
        beside_exchange: taken > 0,
        tensor: 1,
        experts: of.n_gpus,
        node: of.node,
        nodes_per_token: of.nodes_per_token,
        redundant_experts: of.redundant_experts,
        low_latency: taken == 0,
        free_encodes: [false; 2],
    };
    let groups: Vec<(usize, Parts)> =
        f.layers.iter().map(|l| (l.count, Parts::of(&l.passes, cluster, &at))).collect();
    let mut with_experts = 0;
    let mut layer = |l: &Layers, parts: Parts| {
        let Some(r) = rounds.filter(|r| !l.passes.dispatch.is_empty() && r.rows > 0) else {
            return parts;
        };
        let further = r.further.get(with_experts).or(r.further.last());
        with_experts += 1;
        let further = further.map_or(&[][..], Vec::as_slice);
        parts.with_rounds(&l.passes, further, r.rows, (cluster, &at))
    };
    let each =
        f.layers.iter().zip(&groups).flat_map(|(l, (n, p))| std::iter::repeat_n((l, *p), *n));
    let layers: Vec<Parts> = each.map(|(l, p)| layer(l, p)).collect();
    let streams = run(&layers, of.decode);
    let ends: f64 = f.ends.iter().map(|k| k.seconds(cluster, &at)).sum();
    let step_seconds = streams.seconds() + 2.0 * ends;
    let per_gpu = (of.requests * of.tokens_per_request) as f64 / step_seconds;
    let copies = (f.experts + of.redundant_experts) as f64 / f.experts.max(1) as f64;
    let weight_bytes = f.dense_bytes + f.expert_bytes * copies / of.n_gpus as f64;
    // Each micro-batch was compiled with its own.
    let cache_bytes = 2.0 * f.cache_bytes;
    let largest = groups.iter().max_by_key(|(n, _)| *n).map(|(_, p)| *p).unwrap_or_default();
    let (exchange_seconds, covered_seconds) = streams.covered();
    Served {
        step_seconds,
        tokens_per_s_per_gpu: per_gpu,
        tokens_per_s_per_node: per_gpu * of.node as f64,
        weight_bytes,
        cache_bytes,
        layer: [
            largest.attention[0],
            largest.attention[1],
            largest.shared,
            largest.mlp,
            largest.dispatch.span(),
            largest.combine.span(),
        ],
        exchange_seconds,
        covered_seconds,
        rounds_seconds: 2.0 * layers.iter().map(|l| l.rounds).sum::<f64>(),
        fits: weight_bytes + cache_bytes <= cluster.memory_bytes,
    }
}
