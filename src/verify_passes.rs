//! `--verify-passes`: interpret a shrunken model before and after every pass and name the first
//! that moved a value.
//!
//! Entries are compared by the names of their results. Inputs are drawn from their names, so that
//! an input which a pass renames or adds does not shift the others. In f64 a pass may only reorder
//! sums; `TOLERANCE` is far above that and far below an error. Where several ranks serve, every
//! request's answers are compared (`unit`).

mod paged;
mod unit;

use std::cell::RefCell;

use anyhow::{Context, Result, anyhow, bail};
use indexmap::IndexMap;
use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Func, FuncId, Module, Part};
use weft_ir::op::Op;
use weft_ir::text;
use weft_ir::ty::{DType, Quant, Type};
use weft_passes::page_caches::TABLE;
use weft_passes::{Pass, PassCx};

use paged::{Table, levels};
use unit::Unit;

/// ‖after − before‖ / ‖before‖ of a value, in f64.
const TOLERANCE: f64 = 1e-9;

/// Values by function and name, one for each time the op ran.
type Seen = IndexMap<String, Vec<Tensor>>;

/// Run `passes` on `module`, which is small, and compare around each; returns how many comparisons
/// were made.
pub fn run(module: &mut Module, cx: &PassCx, passes: &[Pass]) -> Result<usize> {
    let mut compared = 0;
    let serving = cx.two_batches.then_some(cx.mesh.as_ref()).flatten();
    let unit = serving.map(|mesh| Unit { n_ranks: mesh.n_ranks() as usize });
    let mut before = outcomes(module, unit)?;
    for (i, pass) in passes.iter().enumerate() {
        weft_passes::run_pass(i + 1, pass, module, cx)?;
        let after = outcomes(module, unit)?;
        compared += compare(pass.name, module, &before, &after)?;
        before = after;
    }
    Ok(compared)
}

/// What an entry returned, and every named value on the way.
struct Outcome {
    results: IndexMap<String, Tensor>,
    seen: Seen,
}

fn outcomes(module: &Module, unit: Option<Unit>) -> Result<IndexMap<String, Outcome>> {
    let mut all = IndexMap::new();
    for id in module.func_ids() {
        let func = module.func(id);
        if !func.result_names.is_empty() {
            let outcome = match unit {
                None => outcome(module, id)?,
                Some(unit) => Outcome { results: unit.results(module, id)?, seen: Seen::default() },
            };
            all.insert(func.name.clone(), outcome);
        }
    }
    Ok(all)
}

fn outcome(module: &Module, id: FuncId) -> Result<Outcome> {
    let func = module.func(id);
    let table = Table::of(module, func);
    let args = func.params.iter().map(|p| {
        let data = func.value(*p);
        let name = data.name.as_deref().unwrap_or("");
        match &table {
            Some(table) if name == TABLE => Ok(table.tensor()),
            Some(table) if table.has(name) => {
                table.pool(&data.ty, levels(module, name), |whole| drawn(module, name, whole))
            }
            _ => drawn(module, name, &data.ty),
        }
    });
    let args: Result<Vec<Tensor>> = args.collect();
    let seen: RefCell<Seen> = RefCell::default();
    let watch = |f: &Func, v, t: &Tensor| {
        if let Some(name) = &f.value(v).name {
            let key = format!("%{name} of @{}", f.name);
            seen.borrow_mut().entry(key).or_default().push(t.clone());
        }
    };
    let results = Interp::new(module, Precision::F64).watched(&watch).run(id, args?)?;
    let results = func.results.iter().zip(&func.result_names).zip(results);
    let results = results.map(|((_, name), value)| {
        let pool = table.as_ref().filter(|table| table.has(name));
        let whole = pool.map(|table| table.in_order(&value, levels(module, name)));
        (name.clone(), whole.unwrap_or(value))
    });
    let results = results.collect();
    Ok(Outcome { results, seen: seen.into_inner() })
}

/// An input made from its name: the same before and after a pass. What is stored as codes is made
/// of what is drawn for the weight's own name.
fn drawn(module: &Module, name: &str, ty: &Type) -> Result<Tensor> {
    let part = module.stores.get(name).and_then(|s| s.part.clone());
    drawn_as(module, name, name, ty, part)
}

/// The same made from a `key` of its own, and of which quantized type it is a part.
fn drawn_as(
    module: &Module,
    name: &str,
    key: &str,
    ty: &Type,
    part: Option<(Part, Type)>,
) -> Result<Tensor> {
    let (part, coded) = match part {
        Some((part, coded)) => (Some(part), coded),
        None => (None, ty.clone()),
    };
    if let Some(quant) = &coded.quant {
        let codes = name.strip_suffix(".scales").filter(|_| part == Some(Part::Scales));
        let codes = codes.unwrap_or(name);
        let weight = codes.strip_suffix(coded.dtype.name()).and_then(|n| n.strip_suffix('.'));
        let master = Type::new(DType::F32, coded.dims.clone());
        let x = drawn(module, weight.unwrap_or(codes), &master)?;
        let made = quantized(master, coded.dtype, quant, x)?;
        return Ok(match (part, made) {
            (None, made) => made,
            (Some(Part::Codes), made) => Tensor { scales: None, ..made },
            (Some(Part::Scales), made) => *made.scales.context("codes have scales")?,
        });
    }
    let mut dims = vec![];
    for d in &ty.dims {
        match module.eval_dim(*d, &|_| None) {
            Some(n) => dims.push(n as usize),
            None => bail!("--verify-passes needs fixed sizes, %{name} has {:?}", ty.dims),
        }
    }
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut unit = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let n: usize = dims.iter().product();
    // Second moments are sums of squares; scalars are rates and step numbers.
    let low = if name.ends_with(".v") || dims.is_empty() { 0.25 } else { -0.5 };
    let data: Vec<f64> = (0..n).map(|_| low + unit() * 0.75).collect();
    Ok(match ty.dtype {
        DType::I32 | DType::I64 => Tensor {
            dtype: ty.dtype,
            ..Tensor::i32(&dims, data.iter().map(|x| (*x > 0.0) as i64).collect())
        },
        dtype => Tensor::float(dtype, &dims, data),
    })
}

fn quantized(ty: Type, dtype: DType, quant: &Quant, x: Tensor) -> Result<Tensor> {
    let attrs = Attrs::new()
        .with("dtype", Attr::DType(dtype))
        .ints("group", quant.group.map(i64::from))
        .with("scale", Attr::DType(quant.scale));
    let mut b = Builder::new("quantize");
    let param = b.param("x", ty);
    let codes = b.emit(Op::Quantize, &[param], attrs).map_err(|e| anyhow!(e.0))?;
    let mut module = Module::default();
    let func = module.add_func(b.finish(vec![codes]));
    let made = Interp::new(&module, Precision::F64).run(func, vec![x])?;
    made.into_iter().next().context("it has a result")
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.numbers(), b.numbers());
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| if x.is_finite() { x * x } else { 0.0 };
    let moved: f64 = a.iter().zip(&b).map(|(x, y)| square(x - y)).sum();
    let broke = a.iter().zip(&b).any(|(x, y)| x.is_finite() != y.is_finite());
    let norm: f64 = b.iter().map(|y| square(*y)).sum();
    match (broke, norm == 0.0) {
        (true, _) => f64::INFINITY,
        (_, true) => moved.sqrt(),
        _ => (moved / norm).sqrt(),
    }
}

fn compare(
    pass: &str,
    module: &Module,
    before: &IndexMap<String, Outcome>,
    after: &IndexMap<String, Outcome>,
) -> Result<usize> {
    let mut compared = 0;
    for (entry, old) in before {
        let Some(new) = after.get(entry) else { continue };
        for (name, value) in &old.results {
            let Some(now) = new.results.get(name) else { continue };
            compared += 1;
            let moved = distance(now, value);
            if moved > TOLERANCE {
                bail!(
                    "--verify-passes: `{pass}` moved {name} of @{entry} by {moved:.1e} (bound \
                     {TOLERANCE:.0e}); {}",
                    first_moved(module, old, new)
                );
            }
        }
    }
    Ok(compared)
}

/// The first op whose named value moved.
fn first_moved(module: &Module, old: &Outcome, new: &Outcome) -> String {
    for (key, values) in &new.seen {
        let Some(was) = old.seen.get(key) else { continue };
        let moved = values.len() == was.len()
            && values.iter().zip(was).any(|(a, b)| distance(a, b) > TOLERANCE);
        if !moved {
            continue;
        }
        let op = module.funcs.iter().find_map(|f| {
            let name = key.strip_suffix(&format!(" of @{}", f.name))?.strip_prefix('%')?;
            let (id, _) = f.body_ops().find(|(_, op)| {
                op.results.iter().any(|r| f.value(*r).name.as_deref() == Some(name))
            })?;
            Some(text::print_op(module, f, id))
        });
        return format!("the first value that moved is {key}: {}", op.unwrap_or_default());
    }
    "no named value on the way moved".into()
}

#[cfg(test)]
mod tests {
    use weft_passes::{PassError, Stats};

    use super::*;

    /// A pass that is wrong: sums become differences.
    fn subtract(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
        let func = module.func_mut(FuncId(0));
        for id in func.body.clone() {
            if func.op(id).op == Op::Add {
                func.op_mut(id).op = Op::Sub;
            }
        }
        Ok(Stats::one("broken", 1))
    }

    #[test]
    fn a_broken_pass_is_named_with_its_first_op() {
        let text = "func @f(%x: f32[4]) -> (y: f32[4]) {\n  %e = exp %x : f32[4]  # a.model:1:1\n  \
                    %s = add %e, %x : f32[4]  # a.model:2:1\n  \
                    %t = neg %s : f32[4]  # a.model:3:1\n  return %t\n}\n";
        let mut module = text::parse(text).expect("it parses");
        let broken = Pass { name: "subtract", requires: &[], establishes: &[], run: subtract };
        let error = run(&mut module, &PassCx::default(), &[broken]).expect_err("it moved");
        let message = error.to_string();
        assert!(message.contains("`subtract` moved y of @f"), "{message}");
        assert!(message.contains("%s of @f") && message.contains("sub %e, %x"), "{message}");
    }

    #[test]
    fn on_ranks_that_serve_every_request_is_compared() {
        let text = "func @f(%x: f32[4]) -> (y: f32[4]) {\n  %e = exp %x : f32[4]  # a.model:1:1\n  \
                    %s = add %e, %x : f32[4]  # a.model:2:1\n  return %s\n}\n";
        let mesh = weft_passes::Mesh { data: 2, experts: 2, ..weft_passes::Mesh::ONE };
        let cx = PassCx { two_batches: true, mesh: Some(mesh), ..PassCx::default() };
        let mut module = text::parse(text).expect("it parses");
        let halves = weft_passes::by_name("two_batches").expect("a pass");
        let passes = std::slice::from_ref(halves);
        assert_eq!(run(&mut module, &cx, passes).expect("nothing moves"), 4);
        let broken = Pass { name: "subtract", requires: &[], establishes: &[], run: subtract };
        let error = run(&mut module, &cx, &[broken]).expect_err("it moved").to_string();
        assert!(error.contains("moved y of request 0 on rank 0 of @f"), "{error}");
    }
}
