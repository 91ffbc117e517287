//! Products whose CTAs come in clusters, from the module to the device: whole clusters are
//! launched, within the budget of multiprocessors, whatever the sizes of a launch are.

mod machines;

use std::sync::Arc;

use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_graph::{Graph, Step};
use weft_passes::{PassCx, by_name, run_pass};
use weft_runtime::device::Ptx;

use machines::{Draw, arguments, distance, interpret, module, ptx_graph_of, run};

const DRAW: Draw = Draw { low: -1.0, high: 1.0, ints: 4.0 };

/// Kernels with clusters: their name, how many CTAs have one, and how many there may be.
fn clusters(graph: &Graph) -> Vec<(&str, u32, Option<u32>)> {
    let launches = graph.entries[0].steps.iter().filter_map(|step| match step {
        Step::Launch(launch) => Some(launch),
        _ => None,
    });
    let of = launches.map(|launch| (&graph.kernels[launch.kernel.0 as usize], launch.sms));
    let with = of.filter_map(|(k, sms)| Some((k.name.as_str(), k.ptx.as_ref()?.cluster?, sms)));
    with.collect()
}

/// `kernel` is part of the name of what has clusters; sums are within `tolerance` of the
/// interpreter's, and to the last bit those of CTAs alone.
fn check(text: &str, rows: &[u64], sms: u32, kernel: &str, tolerance: f64) {
    let mut m = module(text);
    for (i, name) in ["split_quantized", "cse", "dce", "fuse"].into_iter().enumerate() {
        let pass = by_name(name).expect("a pass");
        run_pass(i + 1, pass, &mut m, &PassCx::default()).expect("it runs");
    }
    let f = m.find("f").expect("the entry");
    let of = |sms: u32| ptx_graph_of(&m, &["f"], Cuda { budget: Budget { sms }, ..Cuda::WHOLE });
    let (together, alone) = (of(sms), of(1));
    let [(name, n_ctas, most)] = clusters(&together)[..] else { panic!("{together}") };
    assert!(name.contains(kernel), "{name}");
    assert_eq!((n_ctas, most), (2, Some(sms / 2 * 2)), "{together}");
    assert!(clusters(&alone).is_empty(), "{alone}");
    for rows in rows {
        let sizes = [(m.find_sym("T").expect("a symbol"), *rows)].into_iter().collect();
        let args = arguments(&m, f, &sizes, 7, DRAW);
        let expected = interpret(&m, f, &args, &sizes);
        let of = |graph| run(Arc::new(Ptx::new()), graph, &m, f, &args, &sizes);
        let (together, alone) = (of(&together), of(&alone));
        assert_eq!(together[0].numbers(), alone[0].numbers(), "{rows} rows");
        let off = distance(&together[0], &expected[0]);
        assert!(off <= tolerance, "{rows} rows: off by {off:.1e}");
    }
}

/// Rows that a launch has fewer of than it may have, down to a single tile.
#[test]
fn a_product_of_bf16_of_any_number_of_rows() {
    let text = "dims { T <= 512 }
        func @f(%x: bf16[T, 72], %w: bf16[96, 72]) -> (y: f32[T, 96]) {
          %1 = matmul %x, %w {ty = true, dtype = f32} : f32[T, 96]
          return %1
        }";
    check(text, &[512, 300, 5], 3, "_shares_", 1e-6);
}

#[test]
fn a_product_of_codes() {
    let text = "dims { T <= 512 }
        func @f(%x: f32[T, 200], %w: f32[160, 200]) -> (y: bf16[T, 160]) {
          %xq = quantize %x {dtype = e4m3, group = [1, 128], scale = f32} : e4m3<1x128, f32>[T, 200]
          %wq = quantize %w {dtype = e4m3, group = [128, 128], scale = f32}
              : e4m3<128x128, f32>[160, 200]
          %1 = matmul %xq, %wq {ty = true, dtype = bf16, promote = 128} : bf16[T, 160]
          return %1
        }";
    check(text, &[512, 140], 2, "_shares_", 4e-3);
}
