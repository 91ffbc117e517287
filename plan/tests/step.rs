//! Steps and weaves whose times can be worked out by hand.

use weft_plan::cluster::{Cluster, WhatIf};
use weft_plan::kernel::{Kernel, Work};
use weft_plan::streams::{Streams, Transfer};
use weft_plan::unit::{Passes, Unit, Weights};
use weft_plan::weave::{self, Times, UnitTimes};
use weft_plan::{Layout, plan};
use weft_schedule::{Name, Size, generate};

/// A GPU whose rows take as many seconds as they have bytes, and whose links take none.
fn cluster() -> Cluster {
    let mut c = Cluster::parse(include_str!("../../clusters/h800.json")).expect("a cluster");
    (c.memory_bytes_per_s, c.rows, c.launch_us) = (1.0, 1.0, 0.0);
    c.overlap.rows = 1.0;
    (c.network_bytes_per_s, c.node_bytes_per_s, c.memory_bytes) = (1e30, 1e30, 1e12);
    c
}

fn rows(bytes: f64) -> Passes {
    let work = Work::Rows { bytes, encode: None };
    Passes { attention: vec![Kernel { name: "rows".into(), work }], ..Passes::default() }
}

/// A layer of so many seconds forward, input gradient, weight gradient; no weights.
fn layer(forward: f64, input: f64, weight: f64) -> Unit {
    Unit {
        name: "layer".into(),
        forward: rows(forward),
        input: rows(input),
        weight: rows(weight),
        weights: Weights::default(),
        saved_bytes: 10.0,
        saved_row_bytes: 0.0,
    }
}

fn layout(name: Name, ranks: usize, n: usize, stages: usize) -> Layout {
    let size = Size { n_ranks: ranks, n_micro_batches: n, stages_per_rank: stages };
    Layout {
        data: 1,
        tensor: 1,
        experts: 1,
        node: 8,
        nodes_per_token: None,
        zero: false,
        communication_sms: 0,
        table: generate(name, size).expect("a legal size"),
        tokens: 100,
        message_bytes: 0.0,
        within_memory: true,
        stage_layers: None,
        moment_bytes: 4.0,
    }
}

#[test]
fn equal_stages_take_what_the_papers_formulas_say() {
    let c = cluster();
    let units = vec![layer(1.0, 1.0, 1.0); 8];
    // Stages of two layers: F = I = W = 2. Busy time and the formula's bubble.
    let (f, b, w) = (2.0, 4.0, 2.0);
    for (name, bubble) in [(Name::OneFOneB, 3.0 * (f + b)), (Name::ZbH1, 3.0 * (f + b - 2.0 * w))] {
        let l = layout(name, 4, 8, 1);
        let p = plan(&units, &c, &l, &[]).expect("a plan");
        assert_eq!(p.timeline.makespan(), 8.0 * (f + b) + bubble, "{name}");
        assert_eq!(p.bubble_seconds, bubble, "{name}");
        assert_eq!(p.step_seconds, p.timeline.makespan());
        assert_eq!(p.tokens_per_s_per_gpu, 800.0 / p.step_seconds / 4.0);
        // Rank r holds 4 - r micro-batches of two layers.
        let held: Vec<f64> = p.memory.iter().map(|m| m.activations).collect();
        assert_eq!(held, [80.0, 60.0, 40.0, 20.0], "{name}");
    }
    let l = layout(Name::DualPipe, 4, 8, 2);
    let p = plan(&units, &c, &l, &[]).expect("a plan");
    // Without exchanges a pair is both, one after the other: 26 units of the schedule's clock.
    assert_eq!(p.timeline.makespan(), 2.0 * 26.0);
}

#[test]
fn memory_and_the_optimizer_follow_the_layout() {
    let mut c = cluster();
    (c.memory_bytes_per_s, c.network_bytes_per_s) = (1e3, 10.0);
    let mut unit = layer(1.0, 1.0, 1.0);
    unit.weights = Weights {
        dense: 6.0,
        experts: 80.0,
        dense_bytes: 6.0,
        expert_bytes: 80.0,
        ..Weights::default()
    };
    let mut l = layout(Name::OneFOneB, 1, 2, 1);
    (l.data, l.experts, l.zero) = (8, 4, true);
    let p = plan(&[unit], &c, &l, &[]).expect("a plan");
    let m = p.memory[0];
    // A quarter of the experts; f32 gradients of all; master and two moments (12 bytes) divided
    // among 8 ranks for what is dense, among 2 for experts.
    assert_eq!(m.weights, 6.0 + 20.0);
    assert_eq!(m.gradients, 4.0 * 26.0);
    assert_eq!(m.optimizer, 12.0 * (6.0 / 8.0 + 20.0 / 2.0));
    let link = 6.0 * (6.0 * 7.0 / 8.0 + 20.0 / 2.0) / 10.0;
    let update = (4.0 + 8.0 + 16.0 + 2.0) * (6.0 / 8.0 + 20.0 / 2.0) / 1e3;
    let encode = 4.0 * 26.0 / 1e3;
    assert!((p.optimizer_seconds - (link + update + encode)).abs() < 1e-12);
}

#[test]
fn what_two_units_share_is_held_once() {
    let c = cluster();
    let mut ends = [layer(1.0, 1.0, 1.0), layer(1.0, 1.0, 1.0)];
    for unit in &mut ends {
        unit.weights.shared.insert("embed".into(), 50.0);
        unit.weights.dense_bytes = 100.0;
    }
    let together = plan(&ends, &c, &layout(Name::OneFOneB, 1, 2, 1), &[]).expect("a plan");
    assert_eq!((together.memory[0].weights, together.memory[0].gradients), (100.0, 200.0));
    let apart = plan(&ends, &c, &layout(Name::OneFOneB, 2, 2, 1), &[]).expect("a plan");
    assert!(apart.memory.iter().all(|m| (m.weights, m.gradients) == (100.0, 200.0)));
}

fn times(attention: f64, mlp: f64, dispatch: f64, combine: f64) -> Times {
    let transfer = |seconds| Transfer { seconds, wait: 0.0 };
    let (dispatch, combine) = (transfer(dispatch), transfer(combine));
    Times { attention, mlp, dispatch, combine }
}

/// No stream does two things at once.
fn streams_are_in_order(w: &Streams) {
    for exchange in [false, true] {
        let of: Vec<_> = w.tasks.iter().filter(|t| t.exchange == exchange).collect();
        assert!(of.windows(2).all(|t| t[0].end <= t[1].start));
    }
}

#[test]
fn a_layer_alone_waits_and_a_pair_does_not() {
    let unit = UnitTimes {
        forward: times(4.0, 4.0, 3.0, 3.0),
        input: times(8.0, 5.0, 3.0, 3.0),
        weight: times(2.0, 5.0, 0.0, 0.0),
    };
    let one = [unit];
    assert_eq!(weave::forward(&one).seconds(), 4.0 + 3.0 + 4.0 + 3.0);
    // dispatch(B) lies under mlp(W), which is longer.
    assert_eq!(weave::backward(&one, true).seconds(), 3.0 + 5.0 + 5.0 + 8.0 + 2.0);
    assert_eq!(weave::backward(&one, false).seconds(), 3.0 + 5.0 + 3.0 + 8.0);
    assert_eq!(weave::weight(&one).seconds(), 7.0);
    // attn(F) 0-4 over combine(B) 0-3, mlp(B) 4-9 over dispatch(F) 4-7, mlp(W) 9-14 over
    // dispatch(B) 9-12, mlp(F) 14-18, attn(B) 18-26 over combine(F) 18-21, attn(W) 26-28.
    let w = weave::pair(&one, &one);
    streams_are_in_order(&w);
    assert_eq!((w.seconds(), w.computing(), w.covered()), (28.0, 28.0, (12.0, 12.0)));
}

#[test]
fn a_pair_is_never_faster_than_a_stream_nor_slower_than_both() {
    let mut state = 5u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % 10) as f64
    };
    for n in 0..60 {
        let mut unit = || UnitTimes {
            forward: times(next(), next(), next(), next()),
            input: times(next(), next(), next(), next()),
            weight: times(next(), next(), 0.0, 0.0),
        };
        let ahead: Vec<UnitTimes> = (0..1 + n % 4).map(|_| unit()).collect();
        let back: Vec<UnitTimes> = (0..1 + n % 3).map(|_| unit()).collect();
        let w = weave::pair(&ahead, &back);
        streams_are_in_order(&w);
        let all = |f: &dyn Fn(&UnitTimes) -> [f64; 2]| -> [f64; 2] {
            let f_side =
                ahead.iter().map(|u| f(&UnitTimes { forward: u.forward, ..Default::default() }));
            let b_side = back
                .iter()
                .map(|u| f(&UnitTimes { input: u.input, weight: u.weight, ..Default::default() }));
            f_side.chain(b_side).fold([0.0; 2], |s, t| [s[0] + t[0], s[1] + t[1]])
        };
        let [compute, exchange] = all(&|u| {
            let parts = [&u.forward, &u.input, &u.weight];
            [
                parts.map(|t| t.compute()).iter().sum(),
                parts.map(|t| t.dispatch.seconds + t.combine.seconds).iter().sum(),
            ]
        });
        assert_eq!(w.computing(), compute);
        assert_eq!(w.covered().0, exchange);
        assert!(w.seconds() >= compute.max(exchange) && w.seconds() <= compute + exchange);
        assert!(w.covered().1 <= exchange);
    }
}

#[test]
fn what_ifs_gain_only_what_they_change() {
    let c = cluster();
    let mut unit = layer(1.0, 1.0, 1.0);
    let encode = |way| Work::Rows { bytes: 1.0, encode: Some(way) };
    let kernel = |work| Kernel { name: "encode".into(), work };
    unit.forward.attention.push(kernel(encode(weft_plan::kernel::Encode::Rows)));
    unit.weight.attention.push(kernel(encode(weft_plan::kernel::Encode::Columns)));
    let l = layout(Name::OneFOneB, 1, 10, 1);
    let seconds = |w: &[WhatIf]| plan(&[unit.clone()], &c, &l, w).expect("a plan").step_seconds;
    assert_eq!(seconds(&[]), 50.0);
    assert_eq!(seconds(&[WhatIf::FusedQuantization]), 40.0);
    assert_eq!(seconds(&[WhatIf::TransposedReads]), 40.0);
    assert_eq!(seconds(&[WhatIf::FusedQuantization, WhatIf::TransposedReads]), 30.0);
    assert_eq!(seconds(&[WhatIf::FullAccumulation]), 50.0);
    assert_eq!(seconds(&[WhatIf::OneDomain]), 50.0);
    assert!(WhatIf::parse("faster").is_err());
}
