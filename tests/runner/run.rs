//! `run`: what functions compute in the interpreter, by lines of one of these forms:
//!
//! ```text
//! // run: @f([1, 2], [3]) is [4], [5, 6]    arguments and results as elements, in row-major order
//! // run: @f(seed=1, B=2, low=0) is @g       two functions on one drawing of arguments
//! // run: @f(seed=1)                         @f and @f with its composites decomposed
//! // run: @f([1, 2] | [3, 4]) is [3] | [7]   arguments and results of each rank of the mesh
//! ```
//! `~ 1e-3` at the end sets the tolerance (absolute, and relative to the larger), `stated` before
//! it rounds every result to its type; without, floats are f64 and agree to 1e-9. Drawn floats lie
//! in `low..high` (-1..1), integers in `0..ids` (2).

use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{FuncId, Module};
use weft_ir::verify::verify;

use crate::case::{Case, Outcome, all};
use crate::parts::decomposed;
use crate::values::{agree, arguments, numbers};

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
    if inside.contains('|') {
        return ranks(
            module,
            f,
            inside,
            expected.ok_or("ranks need results")?,
            tolerance,
            precision,
        );
    }
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
            for f in &mut parts.funcs {
                *f = decomposed(f).map_err(|e| e.to_string())?;
            }
            verify(&parts).map_err(|e| all(&e))?;
            on(&parts, f)?
        }
    };
    agree(&found, &expected, tolerance)
}

/// Several ranks at once, their arguments and results apart by `|`.
fn ranks(
    module: &Module,
    f: FuncId,
    inside: &str,
    expected: &str,
    tolerance: f64,
    precision: Precision,
) -> Result<(), String> {
    let mut all = vec![];
    for rank in inside.split('|') {
        let (args, sizes) = arguments(module, f, rank.trim())?;
        all.push((args, sizes));
    }
    let sizes = all[0].1.clone();
    let args = all.into_iter().map(|(args, _)| args).collect();
    let found = Interp::new(module, precision).run_ranks(f, args, &sizes);
    let found = found.map_err(|e| e.to_string())?;
    let expected: Vec<&str> = expected.split('|').collect();
    if found.len() != expected.len() {
        return Err(format!("{} ranks, and results for {}", found.len(), expected.len()));
    }
    for (rank, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found: Vec<_> = found.iter().map(Tensor::numbers).collect();
        agree(&found, &numbers(expected.trim())?, tolerance)
            .map_err(|e| format!("rank {rank}: {e}"))?;
    }
    Ok(())
}

fn find(module: &Module, name: &str) -> Result<FuncId, String> {
    let found = name.strip_prefix('@').and_then(|n| module.find(n));
    found.ok_or_else(|| format!("no function {name}"))
}
