//! Random well-typed IR through every pass and on every machine's kernels, against the
//! interpreter on the module as it was.
//!
//! Where the interpreter itself moves when it rounds as stated, a result is not determined: it is
//! held to as much as that. `WEFT_SEED=n` runs one seed, `WEFT_SEEDS=n` so many.

mod machines;
#[path = "../../passes/tests/support/random.rs"]
mod random;

use std::sync::atomic::{AtomicU32, Ordering};

use machines::{Draw, arguments};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::Module;
use weft_passes::{PIPELINE, PassCx, run_pass};

/// Modules whose results are numbers.
static COMPARED: AtomicU32 = AtomicU32::new(0);

const DRAWN: Draw = Draw { low: -1.5, high: 1.5, ints: 3.0 };

fn interpret(m: &Module, precision: Precision, args: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let f = m.find("f").ok_or("the entry is gone")?;
    Interp::new(m, precision).run(f, args.to_vec()).map_err(|e| e.to_string())
}

/// Whether each element is as near to the exact one as rounding lets it be.
fn near(got: &Tensor, stated: &Tensor, exact: &Tensor) -> bool {
    let all = got.numbers().into_iter().zip(stated.numbers()).zip(exact.numbers());
    let largest =
        exact.numbers().iter().filter(|x| x.is_finite()).fold(0f64, |a, x| a.max(x.abs()));
    got.dims == exact.dims
        && all.into_iter().all(|((got, stated), exact)| {
            let moved = (stated - exact).abs();
            let bound = 32.0 * moved + 1e-5 * (exact.abs() + 0.1 * largest) + 1e-6;
            got == exact || !(stated - exact).is_finite() || (got - exact).abs() <= bound
        })
}

fn agrees(m: &Module) -> Result<(), String> {
    let mut m = m.clone();
    let f = m.find("f").expect("it was generated");
    let n = m.func(f).results.len();
    m.func_mut(f).result_names = (0..n).map(|i| format!("r{i}")).collect();
    let args = arguments(&m, f, &Default::default(), 5, DRAWN);
    let exact = interpret(&m, Precision::F64, &args)?;
    let stated = interpret(&m, Precision::Stated, &args)?;
    // What is largest of no numbers, or on which side of them a branch goes, no one says.
    if exact.iter().any(|t| t.numbers().iter().any(|x| x.is_nan())) {
        return Ok(());
    }
    let compared = COMPARED.fetch_add(1, Ordering::Relaxed);
    for pass in PIPELINE {
        run_pass(0, pass, &mut m, &PassCx::default()).map_err(|e| e.to_string())?;
    }
    let mut machines = vec![machines::cpu(&m, "f")];
    // The interpreter of PTX is slow.
    if compared.is_multiple_of(8) {
        machines.push(machines::ptx(&m, "f"));
    }
    let f = m.find("f").ok_or("the entry is gone")?;
    for (machine, device, graph) in machines {
        let got = machines::run(device, &graph, &m, f, &args, &Default::default());
        for (i, got) in got.iter().enumerate() {
            if !near(got, &stated[i], &exact[i]) {
                let text = weft_ir::text::print(&m);
                return Err(format!("r{i} on {machine}: {got:?}\n{:?}\n{text}", exact[i]));
            }
        }
    }
    Ok(())
}

#[test]
fn kernels_of_random_modules_agree_with_the_interpreter() {
    random::for_seeds(400, agrees);
    let one = std::env::var_os("WEFT_SEED").is_some();
    assert!(one || COMPARED.load(Ordering::Relaxed) >= 200, "too few have numbers: {COMPARED:?}");
}
