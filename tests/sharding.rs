//! `weft explain --mesh`: what ranks divide is what the passes divide, and each says why.

mod tiny;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use tiny::TINY;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn weft(args: &[&str]) -> String {
    let output = command(args).output().expect("weft runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "weft {}: {errors}", args.join(" "));
    String::from_utf8(output.stdout).expect("text")
}

fn refused(args: &[&str]) -> String {
    let output = command(args).output().expect("weft runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&weft(&[args, &["--json"]].concat())).expect("JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn all<'a>(table: &'a Value, key: &str) -> &'a [Value] {
    table[key].as_array().expect(key)
}

/// Every axis but the pipeline's.
const MESH: [&str; 4] = ["--mesh", "data=4,experts=2,tensor=2,sequence=2", "--zero", "1"];

/// `nano` in small; the length of a sequence is of the train block.
fn small() -> Vec<&'static str> {
    let sets = TINY.iter().filter(|set| !set.starts_with("sequence="));
    sets.flat_map(|set| ["--set", *set]).collect()
}

/// Dims of weights that are divided, by the axis: `(weight, dim, axis)`.
fn divided_stores(ir: &str) -> BTreeSet<(String, usize, String)> {
    let mut found = BTreeSet::new();
    for line in ir.lines().filter_map(|line| line.strip_prefix("weight @")) {
        let (name, rest) = line.split_once(" : ").expect("a type");
        let dims = rest.split_once('[').expect("dims").1.split_once(']').expect("dims").0;
        for (dim, size) in dims.split(", ").enumerate() {
            if let Some((_, axis)) = size.split_once('{') {
                found.insert((name.to_string(), dim, axis.trim_end_matches('}').to_string()));
            }
        }
    }
    found
}

/// The step that the passes make, in dumps: that behind `zero`, and that behind `sequence`.
fn dumps(dir: &Path) -> [String; 2] {
    let (dump, out) = (dir.join("dump"), dir.join("x.weft"));
    let [dump_text, out] = [&dump, &out].map(|path| path.display().to_string());
    // A sequence that is no other size of the model.
    let batch = ["--set", "batch=4", "--set", "micro_batch=1", "--set", "sequence=28"];
    let more = ["--dump", &dump_text, "-o", &out];
    let compile = ["compile", "models/nano.model", "--for", "train"];
    weft(&[&compile[..], &small(), &batch, &MESH, &more].concat());
    let files: Vec<_> = fs::read_dir(&dump).expect("dumps").flatten().map(|f| f.path()).collect();
    ["zero", "sequence"].map(|pass| {
        let named = |path: &&PathBuf| {
            path.file_name().is_some_and(|f| f.to_string_lossy().ends_with(&format!("-{pass}.ir")))
        };
        fs::read_to_string(files.iter().find(named).expect(pass)).expect("text")
    })
}

/// The sizes of a value of a function, as the text of the module has it.
fn sizes(ir: &str, func: &str, value: &str) -> Vec<String> {
    let of = ir.split(&format!("\nfunc @{func}(")).nth(1).expect("the function");
    let of = of.split("\n}").next().expect("its body");
    let line = of.lines().find(|line| {
        let made = line.split(" = ").next().unwrap_or("").trim();
        made.split(", ").next() == Some(&format!("%{value}"))
    });
    let line = line.unwrap_or_else(|| panic!("no %{value} in @{func}"));
    let ty = line.rsplit(" : ").next().expect("types");
    let dims = ty.split_once('[').map_or("", |(_, dims)| dims.split(']').next().unwrap_or(""));
    dims.split(", ").map(str::to_string).collect()
}

#[test]
fn what_is_said_of_each_axis_is_what_the_passes_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let [zero, sequence] = dumps(dir.path());
    let explain = ["explain", "models/nano.model", "--sequence", "28"];
    let table = json(&[&explain[..], &small(), &MESH].concat());
    let mut said = BTreeSet::new();
    for weight in all(&table, "weights") {
        assert!(!text(weight, "why").is_empty(), "{weight}");
        let (stack, dim) = (weight["stack"].as_u64(), weight["dim"].as_u64());
        let name = text(weight, "weight").to_string();
        let n_stacked = sizes_of_store(&zero, &name) - all(weight, "shape").len();
        let dim = stack.or(dim.map(|d| d + n_stacked as u64));
        said.extend(dim.map(|d| (name, d as usize, text(weight, "along").to_string())));
    }
    assert_eq!(said, divided_stores(&zero));

    let values = all(&table, "values");
    let named = values.iter().filter(|v| v["value"].is_string() && v["own"].is_u64());
    // A sum that is scattered has its name where it is whole.
    let named: Vec<&Value> = named.filter(|v| v["had"] != "scattered").collect();
    assert!(named.len() > 50, "{}", named.len());
    for value in named {
        let (own, whole) = (&value["own"], &value["tokens"]);
        let sizes = sizes(&sequence, text(value, "func"), text(value, "value"));
        assert!(sizes.contains(&own.to_string()), "{value}: {sizes:?}");
        assert!(own == whole || !sizes.contains(&whole.to_string()), "{value}: {sizes:?}");
        assert_eq!(own != whole, value["had"] == "by tokens", "{value}");
    }
    let scattered = values.iter().filter(|v| v["had"] == "scattered").count();
    // Of a layer's attention and of its feed-forward part, in both kinds of layers and in the
    // predicting module; of the embedding, twice.
    assert_eq!(scattered, 2 * 3 + 2);
}

/// How many dims a store has.
fn sizes_of_store(ir: &str, name: &str) -> usize {
    let line = ir.lines().find(|l| l.starts_with(&format!("weight @{name} :"))).expect("a store");
    let dims = line.split_once('[').expect("dims").1.split_once(']').expect("dims").0;
    dims.split(", ").count()
}

#[test]
fn reasons_are_those_of_the_ops() {
    let mesh = ["--mesh", "experts=8,tensor=8,sequence=8", "--zero", "1"];
    let table = json(&[&["explain", "models/deepseek_v3.model"], &mesh[..]].concat());
    let axes = &table["axes"];
    assert_eq!((&axes["data"], &axes["experts"]), (&8.into(), &8.into()), "as many along data");
    let weight = |name: &str, axis: &str| {
        let of = |w: &&Value| w["weight"] == name && w["axis"] == axis;
        let found = all(&table, "weights").iter().find(of);
        found.unwrap_or_else(|| panic!("no {name} along {axis}"))
    };
    let up = "layers.1.mlp.experts.up_proj.weight";
    let by_expert = weight(up, "experts");
    assert_eq!((&by_expert["stack"], &by_expert["dim"]), (&1.into(), &Value::Null));
    assert!(text(by_expert, "why").contains("a slice for each of 256 experts; 32 here"));
    let why = |name: &str, axis: &str| text(weight(name, axis), "why").to_string();
    assert!(why("norm.weight", "experts").contains("no product takes slices of it by expert"));
    assert!(why(up, "zero").contains("no other rank has it"));
    assert!(why("lm_head.weight", "zero").contains("its first dim is divided along tensor"));
    let norm = weight("norm.weight", "zero");
    assert_eq!((&norm["dim"], &norm["along"]), (&0.into(), &"data".into()));
    assert!(text(norm, "why").contains("a sum over the 8 ranks along data"));

    let had = |op: &str, had: &str, why: &str| {
        let of = |v: &&Value| {
            text(v, "func").starts_with("layers.1") && v["op"] == op && v["had"] == had
        };
        let found: Vec<&Value> = all(&table, "values").iter().filter(of).collect();
        assert!(found.iter().any(|v| text(v, "why").contains(why)), "{op}, {had}: {found:?}");
    };
    had("rms_norm", "by tokens", "token by token of `x`");
    had("all_reduce", "scattered", "each gets its tokens of it");
    had("spread", "gathered", "ranks with parts along tensor read all tokens");
    had("attention", "whole", "it needs all tokens at once");
    had("route", "gathered", "it needs all tokens at once");
    had("reduce_sum", "summed", "a rank its own, then over ranks");
    let rows: Vec<&str> = all(&table, "rows").iter().map(|row| text(row, "op")).collect();
    assert_eq!(rows, ["dispatch", "combine", "dispatch", "combine"]);

    // 64 tokens for each of 64 ranks are no group of 128.
    let fp8 = ["--precision", "deepseek_fp8", "--mesh", "tensor=64,sequence=64"];
    let table = json(&[&["explain", "models/deepseek_v3.model"], &fp8[..]].concat());
    let grouped = all(&table, "values").iter().filter(|v| {
        let cut = "64 ranks would cut a group of 128 tokens with one scale";
        v["op"] == "matmul" && v["had"] == "gathered" && text(v, "why") == cut
    });
    assert!(grouped.count() > 0);
}

#[test]
fn a_parallel_block_is_explained_as_its_axes() {
    let table = weft(&["explain", "models/deepseek_v3.model", "--parallel", "h800_2048"]);
    for expected in [
        "2048 ranks: pipeline = 16, data = 128, experts = 64, zero = 1",
        "pipeline: a rank has whole layers of what follows",
        "data: a rank has micro-batches of its own, and has parts of what the optimizer keeps",
        "4{experts} of 256",
        "[1024{replicas}, 7168]",
        "exchanged  -  a row goes to the rank that has its expert",
    ] {
        assert!(table.contains(expected), "no `{expected}` in\n{table}");
    }
    assert!(!table.contains("by tokens"), "{table}");
    let explain = ["explain", "models/deepseek_v3.model"];
    let refuse = |more: &[&str], expected: &str| {
        let said = refused(&[&explain[..], more].concat());
        assert!(said.contains(expected), "{said}");
    };
    refuse(&["--zero", "1"], "--zero 1: ranks along data keep the parts; give --mesh data=N");
    refuse(&["--mesh", "data=4,experts=3"], "the nearest is experts = 2");
}
