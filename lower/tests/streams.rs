//! What is in flight has a stream of its own, and leaves the multiprocessors that carry it to it.

mod machines;

use machines::{module, ptx_graph_of};
use weft_backend_cuda::Cuda;
use weft_graph::{Role, Step};

const TEXT: &str = "
axes { data = 2 }
func @f(%x: bf16[256, 256], %y: f32[64, 64], %w: bf16[256, 256]) -> (bf16[256, 256], f32[128, 64]) {
  %1 = all_gather_start %y {axis = data, dim = 0, sms = 20, stream = comm} : flight f32[128, 64]
  %2 = matmul %x, %w {stream = compute} : bf16[256, 256]
  %3 = done %1 {stream = comm} : f32[128, 64]
  %4 = exp %3 {stream = compute} : f32[128, 64]
  %5 = matmul %2, %w {stream = compute} : bf16[256, 256]
  return %5, %4
}
";

#[test]
fn what_is_in_flight_runs_beside_compute() {
    let graph = ptx_graph_of(&module(TEXT), &["f"], Cuda::WHOLE);
    let steps = &graph.entries[0].steps;
    let streams: Vec<u32> = steps.iter().map(|step| step.order().stream).collect();
    assert_eq!(streams, [1, 0, 1, 0, 0], "{graph}");
    // Only what reads the result waits, and only for the second half.
    let waits: Vec<usize> = steps.iter().map(|step| step.order().waits.len()).collect();
    assert_eq!(waits, [0, 0, 0, 1, 0], "{graph}");
    let sms: Vec<Option<u32>> = steps
        .iter()
        .map(|step| if let Step::Launch(launch) = step { launch.sms } else { None })
        .collect();
    assert_eq!(sms, [None, Some(112), None, None, Some(132)], "{graph}");
}

/// One stream is all that a CPU is told of.
#[test]
fn a_cpu_takes_one_step_after_the_other() {
    let graph = machines::graph(&module(TEXT), &["f"]);
    assert_eq!(weft_graph::order::n_streams(&graph.entries[0].steps), 1);
    let temps = graph.entries[0].buffers.iter().filter(|b| matches!(b.role, Role::Temp { .. }));
    assert!(temps.count() > 0, "{graph}");
}
