//! Several ranks that continue texts with the experts between them, copies of some among them, and
//! rows in as many rounds as it takes, through the command line: the tokens of one rank.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A reference case's folder: eight experts in one layer.
fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v3-grouped")
}

/// Texts of several lengths: more than two ranks take at a time, fewer than four do.
const PROMPTS: [&str; 5] = ["5,6,7,8,9", "1,2,3", "9,4", "11", "3,2,1,7"];

fn weft(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let output = command.args(args).output().expect("weft runs");
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).expect("it prints text")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The ids that `model` goes on with after each of the prompts.
fn generate(model: &Path, more: &[&str]) -> Result<String, String> {
    let (model, checkpoint) = (model.display().to_string(), checkpoint().display().to_string());
    let mut args = vec!["generate", &model, "--checkpoint", &checkpoint, "--greedy"];
    args.extend(PROMPTS.iter().flat_map(|ids| ["--token-ids", ids]));
    args.extend(["--max-new", "8"]);
    weft(&[&args, more].concat())
}

/// A model with parallel blocks, and a placement of eight copies by loads.
fn model(dir: &Path) -> PathBuf {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/deepseek_v3.model");
    let loads = dir.join("loads");
    fs::write(&loads, "100 1 1 1 50 1 1 1").expect("a file");
    let asked = ["--replicas", "16", "--gpus", "4", "--json"];
    let placed = weft(&[&["eplb", &loads.display().to_string()][..], &asked].concat());
    let placement = dir.join("placement.json");
    fs::write(&placement, placed.expect("a placement")).expect("a file");
    let path = dir.join("served.model");
    let text = format!(
        "weft 1\nuse \"{}\"\nmodel Served from DeepSeekV3 {{\n\
         parallel two {{ data = 2  experts = 2  redundant_experts = 2  exchange_capacity = 1 }}\n\
         parallel four {{ data = 4  experts = 4  redundant_experts = 8  placement = \"{}\"\n\
         exchange_capacity = 1.5 }}\n\
         parallel fewer {{ data = 4  experts = 4  redundant_experts = 4  placement = \"{1}\" }}\n\
         }}\n",
        base.display(),
        placement.display()
    );
    fs::write(&path, text).expect("a file");
    path
}

#[test]
fn ranks_with_the_experts_between_them_go_on_as_one_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path());
    for precision in ["f32", "deepseek_fp8"] {
        let given = ["--context", "32", "--precision", precision];
        let one = generate(&model, &given).expect("one rank");
        assert_eq!(one.lines().count(), PROMPTS.len());
        let all = [
            &["--ranks", "2"][..],
            &["--ranks", "4", "--mesh", "experts=4"],
            &["--ranks", "2", "--parallel", "two"],
            &["--ranks", "4", "--parallel", "four"],
        ];
        for ranks in if precision == "f32" { &all[..] } else { &all[3..] } {
            let several = generate(&model, &[&given, *ranks].concat()).expect("several ranks");
            assert_eq!(several, one, "{ranks:?}, {precision}");
        }
    }
}

#[test]
fn a_graph_for_ranks_is_written_and_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path());
    let one = generate(&model, &["--context", "32"]).expect("one rank");
    let graph = dir.path().join("served.weft");
    let (path, from) = (graph.display().to_string(), checkpoint().display().to_string());
    let text = model.display().to_string();
    let compile = ["compile", &text, "--for", "decode", "--parallel", "four"];
    let more = ["--checkpoint", &from, "--sequence", "32", "-o", &path];
    weft(&[&compile[..], &more].concat()).expect("a graph");
    assert_eq!(generate(&graph, &["--ranks", "4"]).expect("four ranks"), one);
    let why = generate(&graph, &["--ranks", "2"]).expect_err("it is for four");
    assert!(why.contains("compiled for 4 ranks, and --ranks is 2; give --ranks 4"), "{why}");
}

#[test]
fn what_ranks_cannot_serve_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model(dir.path());
    let refused = |more: &[&str]| generate(&model, more).expect_err("it is refused");
    let fewer = refused(&["--ranks", "4", "--parallel", "fewer"]);
    assert!(fewer.contains("16 places for 8 experts and 4 copies"), "{fewer}");
    let three = refused(&["--ranks", "3"]);
    assert!(three.contains("the nearest is experts = 2"), "{three}");
    let long = refused(&["--ranks", "2", "--context", "4"]);
    assert!(long.contains("the prompt has 5 tokens and the cache holds 4"), "{long}");
}
