//! Text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`.
//!
//! Ids of the byte tokenizer, all below 512 so that a model with `vocab = 512` reads them:
//!
//! | id | meaning | | id | meaning |
//! |---|---|---|---|---|
//! | 0..=255 | the byte | | 259 | fim_hole |
//! | 256 | bos | | 260 | fim_end |
//! | 257 | eos | | 261 | pad |
//! | 258 | fim_begin | | | |

use std::fs;
use std::path::Path;

use super::DataError;

pub const BYTE_BOS: u32 = 256;
pub const BYTE_EOS: u32 = 257;
pub const BYTE_FIM_BEGIN: u32 = 258;
pub const BYTE_FIM_HOLE: u32 = 259;
pub const BYTE_FIM_END: u32 = 260;
pub const BYTE_PAD: u32 = 261;
const N_BYTE_IDS: u32 = 262;
const _: () = assert!(N_BYTE_IDS <= 512);

/// The ids that stand for no text. What a tokenizer lacks is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub fim_begin: Option<u32>,
    pub fim_hole: Option<u32>,
    pub fim_end: Option<u32>,
    pub pad: Option<u32>,
}

const BYTE_SPECIAL: SpecialTokens = SpecialTokens {
    bos: Some(BYTE_BOS),
    eos: Some(BYTE_EOS),
    fim_begin: Some(BYTE_FIM_BEGIN),
    fim_hole: Some(BYTE_FIM_HOLE),
    fim_end: Some(BYTE_FIM_END),
    pad: Some(BYTE_PAD),
};

/// How published tokenizers spell these tokens. `tokenizer.json` does not say which token ends a
/// text; a `tokenizer_config.json` beside it may, and then wins.
const BOS_SPELLINGS: &[&str] =
    &["<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"];
const EOS_SPELLINGS: &[&str] =
    &["<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"];
const PAD_SPELLINGS: &[&str] = &["<｜▁pad▁｜>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]"];
const FIM_BEGIN_SPELLINGS: &[&str] =
    &["<｜fim▁begin｜>", "<|fim_begin|>", "<|fim_prefix|>", "<fim_prefix>"];
const FIM_HOLE_SPELLINGS: &[&str] =
    &["<｜fim▁hole｜>", "<|fim_hole|>", "<|fim_suffix|>", "<fim_suffix>"];
const FIM_END_SPELLINGS: &[&str] =
    &["<｜fim▁end｜>", "<|fim_end|>", "<|fim_middle|>", "<fim_middle>"];

/// Encodes documents and prompts. Spellings of special tokens inside a text stay text.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    special: SpecialTokens,
    name: String,
    fingerprint: String,
}

#[derive(Debug)]
enum Kind {
    Bytes,
    HuggingFace(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    pub fn bytes() -> Self {
        Self {
            kind: Kind::Bytes,
            special: BYTE_SPECIAL,
            name: "the byte tokenizer".to_owned(),
            fingerprint: "bytes".to_owned(),
        }
    }

    /// Reads a `tokenizer.json`, or the one in a folder.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let failed = |reason: String| DataError::Tokenizer { path: path.clone(), reason };
        let bytes = fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| failed(e.to_string()))?;
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| failed(e.to_string()))?;
        let named = named_tokens(&path.with_file_name("tokenizer_config.json")).map_err(failed)?;
        let find = |key: &str, spellings: &[&str]| {
            let named = named.get(key).and_then(spelling_of);
            let spellings = spellings.iter().copied();
            named.into_iter().chain(spellings).find_map(|s| inner.token_to_id(s))
        };
        let special = SpecialTokens {
            bos: find("bos_token", BOS_SPELLINGS),
            eos: find("eos_token", EOS_SPELLINGS),
            pad: find("pad_token", PAD_SPELLINGS),
            fim_begin: find("fim_begin_token", FIM_BEGIN_SPELLINGS),
            fim_hole: find("fim_hole_token", FIM_HOLE_SPELLINGS),
            fim_end: find("fim_end_token", FIM_END_SPELLINGS),
        };
        Ok(Self {
            kind: Kind::HuggingFace(Box::new(inner)),
            special,
            name: path.display().to_string(),
            fingerprint: blake3::hash(&bytes).to_hex().to_string(),
        })
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// One more than the largest id; the model's vocabulary must not be smaller.
    pub fn n_ids(&self) -> u32 {
        match &self.kind {
            Kind::Bytes => N_BYTE_IDS,
            Kind::HuggingFace(inner) => {
                inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1)
            }
        }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Equal for tokenizers that give equal ids.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The ids of `text` alone, without bos or eos.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.kind {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::HuggingFace(inner) => {
                let encoding = inner.encode_fast(text, false);
                let failed = |e: tokenizers::Error| DataError::Encode {
                    tokenizer: self.name.clone(),
                    n_bytes: text.len(),
                    reason: e.to_string(),
                };
                Ok(encoding.map_err(failed)?.get_ids().to_vec())
            }
        }
    }

    /// bos text eos, as far as the tokenizer has them.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::from_iter(self.special.bos);
        ids.extend(self.encode(text)?);
        ids.extend(self.special.eos);
        Ok(ids)
    }

    /// The text of `ids`; special and unknown ids give none, bytes that are no UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// Decodes ids as they come.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { tokenizer: self, bytes: Vec::new(), ids: Vec::new(), n_context: 0, shown: 0 }
    }
}

/// Text from ids one at a time; what it returns never ends inside a character.
#[derive(Debug)]
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Byte tokenizer: the bytes of a character that is not complete yet, at most three.
    bytes: Vec<u8>,
    /// Hugging Face: ids whose text is not settled, led by the ids of the last text given out,
    /// because a token's text can depend on the one before (a leading space).
    ids: Vec<u32>,
    /// How many of `ids` only lead, and the bytes of their text.
    n_context: usize,
    shown: usize,
}

impl Decoder<'_> {
    /// The text that `id` completes, possibly none.
    pub fn push(&mut self, id: u32) -> String {
        match &self.tokenizer.kind {
            Kind::Bytes => {
                let Ok(byte) = u8::try_from(id) else { return self.finish() };
                self.bytes.push(byte);
                take_complete(&mut self.bytes)
            }
            Kind::HuggingFace(inner) => {
                self.ids.push(id);
                let text = inner.decode(&self.ids, true).unwrap_or_default();
                if text.len() <= self.shown || text.ends_with(char::REPLACEMENT_CHARACTER) {
                    return String::new();
                }
                let new = text.get(self.shown..).unwrap_or_default().to_owned();
                self.ids.drain(..self.n_context);
                self.n_context = self.ids.len();
                self.shown = inner.decode(&self.ids, true).unwrap_or_default().len();
                new
            }
        }
    }

    /// What is left: bytes that never became a character give U+FFFD.
    pub fn finish(&mut self) -> String {
        match &self.tokenizer.kind {
            Kind::Bytes => String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned(),
            Kind::HuggingFace(inner) => {
                let text = inner.decode(&std::mem::take(&mut self.ids), true).unwrap_or_default();
                self.n_context = 0;
                text.get(std::mem::take(&mut self.shown)..).unwrap_or_default().to_owned()
            }
        }
    }
}

/// Takes everything but an incomplete character at the end.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let n_complete = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // `error_len` is none when more bytes could still complete the character.
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(e) => e.valid_up_to() + e.error_len().unwrap_or(1),
    };
    let complete: Vec<u8> = bytes.drain(..n_complete).collect();
    let mut text = String::from_utf8_lossy(&complete).into_owned();
    // A byte that broke a character may itself begin one, or stand for itself.
    if n_complete > 0 && !bytes.is_empty() {
        text.push_str(&take_complete(bytes));
    }
    text
}

/// The object in a `tokenizer_config.json`; empty when there is none.
fn named_tokens(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(serde_json::Map::new()) };
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// A token is written as a string, or as an object with `content`.
fn spelling_of(value: &serde_json::Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level BPE with one merge, one special token and the GPT-4 style look-ahead pattern
    /// that needs a backtracking regular expression.
    fn write_bpe(dir: &Path) -> std::path::PathBuf {
        let mut vocab = serde_json::Map::new();
        // The byte-level alphabet: printable bytes stand for themselves, others move to U+0100 up.
        let mut moved = 0x100;
        for byte in 0..=255u8 {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let code = if printable { u32::from(byte) } else { moved };
            moved += u32::from(!printable);
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        vocab.insert("th".to_owned(), 256.into());
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [special(257, "<s>"), special(258, "<end>"),
                special(259, "<fim_prefix>"), special(260, "<fim_suffix>"),
                special(261, "<fim_middle>")],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\s?\S+|\s+"},
                    "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": false}]},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "h"]]},
        });
        let path = dir.join("tokenizer.json");
        fs::write(&path, json.to_string()).unwrap();
        fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": {"content": "<end>"}}"#)
            .unwrap();
        path
    }

    /// Streams the ids of `text` and returns the pieces.
    fn stream(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        let mut decoder = tokenizer.decoder();
        let ids = tokenizer.encode(text).unwrap();
        let mut pieces: Vec<_> = ids.into_iter().map(|id| decoder.push(id)).collect();
        pieces.push(decoder.finish());
        pieces
    }

    #[test]
    fn bytes_are_their_own_ids() {
        let tokenizer = Tokenizer::bytes();
        assert_eq!(tokenizer.encode("é!").unwrap(), [0xc3, 0xa9, 33]);
        assert_eq!(tokenizer.encode_document("a").unwrap(), [BYTE_BOS, 97, BYTE_EOS]);
    }

    #[test]
    fn streaming_never_splits_a_character() {
        let dir = tempfile::tempdir().unwrap();
        let bpe = Tokenizer::from_file(&write_bpe(dir.path())).unwrap();
        for tokenizer in [&Tokenizer::bytes(), &bpe] {
            let text = "the añ→𝕎 end\n  two";
            let pieces = stream(tokenizer, text);
            assert_eq!(pieces.concat(), text);
            assert!(!pieces.concat().contains(char::REPLACEMENT_CHARACTER));
            assert_eq!(pieces.iter().filter(|p| p.contains('𝕎')).count(), 1);
        }
    }

    #[test]
    fn broken_bytes_show_as_replacement_and_do_not_hold_up_the_rest() {
        let tokenizer = Tokenizer::bytes();
        let mut decoder = tokenizer.decoder();
        let pieces: Vec<_> = [0xff, 0xe2, 0x41].map(|id| decoder.push(id)).into();
        assert_eq!(pieces, ["\u{fffd}", "", "\u{fffd}A"]);
        decoder.push(0xe2);
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    #[test]
    fn special_ids_give_no_text() {
        assert_eq!(Tokenizer::bytes().decode(&[BYTE_BOS, 72, 105, BYTE_EOS, 511]), "Hi");
    }

    #[test]
    fn a_tokenizer_file_gives_merges_and_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        write_bpe(dir.path());
        let tokenizer = Tokenizer::from_file(dir.path()).unwrap();
        let special = tokenizer.special();
        assert_eq!((special.bos, special.eos, special.pad), (Some(257), Some(258), None));
        assert_eq!(special.fim_hole, Some(260));
        assert_eq!(tokenizer.n_ids(), 262);
        assert_eq!(tokenizer.encode_document("then").unwrap(), [257, 256, 101, 110, 258]);
        assert_eq!(tokenizer.decode(&[257, 256, 101, 258]), "the");
    }

    #[test]
    fn the_spelling_of_a_special_token_in_a_text_stays_text() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::from_file(&write_bpe(dir.path())).unwrap();
        let ids = tokenizer.encode("<s> <fim_prefix>").unwrap();
        assert!(ids.iter().all(|&id| id <= 256), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids), "<s> <fim_prefix>");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for content in ["", "{}", "[1, 2]", "{\"model\": 3}"] {
            fs::write(&path, content).unwrap();
            let error = Tokenizer::from_file(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot load the tokenizer {}", path.display())));
        }
    }
}
