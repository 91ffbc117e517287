//! Regions that go on with a product's sums: one kernel gives the bits that several give, and the
//! reference interpreter's numbers; and where one is not the faster way there are several.

mod machines;

use std::sync::Arc;

use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_graph::Graph;
use weft_ir::interp::Tensor;
use weft_ir::module::Module;
use weft_passes::{PassCx, by_name, run_pass};
use weft_runtime::device::Ptx;

use machines::{Draw, arguments, distance, interpret, module, ptx_graph, ptx_graph_of, run};

const DRAW: Draw = Draw { low: -2.0, high: 2.0, ints: 4.0 };
/// So few multiprocessors have work with wide tiles too.
const FEW: Budget = Budget { sms: 2 };
/// Sums are added in another order than the interpreter's, before they are rounded.
const TOLERANCE: f64 = 2e-3;

fn lowered(text: &str) -> Module {
    let mut m = module(text);
    for (i, name) in ["split_quantized", "cse", "dce", "fuse"].into_iter().enumerate() {
        let pass = by_name(name).expect("a pass");
        run_pass(i + 1, pass, &mut m, &PassCx::default()).expect("it runs");
    }
    m
}

fn names(graph: &Graph) -> Vec<&str> {
    graph.kernels.iter().map(|k| k.name.as_str()).collect()
}

/// A call, which may do anything, stands before all of `body` or, in the place of `BETWEEN`, keeps
/// products and region apart. `kernel` is part of the name of what they are together.
fn check(params: &str, results: &str, body: &str, (kernel, budget): (&str, Budget)) {
    let other = "%nz = call %z {func = @other} : f32[3]\n";
    let text = |first: &str, between: &str| {
        let body = body.replace("BETWEEN", between);
        format!(
            "func @other(%x: f32[3]) -> (y: f32[3]) {{\n%y = neg %x : f32[3]\nreturn %y\n}}\n\
             func @f({params}, %z: f32[3]) -> ({results}, nz: f32[3]) {{\n{first}{body}, %nz\n}}\n"
        )
    };
    let [together, apart] = [text(other, ""), text("", other)].map(|text| lowered(&text));
    let f = together.find("f").expect("the entry");
    let mut args = arguments(&together, f, &Default::default(), 5, DRAW);
    for (p, arg) in together.func(f).params.iter().zip(&mut args) {
        if together.func(f).ty(*p).dtype.is_int() {
            *arg = Tensor::i32(&[5], vec![0, 3, 3, 140, 150]);
        }
    }
    let expected = interpret(&together, f, &args, &Default::default());
    let machine = Cuda { budget, ..Cuda::WHOLE };
    let graphs = [&together, &apart].map(|m| ptx_graph_of(m, &["f"], machine));
    let [one, several] = graphs.each_ref().map(names);
    assert!(one.iter().any(|n| n.contains(kernel)), "{kernel}: {one:?}");
    assert!(!several.iter().any(|n| n.contains(kernel)), "{kernel}: {several:?}");
    let of = |graph, m| run(Arc::new(Ptx::new()), graph, m, f, &args, &Default::default());
    let [one, several] = [of(&graphs[0], &together), of(&graphs[1], &apart)];
    for (i, ((one, several), expected)) in one.iter().zip(&several).zip(&expected).enumerate() {
        assert_eq!(one.numbers(), several.numbers(), "result {i} of {kernel}");
        let off = distance(one, expected);
        assert!(off <= TOLERANCE, "result {i} of {kernel} is off by {off:.1e}");
        assert!(one.numbers().iter().any(|x| *x != 0.0), "result {i} of {kernel} is zeros");
    }
}

fn quantize(x: &str, group: &str, scale: &str, shape: &str) -> String {
    let ty = group.replace(", ", "x");
    format!(
        "quantize {x} {{dtype = e4m3, group = [{group}], scale = {scale}}} : \
         e4m3<{ty}, {scale}>[{shape}]"
    )
}

/// `silu(gate) * up` of `%g` and `%u`, bf16 of a shape.
fn silu_up(shape: &str) -> String {
    format!(
        "BETWEEN
         %gf = convert %g {{dtype = f32}} : f32[{shape}]
         %s = sigmoid %gf : f32[{shape}]
         %a = mul %gf, %s : f32[{shape}]
         %uf = convert %u {{dtype = f32}} : f32[{shape}]
         %hf = mul %a, %uf : f32[{shape}]
         %h = convert %hf {{dtype = bf16}} : bf16[{shape}]\n"
    )
}

/// Gate and up, SiLU and codes are one kernel; the down product reads its codes.
#[test]
fn gate_and_up_end_in_codes() {
    for (scale, kept, name) in [("f32", "", "_pair_conv"), ("ue8m0", ", %g, %u", "_pair_kept_c")] {
        let body = format!(
            "%xq = {}\n%gq = {}\n%uq = {}\n%dq = {}\n\
             %g = matmul %xq, %gq {{ty = true, dtype = bf16, promote = 128}} : bf16[150, 256]\n\
             %u = matmul %xq, %uq {{ty = true, dtype = bf16, promote = 128}} : bf16[150, 256]\n\
             {}%hq = {}\n\
             %y = matmul %hq, %dq {{ty = true, dtype = f32, promote = 128}} : f32[150, 128]\n\
             return %y{kept}",
            quantize("%x", "1, 128", scale, "150, 384"),
            quantize("%wg", "128, 128", "f32", "256, 384"),
            quantize("%wu", "128, 128", "f32", "256, 384"),
            quantize("%wd", "128, 128", "f32", "128, 256"),
            silu_up("150, 256"),
            quantize("%h", "1, 128", scale, "150, 256"),
        );
        let params = "%x: f32[150, 384], %wg: f32[256, 384], %wu: f32[256, 384], \
                      %wd: f32[128, 256]";
        let results = match kept {
            "" => "y: f32[150, 128]",
            _ => "y: f32[150, 128], g: bf16[150, 256], u: bf16[150, 256]",
        };
        check(params, results, &body, (name, FEW));
    }
}

/// The same of experts, one of which has no rows; what is computed of each row (the router's
/// weight) is read beside.
#[test]
fn experts_end_in_codes() {
    let body = format!(
        "%xq = {}\n%gq = {}\n%uq = {}\n%dq = {}\n\
         %g = grouped_matmul %xq, %gq, %o {{ty = true, dtype = bf16, promote = 128}} : \
         bf16[150, 256]\n\
         %u = grouped_matmul %xq, %uq, %o {{ty = true, dtype = bf16, promote = 128}} : \
         bf16[150, 256]\n\
         {}%b = broadcast %r {{shape = [150, 256], dims = [0]}} : bf16[150, 256]\n\
         %hr = mul %h, %b : bf16[150, 256]\n\
         %hq = {}\n\
         %y = grouped_matmul %hq, %dq, %o {{ty = true, dtype = f32, promote = 128}} : \
         f32[150, 128]\n\
         return %y",
        quantize("%x", "1, 128", "f32", "150, 256"),
        quantize("%wg", "128, 128", "f32", "4, 256, 256"),
        quantize("%wu", "128, 128", "f32", "4, 256, 256"),
        quantize("%wd", "128, 128", "f32", "4, 128, 256"),
        silu_up("150, 256"),
        quantize("%hr", "1, 128", "f32", "150, 256"),
    );
    let params = "%x: f32[150, 256], %wg: f32[4, 256, 256], %wu: f32[4, 256, 256], \
                  %wd: f32[4, 128, 256], %r: bf16[150], %o: i32[5]";
    check(params, "y: f32[150, 128]", &body, ("_rows_128x128_pair_", Budget { sms: 10 }));
}

/// Of bf16, and a product by itself that a residual is added to.
#[test]
fn bf16_and_residuals_end_in_sums() {
    let body = format!(
        "%g = matmul %x, %wg {{ty = true}} : bf16[2, 70, 96]\n\
         %u = matmul %x, %wu {{ty = true}} : bf16[2, 70, 96]\n{}return %h",
        silu_up("2, 70, 96")
    );
    let params = "%x: bf16[2, 70, 64], %wg: bf16[96, 64], %wu: bf16[96, 64]";
    check(params, "h: bf16[2, 70, 96]", &body, ("_pair_", FEW));
    let body = "%p = matmul %x, %w {ty = true} : bf16[131, 96]\nBETWEEN
        %pf = convert %p {dtype = f32} : f32[131, 96]
        %s = add %pf, %r : f32[131, 96]
        %h = convert %s {dtype = bf16} : bf16[131, 96]
        return %h, %s";
    let params = "%x: bf16[131, 72], %w: bf16[96, 72], %r: f32[131, 96]";
    check(params, "h: bf16[131, 96], s: f32[131, 96]", body, ("_convert_add_", FEW));
}

/// Of tiles of the same columns CTAs share what each of both products reads of its own.
#[test]
fn a_pair_of_products_on_clusters() {
    let shape = "512, 96";
    let body = format!(
        "%g = matmul %x, %wg {{ty = true}} : bf16[{shape}]\n\
         %u = matmul %x, %wu {{ty = true}} : bf16[{shape}]\n{}return %h",
        silu_up(shape)
    );
    let params = "%x: bf16[512, 64], %wg: bf16[96, 64], %wu: bf16[96, 64]";
    check(params, "h: bf16[512, 96]", &body, ("_shares_b_pair_", FEW));
}

/// Of few rows and many terms a pair of tiles of 128 columns would leave most of the machine
/// without work.
#[test]
fn few_rows_stay_apart() {
    let of = |rows: usize| {
        let shape = format!("{rows}, 2048");
        let text = format!(
            "func @f(%x: e4m3[{rows}, 7168], %xs: f32[{rows}, 56], %wg: e4m3[2048, 7168],
                     %gs: f32[16, 56], %wu: e4m3[2048, 7168], %us: f32[16, 56])
                 -> (c: e4m3[{shape}], s: f32[{rows}, 16]) {{
               %g = matmul %x, %wg, %xs, %gs {{ty = true, dtype = bf16, promote = 128, \
                 x_group = [1, 128], y_group = [128, 128]}} : bf16[{shape}]
               %u = matmul %x, %wu, %xs, %us {{ty = true, dtype = bf16, promote = 128, \
                 x_group = [1, 128], y_group = [128, 128]}} : bf16[{shape}]
               {}%c, %cs = encode %h {{dtype = e4m3, group = [1, 128], scale = f32}} : \
                 e4m3[{shape}], f32[{rows}, 16]
               return %c, %cs\n}}\n",
            silu_up(&shape).replace("BETWEEN", "")
        );
        let graph = ptx_graph(&lowered(&text), &["f"]);
        names(&graph).iter().any(|name| name.contains("_pair_"))
    };
    assert!(!of(128));
    assert!(of(4096));
}
