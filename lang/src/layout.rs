//! Raw tokens to what the grammar reads: brackets paired, newlines kept or dropped, words told from
//! keywords.
//!
//! Most keywords are words like any other (`weight weight : [out, in]`), so whether one is meant is
//! decided here by its neighbours; the grammar then needs one token of look-ahead and no knowledge
//! of names. Two signs are split for the same reason: `(` after a name is a call, and `-` after an
//! operand is a subtraction, so statements may follow each other on a line without a separator.

use crate::brackets::{Brackets, Fault, line_before, pair};
use crate::diag::Diag;
use crate::lexer::{self, Raw, RawKind};
use crate::source::{FileId, Span};

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Token<'s> {
    Name(&'s str),
    Number(f64),
    /// Between the quotes, escapes unresolved.
    Str(&'s str),
    Word(Keyword),
    Sign(RawKind),
    /// `(` directly after a name.
    CallParen,
    /// `-` before an operand.
    Neg,
    /// Never in a text: put before it, says what is to be read.
    Start(Start),
    /// The end of a statement: a newline that counts, or `;`. Never first or last in braces.
    Separator,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    File,
    Expr,
}

/// Words with a meaning of their own: the first group always, the rest where `keyword` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keyword {
    If,
    Then,
    Else,
    And,
    Or,
    Not,
    As,
    At,
    Over,
    Sharing,
    True,
    False,
    None,
    Weft,
    Use,
    Module,
    Model,
    Precision,
    Parallel,
    Train,
    Serve,
    Weight,
    State,
    Schedule,
    Forward,
    Update,
    Loss,
    Config,
    Shrink,
    From,
    Copy,
    Of,
    Cache,
    Emit,
    Repeat,
    Each,
    Cosine,
    Steps,
    Tokens,
}

pub type Spanned<'s> = (usize, Token<'s>, usize);

/// The tokens of a text, brackets always balanced, and what was wrong with them.
pub struct Layout<'s> {
    pub tokens: Vec<Spanned<'s>>,
    pub comments: Vec<Span>,
    /// Places reported already that no grammar fits: the parser leaves out the statements there.
    pub damaged: Vec<usize>,
    /// A tree of these tokens would be deeper than the compiler's own recursion can go.
    pub too_deep: bool,
    pub diags: Vec<Diag>,
}

/// How deep a tree may become: everything that walks one recurses.
const DEPTH_MAX: usize = 200;

/// `base` is added to every offset: a template's expression is read from the middle of a file.
pub fn layout(file: FileId, text: &str, base: usize) -> Layout<'_> {
    let mut raws = lexer::lex(text);
    let mut diags = Vec::new();
    let span = |raw: &Raw| Span::new(file, base + raw.start, base + raw.end);
    let comments = raws.iter().filter(|raw| raw.kind == RawKind::Comment).map(span).collect();
    raws.retain(|raw| raw.kind != RawKind::Comment);
    if let Some(raw) = nested_too_deep(&raws) {
        let diags = vec![too_deep_diag(span(raw))];
        return Layout { tokens: Vec::new(), comments, damaged: Vec::new(), too_deep: true, diags };
    }
    let brackets = pair(text, &raws);
    for (i, raw) in raws.iter().enumerate().filter(|(_, raw)| raw.kind == RawKind::Unknown) {
        // One report a line: prose without its `#` has many.
        if !line_before(&raws, i).any(|before| before.kind == RawKind::Unknown) {
            let found = &text[raw.start..raw.end];
            diags.push(Diag::error(span(raw), format!("`{found}` is not part of the language")));
        }
    }
    diags.extend(brackets.messages(text, &raws).map(|(raw, text)| Diag::error(span(raw), text)));
    let mut builder = Builder {
        file,
        text,
        base,
        raws: &raws,
        brackets: &brackets,
        open: Vec::new(),
        tokens: Vec::new(),
        over: false,
        diags,
    };
    for index in 0..raws.len() {
        builder.push(index);
    }
    builder.close_braces(raws.len(), text.len());
    while matches!(builder.tokens.last(), Some((_, Token::Separator, _))) {
        builder.tokens.pop();
    }
    let (tokens, mut diags) = (builder.tokens, builder.diags);
    let too_deep = too_deep(&tokens);
    if let Some((start, _, end)) = too_deep {
        diags.push(too_deep_diag(Span::new(file, start, end)));
    }
    let unclosed = brackets
        .faults
        .iter()
        .filter(|(index, fault)| {
            *fault == Fault::NeverClosed && raws[*index].kind != RawKind::LBrace
        })
        .map(|(index, _)| raws[*index].start);
    let wrong = raws
        .iter()
        .filter(|raw| matches!(raw.kind, RawKind::OpenStr | RawKind::Unknown))
        .map(|raw| raw.start);
    let damaged = unclosed.chain(wrong).map(|start| base + start).collect();
    Layout { tokens, comments, damaged, too_deep: too_deep.is_some(), diags }
}

fn too_deep_diag(span: Span) -> Diag {
    let message = format!("more than {DEPTH_MAX} operators and brackets inside each other");
    Diag::error(span, message).hint("give a part of it a name")
}

/// The first bracket inside too many, before any time is spent on finding its partner.
fn nested_too_deep(raws: &[Raw]) -> Option<&Raw> {
    let mut depth = 0usize;
    raws.iter().find(|raw| {
        match raw.kind {
            RawKind::LParen | RawKind::LBracket | RawKind::LBrace => depth += 1,
            RawKind::RParen | RawKind::RBracket | RawKind::RBrace => {
                depth = depth.saturating_sub(1);
            }
            _ => {}
        }
        depth > DEPTH_MAX
    })
}

/// The first token at which the tree may be deeper than `DEPTH_MAX`: brackets nest, and so does
/// every operator of a statement or argument.
fn too_deep<'s>(tokens: &[Spanned<'s>]) -> Option<Spanned<'s>> {
    // Each level counts its bracket as one.
    let mut levels = vec![1];
    let mut depth = 1;
    for spanned in tokens {
        match spanned.1 {
            Token::CallParen
            | Token::Sign(RawKind::LParen | RawKind::LBracket | RawKind::LBrace) => {
                levels.push(1);
                depth += 1;
            }
            Token::Sign(RawKind::RParen | RawKind::RBracket | RawKind::RBrace) => {
                depth -= levels.pop().unwrap_or(0);
            }
            Token::Separator | Token::Sign(RawKind::Comma) => {
                if let Some(level) = levels.last_mut() {
                    depth -= *level - 1;
                    *level = 1;
                }
            }
            token
                if asks_for_more(token)
                    || matches!(token, Token::Word(Keyword::If | Keyword::As)) =>
            {
                if let Some(level) = levels.last_mut() {
                    depth += 1;
                    *level += 1;
                }
            }
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some(*spanned);
        }
    }
    None
}

struct Builder<'s, 'a> {
    file: FileId,
    text: &'s str,
    base: usize,
    raws: &'a [Raw],
    brackets: &'a Brackets,
    /// Brackets open here; one that is never closed counts as a sign only.
    open: Vec<RawKind>,
    tokens: Vec<Spanned<'s>>,
    /// An `over` waits for its unit.
    over: bool,
    diags: Vec<Diag>,
}

impl<'s> Builder<'s, '_> {
    fn push(&mut self, index: usize) {
        let raw = self.raws[index];
        self.close_braces(index, raw.start);
        let text = &self.text[raw.start..raw.end];
        let token = match raw.kind {
            RawKind::Newline if self.brackets.opens.contains(&index) => {
                self.open.push(RawKind::LBrace);
                let brace = Token::Sign(RawKind::LBrace);
                return self.add(raw.start, brace, raw.start);
            }
            RawKind::Newline => return self.newline(index),
            RawKind::Semicolon => Token::Separator,
            RawKind::Word => self.word(index, text),
            RawKind::Number => Token::Number(lexer::number(text).unwrap_or_else(|| {
                self.report(&raw, format!("`{text}` is not a number"), |diag| {
                    diag.hint("digits, then an exponent or one of the suffixes k M G T")
                });
                1.0
            })),
            RawKind::Str => {
                let inner = &text[1..text.len() - 1];
                if lexer::unescape(inner).is_err() {
                    self.report(&raw, "a wrong escape in this string".to_string(), |diag| {
                        diag.hint("a string knows `\\\"` and `\\\\` only")
                    });
                }
                Token::Str(inner)
            }
            RawKind::OpenStr => {
                self.report(&raw, "this string has no closing `\"`".to_string(), |diag| diag);
                Token::Str("")
            }
            RawKind::LParen if matches!(self.last(), Some(Token::Name(_))) => Token::CallParen,
            RawKind::Minus if !self.last().is_some_and(ends_operand) => Token::Neg,
            kind => Token::Sign(kind),
        };
        match raw.kind {
            RawKind::RParen | RawKind::RBracket | RawKind::RBrace
                if self.brackets.is_faulty(index) =>
            {
                return;
            }
            RawKind::RParen | RawKind::RBracket | RawKind::RBrace => {
                self.open.pop();
            }
            RawKind::LBrace => self.open.push(raw.kind),
            RawKind::LParen | RawKind::LBracket if !self.brackets.is_faulty(index) => {
                self.open.push(raw.kind);
            }
            _ => {}
        }
        self.add(raw.start, token, raw.end);
    }

    /// Closes the braces that are taken to end before token `index`.
    fn close_braces(&mut self, index: usize, offset: usize) {
        for _ in self.brackets.closes.iter().filter(|close| **close == index) {
            self.open.pop();
            self.add(offset, Token::Sign(RawKind::RBrace), offset);
        }
    }

    /// Adds a token; separators are dropped where they say nothing.
    fn add(&mut self, start: usize, token: Token<'s>, end: usize) {
        let needless = match self.last() {
            None | Some(Token::Separator | Token::Sign(RawKind::LBrace)) => true,
            Some(_) => false,
        };
        if token == Token::Separator {
            self.over = false;
            if needless {
                return;
            }
        }
        if token == Token::Sign(RawKind::RBrace) && self.last() == Some(Token::Separator) {
            self.tokens.pop();
        }
        self.tokens.push((self.base + start, token, self.base + end));
    }

    fn newline(&mut self, index: usize) {
        let inside = matches!(self.open.last(), Some(RawKind::LParen | RawKind::LBracket));
        let next = self.raws[index..].iter().find(|raw| raw.kind != RawKind::Newline);
        let goes_on = next.is_some_and(|raw| match raw.kind {
            RawKind::Bar | RawKind::Comma => true,
            RawKind::Word => matches!(
                &self.text[raw.start..raw.end],
                "as" | "at" | "sharing" | "then" | "else" | "and" | "or" | "over"
            ),
            _ => false,
        });
        if !inside && !goes_on && !self.last().is_some_and(asks_for_more) {
            self.add(self.raws[index].start, Token::Separator, self.raws[index].end);
        }
    }

    fn word(&mut self, index: usize, text: &'s str) -> Token<'s> {
        if self.last() == Some(Token::Sign(RawKind::Dot)) {
            return Token::Name(text);
        }
        match self.keyword(index, text) {
            Some(keyword) => {
                match keyword {
                    Keyword::Over => self.over = true,
                    Keyword::Steps | Keyword::Tokens => self.over = false,
                    _ => {}
                }
                Token::Word(keyword)
            }
            None => Token::Name(text),
        }
    }

    /// The keyword that `text` is at this place, if it is one.
    fn keyword(&self, index: usize, text: &str) -> Option<Keyword> {
        if let Some(reserved) = reserved(text) {
            return Some(reserved);
        }
        let next = self.raws.get(index + 1);
        let next_kind = next.map(|raw| raw.kind);
        let next_text = next.map_or("", |raw| &self.text[raw.start..raw.end]);
        let before_word = next_kind == Some(RawKind::Word) && reserved(next_text).is_none();
        let before_brace = next_kind == Some(RawKind::LBrace);
        let starts = match self.last() {
            None | Some(Token::Separator) => true,
            Some(Token::Sign(kind)) => matches!(kind, RawKind::LBrace | RawKind::RBrace),
            Some(_) => false,
        };
        let when = |condition: bool, keyword: Keyword| condition.then_some(keyword);
        match text {
            "weft" => when(starts && next_kind == Some(RawKind::Number), Keyword::Weft),
            "use" => when(starts && next_kind == Some(RawKind::Str), Keyword::Use),
            "module" => when(starts && before_word, Keyword::Module),
            "model" => when(starts && before_word, Keyword::Model),
            "precision" => when(starts && before_word, Keyword::Precision),
            "parallel" => when(starts && before_word, Keyword::Parallel),
            "train" => when(starts && before_word, Keyword::Train),
            "serve" => when(starts && before_word, Keyword::Serve),
            "weight" => when(before_word, Keyword::Weight),
            "state" => when(before_word, Keyword::State),
            "schedule" => when(before_word, Keyword::Schedule),
            "cache" => when(before_word, Keyword::Cache),
            "emit" => when(before_word, Keyword::Emit),
            "repeat" => when(before_word, Keyword::Repeat),
            "each" => when(before_word, Keyword::Each),
            "from" => when(self.after_model_name() && before_word, Keyword::From),
            "copy" => when(next_text == "of", Keyword::Copy),
            "of" => when(self.last() == Some(Token::Word(Keyword::Copy)), Keyword::Of),
            "forward" => when(starts && next_kind == Some(RawKind::LParen), Keyword::Forward),
            "update" => when(starts && before_brace, Keyword::Update),
            "loss" => when(starts && before_brace, Keyword::Loss),
            "config" => when(starts && before_brace, Keyword::Config),
            "shrink" => when(starts && before_brace, Keyword::Shrink),
            "cosine" => {
                let after = self.raws.get(index + 2).map(|raw| raw.kind);
                let value = next_kind == Some(RawKind::Number)
                    || (before_word && after == Some(RawKind::Arrow));
                when(value, Keyword::Cosine)
            }
            "steps" => when(self.ends_extent(), Keyword::Steps),
            "tokens" => when(self.ends_extent(), Keyword::Tokens),
            _ => None,
        }
    }

    /// `model NAME` was just read.
    fn after_model_name(&self) -> bool {
        let before: Vec<Token> = self.tokens.iter().rev().take(2).map(|t| t.1).collect();
        matches!(before[..], [Token::Name(_), Token::Word(Keyword::Model)])
    }

    fn ends_extent(&self) -> bool {
        self.over && self.last().is_some_and(ends_operand)
    }

    fn last(&self) -> Option<Token<'s>> {
        self.tokens.last().map(|(_, token, _)| *token)
    }

    fn report(&mut self, raw: &Raw, message: String, dress: impl FnOnce(Diag) -> Diag) {
        let span = Span::new(self.file, self.base + raw.start, self.base + raw.end);
        self.diags.push(dress(Diag::error(span, message)));
    }
}

/// Words that can never be names.
pub fn reserved(text: &str) -> Option<Keyword> {
    Some(match text {
        "if" => Keyword::If,
        "then" => Keyword::Then,
        "else" => Keyword::Else,
        "and" => Keyword::And,
        "or" => Keyword::Or,
        "not" => Keyword::Not,
        "as" => Keyword::As,
        "at" => Keyword::At,
        "over" => Keyword::Over,
        "sharing" => Keyword::Sharing,
        "true" => Keyword::True,
        "false" => Keyword::False,
        "none" => Keyword::None,
        _ => return None,
    })
}

/// Behind such a token an expression may be complete.
pub fn ends_operand(token: Token) -> bool {
    matches!(
        token,
        Token::Name(_)
            | Token::Number(_)
            | Token::Str(_)
            | Token::Word(Keyword::True | Keyword::False | Keyword::None)
            | Token::Sign(RawKind::RParen | RawKind::RBracket)
    )
}

/// Tokens after which a newline does not end a statement.
fn asks_for_more(token: Token) -> bool {
    match token {
        Token::Neg => true,
        Token::Word(word) => matches!(
            word,
            Keyword::Then | Keyword::Else | Keyword::And | Keyword::Or | Keyword::Not
        ),
        Token::Sign(kind) => matches!(
            kind,
            RawKind::Comma
                | RawKind::Assign
                | RawKind::AddAssign
                | RawKind::Bar
                | RawKind::Arrow
                | RawKind::Plus
                | RawKind::Minus
                | RawKind::Star
                | RawKind::Slash
                | RawKind::Caret
                | RawKind::EqEq
                | RawKind::NotEq
                | RawKind::Less
                | RawKind::LessEq
                | RawKind::Greater
                | RawKind::GreaterEq
        ),
        _ => false,
    }
}
