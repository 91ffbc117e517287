//! Tiles in shared memory as TMA writes them and wgmma reads them: rows of 128 bytes whose 16-byte
//! chunks are permuted by the row's number, so that a column of chunks meets every bank.
//!
//! A tile is contiguous along k (`Major::K`): a row holds 128 bytes of k. Or along its rows, the m
//! or n of the product (`Major::Rows`): then it is cut in blocks of 64 elements, a 128-byte line
//! for each step of k.

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

/// An operand's tile: `rows` of m or n, and 128 bytes of k in its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandTile {
    pub kind: Kind,
    pub major: Major,
    pub rows: u32,
}

/// Fields of a matrix descriptor, in 16-byte units: start at bit 0, offset along the leading
/// dimension at 16, along the other at 32, and the permutation at 62 (1: of 128 bytes).
const LEADING_BIT: u32 = 16;
const STRIDE_BIT: u32 = 32;
const SWIZZLE_128: u64 = 1 << 62;

impl OperandTile {
    /// Terms of k.
    pub fn k(&self) -> u32 {
        LINE_BYTES / self.kind.element_bytes()
    }

    pub fn bytes(&self) -> u32 {
        self.rows * LINE_BYTES
    }

    /// Elements of a line.
    fn line(&self) -> u32 {
        LINE_BYTES / self.kind.element_bytes()
    }

    /// The box of one copy, innermost dimension first.
    pub fn box_dims(&self) -> [u32; 2] {
        match self.major {
            Major::K => [self.line(), self.rows],
            Major::Rows => [self.line(), self.k()],
        }
    }

    /// Copies that fill the tile: for each its bytes from the start, and the rows before it.
    pub fn copies(&self) -> Vec<(u32, u32)> {
        match self.major {
            Major::K => vec![(0, 0)],
            Major::Rows => {
                let n = self.rows / self.line();
                assert_eq!(n * self.line(), self.rows, "{} rows in blocks", self.rows);
                (0..n).map(|i| (i * self.k() * LINE_BYTES, i * self.line())).collect()
            }
        }
    }

    /// Bytes from the start of the tile to its row `row`, a multiple of 64.
    pub fn row_offset_bytes(&self, row: u32) -> u32 {
        assert!(row.is_multiple_of(64), "a part of the tile from row {row}");
        row * LINE_BYTES
    }

    /// The descriptor of the tile at `address`.
    pub fn descriptor<'c>(&self, cg: &Cg<'c>, address: Val<'c>) -> Val<'c> {
        let units = |bytes: u32| u64::from(bytes / 16);
        let (leading, stride) = match self.major {
            // The leading offset is not used: a permuted line is all of k.
            Major::K => (16, PERIOD_BYTES),
            Major::Rows => (self.k() * LINE_BYTES, PERIOD_BYTES),
        };
        let fields = SWIZZLE_128 | units(leading) << LEADING_BIT | units(stride) << STRIDE_BIT;
        let start = cg.zext(cg.lshr(cg.and(address, 0x3ffff), 4), Elem::I64);
        cg.or(start, fields as i64)
    }

    /// What to add to the descriptor for the next product along k.
    pub fn descriptor_step(&self) -> u32 {
        match self.major {
            Major::K => 32 / 16,
            Major::Rows => self.kind.k() * LINE_BYTES / 16,
        }
    }
}

/// Where chunk `chunk` (of 16 bytes) of line `line` lies in a tile whose lines of `line_bytes` (32,
/// 64 or 128) are permuted within themselves.
pub fn permuted<'c>(cg: &Cg<'c>, line_bytes: u32, line: Val<'c>, chunk: Val<'c>) -> Val<'c> {
    let start = cg.mul(line, line_bytes as i32);
    let by = cg.and(cg.lshr(start, 7), (line_bytes / 16 - 1) as i32);
    cg.add(start, cg.mul(cg.xor(chunk, by), 16))
}
