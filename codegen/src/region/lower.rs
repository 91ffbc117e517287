//! From the ops of an IR function to a region's graph.

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Def, Func, OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use super::Unsupported;
use super::graph::{Buf, Coord, Graph, Groups, Kind, NodeId, Scalar, Whole};

/// Can a region hold this op?
pub fn supports(op: Op) -> bool {
    match op {
        Op::Matmul | Op::GroupedMatmul | Op::GroupedOuter => false,
        Op::Attention | Op::AttentionGrad => false,
        Op::Quantize | Op::Dequantize => false,
        Op::Encode | Op::Recode => true,
        Op::Call | Op::Repeat | Op::Fused => false,
        Op::AllReduce | Op::ReduceScatter | Op::AllGather | Op::Send | Op::Recv => false,
        Op::ExchangeOffsets | Op::Exchange | Op::Spread | Op::Part => false,
        Op::AllReduceStart | Op::ReduceScatterStart | Op::AllGatherStart => false,
        Op::ExchangeStart | Op::Done => false,
        Op::Constant | Op::Iota | Op::Extent => true,
        Op::Neg | Op::Abs | Op::Sign | Op::Floor | Op::Exp | Op::Log | Op::Sqrt | Op::Rsqrt => true,
        Op::Sigmoid | Op::Tanh | Op::Sin | Op::Cos | Op::Erf => true,
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Max | Op::Min => true,
        Op::Eq | Op::Lt | Op::Le | Op::And | Op::Or | Op::Not | Op::Select => true,
        Op::Convert | Op::StopGradient => true,
        Op::Reshape | Op::Transpose | Op::Broadcast | Op::Slice | Op::Pad => true,
        Op::Concat | Op::Shift => true,
        Op::ReduceSum | Op::ReduceMax | Op::BatchSum => true,
        Op::Gather | Op::ScatterAdd | Op::Take | Op::Put | Op::OneHot => true,
        Op::Topk | Op::GroupedTopk => true,
        Op::Route | Op::Dispatch | Op::Combine | Op::CombineDot => true,
        Op::RmsNorm | Op::RmsNormGrad | Op::Softmax | Op::Rotary => true,
        Op::CrossEntropy | Op::CrossEntropyGrad => true,
        Op::Read | Op::Assign | Op::CacheAppend | Op::AdamW => true,
    }
}

/// The graph of `func`. Element types are checked here, once.
pub fn lower(func: &Func) -> Result<Graph, Unsupported> {
    let mut lower = Lower {
        func,
        graph: Graph { donated: func.donated.clone(), ..Graph::default() },
        of: vec![None; func.n_values()],
    };
    for (i, p) in func.params.iter().enumerate() {
        let ty = func.ty(*p);
        storable("parameter", ty)?;
        let load = lower.graph.push(Kind::Load(Buf::Operand(i as u32)), &ty.dims, ty.dtype);
        lower.of[p.0 as usize] = Some(lower.unpacked(load));
    }
    for (_, op) in func.body_ops() {
        if !supports(op.op) {
            return Err(Unsupported::new(op.op.name(), "it has a backend of its own"));
        }
        for r in &op.results {
            storable(op.op.name(), func.ty(*r))?;
        }
        let results = lower.op(op)?;
        for (r, node) in op.results.iter().zip(results) {
            lower.of[r.0 as usize] = Some(node);
        }
    }
    for r in &func.results {
        let node = lower.value(*r)?;
        let node = lower.packed(node, func.ty(*r));
        lower.graph.results.push(node);
    }
    Ok(lower.graph)
}

fn storable(op: &'static str, ty: &Type) -> Result<(), Unsupported> {
    // Dims are those of this rank's part, whatever axis they were cut along.
    if ty.quant.is_none() {
        return Ok(());
    }
    Err(Unsupported::new(op, "a quantized value in a region"))
}

pub(super) struct Lower<'a> {
    func: &'a Func,
    pub(super) graph: Graph,
    of: Vec<Option<NodeId>>,
}

impl Lower<'_> {
    fn value(&self, v: ValueId) -> Result<NodeId, Unsupported> {
        let defined = self.of[v.0 as usize];
        defined.ok_or_else(|| Unsupported::new("region", format!("%{} is not defined", v.0)))
    }

    /// The values of codes that lie two in three bytes.
    fn unpacked(&mut self, x: NodeId) -> NodeId {
        if self.dtype(x) != DType::E5m6 {
            return x;
        }
        let out = (self.dims(x), DType::Bf16);
        self.graph.push_whole(Whole::Unpack12, vec![x], &[out])[0]
    }

    /// A result as it lies in memory.
    fn packed(&mut self, x: NodeId, ty: &Type) -> NodeId {
        if ty.dtype != DType::E5m6 {
            return x;
        }
        let values = self.nearest(x, DType::E5m6);
        let out = (ty.dims.clone(), DType::E5m6);
        self.graph.push_whole(Whole::Pack12, vec![values], &[out])[0]
    }

    /// Values of e5m6, which bf16 holds.
    pub(super) fn nearest(&mut self, x: NodeId, dtype: DType) -> NodeId {
        let dims = self.dims(x);
        self.graph.push(Kind::Scalar(Scalar::Nearest(dtype), vec![x]), &dims, DType::Bf16)
    }

    pub(super) fn dims(&self, x: NodeId) -> Vec<Dim> {
        self.graph.node(x).dims.clone()
    }

    pub(super) fn dtype(&self, x: NodeId) -> DType {
        self.graph.node(x).dtype
    }

    fn op(&mut self, op: &OpData) -> Result<Vec<NodeId>, Unsupported> {
        let xs: Result<Vec<NodeId>, Unsupported> =
            op.operands.iter().map(|v| self.value(*v)).collect();
        let (xs, a) = (xs?, &op.attrs);
        let types: Vec<Type> = op.results.iter().map(|r| self.func.ty(*r).clone()).collect();
        let ty = types.first().cloned().unwrap_or(Type::scalar(DType::F32));
        let int = |name: &str| a.get_int(name).unwrap_or(0);
        let dim = int("dim") as usize;
        let ints = |name: &str| -> Vec<usize> {
            a.get_ints(name).unwrap_or(&[]).iter().map(|i| *i as usize).collect()
        };
        let moved = |by, inside, fill| Kind::Moved { x: xs[0], dim, by, fill, inside };
        let kind = match op.op {
            Op::Constant => Kind::Constant(a.get_float("value").unwrap_or(0.0)),
            Op::Iota => Kind::Iota(dim),
            Op::Extent => Kind::Extent(a.get_dim("of").unwrap_or(Dim::fixed(1))),
            Op::StopGradient | Op::BatchSum | Op::Read => return Ok(vec![xs[0]]),
            Op::Neg
            | Op::Abs
            | Op::Sign
            | Op::Floor
            | Op::Exp
            | Op::Log
            | Op::Sqrt
            | Op::Rsqrt
            | Op::Sigmoid
            | Op::Tanh
            | Op::Sin
            | Op::Cos
            | Op::Erf
            | Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Div
            | Op::Max
            | Op::Min
            | Op::Eq
            | Op::Lt
            | Op::Le
            | Op::And
            | Op::Or
            | Op::Not
            | Op::Select => Kind::Scalar(Scalar::Ir(op.op), xs.clone()),
            Op::Convert if ty.dtype == DType::E5m6 => {
                return Ok(vec![self.nearest(xs[0], ty.dtype)]);
            }
            Op::Convert => Kind::Scalar(Scalar::Ir(op.op), xs.clone()),
            Op::Reshape => Kind::Reshape(xs[0]),
            Op::Transpose => Kind::Transpose(xs[0], ints("perm")),
            Op::Broadcast => Kind::Broadcast(xs[0], ints("dims")),
            Op::Slice => moved(int("start"), true, 0.0),
            Op::Pad => moved(-int("low"), false, 0.0),
            Op::Shift => moved(int("by"), false, a.get_float("fill").unwrap_or(0.0)),
            Op::Concat => Kind::Concat(xs.clone(), dim),
            Op::ReduceSum | Op::ReduceMax => {
                Kind::Fold { x: xs[0], dims: ints("dims"), max: op.op == Op::ReduceMax }
            }
            Op::Assign => return Ok(vec![xs[1]]),
            Op::Encode => return self.encode(xs[0], a, &types),
            Op::Recode => return self.recode(xs[0], xs[1], a, &types),
            Op::Gather => self.gather(xs[0], xs[1]),
            Op::Take => self.take(xs[0], xs[1]),
            Op::Put => return Ok(vec![self.put(xs[0], xs[1], &ty)]),
            Op::OneHot => return Ok(vec![self.one_hot(xs[0], &ty)]),
            Op::Dispatch => return Ok(vec![self.dispatch(&xs, a, &ty)?]),
            Op::Softmax => return Ok(vec![self.softmax(xs[0], ty.dtype)]),
            Op::RmsNorm => return Ok(self.rms_norm(&xs, a)),
            Op::RmsNormGrad => return Ok(vec![self.rms_norm_grad(&xs)]),
            Op::Rotary => return Ok(vec![self.rotary(&xs, a)?]),
            Op::CrossEntropy => return Ok(self.cross_entropy(&xs)),
            Op::CrossEntropyGrad => return Ok(vec![self.cross_entropy_grad(&xs)]),
            Op::AdamW => return Ok(self.adamw(&xs, a)),
            Op::Topk | Op::GroupedTopk => return Ok(self.topk(xs[0], a, op.op, &ty)),
            Op::Route => return Ok(self.route(xs[0], a, &types)),
            Op::ScatterAdd => return Ok(vec![self.scatter_add(&xs, &ty)?]),
            Op::Combine => return Ok(vec![self.combine(&xs, a, &ty)?]),
            Op::CombineDot => return Ok(vec![self.combine_dot(&xs, a, &ty)?]),
            Op::CacheAppend => return self.cache_append(op, xs, &types),
            Op::Matmul
            | Op::GroupedMatmul
            | Op::GroupedOuter
            | Op::Attention
            | Op::AttentionGrad
            | Op::Quantize
            | Op::Dequantize
            | Op::AllReduce
            | Op::ReduceScatter
            | Op::AllGather
            | Op::Spread
            | Op::Part
            | Op::ExchangeOffsets
            | Op::Exchange
            | Op::AllReduceStart
            | Op::ReduceScatterStart
            | Op::AllGatherStart
            | Op::ExchangeStart
            | Op::Done
            | Op::Send
            | Op::Recv
            | Op::Call
            | Op::Repeat
            | Op::Fused => {
                return Err(Unsupported::new(op.op.name(), "it has a backend of its own"));
            }
        };
        Ok(vec![self.graph.push(kind, &ty.dims, ty.dtype)])
    }

    // --- small words the composites below are written with ---

    /// A pointwise op in f32, unrounded.
    pub(super) fn f(&mut self, op: Op, xs: &[NodeId]) -> NodeId {
        let dims = self.dims(xs[0]);
        self.graph.push(Kind::Scalar(Scalar::Ir(op), xs.to_vec()), &dims, DType::F32)
    }

    pub(super) fn number(&mut self, value: f64, like: NodeId) -> NodeId {
        let dims = self.dims(like);
        self.graph.push(Kind::Constant(value), &dims, DType::F32)
    }

    pub(super) fn round(&mut self, x: NodeId, dtype: DType) -> NodeId {
        if self.dtype(x) == dtype {
            return x;
        }
        let dims = self.dims(x);
        self.graph.push(Kind::Scalar(Scalar::Round, vec![x]), &dims, dtype)
    }

    /// `x`, whose dims are those dims of `like` that `map` lists.
    fn stretch(&mut self, x: NodeId, map: Vec<usize>, like: NodeId) -> NodeId {
        let (dims, dtype) = (self.dims(like), self.dtype(x));
        self.graph.push(Kind::Broadcast(x, map), &dims, dtype)
    }

    /// A value of each row of `like`, in all its columns.
    fn along_rows(&mut self, x: NodeId, like: NodeId) -> NodeId {
        let rank = self.dims(like).len();
        self.stretch(x, (0..rank - 1).collect(), like)
    }

    /// A vector of the last dim of `like`, in all its rows.
    fn along_last(&mut self, x: NodeId, like: NodeId) -> NodeId {
        let rank = self.dims(like).len();
        self.stretch(x, vec![rank - 1], like)
    }

    fn fold_last(&mut self, x: NodeId, max: bool) -> NodeId {
        let mut dims = self.dims(x);
        let last = dims.len() - 1;
        dims.pop();
        self.graph.push(Kind::Fold { x, dims: vec![last], max }, &dims, DType::F32)
    }

    /// The size of the last dim, with the dims of `like`.
    fn width(&mut self, x: NodeId, like: NodeId) -> NodeId {
        let size = self.dims(x).last().copied().unwrap_or(Dim::fixed(1));
        let dims = self.dims(like);
        self.graph.push(Kind::Extent(size), &dims, DType::F32)
    }

    fn index(&mut self, dims: &[Dim], along: usize) -> NodeId {
        self.graph.push(Kind::Iota(along), dims, DType::I32)
    }

    pub(super) fn scalar(&mut self, op: Op, xs: &[NodeId], dtype: DType) -> NodeId {
        let dims = self.dims(xs[0]);
        self.graph.push(Kind::Scalar(Scalar::Ir(op), xs.to_vec()), &dims, dtype)
    }

    // --- indexing ---

    fn gather(&self, table: NodeId, ids: NodeId) -> Kind {
        let rank = self.dims(ids).len();
        Kind::Lookup(table, vec![Coord::Data(ids, (0..rank).collect()), Coord::Out(rank)])
    }

    fn take(&self, x: NodeId, ids: NodeId) -> Kind {
        let rank = self.dims(ids).len();
        let mut coords: Vec<Coord> = (0..rank - 1).map(Coord::Out).collect();
        coords.push(Coord::Data(ids, (0..rank).collect()));
        Kind::Lookup(x, coords)
    }

    fn one_hot(&mut self, ids: NodeId, ty: &Type) -> NodeId {
        let rank = ty.dims.len();
        let ids =
            self.graph.push(Kind::Broadcast(ids, (0..rank - 1).collect()), &ty.dims, DType::I32);
        let at = self.index(&ty.dims, rank - 1);
        let hit = self.scalar(Op::Eq, &[at, ids], DType::Bool);
        self.f(Op::Convert, &[hit])
    }

    /// `z[.., j] = Σ_k x[.., k] where ids[.., k] = j`: a sum of few terms that never collides.
    fn put(&mut self, x: NodeId, ids: NodeId, ty: &Type) -> NodeId {
        let mut wide = ty.dims.clone();
        let (rank, slots) = (wide.len(), self.dims(x)[ty.dims.len() - 1]);
        wide.insert(rank - 1, slots);
        let map: Vec<usize> = (0..rank).collect();
        let dtype = self.dtype(x);
        let x = self.graph.push(Kind::Broadcast(x, map.clone()), &wide, dtype);
        let ids = self.graph.push(Kind::Broadcast(ids, map), &wide, DType::I32);
        let at = self.index(&wide, rank);
        let hit = self.scalar(Op::Eq, &[at, ids], DType::Bool);
        let zero = self.number(0.0, x);
        let term = self.f(Op::Select, &[hit, x, zero]);
        let fold = Kind::Fold { x: term, dims: vec![rank - 1], max: false };
        self.graph.push(fold, &ty.dims, ty.dtype)
    }

    fn dispatch(&mut self, xs: &[NodeId], a: &Attrs, ty: &Type) -> Result<NodeId, Unsupported> {
        let (x, order) = (xs[0], xs[1]);
        let flat = self.rows(x)?;
        let tokens = self.dims(flat)[0];
        let active = self.active(a);
        let order_dims = self.dims(order);
        let by = Kind::Constant(active.coeff() as f64);
        let by = self.graph.push(by, &order_dims, DType::I32);
        let token = self.scalar(Op::Div, &[order, by], DType::I32);
        let at = vec![Coord::Data(token, vec![0]), Coord::Out(1)];
        let rows = self.graph.push(Kind::Lookup(flat, at), &ty.dims, ty.dtype);
        let Some(weights) = xs.get(2) else { return Ok(rows) };
        let places = tokens.checked_mul(active).ok_or_else(too_large)?;
        let dtype = self.dtype(*weights);
        let weights = self.graph.push(Kind::Reshape(*weights), &[places], dtype);
        let at = vec![Coord::Data(order, vec![0])];
        let weight = self.graph.push(Kind::Lookup(weights, at), &ty.dims[..1], dtype);
        let weight = self.along_rows(weight, rows);
        let product = self.f(Op::Mul, &[rows, weight]);
        Ok(self.round(product, ty.dtype))
    }

    /// `x` with its leading dims made one.
    fn rows(&mut self, x: NodeId) -> Result<NodeId, Unsupported> {
        let (mut dims, dtype) = (self.dims(x), self.dtype(x));
        let width = dims.pop().unwrap_or(Dim::fixed(1));
        let rows = product(&dims)?;
        Ok(self.graph.push(Kind::Reshape(x), &[rows, width], dtype))
    }

    fn topk(&mut self, x: NodeId, a: &Attrs, op: Op, ty: &Type) -> Vec<NodeId> {
        let count = |name: &str| a.get_int(name).unwrap_or(1).max(1) as u64;
        let n = self.dims(x).last().and_then(|d| d.as_fixed()).unwrap_or(1);
        let groups = (op == Op::GroupedTopk).then(|| Groups {
            count: count("groups"),
            kept: count("kept"),
            pair: a.get_word("group_score") == Some("top2") && n > count("groups"),
        });
        let whole = Whole::Topk { n, k: count("k"), groups };
        self.graph.push_whole(whole, vec![x], &[(ty.dims.clone(), ty.dtype)])
    }

    fn route(&mut self, ids: NodeId, a: &Attrs, types: &[Type]) -> Vec<NodeId> {
        let groups = Dim::fixed(a.get_int("experts").unwrap_or(1).max(1) as u64);
        let outs: Vec<_> = types.iter().map(|t| (t.dims.clone(), t.dtype)).collect();
        self.graph.push_whole(Whole::Sort { groups }, vec![ids], &outs)
    }

    fn scatter_add(&mut self, xs: &[NodeId], ty: &Type) -> Result<NodeId, Unsupported> {
        let groups = ty.dims[0];
        let places = product(&self.dims(xs[1]))?;
        // A symbolic number of rows and one more is no dim; the offsets then lie in twice as many.
        let offsets = groups.checked_add(Dim::fixed(1)).or_else(|| groups.checked_add(groups));
        let offsets = vec![offsets.ok_or_else(too_large)?];
        let outs = [(offsets, DType::I32), (vec![places], DType::I32)];
        let sorted = self.graph.push_whole(Whole::Sort { groups }, vec![xs[1]], &outs);
        let operands = vec![xs[0], sorted[0], sorted[1]];
        let outs = [(ty.dims.clone(), ty.dtype)];
        Ok(self.graph.push_whole(Whole::SegmentSum, operands, &outs)[0])
    }

    fn combine(&mut self, xs: &[NodeId], a: &Attrs, ty: &Type) -> Result<NodeId, Unsupported> {
        let (dtype, active) = (ty.dtype, self.active(a));
        let width = ty.dims[ty.dims.len() - 1];
        let tokens = product(&ty.dims[..ty.dims.len() - 1])?;
        let all = self.by_slot(xs[0], xs[1], [tokens, active, width]);
        let mut terms = all;
        if let Some(weights) = xs.get(2) {
            let of = self.dtype(*weights);
            let weights = self.graph.push(Kind::Reshape(*weights), &[tokens, active], of);
            let weights = self.along_rows(weights, all);
            terms = self.f(Op::Mul, &[all, weights]);
        }
        let fold = Kind::Fold { x: terms, dims: vec![1], max: false };
        let sum = self.graph.push(fold, &[tokens, width], dtype);
        Ok(self.graph.push(Kind::Reshape(sum), &ty.dims, dtype))
    }

    fn combine_dot(&mut self, xs: &[NodeId], a: &Attrs, ty: &Type) -> Result<NodeId, Unsupported> {
        let (dtype, active) = (ty.dtype, self.active(a));
        let dy = self.rows(xs[2])?;
        let [tokens, width] = self.dims(dy)[..] else { return Err(too_large()) };
        let all = self.by_slot(xs[0], xs[1], [tokens, active, width]);
        let dy = self.stretch(dy, vec![0, 2], all);
        let terms = self.f(Op::Mul, &[all, dy]);
        let fold = Kind::Fold { x: terms, dims: vec![2], max: false };
        let sum = self.graph.push(fold, &[tokens, active], dtype);
        Ok(self.graph.push(Kind::Reshape(sum), &ty.dims, dtype))
    }

    fn active(&self, a: &Attrs) -> Dim {
        Dim::fixed(a.get_int("active").unwrap_or(1).max(1) as u64)
    }

    /// `rows[row of (t, slot)]`, as `[tokens, active, width]`.
    fn by_slot(&mut self, rows: NodeId, order: NodeId, dims: [Dim; 3]) -> NodeId {
        let (places, dtype) = (self.dims(order), self.dtype(rows));
        let outs = [(places, DType::I32)];
        let inverse = self.graph.push_whole(Whole::Invert, vec![order], &outs)[0];
        let inverse = self.graph.push(Kind::Reshape(inverse), &dims[..2], DType::I32);
        let at = vec![Coord::Data(inverse, vec![0, 1]), Coord::Out(2)];
        self.graph.push(Kind::Lookup(rows, at), &dims, dtype)
    }

    fn cache_append(
        &mut self,
        op: &OpData,
        xs: Vec<NodeId>,
        types: &[Type],
    ) -> Result<Vec<NodeId>, Unsupported> {
        if !matches!(self.func.value(op.operands[0]).def, Def::Param(_)) {
            let why = "the cache is not a parameter of the region";
            return Err(Unsupported::new(op.op.name(), why));
        }
        let outs: Vec<_> = types.iter().map(|t| (t.dims.clone(), t.dtype)).collect();
        Ok(self.graph.push_whole(Whole::CacheAppend, xs, &outs))
    }

    // --- composites, by their decompositions ---

    fn softmax(&mut self, x: NodeId, dtype: DType) -> NodeId {
        let (e, sum, _) = self.exponentials(x);
        let one = self.number(1.0, sum);
        let inverse = self.f(Op::Div, &[one, sum]);
        let inverse = self.along_rows(inverse, x);
        let y = self.f(Op::Mul, &[e, inverse]);
        self.round(y, dtype)
    }

    /// `e^(x - max)`, its sum along rows, and the max.
    fn exponentials(&mut self, x: NodeId) -> (NodeId, NodeId, NodeId) {
        let top = self.fold_last(x, true);
        let wide = self.along_rows(top, x);
        let shifted = self.f(Op::Sub, &[x, wide]);
        let e = self.f(Op::Exp, &[shifted]);
        let sum = self.fold_last(e, false);
        (e, sum, top)
    }

    fn rms_norm(&mut self, xs: &[NodeId], a: &Attrs) -> Vec<NodeId> {
        let (x, g) = (xs[0], xs[1]);
        let square = self.f(Op::Mul, &[x, x]);
        let sum = self.fold_last(square, false);
        let n = self.width(x, sum);
        let mean = self.f(Op::Div, &[sum, n]);
        let eps = self.number(a.get_float("eps").unwrap_or(0.0), sum);
        let mean = self.f(Op::Add, &[mean, eps]);
        let r = self.f(Op::Rsqrt, &[mean]);
        let (wide_g, wide_r) = (self.along_last(g, x), self.along_rows(r, x));
        let scaled = self.f(Op::Mul, &[wide_g, x]);
        let y = self.f(Op::Mul, &[scaled, wide_r]);
        let dtype = self.dtype(x);
        vec![self.round(y, dtype), r]
    }

    fn rms_norm_grad(&mut self, xs: &[NodeId]) -> NodeId {
        let (x, g, r, dy) = (xs[0], xs[1], xs[2], xs[3]);
        let g = self.along_last(g, x);
        let gdy = self.f(Op::Mul, &[g, dy]);
        let product = self.f(Op::Mul, &[gdy, x]);
        let sum = self.fold_last(product, false);
        let n = self.width(x, sum);
        let mean = self.f(Op::Div, &[sum, n]);
        let r2 = self.f(Op::Mul, &[r, r]);
        let factor = self.f(Op::Mul, &[r2, mean]);
        let (factor, r) = (self.along_rows(factor, x), self.along_rows(r, x));
        let along = self.f(Op::Mul, &[x, factor]);
        let across = self.f(Op::Sub, &[gdy, along]);
        let y = self.f(Op::Mul, &[r, across]);
        let dtype = self.dtype(x);
        self.round(y, dtype)
    }

    fn rotary(&mut self, xs: &[NodeId], a: &Attrs) -> Result<NodeId, Unsupported> {
        let (x, positions, freq) = (xs[0], xs[1], xs[2]);
        let dims = self.dims(x);
        let dtype = self.dtype(x);
        let width = dims[3].as_fixed().unwrap_or(2);
        let halves = [dims[0], dims[1], dims[2], Dim::fixed(2), Dim::fixed(width / 2)];
        let pairs = [dims[0], dims[1], dims[2], Dim::fixed(width / 2), Dim::fixed(2)];
        let interleaved = a.get_flag("interleaved");
        let split: &[Dim] = if interleaved { &pairs } else { &halves };
        let along = if interleaved { 3 } else { 4 };
        let position = self.f(Op::Convert, &[positions]);
        let position = self.graph.push(Kind::Broadcast(position, vec![0, 1]), split, DType::F32);
        let freq = self.graph.push(Kind::Broadcast(freq, vec![along]), split, DType::F32);
        let mut angle = self.f(Op::Mul, &[position, freq]);
        if a.get_flag("inverse") {
            angle = self.f(Op::Neg, &[angle]);
        }
        let (cos, sin) = (self.f(Op::Cos, &[angle]), self.f(Op::Sin, &[angle]));
        if interleaved {
            // y[d] = x[d] cos + x[partner of d] (-sin at even d, sin at odd d).
            let partner = self.graph.push(Kind::Swap(x), &dims, dtype);
            let [cos, sin] =
                [cos, sin].map(|v| self.graph.push(Kind::Reshape(v), &dims, DType::F32));
            let side = self.graph.push(Kind::Iota(4), &pairs, DType::I32);
            let side = self.graph.push(Kind::Reshape(side), &dims, DType::I32);
            let zero = self.graph.push(Kind::Constant(0.0), &dims, DType::I32);
            let first = self.scalar(Op::Eq, &[side, zero], DType::Bool);
            let minus = self.f(Op::Neg, &[sin]);
            let sin = self.f(Op::Select, &[first, minus, sin]);
            let (a, b) = (self.f(Op::Mul, &[x, cos]), self.f(Op::Mul, &[partner, sin]));
            let y = self.f(Op::Add, &[a, b]);
            return Ok(self.round(y, dtype));
        }
        let x = self.graph.push(Kind::Reshape(x), &halves, dtype);
        let mut half = halves.to_vec();
        half[3] = Dim::fixed(1);
        let mut part = |x: NodeId, by: i64| {
            let dtype = self.graph.node(x).dtype;
            let kind = Kind::Moved { x, dim: 3, by, fill: 0.0, inside: true };
            self.graph.push(kind, &half, dtype)
        };
        let (first, second) = (part(x, 0), part(x, 1));
        let (cos, sin) = (part(cos, 0), part(sin, 0));
        let mut turned = |op: Op, (a, s): (NodeId, NodeId), (b, t): (NodeId, NodeId)| {
            let (left, right) = (self.f(Op::Mul, &[a, s]), self.f(Op::Mul, &[b, t]));
            let y = self.f(op, &[left, right]);
            self.round(y, dtype)
        };
        let low = turned(Op::Sub, (first, cos), (second, sin));
        let high = turned(Op::Add, (first, sin), (second, cos));
        let both = self.graph.push(Kind::Concat(vec![low, high], 3), &halves, dtype);
        Ok(self.graph.push(Kind::Reshape(both), &dims, dtype))
    }

    fn cross_entropy(&mut self, xs: &[NodeId]) -> Vec<NodeId> {
        let (logits, targets) = (xs[0], xs[1]);
        let (_, sum, top) = self.exponentials(logits);
        let log = self.f(Op::Log, &[sum]);
        let lse = self.f(Op::Add, &[top, log]);
        let rank = self.dims(targets).len();
        let mut coords: Vec<Coord> = (0..rank).map(Coord::Out).collect();
        coords.push(Coord::Data(targets, (0..rank).collect()));
        let (dims, dtype) = (self.dims(targets), self.dtype(logits));
        let picked = self.graph.push(Kind::Lookup(logits, coords), &dims, dtype);
        let loss = self.f(Op::Sub, &[lse, picked]);
        let loss = self.where_targeted(targets, loss);
        vec![loss, lse]
    }

    fn where_targeted(&mut self, targets: NodeId, x: NodeId) -> NodeId {
        let dims = self.dims(x);
        let zero = self.graph.push(Kind::Constant(0.0), &dims, DType::I32);
        let none = self.scalar(Op::Lt, &[targets, zero], DType::Bool);
        let nothing = self.number(0.0, x);
        self.f(Op::Select, &[none, nothing, x])
    }

    fn cross_entropy_grad(&mut self, xs: &[NodeId]) -> NodeId {
        let (logits, targets, lse, dloss) = (xs[0], xs[1], xs[2], xs[3]);
        let dloss = self.where_targeted(targets, dloss);
        let (wide_lse, dloss) = (self.along_rows(lse, logits), self.along_rows(dloss, logits));
        let shifted = self.f(Op::Sub, &[logits, wide_lse]);
        let p = self.f(Op::Exp, &[shifted]);
        let dims = self.dims(logits);
        let at = self.index(&dims, dims.len() - 1);
        let wide_targets = self.along_rows(targets, logits);
        let hit = self.scalar(Op::Eq, &[at, wide_targets], DType::Bool);
        let hit = self.f(Op::Convert, &[hit]);
        let difference = self.f(Op::Sub, &[p, hit]);
        let y = self.f(Op::Mul, &[dloss, difference]);
        let dtype = self.dtype(logits);
        self.round(y, dtype)
    }

    fn adamw(&mut self, xs: &[NodeId], a: &Attrs) -> Vec<NodeId> {
        let (w, m, v, g, lr, t) = (xs[0], xs[1], xs[2], xs[3], xs[4], xs[5]);
        let float = |name: &str| a.get_float(name).unwrap_or(0.0);
        let moment = |s: &mut Self, old: NodeId, beta: f64, g: NodeId| {
            let (keep, take) = (s.number(beta, w), s.number(1.0 - beta, w));
            let (kept, taken) = (s.f(Op::Mul, &[keep, old]), s.f(Op::Mul, &[take, g]));
            s.f(Op::Add, &[kept, taken])
        };
        let g2 = self.f(Op::Mul, &[g, g]);
        let m2 = moment(self, m, float("beta1"), g);
        let v2 = moment(self, v, float("beta2"), g2);
        // 1 / (1 - βᵗ) is one number for the whole array.
        let correction = |s: &mut Self, beta: f64| {
            let kind = Kind::Scalar(Scalar::OneMinusPow(beta), vec![t]);
            let rest = s.graph.push(kind, &[], DType::F32);
            let one = s.number(1.0, rest);
            let inverse = s.f(Op::Div, &[one, rest]);
            s.stretch(inverse, vec![], w)
        };
        let (c1, c2) = (correction(self, float("beta1")), correction(self, float("beta2")));
        let m_hat = self.f(Op::Mul, &[m2, c1]);
        let v_hat = self.f(Op::Mul, &[v2, c2]);
        let root = self.f(Op::Sqrt, &[v_hat]);
        let eps = self.number(float("eps"), w);
        let below = self.f(Op::Add, &[root, eps]);
        let ratio = self.f(Op::Div, &[m_hat, below]);
        let decay = self.number(float("decay"), w);
        let decayed = self.f(Op::Mul, &[decay, w]);
        let direction = self.f(Op::Add, &[ratio, decayed]);
        let lr = self.stretch(lr, vec![], w);
        let change = self.f(Op::Mul, &[lr, direction]);
        let w2 = self.f(Op::Sub, &[w, change]);
        let types = [self.dtype(w), self.dtype(m), self.dtype(v)];
        [w2, m2, v2].into_iter().zip(types).map(|(x, dtype)| self.round(x, dtype)).collect()
    }
}

fn product(dims: &[Dim]) -> Result<Dim, Unsupported> {
    weft_ir::dim::product(dims).ok_or_else(too_large)
}

pub(super) fn too_large() -> Unsupported {
    Unsupported::new("region", "a size overflows")
}
