//! Cells of a program as it was compiled, timed by hand.

use weft_ir::text;
use weft_plan::cluster::Cluster;
use weft_plan::compiled::{Cell, cells as cells_of};
use weft_plan::compiled_step::{Step, step};
use weft_plan::kernel::{Kernel, Place, Work};
use weft_plan::unit::{Passes, Unit, Weights};
use weft_plan::{Layout, Plan, plan};
use weft_schedule::{Name, Program, Size, Timeline, UnitCosts, generate};

/// A cluster on which a byte is a second.
fn seconds() -> Cluster {
    let text = include_str!("../../clusters/h800.json");
    let mut c = Cluster::parse(text).expect("a cluster");
    (c.memory_bytes_per_s, c.rows, c.launch_us) = (1.0, 1.0, 0.0);
    (c.network_bytes_per_s, c.node_bytes_per_s) = (1.0, 1.0);
    (c.overlap.rows, c.overlap.dispatch, c.overlap.dispatch_again) = (1.0, 2.0, 1.0);
    (c.overlap.combine, c.overlap.wait_us) = (1.0, 0.0);
    c
}

const PLACE: Place = Place {
    sms: 132,
    beside_exchange: true,
    tensor: 1,
    experts: 2,
    node: 8,
    nodes_per_token: None,
    redundant_experts: 0,
    low_latency: false,
    free_encodes: [false; 2],
};

/// Four rows of 32 bytes go to one expert each of two ranks, beside what needs nothing of them;
/// what is made of those that come is as of four rows, though there is room for eight.
const STEP: &str = "
axes { experts = 2 }
func @cell(%x: f32[4, 8], %y: f32[16, 8], %sent: i32[3], %got: i32[3]) -> (f32[8, 8], f32[16, 8]) {
  %1 = exchange_start %x, %sent, %got {axis = experts, sms = 20} : flight f32[8, 8] # m.model:1:1
  %2 = exp %y : f32[16, 8] # m.model:2:1
  %3 = done %1 : f32[8, 8] # m.model:3:1
  %4 = exp %3 : f32[8, 8] # m.model:4:1
  return %4, %2
}
func @plain(%y: f32[16, 8]) -> (f32[16, 8]) {
  %1 = exp %y : f32[16, 8] # m.model:5:1
  return %1
}
func @step(%x: f32[4, 8], %y: f32[16, 8], %sent: i32[3], %got: i32[3]) -> (a: f32[8, 8], b: f32[16, 8]) {
  %1, %2 = call %x, %y, %sent, %got {func = @cell} : f32[8, 8], f32[16, 8] # m.model:6:1
  %3 = call %2 {func = @plain} : f32[16, 8] # m.model:7:1
  %4, %5 = call %x, %3, %sent, %got {func = @cell} : f32[8, 8], f32[16, 8] # m.model:8:1
  return %4, %5
}
";

#[test]
fn an_exchange_is_on_its_way_beside_what_does_not_need_it() {
    let module = text::parse(STEP).expect("a module");
    let all = cells_of(&module, "step", &seconds(), &PLACE).expect("cells");
    let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["cell", "plain"], "each once");
    let ran = |i: usize| -> Vec<(&str, f64, f64)> {
        all[i].streams.tasks.iter().map(|t| (t.name, t.start, t.end)).collect()
    };
    // 16 x 8 numbers are read and written; half of 128 bytes leave the rank.
    let exchange = ran(0)[0].2;
    assert_eq!(ran(0)[1], ("exp", 0.0, 1024.0));
    assert!(exchange > 0.0 && exchange < 1024.0, "{exchange}");
    assert_eq!(ran(0)[2], ("exp", 1024.0, 1024.0 + 256.0));
    assert_eq!(all[0].streams.covered(), (exchange, exchange));
    assert_eq!(ran(1), [("exp", 0.0, 1024.0)]);
}

/// Functions of stages, each a number of rows of 64 bytes, which are so many seconds; and a step
/// that calls each as often as is said.
fn program(cells: &[(&str, u64, usize)]) -> Vec<Cell> {
    let mut text = String::new();
    let mut calls = String::new();
    for (i, (name, rows, n_calls)) in cells.iter().enumerate() {
        text += &format!(
            "func @{name}(%y: f32[{rows}, 8]) -> (f32[{rows}, 8]) {{\n  \
             %1 = exp %y : f32[{rows}, 8] # m.model:1:1\n  return %1\n}}\n"
        );
        for n in 0..*n_calls {
            calls += &format!(
                "  %y{i}x{n} = constant {{value = {n}, type = f32[{rows}, 8]}} : f32[{rows}, 8] # \
                 m.model:2:1\n  %z{i}x{n} = call %y{i}x{n} {{func = @{name}}} : f32[{rows}, 8] # \
                 m.model:3:1\n"
            );
        }
    }
    text += &format!("func @step(%x: f32[1]) -> (x: f32[1]) {{\n{calls}  return %x\n}}\n");
    let module = text::parse(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    cells_of(&module, "step", &seconds(), &PLACE).expect("cells")
}

fn layout(name: Name, n_ranks: usize, n_micro_batches: usize) -> Layout {
    let stages_per_rank = name.stages_per_rank().unwrap_or(2);
    Layout {
        data: 1,
        tensor: 1,
        experts: 1,
        node: 8,
        nodes_per_token: None,
        zero: false,
        communication_sms: 0,
        table: generate(name, Size { n_ranks, n_micro_batches, stages_per_rank }).expect("a size"),
        tokens: 10,
        message_bytes: 0.0,
        within_memory: true,
        stage_layers: None,
        moment_bytes: 4.0,
    }
}

/// A model of a layer for each stage, as long as is said; without weights, so without an optimizer.
fn planned(l: &Layout, layers: &[f64]) -> Plan {
    let mut c = seconds();
    c.memory_bytes = 1e12;
    let rows = |bytes| Kernel { name: "rows".into(), work: Work::Rows { bytes, encode: None } };
    let passes = |bytes| Passes { attention: vec![rows(bytes)], ..Passes::default() };
    let unit = |bytes: &f64| Unit {
        name: "layer".into(),
        forward: passes(*bytes),
        input: passes(*bytes),
        weight: passes(*bytes),
        weights: Weights::default(),
        saved_bytes: 0.0,
        saved_row_bytes: 0.0,
    };
    let units: Vec<Unit> = layers.iter().map(unit).collect();
    plan(&units, &c, l, &[]).expect("a plan")
}

/// Seconds of a row of 8 numbers, read and written.
const ROW: f64 = 64.0;

fn stepped(programs: &[Vec<Cell>], l: &Layout, sums: bool) -> Step {
    let step = step(programs, l, &planned(l, &[1.0; 4]), &seconds(), sums);
    step.expect("a step").expect("cells of stages")
}

#[test]
fn a_compiled_step_is_the_schedules_clock_with_compiled_cells() {
    let own = |s: usize| {
        let [f, i, w] = ["fwd", "bwd_input", "bwd_weight"].map(|h| format!("stage.{s}.{h}"));
        (f, i, w)
    };
    // One program of DualPipe's first rank, whose cells take what `UnitCosts` says.
    let l = layout(Name::DualPipe, 4, 8);
    let (f, i, w) = own(0);
    let pair = format!("{f}.stage.3.bwd_input.stage.3.bwd_weight");
    let (b, all) = (format!("{i}.{w}"), |s: &str| s.to_string());
    let names = [all(&f), all(&b), all(&i), all(&w), pair, all("loss.stage.3")];
    let cell = |at: usize, rows| (names[at].as_str(), rows, 1);
    let rank = program(&[cell(0, 1), cell(1, 2), cell(2, 1), cell(3, 1), cell(4, 3), cell(5, 9)]);
    let costs = UnitCosts::default();
    let clock = |l: &Layout| {
        Timeline::run(&l.table, &Program::of(&l.table), &costs, None).expect("a clock")
    };
    let found = stepped(&[rank], &l, true);
    assert_eq!(found.step_seconds, ROW * clock(&l).makespan());
    assert_eq!(found.bubble_seconds, ROW * clock(&l).bubble());
    let alike = planned(&l, &[1.0; 4]);
    let tokens = alike.tokens_per_step;
    assert_eq!(found.tokens_per_s_per_gpu, tokens / found.step_seconds / 4.0);
    // A weight gradient that no program has alone is what a backward has beside its input's.
    let rank = program(&[cell(0, 1), cell(1, 2), cell(2, 1), cell(4, 3)]);
    assert_eq!(stepped(&[rank], &l, true).step_seconds, found.step_seconds);
    // And a pair is both.
    let rank = program(&[cell(0, 1), cell(2, 1), cell(3, 1)]);
    assert_eq!(stepped(&[rank], &l, true).step_seconds, found.step_seconds);

    let none = program(&[cell(5, 9)]);
    assert_eq!(step(&[none], &l, &alike, &seconds(), true), Ok(None));
    let rank = program(&[cell(0, 1)]);
    let e = step(&[rank], &l, &alike, &seconds(), true).expect_err("no backward");
    assert!(e.to_string().contains("no program given has input gradients of any stage"), "{e}");
}

#[test]
fn stages_without_a_program_take_what_the_nearest_takes_and_sums_are_shared() {
    let l = layout(Name::OneFOneB, 4, 8);
    let (f, b) = ("stage.0.fwd", "stage.0.bwd_input.stage.0.bwd_weight");
    let first = program(&[(f, 1, 8), (b, 2, 8), ("stage.0.sum_grads", 4, 2)]);
    let (f, b) = ("stage.3.fwd", "stage.3.bwd_input.stage.3.bwd_weight");
    let last = program(&[(f, 3, 8), (b, 6, 8)]);
    // Stages 0 and 1 take 1 and 2, and 2 and 3 take 3 and 6: the last rank is busy throughout but
    // for what the others take before it and after it.
    let rows = 8.0 * (3.0 + 6.0) + (1.0 + 1.0 + 3.0) + (6.0 + 2.0 + 2.0);
    let both = [first.clone(), last.clone()];
    assert_eq!(stepped(&both, &l, false).step_seconds, ROW * rows);
    // Two sums of 4 for 8 backwards, which stages 2 and 3 have from the nearest as well.
    let rows = 8.0 * (3.0 + 7.0) + (1.0 + 1.0 + 3.0) + (7.0 + 3.0 + 3.0);
    assert_eq!(stepped(&both, &l, true).step_seconds, ROW * rows);
    // Stages 1 and 2 are as long as stage 3, and take what that takes.
    let unlike = planned(&l, &[1.0, 5.0, 5.0, 5.0]);
    let found = step(&both, &l, &unlike, &seconds(), false).expect("a step").expect("cells");
    let rows = 8.0 * (3.0 + 6.0) + (1.0 + 3.0 + 3.0) + (2.0 + 6.0 + 6.0);
    assert_eq!(found.step_seconds, ROW * rows);
    // The same program again changes nothing.
    let thrice = [first.clone(), last, first];
    assert_eq!(stepped(&thrice, &l, true), stepped(&both, &l, true));
}
