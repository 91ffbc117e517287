//! What can go wrong, and where: every error carries the PTX line, and the line of the source the
//! PTX was made from where a `.loc` gives one.

use std::fmt;

/// Which check failed. Tests match on it; people read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The text is not PTX as the parser knows it.
    Syntax,
    /// An opcode, modifier, type or directive that the interpreter does not have.
    Unsupported,
    /// A launch that does not fit the kernel: arguments, block shape, shared memory.
    Launch,
    /// An address outside every allocation, or in the wrong space.
    OutOfBounds,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// A register or buffer touched while asynchronous work may still use it.
    MissingWait,
    /// An access through one proxy that no fence orders after one through another.
    MissingFence,
    /// An mbarrier with more arrivals or bytes than it expects.
    Barrier,
    /// Nothing can go on.
    Deadlock,
    /// Lanes apart where the instruction demands them together.
    Divergence,
    /// A descriptor, tensor map or operand value that the instruction forbids.
    Operand,
    /// More instructions than the launch allows.
    Limit,
}

/// A line of the text that the PTX was made from, by `.file` and `.loc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    pub file: String,
    pub line: u32,
}

/// A failed check, with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    /// Line of the PTX text, from 1; 0 where there is none.
    pub line: u32,
    pub source_line: Option<SourceLine>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), line: 0, source_line: None }
    }

    pub(crate) fn at(kind: ErrorKind, line: u32, message: impl Into<String>) -> Self {
        Error { line, ..Error::new(kind, message) }
    }

    /// The place, unless a more precise one is already there.
    pub(crate) fn or_line(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "ptx line {}", self.line)?;
            if let Some(source) = &self.source_line {
                write!(f, " ({}:{})", source.file, source.line)?;
            }
            write!(f, ": ")?;
        }
        write!(f, "{}", self.message)
    }
}

pub type Result<T> = std::result::Result<T, Error>;
