//! Ranks that divide products compute what one computes: the interpreter runs both.

mod support;

use std::collections::BTreeMap;

use support::ranks::{cut_for, part};
use support::{Draw, TRAIN, apply, arguments, distance, module};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_passes::tensor::explain;
use weft_passes::{Mesh, PIPELINE, PassCx, Save, Train};

/// A table of rows, two layers (attention over a shared part of each key, with a norm of each
/// head's queries; experts beside a shared one), and a loss over the vocabulary.
const MODEL: &str = r#"
dims { R = ragged(4) 16 }
weight @embed : f32[12, 8] at "embed" init drawn
weight @qn : f32[2, 8] at "layers.{i}.qn" from [0] init 1
weight @q : f32[2, 24, 8] at "layers.{i}.q" from [0] init drawn
weight @kv : f32[2, 8, 8] at "layers.{i}.kv" from [0] init drawn
weight @kr : f32[2, 2, 8] at "layers.{i}.kr" from [0] init drawn
weight @head_gain : f32[2, 6] at "layers.{i}.head_gain" from [0] init 1
weight @o : f32[2, 8, 8] at "layers.{i}.o" from [0] init drawn
weight @router : f32[2, 4, 8] at "layers.{i}.router" from [0] init drawn
weight @up : f32[2, 4, 4, 8] at "layers.{i}.experts.{j}.up" from [0, 0] init drawn
weight @down : f32[2, 4, 8, 4] at "layers.{i}.experts.{j}.down" from [0, 0] init drawn
weight @all_up : f32[2, 4, 8] at "layers.{i}.all_up" from [0] init drawn
weight @all_down : f32[2, 8, 4] at "layers.{i}.all_down" from [0] init drawn
weight @head : f32[12, 8] at "head" init drawn

func @layer(%x: f32[2, 4, 8], %qn: f32[8], %q: f32[24, 8], %kv: f32[8, 8], %kr: f32[2, 8],
    %head_gain: f32[6], %o: f32[8, 8], %router: f32[4, 8], %up: f32[4, 4, 8], %down: f32[4, 8, 4],
    %all_up: f32[4, 8], %all_down: f32[8, 4])
    -> (f32[2, 4, 8]) {
  %n, %r = rms_norm %x, %qn {eps = 1e-6} : f32[2, 4, 8], f32[2, 4]
  %1 = matmul %n, %q {ty = true, site = q} : f32[2, 4, 24]
  %2 = reshape %1 {shape = [2, 4, 4, 6]} : f32[2, 4, 4, 6]
  %3, %4 = rms_norm %2, %head_gain {eps = 1e-6} : f32[2, 4, 4, 6], f32[2, 4, 4]
  %qa = slice %3 {dim = 3, start = 0, len = 4} : f32[2, 4, 4, 4]
  %qb = slice %3 {dim = 3, start = 4, len = 2} : f32[2, 4, 4, 2]
  %5 = matmul %n, %kv {ty = true, site = kv} : f32[2, 4, 8]
  %6 = reshape %5 {shape = [2, 4, 2, 4]} : f32[2, 4, 2, 4]
  %k = slice %6 {dim = 3, start = 0, len = 4} : f32[2, 4, 2, 4]
  %7 = slice %6 {dim = 3, start = 0, len = 2} : f32[2, 4, 2, 2]
  %8 = matmul %n, %kr {ty = true, site = kr} : f32[2, 4, 2]
  %9 = reshape %8 {shape = [2, 4, 1, 2]} : f32[2, 4, 1, 2]
  %10, %11 = attention %qa, %qb, %k, %9, %7 {parts = 2, scale = 0.5, causal = true}
      : f32[2, 4, 4, 2], f32[2, 4, 4]
  %12 = reshape %10 {shape = [2, 4, 8]} : f32[2, 4, 8]
  %13 = matmul %12, %o {ty = true, site = o} : f32[2, 4, 8]
  %h = add %x, %13 : f32[2, 4, 8]
  %scores = matmul %h, %router {ty = true} : f32[2, 4, 4]
  %p = softmax %scores : f32[2, 4, 4]
  %ids = topk %p {k = 2} : i32[2, 4, 2]
  %w = take %p, %ids : f32[2, 4, 2]
  %offsets, %order = route %ids {experts = 4, rows = R} : i32[5], i32[R]
  %rows = dispatch %h, %order {active = 2} : f32[R, 8]
  %14 = grouped_matmul %rows, %up, %offsets {ty = true, site = up} : f32[R, 4]
  %15 = sigmoid %14 : f32[R, 4]
  %16 = mul %14, %15 : f32[R, 4]
  %17 = grouped_matmul %16, %down, %offsets {ty = true, site = down} : f32[R, 8]
  %18 = combine %17, %order, %w {tokens = [2, 4], active = 2} : f32[2, 4, 8]
  %19 = matmul %h, %all_up {ty = true, site = all_up} : f32[2, 4, 4]
  %20 = tanh %19 : f32[2, 4, 4]
  %21 = matmul %20, %all_down {ty = true, site = all_down} : f32[2, 4, 8]
  %22 = add %18, %21 : f32[2, 4, 8]
  %out = add %h, %22 : f32[2, 4, 8]
  return %out
}

func @loss(%tokens: i32[2, 4], %targets: i32[2, 4], %embed: f32[12, 8], %qn: f32[2, 8],
    %q: f32[2, 24, 8], %kv: f32[2, 8, 8], %kr: f32[2, 2, 8], %head_gain: f32[2, 6],
    %o: f32[2, 8, 8], %router: f32[2, 4, 8], %up: f32[2, 4, 4, 8],
    %down: f32[2, 4, 8, 4], %all_up: f32[2, 4, 8], %all_down: f32[2, 8, 4], %head: f32[12, 8])
    -> (objective: f32[], metric.loss: f32[], emit.logits: f32[2, 4, 12]) {
  %x = gather %embed, %tokens : f32[2, 4, 8]
  %h = repeat %x, %qn, %q, %kv, %kr, %head_gain, %o, %router, %up, %down, %all_up, %all_down
      {func = @layer, count = 2, carry = 1, xs = 11} : f32[2, 4, 8]
  %logits = matmul %h, %head {ty = true, site = head} : f32[2, 4, 12]
  %1 = constant {value = -1, type = i32[2, 4]} : i32[2, 4]
  %2 = add %targets, %1 : i32[2, 4]
  %3, %4 = cross_entropy %logits, %2 : f32[2, 4], f32[2, 4]
  %5 = reduce_sum %3 {dims = [0, 1]} : f32[]
  return %5, %5, %logits
}
"#;

/// One sequence, and ops that need all of its tokens between those that do not: what is gathered is
/// the same for all ranks, or goes to products that they divide.
const TOKENS: &str = r#"
weight @embed : f32[12, 4] at "embed" init drawn
weight @gain : f32[4] at "gain" init 1
weight @mix : f32[4, 4] at "mix" init drawn
weight @up : f32[8, 4] at "up" init drawn
weight @down : f32[4, 8] at "down" init drawn

func @loss(%tokens: i32[1, 4], %embed: f32[12, 4], %gain: f32[4], %mix: f32[4, 4], %up: f32[8, 4],
    %down: f32[4, 8]) -> (objective: f32[]) {
  %e = gather %embed, %tokens : f32[1, 4, 4]
  %x, %r = rms_norm %e, %gain {eps = 1e-6} : f32[1, 4, 4], f32[1, 4]
  %1 = matmul %x, %mix {ty = true} : f32[1, 4, 4]
  %2 = shift %1 {dim = 1, by = 1, fill = 0} : f32[1, 4, 4]
  %3 = mul %2, %x : f32[1, 4, 4]
  %4 = matmul %3, %up {ty = true} : f32[1, 4, 8]
  %5 = tanh %4 : f32[1, 4, 8]
  %6 = matmul %5, %down {ty = true} : f32[1, 4, 4]
  %7 = add %6, %1 : f32[1, 4, 4]
  %8 = reduce_sum %7 {dims = [1]} : f32[1, 4]
  %9 = broadcast %8 {shape = [1, 4, 4], dims = [0, 2]} : f32[1, 4, 4]
  %10 = mul %9, %3 : f32[1, 4, 4]
  %11 = softmax %10 : f32[1, 4, 4]
  %12 = slice %2 {dim = 1, start = 0, len = 2} : f32[1, 2, 4]
  %13 = reduce_sum %12 {dims = [0, 1, 2]} : f32[]
  %14 = mul %11, %7 : f32[1, 4, 4]
  %15 = reduce_sum %14 {dims = [0, 1, 2]} : f32[]
  %16 = mul %13, %15 : f32[]
  return %16
}
"#;

fn compiled(text: &str, mesh: Option<Mesh>, save: Save) -> Module {
    let train = Train { micro_batches: 2, ..TRAIN };
    let cx = PassCx { train: Some(train), mesh, save, ..PassCx::default() };
    let mut m = module(text);
    let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
    apply(&mut m, &names, &cx);
    m
}

fn names(m: &Module) -> Vec<String> {
    let func = m.func(m.find("train_step").expect("the step was made"));
    func.params.iter().map(|p| func.value(*p).name.clone().expect("it has a name")).collect()
}

/// How far the results of a step are from those of one rank; those that are not cut are alike.
fn off(text: &str, mesh: Mesh, save: Save, precision: Precision) -> f64 {
    let one = compiled(text, None, save);
    let entry = one.find("train_step").expect("the step was made");
    let draw = Draw { low: 0.1, high: 0.9, ints: 12.0 };
    let all = arguments(&one, entry, &Default::default(), 3, draw);
    let expected = Interp::new(&one, precision).run(entry, all.clone());
    let expected = expected.unwrap_or_else(|e| panic!("{e}"));
    let all: BTreeMap<String, Tensor> = names(&one).into_iter().zip(all).collect();

    let several = compiled(text, Some(mesh), save);
    let entry = several.find("train_step").expect("the step was made");
    let args = (0..mesh.n_ranks() as usize).map(|rank| {
        let of = |name: &String| match name.as_str() {
            "tokens" | "targets" => {
                let n = mesh.data as usize;
                part(&all[name], 0, rank / mesh.tensor as usize, n)
            }
            _ => cut_for(&several, name, &all[name], rank),
        };
        names(&several).iter().map(of).collect()
    });
    let interp = Interp::new(&several, precision);
    let found = interp.run_ranks(entry, args.collect(), &Default::default());
    let found = found.unwrap_or_else(|e| panic!("{e}"));
    let results = &several.func(entry).result_names;
    let mut most = 0.0f64;
    for (rank, own) in found.iter().enumerate() {
        for (i, name) in results.iter().enumerate() {
            most = most.max(distance(&own[i], &cut_for(&several, name, &expected[i], rank)));
            let cut =
                several.stores.get(name).is_some_and(|s| s.ty.axes.iter().any(Option::is_some));
            assert!(cut || own[i] == found[0][i], "{name} of ranks 0 and {rank} differ");
        }
    }
    most
}

fn mesh(data: u64, tensor: u64) -> Mesh {
    Mesh { data, tensor, ..Mesh::default() }
}

#[test]
fn ranks_that_divide_products_compute_what_one_computes() {
    for save in [Save::NoCheap, Save::Handed] {
        for mesh in [mesh(1, 2), mesh(2, 2)] {
            let off = off(MODEL, mesh, save, Precision::F64);
            assert!(off < 1e-12, "{off:e} off in f64, {mesh:?}");
        }
    }
    let off = off(MODEL, mesh(1, 2), Save::NoCheap, Precision::Stated);
    assert!(off < 1e-5, "{off:e} off in f32");
}

/// The tokens of what none has a part of are divided, too.
fn by_tokens(data: u64, tensor: u64) -> Mesh {
    Mesh { sequence: true, ..mesh(data, tensor) }
}

#[test]
fn so_they_do_where_they_divide_tokens() {
    for save in [Save::NoCheap, Save::Handed, Save::Everything] {
        for (text, data) in [(MODEL, 1), (MODEL, 2), (TOKENS, 1)] {
            let off = off(text, by_tokens(data, 2), save, Precision::F64);
            assert!(off < 1e-12, "{off:e} off in f64, {data} ranks along data, {save:?}");
        }
    }
    let off = off(MODEL, by_tokens(1, 2), Save::NoCheap, Precision::Stated);
    assert!(off < 1e-5, "{off:e} off in f32");
}

#[test]
fn a_layer_is_summed_over_ranks_twice_forward_and_twice_backward() {
    let m = compiled(MODEL, Some(mesh(1, 2)), Save::NoCheap);
    let sums = |body: &str| {
        let func = m.funcs.iter().find(|f| f.name == body);
        let func = func.unwrap_or_else(|| panic!("no {body} in {}", weft_ir::text::print(&m)));
        func.body_ops().filter(|(_, op)| op.op.started().unwrap_or(op.op) == Op::AllReduce).count()
    };
    assert_eq!(sums("layer.fwd"), 2);
    // What the norm hands to queries and keys, their shared part and the gain of heads; what goes
    // to experts, and its weights.
    assert_eq!(sums("layer.bwd.run"), 5);
}

#[test]
fn each_weight_says_how_it_is_kept_and_why() {
    let m = module(MODEL);
    let lines = explain(&m, 2, &Default::default());
    let of = |name: &str| lines.iter().find(|l| l.weight == name).expect("every weight is told");
    let cut = |name: &str| of(name).dim;
    assert_eq!([cut("embed"), cut("head")], [Some(0), Some(0)]);
    assert_eq!([cut("q"), cut("kv"), cut("o")], [Some(1), Some(1), Some(2)]);
    assert_eq!([cut("up"), cut("down")], [Some(2), Some(3)]);
    assert_eq!([cut("all_up"), cut("all_down")], [Some(1), Some(2)]);
    assert_eq!(["qn", "kr", "head_gain", "router"].map(cut), [None; 4]);
    assert_eq!(of("up").why, "cut with `down`; 4 parts");
    assert_eq!(of("q").why, "cut with `kv` and 1 more; 2 parts");
    assert_eq!(of("qn").why, "`rms_norm` needs it whole");
    assert!(of("qn").span.is_some());
}
