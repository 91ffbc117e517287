//! Regions against the reference interpreter: each op and typical chains, odd sizes, symbolic dims,
//! every CPU variant.

#[path = "region/harness.rs"]
mod harness;
#[path = "region/random.rs"]
mod random;

use harness::{Tolerance, check, check_on, check_with, parse, sizes};
use weft_backend_cpu::Cpu;
use weft_backend_cuda::Cuda;
use weft_ir::interp::{Range, Tensor, random_args};
use weft_ir::module::FuncId;
use weft_ir::ty::Type;

const ODD: [u64; 6] = [1, 3, 17, 40, 96, 257];

/// A function in text form; the last line of `body` names the results.
fn func(params: &str, results: &str, body: &str) -> String {
    format!("dims {{ B <= 64, S <= 512 }}\nfunc @f({params}) -> ({results}) {{\n{body}\n}}\n")
}

/// `y = op x` on `dims` of a type.
fn unary(op: &str, ty: &str) -> String {
    func(&format!("%x: {ty}"), ty, &format!("%y = {op} %x\nreturn %y"))
}

fn floats(low: f64, high: f64) -> impl Fn(usize, &Type) -> Range {
    move |_, ty: &Type| {
        if ty.dtype.is_int() { Range { low: 0.0, high: 4.0 } } else { Range { low, high } }
    }
}

fn bounds(tolerance: f64) -> Tolerance {
    Tolerance { relative: tolerance, of_largest: tolerance }
}

#[test]
fn unary_ops() {
    for op in ["neg", "abs", "sign", "floor", "exp", "sigmoid", "tanh", "sin", "cos", "erf"] {
        for dtype in ["f32", "bf16"] {
            check(&unary(op, &format!("{dtype}[37]")), &[]);
        }
    }
    for op in ["log", "sqrt", "rsqrt"] {
        check_with(&unary(op, "f32[70]"), &[], &floats(0.1, 9.0), harness::TIGHT);
    }
    for op in ["neg", "abs", "sign", "floor"] {
        check(&unary(op, "i32[37]"), &[]);
    }
}

#[test]
fn binary_ops() {
    for op in ["add", "sub", "mul", "div", "max", "min"] {
        for ty in ["f32[5, 33]", "bf16[S]", "i32[19]"] {
            let text =
                func(&format!("%x: {ty}, %y: {ty}"), ty, &format!("%z = {op} %x, %y\nreturn %z"));
            let range = |_: usize, ty: &Type| match ty.dtype.is_int() {
                true => Range { low: 1.0, high: 9.0 },
                false => Range { low: -2.0, high: 2.0 },
            };
            check_with(&text, &[("S", 83)], &range, harness::TIGHT);
        }
    }
}

#[test]
fn comparisons_and_choice() {
    for op in ["eq", "lt", "le"] {
        for ty in ["f32", "i32"] {
            let body = format!(
                "%c = {op} %x, %y\n%n = not %c\n%a = and %c, %n\n%o = or %c, %b\n\
                 %s = select %o, %x, %y\nreturn %a, %o, %s"
            );
            let params = format!("%x: {ty}[41], %y: {ty}[41], %b: bool[41]");
            check(&func(&params, &format!("bool[41], bool[41], {ty}[41]"), &body), &[]);
        }
    }
}

#[test]
fn conversions() {
    for from in ["f32", "bf16", "i32", "bool"] {
        for to in ["f32", "bf16", "i32", "bool"] {
            let body = format!("%y = convert %x {{dtype = {to}}}\nreturn %y");
            check(&func(&format!("%x: {from}[53]"), &format!("{to}[53]"), &body), &[]);
        }
    }
}

#[test]
fn codes_of_narrow_floats() {
    for n in [1, 2, 3, 16, 31, 32, 33, 53, 64, 127, 4099, 9000] {
        for code in ["e4m3", "e5m2", "e5m6"] {
            for float in ["f32", "bf16"] {
                let body = format!("%y = convert %x {{dtype = {code}}}\nreturn %y");
                let text = func(&format!("%x: {float}[{n}]"), &format!("{code}[{n}]"), &body);
                check_with(&text, &[], &floats(-600.0, 600.0), harness::TIGHT);
                check_with(&text, &[], &floats(-0.02, 0.02), harness::TIGHT);
                let body = format!("%y = convert %x {{dtype = {float}}}\nreturn %y");
                let text = func(&format!("%x: {code}[{n}]"), &format!("{float}[{n}]"), &body);
                check_with(&text, &[], &floats(-600.0, 600.0), harness::TIGHT);
            }
        }
        let text = func(
            &format!("%x: f32[{n}]"),
            &format!("ue8m0[{n}], f32[{n}]"),
            "%s = convert %x {dtype = ue8m0}\n%f = convert %s {dtype = f32}\n\
             %y = div %x, %f\nreturn %s, %y",
        );
        check_with(&text, &[], &floats(0.0, 900.0), harness::TIGHT);
    }
}

/// A quantizer in primitives: the largest of a group, its scale, codes and back.
#[test]
fn groups_are_quantized_in_one_launch() {
    let head = "%a = abs %x\n%g = reshape %a {shape = [S, 3, 128]}\n\
        %m = reduce_max %g {dims = [2]}\n\
        %k = constant {value = 448, type = f32[S, 3]}\n%r = div %m, %k\n\
        %z = constant {value = 0, type = f32[S, 3]}\n%e = eq %m, %z\n\
        %one = constant {value = 1, type = f32[S, 3]}\n%s = select %e, %one, %r\n";
    let tail = "%b = broadcast %f {shape = [S, 3, 128], dims = [0, 1]}\n\
        %w = reshape %b {shape = [S, 384]}\n%q = div %x, %w\n\
        %c = convert %q {dtype = e4m3}\n";
    for (scale, convert) in [
        ("f32", "%f = convert %s {dtype = f32}\n"),
        ("ue8m0", "%p = convert %s {dtype = ue8m0}\n%f = convert %p {dtype = f32}\n"),
    ] {
        let name = if scale == "f32" { "%s" } else { "%p" };
        let body = format!("%x = mul %u, %v\n{head}{convert}{tail}return %x, %c, {name}");
        let results = format!("f32[S, 384], e4m3[S, 384], {scale}[S, 3]");
        let params = "%u: f32[S, 384], %v: f32[S, 384]";
        let text = func(params, &results, &body);
        for s in ODD {
            check_with(&text, &[("S", s)], &floats(-3.0, 3.0), harness::TIGHT);
        }
        let module = parse(&text);
        let dim = |d| harness::size(&module, d);
        let region = weft_lower::region::compile(&Cpu, &module, &module.funcs[0], "t", "t:1", &dim);
        assert_eq!(region.map(|r| r.launches.len()).ok(), Some(1));
    }
}

/// Groups of rows, of columns and of both, full ones and not.
#[test]
fn codes_and_scales_of_groups() {
    for (rows, cols, group, blocks) in [
        ("S", "384", [1, 128], "S, 3"),
        ("S", "80", [1, 128], "S, 1"),
        ("S", "300", [1, 128], "S, 3"),
        ("B, S", "256", [1, 128], "B, S, 2"),
        ("200", "96", [128, 1], "2, 96"),
        ("100", "1", [128, 1], "1, 1"),
        ("129", "17", [128, 1], "2, 17"),
        ("B, 40", "65", [16, 1], "B, 3, 65"),
        ("256", "384", [128, 128], "2, 3"),
        ("200", "300", [128, 128], "2, 3"),
        ("33", "17", [128, 128], "1, 1"),
    ] {
        for code in ["e4m3", "e5m2", "e5m6"] {
            for (scale, float, floor) in
                [("f32", "f32", ""), ("ue8m0", "bf16", ""), ("f32", "bf16", ", floor = 0.5")]
            {
                let [r, c] = group;
                let few = [("e4m3", "f32", "f32"), ("e5m2", "ue8m0", "bf16")];
                harness::ON_PTX.set(few.contains(&(code, scale, float)));
                let body = format!(
                    "%c, %s = encode %x {{dtype = {code}, group = [{r}, {c}], scale = {scale}{floor}}}\n\
                     return %c, %s"
                );
                let results = format!("{code}[{rows}, {cols}], {scale}[{blocks}]");
                let text = func(&format!("%x: {float}[{rows}, {cols}]"), &results, &body);
                let sizes: &[(&str, u64)] = &[("B", 3), ("S", 5)];
                check_with(&text, sizes, &floats(-3.0, 3.0), harness::TIGHT);
            }
        }
    }
}

/// Codes with scales along rows in other groups: of columns, in one kernel where a vector of
/// columns has one scale, and as a value in between where not.
#[test]
fn codes_of_other_codes() {
    for (rows, cols, from, of, to, blocks) in [
        ("200", "256", [1, 128], "200, 2", [128, 1], "2, 256"),
        ("129", "300", [1, 128], "129, 3", [128, 1], "2, 300"),
        ("130", "80", [1, 64], "130, 2", [128, 1], "2, 80"),
        ("100", "77", [1, 32], "100, 3", [128, 1], "1, 77"),
        ("B, 40", "130", [1, 64], "B, 40, 3", [16, 1], "B, 3, 130"),
        ("40", "130", [16, 64], "3, 3", [16, 1], "3, 130"),
        ("150", "130", [1, 128], "150, 2", [128, 128], "2, 2"),
    ] {
        for (x, x_scale, code, scale, through) in [
            ("e4m3", "ue8m0", "e4m3", "ue8m0", "bf16"),
            ("e4m3", "f32", "e4m3", "f32", "bf16"),
            ("e5m2", "f32", "e4m3", "ue8m0", "f32"),
        ] {
            harness::ON_PTX.set(x_scale == "f32");
            let [[fr, fc], [tr, tc]] = [from, to];
            let body = format!(
                "%c, %s = recode %x, %xs {{dtype = {code}, group = [{tr}, {tc}], scale = {scale}, \
                 x_group = [{fr}, {fc}], through = {through}}}\nreturn %c, %s"
            );
            let params = format!("%x: {x}[{rows}, {cols}], %xs: {x_scale}[{of}]");
            let results = format!("{code}[{rows}, {cols}], {scale}[{blocks}]");
            let text = func(&params, &results, &body);
            check_with(&text, &[("B", 3)], &floats(0.25, 3.0), harness::TIGHT);
        }
    }
}

#[test]
fn sources() {
    let body = "%c = constant {value = 1.5, type = f32[B, 7]}\n\
                %i = iota {dim = 0, type = i32[B, 7]}\n\
                %j = iota {dim = 1, type = f32[B, 7]}\n\
                %e = extent {of = B}\n\
                return %c, %i, %j, %e";
    let text = func("%x: f32[B]", "f32[B, 7], i32[B, 7], f32[B, 7], f32[]", body);
    check(&text, &[("B", 5)]);
}

#[test]
fn broadcasts() {
    for n in ODD {
        let row = format!(
            "%b = broadcast %y {{shape = [9, {n}], dims = [1]}}\n%z = add %x, %b\nreturn %z"
        );
        let (x, z) = (format!("%x: f32[9, {n}], %y: f32[{n}]"), format!("f32[9, {n}]"));
        check(&func(&x, &z, &row), &[]);
        let col = format!(
            "%b = broadcast %y {{shape = [9, {n}], dims = [0]}}\n%z = mul %x, %b\nreturn %z"
        );
        check(&func(&format!("%x: f32[9, {n}], %y: f32[9]"), &z, &col), &[]);
        let one = format!(
            "%b = broadcast %y {{shape = [9, {n}], dims = [0, 1]}}\n%z = sub %x, %b\nreturn %z"
        );
        check(&func(&format!("%x: f32[9, {n}], %y: f32[1, {n}]"), &z, &one), &[]);
        check(&func(&format!("%x: f32[9, {n}], %y: f32[9, 1]"), &z, &one), &[]);
    }
}

#[test]
fn movement() {
    let cases = [
        ("f32[6, 20]", "reshape %x {shape = [3, 40]}", "f32[3, 40]"),
        ("f32[6, 20]", "reshape %x {shape = [120]}", "f32[120]"),
        ("f32[6, 20]", "reshape %x {shape = [4, 30]}", "f32[4, 30]"),
        ("bf16[B, 96]", "reshape %x {shape = [B, 3, 32]}", "bf16[B, 3, 32]"),
        ("f32[B, 3, 32]", "transpose %x {perm = [1, 0, 2]}", "f32[3, B, 32]"),
        ("f32[5, 33]", "transpose %x {perm = [1, 0]}", "f32[33, 5]"),
        ("f32[5, 33]", "slice %x {dim = 1, start = 7, len = 19}", "f32[5, 19]"),
        ("i32[5, 33]", "slice %x {dim = 0, start = 2, len = 3}", "i32[3, 33]"),
        ("f32[5, 33]", "pad %x {dim = 1, low = 3, high = 18}", "f32[5, 54]"),
        ("f32[5, 33]", "pad %x {dim = 0, low = 1, high = 2}", "f32[8, 33]"),
        ("f32[B, 33]", "shift %x {dim = 0, by = 1, fill = 2.5}", "f32[B, 33]"),
        ("f32[B, 33]", "shift %x {dim = 1, by = -4, fill = -1}", "f32[B, 33]"),
        ("i32[B, S]", "shift %x {dim = 1, by = 1, fill = -1}", "i32[B, S]"),
        ("f32[40]", "shift %x {dim = 0, by = 99, fill = 7}", "f32[40]"),
    ];
    for (from, op, to) in cases {
        let text = func(&format!("%x: {from}"), to, &format!("%y = {op}\nreturn %y"));
        check(&text, &[("B", 6), ("S", 21)]);
    }
}

#[test]
fn concat() {
    let last = "%z = concat %x, %y {dim = 2}\nreturn %z";
    check(&func("%x: f32[B, 4, 32], %y: f32[B, 4, 16]", "f32[B, 4, 48]", last), &[("B", 3)]);
    check(&func("%x: f32[B, 4, 3], %y: f32[B, 4, 30]", "f32[B, 4, 33]", last), &[("B", 3)]);
    let first = "%z = concat %x, %y, %x {dim = 0}\nreturn %z";
    check(&func("%x: f32[2, 33], %y: f32[5, 33]", "f32[9, 33]", first), &[]);
    check(&func("%x: f32[S, 3], %y: f32[2*S, 3]", "f32[4*S, 3]", first), &[("S", 5)]);
}

#[test]
fn moves_compose() {
    // A head's two parts, transposed and back, as attention's operands are.
    let body = "%a = slice %x {dim = 2, start = 8, len = 24}\n\
                %h = reshape %a {shape = [B, S, 2, 12]}\n\
                %t = transpose %h {perm = [0, 2, 1, 3]}\n\
                %p = pad %t {dim = 3, low = 4, high = 0}\n\
                %e = exp %p\n\
                return %e";
    check(&func("%x: f32[B, S, 40]", "f32[B, 2, S, 16]", body), &[("B", 2), ("S", 5)]);
}

#[test]
fn several_results_share_values() {
    let body = "%e = exp %x\n%s = add %e, %y\n%r = reshape %e {shape = [21]}\n\
                %t = transpose %s {perm = [1, 0]}\nreturn %e, %s, %r, %t";
    let results = "f32[3, 7], f32[3, 7], f32[21], f32[7, 3]";
    check(&func("%x: f32[3, 7], %y: f32[3, 7]", results, body), &[]);
}

#[test]
fn reductions() {
    for op in ["reduce_sum", "reduce_max"] {
        for n in ODD {
            let text = |dims: &str, to: &str, dtype: &str| {
                let body = format!("%y = {op} %x {{dims = [{dims}]}}\nreturn %y");
                func(&format!("%x: {dtype}[5, {n}, 6]"), &format!("{dtype}[{to}]"), &body)
            };
            for (dims, to) in [
                ("2", format!("5, {n}")),
                ("1", "5, 6".into()),
                ("0", format!("{n}, 6")),
                ("0, 1", "6".into()),
                ("1, 2", "5".into()),
                ("0, 1, 2", String::new()),
            ] {
                // Of one sign: what cancels has no relative error to speak of.
                check_with(&text(dims, &to, "f32"), &[], &floats(0.5, 2.0), harness::TIGHT);
            }
            check(&text("1", "5, 6", "i32"), &[]);
            check_with(&text("1, 2", "5", "bf16"), &[], &floats(0.0, 1.0), bounds(1e-5));
        }
    }
}

#[test]
fn long_sums() {
    let cases = [
        ("f32[B, S, 96]", "0, 1", "f32[96]"),
        ("bf16[B, S, 17]", "0, 1", "bf16[17]"),
        ("f32[B, S, 40]", "0, 1, 2", "f32[]"),
        ("f32[70000]", "0", "f32[]"),
        ("i32[3000, 5]", "0", "i32[5]"),
    ];
    for (from, dims, to) in cases {
        let body = format!("%q = mul %x, %x\n%y = reduce_sum %q {{dims = [{dims}]}}\nreturn %y");
        let text = func(&format!("%x: {from}"), to, &body);
        check(&text, &[("B", 7), ("S", 211)]);
        check(&text, &[("B", 1), ("S", 1)]);
    }
}

#[test]
fn a_sum_scales_what_it_is_of() {
    // As clipping gradients by their norm does.
    let body = "%q = mul %x, %x\n%s = reduce_sum %q {dims = [0, 1]}\n%r = rsqrt %s\n\
                %b = broadcast %r {shape = [S, 33], dims = []}\n%y = mul %x, %b\nreturn %y, %s";
    check(&func("%x: f32[S, 33]", "f32[S, 33], f32[]", body), &[("S", 300)]);
}

#[test]
fn nothing_at_all() {
    check(&unary("exp", "f32[0, 4]"), &[]);
    let body = "%y = reduce_sum %x {dims = [0]}\nreturn %y";
    check(&func("%x: f32[0, 4]", "f32[4]", body), &[]);
    let body = "%y = reduce_max %x {dims = [1]}\nreturn %y";
    check(&func("%x: f32[3, 0]", "f32[3]", body), &[]);
    let body = "%z = concat %x, %y {dim = 0}\nreturn %z";
    check(&func("%x: f32[0, 4], %y: f32[2, 4]", "f32[2, 4]", body), &[]);
    check(&func("%x: f32[2, 3]", "f32[2, 3]", "%y = stop_gradient %x\nreturn %y"), &[]);
}

#[test]
fn softmax() {
    for n in ODD {
        check(&unary("softmax", &format!("f32[S, {n}]")), &[("S", 5)]);
    }
    check(&unary("softmax", "bf16[3, 4, 70]"), &[]);
    check_with(&unary("softmax", "f32[3, 300]"), &[], &floats(-90.0, 90.0), bounds(4e-6));
}

/// A CTA of a GPU has each, in one launch.
#[test]
fn few_long_rows() {
    for n in [1024, 2050, 7168] {
        let norm = "%y, %r = rms_norm %x, %g {eps = 1e-6}\nreturn %y, %r";
        let params = format!("%x: f32[S, {n}], %g: f32[{n}]");
        check(&func(&params, &format!("f32[S, {n}], f32[S]"), norm), &[("S", 3)]);
        check(&unary("softmax", &format!("f32[S, {n}]")), &[("S", 2)]);
    }
    let sums = "%y = reduce_sum %x {dims = [1]}\n%z = reduce_max %x {dims = [1]}\nreturn %y, %z";
    let text = func("%x: bf16[S, 5000]", "bf16[S], bf16[S]", sums);
    check(&text, &[("S", 3)]);
    let module = parse(&text);
    let dim = |d| harness::size(&module, d);
    let cuda = Cuda::WHOLE;
    let region = weft_lower::region::compile(&cuda, &module, &module.funcs[0], "t", "t:1", &dim);
    let launches = region.unwrap_or_else(|e| panic!("{e}")).launches;
    let threads: Vec<u32> = launches.iter().map(|l| l.kernel.cta.threads).collect();
    assert_eq!(threads, [256]);
}

#[test]
fn softmax_of_another_dim() {
    let body = "%t = transpose %x {perm = [1, 0]}\n%s = softmax %t\n\
                %y = transpose %s {perm = [1, 0]}\nreturn %y";
    check(&func("%x: f32[40, 37]", "f32[40, 37]", body), &[]);
}

#[test]
fn rms_norm() {
    for n in ODD {
        for dtype in ["f32", "bf16"] {
            let body = "%y, %r = rms_norm %x, %g {eps = 1e-6}\nreturn %y, %r";
            let text = func(
                &format!("%x: {dtype}[B, S, {n}], %g: {dtype}[{n}]"),
                &format!("{dtype}[B, S, {n}], f32[B, S]"),
                body,
            );
            check(&text, &[("B", 2), ("S", 5)]);
        }
    }
}

#[test]
fn rms_norm_grad() {
    for n in ODD {
        for (dtype, bound) in [("f32", 4e-6), ("bf16", 1e-3)] {
            let x = format!("{dtype}[B, S, {n}]");
            let body = "%dx = rms_norm_grad %x, %g, %r, %dy\nreturn %dx";
            let params = format!("%x: {x}, %g: {dtype}[{n}], %r: f32[B, S], %dy: {x}");
            check_with(
                &func(&params, &x, body),
                &[("B", 2), ("S", 5)],
                &floats(0.2, 1.0),
                bounds(bound),
            );
        }
    }
}

#[test]
fn gain_gradient() {
    let body = "%b = broadcast %r {shape = [B, S, 96], dims = [0, 1]}\n%n = mul %x, %b\n\
                %p = mul %dy, %n\n%dg = reduce_sum %p {dims = [0, 1]}\nreturn %dg";
    let x = "f32[B, S, 96]";
    let text = func(&format!("%x: {x}, %r: f32[B, S], %dy: {x}"), "f32[96]", body);
    check(&text, &[("B", 4), ("S", 300)]);
}

#[test]
fn rotary() {
    for (heads, width) in [(1, 2), (3, 16), (8, 32), (4, 6), (2, 70)] {
        for flags in
            ["", "interleaved = true", "inverse = true", "interleaved = true, inverse = true"]
        {
            for dtype in ["f32", "bf16"] {
                let x = format!("{dtype}[B, S, {heads}, {width}]");
                let half = width / 2;
                let params = format!("%x: {x}, %p: i32[B, S], %f: f32[{half}]");
                let braces = if flags.is_empty() { String::new() } else { format!(" {{{flags}}}") };
                let text = func(&params, &x, &format!("%y = rotary %x, %p, %f{braces}\nreturn %y"));
                let range = |_: usize, ty: &Type| match ty.dtype.is_int() {
                    true => Range { low: 0.0, high: 900.0 },
                    false => Range { low: -2.0, high: 2.0 },
                };
                check_with(&text, &[("B", 2), ("S", 5)], &range, bounds(2e-6));
            }
        }
    }
}

#[test]
fn cross_entropy() {
    for n in ODD {
        let targets = |_: usize, ty: &Type| match ty.dtype.is_int() {
            true => Range { low: -1.0, high: n as f64 },
            false => Range { low: -3.0, high: 3.0 },
        };
        for dtype in ["f32", "bf16"] {
            let x = format!("{dtype}[B, S, {n}]");
            let body = "%l, %e = cross_entropy %x, %t\nreturn %l, %e";
            let text = func(&format!("%x: {x}, %t: i32[B, S]"), "f32[B, S], f32[B, S]", body);
            check_with(&text, &[("B", 3), ("S", 7)], &targets, bounds(4e-6));
            let body = "%g = cross_entropy_grad %x, %t, %e, %d\nreturn %g";
            let params = format!("%x: {x}, %t: i32[B, S], %e: f32[B, S], %d: f32[B, S]");
            check_with(&func(&params, &x, body), &[("B", 3), ("S", 7)], &targets, bounds(4e-6));
        }
    }
}

fn ids(high: u64) -> impl Fn(usize, &Type) -> Range {
    move |_, ty: &Type| match ty.dtype.is_int() {
        true => Range { low: -1.0, high: high as f64 },
        false => Range { low: -2.0, high: 2.0 },
    }
}

#[test]
fn gather_and_scatter() {
    for d in ODD {
        for dtype in ["f32", "bf16"] {
            let params = format!("%t: {dtype}[23, {d}], %i: i32[B, S]");
            let text =
                func(&params, &format!("{dtype}[B, S, {d}]"), "%y = gather %t, %i\nreturn %y");
            check_with(&text, &[("B", 3), ("S", 9)], &ids(23), harness::TIGHT);
            let text = func(
                &format!("%x: {dtype}[B, S, {d}], %i: i32[B, S]"),
                &format!("{dtype}[23, {d}]"),
                "%y = scatter_add %x, %i {rows = 23}\nreturn %y",
            );
            check_with(&text, &[("B", 3), ("S", 40)], &ids(23), bounds(1e-6));
        }
    }
}

#[test]
fn take_put_one_hot() {
    let nonnegative = |_: usize, ty: &Type| match ty.dtype.is_int() {
        true => Range { low: 0.0, high: 17.0 },
        false => Range { low: -2.0, high: 2.0 },
    };
    let text = func("%x: f32[S, 17], %i: i32[S, 3]", "f32[S, 3]", "%y = take %x, %i\nreturn %y");
    check_with(&text, &[("S", 9)], &nonnegative, harness::TIGHT);
    let text = func(
        "%x: f32[S, 3], %i: i32[S, 3]",
        "f32[S, 17]",
        "%y = put %x, %i {size = 17}\nreturn %y",
    );
    check_with(&text, &[("S", 9)], &nonnegative, harness::TIGHT);
    let text = func("%i: i32[S, 3]", "f32[S, 3, 17]", "%y = one_hot %i {size = 17}\nreturn %y");
    check_with(&text, &[("S", 9)], &ids(20), harness::TIGHT);
}

#[test]
fn topk() {
    for (n, k) in [(1, 1), (8, 2), (17, 5), (256, 8), (100, 100)] {
        let body = format!("%y = topk %x {{k = {k}}}\nreturn %y");
        let text = func(&format!("%x: f32[S, {n}]"), &format!("i32[S, {k}]"), &body);
        check(&text, &[("S", 37)]);
        // Whole numbers: ties.
        let body = format!("%f = floor %x\n%y = topk %f {{k = {k}}}\nreturn %y");
        let text = func(&format!("%x: bf16[S, {n}]"), &format!("i32[S, {k}]"), &body);
        check(&text, &[("S", 37)]);
    }
}

#[test]
fn grouped_topk() {
    for (n, groups, kept, k) in [(8, 4, 2, 2), (256, 8, 4, 8), (24, 3, 3, 5), (12, 12, 5, 3)] {
        for score in ["max", "top2"] {
            if score == "top2" && n / groups < 2 {
                continue;
            }
            let body = format!(
                "%y = grouped_topk %x {{k = {k}, groups = {groups}, kept = {kept}, \
                 group_score = {score}}}\nreturn %y"
            );
            let text = func(&format!("%x: f32[S, {n}]"), &format!("i32[S, {k}]"), &body);
            check(&text, &[("S", 37)]);
        }
    }
}

#[test]
fn tokens_to_experts_and_back() {
    let route = "dims { S <= 512, R = ragged(8) 2*S }\n\
        func @f(%i: i32[S, 2]) -> (i32[9], i32[R]) {\n\
        %o, %r = route %i {experts = 8, rows = R}\nreturn %o, %r\n}\n";
    let range = |_: usize, _: &Type| Range { low: 0.0, high: 8.0 };
    for s in ODD {
        check_with(route, &[("S", s)], &range, harness::TIGHT);
    }
    let all = "dims { S <= 512, R = ragged(8) 2*S }\n\
        func @f(%x: f32[S, 40], %i: i32[S, 2], %w: f32[S, 2], %dy: f32[S, 40]) \
        -> (f32[R, 40], f32[R, 40], f32[S, 40], f32[S, 40], f32[S, 2]) {\n\
        %o, %r = route %i {experts = 8, rows = R}\n\
        %d = dispatch %x, %r {active = 2}\n\
        %dw = dispatch %x, %r, %w {active = 2}\n\
        %c = combine %d, %r {tokens = [S], active = 2}\n\
        %cw = combine %d, %r, %w {tokens = [S], active = 2}\n\
        %g = combine_dot %d, %r, %dy {active = 2}\n\
        return %d, %dw, %c, %cw, %g\n}\n";
    let range = |_: usize, ty: &Type| match ty.dtype.is_int() {
        true => Range { low: 0.0, high: 8.0 },
        false => Range { low: -2.0, high: 2.0 },
    };
    for s in ODD {
        check_with(all, &[("S", s)], &range, bounds(2e-6));
        check_with(&all.replace("f32", "bf16"), &[("S", s)], &range, bounds(1e-2));
    }
}

/// Rows of codes, and of their scales, go as they are.
#[test]
fn codes_to_experts() {
    for (code, scale) in [("e4m3", "f32"), ("e4m3", "ue8m0"), ("e5m2", "f32"), ("e5m6", "ue8m0")] {
        let text = format!(
            "dims {{ S <= 512, R = ragged(8) 2*S }}\n\
             func @f(%x: f32[S, 40], %i: i32[S, 2]) -> ({code}[R, 40], {scale}[R, 5]) {{\n\
             %o, %r = route %i {{experts = 8, rows = R}}\n\
             %c, %s = encode %x {{dtype = {code}, group = [1, 8], scale = {scale}}}\n\
             %rows = dispatch %c, %r {{active = 2}}\n\
             %scales = dispatch %s, %r {{active = 2}}\n\
             return %rows, %scales\n}}\n"
        );
        let range = |_: usize, ty: &Type| match ty.dtype.is_int() {
            true => Range { low: 0.0, high: 8.0 },
            false => Range { low: -2.0, high: 2.0 },
        };
        for s in ODD {
            check_with(&text, &[("S", s)], &range, bounds(0.0));
        }
    }
}

#[test]
fn adamw() {
    for (dtype, t) in [("f32", 1.0), ("f32", 1000.0), ("bf16", 3.0)] {
        let text = func(
            &format!(
                "%w: state f32[257], %m: state {dtype}[257], %v: state {dtype}[257], \
                 %g: f32[257], %lr: f32[], %t: f32[]"
            ),
            &format!("state f32[257], state {dtype}[257], state {dtype}[257]"),
            "%a, %b, %c = adamw %w, %m, %v, %g, %lr, %t {beta1 = 0.9, beta2 = 0.999, \
             eps = 1e-8, decay = 0.1}\nreturn %a, %b, %c",
        )
        .replace(") {", ") donates (0 -> 0, 1 -> 1, 2 -> 2) {");
        let module = parse(&text);
        let range = |i: usize, _: &Type| match i {
            2 => Range { low: 0.1, high: 1.0 },
            4 => Range { low: 0.01, high: 0.02 },
            _ => Range { low: -2.0, high: 2.0 },
        };
        let mut args = random_args(&module, FuncId(0), &sizes(&module, &[]), 3, &range).unwrap();
        args[5] = Tensor::scalar(t);
        check_on(&module, &sizes(&module, &[]), &args, bounds(2e-6));
    }
}

#[test]
fn states_are_updated_in_place() {
    let text = func(
        "%s: state f32[40], %x: f32[40]",
        "state f32[40], f32[40]",
        "%v = read %s\n%y = add %v, %x\n%n = assign %s, %y\n%d = mul %v, %x\nreturn %n, %d",
    )
    .replace(") {", ") donates (0 -> 0) {");
    check(&text, &[]);
    // The new value reads the old one elsewhere.
    let text = func(
        "%s: state f32[40]",
        "state f32[40], f32[40]",
        "%v = read %s\n%y = shift %v {dim = 0, by = 1, fill = 9}\n%d = neg %v\n\
         %n = assign %s, %y\nreturn %n, %d",
    )
    .replace(") {", ") donates (0 -> 0) {");
    check(&text, &[]);
}

#[test]
fn a_cache_is_read_before_it_grows() {
    let text = func(
        "%c: state f32[B, 30, 8], %x: f32[B, S, 8], %p: i32[B]",
        "f32[B, 30, 8], f32[B, 30, 8], state f32[B, 30, 8]",
        "%o = read %c\n%v, %n = cache_append %c, %x, %p\n%d = sub %v, %o\nreturn %o, %d, %n",
    )
    .replace(") {", ") donates (0 -> 2) {");
    check(&text, &[("B", 3), ("S", 9)]);
}

#[test]
fn cache_append() {
    for (width, dtype) in
        [(1, "f32"), (17, "f32"), (96, "f32"), (1, "bf16"), (17, "bf16"), (96, "bf16")]
    {
        let text = func(
            &format!("%c: state {dtype}[B, 30, {width}], %x: {dtype}[B, S, {width}], %p: i32[B]"),
            &format!("{dtype}[B, 30, {width}], state {dtype}[B, 30, {width}]"),
            "%v, %n = cache_append %c, %x, %p\nreturn %v, %n",
        )
        .replace(") {", ") donates (0 -> 1) {");
        let range = |_: usize, ty: &Type| match ty.dtype.is_int() {
            true => Range { low: 0.0, high: 20.0 },
            false => Range { low: -2.0, high: 2.0 },
        };
        check_with(&text, &[("B", 3), ("S", 9)], &range, harness::TIGHT);
        check_with(&text, &[("B", 3), ("S", 1)], &range, harness::TIGHT);
    }
}

#[test]
fn chains() {
    let swiglu = "%s = sigmoid %g\n%a = mul %g, %s\n%y = mul %a, %u\nreturn %y";
    for dtype in ["f32", "bf16"] {
        let x = format!("{dtype}[B, S, 96]");
        check(&func(&format!("%g: {x}, %u: {x}"), &x, swiglu), &[("B", 2), ("S", 33)]);
    }
    let grad = "%s = sigmoid %g\n%one = constant {value = 1, type = f32[B, S, 96]}\n\
        %a = mul %g, %s\n%du = mul %dy, %a\n%n = sub %one, %s\n%p = mul %g, %n\n\
        %q = add %one, %p\n%r = mul %s, %q\n%t = mul %dy, %u\n%dg = mul %t, %r\nreturn %dg, %du";
    let x = "f32[B, S, 96]";
    let params = format!("%g: {x}, %u: {x}, %dy: {x}");
    check_with(
        &func(&params, &format!("{x}, {x}"), grad),
        &[("B", 2), ("S", 33)],
        &floats(-2.0, 2.0),
        bounds(4e-6),
    );
    let residual = "%s = add %x, %y\n%n, %r = rms_norm %s, %g {eps = 1e-6}\nreturn %s, %n, %r";
    let params = format!("%x: {x}, %y: {x}, %g: f32[96]");
    check(&func(&params, &format!("{x}, {x}, f32[B, S]"), residual), &[("B", 2), ("S", 33)]);
    let router = "%s = sigmoid %x\n%b = broadcast %c {shape = [S, 16], dims = [1]}\n\
        %z = add %s, %b\n\
        %i = grouped_topk %z {k = 4, groups = 4, kept = 2, group_score = top2}\n\
        %w = take %s, %i\n%t = reduce_sum %w {dims = [1]}\n\
        %d = broadcast %t {shape = [S, 4], dims = [0]}\n%n = div %w, %d\nreturn %i, %n";
    check(&func("%x: f32[S, 16], %c: f32[16]", "i32[S, 4], f32[S, 4]", router), &[("S", 130)]);
    let softmax_grad = "%p = mul %y, %dy\n%s = reduce_sum %p {dims = [1]}\n\
        %b = broadcast %s {shape = [S, 257], dims = [0]}\n%d = sub %dy, %b\n%dx = mul %y, %d\n\
        return %dx";
    check(&func("%y: f32[S, 257], %dy: f32[S, 257]", "f32[S, 257]", softmax_grad), &[("S", 19)]);
}

#[test]
fn refusals_name_op_and_reason() {
    let text = func("%x: f32[4, 4]", "f32[4, 4]", "%y = matmul %x, %x\nreturn %y");
    let module = parse(&text);
    let dim = |d| harness::size(&module, d);
    let error = weft_lower::region::compile(&Cpu, &module, &module.funcs[0], "t", "t:1", &dim);
    let error = error.err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("matmul: it has a backend of its own"));
    let (codes, plain) = ("%x: e4m3<1x128, f32>[4, 128]", "f32[4, 128]");
    let text = func(codes, plain, "%y = dequantize %x {dtype = f32}\nreturn %y");
    let module = parse(&text);
    let error = weft_lower::region::compile(&Cpu, &module, &module.funcs[0], "t", "t:1", &dim);
    let error = error.err().map(|e| e.to_string());
    let why = "parameter: a quantized value in a region";
    assert_eq!(error.as_deref(), Some(why));
}

#[test]
fn random_regions() {
    let from: u64 = std::env::var("WEFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let n: u64 = std::env::var("WEFT_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    for seed in from..from + n {
        // The last line printed is the seed of a failure; `WEFT_SEED=n WEFT_CASES=1` runs it alone.
        println!("seed {seed}");
        let module = random::module(seed, 4 + seed as usize % 14);
        let sizes = sizes(&module, &[("B", 1 + seed % 5), ("S", 1 + seed % 9)]);
        let range = |_: usize, ty: &Type| harness::default_range(ty);
        let args = random_args(&module, FuncId(0), &sizes, seed, &range).unwrap();
        println!("{}", weft_ir::text::print(&module));
        harness::ON_PTX.set(seed % 3 == 0);
        check_on(&module, &sizes, &args, bounds(2e-5));
    }
}
