//! The reference interpreter: runs any function of a module and is the oracle of every pass and
//! kernel.
//!
//! It is written to be obviously right, not fast: plain loops over `f64`. [`Precision`] says
//! whether results are rounded to their types. Verified IR never makes it panic, whatever the
//! inputs hold: what has no value is a [`RunError`] with the op, the function and the place in the
//! source.
//!
//! Ops are evaluated by the one `match` below; the bodies stand in a file for each topic.

mod attention;
mod collective;
mod contract;
mod control;
mod exchange;
mod index;
mod moe;
mod movement;
mod pages;
mod pointwise;
mod random;
mod reduce;
mod row;
mod scaled;
mod state;
mod tensor;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::attr::Attrs;
use crate::builder;
use crate::dim::{Dim, SymId, SymKind};
use crate::formats;
use crate::module::{Func, FuncId, Module, OpData, ValueId};
use crate::op::{Op, Trait};
use crate::ty::{DType, Type};

use collective::{Flight, Rank};

pub use collective::run_programs;
pub use random::{Range, random_args};
pub use tensor::{Data, Tensor};

/// What happens to the result of an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// Nothing: every float is an `f64`. For finite differences, and to compare decompositions.
    F64,
    /// It is rounded to f32 and from there to its element type, as a kernel that computes in f32
    /// does. Sums are accumulated in f64, so they are rounded once.
    Stated,
}

/// Sizes of the bounded symbols.
pub type Sizes = BTreeMap<SymId, u64>;

/// Why a run stopped. `place` is `file:line:column` of the op's first span.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}@{func}{}: {why}", place.as_ref().map(|p| format!("{p}: ")).unwrap_or_default(),
        op.map(|o| format!(": {o}")).unwrap_or_default())]
pub struct RunError {
    pub func: String,
    /// The op that has no value; `None` where the arguments are at fault.
    pub op: Option<&'static str>,
    pub place: Option<String>,
    pub why: String,
}

/// An op's failure before its place is known.
type Fault = String;

/// A tensor dimension larger than this is a mistake of the IR, not a machine's lack of memory.
const ELEMENTS_MAX: usize = 1 << 33;

/// Told of every value that a function is handed or an op makes, in the order of the run.
pub type Watch<'a> = &'a dyn Fn(&Func, ValueId, &Tensor);

pub struct Interp<'a> {
    module: &'a Module,
    precision: Precision,
    watch: Option<Watch<'a>>,
}

impl<'a> Interp<'a> {
    pub fn new(module: &'a Module, precision: Precision) -> Interp<'a> {
        Interp { module, precision, watch: None }
    }

    /// The same, telling `watch` of every value.
    pub fn watched(self, watch: Watch<'a>) -> Interp<'a> {
        Interp { watch: Some(watch), ..self }
    }

    /// The results of `func` on `args`; the sizes of the bounded symbols are read off the
    /// arguments' dims.
    pub fn run(&self, func: FuncId, args: Vec<Tensor>) -> Result<Vec<Tensor>, RunError> {
        self.run_sized(func, args, &Sizes::new())
    }

    /// [`Interp::run`] where no argument's dims tell the symbols in `sizes`.
    pub fn run_sized(
        &self,
        func: FuncId,
        args: Vec<Tensor>,
        sizes: &Sizes,
    ) -> Result<Vec<Tensor>, RunError> {
        self.run_as(func, args, sizes, None)
    }

    /// One rank's run.
    fn run_as(
        &self,
        func: FuncId,
        args: Vec<Tensor>,
        sizes: &Sizes,
        rank: Option<Rank>,
    ) -> Result<Vec<Tensor>, RunError> {
        let f = self.module.funcs.get(func.0 as usize).ok_or_else(|| RunError {
            func: format!("#{}", func.0),
            op: None,
            place: None,
            why: "no such function".into(),
        })?;
        let at_entry = |why| RunError { func: f.name.clone(), op: None, place: None, why };
        let types: Vec<&Type> = f.params.iter().map(|p| f.ty(*p)).collect();
        let sizes = bind(self.module, &types, &args, sizes).map_err(at_entry)?;
        let (module, precision, watch) = (self.module, self.precision, self.watch);
        let run = Run { module, precision, watch, sizes, rank };
        let mut checked = vec![];
        for (i, (ty, arg)) in types.iter().zip(args).enumerate() {
            run.check(ty, &arg).map_err(|e| at_entry(format!("argument {i}: {e}")))?;
            checked.push(Rc::new(run.rounded(arg)));
        }
        let results = run.func(func, checked)?;
        Ok(results
            .into_iter()
            .map(|t| Rc::try_unwrap(t).unwrap_or_else(|t| (*t).clone()))
            .collect())
    }
}

/// The sizes that make the dims of `types` those of `args`, `given` first.
pub fn bind(
    module: &Module,
    types: &[&Type],
    args: &[Tensor],
    given: &Sizes,
) -> Result<Sizes, String> {
    if types.len() != args.len() {
        return Err(format!("takes {} arguments, found {}", types.len(), args.len()));
    }
    let mut sizes = given.clone();
    // A dim tells its symbol once all others in it are known: `2*B*S` may wait for `B`.
    loop {
        let before = sizes.len();
        for (ty, arg) in types.iter().zip(args) {
            ty.dims
                .iter()
                .zip(&arg.dims)
                .for_each(|(d, n)| solve(module, *d, *n as u64, &mut sizes));
        }
        if sizes.len() == before {
            break;
        }
    }
    for (sym, n) in &sizes {
        let SymKind::Bounded { max } = module.sym(*sym).kind else { continue };
        if *n == 0 || *n > max {
            return Err(format!("{} = {n} is not within 1..{max}", module.sym(*sym).name));
        }
    }
    Ok(sizes)
}

/// Adds the one bounded symbol of `dim` that `sizes` lacks, where `n` decides it.
fn solve(module: &Module, dim: Dim, n: u64, sizes: &mut Sizes) {
    let bounded = |s: &SymId| matches!(module.sym(*s).kind, SymKind::Bounded { .. });
    let unknown: Vec<SymId> =
        dim.symbols().filter(|s| bounded(s) && !sizes.contains_key(s)).collect();
    let [one] = unknown[..] else { return };
    let rest = dim.checked_div(Dim::sym(one));
    let rest = rest.and_then(|d| module.eval_dim(d, &|s| sizes.get(&s).copied()));
    if let Some(rest) = rest.filter(|r| *r > 0 && n.is_multiple_of(*r)) {
        sizes.insert(one, n / rest);
    }
}

/// One run of an entry.
struct Run<'a> {
    module: &'a Module,
    precision: Precision,
    watch: Option<Watch<'a>>,
    sizes: Sizes,
    /// Which of several ranks this is.
    rank: Option<Rank<'a>>,
}

/// What an op's body may ask for besides its operands.
struct Cx<'a> {
    run: &'a Run<'a>,
    attrs: &'a Attrs,
    /// The types of the operands, and of the results.
    operands: Vec<&'a Type>,
    types: Vec<&'a Type>,
}

impl Run<'_> {
    fn func(&self, id: FuncId, args: Vec<Rc<Tensor>>) -> Result<Vec<Rc<Tensor>>, RunError> {
        let f = self.module.func(id);
        let mut values: Vec<Option<Rc<Tensor>>> = vec![None; f.n_values()];
        for (p, arg) in f.params.iter().zip(args) {
            if let Some(watch) = self.watch {
                watch(f, *p, &arg);
            }
            values[p.0 as usize] = Some(arg);
        }
        // Operands of what is in flight.
        let mut flights: BTreeMap<ValueId, (Flight, Vec<Rc<Tensor>>)> = BTreeMap::new();
        for (_, op) in f.body_ops() {
            let fault = |why| self.error(f, Some(op), why);
            if op.op == Op::Done {
                let y = self.done(f, op, &mut flights).map_err(fault)?;
                self.check(f.ty(op.results[0]), &y).map_err(|e| fault(format!("result: {e}")))?;
                values[op.results[0].0 as usize] = Some(Rc::new(y));
                continue;
            }
            let xs = op.operands.iter().map(|v| defined(&values, *v));
            let xs: Vec<Rc<Tensor>> = xs.collect::<Result<_, _>>().map_err(fault)?;
            builder::infer(Some(self.module), f, op.op, &op.operands, &op.attrs)
                .map_err(|e| fault(e.0))?;
            let results = if op.op.has(Trait::Calls) {
                control::run(self, id, f, op, xs)?
            } else if op.op.started().is_some() {
                let all: Vec<&Tensor> = xs.iter().map(|x| &**x).collect();
                let flight = collective::begin(self, op, &all).map_err(fault)?;
                flights.insert(op.results[0], (flight, xs));
                continue;
            } else if op.op.has(Trait::Collective) {
                vec![Rc::new(self.meet(op, None, &xs).map_err(fault)?)]
            } else if op.op.has(Trait::Message) {
                let x = xs.first().map(|x| (**x).clone());
                collective::message(self, op, x).map_err(fault)?.into_iter().map(Rc::new).collect()
            } else {
                let xs: Vec<&Tensor> = xs.iter().map(|x| &**x).collect();
                let operands = op.operands.iter().map(|x| f.ty(*x)).collect();
                let types = op.results.iter().map(|r| f.ty(*r)).collect();
                let ys = eval(op.op, &Cx { run: self, attrs: &op.attrs, operands, types }, &xs);
                ys.map_err(fault)?.into_iter().map(|y| Rc::new(self.rounded(y))).collect()
            };
            if results.len() != op.results.len() {
                return Err(fault("an op has another number of results than its rule".into()));
            }
            for (r, y) in op.results.iter().zip(results) {
                if let Some(watch) = self.watch {
                    watch(f, *r, &y);
                }
                self.check(f.ty(*r), &y).map_err(|e| fault(format!("result: {e}")))?;
                values[r.0 as usize] = Some(y);
            }
        }
        let results = f.results.iter().map(|v| defined(&values, *v));
        results.collect::<Result<_, _>>().map_err(|why| self.error(f, None, why))
    }

    /// A collective; what is of a flight has been handed over.
    fn meet(
        &self,
        op: &OpData,
        flight: Option<Flight>,
        xs: &[Rc<Tensor>],
    ) -> Result<Tensor, Fault> {
        let y = match op.op {
            Op::Exchange | Op::ExchangeStart | Op::ExchangeOffsets => {
                let xs: Vec<&Tensor> = xs.iter().map(|x| &**x).collect();
                exchange::run(self, op, flight, &xs)?
            }
            _ => collective::run(self, op, flight, &xs[0])?,
        };
        Ok(self.rounded(y))
    }

    /// The second half of a collective.
    fn done(
        &self,
        f: &Func,
        op: &OpData,
        flights: &mut BTreeMap<ValueId, (Flight, Vec<Rc<Tensor>>)>,
    ) -> Result<Tensor, Fault> {
        let v = op.operands[0];
        let begun = f.def_op(v).map(|id| f.op(id)).ok_or("waits for what nothing begins")?;
        let (flight, xs) = flights.remove(&v).ok_or("waits for what is done")?;
        let y = self.meet(begun, Some(flight), &xs)?;
        if let Some(watch) = self.watch {
            watch(f, op.results[0], &y);
        }
        Ok(y)
    }

    fn error(&self, f: &Func, op: Option<&OpData>, why: Fault) -> RunError {
        let place = op.and_then(|o| o.spans.first()).map(|s| {
            let file = self.module.files.get(s.file as usize).map_or("?", |f| f.as_str());
            format!("{file}:{}:{}", s.line, s.col)
        });
        RunError { func: f.name.clone(), op: op.map(|o| o.op.name()), place, why }
    }

    fn dim(&self, dim: Dim) -> Result<usize, Fault> {
        let n = self.module.eval_dim(dim, &|s| self.sizes.get(&s).copied());
        n.and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| format!("no argument tells the size of the dim {}", self.dim_text(dim)))
    }

    fn dim_text(&self, dim: Dim) -> String {
        let names = dim.symbols().map(|s| self.module.sym(s).name.clone());
        std::iter::once(dim.coeff().to_string()).chain(names).collect::<Vec<_>>().join("*")
    }

    fn dims(&self, dims: &[Dim]) -> Result<Vec<usize>, Fault> {
        let dims: Vec<usize> = dims.iter().map(|d| self.dim(*d)).collect::<Result<_, _>>()?;
        let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        match n {
            Some(n) if n <= ELEMENTS_MAX => Ok(dims),
            _ => Err(format!("a value of dims {dims:?} is too large to interpret")),
        }
    }

    /// Is `x` a value of type `ty`?
    fn check(&self, ty: &Type, x: &Tensor) -> Result<(), Fault> {
        let dims = self.dims(&ty.dims)?;
        if x.dtype != ty.dtype || x.dims != dims {
            let (want, found) = (ty.dtype.name(), x.dtype.name());
            return Err(format!("expected {want}{dims:?}, found {found}{:?}", x.dims));
        }
        match (&ty.quant, &x.scales) {
            (None, None) => {}
            (Some(quant), Some(scales)) => {
                let grid = scaled::grid(&x.dims, quant.group);
                if scales.dtype != quant.scale || scales.dims != grid {
                    return Err("there is not a scale for each group".into());
                }
                scales.well_formed()?;
            }
            (Some(_), None) => return Err("a quantized value has no scales".into()),
            (None, Some(_)) => return Err("a plain value has scales".into()),
        }
        x.well_formed()
    }

    fn rounded(&self, mut x: Tensor) -> Tensor {
        x.scales = x.scales.map(|s| Box::new(self.rounded(*s)));
        match &mut x.data {
            Data::Float(v) if self.precision == Precision::Stated => {
                v.iter_mut().for_each(|v| *v = formats::round(x.dtype, *v as f32) as f64);
            }
            Data::Int(v) if x.dtype == DType::I32 => {
                v.iter_mut().for_each(|v| *v = *v as i32 as i64);
            }
            Data::Float(_) | Data::Int(_) | Data::Bool(_) => {}
        }
        x
    }
}

fn defined(values: &[Option<Rc<Tensor>>], v: ValueId) -> Result<Rc<Tensor>, Fault> {
    let value = values.get(v.0 as usize).cloned().flatten();
    value.ok_or_else(|| format!("%{} is used before it is defined", v.0))
}

impl Cx<'_> {
    fn dims_attr(&self, name: &str) -> Result<Vec<usize>, Fault> {
        self.run.dims(self.attrs.get_dims(name).unwrap_or(&[]))
    }

    fn dim_attr(&self, name: &str) -> Result<usize, Fault> {
        let dim = self.attrs.get_dim(name).ok_or_else(|| format!("needs `{name}`"))?;
        self.run.dim(dim)
    }

    /// An attribute that counts.
    fn count(&self, name: &str) -> Result<usize, Fault> {
        let n = self.attrs.get_int(name).ok_or_else(|| format!("needs `{name}`"))?;
        usize::try_from(n).map_err(|_| format!("`{name}` is negative"))
    }

    fn dtype(&self, name: &str) -> Result<DType, Fault> {
        self.attrs.get_dtype(name).ok_or_else(|| format!("needs `{name}`"))
    }

    /// The group of a quantized operand.
    fn group_of(&self, i: usize) -> Result<[u32; 2], Fault> {
        let quant = self.operands.get(i).and_then(|ty| ty.quant.as_ref());
        Ok(quant.ok_or("an operand is not quantized")?.group)
    }

    fn int(&self, name: &str) -> i64 {
        self.attrs.get_int(name).unwrap_or(0)
    }

    fn float(&self, name: &str) -> f64 {
        self.attrs.get_float(name).unwrap_or(0.0)
    }

    fn flag(&self, name: &str) -> bool {
        self.attrs.get_flag(name)
    }

    fn ints(&self, name: &str) -> Vec<usize> {
        self.attrs.get_ints(name).unwrap_or(&[]).iter().map(|i| *i as usize).collect()
    }

    /// An intermediate that the op's doc says is rounded to f32.
    fn f32(&self, x: f64) -> f64 {
        match self.run.precision {
            Precision::F64 => x,
            Precision::Stated => x as f32 as f64,
        }
    }

    /// An intermediate that the op's doc says is rounded to the operands' type.
    fn narrow(&self, x: f64, dtype: DType) -> f64 {
        match self.run.precision {
            Precision::F64 => x,
            Precision::Stated => formats::round(dtype, x as f32) as f64,
        }
    }

    /// A tensor of the type of result `i`.
    fn result(&self, i: usize, data: Data) -> Result<Tensor, Fault> {
        let ty = self.types.get(i).ok_or("an op has fewer results than its rule")?;
        Ok(Tensor { dtype: ty.dtype, dims: self.run.dims(&ty.dims)?, data, scales: None })
    }

    fn floats(&self, i: usize, data: Vec<f64>) -> Result<Tensor, Fault> {
        self.result(i, Data::Float(data))
    }
}

/// Every op that runs no other function. The operands obey the op's rule.
fn eval(op: Op, cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let y = match op {
        Op::Constant => pointwise::constant(cx),
        Op::Iota => pointwise::iota(cx),
        Op::Extent => cx.floats(0, vec![cx.dim_attr("of")? as f64]),

        Op::Neg => pointwise::number(cx, xs, |x| -x, i64::wrapping_neg),
        Op::Abs => pointwise::number(cx, xs, f64::abs, i64::wrapping_abs),
        Op::Sign => pointwise::number(cx, xs, pointwise::sign, i64::signum),
        Op::Floor => pointwise::number(cx, xs, f64::floor, |x| x),
        Op::Exp => pointwise::float(cx, xs, f64::exp),
        Op::Log => pointwise::float(cx, xs, f64::ln),
        Op::Sqrt => pointwise::float(cx, xs, f64::sqrt),
        Op::Rsqrt => pointwise::float(cx, xs, |x| 1.0 / x.sqrt()),
        Op::Sigmoid => pointwise::float(cx, xs, |x| 1.0 / (1.0 + (-x).exp())),
        Op::Tanh => pointwise::float(cx, xs, f64::tanh),
        Op::Sin => pointwise::float(cx, xs, f64::sin),
        Op::Cos => pointwise::float(cx, xs, f64::cos),
        Op::Erf => pointwise::float(cx, xs, pointwise::erf),
        Op::Add => pointwise::numbers(cx, xs, |x, y| x + y, i64::wrapping_add),
        Op::Sub => pointwise::numbers(cx, xs, |x, y| x - y, i64::wrapping_sub),
        Op::Mul => pointwise::numbers(cx, xs, |x, y| x * y, i64::wrapping_mul),
        Op::Div => pointwise::div(cx, xs),
        Op::Max => pointwise::numbers(cx, xs, pointwise::max, i64::max),
        Op::Min => pointwise::numbers(cx, xs, pointwise::min, i64::min),
        Op::Eq => pointwise::compare(cx, xs, |x, y| x == y, |x, y| x == y),
        Op::Lt => pointwise::compare(cx, xs, |x, y| x < y, |x, y| x < y),
        Op::Le => pointwise::compare(cx, xs, |x, y| x <= y, |x, y| x <= y),
        Op::And => pointwise::logic(cx, xs, |c| c[0] && c[1]),
        Op::Or => pointwise::logic(cx, xs, |c| c[0] || c[1]),
        Op::Not => pointwise::logic(cx, xs, |c| !c[0]),
        Op::Select => pointwise::select(cx, xs),
        Op::Convert => pointwise::convert(cx, xs),
        Op::Quantize => scaled::quantize(cx, xs[0]),
        Op::Encode => return scaled::encode(cx, xs[0]),
        Op::Recode => return scaled::recode(cx, xs[0], xs[1]),
        Op::Dequantize => scaled::dequantize(cx, xs[0]),
        Op::StopGradient => Ok(xs[0].clone()),

        Op::Reshape => cx.result(0, xs[0].data.clone()),
        Op::Transpose => movement::transpose(cx, xs[0]),
        Op::Broadcast => movement::broadcast(cx, xs[0]),
        Op::Slice => movement::slice(cx, xs[0]),
        Op::Pad => movement::pad(cx, xs[0]),
        Op::Concat => movement::concat(cx, xs),
        Op::Shift => movement::shift(cx, xs[0]),

        Op::ReduceSum => reduce::sum(cx, xs[0]),
        Op::ReduceMax => reduce::max(cx, xs[0]),
        Op::BatchSum => Ok(xs[0].clone()),

        Op::Matmul => contract::matmul(cx, xs),
        Op::GroupedMatmul => contract::grouped_matmul(cx, xs),
        Op::GroupedOuter => contract::grouped_outer(cx, xs),

        Op::Gather => index::gather(cx, xs),
        Op::ScatterAdd => index::scatter_add(cx, xs),
        Op::Take => index::take(cx, xs),
        Op::Put => index::put(cx, xs),
        Op::OneHot => index::one_hot(cx, xs[0]),
        Op::Topk => index::topk(cx, xs[0]),
        Op::GroupedTopk => index::grouped_topk(cx, xs[0]),

        Op::Route => return moe::route(cx, xs[0]),
        Op::Dispatch => moe::dispatch(cx, xs),
        Op::Combine => moe::combine(cx, xs),
        Op::CombineDot => moe::combine_dot(cx, xs),

        Op::RmsNorm => return row::rms_norm(cx, xs),
        Op::RmsNormGrad => row::rms_norm_grad(cx, xs),
        Op::Softmax => row::softmax(cx, xs[0]),
        Op::Rotary => row::rotary(cx, xs),
        Op::Attention => return attention::forward(cx, xs),
        Op::AttentionGrad => return attention::grad(cx, xs),
        Op::CrossEntropy => return row::cross_entropy(cx, xs),
        Op::CrossEntropyGrad => row::cross_entropy_grad(cx, xs),

        Op::Read => Ok(xs[0].clone()),
        Op::Assign => Ok(xs[1].clone()),
        Op::CacheAppend => return state::cache_append(cx, xs),
        Op::AdamW => return state::adamw(cx, xs),

        Op::AllReduce
        | Op::Spread
        | Op::Part
        | Op::ReduceScatter
        | Op::AllGather
        | Op::ExchangeOffsets
        | Op::Exchange
        | Op::AllReduceStart
        | Op::ReduceScatterStart
        | Op::AllGatherStart
        | Op::ExchangeStart
        | Op::Done
        | Op::Send
        | Op::Recv => Err("runs on several ranks".into()),
        Op::Call | Op::Repeat | Op::Fused => Err("runs another function".into()),
    };
    Ok(vec![y?])
}
