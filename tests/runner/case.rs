//! A filetest: its first line, its text, and the expectation at its end.

use std::path::Path;

use weft_ir::module::{Module, Span};
use weft_ir::text;
use weft_ir::verify::verify;

pub struct Case {
    pub kind: String,
    /// What follows the kind, as written.
    pub args: String,
    /// How a comment begins: `//` or, in a `.model` file, `#`.
    pub mark: &'static str,
    /// The file up to the expectation.
    pub input: String,
    /// What stands behind `expect:`, uncommented.
    pub expect: Option<String>,
    /// The file's path from the root, for messages and places.
    pub path: String,
}

pub enum Outcome {
    Passed,
    /// `updated` is the file as it would pass.
    Differs {
        why: String,
        updated: String,
    },
}

impl Case {
    pub fn read(file: &Path) -> Result<Case, String> {
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        let mark = if file.extension().is_some_and(|e| e == "model") { "#" } else { "//" };
        let first = text.lines().next().unwrap_or("");
        let head = first.strip_prefix(mark).and_then(|l| l.trim().strip_prefix("test:"));
        let Some(head) = head else {
            return Err(format!("the first line is not `{mark} test: ..`"));
        };
        let (kind, args) = head.trim().split_once(' ').unwrap_or((head.trim(), ""));
        let why = text.lines().nth(1).unwrap_or("");
        if !why.strip_prefix(mark).is_some_and(|w| w.trim().len() > 10) {
            return Err("the second line must be a comment that says why the test exists".into());
        }
        let split = text.find(&format!("\n{mark} expect:\n"));
        let (input, rest) = text.split_at(split.map_or(text.len(), |at| at + 1));
        let expect = split.map(|_| uncomment(rest.split_once('\n').map_or("", |r| r.1), mark));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
        let (kind, args) = (kind.to_string(), args.trim().to_string());
        Ok(Case { kind, args, mark, input: input.to_string(), expect, path })
    }

    /// The values of the lines `// NAME: value`, with their line numbers.
    pub fn directives(&self, name: &str) -> Vec<(usize, &str)> {
        let start = format!("{} {name}:", self.mark);
        let lines = self.input.lines().enumerate();
        lines.filter_map(|(i, l)| Some((i + 1, l.strip_prefix(&start)?.trim()))).collect()
    }

    /// The module; an op without a place gets the test's own.
    pub fn module(&self) -> Result<Module, String> {
        let (mut m, lines) = text::parse_located(&self.input).map_err(|e| self.located(&e))?;
        m.files.push(self.path.clone());
        let file = m.files.len() as u32 - 1;
        for (f, lines) in m.funcs.iter_mut().zip(&lines.funcs) {
            for (id, line) in f.body.clone().into_iter().zip(&lines.ops) {
                let op = f.op_mut(id);
                if op.spans.is_empty() {
                    op.spans.push(Span { file, line: *line, col: 3 });
                }
            }
        }
        Ok(m)
    }

    /// The module, verified.
    pub fn verified(&self) -> Result<Module, String> {
        let m = self.module()?;
        verify(&m).map_err(|e| all(&e))?;
        Ok(m)
    }

    /// `found` must be what is expected.
    pub fn compare(&self, found: &str) -> Result<Outcome, String> {
        let found = found.trim_end().to_string() + "\n";
        if self.expect.as_deref() == Some(&found) {
            return Ok(Outcome::Passed);
        }
        let comment = |l: &str| format!("{} {l}", self.mark).trim_end().to_string() + "\n";
        let block: String = found.lines().map(comment).collect();
        let updated = format!("{}{} expect:\n{block}", self.input, self.mark);
        let expected = self.expect.as_deref().unwrap_or("(nothing)\n");
        Ok(Outcome::Differs { why: format!("expected:\n{expected}found:\n{found}"), updated })
    }

    fn located(&self, errors: &[text::TextError]) -> String {
        errors.iter().map(|e| format!("{}:{e}\n", self.path)).collect()
    }
}

/// What tests print: places would make every line of an expectation long and none of it clearer.
pub fn without_places(m: &Module) -> Module {
    let mut m = m.clone();
    for f in &mut m.funcs {
        for id in f.body.clone() {
            f.op_mut(id).spans.clear();
        }
    }
    m
}

/// One error a line.
pub fn all<E: ToString>(errors: &[E]) -> String {
    errors.iter().map(|e| e.to_string() + "\n").collect()
}

fn uncomment(block: &str, mark: &str) -> String {
    let line = |l: &str| {
        let l = l.strip_prefix(mark).unwrap_or(l);
        l.strip_prefix(' ').unwrap_or(l).to_string() + "\n"
    };
    block.lines().map(line).collect()
}
