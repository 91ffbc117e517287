//! `grad seed=1, B=2`: the derivatives that `autodiff` makes of the result `objective` of `@loss`
//! agree with central differences in f64, whatever is saved and however the backward is cut.
//! Options are those of `run`.

use weft_ir::interp::{Data, Interp, Precision, Sizes, Tensor};
use weft_ir::module::{FuncId, Module};
use weft_ir::text;
use weft_ir::verify::verify;
use weft_passes::{PassCx, Save, by_name, run_pass};

use crate::case::{Case, Outcome, all};
use crate::values::arguments;

/// The error of a central difference is about STEP² + 1e-16 / STEP.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-6;
/// Elements looked at of each parameter, spread over it.
const ELEMENTS_MAX: usize = 24;

pub fn run(case: &Case) -> Result<Outcome, String> {
    let module = case.verified()?;
    let loss = module.find("loss").ok_or("no function @loss")?;
    let (args, sizes) = arguments(&module, loss, &case.args)?;
    let pass = by_name("autodiff").ok_or("no pass `autodiff`")?;
    for save in [Save::Everything, Save::NoCheap, Save::Handed] {
        for apart in [false, true] {
            let mut m = module.clone();
            let cx = PassCx { gradients: true, save, apart, ..PassCx::default() };
            run_pass(1, pass, &mut m, &cx).map_err(|e| e.to_string())?;
            let shown = |e: String| format!("{save:?}, apart = {apart}: {e}\n{}", text::print(&m));
            verify(&m).map_err(|e| shown(all(&e)))?;
            check(&m, loss, &args, &sizes).map_err(shown)?;
        }
    }
    Ok(Outcome::Passed)
}

fn check(m: &Module, loss: FuncId, args: &[Tensor], sizes: &Sizes) -> Result<(), String> {
    let interp = Interp::new(m, Precision::F64);
    let on = |f, args| interp.run_sized(f, args, sizes).map_err(|e| e.to_string());
    let func = m.func(loss);
    let objective = func.result_names.iter().position(|n| n == "objective");
    let objective = objective.ok_or("@loss has no result `objective`")?;
    let grad = m.find("grad").ok_or("autodiff made no @grad")?;
    let grads = on(grad, args.to_vec())?;
    let mut n_checked = 0;
    for (i, p) in func.params.iter().enumerate() {
        let name = func.value(*p).name.clone().unwrap_or_default();
        let result = format!("grad.{name}");
        let found = m.func(grad).result_names.iter().position(|n| *n == result);
        let Some(found) = found.map(|r| grads[r].numbers()) else { continue };
        let stride = args[i].len().div_ceil(ELEMENTS_MAX).max(1);
        for at in (0..args[i].len()).step_by(stride) {
            let moved = |by: f64| {
                let mut args = args.to_vec();
                if let Data::Float(v) = &mut args[i].data {
                    v[at] += by;
                }
                on(loss, args).map(|r| r[objective].numbers()[0])
            };
            let expected = (moved(STEP)? - moved(-STEP)?) / (2.0 * STEP);
            let scale = expected.abs().max(1.0);
            if (found[at] - expected).abs() > TOLERANCE * scale || found[at].is_nan() {
                let found = found[at];
                return Err(format!("{result}[{at}]: expected {expected}, found {found}"));
            }
            n_checked += 1;
        }
    }
    if n_checked == 0 { Err("no parameter has a derivative".into()) } else { Ok(()) }
}
