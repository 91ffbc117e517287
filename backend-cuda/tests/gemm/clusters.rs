//! Products whose CTAs come in clusters of two and copy for each other: to the last bit what CTAs
//! alone make, with fewer bytes read; what can go wrong between two CTAs is found.

use ptx_sim::{Completion, ErrorKind};
use weft_backend_cuda::gemm::{Blocks, Gemm, Grouping, Operand, Output, ScaleType, Scales, Store};
use weft_backend_cuda::tiles::shared::Major;

use crate::check;
use crate::faults::{fault_of, line, without};
use crate::problem::{Problem, Wrong, bf16, e4m3};

const BOTH: [Operand; 2] = [Operand::A, Operand::B];

fn shares(operand: Operand, gemm: Gemm) -> Gemm {
    Gemm { shares: Some(operand), ..gemm }
}

/// Several tiles for each CTA, several turns of the ring.
#[test]
fn each_operand_may_be_shared() {
    for operand in BOTH {
        for grid in [2, 4] {
            let gemm = shares(operand, bf16(32));
            check(&Problem { grid, ..Problem::of(gemm, [512, 128, 64 * 9 + 8]) });
            let gemm = shares(operand, e4m3(64, 128));
            check(&Problem { grid, ..Problem::of(gemm, [512, 128, 400]) });
        }
    }
}

/// The second tile of a cluster lies beyond C, wholly or in part.
#[test]
fn an_odd_number_of_tiles_leaves_one_without_work() {
    for operand in BOTH {
        for [m, n] in [[300, 77], [131, 160], [5, 9]] {
            let staged = Gemm { store: Store::Tensor, output: Output::Bf16, ..bf16(32) };
            let c_padding = 8 - n % 8;
            check(&Problem { c_padding, ..Problem::of(shares(operand, staged), [m, n, 72]) });
            check(&Problem::of(shares(operand, e4m3(64, 128)), [m, n, 136]));
        }
    }
}

/// Halves are of lines: of an operand that is contiguous along its rows, of k.
#[test]
fn either_operand_may_be_contiguous_along_rows() {
    use Major::{K, Rows};
    for operand in BOTH {
        for (a_major, b_major) in [(Rows, K), (K, Rows), (Rows, Rows)] {
            let gemm = Gemm { a_major, b_major, ..bf16(64) };
            check(&Problem::of(shares(operand, gemm), [136, 72, 100]));
        }
    }
}

#[test]
fn every_form_of_a_batch_may_be_shared() {
    let scale = Scales { dtype: ScaleType::Ue8m0, rows: 1 };
    for operand in BOTH {
        let adds = Gemm { accumulate: true, ..bf16(32) };
        let sizes = [140, 70, 72];
        check(&Problem { groups: 3, ..Problem::of(shares(operand, adds), sizes) });
        let by_column = Gemm { scales: Some([scale; 2]), ..e4m3(64, 1) };
        check(&Problem::of(shares(operand, by_column), [70, 100, 272]));
        let cut = Gemm { hopper14: Some(Blocks::Partial), ..e4m3(64, 128) };
        check(&Problem::of(shares(operand, cut), [70, 40, 256 + 80]));
        let wide = shares(operand, e4m3(192, 128));
        check(&Problem { grid: 2, ..Problem::of(wide, [256, 384, 128]) });
    }
}

/// Of 128 rows and as many columns a stage is read by three halves for two, whichever is shared.
#[test]
fn what_is_shared_is_read_once() {
    let sizes = [512, 256, 256];
    let bytes = |shares: Option<Operand>| {
        let problem = Problem::of(Gemm { shares, ..bf16(128) }, sizes);
        problem.run(Completion::Lazy).unwrap().copied_in_bytes
    };
    let stage = 2 * 64 * (128 + 128);
    assert_eq!(bytes(None), 4 * 2 * 4 * stage);
    for operand in BOTH {
        assert_eq!(bytes(Some(operand)), 3 * 2 * 4 * stage, "{operand:?}");
    }
}

#[test]
fn groups_of_their_own_number_of_rows_are_refused() {
    for grouping in [Grouping::Rows, Grouping::Masked, Grouping::Inner] {
        let refused = shares(Operand::B, Gemm { grouping, ..bf16(64) }).check().unwrap_err();
        assert!(refused.contains("fill their rings together"), "{refused}");
    }
}

/// Two clusters, several tiles each, several turns of the ring. A stage has 16384 bytes of A and
/// 2048 of B.
fn problem() -> Problem {
    Problem::of(shares(Operand::B, bf16(16)), [512, 32, 64 * 12])
}

fn fault(change: impl Fn(&str) -> String) -> ptx_sim::Error {
    fault_of(&problem(), change)
}

#[test]
fn a_stage_that_the_peer_is_not_told_of() {
    let remote = "mbarrier.arrive.shared::cluster";
    for which in 0..2 {
        let error = fault(|text| without(text, remote, which));
        assert_eq!(error.kind, ErrorKind::Deadlock, "{which}: {error}");
    }
    // Its own producer is told of them twice instead.
    let error = fault(|text| line(text, "mapa.shared::cluster", 0, own));
    let kinds = [ErrorKind::MissingWait, ErrorKind::Race, ErrorKind::Barrier];
    assert!(kinds.contains(&error.kind), "{error}");
}

/// The address that `mapa` was given, in the place of what it makes.
fn own(mapa: &str) -> String {
    let operands = mapa.trim().trim_start_matches("mapa.shared::cluster.u32").trim_end_matches(';');
    let [to, from, _] = operands.split(',').collect::<Vec<_>>()[..] else { panic!("{mapa}") };
    format!("mov.b32 {to}, {from};")
}

/// As if the peer's consumers did not count: its stage is overwritten while they read it.
#[test]
fn a_stage_that_only_the_own_consumers_let_go() {
    let change = |text: &str| {
        let text = text.replace("], 16;", "], 8;");
        let remote = |l: &str| l.contains("mbarrier.arrive.shared::cluster");
        text.lines().filter(|l| !remote(l)).map(|l| format!("{l}\n")).collect()
    };
    let error = fault(change);
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier, ErrorKind::Race];
    assert!(kinds.contains(&error.kind), "{error}");
}

#[test]
fn a_wrong_mask() {
    let masked = |to: &'static str| {
        fault(move |text| line(text, "mov.b16 ctas", 0, |l| l.replace("ctas, 3", to)))
    };
    for alone in ["ctas, 1", "ctas, 2"] {
        let error = masked(alone);
        let kinds = [ErrorKind::Deadlock, ErrorKind::Barrier, ErrorKind::MissingWait];
        assert!(kinds.contains(&error.kind), "{alone}: {error}");
    }
    let error = masked("ctas, 7");
    assert_eq!(error.kind, ErrorKind::Operand, "{error}");
    assert!(error.message.contains("beyond the cluster"), "{error}");
}

#[test]
fn a_missing_barrier_of_the_cluster() {
    let both = |text: &str, arrive: &str| {
        let text = without(text, arrive, 0);
        let nth = usize::from(arrive.contains("relaxed"));
        without(&text, "barrier.cluster.wait", nth)
    };
    // A peer's barriers are used before they are known.
    let error = fault(|text| both(text, "barrier.cluster.arrive.release"));
    let kinds = [ErrorKind::Race, ErrorKind::Barrier];
    assert!(kinds.contains(&error.kind), "{error}");
    // A peer has ended that is still told of stages.
    let error = fault(|text| both(text, "barrier.cluster.arrive.relaxed"));
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    assert!(error.message.contains("has exited"), "{error}");
}

#[test]
fn a_wrong_number_of_bytes_from_two_ctas() {
    let change = |to: &'static str| {
        fault(move |text| line(text, "mbarrier.arrive.expect_tx", 0, |l| l.replace("18432;", to)))
    };
    // Without the peer's half of B.
    let error = change("17408;");
    let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
    assert!(kinds.contains(&error.kind), "{error}");
    assert_eq!(change("19456;").kind, ErrorKind::Deadlock);
}

#[test]
fn a_launch_without_clusters() {
    let problem = problem();
    let alone = Problem { gemm: Gemm { shares: None, ..problem.gemm.clone() }, ..problem.clone() };
    let text = problem.text().replace("_shares_b", "");
    let Err(Wrong::Stopped(error)) = alone.run_text(&text, Completion::Lazy) else {
        panic!("it ran");
    };
    assert!(error.message.contains("the kernel requires [2, 1, 1]"), "{error}");
}
