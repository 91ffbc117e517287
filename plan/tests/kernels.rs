//! Kernel times of the H800 against published tables, but for the rows that calibrated them.

use weft_plan::Cluster;
use weft_plan::cluster::Product;
use weft_plan::kernel::product_seconds;

fn h800() -> Cluster {
    Cluster::parse(include_str!("../../clusters/h800.json")).expect("a cluster")
}

fn tflops(p: &Product, m: u64, n: u64, k: u64, groups: u64, sms: u64) -> f64 {
    let flops = 2.0 * (m * n * k * groups) as f64;
    flops / product_seconds(p, m, n, k, groups, sms) / 1e12
}

#[test]
fn fp8_products_take_as_long_as_deepgemms() {
    // DeepGEMM, February 2025: rows of M = 4096, and grouped. The first two calibrated the model.
    let rows: [(u64, u64, u64, u64, f64); 10] = [
        (1, 4096, 24576, 1536, 990.0),
        (1, 4096, 7168, 16384, 1358.0),
        (1, 4096, 2112, 7168, 1058.0),
        (1, 4096, 32768, 512, 590.0),
        (1, 4096, 4096, 7168, 1304.0),
        (1, 4096, 7168, 2048, 1025.0),
        (4, 8192, 4096, 7168, 1297.0),
        (4, 8192, 7168, 2048, 1099.0),
        (8, 4096, 4096, 7168, 1288.0),
        (8, 4096, 7168, 2048, 1093.0),
    ];
    let p = h800().fp8;
    for (groups, m, n, k, published) in rows {
        let found = tflops(&p, m, n, k, groups, 132);
        let error = found / published - 1.0;
        assert!(error.abs() < 0.05, "{groups} x {m} {n} {k}: {found:.0}, published {published}");
    }
}

#[test]
fn weight_gradients_take_as_long_as_in_the_trace() {
    // DeepSeek's training trace, 112 multiprocessors, sums of 4096: microseconds. The first row
    // calibrated the model.
    let rows: [(u64, u64, f64); 5] = [
        (7168, 16384, 1506.0),
        (24576, 1536, 460.0),
        (32768, 512, 222.0),
        (1536, 7168, 135.0),
        (576, 7168, 69.0),
    ];
    let c = h800();
    for (m, n, published) in rows {
        let seconds = product_seconds(&c.fp8_weight_gradient, m, n, 4096, 1, 112);
        let found = seconds * c.overlap.product * 1e6;
        let error = found / published - 1.0;
        assert!(error.abs() < 0.05, "{m} {n}: {found:.0}, in the trace {published}");
    }
}

#[test]
fn a_wrong_description_is_refused_by_its_key() {
    let text = include_str!("../../clusters/h800.json");
    let refuse = |from: &str, to: &str, want: &str| {
        assert!(text.contains(from));
        let e = Cluster::parse(&text.replacen(from, to, 1)).expect_err("wrong").to_string();
        assert!(e.contains(want), "{e}");
    };
    refuse("\"sms\": 132", "\"sms\": 0", "at least 1, found 0");
    refuse("\"sms\"", "\"smss\"", "unknown field `smss`");
    refuse("\"rows\": 0.70", "\"rows\": -1", "rows is above 0, found -1");
    refuse("\"launch_us\": 2.0", "\"launch_us\": -2.0", "times are from 0, found -2");
    refuse("{", "[", "not a cluster description");
}
