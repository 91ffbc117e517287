//! Which brackets belong together, and where one that was forgotten should stand.
//!
//! The grammar sees balanced braces only, so a forgotten one costs one message and not the rest of
//! the file. As long as the braces of a text balance, its indentation means nothing.

use crate::lexer::{Raw, RawKind};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NeverClosed,
    NeverOpened,
}

/// Which brackets of a text have no partner, and where braces without one are taken to close.
#[derive(Default)]
pub struct Brackets {
    /// By position; the `usize` is an index of a raw token.
    pub faults: Vec<(usize, Fault)>,
    /// Indices of raw tokens before which a brace is closed, once for each.
    pub closes: Vec<usize>,
    /// Indices of newlines before which a brace is opened.
    pub opens: Vec<usize>,
}

impl Brackets {
    /// What to say, and of which token.
    pub fn messages<'a>(
        &'a self,
        text: &'a str,
        raws: &'a [Raw],
    ) -> impl Iterator<Item = (&'a Raw, String)> {
        let faults = self.faults.iter().filter(|(index, _)| !explained(raws, self, *index));
        let faults = faults.map(move |(index, fault)| {
            let sign = &text[raws[*index].start..raws[*index].end];
            let message = match fault {
                Fault::NeverClosed => format!("this `{sign}` is never closed"),
                Fault::NeverOpened => format!("this `{sign}` closes nothing"),
            };
            (&raws[*index], message)
        });
        let ends = self.opens.iter().filter_map(|newline| newline.checked_sub(1));
        let message = "expected `{` at the end of this line";
        faults.chain(ends.map(move |last| (&raws[last], message.to_string())))
    }

    pub fn is_faulty(&self, index: usize) -> bool {
        self.faults.iter().any(|(i, _)| *i == index)
    }
}

/// Pairs brackets as they stand; only if braces are left over, again with indentation as a witness.
pub fn pair(text: &str, raws: &[Raw]) -> Brackets {
    let plain = pair_with(raws, None);
    let braces = [RawKind::LBrace, RawKind::RBrace];
    if !plain.faults.iter().any(|(index, _)| braces.contains(&raws[*index].kind)) {
        return plain;
    }
    pair_with(raws, Some(&Indentation::of(text, raws)))
}

/// What the shape of a text says about braces that are missing.
struct Indentation<'a> {
    text: &'a str,
    raws: &'a [Raw],
    /// The indentation in bytes of the line each token stands on, of its first line if it goes on.
    of: Vec<usize>,
    /// Whether a token begins a line that does not go on from another.
    first: Vec<bool>,
    /// What stands in braces stands further right than the line that opens them.
    tidy: bool,
}

impl<'a> Indentation<'a> {
    fn of(text: &'a str, raws: &'a [Raw]) -> Indentation<'a> {
        let mut of: Vec<usize> = Vec::with_capacity(raws.len());
        let mut first: Vec<bool> = Vec::with_capacity(raws.len());
        let mut current = 0;
        for (i, raw) in raws.iter().enumerate() {
            let before = i.checked_sub(1).map(|before| raws[before].kind);
            let continues = i.checked_sub(2).is_some_and(|last| goes_on_after(raws[last].kind));
            let begins = matches!(before, None | Some(RawKind::Newline)) && !continues;
            if begins {
                let line = text[..raw.start].rfind('\n').map_or(0, |newline| newline + 1);
                current = raw.start - line;
            }
            of.push(current);
            first.push(begins);
        }
        let tidy = is_tidy(raws, &of);
        Indentation { text, raws, of, first, tidy }
    }

    /// The brace at `opener` cannot still be open at `index`: a line further left closes, a module
    /// begins, or in a tidy text any line that stands no further right.
    fn ends_before(&self, opener: usize, index: usize) -> bool {
        let raw = &self.raws[index];
        let next = self.raws.get(index + 1).map(|next| next.kind);
        let opens_item = raw.kind == RawKind::Word
            && matches!(&self.text[raw.start..raw.end], "module" | "model" | "use")
            && matches!(next, Some(RawKind::Word | RawKind::Str));
        let closes = raw.kind == RawKind::RBrace;
        let leaves = self.tidy && !closes && raw.kind != RawKind::Newline;
        self.first[index]
            && ((opens_item && self.of[index] == 0)
                || (closes && self.of[index] < self.of[opener])
                || (leaves && self.of[index] <= self.of[opener]))
    }

    /// The `}` at `index` lacks its partner on its own line: in a tidy text, what was opened on an
    /// earlier line is closed at the start of one.
    fn is_stray(&self, opener: usize, index: usize) -> bool {
        let same_line = !self.raws[opener..index].iter().any(|raw| raw.kind == RawKind::Newline);
        self.tidy && !self.first[index] && !same_line
    }

    /// The end of the line that lacks the partner of the `}` at `index`, if that stands deeper than
    /// `opener`, the brace it would close: the last line as far left as itself.
    fn head(&self, opener: Option<usize>, index: usize) -> Option<usize> {
        let indent = self.of[index];
        if !self.first[index] || opener.is_some_and(|opener| self.of[opener] >= indent) {
            return None;
        }
        let line = (0..index).rev().find(|i| {
            let raw = &self.raws[*i];
            self.first[*i] && raw.kind != RawKind::Newline && self.of[*i] <= indent
        })?;
        // `} else` lacks its brace too.
        let line = line + usize::from(self.raws[line].kind == RawKind::RBrace);
        if self.of[line] != indent || self.raws[line].kind != RawKind::Word {
            return None;
        }
        let mut depth = 0usize;
        for (i, raw) in self.raws.iter().enumerate().take(index).skip(line) {
            match raw.kind {
                RawKind::LParen | RawKind::LBracket => depth += 1,
                RawKind::RParen | RawKind::RBracket => depth = depth.checked_sub(1)?,
                RawKind::LBrace => return None,
                RawKind::Newline if depth == 0 => return Some(i),
                _ => {}
            }
        }
        None
    }
}

/// Whether all lines but one that open a brace at their end are followed by one further right.
fn is_tidy(raws: &[Raw], of: &[usize]) -> bool {
    let opens = |i: &usize| {
        let next = raws.get(i + 1).map(|raw| raw.kind);
        raws[*i].kind == RawKind::LBrace && next == Some(RawKind::Newline)
    };
    let follows = |i: usize| (i + 1..raws.len()).find(|j| raws[*j].kind != RawKind::Newline);
    let pairs = (0..raws.len()).filter(opens).filter_map(|i| Some((i, follows(i)?)));
    pairs.filter(|(i, next)| of[*next] <= of[*i]).count() <= 1
}

/// The tokens before `index` on its line, the nearest first.
pub fn line_before(raws: &[Raw], index: usize) -> impl Iterator<Item = &Raw> {
    raws[..index].iter().rev().take_while(|raw| raw.kind != RawKind::Newline)
}

/// Another report on the line says why this bracket has no partner: a string swallowed it, or
/// `f(x]` has the wrong one.
fn explained(raws: &[Raw], brackets: &Brackets, index: usize) -> bool {
    let mut line_after = raws[index..].iter().take_while(|raw| raw.kind != RawKind::Newline);
    let first = index - line_before(raws, index).count();
    let wrong_partner = brackets
        .faults
        .iter()
        .any(|(i, fault)| (first..index).contains(i) && *fault == Fault::NeverClosed);
    line_after.any(|raw| raw.kind == RawKind::OpenStr)
        || (wrong_partner && raws[index].kind != RawKind::LBrace)
}

/// A line that ends so is continued on the next, whatever brackets say.
fn goes_on_after(kind: RawKind) -> bool {
    matches!(
        kind,
        RawKind::Comma
            | RawKind::LParen
            | RawKind::LBracket
            | RawKind::Assign
            | RawKind::Bar
            | RawKind::Arrow
    )
}

fn pair_with(raws: &[Raw], indentation: Option<&Indentation>) -> Brackets {
    let mut found = Brackets::default();
    let mut open: Vec<usize> = Vec::new();
    for (index, raw) in raws.iter().enumerate() {
        while let Some(brace) = open.iter().rposition(|i| raws[*i].kind == RawKind::LBrace) {
            if !indentation.is_some_and(|shape| shape.ends_before(open[brace], index)) {
                break;
            }
            found.closes.push(index);
            found.faults.extend(open.drain(brace..).map(|i| (i, Fault::NeverClosed)));
        }
        let opener = match raw.kind {
            RawKind::LParen | RawKind::LBracket | RawKind::LBrace => {
                open.push(index);
                continue;
            }
            RawKind::RParen => RawKind::LParen,
            RawKind::RBracket => RawKind::LBracket,
            RawKind::RBrace => RawKind::LBrace,
            _ => continue,
        };
        let partner = open.iter().rposition(|i| raws[*i].kind == opener);
        let wall = open.iter().rposition(|i| raws[*i].kind == RawKind::LBrace);
        if opener == RawKind::LBrace
            && let Some(shape) = indentation
            && let Some(head) = shape.head(partner.map(|partner| open[partner]), index)
        {
            found.opens.push(head);
            continue;
        }
        if opener == RawKind::LBrace
            && let (Some(shape), Some(partner)) = (indentation, partner)
            && shape.is_stray(open[partner], index)
        {
            found.faults.push((index, Fault::NeverOpened));
            continue;
        }
        match partner {
            // A brace is not closed by a `)` that belongs to nothing.
            Some(partner) if opener == RawKind::LBrace || Some(partner) > wall => {
                found.faults.extend(open.drain(partner + 1..).map(|i| (i, Fault::NeverClosed)));
                open.pop();
            }
            _ => found.faults.push((index, Fault::NeverOpened)),
        }
    }
    let braces = open.iter().filter(|i| raws[**i].kind == RawKind::LBrace).count();
    found.closes.extend(std::iter::repeat_n(raws.len(), braces));
    found.faults.extend(open.into_iter().map(|i| (i, Fault::NeverClosed)));
    found.faults.sort_by_key(|(index, _)| *index);
    found
}
