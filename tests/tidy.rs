//! What holds of the source as text: heads, widths, names, sizes, pairs of files, and that
//! documents are not stale. Each test lists every offender at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders with Rust in them.
const CRATES: &[&str] = &[
    "src",
    "lang",
    "ir",
    "schedule",
    "plan",
    "passes",
    "codegen",
    "lower",
    "backend-cpu",
    "backend-cuda",
    "graph",
    "runtime",
    "ptx-sim",
    "tests",
    "bench",
];

/// Files with lines over 100 columns, and how many: tables, a row a line. The numbers may only
/// shrink.
const WIDE: &[(&str, usize)] = &[
    ("ir/src/op.rs", 9),
    ("passes/src/autodiff/vjp.rs", 13),
    ("passes/src/canonicalize/contract.rs", 5),
    ("passes/src/canonicalize/movement.rs", 7),
    ("passes/src/canonicalize/scalar.rs", 14),
];

/// Files over 800 lines, and their length. The numbers may only shrink.
const LONG: &[(&str, usize)] = &[];

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;

struct Source {
    path: String,
    text: String,
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    none(sources().iter().filter(|s| !s.text.starts_with("//! ")).map(|s| s.path.clone()));
}

#[test]
fn lines_are_narrow_and_clean() {
    let mut bad = vec![];
    for s in sources() {
        let n_wide = s.text.lines().filter(|l| is_wide(l)).count();
        if n_wide > allowed(WIDE, &s.path) {
            let first = s.text.lines().position(is_wide).unwrap_or(0) + 1;
            bad.push(format!("{}:{first}: {n_wide} lines over {COLUMNS_MAX} columns", s.path));
        }
        for (i, line) in s.text.lines().enumerate() {
            if line.contains('\t') || line.ends_with(' ') {
                bad.push(format!("{}:{}: a tab, or a blank at the end", s.path, i + 1));
            }
        }
    }
    none(bad);
}

/// Over the columns, unless it quotes IR: an op and a signature are one line, there as in a dump.
fn is_wide(line: &str) -> bool {
    let quoted = line.trim_start_matches([' ', '/', '!', '"']);
    let ir = ["%", "func @", "->", "=>"].iter().any(|start| quoted.starts_with(start))
        || quoted.contains("\"func @");
    !ir && line.chars().count() > COLUMNS_MAX
}

#[test]
fn nothing_is_left_for_later() {
    // Spelt in two parts so that this file does not offend.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut bad = vec![];
    for s in sources() {
        for (i, line) in s.text.lines().enumerate() {
            if words.iter().any(|w| line.contains(w.as_str())) {
                bad.push(format!("{}:{}: {}", s.path, i + 1, line.trim()));
            }
        }
    }
    none(bad);
}

#[test]
fn files_are_named_for_what_they_hold() {
    let banned = ["util", "utils", "misc", "base", "helper", "helpers", "common"];
    let stem =
        |p: &str| Path::new(p).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bad = |s: &&Source| banned.contains(&stem(&s.path).as_str());
    none(sources().iter().filter(bad).map(|s| s.path.clone()));
}

#[test]
fn files_stay_small() {
    let mut bad = vec![];
    for s in sources() {
        let n = s.text.lines().count();
        if n > LINES_MAX.max(allowed(LONG, &s.path)) {
            bad.push(format!("{}: {n} lines", s.path));
        }
    }
    none(bad);
}

#[test]
fn allowances_shrink_with_what_they_allow() {
    let all = sources();
    let find = |path: &str| all.iter().find(|s| s.path == path);
    let n_lines = |s: &Source| s.text.lines().count();
    let n_wide = |s: &Source| s.text.lines().filter(|l| is_wide(l)).count();
    let wide = WIDE.iter().filter(|(p, n)| find(p).is_none_or(|s| n_wide(s) < *n));
    let long = LONG.iter().filter(|(p, n)| find(p).is_none_or(|s| n_lines(s) < *n));
    none(wide.chain(long).map(|(p, n)| format!("{p}: {n} is more than it needs")));
}

#[test]
fn paths_in_documents_exist() {
    let mut bad = vec![];
    for doc in documents() {
        let Ok(text) = std::fs::read_to_string(root().join(&doc)) else { continue };
        let mut fenced = false;
        for (i, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            for word in line.split('`').skip(1).step_by(2).filter(|_| !fenced) {
                if is_path(word) && !root().join(word).exists() {
                    bad.push(format!("{doc}:{}: {word}", i + 1));
                }
            }
        }
    }
    none(bad);
}

/// One pass, one file, one folder of filetests, all of one name.
#[test]
fn passes_files_and_filetests_pair_up() {
    let names: BTreeSet<&str> = weft_passes::PIPELINE.iter().map(|p| p.name).collect();
    let mut bad = vec![];
    for name in &names {
        if !root().join(format!("passes/src/{name}.rs")).exists() {
            bad.push(format!("passes/src/{name}.rs is missing"));
        }
        if entries(&root().join("tests/passes").join(name)).is_empty() {
            bad.push(format!("tests/passes/{name}/ has no filetest"));
        }
    }
    for folder in entries(&root().join("tests/passes")) {
        let stem = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if folder.is_dir() && !names.contains(stem.as_str()) {
            bad.push(format!("tests/passes/{stem}/ tests no pass"));
        }
    }
    none(bad);
}

/// What follows a line's results, where it has some.
fn made_by(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with('%') { line.split_once(" = ").map_or("", |(_, op)| op) } else { line }
}

#[test]
fn every_op_has_a_roundtrip() {
    let files = entries(&root().join("tests/ir/roundtrip"));
    let all: String = files.iter().filter_map(|f| std::fs::read_to_string(f).ok()).collect();
    let used: BTreeSet<&str> = all.lines().filter_map(|l| made_by(l).split(' ').next()).collect();
    let ops = weft_ir::op::OPS.iter().map(|d| d.name);
    none(ops.filter(|op| !used.contains(op)).map(str::to_string));
}

/// `ids` is the one bullet that text cannot break; `ir/src/verify/tests.rs` does.
#[test]
fn every_invariant_has_a_test() {
    let text = std::fs::read_to_string(root().join("ir/src/verify.rs")).expect("the verifier");
    let bullets = text.lines().filter_map(|l| l.strip_prefix("//! - **")?.split("**").next());
    let bullets: Vec<String> = bullets.map(|b| b.replace(' ', "_")).collect();
    assert!(bullets.len() > 10, "the bullets are not where they were");
    let tested = |b: &str| root().join(format!("tests/ir/verify/{b}.ir")).exists();
    none(bullets.into_iter().filter(|b| b != "ids" && !tested(b)));
}

/// The absences that `ARCHITECTURE.md` promises.
#[test]
fn crates_know_only_what_they_may() {
    let promises: &[(&str, &[&str])] = &[
        ("lang", &["weft-passes", "weft-codegen", "weft-graph", "weft-runtime", "inkwell"]),
        ("ir", &["weft-", "inkwell"]),
        ("passes", &["weft-lang", "weft-codegen", "weft-graph", "weft-runtime", "inkwell"]),
        ("codegen", &["weft-runtime", "weft-lang", "weft-passes"]),
        ("schedule", &["weft-", "inkwell"]),
        ("plan", &["weft-lang", "weft-passes", "weft-runtime", "weft-codegen", "inkwell"]),
        ("graph", &["weft-"]),
        ("ptx-sim", &["weft-", "inkwell"]),
        ("runtime", &["weft-lang", "weft-ir", "weft-passes", "weft-codegen", "inkwell"]),
    ];
    let mut bad = vec![];
    for (krate, absent) in promises {
        let path = root().join(krate).join("Cargo.toml");
        let text = std::fs::read_to_string(path).expect("a crate has a manifest");
        let deps = text.split("[dependencies]").nth(1).unwrap_or("");
        let deps = deps.split("\n[").next().unwrap_or("");
        for line in deps.lines().filter(|l| absent.iter().any(|a| l.starts_with(a))) {
            bad.push(format!("{krate} depends on {line}"));
        }
    }
    let quiet = |s: &&Source| {
        ["lang/src", "ir/src", "schedule/src", "plan/src", "passes/src"]
            .iter()
            .any(|c| s.path.starts_with(c))
    };
    let does_io =
        |s: &&Source| ["std::fs::", "use std::fs", "println!"].iter().any(|w| s.text.contains(w));
    bad.extend(
        sources().iter().filter(quiet).filter(does_io).map(|s| format!("{} does IO", s.path)),
    );
    none(bad);
}

/// Skipped, with a line that says so, where there is no rustfmt.
#[test]
fn rustfmt_agrees() {
    let cargo = |args: &[&str]| Command::new("cargo").current_dir(root()).args(args).output();
    if !cargo(&["fmt", "--version"]).is_ok_and(|o| o.status.success()) {
        println!("skipped: there is no `cargo fmt`");
        return;
    }
    let check = cargo(&["fmt", "--all", "--check", "--", "-l"]).expect("it ran a moment ago");
    none(String::from_utf8_lossy(&check.stdout).lines().map(str::to_string));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut files = vec![];
    for krate in CRATES {
        walk(&root().join(krate), &mut files);
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        Some(Source { path: path.strip_prefix(root()).ok()?.display().to_string(), text })
    };
    let all: Vec<Source> = files.into_iter().filter_map(read).collect();
    assert!(all.len() > 50, "the sources are not where they were");
    all
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in entries(folder) {
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Sorted; none where there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = read.map(|e| e.path()).collect();
    all.sort();
    all
}

fn documents() -> Vec<String> {
    let docs = entries(&root().join("docs"));
    let docs = docs.iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    let docs = docs.filter_map(|p| Some(p.strip_prefix(root()).ok()?.display().to_string()));
    ["README.md", "ARCHITECTURE.md"].map(str::to_string).into_iter().chain(docs).collect()
}

/// `passes/src/fuse.rs` and `models/lib/`, but not `tests/passes/<stem>/` nor `--dump DIR`.
fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let known = CRATES.iter().chain(&["models", "docs"]);
    known.into_iter().any(|k| word.starts_with(&format!("{k}/"))) && word.chars().all(plain)
}

fn allowed(list: &[(&str, usize)], path: &str) -> usize {
    list.iter().find(|(p, _)| *p == path).map_or(0, |(_, n)| *n)
}

fn none(bad: impl IntoIterator<Item = String>) {
    let bad: Vec<String> = bad.into_iter().collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
