//! `run`: what functions compute in the interpreter, by lines of one of these forms:
//!
//! ```text
//! // run: @f([1, 2], [3]) is [4], [5, 6]          each argument and result as its elements, in row-major order
//! // run: @f(seed=1, B=2, low=0) is @g             two functions on one drawing of arguments
//! // run: @f(seed=1)                               @f and @f with its composites decomposed
//! ```
//! `~ 1e-3` at the end sets the tolerance (absolute, and relative to the larger), `stated` before it rounds every result
//! to its type; without, floats are f64 and agree to 1e-9. Drawn floats lie in `low..high` (-1..1), integers in `0..ids` (2).

use std::collections::BTreeMap;

use weft_ir::decompose;
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module};
use weft_ir::verify::verify;

use crate::case::{Case, Outcome, all};

pub fn run(case: &Case) -> Result<Outcome, String> {
    let module = case.verified()?;
    let lines = case.directives("run");
    if lines.is_empty() {
        return Err("no line begins with `// run:`".into());
    }
    for (line, text) in lines {
        check(&module, text).map_err(|e| format!("line {line}: {e}"))?;
    }
    Ok(Outcome::Passed)
}

fn check(module: &Module, text: &str) -> Result<(), String> {
    let (text, tolerance) = match text.split_once('~') {
        Some((text, t)) => (text.trim(), t.trim().parse().map_err(|_| "no tolerance after `~`")?),
        None => (text, 1e-9),
    };
    let (text, precision) = match text.strip_suffix("stated") {
        Some(text) => (text.trim(), Precision::Stated),
        None => (text, Precision::F64),
    };
    let (call, expected) = match text.split_once(" is ") {
        Some((call, expected)) => (call.trim(), Some(expected.trim())),
        None => (text, None),
    };
    let (name, inside) = call.split_once('(').ok_or("expected `@f(..)`")?;
    let inside = inside.strip_suffix(')').ok_or("expected `)`")?;
    let f = find(module, name)?;
    let (args, sizes) = arguments(module, f, inside)?;
    let on = |m: &Module, f: FuncId| {
        let run = Interp::new(m, precision).run_sized(f, args.clone(), &sizes);
        run.map_err(|e| e.to_string()).map(|r| r.iter().map(Tensor::numbers).collect::<Vec<_>>())
    };
    let found = on(module, f)?;
    let expected = match expected {
        Some(g) if g.starts_with('@') => on(module, find(module, g)?)?,
        Some(lists) => numbers(lists)?,
        None => {
            let mut parts = module.clone();
            decompose::run(&mut parts).map_err(|e| e.to_string())?;
            verify(&parts).map_err(|e| all(&e))?;
            on(&parts, f)?
        }
    };
    agree(&found, &expected, tolerance)
}

fn find(module: &Module, name: &str) -> Result<FuncId, String> {
    let found = name.strip_prefix('@').and_then(|n| module.find(n));
    found.ok_or_else(|| format!("no function {name}"))
}

/// The drawn or written arguments, and the sizes of the symbols.
fn arguments(m: &Module, f: FuncId, text: &str) -> Result<(Vec<Tensor>, Sizes), String> {
    let (lists, options) = text.split_at(text.rfind(']').map_or(0, |at| at + 1));
    let mut options = options_of(options)?;
    let mut take = |name: &str, default: f64| options.remove(name).unwrap_or(default);
    let (seed, ids) = (take("seed", 0.0) as u64, take("ids", 2.0));
    let floats = Range { low: take("low", -1.0), high: take("high", 1.0) };
    let mut sizes = Sizes::new();
    for (name, n) in options {
        let sym = m.find_sym(name).ok_or_else(|| format!("no option and no dim `{name}`"))?;
        sizes.insert(sym, n as u64);
    }
    let ints = Range { low: 0.0, high: ids };
    let range = |_: usize, ty: &weft_ir::ty::Type| if ty.dtype.is_int() { ints } else { floats };
    let mut args = random_args(m, f, &sizes, seed, &range)?;
    let lists = numbers(lists)?;
    if !lists.is_empty() && lists.len() != args.len() {
        return Err(format!("expected {} arguments, found {}", args.len(), lists.len()));
    }
    for (arg, list) in args.iter_mut().zip(lists) {
        if list.len() != arg.len() {
            return Err(format!("expected {} elements, found {}", arg.len(), list.len()));
        }
        arg.data = match &arg.data {
            Data::Float(_) => Data::Float(list),
            Data::Int(_) => Data::Int(list.iter().map(|v| *v as i64).collect()),
            Data::Bool(_) => Data::Bool(list.iter().map(|v| *v != 0.0).collect()),
        };
    }
    Ok((args, sizes))
}

/// `name=number, ..`.
pub fn options_of(text: &str) -> Result<BTreeMap<&str, f64>, String> {
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    let pair = |p: &'_ str| -> Option<(&str, f64)> {
        let (name, n) = p.split_once('=')?;
        Some((name.trim(), n.trim().parse().ok()?))
    };
    let one = |p| pair(p).ok_or_else(|| format!("expected `name=number`, found `{p}`"));
    parts.map(one).collect()
}

/// `[1, 2], [3]`.
fn numbers(text: &str) -> Result<Vec<Vec<f64>>, String> {
    let mut all = vec![];
    for list in text.split('[').skip(1) {
        let inside = list.split(']').next().unwrap_or("");
        let parts = inside.split(',').map(str::trim).filter(|p| !p.is_empty());
        let read = |p: &str| p.parse().map_err(|_| format!("expected a number, found `{p}`"));
        all.push(parts.map(read).collect::<Result<_, _>>()?);
    }
    Ok(all)
}

pub fn agree(found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("expected {} results, found {}", expected.len(), found.len()));
    }
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        let near = |(a, b): (&f64, &f64)| {
            a == b || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
        };
        if x.len() != y.len() || !x.iter().zip(y).all(near) {
            return Err(format!("result {i}: expected {y:?}, found {x:?}"));
        }
    }
    Ok(())
}
