//! `use`: paths relative to the user, every file once, circles and missing files explained.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use weft_lang::diag;
use weft_lang::load;

/// The paths of the program and the rendered diagnostics, from files given as (path, text).
fn loaded(root: &str, files: &[(&str, &str)]) -> (Vec<String>, String) {
    let files: BTreeMap<&Path, &str> =
        files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    let read = |path: &Path| match files.get(path) {
        Some(text) => Ok(text.to_string()),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let (program, map, diags) = load(Path::new(root), &read);
    for (i, file) in program.files.iter().enumerate() {
        assert_eq!(file.id.0 as usize, i, "files are found by their id");
    }
    let paths = program.files.iter().map(|file| map.path(file.id).display().to_string());
    (paths.collect(), diag::render_all(&map, &diags, false))
}

#[test]
fn used_files_follow_the_root_once_each() {
    let (paths, diags) = loaded(
        "m/a.model",
        &[
            ("m/a.model", "weft 1\nuse \"lib/b.model\" \"lib/c.model\"\nmodule A(x) { }\n"),
            ("m/lib/b.model", "weft 1\nuse \"c.model\" \"../d.model\"\n"),
            ("m/lib/c.model", "weft 1\n"),
            ("m/d.model", "weft 1\nuse \"./lib/../lib/c.model\"\n"),
        ],
    );
    assert_eq!(paths, ["m/a.model", "m/lib/b.model", "m/lib/c.model", "m/d.model"]);
    assert_eq!(diags, "");
}

#[test]
fn a_circle_is_shown_whole() {
    let (paths, diags) = loaded(
        "a.model",
        &[
            ("a.model", "weft 1\nuse \"b.model\"\n"),
            ("b.model", "weft 1\nuse \"c.model\"\n"),
            ("c.model", "weft 1\nuse \"b.model\" \"c.model\"\n"),
        ],
    );
    assert_eq!(paths.len(), 3);
    assert!(diags.contains("in a circle: b.model -> c.model -> b.model"), "{diags}");
    assert!(diags.contains("in a circle: c.model -> c.model"), "{diags}");
    assert!(diags.contains("c.model:2:5"), "{diags}");
}

#[test]
fn a_missing_file_is_reported_where_it_is_used() {
    let (paths, diags) = loaded(
        "a.model",
        &[
            ("a.model", "weft 1\nuse \"b.model\" \"gone.model\"\n"),
            ("b.model", "weft 1\nuse \"gone.model\"\n"),
        ],
    );
    assert_eq!(paths.len(), 2);
    assert_eq!(diags.matches("cannot read `gone.model`").count(), 2, "{diags}");
    assert!(diags.contains("a path is relative to the file that uses it"), "{diags}");
}

#[test]
fn a_missing_root_has_no_text_to_point_at() {
    let (paths, diags) = loaded("gone.model", &[]);
    assert!(paths.is_empty());
    assert!(diags.contains("cannot read `gone.model`"), "{diags}");
}

#[test]
fn errors_of_used_files_are_kept() {
    let (_, diags) = loaded(
        "a.model",
        &[("a.model", "weft 1\nuse \"b.model\"\n"), ("b.model", "module A(x) { weight }\n")],
    );
    assert!(diags.contains("b.model:1:"), "{diags}");
}
