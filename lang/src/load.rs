//! A root file and all files it uses.
//!
//! Reading goes through a closure, so this crate touches no disk and tests need none.

use std::path::{Component, Path, PathBuf};

use crate::ast::{File, FileId, Program, Span, Use};
use crate::derive;
use crate::diag::Diag;
use crate::parse::parse_file;
use crate::source::SourceMap;

/// Reads `path` and what it uses, each file once. The root is `files[0]`; a used file follows its
/// first user. A model `from` another has all that it takes from there. An unreadable root gives a
/// program without files and a diagnostic without a text.
pub fn load(
    path: &Path,
    read: &dyn Fn(&Path) -> std::io::Result<String>,
) -> (Program, SourceMap, Vec<Diag>) {
    let mut loader = Loader {
        read,
        map: SourceMap::new(),
        files: Vec::new(),
        seen: Vec::new(),
        chain: Vec::new(),
        diags: Vec::new(),
    };
    let path = normal(path);
    match read(&path) {
        Ok(text) => loader.enter(path, text),
        Err(error) => {
            let message = format!("cannot read `{}`: {error}", path.display());
            let file = loader.map.add(path, "");
            loader.diags.push(Diag::error(Span::new(file, 0, 0), message));
        }
    }
    let mut program = Program { files: loader.files };
    derive::resolve(&mut program, &mut loader.diags);
    (program, loader.map, loader.diags)
}

struct Loader<'a> {
    read: &'a dyn Fn(&Path) -> std::io::Result<String>,
    map: SourceMap,
    files: Vec<File>,
    /// Paths that were tried and the files they gave; none if unreadable.
    seen: Vec<(PathBuf, Option<FileId>)>,
    /// The files from the root to the one being read.
    chain: Vec<FileId>,
    diags: Vec<Diag>,
}

impl Loader<'_> {
    fn enter(&mut self, path: PathBuf, text: String) {
        let (file, diags) = parse_file(&mut self.map, path.clone(), text);
        let id = file.id;
        let uses = file.uses.clone();
        self.seen.push((path, Some(id)));
        self.files.push(file);
        self.diags.extend(diags);
        self.chain.push(id);
        for used in &uses {
            self.follow(id, used);
        }
        self.chain.pop();
    }

    fn follow(&mut self, user: FileId, used: &Use) {
        let folder = self.map.path(user).parent().unwrap_or(Path::new(""));
        let path = normal(&folder.join(&used.path));
        match self.seen.iter().find(|(seen, _)| *seen == path) {
            Some((_, Some(id))) if self.chain.contains(id) => self.report_cycle(*id, used),
            Some((_, Some(_))) => {}
            Some((_, None)) => self.report_unreadable(&path, used, "it was tried before"),
            None => match (self.read)(&path) {
                Ok(text) => self.enter(path, text),
                Err(error) => {
                    self.report_unreadable(&path, used, &error.to_string());
                    self.seen.push((path, None));
                }
            },
        }
    }

    fn report_cycle(&mut self, id: FileId, used: &Use) {
        let from = self.chain.iter().position(|link| *link == id).unwrap_or(0);
        let names: Vec<String> = self.chain[from..]
            .iter()
            .chain([&id])
            .map(|link| self.map.path(*link).display().to_string())
            .collect();
        let message = format!("files use each other in a circle: {}", names.join(" -> "));
        self.diags
            .push(Diag::error(used.span, message).hint("move what both need into a third file"));
    }

    fn report_unreadable(&mut self, path: &Path, used: &Use, why: &str) {
        let message = format!("cannot read `{}`: {why}", path.display());
        self.diags.push(
            Diag::error(used.span, message).hint("a path is relative to the file that uses it"),
        );
    }
}

/// The path without `.` and with `x/..` removed, so that a file has one name.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(out.components().next_back(), Some(Component::Normal(_))) =>
            {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}
