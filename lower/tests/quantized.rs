//! Products of quantized values on every machine's kernels, against the interpreter on the module
//! before `split_quantized`: what makes the codes and what multiplies them.

mod machines;

use std::sync::Arc;

use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_passes::{PassCx, by_name, run_pass};

use weft_backend_cpu::compile::{Options, compile};
use weft_graph::CpuVariant;
use weft_runtime::device::{Cpu, Device, Ptx};

use machines::{Draw, arguments, distance, graph, interpret, module, ptx_graph, run};

/// Codes differ nowhere, and sums by the rounding of f32 alone.
const TOLERANCE: f64 = 1e-6;

/// Returns the module that was compiled.
fn check(text: &str) -> Module {
    let before = module(text);
    let f = before.find("f").expect("the entry");
    let draw = Draw { low: -3.0, high: 3.0, ints: 4.0 };
    let sizes = Default::default();
    let mut args = arguments(&before, f, &sizes, 3, draw);
    // Offsets of four segments, one of them empty.
    for (p, arg) in before.func(f).params.iter().zip(&mut args) {
        let ty = before.func(f).ty(*p);
        if ty.dtype.is_int() {
            *arg = weft_ir::interp::Tensor::i32(&[5], vec![0, 3, 3, 140, 150]);
        }
    }
    let expected = interpret(&before, f, &args, &sizes);
    let mut after = before.clone();
    for (i, name) in ["split_quantized", "cse", "dce", "fuse"].into_iter().enumerate() {
        let pass = by_name(name).expect("a pass");
        run_pass(i + 1, pass, &mut after, &PassCx::default()).expect("it runs");
    }
    let f = after.find("f").expect("the entry");
    let cpu: Arc<dyn Device> = Arc::new(Cpu::new(2).unwrap());
    let ptx: Arc<dyn Device> = Arc::new(Ptx::new());
    let machines = [("cpu", cpu, graph(&after, &["f"])), ("ptx", ptx, ptx_graph(&after, &["f"]))];
    for (machine, device, graph) in machines {
        let found = run(device, &graph, &after, f, &args, &sizes);
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let off = distance(a, b);
            assert!(off <= TOLERANCE, "{machine}: result {i} is off by {off:.1e}\n{text}");
            assert!(b.numbers().iter().any(|x| *x != 0.0), "result {i} is zeros");
        }
    }
    after
}

fn quantize(x: &str, group: &str, scale: &str, ty: &str) -> String {
    format!("quantize {x} {{dtype = e4m3, group = {group}, scale = {scale}}} : e4m3<{ty}")
}

/// The three products of `y = x wᵀ`; `gradients` are the groups of dy in the last two.
fn linear_map([rows, k, n]: [usize; 3], gradients: [&str; 2], scale: &str, how: &str) -> String {
    let q = |x: &str, group: &str, shape: &str| {
        let ty = group.trim_matches(['[', ']']).replace(", ", "x");
        quantize(x, group, scale, &format!("{ty}, {scale}>[{shape}]"))
    };
    let x = q("%x", "[1, 128]", &format!("{rows}, {k}"));
    let w = q("%w", "[128, 128]", &format!("{n}, {k}"));
    let [dy, dyt] = gradients.map(|group| q("%dy", group, &format!("{rows}, {n}")));
    let xt = q("%x", "[128, 1]", &format!("{rows}, {k}"));
    format!(
        "func @f(%x: f32[{rows}, {k}], %w: f32[{n}, {k}], %dy: f32[{rows}, {n}])
            -> (y: f32[{rows}, {n}], dx: f32[{rows}, {k}], dw: f32[{n}, {k}]) {{
          %xq = {x}
          %wq = {w}
          %dyq = {dy}
          %xt = {xt}
          %dyt = {dyt}
          %y = matmul %xq, %wq {{ty = true, dtype = f32, {how}}} : f32[{rows}, {n}]
          %dx = matmul %dyq, %wq {{dtype = f32, {how}}} : f32[{rows}, {k}]
          %dw = matmul %dyt, %xt {{tx = true, dtype = f32, {how}}} : f32[{n}, {k}]
          return %y, %dx, %dw
        }}"
    )
}

/// For every kind of scale, with partial groups everywhere.
#[test]
fn a_linear_map_forward_and_backward() {
    for scale in ["f32", "ue8m0"] {
        for sizes in [[5, 200, 300], [150, 130, 80], [1, 256, 128]] {
            for how in ["promote = 128", "promote = 128, accumulate = hopper14", "site = s"] {
                check(&linear_map(sizes, ROWS, scale, how));
            }
        }
    }
}

#[test]
fn whole_blocks_are_summed_in_14_bits() {
    let how = "promote = 128, accumulate = hopper14";
    check(&linear_map([128, 256, 128], ROWS, "f32", how));
}

/// Groups of gradients of rows, and of columns.
const ROWS: [&str; 2] = ["[1, 128]", "[128, 1]"];

#[test]
fn gradients_in_square_groups() {
    check(&linear_map([130, 40, 150], ["[128, 128]"; 2], "f32", "promote = 128"));
}

#[test]
fn experts_forward_and_backward() {
    let q = |x: &str, group: &str, ty: &str| quantize(x, group, "f32", ty);
    let (x, w) = (
        q("%x", "[1, 128]", "1x128, f32>[150, 140]"),
        q("%w", "[128, 128]", "128x128, f32>[4, 136, 140]"),
    );
    let dy = q("%dy", "[1, 128]", "1x128, f32>[150, 136]");
    let (xt, dyt) = (
        q("%x", "[128, 1]", "128x1, f32>[150, 140]"),
        q("%dy", "[128, 1]", "128x1, f32>[150, 136]"),
    );
    let of = |how: &str| {
        format!(
        "func @f(%x: f32[150, 140], %w: f32[4, 136, 140], %dy: f32[150, 136], %o: i32[5])
            -> (y: f32[150, 136], dx: f32[150, 140], dw: f32[4, 136, 140],
                some: f32[3, 136, 140]) {{
          %xq = {x}
          %wq = {w}
          %dyq = {dy}
          %xt = {xt}
          %dyt = {dyt}
          %y = grouped_matmul %xq, %wq, %o {{ty = true, dtype = f32, promote = 128{how}}} : f32[150, 136]
          %dx = grouped_matmul %dyq, %wq, %o {{dtype = f32, promote = 128{how}}} : f32[150, 140]
          %dw = grouped_outer %dyt, %xt, %o {{dtype = f32, promote = 128{how}}} : f32[4, 136, 140]
          %first = slice %o {{dim = 0, start = 0, len = 4}} : i32[4]
          %some = grouped_outer %dyt, %xt, %first {{dtype = f32, promote = 128{how}}} : f32[3, 136, 140]
          return %y, %dx, %dw, %some
        }}"
    )
    };
    check(&of(""));
    check(&of(", accumulate = hopper14"));
}

/// Codes of 12 bits in the three products, beside codes of 8.
#[test]
fn e5m6_as_an_operand() {
    let q = |x: &str, dtype: &str, group: &str, shape: &str| {
        let ty = group.trim_matches(['[', ']']).replace(", ", "x");
        format!(
            "quantize {x} {{dtype = {dtype}, group = {group}, scale = ue8m0}} : \
             {dtype}<{ty}, ue8m0>[{shape}]"
        )
    };
    for (x, w) in [("e5m6", "e5m6"), ("e5m6", "e4m3"), ("e4m3", "e5m6")] {
        for rows in [1, 20] {
            let xq = q("%x", x, "[1, 128]", &format!("{rows}, 200"));
            let wq = q("%w", w, "[128, 128]", "60, 200");
            let dyq = q("%dy", w, "[1, 128]", &format!("{rows}, 60"));
            let (xt, dyt) = (
                q("%x", x, "[128, 1]", &format!("{rows}, 200")),
                q("%dy", w, "[128, 1]", &format!("{rows}, 60")),
            );
            check(&format!(
                "func @f(%x: f32[{rows}, 200], %w: f32[60, 200], %dy: f32[{rows}, 60])
                    -> (y: f32[{rows}, 60], dx: f32[{rows}, 200], dw: f32[60, 200]) {{
                  %xq = {xq}
                  %wq = {wq}
                  %dyq = {dyq}
                  %xt = {xt}
                  %dyt = {dyt}
                  %y = matmul %xq, %wq {{ty = true, dtype = f32, promote = 128}} : f32[{rows}, 60]
                  %dx = matmul %dyq, %wq {{dtype = f32, promote = 128}} : f32[{rows}, 200]
                  %dw = matmul %dyt, %xt {{tx = true, dtype = f32, promote = 128}} : f32[60, 200]
                  return %y, %dx, %dw
                }}"
            ));
        }
    }
}

#[test]
fn what_is_dequantized_again() {
    for dtype in ["e4m3", "e5m2", "e5m6"] {
        for (group, ty) in [("[1, 128]", "1x128"), ("[128, 1]", "128x1"), ("[64, 32]", "64x32")] {
            check(&format!(
                "func @f(%x: bf16[70, 384]) -> (y: bf16[70, 384]) {{
                  %q = quantize %x {{dtype = {dtype}, group = {group}, scale = ue8m0}} : \
                 {dtype}<{ty}, ue8m0>[70, 384]
                  %y = dequantize %q {{dtype = bf16}} : bf16[70, 384]
                  return %y
                }}"
            ));
        }
    }
}

/// Rows are looked at as a whole and become codes in the same region, also where groups are not
/// full, the rows have another shape and values of the region leave it too.
#[test]
fn codes_made_where_their_rows_are() {
    for (row, group, dtype, scale) in [
        (200, 128, "e4m3", "f32"),
        (96, 32, "e5m2", "ue8m0"),
        (80, 128, "e4m3", "ue8m0"),
        (256, 128, "e5m6", "ue8m0"),
    ] {
        let ty = format!("{dtype}<1x{group}, {scale}>[6, {row}]");
        let module = check(&format!(
            "func @f(%x: bf16[3, 2, {row}]) -> (y: bf16[6, {row}], z: bf16[3, 2, {row}]) {{
               %1 = convert %x {{dtype = f32}} : f32[3, 2, {row}]
               %2 = reduce_max %1 {{dims = [2]}} : f32[3, 2]
               %3 = broadcast %2 {{shape = [3, 2, {row}], dims = [0, 1]}} : f32[3, 2, {row}]
               %4 = mul %1, %3 : f32[3, 2, {row}]
               %z = convert %4 {{dtype = bf16}} : bf16[3, 2, {row}]
               %5 = reshape %z {{shape = [6, {row}]}} : bf16[6, {row}]
               %q = quantize %5 {{dtype = {dtype}, group = [1, {group}], scale = {scale}}} : {ty}
               %y = dequantize %q {{dtype = bf16}} : bf16[6, {row}]
               return %y, %z
             }}"
        ));
        let f = module.func(module.find("f").expect("the entry"));
        assert!(f.body_ops().all(|(_, op)| op.op != Op::Encode), "{ty} is made alone");
    }
}

/// Attention ends in codes of its rows where a machine's kernel can, which are those that a region
/// makes of what it writes.
#[test]
fn attention_that_ends_in_codes() {
    let text = "func @f(%q: f32[2, 20, 8, 24], %k: f32[2, 20, 8, 24], %v: f32[2, 20, 8, 32])
        -> (y: f32[40, 256], z: f32[40, 256], lse: f32[2, 8, 20]) {
      %o, %lse = attention %q, %k, %v {parts = 1, scale = 0.2, causal = true} : \
        f32[2, 20, 8, 32], f32[2, 8, 20]
      %r = reshape %o {shape = [40, 256]} : f32[40, 256]
      %a = quantize %r {dtype = e4m3, group = [1, 128], scale = ue8m0} : e4m3<1x128, ue8m0>[40, 256]
      %b = quantize %r {dtype = e5m6, group = [1, 128], scale = ue8m0} : e5m6<1x128, ue8m0>[40, 256]
      %y = dequantize %a {dtype = f32} : f32[40, 256]
      %z = dequantize %b {dtype = f32} : f32[40, 256]
      return %y, %z, %lse
    }";
    let fused = check(text);
    let mut apart = module(text);
    let split = by_name("split_quantized").expect("a pass");
    run_pass(1, split, &mut apart, &PassCx::default()).expect("it runs");
    let results = |m: &Module| {
        let f = m.find("f").expect("the entry");
        let args =
            arguments(m, f, &Default::default(), 3, Draw { low: -3.0, high: 3.0, ints: 4.0 });
        let graph = graph(m, &["f"]);
        let encodes = graph.kernels.iter().any(|k| k.name.contains("encode"));
        let found = run(Arc::new(Cpu::new(2).unwrap()), &graph, m, f, &args, &Default::default());
        (found.iter().map(|x| x.numbers()).collect::<Vec<_>>(), encodes)
    };
    let (ends, encodes) = results(&fused);
    let (expected, encodes_apart) = results(&apart);
    assert_eq!(ends, expected);
    assert_eq!((encodes, encodes_apart), (false, true));
}

/// Without instructions that add in pairs, a kernel's sums are the interpreter's to the last bit.
#[test]
fn sums_are_the_interpreters_bit_for_bit() {
    for (rows, dtype) in [(9, "e4m3"), (1, "e4m3"), (3, "e4m3"), (9, "e5m6"), (1, "e5m6")] {
        sums_are_the_interpreters(rows, dtype);
    }
}

fn sums_are_the_interpreters(rows: u64, dtype: &str) {
    let before = module(&format!(
        "func @f(%x: bf16[{rows}, 300], %w: f32[40, 300]) -> (y: f32[{rows}, 40]) {{
           %q = quantize %x {{dtype = {dtype}, group = [1, 128], scale = f32}} : {dtype}<1x128, f32>[{rows}, 300]
           %r = quantize %w {{dtype = e4m3, group = [128, 128], scale = f32}} : e4m3<128x128, f32>[40, 300]
           %y = matmul %q, %r {{ty = true, dtype = f32, promote = 128}} : f32[{rows}, 40]
           return %y
         }}"
    ));
    let f = before.find("f").expect("the entry");
    let draw = Draw { low: -3.0, high: 3.0, ints: 4.0 };
    let args = arguments(&before, f, &Default::default(), 3, draw);
    let expected = interpret(&before, f, &args, &Default::default());
    let mut after = before.clone();
    let split = by_name("split_quantized").expect("a pass");
    run_pass(1, split, &mut after, &PassCx::default()).expect("it runs");
    let options = Options { variants: CpuVariant::ALL.to_vec(), ..Options::native(2) };
    let graph = compile(&after, &["f"], &options).expect("it compiles");
    for limit in [CpuVariant::Avx2, CpuVariant::Avx512] {
        let cpu: Arc<dyn Device> = Arc::new(Cpu::with_variant(2, limit).unwrap());
        let f = after.find("f").expect("the entry");
        let found = run(cpu, &graph, &after, f, &args, &Default::default());
        assert_eq!(found[0].numbers(), expected[0].numbers(), "{}", limit.name());
    }
}
