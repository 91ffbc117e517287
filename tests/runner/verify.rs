//! `verify`: every error of the parser or the verifier stands on a line with `// error: text` that
//! is part of its message, and every such line has its error; a line with two errors has the mark
//! twice.

use std::collections::BTreeMap;

use weft_ir::module::OpId;
use weft_ir::text::{self, Lines};
use weft_ir::verify::{Place, verify};

use crate::case::{Case, Outcome};

const MARK: &str = "// error:";

pub fn run(case: &Case) -> Result<Outcome, String> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    match text::parse_located(&case.input) {
        Err(errors) => {
            errors.into_iter().for_each(|e| found.entry(e.line).or_default().push(e.message));
        }
        Ok((module, lines)) => {
            for e in verify(&module).err().unwrap_or_default() {
                found.entry(line_of(&lines, e.place)).or_default().push(e.message);
            }
        }
    }
    let mut why = String::new();
    let mut updated = String::new();
    for (i, line) in case.input.lines().enumerate() {
        let mut parts = line.split(MARK);
        let code = parts.next().unwrap_or("").trim_end();
        let expected: Vec<&str> = parts.map(str::trim).collect();
        let errors = found.remove(&(i as u32 + 1)).unwrap_or_default();
        let each = errors.iter().zip(&expected).all(|(e, text)| e.contains(text));
        if each && errors.len() == expected.len() {
            updated += &format!("{line}\n");
            continue;
        }
        why += &format!("line {}: expected {expected:?}, found {errors:?}\n", i + 1);
        let marked: String = errors.iter().map(|e| format!(" {MARK} {e}")).collect();
        updated += &format!("{code}{marked}\n");
    }
    for (line, errors) in found {
        why += &format!("line {line} is none, but there are {errors:?}\n");
    }
    Ok(if why.is_empty() { Outcome::Passed } else { Outcome::Differs { why, updated } })
}

fn line_of(lines: &Lines, place: Place) -> u32 {
    let func = |f: weft_ir::module::FuncId| &lines.funcs[f.0 as usize];
    match place {
        Place::Symbol(i) => lines.syms[i],
        Place::Axis(i) => lines.axes[i],
        Place::Store(i) => lines.stores[i],
        Place::Head(f) => func(f).head,
        Place::Op(f, OpId(op)) => func(f).ops[op as usize],
        Place::Return(f) => func(f).end,
    }
}
