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
use crate::cluster::Cluster;
use crate::kernel::{self, Kernel, Place, Work};
use crate::unit::{self, Part, Passes};

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
    pub fits: bool,
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
    dispatch: f64,
    combine: f64,
}

impl Parts {
    fn of(p: &Passes, cluster: &Cluster, at: &Place) -> Parts {
        let one = |k: &Kernel| k.seconds(cluster, at);
        let sum = |part: &[Kernel]| part.iter().map(one).fold(0.0, |a, b| a + b);
        let core = |k: &Kernel| matches!(k.work, Work::Attention { .. });
        let cut = p.attention.iter().position(core).unwrap_or(p.attention.len());
        let local = p.dispatch.iter().chain(&p.combine).map(|k| k.local_seconds(cluster, at));
        let o = &cluster.overlap;
        let exchange = |part: &Part, factor: f64| match (at.low_latency, sum(part)) {
            // Nothing that takes multiprocessors runs beside compute.
            (true, s) => s,
            (false, s) if s > 0.0 => s * factor + o.wait_us * 1e-6,
            _ => 0.0,
        };
        Parts {
            attention: [sum(&p.attention[..cut]), sum(&p.attention[cut..])],
            shared: sum(&p.beside),
            mlp: sum(&p.mlp) + local.fold(0.0, |a, b| a + b),
            dispatch: exchange(&p.dispatch, o.dispatch),
            combine: exchange(&p.combine, o.combine),
        }
    }
}

/// Two streams, each in order; intervals of what ran.
#[derive(Default)]
struct Streams {
    free: [f64; 2],
    ran: [Vec<(f64, f64)>; 2],
}

impl Streams {
    fn put(&mut self, stream: usize, seconds: f64, after: f64) -> f64 {
        if seconds == 0.0 {
            return after;
        }
        let start = self.free[stream].max(after);
        self.free[stream] = start + seconds;
        self.ran[stream].push((start, start + seconds));
        start + seconds
    }

    fn compute(&mut self, seconds: f64, after: f64) -> f64 {
        self.put(0, seconds, after)
    }

    fn exchange(&mut self, seconds: f64, after: f64) -> f64 {
        self.put(1, seconds, after)
    }

    fn covered(&self) -> (f64, f64) {
        let busy = self.ran[1].iter().map(|(s, e)| e - s).sum();
        let (mut i, mut covered) = (0, 0.0);
        for (start, end) in &self.ran[1] {
            while i < self.ran[0].len() && self.ran[0][i].1 <= *start {
                i += 1;
            }
            let under = self.ran[0][i..].iter().take_while(|c| c.0 < *end);
            covered += under.map(|c| c.1.min(*end) - c.0.max(*start)).sum::<f64>();
        }
        (busy, covered)
    }
}

/// Layers of two micro-batches, as the head of this file has them.
fn run(layers: &[Parts], decode: bool) -> Streams {
    let mut s = Streams::default();
    // When a micro-batch is back from its last layer, and what is left of that layer to do.
    let mut back = [0.0; 2];
    if decode {
        // B is half a layer behind A.
        let mut in_core = [0.0f64; 2];
        for (i, l) in layers.iter().enumerate() {
            for x in [0, 1] {
                let other = 1 - x;
                if i == 0 && x == 0 {
                    let ready = s.compute(l.attention[0], back[0]);
                    in_core[0] = s.compute(l.attention[1], ready);
                }
                // The other's next layer is that behind, or the one after.
                let next = if x == 0 { Some(l) } else { layers.get(i + 1) };
                let sent = s.exchange(l.dispatch, in_core[x]);
                s.compute(l.shared, in_core[x]);
                let ready = next.map(|n| s.compute(n.attention[0], back[other]));
                let done = s.compute(l.mlp, sent);
                back[x] = s.exchange(l.combine, done);
                if let (Some(n), Some(ready)) = (next, ready) {
                    in_core[other] = s.compute(n.attention[1], ready);
                }
            }
        }
        return s;
    }
    let (mut shared, mut combine, mut computed) = (0.0, 0.0, 0.0);
    for l in layers {
        let attention = l.attention[0] + l.attention[1];
        // A's last layer comes back while B begins this one.
        back[0] = s.exchange(combine, computed);
        let b = s.compute(attention, back[1]);
        s.compute(shared, 0.0);
        let a = s.compute(attention, back[0]);
        let b = s.exchange(l.dispatch, b);
        let a = s.exchange(l.dispatch, a);
        let b = s.compute(l.mlp, b);
        back[1] = s.exchange(l.combine, b);
        computed = s.compute(l.mlp, a);
        s.compute(l.shared, 0.0);
        (shared, combine) = (l.shared, l.combine);
    }
    s.exchange(combine, computed);
    s.compute(shared, 0.0);
    s
}

/// Simulates one step of both micro-batches.
pub fn serve(f: &Forward, cluster: &Cluster, of: &Serving) -> Served {
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
    let layers: Vec<Parts> = groups.iter().flat_map(|(n, p)| std::iter::repeat_n(*p, *n)).collect();
    let streams = run(&layers, of.decode);
    let ends: f64 = f.ends.iter().map(|k| k.seconds(cluster, &at)).sum();
    let step_seconds = streams.free[0].max(streams.free[1]) + 2.0 * ends;
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
            largest.dispatch,
            largest.combine,
        ],
        exchange_seconds,
        covered_seconds,
        fits: weight_bytes + cache_bytes <= cluster.memory_bytes,
    }
}
