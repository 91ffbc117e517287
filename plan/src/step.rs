//! A training step of a layout on a cluster: stages, times, memory.
//!
//! Units are cut into stages (`weft_schedule::assign`), each stage's forward, backward and pairs
//! are woven (`weave`), and the table of the pipeline runs on a clock with what they take
//! (`weft_schedule::Timeline`). Gradients and the optimizer follow, nothing of them hidden.

use std::collections::BTreeMap;

use weft_schedule::assign::{self, Assignment, Shape};
use weft_schedule::{Action, Cell, Costs, Message, Op, Program, ScheduleError, Table, Timeline};

use crate::PlanError;
use crate::cluster::{Cluster, WhatIf};
use crate::kernel::Place;
use crate::streams::Streams;
use crate::unit::{self, Unit};
use crate::weave::{self, UnitTimes};

/// How ranks share the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub data: u64,
    pub tensor: u64,
    pub experts: u64,
    pub node: u64,
    pub nodes_per_token: Option<u64>,
    /// Whether optimizer states are divided among ranks with the same weights.
    pub zero: bool,
    pub communication_sms: u64,
    pub table: Table,
    /// Tokens of a micro-batch, and bytes of what one stage hands the next for all of them.
    pub tokens: u64,
    pub message_bytes: f64,
    /// Whether stages are cut so that ranks stay within the cluster's memory.
    pub within_memory: bool,
    /// How many layers each stage has, where they are not cut for speed. What stands before the
    /// layers is with the first, what stands behind them with the last.
    pub stage_layers: Option<Vec<usize>>,
    /// Bytes of each of the optimizer's two moments of a weight.
    pub moment_bytes: f64,
}

impl Layout {
    /// What a layer's collectives of tensor parallelism take in its forward: activations are
    /// gathered and scattered around attention and around what follows it.
    fn tensor_seconds(&self, cluster: &Cluster, what_if: &[WhatIf]) -> f64 {
        if what_if.contains(&WhatIf::AsynchronousTensor) {
            return 0.0;
        }
        let t = self.tensor as f64;
        4.0 * self.message_bytes * (t - 1.0) / t / cluster.node_bytes_per_s
    }

    /// What a stage's message is on its way.
    pub fn message_seconds(&self, cluster: &Cluster) -> f64 {
        self.message_bytes / self.tensor as f64 / cluster.network_bytes_per_s
    }

    pub fn n_gpus(&self) -> u64 {
        self.data * self.tensor * self.table.n_ranks() as u64
    }

    fn mirrored(&self) -> bool {
        self.table.placement.len() > 1
    }

    /// Ranks with the same dense weights, and with the same experts.
    fn replicas(&self) -> (f64, f64) {
        let twice = if self.mirrored() { 2 } else { 1 };
        let dense = self.data * twice;
        let experts = (self.data * self.tensor * twice).div_ceil(self.experts);
        (dense as f64, experts as f64)
    }

    fn shape(&self) -> Result<Shape, PlanError> {
        let (n_ranks, n_stages) = (self.table.n_ranks(), self.table.n_stages());
        let placement = &self.table.placement[0];
        let is = |rank: &dyn Fn(usize) -> usize| {
            placement.iter().enumerate().all(|(s, r)| *r == rank(s))
        };
        if self.mirrored() {
            Ok(Shape::Mirrored)
        } else if is(&|s| s % n_ranks) {
            Ok(Shape::Looped { stages_per_rank: n_stages / n_ranks })
        } else if n_stages == 2 * n_ranks && is(&|s| s.min(n_stages - 1 - s)) {
            Ok(Shape::V)
        } else {
            Err(PlanError("not available yet: stages placed neither in a loop nor in a V".into()))
        }
    }

    /// Where kernels run; `beside` an exchange it leaves them fewer multiprocessors.
    pub fn place(&self, cluster: &Cluster, what_if: &[WhatIf], beside: bool) -> Place {
        let has = |w: WhatIf| what_if.contains(&w);
        let taken = match beside && !has(WhatIf::CommunicationWithoutSms) {
            true => self.communication_sms,
            false => 0,
        };
        Place {
            sms: cluster.sms.saturating_sub(taken).max(1),
            beside_exchange: beside,
            tensor: self.tensor,
            experts: self.experts,
            node: self.node,
            nodes_per_token: self.nodes_per_token,
            redundant_experts: 0,
            low_latency: false,
            free_encodes: [has(WhatIf::FusedQuantization), has(WhatIf::TransposedReads)],
        }
    }
}

/// Memory of a rank, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub weights: f64,
    pub gradients: f64,
    pub optimizer: f64,
    pub activations: f64,
    pub buffers: f64,
}

impl Memory {
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.buffers
    }
}

/// What a stage takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub units: Vec<String>,
    pub forward: f64,
    pub backward: f64,
    pub input: f64,
    pub weight: f64,
}

/// A step that was simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each unit's parts, beside exchanges.
    pub units: Vec<(String, UnitTimes)>,
    pub stages: Vec<Stage>,
    pub assignment: Assignment,
    pub memory: Vec<Memory>,
    pub timeline: Timeline,
    /// Pairs of stages that were woven, forward's stage first.
    pub pairs: BTreeMap<(usize, usize), Streams>,
    /// Gradients summed, weights gathered, and the update.
    pub optimizer_seconds: f64,
    pub step_seconds: f64,
    /// The longest idle time of a rank while the table runs.
    pub bubble_seconds: f64,
    /// Of the busiest rank: the exchange stream's time, and what of it lies under compute.
    pub exchange_seconds: f64,
    pub covered_seconds: f64,
    pub tokens_per_step: f64,
    pub tokens_per_s_per_gpu: f64,
    /// Whether the memory of the cluster is enough.
    pub fits: bool,
}

/// A cluster with the changes that are asked for.
fn changed(cluster: &Cluster, what_if: &[WhatIf]) -> Cluster {
    let mut c = cluster.clone();
    if what_if.contains(&WhatIf::TensorCoreScales) {
        // 90 % of what the tensor cores do at the FP8 rate of the bf16 products, twice.
        for p in [&mut c.fp8, &mut c.fp8_weight_gradient] {
            p.block_us = p.block_us.min(c.bf16.block_us / 2.0 * 0.9);
        }
    }
    c.encodes_in_regions |= what_if.contains(&WhatIf::EncodesInRegions);
    if what_if.contains(&WhatIf::OneDomain) {
        c.network_bytes_per_s = c.network_bytes_per_s.max(c.node_bytes_per_s);
        c.exchange_bytes_per_s.clear();
    }
    c
}

/// How uneven ranks may be for the sake of even stages: the clock decides which is best.
const SLACKS: [f64; 6] = [0.0, 0.02, 0.05, 0.1, 0.25, 1.0];

/// Simulates one step.
pub fn plan(
    units: &[Unit],
    cluster: &Cluster,
    layout: &Layout,
    what_if: &[WhatIf],
) -> Result<Plan, PlanError> {
    let plan = simulate(units, cluster, layout, what_if, None)?;
    plan.ok_or(PlanError("no cut into stages".into()))
}

/// The step, if it fits and perhaps takes less than `limit` seconds: cuts that cannot are not run.
pub fn plan_below(
    units: &[Unit],
    cluster: &Cluster,
    layout: &Layout,
    what_if: &[WhatIf],
    limit: f64,
) -> Result<Option<Plan>, PlanError> {
    let plan = simulate(units, cluster, layout, what_if, Some(limit))?;
    Ok(plan.filter(|p| p.fits))
}

/// Where there is a `limit`, only what fits and may be below it.
fn simulate(
    units: &[Unit],
    cluster: &Cluster,
    layout: &Layout,
    what_if: &[WhatIf],
    limit: Option<f64>,
) -> Result<Option<Plan>, PlanError> {
    let cluster = &changed(cluster, what_if);
    let times = |beside: bool| -> Vec<UnitTimes> {
        let at = layout.place(cluster, what_if, beside);
        let tensor = layout.tensor_seconds(cluster, what_if);
        units.iter().map(|u| UnitTimes::of(u, cluster, &at).with_collectives(tensor)).collect()
    };
    let (alone, beside) = (times(false), times(true));
    let live = live(&layout.table);
    let mut cuts = cut(units, &beside, cluster, layout, &live, limit.is_none())?;
    let optimizer_seconds = |a: &Assignment| {
        let of = |r| optimizer_seconds(units, a, cluster, layout, r);
        (0..layout.table.n_ranks()).map(of).fold(0.0, f64::max)
    };
    if let Some(limit) = limit {
        cuts.retain(|a| least_seconds(&alone, a, layout) + optimizer_seconds(a) < limit);
    }
    if cuts.is_empty() {
        return Ok(None);
    }
    let program = Program::of(&layout.table);
    let mut best: Option<(Assignment, StageCosts, Timeline)> = None;
    for assignment in cuts {
        if best.as_ref().is_some_and(|(a, ..)| a.cuts == assignment.cuts) {
            continue;
        }
        let costs = StageCosts::new(&assignment, &alone, &beside, cluster, layout);
        let timeline = Timeline::run(&layout.table, &program, &costs, None)
            .map_err(|e| PlanError(e.to_string()))?;
        let faster = |t: &Timeline| timeline.makespan() < t.makespan();
        if best.as_ref().is_none_or(|(_, _, t)| faster(t)) {
            best = Some((assignment, costs, timeline));
        }
    }
    let Some((assignment, costs, timeline)) = best else { return Ok(None) };

    let memory: Vec<Memory> =
        (0..layout.table.n_ranks()).map(|r| memory(units, &assignment, layout, r)).collect();
    let optimizer_seconds = optimizer_seconds(&assignment);
    let step_seconds = timeline.makespan() + optimizer_seconds;
    let tokens_per_step =
        (layout.tokens * layout.data * layout.table.n_micro_batches() as u64) as f64;
    let (exchange_seconds, covered_seconds) = costs.covered(&layout.table);
    let stage = |s: usize| Stage {
        units: units[assignment.stage(s)].iter().map(|u| u.name.clone()).collect(),
        forward: costs.one[s][0],
        backward: costs.one[s][1],
        input: costs.one[s][2],
        weight: costs.one[s][3],
    };
    Ok(Some(Plan {
        units: units.iter().map(|u| u.name.clone()).zip(beside.iter().copied()).collect(),
        stages: (0..layout.table.n_stages()).map(stage).collect(),
        bubble_seconds: timeline.bubble(),
        fits: memory.iter().all(|m| m.total() <= cluster.memory_bytes),
        tokens_per_s_per_gpu: tokens_per_step / step_seconds / layout.n_gpus() as f64,
        pairs: costs.pairs,
        assignment,
        memory,
        timeline,
        optimizer_seconds,
        step_seconds,
        exchange_seconds,
        covered_seconds,
        tokens_per_step,
    }))
}

/// Seconds that no rank can run the table in: what it computes, from when the stages before its
/// first have made it a first input, to when they have what its last gradient is for.
fn least_seconds(alone: &[UnitTimes], a: &Assignment, layout: &Layout) -> f64 {
    let table = &layout.table;
    let stages: Vec<[f64; 3]> = (0..table.n_stages())
        .map(|s| {
            let units = &alone[a.stage(s)];
            [|u: &UnitTimes| u.forward, |u: &UnitTimes| u.input, |u: &UnitTimes| u.weight]
                .map(|of| units.iter().map(|u| of(u).compute()).sum())
        })
        .collect();
    let actions = table.rows.iter().flatten().flat_map(|c| c.actions());
    // Where all backwards are whole, nobody hands a gradient on before its weights'.
    let whole = actions.into_iter().all(|a| !matches!(a.op, Op::BackwardInput));
    let n = table.micro_batches[0] as f64;
    let rank = |rank: usize| {
        let own = table.stages_of(rank);
        let all: [f64; 3] = [0, 1, 2].map(|i| own.iter().map(|(_, s)| stages[*s][i]).sum());
        // Micro-batches that come from both ends find some rank free.
        let first = if layout.mirrored() { None } else { own.iter().map(|(_, s)| *s).min() };
        let before = &stages[..first.unwrap_or(0)];
        let [fill, input, weight] = [0, 1, 2].map(|i| before.iter().map(|s| s[i]).sum::<f64>());
        let [f, i, w] = all.map(|t| n * t);
        match whole {
            true => fill + f + i + w + input + weight,
            false => fill + f + i + w.max(input),
        }
    };
    (0..table.n_ranks()).map(rank).fold(0.0, f64::max)
}

/// Seconds that neither stream of a rank can be done in: compute with all multiprocessors and the
/// collectives among it, exchanges without what is beside them.
pub fn alone_seconds(
    units: &[Unit],
    cluster: &Cluster,
    layout: &Layout,
    what_if: &[WhatIf],
) -> f64 {
    let cluster = &changed(cluster, what_if);
    let at = layout.place(cluster, what_if, false);
    let tensor = layout.tensor_seconds(cluster, what_if);
    let of = |[compute, exchange]: [f64; 2], u: &Unit| {
        let t = UnitTimes::of(u, cluster, &at).with_collectives(tensor);
        [t.forward, t.input, t.weight].iter().fold([compute, exchange], |[c, e], t| {
            [c + t.compute(), e + t.dispatch.seconds + t.combine.seconds]
        })
    };
    let [compute, exchange] = units.iter().fold([0.0, 0.0], of);
    compute.max(exchange)
}

/// Whether an even share of the weights, in all their roles, is within the memory.
pub fn weights_fit(units: &[Unit], cluster: &Cluster, layout: &Layout, pipeline: u64) -> bool {
    let bytes = |u: &Unit| unit_bytes(u, layout).iter().sum::<f64>();
    units.iter().map(bytes).sum::<f64>() / pipeline as f64 <= cluster.memory_bytes
}

/// Micro-batches of each stage that a rank has in flight at once, at most.
fn live(table: &Table) -> Vec<usize> {
    let mut most = vec![0; table.n_stages()];
    for row in &table.rows {
        let mut now: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for a in row.iter().flat_map(|c| c.actions()) {
            let n = now.entry((a.direction, a.stage)).or_default();
            if a.op == Op::Forward {
                *n += 1;
                most[a.stage] = most[a.stage].max(*n);
            } else if a.op.is_input_gradient() {
                *n = n.saturating_sub(1);
            }
        }
    }
    most
}

/// Bytes of a unit's weights on a rank, in its three roles: for compute, for gradients, for the
/// optimizer.
fn weight_bytes(dense: f64, experts: f64, copies: f64, layout: &Layout) -> [f64; 3] {
    let t = layout.tensor as f64;
    let (dense, experts) = (dense / t, experts / layout.experts as f64);
    let (n_dense, n_experts) = if layout.zero { layout.replicas() } else { (1.0, 1.0) };
    let state = 4.0 + 2.0 * layout.moment_bytes;
    [copies, 4.0 * (dense + experts), state * (dense / n_dense + experts / n_experts)]
}

fn unit_bytes(u: &Unit, layout: &Layout) -> [f64; 3] {
    let w = &u.weights;
    let shared: f64 = w.shared.values().sum();
    // What units share is counted apart, once on a rank.
    let own = w.dense_bytes - 2.0 * shared.min(w.dense_bytes / 2.0);
    let copies = own / layout.tensor as f64 + w.expert_bytes / layout.experts as f64;
    weight_bytes(w.dense, w.experts, copies, layout)
}

fn shared_bytes(n: f64, layout: &Layout) -> [f64; 3] {
    weight_bytes(n, 0.0, 2.0 * n / layout.tensor as f64, layout)
}

fn saved_bytes(u: &Unit, layout: &Layout) -> f64 {
    (u.saved_bytes + u.saved_row_bytes) / layout.tensor as f64
}

fn cut(
    units: &[Unit],
    times: &[UnitTimes],
    cluster: &Cluster,
    layout: &Layout,
    live: &[usize],
    even_too_large: bool,
) -> Result<Vec<Assignment>, PlanError> {
    let mut groups: BTreeMap<&str, u32> = BTreeMap::new();
    for store in units.iter().flat_map(|u| u.weights.shared.keys()) {
        let n = groups.len() as u32;
        groups.entry(store).or_insert(n);
    }
    let unit = |(u, t): (&Unit, &UnitTimes)| assign::Unit {
        name: u.name.clone(),
        time: t.forward.compute() + t.input.compute() + t.weight.compute(),
        weight_bytes: unit_bytes(u, layout).iter().sum(),
        activation_bytes: saved_bytes(u, layout),
        shares: u
            .weights
            .shared
            .iter()
            .map(|(s, n)| (groups[s.as_str()], shared_bytes(*n, layout).iter().sum()))
            .collect(),
    };
    let all: Vec<assign::Unit> = units.iter().zip(times).map(unit).collect();
    let n_ranks = layout.table.n_ranks();
    let shape = layout.shape()?;
    // Around a loop ranks are as even as stages.
    let looped = matches!(shape, Shape::Looped { .. });
    let slacks = if looped { vec![0.0] } else { SLACKS.to_vec() };
    let said = |e: ScheduleError| PlanError(e.to_string());
    if let Some(layers) = &layout.stage_layers {
        let mut counts = layers.clone();
        let (before, behind) = unit::ends_around(units);
        if let [first, .., last] = &mut counts[..] {
            *first += before;
            *last += behind;
        }
        return assign::given(&all, shape, n_ranks, live, &counts).map(|a| vec![a]).map_err(said);
    }
    let cut = |bytes_max| assign::assign_each(&all, shape, n_ranks, live, bytes_max, &slacks);
    let buffers = units.iter().map(|u| buffer_bytes(u, layout)).fold(0.0, f64::max);
    let max = layout.within_memory.then_some(cluster.memory_bytes - buffers);
    let mut found = cut(max).map_err(said)?;
    if found.is_none() && even_too_large {
        // What is too large is shown on the cut that is fastest.
        found = cut(None).map_err(said)?;
    }
    Ok(found.unwrap_or_default())
}

/// The units of the stages that a rank has.
fn held<'a>(
    units: &'a [Unit],
    a: &Assignment,
    layout: &Layout,
    rank: usize,
) -> impl Iterator<Item = &'a Unit> + use<'a> {
    let stages = layout.table.stages_of(rank);
    let ranges: Vec<_> = stages.into_iter().map(|(_, s)| a.stage(s)).collect();
    ranges.into_iter().flat_map(|r| &units[r])
}

fn shared_on(units: &[Unit], a: &Assignment, layout: &Layout, rank: usize) -> f64 {
    let all: BTreeMap<&String, f64> = held(units, a, layout, rank)
        .flat_map(|u| &u.weights.shared)
        .map(|(s, n)| (s, *n))
        .collect();
    all.values().sum()
}

fn memory(units: &[Unit], a: &Assignment, layout: &Layout, rank: usize) -> Memory {
    let mut m = Memory::default();
    let mut add = |[w, g, o]: [f64; 3]| {
        m.weights += w;
        m.gradients += g;
        m.optimizer += o;
    };
    held(units, a, layout, rank).for_each(|u| add(unit_bytes(u, layout)));
    add(shared_bytes(shared_on(units, a, layout, rank), layout));
    let stage_bytes =
        |s: usize| units[a.stage(s)].iter().map(|u| saved_bytes(u, layout)).sum::<f64>();
    let mut now = 0.0f64;
    for action in layout.table.rows[rank].iter().flat_map(|c| c.actions()) {
        if action.op == Op::Forward {
            now += stage_bytes(action.stage);
            m.activations = m.activations.max(now);
        } else if action.op.is_input_gradient() {
            now -= stage_bytes(action.stage);
        }
    }
    m.buffers = held(units, a, layout, rank).map(|u| buffer_bytes(u, layout)).fold(0.0, f64::max);
    m
}

/// Rows on their way to experts and back, of a forward and of a backward; messages of stages.
fn buffer_bytes(u: &Unit, layout: &Layout) -> f64 {
    2.0 * u.exchange_bytes() + 4.0 * layout.message_bytes
}

fn optimizer_seconds(
    units: &[Unit],
    a: &Assignment,
    cluster: &Cluster,
    layout: &Layout,
    rank: usize,
) -> f64 {
    let own: f64 = held(units, a, layout, rank).map(|u| u.weights.dense).sum();
    let dense = (own + shared_on(units, a, layout, rank)) / layout.tensor as f64;
    let experts: f64 = held(units, a, layout, rank).map(|u| u.weights.experts).sum();
    let experts = experts / layout.experts as f64;
    let (n_dense, n_experts) = layout.replicas();
    // f32 gradients are scattered as sums, bf16 weights gathered; without ZeRO all get the sums.
    let link_bytes = if layout.zero { 4.0 + 2.0 } else { 2.0 * 4.0 };
    let link = |n: f64, replicas: f64| {
        link_bytes * n * (replicas - 1.0) / replicas / cluster.network_bytes_per_s
    };
    let (d, e) = if layout.zero { (n_dense, n_experts) } else { (1.0, 1.0) };
    // A gradient read, master and moments read and written, a copy written.
    let touched = 4.0 + 8.0 + 4.0 * layout.moment_bytes + 2.0;
    let update = touched * (dense / d + experts / e) / (cluster.memory_bytes_per_s * cluster.rows);
    // Weights are encoded once a step, as they are and transposed.
    let encode = (2.0 + 2.0) * (dense + experts) / (cluster.memory_bytes_per_s * cluster.rows);
    link(dense, n_dense) + link(experts, n_experts) + update + encode
}

/// What cells take, from weaves of the stages.
struct StageCosts {
    /// Of each stage: forward, backward, input gradient, weight gradient.
    one: Vec<[f64; 4]>,
    weaves: Vec<[Streams; 4]>,
    pairs: BTreeMap<(usize, usize), Streams>,
    message_seconds: f64,
}

impl StageCosts {
    fn new(
        a: &Assignment,
        alone: &[UnitTimes],
        beside: &[UnitTimes],
        cluster: &Cluster,
        layout: &Layout,
    ) -> StageCosts {
        let weaves: Vec<[Streams; 4]> = (0..layout.table.n_stages())
            .map(|s| {
                let units = &alone[a.stage(s)];
                // A backward lays its weight gradients under exchanges, a forward nothing.
                let laid = |(u, b): (&UnitTimes, &UnitTimes)| UnitTimes { weight: b.weight, ..*u };
                let whole: Vec<UnitTimes> =
                    units.iter().zip(&beside[a.stage(s)]).map(laid).collect();
                [
                    weave::forward(units),
                    weave::backward(&whole, true),
                    weave::backward(units, false),
                    weave::weight(units),
                ]
            })
            .collect();
        let mut pairs = BTreeMap::new();
        for cell in layout.table.rows.iter().flatten() {
            if let Cell::Pair { forward, backward } = cell {
                pairs.entry((forward.stage, backward.stage)).or_insert_with(|| {
                    weave::pair(&beside[a.stage(forward.stage)], &beside[a.stage(backward.stage)])
                });
            }
        }
        StageCosts {
            one: weaves.iter().map(|w| [0, 1, 2, 3].map(|i| w[i].seconds())).collect(),
            weaves,
            pairs,
            message_seconds: layout.message_seconds(cluster),
        }
    }

    fn which(a: &Action) -> usize {
        match a.op {
            Op::Forward => 0,
            Op::Backward => 1,
            Op::BackwardInput => 2,
            Op::BackwardWeight => 3,
        }
    }

    fn weave(&self, cell: &Cell) -> Option<&Streams> {
        match cell {
            Cell::Idle => None,
            Cell::One(a) => Some(&self.weaves[a.stage][Self::which(a)]),
            Cell::Pair { forward, backward } => self.pairs.get(&(forward.stage, backward.stage)),
        }
    }

    /// Of the rank that exchanges longest: the exchange stream's time and what lies under compute.
    fn covered(&self, table: &Table) -> (f64, f64) {
        let rank = |row: &Vec<Cell>| {
            let all = row.iter().filter_map(|c| self.weave(c)).map(Streams::covered);
            all.fold((0.0, 0.0), |sum, w| (sum.0 + w.0, sum.1 + w.1))
        };
        table.rows.iter().map(rank).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }
}

impl Costs for StageCosts {
    fn cell(&self, _: usize, cell: &Cell) -> f64 {
        match cell {
            Cell::One(a) => self.one[a.stage][Self::which(a)],
            _ => self.weave(cell).map_or(0.0, Streams::seconds),
        }
    }

    fn message(&self, _: usize, _: usize, _: &Message) -> f64 {
        self.message_seconds
    }
}
