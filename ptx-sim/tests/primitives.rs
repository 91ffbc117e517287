//! The document that lists the primitives is the table of the crate, with where each is tested and
//! which kernels are written with it: `UPDATE=1` writes it anew.

use ptx_sim::isa::PRIMITIVES;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "\
# PTX primitives

What `ptx-sim` can run, from its table (`ptx-sim/src/isa.rs`); chapters are those of the PTX ISA
8.3. The interpreter and the kernels it tests share one reading of the hardware. A primitive whose
results have been compared with a GPU's says so here; until then a kernel that passes may still be
wrong in the same way as the interpreter.

*Tested in* names the files of `ptx-sim/tests` whose texts have it, each against a loop written
apart; one without is reached by whole kernels alone. *Written by* names the files of
`backend-cuda/src/ptx` that write it; all others are LLVM's choice.

| opcode | chapter | run on a GPU | tested in | written by |
|---|---|---|---|---|
";

/// The names of the files of a folder that hold each primitive.
fn holders(folder: &str, tests_only: bool) -> BTreeMap<&'static str, BTreeSet<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut out: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let files = std::fs::read_dir(&folder).expect("a folder of sources");
    for path in files.map(|file| file.expect("readable").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Texts that are decoded and not run say nothing of results.
        let unrun = name == "primitives.rs" || name.starts_with("wide_");
        if path.is_dir() || (tests_only && unrun) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let text = text.replace("\\t", " ").replace("\\n", " ");
        for primitive in words(&text).filter_map(named) {
            out.entry(primitive).or_default().insert(name.clone());
        }
    }
    out
}

/// Opcodes with their modifiers, and what else looks so.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':');
    text.split(move |c| !part(c)).filter(|word| word.contains('.'))
}

/// The primitive whose opcode this is: the longest that it begins with.
fn named(word: &str) -> Option<&'static str> {
    let begins = |name: &&str| word.strip_prefix(*name).is_some_and(|rest| rest.starts_with('.'));
    let names = PRIMITIVES.iter().map(|p| p.name);
    names.filter(|name| begins(name) || *name == word).max_by_key(|name| name.len())
}

fn listed(holders: &BTreeMap<&str, BTreeSet<String>>, name: &str) -> String {
    let files = holders.get(name).map(|files| files.iter().map(String::as_str).collect::<Vec<_>>());
    files.unwrap_or_default().join(", ")
}

#[test]
fn the_document_lists_the_table() {
    let mut tests = holders("tests", true);
    for (name, files) in holders("tests/ptx", true) {
        tests.entry(name).or_default().extend(files);
    }
    let written = holders("../backend-cuda/src/ptx", false);
    let mut text = HEAD.to_string();
    for p in PRIMITIVES {
        let ran = if p.ran_on_gpu { "yes" } else { "never" };
        let (tested, by) = (listed(&tests, p.name), listed(&written, p.name));
        let _ = writeln!(text, "| `{}` | {} | {ran} | {tested} | {by} |", p.name, p.section);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ptx-primitives.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).expect("the docs folder can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/ptx-primitives.md is stale; run again with UPDATE=1");
}
