//! Serving: exchanges without multiprocessors against a published table, and steps by hand.

use weft_plan::cluster::Cluster;
use weft_plan::kernel::{Exchange, Format, Kernel, Place, Which, Work, low_latency_seconds};
use weft_plan::rounds::{Round, Rounds};
use weft_plan::serve::{Forward, Layers, Serving, serve};
use weft_plan::unit::Passes;

fn h800() -> Cluster {
    Cluster::parse(include_str!("../../clusters/h800.json")).expect("a cluster")
}

fn place(experts: u64) -> Place {
    Place {
        sms: 132,
        beside_exchange: false,
        tensor: 1,
        experts,
        node: 8,
        nodes_per_token: None,
        redundant_experts: 0,
        low_latency: true,
        free_encodes: [false; 2],
    }
}

/// DeepEP's low-latency kernels: 128 tokens of 7168 to 8 experts each, in microseconds. Experts on
/// 128 ranks calibrated the rate.
#[test]
fn exchanges_without_multiprocessors_take_as_long_as_deepeps() {
    let rows: [(u64, f64, f64); 6] = [
        (8, 77.0, 114.0),
        (16, 118.0, 195.0),
        (32, 155.0, 273.0),
        (64, 173.0, 314.0),
        (128, 192.0, 369.0),
        (256, 194.0, 360.0),
    ];
    let c = h800();
    let n_rows = 128.0 * 8.0;
    for (experts, dispatch, combine) in rows {
        // Codes, a scale for each 128 of them and a header; bf16 on the way back.
        let sent = [(n_rows * (7168.0 + 224.0 + 16.0), dispatch), (n_rows * 14336.0, combine)];
        for (bytes, published) in sent {
            let found = low_latency_seconds(&c, &place(experts), bytes) * 1e6;
            let error = found / published - 1.0;
            // Inside one node the published two differ by more than their bytes.
            let within = if experts == 8 { 0.5 } else { 0.1 };
            assert!(error.abs() < within, "{experts}: {found:.0}, published {published}");
        }
    }
}

/// A cluster on which numbers are seconds.
fn seconds() -> Cluster {
    let mut c = h800();
    (c.memory_bytes_per_s, c.rows, c.launch_us) = (1.0, 1.0, 0.0);
    (c.attention.decode_flops_per_s, c.attention.forward_flops_per_s) = (1.0, 1.0);
    (c.low_latency.latency_us, c.low_latency.network_bytes_per_s) = (0.0, 1.0);
    (c.low_latency.node_bytes_per_s, c.network_bytes_per_s, c.node_bytes_per_s) = (1e30, 1.0, 1e30);
    (c.overlap.dispatch, c.overlap.combine, c.overlap.wait_us) = (1.0, 1.0, 0.0);
    (c.overlap.rows, c.overlap.attention) = (1.0, 1.0);
    c
}

fn rows(bytes: f64) -> Kernel {
    Kernel { name: "rows".into(), work: Work::Rows { bytes, encode: None } }
}

/// Layers of attention 2 + 3, shared 1, mlp 4, and exchanges of `bytes` there and back.
fn forward(count: usize, bytes: f64, which: Which) -> Forward {
    let core = Kernel {
        name: "attention".into(),
        work: Work::Attention { flops: 3.0, bytes: 0.0, which },
    };
    // Nothing is left to do locally: tokens of no bytes.
    let sent =
        |row_bytes: f64| Work::Dispatch(Exchange { tokens: 1.0, token_bytes: 0.0, row_bytes });
    let exchange = |work| vec![Kernel { name: "exchange".into(), work }];
    let passes = Passes {
        attention: vec![rows(2.0), core],
        mlp: vec![rows(4.0)],
        beside: vec![rows(1.0)],
        dispatch: if bytes > 0.0 { exchange(sent(bytes)) } else { vec![] },
        combine: if bytes > 0.0 { exchange(sent(bytes)) } else { vec![] },
    };
    Forward {
        layers: vec![Layers { name: "layer".into(), count, passes }],
        ends: vec![rows(5.0)],
        dense_bytes: 100.0,
        expert_bytes: 640.0,
        experts: 16,
        cache_bytes: 7.0,
    }
}

fn of(n_gpus: u64, decode: bool) -> Serving {
    Serving {
        n_gpus,
        node: 1,
        redundant_experts: 16,
        nodes_per_token: None,
        communication_sms: 0,
        decode,
        requests: 2,
        tokens_per_request: 6,
    }
}

#[test]
fn without_exchanges_a_step_is_its_compute() {
    for decode in [false, true] {
        let which = if decode { Which::Decode } else { Which::Forward };
        let s = serve(&forward(3, 0.0, which), &seconds(), &of(1, decode), None);
        // Two micro-batches of three layers, and both ends twice.
        assert_eq!(s.step_seconds, 2.0 * 3.0 * 10.0 + 2.0 * 5.0);
        assert_eq!(s.tokens_per_s_per_gpu, 12.0 / s.step_seconds);
    }
    let s = serve(&forward(3, 0.0, Which::Decode), &seconds(), &of(8, true), None);
    // Experts twice among eight ranks; both micro-batches' caches.
    assert_eq!((s.weight_bytes, s.cache_bytes), (100.0 + 640.0 * 2.0 / 8.0, 14.0));
}

#[test]
fn one_layer_goes_as_drawn() {
    // Half of the rows are far: an exchange of 4 takes 2. Rows are also laid out on both sides, 4
    // each, so mlp takes 12.
    let s = serve(&forward(1, 4.0, Which::Decode), &seconds(), &of(2, true), None);
    // A: attention 0-5, dispatch 5-7 over shared 5-6 and attn-0(B) 6-8; mlp 8-20; combine 20-22
    // over attn-1(B) 20-23; dispatch(B) 23-25 over shared 23-24; mlp 25-37; combine 37-39.
    assert_eq!(s.step_seconds, 39.0 + 10.0);
    // Under compute: 2 + 2 + 1 of 8.
    assert_eq!((s.exchange_seconds, s.covered_seconds), (8.0, 5.0));
    let s = serve(&forward(1, 4.0, Which::Forward), &seconds(), &of(2, false), None);
    // B: attention 0-5, A: attention 5-10 over dispatch(B) 5-7; dispatch(A) 10-12 under mlp(B)
    // 10-22; mlp(A) 22-34 over combine(B) 22-24; shared(B) 34-35 and shared(A) 35-36 over
    // combine(A) 34-36.
    assert_eq!(s.step_seconds, 36.0 + 10.0);
    assert_eq!((s.exchange_seconds, s.covered_seconds), (8.0, 8.0));
}

#[test]
fn further_rounds_take_an_exchange_and_the_experts_again() {
    let further = |odds, rows| vec![Round { odds, rows }];
    let rounds = |further| Rounds { rows: 8, room: 10, odds: vec![], further };
    for (decode, which) in [(true, Which::Decode), (false, Which::Forward)] {
        let f = forward(2, 4.0, which);
        let step = |r: Option<&Rounds>| serve(&f, &seconds(), &of(2, decode), r);
        let none = step(None);
        assert_eq!(none.rounds_seconds, 0.0);
        // A half of the rows: 1 there and 1 back, mlp 2 and 2 + 2 to lay rows out. Two layers and
        // micro-batches, one of four exchanges; the second layer never.
        let r = rounds(vec![further(0.25, 4.0), vec![]]);
        let some = step(Some(&r));
        assert_eq!(some.rounds_seconds, 2.0 * 0.25 * (1.0 + 2.0 + 4.0 + 1.0));
        assert_eq!(some.step_seconds, none.step_seconds + some.rounds_seconds, "{decode}");
        // One line is for all layers.
        let all = step(Some(&rounds(vec![further(0.25, 4.0)])));
        assert_eq!(all.rounds_seconds, 2.0 * some.rounds_seconds);
    }
    // However few the rows, weights are read whole.
    let product = Kernel {
        name: "experts".into(),
        work: Work::Product {
            m: 2,
            n: 4096,
            k: 7168,
            groups: 256,
            format: Format::Fp8,
            shared: true,
        },
    };
    let (c, at) = (h800(), Place { low_latency: true, ..place(128) });
    let few = product.share(1e-3, &at);
    let weights = 2.0 * 4096.0 * 7168.0 / (c.memory_bytes_per_s * c.product_memory);
    let seconds = few.seconds(&c, &at);
    assert!(seconds > weights && seconds < product.seconds(&c, &at), "{seconds} {weights}");
}

#[test]
fn many_layers_take_what_the_slower_stream_takes() {
    let n = 50;
    for decode in [false, true] {
        let which = if decode { Which::Decode } else { Which::Forward };
        for bytes in [1.0, 4.0, 60.0] {
            let s = serve(&forward(n, bytes, which), &seconds(), &of(2, decode), None);
            let compute = 2.0 * n as f64 * (10.0 + 2.0 * bytes);
            let exchange = 2.0 * n as f64 * bytes;
            let step = s.step_seconds - 10.0;
            assert!((s.exchange_seconds - exchange).abs() < 1e-6);
            assert!(step >= compute.max(exchange), "{step} {compute} {exchange}");
            // What a dispatch can lie under is attention and shared experts, no more.
            let most = match bytes > 6.0 {
                true => compute + exchange,
                false => 1.05 * compute.max(exchange),
            };
            assert!(step <= most, "{step} {compute} {exchange}");
            assert!(s.covered_seconds <= s.exchange_seconds);
        }
    }
}
