//! Characters to words, numbers, strings and signs; layout is left in.
//!
//! Nothing here depends on context: `layout` decides which newlines count and which words are
//! keywords, and the formatter reads the same tokens with their comments.

use logos::Logos;

#[derive(Logos, Clone, Copy, PartialEq, Eq, Debug)]
#[logos(skip r"[ \t\r\f\u{feff}]+")]
pub enum RawKind {
    #[token("\n")]
    Newline,
    #[regex("#[^\n]*", allow_greedy = true)]
    Comment,
    #[regex("[A-Za-z_][A-Za-z0-9_]*")]
    Word,
    // Takes all letters that follow, so that `12kk` is one wrong number and not two tokens.
    #[regex(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?[A-Za-z0-9_]*")]
    Number,
    #[regex(r#""([^"\\\n]|\\[^\n])*""#)]
    Str,
    #[regex(r#""([^"\\\n]|\\[^\n])*"#)]
    OpenStr,
    #[token("(")]
    LParen,
    #[token(")")]
    RParen,
    #[token("[")]
    LBracket,
    #[token("]")]
    RBracket,
    #[token("{")]
    LBrace,
    #[token("}")]
    RBrace,
    #[token(",")]
    Comma,
    #[token(";")]
    Semicolon,
    #[token("=")]
    Assign,
    #[token("+=")]
    AddAssign,
    #[token(":")]
    Colon,
    #[token("?")]
    Question,
    #[token("|")]
    Bar,
    #[token("->")]
    Arrow,
    #[token("..")]
    DotDot,
    #[token(".")]
    Dot,
    #[token("+")]
    Plus,
    #[token("-")]
    Minus,
    #[token("*")]
    Star,
    #[token("/")]
    Slash,
    #[token("^")]
    Caret,
    #[token("==")]
    EqEq,
    #[token("!=")]
    NotEq,
    #[token("<")]
    Less,
    #[token("<=")]
    LessEq,
    #[token(">")]
    Greater,
    #[token(">=")]
    GreaterEq,
    /// A character no token starts with.
    Unknown,
}

/// Bytes `start..end` of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raw {
    pub kind: RawKind,
    pub start: usize,
    pub end: usize,
}

/// Every token of `text`, newlines and comments included. Never fails: what is wrong with a token
/// is its kind (`OpenStr`, `Unknown`) or shows when it is read (`number`, `unescape`).
pub fn lex(text: &str) -> Vec<Raw> {
    let mut tokens: Vec<Raw> = Vec::new();
    for (kind, span) in RawKind::lexer(text).spanned() {
        let kind = kind.unwrap_or(RawKind::Unknown);
        let mut end = span.end;
        if matches!(kind, RawKind::Comment | RawKind::OpenStr) {
            end = span.start + text[span.clone()].trim_end().len();
        }
        match tokens.last_mut() {
            // A run of strange characters is one mistake.
            Some(last)
                if kind == RawKind::Unknown
                    && last.kind == RawKind::Unknown
                    && last.end == span.start =>
            {
                last.end = end;
            }
            // The brace at the end of a line is more likely a brace than part of a string.
            _ if kind == RawKind::OpenStr && text[..end].ends_with('{') => {
                tokens.push(Raw { kind, start: span.start, end: end - 1 });
                tokens.push(Raw { kind: RawKind::LBrace, start: end - 1, end });
            }
            _ => tokens.push(Raw { kind, start: span.start, end }),
        }
    }
    tokens
}

/// The value of a number: digits with an optional suffix `k M G T`.
pub fn number(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], "e3"),
        b'M' => (&text[..text.len() - 1], "e6"),
        b'G' => (&text[..text.len() - 1], "e9"),
        b'T' => (&text[..text.len() - 1], "e12"),
        _ => (text, ""),
    };
    let plain = |c: char| c.is_ascii_digit() || c == '.';
    if exponent.is_empty() {
        // Refuses Rust's `inf` and `nan`, which begin with no digit anyway, and `_`.
        digits.parse().ok().filter(|value: &f64| value.is_finite())
    } else if digits.chars().all(plain) {
        // Through text, so that `14.3T` is the double nearest to 14.3e12.
        format!("{digits}{exponent}").parse().ok().filter(|value: &f64| value.is_finite())
    } else {
        None
    }
}

/// The characters between the quotes with `\"` and `\\` replaced; Err is the offset of another
/// escape.
pub fn unescape(inner: &str) -> Result<String, usize> {
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => out.push(escaped),
                _ => return Err(at),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_a_thousand() {
        assert_eq!(number("12"), Some(12.0));
        assert_eq!(number("469G"), Some(469e9));
        assert_eq!(number("14.3T"), Some(14.3e12));
        assert_eq!(number("1e-6"), Some(1e-6));
        assert_eq!(number("12kk"), None);
        assert_eq!(number("1x128"), None);
        assert_eq!(number("1e999"), None);
    }

    #[test]
    fn only_quotes_and_backslashes_are_escaped() {
        assert_eq!(unescape(r#"a\"b\\c"#), Ok("a\"b\\c".to_string()));
        assert_eq!(unescape(r"ab\n"), Err(2));
    }

    #[test]
    fn a_carriage_return_is_no_part_of_a_comment() {
        let tokens = lex("# one\r\nx");
        assert_eq!(tokens[0], Raw { kind: RawKind::Comment, start: 0, end: 5 });
    }
}
