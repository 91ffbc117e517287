//! The document that lists the primitives is the table of the crate: `UPDATE=1` writes it anew.

use ptx_sim::isa::PRIMITIVES;
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "\
# PTX primitives

What `ptx-sim` can run, from its table (`ptx-sim/src/isa.rs`); chapters are those of the PTX ISA
8.3. The interpreter and the kernels it tests share one reading of the hardware. A primitive whose
results have been compared with a GPU's says so here; until then a kernel that passes may still be
wrong in the same way as the interpreter.

| opcode | chapter | run on a GPU |
|---|---|---|
";

#[test]
fn the_document_lists_the_table() {
    let mut text = HEAD.to_string();
    for p in PRIMITIVES {
        let ran = if p.ran_on_gpu { "yes" } else { "never" };
        let _ = writeln!(text, "| `{}` | {} | {ran} |", p.name, p.section);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ptx-primitives.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).expect("the docs folder can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/ptx-primitives.md is stale; run again with UPDATE=1");
}
