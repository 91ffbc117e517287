//! Generated tables are those of the schedules' authors, cell for cell.

use std::path::PathBuf;

use weft_schedule::generate::Name;
use weft_schedule::{Cell, Op, Size, Table, UnitCosts, check, csv, generate};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/schedules")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect("a table of the tests")
}

fn make(name: Name, n_ranks: usize, n_micro_batches: usize, stages_per_rank: usize) -> Table {
    generate(name, Size { n_ranks, n_micro_batches, stages_per_rank }).expect("a legal size")
}

#[test]
fn tables_are_those_of_their_authors() {
    let names =
        [Name::DualPipe, Name::DualPipeV, Name::Interleaved, Name::ZbInterleaved, Name::ZbV];
    for name in names {
        for (ranks, n) in [(2, 4), (4, 8)] {
            let want = read(&format!("{name}-{ranks}x{n}.csv"));
            let table = make(name, ranks, n, 2);
            assert_eq!(csv::write(&table), want, "{name} {ranks} {n}");
            assert_eq!(csv::read(&want), Ok(table), "{name} {ranks} {n}");
        }
    }
}

#[test]
fn tables_of_odd_sizes_are_those_of_torch() {
    let mut n_tables = 0;
    for name in [Name::Interleaved, Name::ZbInterleaved, Name::ZbH1, Name::ZbV, Name::DualPipeV] {
        for block in read(&format!("torch/{name}.txt")).split("# ").skip(1) {
            let (head, want) = block.split_once('\n').expect("a head and rows");
            let size: Vec<usize> = head.split(' ').map(|n| n.parse().expect("a size")).collect();
            let table = make(name, size[0], size[1], size[2]);
            assert_eq!(csv::write(&table).replace('\r', ""), want, "{name} {head}");
            if let Err(e) = check(&table, &UnitCosts::default()) {
                panic!("{name} {head}: {e}");
            }
            n_tables += 1;
        }
    }
    assert!(n_tables > 25, "the tables are not where they were");
}

/// In the authors' words: `Bi` for an input gradient, a weight gradient without a number, and the
/// phase of the rank in place of the direction.
fn in_order(table: &Table, rank: usize) -> String {
    let one = |a: weft_schedule::Action| match a.op {
        Op::BackwardWeight => "W".to_string(),
        op => {
            let letter =
                if op == Op::BackwardInput { "Bi".into() } else { op.letter().to_string() };
            let phase = a.direction ^ usize::from(rank >= table.n_ranks() / 2);
            format!("{letter}{phase}.{}", a.micro_batch)
        }
    };
    let cell = |c: &Cell| c.actions().map(one).collect::<Vec<_>>().join("&");
    table.rows[rank].iter().map(cell).collect::<Vec<_>>().join(" ")
}

#[test]
fn dualpipe_goes_in_its_authors_order_and_takes_their_time() {
    let text = read("dualpipe-order.txt");
    for block in text.split("# ").skip(1) {
        let mut lines = block.lines();
        let head: Vec<usize> = lines
            .next()
            .expect("a head")
            .split(' ')
            .map(|n| n.parse().expect("a number"))
            .collect();
        let &[ranks, n, makespan, busy, idle, live] = head.as_slice() else { panic!("{head:?}") };
        let table = make(Name::DualPipe, ranks, n, 2);
        for (rank, want) in lines.enumerate() {
            assert_eq!(in_order(&table, rank), want, "{ranks} {n}, rank {rank}");
            assert_eq!(in_order(&table, ranks - 1 - rank), want, "{ranks} {n}, mirror of {rank}");
        }
        let report = check(&table, &UnitCosts::default()).expect("a training step");
        let t = &report.timeline;
        assert_eq!(t.makespan(), makespan as f64);
        assert_eq!((t.busy(0), t.bubble()), (busy as f64, idle as f64));
        assert_eq!(t.live_max, vec![live; ranks]);
    }
}

/// Woven, a rank has one more forward in flight, so that no pair waits for itself, and nothing else
/// changes: a pair is a forward and a backward that `interleaved` has one after the other.
#[test]
fn interleaved_pairs_are_interleaved_one_forward_earlier() {
    let costs = UnitCosts::default();
    for (ranks, n, stages) in [(2, 4, 2), (4, 8, 2), (4, 12, 3), (8, 16, 4), (3, 8, 2)] {
        let of = |name| {
            let table = make(name, ranks, n, stages);
            let report = check(&table, &costs).expect("a training step");
            let actions = |rank: usize, op: Op| -> Vec<_> {
                let all = table.rows[rank].iter().flat_map(|c| c.actions());
                all.filter(|a| a.op == op).collect()
            };
            let orders: Vec<_> =
                (0..ranks).map(|r| [Op::Forward, Op::Backward].map(|op| actions(r, op))).collect();
            (report, orders)
        };
        let (woven, apart) = (of(Name::InterleavedPairs), of(Name::Interleaved));
        assert_eq!(woven.1, apart.1, "{ranks} {n} {stages}");
        let n_forwards = ranks * n * stages;
        let live = |r: &weft_schedule::Report| r.timeline.live_max.clone();
        let more: Vec<usize> = live(&apart.0).iter().map(|n_live| n_live + 1).collect();
        assert_eq!(live(&woven.0), more, "{ranks} {n} {stages}");
        // Every forward behind a rank's head start is one of a pair.
        let head_starts: usize = more.iter().map(|n_live| n_live - 1).sum();
        assert_eq!(woven.0.n_pairs, n_forwards - head_starts, "{ranks} {n} {stages}");
        assert_eq!(woven.0.timeline.makespan(), apart.0.timeline.makespan(), "{ranks} {n}");
    }
}

/// Bubble and peak activations of the papers' formulas, F the forward, B the whole backward, W its
/// weight part and FB a pair.
#[test]
fn bubbles_and_activations_are_those_of_the_formulas() {
    let costs = UnitCosts::default();
    let (f, b, w, fb) = (costs.forward, costs.input + costs.weight, costs.weight, costs.pair);
    for ranks in [2usize, 4, 6, 8, 16] {
        for n in [2 * ranks, 2 * ranks + 2, 5 * ranks] {
            let pp = ranks as f64;
            let dual = |pp: f64| (pp / 2.0 - 1.0) * (fb + b - 3.0 * w);
            let rows = [
                (Name::OneFOneB, 1, (pp - 1.0) * (f + b), ranks),
                (Name::ZbH1, 1, (pp - 1.0) * (f + b - 2.0 * w), ranks),
                (Name::DualPipe, 2, dual(pp), ranks + 1),
                // Half the ranks for as many stages.
                (Name::DualPipeV, 2, dual(2.0 * pp), 2 * ranks + 1),
            ];
            for (name, stages, bubble, live) in rows {
                let table = make(name, ranks, n, stages);
                let report = check(&table, &costs).expect("a training step");
                let t = &report.timeline;
                assert_eq!(t.bubble(), bubble, "{name} {ranks} {n}");
                assert_eq!(t.live_max.iter().max(), Some(&live), "{name} {ranks} {n}");
            }
        }
    }
}

/// Fewer micro-batches than a full pipeline needs, none left over, primes.
#[test]
fn every_size_that_is_not_refused_is_a_training_step() {
    let mut n_refused = 0;
    for name in Name::ALL {
        for n_ranks in 1..7 {
            for n_micro_batches in 1..15 {
                for stages_per_rank in 1..4 {
                    let size = Size { n_ranks, n_micro_batches, stages_per_rank };
                    let Ok(table) = generate(name, size) else {
                        n_refused += 1;
                        continue;
                    };
                    if let Err(e) = check(&table, &UnitCosts::default()) {
                        panic!("{name} {size:?}: {e}");
                    }
                    assert_eq!(table.n_micro_batches(), n_micro_batches);
                    assert_eq!(table.n_stages(), name.n_stages(size));
                    assert_eq!(csv::read(&csv::write(&table)), Ok(table), "{name} {size:?}");
                }
            }
        }
    }
    assert!(n_refused > 0);
}

#[test]
fn sizes_that_do_not_exist_name_the_nearest_that_do() {
    let refuse = |name: Name, ranks, n, stages, want: &str| {
        let size = Size { n_ranks: ranks, n_micro_batches: n, stages_per_rank: stages };
        let e = generate(name, size).expect_err("an illegal size").to_string();
        assert!(e.contains(want), "{e}");
    };
    refuse(Name::DualPipe, 5, 20, 2, "even, not 5; the nearest are 4 and 6");
    refuse(Name::DualPipe, 1, 20, 2, "not 1; the nearest is 2");
    refuse(Name::DualPipe, 8, 15, 2, "ranks (8), found 15; the nearest is 16");
    refuse(Name::DualPipe, 8, 19, 2, "even, not 19; the nearest are 18 and 20");
    refuse(Name::DualPipeV, 8, 15, 2, "ranks (8), found 15; the nearest is 16");
    refuse(Name::ZbV, 4, 8, 3, "has 2 stages a rank, not 3");
    refuse(Name::OneFOneB, 4, 8, 2, "has 1 stage a rank, not 2");
    refuse(Name::Interleaved, 4, 8, 1, "at least 2 stages per rank, not 1; with one it is 1f1b");
    refuse(
        Name::Interleaved,
        4,
        13,
        2,
        "3 equal rounds, which 13 does not divide into; the nearest is 12",
    );
    refuse(Name::ZbInterleaved, 4, 11, 2, "the nearest is 10 or 12");
    refuse(Name::GPipe, 0, 4, 1, "at least 1 rank, found 0");
    refuse(Name::GPipe, 4, 0, 1, "at least 1 micro-batch, found 0");
    refuse(Name::GPipe, usize::MAX, usize::MAX, 1, "cells");
    let e = Name::parse("dual").expect_err("no such name").to_string();
    assert!(e.contains("zb-v, dualpipe, dualpipe-v"), "{e}");
}
