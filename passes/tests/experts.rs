//! Ranks that have the experts between them compute the bits of one: the interpreter runs both.

mod support;

use std::collections::BTreeMap;

use support::ranks::{cut_for, part};
use support::{Draw, TRAIN, apply, arguments, module, recipe};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Module, Placed};
use weft_ir::op::Op;
use weft_passes::policy::Recipe;
use weft_passes::{Copies, ExpertGradients, Mesh, PIPELINE, PassCx, Train};

/// Two layers of four experts, two for each of eight tokens.
const MODEL: &str = r#"
dims { R = ragged(4) 16 }
weight @router : f32[2, 4, 8] at "layers.{i}.router" from [0] init drawn
weight @up : f32[2, 4, 4, 8] at "layers.{i}.experts.{j}.up" from [0, 0] init drawn
weight @down : f32[2, 4, 8, 4] at "layers.{i}.experts.{j}.down" from [0, 0] init drawn

func @layer(%x: f32[2, 4, 8], %router: f32[4, 8], %up: f32[4, 4, 8], %down: f32[4, 8, 4]) -> (f32[2, 4, 8]) {
  %scores = matmul %x, %router {ty = true} : f32[2, 4, 4]
  %p = softmax %scores : f32[2, 4, 4]
  %ids = topk %p {k = 2} : i32[2, 4, 2]
  %w = take %p, %ids : f32[2, 4, 2]
  %offsets, %order = route %ids {experts = 4, rows = R} : i32[5], i32[R]
  %rows = dispatch %x, %order {active = 2} : f32[R, 8]
  %1 = grouped_matmul %rows, %up, %offsets {ty = true, site = up} : f32[R, 4]
  %2 = sigmoid %1 : f32[R, 4]
  %3 = mul %1, %2 : f32[R, 4]
  %4 = grouped_matmul %3, %down, %offsets {ty = true, site = down} : f32[R, 8]
  %y = combine %4, %order, %w {tokens = [2, 4], active = 2} : f32[2, 4, 8]
  %h = add %x, %y : f32[2, 4, 8]
  return %h
}

func @loss(%x: f32[2, 4, 8], %router: f32[2, 4, 8], %up: f32[2, 4, 4, 8], %down: f32[2, 4, 8, 4])
    -> (objective: f32[], metric.loss: f32[]) {
  %h = repeat %x, %router, %up, %down {func = @layer, count = 2, carry = 1, xs = 3} : f32[2, 4, 8]
  %1 = mul %h, %h : f32[2, 4, 8]
  %2 = reduce_sum %1 {dims = [0, 1, 2]} : f32[]
  return %2, %2
}
"#;

fn compiled(fp8: bool, mesh: Option<Mesh>) -> Module {
    compiled_with(fp8.then(recipe), mesh)
}

fn compiled_with(recipe: Option<Recipe>, mesh: Option<Mesh>) -> Module {
    let train = Train { micro_batches: 4, ..TRAIN };
    let mut cx = PassCx { train: Some(train), mesh, ..PassCx::default() };
    if let Some(recipe) = recipe {
        cx.policy = ["up", "down"].map(|site| (site.to_string(), recipe.clone())).into();
    }
    let mut m = module(MODEL);
    let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
    apply(&mut m, &names, &cx);
    m
}

/// The bits of every result; rounded to f32 as kernels round.
fn bits(results: &[Tensor]) -> Vec<Vec<u32>> {
    let of = |t: &Tensor| t.numbers().iter().map(|x| (*x as f32).to_bits()).collect();
    results.iter().map(of).collect()
}

fn names(m: &Module) -> Vec<String> {
    let func = m.func(m.find("train_step").expect("the step was made"));
    func.params.iter().map(|p| func.value(*p).name.clone().expect("it has a name")).collect()
}

/// Whole, or its first half.
fn exchanges(op: Op) -> bool {
    op.started().unwrap_or(op) == Op::Exchange
}

/// What one rank and what several make of the same step; `several` is their program.
struct Outcome {
    several: Module,
    names: Vec<String>,
    one: Vec<Tensor>,
    /// By rank.
    found: Vec<Vec<Tensor>>,
}

impl Outcome {
    /// The results of one rank, as far as `rank` of several has them.
    fn expected(&self, rank: usize) -> Vec<Tensor> {
        let all = self.names.iter().zip(&self.one);
        all.map(|(n, x)| cut_for(&self.several, n, x, rank)).collect()
    }
}

fn step(fp8: bool, mesh: Mesh) -> Outcome {
    try_step(fp8, mesh).unwrap_or_else(|e| panic!("{e}"))
}

fn try_step(fp8: bool, mesh: Mesh) -> Result<Outcome, String> {
    let one = compiled(fp8, None);
    let entry = one.find("train_step").expect("the step was made");
    let draw = Draw { low: 0.1, high: 0.9, ints: 4.0 };
    let all = arguments(&one, entry, &Default::default(), 3, draw);
    let interp = Interp::new(&one, Precision::Stated);
    let expected = interp.run(entry, all.clone()).unwrap_or_else(|e| panic!("{e}"));
    let all: BTreeMap<String, Tensor> = names(&one).into_iter().zip(all).collect();

    let several = compiled(fp8, Some(mesh));
    let entry = several.find("train_step").expect("the step was made");
    let n = mesh.data as usize;
    let args = (0..n).map(|rank| {
        let of = |name: &String| match name.as_str() {
            "x" => part(&all[name], 0, rank, n),
            _ => cut_for(&several, name, &all[name], rank),
        };
        names(&several).iter().map(of).collect()
    });
    let interp = Interp::new(&several, Precision::Stated);
    let found = interp.run_ranks(entry, args.collect(), &Default::default());
    let found = found.map_err(|e| e.to_string())?;
    let names = several.func(entry).result_names.clone();
    Ok(Outcome { several, names, one: expected, found })
}

fn check(fp8: bool, mesh: Mesh) {
    let outcome = step(fp8, mesh);
    let several = &outcome.several;
    assert!(n_exchanges(several) > 0, "rows are sent");
    let gathers = |f: &weft_ir::module::Func| {
        let n = f.body_ops().filter(|(_, op)| op.op == Op::AllGather);
        n.filter(|(_, op)| op.attrs.get_axis("axis") == several.find_axis("experts"))
            .filter(|(_, op)| f.ty(op.results[0]).rank() == 4)
            .count()
    };
    let gathered: usize = several.funcs.iter().map(gathers).sum();
    assert!(gathered <= 2, "{gathered} gathers: squares of gradients may be, weights may not");
    for (rank, found) in outcome.found.iter().enumerate() {
        let own = outcome.expected(rank);
        for (i, name) in outcome.names.iter().enumerate() {
            assert_eq!(bits(&found[i..=i]), bits(&own[i..=i]), "{name}, rank {rank}, {mesh:?}");
        }
    }
}

fn n_exchanges(m: &Module) -> usize {
    m.funcs.iter().map(|f| f.body_ops().filter(|(_, op)| exchanges(op.op)).count()).sum()
}

/// Rows that travel plain are encoded where they arrive, to the codes that they would have been.
#[test]
fn rows_that_travel_plain_make_the_same_bits() {
    let as_codes = Recipe { dispatched: None, ..recipe() };
    let plain = Recipe { dispatched_plain: true, ..as_codes.clone() };
    let results = |recipe: &Recipe| {
        let m = compiled_with(Some(recipe.clone()), None);
        let entry = m.find("train_step").expect("the step was made");
        let draw = Draw { low: 0.1, high: 0.9, ints: 4.0 };
        let all = arguments(&m, entry, &Default::default(), 3, draw);
        let found = Interp::new(&m, Precision::Stated).run(entry, all);
        bits(&found.unwrap_or_else(|e| panic!("{e}")))
    };
    assert_eq!(results(&plain), results(&as_codes));
}

/// |a - b| / |a|.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.numbers(), b.numbers());
    let square: f64 = a.iter().map(|x| x * x).sum();
    let apart: f64 = a.iter().zip(b.iter()).map(|(x, y)| (x - y) * (x - y)).sum();
    (apart / square.max(f64::MIN_POSITIVE)).sqrt()
}

/// Gradients contracted at the experts: rows go there and back once forward and once backward, no
/// rank makes a gradient of others' experts, and moments, which are sums of gradients, are within
/// `most` of one rank's.
fn check_at_experts(fp8: bool, mesh: Mesh, most: f64) {
    let at_source = n_exchanges(&compiled(fp8, Some(mesh)));
    let outcome = step(fp8, Mesh { expert_gradients: ExpertGradients::AtExperts, ..mesh });
    let several = &outcome.several;
    let n = n_exchanges(several);
    assert!(n < at_source, "{n} exchanges, {at_source} where rows are contracted at their source");
    // Of the tokens' width (in codes, 8 bits of it): to the experts and back, forward in `@loss`'s
    // layer and the step's, and backward; the others are a number for each row.
    let wide = |f: &weft_ir::module::Func, op: &weft_ir::module::OpData| {
        f.ty(op.operands[0]).last().and_then(|d| d.as_fixed()) == Some(8)
    };
    let of_rows = several
        .funcs
        .iter()
        .map(|f| f.body_ops().filter(|(_, op)| exchanges(op.op) && wide(f, op)).count());
    assert_eq!(of_rows.sum::<usize>(), 6, "rows go once each way");
    // What products leave behind the last row is not said, and must not be in a scale along rows:
    // the interpreter has zeros there and would not tell.
    let selects = several.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op.op));
    let n_told = selects.filter(|op| *op == Op::Select).count();
    assert_eq!(n_told > 0, fp8, "{n_told} of the encoded rows are cut off behind the last");
    let n_own = 4 / mesh.experts;
    for func in &several.funcs {
        for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::GroupedOuter) {
            let n = func.ty(op.results[0]).dims[0].as_fixed();
            assert_eq!(n, Some(n_own), "gradients are of a rank's own experts");
        }
    }
    for (rank, found) in outcome.found.iter().enumerate() {
        let own = outcome.expected(rank);
        for (name, (own, found)) in outcome.names.iter().zip(own.iter().zip(found)) {
            let apart = apart(own, found);
            let most = if name.ends_with(".v") { 2.0 * most } else { most };
            assert!(apart <= most, "{name}, rank {rank}, {mesh:?}: {apart:e} from one rank's");
        }
    }
}

const MESHES: [Mesh; 3] = [
    Mesh { data: 2, experts: 2, ..Mesh::ONE },
    Mesh { data: 4, experts: 2, zero: true, ..Mesh::ONE },
    Mesh { data: 4, experts: 4, ..Mesh::ONE },
];

#[test]
fn ranks_that_send_rows_compute_the_bits_of_one() {
    MESHES.into_iter().for_each(|mesh| check(false, mesh));
}

#[test]
fn so_they_do_in_codes() {
    MESHES.into_iter().for_each(|mesh| check(true, mesh));
}

/// Where rows fit, bits are as with room for all; where they do not, the step says so.
#[test]
fn room_for_rows_may_be_bounded() {
    let bounded = |capacity| Mesh { exchange_capacity: Some(capacity), ..MESHES[2] };
    check(false, bounded(2.5));
    check(true, bounded(2.5));
    check_at_experts(false, bounded(2.5), 1e-6);
    let rows = |m: &Module| {
        m.funcs
            .iter()
            .filter_map(|f| {
                let exchanged = f.body_ops().filter(|(_, op)| exchanges(op.op));
                exchanged.filter_map(|(_, op)| f.ty(op.results[0]).dims[0].symbols().next()).max()
            })
            .filter(|s| m.sym(*s).name.starts_with('C'))
            .count()
    };
    assert!(rows(&compiled(false, Some(bounded(2.5)))) > 0, "rows have a room");
    let why =
        try_step(false, bounded(1.0)).err().expect("more rows come to one rank than it sends");
    assert!(why.contains("more than 16 rows come together"), "{why}");
}

#[test]
fn gradients_of_experts_are_contracted_where_the_experts_are() {
    MESHES.into_iter().for_each(|mesh| check_at_experts(false, mesh, 1e-6));
}

/// Rows have scales along them in groups of 128, which are others where other rows lie: that is as
/// far from one rank as 8 bits are from its numbers.
#[test]
fn so_they_are_of_codes() {
    MESHES.into_iter().for_each(|mesh| check_at_experts(true, mesh, 0.03));
}

/// The layers of `MODEL` with an expert for every token and a cache, as they serve.
const SERVING: &str = r#"
dims { R = ragged(4) 16 }
weight @router : f32[2, 4, 8] at "layers.{i}.router" from [0] init drawn
weight @up : f32[2, 4, 4, 8] at "layers.{i}.experts.{j}.up" from [0, 0] init drawn
weight @down : f32[2, 4, 8, 4] at "layers.{i}.experts.{j}.down" from [0, 0] init drawn
weight @shared : f32[2, 8, 8] at "layers.{i}.shared" from [0] init drawn
state @cache : f32[2, 2, 4, 8] at "cache.{i}" from [0] init 0

func @layer(%x: f32[2, 4, 8], %router: f32[4, 8], %up: f32[4, 4, 8], %down: f32[4, 8, 4], %shared: f32[8, 8],
    %cache: state f32[2, 4, 8], %start: i32[2]) -> (f32[2, 4, 8], state f32[2, 4, 8]) donates (5 -> 1) {
  %seen, %next = cache_append %cache, %x, %start : f32[2, 4, 8], state f32[2, 4, 8]
  %a = add %x, %seen : f32[2, 4, 8]
  %scores = matmul %a, %router {ty = true} : f32[2, 4, 4]
  %p = softmax %scores : f32[2, 4, 4]
  %ids = topk %p {k = 2} : i32[2, 4, 2]
  %w = take %p, %ids : f32[2, 4, 2]
  %offsets, %order = route %ids {experts = 4, rows = R} : i32[5], i32[R]
  %rows = dispatch %a, %order {active = 2} : f32[R, 8]
  %1 = grouped_matmul %rows, %up, %offsets {ty = true, site = up} : f32[R, 4]
  %2 = sigmoid %1 : f32[R, 4]
  %3 = grouped_matmul %2, %down, %offsets {ty = true, site = down} : f32[R, 8]
  %y = combine %3, %order, %w {tokens = [2, 4], active = 2} : f32[2, 4, 8]
  %every = matmul %a, %shared {site = every} : f32[2, 4, 8]
  %4 = add %y, %every : f32[2, 4, 8]
  %h = add %a, %4 : f32[2, 4, 8]
  return %h, %next
}

func @forward(%x: f32[2, 4, 8], %start: i32[2], %router: f32[2, 4, 8], %up: f32[2, 4, 4, 8],
    %down: f32[2, 4, 8, 4], %shared: f32[2, 8, 8], %cache: state f32[2, 2, 4, 8])
    -> (out: f32[2, 4, 8], cache: state f32[2, 2, 4, 8]) donates (6 -> 1) {
  %h, %next = repeat %x, %router, %up, %down, %shared, %cache, %start
    {func = @layer, count = 2, carry = 1, xs = 5} : f32[2, 4, 8], state f32[2, 2, 4, 8]
  return %h, %next
}
"#;

/// How a unit serves.
#[derive(Default)]
struct How {
    staggered: bool,
    copies: Option<Copies>,
    exchange_capacity: Option<f64>,
}

fn serve(n: u64, how: &How) {
    let How { staggered, copies, exchange_capacity } = how;
    let (staggered, exchange_capacity) = (*staggered, *exchange_capacity);
    let served = |mesh: Option<Mesh>| {
        let mut m = module(SERVING);
        let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
        let cx = match mesh {
            None => PassCx::default(),
            Some(mesh) => PassCx {
                two_batches: true,
                staggered,
                mesh: Some(Mesh { exchange_capacity, ..mesh }),
                copies: copies.clone(),
                ..PassCx::default()
            },
        };
        apply(&mut m, &names, &cx);
        m
    };
    let given = |m: &Module| -> Vec<String> {
        let func = m.func(m.find("forward").expect("the entry stays"));
        func.params.iter().map(|p| func.value(*p).name.clone().expect("it has a name")).collect()
    };
    let one = served(None);
    let entry = one.find("forward").expect("the entry stays");
    let drawn = |seed: u64| -> BTreeMap<String, Tensor> {
        let draw = Draw { low: 0.1, high: 0.9, ints: 1.0 };
        let args = arguments(&one, entry, &Default::default(), seed, draw);
        given(&one).into_iter().zip(args).collect()
    };
    let weights = drawn(1);
    let several = served(Some(Mesh { data: n, experts: n, ..Mesh::ONE }));
    let woven = several.find(if staggered { "layer.staggered" } else { "layer.layer" });
    let woven = woven.expect("a turn does both halves");
    let begun = several.func(woven).body_ops().filter(|(_, op)| op.op == Op::ExchangeStart);
    assert!(begun.count() >= 3, "of four exchanges all but the last have something beside them");
    let half = |rank: usize, half: &str| drawn(10 + 2 * rank as u64 + u64::from(half == "b."));
    let own = |name: &str| ["x", "start", "cache"].contains(&name);
    let args = (0..n as usize).map(|rank| {
        let of = |name: &String| match name.split_at(name.len().min(2)) {
            (side @ ("a." | "b."), rest) => half(rank, side)[rest].clone(),
            _ => match weights.get(name) {
                Some(whole) => cut_for(&several, name, &placed(&several, name, whole), rank),
                None => turns(&several, name, rank),
            },
        };
        given(&several).iter().map(of).collect()
    });
    let interp = Interp::new(&several, Precision::Stated);
    let entry_of_ranks = several.find("forward").expect("the entry stays");
    let found = interp.run_ranks(entry_of_ranks, args.collect(), &Default::default());
    for (rank, found) in found.unwrap_or_else(|e| panic!("{e}")).iter().enumerate() {
        for (i, side) in ["a.", "b."].iter().enumerate() {
            let inputs = half(rank, side);
            let arg = |name: &String| match own(name) {
                true => inputs[name].clone(),
                false => weights[name].clone(),
            };
            let args = given(&one).iter().map(arg).collect();
            let expected = Interp::new(&one, Precision::Stated).run(entry, args);
            let expected = expected.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bits(&found[2 * i..2 * i + 2]), bits(&expected), "{side} of {rank}");
        }
    }
}

/// A stack of experts with those at each place.
fn placed(m: &Module, name: &str, whole: &Tensor) -> Tensor {
    let Some(Placed::Weights(first)) = m.stores[name].placed else { return whole.clone() };
    let (layers, experts) = (whole.dims[0], whole.dims[1]);
    let (numbers, size) = (whole.numbers(), whole.dims[2..].iter().product::<usize>());
    let mut all = vec![];
    for layer in 0..layers {
        for e in &m.placement[first as usize + layer] {
            let at = (layer * experts + *e as usize) * size;
            all.extend(&numbers[at..at + size]);
        }
    }
    let mut dims = whole.dims.clone();
    dims[1] = all.len() / (layers * size);
    Tensor::f32(&dims, all)
}

/// A table with the places of each expert in turn, another order on each rank.
fn turns(m: &Module, name: &str, rank: usize) -> Tensor {
    let store = &m.stores[name];
    let dims: Vec<usize> = store.ty.dims.iter().map(|d| d.as_fixed().unwrap() as usize).collect();
    let mut all = vec![];
    for line in &m.placement {
        for e in 0..dims[1] {
            let here = |p: &usize| line[*p] == e as u64;
            let places: Vec<usize> = (0..line.len()).filter(here).collect();
            all.extend((0..dims[2]).map(|turn| places[(3 * rank + turn) % places.len()] as i64));
        }
    }
    Tensor::i32(&dims, all)
}

#[test]
fn ranks_that_serve_two_halves_of_a_batch_compute_the_bits_of_one() {
    [2, 4].into_iter().for_each(|n| serve(n, &How::default()));
}

#[test]
fn so_they_do_where_experts_have_copies() {
    let how = |redundant, lines| How {
        staggered: redundant == 2,
        copies: Some(Copies { redundant, lines }),
        ..How::default()
    };
    serve(2, &how(2, vec![]));
    // Only elsewhere.
    serve(2, &how(0, vec![vec![3, 1, 0, 2], vec![2, 0, 3, 1]]));
    serve(4, &how(4, vec![vec![3, 1, 1, 0, 2, 1, 1, 3], vec![0, 1, 2, 3, 0, 0, 0, 0]]));
}

#[test]
fn so_they_do_half_a_layer_apart() {
    [2, 4].into_iter().for_each(|n| serve(n, &How { staggered: true, ..How::default() }));
}

#[test]
fn so_they_do_in_as_many_rounds_as_the_fullest_needs() {
    for (n, capacity, staggered) in [(2, 1.0, false), (4, 0.3, true), (4, 1.0, true)] {
        let exchange_capacity = Some(capacity);
        serve(n, &How { staggered, exchange_capacity, ..How::default() });
    }
    let copies = Some(Copies { redundant: 4, lines: vec![] });
    serve(4, &How { staggered: true, copies, exchange_capacity: Some(0.5) });
}
