//! The filetest runner. A filetest is an `.ir` or `.model` file under `tests/` whose first line
//! says what to run.
//!
//! `cargo test` runs all, `cargo ft PATH ..` those under the paths (or whose path contains the
//! word), and `UPDATE=1` writes what was found in place of what was expected, to be read in the
//! diff. The first comment says why a test exists.
//!
//! | kind | says |
//! |---|---|
//! | `roundtrip` | the text parses, verifies, and prints the same ever after |
//! | `verify` | each `// error: text` stands on the line of such an error; there are no others |
//! | `pass NAME, ..` | what the passes make of the functions is what follows `// expect:` |
//! | `run` | each `// run: ..` holds in the interpreter |
//! | `grad` | the derivatives of `@loss` agree with finite differences |
//! | `lang` | a `.model` file has the diagnostics, or gives the IR, that follow `# expect:` |

#[path = "runner/case.rs"]
mod case;
#[path = "runner/grad.rs"]
mod grad;
#[path = "runner/lang.rs"]
mod lang;
#[path = "runner/parts.rs"]
mod parts;
#[path = "runner/pass.rs"]
mod pass;
#[path = "runner/roundtrip.rs"]
mod roundtrip;
#[path = "runner/run.rs"]
mod run;
#[path = "runner/values.rs"]
mod values;
#[path = "runner/verify.rs"]
mod verify;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use case::{Case, Outcome};

/// The folders that hold filetests.
const FOLDERS: &[&str] = &["ir", "passes", "lang"];

fn main() -> ExitCode {
    // What cargo hands on to every test binary (`--quiet`, `--nocapture`) changes nothing here.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let update = std::env::var_os("UPDATE").is_some_and(|v| v != "0");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files = vec![];
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files);
    }
    let asked = |f: &PathBuf| wanted.is_empty() || wanted.iter().any(|w| is_under(f, w));
    files.retain(asked);
    files.sort();

    let mut failed = 0;
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).display();
        let outcome = catch_unwind(|| run_file(file, update))
            .unwrap_or_else(|_| Err("it panicked; the message stands above".into()));
        if let Err(why) = outcome {
            failed += 1;
            println!("FAILED tests/{name}\n{why}\n");
        }
    }
    println!("{} filetests, {failed} failed", files.len());
    // A path with a slip of the fingers must not look like success.
    if failed > 0 || (files.is_empty() && !wanted.is_empty()) {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

fn run_file(file: &Path, update: bool) -> Result<(), String> {
    let case = Case::read(file)?;
    let outcome = match case.kind.as_str() {
        "roundtrip" => roundtrip::run(&case),
        "verify" => verify::run(&case),
        "pass" => pass::run(&case),
        "run" => run::run(&case),
        "grad" => grad::run(&case),
        "lang" => lang::run(&case),
        other => return Err(format!("no test kind `{other}`")),
    }?;
    match outcome {
        Outcome::Passed => Ok(()),
        Outcome::Differs { updated, .. } if update => {
            std::fs::write(file, updated).map_err(|e| e.to_string())
        }
        Outcome::Differs { why, .. } => Err(format!("{why}\n(UPDATE=1 takes what was found)")),
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "ir" || e == "model") {
            files.push(path);
        }
    }
}

fn is_under(file: &Path, wanted: &str) -> bool {
    file.ancestors().any(|a| a.ends_with(wanted)) || file.to_string_lossy().contains(wanted)
}
