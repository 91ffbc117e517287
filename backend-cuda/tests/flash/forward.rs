//! The forward pass.

use ptx_sim::{Arg, Completion, ErrorKind};
use weft_backend_cuda::flash::Attention;
use weft_backend_cuda::flash::signature::Argument;
use weft_backend_cuda::flash::template::Template;

use crate::problem::{
    Bench, Problem, RANDOM, Wrong, each_is_needed, plain, problem, softmax, text,
};

fn source(problem: &Problem) -> String {
    text(problem.attention.source("test"))
}

fn run(problem: &Problem, text: &str, completion: Completion) -> Result<(), Wrong> {
    let mut bench = Bench::new(problem, completion);
    let width = problem.attention.v_width as usize;
    let rows = problem.batch * problem.heads * problem.queries;
    let (po, pl) = (bench.device.alloc(2 * rows * width), bench.device.alloc(4 * rows));
    let own = |argument: &Argument| match argument {
        Argument::O => Some(Arg::Ptr(po)),
        Argument::Lse => Some(Arg::Ptr(pl)),
        _ => None,
    };
    bench.launch(text, &problem.attention.launch(), problem.grid, &own)?;
    let (o, lse) = (bench.bf16(po, rows * width)?, bench.f32(pl, rows)?);
    compare(problem, &bench, &o, &lse).map_err(Wrong::Numbers)
}

fn compare(p: &Problem, bench: &Bench, o: &[f64], lse: &[f32]) -> Result<(), String> {
    let v = &bench.operands.v;
    for (batch, head, query) in p.rows() {
        let (seen, scores) = p.scores(&bench.operands, [batch, query, head]);
        let (top, sum, want) = softmax(&scores);
        let got = lse[(batch * p.heads + head) * p.queries + query];
        let at = format!("batch {batch}, head {head}, query {query}");
        let same = f64::from(got) == want;
        if !same && !((f64::from(got) - want).abs() < 2e-5 * (1.0 + want.abs())) {
            return Err(format!("{at}: lse is {got}, not {want}"));
        }
        for d in 0..v.width {
            let (mut want, mut size) = (0.0, 0.0);
            for (key, s) in seen.iter().zip(&scores) {
                let of = v.at(batch, *key, head * p.v_heads / p.heads)[d];
                want += (s - top).exp() / sum * of;
                size += (s - top).exp() / sum * of.abs();
            }
            let i = ((batch * p.queries + query) * p.heads + head) * v.width + d;
            // Weights and results are rounded to 8 bits.
            if !((o[i] - want).abs() <= size * 2f64.powi(-7)) {
                return Err(format!("{at}: o[{d}] is {}, not {want}", o[i]));
            }
        }
    }
    Ok(())
}

fn check(problem: &Problem) {
    let text = source(problem);
    for completion in [Completion::Lazy, RANDOM] {
        run(problem, &text, completion).unwrap_or_else(|e| panic!("{completion:?}: {e:?}"));
    }
}

#[test]
fn several_blocks_of_keys_and_a_partial_one() {
    check(&problem_of_width(64));
    check(&problem_of_width(128));
}

#[test]
fn causal_heads_of_192_and_128_in_two_parts_of_which_one_is_shared() {
    let attention = Attention { causal: true, ..plain(&[128, 64], 128) };
    let base = problem(attention, [1, 2, 200, 200]);
    check(&Problem { k_heads: vec![2, 1], grid: 3, ..base });
}

#[test]
fn widths_that_are_not_whole_lines() {
    check(&problem(plain(&[24, 8], 40), [2, 1, 70, 40]));
}

#[test]
fn wide_values_take_smaller_blocks() {
    let attention = plain(&[256], 256);
    let widest = problem(attention, [1, 1, 66, 130]);
    check(&widest);
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
    Problem { grid: 1, ..problem(plain(&[64], 64), [1, 1, 256, 700]) }
}

#[test]
fn every_wait_of_producer_and_consumers_is_needed() {
    let (problem, text) = (faulty(), source(&faulty()));
    // Queries, keys and values, in the producer's loop and in the consumers', and where the
    // consumers' begins and ends.
    assert!(text.matches("@!done bra").count() >= 6);
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    each_is_needed(&text, "@!done bra", &kinds, &[], |text, how| run(&problem, text, how));
}

#[test]
fn every_wait_for_products_is_needed() {
    let (problem, text) = (faulty(), source(&faulty()));
    assert_eq!(text.matches("wgmma.wait_group").count(), 4);
    let kinds = [ErrorKind::MissingWait];
    each_is_needed(&text, "wgmma.wait_group", &kinds, &[], |text, how| run(&problem, text, how));
}

/// Where heads are narrow the warpgroups take turns: a turn that is not given ends in a deadlock.
#[test]
fn every_turn_of_a_warpgroup_is_given() {
    let (problem, text) = (faulty(), source(&faulty()));
    // The first one, and those of the loop.
    assert_eq!(text.matches("bar.arrive %r").count(), 2);
    let kinds = [ErrorKind::Deadlock];
    each_is_needed(&text, "bar.arrive %r", &kinds, &[], |text, how| run(&problem, text, how));
    // It is given between the products and the wait for the first of them.
    let at = |what: &str| text.match_indices(what).map(|(at, _)| at).collect::<Vec<_>>();
    let (gives, ends) = (at("bar.arrive %r")[1], at("commit_group"));
    let waits = at("wait_group.sync.aligned 1")[0];
    assert!(ends.iter().any(|end| *end < gives && gives < waits), "{ends:?} {gives} {waits}");

    let wide = source(&problem_of_width(128));
    assert!(!wide.contains("bar.arrive"), "wide heads take no turns");
}

fn problem_of_width(width: u32) -> Problem {
    problem(plain(&[width], width), [1, 1, 130, 300])
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = plain(&[576], 512).check().unwrap_err();
    assert!(refused.contains("512 wide, more than 256"), "{refused}");
    let refused = plain(&[20], 64).check().unwrap_err();
    assert!(refused.contains("not a multiple of 8"), "{refused}");
    let refused = plain(&[1024], 64).check().unwrap_err();
    assert!(refused.contains("too wide for shared memory"), "{refused}");
}
