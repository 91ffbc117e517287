//! `parallel` blocks against their model, and what of them runs.

mod tiny;

use std::path::Path;
use std::process::Command;

/// `weft ARGS` on models/nano.model with `block` in it: whether it succeeds, and what it says.
fn with_block(block: &str, args: &[&str]) -> (bool, String) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = std::fs::read_to_string(models.join("nano.model")).expect("a model");
    let lib = models.join("lib");
    let text = text.replace("\"lib/", &format!("\"{}/", lib.display()));
    let family = models.join("deepseek_v3.model").display().to_string();
    let text = text.replace("deepseek_v3.model", &family);
    let at = text.find("  train ").expect("a train block");
    let text = format!("{}  parallel p {{ {block} }}\n{}", &text[..at], &text[at..]);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("nano.model");
    std::fs::write(&path, text).expect("written");
    let weft = env!("CARGO_BIN_EXE_weft");
    let out =
        Command::new(weft).arg(args[0]).arg(&path).args(&args[1..]).output().expect("it runs");
    let said = [out.stdout, out.stderr].concat();
    // A long message is cut into lines.
    (out.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_layout_must_fit_the_model() {
    let refuse = |block: &str, wants: &[&str]| {
        let (ok, said) = with_block(block, &["check"]);
        assert!(!ok, "{said}");
        for want in wants {
            assert!(said.contains(want), "{said}");
        }
    };
    refuse(
        "data = 6  experts = 6  node = 6",
        &["experts = 6 does not divide the model's 8 experts", "the nearest is experts = 4 or 8"],
    );
    refuse(
        "data = 8  experts = 8  node = 2  nodes_per_token = 1",
        &["keeps 2 of 4 groups of experts reaches 2 of 4 nodes", "give nodes_per_token = 2"],
    );
    refuse("tensor = 3", &["tensor = 3 does not divide 8 heads", "the nearest is tensor = 2 or 4"]);
    refuse(
        "pipeline = 8  schedule = \"zb-v\"  micro_batches = 4  micro_batch = 4",
        &["pipeline = 8 has 16 stages for", "at most"],
    );
    refuse("tensor = 2  sequence = 4", &["which divide tokens, are 2", "give sequence = 2"]);
    refuse("context = 3", &["context = 3 does not divide the sequence of 256", "context = 2 or 4"]);
    refuse(
        "data = 2  micro_batches = 3  micro_batch = 4",
        &["24 sequences in a step", "train block", "has batch ="],
    );
    let pipeline = "pipeline = 2  schedule = \"1f1b\"  micro_batches = 4  stage_layers = [4, 3]";
    refuse(
        pipeline,
        &[
            "stage_layers has 2 stages with 7 layers, and 2 stages share 9 layers",
            "give each stage",
        ],
    );
    let (ok, said) = with_block("data = 2  experts = 2  tensor = 2", &["check"]);
    assert!(ok, "{said}");
}

#[test]
fn a_search_finds_a_layout_for_a_small_model() {
    let args = ["plan", "--parallel", "p", "--cluster", "h800", "--search"];
    let (ok, said) = with_block("data = 4", &args);
    assert!(ok && said.contains("layouts cut into stages") && said.contains("1f1b"), "{said}");
    // A plan that nothing fits is no failure of the command, a search is.
    let (ok, said) = with_block("data = 4", &["plan", "--parallel", "p", "--cluster", "h200"]);
    assert!(ok && said.contains("tokens/s on each GPU"), "{said}");
}

#[test]
fn what_cannot_be_run_is_refused_and_says_what_can() {
    let compile = ["compile", "--for", "train", "-o", "/dev/null", "--parallel", "p"];
    let refuse = |block: &str, want: &str| {
        let (ok, said) = with_block(block, &compile);
        assert!(!ok, "{said}");
        assert!(said.contains(want), "{said}");
    };
    refuse(
        "context = 2",
        "not available yet: ranks along context (`p` has context = 2); `weft plan` simulates it",
    );
    refuse(
        "data = 2  tensor = 2  mesh = [tensor, pipeline, data, context]",
        "not available yet: ranks numbered with tensor outside data (`p` has mesh = [tensor,",
    );
    refuse(
        "data = 2  micro_batch = 3  micro_batches = 1",
        "`p` has micro_batch = 3, and train block",
    );
    refuse(
        "data = 2  pipeline = 2  schedule = \"1f1b\"  micro_batches = 2  \
         mesh = [data, pipeline, context, tensor]",
        "not available yet: ranks numbered with data outside pipeline",
    );
    let q = ["compile", "--for", "train", "-o", "/dev/null", "--parallel", "q"];
    let (ok, said) = with_block("data = 2", &q);
    assert!(!ok && said.contains("`Nano` has no parallel block `q`"), "{said}");
}

#[test]
fn a_layout_with_all_of_them_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").display().to_string();
    let out = dir.path().join("run").display().to_string();
    let mut args = vec!["train", "--parallel", "p", "--ranks", "8", "--steps", "1"];
    args.extend(["--data", &models, "--out", &out]);
    for set in tiny::TINY.iter().chain(&["batch=4", "micro_batch=1"]) {
        args.extend(["--set", set]);
    }
    let block = "pipeline = 2  schedule = \"1f1b\"  micro_batches = 2  micro_batch = 1
                 data = 2  experts = 2  tensor = 2  sequence = 2
                 zero = 1  node = 4  nodes_per_token = 1";
    let (ok, said) = with_block(block, &args);
    assert!(ok && said.contains("checkpoint: "), "{said}");
}
