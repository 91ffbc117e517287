//! Tokens of the text form, with the line and column they stand at. What is in a `# ...` is one
//! token; `places` reads it.

use logos::Logos;

#[derive(Logos, Clone, Copy, PartialEq, Eq, Debug)]
#[logos(skip r"[ \t\r\n]+")]
#[logos(skip(r"//[^\n]*", allow_greedy = true))]
pub enum Kind {
    #[token("weft-ir")]
    Magic,
    #[regex(r"[A-Za-z_][A-Za-z0-9_.]*")]
    Word,
    #[regex(r"-?([0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?)|-inf")]
    Number,
    #[regex(r"[0-9]+x[0-9]+")]
    Group,
    #[regex(r#""([^"\\\n]|\\[^\n])*""#)]
    Text,
    #[regex(r#"%([A-Za-z0-9_.]+|"([^"\\\n]|\\[^\n])*")"#)]
    Value,
    #[regex(r#"@([A-Za-z0-9_.]+|"([^"\\\n]|\\[^\n])*")"#)]
    Global,
    #[regex(r"#[^\n]*", allow_greedy = true)]
    Places,
    #[regex(r"->|<=|[=,:(){}\[\]*<>]")]
    Punct,
    /// What is none of the above; the parser says that it did not expect it.
    Unknown,
    End,
}

#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// From 1; columns count characters.
    pub line: u32,
    pub col: u32,
}

/// All tokens, an `End` last.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = vec![];
    let (mut line, mut line_start, mut seen) = (1, 0, 0);
    let mut place = |at: usize| {
        for (i, _) in text[seen..at].match_indices('\n') {
            line += 1;
            line_start = seen + i + 1;
        }
        seen = at;
        (line, text[line_start..at].chars().count() as u32 + 1)
    };
    for (kind, range) in Kind::lexer(text).spanned() {
        let (line, col) = place(range.start);
        let kind = kind.unwrap_or(Kind::Unknown);
        out.push(Token { kind, text: &text[range], line, col });
    }
    let (line, col) = place(text.len());
    out.push(Token { kind: Kind::End, text: "", line, col });
    out
}

/// What stands between the quotes of `text`, which begins with one; and what follows them.
pub fn unquote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut rest = text.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => return Some((out, rest.as_str())),
            '\\' => match rest.next()? {
                'u' => {
                    let (code, after) = rest.as_str().strip_prefix('{')?.split_once('}')?;
                    out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
                    rest = after.chars();
                }
                c @ ('"' | '\\') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
}

/// The places of a `# file:line:col, ...`; `None` if it does not read like that. Ends at a comment.
pub fn places(text: &str) -> Option<Vec<(String, u32, u32)>> {
    let mut rest = text.strip_prefix('#')?;
    let mut out = vec![];
    loop {
        rest = rest.trim_start();
        let (file, after) = match rest.starts_with('"') {
            true => unquote(rest)?,
            false => {
                let end = rest.find(':')?;
                (rest[..end].to_string(), &rest[end..])
            }
        };
        let (line, after) = number(after.strip_prefix(':')?)?;
        let (col, after) = number(after.strip_prefix(':')?)?;
        out.push((file, line, col));
        rest = after.trim_start();
        if rest.is_empty() || rest.starts_with("//") {
            return Some(out);
        }
        rest = rest.strip_prefix(',')?;
    }
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_at_a_comment_and_may_be_quoted() {
        let read = places("# a.model:1:2, \"b // c\":3:4 // error: x").unwrap();
        assert_eq!(read, [("a.model".to_string(), 1, 2), ("b // c".to_string(), 3, 4)]);
        assert_eq!(places("# a.model:1"), None);
        assert_eq!(places("# a.model:1:2:3"), None);
    }

    #[test]
    fn a_token_knows_its_line_and_column() {
        let all = tokens("%x\n  é @\"a b\" 1x128");
        let at: Vec<_> = all.iter().map(|t| (t.kind, t.line, t.col)).collect();
        assert_eq!(at[0], (Kind::Value, 1, 1));
        assert_eq!(at[1], (Kind::Unknown, 2, 3));
        assert_eq!(at[2], (Kind::Global, 2, 5));
        assert_eq!(at[3], (Kind::Group, 2, 12));
        assert_eq!(at[4], (Kind::End, 2, 17));
    }
}
