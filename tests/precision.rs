//! Compute types, on the interpreter: `nano` in bf16 computes what it computes in f32 but for its
//! rounding. And a checkpoint of codes computes with codes, where the precision says so.

use std::path::Path;
use std::process::Command;

use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Func, Init, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::DType;
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};
use weft_passes::{PassCx, run_pipeline};
use weft_runtime::checkpoint::tensor_file::TensorFile;

/// `@grad` of a shrunken model after every pass.
fn gradients(precision: Option<&str>) -> Module {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano.model");
    let (program, map, mut diags) = weft_lang::load(&path, &|p| std::fs::read_to_string(p));
    let overrides = Overrides {
        shrink: true,
        precision: precision.map(str::to_string),
        ..Overrides::default()
    };
    let tree = elaborate(&program, &map, &overrides, &mut diags).expect("a model");
    let settings =
        Settings { batch: Size::Fixed(2), seq: Size::Fixed(8), segments: false, cache: None };
    let lowered = lower(&program, &tree, &map, Purpose::Train, settings, &mut diags);
    assert!(diags.is_empty(), "{diags:?}");
    let mut module = lowered.expect("no diagnostics").module;
    let cx = PassCx { gradients: true, ..PassCx::default() };
    run_pipeline(&mut module, &cx, &mut |_, _| {}).expect("passes run");
    module
}

/// The same numbers for a name and size in every module; such that rounding turns no choice of an
/// expert, which would move more than roundings do.
fn drawn(name: &str, dims: &[usize]) -> Vec<f64> {
    let mut state = name.bytes().fold(2u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let mut unit = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..dims.iter().product()).map(|_| 0.6 * (unit() - 0.5)).collect()
}

fn argument(module: &Module, func: &Func, param: ValueId) -> Tensor {
    let data = func.value(param);
    let name = data.name.as_deref().unwrap_or("");
    let fixed = |d: &weft_ir::dim::Dim| d.as_fixed().expect("fixed dims") as usize;
    let dims: Vec<usize> = data.ty.dims.iter().map(fixed).collect();
    match module.stores.get(name).map(|s| s.init) {
        Some(Init::Constant(x)) => Tensor::full(data.ty.dtype, &dims, x),
        _ if data.ty.dtype == DType::I32 => {
            let n: usize = dims.iter().product();
            Tensor::i32(&dims, (0..n as i64).map(|i| i * 7 % 32).collect())
        }
        _ => Tensor::float(data.ty.dtype, &dims, drawn(name, &dims)),
    }
}

/// The results of `@grad` by name.
fn run(module: &Module) -> Vec<(String, Tensor)> {
    let id = module.find("grad").expect("an entry");
    let func = module.func(id);
    let args = func.params.iter().map(|p| argument(module, func, *p)).collect();
    let results = Interp::new(module, Precision::Stated).run(id, args).expect("it runs");
    func.result_names.iter().cloned().zip(results).collect()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.numbers(), b.numbers());
    assert_eq!(a.len(), b.len());
    let moved: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    if norm == 0.0 { moved.sqrt() } else { (moved / norm).sqrt() }
}

#[test]
fn a_model_in_bf16_computes_what_it_does_in_f32_but_for_rounding() {
    let (f32, bf16) = (run(&gradients(None)), run(&gradients(Some("bf16"))));
    let names = |all: &[(String, Tensor)]| all.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&f32), names(&bf16));
    for ((name, a), (_, b)) in f32.iter().zip(&bf16) {
        if name.starts_with("emit") && a.dtype == DType::I32 {
            continue;
        }
        // Masters' gradients, losses and what an entry hands out are f32.
        assert_eq!(b.dtype, a.dtype, "{name}");
        let moved = distance(b, a);
        // A rounding is 2⁻⁹; a value goes through a few dozen, a loss averages them away.
        let bound = if a.dims.is_empty() { 1e-2 } else { 6e-2 };
        assert!(moved < bound, "{name} moved by {moved:.1e}");
        if name == "logits" {
            assert!(moved > 1e-4, "nothing was rounded: {name} moved by {moved:.1e}");
        }
    }
}

#[test]
fn the_block_f32_is_no_block() {
    let text = |p| weft_ir::text::print(&gradients(p));
    assert_eq!(text(Some("f32")), text(None));
}

/// The loss of the FP8 checkpoint on its tokens; all that `weft eval` gives goes to `out`.
fn loss_of_codes(more: &[&str], out: &Path) -> f64 {
    let case = "tests/golden/v3-fp8";
    let tokens = format!("{case}/expected.safetensors");
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["eval", "models/deepseek_v3.model", "--checkpoint", case, "--tokens", &tokens])
        .args(more)
        .arg("-o")
        .arg(out)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find_map(|l| l.strip_prefix("loss ")).expect("a loss");
    line.trim().parse().expect("a number")
}

#[test]
fn a_checkpoint_of_codes_runs_dequantized_and_on_codes() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = |name: &str| dir.path().join(format!("{name}.safetensors"));
    // `expected.safetensors` was computed from the dequantized weights.
    let plain = loss_of_codes(&[], &out("plain"));
    assert!((plain - 4.29118).abs() < 1e-4, "{plain}");
    for device in ["cpu", "interp"] {
        let how = ["--grads", "--precision", "deepseek_fp8", "--device", device];
        let fp8 = loss_of_codes(&how, &out(device));
        let relative = (fp8 - plain).abs() / plain;
        // Four experts of random weights are chosen among with 3 bits; a real loss moves less.
        assert!(relative > 1e-5 && relative < 2e-2, "{device}: {fp8}");
    }
    // Both round where the ops say, so no code, no expert and no bf16 differs; sums that stay f32
    // (gradients of weights and norms) differ by their order.
    let [cpu, interp] =
        ["cpu", "interp"].map(|device| TensorFile::open(&out(device)).expect("weft wrote it"));
    for info in interp.tensors() {
        let (name, shape) = (info.name.as_str(), &info.shape);
        if name.starts_with("router.") {
            assert_eq!(cpu.read_i32(name).expect("ids"), interp.read_i32(name).expect("ids"));
            continue;
        }
        let [a, b] = [&cpu, &interp].map(|f| f.read_f32(name, shape).expect("floats"));
        let square = |x: f32| f64::from(x) * f64::from(x);
        let moved: f64 = a.iter().zip(&b).map(|(a, b)| square(a - b)).sum();
        let off = (moved / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt();
        let bound = if name.starts_with("grad.") { 1e-5 } else { 1e-6 };
        assert!(off <= bound, "`{name}` is off by {off:.1e}, bound {bound:.0e}");
    }
}

/// `quantize`, `hoist` and all others leave every value what it was.
#[test]
fn no_pass_moves_a_value_of_a_model_in_fp8() {
    for purpose in ["train", "decode"] {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["compile", "models/nano.model", "--for", purpose])
            .args(["--precision", "deepseek_fp8", "--verify-passes", "--stop-after", "fuse"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("weft runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("none moved"), "{purpose}: {said}");
    }
}

/// What a quantizer that is no part of another kernel reads, past reshapes.
fn source(func: &Func, op: &OpData) -> Option<Op> {
    let maker = |v: ValueId| func.def_op(v).map(|id| func.op(id));
    let mut from = maker(op.operands[0]);
    while let Some(op) = from.filter(|o| o.op == Op::Reshape) {
        from = maker(op.operands[0]);
    }
    from.map(|o| o.op)
}

/// `nano` in FP8 after every pass.
fn fused(purpose: &str) -> Module {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["compile", "models/nano.model", "--for", purpose, "--precision", "deepseek_fp8"])
        .args(["--stop-after", "fuse"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("weft runs");
    let text = String::from_utf8(output.stdout).expect("text");
    weft_ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", e[0]))
}

/// A step of generation reads weights as codes: nothing makes them of it.
#[test]
fn a_decode_step_quantizes_no_weight() {
    let module = fused("decode");
    let ops = || module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
    let groups = ops().filter(|op| op.op == Op::Encode).filter_map(|op| op.attrs.get_ints("group"));
    assert_eq!(groups.filter(|group| *group != [1, 128]).count(), 0);
    let codes = |name: &String| name.ends_with("gate_proj.weight.e4m3");
    assert_eq!(module.stores.keys().filter(|name| codes(name)).count(), 3);
}

/// Quantizers of a training step of `nano` that run alone, by function: groups within rows, groups
/// down columns, blocks of weights.
#[test]
fn quantizers_run_where_their_rows_are_made() {
    let module = fused("train");
    let regions: Vec<_> = module
        .funcs
        .iter()
        .flat_map(|f| f.body_ops())
        .filter(|(_, op)| op.op == Op::Fused)
        .filter_map(|(_, op)| op.attrs.get_func("func"))
        .collect();
    let only_codes = |op: &OpData| {
        let region = op.attrs.get_func("func").map(|f| module.func(f));
        op.op == Op::Fused
            && region.is_some_and(|f| {
                f.body_ops().all(|(_, o)| o.op == Op::Encode || o.op == Op::Reshape)
            })
    };
    let mut counts = std::collections::BTreeMap::new();
    for id in module.func_ids().filter(|id| !regions.contains(id)) {
        let func = module.func(id);
        let count: &mut [usize; 3] = counts.entry(func.name.clone()).or_default();
        for (_, op) in func.body_ops() {
            let group = op.attrs.get_ints("group");
            match (op.op, group) {
                // Its rows come out of a kernel that is no loop over rows, or from outside.
                (Op::Encode, Some([1, _])) => {
                    let from = source(func, op);
                    let loops = from.is_some_and(|op| op == Op::Fused || op.has(Trait::Pointwise));
                    assert!(!loops, "{}: {from:?}", func.name);
                    count[0] += 1;
                }
                (Op::Fused, _) if only_codes(op) => count[0] += 1,
                // A group has elements of 128 rows, and a region has one row at a time.
                (Op::Encode, Some([128, 1])) => count[1] += 1,
                // Once a step, from the master.
                (Op::Encode, Some([128, 128])) => {
                    assert_eq!(source(func, op), None, "{}", func.name);
                    count[2] += 1;
                }
                _ => {}
            }
        }
    }
    // Attention ends in both codes of its output, and tokens are codes before `dispatch`. Backward,
    // the derivative of a layer's result, in both its formats at once, and 128x1 copies of both
    // operands of 11 weight gradients, of which six share three inputs.
    assert_eq!(counts["layers.0.fwd"], [0, 0, 0]);
    assert_eq!(counts["layers.1.fwd"], [0, 0, 0]);
    assert_eq!(counts["layers.1.bwd.run"], [1, 19, 0]);
    // Weights that nothing changes are stored as codes.
    assert_eq!(counts["grad"], [0, 0, 0]);
}
