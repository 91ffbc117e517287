//! The one way a `.model` file is laid out: `weft fmt`.
//!
//! Lines are the author's: tokens never move to another line, blank lines are kept (one at most),
//! comments stay where they are. Decided here are indentation, the spaces between tokens, and
//! columns. `:` is aligned over adjacent members. `=` is aligned where the author aligned it on
//! adjacent lines. What stands further right on a line (a second statement, `at`, a comment) keeps
//! its column if there is room.

use std::collections::{BTreeMap, BTreeSet};

use crate::ast::*;
use crate::layout::{self, Keyword, Token};
use crate::lexer::{self, Raw, RawKind};
use crate::source::SourceMap;

const INDENT: usize = 2;

/// The text of `file` as it should look. `file` is the tree of a text without syntax errors: its
/// spans say where statements start. A second application changes nothing.
pub fn format(map: &SourceMap, id: FileId, file: &File) -> String {
    let text = map.text(id);
    let pieces = pieces(id, text, file);
    let aligned = aligned(&pieces);
    let mut writer = Writer::default();
    for (index, piece) in pieces.iter().enumerate() {
        writer.write(&pieces, index, piece, aligned.get(&index).copied());
    }
    if !writer.out.is_empty() {
        writer.out.push('\n');
    }
    writer.out
}

/// A token or comment with what its place in the file tells.
struct Piece<'s> {
    raw: Raw,
    text: &'s str,
    /// None for comments and `;`.
    token: Option<Token<'s>>,
    /// Line and column in the author's text, from 0; columns count characters.
    line: usize,
    column: usize,
    /// A member, statement or entry begins here.
    starts: bool,
    /// The first piece of its line.
    first: bool,
}

impl Piece<'_> {
    fn is(&self, kind: RawKind) -> bool {
        self.token == Some(Token::Sign(kind))
    }

    fn is_comment(&self) -> bool {
        self.raw.kind == RawKind::Comment
    }

    fn opens_bracket(&self) -> bool {
        self.is(RawKind::LParen)
            || self.is(RawKind::LBracket)
            || self.token == Some(Token::CallParen)
    }

    fn closes_bracket(&self) -> bool {
        self.is(RawKind::RParen) || self.is(RawKind::RBracket)
    }
}

fn pieces<'s>(id: FileId, text: &'s str, file: &File) -> Vec<Piece<'s>> {
    let starts = starts(file);
    let tokens: BTreeMap<usize, Token> =
        layout::layout(id, text, 0).tokens.into_iter().map(|(at, token, _)| (at, token)).collect();
    let raws = lexer::lex(text);
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut line, mut line_start) = (0, 0);
    for (i, raw) in raws.iter().enumerate() {
        if raw.kind == RawKind::Newline {
            (line, line_start) = (line + 1, raw.end);
            continue;
        }
        // A `;` that ends a line or a block says nothing.
        let next = raws.get(i + 1).map(|next| next.kind);
        let idle = matches!(
            next,
            None | Some(RawKind::Newline | RawKind::RBrace | RawKind::Semicolon | RawKind::Comment)
        );
        let after_brace = pieces.last().is_some_and(|last| last.is(RawKind::LBrace));
        if raw.kind == RawKind::Semicolon && (idle || after_brace) {
            continue;
        }
        let token = tokens.get(&raw.start).copied();
        let token = token.filter(|token| *token != Token::Separator);
        let first = pieces.last().is_none_or(|last| last.line != line);
        pieces.push(Piece {
            raw: *raw,
            text: &text[raw.start..raw.end],
            token,
            line,
            column: text[line_start..raw.start].chars().count(),
            starts: starts.contains(&(raw.start as u32))
                || token == Some(Token::Word(Keyword::Use)),
            first,
        });
    }
    pieces
}

/// Columns that are decided before writing: the `:` and `=` of statements that start lines.
/// Relative to the indentation of the statement.
fn aligned(pieces: &[Piece]) -> BTreeMap<usize, usize> {
    let mut columns = BTreeMap::new();
    let heads: Vec<Head> = (0..pieces.len()).filter_map(|index| Head::at(pieces, index)).collect();
    let kinds = |a: &Head, b: &Head| pieces[a.sign].text == pieces[b.sign].text;
    let adjacent = |a: &Head, b: &Head| b.first_line == a.last_line + 1 && a.depth == b.depth;
    let together = |a: &Head, b: &Head| {
        let column = |head: &Head| pieces[head.sign].column;
        adjacent(a, b)
            && kinds(a, b)
            && (pieces[a.sign].is(RawKind::Colon) || column(a) == column(b))
    };
    for run in heads.chunk_by(together) {
        let width = run.iter().map(|head| head.width).max().unwrap_or(0);
        columns.extend(run.iter().map(|head| (head.sign, width + 1)));
    }
    columns
}

/// The part of a statement up to its first `=` or `:`.
struct Head {
    sign: usize,
    /// Characters before the sign, without the space between.
    width: usize,
    depth: usize,
    first_line: usize,
    /// Where the statement ends; a statement with a body has no neighbours below.
    last_line: usize,
}

impl Head {
    fn at(pieces: &[Piece], start: usize) -> Option<Head> {
        let first = &pieces[start];
        if !(first.first && first.starts) {
            return None;
        }
        let mut width = 0;
        let mut sign = start;
        while !pieces.get(sign)?.is(RawKind::Assign) && !pieces[sign].is(RawKind::Colon) {
            let piece = &pieces[sign];
            let inside = sign == start || !(piece.starts || piece.line != first.line);
            if !inside || piece.is(RawKind::LBrace) || piece.opens_bracket() {
                return None;
            }
            let gap = if sign == start { 0 } else { gap(&pieces[sign - 1], piece, 0) };
            width += gap + piece.text.chars().count();
            sign += 1;
        }
        let open = |piece: &&Piece| piece.is(RawKind::LBrace);
        let close = |piece: &&Piece| piece.is(RawKind::RBrace);
        let braces = pieces[..start].iter();
        let depth = braces.clone().filter(open).count() - braces.filter(close).count();
        let last = pieces[start + 1..]
            .iter()
            .position(|piece| piece.first && (piece.starts || piece.is(RawKind::RBrace)))
            .map_or(pieces.len(), |offset| start + 1 + offset);
        let comment = pieces[start..last].iter().rposition(|piece| !piece.is_comment());
        let last_line = pieces[start + comment.unwrap_or(0)].line;
        Some(Head { sign, width, depth, first_line: first.line, last_line })
    }
}

/// Spaces between two pieces of one line; `parens` is how many `(` or `[` are open between them.
fn gap(before: &Piece, after: &Piece, parens: usize) -> usize {
    let tight_after =
        before.opens_bracket() || before.is(RawKind::Dot) || before.token == Some(Token::Neg);
    let tight_before = after.closes_bracket()
        || after.token == Some(Token::CallParen)
        || before.token == Some(Token::Word(Keyword::Forward))
        || after.raw.kind == RawKind::Semicolon
        || [RawKind::Comma, RawKind::Dot, RawKind::Question].iter().any(|kind| after.is(*kind));
    let argument_type = after.is(RawKind::Colon) && parens > 0;
    // `i32[B, S]`
    let dims = after.is(RawKind::LBracket)
        && matches!(before.token, Some(Token::Name(_)))
        && !after.starts;
    let empty = before.is(RawKind::LBrace) && after.is(RawKind::RBrace);
    usize::from(!(tight_after || tight_before || argument_type || dims || empty))
}

#[derive(Default)]
struct Writer {
    out: String,
    /// The width of the current line so far.
    column: usize,
    /// Of the line the current statement starts on.
    indent: usize,
    braces: Vec<Brace>,
    brackets: Vec<Bracket>,
    /// Where the value of the current statement starts: behind its `=` or `:`.
    value: Option<usize>,
    /// How far the current line has moved against the author's.
    shift: isize,
}

/// An open `{`, with what `Writer` says of the statement it belongs to.
struct Brace {
    indent: usize,
    value: Option<usize>,
}

/// An open `(` or `[`.
struct Bracket {
    /// Lines inside begin here.
    content: usize,
    /// Set if nothing follows the bracket on its line: where its partner goes.
    hanging: Option<usize>,
}

impl Writer {
    fn write(&mut self, pieces: &[Piece], index: usize, piece: &Piece, aligned: Option<usize>) {
        let before = index.checked_sub(1).map(|i| &pieces[i]);
        match before {
            Some(before) if !piece.first => self.space(before, piece, aligned),
            _ => self.new_line(pieces, index, before),
        }
        if piece.starts {
            self.value = None;
        }
        self.out.push_str(piece.text);
        self.column += piece.text.chars().count();
        self.track(pieces, index, piece);
    }

    fn space(&mut self, before: &Piece, piece: &Piece, aligned: Option<usize>) {
        let normal = gap(before, piece, self.brackets.len());
        let authors = (piece.column as isize + self.shift).max(0) as usize;
        let kept = |least: usize, column: usize| authors.max(column + least) - column;
        let follows_sign = before.is(RawKind::LBrace) || before.raw.kind == RawKind::Semicolon;
        let at = piece.token == Some(Token::Word(Keyword::At));
        let authors_gap = piece.column.saturating_sub(before.column + before.text.chars().count());
        let spaces = if let Some(width) = aligned {
            (self.indent + width).max(self.column + 1) - self.column
        } else if piece.is_comment() || (piece.starts && !follows_sign) {
            kept(2, self.column)
        } else if at && authors_gap > 1 {
            kept(1, self.column)
        } else {
            normal
        };
        self.out.extend(std::iter::repeat_n(' ', spaces));
        self.column += spaces;
    }

    fn new_line(&mut self, pieces: &[Piece], index: usize, before: Option<&Piece>) {
        let piece = &pieces[index];
        if let Some(before) = before {
            let blank = piece.line > before.line + 1
                && (piece.starts || piece.is_comment())
                && !before.is(RawKind::LBrace);
            self.out.push_str(if blank { "\n\n" } else { "\n" });
        }
        self.column = self.indentation(pieces, index);
        self.shift = self.column as isize - piece.column as isize;
        if piece.starts || piece.is(RawKind::RBrace) {
            self.indent = self.column;
        }
        self.out.extend(std::iter::repeat_n(' ', self.column));
    }

    /// Where the line that begins with piece `index` begins.
    fn indentation(&self, pieces: &[Piece], index: usize) -> usize {
        let piece = &pieces[index];
        let block = self.braces.last().map_or(0, |brace| brace.indent + INDENT);
        if piece.is(RawKind::RBrace) {
            return self.braces.last().map_or(0, |brace| brace.indent);
        }
        if let Some(bracket) = self.brackets.last() {
            let closes = piece.closes_bracket();
            return bracket.hanging.filter(|_| closes).unwrap_or(bracket.content);
        }
        if piece.starts {
            return block;
        }
        if piece.is_comment() {
            // A comment stands with what follows it.
            let next = pieces[index..].iter().position(|piece| !piece.is_comment());
            return match next.map(|offset| index + offset) {
                Some(next) if !pieces[next].is(RawKind::RBrace) && !pieces[next].starts => {
                    self.indentation(pieces, next)
                }
                _ => block,
            };
        }
        let branch = piece.token == Some(Token::Word(Keyword::Else)) && self.value.is_none();
        if branch {
            return self.indent;
        }
        let value = self.value.unwrap_or(self.indent + INDENT);
        // Alternatives stand below the sign: `name = a` over `     | b`.
        if piece.is(RawKind::Bar) { value.saturating_sub(2) } else { value }
    }

    fn track(&mut self, pieces: &[Piece], index: usize, piece: &Piece) {
        if piece.opens_bracket() {
            let last = pieces.get(index + 1).is_none_or(|next| next.first || next.is_comment());
            let bracket = if last {
                Bracket { content: self.indent + INDENT, hanging: Some(self.indent) }
            } else {
                Bracket { content: self.column, hanging: None }
            };
            self.brackets.push(bracket);
        } else if piece.closes_bracket() {
            self.brackets.pop();
        } else if piece.is(RawKind::LBrace) {
            self.braces.push(Brace { indent: self.indent, value: self.value });
        } else if piece.is(RawKind::RBrace) {
            let brace = self.braces.pop().unwrap_or(Brace { indent: 0, value: None });
            (self.indent, self.value) = (brace.indent, brace.value);
        } else if self.brackets.is_empty()
            && self.value.is_none()
            && [RawKind::Assign, RawKind::AddAssign, RawKind::Colon]
                .iter()
                .any(|kind| piece.is(*kind))
        {
            self.value = Some(self.column + 1);
        }
    }
}

/// Offsets at which a member, statement, entry or item begins.
fn starts(file: &File) -> BTreeSet<u32> {
    let mut starts: BTreeSet<u32> = file.version.iter().map(|version| version.span.start).collect();
    for item in &file.items {
        starts.insert(item.span().start);
        match item {
            Item::Module(module) => member_starts(&module.members, &mut starts),
            Item::Model(model) => member_starts(&model.members, &mut starts),
            Item::Block(block) => entry_starts(&block.entries, &mut starts),
        }
    }
    starts
}

fn member_starts(members: &[Member], starts: &mut BTreeSet<u32>) {
    for member in members {
        starts.insert(member.span().start);
        match member {
            Member::If(branch) => {
                member_starts(&branch.then, starts);
                member_starts(&branch.otherwise, starts);
                if let [Member::If(nested)] = branch.otherwise.as_slice()
                    && !in_braces(branch, nested)
                {
                    starts.remove(&nested.span.start);
                }
            }
            Member::Forward(forward) => stmt_starts(&forward.body, starts),
            Member::Loss(loss) => stmt_starts(&loss.body, starts),
            Member::Update(update) => {
                starts.extend(update.rules.iter().map(|rule| rule.span.start));
            }
            Member::Shrink(shrink) => {
                starts.extend(shrink.values.iter().map(|value| value.span.start));
            }
            Member::Config(config) => config_starts(config, starts),
            Member::Block(block) => entry_starts(&block.entries, starts),
            Member::Constant(_)
            | Member::Submodule(_)
            | Member::Copy(_)
            | Member::Weight(_)
            | Member::State(_)
            | Member::Schedule(_) => {}
        }
    }
}

fn stmt_starts(stmts: &[Stmt], starts: &mut BTreeSet<u32>) {
    for stmt in stmts {
        starts.insert(stmt.span().start);
        if let Stmt::If(branch) = stmt {
            stmt_starts(&branch.then, starts);
            stmt_starts(&branch.otherwise, starts);
            if let [Stmt::If(nested)] = branch.otherwise.as_slice()
                && !in_braces(branch, nested)
            {
                starts.remove(&nested.span.start);
            }
        }
    }
}

/// `else { if .. { } }` and not `else if .. { }`: only the former ends with a brace of its own.
fn in_braces<T>(outer: &If<T>, nested: &If<T>) -> bool {
    outer.span.end != nested.span.end
}

fn config_starts(config: &Config, starts: &mut BTreeSet<u32>) {
    for entry in &config.entries {
        match entry {
            ConfigEntry::Read(read) => {
                starts.insert(read.span.start);
                starts.extend(read.translations.iter().map(|text| text.span.start));
            }
            ConfigEntry::Write(write) => {
                starts.insert(write.span.start);
            }
        }
    }
}

fn entry_starts(entries: &[Entry], starts: &mut BTreeSet<u32>) {
    for entry in entries {
        starts.insert(entry.span.start);
        if let EntryValue::Nested { entries, .. } = &entry.value {
            entry_starts(entries, starts);
        }
    }
}
