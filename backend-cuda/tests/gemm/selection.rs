//! Which tiles are chosen.

use weft_backend_cuda::gemm::select::{
    Budget, Sizes, cycles, grid, n_tiles, n_waves, select, sharing, widths,
};
use weft_backend_cuda::gemm::{Gemm, Grouping, Operand};

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
    let tiles = n_tiles(&chosen, sizes);
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
fn neighbours_share_what_more_bytes_have() {
    let of = |gemm: &Gemm, m, n, sms| sharing(gemm, sizes(m, n, 4096), Budget { sms }).shares;
    assert_eq!(of(&bf16(256), 4096, 8192, 132), Some(Operand::B));
    assert_eq!(of(&bf16(96), 4096, 96 * 40, 132), Some(Operand::A));
    // An odd number of tiles along m, or along n.
    assert_eq!(of(&bf16(256), 128 * 33, 256 * 32, 132), Some(Operand::A));
    assert_eq!(of(&bf16(96), 4096, 96 * 41, 132), Some(Operand::B));
    assert_eq!(of(&bf16(256), 128 * 33, 256 * 31, 132), None);
    // Few rows, or a machine that is not full.
    assert_eq!(of(&bf16(64), 256, 64 * 200, 132), None);
    assert_eq!(of(&bf16(256), 1024, 256 * 16, 132), None);
    // Groups' numbers of rows are known on the device alone.
    let rows = Gemm { grouping: Grouping::Rows, ..bf16(256) };
    assert_eq!(of(&rows, 4096, 8192, 132), None);
}

#[test]
fn clusters_are_whole_within_the_budget() {
    // 512 tiles, of which 131 CTAs do as many at a time as 130: four waves.
    let sizes = sizes(4096, 4096, 4096);
    let odd = Budget { sms: 131 };
    let chosen = sharing(&bf16(256), sizes, odd);
    assert_eq!(chosen.shares, Some(Operand::B));
    assert_eq!(grid(&chosen, sizes, odd), 130);
    for sms in 1..132 {
        let budget = Budget { sms };
        let chosen = sharing(&bf16(256), sizes, budget);
        let grid = grid(&chosen, sizes, budget);
        assert!(grid <= sms && grid % chosen.cluster_ctas() == 0, "{grid} of {sms}");
        let waves = |g: &Gemm| n_waves(g, sizes, budget);
        assert!(waves(&chosen) <= waves(&bf16(256)), "{sms}");
    }
    // 114 tiles are two turns of 57 CTAs, and three of 56.
    let exact = Sizes { m: 128 * 2 * 57, n: 256, ..sizes };
    assert_eq!(sharing(&bf16(256), exact, Budget { sms: 57 }).shares, None);
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
