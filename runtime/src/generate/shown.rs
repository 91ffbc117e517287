//! Texts of several requests as their tokens come, in the order of the prompts: the first that is
//! open is shown token by token, and what those behind it have waits for its end.

use std::io::Write;

use crate::data::tokenizer::{Decoder, Tokenizer};

/// Where texts go, and what of them has not been written yet.
pub struct Shown<'t, W> {
    out: W,
    texts: Vec<Text<'t>>,
    /// The first text that has not been shown whole.
    first: usize,
    /// The token that ends a text, which is not shown.
    stop: Option<u32>,
    /// A reader that closed the pipe has seen enough.
    open: bool,
}

struct Text<'t> {
    /// Without one ids are shown, at the end.
    decoder: Option<Decoder<'t>>,
    ids: Vec<String>,
    waiting: String,
    ended: bool,
}

impl<'t, W: Write> Shown<'t, W> {
    /// A text for each of `prompts`, which it begins with; with no tokenizer lists of ids.
    pub fn new(
        out: W,
        prompts: &[String],
        tokenizer: Option<&'t Tokenizer>,
        stop: Option<u32>,
    ) -> Shown<'t, W> {
        let text = |prompt: &String| Text {
            decoder: tokenizer.map(Tokenizer::decoder),
            ids: vec![],
            waiting: prompt.clone(),
            ended: false,
        };
        let texts = prompts.iter().map(text).collect();
        let mut shown = Shown { out, texts, first: 0, stop, open: true };
        shown.write();
        shown
    }

    /// Text `number` has a token more.
    pub fn token(&mut self, number: usize, id: u32) {
        let text = &mut self.texts[number];
        match &mut text.decoder {
            None => text.ids.push(id.to_string()),
            Some(_) if self.stop == Some(id) => {}
            Some(decoder) => text.waiting += &decoder.push(id),
        }
        self.write();
    }

    /// Text `number` is whole.
    pub fn end(&mut self, number: usize) {
        let text = &mut self.texts[number];
        let rest = match &mut text.decoder {
            None => text.ids.join(","),
            Some(decoder) => decoder.finish(),
        };
        text.waiting += &rest;
        text.waiting.push('\n');
        text.ended = true;
        self.write();
    }

    fn write(&mut self) {
        while let Some(text) = self.texts.get_mut(self.first).filter(|_| self.open) {
            let bytes = std::mem::take(&mut text.waiting);
            self.open =
                self.out.write_all(bytes.as_bytes()).and_then(|()| self.out.flush()).is_ok();
            if !text.ended {
                break;
            }
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shown_in_order_as_they_come() {
        let bytes = Tokenizer::bytes();
        let prompts = ["a".to_string(), "b".to_string(), "c".to_string()];
        let mut shown = Shown::new(Vec::new(), &prompts, Some(&bytes), Some(0));
        let mut check = |step: &mut dyn FnMut(&mut Shown<Vec<u8>>), want: &str| {
            step(&mut shown);
            assert_eq!(String::from_utf8_lossy(&shown.out), want);
        };
        check(&mut |_| {}, "a");
        check(&mut |s| s.token(1, b'1'.into()), "a");
        check(&mut |s| s.token(0, b'2'.into()), "a2");
        // A later one ends first.
        check(&mut |s| s.end(1), "a2");
        check(&mut |s| s.token(0, 0), "a2");
        check(&mut |s| s.end(0), "a2\nb1\nc");
        check(&mut |s| s.token(2, b'3'.into()), "a2\nb1\nc3");
        check(&mut |s| s.end(2), "a2\nb1\nc3\n");
    }

    #[test]
    fn ids_are_listed_at_the_end_of_each() {
        let prompts = [String::new(), String::new()];
        let mut shown = Shown::new(Vec::new(), &prompts, None, None);
        shown.token(1, 7);
        shown.token(0, 5);
        shown.token(0, 6);
        shown.end(0);
        assert_eq!(shown.out, b"5,6\n");
        shown.end(1);
        assert_eq!(shown.out, b"5,6\n7\n");
    }
}
