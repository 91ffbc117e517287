//! Tiles in shared memory as TMA writes them and wgmma reads them: rows of 128 bytes whose 16-byte
//! chunks are permuted by the row's number, so that a column of chunks meets every bank.
//!
//! A tile is contiguous along k (`Major::K`): it is cut in blocks of 128 bytes of k, a line for
//! each row. Or along its rows, the m or n of the product (`Major::Rows`): then in blocks of 64
//! rows, a line for each step of k.

use weft_codegen::emit::{Cg, Elem, Val};

use crate::ptx::wgmma::Kind;

/// Bytes of a line.
pub const LINE_BYTES: u32 = 128;
/// Bytes after which the permutation repeats: what tiles are aligned to.
pub const PERIOD_BYTES: u32 = 8 * LINE_BYTES;

/// Which way an operand is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Major {
    K,
    Rows,
}

/// An operand's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandTile {
    pub kind: Kind,
    pub major: Major,
    /// Of m or n; whole blocks, where rows are what is contiguous.
    pub rows: u32,
    /// Terms; whole blocks, where k is what is contiguous.
    pub k: u32,
}

/// A copy of a part of a tile: to `bytes` from its start, what lies `row` and `k` further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    pub bytes: u32,
    pub row: u32,
    pub k: u32,
}

/// One of equal parts of a tile, each of the same share of every block's lines, as CTAs divide the
/// copying of a tile that all of them need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of a block.
    pub lines: u32,
    /// Bytes from the start of one part of a block to the next.
    pub bytes: u32,
}

/// Fields of a matrix descriptor, in 16-byte units: start at bit 0, offset along the leading
/// dimension at 16, along the other at 32, and the permutation at 62 (1: of 128 bytes).
const LEADING_BIT: u32 = 16;
const STRIDE_BIT: u32 = 32;
const SWIZZLE_128: u64 = 1 << 62;

impl OperandTile {
    pub fn bytes(&self) -> u32 {
        self.rows * self.k * self.kind.element_bytes()
    }

    /// Elements of a line.
    fn line(&self) -> u32 {
        LINE_BYTES / self.kind.element_bytes()
    }

    /// Lines of a block.
    fn lines(&self) -> u32 {
        match self.major {
            Major::K => self.rows,
            Major::Rows => self.k,
        }
    }

    fn block_bytes(&self) -> u32 {
        self.lines() * LINE_BYTES
    }

    /// A part of `n`: whole periods of the permutation.
    pub fn part(&self, n: u32) -> Part {
        let lines = self.lines() / n;
        let bytes = lines * LINE_BYTES;
        assert!(lines * n == self.lines() && bytes.is_multiple_of(PERIOD_BYTES), "{self:?} in {n}");
        Part { lines, bytes }
    }

    /// The box of one copy, innermost dimension first.
    pub fn box_dims(&self) -> [u32; 2] {
        [self.line(), self.lines()]
    }

    /// Copies that fill the tile, one a block.
    pub fn copies(&self) -> Vec<Copy> {
        let across = if self.major == Major::K { self.k } else { self.rows };
        let n = across / self.line();
        assert_eq!(n * self.line(), across, "a tile of {across} in whole lines");
        let copy = |i: u32| {
            let (bytes, at) = (i * self.block_bytes(), i * self.line());
            match self.major {
                Major::K => Copy { bytes, row: 0, k: at },
                Major::Rows => Copy { bytes, row: at, k: 0 },
            }
        };
        (0..n).map(copy).collect()
    }

    /// Bytes from the start of the tile to its row `row`, a multiple of 64.
    pub fn row_offset_bytes(&self, row: u32) -> u32 {
        assert!(row.is_multiple_of(64), "a part of the tile from row {row}");
        match self.major {
            Major::K => row * LINE_BYTES,
            Major::Rows => row / self.line() * self.block_bytes(),
        }
    }

    /// The descriptor of the tile at `address`.
    pub fn descriptor<'c>(&self, cg: &Cg<'c>, address: Val<'c>) -> Val<'c> {
        let units = |bytes: u32| u64::from(bytes / 16);
        let (leading, stride) = match self.major {
            // The leading offset is not used: a permuted line is all of k.
            Major::K => (16, PERIOD_BYTES),
            Major::Rows => (self.block_bytes(), PERIOD_BYTES),
        };
        let fields = SWIZZLE_128 | units(leading) << LEADING_BIT | units(stride) << STRIDE_BIT;
        let start = cg.zext(cg.lshr(cg.and(address, 0x3ffff), 4), Elem::I64);
        cg.or(start, fields as i64)
    }

    /// What to add to the descriptor for the product that begins at term `k`.
    pub fn descriptor_step(&self, k: u32) -> u32 {
        let bytes = match self.major {
            Major::K => {
                let within = k % self.line() * self.kind.element_bytes();
                k / self.line() * self.block_bytes() + within
            }
            Major::Rows => k * LINE_BYTES,
        };
        bytes / 16
    }
}

/// Where chunk `chunk` (of 16 bytes) of line `line` lies in a tile whose lines of `line_bytes` (32,
/// 64 or 128) are permuted within themselves.
pub fn permuted<'c>(cg: &Cg<'c>, line_bytes: u32, line: Val<'c>, chunk: Val<'c>) -> Val<'c> {
    let start = cg.mul(line, line_bytes as i32);
    let by = cg.and(cg.lshr(start, 7), (line_bytes / 16 - 1) as i32);
    cg.add(start, cg.mul(cg.xor(chunk, by), 16))
}
