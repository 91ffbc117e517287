//! Collectives between devices give what those between hosts give, to the bit, on the interpreter
//! of PTX: its sums, its copies, and its look at what streams touch.

use std::sync::Arc;
use std::time::Duration;

use weft_graph::CollectiveKind::{
    self, AllGather, AllReduce, Exchange, ExchangeBack, ExchangeOffsets, Part, ReduceScatter,
};
use weft_graph::Graph;
use weft_runtime::device::{Device, Kernels, Ptx};
use weft_runtime::ranks::collective::{self, Blocks};
use weft_runtime::ranks::exchange::Offsets;
use weft_runtime::ranks::on_device::{self, Operands, Room, Stream};
use weft_runtime::ranks::threads::{self, Ending};
use weft_runtime::ranks::{Communicator, Rank};

/// Nobody hangs: a loaded machine takes no part in the result.
const LONG: Duration = Duration::from_secs(60);
/// The stream of transfers.
const STREAM: u32 = 1;

/// A collective of one rank: its operand and how it lies.
struct Case {
    kind: CollectiveKind,
    blocks: Blocks,
    offsets: Option<Offsets>,
    from: Vec<u8>,
    to_bytes: usize,
}

/// What the host makes of it, and what a device does, twice in the same memory.
fn both(rank: &Rank, n: usize, case: &Case, device: &Ptx, kernels: &dyn Kernels) -> bool {
    let Case { kind, blocks, from, to_bytes, .. } = case;
    let offsets = case.offsets.as_ref();
    let begin = || rank.begin(kind.name(), "x", (0..n).collect());
    let mut expected = vec![0; *to_bytes];
    collective::run(*kind, &begin(), *blocks, offsets, from, &mut expected).unwrap();

    let memory = |bytes: &[u8]| {
        let memory = device.allocate(bytes.len() as u64).unwrap();
        device.write(&*memory, 0, bytes).unwrap();
        memory
    };
    let (source, to, room) = (memory(from), memory(&vec![9; *to_bytes]), Room::default());
    let x = Operands {
        kind: *kind,
        blocks: *blocks,
        offsets,
        from: source.address(),
        to: to.address(),
        from_bytes: from.len(),
        to_bytes: *to_bytes,
    };
    let on = Stream { device, kernels, room: &room, stream: STREAM };
    let mut same = true;
    for _ in 0..2 {
        let meeting = begin();
        kernels.record(0, 0).unwrap();
        kernels.wait_for(0, STREAM).unwrap();
        // SAFETY: the memory is there until both halves are done.
        unsafe {
            let flight = on_device::start(meeting.link(), &meeting, &on, x).unwrap();
            on_device::finish(meeting.link(), &meeting, &on, x, flight).unwrap();
        }
        kernels.record(1, STREAM).unwrap();
        kernels.wait_for(1, 0).unwrap();
        let mut found = vec![0; *to_bytes];
        device.read(&*to, 0, &mut found).unwrap();
        same &= found == expected;
    }
    same
}

fn check(n: usize, case: impl Fn(usize) -> Case + Send + Sync + 'static) {
    let endings = threads::run(n, LONG, move |comm: Arc<dyn Communicator>| {
        let rank = Rank::new(comm, 0, None, None);
        let device = Ptx::new();
        let kernels = device.load(&Graph::default()).unwrap();
        let case = case(rank.rank());
        let same = both(&rank, n, &case, &device, &*kernels);
        if same { Ok(()) } else { Err(format!("{:?} of {n} differs", case.kind)) }
    });
    for ending in endings.expect("threads start") {
        assert!(matches!(ending, Ending::Done(())), "{ending:?}");
    }
}

/// Numbers of very different sizes, whose sums depend on the order, and zeros of both signs.
fn values(rank: usize, n: usize) -> Vec<u8> {
    let x = |i: usize| ((rank * 31 + i * 17) % 23) as f32 - 11.0;
    let of = |i: usize| x(i) * 10f32.powi(((rank * 7 + i) % 9) as i32 - 4);
    let of = |i: usize| if i % 5 == 0 { -0.0 } else { of(i) };
    (0..n).flat_map(|i| of(i).to_le_bytes()).collect()
}

#[test]
fn sums_and_gatherings_are_the_hosts() {
    for n in [1, 2, 3, 5, 8] {
        for kind in [AllReduce, ReduceScatter, AllGather, Part] {
            check(n, move |rank| {
                let (outer, block) = (3, 4 * n);
                let from = values(rank, outer * block);
                let to_bytes = match kind {
                    AllReduce => from.len(),
                    AllGather => from.len() * n,
                    _ => from.len() / n,
                };
                let blocks = Blocks { outer, block_bytes: 4 * block };
                Case { kind, blocks, offsets: None, from, to_bytes }
            });
        }
    }
}

/// Rows for each of `2 n` experts, by rank: some have none.
fn rows(rank: usize, expert: usize) -> usize {
    (rank * 5 + expert * 3) % 4
}

/// Where rows begin at a rank, and where those begin that come to it.
fn offsets(n: usize, rank: usize) -> Offsets {
    let sums = |counts: Vec<usize>| {
        counts.iter().fold(vec![0], |mut at, n| {
            at.push(at[at.len() - 1] + n);
            at
        })
    };
    let sent = sums((0..2 * n).map(|expert| rows(rank, expert)).collect());
    let own = 2 * rank..2 * rank + 2;
    let got = own.flat_map(|expert| (0..n).map(move |of| rows(of, expert)));
    Offsets { sent, got: sums(got.collect()) }
}

#[test]
fn rows_go_to_their_experts_and_back() {
    const ROW: usize = 12;
    for n in [1, 2, 3, 4] {
        for kind in [Exchange, ExchangeBack] {
            check(n, move |rank| {
                let offsets = offsets(n, rank);
                let ends = [&offsets.sent, &offsets.got].map(|o| o[o.len() - 1]);
                // There is more room than rows.
                let room = 3 * 2 * n + 1;
                let (from, to) = match kind {
                    Exchange => (ends[0].max(room), n * room),
                    _ => (n * room, room),
                };
                let from: Vec<u8> = (0..from * ROW).map(|i| (i * 7 + rank * 13) as u8).collect();
                let blocks = Blocks { outer: 1, block_bytes: ROW };
                let to_bytes = to * ROW;
                Case { kind, blocks, offsets: Some(offsets), from, to_bytes }
            });
        }
        check(n, move |rank| {
            let numbers: Vec<u8> =
                offsets(n, rank).sent.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect();
            let blocks = Blocks { outer: 1, block_bytes: numbers.len() };
            let to_bytes = numbers.len();
            Case { kind: ExchangeOffsets, blocks, offsets: None, from: numbers, to_bytes }
        });
    }
}
