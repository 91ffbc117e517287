//! Text to tokens. A word keeps its dots (`ld.global.f32`, `%tid.x`), as PTX has no blanks inside
//! an opcode; comments vanish.

use crate::error::{Error, ErrorKind, Result};

#[derive(Clone, Debug, PartialEq)]
pub enum Token<'a> {
    /// An opcode, directive, register, label or name.
    Word(&'a str),
    Int(i128),
    /// The bits of a float literal; `0f` and `0d` alike.
    FloatBits(u64),
    Text(&'a str),
    Punct(char),
}

pub struct Lexed<'a> {
    pub token: Token<'a>,
    pub line: u32,
}

pub fn lex(text: &str) -> Result<Vec<Lexed<'_>>> {
    let bytes = text.as_bytes();
    let (mut i, mut line) = (0, 1);
    let mut out = vec![];
    while i < bytes.len() {
        let c = bytes[i];
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            _ if c.is_ascii_whitespace() => i += 1,
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                let end = text[i..].find("*/").map_or(bytes.len(), |n| i + n + 2);
                line += text[i..end].matches('\n').count() as u32;
                i = end;
            }
            b'"' => {
                let end = text[i + 1..].find('"').map(|n| i + 1 + n).ok_or_else(|| {
                    Error::at(ErrorKind::Syntax, line, "a string without its closing quote")
                })?;
                out.push(Lexed { token: Token::Text(&text[i + 1..end]), line });
                i = end + 1;
            }
            b'0'..=b'9' => {
                let end = span(text, i, |c| c.is_ascii_alphanumeric() || c == b'_');
                out.push(Lexed { token: number(&text[i..end], line)?, line });
                i = end;
            }
            b'-' if bytes.get(i + 1).is_some_and(u8::is_ascii_digit) => {
                let end = span(text, i + 1, |c| c.is_ascii_alphanumeric());
                let Token::Int(value) = number(&text[i + 1..end], line)? else {
                    return Err(Error::at(ErrorKind::Syntax, line, "a minus before float bits"));
                };
                out.push(Lexed { token: Token::Int(-value), line });
                i = end;
            }
            _ if is_word(c) => {
                let end = span(text, i + 1, |c| is_word(c) || c == b':');
                let end = i + trim_colon(&text[i..end]).len();
                out.push(Lexed { token: Token::Word(&text[i..end]), line });
                i = end;
            }
            b',' | b';' | b':' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'|' | b'!' | b'@'
            | b'+' | b'-' | b'<' | b'>' | b'=' => {
                out.push(Lexed { token: Token::Punct(c as char), line });
                i += 1;
            }
            _ => {
                let c = text[i..].chars().next().unwrap_or('?');
                return Err(Error::at(ErrorKind::Syntax, line, format!("stray `{c}`")));
            }
        }
    }
    Ok(out)
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// `::` belongs to a word (`shared::cta`), a single `:` ends a label.
fn trim_colon(word: &str) -> &str {
    let mut at = 0;
    while let Some(n) = word[at..].find(':') {
        if word[at + n..].starts_with("::") {
            at += n + 2;
        } else {
            return &word[..at + n];
        }
    }
    word
}

fn span(text: &str, from: usize, keep: impl Fn(u8) -> bool) -> usize {
    let bytes = text.as_bytes();
    (from..bytes.len()).find(|&i| !keep(bytes[i])).unwrap_or(bytes.len())
}

fn number(word: &str, line: u32) -> Result<Token<'static>> {
    let bad = || Error::at(ErrorKind::Syntax, line, format!("`{word}` is not a number"));
    let hex = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| bad());
    if let Some(digits) = word.strip_prefix("0f").or(word.strip_prefix("0F")) {
        return Ok(Token::FloatBits(hex(digits)?));
    }
    if let Some(digits) = word.strip_prefix("0d").or(word.strip_prefix("0D")) {
        return Ok(Token::FloatBits(hex(digits)?));
    }
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(digits) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        return Ok(Token::Int(i128::from(hex(digits)?)));
    }
    word.parse().map(Token::Int).map_err(|_| bad())
}
