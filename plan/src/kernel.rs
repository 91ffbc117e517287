//! What an op of planned IR is as a kernel, and how long it takes.

use std::collections::BTreeSet;

use weft_ir::module::{Def, Func, Module, OpData, StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};
use weft_ir::{cost, dim};

use crate::PlanError;
use crate::cluster::{Cluster, Product};

/// What a kernel does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// `groups` products of m x k and k x n.
    Product {
        m: u64,
        n: u64,
        k: u64,
        groups: u64,
        format: Format,
        shared: bool,
    },
    Attention {
        flops: f64,
        bytes: f64,
        which: Which,
    },
    /// Reads and writes so many bytes.
    Rows {
        bytes: f64,
        encode: Option<Encode>,
    },
    /// Several row ops in one. Apart: the bytes of the region if it did not encode, and of the
    /// kernels that would.
    Region {
        bytes: f64,
        apart_bytes: f64,
        encode_bytes: f64,
        n_encodes: u32,
    },
    /// Tokens to their experts.
    Dispatch(Exchange),
    /// And back.
    Combine(Exchange),
}

/// Bytes of a token on the way, and of the rows that all of them become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exchange {
    pub tokens: f64,
    pub token_bytes: f64,
    pub row_bytes: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Forward,
    Backward,
    /// One query a sequence.
    Decode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Fp8,
    Fp8WeightGradient,
    Bf16,
    F32,
}

/// Which way the groups of an encoding lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encode {
    Rows,
    Columns,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The product's place in the model, or the op.
    pub name: String,
    pub work: Work,
}

/// Where kernels run: alone on the GPU, or beside an exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub sms: u64,
    pub beside_exchange: bool,
    /// Ranks that share each product.
    pub tensor: u64,
    /// Ranks that share the experts.
    pub experts: u64,
    /// Ranks in a node.
    pub node: u64,
    /// Nodes that a token's experts may be on.
    pub nodes_per_token: Option<u64>,
    /// Copies of experts beyond one each.
    pub redundant_experts: u64,
    /// Exchanges without multiprocessors, by `LowLatency`.
    pub low_latency: bool,
    /// Encodings that the hardware does on its way.
    pub free_encodes: [bool; 2],
}

/// The kernels of an op: none for what only names a part of a value, and for what is done to
/// weights alone, once a step; two for attention and codes of what it makes.
pub fn of_op(module: &Module, f: &Func, op: &OpData) -> Result<Vec<Kernel>, PlanError> {
    let body = op.attrs.get_func("func").filter(|_| op.op == Op::Fused).map(|id| module.func(id));
    let attends = |b: &&Func| b.body_ops().any(|(_, o)| o.op == Op::Attention);
    match body.filter(attends) {
        Some(body) => attention_and_codes(module, body),
        None => Ok(one_of_op(module, f, op)?.into_iter().collect()),
    }
}

/// On a GPU a region of its own encodes what attention made.
fn attention_and_codes(module: &Module, body: &Func) -> Result<Vec<Kernel>, PlanError> {
    let (encodes, others): (Vec<&OpData>, Vec<_>) =
        body.body_ops().map(|(_, o)| o).partition(|o| o.op == Op::Encode);
    let mut kernels = vec![];
    for op in others {
        kernels.extend(one_of_op(module, body, op)?);
    }
    if let [one] = encodes[..] {
        kernels.extend(one_of_op(module, body, one)?);
        return Ok(kernels);
    }
    let read: BTreeSet<ValueId> =
        encodes.iter().map(|e| body.past_reshapes(e.operands[0])).collect();
    let of = |v: &ValueId| bytes(module, body.ty(*v));
    let codes = sum(encodes.iter().flat_map(|e| &e.results).map(of))?;
    let each_reads = sum(encodes.iter().map(|e| of(&e.operands[0])))?;
    let work = Work::Region {
        bytes: sum(read.iter().map(of))? + codes,
        apart_bytes: 0.0,
        encode_bytes: each_reads + codes,
        n_encodes: encodes.len() as u32,
    };
    kernels.push(Kernel { name: Op::Fused.name().to_string(), work });
    Ok(kernels)
}

fn one_of_op(module: &Module, f: &Func, op: &OpData) -> Result<Option<Kernel>, PlanError> {
    let types: Vec<&Type> = op.operands.iter().map(|v| f.ty(*v)).collect();
    let result = |i: usize| f.ty(op.results[i]);
    let site = op.attrs.get_word("site").map(str::to_string);
    let name = site.unwrap_or_else(|| op.op.def().name.to_string());
    let some = |work: Work| Ok(Some(Kernel { name: name.clone(), work }));
    let not_sent = op.op == Op::Dispatch && goes_as_codes(module, f, op);
    if not_sent || only_weights(module, f, op) {
        return Ok(None);
    }
    match op.op {
        Op::Matmul => {
            let (x, z) = (types[0], result(0));
            let from_end = if op.attrs.get_flag("tx") { 2 } else { 1 };
            let k = size(module, x, x.rank() - from_end)?;
            let (m, n) = (size(module, z, z.rank() - 2)?, size(module, z, z.rank() - 1)?);
            let groups = elements(module, z)? as u64 / (m * n).max(1);
            some(Work::Product { m, n, k, groups, format: format(op, x), shared: false })
        }
        Op::GroupedMatmul => {
            let (x, w, z) = (types[0], types[1], result(0));
            let groups = size(module, w, 0)?;
            let (rows, k) = (size(module, x, 0)?, size(module, x, 1)?);
            let n = size(module, z, 1)?;
            let m = rows.div_ceil(groups);
            some(Work::Product { m, n, k, groups, format: format(op, x), shared: true })
        }
        Op::GroupedOuter => {
            let (x, z) = (types[0], result(0));
            let groups = size(module, z, 0)?;
            let (m, n) = (size(module, z, 1)?, size(module, z, 2)?);
            let k = size(module, x, 0)?.div_ceil(groups);
            some(Work::Product { m, n, k, groups, format: format(op, x), shared: true })
        }
        Op::Attention | Op::AttentionGrad => {
            let flops = cost::of_op(module, f, op, &|_| None).map_err(|e| PlanError(e.0))?.flops;
            let which = match op.op {
                Op::AttentionGrad => Which::Backward,
                _ if size(module, types[0], 1)? == 1 => Which::Decode,
                _ => Which::Forward,
            };
            // A value that is read as keys and as values is read once.
            let read: BTreeSet<ValueId> = op.operands.iter().copied().collect();
            let bytes = sum(read.into_iter().map(|v| bytes(module, f.ty(v))))?;
            some(Work::Attention { flops: flops as f64, bytes, which })
        }
        Op::Dispatch => {
            let width = size(module, types[0], types[0].rank() - 1)? as f64;
            let tokens = elements(module, types[0])? / width;
            let n_rows = elements(module, result(0))? / width;
            let token_bytes = sent_bytes(module, f, op)? / tokens;
            some(Work::Dispatch(Exchange { tokens, token_bytes, row_bytes: n_rows * token_bytes }))
        }
        Op::Combine => {
            let z = result(0);
            let tokens = elements(module, z)? / size(module, z, z.rank() - 1)? as f64;
            let token_bytes = bytes(module, z)? / tokens;
            some(Work::Combine(Exchange {
                tokens,
                token_bytes,
                row_bytes: bytes(module, types[0])?,
            }))
        }
        // Parts and shapes of values are read where they are.
        Op::Reshape | Op::Slice | Op::Broadcast | Op::Transpose | Op::Constant | Op::Iota => {
            Ok(None)
        }
        Op::Extent | Op::StopGradient | Op::BatchSum | Op::Read | Op::Repeat | Op::Call => Ok(None),
        Op::Fused => some(region(module, f, op)?),
        _ => {
            let cost = cost::of_op(module, f, op, &|_| None).map_err(|e| PlanError(e.0))?;
            let bytes = cost.bytes() as f64;
            let encodes = matches!(op.op, Op::Encode | Op::Recode);
            let encode = encodes.then(|| match op.attrs.get_ints("group") {
                Some([1, _]) => Encode::Rows,
                _ => Encode::Columns,
            });
            some(Work::Rows { bytes, encode })
        }
    }
}

/// What is fused passes nothing between its ops through memory. A kernel that encoded apart from
/// its region would read what the region then wrote.
fn region(module: &Module, f: &Func, op: &OpData) -> Result<Work, PlanError> {
    let types = op.operands.iter().chain(&op.results).map(|v| f.ty(*v));
    let all = sum(types.map(|t| bytes(module, t)))?;
    let plain = Work::Region { bytes: all, apart_bytes: all, encode_bytes: 0.0, n_encodes: 0 };
    let Some(body) = op.attrs.get_func("func").map(|id| module.func(id)) else { return Ok(plain) };
    let (mut apart_bytes, mut encode_bytes, mut n_encodes) = (all, 0.0, 0);
    // What leaves the region, under the name that it has before it is given another shape.
    let mut written: BTreeSet<ValueId> =
        body.results.iter().map(|v| body.past_reshapes(*v)).collect();
    let mut n_others = written.len();
    for (_, encode) in body.body_ops().filter(|(_, o)| o.op == Op::Encode) {
        let x = body.past_reshapes(encode.operands[0]);
        let x_bytes = bytes(module, body.ty(x))?;
        for code in &encode.results {
            let code_bytes = bytes(module, body.ty(*code))?;
            encode_bytes += code_bytes;
            if written.contains(code) {
                apart_bytes -= code_bytes;
                n_others -= 1;
            }
        }
        if body.def_op(x).is_some() && written.insert(x) {
            apart_bytes += x_bytes;
            n_others += 1;
        }
        encode_bytes += x_bytes;
        n_encodes += 1;
    }
    // A region that only encodes is nothing but those kernels.
    let apart_bytes = if n_others == 0 { 0.0 } else { apart_bytes };
    Ok(Work::Region { bytes: all, apart_bytes, encode_bytes, n_encodes })
}

/// What goes to experts: codes and scales where the rows are made of codes, else the rows' type.
fn sent_bytes(module: &Module, f: &Func, op: &OpData) -> Result<f64, PlanError> {
    let x = op.operands[0];
    let made = f.def_op(x).map(|id| f.op(id)).filter(|d| d.op == Op::Fused);
    let plain = matches!(f.ty(x).dtype, DType::F32 | DType::Bf16);
    let coded = |d: &&OpData| plain && d.operands.iter().any(|v| is_fp8(f.ty(*v).dtype));
    match made.filter(coded) {
        Some(d) => sum(d.operands.iter().map(|v| bytes(module, f.ty(*v)))),
        None => bytes(module, f.ty(x)),
    }
}

/// Whether the same rows are dispatched as codes: those go, and whoever gets them can decode them.
fn goes_as_codes(module: &Module, f: &Func, op: &OpData) -> bool {
    let (sent, order) = (op.operands[0], op.operands[1]);
    let twins = f.body_ops().map(|(_, o)| o).filter(|o| o.op == Op::Dispatch);
    let mut twins = twins.filter(|o| o.operands[1] == order && is_fp8(f.ty(o.operands[0]).dtype));
    twins.any(|o| encoded_from(module, f, o.operands[0]) == Some(f.past_reshapes(sent)))
}

/// The value of `f` that `codes` are the codes of, if they are made in `f`.
fn encoded_from(module: &Module, f: &Func, codes: ValueId) -> Option<ValueId> {
    let codes = f.past_reshapes(codes);
    let made_by = f.op(f.def_op(codes)?);
    let source = |f: &Func, made_by: &OpData| {
        (made_by.op == Op::Encode).then(|| f.past_reshapes(made_by.operands[0]))
    };
    if made_by.op != Op::Fused {
        return source(f, made_by);
    }
    let body = module.func(made_by.attrs.get_func("func")?);
    let at = made_by.results.iter().position(|r| *r == codes)?;
    let inner = body.past_reshapes(body.results[at]);
    let from = source(body, body.op(body.def_op(inner)?))?;
    match body.value(from).def {
        Def::Param(i) => made_by.operands.get(i as usize).map(|v| f.past_reshapes(*v)),
        Def::Result { .. } => {
            let at = body.results.iter().position(|r| body.past_reshapes(*r) == from)?;
            Some(made_by.results[at])
        }
    }
}

fn is_fp8(dtype: DType) -> bool {
    matches!(dtype, DType::E4m3 | DType::E5m2)
}

fn format(op: &OpData, x: &Type) -> Format {
    let weight_gradient = op.op == Op::GroupedOuter || op.attrs.get_flag("tx");
    match x.dtype {
        DType::E4m3 | DType::E5m2 if weight_gradient => Format::Fp8WeightGradient,
        DType::E4m3 | DType::E5m2 => Format::Fp8,
        DType::Bf16 => Format::Bf16,
        _ => Format::F32,
    }
}

/// Whether an op reads nothing but weights: a training step does it once.
fn only_weights(module: &Module, f: &Func, op: &OpData) -> bool {
    !op.operands.is_empty() && op.operands.iter().all(|v| is_weight(module, f, *v))
}

/// Whether a value is a weight, or made of one by what names, converts or encodes.
pub fn is_weight(module: &Module, f: &Func, v: ValueId) -> bool {
    match f.value(v).def {
        Def::Param(_) => {
            let Some(name) = &f.value(v).name else { return false };
            let names = |store: &str| {
                store.strip_suffix(name.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('.'))
            };
            module.stores.iter().any(|(s, store)| store.kind == StoreKind::Weight && names(s))
        }
        Def::Result { op, .. } => {
            let op = f.op(op);
            let kept = matches!(
                op.op,
                Op::Reshape | Op::Slice | Op::Transpose | Op::Convert | Op::Encode | Op::Concat
            );
            kept && op.operands.iter().all(|v| is_weight(module, f, *v))
        }
    }
}

fn size(module: &Module, ty: &Type, dim: usize) -> Result<u64, PlanError> {
    let dim = ty.dims.get(dim).copied().ok_or(PlanError("a product of a scalar".into()))?;
    module.eval_dim(dim, &|_| None).ok_or(PlanError("a dim has no size".into()))
}

pub fn elements(module: &Module, ty: &Type) -> Result<f64, PlanError> {
    let all = dim::product(&ty.dims).ok_or(PlanError("too many elements".into()))?;
    let n = module.eval_dim(all, &|_| None).ok_or(PlanError("a dim has no size".into()))?;
    Ok(n as f64)
}

/// Storage; quantized values have been split into codes and scales.
pub fn bytes(module: &Module, ty: &Type) -> Result<f64, PlanError> {
    Ok(elements(module, ty)? * ty.dtype.bits() as f64 / 8.0)
}

fn sum(all: impl Iterator<Item = Result<f64, PlanError>>) -> Result<f64, PlanError> {
    all.sum()
}

impl Exchange {
    /// Both as one, if one of them is a few numbers a row, its gate or the scales of its codes:
    /// they go with the other.
    pub fn with(self, other: Exchange) -> Option<Exchange> {
        let (a, b) = (self.token_bytes, other.token_bytes);
        let tokens = self.tokens.min(other.tokens);
        let sent_bytes = self.tokens * a + other.tokens * b;
        (a.min(b) <= a.max(b) / 16.0).then_some(Exchange {
            tokens,
            token_bytes: sent_bytes / tokens,
            row_bytes: self.row_bytes + other.row_bytes,
        })
    }
}

impl Kernel {
    /// The same at one rank, on a share of the rows that come to its experts.
    pub fn share(&self, share: f64, at: &Place) -> Kernel {
        let fewer = |e: Exchange| Exchange {
            tokens: e.tokens * share,
            row_bytes: e.row_bytes * share,
            ..e
        };
        let work = match self.work {
            Work::Product { m, n, k, groups, format, shared: true } => {
                let here = (groups + at.redundant_experts).div_ceil(at.experts);
                let rows = (m * groups) as f64 * share;
                let m = ((rows / here as f64).ceil() as u64).max(1);
                Work::Product { m, n, k, groups: here, format, shared: false }
            }
            Work::Rows { bytes, encode } => Work::Rows { bytes: bytes * share, encode },
            Work::Region { bytes, apart_bytes, encode_bytes, n_encodes } => Work::Region {
                bytes: bytes * share,
                apart_bytes: apart_bytes * share,
                encode_bytes: encode_bytes * share,
                n_encodes,
            },
            Work::Dispatch(e) => Work::Dispatch(fewer(e)),
            Work::Combine(e) => Work::Combine(fewer(e)),
            Work::Product { .. } | Work::Attention { .. } => self.work,
        };
        Kernel { name: self.name.clone(), work }
    }

    /// Seconds on a GPU of the cluster; of an exchange, what it takes on the links alone.
    pub fn seconds(&self, cluster: &Cluster, at: &Place) -> f64 {
        let launch = cluster.launch_us * 1e-6;
        let o = &cluster.overlap;
        let beside = |factor: f64| if at.beside_exchange { factor } else { 1.0 };
        match self.work {
            Work::Product { m, n, k, groups, format, shared } => {
                let p = match format {
                    Format::Fp8 => cluster.fp8,
                    Format::Fp8WeightGradient => cluster.fp8_weight_gradient,
                    Format::Bf16 => cluster.bf16,
                    Format::F32 => cluster.f32,
                };
                // Every rank of an exchange has its share of the experts, their copies included,
                // and an even share of all rows; ranks along tensor send a share of the tokens
                // each. Other products they cut.
                let here = (groups + at.redundant_experts).div_ceil(at.experts);
                let rows = |n: u64| (n * groups).div_ceil(here * at.tensor);
                let (m, n, k, groups) = match (shared, format) {
                    (false, _) => (m, n.div_ceil(at.tensor), k, groups),
                    (true, Format::Fp8WeightGradient) => (m, n, rows(k), here),
                    (true, _) => (rows(m), n, k, here),
                };
                let tiles = product_seconds(&p, m, n, k, groups, at.sms);
                let element_bytes = match format {
                    Format::Fp8 | Format::Fp8WeightGradient => 1.0,
                    Format::Bf16 => 2.0,
                    Format::F32 => 4.0,
                };
                let read = ((m + n) * k * groups) as f64 * element_bytes;
                let written = (m * n * groups) as f64 * 2.0;
                let memory = (read + written)
                    / (cluster.memory_bytes_per_s * cluster.product_memory)
                    + p.tile_us * 1e-6;
                launch + tiles.max(memory) * beside(o.product)
            }
            Work::Attention { flops, bytes, which } => {
                let a = &cluster.attention;
                let rate = match which {
                    Which::Forward => a.forward_flops_per_s,
                    Which::Backward => a.backward_flops_per_s,
                    Which::Decode => a.decode_flops_per_s,
                };
                let share = at.sms as f64 / cluster.sms as f64;
                let mut seconds = flops / at.tensor as f64 / (rate * share);
                if which == Which::Decode {
                    seconds = seconds.max(bytes / a.decode_bytes_per_s);
                }
                launch + seconds * beside(o.attention)
            }
            Work::Rows { encode: Some(Encode::Rows), .. } if at.free_encodes[0] => 0.0,
            Work::Rows { encode: Some(Encode::Columns), .. } if at.free_encodes[1] => 0.0,
            Work::Rows { bytes, .. } => launch + rows_seconds(cluster, at, bytes),
            Work::Region { bytes, .. } if cluster.encodes_in_regions && !at.free_encodes[0] => {
                launch + rows_seconds(cluster, at, bytes)
            }
            Work::Region { apart_bytes, encode_bytes, n_encodes, .. } => {
                let encode =
                    f64::from(n_encodes) * launch + rows_seconds(cluster, at, encode_bytes);
                let encode = if at.free_encodes[0] { 0.0 } else { encode };
                let region = match apart_bytes {
                    0.0 => 0.0,
                    bytes => launch + rows_seconds(cluster, at, bytes),
                };
                region + encode
            }
            Work::Dispatch(Exchange { tokens, token_bytes, row_bytes })
            | Work::Combine(Exchange { tokens, token_bytes, row_bytes }) => {
                let bytes = tokens * token_bytes;
                if at.low_latency {
                    return low_latency_seconds(cluster, at, row_bytes / at.tensor as f64);
                }
                exchange_seconds(cluster, at, bytes / at.tensor as f64, row_bytes / bytes)
            }
        }
    }

    /// What an exchange leaves to the compute stream: rows laid out by expert, or added up.
    pub fn local_seconds(&self, cluster: &Cluster, at: &Place) -> f64 {
        let launch = cluster.launch_us * 1e-6;
        match self.work {
            Work::Dispatch(Exchange { tokens, token_bytes, row_bytes })
            | Work::Combine(Exchange { tokens, token_bytes, row_bytes }) => {
                launch + rows_seconds(cluster, at, tokens * token_bytes + row_bytes)
            }
            _ => 0.0,
        }
    }
}

fn rows_seconds(cluster: &Cluster, at: &Place, bytes: f64) -> f64 {
    // Fewer multiprocessors still fill the memory's bandwidth; an exchange takes from it.
    let beside = if at.beside_exchange { cluster.overlap.rows } else { 1.0 };
    bytes / at.tensor as f64 / (cluster.memory_bytes_per_s * cluster.rows) * beside
}

/// Tokens cross to each node of their experts once and go on inside it, both at the same time. The
/// `active` experts of a token lie anywhere, on no more nodes than they may.
fn exchange_seconds(cluster: &Cluster, at: &Place, bytes: f64, active: f64) -> f64 {
    if at.experts <= 1 {
        return 0.0;
    }
    let hit = |places: f64| places * (1.0 - (1.0 - 1.0 / places).powf(active));
    let nodes = at.experts.div_ceil(at.node) as f64;
    let most = at.nodes_per_token.map_or(f64::INFINITY, |n| n as f64);
    let far = hit(nodes).min(most) * (nodes - 1.0) / nodes;
    let ranks = at.experts as f64;
    let near = hit(ranks) * (ranks - 1.0) / ranks;
    let seconds = |n: f64, bytes_per_s: f64| bytes * n / bytes_per_s;
    seconds(far, cluster.exchange_rate(at.experts)).max(seconds(near, cluster.node_bytes_per_s))
}

/// Rows go one by one, those of far ranks and of near ones at the same time.
pub fn low_latency_seconds(cluster: &Cluster, at: &Place, row_bytes: f64) -> f64 {
    if at.experts <= 1 {
        return 0.0;
    }
    let l = &cluster.low_latency;
    let near = at.node.min(at.experts) as f64 / at.experts as f64;
    let far_s = row_bytes * (1.0 - near) / l.network_bytes_per_s;
    let near_s = row_bytes * near / l.node_bytes_per_s;
    l.latency_us * 1e-6 + far_s.max(near_s)
}

/// Tiles as the file has them, or narrower ones where those would leave multiprocessors idle.
pub fn product_seconds(p: &Product, m: u64, n: u64, k: u64, groups: u64, sms: u64) -> f64 {
    let tiles = |width: u64| m.div_ceil(p.tile[0]) * n.div_ceil(width) * groups;
    let seconds = |part: u64| {
        let waves = tiles((p.tile[1] / part).max(1)).div_ceil(sms);
        let block_us = p.block_us / part as f64;
        waves as f64 * (p.tile_us + block_us * k as f64 / 128.0) * 1e-6
    };
    match tiles(p.tile[1]) < sms {
        true => [1, 2, 4].map(seconds).into_iter().fold(f64::INFINITY, f64::min),
        false => seconds(1),
    }
}
