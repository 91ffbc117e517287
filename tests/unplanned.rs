//! Models no one planned for, written in `.model` alone: they lower for every purpose, and train.

use std::path::{Path, PathBuf};

use weft_ir::interp::{Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{Init, Module};
use weft_ir::ty::DType;
use weft_lang::diag;
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_passes::{PassCx, run_pipeline};

const BATCH: u64 = 2;
const SEQ: u64 = 9;

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let entries = std::fs::read_dir(folder).expect("tests/models");
    let mut all: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    all.sort();
    assert!(all.len() >= 4);
    all
}

fn lowered(model: &Path, purpose: Purpose, cache: bool) -> Module {
    let (program, map, mut diags) = weft_lang::load(model, &|p| std::fs::read_to_string(p));
    let tree = elaborate(&program, &map, &Overrides::default(), &mut diags);
    let settings = Settings {
        batch: Size::Fixed(BATCH),
        seq: if cache { Size::Fixed(1) } else { Size::Fixed(SEQ) },
        segments: false,
        cache: cache.then_some(Size::Fixed(SEQ)),
    };
    let lowered = tree.and_then(|t| lower(&program, &t, &map, purpose, settings, &mut diags));
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    let module = lowered.expect("no diagnostics, so there is a module").module;
    weft_ir::verify::verify(&module).expect("what is lowered verifies");
    module
}

/// Arguments of `@grad` by parameter: weights drawn, what has a value at that value.
fn first_args(module: &Module) -> Vec<Tensor> {
    let id = module.find("grad").expect("gradients were asked for");
    let f = module.func(id);
    let name = |i: usize| f.value(f.params[i]).name.as_deref().unwrap_or("");
    let range = |_: usize, ty: &weft_ir::ty::Type| match ty.dtype.is_int() {
        true => Range { low: 0.0, high: 48.0 },
        false => Range { low: -0.3, high: 0.3 },
    };
    let mut args = random_args(module, id, &Sizes::new(), 7, &range).expect("all dims are fixed");
    for (i, arg) in args.iter_mut().enumerate() {
        if let Some(Init::Constant(x)) = module.stores.get(name(i)).map(|s| s.init) {
            *arg = Tensor::full(DType::F32, &arg.dims, x);
        }
    }
    args
}

/// Gradient descent on one batch; the objective before every step.
fn descend(module: &Module, n_steps: usize) -> Vec<f64> {
    let id = module.find("grad").expect("gradients were asked for");
    let f = module.func(id);
    let mut args = first_args(module);
    let mut objective = vec![];
    for _ in 0..n_steps {
        let results = Interp::new(module, Precision::Stated)
            .run(id, args.clone())
            .unwrap_or_else(|e| panic!("{e}"));
        let result = |name: &str| f.result_names.iter().position(|n| n == name);
        objective.push(results[result("objective").expect("a loss")].numbers()[0]);
        for (param, arg) in f.params.iter().zip(&mut args) {
            let name = f.value(*param).name.as_deref().unwrap_or("");
            let Some(grad) = result(&format!("grad.{name}")) else { continue };
            let grad = results[grad].numbers();
            let old = arg.numbers();
            let new = old.iter().zip(&grad).map(|(w, g)| w - 0.3 * g).collect();
            *arg = Tensor::f32(&arg.dims, new);
        }
    }
    objective
}

#[test]
fn they_lower_for_every_purpose() {
    for model in models() {
        lowered(&model, Purpose::Train, false);
        lowered(&model, Purpose::Infer, false);
        lowered(&model, Purpose::Infer, true);
    }
}

#[test]
fn they_train() {
    for model in models() {
        let mut module = lowered(&model, Purpose::Train, false);
        let cx = PassCx { gradients: true, ..PassCx::default() };
        run_pipeline(&mut module, &cx, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        let losses = descend(&module, 12);
        let name = model.display();
        assert!(losses.iter().all(|l| l.is_finite()), "{name}: {losses:?}");
        // Drawn small, a model of 48 tokens starts near ln 48 = 3.87.
        assert!((losses[0] - 3.87).abs() < 1.0, "{name}: {losses:?}");
        assert!(losses[11] < losses[0] - 0.3, "{name}: {losses:?}");
    }
}
