//! The loader over files on disk: same batches for the same seed, resumed or not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_runtime::data::loader::{Batch, Loader, LoaderOptions, LoaderState};
use weft_runtime::data::tokenizer::{BYTE_BOS, BYTE_EOS, BYTE_FIM_END, Tokenizer};

/// `n` files of different lengths whose text names the file, so that documents can be told apart.
fn corpus(n: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..n {
        let text = format!("file {i} says something\n").repeat(1 + (i * 7) % 31);
        fs::write(dir.path().join(format!("{i:03}.txt")), text).unwrap();
    }
    dir
}

/// A window far smaller than the corpus, so that batches cross windows and epochs.
fn options(dir: &Path) -> LoaderOptions {
    LoaderOptions { window_tokens: 4000, ..LoaderOptions::new(vec![dir.to_owned()], 64, 11) }
}

fn open(options: LoaderOptions) -> Loader {
    Loader::open(options, Arc::new(Tokenizer::bytes())).unwrap()
}

fn batches(loader: &mut Loader, n: usize) -> Vec<Batch> {
    (0..n).map(|i| loader.next_batch(3 + i % 2).unwrap()).collect()
}

fn message(options: LoaderOptions) -> String {
    Loader::open(options, Arc::new(Tokenizer::bytes())).unwrap_err().to_string()
}

#[test]
fn a_restored_loader_continues_with_the_same_batches() {
    let dir = corpus(60);
    let options = LoaderOptions { fim_rate: 0.3, held_out: 0.1, ..options(dir.path()) };
    let mut whole = open(options.clone());
    let all = batches(&mut whole, 300);
    assert!(whole.epoch() >= 2, "the test reads more than one epoch, not {}", whole.epoch());
    for stop in [0, 1, 17, 100, 250] {
        let mut first = open(options.clone());
        batches(&mut first, stop);
        let state = serde_json::to_string(&first.state()).unwrap();
        let mut second = open(options.clone());
        second.restore(&serde_json::from_str::<LoaderState>(&state).unwrap()).unwrap();
        let rest: Vec<_> = (stop..300).map(|i| second.next_batch(3 + i % 2).unwrap()).collect();
        assert!(rest == all[stop..], "stopped after {stop} batches");
    }
}

#[test]
fn the_seed_decides_the_batches() {
    let dir = corpus(40);
    let one = batches(&mut open(options(dir.path())), 20);
    assert!(one == batches(&mut open(options(dir.path())), 20));
    assert!(one != batches(&mut open(LoaderOptions { seed: 12, ..options(dir.path()) }), 20));
}

#[test]
fn an_epoch_holds_every_document_once() {
    let dir = corpus(40);
    let mut loader = open(options(dir.path()));
    let mut ids = [0usize; 512];
    while loader.epoch() == 0 {
        // A row is counted only when it is of the first epoch: the epoch moves on with the row
        // after the last.
        let batch = loader.next_batch(1).unwrap();
        if loader.epoch() == 0 {
            batch.tokens.iter().filter(|&&t| t >= 0).for_each(|&t| ids[t as usize] += 1);
        }
    }
    assert_eq!((ids[BYTE_BOS as usize], ids[BYTE_EOS as usize]), (40, 40));
    let text: usize =
        (0..40).map(|i| fs::read(dir.path().join(format!("{i:03}.txt"))).unwrap().len()).sum();
    assert_eq!(ids[..256].iter().sum::<usize>(), text);
}

#[test]
fn epochs_come_in_different_orders() {
    let dir = corpus(40);
    let mut loader = open(options(dir.path()));
    let first = loader.next_batch(8).unwrap();
    while loader.epoch() == 0 {
        loader.next_batch(1).unwrap();
    }
    assert!(loader.next_batch(8).unwrap() != first);
    loader.rewind().unwrap();
    assert!(loader.next_batch(8).unwrap() == first);
}

/// The lines (file names) that a loader shows within its first epoch.
fn files_seen(mut loader: Loader) -> std::collections::BTreeSet<String> {
    let tokenizer = Tokenizer::bytes();
    let mut text = String::new();
    while loader.epoch() == 0 {
        let batch = loader.next_batch(1).unwrap();
        let ids: Vec<u32> = batch.tokens.iter().filter(|&&t| t >= 0).map(|&t| t as u32).collect();
        text += &tokenizer.decode(&ids);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    // Rows may begin inside a number, so only "file N says" counts.
    words.windows(3).filter(|w| w[0] == "file" && w[2] == "says").map(|w| w[1].to_owned()).collect()
}

#[test]
fn held_out_documents_are_never_trained_on() {
    let dir = corpus(100);
    let train = LoaderOptions { held_out: 0.2, sequence: 1024, ..options(dir.path()) };
    let train_files = files_seen(open(train.clone()));
    let held_out_files = files_seen(open(train.for_held_out()));
    assert!(train_files.is_disjoint(&held_out_files));
    assert_eq!(train_files.len() + held_out_files.len(), 100);
    assert!((8..35).contains(&held_out_files.len()), "{held_out_files:?}");
}

#[test]
fn fill_in_the_middle_reaches_the_batches() {
    let dir = corpus(40);
    let count = |fim_rate| {
        let mut loader = open(LoaderOptions { fim_rate, ..options(dir.path()) });
        let batch = loader.next_batch(60).unwrap();
        batch.tokens.iter().filter(|&&t| t == BYTE_FIM_END as i32).count()
    };
    assert_eq!(count(0.0), 0);
    assert!(count(0.5) > 3);
}

#[test]
fn rows_of_a_real_corpus_are_almost_full() {
    // The sources of this crate: files of realistic lengths, most longer than a row.
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut loader = open(LoaderOptions::new(vec![source], 256, 1));
    let batch = loader.next_batch(64).unwrap();
    let used = batch.n_tokens() as f64 / batch.tokens.len() as f64;
    assert!(used > 0.97, "{used}");
}

#[test]
fn another_text_seed_or_length_is_refused_on_resume() {
    let dir = corpus(10);
    let state = open(options(dir.path())).state();
    let refusal = |options| open(options).restore(&state).unwrap_err().to_string();
    let seed = refusal(LoaderOptions { seed: 5, ..options(dir.path()) });
    assert!(seed.contains("the seed was 11 and is now 5"), "{seed}");
    let length = refusal(LoaderOptions { sequence: 32, ..options(dir.path()) });
    assert!(length.contains("the sequence length was 64 and is now 32"), "{length}");
    fs::write(dir.path().join("new.txt"), "more").unwrap();
    let text = refusal(options(dir.path()));
    assert!(text.contains("the text (names and sizes of files) was"), "{text}");
}

#[test]
fn paths_without_text_are_named_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let empty = message(options(dir.path()));
    assert!(empty.starts_with(&format!("no usable text in {path}: files found: 0")), "{empty}");
    fs::write(dir.path().join("x.bin"), [0u8; 100]).unwrap();
    let binary = message(options(dir.path()));
    assert!(binary.contains("files found: 1, not text: 1; give files or folders"), "{binary}");
    fs::write(dir.path().join("a.txt"), "text").unwrap();
    let held_out = message(LoaderOptions { held_out: 1e-9, ..options(dir.path()) }.for_held_out());
    assert!(held_out.starts_with(&format!("no held-out text in {path}")), "{held_out}");
}
