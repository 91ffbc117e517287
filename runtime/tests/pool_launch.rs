//! The cost of a launch that does nothing, printed by `cargo test --release --test pool_launch --
//! --nocapture`. The bound asserted is wide: it is there to notice a lost wake-up, which costs a
//! millisecond, on a machine that does other things too.

mod kernels;

use kernels::{BATCH, EMPTY};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use weft_graph::*;
use weft_runtime::device::Cpu;
use weft_runtime::exec::{Program, Session, Store};
use weft_runtime::pool::Pool;

const LAUNCHES: u32 = 20_000;

#[test]
fn an_empty_launch_takes_microseconds() {
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        for chunks in [1, 2, 16] {
            let start = Instant::now();
            for _ in 0..LAUNCHES {
                pool.run(chunks, 1, &|_, _, _| {});
            }
            let each_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(LAUNCHES);
            println!("{threads} threads, {chunks} chunks: {each_us:.3} us a launch");
            assert!(each_us < 500.0);
        }
    }
}

/// What a second thread saves on launches of a few microseconds, with it awake. Printed only: on a
/// machine with other work to do, two threads may well take longer than one.
#[test]
fn a_second_thread_joins_short_launches() {
    let work = |us: u64| {
        let start = Instant::now();
        while start.elapsed().as_nanos() < u128::from(us) * 1000 {
            std::hint::spin_loop();
        }
    };
    for us in [1, 5, 20] {
        for threads in [1, 2] {
            let pool = Pool::new(threads).unwrap();
            let done = AtomicU64::new(0);
            let start = Instant::now();
            for _ in 0..500 {
                pool.run(4, 1, &|begin, end, _| {
                    (begin..end).for_each(|_| work(us));
                    done.fetch_add((end - begin) as u64, Ordering::Relaxed);
                });
            }
            let each_us = start.elapsed().as_secs_f64() * 1e6 / 500.0;
            println!("{threads} threads, 4 chunks of {us} us: {each_us:.2} us a launch");
            assert_eq!(done.into_inner(), 4 * 500);
        }
    }
}

#[test]
fn a_step_costs_little_beyond_its_kernel() {
    for grid in [1, 64] {
        let mut entry = kernels::layers("empty", false);
        let args = vec![
            Arg::whole(BufferId(0)),
            Arg::sliced(BufferId(1), 0, 64.into()),
            Arg::whole(BufferId(2)),
        ];
        let launch = Launch::new(EMPTY, args, DimExpr::dim(BATCH), "empty");
        entry.steps = vec![Step::Loop(Loop {
            order: Order::default(),
            count: 3.into(),
            reverse: false,
            left: None,
            body: vec![Step::Launch(launch); 100],
            label: "layers".into(),
        })];
        let program =
            Program::load(kernels::graph(vec![entry]), Arc::new(Cpu::new(2).unwrap())).unwrap();
        let store = Store::new(Arc::clone(program.device()));
        let mut session = Session::new(&program, "empty", &store).unwrap();
        session.set_dim("B", grid).unwrap();
        session.run().unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            session.run().unwrap();
        }
        let each_us = start.elapsed().as_secs_f64() * 1e6 / (100.0 * 300.0);
        println!("grid {grid}: {each_us:.3} us a step");
        assert!(each_us < 500.0);
    }
}
