//! Reading files: shipped models without a word, wrong ones with every error, none with a panic.

mod support;

use weft_lang::diag;
use weft_lang::parse_file;
use weft_lang::source::SourceMap;

#[test]
fn shipped_models_have_no_syntax_errors() {
    for (path, text) in support::shipped_models() {
        let mut map = SourceMap::new();
        let (file, diags) = parse_file(&mut map, path, text);
        assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
        assert!(!file.items.is_empty());
    }
}

/// Each file of `tests/syntax` ends with the diagnostics it gives.
#[test]
fn wrong_files_are_explained() {
    support::check_folder("syntax", |name, input| {
        let mut map = SourceMap::new();
        let (_, diags) = parse_file(&mut map, name, input);
        diag::render_all(&map, &diags, false)
    });
}

/// Truncated and damaged files: about 400 positions of each model, two ways.
#[test]
fn damaged_models_give_diagnostics_and_no_panic() {
    for (path, text) in support::shipped_models() {
        let step = (text.len() / 400).max(1);
        for at in (0..text.len()).step_by(step).filter(|at| text.is_char_boundary(*at)) {
            let length = text[at..].chars().next().map_or(0, char::len_utf8);
            let without = format!("{}{}", &text[..at], &text[at + length..]);
            for damaged in [&text[..at], without.as_str()] {
                let mut map = SourceMap::new();
                let (_, diags) = parse_file(&mut map, path.clone(), damaged);
                assert!(!diag::render_all(&map, &diags, false).contains("\u{1b}"));
                for found in &diags {
                    assert!(found.span.start <= found.span.end);
                    assert!(found.span.end as usize <= damaged.len(), "{found:?}");
                }
            }
        }
    }
}

/// A slip in one place is not explained at many.
#[test]
fn one_deleted_character_gives_few_errors() {
    for (path, text) in support::shipped_models() {
        let step = (text.len() / 400).max(1);
        for at in (0..text.len()).step_by(step).filter(|at| text.is_char_boundary(*at)) {
            let length = text[at..].chars().next().map_or(0, char::len_utf8);
            let without = format!("{}{}", &text[..at], &text[at + length..]);
            let mut map = SourceMap::new();
            let (_, diags) = parse_file(&mut map, path.clone(), without);
            assert!(diags.len() <= 4, "{}", diag::render_all(&map, &diags, false));
        }
    }
}

/// What would overflow the stack of everything that walks a tree is refused before there is one.
#[test]
fn deep_nesting_is_refused() {
    let deep = 100_000;
    let member = |body: String| format!("weft 1\nmodel M {{\n{body}\n}}\n");
    let texts = [
        member(format!("a = {}1", "- ".repeat(deep))),
        member(format!("a = {}1{}", "(".repeat(deep), ")".repeat(deep))),
        member(format!("a = 1{}", " + 1".repeat(deep))),
        member(format!("a = 1{}", " ^ 1".repeat(deep))),
        member(format!("a = x{}", " as [1]".repeat(deep))),
        member(format!("a = {}1", "if a then b else ".repeat(deep))),
        member(format!("if a {{ }}{}", " else if a { }".repeat(deep))),
        member(format!("{}{}", "if a {".repeat(deep), "}".repeat(deep))),
        member("if a {".repeat(deep)),
        member(format!("a : B at \"{{{}1}}\"", "-".repeat(deep))),
    ];
    for text in texts {
        let mut map = SourceMap::new();
        let (_, diags) = parse_file(&mut map, "deep.model", text);
        assert!(diags.iter().any(|diag| diag.message.contains("inside each other")));
    }
}
