//! Random well-typed IR: the pipeline keeps its numbers, and its gradients do not depend on how the
//! backward is cut.
//!
//! A failure prints its seed and the module, with as few ops as still fail: a generator with fewer
//! ops makes a prefix of what it makes with more. `WEFT_SEED=n` runs one seed, `WEFT_SEEDS=n` so
//! many.

mod support;

use support::random::{candidates, for_seeds, generate};
use support::{Draw, add_loss, apply, arguments};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::Module;
use weft_ir::op::{Op, Trait};
use weft_passes::{PIPELINE, PassCx, Save, autodiff};

/// Equal but for the order of roundings; infinities and NaN count as numbers.
fn alike(a: &[Tensor], b: &[Tensor]) -> bool {
    let one = |a: f64, b: f64| {
        a == b
            || (a.is_nan() && b.is_nan())
            || (a - b).abs() <= 1e-8 * (a.abs() + b.abs() + 1e-3)
            || (a.abs().min(b.abs()) > 1e200)
    };
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.dims == b.dims && a.numbers().iter().zip(b.numbers()).all(|(a, b)| one(*a, b))
        })
}

fn numbers(m: &Module, name: &str, args: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let f = m.find(name).ok_or("the entry is gone")?;
    Interp::new(m, Precision::F64).run(f, args.to_vec()).map_err(|e| e.to_string())
}

const DRAWN: Draw = Draw { low: -1.5, high: 1.5, ints: 3.0 };

/// The cleaning passes keep the numbers of `@f`.
fn keeps_numbers(m: &Module) -> Result<(), String> {
    let mut m = m.clone();
    let f = m.find("f").expect("it was generated");
    let n = m.func(f).results.len();
    m.func_mut(f).result_names = (0..n).map(|i| format!("r{i}")).collect();
    let args = arguments(&m, f, &Default::default(), 5, DRAWN);
    let before = numbers(&m, "f", &args)?;
    let mut all = m.clone();
    for pass in PIPELINE {
        let one = weft_passes::run_pass(0, pass, &mut all, &PassCx::default());
        one.map_err(|e| e.to_string())?;
        let after = numbers(&all, "f", &args)?;
        if !alike(&after, &before) {
            return Err(format!(
                "{}: {after:?}\n{before:?}\n{}",
                pass.name,
                weft_ir::text::print(&all)
            ));
        }
    }
    Ok(())
}

/// Gradients agree however the backward is cut, and before and after cleaning.
fn one_gradient(m: &Module) -> Result<(), String> {
    let mut m = m.clone();
    let loss = add_loss(&mut m, false);
    let func = m.func(loss);
    let wrt: Vec<usize> = (0..5).filter(|p| func.ty(func.params[*p]).dtype.is_float()).collect();
    let args = arguments(&m, loss, &Default::default(), 5, DRAWN);
    let mut first = None;
    for (apart, save) in [
        (false, Save::Everything),
        (true, Save::Everything),
        (false, Save::NoCheap),
        (true, Save::NoCheap),
        (false, Save::Handed),
        (true, Save::Handed),
    ] {
        let cx = PassCx { apart, save, ..PassCx::default() };
        let mut m = m.clone();
        let halves =
            autodiff::differentiate(&mut m, loss, &wrt, 0, &cx).map_err(|e| e.to_string())?;
        autodiff::grad_entry(&mut m, loss, &halves, 0).map_err(|e| e.to_string())?;
        weft_ir::verify::verify(&m).map_err(|e| e[0].to_string())?;
        for clean in [false, true] {
            if clean {
                apply(
                    &mut m,
                    &["inline", "canonicalize", "fold", "canonicalize", "cse", "dce"],
                    &cx,
                );
            }
            let found = numbers(&m, "grad", &args)?;
            let want = first.get_or_insert_with(|| found.clone());
            if !alike(&found, want) {
                let text = weft_ir::text::print(&m);
                return Err(format!(
                    "apart {apart}, {save:?}, clean {clean}: {found:?}\n{want:?}\n{text}"
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn passes_keep_the_numbers() {
    for_seeds(150, keeps_numbers);
}

#[test]
fn gradients_do_not_depend_on_the_cut() {
    for_seeds(150, one_gradient);
}

#[test]
fn the_generator_reaches_what_it_should() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..150 {
        let m = generate(seed, 5 + (seed % 25) as usize);
        seen.extend(m.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op.op)));
    }
    let missing: Vec<&str> =
        candidates().iter().filter(|op| !seen.contains(op)).map(|op| op.name()).collect();
    assert!(missing.len() <= 2, "{missing:?}");
    assert!(seen.contains(&Op::Call) && seen.contains(&Op::Repeat));
    assert!(candidates().iter().all(|op| !op.has(Trait::State)));
}
