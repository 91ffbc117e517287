//! Ranks as threads: sums in the documented order, parts in their places, and every wait ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_graph::CollectiveKind::{self, AllGather, AllReduce, Part, ReduceScatter};
use weft_runtime::ranks::collective::{self, Blocks};
use weft_runtime::ranks::exchange::Offsets;
use weft_runtime::ranks::threads::{self, Ending};
use weft_runtime::ranks::{Communicator, Rank, RankError};

const LIMIT: Duration = Duration::from_millis(300);
/// Where nobody hangs: a loaded machine takes no part in the result.
const LONG: Duration = Duration::from_secs(60);

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Numbers of very different sizes, whose sums depend on the order.
fn values(rank: usize, n: usize) -> Vec<f32> {
    let x = |i: usize| ((rank * 31 + i * 17) % 23) as f32 - 11.0;
    (0..n).map(|i| x(i) * 10f32.powi(((rank * 7 + i) % 9) as i32 - 4)).collect()
}

/// What every rank has after a collective.
fn run(n: usize, kind: CollectiveKind, outer: usize, block: usize) -> Vec<Vec<u8>> {
    let endings = threads::run(n, LONG, move |comm: Arc<dyn Communicator>| {
        let rank = Rank::new(comm, 0, None, None);
        let meeting = rank.begin(kind.name(), "x", (0..n).collect());
        let from = bytes(&values(rank.rank(), outer * block));
        let to_bytes = match kind {
            AllReduce => from.len(),
            ReduceScatter | Part => from.len() / n,
            AllGather => from.len() * n,
            other => panic!("{other:?}"),
        };
        let mut to = vec![0; to_bytes];
        let blocks = Blocks { outer, block_bytes: 4 * block };
        collective::run(kind, &meeting, blocks, None, &from, &mut to).map(|()| to)
    });
    let done = |e| match e {
        Ending::Done(to) => to,
        other => panic!("{other:?}"),
    };
    endings.expect("threads start").into_iter().map(done).collect::<Vec<Vec<u8>>>()
}

/// The first half, a power of two of ranks, and the rest: one sum each.
fn tree(ranks: std::ops::Range<usize>, i: usize, len: usize) -> f32 {
    if ranks.len() == 1 {
        return 0.0 + values(ranks.start, len)[i];
    }
    let mut half = 1;
    while half * 2 < ranks.len() {
        half *= 2;
    }
    let mid = ranks.start + half;
    tree(ranks.start..mid, i, len) + tree(mid..ranks.end, i, len)
}

#[test]
fn sums_are_a_binary_tree_over_ranks() {
    for n in 1..=8 {
        let sum: Vec<f32> = (0..24 * n).map(|i| tree(0..n, i, 24 * n)).collect();
        for result in run(n, AllReduce, 1, 24 * n) {
            assert_eq!(result, bytes(&sum), "{n} ranks");
        }
        // 3 blocks of 8 n: each rank gets 8 of each.
        for (rank, result) in run(n, ReduceScatter, 3, 8 * n).into_iter().enumerate() {
            let own = |i: usize| (i / 8) * 8 * n + rank * 8 + i % 8;
            let part: Vec<f32> = (0..24).map(|i| sum[own(i)]).collect();
            assert_eq!(result, bytes(&part), "rank {rank} of {n}");
        }
    }
}

#[test]
fn a_gathering_puts_blocks_side_by_side() {
    for n in 1..=5 {
        let mut all = vec![];
        for i in 0..2 {
            (0..n).for_each(|r| all.extend(&values(r, 6)[3 * i..3 * i + 3]));
        }
        for result in run(n, AllGather, 2, 3) {
            assert_eq!(result, bytes(&all), "{n} ranks");
        }
    }
}

/// Halves of several at once, ended in another order than they were begun in, a whole one between:
/// each gets what is its own.
#[test]
fn what_is_in_flight_is_taken_in_any_order() {
    for n in 1..=5 {
        let endings = threads::run(n, LIMIT, move |comm: Arc<dyn Communicator>| {
            let rank = Rank::new(comm, 0, None, None);
            let meeting = |kind: CollectiveKind| rank.begin(kind.name(), "x", (0..n).collect());
            let whole = bytes(&values(rank.rank(), 6 * n));
            let blocks = Blocks { outer: 1, block_bytes: whole.len() };
            let kinds = [AllReduce, ReduceScatter, AllGather, AllReduce];
            let mut open = vec![];
            for kind in kinds {
                let flight = collective::start(kind, &meeting(kind), blocks, None, &whole)?;
                open.push((kind, flight));
            }
            let mut all: Vec<Vec<u8>> = vec![collective::all_reduce(&meeting(AllReduce), &whole)?];
            for i in [2, 0, 1, 0] {
                let (kind, flight) = open.remove(i);
                let to_bytes = match kind {
                    ReduceScatter => whole.len() / n,
                    AllGather => whole.len() * n,
                    _ => whole.len(),
                };
                let mut to = vec![0; to_bytes];
                let meeting = rank.resume(kind.name(), "x", (0..n).collect());
                collective::finish(kind, &meeting, blocks, None, flight, &whole, &mut to)?;
                all.push(to);
            }
            Ok::<_, RankError>(all)
        });
        let sum: Vec<f32> = (0..6 * n).map(|i| tree(0..n, i, 6 * n)).collect();
        let gathered: Vec<u8> = (0..n).flat_map(|rank| bytes(&values(rank, 6 * n))).collect();
        for (rank, ending) in endings.expect("threads start").into_iter().enumerate() {
            let Ending::Done(all) = ending else { panic!("rank {rank}: {ending:?}") };
            let (sum, part) = (bytes(&sum), bytes(&sum[6 * rank..6 * rank + 6]));
            assert_eq!(all, [sum.clone(), gathered.clone(), sum.clone(), sum, part], "{n} ranks");
        }
    }
}

#[test]
fn each_keeps_its_part_of_its_own() {
    for n in 1..=5 {
        for (rank, result) in run(n, Part, 3, 2 * n).into_iter().enumerate() {
            let own = |i: usize| values(rank, 6 * n)[(i / 2) * 2 * n + rank * 2 + i % 2];
            assert_eq!(result, bytes(&(0..6).map(own).collect::<Vec<f32>>()), "rank {rank} of {n}");
        }
    }
}

#[test]
fn uneven_parts_reach_their_places() {
    let n = 4;
    let endings = threads::run(n, LONG, move |comm: Arc<dyn Communicator>| {
        let rank = Rank::new(comm, 0, None, None);
        let own = rank.rank() as u8;
        let parts: Vec<Vec<u8>> =
            (0..n).map(|to| vec![10 * own + to as u8; to + own as usize]).collect();
        let parts: Vec<&[u8]> = parts.iter().map(|p| &p[..]).collect();
        let meeting = rank.begin("all_to_all", "rows", (0..n).collect());
        collective::all_to_all(&meeting, &parts)
    });
    for (to, ending) in endings.expect("threads start").into_iter().enumerate() {
        let Ending::Done(all) = ending else { panic!("rank {to}: {ending:?}") };
        for (from, part) in all.into_iter().enumerate() {
            assert_eq!(part, vec![(10 * from + to) as u8; to + from]);
        }
    }
}

/// Rows of several ranks for the experts that they have between them, there and back. A row says
/// its expert, source and number.
#[test]
fn rows_reach_their_experts_and_come_back() {
    for (n, own) in [(1, 3), (2, 2), (3, 1), (4, 2)] {
        let counts = move |rank: usize, expert: usize| (rank * 7 + expert * 5) % 4;
        let endings = threads::run(n, LONG, move |comm: Arc<dyn Communicator>| {
            let rank = Rank::new(comm, 0, None, None);
            let (place, capacity) = (rank.rank(), 3 * own * n);
            let (mut rows, mut sent) = (vec![], vec![0i32]);
            for expert in 0..own * n {
                (0..counts(place, expert)).for_each(|i| rows.extend([expert, place, i].map(as_u8)));
                sent.push(rows.len() as i32 / 3);
            }
            rows.resize(3 * capacity, 255);
            let meeting = |op| rank.begin(op, "rows", (0..n).collect());
            let mut got = vec![0u8; 4 * sent.len()];
            let sent: Vec<u8> = sent.iter().flat_map(|x| x.to_le_bytes()).collect();
            let met =
                |kind: CollectiveKind, offsets: Option<&Offsets>, from: &[u8], to: &mut [u8]| {
                    let blocks = Blocks { outer: capacity, block_bytes: 3 };
                    collective::run(kind, &meeting(kind.name()), blocks, offsets, from, to)
                };
            met(CollectiveKind::ExchangeOffsets, None, &sent, &mut got)?;
            let offsets = Offsets::read(&sent, &got);
            let mut there = vec![1u8; n * rows.len()];
            met(CollectiveKind::Exchange, Some(&offsets), &rows, &mut there)?;
            let mut back = vec![1u8; rows.len()];
            met(CollectiveKind::ExchangeBack, Some(&offsets), &there, &mut back)?;
            let n_rows = offsets.sent[own * n];
            assert_eq!(back[..3 * n_rows], rows[..3 * n_rows]);
            assert!(back[3 * n_rows..].iter().all(|x| *x == 0));
            Ok::<_, RankError>((offsets.got, there))
        });
        for (place, ending) in endings.expect("threads start").into_iter().enumerate() {
            let Ending::Done((got, there)) = ending else { panic!("rank {place}: {ending:?}") };
            let (mut expected, mut begins) = (vec![], vec![0]);
            for expert in place * own..(place + 1) * own {
                for of in 0..n {
                    (0..counts(of, expert))
                        .for_each(|i| expected.extend([expert, of, i].map(as_u8)));
                    begins.push(expected.len() / 3);
                }
            }
            assert_eq!(got, begins, "place {place} of {n}");
            expected.resize(there.len(), 0);
            assert_eq!(there, expected, "place {place} of {n}");
        }
    }
}

fn as_u8(n: usize) -> u8 {
    n as u8
}

/// Two ranks, of which rank 1 does `other`; what rank 0, in a sum with it, says, and how rank 1
/// ends.
fn beside(limit: Duration, other: fn()) -> (String, Ending<(), RankError>, Duration) {
    let start = Instant::now();
    let endings = threads::run(2, limit, move |comm: Arc<dyn Communicator>| {
        let rank = Rank::new(comm, 3, None, None);
        rank.set_step(7);
        if rank.rank() == 1 {
            other();
            return Ok(());
        }
        let meeting = rank.begin("all_reduce", "grad.w", vec![0, 1]);
        collective::all_reduce(&meeting, &bytes(&[1.0])).map(drop)
    });
    let mut endings = endings.expect("threads start").into_iter();
    let Some(Ending::Failed(e)) = endings.next() else { panic!("rank 0 waits for nothing") };
    (e.to_string(), endings.next().expect("two ranks"), start.elapsed())
}

#[test]
fn whoever_waits_for_a_lost_rank_says_for_whom_and_in_what() {
    let (why, ending, _) = beside(LONG, || panic!("on purpose"));
    assert_eq!(
        why,
        "rank 0, step 7: all_reduce grad.w of stage 3, with rank 1, which has ended: \
         it panicked: on purpose"
    );
    assert!(matches!(ending, Ending::Panicked(_)), "{ending:?}");
    let (why, _, _) = beside(LONG, || ());
    assert!(why.ends_with("with rank 1, which has ended: its run is over"), "{why}");
}

#[test]
fn a_rank_that_hangs_is_given_up_on_in_time() {
    let (why, ending, time) = beside(LIMIT, || std::thread::sleep(Duration::from_secs(3600)));
    assert!(why.ends_with("with rank 1, which has been silent for 0.3 s"), "{why}");
    assert!(matches!(ending, Ending::Hung), "{ending:?}");
    assert!(time < Duration::from_secs(5), "{time:?}");
}
