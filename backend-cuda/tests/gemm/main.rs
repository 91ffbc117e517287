//! Products of the Hopper template on the interpreter, with its checks for races and missing waits
//! on, to the last bit of a reference written apart.

mod clusters;
mod faults;
mod problem;
mod reference;
mod selection;

use problem::{Problem, bf16, e4m3};
use ptx_sim::Completion;
use weft_backend_cuda::gemm::{Blocks, Gemm, Grouping, Output, ScaleType, Scales, Store};
use weft_backend_cuda::tiles::shared::Major;

const RANDOM: Completion = Completion::Random { seed: 7, delay_max: 60 };

fn check(problem: &Problem) {
    for completion in [Completion::Lazy, RANDOM] {
        problem.run(completion).unwrap_or_else(|e| panic!("{completion:?}: {e:?}"));
    }
}

#[test]
fn bf16_of_odd_sizes_and_partial_tiles() {
    check(&Problem::of(bf16(64), [150, 77, 136]));
    check(&Problem::of(Gemm { output: Output::Bf16, ..bf16(32) }, [131, 46, 200]));
}

#[test]
fn more_tiles_than_ctas_and_more_blocks_than_stages() {
    let problem = Problem { grid: 2, ..Problem::of(bf16(16), [300, 40, 64 * 10 + 8]) };
    check(&problem);
}

#[test]
fn an_odd_row_stride_stores_one_by_one() {
    let gemm = Gemm { store: Store::Single, output: Output::Bf16, ..bf16(32) };
    check(&Problem { c_padding: 1, ..Problem::of(gemm, [65, 40, 64]) });
}

#[test]
fn tiles_of_every_width_go_out_by_tma() {
    for tile_cols in [16, 96, 128] {
        let gemm = Gemm { store: Store::Tensor, output: Output::Bf16, ..bf16(tile_cols) };
        let sizes = [200, 300, 72];
        check(&Problem { groups: 2, grid: 2, c_padding: 4, ..Problem::of(gemm, sizes) });
    }
    let gemm = Gemm { store: Store::Tensor, output: Output::Bf16, ..e4m3(64, 128) };
    check(&Problem { c_padding: 3, ..Problem::of(gemm, [70, 77, 128]) });
}

#[test]
fn operands_contiguous_along_rows() {
    use Major::{K, Rows};
    for (a_major, b_major) in [(Rows, K), (K, Rows), (Rows, Rows)] {
        let gemm = Gemm { a_major, b_major, ..bf16(64) };
        check(&Problem::of(gemm, [136, 72, 100]));
    }
}

#[test]
fn a_batch_of_products_adds_to_what_is_there() {
    let gemm = Gemm { accumulate: true, ..bf16(32) };
    check(&Problem { groups: 3, grid: 3, ..Problem::of(gemm, [70, 35, 72]) });
}

#[test]
fn rows_of_groups_of_any_length() {
    let gemm = Gemm { grouping: Grouping::Rows, ..bf16(32) };
    let offsets = vec![0, 5, 5, 140, 300];
    check(&Problem { offsets, groups: 4, grid: 3, ..Problem::of(gemm, [300, 48, 80]) });
}

#[test]
fn masked_groups_leave_rows_beyond_their_count() {
    let gemm = Gemm { grouping: Grouping::Masked, ..bf16(32) };
    let offsets = vec![3, 0, 130];
    check(&Problem { offsets, groups: 3, grid: 2, ..Problem::of(gemm, [140, 40, 80]) });
}

#[test]
fn segments_of_k_meet_inside_a_stage() {
    for [a_major, b_major] in [[Major::K; 2], [Major::Rows; 2]] {
        let gemm =
            Gemm { grouping: Grouping::Inner, accumulate: true, a_major, b_major, ..bf16(64) };
        let offsets = vec![0, 10, 10, 70, 200];
        check(&Problem { offsets, groups: 4, grid: 3, ..Problem::of(gemm, [72, 64, 200]) });
    }
}

#[test]
fn codes_are_promoted_block_by_block() {
    check(&Problem::of(e4m3(64, 128), [150, 77, 400]));
    check(&Problem { grid: 2, ..Problem::of(e4m3(128, 128), [140, 200, 128]) });
}

#[test]
fn a_tile_may_span_two_groups_of_columns() {
    check(&Problem { grid: 1, ..Problem::of(e4m3(96, 128), [70, 290, 256]) });
}

#[test]
fn each_column_of_codes_may_have_its_scale() {
    let scale = Scales { dtype: ScaleType::Ue8m0, rows: 1 };
    let gemm = Gemm { scales: Some([scale; 2]), ..e4m3(64, 1) };
    check(&Problem::of(gemm, [70, 100, 272]));
}

#[test]
fn codes_by_group() {
    let rows = Gemm { grouping: Grouping::Rows, ..e4m3(64, 128) };
    let offsets = vec![0, 30, 30, 170];
    check(&Problem { offsets, groups: 3, grid: 2, ..Problem::of(rows, [170, 140, 160]) });
    let masked = Gemm { grouping: Grouping::Masked, ..e4m3(64, 128) };
    let offsets = vec![20, 0, 129];
    check(&Problem { offsets, groups: 3, grid: 2, ..Problem::of(masked, [130, 140, 160]) });
    let inner = Gemm { grouping: Grouping::Inner, accumulate: true, ..e4m3(64, 1) };
    let offsets = vec![0, 50, 50, 300, 384];
    check(&Problem { offsets, groups: 4, grid: 2, ..Problem::of(inner, [70, 40, 384]) });
}

/// What is behind the last term is zero; a step of zeros alone would cut the sum once more.
#[test]
fn tensor_cores_cut_sums_of_blocks_that_end_anywhere() {
    let of = |gemm: Gemm| Gemm { hopper14: Some(Blocks::Partial), ..gemm };
    for k in [16, 32, 128, 128 + 48, 256 + 80, 128 + 112] {
        check(&Problem::of(of(e4m3(64, 128)), [70, 40, k]));
    }
    let whole = Gemm { hopper14: Some(Blocks::Whole), ..e4m3(64, 128) };
    check(&Problem::of(whole, [70, 40, 256]));
    let rows = Gemm { grouping: Grouping::Rows, ..of(e4m3(64, 1)) };
    let offsets = vec![0, 30, 30, 150];
    check(&Problem { offsets, groups: 3, grid: 2, ..Problem::of(rows, [150, 40, 160]) });
}

/// Steps are counted from where a segment begins.
#[test]
fn tensor_cores_cut_sums_of_segments_that_begin_anywhere() {
    let of = Gemm { grouping: Grouping::Inner, accumulate: true, ..e4m3(64, 1) };
    let gemm = Gemm { hopper14: Some(Blocks::Partial), ..of };
    let offsets = vec![0, 50, 50, 51, 300, 384];
    check(&Problem { offsets, groups: 5, grid: 2, ..Problem::of(gemm, [70, 40, 384]) });
}
