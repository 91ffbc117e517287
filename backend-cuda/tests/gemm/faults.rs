//! The kernel with one thing wrong at a time: each is found, and named.

use ptx_sim::{Completion, Error, ErrorKind};

use weft_backend_cuda::gemm::{Gemm, Output, Store};

use crate::problem::{Problem, Wrong, bf16};

/// Several stages, several turns of the ring, several tiles.
fn problem() -> Problem {
    Problem { grid: 1, ..Problem::of(bf16(16), [200, 32, 64 * 12]) }
}

fn fault(change: impl Fn(&str) -> String) -> Error {
    fault_of(&problem(), change)
}

pub fn fault_of(problem: &Problem, change: impl Fn(&str) -> String) -> Error {
    match wrong(problem, change) {
        Wrong::Stopped(error) => error,
        Wrong::Numbers(what) => panic!("the fault was noticed by its numbers alone: {what}"),
    }
}

fn wrong(problem: &Problem, change: impl Fn(&str) -> String) -> Wrong {
    let text = problem.text();
    let changed = change(&text);
    assert_ne!(text, changed, "nothing was changed");
    let modes = [Completion::Lazy, Completion::Random { seed: 3, delay_max: 60 }];
    for completion in modes {
        if let Err(wrong) = problem.run_text(&changed, completion) {
            return wrong;
        }
    }
    panic!("the fault was not noticed");
}

/// The `n`-th line that holds `what`, changed.
pub fn line(text: &str, what: &str, n: usize, change: impl Fn(&str) -> String) -> String {
    let mut seen = 0;
    let mut out = String::new();
    for line in text.lines() {
        let hit = line.contains(what);
        let line = if hit && seen == n { change(line) } else { line.to_string() };
        seen += usize::from(hit);
        out += &line;
        out.push('\n');
    }
    assert!(seen > n, "no `{what}` {n}");
    out
}

pub fn without(text: &str, what: &str, n: usize) -> String {
    line(text, what, n, |_| String::new())
}

#[test]
fn a_consumer_that_does_not_wait_for_its_stage() {
    // Of the loops that wait the producer's comes first.
    let error = fault(|text| without(text, "@!done bra", 1));
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
}

#[test]
fn a_producer_that_does_not_wait_for_its_stage() {
    let error = fault(|text| without(text, "@!done bra", 0));
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    assert!(kinds.contains(&error.kind), "{error}");
}

#[test]
fn sums_read_while_products_are_under_way() {
    let error = fault(|text| without(text, "wgmma.wait_group.sync.aligned 0", 0));
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
}

#[test]
fn a_stage_let_go_while_its_products_are_under_way() {
    let late = "wgmma.wait_group.sync.aligned 1";
    let error = fault(|text| line(text, late, 0, |l| l.replace("aligned 1", "aligned 2")));
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
}

#[test]
fn a_wrong_number_of_bytes() {
    let change = |to: &'static str| {
        fault(move |text| line(text, "mbarrier.arrive.expect_tx", 0, |l| l.replace("18432;", to)))
    };
    assert_eq!(change("18944;").kind, ErrorKind::Deadlock);
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    let error = change("16384;");
    assert!(kinds.contains(&error.kind), "{error}");
}

#[test]
fn a_wrong_number_of_consumers() {
    // The second of each pair of barriers counts the warps.
    let change = |to: &'static str| fault(move |text| text.replace("], 8;", to));
    assert_eq!(change("], 9;").kind, ErrorKind::Deadlock);
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    let error = change("], 7;");
    assert!(kinds.contains(&error.kind), "{error}");
}

#[test]
fn barriers_used_before_they_are_known() {
    let error = fault(|text| without(text, "bar.sync 0;", 0));
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    let error = fault(|text| without(text, "fence.mbarrier_init", 0));
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}

#[test]
fn products_started_without_their_fence() {
    let error = fault(|text| text.replace("wgmma.fence.sync.aligned;", ""));
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}

/// The bits of a descriptor beside the start: 1024 bytes from eight lines to the next.
const DESCRIPTOR: u64 = 1 << 62 | 64 << 32 | 1 << 16;

#[test]
fn a_descriptor_of_another_stride() {
    let other = DESCRIPTOR & !(64 << 32) | 32 << 32;
    let changed = |text: &str| text.replace(&DESCRIPTOR.to_string(), &other.to_string());
    assert!(matches!(wrong(&problem(), changed), Wrong::Numbers(_)));
}

#[test]
fn a_descriptor_beyond_what_was_filled() {
    let other = DESCRIPTOR & !(64 << 32) | 8191 << 32;
    let changed = |text: &str| text.replace(&DESCRIPTOR.to_string(), &other.to_string());
    // Beyond the memory, in a stage that is being filled, or where nothing is.
    let error = fault(changed);
    let kinds = [ErrorKind::Operand, ErrorKind::OutOfBounds, ErrorKind::MissingWait];
    assert!(kinds.contains(&error.kind), "{error}");
}

/// Three chunks of columns a tile, through two buffers.
fn staged() -> Problem {
    let gemm = Gemm { store: Store::Tensor, output: Output::Bf16, ..bf16(48) };
    Problem { grid: 1, ..Problem::of(gemm, [200, 96, 64]) }
}

#[test]
fn a_buffer_written_while_a_copy_out_reads_it() {
    let waits = "cp.async.bulk.wait_group.read";
    for which in 0..3 {
        let error = fault_of(&staged(), |text| without(text, waits, which));
        assert_eq!(error.kind, ErrorKind::MissingWait, "{which}: {error}");
    }
}

#[test]
fn a_copy_out_of_what_was_not_fenced() {
    let error = fault_of(&staged(), |text| without(text, "fence.proxy.async", 0));
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}
