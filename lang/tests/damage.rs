//! A model with slips in it gives diagnostics or a module, never a panic and never a hang.
//!
//! Shipped files are changed at random, the same for a seed: words swapped, lines and numbers
//! taken out or replaced. DAMAGE_CASES and DAMAGE_SEED in the environment ask for more.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft_lang::diag::{self, Diag};
use weft_lang::elaborate::{Overrides, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    fn of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "(0 - 1)",
    "(0 - 3)",
    "1e15",
    "4G",
    "9e15",
    "1e19",
    "1e300",
    "(1 / 0)",
    "(0 / 0)",
    "(0 - 1e300)",
    "none",
    "true",
    "\"x\"",
    "[1, 2]",
];

/// What a text consists of: words with their digits, or single other characters.
fn pieces(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut pieces = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match is_word(first) {
            true => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        pieces.push(&rest[..end]);
        rest = &rest[end..];
    }
    pieces
}

fn damaged(text: &str, draw: &mut Draw) -> String {
    let mut pieces = pieces(text);
    let starts = |p: &&str, test: fn(&char) -> bool| p.chars().next().is_some_and(|c| test(&c));
    let words: Vec<usize> =
        (0..pieces.len()).filter(|i| starts(&pieces[*i], |c| c.is_ascii_alphabetic())).collect();
    let numbers: Vec<usize> =
        (0..pieces.len()).filter(|i| starts(&pieces[*i], |c| c.is_ascii_digit())).collect();
    for _ in 0..=draw.below(3) {
        let (a, b) = (words[draw.below(words.len())], words[draw.below(words.len())]);
        match draw.below(6) {
            0 => pieces.swap(a, b),
            1 => pieces[a] = pieces[b],
            2 => pieces[a] = draw.of(NUMBERS),
            3 if !numbers.is_empty() => {
                pieces[numbers[draw.below(numbers.len())]] = draw.of(NUMBERS);
            }
            4 => pieces[a] = "",
            _ => {
                // A line, as if its author had forgotten it.
                let line = |from: usize| pieces[from..].iter().position(|p| *p == "\n");
                let start = pieces[..a].iter().rposition(|p| *p == "\n").map_or(0, |i| i + 1);
                let end = a + line(a).unwrap_or(0);
                (start..end).for_each(|i| pieces[i] = "");
            }
        }
    }
    pieces.concat()
}

/// Everything `weft check` does; how many diagnostics there were.
fn check(root: &Path, changed: &Path, text: &str) -> usize {
    let read = |path: &Path| match path == changed {
        true => Ok(text.to_string()),
        false => std::fs::read_to_string(path),
    };
    let (program, map, mut diags) = weft_lang::load(root, &read);
    let tree = elaborate(&program, &map, &Overrides::default(), &mut diags);
    let bounded = Settings {
        batch: Size::Bounded(64),
        seq: Size::Bounded(4096),
        segments: true,
        cache: None,
    };
    let cached = Settings { cache: Some(Size::Bounded(4096)), segments: false, ..bounded.clone() };
    if let Some(tree) = tree {
        for (purpose, settings) in [(Purpose::Train, bounded), (Purpose::Infer, cached)] {
            let lowered = lower(&program, &tree, &map, purpose, settings, &mut diags);
            if let Some(lowered) = lowered {
                assert!(!diags.iter().any(Diag::is_error), "a module in spite of errors");
                if let Err(errors) = weft_ir::verify::verify(&lowered.module) {
                    panic!("what is lowered verifies: {}", errors[0]);
                }
            }
        }
    }
    diag::render_all(&map, &diags, false);
    diags.len()
}

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn damaged_models_give_diagnostics() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("models");
    let files: Vec<(PathBuf, String)> = support::shipped_models()
        .into_iter()
        .map(|(path, text)| (path.canonicalize().expect("a file"), text))
        .collect();
    let roots = ["nano.model", "deepseek_v2_lite.model", "llama.model"];
    let (seed, n_cases) = (asked("DAMAGE_SEED", 1), asked("DAMAGE_CASES", 250));
    let mut n_diags = 0;
    for case in 0..n_cases {
        let mut draw = Draw(seed.wrapping_mul(1_000_003).wrapping_add(case));
        let root = folder.join(roots[draw.below(roots.len())]);
        let (path, text) = &files[draw.below(files.len())];
        let text = damaged(text, &mut draw);
        let start = Instant::now();
        let run = catch_unwind(AssertUnwindSafe(|| check(&root, path, &text)));
        let name = path.display();
        match run {
            Ok(n) => n_diags += n,
            Err(_) => panic!("seed {seed}, case {case}: {name} panics as\n{text}"),
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "seed {seed}, case {case}: {name} took {took:?}");
    }
    assert!(n_diags as u64 > n_cases / 4, "the damage does something: {n_diags} diagnostics");
}
