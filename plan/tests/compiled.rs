//! Cells of a program as it was compiled, timed by hand.

use weft_ir::text;
use weft_plan::cluster::Cluster;
use weft_plan::compiled::cells;
use weft_plan::kernel::Place;

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
    let all = cells(&module, "step", &seconds(), &PLACE).expect("cells");
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
