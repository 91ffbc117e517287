//! How rows of a tile are spread over shared memory so that columns meet no bank conflicts: chunks
//! of 16 bytes are permuted within 32, 64 or 128 bytes by higher bits of the address.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    #[default]
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Bytes within which chunks move; 16, a single chunk, without a swizzle.
    pub fn span_bytes(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Bytes after which the pattern repeats.
    pub fn period_bytes(self) -> u32 {
        8 * self.span_bytes()
    }

    /// Where the byte at `address` of the plain layout is.
    pub fn apply(self, address: u32) -> u32 {
        let chunks = self.span_bytes() / 16 - 1;
        address ^ (((address >> 7) & chunks) << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunk `c` of row `r` of a 128-byte-wide tile goes to chunk `c ^ r`.
    #[test]
    fn rows_of_128_bytes_are_permuted_by_their_number() {
        for row in 0..8u32 {
            for chunk in 0..8u32 {
                let at = Swizzle::B128.apply(4096 + row * 128 + chunk * 16 + 5);
                assert_eq!(at, 4096 + row * 128 + (chunk ^ row) * 16 + 5);
            }
        }
    }

    #[test]
    fn narrower_swizzles_permute_within_their_span() {
        for row in 0..16u32 {
            for chunk in 0..4u32 {
                let at = Swizzle::B64.apply(row * 64 + chunk * 16);
                assert_eq!(at, row * 64 + (chunk ^ ((row / 2) % 4)) * 16);
            }
            for chunk in 0..2u32 {
                let at = Swizzle::B32.apply(row * 32 + chunk * 16);
                assert_eq!(at, row * 32 + (chunk ^ ((row / 4) % 2)) * 16);
            }
        }
    }
}
