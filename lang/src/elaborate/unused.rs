//! Parameters that a module's text never names: most often a misspelling on one side.

use crate::ast;
use crate::diag::Diag;
use crate::source::{SourceMap, Span};

pub fn check(module: &ast::Module, map: &SourceMap, diags: &mut Vec<Diag>) {
    for param in &module.params {
        let name = &param.name.text;
        let rest = Span { start: param.span.end, ..module.span };
        let named = words(map.slice(rest)).any(|w| w == name);
        if !named {
            diags.push(
                Diag::error(param.name.span, format!("parameter `{name}` is never used"))
                    .hint("use it or take it out; callers may then drop the argument"),
            );
        }
    }
}

/// The identifiers of a text without its comments; `{name}` in a string counts.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or(""))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn comments_do_not_count() {
        let all: Vec<&str> = words("a = b_1 # c\nat \"x.{d}\"").filter(|w| !w.is_empty()).collect();
        assert_eq!(all, ["a", "b_1", "at", "x", "d"]);
    }
}
