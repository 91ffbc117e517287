//! What the tests of this crate share: the shipped models, and files that carry their expectation.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};

/// Every `.model` file under `models/`, in the order of the paths.
pub fn shipped_models() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")];
    while let Some(folder) = folders.pop() {
        for path in paths(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "model") {
                let text = std::fs::read_to_string(&path).expect("a shipped model is readable");
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 7, "only {} models found", found.len());
    found
}

/// Runs `actual` on every `.model` file of `tests/FOLDER` and compares with the lines behind
/// `# expect:`. With UPDATE=1 in the environment those lines are rewritten instead.
pub fn check_folder(folder: &str, actual: impl Fn(&str, &str) -> String) {
    const MARK: &str = "# expect:\n";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in paths(&folder) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a test is readable");
        let (input, expected) = text.split_once(MARK).unwrap_or((&text, ""));
        let actual: String = actual(&name, input)
            .lines()
            .map(|line| format!("{}\n", format!("# {line}").trim_end()))
            .collect();
        count += 1;
        if update {
            let text = format!("{input}{MARK}{actual}");
            std::fs::write(&path, text).expect("a test is writable");
        } else if actual != expected {
            wrong.push(format!("{name}: expected\n{expected}found\n{actual}"));
        }
    }
    assert!(count > 0, "no tests in {}", folder.display());
    assert!(wrong.is_empty(), "{}\nUPDATE=1 accepts what was found", wrong.join("\n"));
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of tests or models");
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
