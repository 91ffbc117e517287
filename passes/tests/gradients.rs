//! The derivative of every op, of calls and of repeats, against central differences in f64.

mod support;

use support::{DRAW, Draw, check, check_sized};

fn unary(op: &str) {
    check(&format!(
        "func @f(%x: f32[2, 3]) -> (f32[2, 3]) {{ %y = {op} %x : f32[2, 3] return %y }}"
    ));
}

fn binary(op: &str) {
    check(&format!(
        "func @f(%x: f32[5], %y: f32[5]) -> (f32[5]) {{ %z = {op} %x, %y : f32[5] return %z }}"
    ));
}

#[test]
fn unary_ops() {
    for op in [
        "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sigmoid", "tanh", "sin", "cos", "erf",
        "softmax",
    ] {
        unary(op);
    }
}

#[test]
fn binary_ops() {
    for op in ["add", "sub", "mul", "div", "max", "min"] {
        binary(op);
    }
}

#[test]
fn abs_of_negative_numbers() {
    check_sized(
        "func @f(%x: f32[6]) -> (f32[6]) { %y = abs %x : f32[6] return %y }",
        &[],
        Draw { low: -1.0, high: 1.0, ints: 2.0 },
    );
}

#[test]
fn select_and_convert() {
    check(
        "func @f(%c: bool[4], %x: f32[4], %y: f32[4]) -> (f32[4]) {
           %1 = select %c, %x, %y : f32[4]
           %2 = convert %1 {dtype = f32} : f32[4]
           return %2 }",
    );
}

#[test]
fn blocked_ops_stop() {
    check(
        "func @f(%x: f32[4]) -> (f32[4]) {
           %1 = stop_gradient %x : f32[4]
           %2 = mul %x, %x : f32[4]
           %3 = floor %x : f32[4]
           %4 = add %2, %3 : f32[4]
           %5 = sign %x : f32[4]
           %6 = mul %4, %5 : f32[4]
           return %6 }",
    );
}

#[test]
fn movement() {
    check(
        "func @f(%x: f32[2, 3, 4]) -> (f32[4, 6], f32[4, 3, 2], f32[2, 2, 4], f32[2, 6, 4], f32[2, 3, 4]) {
           %1 = reshape %x {shape = [4, 6]} : f32[4, 6]
           %2 = transpose %x {perm = [2, 1, 0]} : f32[4, 3, 2]
           %3 = slice %x {dim = 1, start = 1, len = 2} : f32[2, 2, 4]
           %4 = pad %x {dim = 1, low = 1, high = 2} : f32[2, 6, 4]
           %5 = shift %x {dim = 1, by = 1, fill = 3} : f32[2, 3, 4]
           return %1, %2, %3, %4, %5 }",
    );
    check(
        "func @f(%x: f32[2, 3, 4]) -> (f32[4, 2, 3], f32[2, 3, 4]) {
           %1 = transpose %x {perm = [2, 0, 1]} : f32[4, 2, 3]
           %2 = shift %x {dim = 2, by = -2, fill = 0} : f32[2, 3, 4]
           return %1, %2 }",
    );
}

#[test]
fn broadcast_sums() {
    check(
        "func @f(%x: f32[3], %y: f32[1, 4], %z: f32[]) -> (f32[2, 3], f32[2, 3, 4], f32[2]) {
           %1 = broadcast %x {shape = [2, 3], dims = [1]} : f32[2, 3]
           %2 = broadcast %y {shape = [2, 3, 4], dims = [1, 2]} : f32[2, 3, 4]
           %3 = broadcast %z {shape = [2], dims = []} : f32[2]
           return %1, %2, %3 }",
    );
}

#[test]
fn concat_of_fixed_and_symbolic_dims() {
    check(
        "func @f(%x: f32[2, 3], %y: f32[2, 1]) -> (f32[2, 4]) {
           %1 = concat %x, %y {dim = 1} : f32[2, 4]
           return %1 }",
    );
    check_sized(
        "dims { S <= 8 }
         func @f(%x: f32[2, 2*S], %y: f32[2, S]) -> (f32[2, 3*S]) {
           %1 = concat %x, %y {dim = 1} : f32[2, 3*S]
           return %1 }",
        &[("S", 3)],
        DRAW,
    );
}

#[test]
fn reduce_sum() {
    check(
        "func @f(%x: f32[2, 3, 4]) -> (f32[3], f32[2, 3]) {
           %1 = reduce_sum %x {dims = [0, 2]} : f32[3]
           %2 = reduce_sum %x {dims = [2]} : f32[2, 3]
           return %1, %2 }",
    );
}

#[test]
fn reduce_max_and_batch_sum_block() {
    check(
        "func @f(%x: f32[2, 3]) -> (f32[2]) {
           %s = stop_gradient %x : f32[2, 3]
           %1 = reduce_sum %x {dims = [1]} : f32[2]
           %2 = reduce_max %s {dims = [1]} : f32[2]
           %n = constant {value = 3, type = f32[2]} : f32[2]
           %3 = batch_sum %n : f32[2]
           %4 = div %1, %3 : f32[2]
           return %4 }",
    );
}

#[test]
fn matmul_in_all_forms() {
    for (tx, x) in [(false, "3, 4"), (true, "4, 3")] {
        for (ty, y) in [(false, "4, 5"), (true, "5, 4")] {
            let flags = format!("{{tx = {tx}, ty = {ty}}}");
            for (bx, by) in
                [("", ""), ("2, ", "2, "), ("2, ", ""), ("2, 2, ", "2, 2, "), ("2, 2, ", "")]
            {
                check(&format!(
                    "func @f(%x: f32[{bx}{x}], %y: f32[{by}{y}]) -> (f32[{bx}3, 5]) {{
                       %z = matmul %x, %y {flags} : f32[{bx}3, 5]
                       return %z }}"
                ));
            }
        }
    }
}

#[test]
fn grouped_products() {
    for (ty, w) in [(false, "4, 2, 4"), (true, "4, 4, 2")] {
        check(&format!(
            "func @f(%x: f32[6, 2], %w: f32[{w}], %ids: i32[3, 2]) -> (f32[6, 4]) {{
               %off, %order = route %ids {{experts = 4, rows = 6}} : i32[5], i32[6]
               %z = grouped_matmul %x, %w, %off {{ty = {ty}}} : f32[6, 4]
               return %z }}"
        ));
    }
    check(
        "func @f(%x: f32[6, 2], %y: f32[6, 3], %ids: i32[3, 2]) -> (f32[4, 2, 3]) {
           %off, %order = route %ids {experts = 4, rows = 6} : i32[5], i32[6]
           %z = grouped_outer %x, %y, %off : f32[4, 2, 3]
           return %z }",
    );
}

#[test]
fn gathers_and_their_reverse() {
    check(
        "func @f(%t: f32[5, 3], %ids: i32[2, 3], %x: f32[2, 3, 4]) -> (f32[2, 3, 3], f32[6, 4]) {
           %1 = gather %t, %ids : f32[2, 3, 3]
           %2 = scatter_add %x, %ids {rows = 6} : f32[6, 4]
           return %1, %2 }",
    );
    check(
        "func @f(%t: f32[2, 4], %ids: i32[2, 3], %x: f32[2, 3]) -> (f32[2, 3], f32[2, 5]) {
           %1 = take %t, %ids : f32[2, 3]
           %2 = put %x, %ids {size = 5} : f32[2, 5]
           return %1, %2 }",
    );
}

#[test]
fn tokens_to_experts_and_back() {
    check(
        "func @f(%x: f32[2, 2, 3], %w: f32[2, 2, 2], %ids: i32[2, 2, 2]) -> (f32[8, 3], f32[8, 3]) {
           %off, %order = route %ids {experts = 4, rows = 8} : i32[5], i32[8]
           %1 = dispatch %x, %order {active = 2} : f32[8, 3]
           %2 = dispatch %x, %order, %w {active = 2} : f32[8, 3]
           return %1, %2 }",
    );
    check(
        "func @f(%r: f32[8, 3], %w: f32[2, 2, 2], %ids: i32[2, 2, 2]) -> (f32[2, 2, 3], f32[2, 2, 3]) {
           %off, %order = route %ids {experts = 4, rows = 8} : i32[5], i32[8]
           %1 = combine %r, %order {tokens = [2, 2], active = 2} : f32[2, 2, 3]
           %2 = combine %r, %order, %w {tokens = [2, 2], active = 2} : f32[2, 2, 3]
           return %1, %2 }",
    );
    check(
        "func @f(%r: f32[8, 3], %dy: f32[2, 2, 3], %ids: i32[2, 2, 2]) -> (f32[2, 2, 2]) {
           %off, %order = route %ids {experts = 4, rows = 8} : i32[5], i32[8]
           %1 = combine_dot %r, %order, %dy {active = 2} : f32[2, 2, 2]
           return %1 }",
    );
}

#[test]
fn rms_norm_and_its_factor() {
    check(
        "func @f(%x: f32[2, 3, 4], %g: f32[4]) -> (f32[2, 3, 4], f32[2, 3]) {
           %y, %r = rms_norm %x, %g {eps = 0.01} : f32[2, 3, 4], f32[2, 3]
           return %y, %r }",
    );
    check(
        "func @f(%x: f32[4], %g: f32[4]) -> (f32[4]) {
           %y, %r = rms_norm %x, %g {eps = 0.01} : f32[4], f32[]
           return %y }",
    );
}

#[test]
fn rotary_both_ways() {
    for flags in ["", ", inverse = true"] {
        for pairs in ["true", "false"] {
            check(&format!(
                "func @f(%x: f32[2, 3, 2, 4], %p: i32[2, 3], %fixed_freq: f32[2]) -> (f32[2, 3, 2, 4]) {{
                   %y = rotary %x, %p, %fixed_freq {{interleaved = {pairs}{flags}}} : f32[2, 3, 2, 4]
                   return %y }}"
            ));
        }
    }
}

#[test]
fn attention_in_parts_with_masks() {
    check(
        "func @f(%q: f32[2, 3, 2, 4], %k: f32[2, 3, 2, 4], %v: f32[2, 3, 2, 5]) -> (f32[2, 3, 2, 5]) {
           %o, %l = attention %q, %k, %v {parts = 1, scale = 0.5, causal = true} : f32[2, 3, 2, 5], f32[2, 2, 3]
           return %o }",
    );
    check_sized(
        "func @f(%q: f32[2, 3, 4, 2], %p: f32[2, 3, 4, 3], %k: f32[2, 3, 2, 2], %m: f32[2, 3, 1, 3],
                 %v: f32[2, 3, 2, 2], %s: i32[2, 3]) -> (f32[2, 3, 4, 2]) {
           %o, %l = attention %q, %p, %k, %m, %v, %s, %s {parts = 2, scale = 0.7, causal = true, segments = true}
             : f32[2, 3, 4, 2], f32[2, 4, 3]
           return %o }",
        &[],
        Draw { ints: 2.0, ..DRAW },
    );
}

#[test]
fn cross_entropy_and_its_log_sum() {
    check(
        "func @f(%x: f32[2, 3, 5], %t: i32[2, 3]) -> (f32[2, 3], f32[2, 3]) {
           %one = constant {value = 1, type = i32[2, 3]} : i32[2, 3]
           %u = sub %t, %one : i32[2, 3]
           %l, %s = cross_entropy %x, %u : f32[2, 3], f32[2, 3]
           return %l, %s }",
    );
}

#[test]
fn a_call_within_a_call() {
    check(
        "func @g(%x: f32[3], %w: f32[3]) -> (f32[3], f32[3]) {
           %1 = mul %x, %w : f32[3]
           %2 = tanh %1 : f32[3]
           %3 = exp %x : f32[3]
           return %2, %3 }
         func @f(%x: f32[3], %w: f32[3]) -> (f32[3]) {
           %1, %2 = call %x, %w {func = @g} : f32[3], f32[3]
           %3, %4 = call %1, %w {func = @g} : f32[3], f32[3]
           %5 = mul %3, %2 : f32[3]
           return %5 }",
    );
}

/// A carried value, an integer carried along, a stack that is read, one that is written, and a
/// shared value.
const LAYER: &str = "func @layer(%h: f32[2, 3], %n: i32[2], %w: f32[3, 3], %b: f32[3]) -> (f32[2, 3], i32[2], f32[2]) {
   %1 = matmul %h, %w : f32[2, 3]
   %2 = broadcast %b {shape = [2, 3], dims = [1]} : f32[2, 3]
   %3 = add %1, %2 : f32[2, 3]
   %4 = tanh %3 : f32[2, 3]
   %5 = add %h, %4 : f32[2, 3]
   %6 = add %n, %n : i32[2]
   %7 = convert %6 {dtype = f32} : f32[2]
   %8 = reduce_sum %4 {dims = [1]} : f32[2]
   %9 = mul %7, %8 : f32[2]
   return %5, %6, %9 }";

#[test]
fn repeat_with_carried_stacked_and_shared_values() {
    for reverse in ["", ", reverse = true"] {
        check(&format!(
            "{LAYER}
             func @f(%h: f32[2, 3], %n: i32[2], %w: f32[4, 3, 3], %b: f32[3]) -> (f32[2, 3], f32[4, 2]) {{
               %1, %2, %3 = repeat %h, %n, %w, %b {{func = @layer, count = 4, carry = 2, xs = 1{reverse}}}
                 : f32[2, 3], i32[2], f32[4, 2]
               return %1, %3 }}"
        ));
    }
}

#[test]
fn repeat_within_repeat() {
    check(&format!(
        "{LAYER}
         func @stage(%h: f32[2, 3], %n: i32[2], %w: f32[2, 3, 3], %b: f32[3]) -> (f32[2, 3], f32[2, 2]) {{
           %1, %2, %3 = repeat %h, %n, %w, %b {{func = @layer, count = 2, carry = 2, xs = 1}}
             : f32[2, 3], i32[2], f32[2, 2]
           return %1, %3 }}
         func @f(%h: f32[2, 3], %n: i32[2], %w: f32[3, 2, 3, 3], %b: f32[3], %ns: i32[3, 2]) -> (f32[2, 3], f32[3, 2, 2]) {{
           %1, %2 = repeat %h, %ns, %w, %b {{func = @stage, count = 3, carry = 1, xs = 2}}
             : f32[2, 3], f32[3, 2, 2]
           return %1, %2 }}"
    ));
}

#[test]
fn only_the_stacked_results_of_a_repeat_count() {
    check(&format!(
        "{LAYER}
         func @f(%h: f32[2, 3], %n: i32[2], %w: f32[3, 3, 3], %b: f32[3]) -> (f32[3, 2]) {{
           %1, %2, %3 = repeat %h, %n, %w, %b {{func = @layer, count = 3, carry = 2, xs = 1}}
             : f32[2, 3], i32[2], f32[3, 2]
           return %3 }}"
    ));
}

#[test]
fn tied_weights_sum() {
    check(
        "func @g(%h: f32[2, 3], %w: f32[5, 3]) -> (f32[2, 5]) {
           %1 = matmul %h, %w {ty = true} : f32[2, 5]
           return %1 }
         func @f(%w: f32[5, 3], %ids: i32[2]) -> (f32[2, 5]) {
           %1 = gather %w, %ids : f32[2, 3]
           %2 = tanh %1 : f32[2, 3]
           %3 = call %2, %w {func = @g} : f32[2, 5]
           %4 = transpose %w {perm = [1, 0]} : f32[3, 5]
           %5 = matmul %2, %4 : f32[2, 5]
           %6 = mul %3, %5 : f32[2, 5]
           return %6 }",
    );
}

#[test]
fn a_function_used_by_call_and_repeat() {
    check(&format!(
        "{LAYER}
         func @f(%h: f32[2, 3], %n: i32[2], %w: f32[3, 3, 3], %b: f32[3], %v: f32[3, 3]) -> (f32[2, 3], f32[2]) {{
           %1, %2, %3 = repeat %h, %n, %w, %b {{func = @layer, count = 3, carry = 2, xs = 1}}
             : f32[2, 3], i32[2], f32[3, 2]
           %4, %5, %6 = call %1, %2, %v, %b {{func = @layer}} : f32[2, 3], i32[2], f32[2]
           return %4, %6 }}"
    ));
}

#[test]
fn an_unused_weight_has_gradient_zero() {
    let mut m = support::module(
        "func @loss(%x: f32[3], %w: f32[3]) -> (objective: f32[]) {
           %1 = reduce_sum %x {dims = [0]} : f32[]
           return %1 }",
    );
    let loss = m.find("loss").unwrap();
    let cx = weft_passes::PassCx::default();
    let halves = weft_passes::autodiff::differentiate(&mut m, loss, &[0, 1], 0, &cx).unwrap();
    let grad = weft_passes::autodiff::grad_entry(&mut m, loss, &halves, 0).unwrap();
    support::verify(&m);
    let args = support::arguments(&m, grad, &Default::default(), 1, DRAW);
    let results = support::run(&m, grad, &args, &Default::default());
    assert_eq!(results[1].numbers(), [1.0; 3]);
    assert_eq!(results[2].numbers(), [0.0; 3]);
}
