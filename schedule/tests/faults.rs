//! What is not a training step is refused, by the thing that is wrong with it.

use weft_schedule::generate::Name;
use weft_schedule::program::Step;
use weft_schedule::{Program, Size, Table, Timeline, UnitCosts, check, csv, generate};

fn refuses(text: &str, want: &str) {
    let table = csv::read(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    match check(&table, &UnitCosts::default()) {
        Ok(_) => panic!("passes: {text}"),
        Err(e) => assert!(e.to_string().contains(want), "{e}"),
    }
}

fn accepts(text: &str) {
    let table = csv::read(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    if let Err(e) = check(&table, &UnitCosts::default()) {
        panic!("{text}: {e}");
    }
}

fn unreadable(text: &str, want: &str) {
    match csv::read(text) {
        Ok(_) => panic!("reads: {text}"),
        Err(e) => assert!(e.to_string().contains(want), "{e}"),
    }
}

#[test]
fn order_is_kept_on_a_rank() {
    accepts("0F0,0B0");
    refuses("0B0,0F0", "rank 0, cell 0: B0 of stage 0: comes before F0 of stage 0");
    refuses("0F0,0W0,0I0", "cell 1: W0 of stage 0: comes before I0");
    refuses("0F0,0F0,0B0", "cell 1: F0 of stage 0: was in cell 0 already");
    refuses("(0F0;0B0)OVERLAP_F_B", "cell 0: B0 of stage 0: comes before F0");
}

#[test]
fn nothing_is_missing_and_nothing_is_twice() {
    refuses("0F0,0F1,0B0", "micro-batch 1 of stage 0 has no backward");
    refuses("0F0,0B0,0F2,0B2", "micro-batch 1 of stage 0 has no forward");
    refuses("0F0,0I0", "has an input gradient and no weight gradient");
    refuses("0F0,0I0,0W0,0B0", "has a full backward and also a backward in parts");
    refuses("F0.0,B0.0,F1.0,B1.0\nF0.0,B0.0,F1.0", "stage 0, direction 1 has no backward");
}

#[test]
fn ranks_that_wait_for_each_other_are_named() {
    accepts("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1");
    refuses(
        "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1",
        "deadlock: rank 0 waits at cell 1 for the gradient of stage 0, micro-batch 0 from rank 1; \
         rank 1 waits at cell 1 for the input of stage 1, micro-batch 1 from rank 0",
    );
}

#[test]
fn a_small_channel_stops_what_a_large_one_does_not() {
    // Rank 0 sends three inputs before rank 1, which begins with the last, reads the first.
    let table = csv::read("0F0,0F1,0F2,0B2,0B1,0B0\n1F2,1B2,1F1,1B1,1F0,1B0").expect("a table");
    let report = check(&table, &UnitCosts::default()).expect("a training step");
    assert_eq!((report.capacity_min, report.in_order), (3, false));
    let program = Program::of(&table);
    let e = Timeline::run(&table, &program, &UnitCosts::default(), Some(2)).expect_err("too small");
    let want = "rank 0 waits after 3 cells to send rank 1 the input of stage 1, micro-batch 2: the \
                channel holds 2 already";
    assert!(e.to_string().contains(want), "{e}");
}

fn four_by_eight() -> Table {
    let size = Size { n_ranks: 4, n_micro_batches: 8, stages_per_rank: 2 };
    generate(Name::DualPipe, size).expect("a legal size")
}

/// Every send and every receive is needed: without any one of them the program is refused, by the
/// matching and by the clock.
#[test]
fn no_message_can_be_left_out() {
    let table = four_by_eight();
    let whole = Program::of(&table);
    let mut n_messages = 0;
    for rank in 0..4 {
        for i in 0..whole.ranks[rank].len() {
            if matches!(whole.ranks[rank][i], Step::Compute { .. }) {
                continue;
            }
            let mut program = whole.clone();
            program.ranks[rank].remove(i);
            assert!(weft_schedule::check::matched(&program).is_err());
            assert!(Timeline::run(&table, &program, &UnitCosts::default(), None).is_err());
            n_messages += 1;
        }
    }
    // Each of 16 chunks crosses three borders twice: as a send and as a receive.
    assert_eq!(n_messages, 2 * 8 * 3 * 2);
}

#[test]
fn cells_that_change_places_are_found_if_it_matters() {
    let table = four_by_eight();
    let (mut refused, mut passed) = (0, 0);
    for rank in 0..4 {
        for i in 1..table.rows[rank].len() {
            let mut other = table.clone();
            other.rows[rank].swap(i - 1, i);
            match check(&other, &UnitCosts::default()) {
                Ok(report) => {
                    assert!(report.timeline.makespan() >= 26.0);
                    passed += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0 && passed > 0, "{refused} {passed}");
}

#[test]
fn what_is_no_table_is_refused_with_its_place() {
    unreadable("", "no actions");
    unreadable("\n\n", "no actions");
    unreadable("0F0,0X0", "line 1 (rank 0), cell 1: 0X0: expected an action such as 3F7");
    unreadable("0F0\n1F0,F", "line 2 (rank 1), cell 1: F: expected");
    unreadable("0F", "expected an action");
    unreadable("0F1.2", "expected an action");
    unreadable("F2.0", "directions 0 and 1, not 2");
    unreadable("0Fé", "expected an action");
    unreadable("0F99999999", "99999999 is more than");
    unreadable("0F99999999999999999999999", "expected an action");
    unreadable("(0F0;0B0", "expected a pair");
    unreadable("(0F0)OVERLAP_F_B", "expected a pair");
    unreadable("(0F0;0B0)", "expected \"OVERLAP_F_B\", found \"\"");
    unreadable("(0B0;0F0)OVERLAP_F_B", "a forward (F) and a full backward (B)");
    unreadable("0F0,F0.0", "use one of the two");
    unreadable("F0.0", "their number is even; there are 1 lines");
    unreadable("0F0\n0B0", "stage 0 is in the lines of rank 0 and of rank 1");
    unreadable("0F0\n2F0", "stage 1 is on no rank, and there is a stage 2");
}
