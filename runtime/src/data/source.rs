//! Documents from files and folders of text.
//!
//! A document is a file, or a piece of a file longer than the piece size; where pieces meet is
//! computed from the few bytes around the nominal cut, so any document can be read without reading
//! those before it. Only paths and sizes are held in memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::DataError;

/// How far past a nominal cut a line end is looked for.
const LINE_SEARCH_BYTES: u64 = 4096;

/// The documents of some paths, numbered in order of path.
#[derive(Debug)]
pub struct TextSource {
    paths: Vec<PathBuf>,
    files: Vec<TextFile>,
    piece_bytes: u64,
    n_documents: u64,
    skipped: BTreeSet<u64>,
    fingerprint: String,
}

#[derive(Debug)]
struct TextFile {
    path: PathBuf,
    n_bytes: u64,
    /// Number of the file's first document.
    first_document: u64,
}

impl TextSource {
    /// Walks `paths` in sorted order. In folders, names that begin with a dot and links to folders
    /// are left out. Files longer than `piece_bytes` are cut, at a line end where there is one.
    pub fn open(paths: &[PathBuf], piece_bytes: u64) -> Result<Self, DataError> {
        let mut files = Vec::new();
        let mut hasher = blake3::Hasher::new();
        let mut n_documents = 0;
        let piece_bytes = piece_bytes.max(16);
        for root in paths {
            let mut found = Vec::new();
            walk(root, &mut found)?;
            for (path, n_bytes) in found {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                hasher.update(relative.as_os_str().as_encoded_bytes());
                hasher.update(&[0]).update(&n_bytes.to_le_bytes());
                files.push(TextFile { path, n_bytes, first_document: n_documents });
                n_documents += n_bytes.div_ceil(piece_bytes);
            }
        }
        Ok(Self {
            paths: paths.to_vec(),
            files,
            piece_bytes,
            n_documents,
            skipped: BTreeSet::new(),
            fingerprint: hasher.finalize().to_hex().to_string(),
        })
    }

    pub fn n_documents(&self) -> u64 {
        self.n_documents
    }

    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Files of which something was passed over so far because it is not UTF-8 text.
    pub fn n_files_skipped(&self) -> usize {
        self.skipped.len()
    }

    /// Digest of names and sizes, the same wherever the folders lie.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The paths as given, for messages.
    pub fn describe(&self) -> String {
        let paths: Vec<_> = self.paths.iter().map(|p| p.display().to_string()).collect();
        paths.join(", ")
    }

    /// The text of a document; `None` when it is binary, not UTF-8, or blank.
    pub fn read(&mut self, document: u64) -> Result<Option<String>, DataError> {
        let after = self.files.partition_point(|f| f.first_document <= document);
        let Some(at) = after.checked_sub(1) else { return Ok(None) };
        let file = &self.files[at];
        let piece = document - file.first_document;
        let bytes = read_piece(file, piece, self.piece_bytes)?;
        if bytes.contains(&0) {
            self.skipped.insert(at as u64);
            return Ok(None);
        }
        match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                self.skipped.insert(at as u64);
                Ok(None)
            }
        }
    }
}

/// Regular files under `path` with their sizes, depth first, names in byte order.
fn walk(path: &Path, found: &mut Vec<(PathBuf, u64)>) -> Result<(), DataError> {
    let failed = |error| DataError::Path { path: path.to_owned(), error };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_file() {
        found.push((path.to_owned(), metadata.len()));
        return Ok(());
    }
    if !metadata.is_dir() {
        return Err(failed(io::Error::other("neither a file nor a folder")));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    for name in names {
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let child = path.join(name);
        let is_link = child.is_symlink();
        match fs::metadata(&child) {
            Ok(m) if m.is_dir() && !is_link => walk(&child, found)?,
            Ok(m) if m.is_file() => found.push((child, m.len())),
            // Links to folders may form circles; sockets and devices hold no text.
            Ok(_) => {}
            Err(_) if is_link => {}
            Err(error) => return Err(DataError::Path { path: child, error }),
        }
    }
    Ok(())
}

fn read_piece(file: &TextFile, piece: u64, piece_bytes: u64) -> Result<Vec<u8>, DataError> {
    let failed = |error| DataError::Path { path: file.path.clone(), error };
    let handle = File::open(&file.path).map_err(failed)?;
    let start = boundary(&handle, file, piece * piece_bytes, piece_bytes)?;
    let end = boundary(&handle, file, (piece + 1) * piece_bytes, piece_bytes)?;
    read_range(&handle, file, start, end)
}

/// Where the piece that nominally begins at `nominal` begins: after the next line end, else at the
/// next byte that begins a character. Looks at most half a piece far, so pieces keep their order.
fn boundary(
    handle: &File,
    file: &TextFile,
    nominal: u64,
    piece_bytes: u64,
) -> Result<u64, DataError> {
    if nominal == 0 || nominal >= file.n_bytes {
        return Ok(nominal.min(file.n_bytes));
    }
    let search = LINE_SEARCH_BYTES.min(piece_bytes / 2);
    // One byte earlier, so that a cut which falls on the start of a line stays there.
    let window = read_range(handle, file, nominal - 1, (nominal + search).min(file.n_bytes))?;
    if let Some(at) = window.iter().position(|&b| b == b'\n') {
        return Ok(nominal + at as u64);
    }
    let continuation = window[1..].iter().take_while(|&&b| b & 0b1100_0000 == 0b1000_0000);
    Ok(nominal + continuation.count().min(3) as u64)
}

fn read_range(handle: &File, file: &TextFile, start: u64, end: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = vec![0; (end - start) as usize];
    let mut done = 0;
    while done < bytes.len() {
        match handle.read_at(&mut bytes[done..], start + done as u64) {
            Ok(0) => {
                let found = start + done as u64;
                return Err(DataError::Changed { path: file.path.clone(), expected: end, found });
            }
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DataError::Path { path: file.path.clone(), error }),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn documents(dir: &Path, piece_bytes: u64) -> (Vec<String>, usize) {
        let mut source = TextSource::open(&[dir.to_owned()], piece_bytes).unwrap();
        let n = source.n_documents();
        let texts = (0..n).filter_map(|i| source.read(i).unwrap()).collect();
        (texts, source.n_files_skipped())
    }

    #[test]
    fn a_folder_is_walked_in_sorted_order() {
        let dir = folder(&[("b.txt", b"3"), ("a/y", b"2"), ("a/x", b"1"), (".git/z", b"no")]);
        assert_eq!(documents(dir.path(), 1024).0, ["1", "2", "3"]);
    }

    #[test]
    fn binary_and_broken_files_are_counted_not_read() {
        let dir =
            folder(&[("a", b"text"), ("b", b"\x7fELF\0\0"), ("c", b"caf\xe9"), ("d", b" \n")]);
        assert_eq!(documents(dir.path(), 1024), (vec!["text".to_owned()], 2));
    }

    #[test]
    fn pieces_of_a_file_join_to_the_file() {
        let text: String =
            (0..400).map(|i| format!("line {i} é{}\n", "…".repeat(i % 40))).collect();
        let dir = folder(&[("long", text.as_bytes())]);
        for piece_bytes in [16, 64, 1000, 1 << 20] {
            let (pieces, skipped) = documents(dir.path(), piece_bytes);
            assert_eq!((pieces.concat(), skipped), (text.clone(), 0), "pieces of {piece_bytes}");
        }
        let (pieces, _) = documents(dir.path(), 1000);
        assert!(pieces.iter().all(|p| p.ends_with('\n')));
    }

    #[test]
    fn a_file_of_one_long_line_is_cut_between_characters() {
        let text = "añ→".repeat(500);
        let dir = folder(&[("long", text.as_bytes())]);
        let (pieces, skipped) = documents(dir.path(), 64);
        assert_eq!((pieces.concat(), skipped), (text, 0));
        assert!(pieces.len() > 40);
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = TextSource::open(&["/no/such/place".into()], 1024).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /no/such/place: "), "{error}");
    }

    #[test]
    fn the_fingerprint_follows_names_and_sizes_not_the_place() {
        let print = |files: &[(&str, &[u8])]| {
            let dir = folder(files);
            TextSource::open(&[dir.path().to_owned()], 64).unwrap().fingerprint().to_owned()
        };
        assert_eq!(print(&[("a", b"1")]), print(&[("a", b"1")]));
        assert_ne!(print(&[("a", b"1")]), print(&[("b", b"1")]));
        assert_ne!(print(&[("a", b"1")]), print(&[("a", b"12")]));
    }

    #[test]
    fn a_file_that_shrank_is_named() {
        let dir = folder(&[("a", b"some text")]);
        let mut source = TextSource::open(&[dir.path().to_owned()], 64).unwrap();
        fs::write(dir.path().join("a"), b"some").unwrap();
        let error = source.read(0).unwrap_err().to_string();
        assert!(error.contains("a changed while it was read: expected 9 bytes"), "{error}");
    }
}
