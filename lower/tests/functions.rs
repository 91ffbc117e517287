//! Whole functions on every machine's kernels, against the interpreter.

mod machines;

use weft_ir::module::Module;
use weft_ir::ty::DType;
use weft_lower::cache::Cache;
use weft_passes::{PIPELINE, PassCx, Sums, Train, run_pass};

use machines::{Draw, check, module};

const DRAW: Draw = Draw { low: -1.0, high: 1.0, ints: 3.0 };

/// One function `@f` on drawn arguments.
fn agrees(text: &str, sizes: &[(&str, u64)]) {
    check(&module(text), "f", sizes, DRAW, 1e-6);
}

#[test]
fn products_read_what_moved() {
    agrees(
        "dims { B <= 4, S <= 8 }
        func @f(%x: f32[B, S, 4, 6], %w: f32[10, 24], %y: f32[B, S, 4, 3])
            -> (f32[B, S, 10], f32[B, 4, 6, 3], f32[B, 4, 3, 6]) {
          %flat = reshape %x {shape = [B, S, 24]} : f32[B, S, 24]
          %wt = transpose %w {perm = [1, 0]} : f32[24, 10]
          %1 = matmul %flat, %wt : f32[B, S, 10]
          %xh = transpose %x {perm = [0, 2, 3, 1]} : f32[B, 4, 6, S]
          %yh = transpose %y {perm = [0, 2, 1, 3]} : f32[B, 4, S, 3]
          %2 = matmul %xh, %yh : f32[B, 4, 6, 3]
          %xt = transpose %x {perm = [0, 2, 1, 3]} : f32[B, 4, S, 6]
          %3 = matmul %yh, %xt {tx = true} : f32[B, 4, 3, 6]
          return %1, %2, %3
        }",
        &[("B", 3), ("S", 5)],
    );
}

#[test]
fn products_of_slices_and_of_what_no_stride_can_say() {
    agrees(
        "dims { S <= 8 }
        func @f(%x: f32[S, 4, 6], %w: f32[3, 5], %v: f32[8, 5])
            -> (f32[S, 4, 5], f32[4, S, 5], f32[S, 3, 5]) {
          %part = slice %x {dim = 2, start = 2, len = 3} : f32[S, 4, 3]
          %1 = matmul %part, %w : f32[S, 4, 5]
          %t = transpose %part {perm = [1, 0, 2]} : f32[4, S, 3]
          %2 = matmul %t, %w : f32[4, S, 5]
          %u = transpose %x {perm = [0, 2, 1]} : f32[S, 6, 4]
          %r = reshape %u {shape = [S, 3, 8]} : f32[S, 3, 8]
          %3 = matmul %r, %v : f32[S, 3, 5]
          return %1, %2, %3
        }",
        &[("S", 5)],
    );
}

#[test]
fn regions_take_in_movement_and_constants() {
    agrees(
        "dims { S <= 8 }
        func @f(%x: f32[S, 4], %y: f32[4, S]) -> (f32[S, 4], f32[S], f32[4, S]) {
          %two = constant {value = 2, type = f32[S, 4]} : f32[S, 4]
          %yt = transpose %y {perm = [1, 0]} : f32[S, 4]
          %1 = mul %x, %two : f32[S, 4]
          %2 = add %1, %yt : f32[S, 4]
          %3 = reduce_sum %yt {dims = [1]} : f32[S]
          %4 = transpose %2 {perm = [1, 0]} : f32[4, S]
          return %2, %3, %4
        }",
        &[("S", 5)],
    );
}

#[test]
fn a_repeat_carries_slices_and_stacks() {
    let text = "dims { S <= 8 }
        func @body(%c: f32[S, 3], %w: f32[3, 3], %g: f32[3]) -> (f32[S, 3], f32[S, 3]) {
          %1 = matmul %c, %w : f32[S, 3]
          %n, %r = rms_norm %1, %g {eps = 0.01} : f32[S, 3], f32[S]
          %2 = add %c, %n : f32[S, 3]
          return %2, %n
        }
        func @f(%c: f32[S, 3], %w: f32[4, 3, 3], %g: f32[3]) -> (f32[S, 3], f32[4, S, 3]) {
          %last, %all = repeat %c, %w, %g {func = @body, count = 4, carry = 1, xs = 1}
            : f32[S, 3], f32[4, S, 3]
          return %last, %all
        }";
    agrees(text, &[("S", 5)]);
    agrees(&text.replace("xs = 1}", "xs = 1, reverse = true}"), &[("S", 5)]);
}

/// Of two loops made one, the second begins where the first ends.
#[test]
fn stacks_run_either_way() {
    let text = "dims { S <= 8 }
        func @body(%c: f32[S, 3], %d: f32[S, 3], %w: f32[3, 3], %v: f32[3, 3])
            -> (f32[S, 3], f32[S, 3], f32[S, 3], f32[S, 3]) {
          %1 = matmul %c, %w : f32[S, 3]
          %2 = matmul %d, %v : f32[S, 3]
          %3 = add %1, %c : f32[S, 3]
          %4 = sub %2, %d : f32[S, 3]
          return %3, %4, %1, %2
        }
        func @f(%c: f32[S, 3], %d: f32[S, 3], %w: f32[4, 3, 3], %v: f32[4, 3, 3])
            -> (f32[S, 3], f32[S, 3], f32[4, S, 3], f32[4, S, 3]) {
          %x, %y, %xs, %ys = repeat %c, %d, %w, %v
            {func = @body, count = 4, carry = 2, xs = 2, back_xs = 1, back_ys = 1}
            : f32[S, 3], f32[S, 3], f32[4, S, 3], f32[4, S, 3]
          return %x, %y, %xs, %ys
        }";
    agrees(text, &[("S", 5)]);
    agrees(&text.replace("xs = 2, back", "xs = 2, reverse = true, back"), &[("S", 5)]);
}

/// Of codes of twelve bits two share three bytes.
#[test]
fn a_part_of_a_stack_begins_at_its_bits() {
    agrees(
        "func @body(%c: f32[128], %w: e5m6[1, 128], %s: ue8m0[1, 1]) -> (f32[128]) {
          %1 = convert %w {dtype = f32} : f32[1, 128]
          %2 = reshape %1 {shape = [128]} : f32[128]
          %3 = add %c, %2 : f32[128]
          return %3
        }
        func @f(%x: f32[5, 128], %c: f32[128]) -> (f32[128]) {
          %w, %s = encode %x {dtype = e5m6, group = [1, 128], scale = ue8m0}
            : e5m6[5, 128], ue8m0[5, 1]
          %ws = reshape %w {shape = [5, 1, 128]} : e5m6[5, 1, 128]
          %ss = reshape %s {shape = [5, 1, 1]} : ue8m0[5, 1, 1]
          %wp = slice %ws {dim = 0, start = 2, len = 3} : e5m6[3, 1, 128]
          %sp = slice %ss {dim = 0, start = 2, len = 3} : ue8m0[3, 1, 1]
          %last = repeat %c, %wp, %sp {func = @body, count = 3, carry = 1, xs = 2} : f32[128]
          return %last
        }",
        &[],
    );
}

/// Turns read some slices of longer stacks, and change those of a state.
#[test]
fn stacks_may_be_longer_than_the_turns() {
    let text = "func @body(%c: f32[3], %w: f32[3, 3], %v: f32[3, 3], %s: state f32[3])
            -> (f32[3], f32[3], state f32[3]) donates (3 -> 2) {
          %old = read %s : f32[3]
          %m = reshape %c {shape = [1, 3]} : f32[1, 3]
          %1 = matmul %m, %w : f32[1, 3]
          %2 = matmul %1, %v : f32[1, 3]
          %3 = reshape %2 {shape = [3]} : f32[3]
          %4 = add %3, %old : f32[3]
          %t = assign %s, %c : state f32[3]
          return %4, %3, %t
        }
        func @f(%c: f32[3], %w: f32[4, 3, 3], %s: state f32[5, 3])
            -> (f32[3], f32[2, 3], state f32[5, 3]) donates (2 -> 2) {
          %x, %xs, %t = repeat %c, %w, %w, %s
            {func = @body, count = 2, carry = 1, xs = 3, skip = [2, 1, 3]}
            : f32[3], f32[2, 3], state f32[5, 3]
          return %x, %xs, %t
        }";
    agrees(text, &[]);
    agrees(&text.replace("xs = 3, skip", "xs = 3, reverse = true, skip"), &[]);
}

/// What is left to do is found when it is done: some turns, all of them, none.
#[test]
fn a_loop_may_end_early() {
    let text = "func @body(%left: i32[1], %c: f32[3], %w: f32[3]) -> (i32[1], f32[3]) {
          %one = constant {value = 1, type = i32[1]} : i32[1]
          %next = sub %left, %one : i32[1]
          %d = mul %c, %w : f32[3]
          return %next, %d
        }
        func @f(%c: f32[3], %w: f32[3], %x: i32[1]) -> (i32[1], f32[3]) {
          %zero = constant {value = 0, type = i32[1]} : i32[1]
          %n = mul %x, %zero : i32[1]
          %two = constant {value = 2, type = i32[1]} : i32[1]
          %left = add %n, %two : i32[1]
          %m, %d = repeat %left, %c, %w {func = @body, count = 4, carry = 2, xs = 0, early = true}
            : i32[1], f32[3]
          return %m, %d
        }";
    for turns in ["value = 2", "value = 9", "value = 0"] {
        let m = module(&text.replace("value = 2", turns));
        let (f, sizes) = (m.find("f").expect("the entry"), Default::default());
        let args = machines::arguments(&m, f, &sizes, 1, DRAW);
        let expected = machines::interpret(&m, f, &args, &sizes);
        let (_, device, graph) = machines::cpu(&m, "f");
        let found = machines::run(device, &graph, &m, f, &args, &sizes);
        for (a, b) in found.iter().zip(&expected) {
            assert!(machines::distance(a, b) < 1e-6, "{turns}: {a:?}, {b:?}\n{graph}");
        }
    }
}

/// Two carried values change places every turn, a third is only handed on.
#[test]
fn carried_values_change_places() {
    agrees(
        "func @body(%a: f32[3], %b: f32[3], %c: f32[3]) -> (f32[3], f32[3], f32[3]) {
          %s = add %a, %c : f32[3]
          return %b, %s, %c
        }
        func @f(%a: f32[3], %b: f32[3], %c: f32[3]) -> (f32[3], f32[3], f32[3], f32[3]) {
          %x, %y, %z = repeat %a, %b, %c {func = @body, count = 5, carry = 3, xs = 0}
            : f32[3], f32[3], f32[3]
          %t = transpose %a {perm = [0]} : f32[3]
          return %x, %y, %z, %t
        }",
        &[],
    );
}

/// A carried value may not be overwritten while something still looks at the old one through a
/// view.
#[test]
fn the_old_value_lives_until_its_last_look() {
    agrees(
        "func @body(%c: f32[2, 2]) -> (f32[2, 2], f32[2, 2]) {
          %t = transpose %c {perm = [1, 0]} : f32[2, 2]
          %d = add %c, %c : f32[2, 2]
          %m = matmul %t, %d : f32[2, 2]
          return %d, %m
        }
        func @f(%c: f32[2, 2]) -> (f32[2, 2], f32[3, 2, 2]) {
          %x, %m = repeat %c {func = @body, count = 3, carry = 1, xs = 0} : f32[2, 2], f32[3, 2, 2]
          return %x, %m
        }",
        &[],
    );
}

#[test]
fn repeats_nest() {
    agrees(
        "func @inner(%c: f32[3], %x: f32[3]) -> (f32[3], f32[3]) {
          %1 = tanh %c : f32[3]
          %2 = add %1, %x : f32[3]
          return %2, %1
        }
        func @outer(%c: f32[3], %xs: f32[4, 3]) -> (f32[3], f32[4, 3]) {
          %1, %all = repeat %c, %xs {func = @inner, count = 4, carry = 1, xs = 1}
            : f32[3], f32[4, 3]
          return %1, %all
        }
        func @f(%c: f32[3], %xs: f32[2, 4, 3]) -> (f32[3], f32[2, 4, 3]) {
          %1, %all = repeat %c, %xs {func = @outer, count = 2, carry = 1, xs = 1, reverse = true}
            : f32[3], f32[2, 4, 3]
          return %1, %all
        }",
        &[],
    );
}

#[test]
fn states_change_in_place() {
    agrees(
        "state @s : f32[2, 3] at \"s\" init 0
        func @f(%s: state f32[2, 3], %x: f32[2, 3]) -> (old: f32[3, 2], s: state f32[2, 3])
            donates (0 -> 1) {
          %v = read %s : f32[2, 3]
          %t = transpose %v {perm = [1, 0]} : f32[3, 2]
          %y = mul %v, %x : f32[2, 3]
          %new = assign %s, %y : state f32[2, 3]
          %z = neg %t : f32[3, 2]
          return %z, %new
        }",
        &[],
    );
}

#[test]
fn slices_of_states_change_in_a_loop() {
    agrees(
        "func @body(%s: state f32[3], %x: f32[3]) -> (state f32[3], f32[3]) donates (0 -> 0) {
          %v = read %s : f32[3]
          %y = add %v, %x : f32[3]
          %n = neg %v : f32[3]
          %new = assign %s, %y : state f32[3]
          return %new, %n
        }
        func @f(%s: state f32[4, 3], %x: f32[3]) -> (s: state f32[4, 3], n: f32[4, 3])
            donates (0 -> 0) {
          %1, %n = repeat %s, %x {func = @body, count = 4, carry = 0, xs = 1}
            : state f32[4, 3], f32[4, 3]
          return %1, %n
        }",
        &[],
    );
}

#[test]
fn results_may_be_parameters_constants_and_one_value_twice() {
    agrees(
        "func @f(%x: f32[2, 3]) -> (f32[2, 3], f32[3, 2], f32[6], f32[4], f32[2, 3], f32[2, 3]) {
          %t = transpose %x {perm = [1, 0]} : f32[3, 2]
          %r = reshape %x {shape = [6]} : f32[6]
          %c = constant {value = 3, type = f32[4]} : f32[4]
          %e = exp %x : f32[2, 3]
          return %x, %t, %r, %c, %e, %e
        }",
        &[],
    );
}

#[test]
fn calls_run_where_they_stand() {
    agrees(
        "func @g(%x: f32[2, 3], %y: f32[3, 2]) -> (f32[2, 3], f32[2, 2]) {
          %1 = matmul %x, %y : f32[2, 2]
          return %x, %1
        }
        func @f(%x: f32[2, 3]) -> (f32[2, 3], f32[2, 2]) {
          %t = transpose %x {perm = [1, 0]} : f32[3, 2]
          %1, %2 = call %x, %t {func = @g} : f32[2, 3], f32[2, 2]
          %3 = neg %1 : f32[2, 3]
          return %3, %2
        }",
        &[],
    );
}

#[test]
fn experts() {
    agrees(
        "dims { S <= 8, R = ragged(3) 2*S }
        func @f(%x: f32[S, 4], %ids: i32[S, 2], %w: f32[3, 5, 4], %p: f32[S, 2], %dy: f32[S, 5])
            -> (f32[S, 5], f32[3, 5, 4], f32[2, 5, 4]) {
          %offsets, %order = route %ids {experts = 3, rows = R} : i32[4], i32[R]
          %rows = dispatch %x, %order {active = 2} : f32[R, 4]
          %z = grouped_matmul %rows, %w, %offsets {ty = true} : f32[R, 5]
          %y = combine %z, %order, %p {tokens = [S], active = 2} : f32[S, 5]
          %dz = dispatch %dy, %order, %p {active = 2} : f32[R, 5]
          %dw = grouped_outer %dz, %rows, %offsets : f32[3, 5, 4]
          %first = slice %offsets {dim = 0, start = 0, len = 3} : i32[3]
          %of_two = grouped_outer %dz, %rows, %first : f32[2, 5, 4]
          return %y, %dw, %of_two
        }",
        &[("S", 5)],
    );
}

#[test]
fn what_has_no_kernel_is_refused_with_its_place() {
    let m = module(
        "func @f(%x: e4m3[2, 3], %y: e4m3[3, 2]) -> (e4m3[2, 2]) {
          %z = matmul %x, %y : e4m3[2, 2]  # a.model:7:3
          return %z
        }",
    );
    let e = weft_backend_cpu::compile::compile(
        &m,
        &["f"],
        &weft_backend_cpu::compile::Options::native(1),
    );
    let text = e.unwrap_err().to_string();
    assert_eq!(text, "a.model:7:3: `matmul` in @f: no kernel multiplies matrices of e4m3");
}

/// Two layers whose bias follows their load, a cross entropy that leaves out targets after token 0.
const MODEL: &str = r#"
dims { B <= 8, S <= 8 }
weight @emb : f32[5, 3] at "emb" init drawn
weight @w : f32[2, 3, 3] at "layers.{i}.w" from [0] init drawn
weight @g : f32[3] at "g" init 1
state @bias : f32[2, 3] at "layers.{i}.bias" from [0] init 0
schedule @gamma init 0.5
schedule @alpha init 0.1

func @layer(%h: f32[B, S, 3], %w: f32[3, 3], %bias: f32[3], %alpha: f32[])
    -> (f32[B, S, 3], f32[3], f32[]) {
  %1 = matmul %h, %w : f32[B, S, 3]
  %2 = broadcast %bias {shape = [B, S, 3], dims = [2]} : f32[B, S, 3]
  %3 = add %1, %2 : f32[B, S, 3]
  %4 = tanh %3 : f32[B, S, 3]
  %5 = add %h, %4 : f32[B, S, 3]
  %6 = stop_gradient %4 : f32[B, S, 3]
  %7 = reduce_sum %6 {dims = [0, 1]} : f32[3]
  %8 = mul %4, %4 : f32[B, S, 3]
  %9 = reduce_sum %8 {dims = [0, 1, 2]} : f32[]
  %11 = mul %alpha, %9 : f32[]
  return %5, %7, %11
}

func @loss(%tokens: i32[B, S], %emb: f32[5, 3], %w: f32[2, 3, 3], %g: f32[3], %bias: f32[2, 3],
    %alpha: f32[])
    -> (objective: f32[], metric.loss: f32[], logits: f32[B, S, 5], emit.layers.load: f32[2, 3]) {
  %h = gather %emb, %tokens : f32[B, S, 3]
  %1, %load, %balance = repeat %h, %w, %bias, %alpha {func = @layer, count = 2, carry = 1, xs = 2}
    : f32[B, S, 3], f32[2, 3], f32[2]
  %y, %r = rms_norm %1, %g {eps = 0.001} : f32[B, S, 3], f32[B, S]
  %2 = transpose %emb {perm = [1, 0]} : f32[3, 5]
  %logits = matmul %y, %2 : f32[B, S, 5]
  %next = shift %tokens {dim = 1, by = 1, fill = -1} : i32[B, S]
  %zero = constant {value = 0, type = i32[B, S]} : i32[B, S]
  %none = constant {value = -1, type = i32[B, S]} : i32[B, S]
  %skip = eq %tokens, %zero : bool[B, S]
  %t = select %skip, %none, %next : i32[B, S]
  %each, %lse = cross_entropy %logits, %t : f32[B, S], f32[B, S]
  %3 = reduce_sum %each {dims = [0, 1]} : f32[]
  %4 = le %zero, %t : bool[B, S]
  %5 = convert %4 {dtype = f32} : f32[B, S]
  %6 = reduce_sum %5 {dims = [0, 1]} : f32[]
  %7 = batch_sum %6 : f32[]
  %8 = div %3, %7 : f32[]
  %9 = reduce_sum %balance {dims = [0]} : f32[]
  %10 = add %8, %9 : f32[]
  return %10, %8, %logits, %load
}

func @update(%"emit.layers.load": f32[2, 3], %bias: f32[2, 3], %gamma: f32[])
    -> (bias: f32[2, 3]) {
  %1 = sign %"emit.layers.load" : f32[2, 3]
  %2 = broadcast %gamma {shape = [2, 3], dims = []} : f32[2, 3]
  %3 = mul %1, %2 : f32[2, 3]
  %4 = sub %bias, %3 : f32[2, 3]
  return %4
}
"#;

fn planned(cx: &PassCx) -> Module {
    let mut m = module(MODEL);
    for (i, pass) in PIPELINE.iter().enumerate() {
        if let Err(e) = run_pass(i + 1, pass, &mut m, cx) {
            panic!("{e}");
        }
    }
    m
}

const POSITIVE: Draw = Draw { low: 0.1, high: 0.9, ints: 5.0 };

#[test]
fn a_loss_and_its_gradients() {
    let m = planned(&PassCx { gradients: true, ..PassCx::default() });
    for entry in ["loss", "grad"] {
        check(&m, entry, &[("B", 3), ("S", 5)], POSITIVE, 1e-5);
    }
}

#[test]
fn training_steps() {
    for micro_batches in [1, 3, 4] {
        let (beta1, beta2, eps, decay, clip) = (0.9, 0.95, 1e-8, 0.1, Some(0.05));
        let train = Some(Train {
            micro_batches,
            sums: Sums::Tree,
            beta1,
            beta2,
            eps,
            decay,
            clip,
            moments: DType::F32,
        });
        let m = planned(&PassCx { train, ..PassCx::default() });
        check(&m, "train_step", &[("B", 3), ("S", 5)], POSITIVE, 1e-5);
    }
}

#[test]
fn the_same_module_gives_the_same_bytes() {
    let m = planned(&PassCx { gradients: true, ..PassCx::default() });
    let options = |threads| weft_backend_cpu::compile::Options::native(threads);
    let bytes = |threads| {
        weft_backend_cpu::compile::compile(&m, &["loss", "grad"], &options(threads))
            .unwrap()
            .to_bytes()
    };
    assert_eq!(bytes(1), bytes(2));
}

/// A cached graph is the compiled one; a damaged file is compiled again.
#[test]
fn graphs_are_found_again() {
    use weft_backend_cpu::compile::{Options, compile_cached_in, key};
    let m = planned(&PassCx::default());
    let folder = tempfile::tempdir().unwrap();
    let options = Options::native(2);
    let all = Cache { folder: folder.path().to_owned(), limit_bytes: u64::MAX };
    let cached = || compile_cached_in(Some(&all), &m, &["loss"], &options, &mut |_| {}).unwrap();
    let first = cached();
    let second = cached();
    assert_eq!((first.hit, second.hit), (false, true));
    assert!(first.graph == second.graph);
    let file = folder.path().join(format!("{}.weft", key(&m, &["loss"], &options)));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(!cached().hit);
    assert!(cached().hit);
    // Another graph finds the kernels, whole ones as they are and damaged ones not at all.
    let kernels: Vec<_> = folder.path().join("kernels").read_dir().unwrap().flatten().collect();
    assert_eq!(kernels.len(), first.graph.kernels.len());
    let mut damaged = std::fs::read(kernels[0].path()).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(kernels[0].path(), damaged).unwrap();
    std::fs::remove_file(&file).unwrap();
    let again = cached();
    assert!(!again.hit && again.graph == first.graph);
    let other = Options { command: "another".into(), ..options.clone() };
    assert_ne!(key(&m, &["loss"], &options), key(&m, &["loss"], &other));
    assert_ne!(key(&m, &["loss"], &options), key(&m, &["loss", "update"], &options));
}

/// What is used stays, what is not goes when there is no room; files that are no graphs stay.
#[test]
fn graphs_that_are_not_used_make_room() {
    use std::time::{Duration, SystemTime};
    use weft_backend_cpu::compile::{Options, compile_cached_in};
    let m = planned(&PassCx::default());
    let folder = tempfile::tempdir().unwrap();
    let of = |source: &str, limit_bytes: u64| {
        let options = Options { source: source.into(), ..Options::native(2) };
        let cache = Cache { folder: folder.path().to_owned(), limit_bytes };
        compile_cached_in(Some(&cache), &m, &["loss"], &options, &mut |_| {}).unwrap()
    };
    let mut sizes = vec![];
    for (age, source) in [(30, "first"), (20, "second")] {
        assert!(!of(source, u64::MAX).hit);
        let new = std::fs::read_dir(folder.path()).unwrap().flatten().find(|f| {
            let age = f.metadata().unwrap().modified().unwrap().elapsed().unwrap_or_default();
            age < Duration::from_secs(10) && f.path().is_file()
        });
        let path = new.unwrap().path();
        sizes.push(std::fs::metadata(&path).unwrap().len());
        let then = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::open(&path).unwrap().set_modified(then).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert!(of("first", u64::MAX).hit);
    let kernels = folder.path().join("kernels").read_dir().unwrap().flatten();
    let kernels_bytes: u64 = kernels.map(|f| f.metadata().unwrap().len()).sum();
    // Room for two beside the kernels, which all have: the first was used since, so the second
    // goes.
    assert!(!of("third", kernels_bytes + 2 * sizes[0] + sizes[1] / 2).hit);
    assert!(of("first", u64::MAX).hit);
    assert!(of("third", u64::MAX).hit);
    assert!(!of("second", u64::MAX).hit);
    assert!(folder.path().join("notes.txt").exists());
}

/// Clipped gradients go straight into the optimizer, which the states' storage does not outlive.
#[test]
fn what_only_a_state_op_reads_is_made_there() {
    let text =
        "func @f(%w: state f32[4], %m: state f32[4], %v: state f32[4], %g: f32[4], %s: f32[],
            %lr: f32[], %t: f32[])
            -> (w: state f32[4], m: state f32[4], v: state f32[4])
            donates (0 -> 0, 1 -> 1, 2 -> 2) {
          %wide = broadcast %s {shape = [4], dims = []} : f32[4]
          %clipped = mul %g, %wide : f32[4]
          %1, %2, %3 = adamw %w, %m, %v, %clipped, %lr, %t
            {beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1}
            : state f32[4], state f32[4], state f32[4]
          return %1, %2, %3
        }";
    let m = module(text);
    let graph = machines::graph(&m, &["f"]);
    assert_eq!(graph.entries[0].steps.len(), 1, "{graph}");
    check(&m, "f", &[], POSITIVE, 1e-6);
}

/// Sums down columns of what needs sums along each row first, alone and with the row sums.
#[test]
fn column_sums_of_row_sums() {
    for (results, types, names) in
        [("%4, %1", "f32[24], f32[S]", "%1, %2"), ("%4", "f32[24]", "%1")]
    {
        agrees(
            &format!(
                "dims {{ S <= 80 }}
                func @both(%x0: f32[S, 24], %w0: f32[24]) -> ({types}) {{
                  %wide = broadcast %w0 {{shape = [S, 24], dims = [1]}} : f32[S, 24]
                  %0 = mul %wide, %x0 : f32[S, 24]
                  %1 = reduce_sum %0 {{dims = [1]}} : f32[S]
                  %2 = broadcast %1 {{shape = [S, 24], dims = [0]}} : f32[S, 24]
                  %3 = mul %2, %x0 : f32[S, 24]
                  %4 = reduce_sum %3 {{dims = [0]}} : f32[24]
                  return {results}
                }}
                func @f(%x: f32[S, 24], %w: f32[24]) -> ({types}) {{
                  {names} = fused %x, %w {{func = @both}} : {types}
                  return {names}
                }}"
            ),
            &[("S", 77)],
        );
    }
}

/// Where rows are long enough, whole and begin where they may, each thread of a GPU reads and
/// writes 16 bytes of neighbours at once.
#[test]
fn a_thread_takes_sixteen_bytes_at_once() {
    for (dtype, n, start, is_wide) in [
        ("f32", 256, 0, true),
        ("bf16", 512, 0, true),
        ("f32", 258, 0, false),
        ("f32", 256, 1, false),
    ] {
        let wide = n + start;
        let m = module(&format!(
            "func @f(%x: {dtype}[3, {wide}]) -> (y: {dtype}[3, {n}], z: {dtype}[3]) {{
              %0 = slice %x {{dim = 1, start = {start}, len = {n}}} : {dtype}[3, {n}]
              %y = neg %0 : {dtype}[3, {n}]
              %z = reduce_max %0 {{dims = [1]}} : {dtype}[3]
              return %y, %z
            }}"
        ));
        check(&m, "f", &[], POSITIVE, 1e-5);
        let graph = machines::ptx_graph(&m, &["f"]);
        let text: Vec<_> = graph.objects.iter().map(|o| String::from_utf8_lossy(o)).collect();
        let lines = || text.iter().flat_map(|t| t.lines());
        let loads = lines().filter(|l| l.contains("ld.global") && l.contains(".v4.")).count();
        let stores = lines().any(|l| l.contains("st.global") && l.contains(".v4."));
        assert_eq!(loads >= 2, is_wide, "{dtype} {n} from {start}: {loads} loads");
        // What is written begins where a buffer does.
        assert_eq!(stores, n % 4 == 0, "{dtype} {n} from {start}");
    }
}
