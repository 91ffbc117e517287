//! Fill-in-the-middle (Bavarian et al. 2022) in the order prefix, suffix, middle, on a share of the
//! documents, before packing:
//!
//! ```text
//! fim_begin prefix fim_hole suffix fim_end middle eos
//! ```

use super::DataError;
use super::tokenizer::Tokenizer;
use crate::train::philox::Stream;

/// Turns a share of the documents into fill-in-the-middle documents.
#[derive(Clone, Copy, Debug)]
pub struct FillInMiddle {
    rate: f64,
    chosen: Stream,
    cuts: Stream,
    begin: u32,
    hole: u32,
    end: u32,
}

impl FillInMiddle {
    /// None when the rate is 0. Which documents are cut, and where, follows from `seed`.
    pub fn new(rate: f64, seed: u64, tokenizer: &Tokenizer) -> Result<Option<Self>, DataError> {
        if !(0.0..=1.0).contains(&rate) {
            let found = rate.to_string();
            let expected = "between 0 and 1";
            return Err(DataError::Option { name: "the fill-in-the-middle rate", expected, found });
        }
        if rate == 0.0 {
            return Ok(None);
        }
        let need = |id: Option<u32>, missing| {
            id.ok_or_else(|| DataError::NoFimTokens { tokenizer: tokenizer.name().into(), missing })
        };
        let special = tokenizer.special();
        Ok(Some(Self {
            rate,
            chosen: Stream::new(seed, "data.fim.chosen"),
            cuts: Stream::new(seed, "data.fim.cuts"),
            begin: need(special.fim_begin, "fim_begin")?,
            hole: need(special.fim_hole, "fim_hole")?,
            end: need(special.fim_end, "fim_end")?,
        }))
    }

    /// The ids of `text` with its middle moved to the end, if `document` is one of those drawn in
    /// `epoch`. Each cut is a uniform byte, moved back to the start of its character.
    pub fn encode(
        &self,
        text: &str,
        tokenizer: &Tokenizer,
        epoch: u64,
        document: u64,
    ) -> Result<Option<Vec<u32>>, DataError> {
        if self.chosen.uniform(epoch, document) >= self.rate {
            return Ok(None);
        }
        let n_cuts = text.len() as u64 + 1;
        let cut = |i| floor_boundary(text, self.cuts.below(epoch, 2 * document + i, n_cuts));
        let (a, b) = (cut(0), cut(1));
        let (from, to) = (a.min(b), a.max(b));
        let mut ids = vec![self.begin];
        ids.extend(tokenizer.encode(&text[..from])?);
        ids.push(self.hole);
        ids.extend(tokenizer.encode(&text[to..])?);
        ids.push(self.end);
        ids.extend(tokenizer.encode(&text[from..to])?);
        ids.extend(tokenizer.special().eos);
        Ok(Some(ids))
    }
}

/// The last character boundary at or before byte `at`.
fn floor_boundary(text: &str, at: u64) -> usize {
    let mut at = at as usize;
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::{BYTE_EOS, BYTE_FIM_BEGIN, BYTE_FIM_END, BYTE_FIM_HOLE};

    /// Undoes the rearrangement.
    fn original(ids: &[u32], tokenizer: &Tokenizer) -> String {
        let at = |id| ids.iter().position(|&x| x == id).unwrap();
        let (begin, hole, end, eos) =
            (at(BYTE_FIM_BEGIN), at(BYTE_FIM_HOLE), at(BYTE_FIM_END), at(BYTE_EOS));
        assert_eq!((begin, eos), (0, ids.len() - 1));
        let [prefix, suffix, middle] =
            [&ids[1..hole], &ids[hole + 1..end], &ids[end + 1..eos]].map(|x| tokenizer.decode(x));
        prefix + &middle + &suffix
    }

    #[test]
    fn a_rearranged_document_holds_the_whole_text() {
        let tokenizer = Tokenizer::bytes();
        let fim = FillInMiddle::new(1.0, 3, &tokenizer).unwrap().unwrap();
        for (document, text) in ["", "a", "é", "one two three", "→→→→ añ 𝕎"].iter().enumerate()
        {
            for epoch in 0..20 {
                let ids = fim.encode(text, &tokenizer, epoch, document as u64).unwrap().unwrap();
                assert_eq!(original(&ids, &tokenizer), *text);
            }
        }
    }

    #[test]
    fn the_rate_is_the_share_of_documents() {
        let tokenizer = Tokenizer::bytes();
        let fim = FillInMiddle::new(0.1, 3, &tokenizer).unwrap().unwrap();
        let taken = |i: &u64| fim.encode("text", &tokenizer, 0, *i).unwrap().is_some();
        let n = (0..10_000).filter(taken).count();
        assert!((850..1150).contains(&n), "{n} of 10000");
    }

    #[test]
    fn a_rate_of_zero_needs_no_tokens_and_a_wrong_rate_is_refused() {
        let tokenizer = Tokenizer::bytes();
        assert!(FillInMiddle::new(0.0, 1, &tokenizer).unwrap().is_none());
        for rate in [-0.1, 1.5, f64::NAN] {
            let error = FillInMiddle::new(rate, 1, &tokenizer).unwrap_err().to_string();
            assert!(error.contains("must be between 0 and 1, found"), "{error}");
        }
    }
}
