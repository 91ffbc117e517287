//! `pass NAME, ..`: runs the passes on the module; what they leave is verified, prints as `// expect:` says and, where
//! the input's functions are still there with their signatures, computes the same.
//!
//! A pass that must refuse the input has `error: ..` as its expectation.

use weft_ir::module::Module;
use weft_ir::text;
use weft_ir::verify::verify;
use weft_passes::{PassCx, by_name, run_pass};

use crate::case::{Case, Outcome, all};

pub fn run(case: &Case) -> Result<Outcome, String> {
    let before = case.verified()?;
    let mut after = before.clone();
    let cx = PassCx::default();
    for (i, name) in case.args.split(',').map(str::trim).enumerate() {
        let pass = by_name(name).ok_or_else(|| format!("no pass `{name}`"))?;
        if let Err(e) = run_pass(i + 1, pass, &mut after, &cx) {
            return case.compare(&format!("error: {}", e.why));
        }
        verify(&after)
            .map_err(|e| format!("after {name}:\n{}\n{}", all(&e), text::print(&after)))?;
    }
    case.compare(&functions(&before, &after))
}

/// The functions without places, and what the passes added to the lines above them.
fn functions(before: &Module, after: &Module) -> String {
    let strip = |m: &Module| {
        let mut m = m.clone();
        for f in &mut m.funcs {
            for id in f.body.clone() {
                f.op_mut(id).spans.clear();
            }
        }
        m
    };
    let (before, after) = (text::print(&strip(before)), text::print(&strip(after)));
    let head = |text: &str| text.split_once("\n\n").map_or(String::new(), |(h, _)| h.to_string());
    let known = head(&before);
    let (new_head, body) = after.split_once("\n\n").unwrap_or((&after, ""));
    let added = new_head.lines().filter(|l| !known.lines().any(|k| k == *l));
    let added: String = added.map(|l| format!("{l}\n")).collect();
    format!("{added}{body}")
}
