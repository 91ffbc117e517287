//! The texts a program was read from: which file a span belongs to, and its line and column.
//!
//! Offsets are bytes. A file is never changed after it was added, so a `Span` stays valid.

use std::path::{Path, PathBuf};

/// One file of a `SourceMap`, numbered in the order of loading; the root is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FileId(pub u32);

/// Bytes `start..end` of one file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    pub file: FileId,
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn new(file: FileId, start: usize, end: usize) -> Span {
        // Files are at most u32::MAX bytes: `SourceMap::add` cuts longer texts.
        Span { file, start: start as u32, end: end as u32 }
    }

    /// The smallest span that holds both; both must be of one file.
    pub fn to(self, other: Span) -> Span {
        debug_assert_eq!(self.file, other.file);
        Span { file: self.file, start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// `@3..7` or, outside the first file, `@1:3..7`: short, so that dumps of the AST can be read.
impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file {
            FileId(0) => write!(f, "@{}..{}", self.start, self.end),
            FileId(file) => write!(f, "@{file}:{}..{}", self.start, self.end),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    line_starts: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    files: Vec<Source>,
}

/// A place as editors count it, both from 1; `column` counts characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineColumn {
    pub line: usize,
    pub column: usize,
}

impl SourceMap {
    pub fn new() -> SourceMap {
        SourceMap::default()
    }

    pub fn add(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> FileId {
        let mut text = text.into();
        if text.len() > u32::MAX as usize {
            let mut end = u32::MAX as usize;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(i, _)| i as u32 + 1)).collect();
        self.files.push(Source { path: path.into(), text, line_starts });
        FileId(self.files.len() as u32 - 1)
    }

    pub fn files(&self) -> impl Iterator<Item = (FileId, &Source)> {
        self.files.iter().enumerate().map(|(i, source)| (FileId(i as u32), source))
    }

    /// `file` must come from this map.
    pub fn get(&self, file: FileId) -> &Source {
        &self.files[file.0 as usize]
    }

    pub fn path(&self, file: FileId) -> &Path {
        &self.get(file).path
    }

    pub fn text(&self, file: FileId) -> &str {
        &self.get(file).text
    }

    /// The text of a span; empty if the span does not fall on characters of the file.
    pub fn slice(&self, span: Span) -> &str {
        self.text(span.file).get(span.start as usize..span.end as usize).unwrap_or("")
    }

    pub fn line_column(&self, file: FileId, offset: u32) -> LineColumn {
        let source = self.get(file);
        let line = source.line_starts.partition_point(|start| *start <= offset).max(1) - 1;
        let start = source.line_starts[line] as usize;
        let before = source.text.get(start..(offset as usize).min(source.text.len()));
        LineColumn { line: line + 1, column: before.map_or(0, |text| text.chars().count()) + 1 }
    }

    /// `moe.model:18`, the form of provenance in dumps.
    pub fn place(&self, span: Span) -> String {
        let path = self.path(span.file);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        format!("{name}:{}", self.line_column(span.file, span.start).line)
    }
}
