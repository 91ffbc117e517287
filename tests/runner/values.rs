//! Numbers in tests: drawn, written as lists, compared.

use std::collections::BTreeMap;

use weft_ir::interp::{Data, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module};
use weft_ir::ty::Type;

/// The drawn or written arguments, and the sizes of the symbols.
pub fn arguments(m: &Module, f: FuncId, text: &str) -> Result<(Vec<Tensor>, Sizes), String> {
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
    let range = |_: usize, ty: &Type| if ty.dtype.is_int() { ints } else { floats };
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
fn options_of(text: &str) -> Result<BTreeMap<&str, f64>, String> {
    let mut options = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let pair = part.split_once('=').and_then(|(name, n)| Some((name, n.parse().ok()?)));
        let (name, n) = pair.ok_or_else(|| format!("expected `name=number`, found `{part}`"))?;
        options.insert(name, n);
    }
    Ok(options)
}

/// `[1, 2], [3]`.
pub fn numbers(text: &str) -> Result<Vec<Vec<f64>>, String> {
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
            a == b
                || (a.is_nan() && b.is_nan())
                || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
        };
        if x.len() != y.len() || !x.iter().zip(y).all(near) {
            return Err(format!("result {i}: expected {y:?}, found {x:?}"));
        }
    }
    Ok(())
}
