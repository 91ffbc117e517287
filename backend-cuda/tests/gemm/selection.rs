//! Which tiles are chosen.

use weft_backend_cuda::gemm::select::{Budget, Sizes, cycles, grid, n_tiles, select, widths};
use weft_backend_cuda::gemm::{Gemm, Grouping};

use crate::problem::{bf16, e4m3};

fn sizes(m: u64, n: u64, k: u64) -> Sizes {
    Sizes { m, n, k, groups: 1 }
}

#[test]
fn a_large_product_gets_wide_tiles_and_every_multiprocessor() {
    let chosen = select(&bf16(16), sizes(8192, 8192, 8192), Budget::WHOLE);
    assert!(chosen.tile_cols >= 192, "{}", chosen.tile_cols);
    assert_eq!(grid(&chosen, sizes(8192, 8192, 8192), Budget::WHOLE), 132);
}

#[test]
fn a_narrow_product_is_cut_until_it_fills_the_machine() {
    // 128 x 4096: 16 tiles of 256 columns leave 116 multiprocessors without work.
    let sizes = sizes(128, 4096, 7168);
    let chosen = select(&bf16(16), sizes, Budget::WHOLE);
    let tiles = n_tiles(Grouping::Batch, sizes, chosen.tile_cols);
    assert!(tiles >= 86, "{tiles} tiles of {} columns", chosen.tile_cols);
}

#[test]
fn the_choice_is_the_fastest_of_those_that_can_be() {
    for m in [1u64, 100, 4096, 5000] {
        for n in [64u64, 576, 2112, 7168] {
            let sizes = sizes(m, n, 2048);
            let chosen = select(&e4m3(32, 128), sizes, Budget::WHOLE);
            for tile_cols in widths(&chosen) {
                let other = Gemm { tile_cols, ..chosen.clone() };
                let [a, b] = [&chosen, &other].map(|g| cycles(g, sizes, Budget::WHOLE));
                assert!(a <= b, "{m} x {n}: {} columns over {tile_cols}", chosen.tile_cols);
            }
        }
    }
}

#[test]
fn a_smaller_budget_bounds_the_grid() {
    let sizes = sizes(4096, 4096, 4096);
    let budget = Budget { sms: 100 };
    assert_eq!(grid(&select(&bf16(16), sizes, budget), sizes, budget), 100);
    assert_eq!(grid(&bf16(128), Sizes { m: 64, ..sizes }, budget), 32);
}

#[test]
fn what_the_machine_does_not_have_is_refused_by_name() {
    let refused = Gemm { tile_cols: 20, ..bf16(16) }.check().unwrap_err();
    assert!(refused.contains("in steps of 16"), "{refused}");
    let refused = Gemm { scales: None, ..e4m3(64, 128) }.check().unwrap_err();
    assert!(refused.contains("codes need scales"), "{refused}");
    let refused = e4m3(224, 128).check().unwrap_err();
    assert!(refused.contains("32 to 192"), "{refused}");
}
