//! `weft fmt`: the tree stays, the second time changes nothing, and how things look.

mod support;

use weft_lang::diag;
use weft_lang::fmt::format;
use weft_lang::parse_file;
use weft_lang::source::SourceMap;

/// The formatted text and the tree without its spans.
fn formatted(name: &str, text: &str) -> (String, String) {
    let mut map = SourceMap::new();
    let (file, diags) = parse_file(&mut map, name, text);
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    let tree = format!("{:?} {:?} {:?}", file.version, file.uses, file.items);
    (format(&map, file.id, &file), without_spans(&tree))
}

/// Spans print as `@12..34`.
fn without_spans(tree: &str) -> String {
    let mut pieces = tree.split('@');
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        out.push_str(piece.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.'));
    }
    out
}

fn comments(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_once('#')).map(|(_, words)| words.trim()).collect()
}

fn check(name: &str, text: &str) -> String {
    let (once, tree) = formatted(name, text);
    let (twice, tree_after) = formatted(name, &once);
    assert_eq!(tree, tree_after, "{name}: formatting changed the meaning\n{once}");
    assert_eq!(once, twice, "{name}: formatting twice changed more");
    assert_eq!(comments(text), comments(&once), "{name}: comments moved");
    once
}

#[test]
fn shipped_models_keep_their_meaning() {
    for (path, text) in support::shipped_models() {
        check(&path.to_string_lossy(), &text);
    }
}

/// Layout is rebuilt from nothing but the lines: all indentation and double spaces are taken away.
#[test]
fn flattened_models_keep_their_meaning() {
    for (path, text) in support::shipped_models() {
        let flat: String = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
            .collect();
        check(&path.to_string_lossy(), &flat);
    }
}

/// Each file of `tests/format` ends with what it becomes.
#[test]
fn layout_is_as_written_down() {
    support::check_folder("format", check);
}
