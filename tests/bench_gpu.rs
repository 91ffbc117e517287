//! What `weft bench-gpu` writes as JSON, and the table in which bench/gpu.py puts others beside it,
//! made of recorded times.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn bench(dir: &Path, more: &[&str]) -> Value {
    let file = dir.join("numbers.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("bench-gpu").args(more).arg("--json").arg(&file);
    let output = command.env("LD_LIBRARY_PATH", driver(dir)).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(&file).expect("it was written")).expect("JSON")
}

/// A folder with a libcuda that runs PTX on the interpreter.
fn driver(dir: &Path) -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a file");
    let built = tests.parent().expect("it is in a folder").join("libweft_test_driver.so");
    std::fs::copy(&built, dir.join("libcuda.so")).expect("cargo built the driver");
    dir.to_owned()
}

/// bench/gpu.py, where there is a Python.
fn script(args: &[&str]) -> Option<Output> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/gpu.py");
    let done = Command::new("python3").arg(file).args(args).output();
    if done.is_err() {
        println!("skipped: there is no python3 here");
    }
    done.ok()
}

#[test]
fn numbers_are_those_of_the_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let checked = bench(dir.path(), &["--device", "ptx", "--only", "rotary"]);
    assert_eq!(checked["checks"][0]["case"], "rotary");
    assert_eq!(checked["checks"][0]["off"], 0.0);
    assert!(checked["timed"].is_null(), "{checked}");

    let more = ["--device", "cuda", "--small", "--runs", "3", "--only", "e4m3 product"];
    let timed = bench(dir.path(), &more);
    let timed = &timed["timed"];
    assert_eq!((&timed["runs"], &timed["small"]), (&3.into(), &true.into()));
    let row = &timed["rows"][0];
    assert_eq!((&row["case"], &row["sizes"]), (&"e4m3 product".into(), &"130x136x200".into()));
    let launches = row["launches"].as_array().expect("launches");
    let product = launches.last().expect("the product is last");
    assert!(product["kernel"].as_str().is_some_and(|k| k.starts_with("sm90a_e4m3_gemm")));
    let micro = |times: &Value, key: &str| times[key].as_f64().expect("a time");
    for times in launches.iter().chain([&row["total"]]) {
        assert!(micro(times, "tenth_us") > 0.0);
        assert!(micro(times, "tenth_us") <= micro(times, "median_us"));
        assert!(micro(times, "median_us") <= micro(times, "ninetieth_us"));
    }
    // Of each launch the fastest runs may be different ones: together they take no longer than all.
    let least: f64 = launches.iter().map(|launch| micro(launch, "tenth_us")).sum();
    assert!(least <= micro(&row["total"], "tenth_us") * (1.0 + 1e-9), "{row}");
}

fn times(median: f64) -> Value {
    json!({ "median_us": median, "tenth_us": median - 1.0, "ninetieth_us": median + 2.0 })
}

fn with(mut times: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object") {
        times[key] = value.clone();
    }
    times
}

/// Made-up times of a GPU, with what others took.
fn recorded() -> Value {
    let launch = |kernel: &str, median: f64, flops: f64| {
        with(times(median), json!({ "kernel": kernel, "flops": flops, "bytes": 1.0 }))
    };
    let row = |case: &str, sizes: &str, launches: Value, total: f64| {
        let total = times(total);
        json!({ "case": case, "sizes": sizes, "launches": launches, "total": total })
    };
    let other = |case: &str, sizes: &str, part: &str, who: &str, median: f64| {
        let of = json!({ "case": case, "sizes": sizes, "part": part, "who": who });
        with(times(median), of)
    };
    let (product, small) = ("e4m3 product", "4096x2112x7168");
    let experts = "4 of 8192x4096x7168";
    json!({
        "weft": { "device": "made up", "checks": [], "timed": {
            "runs": 20, "small": false, "copy_bytes_per_s": 3e12, "flops_per_s": {},
            "rows": [
                row("bf16 product", small, json!([launch("sm90a_bf16_gemm", 200.0, 124e9)]), 200.0),
                row(product, small, json!([
                    launch("encode_a", 20.0, 1e6),
                    launch("encode_b", 15.0, 1e6),
                    launch("sm90a_e4m3_gemm", 100.0, 124e9),
                ]), 135.0),
                row("codes by expert", experts, json!([
                    launch("sm90a_e4m3_gemm_rows_128", 1000.0, 1924e9),
                    launch("sm90a_e4m3_gemm_inner_128", 1300.0, 1924e9),
                ]), 2500.0),
                row("rotary", "4096 rows", json!([launch("rotary", 5.0, 1e6)]), 5.0),
            ],
        } },
        "beside": {
            "versions": ["torch 9.9", "DeepGEMM 8.8"],
            "found": [
                other("bf16 product", small, "", "cuBLAS", 190.0),
                other(product, small, ", alone", "torch scaled_mm", 125.0),
                other(product, small, ", alone", "DeepGEMM", 98.0),
                other(product, small, ", with quantization", "torch scaled_mm", 270.0),
                other("codes by expert", experts, ", alone", "DeepGEMM", 1100.0),
            ],
            "skipped": ["attention [1, 4096, 128]: torch, FlashAttention: no kernel"],
        },
    })
}

#[test]
fn others_stand_beside_weft_in_one_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("gpu.json");
    std::fs::write(&file, recorded().to_string()).expect("a file");
    let Some(output) = script(&["--from", &file.display().to_string()]) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bf16 = "bf16 product 4096x2112x7168";
    let alone = "e4m3 product 4096x2112x7168, alone";
    let quantized = "e4m3 product 4096x2112x7168, with quantization";
    let experts = "codes by expert 4 of 8192x4096x7168, alone";
    let rows = [
        (bf16, "weft | 200.0 | 199.0 | 202.0 | 620.0 | "),
        (bf16, "cuBLAS | 190.0 | 189.0 | 192.0 | 652.6 | 0.95x"),
        (alone, "weft | 100.0 | 99.0 | 102.0 | 1240.0 | "),
        (alone, "torch scaled_mm | 125.0 | 124.0 | 127.0 | 992.0 | 1.25x"),
        (alone, "DeepGEMM | 98.0 | 97.0 | 100.0 | 1265.3 | 0.98x"),
        (quantized, "weft | 135.0 | 134.0 | 137.0 | 918.5 | "),
        (quantized, "torch scaled_mm | 270.0 | 269.0 | 272.0 | 459.3 | 2.00x"),
        (experts, "weft | 1000.0 | 999.0 | 1002.0 | 1924.0 | "),
        (experts, "DeepGEMM | 1100.0 | 1099.0 | 1102.0 | 1749.1 | 1.10x"),
    ];
    let rows: Vec<String> = rows.map(|(of, rest)| format!("| {of} | {rest} |\n")).into();
    let expected = [
        "Beside torch 9.9, DeepGEMM 8.8. Weft's speed is their time by its own.\n\n",
        "| problem | by | µs | 10 % | 90 % | TFLOP/s | weft's speed |\n",
        "|---|---|---|---|---|---|---|\n",
        &rows.concat(),
        "\nSkipped: attention [1, 4096, 128]: torch, FlashAttention: no kernel.\n",
    ];
    let expected = expected.concat();
    assert_eq!(said, expected);
}

#[test]
fn what_cannot_be_had_is_a_line_that_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let table = dir.path().join("gpu.md");
    let (weft, file) = (env!("CARGO_BIN_EXE_weft"), table.display().to_string());
    let args = ["--weft", weft, "--table", &file, "--device", "ptx", "--only", "rotary"];
    let Some(output) = script(&args) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("rotary: off by 0.0e0"), "{said}");
    let skipped = "Skipped: beside others: nothing is timed on this device.";
    assert!(said.contains(skipped), "{said}");
    assert!(!table.exists(), "there is no table without times");
}
