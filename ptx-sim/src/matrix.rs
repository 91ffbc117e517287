//! `ldmatrix` and `stmatrix`: 8x8 tiles of 16-bit elements, a row's address from each lane.

use crate::error::{Error, ErrorKind, Result};
use crate::exec::Next;
use crate::exec::memory::{Place, aligned};
use crate::machine::Machine;
use crate::program::{AddressSpace, Inst};
use crate::race::Touch;
use crate::warp::{Lanes, Warp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Tiles, of which tile `i` takes its rows from lanes `8i..8i + 8`.
    pub n: u8,
    pub transposed: bool,
    pub space: AddressSpace,
}

const ROW_BYTES: usize = 16;

impl Machine<'_> {
    fn row_places(
        &mut self,
        cta: usize,
        warp: &Warp,
        inst: &Inst,
        matrix: Matrix,
        (mask, writes): (u32, bool),
    ) -> Result<Vec<Place>> {
        if mask != u32::MAX {
            let message = format!("lanes {:#x} take no part", !mask);
            return Err(Error::new(ErrorKind::Divergence, message));
        }
        let addresses = self.fetch(cta, warp, inst.src[0]);
        let mut out = vec![];
        for &address in &addresses[..8 * usize::from(matrix.n)] {
            aligned(address, ROW_BYTES)?;
            let place = self.place(cta, matrix.space, address, ROW_BYTES as u64)?;
            if !matches!(place, Place::Shared { .. }) {
                let message = format!("{address:#x} is not in shared memory");
                return Err(Error::new(ErrorKind::OutOfBounds, message));
            }
            let (epoch, line) = (warp.epoch(), inst.line);
            let knowledge = &warp.knowledge;
            let touch = Touch { epoch, knowledge, is_async: false, is_atomic: false, line };
            self.touch(place, ROW_BYTES, writes, touch)?;
            out.push(place);
        }
        Ok(out)
    }

    pub(crate) fn ldmatrix(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        matrix: Matrix,
        mask: u32,
    ) -> Result<Next> {
        let places = self.row_places(cta, warp, inst, matrix, (mask, false))?;
        for (tile, &dst) in inst.dst.iter().enumerate() {
            let mut rows = [[0u8; ROW_BYTES]; 8];
            for (row, &place) in rows.iter_mut().zip(&places[8 * tile..]) {
                self.load_bytes(warp, 0, place, row);
            }
            let element = |r: usize, c: usize| {
                u64::from(u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]))
            };
            let values: Lanes = std::array::from_fn(|lane| {
                let (major, minor) = (lane / 4, lane % 4 * 2);
                if matrix.transposed {
                    element(minor, major) | element(minor + 1, major) << 16
                } else {
                    element(major, minor) | element(major, minor + 1) << 16
                }
            });
            warp.put(dst, mask, &values);
        }
        Ok(Next::Following)
    }

    pub(crate) fn stmatrix(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        matrix: Matrix,
        mask: u32,
    ) -> Result<Next> {
        let places = self.row_places(cta, warp, inst, matrix, (mask, true))?;
        for tile in 0..usize::from(matrix.n) {
            let values = self.fetch(cta, warp, inst.src[1 + tile]);
            let mut rows = [[0u8; ROW_BYTES]; 8];
            for (lane, value) in values.iter().enumerate() {
                let (major, minor) = (lane / 4, lane % 4 * 2);
                for half in 0..2 {
                    let bits = (value >> (16 * half)) as u16;
                    let (r, c) = match matrix.transposed {
                        true => (minor + half, major),
                        false => (major, minor + half),
                    };
                    rows[r][2 * c..][..2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            for (row, &place) in rows.iter().zip(&places[8 * tile..]) {
                self.store_bytes(warp, 0, place, row)?;
            }
        }
        Ok(Next::Following)
    }

    pub(crate) fn setmaxnreg(
        &mut self,
        cta: usize,
        warp: &mut Warp,
        inst: &Inst,
        mask: u32,
    ) -> Result<Next> {
        let n = self.uniform(cta, warp, inst.src[0], mask);
        if !(24..=256).contains(&n) || !n.is_multiple_of(8) {
            let message = format!("{n} registers, not a multiple of 8 in 24..=256");
            return Err(Error::new(ErrorKind::Operand, message));
        }
        Ok(Next::Following)
    }
}
