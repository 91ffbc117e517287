//! The training step: against a loop by hand, and several micro-batches against one large batch.

mod support;

use std::collections::BTreeMap;

use support::{Draw, TRAIN, apply, arguments, distance, module, run, sizes};
use weft_ir::interp::{Data, Interp, Precision, Tensor};
use weft_ir::module::Module;
use weft_passes::{Mesh, PIPELINE, PassCx, Train};

/// Two layers whose bias follows their load, a balance loss that counts the batch within the
/// repeat, and a cross entropy that leaves out targets after token 0.
const MODEL: &str = r#"
dims { B <= 8, S <= 8 }
weight @emb : f32[5, 3] at "emb" init drawn
weight @w : f32[2, 3, 3] at "layers.{i}.w" from [0] init drawn
weight @g : f32[3] at "g" init 1
state @bias : f32[2, 3] at "layers.{i}.bias" from [0] init 0
schedule @gamma init 0.5
schedule @alpha init 0.1

func @layer(%h: f32[B, S, 3], %w: f32[3, 3], %bias: f32[3], %alpha: f32[]) -> (f32[B, S, 3], f32[3], f32[]) {
  %1 = matmul %h, %w : f32[B, S, 3]
  %2 = broadcast %bias {shape = [B, S, 3], dims = [2]} : f32[B, S, 3]
  %3 = add %1, %2 : f32[B, S, 3]
  %4 = tanh %3 : f32[B, S, 3]
  %5 = add %h, %4 : f32[B, S, 3]
  %6 = stop_gradient %4 : f32[B, S, 3]
  %7 = reduce_sum %6 {dims = [0, 1]} : f32[3]
  %8 = mul %4, %4 : f32[B, S, 3]
  %9 = reduce_sum %8 {dims = [0, 1, 2]} : f32[]
  %b = extent {of = B} : f32[]
  %s = extent {of = S} : f32[]
  %n = mul %b, %s : f32[]
  %all = batch_sum %n : f32[]
  %10 = div %9, %all : f32[]
  %11 = mul %alpha, %10 : f32[]
  return %5, %7, %11
}

func @loss(%tokens: i32[B, S], %emb: f32[5, 3], %w: f32[2, 3, 3], %g: f32[3], %bias: f32[2, 3], %alpha: f32[])
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

func @update(%"emit.layers.load": f32[2, 3], %bias: f32[2, 3], %gamma: f32[]) -> (bias: f32[2, 3]) {
  %1 = sign %"emit.layers.load" : f32[2, 3]
  %2 = broadcast %gamma {shape = [2, 3], dims = []} : f32[2, 3]
  %3 = mul %1, %2 : f32[2, 3]
  %4 = sub %bias, %3 : f32[2, 3]
  return %4
}
"#;

fn compiled(train: Train, apart: bool) -> Module {
    compiled_for(train, apart, None)
}

fn compiled_for(train: Train, apart: bool, mesh: Option<Mesh>) -> Module {
    compiled_of(MODEL, train, apart, mesh)
}

fn compiled_of(text: &str, train: Train, apart: bool, mesh: Option<Mesh>) -> Module {
    let mut m = module(text);
    let cx = PassCx { train: Some(train), gradients: true, apart, mesh, ..PassCx::default() };
    let names: Vec<&str> = PIPELINE.iter().map(|p| p.name).collect();
    apply(&mut m, &names, &cx);
    m
}

type Named = BTreeMap<String, Tensor>;

/// Arguments of `@train_step` by name; tokens [n, b, 4] drawn for the whole batch in order.
fn inputs(m: &Module, n: u64, b: u64) -> Named {
    let f = m.find("train_step").expect("the step was made");
    let sizes = sizes(m, &[("B", b), ("S", 4)]);
    let args = arguments(m, f, &sizes, 3, Draw { low: 0.1, high: 0.9, ints: 5.0 });
    let func = m.func(f);
    assert_eq!(func.ty(func.params[0]).dims[0].as_fixed(), Some(n));
    let names = func.params.iter().map(|p| func.value(*p).name.clone().unwrap());
    let mut all: Named = names.zip(args).collect();
    all.insert("step".into(), Tensor::scalar(1.0));
    all
}

fn step(m: &Module, inputs: &Named) -> Named {
    let f = m.find("train_step").unwrap();
    let func = m.func(f);
    let args: Vec<Tensor> =
        func.params.iter().map(|p| inputs[func.value(*p).name.as_ref().unwrap()].clone()).collect();
    let results = run(m, f, &args, &Default::default());
    func.result_names.iter().cloned().zip(results).collect()
}

fn close(a: &Named, b: &Named) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, x) in a {
        let off = distance(x, &b[name]);
        assert!(off < 1e-9, "{name}: {off:e}\n{:?}\n{:?}", x.numbers(), b[name].numbers());
    }
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let one = compiled(TRAIN, false);
    let whole = inputs(&one, 1, 6);
    let expected = step(&one, &whole);
    for n in [2, 3, 6] {
        for apart in [false, true] {
            let several = compiled(Train { micro_batches: n, ..TRAIN }, apart);
            let mut cut = whole.clone();
            let tokens = cut.get_mut("tokens").unwrap();
            tokens.dims = vec![n as usize, 6 / n as usize, 4];
            close(&step(&several, &cut), &expected);
        }
    }
}

/// The bits of every result; rounded to f32 as kernels round.
fn bits(results: &[Tensor]) -> Vec<Vec<u32>> {
    let of = |t: &Tensor| t.numbers().iter().map(|x| (*x as f32).to_bits()).collect();
    results.iter().map(of).collect()
}

#[test]
fn ranks_that_share_the_batch_compute_the_bits_of_one() {
    for (n, data) in [(2, 2), (6, 2), (4, 2), (4, 4), (8, 4)] {
        let train = Train { micro_batches: n, ..TRAIN };
        let one = compiled(train.clone(), false);
        let all = inputs(&one, n, 2);
        let of = |m: &Module, tokens: Tensor| -> Vec<Tensor> {
            let func = m.func(m.find("train_step").unwrap());
            let name = |p: &weft_ir::module::ValueId| func.value(*p).name.clone().unwrap();
            let given = |n: String| if n == "tokens" { tokens.clone() } else { all[&n].clone() };
            func.params.iter().map(|p| given(name(p))).collect()
        };
        let whole = of(&one, all["tokens"].clone());
        let entry = one.find("train_step").unwrap();
        let expected = Interp::new(&one, Precision::Stated).run(entry, whole).unwrap();

        let several = compiled_for(train, false, Some(Mesh { data, ..Mesh::default() }));
        let tokens = &all["tokens"];
        let parts = tokens.ints().unwrap().chunks(tokens.len() / data as usize);
        let dims = [(n / data) as usize, tokens.dims[1], tokens.dims[2]];
        let args = parts.map(|p| of(&several, Tensor::i32(&dims, p.to_vec()))).collect();
        let entry = several.find("train_step").unwrap();
        let interp = Interp::new(&several, Precision::Stated);
        let found = interp.run_ranks(entry, args, &Default::default()).unwrap();
        assert_eq!(found.len(), data as usize);
        for results in &found {
            assert_eq!(bits(results), bits(&expected), "{n} micro-batches, {data} ranks");
        }
    }
}

/// Of a dim that is cut, what each rank keeps.
fn cut_for(m: &Module, name: &str, whole: &Tensor, rank: usize) -> Tensor {
    let ty = m.stores.get(name).map(|store| &store.ty);
    let Some(dim) = ty.and_then(|ty| ty.axes.iter().position(Option::is_some)) else {
        return whole.clone();
    };
    let part = ty.and_then(|ty| ty.dims[dim].as_fixed()).expect("a fixed size") as usize;
    let inner: usize = whole.dims[dim + 1..].iter().product();
    let numbers = whole.numbers();
    let blocks = numbers.chunks(whole.dims[dim] * inner);
    let own = blocks.flat_map(|b| b[rank * part * inner..(rank + 1) * part * inner].to_vec());
    let mut dims = whole.dims.clone();
    dims[dim] = part;
    Tensor { dims, data: Data::Float(own.collect()), ..whole.clone() }
}

/// The model with sizes of 4 and 6 for 3 and 5, so that there is something to divide.
fn even() -> String {
    let sizes = [(", 3]", ", 4]"), ("[3]", "[4]"), ("3, 4]", "4, 4]"), (", 5]", ", 6]")];
    let sizes = sizes.into_iter().chain([("[5, ", "[6, "), ("[3, 6]", "[4, 6]")]);
    sizes.fold(MODEL.to_string(), |text, (odd, even)| text.replace(odd, even))
}

#[test]
fn ranks_that_divide_the_optimizer_compute_their_parts_of_the_bits_of_one() {
    for (n, data) in [(2, 2), (4, 4)] {
        let train = Train { micro_batches: n, ..TRAIN };
        let one = compiled_of(&even(), train.clone(), false, None);
        let all = inputs(&one, n, 2);
        let entry = one.find("train_step").unwrap();
        let names = |m: &Module, entry| -> Vec<String> {
            let func = m.func(entry);
            func.params.iter().map(|p| func.value(*p).name.clone().unwrap()).collect()
        };
        let whole = names(&one, entry).iter().map(|n| all[n].clone()).collect();
        let expected = Interp::new(&one, Precision::Stated).run(entry, whole).unwrap();

        let several =
            compiled_of(&even(), train, false, Some(Mesh { data, zero: true, ..Mesh::default() }));
        let divided = several.stores.values().filter(|s| !s.ty.axes.is_empty()).count();
        assert!(divided >= 6, "{data} ranks divide {divided}");
        let entry = several.find("train_step").unwrap();
        let tokens = &all["tokens"];
        let parts = tokens.ints().unwrap().chunks(tokens.len() / data as usize);
        let dims = [(n / data) as usize, tokens.dims[1], tokens.dims[2]];
        let args = parts.enumerate().map(|(rank, part)| {
            let of = |name: &String| match name.as_str() {
                "tokens" => Tensor::i32(&dims, part.to_vec()),
                _ => cut_for(&several, name, &all[name], rank),
            };
            names(&several, entry).iter().map(of).collect()
        });
        let interp = Interp::new(&several, Precision::Stated);
        let found = interp.run_ranks(entry, args.collect(), &Default::default()).unwrap();
        let results = &several.func(entry).result_names;
        for (rank, found) in found.iter().enumerate() {
            let own = results.iter().zip(&expected);
            let own: Vec<Tensor> = own.map(|(n, x)| cut_for(&several, n, x, rank)).collect();
            assert_eq!(bits(found), bits(&own), "rank {rank} of {data}");
        }
    }
}

/// AdamW, clipping and the update block written out, on the gradients of `@grad`.
#[test]
fn three_steps_by_hand() {
    let m = compiled(TRAIN, false);
    let mut state = inputs(&m, 1, 3);
    for name in ["emb", "w", "g"] {
        for moment in ["m", "v"] {
            let zeros = Data::Float(vec![0.0; state[name].data.len()]);
            state.get_mut(&format!("{name}.{moment}")).unwrap().data = zeros;
        }
    }
    for t in 1..=3 {
        state.insert("step".into(), Tensor::scalar(t as f64));
        let found = step(&m, &state);
        let expected = by_hand(&m, &state, t);
        close(&found, &expected);
        assert!(found["grad_norm"].numbers()[0] > 0.05, "clipping has something to do");
        for (name, x) in found {
            if state.contains_key(&name) {
                state.insert(name, x);
            }
        }
    }
}

fn by_hand(m: &Module, state: &Named, t: i32) -> Named {
    let grad = m.find("grad").unwrap();
    let func = m.func(grad);
    let mut state = state.clone();
    state.get_mut("tokens").unwrap().dims.remove(0);
    let args: Vec<Tensor> =
        func.params.iter().map(|p| state[func.value(*p).name.as_ref().unwrap()].clone()).collect();
    let results: Named =
        func.result_names.iter().cloned().zip(run(m, grad, &args, &Default::default())).collect();
    let mut out = Named::new();
    for name in ["objective", "metric.loss", "emit.layers.load"] {
        out.insert(name.into(), results[name].clone());
    }
    let weights = ["emb", "w", "g"];
    let all = weights.iter().flat_map(|w| results[&format!("grad.{w}")].numbers());
    let norm = all.map(|x| x * x).sum::<f64>().sqrt();
    out.insert("grad_norm".into(), Tensor::scalar(norm));
    let lr = state["lr"].numbers()[0];
    for name in weights {
        let decay = if name == "g" { 0.0 } else { 0.1 };
        let g = results[&format!("grad.{name}")].numbers();
        let of = |n: String| state[&n].numbers();
        let (w, mm, vv) = (of(name.into()), of(format!("{name}.m")), of(format!("{name}.v")));
        let (mut w2, mut m2, mut v2) = (vec![], vec![], vec![]);
        for i in 0..w.len() {
            let g = g[i] * (0.05 / norm).min(1.0);
            let m = 0.9 * mm[i] + 0.1 * g;
            let v = 0.95 * vv[i] + 0.05 * g * g;
            let (mh, vh) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.95f64.powi(t)));
            w2.push(w[i] - lr * (mh / (vh.sqrt() + 1e-8) + decay * w[i]));
            m2.push(m);
            v2.push(v);
        }
        for (n, x) in [(name.to_string(), w2), (format!("{name}.m"), m2), (format!("{name}.v"), v2)]
        {
            out.insert(n.clone(), Tensor { data: Data::Float(x), ..state[&n].clone() });
        }
    }
    let gamma = state["gamma"].numbers()[0];
    let load = results["emit.layers.load"].numbers();
    let bias = state["bias"].numbers();
    let bias = bias.iter().zip(&load).map(|(b, l)| b - gamma * l.signum()).collect();
    out.insert("bias".into(), Tensor { data: Data::Float(bias), ..state["bias"].clone() });
    out
}

#[test]
fn the_step_donates_what_it_changes() {
    let m = compiled(Train { micro_batches: 2, ..TRAIN }, false);
    let f = m.func(m.find("train_step").unwrap());
    let name = |p: u32| f.value(f.params[p as usize]).name.clone().unwrap();
    let pairs: Vec<(String, String)> =
        f.donated.iter().map(|(p, r)| (name(*p), f.result_names[*r as usize].clone())).collect();
    assert_eq!(pairs.len(), 10);
    assert!(pairs.iter().all(|(p, r)| p == r), "{pairs:?}");
    assert_eq!(m.stores["w.m"].templates, ["layers.{i}.w.m"]);
}

#[test]
fn a_sum_over_the_batch_may_not_depend_on_weights() {
    let text = MODEL.replace(
        "%7 = batch_sum %6",
        "%w0 = reduce_sum %g {dims = [0]} : f32[]\n  %7 = batch_sum %w0",
    );
    let mut m = module(&text);
    let cx = PassCx { train: Some(Train { micro_batches: 2, ..TRAIN }), ..PassCx::default() };
    let pass = weft_passes::by_name("batch_sums").unwrap();
    let e = weft_passes::run_pass(1, pass, &mut m, &cx).unwrap_err();
    assert!(e.to_string().contains("depends on g"), "{e}");
}
