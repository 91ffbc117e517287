//! The file `NAME.weft`.
//!
//! ```text
//! magic          8 bytes
//! version        u32        the first four fields are the same in every version
//! command_bytes  u32
//! command        utf-8      the command that compiles the file again
//! header_bytes   u32
//! header         JSON       compiler, CPU features, a table of sections with their digests
//! digest         32 bytes   blake3 of everything before
//! sections                  each at a multiple of 64: the graph as JSON, objects, constants
//! ```
//!
//! Numbers are little-endian, padding is zero, and nothing follows the last section, so any changed
//! bit is found. The same graph gives the same bytes.

use crate::{CpuVariant, Graph, VerifyError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Raised whenever a graph written before would be misread.
pub const FORMAT_VERSION: u32 = 2;

/// Not valid UTF-8, and spoilt by a transfer that changes line ends.
const MAGIC: [u8; 8] = *b"\x93WEFT\r\n\x1a";
const ALIGN: usize = 64;
const DIGEST_BYTES: usize = 32;

/// Why a file cannot be opened.
#[derive(Debug, Error)]
#[error("{}: {reason}", path.display())]
pub struct OpenError {
    pub path: PathBuf,
    pub reason: Reason,
}

#[derive(Debug, Error)]
pub enum Reason {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("this is not an executable graph")]
    NotAGraph,
    #[error(
        "the file has format {found}, this program reads format {FORMAT_VERSION}; {}",
        recompile(command)
    )]
    Version { found: u32, command: String },
    #[error("{part} is damaged; {}", recompile(command))]
    Damaged { part: String, command: String },
    #[error("this CPU has no {feature}, which kernel {kernel} needs; {}", recompile(command))]
    MissingFeature { feature: &'static str, kernel: String, command: String },
    #[error("{error}; {}", recompile(command))]
    Invalid { error: VerifyError, command: String },
}

#[derive(Serialize, Deserialize)]
struct Header {
    compiler: String,
    target: String,
    /// What every machine needs that runs the file; faster variants are used where they can be.
    features: Vec<String>,
    sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
struct Section {
    kind: SectionKind,
    offset: u64,
    size_bytes: u64,
    blake3: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SectionKind {
    Graph,
    Object,
    Constant,
}

impl Graph {
    /// Reads and checks a graph that this machine is to run.
    pub fn open(path: &Path) -> Result<Graph, OpenError> {
        let graph = Graph::inspect(path)?;
        graph.check_cpu().map_err(|reason| OpenError { path: path.into(), reason })?;
        Ok(graph)
    }

    /// Reads and checks a graph to look at it, whatever machine it is for.
    pub fn inspect(path: &Path) -> Result<Graph, OpenError> {
        fs::read(path)
            .map_err(Reason::from)
            .and_then(|bytes| Graph::from_bytes(&bytes))
            .map_err(|reason| OpenError { path: path.into(), reason })
    }

    /// Writes the file whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), OpenError> {
        write_atomic(path, &self.to_bytes())
            .map_err(|error| OpenError { path: path.into(), reason: error.into() })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("keys are strings and numbers are finite");
        let parts: Vec<(SectionKind, &[u8])> = std::iter::once((SectionKind::Graph, &json[..]))
            .chain(self.objects.iter().map(|bytes| (SectionKind::Object, &bytes[..])))
            .chain(self.constants.iter().map(|bytes| (SectionKind::Constant, &bytes[..])))
            .collect();
        // Offsets count from the end of the digest, so the header's length does not move them.
        let mut offset = 0;
        let mut sections = Vec::with_capacity(parts.len());
        for &(kind, bytes) in &parts {
            let blake3 = blake3::hash(bytes).to_hex().to_string();
            sections.push(Section {
                kind,
                offset: offset as u64,
                size_bytes: bytes.len() as u64,
                blake3,
            });
            offset = (offset + bytes.len()).next_multiple_of(ALIGN);
        }
        let header = Header {
            compiler: self.compiler.clone(),
            target: "x86_64".into(),
            features: self.required_features().iter().map(|&feature| feature.into()).collect(),
            sections,
        };
        let header = serde_json::to_vec(&header).expect("keys are strings");
        let mut file = Vec::new();
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        for field in [self.command.as_bytes(), &header] {
            file.extend_from_slice(&(field.len() as u32).to_le_bytes());
            file.extend_from_slice(field);
        }
        let digest = blake3::hash(&file);
        file.extend_from_slice(digest.as_bytes());
        for (_, bytes) in parts {
            file.resize(file.len().next_multiple_of(ALIGN), 0);
            file.extend_from_slice(bytes);
        }
        file
    }

    pub fn from_bytes(file: &[u8]) -> Result<Graph, Reason> {
        let mut reader = Reader { rest: file.strip_prefix(&MAGIC).ok_or(Reason::NotAGraph)? };
        let found = reader.number().ok_or(Reason::NotAGraph)?;
        let command = reader.text().unwrap_or_default();
        if found != FORMAT_VERSION {
            return Err(Reason::Version { found, command });
        }
        read_parts(file, reader, &command).unwrap_or_else(|| Err(damaged("the header", "")))
    }

    /// Whether every kernel has a variant that this machine runs.
    pub fn check_cpu(&self) -> Result<(), Reason> {
        self.check_features(CpuVariant::missing_feature)
    }

    fn check_features(
        &self,
        missing: impl Fn(CpuVariant) -> Option<&'static str>,
    ) -> Result<(), Reason> {
        for kernel in &self.kernels {
            let lowest = kernel.variants.iter().map(|variant| variant.cpu).min();
            if let Some(feature) = lowest.and_then(&missing) {
                let (kernel, command) = (kernel.name.clone(), self.command.clone());
                return Err(Reason::MissingFeature { feature, kernel, command });
            }
        }
        Ok(())
    }

    fn required_features(&self) -> &'static [&'static str] {
        let lowest = |kernel: &crate::Kernel| kernel.variants.iter().map(|v| v.cpu).min();
        let needed = self.kernels.iter().filter_map(lowest).max();
        needed.map_or(&[], CpuVariant::features)
    }
}

/// `None` where the header does not parse; its digest makes that damage, whatever it is.
fn read_parts(file: &[u8], mut reader: Reader, command: &str) -> Option<Result<Graph, Reason>> {
    let header = reader.field()?;
    let signed_bytes = file.len() - reader.rest.len();
    let digest = reader.take(DIGEST_BYTES)?;
    if blake3::hash(&file[..signed_bytes]).as_bytes() != digest {
        return None;
    }
    let header: Header = serde_json::from_slice(header).ok()?;
    let start = (signed_bytes + DIGEST_BYTES).next_multiple_of(ALIGN);
    Some(read_sections(file, signed_bytes + DIGEST_BYTES, start, &header, command))
}

fn read_sections(
    file: &[u8],
    header_end: usize,
    start: usize,
    header: &Header,
    command: &str,
) -> Result<Graph, Reason> {
    let mut graph = None;
    let (mut objects, mut constants) = (Vec::new(), Vec::new());
    let mut end = header_end;
    for (position, section) in header.sections.iter().enumerate() {
        let part = || format!("section {position} ({:?})", section.kind).to_lowercase();
        let bytes =
            section_bytes(file, start, end, section).ok_or_else(|| damaged(&part(), command))?;
        end = bytes.as_ptr() as usize - file.as_ptr() as usize + bytes.len();
        match section.kind {
            SectionKind::Graph => {
                let read = serde_json::from_slice::<Graph>(bytes);
                graph = Some(read.map_err(|_| damaged(&part(), command))?);
            }
            SectionKind::Object => objects.push(bytes.to_vec()),
            SectionKind::Constant => constants.push(bytes.to_vec()),
        }
    }
    let graph = graph.filter(|_| end == file.len());
    let mut graph = graph.ok_or_else(|| damaged("the end of the file", command))?;
    graph.objects = objects;
    graph.constants = constants;
    graph.verify().map_err(|error| Reason::Invalid { error, command: command.into() })?;
    Ok(graph)
}

/// The bytes of a section, if it follows the one that ends at `end` and its digest holds.
fn section_bytes<'a>(
    file: &'a [u8],
    start: usize,
    end: usize,
    section: &Section,
) -> Option<&'a [u8]> {
    let begin = start.checked_add(usize::try_from(section.offset).ok()?)?;
    let padding = file.get(end..begin)?;
    let size_bytes = usize::try_from(section.size_bytes).ok()?;
    let bytes = file.get(begin..begin.checked_add(size_bytes)?)?;
    let whole = padding.len() < ALIGN
        && padding.iter().all(|&byte| byte == 0)
        && blake3::hash(bytes).to_hex().as_str() == section.blake3;
    whole.then_some(bytes)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.take(usize::try_from(count).ok()?)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.field()?.to_vec()).ok()
    }
}

fn damaged(part: &str, command: &str) -> Reason {
    Reason::Damaged { part: part.into(), command: command.into() }
}

fn recompile(command: &str) -> String {
    if command.is_empty() {
        "compile it again".into()
    } else {
        format!("compile it again with `{command}`")
    }
}

fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let partial = folder.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let written = write_synced(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The error to report is the first one.
        let _ = fs::remove_file(&partial);
        return written;
    }
    // The rename itself must survive a power cut.
    File::open(folder)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernel, KernelVariant, ObjectId};

    #[test]
    fn a_missing_feature_names_the_kernel_and_the_command() {
        let variant = |cpu| KernelVariant { cpu, object: ObjectId(0) };
        let kernel = |name: &str, variants| Kernel {
            name: name.into(),
            scratch_bytes: 0,
            variants,
            ptx: None,
        };
        let graph = Graph {
            command: "weft compile toy.model".into(),
            kernels: vec![
                kernel("f32_add", vec![variant(CpuVariant::Avx2), variant(CpuVariant::Avx512)]),
                kernel("bf16_gemm", vec![variant(CpuVariant::Avx512Bf16)]),
            ],
            ..Graph::default()
        };
        let old = |cpu| (cpu > CpuVariant::Avx2).then_some("avx512f");
        assert_eq!(
            graph.check_features(old).unwrap_err().to_string(),
            "this CPU has no avx512f, which kernel bf16_gemm needs; compile it again with \
             `weft compile toy.model`"
        );
        assert!(graph.check_features(|_| None).is_ok());
        assert_eq!(graph.required_features().last(), Some(&"avx512bf16"));
    }
}
