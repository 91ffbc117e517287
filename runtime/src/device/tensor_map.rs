//! The tensor maps of a launch: what a kernel says of them, with the launch's buffers and sizes.

use weft_graph::TensorMap;

/// A tensor as it lies at a launch; dims innermost first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub address: u64,
    pub dims: Vec<u64>,
    pub strides_bytes: Vec<u64>,
}

impl Tensor {
    pub fn of(map: &TensorMap, buffers: &[*mut u8], scalars: &[i64]) -> Result<Tensor, String> {
        let size = |at: &u32| {
            let value = scalars.get(*at as usize).copied();
            let value = value.ok_or_else(|| format!("a tensor map names scalar {at}"))?;
            u64::try_from(value).map_err(|_| format!("a tensor map has a size of {value}"))
        };
        let sizes = |of: &[u32]| of.iter().map(size).collect::<Result<Vec<u64>, String>>();
        let buffer = buffers.get(map.buffer as usize);
        let buffer = buffer.ok_or_else(|| format!("a tensor map names buffer {}", map.buffer))?;
        // A tensor without elements is not read; no map can say that there are none.
        let dims: Vec<u64> = sizes(&map.dims)?.into_iter().map(|n| n.max(1)).collect();
        // Of a dim of one element any step will do, but a map wants one of 16 bytes.
        let step = |(stride, dim): (u64, &u64)| if *dim == 1 { stride.max(16) } else { stride };
        let strides = sizes(&map.strides_bytes)?.into_iter().zip(dims.iter().skip(1)).map(step);
        Ok(Tensor { address: *buffer as usize as u64, strides_bytes: strides.collect(), dims })
    }
}

#[cfg(test)]
mod tests {
    use weft_graph::MapElement;

    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            buffer: 1,
            element: MapElement::Bf16,
            dims: vec![2, 0],
            strides_bytes: vec![1],
            box_dims: vec![64, 8],
            swizzle_bytes: 128,
        }
    }

    #[test]
    fn sizes_are_the_launchs() {
        let buffers = [std::ptr::null_mut(), 4096 as *mut u8];
        let tensor = Tensor::of(&map(), &buffers, &[0, 144, 72]).unwrap();
        // No rows: one, which nothing reads.
        let want = Tensor { address: 4096, dims: vec![72, 1], strides_bytes: vec![144] };
        assert_eq!(tensor, want);
    }

    #[test]
    fn what_the_launch_does_not_have_is_named() {
        let buffers = [std::ptr::null_mut(), 4096 as *mut u8];
        let wrong = Tensor::of(&map(), &buffers, &[0, 144]).unwrap_err();
        assert!(wrong.contains("scalar 2"), "{wrong}");
        let wrong = Tensor::of(&map(), &buffers[..1], &[0, 144, 72]).unwrap_err();
        assert!(wrong.contains("buffer 1"), "{wrong}");
    }
}
