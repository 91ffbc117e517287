//! PTX text to the tree of [`ast`]: the module level. Bodies are in `body.rs`.

pub mod ast;
mod body;
mod lex;

use crate::error::{Error, ErrorKind, Result};
use ast::{Function, Module, Space, Variable};
use lex::{Lexed, Token};
use std::collections::BTreeMap;

/// Parses a whole module.
pub fn parse(text: &str) -> Result<Module> {
    let tokens = lex::lex(text)?;
    let files = files(&tokens);
    let mut parser = Parser { tokens, at: 0, files };
    parser.module()
}

/// `.file NUMBER "NAME"` of the whole module: LLVM prints them after the functions that name them.
fn files(tokens: &[Lexed]) -> BTreeMap<u32, String> {
    let mut out = BTreeMap::new();
    for at in tokens.windows(4) {
        let [word, number, first, second] = [&at[0], &at[1], &at[2], &at[3]].map(|t| &t.token);
        if let (Token::Word(".file"), Token::Int(number), Token::Text(first)) =
            (word, number, first)
        {
            // A second string is the file, the first its folder.
            let name = if let Token::Text(second) = second { second } else { first };
            out.insert(*number as u32, name.to_string());
        }
    }
    out
}

struct Parser<'a> {
    tokens: Vec<Lexed<'a>>,
    at: usize,
    /// `.file` numbers, for `.loc`.
    files: BTreeMap<u32, String>,
}

impl<'a> Parser<'a> {
    fn module(&mut self) -> Result<Module> {
        let mut module = Module::default();
        while self.at < self.tokens.len() {
            let word = self.word()?;
            match word {
                ".version" => self.version()?,
                ".target" => {
                    module.target = self.word()?.to_string();
                    while self.eat(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    if self.int()? != 64 {
                        return Err(self.unsupported("an address size other than 64"));
                    }
                }
                ".file" => self.file()?,
                ".section" => self.section()?,
                ".visible" | ".weak" | ".extern" | ".common" => {}
                ".entry" | ".func" => {
                    if let Some(function) = self.function(word == ".entry")? {
                        module.functions.push(function);
                    }
                }
                ".global" | ".shared" | ".const" => {
                    let variable = self.variable(space_of(word))?;
                    self.expect(';')?;
                    module.globals.push(variable);
                }
                other => return Err(self.unsupported(&format!("the directive `{other}`"))),
            }
        }
        Ok(module)
    }

    /// `8.3`, which the lexer reads as `8` and a word `.3`.
    fn version(&mut self) -> Result<()> {
        self.int()?;
        if matches!(self.peek(), Some(Token::Word(w)) if w.starts_with('.')
            && w[1..].bytes().all(|b| b.is_ascii_digit()))
        {
            self.at += 1;
        }
        Ok(())
    }

    /// Known already.
    fn file(&mut self) -> Result<()> {
        self.int()?;
        self.text()?;
        while matches!(self.peek(), Some(Token::Text(_))) || self.eat(',') {
            self.at += 1;
        }
        Ok(())
    }

    /// Debug information: skipped.
    fn section(&mut self) -> Result<()> {
        self.word()?;
        self.expect('{')?;
        while !self.eat('}') {
            if self.at >= self.tokens.len() {
                return Err(self.syntax("a section without its closing brace"));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// `None` for a declaration without a body.
    fn function(&mut self, is_entry: bool) -> Result<Option<Function>> {
        let line = self.line();
        let results = if self.is('(') { self.params()? } else { vec![] };
        let name = self.word()?.to_string();
        let params = if self.is('(') { self.params()? } else { vec![] };
        let mut function = Function {
            name,
            is_entry,
            results,
            params,
            required_block: None,
            max_threads: None,
            required_cluster: None,
            body: vec![],
            line,
        };
        loop {
            if self.eat(';') {
                return Ok(None);
            }
            if self.is('{') {
                break;
            }
            match self.word()? {
                ".reqntid" => function.required_block = Some(self.triple()?),
                ".maxntid" => {
                    let threads = self.triple()?;
                    function.max_threads =
                        Some(threads.iter().fold(1, |n, d| n.saturating_mul(*d)));
                }
                ".reqnctapercluster" => function.required_cluster = Some(self.triple()?),
                // Hints to the assembler, and what a launch says anyway.
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" => drop(self.int()?),
                ".explicitcluster" | ".blocksareclusters" | ".noreturn" => {}
                other => return Err(self.unsupported(&format!("the directive `{other}`"))),
            }
        }
        function.body = self.body()?;
        Ok(Some(function))
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        out[0] = self.int()? as u32;
        for slot in &mut out[1..] {
            if self.eat(',') {
                *slot = self.int()? as u32;
            }
        }
        Ok(out)
    }

    fn params(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        let mut out = vec![];
        while !self.eat(')') {
            match self.word()? {
                ".param" => out.push(self.variable(Space::Param)?),
                other => return Err(self.syntax(&format!("`{other}` among parameters"))),
            }
            self.eat(',');
        }
        Ok(out)
    }

    /// After the space: `.align 16 .b8 name[128] = {..}`, `.u64 .ptr .global .align 1 name`.
    fn variable(&mut self, space: Space) -> Result<Variable> {
        let line = self.line();
        let (mut align_bytes, mut element_bytes, mut is_pointer) = (0, 0, false);
        let name = loop {
            match self.word()? {
                ".align" if is_pointer => drop(self.int()?),
                ".align" => align_bytes = self.int()? as u64,
                ".ptr" => is_pointer = true,
                ".attribute" => return Err(self.unsupported("`.attribute`")),
                ".global" | ".shared" | ".const" | ".local" if is_pointer => {}
                word if word.starts_with('.') => {
                    let bits = type_bits(&word[1..])
                        .ok_or_else(|| self.unsupported(&format!("the type `{word}`")))?;
                    element_bytes = u64::from(bits.div_ceil(8));
                }
                name => break name.to_string(),
            }
        };
        let mut size_bytes = element_bytes;
        if self.eat('[') {
            if self.eat(']') {
                size_bytes = 0;
            } else {
                size_bytes = size_bytes.saturating_mul(self.int()? as u64);
                self.expect(']')?;
            }
        }
        let mut init = vec![];
        if self.eat('=') {
            init = self.initial(element_bytes as usize)?;
        }
        let align_bytes = align_bytes.max(element_bytes);
        if !align_bytes.is_power_of_two() || align_bytes > 4096 || size_bytes > largest_bytes(space)
        {
            let what = format!("`{name}` of {size_bytes} bytes aligned to {align_bytes}");
            return Err(self.unsupported(&what));
        }
        if init.len() as u64 > size_bytes {
            return Err(self.syntax(&format!("`{name}` has more initial values than elements")));
        }
        Ok(Variable { space, name, align_bytes, size_bytes, init, line })
    }

    fn initial(&mut self, element_bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![];
        let braced = self.eat('{');
        loop {
            let bits = match self.next() {
                Some(Token::Int(v)) => v as u64,
                Some(Token::FloatBits(bits)) => bits,
                _ => return Err(self.unsupported("an initial value that is not a number")),
            };
            out.extend_from_slice(&bits.to_le_bytes()[..element_bytes.min(8)]);
            if !braced || !self.eat(',') {
                break;
            }
        }
        if braced {
            self.expect('}')?;
        }
        Ok(out)
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.tokens.get(self.at).map(|t| t.token.clone());
        self.at += 1;
        token
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.line)
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Token::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.is(c);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.eat(c) { Ok(()) } else { Err(self.unexpected(&format!("`{c}`"))) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(&Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.unexpected("a word")),
        }
    }

    fn int(&mut self) -> Result<i128> {
        match self.peek() {
            Some(&Token::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.unexpected("a number")),
        }
    }

    fn text(&mut self) -> Result<String> {
        match self.peek() {
            Some(&Token::Text(text)) => {
                self.at += 1;
                Ok(text.to_string())
            }
            _ => Err(self.unexpected("a string")),
        }
    }

    fn unexpected(&self, wanted: &str) -> Error {
        match self.peek() {
            Some(Token::Word(w)) => self.syntax(&format!("expected {wanted}, found `{w}`")),
            Some(Token::Punct(c)) => self.syntax(&format!("expected {wanted}, found `{c}`")),
            Some(other) => self.syntax(&format!("expected {wanted}, found {other:?}")),
            None => self.syntax(&format!("expected {wanted}, found the end")),
        }
    }

    fn syntax(&self, message: &str) -> Error {
        Error::at(ErrorKind::Syntax, self.line(), message)
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::at(ErrorKind::Unsupported, self.line(), format!("{what} is not supported"))
    }
}

/// What a variable may have: the limits of the hardware, and for global memory one that no kernel
/// of ours comes near.
fn largest_bytes(space: Space) -> u64 {
    match space {
        Space::Global => 1 << 26,
        Space::Shared => 227 << 10,
        Space::Const => 64 << 10,
        Space::Local => 512 << 10,
        Space::Param => 32764,
    }
}

fn space_of(word: &str) -> Space {
    match word {
        ".global" => Space::Global,
        ".shared" => Space::Shared,
        ".const" => Space::Const,
        ".local" => Space::Local,
        _ => Space::Param,
    }
}

/// Bits of a fundamental type, `pred` being one.
pub fn type_bits(name: &str) -> Option<u8> {
    Some(match name {
        "pred" => 1,
        "b8" | "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        "b128" => 128,
        _ => return None,
    })
}
