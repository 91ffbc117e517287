//! Pipelines: stages compute what the whole computes, and ranks with a row of a table each compute
//! the bits of one rank.

mod support;

use std::collections::BTreeMap;

use support::ranks::{cut_for, whole_of};
use support::{Draw, TRAIN, apply, arguments, module, recipe};
use weft_ir::interp::{Data, Interp, Precision, Tensor, run_programs};
use weft_ir::module::Module;
use weft_ir::ty::AxisId;
use weft_passes::policy::Policy;
use weft_passes::{Mesh, PIPELINE, PassCx, Pipeline, Sums, Train};
use weft_schedule::{Name, Size, Table, generate};

/// Four layers whose bias follows their load, with a balance loss; a prediction further ahead that
/// reads the embedding and the head, as the head does.
const MODEL: &str = r#"
weight @emb : f32[5, 3] at "emb" init drawn
weight @first : f32[1, 3, 3] at "layers.{i}.w" from [0] init drawn
weight @w : f32[3, 3, 3] at "layers.{i}.w" from [1] init drawn
weight @g : f32[3] at "g" init 1
weight @mix : f32[1, 3, 3] at "mtp.{i}.mix" from [4] init drawn
weight @head : f32[5, 3] at "head" init drawn
state @bias : f32[3, 3] at "layers.{i}.bias" from [1] init 0
schedule @gamma init 0.5
schedule @alpha init 0.1

func @plain(%h: f32[2, 4, 3], %w: f32[3, 3]) -> (f32[2, 4, 3]) {
  %1 = matmul %h, %w : f32[2, 4, 3]
  %2 = tanh %1 : f32[2, 4, 3]
  %3 = add %h, %2 : f32[2, 4, 3]
  return %3
}

func @layer(%h: f32[2, 4, 3], %w: f32[3, 3], %bias: f32[3], %alpha: f32[]) -> (f32[2, 4, 3], f32[3], f32[]) {
  %1 = matmul %h, %w : f32[2, 4, 3]
  %2 = broadcast %bias {shape = [2, 4, 3], dims = [2]} : f32[2, 4, 3]
  %3 = add %1, %2 : f32[2, 4, 3]
  %4 = tanh %3 : f32[2, 4, 3]
  %5 = add %h, %4 : f32[2, 4, 3]
  %6 = stop_gradient %4 : f32[2, 4, 3]
  %7 = reduce_sum %6 {dims = [0, 1]} : f32[3]
  %8 = mul %4, %4 : f32[2, 4, 3]
  %9 = reduce_sum %8 {dims = [0, 1, 2]} : f32[]
  %n = constant {value = 8, type = f32[]} : f32[]
  %all = batch_sum %n : f32[]
  %10 = div %9, %all : f32[]
  %11 = mul %alpha, %10 : f32[]
  return %5, %7, %11
}

func @mtp(%h: f32[2, 4, 3], %ids: i32[2, 4], %mix: f32[3, 3], %emb: f32[5, 3], %head: f32[5, 3])
    -> (f32[2, 4, 3], i32[2, 4], f32[]) {
  %next = shift %ids {dim = 1, by = 1, fill = 0} : i32[2, 4]
  %e = gather %emb, %next : f32[2, 4, 3]
  %1 = matmul %h, %mix : f32[2, 4, 3]
  %2 = add %1, %e : f32[2, 4, 3]
  %3 = transpose %head {perm = [1, 0]} : f32[3, 5]
  %4 = matmul %2, %3 : f32[2, 4, 5]
  %t = shift %next {dim = 1, by = 1, fill = -1} : i32[2, 4]
  %each, %lse = cross_entropy %4, %t : f32[2, 4], f32[2, 4]
  %5 = reduce_sum %each {dims = [0, 1]} : f32[]
  return %2, %next, %5
}

func @loss(%tokens: i32[2, 4], %emb: f32[5, 3], %first: f32[1, 3, 3], %w: f32[3, 3, 3], %bias: f32[3, 3], %alpha: f32[], %g: f32[3], %mix: f32[1, 3, 3], %head: f32[5, 3])
    -> (objective: f32[], metric.loss: f32[], logits: f32[2, 4, 5], emit.layers.load: f32[3, 3]) {
  %h = gather %emb, %tokens : f32[2, 4, 3]
  %0 = repeat %h, %first {func = @plain, count = 1, carry = 1, xs = 1} : f32[2, 4, 3]
  %1, %load, %balance = repeat %0, %w, %bias, %alpha {func = @layer, count = 3, carry = 1, xs = 2}
    : f32[2, 4, 3], f32[3, 3], f32[3]
  %y, %r = rms_norm %1, %g {eps = 0.001} : f32[2, 4, 3], f32[2, 4]
  %m, %ids, %ahead = repeat %y, %tokens, %mix, %emb, %head {func = @mtp, count = 1, carry = 2, xs = 1}
    : f32[2, 4, 3], i32[2, 4], f32[1]
  %2 = transpose %head {perm = [1, 0]} : f32[3, 5]
  %logits = matmul %y, %2 : f32[2, 4, 5]
  %t = shift %tokens {dim = 1, by = 1, fill = -1} : i32[2, 4]
  %each, %lse = cross_entropy %logits, %t : f32[2, 4], f32[2, 4]
  %3 = reduce_sum %each {dims = [0, 1]} : f32[]
  %zero = constant {value = 0, type = i32[2, 4]} : i32[2, 4]
  %4 = le %zero, %t : bool[2, 4]
  %5 = convert %4 {dtype = f32} : f32[2, 4]
  %6 = reduce_sum %5 {dims = [0, 1]} : f32[]
  %7 = batch_sum %6 : f32[]
  %8 = div %3, %7 : f32[]
  %9 = reduce_sum %balance {dims = [0]} : f32[]
  %10 = add %8, %9 : f32[]
  %11 = reshape %ahead {shape = []} : f32[]
  %12 = add %10, %11 : f32[]
  return %12, %8, %logits, %load
}

func @update(%"emit.layers.load": f32[3, 3], %bias: f32[3, 3], %gamma: f32[]) -> (bias: f32[3, 3]) {
  %1 = sign %"emit.layers.load" : f32[3, 3]
  %2 = broadcast %gamma {shape = [3, 3], dims = []} : f32[3, 3]
  %3 = mul %1, %2 : f32[3, 3]
  %4 = sub %bias, %3 : f32[3, 3]
  return %4
}
"#;

/// Four layers of four experts in bf16, and one that predicts further ahead. Products of layers
/// have sites.
const EXPERTS: &str = r#"
dims { R = ragged(4) 16 }
weight @emb : f32[6, 8] at "emb" init drawn
weight @proj : f32[4, 8, 8] at "layers.{i}.proj" from [0] init drawn
weight @router : f32[4, 4, 8] at "layers.{i}.router" from [0] init drawn
weight @up : f32[4, 4, 4, 8] at "layers.{i}.experts.{j}.up" from [0, 0] init drawn
weight @down : f32[4, 4, 8, 4] at "layers.{i}.experts.{j}.down" from [0, 0] init drawn
weight @mix : f32[1, 8, 8] at "mtp.{i}.mix" from [4] init drawn
weight @mtp.proj : f32[1, 8, 8] at "layers.{i}.proj" from [4] init drawn
weight @mtp.router : f32[1, 4, 8] at "layers.{i}.router" from [4] init drawn
weight @mtp.up : f32[1, 4, 4, 8] at "layers.{i}.experts.{j}.up" from [4, 0] init drawn
weight @mtp.down : f32[1, 4, 8, 4] at "layers.{i}.experts.{j}.down" from [4, 0] init drawn
weight @head : f32[6, 8] at "head" init drawn

func @layer(%h: bf16[2, 4, 8], %proj: f32[8, 8], %router: f32[4, 8], %up: f32[4, 4, 8], %down: f32[4, 8, 4])
    -> (bf16[2, 4, 8]) {
  %w.proj = convert %proj {dtype = bf16} : bf16[8, 8]
  %w.up = convert %up {dtype = bf16} : bf16[4, 4, 8]
  %w.down = convert %down {dtype = bf16} : bf16[4, 8, 4]
  %0 = matmul %h, %w.proj {ty = true, site = proj} : bf16[2, 4, 8]
  %1 = tanh %0 : bf16[2, 4, 8]
  %x = add %h, %1 : bf16[2, 4, 8]
  %wide = convert %x {dtype = f32} : f32[2, 4, 8]
  %scores = matmul %wide, %router {ty = true} : f32[2, 4, 4]
  %p = softmax %scores : f32[2, 4, 4]
  %ids = topk %p {k = 2} : i32[2, 4, 2]
  %w = take %p, %ids : f32[2, 4, 2]
  %offsets, %order = route %ids {experts = 4, rows = R} : i32[5], i32[R]
  %rows = dispatch %x, %order {active = 2} : bf16[R, 8]
  %2 = grouped_matmul %rows, %w.up, %offsets {ty = true, site = up} : bf16[R, 4]
  %3 = sigmoid %2 : bf16[R, 4]
  %4 = mul %2, %3 : bf16[R, 4]
  %5 = grouped_matmul %4, %w.down, %offsets {ty = true, site = down} : bf16[R, 8]
  %y = combine %5, %order, %w {tokens = [2, 4], active = 2} : bf16[2, 4, 8]
  %6 = add %x, %y : bf16[2, 4, 8]
  return %6
}

func @mtp(%h: bf16[2, 4, 8], %mix: f32[8, 8], %proj: f32[8, 8], %router: f32[4, 8], %up: f32[4, 4, 8], %down: f32[4, 8, 4], %ids: i32[2, 4], %emb: f32[6, 8], %head: f32[6, 8])
    -> (bf16[2, 4, 8], f32[]) {
  %w.mix = convert %mix {dtype = bf16} : bf16[8, 8]
  %w.head = convert %head {dtype = bf16} : bf16[6, 8]
  %next = shift %ids {dim = 1, by = 1, fill = 0} : i32[2, 4]
  %wide = gather %emb, %next : f32[2, 4, 8]
  %e = convert %wide {dtype = bf16} : bf16[2, 4, 8]
  %1 = matmul %h, %w.mix : bf16[2, 4, 8]
  %2 = add %1, %e : bf16[2, 4, 8]
  %g = call %2, %proj, %router, %up, %down {func = @layer} : bf16[2, 4, 8]
  %4 = matmul %g, %w.head {ty = true} : bf16[2, 4, 6]
  %t = shift %next {dim = 1, by = 1, fill = -1} : i32[2, 4]
  %logits = convert %4 {dtype = f32} : f32[2, 4, 6]
  %each, %lse = cross_entropy %logits, %t : f32[2, 4], f32[2, 4]
  %5 = reduce_sum %each {dims = [0, 1]} : f32[]
  return %g, %5
}

func @loss(%tokens: i32[2, 4], %emb: f32[6, 8], %proj: f32[4, 8, 8], %router: f32[4, 4, 8], %up: f32[4, 4, 4, 8], %down: f32[4, 4, 8, 4], %mix: f32[1, 8, 8], %mtp.proj: f32[1, 8, 8], %mtp.router: f32[1, 4, 8], %mtp.up: f32[1, 4, 4, 8], %mtp.down: f32[1, 4, 8, 4], %head: f32[6, 8])
    -> (objective: f32[], metric.loss: f32[]) {
  %w.head = convert %head {dtype = bf16} : bf16[6, 8]
  %wide = gather %emb, %tokens : f32[2, 4, 8]
  %h = convert %wide {dtype = bf16} : bf16[2, 4, 8]
  %y = repeat %h, %proj, %router, %up, %down
    {func = @layer, count = 4, carry = 1, xs = 4} : bf16[2, 4, 8]
  %m, %ahead = repeat %y, %mix, %mtp.proj, %mtp.router, %mtp.up, %mtp.down, %tokens, %emb, %head
    {func = @mtp, count = 1, carry = 1, xs = 5} : bf16[2, 4, 8], f32[1]
  %1 = matmul %y, %w.head {ty = true} : bf16[2, 4, 6]
  %logits = convert %1 {dtype = f32} : f32[2, 4, 6]
  %t = shift %tokens {dim = 1, by = 1, fill = -1} : i32[2, 4]
  %each, %lse = cross_entropy %logits, %t : f32[2, 4], f32[2, 4]
  %3 = reduce_sum %each {dims = [0, 1]} : f32[]
  %11 = reshape %ahead {shape = []} : f32[]
  %12 = add %3, %11 : f32[]
  return %12, %3
}
"#;

type Named = BTreeMap<String, Tensor>;

fn names(m: &Module, entry: &str) -> Vec<String> {
    let func = m.func(m.find(entry).expect("it is there"));
    func.params.iter().map(|p| func.value(*p).name.clone().expect("a name")).collect()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.numbers().iter().map(|x| (*x as f32).to_bits()).collect()
}

/// The part of a whole store, or moment, that a module's store of that name holds.
fn part(m: &Module, one: &Module, all: &Named, name: &str) -> Tensor {
    if let Some(whole) = all.get(name) {
        return whole.clone();
    }
    let own = &m.stores[name];
    let like = |s: &weft_ir::module::Store| s.templates == own.templates;
    let parts = one.stores.iter().filter(|(_, s)| like(s));
    for (whole, store) in parts {
        let n = own.ty.dims[0].as_fixed().expect("fixed") as usize;
        let Some(from) = own.starts[0].checked_sub(store.starts[0]) else { continue };
        let x = &all[whole];
        let inner: usize = x.dims[1..].iter().product();
        if from as usize + n > x.dims[0] {
            continue;
        }
        let own = x.numbers()[from as usize * inner..(from as usize + n) * inner].to_vec();
        let mut dims = x.dims.clone();
        dims[0] = n;
        return Tensor { dims, data: Data::Float(own), ..x.clone() };
    }
    panic!("{name} is a part of nothing")
}

/// What is compiled, and for which ranks beside those of the pipeline.
#[derive(Clone, Copy)]
struct Case {
    model: &'static str,
    fp8: bool,
    mesh: Mesh,
    sums: Sums,
}

fn check(table: &Table, data: u64) {
    let mesh = Mesh { data, ..Mesh::default() };
    Case { model: MODEL, fp8: false, mesh, sums: Sums::Tree }.check(table);
}

impl Case {
    /// Of a rank of the pipeline; else of ranks along `tensor` alone.
    fn compiled(&self, n: u64, pipeline: Option<Pipeline>, apart: bool) -> Module {
        let mesh = match &pipeline {
            Some(p) => Mesh { pipeline: p.table.n_ranks() as u64, ..self.mesh },
            None => Mesh { tensor: self.mesh.tensor, ..Mesh::ONE },
        };
        self.compiled_for(mesh, n, pipeline, apart)
    }

    fn compiled_for(&self, mesh: Mesh, n: u64, pipeline: Option<Pipeline>, apart: bool) -> Module {
        let mut m = module(self.model);
        let sites: &[&str] = if self.fp8 { &["proj", "up", "down"] } else { &[] };
        let policy: Policy = sites.iter().map(|site| (site.to_string(), recipe())).collect();
        let cx = PassCx {
            train: Some(Train { micro_batches: n, sums: self.sums, ..TRAIN }),
            apart,
            mesh: Some(mesh),
            pipeline,
            policy,
            ..PassCx::default()
        };
        let passes: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
        apply(&mut m, &passes, &cx);
        m
    }

    fn check(&self, table: &Table) {
        let Mesh { data, tensor, .. } = self.mesh;
        let n = table.n_micro_batches() as u64 * data;
        let compiled = |pipeline, apart| self.compiled(n, pipeline, apart);
        let one = compiled(None, false);
        let entry = one.find("train_step").expect("a step");
        let draw = Draw { low: 0.1, high: 0.9, ints: 5.0 };
        let whole = self.compiled_for(Mesh::ONE, n, None, false);
        let args = arguments(
            &whole,
            whole.find("train_step").expect("a step"),
            &Default::default(),
            3,
            draw,
        );
        let mut all: Named = names(&whole, "train_step").into_iter().zip(args).collect();
        all.insert("step".into(), Tensor::scalar(1.0));
        let of = |rank: usize| {
            let names = names(&one, "train_step");
            names.iter().map(|n| cut_for(&one, n, &all[n], rank)).collect()
        };
        let args = (0..tensor as usize).map(of).collect();
        let results =
            Interp::new(&one, Precision::Stated).run_ranks(entry, args, &Default::default());
        let results = results.expect("ranks without a pipeline run");
        let result = |(i, name): (usize, &String)| {
            let parts: Vec<Tensor> = results.iter().map(|own| own[i].clone()).collect();
            (name.clone(), whole_of(&one, name, &parts))
        };
        let mut expected: Named =
            one.func(entry).result_names.iter().enumerate().map(result).collect();

        let splits = table.rows.iter().flatten().flat_map(|c| c.actions());
        let apart = splits.into_iter().any(|a| a.op == weft_schedule::Op::BackwardInput);
        let places: Vec<Module> = (0..table.n_ranks())
            .map(|place| {
                compiled(Some(Pipeline { table: table.clone(), place, layers: None }), apart)
            })
            .collect();
        for (place, m) in places.iter().enumerate() {
            let own: Vec<usize> = table.stages_of(place).into_iter().map(|s| s.1).collect();
            let divided = m.stores.keys().filter_map(|name| name.split_once(".stage."));
            for (name, rest) in divided {
                let stage = rest.split('.').next().and_then(|s| s.parse().ok()).expect("a stage");
                assert!(own.contains(&stage), "rank {place} has {name} of stage {stage}");
            }
            assert_eq!(m.stores.contains_key("emb"), own.contains(&0), "rank {place}");
            let divides = |axis: &AxisId| m.axes[axis.0 as usize].name == "tensor";
            let mut axes = m.stores.values().flat_map(|s| s.ty.axes.iter().flatten());
            assert_eq!(axes.any(divides), tensor > 1, "rank {place}");
        }
        let tokens = all["tokens"].clone();
        let mut programs = vec![];
        let mut args = vec![];
        for m in &places {
            for place in 0..data * tensor {
                let (rank, share) = (programs.len(), place / tensor);
                programs.push((m, m.find("train_step").expect("a step")));
                let given = |name: &String| {
                    if name == "tokens" {
                        let len = tokens.len() / data as usize;
                        let own = &tokens.ints().expect("ints")[share as usize * len..][..len];
                        return Tensor::i32(&[(n / data) as usize, 2, 4], own.to_vec());
                    }
                    cut_for(m, name, &part(m, &one, &all, name), rank)
                };
                args.push(names(m, "train_step").iter().map(given).collect());
            }
        }
        let found = run_programs(&programs, Precision::Stated, args, &Default::default());
        let found = found.unwrap_or_else(|e| panic!("{e}"));
        let mut seen = std::collections::BTreeSet::new();
        for (rank, ((m, f), results)) in programs.iter().zip(found).enumerate() {
            let names = &m.func(*f).result_names;
            let everywhere = ["objective", "grad_norm", "bias"].map(str::to_string);
            let mut everywhere = everywhere.iter().filter(|n| expected.contains_key(*n));
            assert!(everywhere.all(|n| names.contains(n)), "rank {rank} has {names:?}");
            for (name, x) in names.iter().zip(&results) {
                seen.insert(name.clone());
                let own = cut_for(m, name, &part(m, &one, &expected, name), rank);
                assert_eq!(bits(x), bits(&own), "{name} of rank {rank}");
            }
        }
        // Every weight is some rank's.
        for (name, x) in std::mem::take(&mut expected) {
            let whole = seen.contains(&name);
            let parts = seen.iter().filter(|s| s.starts_with(&format!("{name}.stage"))).count();
            let moment = name.strip_suffix(".m").or(name.strip_suffix(".v")).unwrap_or(&name);
            let of = seen.iter().any(|s| s.starts_with(&format!("{moment}.stage")));
            assert!(whole || parts > 0 || of, "{name} {:?} is nobody's", x.dims);
        }
    }
}

fn table(name: Name, n_ranks: usize, n_micro_batches: usize, stages_per_rank: usize) -> Table {
    let size = Size { n_ranks, n_micro_batches, stages_per_rank };
    generate(name, size).expect("it exists")
}

#[test]
fn ranks_in_a_pipeline_compute_the_bits_of_one() {
    check(&table(Name::OneFOneB, 2, 4, 1), 1);
    check(&table(Name::GPipe, 4, 6, 1), 1);
    check(&table(Name::ZbH1, 4, 4, 1), 1);
    check(&table(Name::OneFOneB, 2, 1, 1), 1);
}

#[test]
fn ranks_with_several_stages_compute_the_bits_of_one() {
    check(&table(Name::Interleaved, 2, 4, 2), 1);
    check(&table(Name::InterleavedPairs, 2, 4, 2), 1);
    check(&table(Name::ZbInterleaved, 2, 4, 2), 1);
    check(&table(Name::ZbV, 2, 4, 2), 1);
    check(&table(Name::DualPipeV, 2, 4, 2), 1);
}

#[test]
fn two_directions_compute_the_bits_of_one() {
    check(&table(Name::DualPipe, 2, 4, 2), 1);
    check(&table(Name::DualPipe, 4, 8, 2), 1);
}

#[test]
fn pipelines_that_share_the_batch_compute_the_bits_of_one() {
    check(&table(Name::OneFOneB, 2, 2, 1), 2);
    check(&table(Name::DualPipe, 2, 4, 2), 2);
}

const AMONG_TWO: Mesh = Mesh { data: 2, experts: 2, ..Mesh::ONE };

#[test]
fn pipelines_whose_ranks_have_the_experts_between_them_compute_the_bits_of_one() {
    let case = Case { model: EXPERTS, fp8: false, mesh: AMONG_TWO, sums: Sums::Tree };
    case.check(&table(Name::ZbV, 2, 2, 2));
    case.check(&table(Name::DualPipe, 4, 8, 2));
}

/// One sum for each direction of the pipeline, two of one.
#[test]
fn so_they_do_where_micro_batches_are_added_in_order() {
    let sums = |halvings| Sums::InOrder { halvings };
    let case = Case { model: EXPERTS, fp8: false, mesh: Mesh::ONE, sums: sums(1) };
    case.check(&table(Name::DualPipe, 2, 8, 2));
    Case { sums: sums(0), ..case }.check(&table(Name::ZbV, 2, 5, 2));
    Case { mesh: AMONG_TWO, ..case }.check(&table(Name::OneFOneB, 2, 4, 1));
}

#[test]
fn so_they_do_in_codes() {
    let case = Case { model: EXPERTS, fp8: true, mesh: Mesh::default(), sums: Sums::Tree };
    case.check(&table(Name::DualPipe, 2, 4, 2));
    Case { mesh: AMONG_TWO, ..case }.check(&table(Name::OneFOneB, 2, 2, 1));
}

#[test]
fn so_they_do_with_parts_of_the_weights() {
    let mesh = Mesh { data: 2, zero: true, ..Mesh::default() };
    Case { model: EXPERTS, fp8: true, mesh, sums: Sums::Tree }.check(&table(
        Name::DualPipe,
        2,
        4,
        2,
    ));
    let mesh = Mesh { data: 4, zero: true, ..AMONG_TWO };
    Case { model: EXPERTS, fp8: false, mesh, sums: Sums::Tree }.check(&table(
        Name::OneFOneB,
        2,
        2,
        1,
    ));
}

/// With as many ranks along `tensor`, the bits of those alone: a pipeline adds no difference.
#[test]
fn so_they_do_beside_ranks_that_divide_products() {
    let mesh = Mesh { tensor: 2, ..Mesh::ONE };
    let case = Case { model: EXPERTS, fp8: false, mesh, sums: Sums::Tree };
    case.check(&table(Name::OneFOneB, 2, 2, 1));
    case.check(&table(Name::ZbV, 2, 4, 2));
    case.check(&table(Name::DualPipe, 4, 8, 2));
    Case { fp8: true, mesh: Mesh { tensor: 2, ..AMONG_TWO }, ..case }.check(&table(
        Name::DualPipe,
        2,
        4,
        2,
    ));
    let mesh = Mesh { data: 2, zero: true, ..mesh };
    Case { mesh, ..case }.check(&table(Name::OneFOneB, 2, 2, 1));
}

#[test]
fn a_weight_that_two_stages_read_is_refused_by_name() {
    let text = MODEL.replace(
        "transpose %head {perm = [1, 0]} : f32[3, 5]\n  %logits",
        "transpose %emb {perm = [1, 0]} : f32[3, 5]\n  %logits",
    );
    let mut m = module(&text);
    let pipeline = Some(Pipeline { table: table(Name::OneFOneB, 2, 2, 1), place: 0, layers: None });
    let cx =
        PassCx { train: Some(Train { micro_batches: 2, ..TRAIN }), pipeline, ..PassCx::default() };
    let pass = weft_passes::by_name("assign_stages").expect("a pass");
    let e = weft_passes::run_pass(1, pass, &mut m, &cx).expect_err("it is refused").to_string();
    assert!(e.contains("`emb` is read by stage 0 and by stage 1"), "{e}");
}

#[test]
fn more_stages_than_layers_are_refused_with_the_nearest_number() {
    let mut m = module(MODEL);
    let pipeline = Some(Pipeline { table: table(Name::OneFOneB, 8, 8, 1), place: 0, layers: None });
    let cx =
        PassCx { train: Some(Train { micro_batches: 8, ..TRAIN }), pipeline, ..PassCx::default() };
    let pass = weft_passes::by_name("assign_stages").expect("a pass");
    let e = weft_passes::run_pass(1, pass, &mut m, &cx).expect_err("it is refused").to_string();
    assert!(e.contains("8 stages (8 ranks along pipeline)"), "{e}");
    assert!(e.contains("the model has 4; the nearest is 4 stages"), "{e}");
}
