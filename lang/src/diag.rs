//! What the compiler tells the author: one message at one place, further labels, at most one hint.
//!
//! Stages collect `Vec<Diag>` and go on, so that one run shows every error. Rendering is separate:
//! the same `Diag` becomes plain text for tests and logs and coloured text for a terminal.

use crate::source::{FileId, SourceMap, Span};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    Error,
    Warning,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Diag {
    pub severity: Severity,
    pub span: Span,
    /// One line that names the thing and says what is wrong with it.
    pub message: String,
    /// Notes at places. One at `span` itself is drawn there; without any, the span is underlined.
    pub labels: Vec<(Span, String)>,
    pub hint: Option<String>,
}

impl Diag {
    pub fn error(span: Span, message: impl Into<String>) -> Diag {
        Diag {
            severity: Severity::Error,
            span,
            message: message.into(),
            labels: Vec::new(),
            hint: None,
        }
    }

    pub fn warning(span: Span, message: impl Into<String>) -> Diag {
        Diag { severity: Severity::Warning, ..Diag::error(span, message) }
    }

    pub fn label(mut self, span: Span, text: impl Into<String>) -> Diag {
        self.labels.push((span, text.into()));
        self
    }

    pub fn hint(mut self, text: impl Into<String>) -> Diag {
        self.hint = Some(text.into());
        self
    }

    /// Label the use that led into the text this is about; the innermost, which is told first.
    pub fn say_where(&mut self, span: Span, text: String) {
        let told = |label: &(Span, String)| label.1.starts_with("in this ");
        if !self.labels.iter().any(told) && self.span != span {
            self.labels.push((span, text));
        }
    }

    /// The hint "did you mean `x`?" if a candidate is close to `name`.
    pub fn did_you_mean<'a>(
        mut self,
        name: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Diag {
        if let Some(close) = suggest(name, candidates) {
            self.hint = Some(format!("did you mean `{close}`?"));
        }
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// The candidate nearest to `name` by edit distance, if it is near enough to be a slip of the
/// fingers: a third of the name's letters, at least one, but not all. Of equals the first wins.
pub fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    let limit = (length / 3).max(1).min(length.saturating_sub(1));
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| (1..=limit).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Errors and warnings by place, which is how an author reads a file.
pub fn sort(diags: &mut [Diag]) {
    diags.sort_by_key(|diag| (diag.span, diag.severity));
}

/// Keeps the first of equal errors: a module that is placed three times says the same three times.
pub fn drop_repeated(diags: &mut Vec<Diag>) {
    let mut seen: Vec<Diag> = vec![];
    diags.retain(|diag| {
        let new = !seen.iter().any(|d| d.span == diag.span && d.message == diag.message);
        seen.extend(new.then(|| diag.clone()));
        new
    });
}

/// All of `diags` in their order, an empty line between two.
pub fn render_all(map: &SourceMap, diags: &[Diag], colour: bool) -> String {
    diags.iter().map(|diag| render(map, diag, colour)).collect::<Vec<_>>().join("\n")
}

/// One diagnostic with the lines of source it points at.
pub fn render(map: &SourceMap, diag: &Diag, colour: bool) -> String {
    type Place = (FileId, std::ops::Range<usize>);
    let kind = match diag.severity {
        Severity::Error => ariadne::ReportKind::Error,
        Severity::Warning => ariadne::ReportKind::Warning,
    };
    let ink = match diag.severity {
        Severity::Error => ariadne::Color::Red,
        Severity::Warning => ariadne::Color::Yellow,
    };
    let config =
        ariadne::Config::default().with_color(colour).with_index_type(ariadne::IndexType::Byte);
    let mut report = ariadne::Report::<Place>::build(kind, place(map, diag.span))
        .with_config(config)
        .with_message(&diag.message);
    if !diag.labels.iter().any(|(span, _)| *span == diag.span) {
        report = report.with_label(
            ariadne::Label::new(place(map, diag.span)).with_message("here").with_color(ink),
        );
    }
    for (span, text) in &diag.labels {
        let label_ink = if *span == diag.span { ink } else { ariadne::Color::Cyan };
        report = report.with_label(
            ariadne::Label::new(place(map, *span)).with_message(text).with_color(label_ink),
        );
    }
    if let Some(hint) = &diag.hint {
        report = report.with_help(hint);
    }
    let mut bytes = Vec::new();
    if report.finish().write(Sources::new(map), &mut bytes).is_err() {
        return format!("{}: {}\n", map.place(diag.span), diag.message);
    }
    let text = String::from_utf8_lossy(&bytes);
    // Drawings pad their lines; expectations in tests and terminals are better without.
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A span as ariadne wants it: on characters of the file, whatever a caller gave.
fn place(map: &SourceMap, span: Span) -> (FileId, std::ops::Range<usize>) {
    let text = map.text(span.file);
    let on_character = |offset: u32| {
        let mut offset = (offset as usize).min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    };
    let start = on_character(span.start);
    (span.file, start..on_character(span.end).max(start))
}

/// The `SourceMap` in the shape of ariadne's cache: texts split into lines when first asked for.
struct Sources<'a> {
    map: &'a SourceMap,
    split: Vec<Option<ariadne::Source<&'a str>>>,
}

impl<'a> Sources<'a> {
    fn new(map: &'a SourceMap) -> Sources<'a> {
        Sources { map, split: map.files().map(|_| None).collect() }
    }
}

impl<'a> ariadne::Cache<FileId> for Sources<'a> {
    type Storage = &'a str;

    fn fetch(&mut self, id: &FileId) -> Result<&ariadne::Source<&'a str>, impl std::fmt::Debug> {
        let map = self.map;
        match self.split.get_mut(id.0 as usize) {
            Some(slot) => {
                let source = slot.get_or_insert_with(|| ariadne::Source::from(map.text(*id)));
                Ok(&*source)
            }
            None => Err("a span of a file that is not loaded"),
        }
    }

    fn display<'b>(&self, id: &'b FileId) -> Option<impl std::fmt::Display + 'b> {
        Some(self.map.path(*id).display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_and_never_the_name_itself() {
        let names = ["hidden", "heads", "q_rank"];
        assert_eq!(suggest("hiden", names), Some("hidden"));
        assert_eq!(suggest("haeds", names), Some("heads"));
        assert_eq!(suggest("heads", names), None);
        assert_eq!(suggest("vocab", names), None);
        assert_eq!(suggest("x", ["y", "z"]), None);
    }

    #[test]
    fn colours_only_when_asked_for() {
        let mut map = SourceMap::new();
        let file = map.add("a.model", "x = y\n");
        let diag = Diag::error(Span::new(file, 4, 5), "`y` is unknown").hint("declare it");
        assert!(render(&map, &diag, true).contains('\u{1b}'));
        let plain = render(&map, &diag, false);
        assert!(!plain.contains('\u{1b}'));
        assert!(plain.contains("a.model:1:5") && plain.contains("Help: declare it"), "{plain}");
    }

    #[test]
    fn spans_outside_the_text_are_drawn_at_its_end() {
        let mut map = SourceMap::new();
        let file = map.add("a.model", "é");
        for (start, end) in [(0, 9), (1, 1), (9, 9), (9, 0)] {
            let diag = Diag::error(Span { file, start, end }, "message");
            assert!(render(&map, &diag, false).contains("message"));
        }
    }
}
