//! The gradient of all of `nano` along random directions is what finite differences say, in f64.
//!
//! Routing is frozen by biases that outweigh every score, so that no step crosses a change of
//! experts.

use std::path::Path;

use weft_ir::interp::{Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module, StoreKind};
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_passes::{PassCx, run_pipeline};

const DIRECTIONS: u64 = 64;
/// Half the distance of the inner pair of points; a direction has an element in (-1, 1) for each of
/// 9.7 M.
const STEP: f64 = 1e-6;
const BOUND: f64 = 1e-6;

fn grad_module() -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano.model");
    let (program, map, mut diags) = weft_lang::load(&path, &|p| std::fs::read_to_string(p));
    let tree =
        elaborate(&program, &map, &Overrides::default(), &mut diags).expect("nano elaborates");
    let settings =
        Settings { batch: Size::Fixed(1), seq: Size::Fixed(5), segments: false, cache: None };
    let lowered = lower(&program, &tree, &map, Purpose::Train, settings, &mut diags);
    assert!(diags.is_empty());
    let mut module = lowered.expect("nano lowers").module;
    let cx = PassCx { gradients: true, ..PassCx::default() };
    run_pipeline(&mut module, &cx, &mut |_, _| {}).expect("the passes run");
    module
}

/// Small weights, gains around 1, tokens of the vocabulary, biases that decide the routing.
fn point(module: &Module, entry: FuncId) -> Vec<Tensor> {
    let func = module.func(entry);
    let name = |i: usize| func.value(func.params[i]).name.as_deref().unwrap_or("");
    let range = |i: usize, _: &weft_ir::ty::Type| {
        let (low, high) = match name(i) {
            "tokens" => (0.0, 512.0),
            n if n.contains("norm") => (0.9, 1.1),
            "lambda" | "alpha" | "gamma" => (0.2, 0.4),
            _ => (-0.06, 0.06),
        };
        Range { low, high }
    };
    let mut args = random_args(module, entry, &Sizes::new(), 7, &range).expect("sizes are fixed");
    for (i, arg) in args.iter_mut().enumerate() {
        if module.stores.get(name(i)).is_some_and(|s| s.kind == StoreKind::State) {
            let n = arg.len();
            let biases = (0..n).map(|e| 10.0 * ((e * 5) % 8) as f64).collect();
            *arg = Tensor::float(arg.dtype, &arg.dims.clone(), biases);
        }
    }
    args
}

fn objective(module: &Module, entry: FuncId, args: Vec<Tensor>) -> f64 {
    let results = Interp::new(module, Precision::F64).run(entry, args).expect("it runs");
    let at = module.func(entry).result_names.iter().position(|n| n == "objective");
    results[at.expect("an objective")].numbers()[0]
}

#[test]
fn nano_along_random_directions() {
    let module = grad_module();
    let (loss, grad) = (module.find("loss").expect("@loss"), module.find("grad").expect("@grad"));
    let args = point(&module, grad);
    let func = module.func(grad);
    let results = Interp::new(&module, Precision::F64).run(grad, args.clone()).expect("it runs");
    let names: Vec<&str> =
        func.params.iter().map(|p| func.value(*p).name.as_deref().unwrap_or("")).collect();
    // For each weight: its place among the parameters, and its gradient.
    let gradients: Vec<(usize, Vec<f64>)> = func
        .result_names
        .iter()
        .zip(&results)
        .filter_map(|(name, value)| {
            let store = name.strip_prefix("grad.")?;
            Some((names.iter().position(|n| *n == store)?, value.numbers()))
        })
        .collect();
    assert!(gradients.len() > 30, "nano has more weights than {}", gradients.len());
    let loss_names: Vec<&str> = {
        let f = module.func(loss);
        f.params.iter().map(|p| f.value(*p).name.as_deref().unwrap_or("")).collect()
    };
    let at = |name: &&str| names.iter().position(|n| n == name).expect("@grad has it too");
    let loss_args: Vec<usize> = loss_names.iter().map(at).collect();
    let check = |direction: u64| {
        let ranged = |_: usize, _: &weft_ir::ty::Type| Range { low: -1.0, high: 1.0 };
        let along = random_args(&module, grad, &Sizes::new(), 1000 + direction, &ranged);
        let along = along.expect("sizes are fixed");
        let by = |i: usize| along[i].floats().expect("weights are floats");
        let slope: f64 = gradients
            .iter()
            .map(|(i, g)| g.iter().zip(by(*i)).map(|(g, d)| g * d).sum::<f64>())
            .sum();
        let moved = |by_steps: f64| {
            let arg = |i: &usize| {
                let from = &args[*i];
                if gradients.iter().all(|(weight, _)| weight != i) {
                    return from.clone();
                }
                let at = from.floats().expect("weights are floats").iter().zip(by(*i));
                let to = at.map(|(x, d)| x + by_steps * STEP * d).collect();
                Tensor::float(from.dtype, &from.dims, to)
            };
            objective(&module, loss, loss_args.iter().map(arg).collect())
        };
        // Central differences of two widths: what is left is of the order of STEP⁴.
        let (near, far) = (moved(1.0) - moved(-1.0), moved(2.0) - moved(-2.0));
        let difference = (8.0 * near - far) / (12.0 * STEP);
        let error = (difference - slope).abs() / slope.abs().max(difference.abs());
        assert!(error < BOUND, "direction {direction}: {slope} against {difference}: {error:.1e}");
    };
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|threads| {
        for first in 0..n_threads as u64 {
            let check = &check;
            threads.spawn(move || (first..DIRECTIONS).step_by(n_threads).for_each(check));
        }
    });
}
