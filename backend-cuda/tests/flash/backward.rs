//! The derivative: the kernel of queries, then those of keys, whose sums are added up here.

use ptx_sim::{Arg, Completion, ErrorKind};
use weft_backend_cuda::flash::Attention;
use weft_backend_cuda::flash::backward::{Backward, Makes, TILE_ROWS};
use weft_backend_cuda::flash::signature::Argument;
use weft_backend_cuda::flash::template::Template;

use crate::problem::{
    Bench, Problem, RANDOM, Wrong, each_is_needed, plain, problem, softmax, text,
};

/// The kernels of a problem, and the units of heads whose sums those of keys make.
struct Kernels {
    of_queries: Backward,
    of_keys: Vec<Backward>,
    units: usize,
}

fn kernels(problem: &Problem, apart: bool) -> Kernels {
    let of = &problem.attention;
    let shares: Vec<usize> = problem.k_heads.iter().copied().chain([problem.v_heads]).collect();
    let units = shares.iter().copied().max().unwrap();
    let partial: Vec<bool> = shares.iter().map(|n| *n != units).collect();
    let n = of.parts.len();
    let kernel = |makes: Makes, partial: &[bool]| {
        let partial = partial.to_vec();
        Backward { of: of.clone(), makes, partial }
    };
    let of_keys = match apart {
        false => vec![kernel(Makes::KeysAndValues, &partial)],
        true => vec![kernel(Makes::Keys, &partial[..n]), kernel(Makes::Values, &partial[n..])],
    };
    Kernels { of_queries: kernel(Makes::Queries, &vec![false; n]), of_keys, units }
}

/// A derivative and how far it may be off, element by element: `[batch, rows, heads, width]`.
struct Expected {
    name: String,
    heads: usize,
    width: usize,
    values: Vec<f64>,
    sizes: Vec<f64>,
}

/// What the kernels are given of the forward pass, and what they should make of it.
struct Reference {
    o: Vec<u8>,
    lse: Vec<u8>,
    /// Every dq, every dk, dv.
    made: Vec<Expected>,
}

fn reference(p: &Problem, bench: &Bench) -> Reference {
    let x = &bench.operands;
    let n = x.q.len();
    let zeros = |name: String, rows: usize, heads: usize, width: usize| {
        let values = vec![0.0; p.batch * rows * heads * width];
        Expected { name, heads, width, sizes: values.clone(), values }
    };
    let mut made = vec![];
    made.extend((0..n).map(|i| zeros(format!("dq{i}"), p.queries, p.heads, x.q[i].width)));
    made.extend((0..n).map(|i| zeros(format!("dk{i}"), p.keys, x.k[i].heads, x.k[i].width)));
    made.push(zeros("dv".into(), p.keys, x.v.heads, x.v.width));
    let width = x.v.width;
    let mut o = vec![half::bf16::ZERO; p.batch * p.queries * p.heads * width];
    let mut lse = vec![0f32; p.batch * p.heads * p.queries];
    for (batch, head, query) in p.rows() {
        let (seen, scores) = p.scores(x, [batch, query, head]);
        let (top, sum, log) = softmax(&scores);
        lse[(batch * p.heads + head) * p.queries + query] = log as f32;
        let of_v = head * x.v.heads / p.heads;
        let line = ((batch * p.queries + query) * p.heads + head) * width;
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp() / sum).collect();
        let d_o = x.d_o.at(batch, query, head);
        let mut delta = 0.0;
        for d in 0..width {
            let terms = seen.iter().zip(&weights).map(|(k, w)| w * x.v.at(batch, *k, of_v)[d]);
            let rounded = half::bf16::from_f64(terms.sum());
            o[line + d] = rounded;
            delta += rounded.to_f64() * d_o[d];
        }
        for (key, w) in seen.iter().zip(&weights) {
            let v = x.v.at(batch, *key, of_v);
            let dp: f64 = d_o.iter().zip(v).map(|(a, b)| a * b).sum();
            let ds = w * (dp - delta) * p.scale();
            let mut add = |i: usize, rows: usize, row: usize, head: usize, by: f64, of: &[f64]| {
                let to = &mut made[i];
                let start = ((batch * rows + row) * to.heads + head) * to.width;
                for (d, of) in of.iter().enumerate() {
                    to.values[start + d] += by * of;
                    to.sizes[start + d] += (by * of).abs();
                }
            };
            for i in 0..n {
                let own = head * x.k[i].heads / p.heads;
                add(i, p.queries, query, head, ds, x.k[i].at(batch, *key, own));
                add(n + i, p.keys, *key, own, ds, x.q[i].at(batch, query, head));
            }
            add(2 * n, p.keys, *key, of_v, *w, d_o);
        }
    }
    Reference {
        o: o.iter().flat_map(|x| x.to_le_bytes()).collect(),
        lse: lse.iter().flat_map(|x| x.to_le_bytes()).collect(),
        made,
    }
}

/// Runs all kernels; `texts` are theirs, in order.
fn run(
    p: &Problem,
    kernels: &Kernels,
    texts: &[String],
    completion: Completion,
) -> Result<(), Wrong> {
    let mut bench = Bench::new(p, completion);
    let wanted = reference(p, &bench);
    let (po, pl) = (bench.device.alloc_from(&wanted.o), bench.device.alloc_from(&wanted.lse));
    let padded = p.queries.next_multiple_of(TILE_ROWS as usize);
    let statistics = bench.device.alloc(8 * p.batch * p.heads * padded);
    let n = p.attention.parts.len();
    let all = [&kernels.of_queries].into_iter().chain(&kernels.of_keys);
    for (kernel, text) in all.zip(texts) {
        let first = match kernel.makes {
            Makes::Queries => 0,
            Makes::Keys | Makes::KeysAndValues => n,
            Makes::Values => 2 * n,
        };
        // A sum that is not whole has units for heads.
        let shape = |i: usize| {
            let to = &wanted.made[first + i];
            let heads = if kernel.partial[i] { kernels.units } else { to.heads };
            let rows = if kernel.keeps_keys() { p.keys } else { p.queries };
            (rows, heads, to.width)
        };
        let made: Vec<u64> = (0..kernel.partial.len())
            .map(|i| {
                let (rows, heads, width) = shape(i);
                let bytes = if kernel.partial[i] { 4 } else { 2 };
                bench.device.alloc(p.batch * rows * heads * width * bytes)
            })
            .collect();
        let own = |argument: &Argument| {
            Some(match argument {
                Argument::O => Arg::Ptr(po),
                Argument::Lse => Arg::Ptr(pl),
                Argument::Statistics => Arg::Ptr(statistics),
                Argument::Made(i) => Arg::Ptr(made[*i]),
                Argument::MadeStride(i, dim) => {
                    let (rows, heads, width) = shape(*i);
                    let line = heads * width;
                    Arg::I64([rows * line, line, width][*dim] as i64)
                }
                Argument::HeadsPerUnit => Arg::I64((p.heads / kernels.units) as i64),
                _ => return None,
            })
        };
        bench.launch(text, &kernel.launch(), p.grid, &own)?;
        for (i, at) in made.iter().enumerate() {
            let to = &wanted.made[first + i];
            let (rows, heads, width) = shape(i);
            let n = p.batch * rows * heads * width;
            let got = match kernel.partial[i] {
                false => bench.bf16(*at, n)?,
                true => summed(&bench.f32(*at, n)?, heads / to.heads, width),
            };
            compare(to, &got).map_err(Wrong::Numbers)?;
        }
    }
    Ok(())
}

/// Adds up `shared` neighbouring units.
fn summed(parts: &[f32], shared: usize, width: usize) -> Vec<f64> {
    let units = parts.chunks(shared * width);
    let sum =
        |unit: &[f32], d: usize| -> f64 { unit.chunks(width).map(|line| f64::from(line[d])).sum() };
    units.flat_map(|unit| (0..width).map(move |d| sum(unit, d))).collect()
}

fn compare(wanted: &Expected, got: &[f64]) -> Result<(), String> {
    for (i, (got, want)) in got.iter().zip(&wanted.values).enumerate() {
        // Weights, dS and results are rounded to 8 bits; differences of f32 are what is left where
        // terms cancel.
        let bound = wanted.sizes[i] * 2f64.powi(-7) + 1e-5;
        if !((got - want).abs() <= bound) {
            return Err(format!("{}[{i}] is {got}, not {want} to {bound}", wanted.name));
        }
    }
    Ok(())
}

fn texts(kernels: &Kernels) -> Vec<String> {
    let all = [&kernels.of_queries].into_iter().chain(&kernels.of_keys);
    all.map(|kernel| text(kernel.source("test"))).collect()
}

fn check_as(problem: &Problem, apart: bool) {
    let kernels = kernels(problem, apart);
    let texts = texts(&kernels);
    for completion in [Completion::Lazy, RANDOM] {
        let done = run(problem, &kernels, &texts, completion);
        done.unwrap_or_else(|e| panic!("{completion:?}: {e:?}"));
    }
}

fn check(problem: &Problem) {
    check_as(problem, false);
}

#[test]
fn several_blocks_and_a_partial_one() {
    check(&problem(plain(&[64], 64), [1, 1, 130, 300]));
}

#[test]
fn causal_heads_of_192_and_128_in_two_parts_of_which_one_is_shared() {
    let attention = Attention { causal: true, ..plain(&[128, 64], 128) };
    let base = problem(attention, [1, 2, 150, 150]);
    check(&Problem { k_heads: vec![2, 1], grid: 3, ..base });
}

#[test]
fn widths_that_are_not_whole_lines() {
    check(&problem(plain(&[24, 8], 40), [2, 1, 70, 40]));
}

#[test]
fn wide_heads_take_a_kernel_for_keys_and_one_for_values() {
    let widest = problem(plain(&[256], 256), [1, 1, 66, 70]);
    let both = &kernels(&widest, false).of_keys[0];
    let refused = both.check().unwrap_err();
    assert!(refused.contains("do not fit in registers"), "{refused}");
    check_as(&widest, true);
}

#[test]
fn starts_and_segments_hide_keys_and_may_hide_all() {
    let attention = Attention { causal: true, offset: true, segments: true, ..plain(&[32], 32) };
    let base = problem(attention, [2, 4, 70, 150]);
    // The second batch begins behind its keys: its first queries see none.
    let problem = Problem {
        k_heads: vec![2],
        v_heads: 1,
        starts: vec![80, -3],
        query_segments: (0..140).map(|i| i % 70 / 30).collect(),
        key_segments: (0..300).map(|i| i % 150 / 65).collect(),
        ..base
    };
    check(&problem);
}

/// A problem small enough for many runs, with every wait in use.
fn faulty() -> Problem {
    Problem { grid: 1, ..problem(plain(&[64], 64), [1, 1, 300, 560]) }
}

fn each_is_missed(what: &str, kinds: &[ErrorKind], spare: &[usize]) {
    let problem = faulty();
    let kernels = kernels(&problem, false);
    let texts = texts(&kernels);
    for (i, text) in texts.iter().enumerate() {
        assert!(text.contains(what), "{what}");
        let spare = if i == 1 { spare } else { &[] };
        each_is_needed(text, what, kinds, spare, |changed, completion| {
            let mut all = texts.clone();
            all[i] = changed.to_string();
            run(&problem, &kernels, &all[..=i], completion)
        });
    }
}

#[test]
fn every_wait_of_producer_and_consumers_is_needed() {
    each_is_missed("@!done bra", &[ErrorKind::MissingWait, ErrorKind::Barrier], &[]);
}

/// But for the last one in the kernel of keys, which only lets registers go earlier.
#[test]
fn every_wait_for_products_is_needed() {
    each_is_missed("wgmma.wait_group", &[ErrorKind::MissingWait], &[3]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let of = plain(&[20], 64);
    let refused = Backward { of, makes: Makes::Queries, partial: vec![false] }.check();
    assert!(refused.unwrap_err().contains("not a multiple of 8"));
    let of = plain(&[320], 64);
    let refused = Backward { of, makes: Makes::Queries, partial: vec![false] }.check();
    assert!(refused.unwrap_err().contains("320 wide, more than 256"));
}
