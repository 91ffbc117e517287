//! Syntax errors in the language's words: what was found, and the few things that would have fit.
//!
//! The parser knows a set of terminals, often twenty. Sets that mean one thing to an author ("an
//! expression") are named once; signs that continue what is already complete are left out.

use std::collections::BTreeSet;

use lalrpop_util::ParseError;

use crate::diag::{self, Diag};
use crate::layout::{Keyword, Spanned, Token, ends_operand, reserved};
use crate::lexer::RawKind;
use crate::source::{FileId, Span};

type Fault<'s> = ParseError<usize, Token<'s>, ()>;

/// `at` is the index of the token that did not fit; `tokens.len()` at the end of the file.
pub fn diag(file: FileId, text: &str, tokens: &[Spanned], at: usize, error: &Fault) -> Diag {
    let span = match tokens.get(at) {
        // A newline is pointed at behind the last token, not at the start of the next line.
        Some((_, Token::Separator, _)) => after(file, tokens, at),
        Some((start, _, end)) if start == end => after(file, tokens, at),
        Some((start, _, end)) => Span::new(file, *start, *end),
        None => after(file, tokens, tokens.len()),
    };
    let found = match tokens.get(at) {
        None => "the end of the file".to_string(),
        Some((start, Token::Separator, end)) if &text[*start..*end] == ";" => "`;`".to_string(),
        Some((_, Token::Separator, _)) => "the end of the line".to_string(),
        Some((start, _, end)) if start == end => "the end of the file".to_string(),
        Some((start, _, end)) => format!("`{}`", &text[*start..*end]),
    };
    let diag = Diag::error(span, message(&found, error));
    match hint(tokens, at, &Fits::of(error)) {
        Some(hint) => diag.hint(hint),
        None => diag,
    }
}

/// An error in the `{expr}` of an `at "template"`; `span` has the braces.
pub fn diag_in_template(span: Span, tokens: &[Spanned], at: usize, error: &Fault) -> Diag {
    let (span, found) = match tokens.get(at) {
        Some((start, _, end)) => (Span::new(span.file, *start, *end), "this"),
        None => (span, "`}`"),
    };
    Diag::error(span, message(found, error))
}

/// The last character before token `at`.
fn after(file: FileId, tokens: &[Spanned], at: usize) -> Span {
    let end = at.checked_sub(1).and_then(|before| tokens.get(before)).map_or(0, |token| token.2);
    Span::new(file, end.saturating_sub(1), end)
}

fn message(found: &str, error: &Fault) -> String {
    match Fits::of(error).in_words().split_last() {
        None => format!("found {found}, which fits nowhere here"),
        Some((only, [])) => format!("found {found}, expected {only}"),
        Some((last, others)) => {
            format!("found {found}, expected {} or {last}", others.join(", "))
        }
    }
}

/// The terminals that would have fit.
struct Fits<'e>(BTreeSet<&'e str>);

impl<'e> Fits<'e> {
    fn of(error: &'e Fault) -> Fits<'e> {
        match error {
            ParseError::UnrecognizedToken { expected, .. }
            | ParseError::UnrecognizedEof { expected, .. } => {
                // The parser writes terminals as the grammar does, with quotes.
                Fits(expected.iter().map(|quoted| quoted.trim_matches('"')).collect())
            }
            ParseError::InvalidToken { .. }
            | ParseError::ExtraToken { .. }
            | ParseError::User { .. } => Fits(BTreeSet::new()),
        }
    }

    fn has(&self, terminal: &str) -> bool {
        self.0.contains(terminal)
    }

    /// What stands before is a complete expression, so operators and whatever follows it fit.
    fn after_operand(&self) -> bool {
        self.has("*") && self.has("/")
    }

    /// At most four phrases.
    fn in_words(&self) -> Vec<String> {
        let mut words = self.starts();
        words.extend(self.signs());
        if words.is_empty() && self.after_operand() {
            words.push("an operator".to_string());
        }
        words.truncate(4);
        words
    }

    /// Things that could begin here, named once each.
    fn starts(&self) -> Vec<String> {
        let expression = self.has("number") && self.has("neg");
        let all = |terminals: &[&str]| terminals.iter().all(|terminal| self.has(terminal));
        let phrase = if self.has("end") {
            // Anything might follow on the same line; what was forgotten is to end this one.
            "the end of the line"
        } else if self.has("module") {
            "a module, a model or a block"
        } else if all(&["cache", "emit"]) && expression {
            "a statement"
        } else if all(&["weight", "string", "name"]) && !self.has("{") {
            "a key"
        } else if all(&["weight", "forward", "name"]) && !self.has("string") {
            "a member"
        } else if expression {
            "an expression"
        } else if self.has("name") && !(self.has("{") && self.has("=")) {
            "a name"
        } else if self.has("string") {
            "a string"
        } else if self.has("number") {
            "a number"
        } else {
            return Vec::new();
        };
        vec![phrase.to_string()]
    }

    /// Signs and words that could stand here, as written.
    fn signs(&self) -> Vec<String> {
        const SIGNS: [&str; 16] = [
            ",", "=", "+=", ":", ")", "]", "}", "call(", "->", "{", "[", "then", "else", "of",
            "steps", "tokens",
        ];
        let expression = self.has("number") && self.has("neg");
        let wanted = |sign: &&&str| match **sign {
            // A call, a binding or a list could begin nearly everywhere.
            "=" | "call(" => !self.after_operand() && !self.has("end"),
            "[" => !expression && !self.has("end"),
            "," | "else" => !self.has("end"),
            _ => true,
        };
        let present = SIGNS.iter().filter(|sign| self.has(sign)).filter(wanted);
        present.map(|sign| format!("`{}`", sign.trim_start_matches("call"))).collect()
    }
}

/// Slips that are known by their neighbours.
fn hint(tokens: &[Spanned], at: usize, fits: &Fits) -> Option<String> {
    const WORDS: [&str; 11] = [
        "weight",
        "state",
        "schedule",
        "cache",
        "emit",
        "module",
        "model",
        "repeat",
        "each",
        "precision",
        "parallel",
    ];
    let here = tokens.get(at)?.1;
    let before = at.checked_sub(1).and_then(|before| tokens.get(before)).map(|token| token.1);
    match (before, here) {
        // `weigth w : [dim]`
        (Some(Token::Name(word)), Token::Name(_)) => {
            diag::suggest(word, WORDS).map(|near| format!("did you mean `{near}`?"))
        }
        // `forwards(x: [dim])`
        (Some(Token::Name(word)), Token::CallParen) => {
            diag::suggest(word, ["forward"]).map(|near| format!("did you mean `{near}`?"))
        }
        (_, Token::Word(word)) if is_reserved(word) && fits.has("name") && !fits.has("*") => {
            Some("this word is reserved and cannot be a name".to_string())
        }
        (
            _,
            Token::Sign(
                RawKind::EqEq
                | RawKind::NotEq
                | RawKind::Less
                | RawKind::LessEq
                | RawKind::Greater
                | RawKind::GreaterEq,
            ),
        ) if before.is_some_and(ends_operand) => {
            Some("comparisons are joined with `and`".to_string())
        }
        _ => None,
    }
}

/// Words that `layout` never reads as names.
fn is_reserved(word: Keyword) -> bool {
    const RESERVED: [&str; 13] = [
        "if", "then", "else", "and", "or", "not", "as", "at", "over", "sharing", "true", "false",
        "none",
    ];
    RESERVED.iter().any(|text| reserved(text) == Some(word))
}
