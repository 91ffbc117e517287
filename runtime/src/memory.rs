//! Memory that buffers live in, and the Rust types of elements that are read and written through
//! it.

use memmap2::{Advice, MmapMut, MmapOptions};
use weft_graph::DType;

/// Zeroed pages of this machine, released on drop. Pages are taken when first written.
#[derive(Debug)]
pub struct Pages {
    map: MmapMut,
}

impl Pages {
    pub fn zeroed(size_bytes: usize) -> std::io::Result<Pages> {
        let map = MmapOptions::new().len(size_bytes.max(1)).map_anon()?;
        // A kernel that cannot give huge pages gives small ones: nothing but speed depends on it.
        let _ = map.advise(Advice::HugePage);
        Ok(Pages { map })
    }

    /// Aligned to a page. Kernels write through it: whoever holds it must not let that race with a
    /// reader.
    pub fn address(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }

    pub fn size_bytes(&self) -> usize {
        self.map.len()
    }
}

/// A plain number that buffers of some dtypes consist of.
///
/// # Safety
/// Every bit pattern of the type is a value, and it has no padding.
pub unsafe trait Element: Copy + Default + 'static {
    const DTYPES: &'static [DType];
}

/// The bytes of plain numbers, as they lie in memory.
pub fn as_bytes<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: an `Element` has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// As `as_bytes`, to be written.
pub fn as_bytes_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and whatever is written is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

macro_rules! elements {
    ($($type:ty => $($dtype:ident)|+;)+) => {
        $(
            // SAFETY: a number of the machine, or a wrapper of one.
            unsafe impl Element for $type {
                const DTYPES: &'static [DType] = &[$(DType::$dtype),+];
            }
        )+
    };
}

elements! {
    f32 => F32;
    half::bf16 => Bf16;
    half::f16 => F16;
    i32 => I32;
    i64 => I64;
    // Codes of the formats that Rust has no type for are bytes.
    u8 => U8 | Bool | E4m3 | E5m2 | Ue8m0 | E5m6;
}
