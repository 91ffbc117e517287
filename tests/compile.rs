//! `weft compile`: what it says of its stages, and going on from a file of a dump.

use std::path::Path;
use std::process::{Command, Output};

const MODEL: &str = "models/llama.model";

fn weft(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("WEFT_CACHE", folder.join("cache"))
        .args(args)
        .output()
        .expect("weft runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compiles for `purpose` and gives the bytes of the graph.
fn graph(folder: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let path = folder.join(name);
    let out = path.to_str().expect("a temporary path is text");
    let args = [&["compile", MODEL, "-o", out], more].concat();
    let done = weft(folder, &args);
    assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
    std::fs::read(path).expect("the graph is written")
}

#[test]
fn every_stage_is_timed_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (dump, out) = (folder.path().join("dump"), folder.path().join("x.weft"));
    let [dump_path, out] = [&dump, &out].map(|p| p.to_str().unwrap());
    let args = ["compile", MODEL, "-o", out, "--time-passes", "--dump", dump_path];
    let done = weft(folder.path(), &args);
    let said = text(&done.stderr);
    assert!(done.status.success(), "{said}");
    for stage in ["fuse:", "select_kernels: @train_step,", "plan_memory: @train_step,"] {
        assert!(said.lines().any(|l| l.starts_with(stage) && l.ends_with(" ms")), "{said}");
    }
    let manifest = std::fs::read_to_string(dump.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let stages = manifest["stages"].as_array().unwrap();
    let named = |name: &str| {
        let mut found = stages.iter().filter(|s| s["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {name} in {manifest}"))
    };
    let n_kernels = std::fs::read_dir(dump.join("kernels")).unwrap().count() as u64 / 2;
    assert_eq!(named("emit_kernels")["kernels"], n_kernels);
    let memory = named("plan_memory");
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    // Temps share places, or the plan is worth nothing.
    assert!(0 < bytes("bytes_of_arena") && bytes("bytes_of_arena") < bytes("bytes_of_them"));
    assert!(named("select_kernels")["launches"].as_u64().unwrap() >= n_kernels);
}

#[test]
fn any_file_of_a_dump_goes_on_to_the_same_graph() {
    for purpose in ["train", "decode"] {
        let folder = tempfile::tempdir().unwrap();
        let dump = folder.path().join("dump");
        let short = match purpose {
            "train" => ["--set", "sequence=16"],
            _ => ["--sequence", "16"],
        };
        let aim = [&["--for", purpose], &short[..]].concat();
        let show = ["--dump", dump.to_str().unwrap()];
        let whole = graph(folder.path(), "x.weft", &[&aim[..], &show].concat());
        let files = std::fs::read_dir(&dump).unwrap().flatten().map(|f| f.path());
        let mut files: Vec<_> =
            files.filter(|p| p.extension().is_some_and(|e| e == "ir")).collect();
        files.sort();
        assert!(files.len() > 8, "{files:?}");
        for file in [&files[0], &files[files.len() / 2], &files[files.len() - 1]] {
            let from = ["--from", file.to_str().unwrap()];
            let again = graph(folder.path(), "x.weft", &[&aim[..], &from].concat());
            assert!(again == whole, "{} goes elsewhere", file.display());
        }
    }
}

#[test]
fn a_step_takes_what_its_train_block_says() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.weft").display().to_string();
    for (option, hint) in [("--batch", "give --set batch=3"), ("--sequence", "--set sequence=3")] {
        let done = weft(folder.path(), &["compile", MODEL, "-o", &out, option, "3"]);
        let said = text(&done.stderr);
        assert!(!done.status.success() && said.contains(hint), "{said}");
    }
}

#[test]
fn an_edited_dump_changes_the_graph() {
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    let whole = graph(folder.path(), "x.weft", &["--dump", dump.to_str().unwrap()]);
    let mut files: Vec<_> = std::fs::read_dir(&dump).unwrap().flatten().map(|f| f.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "ir"));
    files.sort();
    let last = files.last().unwrap();
    let ir = std::fs::read_to_string(last).unwrap();
    let edited = ir.replace("beta2 = 0.95", "beta2 = 0.5");
    assert_ne!(ir, edited, "the step has its optimizer's constants");
    std::fs::write(last, edited).unwrap();
    let from = ["--from", last.to_str().unwrap()];
    assert!(graph(folder.path(), "x.weft", &from) != whole);
}

#[test]
fn ir_of_unknown_origin_is_asked_about() {
    let folder = tempfile::tempdir().unwrap();
    let done = weft(folder.path(), &["compile", MODEL, "--stop-after", "autodiff"]);
    let file = folder.path().join("mine.ir");
    std::fs::write(&file, done.stdout).unwrap();
    let file = file.to_str().unwrap();
    let refused = weft(folder.path(), &["compile", MODEL, "--from", file, "--stop-after", "dce"]);
    assert!(!refused.status.success());
    let why = text(&refused.stderr);
    assert!(why.contains("mine.ir") && why.contains("give --after PASS"), "{why}");
    let until = |passes: &[&str]| {
        let done =
            weft(folder.path(), &[&["compile", MODEL, "--stop-after", "dce"], passes].concat());
        assert!(done.status.success(), "{}", text(&done.stderr));
        done.stdout
    };
    assert!(until(&["--from", file, "--after", "autodiff"]) == until(&[]));
    let other = ["compile", MODEL, "--from", file, "--after", "autodiff", "--for", "decode"];
    let refused = weft(folder.path(), &other);
    assert!(text(&refused.stderr).contains("--from: it has no entry"), "{}", text(&refused.stderr));
    let too_far = ["compile", MODEL, "--from", file, "--after", "fuse", "--stop-after", "lower"];
    let refused = weft(folder.path(), &too_far);
    assert!(text(&refused.stderr).contains("further already"), "{}", text(&refused.stderr));
}

#[test]
fn ranks_that_serve_weave_two_halves_of_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let compiled = |more: &[&str]| {
        let model = "models/nano.model";
        let args = [&["compile", model, "--sequence", "16", "--stop-after", "overlap"], more];
        weft(folder.path(), &args.concat())
    };
    for purpose in ["prefill", "decode"] {
        let done = compiled(&["--for", purpose, "--batch", "4", "--mesh", "experts=2"]);
        let ir = text(&done.stdout);
        assert!(done.status.success(), "{}", text(&done.stderr));
        // A turn of the layers does both, and begins each exchange before it computes the other:
        // all but the last, which in decoding, half a layer apart, has attention beside it too.
        let (name, least) = match purpose {
            "prefill" => ("@layers.1.layers.1(", 3),
            _ => ("@layers.1.staggered(", 4),
        };
        let turn = ir.split("\nfunc ").find(|f| f.starts_with(name));
        let turn = turn.unwrap_or_else(|| panic!("no turn of both halves in {ir}"));
        let begun = turn.matches("exchange_start").count();
        assert!(begun >= least && turn.matches("done %").count() == begun, "{turn}");
        if purpose == "decode" {
            let within: Vec<bool> = turn.split("exchange_start").skip(1).map(covered).collect();
            assert_eq!(within, [false, true, false, true], "attention under each combine: {turn}");
        }
        assert!(turn.contains("stream = comm") && turn.contains("stream = compute"), "{turn}");
        assert!(ir.contains("%a.tokens: i32[2, ") && ir.contains("%b.tokens: i32[2, "), "{ir}");
        let verified = compiled(&["--for", purpose, "--mesh", "experts=2", "--verify-passes"]);
        let said = text(&verified.stderr);
        assert!(said.contains("values compared, none moved"), "{said}");
    }
    let blocks = folder.path().join("blocks.model");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano.model");
    let block = "data = 2 experts = 2 redundant_experts = 2 exchange_capacity = 1";
    let written = format!(
        "weft 1\nuse \"{}\"\nmodel Unit from Nano {{ parallel unit {{ {block} }} }}\n",
        base.display()
    );
    std::fs::write(&blocks, written).unwrap();
    let (blocks, more) = (blocks.display().to_string(), ["--parallel", "unit", "--verify-passes"]);
    let asked = ["compile", &blocks, "--for", "decode", "--precision", "deepseek_fp8"];
    let done = weft(folder.path(), &[&asked[..], &["--stop-after", "overlap"], &more].concat());
    assert!(text(&done.stderr).contains("values compared, none moved"), "{}", text(&done.stderr));
    // Copies of experts, and rounds beyond the first in a loop that ends early.
    let ir = text(&done.stdout);
    assert!(ir.contains("layer [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]"), "{ir}");
    assert!(ir.contains("room = 8,") && ir.contains("early = true"), "{ir}");
    // A rank stores codes of its own places.
    assert!(ir.contains("up_proj.weight.e4m3 : e4m3[7, 5{experts}, 128, 256] codes of"), "{ir}");
    let refused = |more: &[&str], why: &str| {
        let done = compiled(more);
        let said = text(&done.stderr);
        assert!(!done.status.success() && said.contains(why), "{said}");
    };
    let odd = ["--for", "decode", "--batch", "5", "--mesh", "experts=2"];
    refused(&odd, "two halves, so it is even; the nearest is 6");
    refused(&["--for", "decode", "--mesh", "experts=3"], "the nearest is experts = 2");
    refused(&["--for", "decode", "--mesh", "data=2"], "give --mesh experts=N");
    refused(&["--for", "decode", "--mesh", "experts=2", "--zero", "1"], "no optimizer");
}

/// Does attention stand between the beginning of an exchange, from where `rest` goes on, and the
/// next `done`?
fn covered(rest: &str) -> bool {
    let until = rest.split("done %").next().unwrap_or("");
    until.contains("= attention ")
}
